//! The commands of the state log: the only way in which the cluster's state changes.

use std::collections::BTreeMap;

use flotilla_api::{
    Grant, MachineName, NodeId, Revision, ServiceName, StackName, TokenId, UnixMillis, ValueName, VolumeName,
    limit::CopyLimit,
    spec::{ServiceSpec, ValueKind},
};
use serde::{Deserialize, Serialize};

pub use crate::state::{Availability, Copies, Generation, GenerationName, KeyId, MachineFacts, Sealed};

/// One entry of the state log. All that varies from run to run (time, ids, secrets' hashes) was put in by whoever proposed
/// it, so that applying it anywhere, at any time, has the same result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub at: UnixMillis,
    pub actor: Actor,
    pub command: Command,
}

/// Who asked for a change, for the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Name of the token; `node` where the node itself decided.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
    /// Network address that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl Actor {
    /// A node that decided by itself.
    pub fn node() -> Self {
        Self { name: "node".to_owned(), token: None, from: None }
    }
}

/// A command and the version of its meaning. A new meaning is a new variant; old ones stay readable for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "version", content = "command")]
pub enum Command {
    #[serde(rename = "1")]
    V1(CommandV1),
}

impl Command {
    /// May a machine that only stores propose it? What it says of itself, that it has a copy or gives one up, and that it has deleted
    /// what it was told to.
    pub fn is_about_storage_of(&self, machine: &NodeId) -> bool {
        let Self::V1(command) = self;
        match command {
            CommandV1::AnnounceMachine { machine: told, .. }
            | CommandV1::HoldGeneration { machine: told, .. }
            | CommandV1::DropCopy { machine: told, .. } => told == machine,
            CommandV1::VolumesPurged { machine: Some(told), .. } => told == machine,
            _ => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum CommandV1 {
    /// Makes the cluster; first, and once.
    Init {
        cluster: ClusterRecord,
        machine: MachineRecord,
    },
    /// Makes a new revision of each service that differs from what it was, all or none.
    Deploy {
        stack: StackName,
        services: Vec<ServiceSpec>,
    },
    /// Makes the specification of an older revision the newest one.
    RollBack {
        service: ServiceName,
        /// Absent: the revision before the current one.
        #[serde(default)]
        to: Option<Revision>,
        #[serde(default)]
        reason: Option<String>,
    },
    Scale {
        service: ServiceName,
        replicas: u32,
    },
    /// Replaces the service's instances by new ones of the same revision.
    Restart {
        service: ServiceName,
    },
    /// Ends the service. Its volumes stay (listed in `State::kept_volumes`) unless `volumes` is set.
    Remove {
        service: ServiceName,
        volumes: bool,
    },
    /// The node saw the service's instances of this revision run well.
    ConfirmRevision {
        service: ServiceName,
        revision: Revision,
    },
    /// A node has deleted the directories that `Remove` with `volumes` condemned.
    VolumesPurged {
        service: ServiceName,
        /// Absent in logs of one machine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<NodeId>,
    },
    IssueToken {
        token: TokenRecord,
    },
    RenewToken {
        id: TokenId,
        expires_at: UnixMillis,
    },
    RevokeToken {
        id: TokenId,
    },
    CreateInvitation {
        invitation: InvitationRecord,
    },
    /// Uses an invitation up and issues the token it stood for, in one step.
    RedeemInvitation {
        id: TokenId,
        token: TokenRecord,
    },
    /// Uses an invitation of scope `machine` up and makes its bearer a member, in one step.
    AdmitMachine {
        invitation: TokenId,
        machine: MachineRecord,
        facts: MachineFacts,
    },
    /// The machine is no member any more, and its key is never taken again.
    RemoveMachine {
        machine: NodeId,
    },
    RenameMachine {
        machine: NodeId,
        name: MachineName,
    },
    /// Sets labels, and takes away those whose value is absent.
    LabelMachine {
        machine: NodeId,
        labels: BTreeMap<String, Option<String>>,
    },
    /// How much of its line a machine may take for copies, in the place of what was set before.
    LimitCopies {
        machine: NodeId,
        limit: CopyLimit,
    },
    /// A node says where it is and what it has; it does so whenever that changes.
    AnnounceMachine {
        machine: NodeId,
        facts: MachineFacts,
    },
    /// Whether the scheduler may use a machine.
    SetAvailability {
        machine: NodeId,
        availability: Availability,
    },
    /// First words of a new leader. Decisions that carry an older term are rejected from here on.
    Lead {
        node: NodeId,
        term: u64,
    },
    /// A leader's decision on where instances run; all of it or none.
    Place {
        term: u64,
        changes: Vec<Change>,
    },
    /// The machine's lease ended: what it held may be given away.
    MachineLost {
        term: u64,
        machine: NodeId,
    },
    /// The machine holds a lease again.
    MachineBack {
        term: u64,
        machine: NodeId,
    },
    /// A machine has captured what its instances write, and others hold it on their disks.
    CommitGenerations {
        machine: NodeId,
        generations: BTreeMap<ServiceName, Generation>,
        /// Index of the state that it knew: what machines had that gave their copies up later does not count.
        #[serde(default, skip_serializing_if = "crate::state::is_zero")]
        seen: u64,
    },
    /// A machine has brought volumes of the committed generation to its disk while nobody wrote them: by volume, the root that it has.
    HoldGeneration {
        machine: NodeId,
        service: ServiceName,
        generation: GenerationName,
        volumes: BTreeMap<VolumeName, String>,
        /// As in [`Self::CommitGenerations`].
        #[serde(default, skip_serializing_if = "crate::state::is_zero")]
        seen: u64,
    },
    /// A machine shall have no copy of a service's data any more, as others have it; it deletes what it has once this is in the log.
    DropCopy {
        machine: NodeId,
        service: ServiceName,
    },
    /// The service begins anew, with its data as it was then; what it has now is kept as a generation before that.
    Restore {
        service: ServiceName,
        generation: GenerationName,
    },
    /// Images came or went at somebody's word. It changes nothing of the state: it is for the audit trail.
    NoteImages {
        change: ImageChange,
        /// Names, or ids of those that have none.
        images: Vec<String>,
    },
    /// All that a machine keeps is read at somebody's word. It changes nothing of the state: it is for the audit trail.
    NoteScrub {
        machine: NodeId,
    },
    /// Makes a new version of a secret or config. It was sealed for this version, so that it can't be taken for another.
    SetValue {
        kind: ValueKind,
        name: ValueName,
        version: u64,
        sealed: Sealed,
        /// Services that use it get it at once, each as a new revision.
        update: bool,
    },
    /// Forgets a secret or config with all of its versions. None of them may be in use.
    RemoveValue {
        kind: ValueKind,
        name: ValueName,
    },
    /// From here on values are sealed with another key, which most voters have on their disks.
    UseValueKey {
        key: KeyId,
        /// Absent where none was used before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead_of: Option<KeyId>,
    },
    /// The same version, sealed with the key of now.
    ResealValue {
        kind: ValueKind,
        name: ValueName,
        version: u64,
        sealed: Sealed,
        /// What it was sealed with: of that name and version there may be another by now. Absent in older logs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead_of: Option<KeyId>,
    },
    /// Makes an invitation for a machine that only stores. Not [`Self::CreateInvitation`]: whoever does not know what that means must
    /// not let the machine in as any other.
    InviteStorage {
        invitation: InvitationRecord,
    },
    /// How long leases shall be, as the jitter of the links demands. Milliseconds.
    SetLease {
        term: u64,
        lease_ms: u64,
    },
}

/// What became of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageChange {
    /// They were sent to the cluster.
    Pushed,
    /// They were taken from all machines.
    Removed,
    /// Nobody needed them any more.
    Collected,
}

/// One step of a leader's decision on placements. Epochs are unique in the cluster, so that one names a placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Change {
    /// Makes a placement; its epoch is the cluster's next.
    Assign {
        service: ServiceName,
        replica: u32,
        machine: NodeId,
        revision: Revision,
        restarts: u64,
        /// Why there: one clause, for people.
        reason: String,
    },
    /// Brings a placement to another revision (or count of restarts) on the same machine.
    Update { epoch: u64, revision: Revision, restarts: u64 },
    /// The placement goes on until its successor is ready.
    Leave { epoch: u64, reason: String },
    /// A placement that was to leave stays after all.
    Stay { epoch: u64 },
    /// The placement has to end before its successor may begin.
    Vacate { epoch: u64, reason: String },
    /// The placement is over: its machine said so, or its lease has ended.
    End { epoch: u64, reason: String },
    /// The machine that keeps the image and a container, to take over with no more than a start.
    StandBy { service: ServiceName, machines: Vec<NodeId> },
    /// The machines that keep copies of its data, the first first.
    Replicate { service: ServiceName, machines: Vec<NodeId> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// 16 random bytes in hexadecimal.
    pub id: String,
    /// A host name label: the dashboard lives at `app.<name>.localhost`.
    pub name: StackName,
    /// Ed25519 public key that the cluster's tokens are signed with, base64url without padding.
    pub token_key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    pub id: NodeId,
    pub name: MachineName,
    /// Ed25519 identity key of its node, base64url without padding.
    pub public_key: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A token that was issued. The token itself is kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub id: TokenId,
    pub name: String,
    pub grant: Grant,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<UnixMillis>,
    /// Thumbprint (RFC 7638) of the key that its holder must prove to have (RFC 9449); absent for a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_to: Option<String>,
    /// The token that it was exchanged for, with which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<MadeFrom>,
}

/// A token that a browser exchanged for one of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFrom {
    pub id: TokenId,
    /// Renewal can't go beyond it: a copied token would live for ever.
    pub expires_at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationRecord {
    pub id: TokenId,
    pub name: String,
    pub grant: Grant,
    /// SHA-256 of the secret in the link, hexadecimal.
    pub secret_hash: String,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<UnixMillis>,
    /// Whoever uses it becomes a machine that only stores.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stores_only: bool,
}
