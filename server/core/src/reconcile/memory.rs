//! What the reconciler remembers between rounds: failures and their back-off, and what is under way.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{ApiError, ErrorCode, NodeId, Revision, ServiceName, StackName, UnixMillis, spec::Restart};
use serde::{Deserialize, Serialize};

use super::{
    Action, BACKOFF_FIRST_MS, BACKOFF_MAX_MS, Container, Health, Incarnation, PROPOSAL_PATIENCE_MS, RECOVERED_AFTER_MS,
    Status, ran_ms,
};
use crate::{command::CommandV1, state::State};

/// What the reconciler remembers between rounds, per service and replica. Lost on a daemon's restart, which does no harm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    #[serde(with = "by_instance")]
    pub instances: BTreeMap<(ServiceName, u32), Attempts>,
    /// Why a service was not started in the last round: a sentence for people.
    pub waits: BTreeMap<ServiceName, String>,
    /// Condemned volumes that were deleted, which the state does not know yet.
    #[serde(skip)]
    pub(super) purged: BTreeSet<ServiceName>,
    /// Work that failed, or was proposed, and when it may be tried again.
    #[serde(skip)]
    chores: BTreeMap<Chore, Retry>,
    /// Actions under way, per service, and per stack for its network.
    #[serde(skip)]
    busy: BTreeMap<Owner, u32>,
    /// When the last action of each ended: an observation that began no later does not show it for certain.
    #[serde(skip)]
    ended: BTreeMap<Owner, UnixMillis>,
}

/// Starts that failed in a row, and when the next may be tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    pub failures: u32,
    pub not_before: UnixMillis,
    /// Total restarts, for people.
    pub restarts: u32,
    /// The engine's last error on creating or starting it.
    pub last_error: Option<String>,
    /// Those of `failures` that speak against the revision; a full disk does not.
    pub(crate) faults: u32,
    /// All of this is about instances of this incarnation; another begins afresh.
    pub(crate) incarnation: Incarnation,
    /// It was started at least once.
    started: bool,
    /// Container and time of the exit that was counted last.
    exit_seen: Option<(String, UnixMillis)>,
    /// Container that is unhealthy, and since when.
    pub(super) unhealthy: Option<(String, UnixMillis)>,
}

/// Work that is no start of an instance, but may fail like one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chore {
    Network(StackName),
    Container(String),
    Volumes(ServiceName),
    Purged(ServiceName),
    Confirm(ServiceName, Revision),
    RollBack(ServiceName),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Retry {
    failures: u32,
    at: UnixMillis,
    under_way: bool,
    /// Asked for in this round; what nobody asks for is forgotten.
    asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Service(ServiceName),
    Stack(StackName),
}

/// Whether a chore may be tried.
pub(super) enum Due {
    Now,
    At(UnixMillis),
    WhenDone,
}

/// Whether an observation can be planned from.
#[derive(Clone, Copy)]
pub(super) enum Settled {
    Yes,
    /// Another one is needed, that began no earlier than this.
    After(UnixMillis),
    /// An action is under way; its end starts the next round.
    WhenDone,
}

impl Memory {
    /// The shell is about to execute the action.
    pub fn begin(&mut self, action: &Action) {
        if let Some(chore) = Chore::of(action) {
            self.chores.entry(chore).or_default().under_way = true;
        }
        if let Some(owner) = Owner::of(action) {
            *self.busy.entry(owner).or_default() += 1;
        }
    }

    /// The shell has executed the action.
    pub fn end(&mut self, action: &Action, now: UnixMillis, result: Result<(), &ApiError>) {
        self.dropped(action, now);
        match action {
            Action::Run { spec, replica, revision, restarts, epoch, .. } => {
                let incarnation = Incarnation { revision: *revision, restarts: *restarts, epoch: *epoch };
                let known = self.instances.get(&(spec.name.clone(), *replica));
                if known.is_some_and(|attempts| attempts.incarnation == incarnation) {
                    self.tried(&spec.name, *replica, now, result);
                }
            }
            Action::Start { service, replica, .. } => self.tried(service, *replica, now, result),
            _ => {
                let Some(chore) = Chore::of(action) else { return };
                let retry = self.chores.entry(chore).or_default();
                match result {
                    Ok(()) => {
                        retry.failures = 0;
                        // What was proposed shows in the state soon; what was done, in the next observation.
                        let patience = if matches!(action, Action::Propose(_)) { PROPOSAL_PATIENCE_MS } else { 0 };
                        retry.at = now.plus(patience);
                    }
                    Err(_) => {
                        retry.failures = retry.failures.saturating_add(1);
                        retry.at = now.plus(backoff(retry.failures));
                    }
                }
                if let (Action::DeleteVolumes { service }, Ok(())) = (action, result) {
                    self.purged.insert(service.clone());
                }
            }
        }
    }

