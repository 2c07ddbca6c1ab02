//! Where instances shall run: pure and deterministic, from the state and what is known of the machines.
//!
//! [`plan`] is called whenever something may have changed. It takes the state as it is, and says the next steps alone; what
//! takes longer goes on with the next plan, from what the machines report meanwhile. In this order:
//!
//! 1. What nobody wants, or what has moved, ends ([`place::tidy`]).
//! 2. Units ([`unit`]: a replica, or services that depend on each other) that have no machine, or lost it, or have to leave it,
//!    get one ([`place`], [`pack`], [`score`]).
//! 3. A new revision reaches the next placements ([`rollout`]), is confirmed, or rolled back.
//! 4. When there is nothing else to do: a move that gains much ([`rebalance`]), machines that keep copies of the data ([`replicas`]), and
//!    machines that stand by ([`standby`]).
//!
//! It never gives away what may be running alone: an exclusive placement is ended only when its machine says that it has stopped,
//! or the machine's lease has ended. `State` refuses what would break this, whoever decides it.

mod check;
mod draft;
mod explain;
mod fleet;
mod needs;
mod pack;
mod place;
mod rebalance;
mod replicas;
mod rollout;
mod score;
mod standby;
mod unit;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{NodeId, ServiceName, UnixMillis};

pub use check::check_drain;
pub use explain::{explain, waiting};
pub use fleet::{ENGINE_PATIENCE_MS, FLAP_OUT_FIRST_MS, FLAP_OUT_MAX_MS, FLAP_WINDOW_MS, FLAPS_AFTER};
pub use needs::{CPU_EXPECTED_MILLIS, MEMORY_EXPECTED_BYTES};
pub use rebalance::{MARGIN, QUIET_MS};
pub use replicas::GRACE_MS;

use crate::{
    command::{Change, CommandV1},
    report::Report,
    state::State,
};
use draft::Draft;
use fleet::Fleet;
use rollout::Wake;

/// What the leader knows of a machine beside the state.
#[derive(Clone, Debug, Default)]
pub struct Standing<'a> {
    /// Its lease has ended for certain: whatever it held may be given away.
    pub ended: bool,
    /// Epochs of placements and leftovers that shall end there, and have ended by its own word: it acts upon a state no older
    /// than their [`index`](crate::state::Placement::index), and does not hold them.
    pub released: BTreeSet<u64>,
    /// The newest that it told of itself.
    pub report: Option<&'a Report>,
}

/// All that a decision is made of.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub now: UnixMillis,
    pub state: &'a State,
    /// Of every member, and of each machine that only a leftover names.
    pub machines: BTreeMap<NodeId, Standing<'a>>,
}

/// What a leader should propose now: the changes as one decision, then the commands. Empty when all is well.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub commands: Vec<CommandV1>,
    /// When to look again even if nothing happens.
    pub wake_at: Option<UnixMillis>,
}

impl<'a> Input<'a> {
    /// Of a cluster of one machine, which tells nothing: it is well, and what shall end there is taken to have ended. Its
    /// reconciler alone keeps two instances from writing one volume.
    pub fn unreported(now: UnixMillis, state: &'a State) -> Self {
        let placed = state.services.values().flat_map(|service| &service.placements).map(|placement| placement.epoch);
        let left = state.leftovers.iter().map(|leftover| leftover.epoch);
        let released: BTreeSet<u64> = placed.chain(left).collect();
        let standing = Standing { released, ..Standing::default() };
        Self { now, state, machines: state.machines.keys().map(|id| (id.clone(), standing.clone())).collect() }
    }

    /// Is it certain that the machine no longer runs what it was given under this epoch, and that shall end?
    fn is_over(&self, machine: &NodeId, epoch: u64) -> bool {
        self.machines.get(machine).is_some_and(|standing| standing.ended || standing.released.contains(&epoch))
    }

    /// May a former service of this name still write the volumes?
    fn waits_for_leftover(&self, service: &ServiceName) -> bool {
        let mut leftovers = self.state.leftovers.iter().filter(|leftover| leftover.service == *service);
        leftovers.any(|leftover| !self.is_over(&leftover.machine, leftover.epoch))
    }

    /// A machine that is alone and tells nothing: nobody would ever hear that something is well.
    fn is_blind(&self) -> bool {
        self.state.machines.len() == 1 && self.machines.values().all(|standing| standing.report.is_none())
    }
}

/// The next steps.
pub fn plan(input: &Input<'_>) -> Plan {
    let fleet = Fleet::of(input);
    let units = unit::units(input.state);
    let mut draft = Draft::of(input);
    let mut wake = Wake(fleet.next_return());
    place::tidy(&mut draft, &fleet);
    place::place(&mut draft, &fleet, &units);
    let mut commands = Vec::new();
    for service in input.state.services.values() {
        rollout::roll(&mut draft, &fleet, service, &mut wake);
        wake.for_successors(&draft, &fleet, service);
        commands.extend(rollout::verdict(input, &fleet, service));
    }
    if draft.changes.is_empty() && commands.is_empty() {
        rebalance::rebalance(&mut draft, &fleet, &units, &mut wake);
    }
    if draft.changes.is_empty() && commands.is_empty() {
        replicas::replicate(&mut draft, &fleet, &units, &mut wake);
    }
    if draft.changes.is_empty() && commands.is_empty() {
        standby::stand_by(&mut draft, &fleet, &units);
    }
    Plan { changes: draft.changes, commands, wake_at: wake.0.map(|at| at.max(input.now)) }
}
