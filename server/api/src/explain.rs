//! Why a service runs where it runs: the answer of `GET /api/v1/services/{service}/explain`.

use serde::{Deserialize, Serialize};

use crate::{MachineName, NodeId, ServiceName, UnixMillis, rest::PlacedView};

/// `GET /api/v1/services/{service}/explain`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainView {
    pub service: ServiceName,
    /// One sentence: where it runs, or what it waits for.
    pub summary: String,
    pub replicas: u32,
    /// Services that have to be on the same machine, because one depends on the other.
    pub together_with: Vec<ServiceName>,
    pub placements: Vec<PlacedView>,
    /// Machines that keep its image, to take over without fetching it first.
    pub standby: Vec<MachineName>,
    /// Those that were chosen first, then the better ones.
    pub machines: Vec<MachineVerdict>,
    /// When that was so by what the answering node knew; the leader knows most.
    pub at: UnixMillis,
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
