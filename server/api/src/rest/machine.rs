//! The cluster and its machines: who leads, how each machine does, what it has, and the links between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Principal;
use crate::{
    MachineName, NodeId, Revision, ServiceName, UnixMillis,
    limit::{CopyLimit, LimitNow},
};

/// `GET /api/v1/cluster`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    pub id: String,
    pub name: String,
    /// Version of the answering node.
    pub version: String,
    /// Host name under which the dashboard (`app.`) and services live, with the port if it is not the scheme's own.
    pub domain: String,
    pub dashboard_url: String,
    /// Index of the last state change that this answer includes.
    pub applied_index: u64,
    /// The machine that answers.
    #[serde(default)]
    pub machine: Option<MachineName>,
    /// Absent while none is known: nothing can be changed then.
    #[serde(default)]
    pub leader: Option<MachineName>,
    /// Of the consensus; it grows with each change of the leader.
    #[serde(default)]
    pub term: u64,
    /// Machines whose majority decides.
    #[serde(default)]
    pub voters: Vec<MachineName>,
    /// Machines that follow.
    #[serde(default)]
    pub learners: Vec<MachineName>,
    /// Does the cluster outlive the loss of any one machine, as it is now?
    pub fault_tolerant: bool,
    /// One sentence that says why not, and what would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_fault_tolerant_because: Option<String>,
    /// A demo, in which a machine's plug can be pulled.
    #[serde(default)]
    pub demo: bool,
    /// Who asks, and what they may do.
    pub you: Principal,
}

/// `GET /api/v1/machines`, an array of it. What only its own node can tell is absent until that told it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineView {
    pub id: NodeId,
    pub name: MachineName,
    /// Of the program that it runs.
    pub version: String,
    pub labels: BTreeMap<String, String>,
    /// What it may send of copies.
    #[serde(default)]
    pub copy_limit: CopyLimit,
    /// What holds of that now, as it tells by its own local time; absent while it has not told.
    #[serde(default)]
    pub copy_limit_now: Option<LimitNow>,
    /// Is it the one that answers?
    pub here: bool,
    pub role: Role,
    /// Does it lead the cluster?
    pub leads: bool,
    pub condition: MachineCondition,
    /// It keeps encrypted copies that it can't read, and does nothing else.
    #[serde(default)]
    pub storage_only: bool,
    /// Was it told to take nothing new? Its condition may be another one, such as lost.
    pub drained: bool,
    /// Absent for the one that the cluster began with.
    pub joined_at: Option<UnixMillis>,
    /// `host:port` of its listener, as others may try it.
    pub addresses: Vec<String>,
    /// UDP port of its TURN server, if it runs one.
    pub relay_port: Option<u16>,
    pub power: Power,
    /// Thousandths of a core that instances may use; 0 while it has not told.
    pub cpu_millis: u64,
    /// Bytes that instances may use; 0 while it has not told.
    pub memory_bytes: u64,
    /// How long its lease lasts still, where the answering machine knows: of itself, and of all while it leads. Milliseconds.
    pub lease_left_ms: Option<u64>,
    /// Those that are placed on it.
    pub instances: u32,
    pub started_at: Option<UnixMillis>,
    /// When it told the figures below, by the answering machine's clock.
    pub observed_at: Option<UnixMillis>,
    pub resources: Option<MachineResources>,
    pub engine: Option<EngineView>,
    /// Its links to the others, as it sees them.
    pub links: Vec<LinkView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It counts in the majority that decides.
    Voter,
    /// It follows.
    Learner,
}

/// How a machine does, as the answering machine sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineCondition {
    pub state: MachineState,
    pub since: UnixMillis,
    /// One clause, where the state alone does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    Ready,
    /// Nothing was heard from it for a moment; what runs there has not been given away.
    Suspect,
    /// Its lease ended; what ran there is placed elsewhere.
    Lost,
    /// It takes nothing new, and what runs there is moving away.
    Draining,
    /// It takes nothing, and nothing runs there.
    Drained,
    /// It was lost too often, and takes nothing for a while.
    KeptOut,
}

