//! Secrets and configs outside of the state: sealing them for the log, opening them for containers, and the keys that it takes.
//!
//! The keys are in a file of each machine and in no log. A machine gets them when it joins, and asks the others for one that it
//! lacks: members alone are answered, over links whose ends are proven (ADR 16).

mod ring;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{
    ApiError, ErrorCode, NodeId, ValueName,
    rest::{Rekeyed, VALUE_MAX, ValueSet},
    spec::ValueKind,
};
use flotilla_core::{
    Actor, Command, CommandV1, Entry, Outcome, State,
    state::{KeyId, Sealed, unknown_value, unknown_version},
};
use futures::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    clock,
    engine::Values,
    identity::{self, DataDir},
    peers::{Method, Network},
    store::Store,
};

pub(crate) use ring::KeyText;
use ring::{Key, KeyRing, Which};

/// How long another machine may take to answer.
const ASKING: Duration = Duration::from_secs(3);

/// Pauses of a machine that lacks a key and found nobody who has it.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// How often a value is sealed anew because somebody else set it meanwhile.
const TRIES: usize = 4;

/// Bytes of a message between nodes: all keys of a ring.
const MESSAGE_MAX: usize = 16 * 1024;

/// A value as it is. It leaves no trace: its debug text does not show it, and its memory is overwritten when it goes.
#[derive(Clone)]
pub struct Opened(Zeroizing<Vec<u8>>);

impl Opened {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opened({} bytes)", self.0.len())
    }
}

/// What nodes say to each other of keys.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Message {
    /// Who has these? With `rest`, also all others that it has: what is kept of volumes may need a key that the state names no more.
    Want {
        keys: BTreeSet<KeyId>,
        #[serde(default)]
        rest: bool,
    },
    /// They are about to be used; the answer means that they are on disk.
    Keep { keys: Vec<KeyText> },
}

#[derive(Serialize, Deserialize)]
struct Answer {
    keys: Vec<KeyText>,
}

/// A handle. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vault {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: NodeId,
    ring: Mutex<KeyRing>,
    /// What seals and opens what is kept of volumes with keys that are made of these.
    data: OnceLock<flotilla_data::Store>,
    store: Store,
    network: Network,
    /// One change at a time: two of one name would only be in each other's way.
    changing: tokio::sync::Mutex<()>,
}

impl Vault {
    /// # Errors
    /// The file with the keys is damaged, or can't be read.
    pub fn open(directory: &DataDir, node: NodeId, store: Store, network: Network) -> Result<Self, identity::Error> {
        Self::open_at(&directory.value_keys(), node, store, network)
    }

    fn open_at(path: &Path, node: NodeId, store: Store, network: Network) -> Result<Self, identity::Error> {
        let ring = Mutex::new(KeyRing::load(path)?);
        let (data, changing) = (OnceLock::new(), tokio::sync::Mutex::default());
        Ok(Self { shared: Arc::new(Shared { node, ring, data, store, network, changing }) })
    }

    /// From now on what is kept of volumes is sealed and opened with keys that are made of these, whatever they are. Once.
    pub(crate) fn give_keys_to(&self, data: flotilla_data::Store) {
        if self.shared.data.set(data).is_err() {
            tracing::error!("the node was put together twice");
        }
        self.hand_on(&self.ring());
    }

    fn hand_on(&self, ring: &KeyRing) {
        if let Some(data) = self.shared.data.get() {
            data.use_keys(ring.all().iter().filter_map(Key::of_data));
        }
    }

    /// What is deployed has an encrypted volume: where the cluster has no key yet it gets one.
    ///
    /// # Errors
    /// Too few machines can be reached, or the state refuses.
    pub async fn need_key(&self, actor: &Actor) -> Result<(), ApiError> {
        let _changing = self.shared.changing.lock().await;
        if self.shared.store.state().values.key.is_some() {
            return Ok(());
        }
        // Somebody may have made one on another machine a moment ago.
        self.shared.store.consensus().linearize().await.map_err(ApiError::from)?;
        if self.shared.store.state().values.key.is_some() {
            return Ok(());
        }
        let key = self.sealing_key().await?;
        let command = CommandV1::UseValueKey { key: key.id, instead_of: None };
        match self.propose(actor, command).await {
            // Somebody was quicker. The leader refused, so this node's own state may not tell of it yet.
            Err(error) if error.code == ErrorCode::Conflict => {
                self.shared.store.consensus().linearize().await.map_err(ApiError::from)?;
                if self.shared.store.state().values.key.is_some() { Ok(()) } else { Err(error) }
            }
            proposed => proposed.map(drop),
        }
    }

