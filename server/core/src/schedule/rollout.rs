//! How a new revision, or a restart, reaches the placements; and whether it is kept.

use std::collections::BTreeSet;

use flotilla_api::{
    Revision, UnixMillis,
    spec::{OnFailure, Restart},
};

use super::{
    Input,
    draft::{Draft, Slot},
    fleet::{Fleet, Site},
    place::{self, shown},
};
use crate::{
    command::CommandV1,
    reconcile::{Attempts, CONFIRMED_AFTER_MS, Container, Health, ROLLBACK_AFTER, Status, ran_ms},
    state::{Phase, Placement, Service},
};

/// A report of a machine is seldom followed by another one sooner. Milliseconds.
const REPORT_SOON_MS: u64 = 500;

/// How a placement's instance does, by its machine's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It runs well, or has done its work, since so many milliseconds.
    Well { for_ms: u64 },
    /// It will be well in so many milliseconds, if nothing happens.
    Soon { in_ms: u64 },
    /// Nobody knows when.
    Pending,
    /// It stays ended by its restart policy, or was tried in vain so often that the revision is given up.
    Failed,
}

/// Brings placements to the current revision, some at a time: the next ones when those before run well.
pub(super) fn roll<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, service: &'a Service, wake: &mut Wake) {
    let update = service.spec().update;
    let mut under_way = 0;
    let mut last_well = None;
    let mut stale = Vec::new();
    for slot in draft.slots(&service.name).iter().filter(|slot| slot.phase == Phase::Active).copied() {
        let is_current = slot.revision == service.current && slot.restarts == service.restarts;
        let lost = fleet.site(slot.machine).is_none_or(Site::is_lost);
        match progress(fleet, service, slot) {
            _ if !is_current => stale.push((lost, place::is_ready(fleet, service, slot), slot)),
            _ if lost => {}
            Progress::Well { for_ms } => last_well = Some(last_well.map_or(for_ms, |last: u64| last.min(for_ms))),
            Progress::Soon { in_ms } => {
                wake.after(draft.input.now, in_ms);
                under_way += 1;
            }
            Progress::Pending | Progress::Failed => under_way += 1,
        }
    }
    if stale.is_empty() {
        return;
    }
    // First what is not there to be broken, then what is broken.
    stale.sort_by_key(|(lost, ready, slot)| (!*lost, *ready, slot.replica));
    let waits = last_well.map_or(0, |for_ms| update.delay_ms.saturating_sub(for_ms));
    let blind = draft.input.is_blind();
    let at_a_time = if update.parallelism == 0 { u32::MAX } else { update.parallelism };
    let mut left = at_a_time.saturating_sub(under_way);
    for (lost, _, slot) in stale {
        if lost || blind {
            next(draft, service, slot);
        } else if left > 0 && waits > 0 {
            wake.after(draft.input.now, waits);
            return;
        } else if left > 0 {
            left -= 1;
            next(draft, service, slot);
        }
    }
}

fn next<'a>(draft: &mut Draft<'a>, service: &'a Service, slot: Slot<'a>) {
    let alone = service.is_exclusive(service.current);
    if slot.exclusive && !alone {
        // It ends first; see `tidy`.
        return;
    }
    if alone {
        let others: Vec<Slot<'a>> =
            draft.slots(&service.name).iter().filter(|other| other.epoch != slot.epoch).copied().collect();
        if others.iter().any(|other| other.exclusive || other.epoch.is_none())
            || draft.input.waits_for_leftover(&service.name)
        {
            return;
        }
        for other in others {
            draft.end(service, other, "its successor has to be alone");
        }
    }
    draft.update(service, slot);
}

