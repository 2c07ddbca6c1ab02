//! What a node tells the others of itself: how its machine and its instances do. Soft state: it is in no log, and each copy
//! says how old it is.

use std::collections::BTreeMap;

use flotilla_api::{
    InstanceId, NodeId, ServiceName, UnixMillis,
    rest::{EngineView, LinkView, MachineResources},
};
use serde::{Deserialize, Serialize};

use crate::{
    reconcile::{Memory, Observed},
    state::GenerationName,
};

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
    /// Of services whose volumes are written there.
    #[serde(default)]
    pub data: DataReports,
}

/// By service.
pub type DataReports = BTreeMap<ServiceName, DataReport>;

/// How the data of a service does, as the machine tells that writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    pub epoch: u64,
    /// The newest generation that was made there.
    pub captured: Option<CopyReport>,
    /// Since when there is something that is not committed.
    pub uncommitted_since: Option<UnixMillis>,
    /// For how long the instance stood still for it. Milliseconds.
    pub held_ms: u64,
    /// The newest that each other machine has told to have.
    pub copies: BTreeMap<NodeId, CopyReport>,
    /// Why no more is copied, as a sentence.
    pub problem: Option<String>,
}

/// A generation that a machine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    #[serde(flatten)]
    pub name: GenerationName,
    pub taken_at: UnixMillis,
    /// Of what was written since.
    pub behind_bytes: u64,
}

/// What an instance uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_cores: Option<f64>,
    pub memory_bytes: Option<u64>,
}
