//! How a machine becomes a member: what it asks, what a member answers, and what it keeps of the answer.
//!
//! The new machine proves that it has its key when the link is made, and that it was invited by the secret of its join token. The
//! member proves that it is of the cluster by the cluster's key, whose fingerprint is in the token. So the answer, which holds that
//! key, goes to an invited machine alone.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use flotilla_api::{ApiError, ErrorCode, JoinToken, MachineName, NodeId, TokenId, UnixMillis};
use flotilla_core::{
    Actor, Command, CommandV1, Entry, State,
    command::{ClusterRecord, MachineFacts, MachineRecord},
    state::Machine,
};
use serde::{Deserialize, Serialize};

use crate::{
    auth::Authority,
    clock,
    identity::{self, ClusterKey, DataDir, Identity, node_id},
    store::Store,
    vault::{self, KeyText, Vault},
};

/// Version of what is said here.
const VERSION: u32 = 1;

/// The oldest version that is still understood.
const VERSION_OLDEST: u32 = 1;

/// Clocks that are further apart make tokens expire too early or too late, and times on a page a riddle. Milliseconds.
const CLOCKS_APART_MAX_MS: u64 = 5 * 60 * 1000;

/// Bytes of a request or an answer: ten machines with all their addresses and labels.
pub const MESSAGE_MAX: usize = 256 * 1024;

/// What the new machine asks.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Request {
    version: u32,
    /// Id of the cluster that its token is of.
    cluster: String,
    invitation: TokenId,
    secret: String,
    name: MachineName,
    facts: MachineFacts,
    /// By its clock.
    at: UnixMillis,
}

/// What can be read of a request of any version.
#[derive(Deserialize)]
struct AnyRequest {
    #[serde(default)]
    version: u32,
    #[serde(default)]
    facts: MachineFacts,
}

/// What a member answers.
#[derive(Clone, Serialize, Deserialize)]
struct Answer {
    version: u32,
    cluster: ClusterRecord,
    /// The private key that signs the cluster's tokens, base64url without padding; empty for a machine that only stores.
    cluster_key: String,
    /// What secrets and configs are sealed with. An older node tells none; they are asked for later.
    #[serde(default)]
    value_keys: Vec<KeyText>,
    machines: BTreeMap<NodeId, Machine>,
}

/// What answering takes.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    pub store: &'a Store,
    pub authority: &'a Authority,
    /// The key that signs the cluster's tokens.
    pub cluster_key: &'a SigningKey,
    pub vault: &'a Vault,
}

impl fmt::Debug for Member<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").finish_non_exhaustive()
    }
}

/// Answers a machine that wants to join, and has proven that it holds this key (Ed25519, base64url without padding). When this
/// returns, it is a member.
///
/// # Errors
/// One sentence for the person at that machine.
pub async fn answer_join(member: Member<'_>, public_key: &str, request: &[u8]) -> Result<Bytes, ApiError> {
    let now = clock::now();
    let cluster = member.store.state().cluster.clone().ok_or_else(|| {
        ApiError::new(ErrorCode::ServiceUnavailable, "this machine is joining itself; ask another, or wait")
    })?;
    let request = read(request, &cluster, now)?;
    let id = node_id_of(public_key)?;
    let admitted_id = id.clone();
    let invitation =
        member.authority.check_invitation(&request.invitation, &request.secret).await.map_err(|_| foreign(&cluster))?;
    // That may have waited for the log.
    let state = member.store.state();
    // The answer to a machine that was admitted may have been lost on the way: whoever has the same key and the same secret is the same.
    let admitted = state.machines.get(&id).is_some_and(|machine| {
        machine.joined_at.is_some()
            && machine.joined_at == invitation.used_at
            && machine.record.public_key == public_key
    });
    if admitted {
        // It may have been removed since, before this machine has heard of it.
        member.store.consensus().linearize().await.map_err(ApiError::from)?;
    } else {
        let machine =
            MachineRecord { id, name: request.name, public_key: public_key.to_owned(), labels: BTreeMap::new() };
        check(&state, now, &request.invitation, &machine)?;
        let actor = Actor {
            name: invitation.name,
            token: Some(request.invitation.clone()),
            from: request.facts.addresses.first().cloned(),
        };
        tracing::info!(machine = %machine.name, id = %machine.id, "a machine joins");
        let command = CommandV1::AdmitMachine { invitation: request.invitation, machine, facts: request.facts };
        member.store.propose(Entry { at: now, actor, command: Command::V1(command) }).await.map_err(ApiError::from)?;
    }
    let machines = member.store.state().machines.clone();
    // By what the state says, and not by what it asked with: that is what it was admitted as.
    let (cluster_key, value_keys) = match machines.get(&admitted_id).map(|machine| machine.stores_only) {
        Some(false) => (BASE64_URL_SAFE_NO_PAD.encode(member.cluster_key.to_bytes()), member.vault.key_texts()),
        Some(true) => (String::new(), Vec::new()),
        None => {
            return Err(ApiError::new(ErrorCode::Conflict, "the machine was removed just after it was admitted"));
        }
    };
    let answer = Answer { version: VERSION, cluster, cluster_key, value_keys, machines };
    serde_json::to_vec(&answer)
        .map(Bytes::from)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("the answer can't be written: {error}")))
}

