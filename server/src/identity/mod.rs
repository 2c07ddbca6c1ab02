//! The data directory and the keys in it.
//!
//! ```text
//! <data>/            0700
//!   lock             held by the daemon as long as it runs; holds its process id
//!   keys/node.pem    Ed25519, PKCS#8: who this node is
//!   keys/cluster.pem Ed25519, PKCS#8: signs the cluster's tokens
//!   keys/webrtc.pem  certificate and key of the WebRTC connections
//!   keys/values.json what secrets and configs are sealed with
//!   joined.json      on a machine that joined: what it was told of the cluster then
//!   state.db         the state log
//!   uploads/         image archives on their way to the engine
//!   volumes/         the services' volumes
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, spki::der::pem::LineEnding},
};
use flotilla_api::NodeId;
use sha2::{Digest, Sha256};

/// Bytes of a key file. A PEM file with certificate and key has about 1 KiB.
const KEY_FILE_MAX: u64 = 64 * 1024;

/// The public half of the cluster's key, where the other one is not.
const PUBLIC: &str = "cluster.pub";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {action} `{path}`: {source}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the data directory `{path}` is in use by {holder}; stop it first, or choose another with --data-dir", path = path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("`{path}` is no directory; choose another data directory with --data-dir", path = path.display())]
    NotADirectory { path: PathBuf },
    #[error("there is no cluster in `{path}`; make one with `flotilla init`", path = path.display())]
    NotInitialised { path: PathBuf },
    #[error("there is a cluster in `{path}` already; choose another data directory to make a new one", path = path.display())]
    AlreadyInitialised { path: PathBuf },
    #[error("the key in `{path}` is damaged ({what}); restore the file from a backup", path = path.display())]
    DamagedKey { path: PathBuf, what: String },
    #[error("`{path}` has {most} keys, and a cluster may have no more; none of them can be forgotten", path = path.display())]
    TooManyKeys { path: PathBuf, most: usize },
    #[error("failed to make the certificate for WebRTC: {0}")]
    Certificate(String),
}

