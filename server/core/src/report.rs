//! What a node tells the others of itself: how its machine and its instances do. Soft state: it is in no log, and each copy
//! says how old it is.

use std::collections::BTreeMap;

use flotilla_api::{
    InstanceId, ServiceName, UnixMillis,
    rest::{EngineView, LinkView, MachineResources},
};
use serde::{Deserialize, Serialize};

use crate::reconcile::{Memory, Observed};

/// Sent to every other node when something changed, and every few seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// By the sender's clock.
    pub at: UnixMillis,
    /// Index of the state that it acts upon.
    pub applied: u64,
    pub started_at: UnixMillis,
    pub version: String,
    pub engine: EngineView,
    pub resources: MachineResources,
    /// What its engine shows; absent before it answered once.
    pub observed: Option<Observed>,
    /// Failures and back-off of its instances.
    pub memory: Memory,
    /// What takes long for a service right now, as a sentence.
    pub activities: BTreeMap<ServiceName, String>,
    pub usage: BTreeMap<InstanceId, Usage>,
    pub links: Vec<LinkView>,
    /// Images of services that its engine has, by the reference or id that the state names.
    pub images: Vec<String>,
}

/// What an instance uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_cores: Option<f64>,
    pub memory_bytes: Option<u64>,
}
