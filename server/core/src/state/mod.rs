//! The cluster's state: what all commands so far amount to.

mod data;
mod machines;
mod placements;
mod services;
mod tokens;
mod values;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    ApiError, ErrorCode, MachineName, NodeId, Revision, ServiceName, StackName, TokenId, UnixMillis, VolumeName,
    rest::{Deployed, ValueUpdated},
    spec::ServiceSpec,
};
use serde::{Deserialize, Serialize};

use crate::{
    command::{ClusterRecord, Command, CommandV1, Entry, ImageChange, InvitationRecord, MachineRecord, TokenRecord},
    dependency,
};

pub use data::{
    Copies, DATA_REPLICAS_MAX, Data, GENERATION_VOLUMES_MAX, Generation, GenerationName, InvalidGeneration, Sources,
};
pub use machines::{Availability, Machine, MachineFacts, Power, RemovedMachine};
pub use placements::{Leadership, Phase, Placement};
pub use values::{
    KeyId, SEAL_BYTES, Sealed, VALUE_USES_MAX, VALUES_BYTES_MAX, VALUES_MAX, VERSIONS_KEPT, Value, ValueVersion,
    Values, unknown_value, unknown_version,
};

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
/// Images that one note is about; the engine's longest name of one has 512 characters.
pub const NOTED_IMAGES_MAX: usize = 100;
const IMAGE_NAME_MAX: usize = 512;
/// Characters of a note on a revision; what the engine said may be long, its beginning tells.
pub const NOTE_MAX: usize = 500;
/// Machines of one cluster: what a home or an office has. More is another kind of system.
pub const MACHINES_MAX: usize = 10;
/// Machines that were removed and whose keys are remembered.
pub const REMOVED_MACHINES_MAX: usize = 1_000;
/// How long an expired token or invitation stays listed. Milliseconds.
pub const EXPIRED_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

/// All that the cluster has agreed on. Ordered maps only: equal histories give equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Index of the last entry that was applied; 0 before the first.
    pub applied: u64,
    pub cluster: Option<ClusterRecord>,
    pub machines: BTreeMap<NodeId, Machine>,
    /// Those that may never come back under their old key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed_machines: BTreeMap<NodeId, RemovedMachine>,
    #[serde(default, skip_serializing_if = "Leadership::is_unknown")]
    pub leadership: Leadership,
    /// The newest epoch that was given out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    pub services: BTreeMap<ServiceName, Service>,
    /// Placements of services and machines that are gone, which could write a volume until their machine says otherwise or its
    /// lease ends. A service of the same name waits for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<Leftover>,
    /// Volumes of services that were removed without them, with the name of the service.
    pub kept_volumes: BTreeMap<ServiceName, BTreeSet<VolumeName>>,
    /// Machines that hold volume directories of services that are gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept_on: BTreeMap<ServiceName, BTreeSet<NodeId>>,
    /// Which of those wrote them last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept_homes: BTreeMap<ServiceName, NodeId>,
    /// What else is known of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept_data: BTreeMap<ServiceName, Data>,
    /// Services whose volume directories shall still be deleted.
    pub condemned_volumes: BTreeSet<ServiceName>,
    /// Machines that have not deleted them yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub condemned_on: BTreeMap<ServiceName, BTreeSet<NodeId>>,
    /// Secrets and configs.
    #[serde(default, skip_serializing_if = "Values::is_empty")]
    pub values: Values,
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
    /// Where its instances run, and under which epochs; by replica, then epoch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placements: Vec<Placement>,
    /// Machines that keep its image and a container, to take over with no more than a start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standby: Vec<NodeId>,
    /// Machines that may hold directories of its volumes.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<NodeId>,
    /// The one of them that wrote the volumes last: what the others hold is older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<NodeId>,
    #[serde(default, skip_serializing_if = "Data::is_empty")]
    pub data: Data,
    /// Where it runs, as long as no leader has spoken; see [`State::upgrade`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assignment: Option<Assignment>,
    pub changed_at: UnixMillis,
}

/// Where a service ran when a cluster was one machine and its deployment was also the decision where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Assignment {
    machine: NodeId,
    epoch: u64,
}

/// A placement that nothing wants any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    pub service: ServiceName,
    pub machine: NodeId,
    pub epoch: u64,
    /// Of the entry that left it over.
    pub index: u64,
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

/// Travels from the leader to the node that proposed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "kebab-case")]
pub enum Outcome {
    Done,
    /// `url` is left empty: the shell knows the domain.
    Deployed(Vec<Deployed>),
    RolledBack {
        service: ServiceName,
        revision: Revision,
    },
    ValueSet {
        version: u64,
        updated: Vec<ValueUpdated>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: String,
    pub service: Option<ServiceName>,
    pub machine: Option<MachineName>,
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
        Self { kind: kind.to_owned(), service: service.cloned(), machine: None, message: message.into() }
    }

    fn on(mut self, machine: &MachineName) -> Self {
        self.machine = Some(machine.clone());
        self
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

    /// Applies the entry that stands at this index of the log. A rejected entry keeps its index and changes nothing else.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn apply_at(&mut self, index: u64, entry: &Entry) -> Result<Applied, Rejected> {
        self.applied = index.saturating_sub(1);
        let applied = self.apply(entry);
        self.applied = index;
        applied
    }

