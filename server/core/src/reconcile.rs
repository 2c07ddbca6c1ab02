//! From what shall be and what is to what is to be done next: `reconcile` is pure, its plan can be printed and tested.

use std::collections::BTreeMap;

use flotilla_api::{InstanceId, NodeId, Revision, ServiceName, StackName, UnixMillis, spec::ServiceSpec};

use crate::{command::CommandV1, state::State};

/// What a node's engine shows, read at one time. Only containers and networks that carry this cluster's label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub at: UnixMillis,
    pub containers: Vec<Container>,
    pub networks: Vec<StackName>,
}

/// A container with our labels; they hold all that a restarted daemon needs to adopt it.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// The engine's id.
    pub id: String,
    pub instance: InstanceId,
    pub service: ServiceName,
    pub stack: StackName,
    pub revision: Revision,
    pub replica: u32,
    /// `Service::restarts` at its creation.
    pub restarts: u64,
    pub epoch: u64,
    pub status: Status,
    /// Address on its stack's network, while it runs.
    pub address: Option<std::net::IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has no health check: running is healthy.
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// What the reconciler remembers between rounds, per service and replica. Lost on a daemon's restart, which does no harm.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub instances: BTreeMap<(ServiceName, u32), Attempts>,
}

/// Starts that failed in a row, and when the next may be tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    pub failures: u32,
    pub not_before: UnixMillis,
    /// Total restarts, for people.
    pub restarts: u32,
    /// The engine's last error on creating or starting it.
    pub last_error: Option<String>,
}

/// One step. The shell executes them in order, and independent services side by side.
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

/// `fresh` gives the random part of new instance ids.
pub fn reconcile(
    _now: UnixMillis,
    _node: &NodeId,
    _desired: &State,
    _observed: &Observed,
    _memory: &mut Memory,
    _fresh: &mut dyn FnMut() -> String,
) -> Plan {
    Plan::default()
}