impl MachineState {
    pub const ALL: &'static [Self] =
        &[Self::Ready, Self::Suspect, Self::Lost, Self::Draining, Self::Drained, Self::KeptOut];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::KeptOut => "kept-out",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    #[default]
    Mains,
    Battery,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineResources {
    pub cpu_cores: u32,
    /// Of all cores, 0.0 to 1.0.
    pub cpu_used: f64,
    pub memory_total_bytes: u64,
    pub memory_used_bytes: u64,
    /// Of the file system that holds the data directory.
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    /// What volumes take up there; absent while it was not measured, and of machines of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageView>,
    /// When all that its store of objects keeps was read, and with what result; absent of machines of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubView>,
}

/// What the volumes on a machine take up, as it measures now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageView {
    /// Of the store of objects: all generations that are kept, what they share once, compressed. Bytes.
    pub objects_bytes: u64,
    /// Of the files of volumes that are written there, as in their newest generation. Bytes.
    pub written_bytes: u64,
    /// Of the files of volumes that are there as copies, the same. Bytes.
    pub copies_bytes: u64,
    /// By the machine's own clock.
    pub measured_at: UnixMillis,
}

/// Answer of `POST /api/v1/machines/{machine}/scrub`; also how it stands with any machine. Times are by the machine's own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubView {
    /// The last one that came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<ScrubbedView>,
    /// The one that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<ScrubbingView>,
}

/// All that a store keeps was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubbedView {
    pub began_at: UnixMillis,
    pub finished_at: UnixMillis,
    pub objects: u64,
    /// Of the files of copies, which were compared with the objects.
    #[serde(default)]
    pub files_bytes: u64,
    /// Objects, and pieces of files, that the disk did not give back as they were.
    pub damaged: u64,
    /// Those of them that are right again.
    pub repaired: u64,
}

/// All that a store keeps is being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubbingView {
    pub began_at: UnixMillis,
    /// Somebody asked for it: it takes what the disk can spare. Otherwise it takes days.
    pub asked: bool,
    /// That were read so far.
    pub objects: u64,
    /// About; 0 while that is not known.
    pub of: u64,
    /// Of the files of copies, after the objects.
    #[serde(default)]
    pub files_bytes: u64,
    /// About; 0 before the objects are read.
    #[serde(default)]
    pub files_of_bytes: u64,
    pub damaged: u64,
    pub repaired: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum EngineView {
    Ready {
        version: String,
        api_version: String,
        operating_system: String,
    },
    /// The sentence says what is wrong and what to do.
    Unavailable {
        message: String,
        since: UnixMillis,
    },
}

/// `GET /api/v1/machines/{machine}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineDetail {
    #[serde(flatten)]
    pub view: MachineView,
    /// What is placed on it, by service and replica.
    pub placements: Vec<PlacedView>,
    /// When it was lost, the last times; oldest first.
    pub losses: Vec<UnixMillis>,
}

/// Which replica of a service runs where, by the leader's decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedView {
    pub service: ServiceName,
    /// From 1.
    pub replica: u32,
    pub machine: MachineName,
    /// Unique in the cluster: it names the placement.
    pub epoch: u64,
    pub revision: Revision,
    pub phase: PlacedPhase,
    pub since: UnixMillis,
    /// Why there: one clause.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacedPhase {
    /// It shall run.
    Active,
    /// It runs until its successor is ready.
    Leaving,
    /// It ends, and its successor waits for that.
    Vacating,
}

impl PlacedPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Leaving => "leaving",
            Self::Vacating => "vacating",
        }
    }
}

/// `PATCH /api/v1/machines/{machine}`: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeMachine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<MachineName>,
    /// Sets labels; those without a value are taken away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// In the place of what was set before; without a rate and windows it is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_limit: Option<CopyLimit>,
}

/// Query of `POST /api/v1/machines/{machine}/drain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainQuery {
    /// Also where some of what runs there finds no other place: it ends there, and waits for one.
    #[serde(default)]
    pub force: bool,
}

/// Query of `DELETE /api/v1/machines/{machine}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveMachineQuery {
    /// Also while it is well and services are placed on it.
    #[serde(default)]
    pub force: bool,
}

/// One direction's view of the connection between two machines, as the machine that tells it sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkView {
    pub peer: NodeId,
    pub state: LinkState,
    /// Absent while it is not up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<LinkPath>,
    /// What carries what is large; absent while nothing large is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk: Option<BulkPath>,
    /// Where packets go: `address:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Round trip, smoothed. Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Mean deviation of the round trip. Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_ms: Option<f64>,
    /// Of the probes of the last minute, 0.0 to 1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Bytes per second over the last seconds.
    #[serde(default)]
    pub sent_per_second: u64,
    #[serde(default)]
    pub received_per_second: u64,
    /// When the state was reached.
    pub since: UnixMillis,
    /// When the figures were read.
    pub observed_at: UnixMillis,
    /// Why it is not up, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    Connecting,
    Up,
    Down,
}

/// What carries what is large between two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BulkPath {
    /// TLS to the listener of one of them.
    Tls,
    /// Data channels.
    Channels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkPath {
    Direct,
    /// Through a TURN server.
    Relayed,
}
