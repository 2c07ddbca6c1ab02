//! The plan for one service.

use flotilla_api::{
    InstanceId, Revision, ServiceName, UnixMillis,
    spec::{Restart, UpdateOrder},
};

use super::{
    Action, CONFIRMED_AFTER_MS, Container, Health, OPENING_PATIENCE_MS, READY_AFTER_MS, RECOVERED_AFTER_MS,
    ROLLBACK_AFTER, Round, Status, UNHEALTHY_PATIENCE_MS,
    memory::{Chore, Owner, backoff},
    ran_ms,
};
use crate::{
    command::CommandV1,
    state::{Placement, Service},
};

/// How one replica's instance of the current incarnation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It runs well, or has done its work.
    Good,
    Pending,
    /// By its restart policy it stays ended.
    Ended,
}

impl Round<'_> {
    pub(super) fn service(&mut self, name: &ServiceName) {
        let observed = self.observed;
        let (dead, containers): (Vec<&Container>, Vec<&Container>) = observed
            .containers
            .iter()
            .filter(|container| container.service == *name)
            .partition(|container| container.status == Status::Dead);
        // The engine may never be rid of them; they run no more and stand in nobody's way.
        for container in dead {
            self.remove(container);
        }
        let service = self.desired.services.get(name);
        let placements: Vec<&Placement> =
            service.into_iter().flat_map(|service| service.placed_on(self.node)).filter(|it| it.is_wanted()).collect();
        let Some(service) = service.filter(|_| !placements.is_empty()) else {
            for container in containers {
                self.remove(container);
            }
            return;
        };
        if self.desired.must_purge(name, self.node) {
            self.memory.waits.insert(name.clone(), "waits until its former volumes are deleted".to_owned());
            for container in containers {
                self.remove(container);
            }
            return;
        }
        for container in &containers {
            if !placements.iter().any(|placement| placement.replica == container.replica) {
                self.remove(container);
            }
        }
        let waits = self.obstacle(service, &placements);
        if let Some(why) = &waits {
            self.memory.waits.insert(name.clone(), why.clone());
        }
        let mut progress = Vec::new();
        for placement in placements {
            let slot = Slot::of(service, placement, &containers, self.now);
            progress.push((placement, self.slot(service, placement, &slot, waits.is_some())));
        }
        self.confirm_former(service, &containers);
        // Of a service on several machines only the leader sees enough.
        if service.placements.iter().all(|placement| placement.machine == *self.node && service.is_current(placement)) {
            self.judge_revision(service, &progress);
        }
    }

    /// Why no new container may be made now, if so.
    fn obstacle(&mut self, service: &Service, placements: &[&Placement]) -> Option<String> {
        if !self.leased && placements.iter().any(|placement| service.is_exclusive(placement.revision)) {
            return Some("waits for this machine's lease, without which it may not write its volumes".to_owned());
        }
        let network = Owner::Stack(service.stack.clone());
        if !self.settled(&network) || !self.observed.networks.contains(&service.stack) {
            return Some(format!("waits for the network of `{}`", service.stack));
        }
        for name in &service.spec().depends_on {
            // A dependency that was removed or stopped by hand would otherwise hold its dependents for ever.
            let Some(dependency) = self.desired.services.get(name).filter(|dependency| dependency.replicas > 0) else {
                continue;
            };
            // How those on other machines do is not known here.
            let met = dependency.placements.len() >= dependency.replicas as usize
                && dependency.placed_on(self.node).filter(|it| it.is_wanted()).all(|placement| {
                    self.observed.containers.iter().any(|container| {
                        container.service == *name
                            && container.replica == placement.replica
                            && container.incarnation() == placement.incarnation()
                            && match container.status {
                                Status::Running { health, since } => {
                                    matches!(health, Health::None | Health::Healthy)
                                        && !container.is_opening(since, self.now)
                                }
                                Status::Exited { code, .. } => stays_ended(dependency, code),
                                _ => false,
                            }
                    })
                });
            if !met {
                return Some(format!("waits for `{name}`, which it depends on"));
            }
        }
        None
    }

    fn slot(&mut self, service: &Service, placement: &Placement, slot: &Slot<'_>, held: bool) -> Progress {
        for duplicate in &slot.duplicates {
            self.remove(duplicate);
        }
        let attempts = self.memory.attempts(&service.name, placement.replica, placement.incarnation());
        if let Some(container) = slot.current {
            attempts.observe(self.now, container, service.spec_of(placement.revision).restart);
        }
        match slot.current {
            None if held => Progress::Pending,
            None => {
                if self.clear_the_way(slot) && self.may_start(service, placement) {
                    self.run(service, placement);
                }
                Progress::Pending
            }
            Some(container) => match container.status {
                Status::Running { since, health } => self.running(service, placement, slot, container, since, health),
                // Somebody froze it, and shall thaw it.
                Status::Paused | Status::Dead => Progress::Pending,
                Status::Created => {
                    self.start(service, placement, slot, container, held);
                    Progress::Pending
                }
                Status::Exited { code, .. } => self.exited(service, placement, slot, container, code, held),
            },
        }
    }

    fn running(
        &mut self,
        service: &Service,
        placement: &Placement,
        slot: &Slot<'_>,
        container: &Container,
        since: UnixMillis,
        health: Health,
    ) -> Progress {
        if container.is_ready(self.now) || slot.exclusive || slot.stop_first {
            for stale in &slot.stale {
                self.remove(stale);
            }
        } else {
            self.keep_one_serving(slot);
        }
        let attempts = self.memory.attempts(&service.name, placement.replica, placement.incarnation());
        let recovering = attempts.failures > 0 && health != Health::Starting;
        let unhealthy = attempts.unhealthy.as_ref().map(|(_, since)| *since);
        let patience = UNHEALTHY_PATIENCE_MS.max(backoff(attempts.failures + 1));
        for after in [READY_AFTER_MS, CONFIRMED_AFTER_MS] {
            if health == Health::None && ran_ms(since, self.now) < after {
                self.wake_at(since.plus(after));
            }
        }
        let opening = container.is_opening(since, self.now);
        if opening {
            self.wake_at(since.plus(OPENING_PATIENCE_MS));
        }
        if recovering {
            self.wake_at(since.plus(RECOVERED_AFTER_MS));
        }
        if let Some(unhealthy) = unhealthy
            && service.spec_of(placement.revision).restart != Restart::Never
        {
            if self.now.since(unhealthy) >= patience {
                let now = self.now;
                self.memory
                    .attempts(&service.name, placement.replica, placement.incarnation())
                    .gave_up_on_unhealthy(now);
                self.remove(container);
            } else {
                self.wake_at(unhealthy.plus(patience));
            }
        }
        match health {
            _ if opening => Progress::Pending,
            Health::Healthy => Progress::Good,
            Health::None if self.now.since(since) >= CONFIRMED_AFTER_MS => Progress::Good,
            _ => Progress::Pending,
        }
    }

    fn exited(
        &mut self,
        service: &Service,
        placement: &Placement,
        slot: &Slot<'_>,
        container: &Container,
        code: i64,
        held: bool,
    ) -> Progress {
        let failures = self.memory.attempts(&service.name, placement.replica, placement.incarnation()).failures;
        let progress = match service.spec_of(placement.revision).restart {
            Restart::Always => Progress::Pending,
            _ if code == 0 => Progress::Good,
            Restart::Never => Progress::Ended,
            Restart::OnFailure { max: Some(max) } if failures > max => Progress::Ended,
            Restart::OnFailure { .. } => Progress::Pending,
        };
        match progress {
            Progress::Pending => self.start(service, placement, slot, container, held),
            Progress::Good => {
                for stale in &slot.stale {
                    self.remove(stale);
                }
            }
            Progress::Ended => self.keep_one_serving(slot),
        }
        progress
    }

    /// Starts a container that does not run; one that could not be started before is made anew.
    fn start(&mut self, service: &Service, placement: &Placement, slot: &Slot<'_>, container: &Container, held: bool) {
        // A dependency that went away meanwhile does not keep an instance from coming back; a lease that did does.
        let held = held && slot.exclusive && !self.leased;
        if !self.clear_the_way(slot) || held || !self.may_start(service, placement) {
            return;
        }
        let attempts = self.memory.attempts(&service.name, placement.replica, placement.incarnation());
        if attempts.last_error.is_some() {
            self.remove(container);
        } else {
            self.act(Action::Start {
                container: container.id.clone(),
                service: service.name.clone(),
                replica: placement.replica,
            });
        }
    }

    fn run(&mut self, service: &Service, placement: &Placement) {
        let random = (self.fresh)();
        let Placement { replica, revision, restarts, epoch, .. } = *placement;
        self.act(Action::Run {
            instance: InstanceId(format!("{}-{revision}-{replica}-{random}", service.name)),
            spec: Box::new(service.spec_of(revision).clone()),
            revision,
            replica,
            restarts,
            epoch,
        });
    }

    fn may_start(&mut self, service: &Service, placement: &Placement) -> bool {
        let not_before = self.memory.attempts(&service.name, placement.replica, placement.incarnation()).not_before;
        if not_before > self.now {
            self.wake_at(not_before);
        }
        not_before <= self.now
    }

    /// True when an instance may start beside what is there. One that shares a volume with another that could write may not:
    /// the other is removed, and only when an observation no longer shows it the way is clear.
    fn clear_the_way(&mut self, slot: &Slot<'_>) -> bool {
        if !slot.exclusive && !slot.stop_first {
            self.keep_one_serving(slot);
            return true;
        }
        for stale in &slot.stale {
            self.remove(stale);
        }
        if slot.exclusive { slot.alone } else { slot.stale.is_empty() }
    }

    /// Until the new instance is ready, the best of the old ones answers.
    fn keep_one_serving(&mut self, slot: &Slot<'_>) {
        let best = slot.stale.iter().position(|stale| stale.is_running());
        for (index, stale) in slot.stale.iter().enumerate() {
            if Some(index) != best {
                self.remove(stale);
            }
        }
    }

    /// A revision may be superseded before it has proved itself; while its instances still run, it can do so, and a newer one
    /// that fails has somewhere to go back to.
    fn confirm_former(&mut self, service: &Service, containers: &[&Container]) {
        let unconfirmed = containers.iter().filter(|container| {
            service.placed_on(self.node).any(|placement| placement.epoch == container.epoch)
                && container.revision < service.current
                && Some(container.revision) > service.confirmed
                && service.revisions.contains_key(&container.revision)
        });
        let Some(former) = unconfirmed.max_by_key(|container| container.revision) else { return };
        match former.status {
            Status::Running { health: Health::None, since } if self.now.since(since) < CONFIRMED_AFTER_MS => {
                self.wake_at(since.plus(CONFIRMED_AFTER_MS));
            }
            Status::Running { health: Health::None | Health::Healthy, .. } => self.confirm(service, former.revision),
            _ => {}
        }
    }

    fn confirm(&mut self, service: &Service, revision: Revision) {
        if self.due(&Chore::Confirm(service.name.clone(), revision)) {
            self.act(Action::Propose(CommandV1::ConfirmRevision { service: service.name.clone(), revision }));
        }
    }

    /// Tells the state that the current revision is good, or goes back to the last one that was.
    fn judge_revision(&mut self, service: &Service, progress: &[(&Placement, Progress)]) {
        if service.confirmed == Some(service.current) {
            return;
        }
        if progress.iter().all(|(_, progress)| *progress == Progress::Good) {
            self.confirm(service, service.current);
            return;
        }
        // A roll back that fails too is no reason for another: that would never end.
        let Some(good) = service.confirmed.filter(|_| service.record().restores.is_none()) else { return };
        if service.revisions.get(&good).is_none_or(|record| record.spec == *service.spec()) {
            return;
        }
        let failed = progress.iter().find(|(placement, progress)| {
            let faults = self.memory.attempts(&service.name, placement.replica, placement.incarnation()).faults;
            faults >= ROLLBACK_AFTER || *progress == Progress::Ended
        });
        let Some((placement, _)) = failed else { return };
        let attempts = self.memory.attempts(&service.name, placement.replica, placement.incarnation());
        let reason = match &attempts.last_error {
            Some(error) => format!("it could not be started: {error}"),
            None => {
                let times = match attempts.faults {
                    0 | 1 => "it ended".to_owned(),
                    faults => format!("it failed {faults} times"),
                };
                let last = self.observed.containers.iter().find(|container| {
                    container.service == service.name
                        && container.replica == placement.replica
                        && container.incarnation() == placement.incarnation()
                });
                let why = match last.map(|container| &container.status) {
                    Some(Status::Exited { out_of_memory: true, .. }) => ", last because its memory ran out".to_owned(),
                    Some(Status::Exited { code, .. }) => format!(", last with exit code {code}"),
                    Some(Status::Running { health: Health::Unhealthy, .. }) => {
                        ", and its health check fails".to_owned()
                    }
                    _ => String::new(),
                };
                format!("{times} without ever having run well{why}")
            }
        };
        let command = CommandV1::RollBack { service: service.name.clone(), to: Some(good), reason: Some(reason) };
        if self.due(&Chore::RollBack(service.name.clone())) {
            self.act(Action::Propose(command));
        }
    }
}