    /// The shell has begun the action, and then let it be: nothing is known against it.
    pub fn dropped(&mut self, action: &Action, now: UnixMillis) {
        if let Some(chore) = Chore::of(action)
            && let Some(retry) = self.chores.get_mut(&chore)
        {
            retry.under_way = false;
        }
        let Some(owner) = Owner::of(action) else { return };
        if let Some(count) = self.busy.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(&owner);
            }
        }
        self.ended.insert(owner, now);
    }

    /// An instance was started.
    pub fn started(&mut self, service: &ServiceName, replica: u32) {
        let attempts = self.instances.entry((service.clone(), replica)).or_default();
        if std::mem::replace(&mut attempts.started, true) {
            attempts.restarts = attempts.restarts.saturating_add(1);
        }
        attempts.last_error = None;
        attempts.unhealthy = None;
    }

    /// An instance could not be created or started.
    pub fn failed(&mut self, service: &ServiceName, replica: u32, now: UnixMillis, error: &ApiError) {
        let attempts = self.instances.entry((service.clone(), replica)).or_default();
        // What its machine can't do just now speaks against no revision.
        let machine = matches!(
            error.code,
            ErrorCode::EngineUnavailable
                | ErrorCode::ServiceUnavailable
                | ErrorCode::DiskFull
                | ErrorCode::ValueKeyMissing
        );
        attempts.fail(now, !machine);
        attempts.last_error = Some(error.message.clone());
    }

    fn tried(&mut self, service: &ServiceName, replica: u32, now: UnixMillis, result: Result<(), &ApiError>) {
        match result {
            Ok(()) => self.started(service, replica),
            Err(error) => self.failed(service, replica, now, error),
        }
    }

    pub(super) fn begin_round(&mut self, now: UnixMillis, node: &NodeId, desired: &State) {
        // When the clock was set back, what lay in the future would lie there for long.
        self.ended.retain(|_, at| *at <= now);
        let latest = now.plus(BACKOFF_MAX_MS);
        for attempts in self.instances.values_mut() {
            attempts.not_before = attempts.not_before.min(latest);
        }
        for retry in self.chores.values_mut() {
            retry.at = retry.at.min(latest);
            retry.asked = false;
        }
        self.instances.retain(|(name, replica), attempts| {
            desired
                .services
                .get(name)
                .and_then(|service| service.wanted_on(node, *replica))
                .is_some_and(|placement| attempts.incarnation == placement.incarnation())
        });
        self.purged.retain(|name| desired.must_purge(name, node));
        self.waits.clear();
    }

    pub(super) fn end_round(&mut self, now: UnixMillis) {
        self.chores.retain(|_, retry| retry.asked || retry.under_way || retry.at.plus(BACKOFF_MAX_MS) > now);
    }

    /// Does what was observed at that time show all that was done?
    pub(super) fn settled(&self, owner: &Owner, observed_at: UnixMillis) -> Settled {
        if self.busy.contains_key(owner) {
            return Settled::WhenDone;
        }
        match self.ended.get(owner) {
            Some(ended) if *ended >= observed_at => Settled::After(ended.plus(1)),
            _ => Settled::Yes,
        }
    }

    /// Does what was observed at that time show all that was done to services?
    pub(super) fn services_settled(&self, observed_at: UnixMillis) -> Settled {
        let is_service = |owner: &Owner| matches!(owner, Owner::Service(_));
        if self.busy.keys().any(is_service) {
            return Settled::WhenDone;
        }
        match self.ended.iter().filter(|(owner, _)| is_service(owner)).map(|(_, ended)| *ended).max() {
            Some(ended) if ended >= observed_at => Settled::After(ended.plus(1)),
            _ => Settled::Yes,
        }
    }

    /// May the chore be tried now?
    pub(super) fn due(&mut self, chore: &Chore, now: UnixMillis) -> Due {
        let Some(retry) = self.chores.get_mut(chore) else { return Due::Now };
        retry.asked = true;
        match retry.at {
            _ if retry.under_way => Due::WhenDone,
            at if at > now => Due::At(at),
            _ => Due::Now,
        }
    }

    pub(super) fn attempts(&mut self, service: &ServiceName, replica: u32, incarnation: Incarnation) -> &mut Attempts {
        let attempts = self.instances.entry((service.clone(), replica)).or_default();
        attempts.incarnation = incarnation;
        attempts
    }
}