    /// The same for a check alone: a key that nobody keeps. Absent where there is one.
    pub(crate) fn draft_key(state: &State) -> Option<CommandV1> {
        let none = state.values.key.is_none();
        none.then(|| CommandV1::UseValueKey { key: Key::generate().id, instead_of: None })
    }

    /// Sets a secret or config. Nothing is proposed where it is the same already.
    ///
    /// # Errors
    /// It is too large, the state refuses it, or the key is not here and can't be had.
    pub async fn set(
        &self,
        actor: &Actor,
        (kind, name): (ValueKind, &ValueName),
        plain: &Opened,
        update: bool,
    ) -> Result<ValueSet, ApiError> {
        check_size(kind, name, plain)?;
        let _changing = self.shared.changing.lock().await;
        let mut tries = 0;
        loop {
            if let Some(version) = self.is_newest_everywhere(kind, name, plain).await? {
                return Ok(ValueSet { name: name.clone(), version, changed: false, updated: Vec::new() });
            }
            let key = self.sealing_key().await?;
            let version = self.shared.store.state().next_version(kind, name);
            let sealed = key.seal(Which { kind, name, version }, plain.bytes());
            let command = CommandV1::SetValue { kind, name: name.clone(), version, sealed, update };
            tries += 1;
            match self.propose(actor, command).await {
                Ok(Outcome::ValueSet { version, updated }) => {
                    return Ok(ValueSet { name: name.clone(), version, changed: true, updated });
                }
                Ok(_) => return Err(ApiError::new(ErrorCode::Internal, "the state answered with something else")),
                // This node's state may be behind: it is read anew where the newest is known.
                Err(error) if error.code == ErrorCode::Conflict && tries < TRIES => {
                    self.shared.store.consensus().linearize().await.map_err(ApiError::from)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// How it would be set in this state: for a check alone, sealed with a key that nobody keeps. Absent where it is the same already.
    ///
    /// # Errors
    /// It is too large.
    pub(crate) async fn draft(
        &self,
        state: &State,
        (kind, name): (ValueKind, &ValueName),
        plain: &Opened,
    ) -> Result<Option<CommandV1>, ApiError> {
        check_size(kind, name, plain)?;
        if self.is_newest(kind, name, plain).await.is_some() {
            return Ok(None);
        }
        let version = state.next_version(kind, name);
        let mut sealed = Key::generate().seal(Which { kind, name, version }, plain.bytes());
        sealed.key = state.values.key.clone().unwrap_or(sealed.key);
        Ok(Some(CommandV1::SetValue { kind, name: name.clone(), version, sealed, update: false }))
    }

    /// The newest version's number, where it is this value.
    async fn is_newest(&self, kind: ValueKind, name: &ValueName, plain: &Opened) -> Option<u64> {
        let version = self.shared.store.state().values.of(kind).get(name)?.newest();
        let kept = self.reveal(kind, name, version).await.ok()?;
        (kept.bytes() == plain.bytes()).then_some(version)
    }

    /// The same, and no newer one was set on another machine of which this one has not heard.
    async fn is_newest_everywhere(
        &self,
        kind: ValueKind,
        name: &ValueName,
        plain: &Opened,
    ) -> Result<Option<u64>, ApiError> {
        if self.is_newest(kind, name, plain).await.is_none() {
            return Ok(None);
        }
        self.shared.store.consensus().linearize().await.map_err(ApiError::from)?;
        Ok(self.is_newest(kind, name, plain).await)
    }

    /// Opens one version of a value.
    ///
    /// # Errors
    /// There is none, or no machine that can be asked has the key.
    pub async fn reveal(&self, kind: ValueKind, name: &ValueName, version: u64) -> Result<Opened, ApiError> {
        let state = self.shared.store.state();
        let Some(kept) = state.values.version(kind, name, version) else {
            let known = state.values.of(kind).contains_key(name);
            return Err(if known { unknown_version(kind, name, version) } else { unknown_value(kind, name) }.0);
        };
        self.open_sealed(Which { kind, name, version }, &kept.sealed).await
    }

    async fn open_sealed(&self, which: Which<'_>, sealed: &Sealed) -> Result<Opened, ApiError> {
        let Which { kind, name, version } = which;
        let Some(key) = self.key(&sealed.key).await else {
            return Err(ApiError::new(
                ErrorCode::ValueKeyMissing,
                format!(
                    "the {kind} `{name}` is sealed with the key {}, which neither this machine has nor one that it reaches; start a \
                     machine that has it, or set the {kind} again after `flotilla secret rekey`",
                    sealed.key
                ),
            ));
        };
        key.open(which, sealed).map(Opened).ok_or_else(|| {
            ApiError::new(
                ErrorCode::Internal,
                format!("version {version} of the {kind} `{name}` does not open: it is damaged, or was sealed as something else"),
            )
        })
    }

    /// Gives the cluster a new key and seals everything anew with it, also what one that was broken off has left.
    ///
    /// # Errors
    /// Too few machines can be reached, or the state refuses. What was sealed anew by then stays so.
    pub async fn rekey(&self, actor: &Actor) -> Result<Rekeyed, ApiError> {
        let _changing = self.shared.changing.lock().await;
        self.shared.store.consensus().linearize().await.map_err(ApiError::from)?;
        let Some(current) = self.shared.store.state().values.key.clone() else {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                "there is no secret, no config and no encrypted volume yet, so there is nothing to seal anew",
            ));
        };
        // A new one each time: whoever asks for it may know that a machine which had the present one is not to be trusted.
        let key = Key::generate();
        self.share(&key).await?;
        let command = CommandV1::UseValueKey { key: key.id.clone(), instead_of: Some(current) };
        self.propose(actor, command).await?;
        // Nothing is sealed with another key from here on. What was until then, on whichever machine, is known here now.
        self.shared.store.consensus().linearize().await.map_err(ApiError::from)?;
        let state = self.shared.store.state();
        let mut rekeyed = Rekeyed { key: key.id.to_string(), resealed: 0, unreadable: 0 };
        for (kind, name, version, kept) in state.values.versions() {
            if kept.sealed.key == key.id {
                continue;
            }
            let which = Which { kind, name, version };
            let Ok(plain) = self.open_sealed(which, &kept.sealed).await else {
                rekeyed.unreadable += 1;
                continue;
            };
            let sealed = key.seal(which, plain.bytes());
            let instead_of = Some(kept.sealed.key.clone());
            let command = CommandV1::ResealValue { kind, name: name.clone(), version, sealed, instead_of };
            match self.propose(actor, command).await {
                Ok(_) => rekeyed.resealed += 1,
                // It was forgotten meanwhile; another one of its name is sealed with the new key.
                Err(error) if error.code == ErrorCode::ValueNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rekeyed)
    }

    async fn propose(&self, actor: &Actor, command: CommandV1) -> Result<Outcome, ApiError> {
        let entry = Entry { at: clock::now(), actor: actor.clone(), command: Command::V1(command) };
        self.shared.store.propose(entry).await.map(|committed| committed.outcome).map_err(ApiError::from)
    }

    /// The key of now. Before the first value, it is one that most voters have on their disks when this returns.
    async fn sealing_key(&self) -> Result<Key, ApiError> {
        let state = self.shared.store.state();
        let Some(id) = &state.values.key else {
            let key = self.ring().newest().cloned().unwrap_or_else(Key::generate);
            self.share(&key).await?;
            return Ok(key);
        };
        self.key(id).await.ok_or_else(|| {
            ApiError::new(
                ErrorCode::ValueKeyMissing,
                format!(
                    "the cluster's key {id} is neither on this machine nor on one that it reaches; start a machine that has it, or \
                     make a new one with `flotilla secret rekey`"
                ),
            )
        })
    }

    /// Puts a key on the disks of this machine and of the others, most voters among them.
    async fn share(&self, key: &Key) -> Result<(), ApiError> {
        self.keep([key.clone()])?;
        // With all that came before it: who has the newest has what is kept of volumes, whenever that was sealed.
        let message = write(&Message::Keep { keys: self.key_texts() })?;
        let connected = self.others();
        let telling = connected.into_iter().map(|peer| {
            let call = self.shared.network.call(&peer, Method::Keys, message.clone(), ASKING);
            async move {
                match call.await {
                    Ok(_) => Some(peer),
                    Err(error) => {
                        tracing::warn!(%peer, %error, "a machine did not take the key of secrets; it asks for it later");
                        None
                    }
                }
            }
        });
        let mut kept: BTreeSet<NodeId> = join_all(telling).await.into_iter().flatten().collect();
        kept.insert(self.shared.node.clone());
        let voters = self.shared.store.consensus().status().borrow().voters.clone();
        let have = voters.intersection(&kept).count();
        if have * 2 <= voters.len() {
            return Err(ApiError::new(
                ErrorCode::ServiceUnavailable,
                format!(
                    "only {have} of {} voting machines have taken the key of secrets, and it may not be lost; try again when most of \
                     them can be reached",
                    voters.len()
                ),
            ));
        }
        Ok(())
    }

    fn keep(&self, keys: impl IntoIterator<Item = Key>) -> Result<(), ApiError> {
        if self.shared.store.state().stores_only(&self.shared.node) {
            return Err(ApiError::new(ErrorCode::StorageOnly, "this machine only stores, and keeps no key"));
        }
        let mut ring = self.ring();
        ring.keep(keys).map_err(|error| {
            tracing::error!(%error, "a key of secrets can't be kept");
            ApiError::new(ErrorCode::Internal, error.to_string())
        })?;
        self.hand_on(&ring);
        Ok(())
    }

    /// Machines that may have keys and can be asked, as far as is known at this moment: one that the state does not name yet may be one
    /// that only stores.
    fn others(&self) -> BTreeSet<NodeId> {
        let state = self.shared.store.state();
        let mut connected = self.shared.network.connected().borrow().clone();
        connected.retain(|machine| state.is_full_member(machine));
        connected
    }

    /// From this machine, or from another one.
    async fn key(&self, id: &KeyId) -> Option<Key> {
        if let Some(key) = self.ring().find(id) {
            return Some(key.clone());
        }
        self.fetch(&BTreeSet::from([id.clone()])).await;
        self.ring().find(id).cloned()
    }

    /// Asks all machines that can be reached for these keys, and keeps what they have.
    async fn fetch(&self, wanted: &BTreeSet<KeyId>) {
        let Ok(message) = write(&Message::Want { keys: wanted.clone(), rest: true }) else { return };
        let connected = self.others();
        let asking = connected.iter().map(|peer| self.shared.network.call(peer, Method::Keys, message.clone(), ASKING));
        let answers = join_all(asking).await;
        let told = answers.into_iter().flatten().filter_map(|answer| serde_json::from_slice::<Answer>(&answer).ok());
        let keys = told.flat_map(|answer| answer.keys).filter_map(|text| Key::read(&text));
        // The wanted ones last: the newest of them is what is sealed with.
        let (wanted, mut keys): (Vec<Key>, Vec<Key>) = keys.partition(|key| wanted.contains(&key.id));
        keys.extend(wanted);
        if !keys.is_empty() {
            // Logged there; it is asked for again.
            let _ = self.keep(keys);
        }
    }

    /// Answers another node.
    ///
    /// # Errors
    /// It is no member, the message is none, or a key can't be written.
    pub async fn answer(&self, from: &NodeId, body: &[u8]) -> Result<Bytes, ApiError> {
        let refuse = |message: &str| Err(ApiError::new(ErrorCode::InvalidRequest, message));
        self.check_member(from)?;
        if body.len() > MESSAGE_MAX {
            return refuse("a message about keys is longer than any is");
        }
        let Ok(message) = serde_json::from_slice(body) else {
            return refuse("a message of another machine can't be read; run the same version on both");
        };
        match message {
            Message::Want { keys, rest } => {
                // It may have been removed, and the key changed for that, before this machine has heard of it.
                let newest = timeout(ASKING, self.shared.store.consensus().linearize()).await;
                newest.map_err(|_| unreachable_majority())?.map_err(ApiError::from)?;
                self.check_member(from)?;
                let ring = self.ring();
                let keys = ring.all().iter().filter(|key| rest || keys.contains(&key.id)).map(Key::text).collect();
                write(&Answer { keys })
            }
            Message::Keep { keys } => {
                let keys: Option<Vec<Key>> = keys.iter().map(Key::read).collect();
                let Some(keys) = keys else { return refuse("what was to be kept is no key") };
                self.keep(keys)?;
                Ok(Bytes::new())
            }
        }
    }

    fn check_member(&self, machine: &NodeId) -> Result<(), ApiError> {
        let refuse = |message: &str| Err(ApiError::new(ErrorCode::ScopeInsufficient, message));
        match self.shared.store.state().machines.get(machine) {
            None => refuse("keys are for members of the cluster alone"),
            Some(machine) if machine.stores_only => refuse("that machine only stores, and gets no key"),
            Some(_) => Ok(()),
        }
    }

    /// For a machine that joins.
    pub(crate) fn key_texts(&self) -> Vec<KeyText> {
        self.ring().all().iter().map(Key::text).collect()
    }

    /// Gets the keys that the state names and this machine lacks: it joined before there were any, or was away when the key was
    /// changed. Until the node stops.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.look_after_keys() => {}
        }
    }

    async fn look_after_keys(&self) {
        let mut states = self.shared.store.watch();
        let mut connected = self.shared.network.connected();
        let mut pause = AGAIN_FIRST;
        loop {
            let missing = self.missing(&states.borrow_and_update());
            if !missing.is_empty() {
                self.fetch(&missing).await;
            }
            if self.missing(&self.shared.store.state()).is_empty() {
                pause = AGAIN_FIRST;
                if states.changed().await.is_err() {
                    return;
                }
                continue;
            }
            tokio::select! {
                changed = connected.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN_MAX),
            }
        }
    }

