//! The cluster's state: what all commands so far amount to.

mod services;
mod tokens;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    ApiError, ErrorCode, NodeId, Revision, ServiceName, StackName, TokenId, UnixMillis, VolumeName, rest::Deployed,
    spec::ServiceSpec,
};
use serde::{Deserialize, Serialize};

use crate::command::{ClusterRecord, Command, CommandV1, Entry, InvitationRecord, MachineRecord, TokenRecord};

/// Services of one cluster. Three to ten machines run no more, and the state stays small enough to be read at once.
pub const SERVICES_MAX: usize = 200;
/// Revisions that a service can be rolled back to; older ones are forgotten.
pub const REVISIONS_KEPT: usize = 20;
/// Instances of one service. A machine runs them all side by side.
pub const REPLICAS_MAX: u32 = 32;
/// Tokens that are valid at one time: more than all browsers and scripts of an office.
pub const TOKENS_MAX: usize = 10_000;
/// Invitations that are open at one time.
pub const INVITATIONS_MAX: usize = 1_000;
/// Characters of a token's or invitation's name, so that a list of them stays readable.
pub const TOKEN_NAME_MAX: usize = 100;
/// Characters of a note on a revision; what the engine said may be long, its beginning tells.
pub const NOTE_MAX: usize = 500;
/// How long an expired token or invitation stays listed. Milliseconds.
pub const EXPIRED_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

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
    /// Newest revision that was seen running well: what a failing newer one is rolled back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Revision>,
    /// Where it runs, and under which epoch. With one machine there is no choice.
    pub assignment: Assignment,
    pub changed_at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub machine: NodeId,
    /// Only grows: an instance of a lower epoch may not write the service's volumes. It is the index of the log entry that
    /// made the assignment, so that a service that was removed and deployed again takes no container of its former life.
    pub epoch: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionRecord {
    pub spec: ServiceSpec,
    pub created_at: UnixMillis,
    pub created_by: String,
    /// The older revision whose specification this one has again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restores: Option<Revision>,
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

impl Rejected {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ApiError::new(code, message))
    }
}

impl Event {
    fn new(kind: &str, service: Option<&ServiceName>, message: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), service: service.cloned(), message: message.into() }
    }
}

impl Service {
    /// The specification that shall run.
    pub fn spec(&self) -> &ServiceSpec {
        &self.record().spec
    }

    /// The current revision's record. `apply` never forgets it.
    pub fn record(&self) -> &RevisionRecord {
        &self.revisions[&self.current]
    }
}

impl State {
    /// Applies one entry at index `self.applied + 1`.
    ///
    /// # Errors
    /// A rejected command changes nothing, `applied` included.
    pub fn apply(&mut self, entry: &Entry) -> Result<Applied, Rejected> {
        let Command::V1(command) = &entry.command;
        let applied = self.apply_v1(entry, command)?;
        self.applied += 1;
        Ok(applied)
    }

    /// What `apply` would answer; nothing changes.
    ///
    /// # Errors
    /// As `apply`.
    pub fn check(&self, entry: &Entry) -> Result<Applied, Rejected> {
        self.clone().apply(entry)
    }

    /// Each command checks everything before it changes anything, so that a refusal leaves no trace.
    fn apply_v1(&mut self, entry: &Entry, command: &CommandV1) -> Result<Applied, Rejected> {
        if let CommandV1::Init { cluster, machine } = command {
            return self.init(cluster, machine);
        }
        let Some(machine) = self.machines.keys().next().cloned() else {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                "there is no cluster on this machine yet; make one with `flotilla init`",
            ));
        };
        match command {
            CommandV1::Init { .. } => unreachable!("handled above"),
            CommandV1::Deploy { stack, services } => self.deploy(entry, &machine, stack, services),
            CommandV1::RollBack { service, to, reason } => self.roll_back(entry, service, *to, reason.as_deref()),
            CommandV1::Scale { service, replicas } => self.scale(entry, service, *replicas),
            CommandV1::Restart { service } => self.restart(entry, service),
            CommandV1::Remove { service, volumes } => self.remove(service, *volumes),
            CommandV1::ConfirmRevision { service, revision } => self.confirm(service, *revision),
            CommandV1::VolumesPurged { service } => self.volumes_purged(service),
            CommandV1::IssueToken { token } => self.issue_token(entry.at, token),
            CommandV1::RenewToken { id, expires_at } => self.renew_token(entry.at, id, *expires_at),
            CommandV1::RevokeToken { id } => self.revoke_token(entry.at, id),
            CommandV1::CreateInvitation { invitation } => self.create_invitation(entry.at, invitation),
            CommandV1::RedeemInvitation { id, token } => self.redeem_invitation(entry.at, id, token),
        }
    }

    fn init(&mut self, cluster: &ClusterRecord, machine: &MachineRecord) -> Result<Applied, Rejected> {
        if let Some(present) = &self.cluster {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("this machine already belongs to the cluster `{}`; use another data directory", present.name),
            ));
        }
        self.cluster = Some(cluster.clone());
        self.machines.insert(machine.id.clone(), machine.clone());
        Ok(Applied::done(Event::new(
            "cluster-created",
            None,
            format!("The cluster `{}` was made, with the machine `{}`.", cluster.name, machine.name),
        )))
    }
}

impl Applied {
    fn done(event: Event) -> Self {
        Self { outcome: Outcome::Done, events: vec![event] }
    }
}
