//! From what shall be and what is to what is to be done next: `reconcile` is pure, its plan can be printed and tested.

//!
//! The shell's loop is: observe, [`reconcile`], [`Memory::begin`] each action, execute it, [`Memory::end`] it with its result
//! (or [`Memory::dropped`], where an action before it failed or it is no longer wanted), and again. A service with an action under way is left alone, and so is one that was last observed before its last action
//! ended; so the shell may run services side by side and reconcile at any time.

mod condition;
mod memory;
mod service;

use std::collections::BTreeSet;

use flotilla_api::{InstanceId, NodeId, Revision, ServiceName, StackName, UnixMillis, spec::ServiceSpec};
use serde::{Deserialize, Serialize};

pub use condition::{Condition, InstanceCondition, View, Views, condition, serving};
pub use memory::{Attempts, Memory};

use crate::{
    command::CommandV1,
    state::{Phase, Placement, Service, State},
};
use memory::{Chore, Due, Owner, Settled};

/// An observation older than this tells nothing about now. Milliseconds.
pub const OBSERVATION_STALE_MS: u64 = 30_000;
/// The wait before the first restart; it doubles with each failure in a row. Milliseconds.
pub const BACKOFF_FIRST_MS: u64 = 1_000;
/// The longest wait between two restarts. Milliseconds.
pub const BACKOFF_MAX_MS: u64 = 60_000;
/// An instance that ran this long has recovered: its next failure is counted as the first. Milliseconds.
pub const RECOVERED_AFTER_MS: u64 = 30_000;
/// An instance without a health check counts as ready when it has run this long: most broken ones end sooner. Milliseconds.
pub const READY_AFTER_MS: u64 = 2_000;
/// How long an application may take to listen on its port before that is a fault: it may build a database first. After it, running
/// is enough again to count as ready. Milliseconds.
pub const OPENING_PATIENCE_MS: u64 = 60_000;
/// A revision without a health check counts as good when it has run this long. Milliseconds.
pub const CONFIRMED_AFTER_MS: u64 = 10_000;
/// How long an instance may be unhealthy, by the engine's word, before it is replaced. Milliseconds.
pub const UNHEALTHY_PATIENCE_MS: u64 = 10_000;
/// Failures in a row after which a revision that never ran well gives way to the last one that did.
pub const ROLLBACK_AFTER: u32 = 3;
/// A proposal that was made, and has changed nothing, is made again after this time. Milliseconds.
const PROPOSAL_PATIENCE_MS: u64 = 30_000;
/// How long a container may take to stop when its specification is no longer known. Milliseconds.
const GRACE_UNKNOWN_MS: u64 = 10_000;

/// What a node's engine shows, read at one time. Only containers and networks that carry this cluster's label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// When the reading *began*: whatever happened later may be missing.
    pub at: UnixMillis,
    pub containers: Vec<Container>,
    pub networks: Vec<StackName>,
}

/// A container with our labels; they hold all that a restarted daemon needs to adopt it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    pub instance: InstanceId,
    pub service: ServiceName,
    pub stack: StackName,
    pub revision: Revision,
    /// From 1.
    pub replica: u32,
    /// `Service::restarts` at its creation.
    pub restarts: u64,
    pub epoch: u64,
    pub status: Status,
    /// Address on its stack's network, while it runs.
    pub address: Option<std::net::IpAddr>,
    /// The port that its page comes from, while it runs and nobody has listened there since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum Status {
    Created,
    Running {
        since: UnixMillis,
        health: Health,
    },
    Paused,
    Exited {
        code: i64,
        at: UnixMillis,
        out_of_memory: bool,
    },
    /// The engine is removing it, or can't.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It has no health check: running is healthy.
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// One step. The shell executes those of one service in order, and services side by side; after one that failed, the rest of
/// its service is dropped until the next round.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateNetwork {
        stack: StackName,
    },
    RemoveNetwork {
        stack: StackName,
    },
    /// Creates and starts a container.
    Run {
        instance: InstanceId,
        spec: Box<ServiceSpec>,
        revision: Revision,
        replica: u32,
        restarts: u64,
        epoch: u64,
    },
    /// Starts a container that ended or was only created.
    Start {
        container: String,
        service: ServiceName,
        replica: u32,
    },
    /// Stops, within the grace of its specification, and removes.
    Remove {
        container: String,
        service: ServiceName,
        grace_ms: u64,
    },
    /// Deletes the directories of all of the service's volumes; that there are none is no error. Once it has succeeded
    /// ([`Memory::end`]), the next plan proposes `VolumesPurged`.
    DeleteVolumes {
        service: ServiceName,
    },
    /// To the state log, in the node's own name.
    Propose(CommandV1),
}