/// A data directory that this process holds alone, until this value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is missing (mode 0700) and takes its lock.
    ///
    /// # Errors
    /// Names the process that holds the lock.
    pub fn open(path: &Path) -> Result<Self, Error> {
        create_directory(path)?;
        let lock_path = path.join("lock");
        let failed = |action| {
            let path = lock_path.clone();
            move |source| Error::Io { action, path, source }
        };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("open"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The holder may not have written its id yet.
                let _ = (&lock).take(32).read_to_string(&mut pid);
                let holder = match pid.trim().parse::<u32>() {
                    Ok(pid) => format!("another flotilla process (pid {pid})"),
                    Err(_) => "another flotilla process".to_owned(),
                };
                return Err(Error::InUse { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        // Not synced and allowed to fail on a full disk: the lock is what counts, the number is for people.
        let _ = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        for directory in ["keys", "uploads", "volumes"] {
            create_directory(&path.join(directory))?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn state(&self) -> PathBuf {
        self.path.join("state.db")
    }

    pub fn joined(&self) -> PathBuf {
        self.path.join("joined.json")
    }

    pub fn uploads(&self) -> PathBuf {
        self.path.join("uploads")
    }

    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// The keys of secrets and configs.
    pub fn value_keys(&self) -> PathBuf {
        self.key("values.json")
    }

    fn key(&self, name: &str) -> PathBuf {
        self.path.join("keys").join(name)
    }
}

/// The keys of this node, and the one that signs the cluster's tokens.
pub struct Identity {
    pub node: SigningKey,
    pub cluster: ClusterKey,
    /// Certificate and private key, as the WebRTC library writes them.
    pub webrtc_pem: String,
}

/// The key that signs the cluster's tokens, as far as a machine has it.
#[derive(Clone, PartialEq, Eq)]
pub enum ClusterKey {
    Private(SigningKey),
    /// A machine that only stores can check what the others sign, and sign nothing.
    Public(VerifyingKey),
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.private().is_some() { "Private" } else { "Public" };
        write!(f, "ClusterKey::{kind}({})", node_id(&self.public()))
    }
}

impl ClusterKey {
    pub fn private(&self) -> Option<&SigningKey> {
        match self {
            Self::Private(key) => Some(key),
            Self::Public(_) => None,
        }
    }

    pub fn public(&self) -> VerifyingKey {
        match self {
            Self::Private(key) => key.verifying_key(),
            Self::Public(key) => *key,
        }
    }
}

/// The keys that a machine has before it has a cluster.
pub struct NodeKeys {
    pub node: SigningKey,
    pub webrtc_pem: String,
}

impl std::fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKeys").field("node", &node_id(&self.node.verifying_key())).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("node", &self.node_id()).finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes the keys that are not there yet, on disk when this returns, so that a start that was cut short can be repeated.
    /// `certificate` makes the certificate and key for WebRTC.
    ///
    /// # Errors
    /// Keys that are there and damaged are not replaced.
    pub fn create(directory: &DataDir, certificate: impl FnOnce() -> Result<String, String>) -> Result<Self, Error> {
        Self::create_node(directory, certificate)?;
        let path = directory.key("cluster.pem");
        if !path.exists() {
            write_key(&path, &SigningKey::generate(&mut rand::rng()))?;
        }
        Self::load(directory)
    }

    /// As [`create`](Self::create), for a machine that has no cluster yet.
    ///
    /// # Errors
    /// Keys that are there and damaged are not replaced.
    pub fn create_node(
        directory: &DataDir,
        certificate: impl FnOnce() -> Result<String, String>,
    ) -> Result<NodeKeys, Error> {
        let webrtc = directory.key("webrtc.pem");
        if !webrtc.exists() {
            write_private(&webrtc, certificate().map_err(Error::Certificate)?.as_bytes())?;
        }
        let node = directory.key("node.pem");
        if !node.exists() {
            write_key(&node, &SigningKey::generate(&mut rand::rng()))?;
        }
        Ok(NodeKeys { node: read_key(&node)?, webrtc_pem: read_text(&webrtc)? })
    }

    /// Keeps the key of the cluster that this machine joined.
    ///
    /// # Errors
    /// It can't be written.
    pub fn keep_cluster_key(directory: &DataDir, key: &ClusterKey) -> Result<(), Error> {
        match key {
            ClusterKey::Private(key) => write_key(&directory.key("cluster.pem"), key),
            ClusterKey::Public(key) => {
                let path = directory.key(PUBLIC);
                let pem = key
                    .to_public_key_pem(LineEnding::LF)
                    .map_err(|error| Error::DamagedKey { path: path.clone(), what: error.to_string() })?;
                write_private(&path, pem.as_bytes())
            }
        }
    }

    /// # Errors
    /// Keys that are missing or damaged.
    pub fn load(directory: &DataDir) -> Result<Self, Error> {
        let (private, public) = (directory.key("cluster.pem"), directory.key(PUBLIC));
        let cluster = match (private.exists(), public.exists()) {
            (true, _) => ClusterKey::Private(read_key(&private)?),
            (false, true) => ClusterKey::Public(
                VerifyingKey::from_public_key_pem(&read_text(&public)?)
                    .map_err(|error| Error::DamagedKey { path: public, what: error.to_string() })?,
            ),
            (false, false) => return Err(Error::NotInitialised { path: directory.path.clone() }),
        };
        Ok(Self {
            node: read_key(&directory.key("node.pem"))?,
            cluster,
            webrtc_pem: read_text(&directory.key("webrtc.pem"))?,
        })
    }

    pub fn node_id(&self) -> NodeId {
        node_id(&self.node.verifying_key())
    }

    /// Whose directory it is, also while its daemon holds it.
    ///
    /// # Errors
    /// There is no key, or it is damaged.
    pub fn node_id_in(data_dir: &Path) -> Result<NodeId, Error> {
        read_key(&data_dir.join("keys").join("node.pem")).map(|key| node_id(&key.verifying_key()))
    }

    /// Public half of the node's key, base64url without padding.
    pub fn node_key(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.node.verifying_key().as_bytes())
    }

    /// Public half of the key that signs tokens, base64url without padding.
    pub fn cluster_key(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.cluster.public().as_bytes())
    }
}

