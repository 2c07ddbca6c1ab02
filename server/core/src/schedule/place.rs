//! Where units go that have no place, or have to leave the one that they have.

use std::collections::BTreeSet;

use flotilla_api::{NodeId, Revision, UnixMillis, spec::UpdateOrder};

use super::{
    draft::{Draft, Slot},
    fleet::{Bar, Fleet, Site},
    pack,
    score::{self, Score},
    unit::{Data, Member, Unit},
};
use crate::{
    reconcile::{Container, Incarnation},
    state::{Phase, Service},
};

/// Units that one plan finds places for; the next one goes on. Keeps a decision small and its search short.
const TASKS_MAX: usize = 100;

/// A unit that needs a machine.
pub(super) struct Task<'a> {
    pub(super) unit: Unit<'a>,
    /// Where it may go as far as the machine itself is concerned.
    pub(super) sites: Vec<Choice<'a>>,
    /// Why it needs one, as a clause; absent if it is new.
    pub(super) cause: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    pub(super) machine: &'a NodeId,
    pub(super) tier: Tier,
}

/// The first that has any machine is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    Good,
    /// It flaps.
    KeptOut,
    /// It is being drained, but what stopped there finds no other place, or the newest of the data is there alone: once it has run
    /// there again, that is committed before it goes elsewhere.
    Return,
}

/// Ends what has moved, and what nobody wants. Comes first, so that it is in nobody's way.
pub(super) fn tidy<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>) {
    for leftover in &draft.input.state.leftovers {
        if draft.input.is_over(&leftover.machine, leftover.epoch) {
            draft.changes.push(crate::Change::End { epoch: leftover.epoch, reason: "its service is gone".to_owned() });
        }
    }
    for service in draft.input.state.services.values() {
        for slot in draft.slots(&service.name).to_vec() {
            let outlived = slot.exclusive && !service.is_exclusive(service.current);
            if slot.replica > service.replicas || outlived {
                let reason =
                    if outlived { "it writes volumes that it has no more" } else { "it is not wanted any more" };
                if may_end(draft, fleet, service, slot) {
                    draft.end(service, slot, reason);
                } else if slot.phase != Phase::Vacating {
                    draft.vacate(service, slot, reason);
                }
            } else if slot.phase == Phase::Leaving {
                finish_leaving(draft, fleet, service, slot);
            }
        }
    }
}

fn finish_leaving<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, service: &'a Service, slot: Slot<'a>) {
    if fleet.site(slot.machine).is_none_or(Site::is_lost) {
        draft.end(service, slot, "its machine was lost");
    } else if draft.active(&service.name, slot.replica).is_some_and(|successor| is_ready(fleet, service, successor)) {
        draft.end(service, slot, "its successor is ready");
    } else if fleet.site(slot.machine).is_some_and(Site::shows_engine) && !may_answer(fleet, service, slot) {
        draft.end(service, slot, "it does not answer, so that there is nothing to go on");
    }
}

/// May the placement be ended now? One that could write a volume only when it is certain that it does not any more, and when all
/// that it wrote can be had elsewhere, if any of it can.
fn may_end(draft: &Draft<'_>, fleet: &Fleet<'_>, service: &Service, slot: Slot<'_>) -> bool {
    if !slot.exclusive {
        return true;
    }
    let stopped =
        slot.phase == Phase::Vacating && slot.epoch.is_some_and(|epoch| draft.input.is_over(slot.machine, epoch));
    let kept = service.data.committed.is_none() || service.data.settled;
    (stopped && kept) || fleet.site(slot.machine).is_some_and(|site| site.is_lost() && site.has_ended())
}

/// The container of a placement, as its machine's report shows it.
pub(super) struct Shown<'a> {
    pub(super) container: &'a Container,
    /// When that was so, by the machine's own clock.
    pub(super) at: UnixMillis,
}