    /// Brings a snapshot that an older version wrote to today's form. Call it on each one that was read.
    #[must_use]
    pub fn upgrade(mut self) -> Self {
        self.begin_placements();
        self
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
        if self.cluster.is_none() {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                "there is no cluster on this machine yet; make one with `flotilla init`",
            ));
        }
        match command {
            CommandV1::Init { .. } => unreachable!("handled above"),
            CommandV1::Deploy { stack, services } => self.deploy(entry, stack, services),
            CommandV1::RollBack { service, to, reason } => self.roll_back(entry, service, *to, reason.as_deref()),
            CommandV1::Scale { service, replicas } => self.scale(entry, service, *replicas),
            CommandV1::Restart { service } => self.restart(entry, service),
            CommandV1::Remove { service, volumes } => self.remove(service, *volumes),
            CommandV1::ConfirmRevision { service, revision } => self.confirm(service, *revision),
            CommandV1::VolumesPurged { service, machine } => self.volumes_purged(service, machine.as_ref()),
            CommandV1::IssueToken { token } => self.issue_token(entry.at, token),
            CommandV1::RenewToken { id, expires_at } => self.renew_token(entry.at, id, *expires_at),
            CommandV1::RevokeToken { id } => self.revoke_token(entry.at, id),
            CommandV1::CreateInvitation { invitation } => self.create_invitation(entry.at, invitation),
            CommandV1::InviteStorage { invitation } => self.invite_storage(entry.at, invitation),
            CommandV1::RedeemInvitation { id, token } => self.redeem_invitation(entry.at, id, token),
            CommandV1::AdmitMachine { invitation, machine, facts } => {
                self.admit_machine(entry.at, invitation, machine, facts)
            }
            CommandV1::RemoveMachine { machine } => self.remove_machine(entry.at, machine),
            CommandV1::RenameMachine { machine, name } => self.rename_machine(machine, name),
            CommandV1::LabelMachine { machine, labels } => self.label_machine(machine, labels),
            CommandV1::NoteScrub { machine } => self.note_scrub(machine),
            CommandV1::LimitCopies { machine, limit } => self.limit_copies(machine, limit),
            CommandV1::AnnounceMachine { machine, facts } => self.announce_machine(machine, facts),
            CommandV1::SetAvailability { machine, availability } => {
                self.set_availability(entry.at, machine, *availability)
            }
            CommandV1::Lead { node, term } => self.lead(entry.at, node, *term),
            CommandV1::Place { term, changes } => self.place(entry.at, *term, changes),
            CommandV1::MachineLost { term, machine } => self.machine_lost(entry.at, *term, machine),
            CommandV1::MachineBack { term, machine } => self.machine_back(entry.at, *term, machine),
            CommandV1::SetLease { term, lease_ms } => self.set_lease(*term, *lease_ms),
            CommandV1::CommitGenerations { machine, generations, seen } => {
                self.commit_generations(machine, generations, *seen)
            }
            CommandV1::HoldGeneration { machine, service, generation, volumes, seen } => {
                self.hold_generation(machine, service, *generation, volumes, *seen)
            }
            CommandV1::DropCopy { machine, service } => self.drop_copy(machine, service),
            CommandV1::SetValue { kind, name, version, sealed, update } => {
                self.set_value(entry, (*kind, name), *version, sealed, *update)
            }
            CommandV1::RemoveValue { kind, name } => self.remove_value(*kind, name),
            CommandV1::UseValueKey { key, instead_of } => self.use_value_key(key, instead_of.as_ref()),
            CommandV1::ResealValue { kind, name, version, sealed, instead_of } => {
                self.reseal_value((*kind, name), *version, sealed, instead_of.as_ref())
            }
            CommandV1::Restore { service, generation } => self.restore(service, *generation),
            CommandV1::NoteImages { change, images } => note_images(*change, images),
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
        self.machines.insert(machine.id.clone(), Machine::new(machine.clone()));
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

fn note_images(change: ImageChange, images: &[String]) -> Result<Applied, Rejected> {
    let is_name =
        |name: &String| (1..=IMAGE_NAME_MAX).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic());
    if images.is_empty() || images.len() > NOTED_IMAGES_MAX || !images.iter().all(is_name) {
        let why = format!("a note is about 1 to {NOTED_IMAGES_MAX} images, each by a name or an id");
        return Err(Rejected::new(ErrorCode::InvalidRequest, why));
    }
    let names = dependency::listed(images.iter());
    let (kind, done) = match change {
        ImageChange::Pushed => ("image-pushed", "pushed"),
        ImageChange::Removed => ("image-removed", "removed from all machines"),
        ImageChange::Collected => ("images-collected", "removed, as nothing needs them any more"),
    };
    let message = match images {
        [_] => format!("The image {names} was {}.", done.replace("them", "it")),
        _ => format!("The images {names} were {done}."),
    };
    Ok(Applied::done(Event::new(kind, None, message)))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}