fn read(request: &[u8], cluster: &ClusterRecord, now: UnixMillis) -> Result<Request, ApiError> {
    let refuse = |message: String| Err(ApiError::new(ErrorCode::InvalidRequest, message));
    if request.len() > MESSAGE_MAX {
        return Err(ApiError::new(
            ErrorCode::RequestTooLarge,
            format!("a request to join has at most {MESSAGE_MAX} bytes"),
        ));
    }
    let unreadable = || ApiError::new(ErrorCode::InvalidRequest, "this is no request to join that this version knows");
    let any: AnyRequest = serde_json::from_slice(request).map_err(|_| unreadable())?;
    let ours = env!("CARGO_PKG_VERSION");
    let theirs: String = any.facts.version.chars().filter(|c| !c.is_control()).take(40).collect();
    if any.version < VERSION_OLDEST {
        return refuse(format!(
            "this machine runs Flotilla {theirs}, which is too old for the cluster; install {ours} here and join again"
        ));
    }
    if any.version > VERSION {
        return refuse(format!(
            "this machine runs Flotilla {theirs}, but the cluster {ours}, which is older; update the cluster's machines first"
        ));
    }
    let request: Request = serde_json::from_slice(request).map_err(|_| unreadable())?;
    if request.cluster != cluster.id {
        return Err(foreign(cluster));
    }
    if let Some(sentence) = clocks_apart(request.at, now) {
        return refuse(sentence);
    }
    Ok(request)
}

fn foreign(cluster: &ClusterRecord) -> ApiError {
    ApiError::new(
        ErrorCode::InvitationInvalid,
        format!(
            "the join token is not one of the cluster `{}`, or was withdrawn; make another with `flotilla token create --scope machine`",
            cluster.name
        ),
    )
}

fn clocks_apart(theirs: UnixMillis, ours: UnixMillis) -> Option<String> {
    let (apart, which) = match (theirs.since(ours), ours.since(theirs)) {
        (ahead, 0) => (ahead, "ahead of"),
        (_, behind) => (behind, "behind"),
    };
    (apart > CLOCKS_APART_MAX_MS).then(|| {
        let minutes = apart / 60_000;
        let apart = if minutes < 120 { format!("{minutes} minutes") } else { format!("{} hours", minutes / 60) };
        format!(
            "the clock of this machine is {apart} {which} the cluster's; set it right, for example with `timedatectl set-ntp true`, \
             and join again"
        )
    })
}

/// As the state will, but for a name that is taken: at a new machine it is known how to choose another.
fn check(state: &State, now: UnixMillis, invitation: &TokenId, machine: &MachineRecord) -> Result<(), ApiError> {
    let checked = state.check_join(now, invitation, machine).map_err(|rejected| rejected.0);
    if let (Err(error), Some(_)) = (&checked, state.machine_named(&machine.name))
        && error.code == ErrorCode::Conflict
        && error.message.contains("choose another name")
    {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "there is a machine `{}` in the cluster already; give this one another name with --name",
                machine.name
            ),
        ));
    }
    checked
}

fn node_id_of(public_key: &str) -> Result<NodeId, ApiError> {
    let refuse = || ApiError::new(ErrorCode::InvalidRequest, "the machine's key is no Ed25519 key");
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(public_key).map_err(|_| refuse())?;
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| refuse())?;
    VerifyingKey::from_bytes(&bytes).map(|key| node_id(&key)).map_err(|_| refuse())
}

/// What a machine that wants to join says of itself.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub data_dir: PathBuf,
    pub token: JoinToken,
    pub name: MachineName,
    pub facts: MachineFacts,
}

/// A machine that is a member now, and can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub cluster: ClusterRecord,
    pub node: NodeId,
    pub name: MachineName,
    /// It keeps copies that it can't read, and nothing else.
    pub stores_only: bool,
}

/// Why a machine did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The way to the cluster failed, or the cluster refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error("the answer is not that of the cluster `{name}`, which the join token is of; make a new token there")]
    AnotherCluster { name: String },
    #[error("the answer of the cluster can't be read ({0}); are both of the same version?")]
    Unreadable(String),
}

