//! What a node does while it leads: grants leases, notices who is lost and who is back, and decides placements. One proposal at
//! a time, so that each decision is made from a state that shows the one before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_api::{NodeId, UnixMillis};

use super::voters::{Members, wanted_members};
use crate::{
    command::CommandV1,
    lease::{Grant, Grantor, LEASE_MAX_MS, LEASE_MIN_MS, Mono, Renewal, Standing},
    report::Report,
    schedule::{self, Input},
    state::{Phase, State},
};

/// A leader that has not heard a quorum for so long decides nothing: it may be one no more. Milliseconds.
const CONFIRMED_MS: u64 = 1_000;
/// A machine that renewed within this time is there. Milliseconds.
const HEARD_MS: u64 = 1_500;
/// How long a machine that was just admitted may take to ask for its first lease: it links with the others first. Milliseconds.
const JOINING_MS: u64 = 15_000;
/// Waits after a proposal that failed; they double. Milliseconds.
const RETRY_FIRST_MS: u64 = 50;
const RETRY_MAX_MS: u64 = 2_000;
/// Leases are made longer in such steps, so that a little jitter changes nothing. Milliseconds.
const LEASE_STEP_MS: u64 = 500;
/// A renewal may be late by so many times the deviation of the round trip.
const LEASE_DEVIATIONS: f64 = 8.0;
/// How long jitter has to be low before leases are made shorter again. Milliseconds.
const LEASE_CALM_MS: u64 = 60_000;

/// What the shell shall do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// To be proposed; its end is told by [`Leader::proposed`].
    pub propose: Option<CommandV1>,
    /// The members that the consensus shall have.
    pub members: Option<Members>,
    /// Look again by then, even if nothing happens.
    pub wake_at: Option<Mono>,
}

/// How a proposal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The state shows it.
    Applied,
    /// It changed nothing, for certain.
    Rejected,
    /// It may still be applied.
    Unknown,
}

#[derive(Clone, Debug)]
struct Heard {
    at: Mono,
    applied: u64,
    holding: BTreeSet<u64>,
}

/// A node while it leads one term.
#[derive(Clone, Debug)]
pub struct Leader {
    node: NodeId,
    term: u64,
    /// Once the state says who leads.
    grantor: Option<Grantor>,
    confirmed: Option<Mono>,
    /// The last renewal of each machine.
    heard: BTreeMap<NodeId, Heard>,
    /// Machines that the state named when it was looked at last, and whether they were lost.
    known: BTreeMap<NodeId, bool>,
    under_way: Option<CommandV1>,
    failures: u32,
    retry_at: Mono,
    /// Since when a shorter lease would do.
    calm_since: Option<Mono>,
    /// When the length of leases was changed last.
    lease_set_at: Option<Mono>,
}

impl Leader {
    pub fn new(node: NodeId, term: u64) -> Self {
        Self {
            node,
            term,
            grantor: None,
            confirmed: None,
            heard: BTreeMap::new(),
            known: BTreeMap::new(),
            under_way: None,
            failures: 0,
            retry_at: Mono(0),
            calm_since: None,
            lease_set_at: None,
        }
    }

    pub fn term(&self) -> u64 {
        self.term
    }

    /// A heartbeat that was sent at this time was answered by a quorum.
    pub fn confirm(&mut self, sent: Mono) {
        let before = self.confirmed;
        self.confirmed = before.max(Some(sent));
        let Some(grantor) = &mut self.grantor else { return };
        grantor.confirm(sent);
        // While there was no quorum nobody got a lease; that says nothing against those who asked.
        if before.is_some_and(|before| sent.since(before) > CONFIRMED_MS) {
            for (id, lost) in &self.known {
                if !lost {
                    grantor.expect(id, sent.plus(LEASE_MAX_MS));
                }
            }
        }
    }

    /// What is left of a machine's lease, for people. Milliseconds.
    pub fn lease_left(&self, now: Mono, node: &NodeId) -> Option<u64> {
        match self.grantor.as_ref()?.standing(now, node) {
            Standing::Until(until) => Some(until.since(now)),
            Standing::Ended => None,
        }
    }

