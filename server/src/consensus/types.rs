//! What openraft is told of this cluster: the types that it agrees on, and short names for its own.

use std::{fmt, sync::Arc};

use flotilla_api::{ApiError, NodeId};
use flotilla_core::{Entry, Outcome};
use openraft::{EmptyNode, alias};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

openraft::declare_raft_types!(
    /// One leader per term (`leader_id_std`), because the state's decisions name a leader by its term alone. A member has no address
    /// here: the mesh finds it.
    pub Types:
        D = Proposal,
        R = Answer,
        NodeId = NodeId,
        Node = EmptyNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

pub(crate) type LogId = alias::LogIdOf<Types>;
pub(crate) type Vote = alias::VoteOf<Types>;
pub(crate) type LogEntry = alias::EntryOf<Types>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(crate) type SnapshotOf<Data> = alias::SnapshotOf<Types, Data>;
pub(crate) type Payload = openraft::EntryPayload<Proposal, NodeId, EmptyNode>;
pub(crate) type Membership = openraft::Membership<NodeId, EmptyNode>;

/// An entry of the state log on its way. Shared, because replication and application read the same one.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal(pub Arc<Entry>);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a change by {}", self.0.actor.name)
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Entry::deserialize(deserializer).map(|entry| Self(Arc::new(entry)))
    }
}

/// What applying an entry said. An entry without a command (of a new leader, or of the membership) is always done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer(pub Result<Outcome, ApiError>);

/// The identity of the entry at `index` that a leader of `term` proposed.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}