/// Makes this machine's keys, asks with `ask`, and keeps what the cluster answered. `ask` says a request over a link to a member
/// that has proven to be of the cluster.
///
/// # Errors
/// One sentence for the person at this machine. It can be tried again with the same token as long as that was not used.
pub async fn join<F>(wanted: Wanted, ask: impl FnOnce(Contacting, Bytes) -> F) -> Result<Joined, Error>
where
    F: Future<Output = Result<Bytes, ApiError>>,
{
    let directory = DataDir::open(&wanted.data_dir)?;
    if directory.state().exists() || Told::load(&directory)?.is_some() || Identity::load(&directory).is_ok() {
        return Err(identity::Error::AlreadyInitialised { path: wanted.data_dir }.into());
    }
    let keys = Identity::create_node(&directory, || {
        crate::mesh::Certificate::generate()
            .and_then(|certificate| certificate.to_pem())
            .map_err(|error| error.to_string())
    })?;
    let token = &wanted.token;
    let request = Request {
        version: VERSION,
        cluster: token.cluster.clone(),
        invitation: token.invitation.clone(),
        secret: token.secret.clone(),
        name: wanted.name.clone(),
        facts: wanted.facts,
        at: clock::now(),
    };
    let request = serde_json::to_vec(&request).map_err(|error| Error::Unreadable(error.to_string()))?;
    let contacting = Contacting {
        key: keys.node.clone(),
        webrtc_pem: keys.webrtc_pem.clone(),
        addresses: token.addresses.clone(),
        fingerprint: token.fingerprint.clone(),
    };
    let answer = ask(contacting, request.into()).await?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| Error::Unreadable(error.to_string()))?;
    let cluster_key =
        checked_key(token, &answer).ok_or_else(|| Error::AnotherCluster { name: token.name.to_string() })?;
    let node = node_id(&keys.node.verifying_key());
    let name = answer.machines.get(&node).map_or(wanted.name, |machine| machine.name().clone());
    Told { version: VERSION, cluster: answer.cluster.clone(), machines: answer.machines }.store(&directory)?;
    if cluster_key.private().is_some() {
        vault::keep_keys(&directory, &answer.value_keys)?;
    }
    // Last: from here on the directory is that of a member.
    let stores_only = cluster_key.private().is_none();
    Identity::keep_cluster_key(&directory, &cluster_key)?;
    Ok(Joined { cluster: answer.cluster, node, name, stores_only })
}

/// What it takes to speak to a member for the first time.
pub struct Contacting {
    pub key: SigningKey,
    pub webrtc_pem: String,
    pub addresses: Vec<String>,
    /// Of the cluster's key.
    pub fingerprint: String,
}

impl fmt::Debug for Contacting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contacting").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// The cluster's key, if it is that of the cluster which made the token.
fn checked_key(token: &JoinToken, answer: &Answer) -> Option<ClusterKey> {
    let bytes = |text: &str| <[u8; 32]>::try_from(BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    let key = match answer.cluster_key.as_str() {
        "" => ClusterKey::Public(VerifyingKey::from_bytes(&bytes(&answer.cluster.token_key)?).ok()?),
        seed => ClusterKey::Private(SigningKey::from_bytes(&bytes(seed)?)),
    };
    let public = key.public();
    let is_it = node_id(&public).0 == token.fingerprint
        && answer.cluster.id == token.cluster
        && answer.cluster.token_key == BASE64_URL_SAFE_NO_PAD.encode(public.as_bytes());
    is_it.then_some(key)
}

/// The fingerprint of a cluster, as join tokens carry it.
pub fn fingerprint(cluster: &ClusterRecord) -> Option<String> {
    node_id_of(&cluster.token_key).ok().map(|id| id.0)
}

/// What a new member was told of the cluster, until its own state knows better.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    version: u32,
    pub cluster: ClusterRecord,
    pub machines: BTreeMap<NodeId, Machine>,
}

impl Told {
    /// `None` on a machine that did not join, but made its cluster.
    ///
    /// # Errors
    /// The file is damaged, or can't be read.
    pub fn load(directory: &DataDir) -> Result<Option<Self>, identity::Error> {
        let path = directory.joined();
        let failed = |source| identity::Error::Io { action: "read", path: path.clone(), source };
        match std::fs::read(&path) {
            Ok(bytes) => {
                let told = serde_json::from_slice(&bytes).map_err(std::io::Error::other);
                told.map(Some).map_err(failed)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn store(&self, directory: &DataDir) -> Result<(), identity::Error> {
        let path = directory.joined();
        let bytes = serde_json::to_vec(self).map_err(|error| identity::Error::Io {
            action: "write",
            path: path.clone(),
            source: std::io::Error::other(error),
        })?;
        identity::write_private(&path, &bytes)
    }

    /// As a state that nothing but this is known of: enough to find the other machines.
    pub fn as_state(&self) -> State {
        State { cluster: Some(self.cluster.clone()), machines: self.machines.clone(), ..State::default() }
    }
}
