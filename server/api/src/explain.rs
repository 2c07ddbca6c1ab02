//! Why a service runs where it runs: the answer of `GET /api/v1/services/{service}/explain`.

use serde::{Deserialize, Serialize};

use crate::{MachineName, NodeId, Revision, ServiceName, UnixMillis};

/// `GET /api/v1/services/{service}/explain`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainView {
    pub service: ServiceName,
    /// One sentence: where it runs, or what it waits for.
    pub summary: String,
    pub replicas: u32,
    /// Services that have to be on the same machine, because one depends on the other.
    pub together_with: Vec<ServiceName>,
    pub placements: Vec<PlacementView>,
    /// Machines that keep its image and a created container, to take over with one start.
    pub standby: Vec<MachineName>,
    /// Those that were chosen first, then the better ones.
    pub machines: Vec<MachineVerdict>,
    /// When the leader's knowledge was so.
    pub at: UnixMillis,
}

/// A replica and its machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementView {
    /// From 1.
    pub replica: u32,
    pub machine: MachineName,
    pub epoch: u64,
    pub revision: Revision,
    pub phase: PlacementPhase,
    pub since: UnixMillis,
    /// Why there: one clause.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementPhase {
    Active,
    /// It goes on until its successor is ready.
    Leaving,
    /// It has to end before its successor begins.
    Vacating,
}

/// What a machine is for a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineVerdict {
    pub machine: MachineName,
    pub id: NodeId,
    pub verdict: Verdict,
    /// One clause.
    pub why: String,
    /// Points that it would get now; absent where it is impossible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// Of which parts that is the sum.
    pub parts: Vec<ScorePart>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Chosen,
    Possible,
    Impossible,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScorePart {
    /// `apart`, `spread`, `data`, `standby`, `room`, `image`, `power`, `links`, `there` or `stack`.
    pub part: String,
    pub points: i64,
    /// One clause.
    pub why: String,
}