    /// Keys that the state names and this machine does not have.
    pub fn missing(&self, state: &State) -> BTreeSet<KeyId> {
        if state.stores_only(&self.shared.node) {
            return BTreeSet::new();
        }
        let ring = self.ring();
        state.values.keys().into_iter().filter(|id| ring.find(id).is_none()).cloned().collect()
    }

    fn ring(&self) -> MutexGuard<'_, KeyRing> {
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Values for Vault {
    fn reveal<'a>(
        &'a self,
        kind: ValueKind,
        name: &'a ValueName,
        version: u64,
    ) -> BoxFuture<'a, Result<Opened, ApiError>> {
        Box::pin(Self::reveal(self, kind, name, version))
    }
}

/// Makes the first key of a new cluster.
///
/// # Errors
/// It can't be written.
pub(crate) fn create_key(directory: &DataDir) -> Result<(), identity::Error> {
    let mut ring = KeyRing::load(&directory.value_keys())?;
    match ring.newest() {
        Some(_) => Ok(()),
        None => ring.keep([Key::generate()]),
    }
}

/// Keeps the keys that a cluster has given to this machine, which joined it.
///
/// # Errors
/// They can't be written; what is no key is left out.
pub(crate) fn keep_keys(directory: &DataDir, keys: &[KeyText]) -> Result<(), identity::Error> {
    KeyRing::load(&directory.value_keys())?.keep(keys.iter().filter_map(Key::read))
}

fn check_size(kind: ValueKind, name: &ValueName, plain: &Opened) -> Result<(), ApiError> {
    let size = plain.bytes().len();
    if size <= VALUE_MAX {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::RequestTooLarge,
        format!(
            "the {kind} `{name}` has {} KiB; a secret or config has at most {}",
            size.div_ceil(1024),
            VALUE_MAX / 1024
        ),
    ))
}

fn unreachable_majority() -> ApiError {
    let why = "this machine does not reach most of the others, and gives no key away until it does";
    ApiError::new(ErrorCode::ServiceUnavailable, why)
}

fn write(message: &impl Serialize) -> Result<Bytes, ApiError> {
    serde_json::to_vec(message).map(Bytes::from).map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("a message to another machine can't be written: {error}"))
    })
}