    /// Answers a renewal.
    pub fn renew(&mut self, now: Mono, from: &NodeId, renewal: &Renewal, state: &State) -> Grant {
        let refused = Grant { sequence: renewal.sequence, term: self.term, lease_ms: 0 };
        let Some(machine) = state.machines.get(from) else { return refused };
        let heard = Heard { at: now, applied: renewal.applied, holding: renewal.holding.clone() };
        self.heard.insert(from.clone(), heard);
        // Who is lost is first said to be back: while something may be taken from it, it gets no lease.
        if state.leadership.term != self.term || machine.lost_at.is_some() {
            return refused;
        }
        let Some(grantor) = &mut self.grantor else { return refused };
        let owned = |epoch: u64| {
            let leftover = state.leftovers.iter().any(|leftover| leftover.epoch == epoch && leftover.machine == *from);
            leftover || state.placement(epoch).is_some_and(|(_, placement)| placement.machine == *from)
        };
        grantor.renew(now, from, renewal, machine.taken, owned)
    }

    /// The proposal that the last step asked for has ended.
    pub fn proposed(&mut self, now: Mono, outcome: Outcome) {
        let Some(command) = self.under_way.take() else { return };
        if outcome == Outcome::Applied {
            self.failures = 0;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let wait = (RETRY_FIRST_MS << self.failures.min(10)).min(RETRY_MAX_MS);
        self.retry_at = now.plus(wait);
        // As long as it is unknown whether a machine was said to be lost, it gets no lease; it is said again.
        if let (Outcome::Rejected, CommandV1::MachineLost { machine, .. }, Some(grantor)) =
            (outcome, &command, &mut self.grantor)
        {
            grantor.release(machine);
        }
    }

    /// What is to be done next.
    pub fn step(
        &mut self,
        now: Mono,
        wall: UnixMillis,
        state: &State,
        reports: &BTreeMap<NodeId, Arc<Report>>,
        members: &Members,
    ) -> Step {
        self.follow(now, state);
        let mut step =
            Step { wake_at: self.grantor.as_ref().and_then(|grantor| grantor.next_end(now)), ..Step::default() };
        if self.under_way.is_some() {
            return step;
        }
        if self.retry_at > now {
            step.wake_at = Some(step.wake_at.map_or(self.retry_at, |at| at.min(self.retry_at)));
            return step;
        }
        step.propose = self.decide(now, wall, state, reports, &mut step.wake_at);
        self.under_way.clone_from(&step.propose);
        if let (Some(CommandV1::MachineLost { machine, .. }), Some(grantor)) = (&step.propose, &mut self.grantor) {
            grantor.withhold(machine);
        }
        if step.propose.is_none() && self.is_confirmed(now) {
            step.members = wanted_members(wall, state, &self.node, members);
        }
        step
    }

    /// Takes in what the state says by now.
    fn follow(&mut self, now: Mono, state: &State) {
        if state.leadership.term != self.term {
            return;
        }
        let lease_ms = state.leadership.lease_ms();
        let confirmed = self.confirmed;
        let grantor = self.grantor.get_or_insert_with(|| {
            let mut grantor = Grantor::new(now, self.term, lease_ms);
            grantor.inherit(now, state.leadership.longest_ms());
            if let Some(sent) = confirmed {
                grantor.confirm(sent);
            }
            grantor
        });
        grantor.set_lease(lease_ms);
        let began = self.known.is_empty();
        for (id, machine) in &state.machines {
            let lost = machine.lost_at.is_some();
            if lost {
                grantor.release(id);
            }
            match self.known.insert(id.clone(), lost) {
                Some(true) if !lost => grantor.expect(id, now.plus(lease_ms)),
                None if !began => grantor.expect(id, now.plus(JOINING_MS)),
                _ => {}
            }
        }
        self.known.retain(|id, _| state.machines.contains_key(id));
        self.heard
            .retain(|id, _| state.machines.contains_key(id) || state.leftovers.iter().any(|it| it.machine == *id));
    }

    fn is_confirmed(&self, now: Mono) -> bool {
        self.confirmed.is_some_and(|sent| now.since(sent) < CONFIRMED_MS)
    }

    fn decide(
        &mut self,
        now: Mono,
        wall: UnixMillis,
        state: &State,
        reports: &BTreeMap<NodeId, Arc<Report>>,
        wake_at: &mut Option<Mono>,
    ) -> Option<CommandV1> {
        let term = self.term;
        if state.leadership.term < term {
            return Some(CommandV1::Lead { node: self.node.clone(), term });
        }
        let grantor = self.grantor.as_ref().filter(|_| state.leadership.term == term && self.is_confirmed(now))?;
        let lost = state
            .machines
            .iter()
            .find(|(id, machine)| machine.lost_at.is_none() && grantor.standing(now, id) == Standing::Ended);
        if let Some((id, _)) = lost {
            return Some(CommandV1::MachineLost { term, machine: id.clone() });
        }
        let back = state.machines.iter().find(|(id, machine)| {
            let heard = self.heard.get(*id).filter(|heard| now.since(heard.at) < HEARD_MS);
            machine.lost_at.is_some() && heard.is_some_and(|heard| heard.applied >= machine.taken)
        });
        if let Some((id, _)) = back {
            return Some(CommandV1::MachineBack { term, machine: id.clone() });
        }
        let plan = schedule::plan(&self.input(now, wall, state, reports));
        if !plan.changes.is_empty() {
            return Some(CommandV1::Place { term, changes: plan.changes });
        }
        if let Some(command) = plan.commands.into_iter().next() {
            return Some(command);
        }
        if let Some(at) = plan.wake_at {
            let at = now.plus(at.since(wall));
            *wake_at = Some(wake_at.map_or(at, |known| known.min(at)));
        }
        self.tune_lease(now, state, reports)
    }

    /// What the scheduler sees.
    pub fn input<'a>(
        &self,
        now: Mono,
        wall: UnixMillis,
        state: &'a State,
        reports: &'a BTreeMap<NodeId, Arc<Report>>,
    ) -> Input<'a> {
        let mut ids: BTreeSet<&NodeId> = state.machines.keys().collect();
        ids.extend(state.leftovers.iter().map(|leftover| &leftover.machine));
        let machines = ids.into_iter().map(|id| (id.clone(), self.standing(now, id, state, reports)));
        Input { now: wall, state, machines: machines.collect() }
    }

    fn standing<'a>(
        &self,
        now: Mono,
        id: &NodeId,
        state: &State,
        reports: &'a BTreeMap<NodeId, Arc<Report>>,
    ) -> schedule::Standing<'a> {
        // A machine is said to be lost only after its lease, and gets none until it is said to be back. One that was removed
        // gets none either, and its last one ends in time.
        let ended = match state.machines.get(id) {
            Some(machine) => machine.lost_at.is_some(),
            None => self.grantor.as_ref().is_some_and(|grantor| grantor.standing(now, id) == Standing::Ended),
        };
        // What shall end there, and the entry that says so.
        let placed = state.services.values().flat_map(|service| service.placed_on(id));
        let vacating = placed.filter(|placement| placement.phase == Phase::Vacating);
        let left = state.leftovers.iter().filter(|leftover| leftover.machine == *id);
        let ending =
            vacating.map(|it| (it.epoch, it.index)).chain(left.map(|leftover| (leftover.epoch, leftover.index)));
        let heard = self.heard.get(id);
        let released = ending.filter(|(epoch, index)| {
            heard.is_some_and(|heard| heard.applied >= *index && !heard.holding.contains(epoch))
        });
        let released = released.map(|(epoch, _)| epoch);
        schedule::Standing { ended, released: released.collect(), report: reports.get(id).map(Arc::as_ref) }
    }

    /// Longer leases where renewals are often late, shorter ones when that has been over for a while.
    fn tune_lease(&mut self, now: Mono, state: &State, reports: &BTreeMap<NodeId, Arc<Report>>) -> Option<CommandV1> {
        let present = state.leadership.lease_ms();
        let settled = self.lease_set_at.is_none_or(|at| now.since(at) > LEASE_MAX_MS);
        let set = |lease_ms| Some(CommandV1::SetLease { term: self.term, lease_ms });
        if state.leadership.longest_ms() > present {
            // Every longer lease has ended: the next leader need not wait for one.
            return settled.then(|| set(present)).flatten();
        }
        let links = reports.get(&self.node).into_iter().flat_map(|report| &report.links);
        let worst = links.filter_map(|link| link.jitter_ms).fold(0.0, f64::max);
        // Bounded below, where a float is exact.
        let late = (worst * LEASE_DEVIATIONS).clamp(0.0, LEASE_MAX_MS as f64) as u64;
        let steps = late.saturating_sub(LEASE_STEP_MS / 2).div_ceil(LEASE_STEP_MS);
        let wanted = (LEASE_MIN_MS + steps * LEASE_STEP_MS).min(LEASE_MAX_MS);
        if wanted >= present {
            self.calm_since = None;
        }
        if wanted > present {
            self.lease_set_at = Some(now);
            return set(wanted);
        }
        if wanted < present {
            let calm = *self.calm_since.get_or_insert(now);
            if now.since(calm) >= LEASE_CALM_MS {
                self.lease_set_at = Some(now);
                return set(wanted);
            }
        }
        None
    }
}