pub(super) fn shown<'a>(fleet: &Fleet<'a>, service: &Service, slot: Slot<'_>, epoch: u64) -> Option<Shown<'a>> {
    let report = fleet.site(slot.machine)?.report()?;
    let incarnation = Incarnation { revision: slot.revision, restarts: slot.restarts, epoch };
    let container = report.observed.as_ref()?.containers.iter().find(|container| {
        container.service == service.name && container.replica == slot.replica && container.incarnation() == incarnation
    })?;
    Some(Shown { container, at: report.at })
}

/// Does its machine show that its instance answers?
pub(super) fn is_ready(fleet: &Fleet<'_>, service: &Service, slot: Slot<'_>) -> bool {
    let shown = slot.epoch.and_then(|epoch| shown(fleet, service, slot, epoch));
    shown.is_some_and(|shown| shown.container.is_ready(shown.at))
}

/// Could its instance answer? One that has just begun may, though it does not count as ready yet.
fn may_answer(fleet: &Fleet<'_>, service: &Service, slot: Slot<'_>) -> bool {
    let shown = slot.epoch.and_then(|epoch| shown(fleet, service, slot, epoch));
    shown.is_some_and(|shown| shown.container.may_answer())
}

/// Finds a machine for every unit that needs one.
pub(super) fn place<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, units: &[Unit<'a>]) {
    let tasks: Vec<Task<'a>> = units.iter().filter_map(|unit| task(draft, fleet, unit)).take(TASKS_MAX).collect();
    let chosen = pack::pack(draft, fleet, &tasks);
    for (task, machine) in tasks.iter().zip(chosen) {
        if let Some(machine) = machine {
            settle(draft, fleet, task, machine);
        }
    }
    // What ended for a successor that finds no place now has ended all the same.
    for service in draft.input.state.services.values() {
        for slot in draft.slots(&service.name).to_vec() {
            if slot.exclusive && slot.phase == Phase::Vacating && may_end(draft, fleet, service, slot) {
                draft.end(service, slot, "it has ended, and its successor has no place yet");
            }
        }
    }
}

/// What is to be done for a unit, if anything can be now.
pub(super) fn task<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, unit: &Unit<'a>) -> Option<Task<'a>> {
    let mut cause = None;
    let mut fine = BTreeSet::new();
    let mut settled = true;
    let mut stranded = BTreeSet::new();
    for member in &unit.members {
        let slots: Vec<Slot<'a>> = draft.of_replica(&member.service.name, member.replica).collect();
        for slot in slots.iter().filter(|slot| slot.exclusive) {
            let lost = fleet.site(slot.machine).is_none_or(Site::is_lost);
            if (slot.phase == Phase::Vacating || lost) && !may_end(draft, fleet, member.service, *slot) {
                return None;
            }
            if slot.phase == Phase::Vacating && !lost {
                stranded.insert(slot.machine);
            }
        }
        let trouble = |slot: &Slot<'a>| trouble(fleet, unit, member, *slot);
        let active = slots.iter().find(|slot| slot.phase == Phase::Active);
        if active.is_some_and(|slot| trouble(slot).is_none()) {
            fine.extend(active.map(|slot| slot.machine));
            continue;
        }
        settled = false;
        cause = cause.or_else(|| active.and_then(trouble));
        let leaving = slots.iter().find(|slot| slot.phase == Phase::Leaving && trouble(slot).is_none());
        fine.extend(leaving.map(|slot| slot.machine));
    }
    if settled && fine.len() == 1 {
        return None;
    }
    if let Some(site) = fine.first().filter(|_| fine.len() == 1).and_then(|machine| fleet.site(machine))
        && score::fit(draft, unit, site).is_ok()
    {
        let sites = vec![Choice { machine: site.id, tier: Tier::Good }];
        return Some(Task { unit: unit.clone(), sites, cause });
    }
    if settled {
        cause = Some("what depends on each other belongs together".to_owned());
    }
    let mut sites = choices(fleet, unit);
    stranded.extend(drained_pin(draft, fleet, unit));
    sites.extend(stranded.into_iter().map(|machine| Choice { machine, tier: Tier::Return }));
    Some(Task { unit: unit.clone(), sites, cause })
}

