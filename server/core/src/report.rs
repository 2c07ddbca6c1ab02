//! What a node tells the others of itself: how its machine and its instances do. Soft state: it is in no log, and each copy
//! says how old it is.

use std::collections::BTreeMap;

use flotilla_api::{
    InstanceId, NodeId, ServiceName, UnixMillis, VolumeName,
    limit::LimitNow,
    rest::{EngineView, ImageStep, LinkView, MachineResources},
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
    #[serde(default)]
    pub stored_images: StoredImages,
    /// What it may send of copies, by its own local time; absent of a version that knew no limits.
    #[serde(default)]
    pub copy_limit: Option<LimitNow>,
    /// Generations that are on their way there, as far as that takes long; at most [`COMING_TOLD`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coming: Vec<Coming>,
}

/// A report is one message. A machine fetches a few generations at a time.
pub const COMING_TOLD: usize = 32;

/// A volume's generation on its way to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coming {
    pub service: ServiceName,
    pub volume: VolumeName,
    #[serde(flatten)]
    pub name: GenerationName,
    /// Of its files that are there.
    pub bytes: u64,
    /// Of its files; 0 while that is not known.
    pub of: u64,
    /// How many of these came in a second, lately.
    pub per_second: u64,
}

/// What a machine tells of the images in its store of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImages {
    /// At most [`STORED_IMAGES_TOLD`], the newest.
    pub held: Vec<StoredImage>,
    /// Those that are on their way.
    pub moving: Vec<ImageMove>,
}

/// A report is one message; a cluster of a home has some tens of images.
pub const STORED_IMAGES_TOLD: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    pub id: String,
    pub names: Vec<String>,
    /// Of its layers, unpacked.
    pub bytes: u64,
}

/// An image on its way to a machine, or within it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMove {
    /// Its id, or a reference where that is not known yet.
    pub image: String,
    /// For people.
    pub name: String,
    pub step: ImageStep,
    pub bytes: u64,
    /// 0 where it is not known.
    pub of: u64,
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
    /// Of what was written since: what has to be sent.
    pub behind_bytes: u64,
}

/// What an instance uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_cores: Option<f64>,
    pub memory_bytes: Option<u64>,
}