/// The containers of one replica.
struct Slot<'a> {
    /// The one of the current incarnation.
    current: Option<&'a Container>,
    /// More of the current incarnation than there shall be.
    duplicates: Vec<&'a Container>,
    /// Of other generations, the best first.
    stale: Vec<&'a Container>,
    /// Two of them may never run at once, for one would spoil the other's volume.
    exclusive: bool,
    /// Somebody wants the old one to stop before the new one starts.
    stop_first: bool,
    /// The service has no container but the current one.
    alone: bool,
}

impl<'a> Slot<'a> {
    fn of(service: &Service, placement: &Placement, containers: &[&'a Container], now: UnixMillis) -> Self {
        let (mut current, mut stale): (Vec<&Container>, Vec<&Container>) = containers
            .iter()
            .copied()
            .filter(|container| container.replica == placement.replica)
            .partition(|container| container.incarnation() == placement.incarnation());
        current.sort_by(|a, b| rank(a, now).cmp(&rank(b, now)));
        stale.sort_by(|a, b| rank(a, now).cmp(&rank(b, now)));
        let duplicates = if current.is_empty() { Vec::new() } else { current.split_off(1) };
        let current = current.first().copied();
        let exclusive = service.is_exclusive(placement.revision)
            || containers.iter().any(|container| {
                container.incarnation() != placement.incarnation() && writes_as_made(service, container)
            });
        let alone = containers.iter().all(|container| current.is_some_and(|current| current.id == container.id));
        let stop_first = service.spec_of(placement.revision).update.order == UpdateOrder::StopFirst;
        Self { current, duplicates, stale, exclusive, stop_first, alone }
    }
}

/// Better containers first; then by age and id, so that the order never changes by chance.
fn rank(container: &Container, now: UnixMillis) -> (bool, u8, UnixMillis, &str) {
    let (order, since) = match &container.status {
        Status::Running { health: Health::Healthy | Health::None, since } => (0, *since),
        Status::Running { health: Health::Starting, since } => (1, *since),
        Status::Running { health: Health::Unhealthy, since } => (2, *since),
        Status::Paused => (3, UnixMillis(0)),
        Status::Created => (4, UnixMillis(0)),
        Status::Exited { at, .. } => (5, *at),
        Status::Dead => (6, UnixMillis(0)),
    };
    (!container.is_ready(now), order, since, &container.id)
}

/// A container of an earlier placement may come from a former life of the service, of which nothing is known.
fn writes_as_made(service: &Service, container: &Container) -> bool {
    !service.placements.iter().any(|placement| placement.epoch == container.epoch)
        || service.is_exclusive(container.revision)
}

fn stays_ended(service: &Service, code: i64) -> bool {
    code == 0 && service.spec().restart != Restart::Always
}