/// What the instances say of a revision: that it is good, or that it is not and the last good one comes back.
pub(super) fn verdict(input: &Input<'_>, fleet: &Fleet<'_>, service: &Service) -> Option<CommandV1> {
    let placements: Vec<&Placement> = service.placements.iter().filter(|it| it.phase == Phase::Active).collect();
    if service.confirmed == Some(service.current) || placements.is_empty() {
        return None;
    }
    let seen: Vec<(&Placement, Progress)> =
        placements.iter().map(|placement| (*placement, progress(fleet, service, Slot::of(placement)))).collect();
    let current = |(placement, _): &&(&Placement, Progress)| service.is_current(placement);
    let complete = seen.len() == service.replicas as usize && seen.iter().all(|one| current(&one));
    if complete && seen.iter().all(|(_, progress)| matches!(progress, Progress::Well { .. })) {
        return Some(CommandV1::ConfirmRevision { service: service.name.clone(), revision: service.current });
    }
    if let Some(revision) = former(fleet, service, &placements) {
        return Some(CommandV1::ConfirmRevision { service: service.name.clone(), revision });
    }
    let good = way_back(service)?;
    let (failed, _) = seen.iter().filter(current).find(|(_, progress)| *progress == Progress::Failed)?;
    let reason = reason(input, fleet, service, failed);
    Some(CommandV1::RollBack { service: service.name.clone(), to: Some(good), reason: Some(reason) })
}

/// The revision to go back to, if it is allowed: a roll back that fails too is no reason for another, for that would never end.
fn way_back(service: &Service) -> Option<Revision> {
    let rolls_back = service.spec().update.on_failure == OnFailure::Rollback && service.record().restores.is_none();
    let good = service.confirmed.filter(|_| rolls_back)?;
    service.revisions.get(&good).is_some_and(|record| record.spec != *service.spec()).then_some(good)
}

/// A revision may be superseded before it has proved itself; while its instances still run, it can do so, and a newer one that
/// fails has somewhere to go back to.
fn former(fleet: &Fleet<'_>, service: &Service, placements: &[&Placement]) -> Option<Revision> {
    let epochs: BTreeSet<u64> = placements.iter().map(|placement| placement.epoch).collect();
    let machines: BTreeSet<_> = placements.iter().map(|placement| &placement.machine).collect();
    let reports = machines.into_iter().filter_map(|machine| fleet.site(machine)).filter_map(Site::report);
    let good = reports.flat_map(|report| {
        let containers = report.observed.iter().flat_map(|observed| &observed.containers);
        containers.filter(|container| {
            container.service == service.name
                && epochs.contains(&container.epoch)
                && container.revision < service.current
                && Some(container.revision) > service.confirmed
                && service.revisions.contains_key(&container.revision)
                && matches!(of_container(service, container, report.at), Progress::Well { .. })
        })
    });
    good.map(|container| container.revision).max()
}

fn progress(fleet: &Fleet<'_>, service: &Service, slot: Slot<'_>) -> Progress {
    let Some(epoch) = slot.epoch else { return Progress::Pending };
    let attempts = attempts(fleet, service, slot, epoch);
    let Some(shown) = shown(fleet, service, slot, epoch) else {
        return match attempts {
            Some(attempts) if attempts.faults >= ROLLBACK_AFTER => Progress::Failed,
            _ => Progress::Pending,
        };
    };
    let seen = of_container(service, shown.container, shown.at);
    match attempts {
        Some(attempts) if attempts.faults >= ROLLBACK_AFTER && !matches!(seen, Progress::Well { .. }) => {
            Progress::Failed
        }
        attempts => ended(service, shown.container, attempts.map_or(0, |attempts| attempts.failures)).unwrap_or(seen),
    }
}

fn of_container(service: &Service, container: &Container, at: UnixMillis) -> Progress {
    let spec = service.spec_of(container.revision);
    match container.status {
        Status::Running { since, .. } if container.is_opening(since, at) => Progress::Pending,
        Status::Running { since, health: health @ (Health::None | Health::Healthy) } => {
            // With a health check its word is enough, unless somebody wants to watch for longer.
            let checked = if health == Health::Healthy { 0 } else { CONFIRMED_AFTER_MS };
            let needed = spec.update.monitor_ms.unwrap_or(checked);
            let ran = ran_ms(since, at);
            match needed.checked_sub(ran) {
                None | Some(0) => Progress::Well { for_ms: ran - needed },
                Some(in_ms) => Progress::Soon { in_ms },
            }
        }
        Status::Exited { code: 0, at: exit, .. } if spec.restart != Restart::Always => {
            Progress::Well { for_ms: at.since(exit) }
        }
        _ => Progress::Pending,
    }
}

