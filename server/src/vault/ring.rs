//! The keys that secrets and configs are sealed with, in a file of mode 0600 beside the node's other keys.
//!
//! There is more than one only after the key was changed: the state may still hold what an older one sealed, and so may a copy of it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use flotilla_api::{ValueName, spec::ValueKind};
use flotilla_core::state::{KeyId, SEAL_BYTES, Sealed};
use flotilla_data::seal;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    identity::{self, hexadecimal, write_private},
    volumes::key_id as sealing_id,
};

const VERSION: u32 = 1;

/// Keys that a cluster may have had. It gets a new one when a machine was removed, which is seldom; and none is ever forgotten: a copy of
/// the state, or what is kept of a volume, may need any of them.
pub(super) const KEYS_MAX: usize = 256;

/// Bytes of the file; a key has 44 characters in it.
const FILE_MAX: u64 = 64 * 1024;

const NONCE_LEN: usize = 24;

/// A key as it travels between machines and lies in the file: base64.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct KeyText(String);

impl Drop for KeyText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(…)")
    }
}

/// One key of the cluster.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) id: KeyId,
    bytes: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Key {
    pub(super) fn generate() -> Self {
        Self::of(Zeroizing::new(rand::rng().random()))
    }

    fn of(bytes: Zeroizing<[u8; 32]>) -> Self {
        // A key is 256 random bits: nobody finds it by a part of its hash.
        let hash = Sha256::new().chain_update(b"flotilla key of values\0").chain_update(*bytes).finalize();
        Self { id: KeyId(hexadecimal(&hash[..8])), bytes }
    }

    pub(super) fn read(text: &KeyText) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.0.as_bytes()).ok()?);
        let bytes: [u8; 32] = bytes.as_slice().try_into().ok()?;
        Some(Self::of(Zeroizing::new(bytes)))
    }

    pub(super) fn text(&self) -> KeyText {
        KeyText(BASE64_STANDARD.encode(*self.bytes))
    }

    /// Seals a value so that it opens as this version of this name alone.
    pub(super) fn seal(&self, of: Which<'_>, plain: &[u8]) -> Sealed {
        let nonce: [u8; NONCE_LEN] = rand::rng().random();
        let payload = Payload { msg: plain, aad: &of.associated() };
        // It fails only beyond 256 GiB; the state takes nothing that is as short as what is left then.
        let sealed = self.cipher().encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        let bytes = [nonce.as_slice(), &sealed].concat();
        Sealed { key: self.id.clone(), bytes: base64::prelude::BASE64_STANDARD_NO_PAD.encode(bytes).into() }
    }

    /// `None` if the key is another, or what was sealed is not this, or was changed.
    pub(super) fn open(&self, of: Which<'_>, sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = base64::prelude::BASE64_STANDARD_NO_PAD.decode(sealed.bytes.as_bytes()).ok()?;
        if bytes.len() < SEAL_BYTES {
            return None;
        }
        let (nonce, text) = bytes.split_at(NONCE_LEN);
        let nonce: [u8; NONCE_LEN] = nonce.try_into().ok()?;
        let payload = Payload { msg: text, aad: &of.associated() };
        self.cipher().decrypt(&XNonce::from(nonce), payload).ok().map(Zeroizing::new)
    }

    /// The key that what is kept of volumes is sealed with, under the same id.
    pub(super) fn of_data(&self) -> Option<seal::Key> {
        Some(seal::Key::derive(sealing_id(&self.id)?, &self.bytes))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&(*self.bytes).into())
    }
}

/// What is sealed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Which<'a> {
    pub(super) kind: ValueKind,
    pub(super) name: &'a ValueName,
    pub(super) version: u64,
}

impl Which<'_> {
    fn associated(&self) -> Vec<u8> {
        let Self { kind, name, version } = self;
        format!("flotilla value 1\n{kind}\n{name}\n{version}").into_bytes()
    }
}

/// The keys that this machine has, the newest last.
pub(super) struct KeyRing {
    path: PathBuf,
    keys: Vec<Key>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("keys", &self.keys).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    keys: Vec<KeyText>,
}

