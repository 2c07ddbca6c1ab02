//! The cluster's state: what all commands so far amount to.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    ApiError, NodeId, Revision, ServiceName, StackName, TokenId, UnixMillis, VolumeName, rest::Deployed,
    spec::ServiceSpec,
};
use serde::{Deserialize, Serialize};

use crate::command::{ClusterRecord, Entry, InvitationRecord, MachineRecord, TokenRecord};

/// All that the cluster has agreed on. Ordered maps only: equal histories give equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Index of the last entry that was applied; 0 before the first.
    pub applied: u64,
    pub cluster: Option<ClusterRecord>,
    pub machines: BTreeMap<NodeId, MachineRecord>,
    pub services: BTreeMap<ServiceName, Service>,
    /// Volumes of services that were removed without them, with the name of the service.
    pub kept_volumes: BTreeMap<ServiceName, BTreeSet<VolumeName>>,
    /// Services whose volume directories a node shall still delete.
    pub condemned_volumes: BTreeSet<ServiceName>,
    pub tokens: BTreeMap<TokenId, TokenRecord>,
    pub invitations: BTreeMap<TokenId, InvitationRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: ServiceName,
    pub stack: StackName,
    pub current: Revision,
    /// Bounded: the oldest are forgotten, never the current one.
    pub revisions: BTreeMap<Revision, RevisionRecord>,
    /// Wanted instances; begins as the specification's, changed by `Scale`.
    pub replicas: u32,
    /// Counts `Restart`; instances of another count are replaced.
    pub restarts: u64,
    /// Where it runs, and under which epoch. With one machine there is no choice.
    pub assignment: Assignment,
    pub changed_at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub machine: NodeId,
    /// Only grows: an instance of a lower epoch may not write the service's volumes.
    pub epoch: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionRecord {
    pub spec: ServiceSpec,
    pub created_at: UnixMillis,
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub outcome: Outcome,
    /// For the audit trail and the timeline.
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done,
    /// `url` is left empty: the shell knows the domain.
    Deployed(Vec<Deployed>),
    RolledBack {
        service: ServiceName,
        revision: Revision,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: String,
    pub service: Option<ServiceName>,
    pub message: String,
}

/// A command that was not applied; the state is as before. Carries what the API answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub ApiError);

impl State {
    /// Applies one entry at index `self.applied + 1`.
    ///
    /// # Errors
    /// A rejected command changes nothing, `applied` included.
    pub fn apply(&mut self, _entry: &Entry) -> Result<Applied, Rejected> {
        Err(Rejected(ApiError::new(flotilla_api::ErrorCode::Internal, "not written yet")))
    }
}
