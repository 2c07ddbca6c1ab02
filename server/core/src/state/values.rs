//! Secrets and configs in the state: sealed, in versions, and used by services at the version that their revision names.
//!
//! The state never sees what is sealed: whoever proposes a value has sealed it with the cluster's key, which is in no log (ADR 16).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use flotilla_api::{
    ErrorCode, Revision, ServiceName, UnixMillis, ValueName,
    rest::{VALUE_MAX, ValueUpdated},
    spec::{ServiceSpec, ValueKind, ValueUse},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Applied, Event, Outcome, Rejected, Service, State};
use crate::{command::Entry, dependency};

/// Secrets and configs of one cluster, together.
pub const VALUES_MAX: usize = 500;
/// Versions of one value; older ones are forgotten, but none that a service may still need.
pub const VERSIONS_KEPT: usize = 10;
/// All versions of all values, without what sealing adds. They are in every snapshot of the state. Bytes.
pub const VALUES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Values that one service is given: more than a compose file of a person names.
pub const VALUE_USES_MAX: usize = 64;
/// What sealing adds: a nonce of XChaCha20 and a tag of Poly1305. Bytes.
pub const SEAL_BYTES: usize = 24 + 16;

/// Names a cluster's key, and tells nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes that nobody reads without the key. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub key: KeyId,
    /// The nonce, then what XChaCha20-Poly1305 made of the value: base64 without padding.
    #[serde(serialize_with = "write_shared", deserialize_with = "read_shared")]
    pub bytes: Arc<str>,
}

fn write_shared<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn read_shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

impl fmt::Debug for Sealed {
    /// Without the bytes: they are many, and say nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("key", &self.key).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Sealed {
    /// Of what is sealed. Bytes.
    pub fn len(&self) -> usize {
        (self.bytes.len() * 3 / 4).saturating_sub(SEAL_BYTES)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self) -> Result<(), Rejected> {
        let refuse = |message: &str| Err(Rejected::new(ErrorCode::InvalidRequest, message));
        if self.key.0.is_empty() || self.key.0.len() > 64 {
            return refuse("the key that a value is sealed with needs an id of at most 64 characters");
        }
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        if self.bytes.len() * 3 / 4 < SEAL_BYTES || !self.bytes.bytes().all(is_base64) {
            return refuse("a value has to be sealed before it is kept");
        }
        if self.len() > VALUE_MAX {
            return refuse(&format!("a secret or config has at most {} KiB; this one is larger", VALUE_MAX / 1024));
        }
        Ok(())
    }
}

/// All secrets and configs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    /// The key that is sealed with; absent until there is a first value, or a first volume that is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<ValueName, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub configs: BTreeMap<ValueName, Value>,
}

/// The versions of a secret or config that are kept. There is always one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    pub versions: BTreeMap<u64, ValueVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueVersion {
    pub sealed: Sealed,
    pub set_at: UnixMillis,
    pub set_by: String,
}

impl Value {
    /// The newest version.
    pub fn newest(&self) -> u64 {
        self.versions.keys().next_back().copied().unwrap_or_default()
    }
}

impl Values {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn of(&self, kind: ValueKind) -> &BTreeMap<ValueName, Value> {
        match kind {
            ValueKind::Secret => &self.secrets,
            ValueKind::Config => &self.configs,
        }
    }

    fn of_mut(&mut self, kind: ValueKind) -> &mut BTreeMap<ValueName, Value> {
        match kind {
            ValueKind::Secret => &mut self.secrets,
            ValueKind::Config => &mut self.configs,
        }
    }

    pub fn version(&self, kind: ValueKind, name: &ValueName, version: u64) -> Option<&ValueVersion> {
        self.of(kind).get(name)?.versions.get(&version)
    }

    /// Every version of every value.
    pub fn versions(&self) -> impl Iterator<Item = (ValueKind, &ValueName, u64, &ValueVersion)> {
        ValueKind::ALL.iter().flat_map(|kind| {
            let versions = |(name, value)| versions_of(*kind, name, value);
            self.of(*kind).iter().flat_map(versions)
        })
    }