impl KeyRing {
    /// A machine that has no file has no key yet: it is of a cluster that was made before there were secrets.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub(super) fn load(path: &Path) -> Result<Self, identity::Error> {
        let damaged = |what: &str| identity::Error::DamagedKey { path: path.to_owned(), what: what.to_owned() };
        let failed = |source| identity::Error::Io { action: "read", path: path.to_owned(), source };
        let empty = Self { path: path.to_owned(), keys: Vec::new() };
        let bytes = match fs::metadata(path) {
            Ok(found) if found.len() > FILE_MAX => return Err(damaged("it is too large")),
            Ok(_) => Zeroizing::new(fs::read(path).map_err(failed)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty),
            Err(error) => return Err(failed(error)),
        };
        let file: File = serde_json::from_slice(&bytes).map_err(|_| damaged("it is not what was written there"))?;
        if file.version != VERSION {
            return Err(damaged("a newer Flotilla has written it"));
        }
        let keys: Option<Vec<Key>> = file.keys.iter().map(Key::read).collect();
        Ok(Self { keys: keys.ok_or_else(|| damaged("a key in it is cut short"))?, ..empty })
    }

    pub(super) fn find(&self, id: &KeyId) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == *id)
    }

    pub(super) fn newest(&self) -> Option<&Key> {
        self.keys.last()
    }

    pub(super) fn all(&self) -> &[Key] {
        &self.keys
    }

    /// On disk when this returns.
    ///
    /// # Errors
    /// It can't be written, or there are more keys than a cluster may have.
    pub(super) fn keep(&mut self, new: impl IntoIterator<Item = Key>) -> Result<(), identity::Error> {
        let mut keys = self.keys.clone();
        for key in new {
            if keys.iter().all(|known| known.id != key.id) {
                keys.push(key);
            }
        }
        if keys.len() == self.keys.len() {
            return Ok(());
        }
        if keys.len() > KEYS_MAX {
            return Err(identity::Error::TooManyKeys { path: self.path.clone(), most: KEYS_MAX });
        }
        let file = File { version: VERSION, keys: keys.iter().map(Key::text).collect() };
        let bytes = serde_json::to_vec(&file).map(Zeroizing::new).map_err(|error| identity::Error::Io {
            action: "write",
            path: self.path.clone(),
            source: io::Error::other(error),
        })?;
        write_private(&self.path, &bytes)?;
        self.keys = keys;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn which(name: &ValueName) -> Which<'_> {
        Which { kind: ValueKind::Secret, name, version: 3 }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_as_itself_and_as_nothing_else(plain in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let (key, name, other) = (Key::generate(), "db".parse().unwrap(), "db2".parse().unwrap());
            let sealed = key.seal(which(&name), &plain);
            prop_assert_eq!(sealed.len(), plain.len());
            let opened = key.open(which(&name), &sealed).unwrap();
            prop_assert_eq!(opened.as_slice(), plain.as_slice());
            prop_assert!(key.open(which(&other), &sealed).is_none(), "under another name");
            prop_assert!(key.open(Which { version: 4, ..which(&name) }, &sealed).is_none(), "as another version");
            prop_assert!(key.open(Which { kind: ValueKind::Config, ..which(&name) }, &sealed).is_none(), "as a config");
            prop_assert!(Key::generate().open(which(&name), &sealed).is_none(), "with another key");
            let mut bytes = sealed.bytes.as_bytes().to_vec();
            let at = at.index(bytes.len() - 1);
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = Sealed { bytes: String::from_utf8(bytes).unwrap().into(), ..sealed };
            prop_assert!(key.open(which(&name), &changed).is_none(), "changed at {}", at);
        }
    }

    #[test]
    fn one_value_is_never_sealed_twice_alike() {
        let (key, name) = (Key::generate(), "db".parse().unwrap());
        assert_ne!(key.seal(which(&name), b"x"), key.seal(which(&name), b"x"));
    }

    #[test]
    fn keys_stay_and_are_for_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("values.json");
        let mut ring = KeyRing::load(&path).unwrap();
        assert!(ring.newest().is_none());
        let keys: Vec<Key> = (0..3).map(|_| Key::generate()).collect();
        ring.keep(keys.clone()).unwrap();
        ring.keep([keys[0].clone()]).unwrap();
        let read = KeyRing::load(&path).unwrap();
        assert_eq!(
            read.all().iter().map(|key| &key.id).collect::<Vec<_>>(),
            keys.iter().map(|key| &key.id).collect::<Vec<_>>()
        );
        assert_eq!(read.newest().unwrap().id, keys[2].id);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        // None of them is ever forgotten.
        ring.keep((3..KEYS_MAX).map(|_| Key::generate())).unwrap();
        assert!(matches!(ring.keep([Key::generate()]), Err(identity::Error::TooManyKeys { .. })));
        assert_eq!(KeyRing::load(&path).unwrap().all().len(), KEYS_MAX);
        assert!(keys.iter().all(|key| ring.find(&key.id).is_some()));
    }

    #[test]
    fn the_key_of_data_has_the_same_name_and_is_another() {
        let key = Key::generate();
        let data = key.of_data().unwrap();
        assert_eq!(data.id().to_string(), key.id.0);
        assert!(!format!("{data:?}").contains(&key.text().0));
    }

    #[test]
    fn a_damaged_file_is_named_and_a_key_is_in_no_debug_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("values.json");
        for damaged in ["", "{}", r#"{"version":1,"keys":["AAAA"]}"#, r#"{"version":2,"keys":[]}"#] {
            fs::write(&path, damaged).unwrap();
            let error = KeyRing::load(&path).unwrap_err();
            assert!(
                matches!(&error, identity::Error::DamagedKey { path, .. } if path.ends_with("values.json")),
                "{error}"
            );
        }
        let key = Key::generate();
        let text = key.text().0.clone();
        assert!(!format!("{key:?} {:?}", key.text()).contains(&text));
    }
}