/// The id of the node with this key, and the fingerprint of any other key.
pub(crate) fn node_id(key: &VerifyingKey) -> NodeId {
    NodeId(hexadecimal(&Sha256::digest(key.as_bytes())[..16]))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;

    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Takes away what others may do with an existing directory, too.
fn create_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => Error::NotADirectory { path: path.to_owned() },
        _ => Error::Io { action: "make the directory", path: path.to_owned(), source },
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|source| Error::Io {
        action: "restrict the directory",
        path: path.to_owned(),
        source,
    })
}

/// Writes beside, syncs, renames, syncs the directory: after a power loss there is the whole file or none.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&beside);
        Error::Io { action: "write", path: path.to_owned(), source }
    })
}

fn write_key(path: &Path, key: &SigningKey) -> Result<(), Error> {
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|error| Error::DamagedKey { path: path.to_owned(), what: error.to_string() })?;
    write_private(path, pem.as_bytes())
}

fn read_key(path: &Path) -> Result<SigningKey, Error> {
    SigningKey::from_pkcs8_pem(&read_text(path)?)
        .map_err(|error| Error::DamagedKey { path: path.to_owned(), what: error.to_string() })
}

fn read_text(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(KEY_FILE_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> Result<String, String> {
        Ok("certificate".to_owned())
    }

    #[test]
    fn keys_stay_the_same_and_are_for_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let made = {
            let data = DataDir::open(&path).unwrap();
            Identity::create(&data, certificate).unwrap()
        };
        let data = DataDir::open(&path).unwrap();
        let read = Identity::load(&data).unwrap();
        assert_eq!(read.node, made.node);
        assert_eq!(read.cluster, made.cluster);
        assert_eq!(read.webrtc_pem, "certificate");
        assert_eq!(read.node_id(), made.node_id());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for name in ["node.pem", "cluster.pem", "webrtc.pem"] {
            assert_eq!(fs::metadata(data.key(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_second_process_is_refused_and_told_who_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = DataDir::open(directory.path()).unwrap();
        let error = DataDir::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(first);
        DataDir::open(directory.path()).unwrap();
    }

    #[test]
    fn keys_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path()).unwrap();
        assert!(matches!(Identity::load(&data), Err(Error::NotInitialised { .. })));
        let first = Identity::create(&data, certificate).unwrap();
        fs::remove_file(data.key("cluster.pem")).unwrap();
        let second = Identity::create(&data, certificate).unwrap();
        assert_eq!(first.node, second.node, "a key that was there was replaced");
        assert_ne!(first.cluster, second.cluster);
    }

    #[test]
    fn a_machine_that_only_stores_has_the_public_half_alone() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path()).unwrap();
        Identity::create_node(&data, certificate).unwrap();
        let cluster = SigningKey::generate(&mut rand::rng());
        Identity::keep_cluster_key(&data, &ClusterKey::Public(cluster.verifying_key())).unwrap();
        let read = Identity::load(&data).unwrap();
        assert!(read.cluster.private().is_none());
        assert_eq!(read.cluster.public(), cluster.verifying_key());
        assert!(!data.key("cluster.pem").exists());
        fs::write(data.key(PUBLIC), "nothing").unwrap();
        assert!(matches!(Identity::load(&data), Err(Error::DamagedKey { .. })));
    }

    #[test]
    fn a_damaged_key_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path()).unwrap();
        Identity::create(&data, certificate).unwrap();
        fs::write(data.key("node.pem"), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        let error = Identity::load(&data).unwrap_err();
        assert!(matches!(&error, Error::DamagedKey { path, .. } if path.ends_with("node.pem")), "{error}");
    }

    #[test]
    fn a_file_is_no_data_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::open(file.path()).unwrap_err();
        assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
    }
}
