//! Volumes, as people are told of them.

use serde::{Deserialize, Serialize};

use crate::{MachineName, ServiceName, UnixMillis, VolumeName, spec::HistoryRules};

/// `GET /api/v1/volumes`, an array of it; also a row of `flotilla volume ls --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeView {
    pub service: ServiceName,
    pub volume: VolumeName,
    /// Where it is written, or was last; absent before the first instance.
    pub machine: Option<MachineName>,
    pub state: VolumeState,
    /// One sentence for a person where the state alone does not tell.
    pub message: Option<String>,
    /// Of its files, in the committed generation.
    pub bytes: Option<u64>,
    /// Other machines that shall have a copy.
    pub replicas: u32,
    /// Copied within a second, whatever that costs.
    pub sync: bool,
    /// What is kept of it can be read with the cluster's key alone.
    #[serde(default)]
    pub encrypted: bool,
    /// Which of its generations are kept: of each kind the most that one of its service's volumes asks for.
    #[serde(default)]
    pub history: HistoryRules,
    /// The newest state of it that is certain to be there after the loss of its machine; what came after may be lost with that.
    pub committed: Option<GenerationView>,
    /// Since when there is something newer, as its machine told.
    pub uncommitted_since: Option<UnixMillis>,
    /// For how long its instance stood still for the newest generation. Milliseconds.
    pub held_ms: Option<u64>,
    /// The machines that have a copy, or shall have one.
    pub copies: Vec<CopyView>,
    /// When its machine told this; absent where nothing was told.
    pub observed_at: Option<UnixMillis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Every machine that shall have a copy has what is committed.
    Copied,
    /// Some machine that shall have a copy does not have it yet, or is lost.
    Copying,
    /// No other machine has a copy.
    Alone,
    /// Nothing was written yet.
    Empty,
}

impl VolumeState {
    pub const ALL: &'static [Self] = &[Self::Copied, Self::Copying, Self::Alone, Self::Empty];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Copying => "copying",
            Self::Alone => "alone",
            Self::Empty => "empty",
        }
    }
}

/// One machine's copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyView {
    pub machine: MachineName,
    /// Its data is of no use while the machine is lost.
    pub lost: bool,
    /// It has what is committed.
    pub holds: bool,
    /// The newest that it has, as far as the machine knows that writes.
    pub generation: Option<GenerationView>,
    /// Of what was written since: what has to be sent. Bytes.
    pub behind_bytes: Option<u64>,
    /// What it is getting, where that takes long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coming: Option<ComingView>,
}

/// A generation of a volume on its way to a machine, as that tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComingView {
    /// `<epoch>.<sequence>`
    pub generation: String,
    /// Of its files that are there.
    pub bytes: u64,
    /// Of its files; 0 while that is not known.
    pub of: u64,
    /// How many of these came in a second, lately.
    pub per_second: u64,
    /// When the machine told it, by the answering machine's clock.
    pub observed_at: UnixMillis,
}

impl ComingView {
    /// How long it takes still, at the pace of now. Milliseconds; `None` where that can't be told.
    pub fn left_ms(&self) -> Option<u64> {
        let left = self.of.checked_sub(self.bytes).filter(|_| self.of > 0)?;
        left.saturating_mul(1000).checked_div(self.per_second)
    }
}

/// One state of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationView {
    /// `<epoch>.<sequence>`
    pub generation: String,
    /// By the clock of the machine that took it.
    pub taken_at: UnixMillis,
}

/// `GET /api/v1/volumes/{service}/{volume}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeDetail {
    pub view: VolumeView,
    /// The machine whose copy this was read from.
    pub read_on: MachineName,
    /// The oldest first.
    pub history: Vec<MomentView>,
    /// What was written on a machine before it was lost, and never committed: kept on that machine, and served by nobody.
    pub branches: Vec<BranchView>,
}

/// One generation that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MomentView {
    #[serde(flatten)]
    pub generation: GenerationView,
    pub files: u64,
    /// Of its files.
    pub bytes: u64,
    pub committed: bool,
}

/// `POST /api/v1/services/{service}/restore`: the service begins anew, with all of its volumes as they were then. What it has now is kept
/// as a generation before that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// `<epoch>.<sequence>`, of the history or of a branch.
    pub generation: String,
    /// The service whose generation it is, where that is another one; volumes are matched by their names, or the only ones with each
    /// other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<ServiceName>,
}

/// Answer of a restore, and of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    pub service: ServiceName,
    /// With which it begins, `<epoch>.<sequence>`: of its own history.
    pub generation: String,
}

/// Query of `GET /api/v1/volumes/{service}/{volume}/diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffQuery {
    /// `<epoch>.<sequence>`; absent: the newest that is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Answer of `GET /api/v1/volumes/{service}/{volume}/diff`: what changes on the way from one generation to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDiff {
    pub from: GenerationView,
    pub to: GenerationView,
    /// Names that only `to` has.
    pub added: u64,
    /// Names that only `from` has.
    pub removed: u64,
    /// Names that stand for something else, or for other content, owners or permissions.
    pub changed: u64,
    /// Of all files in `from`.
    pub bytes_from: u64,
    /// Of all files in `to`.
    pub bytes_to: u64,
    /// The first thousand of them at most.
    pub changes: Vec<ChangeView>,
}

/// One name that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeView {
    /// From the volume's directory; a directory's ends with a slash. What is no UTF-8 is replaced.
    pub path: String,
    pub change: ChangeKind,
    /// Of the file in `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_from: Option<u64>,
    /// Of the file in `to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_to: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    Added,
    Removed,
    Changed,
}

/// Query of `GET /api/v1/volumes/{service}/{volume}/export`, which answers a tar archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportQuery {
    /// `<epoch>.<sequence>`; absent: the newest that is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
}

/// A generation of a machine's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchView {
    /// `<epoch>.<sequence>`
    pub generation: String,
    pub machine: MachineName,
    /// When it was put aside.
    pub kept_at: UnixMillis,
    pub files: u64,
    pub bytes: u64,
}