/// The plan for one node, and when to look again even if nothing happens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake_at: Option<UnixMillis>,
}

impl Container {
    /// Which specification, under which epoch, it was made for.
    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation { revision: self.revision, restarts: self.restarts, epoch: self.epoch }
    }

    /// Could it take requests, or write a volume, now?
    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running { .. } | Status::Paused)
    }

    /// May it take requests already, though nobody counts on it yet?
    pub(crate) fn may_answer(&self) -> bool {
        matches!(self.status, Status::Running { health: Health::Healthy | Health::None, .. })
            && self.closed_port.is_none()
    }

    /// Does it run well enough that others may count on it?
    pub(crate) fn is_ready(&self, now: UnixMillis) -> bool {
        self.ready_in_ms(now) == Some(0)
    }

    /// After how long that is so, if nothing changes; `None`: never. Milliseconds.
    pub(crate) fn ready_in_ms(&self, now: UnixMillis) -> Option<u64> {
        let Status::Running { since, health } = self.status else { return None };
        let needed = match (health, self.closed_port) {
            (Health::Starting | Health::Unhealthy, _) => return None,
            (Health::None | Health::Healthy, Some(_)) => OPENING_PATIENCE_MS,
            (Health::None, None) => READY_AFTER_MS,
            (Health::Healthy, None) => 0,
        };
        Some(needed.saturating_sub(ran_ms(since, now)))
    }

    /// Nobody listens on its port, and that is no fault yet.
    pub(crate) fn is_opening(&self, since: UnixMillis, now: UnixMillis) -> bool {
        self.closed_port.is_some() && ran_ms(since, now) < OPENING_PATIENCE_MS
    }
}

/// How long a container counts as having run whose start lies in the future. Milliseconds.
const RAN_LONG_MS: u64 = 3_600_000;

/// How long a container has run that was started at `since`, by its machine's clock at `at`. Milliseconds. That clock may have been set
/// back, even to before the start: waiting until it is there again would hold up every move for as long.
pub(crate) fn ran_ms(since: UnixMillis, at: UnixMillis) -> u64 {
    if since > at { RAN_LONG_MS } else { at.since(since) }
}

/// What makes a container the right one; a container of another incarnation is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    pub revision: Revision,
    pub restarts: u64,
    pub epoch: u64,
}

impl Placement {
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { revision: self.revision, restarts: self.restarts, epoch: self.epoch }
    }

    /// Shall its instance run?
    pub fn is_wanted(&self) -> bool {
        self.phase != Phase::Vacating
    }
}

impl Service {
    /// What shall run for a replica on this machine.
    pub fn wanted_on(&self, node: &NodeId, replica: u32) -> Option<&Placement> {
        self.placements
            .iter()
            .filter(|placement| placement.machine == *node)
            .find(|placement| placement.replica == replica && placement.is_wanted())
    }

    /// The specification of a revision; of one that was forgotten, today's.
    pub fn spec_of(&self, revision: Revision) -> &ServiceSpec {
        self.revisions.get(&revision).map_or_else(|| self.spec(), |record| &record.spec)
    }
}

/// One round's work: what goes in, and the plan as it grows.
struct Round<'a> {
    now: UnixMillis,
    node: &'a NodeId,
    /// The node holds a lease that leaves time to start what could write a volume.
    leased: bool,
    desired: &'a State,
    observed: &'a Observed,
    memory: &'a mut Memory,
    fresh: &'a mut dyn FnMut() -> String,
    plan: Plan,
}

/// The plan for `node`. `leased` says whether its lease lets it start what could write a volume; `fresh` gives the random part
/// of new instance ids.
pub fn reconcile(
    now: UnixMillis,
    node: &NodeId,
    leased: bool,
    desired: &State,
    observed: &Observed,
    memory: &mut Memory,
    fresh: &mut dyn FnMut() -> String,
) -> Plan {
    memory.begin_round(now, node, desired);
    let mut round = Round { now, node, leased, desired, observed, memory, fresh, plan: Plan::default() };
    round.create_networks();
    let mut names: BTreeSet<&ServiceName> = observed.containers.iter().map(|container| &container.service).collect();
    names.extend(desired.services.keys());
    names.extend(&desired.condemned_volumes);
    for name in names {
        if !round.settled(&Owner::Service(name.clone())) {
            continue;
        }
        round.service(name);
        round.purge(name);
    }
    round.remove_networks();
    let plan = round.plan;
    memory.end_round(now);
    plan
}