    /// The keys that it takes to read all of them.
    pub fn keys(&self) -> BTreeSet<&KeyId> {
        self.versions().map(|(.., version)| &version.sealed.key).chain(&self.key).collect()
    }

    fn bytes(&self) -> usize {
        self.versions().map(|(.., version)| version.sealed.len()).sum()
    }
}

fn versions_of<'a>(
    kind: ValueKind,
    name: &'a ValueName,
    value: &'a Value,
) -> impl Iterator<Item = (ValueKind, &'a ValueName, u64, &'a ValueVersion)> {
    value.versions.iter().map(move |(number, version)| (kind, name, *number, version))
}

impl Service {
    /// The version of a value that one of its revisions is given.
    fn version_in(&self, revision: Revision, kind: ValueKind, name: &ValueName) -> impl Iterator<Item = u64> {
        let uses = self.revisions.get(&revision).into_iter().flat_map(|record| &record.spec.values);
        uses.filter(move |it| it.kind == kind && it.name == *name).map(|it| it.version)
    }

    /// Revisions that may run: the current one, the one that it would go back to, and those of its instances.
    fn living(&self) -> BTreeSet<Revision> {
        let placed = self.placements.iter().map(|placement| placement.revision);
        placed.chain(self.confirmed).chain([self.current]).collect()
    }
}

impl State {
    /// The version that a new value of this name gets. Never one that a revision names: what that revision was given is another value.
    pub fn next_version(&self, kind: ValueKind, name: &ValueName) -> u64 {
        let kept = self.values.of(kind).get(name).map(Value::newest);
        let named = self.services.values().flat_map(|service| {
            service.revisions.keys().flat_map(|revision| service.version_in(*revision, kind, name))
        });
        named.chain(kept).max().unwrap_or_default() + 1
    }

    /// Services whose current revision is given the value, and at which version.
    pub fn users_of(&self, kind: ValueKind, name: &ValueName) -> BTreeMap<&ServiceName, u64> {
        let version = |service: &Service| service.version_in(service.current, kind, name).max();
        self.services.values().filter_map(|service| Some((&service.name, version(service)?))).collect()
    }