/// By its restart policy it stays ended, and has not done its work.
fn ended(service: &Service, container: &Container, failures: u32) -> Option<Progress> {
    let Status::Exited { code, .. } = container.status else { return None };
    let stays = match service.spec_of(container.revision).restart {
        _ if code == 0 => false,
        Restart::Never => true,
        Restart::OnFailure { max: Some(max) } => failures > max,
        Restart::Always | Restart::OnFailure { max: None } => false,
    };
    stays.then_some(Progress::Failed)
}

fn attempts<'a>(fleet: &Fleet<'a>, service: &Service, slot: Slot<'_>, epoch: u64) -> Option<&'a Attempts> {
    let report = fleet.site(slot.machine)?.report()?;
    let attempts = report.memory.instances.get(&(service.name.clone(), slot.replica))?;
    let incarnation = attempts.incarnation;
    (incarnation.epoch == epoch && incarnation.revision == slot.revision && incarnation.restarts == slot.restarts)
        .then_some(attempts)
}

/// What went wrong, as a clause that begins with "it".
fn reason(input: &Input<'_>, fleet: &Fleet<'_>, service: &Service, placement: &Placement) -> String {
    let slot = Slot::of(placement);
    let attempts = attempts(fleet, service, slot, placement.epoch);
    let place = match input.state.machines.len() {
        1 => String::new(),
        _ => format!(" on `{}`", fleet.name(&placement.machine)),
    };
    if let Some(error) = attempts.and_then(|attempts| attempts.last_error.as_ref()) {
        return format!("it could not be started{place}: {error}");
    }
    let times = match attempts.map_or(0, |attempts| attempts.faults) {
        0 | 1 => format!("it ended{place}"),
        faults => format!("it failed {faults} times{place}"),
    };
    let status = shown(fleet, service, slot, placement.epoch).map(|shown| &shown.container.status);
    let why = match status {
        Some(Status::Exited { out_of_memory: true, .. }) => ", last because its memory ran out".to_owned(),
        Some(Status::Exited { code, .. }) => format!(", last with exit code {code}"),
        Some(Status::Running { health: Health::Unhealthy, .. }) => ", and its health check fails".to_owned(),
        _ => String::new(),
    };
    format!("{times} without ever having run well{why}")
}

/// When to look again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wake(pub(super) Option<UnixMillis>);

impl Wake {
    pub(super) fn at(&mut self, at: UnixMillis) {
        self.0 = Some(self.0.map_or(at, |earlier| earlier.min(at)));
    }

    /// No sooner than a machine may tell something new: what it told last does not get newer by itself.
    fn after(&mut self, now: UnixMillis, millis: u64) {
        self.at(now.plus(millis.max(REPORT_SOON_MS)));
    }

    /// When instances will count as ready that need nothing but time for it, for which moves wait.
    pub(super) fn for_successors<'a>(&mut self, draft: &Draft<'a>, fleet: &Fleet<'a>, service: &Service) {
        let slots = draft.slots(&service.name);
        if !slots.iter().any(|slot| slot.phase == Phase::Leaving) {
            return;
        }
        for slot in slots.iter().filter(|slot| slot.phase == Phase::Active) {
            let shown = slot.epoch.and_then(|epoch| shown(fleet, service, *slot, epoch));
            if let Some(shown) = shown
                && let Some(in_ms) = shown.container.ready_in_ms(shown.at)
            {
                self.after(draft.input.now, in_ms);
            }
        }
    }
}