impl Round<'_> {
    fn wake_at(&mut self, at: UnixMillis) {
        let at = at.max(self.now);
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn settled(&mut self, owner: &Owner) -> bool {
        let settled = self.memory.settled(owner, self.observed.at);
        self.wait_for(settled)
    }

    /// Plans the time if it is known and to come.
    fn wait_for(&mut self, settled: Settled) -> bool {
        match settled {
            Settled::Yes => true,
            Settled::WhenDone => false,
            Settled::After(at) => {
                self.wake_at(at);
                false
            }
        }
    }

    fn act(&mut self, action: Action) {
        self.plan.actions.push(action);
    }

    /// May the chore be tried now? Plans the time if it is known and to come.
    fn due(&mut self, chore: &Chore) -> bool {
        match self.memory.due(chore, self.now) {
            Due::Now => true,
            Due::WhenDone => false,
            Due::At(at) => {
                self.wake_at(at);
                false
            }
        }
    }

    fn create_networks(&mut self) {
        let wanted: BTreeSet<&StackName> = self
            .desired
            .services
            .values()
            .filter(|service| service.placed_on(self.node).any(Placement::is_wanted) || self.stands_by(service))
            .map(|service| &service.stack)
            .collect();
        for stack in wanted {
            if !self.observed.networks.contains(stack)
                && self.settled(&Owner::Stack(stack.clone()))
                && self.due(&Chore::Network(stack.clone()))
            {
                self.act(Action::CreateNetwork { stack: stack.clone() });
            }
        }
    }

    /// Shall this machine be ready to take the service over? Then it has its network, and the shell sees to its image.
    fn stands_by(&self, service: &Service) -> bool {
        service.replicas > 0 && service.standby.contains(self.node)
    }

    /// A stack's network goes after its last container, of which one may be about to be made while its service is removed.
    fn remove_networks(&mut self) {
        for stack in &self.observed.networks {
            let used = self.desired.services.values().any(|service| {
                service.stack == *stack && (service.placed_on(self.node).next().is_some() || self.stands_by(service))
            }) || self.observed.containers.iter().any(|container| container.stack == *stack);
            if used {
                continue;
            }
            let services = self.memory.services_settled(self.observed.at);
            if self.wait_for(services)
                && self.settled(&Owner::Stack(stack.clone()))
                && self.due(&Chore::Network(stack.clone()))
            {
                self.act(Action::RemoveNetwork { stack: stack.clone() });
            }
        }
    }

    /// Volumes go after the last container that could write them, and before the next one that shall.
    fn purge(&mut self, name: &ServiceName) {
        let in_use = self.observed.containers.iter().any(|container| container.service == *name);
        if !self.desired.must_purge(name, self.node) || in_use {
            return;
        }
        if !self.memory.purged.contains(name) {
            if self.due(&Chore::Volumes(name.clone())) {
                self.act(Action::DeleteVolumes { service: name.clone() });
            }
        } else if self.due(&Chore::Purged(name.clone())) {
            let machine = Some(self.node.clone());
            self.act(Action::Propose(CommandV1::VolumesPurged { service: name.clone(), machine }));
        }
    }

    fn remove(&mut self, container: &Container) {
        if self.due(&Chore::Container(container.id.clone())) {
            let spec = self
                .desired
                .services
                .get(&container.service)
                .and_then(|service| service.revisions.get(&container.revision));
            self.act(Action::Remove {
                container: container.id.clone(),
                service: container.service.clone(),
                grace_ms: spec.map_or(GRACE_UNKNOWN_MS, |record| record.spec.stop_grace_ms),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_holds_nothing_up() {
        let (start, a_moment) = (UnixMillis(10_000_000), READY_AFTER_MS / 2);
        assert_eq!(ran_ms(start, start.plus(a_moment)), a_moment);
        assert!(ran_ms(start, UnixMillis(start.0 - 1)) >= READY_AFTER_MS);
    }
}