impl Attempts {
    fn fail(&mut self, at: UnixMillis, fault: bool) {
        self.failures = self.failures.saturating_add(1);
        self.faults = self.faults.saturating_add(u32::from(fault));
        self.not_before = at.plus(backoff(self.failures));
    }

    /// Takes in what the engine shows of the instance.
    pub(super) fn observe(&mut self, now: UnixMillis, container: &Container, restart: Restart) {
        match &container.status {
            Status::Exited { code, at, .. } => {
                self.started = true;
                self.unhealthy = None;
                let exit = (container.id.clone(), *at);
                if self.exit_seen.as_ref() == Some(&exit) {
                    return;
                }
                self.exit_seen = Some(exit);
                if *code != 0 || restart == Restart::Always {
                    self.fail((*at).min(now), true);
                }
            }
            Status::Running { health: Health::Unhealthy, .. } => {
                self.started = true;
                if self.unhealthy.as_ref().is_none_or(|(id, _)| *id != container.id) {
                    self.unhealthy = Some((container.id.clone(), now));
                }
            }
            Status::Running { since, health } => {
                self.started = true;
                self.unhealthy = None;
                if *health != Health::Starting && ran_ms(*since, now) >= RECOVERED_AFTER_MS {
                    self.failures = 0;
                    self.faults = 0;
                }
            }
            Status::Created | Status::Paused | Status::Dead => {}
        }
    }

    /// It was replaced because its health check failed.
    pub(super) fn gave_up_on_unhealthy(&mut self, now: UnixMillis) {
        self.fail(now, true);
        self.unhealthy = None;
    }
}

impl Chore {
    fn of(action: &Action) -> Option<Self> {
        match action {
            Action::CreateNetwork { stack } | Action::RemoveNetwork { stack } => Some(Self::Network(stack.clone())),
            Action::Remove { container, .. } => Some(Self::Container(container.clone())),
            Action::DeleteVolumes { service } => Some(Self::Volumes(service.clone())),
            Action::Propose(CommandV1::VolumesPurged { service, .. }) => Some(Self::Purged(service.clone())),
            Action::Propose(CommandV1::ConfirmRevision { service, revision }) => {
                Some(Self::Confirm(service.clone(), *revision))
            }
            Action::Propose(CommandV1::RollBack { service, .. }) => Some(Self::RollBack(service.clone())),
            Action::Run { .. } | Action::Start { .. } | Action::Propose(_) => None,
        }
    }
}

impl Owner {
    fn of(action: &Action) -> Option<Self> {
        match action {
            Action::CreateNetwork { stack } | Action::RemoveNetwork { stack } => Some(Self::Stack(stack.clone())),
            Action::Run { spec, .. } => Some(Self::Service(spec.name.clone())),
            Action::Start { service, .. } | Action::Remove { service, .. } | Action::DeleteVolumes { service } => {
                Some(Self::Service(service.clone()))
            }
            Action::Propose(_) => None,
        }
    }
}

/// 1, 2, 4 … 60 seconds.
pub(super) fn backoff(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_FIRST_MS << doublings).min(BACKOFF_MAX_MS)
}

/// As a list: JSON has no keys but text.
mod by_instance {
    use std::collections::BTreeMap;

    use flotilla_api::ServiceName;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Attempts;

    type Instances = BTreeMap<(ServiceName, u32), Attempts>;

    pub(super) fn serialize<S: Serializer>(instances: &Instances, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(instances)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instances, D::Error> {
        Vec::<((ServiceName, u32), Attempts)>::deserialize(deserializer).map(|list| list.into_iter().collect())
    }
}