/// The drained machine that alone has what the unit needs and runs nowhere: a service that was removed and comes back.
fn drained_pin<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, unit: &Unit<'a>) -> Option<&'a NodeId> {
    let idle = |member: &&Member<'a>| draft.slots(&member.service.name).is_empty();
    let pin = unit.members.iter().filter(idle).find_map(|member| Data::of(fleet.state, member.service).pin())?;
    let site = fleet.site(pin).filter(|site| site.bar == Some(Bar::Drained))?;
    unit.members.iter().all(|member| score::allowed(fleet.state, member.service, site).is_ok()).then_some(site.id)
}

/// Every machine that the unit might go to, as far as room is no question.
pub(super) fn choices<'a>(fleet: &Fleet<'a>, unit: &Unit<'a>) -> Vec<Choice<'a>> {
    fleet
        .sites()
        .filter(|site| unit.members.iter().all(|member| score::allowed(fleet.state, member.service, site).is_ok()))
        .filter_map(|site| {
            let tier = match (site.bar, site.kept_out_until) {
                (Some(_), _) => return None,
                (None, Some(_)) => Tier::KeptOut,
                (None, None) => Tier::Good,
            };
            Some(Choice { machine: site.id, tier })
        })
        .collect()
}

/// Has it to end where it is, so that its successor begins with an earlier state of its data?
fn begins_anew(member: &Member<'_>, slot: Slot<'_>) -> bool {
    slot.exclusive && slot.epoch.is_some_and(|epoch| member.service.data.is_superseded(epoch))
}

/// Why a placement can't stay where it is, as a clause.
fn trouble<'a>(fleet: &Fleet<'a>, unit: &Unit<'a>, member: &Member<'a>, slot: Slot<'a>) -> Option<String> {
    let Some(site) = fleet.site(slot.machine) else { return Some("its machine is gone".to_owned()) };
    let name = site.name();
    if site.is_lost() {
        return Some(format!("`{name}` was lost"));
    }
    if site.is_drained() {
        return Some(format!("`{name}` is drained"));
    }
    if score::allowed(fleet.state, member.service, site).is_err() {
        return Some(format!("`{name}` is not where it may run"));
    }
    if begins_anew(member, slot) {
        return Some("an earlier state of its data was asked for".to_owned());
    }
    // What writes a volume can't be given away while its machine lives: nobody could say that it has ended.
    let exclusive = unit.members.iter().any(|member| member.service.is_exclusive(member.service.current));
    (site.engine_is_gone() && !exclusive).then(|| format!("the container engine of `{name}` does not answer"))
}

/// Brings the unit to the machine: what may run twice is there before it goes elsewhere, what may not goes first.
fn settle<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, task: &Task<'a>, machine: &'a NodeId) {
    let cause = task.cause.clone().unwrap_or_default();
    let movers: Vec<Member<'a>> = task
        .unit
        .members
        .iter()
        .copied()
        .filter(|member| {
            let slot = draft.active(&member.service.name, member.replica);
            slot.is_none_or(|slot| slot.machine != machine || begins_anew(member, slot))
        })
        .collect();
    let mut waits = false;
    for member in &movers {
        for slot in draft.slots(&member.service.name).to_vec() {
            // Also those of replicas that are not wanted any more: what writes alone waits for their end.
            if slot.exclusive && !may_end(draft, fleet, member.service, slot) {
                waits = true;
                if slot.phase != Phase::Vacating {
                    draft.vacate(member.service, slot, &cause);
                }
            }
        }
        let exclusive = member.service.is_exclusive(member.service.current);
        waits |= exclusive && draft.input.waits_for_leftover(&member.service.name);
    }
    if waits {
        return;
    }
    let why = why(draft, fleet, task, machine);
    for member in movers {
        let reason = if cause.is_empty() { why.clone() } else { format!("{cause}; {why}") };
        bring(draft, fleet, member, machine, &cause, reason);
    }
}