    pub(super) fn set_value(
        &mut self,
        entry: &Entry,
        (kind, name): (ValueKind, &ValueName),
        version: u64,
        sealed: &Sealed,
        update: bool,
    ) -> Result<Applied, Rejected> {
        sealed.check()?;
        self.check_key(&sealed.key)?;
        let next = self.next_version(kind, name);
        if version != next {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("the {kind} `{name}` was changed meanwhile; its next version is {next}, try again"),
            ));
        }
        let known = self.values.of(kind).contains_key(name);
        if !known && self.values.secrets.len() + self.values.configs.len() >= VALUES_MAX {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("a cluster has at most {VALUES_MAX} secrets and configs; remove some first"),
            ));
        }
        let forgotten = self.make_room(kind, name, sealed.len())?;
        self.values.key.get_or_insert_with(|| sealed.key.clone());
        for (kind, name, version) in forgotten {
            if let Some(value) = self.values.of_mut(kind).get_mut(&name) {
                value.versions.remove(&version);
            }
        }
        let kept = ValueVersion { sealed: sealed.clone(), set_at: entry.at, set_by: entry.actor.name.clone() };
        self.values.of_mut(kind).entry(name.clone()).or_default().versions.insert(version, kept);
        let mut events = vec![Event::new(
            &format!("{kind}-set"),
            None,
            match version {
                1 => format!("The {kind} `{name}` was made."),
                _ => format!("The {kind} `{name}` has a new version, {version}."),
            },
        )];
        let updated = if update { self.bring_to(entry, kind, name, version) } else { Vec::new() };
        events.extend(updated.iter().map(|updated| {
            let ValueUpdated { service, revision } = updated;
            let message = format!("`{service}` gets version {version} of the {kind} `{name}` as revision {revision}.");
            Event::new("deployed", Some(service), message)
        }));
        Ok(Applied { outcome: Outcome::ValueSet { version, updated }, events })
    }

    /// Makes a revision with the new version of each service that has an older one.
    fn bring_to(&mut self, entry: &Entry, kind: ValueKind, name: &ValueName, version: u64) -> Vec<ValueUpdated> {
        let mut updated = Vec::new();
        for service in self.services.values_mut() {
            let mut spec = service.spec().clone();
            for it in spec.values.iter_mut().filter(|it| it.kind == kind && it.name == *name) {
                it.version = version;
            }
            if spec != *service.spec() {
                let note = format!("the {kind} `{name}` has a new version, {version}");
                let revision = service.push(entry, spec, None, Some(note));
                updated.push(ValueUpdated { service: service.name.clone(), revision });
            }
        }
        updated
    }

    /// Versions to forget, so that another one of this many bytes finds room.
    fn make_room(
        &self,
        kind: ValueKind,
        name: &ValueName,
        bytes: usize,
    ) -> Result<Vec<(ValueKind, ValueName, u64)>, Rejected> {
        // What no instance may need any more; the newest of each other value stays whatever comes.
        let mut idle: Vec<_> = self
            .values
            .versions()
            .filter(|(of, it, version, _)| {
                let replaced = (*of, *it) == (kind, name) || self.values.of(*of)[*it].newest() != *version;
                replaced && !self.is_needed(*of, it, *version)
            })
            .collect();
        idle.sort_by_key(|(of, it, number, version)| (version.set_at, *of, *it, *number));
        let versions = self.values.of(kind).get(name).map_or(0, |value| value.versions.len());
        let mut surplus = (versions + 1).saturating_sub(VERSIONS_KEPT);
        let mut left = self.values.bytes() + bytes;
        let mut forgotten = Vec::new();
        // First of the value itself, then of whichever is the oldest.
        for own in [true, false] {
            idle.retain(|(of, it, number, version)| {
                let is_own = (*of, *it) == (kind, name);
                let goes = if own { is_own && surplus > 0 } else { left > VALUES_BYTES_MAX };
                if goes {
                    surplus = surplus.saturating_sub(usize::from(is_own));
                    left -= version.sealed.len();
                    forgotten.push((*of, (*it).clone(), *number));
                }
                !goes
            });
        }
        if left > VALUES_BYTES_MAX {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!(
                    "secrets and configs would have {} KiB together, and at most {} are kept; remove some first",
                    left.div_ceil(1024),
                    VALUES_BYTES_MAX / 1024
                ),
            ));
        }
        Ok(forgotten)
    }

    /// May an instance of some service still be given this version?
    fn is_needed(&self, kind: ValueKind, name: &ValueName, version: u64) -> bool {
        self.services.values().any(|service| {
            // One that has not proved itself yet may still do so, and be what is gone back to.
            let newer = service.revisions.keys().filter(|revision| Some(**revision) > service.confirmed).copied();
            let mut revisions = service.living().into_iter().chain(newer);
            revisions.any(|revision| service.version_in(revision, kind, name).any(|it| it == version))
        })
    }

    pub(super) fn remove_value(&mut self, kind: ValueKind, name: &ValueName) -> Result<Applied, Rejected> {
        if !self.values.of(kind).contains_key(name) {
            return Err(unknown_value(kind, name));
        }
        let current: Vec<&ServiceName> = self.users_of(kind, name).into_keys().collect();
        if !current.is_empty() {
            let verb = if current.len() == 1 { "uses" } else { "use" };
            return Err(Rejected::new(
                ErrorCode::ValueInUse,
                format!(
                    "the {kind} `{name}` can't be removed while {} {verb} it; deploy without it first",
                    dependency::listed(current)
                ),
            ));
        }
        let uses = |service: &&Service| {
            service.living().into_iter().any(|revision| service.version_in(revision, kind, name).next().is_some())
        };
        if let Some(service) = self.services.values().find(uses) {
            return Err(Rejected::new(
                ErrorCode::ValueInUse,
                format!(
                    "the {kind} `{name}` can't be removed yet: `{}` goes back to a revision that uses it until the current one \
                     runs well; try again then",
                    service.name
                ),
            ));
        }
        self.values.of_mut(kind).remove(name);
        Ok(Applied::done(Event::new(
            &format!("{kind}-removed"),
            None,
            format!("The {kind} `{name}` was removed, with all of its versions."),
        )))
    }

    pub(super) fn use_value_key(&mut self, key: &KeyId, instead_of: Option<&KeyId>) -> Result<Applied, Rejected> {
        if self.values.key.as_ref() != instead_of || instead_of == Some(key) {
            return Err(Rejected::new(ErrorCode::Conflict, "the key of secrets was changed meanwhile; try again"));
        }
        if key.0.is_empty() || key.0.len() > 64 {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "a key needs an id of at most 64 characters"));
        }
        self.values.key = Some(key.clone());
        Ok(Applied::done(Event::new(
            "value-key-changed",
            None,
            format!("Secrets and configs are sealed with a new key, {key}, from now on."),
        )))
    }

    /// The same value under the key of now.
    pub(super) fn reseal_value(
        &mut self,
        (kind, name): (ValueKind, &ValueName),
        version: u64,
        sealed: &Sealed,
        instead_of: Option<&KeyId>,
    ) -> Result<Applied, Rejected> {
        sealed.check()?;
        self.check_key(&sealed.key)?;
        let kept = self.values.of_mut(kind).get_mut(name).and_then(|value| value.versions.get_mut(&version));
        let meant = |kept: &&mut ValueVersion| instead_of.is_none_or(|key| kept.sealed.key == *key);
        let Some(kept) = kept.filter(meant) else { return Err(unknown_version(kind, name, version)) };
        if kept.sealed.len() != sealed.len() {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "what is sealed anew has to be the same value"));
        }
        kept.sealed = sealed.clone();
        Ok(Applied::done(Event::new(
            "value-resealed",
            None,
            format!("Version {version} of the {kind} `{name}` was sealed with the new key."),
        )))
    }

    fn check_key(&self, key: &KeyId) -> Result<(), Rejected> {
        match &self.values.key {
            Some(known) if known != key => Err(Rejected::new(
                ErrorCode::Conflict,
                "secrets and configs are sealed with another key by now; try again",
            )),
            _ => Ok(()),
        }
    }

    /// The specifications with the newest version of each value that they name.
    pub(super) fn pinned(&self, services: &[ServiceSpec]) -> Result<Vec<ServiceSpec>, Rejected> {
        let mut services = services.to_vec();
        for spec in &mut services {
            if spec.values.len() > VALUE_USES_MAX {
                return Err(Rejected::new(
                    ErrorCode::InvalidRequest,
                    format!("`{}` is given more than {VALUE_USES_MAX} secrets and configs; use fewer", spec.name),
                ));
            }
            for ValueUse { kind, name, version, .. } in &mut spec.values {
                let value = self.values.of(*kind).get(name).ok_or_else(|| {
                    Rejected::new(
                        ErrorCode::ValueNotFound,
                        format!(
                            "`{}` uses the {kind} `{name}`, which the cluster does not have; make it with `flotilla {kind} set {name}`",
                            spec.name
                        ),
                    )
                })?;
                *version = value.newest();
            }
        }
        Ok(services)
    }

    /// Everything that a revision was given is still kept.
    pub(super) fn check_versions(&self, spec: &ServiceSpec, revision: Revision) -> Result<(), Rejected> {
        let gone = spec.values.iter().find(|it| self.values.version(it.kind, &it.name, it.version).is_none());
        let Some(ValueUse { kind, name, version, .. }) = gone else { return Ok(()) };
        Err(Rejected::new(
            ErrorCode::ValueNotFound,
            format!(
                "revision {revision} of `{}` was given version {version} of the {kind} `{name}`, which is no longer kept; choose a \
                 newer revision",
                spec.name
            ),
        ))
    }
}

pub fn unknown_value(kind: ValueKind, name: &ValueName) -> Rejected {
    Rejected::new(
        ErrorCode::ValueNotFound,
        format!("there is no {kind} `{name}`; `flotilla {kind} ls` lists those that there are"),
    )
}

pub fn unknown_version(kind: ValueKind, name: &ValueName, version: u64) -> Rejected {
    Rejected::new(
        ErrorCode::ValueNotFound,
        format!(
            "there is no version {version} of the {kind} `{name}`; `flotilla {kind} inspect {name}` lists those that are kept"
        ),
    )
}