fn bring<'a>(
    draft: &mut Draft<'a>,
    fleet: &Fleet<'a>,
    Member { service, replica }: Member<'a>,
    machine: &'a NodeId,
    cause: &str,
    reason: String,
) {
    let slots: Vec<Slot<'a>> = draft.of_replica(&service.name, replica).collect();
    let incarnation = incarnation(service, &slots);
    let returns = slots.iter().find(|slot| slot.phase == Phase::Leaving && slot.machine == machine).copied();
    let alone = service.is_exclusive(incarnation.0);
    let stop_first = service.spec_of(incarnation.0).update.order == UpdateOrder::StopFirst;
    let is_lost = |slot: &Slot<'a>| fleet.site(slot.machine).is_none_or(Site::is_lost);
    // One of them goes on until the new one is ready: the one that was there first.
    let mut stays = returns.is_none() && !alone && !stop_first;
    for slot in slots.iter().filter(|slot| Some(**slot) != returns) {
        let keeps = stays && !slot.exclusive && !is_lost(slot);
        match slot.phase {
            Phase::Leaving if keeps => stays = false,
            Phase::Active if keeps && !slots.iter().any(|slot| slot.phase == Phase::Leaving && !is_lost(slot)) => {
                draft.leave(service, *slot, cause);
            }
            _ => draft.end(service, *slot, cause),
        }
    }
    if alone {
        for slot in draft.slots(&service.name).to_vec() {
            draft.end(service, slot, "its successor has to be alone");
        }
    }
    match returns {
        Some(slot) if !alone => draft.stay(service, slot),
        _ => draft.assign(service, replica, machine, incarnation, reason),
    }
}

/// Which revision a new placement begins with. A revision that has not proved itself spreads by a rollout alone, so that a bad
/// one does not come in with the loss of a machine.
fn incarnation(service: &Service, former: &[Slot<'_>]) -> (Revision, u64) {
    let current = (service.current, service.restarts);
    if service.confirmed.is_none_or(|confirmed| confirmed == service.current) {
        return current;
    }
    let former = former.iter().find(|slot| slot.phase != Phase::Vacating).or(former.first());
    former
        .filter(|slot| service.revisions.contains_key(&slot.revision))
        .filter(|slot| service.is_exclusive(slot.revision) == service.is_exclusive(service.current))
        .map_or(current, |slot| (slot.revision, slot.restarts))
}

/// What speaks for the machine that was chosen, as a clause about it.
fn why<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, task: &Task<'a>, machine: &'a NodeId) -> String {
    let Some(site) = fleet.site(machine) else { return String::new() };
    let chosen = score::score(draft, fleet, &task.unit, site);
    let second = pack::ranked(draft, fleet, task).into_iter().filter(|other| *other != machine);
    let second = second.filter_map(|other| fleet.site(other)).map(|site| score::score(draft, fleet, &task.unit, site));
    let Some(second) = second.into_iter().next() else {
        let pinned = task.unit.members.iter().any(|member| member.service.home.as_ref() == Some(machine));
        return match task.sites.len() {
            1 if fleet.sites().count() == 1 => "it is the only machine".to_owned(),
            _ if pinned => "its data is there".to_owned(),
            1 if task.unit.members.len() > 1 => "what it is linked with runs there".to_owned(),
            _ => "no other machine can take it".to_owned(),
        };
    };
    better(&chosen, &second).map_or_else(|| "it is as good as any".to_owned(), |part| part.for_it().to_owned())
}

/// The part in which one is ahead of the other by most.
pub(super) fn better(one: &Score, other: &Score) -> Option<score::Part> {
    score::Part::ALL
        .into_iter()
        .map(|part| (one.of(part) - other.of(part), part))
        .filter(|(points, _)| *points > 0)
        .max_by_key(|(points, part)| (*points, std::cmp::Reverse(*part)))
        .map(|(_, part)| part)
}
