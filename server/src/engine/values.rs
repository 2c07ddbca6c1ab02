//! Secrets and configs on their way into containers.
//!
//! A file lies in memory: on a tmpfs of the machine, in a directory for its service's revision, which each container of that revision
//! sees a part of. What is mounted has to be there when a container is made, so an empty file is put there first; the value is
//! written just before the container starts, each time. After a reboot that is how it comes back, and a container that only stands by
//! has none. When no container of the revision is left, the directory goes.
//!
//! ```text
//! /run/flotilla/values/<cluster>/<node>/<service>-<revision>/<number>
//! ```

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use bollard::{models::Mount, query_parameters::ListContainersOptions};
use flotilla_api::{
    ApiError, ErrorCode, NodeId, Revision, ServiceName, ValueName,
    spec::{Given, ServiceSpec, ValueKind, ValueUse},
};
use futures::future::BoxFuture;
use tokio::sync::{RwLock, RwLockReadGuard};

use super::{
    Error, Shared,
    connection::{CALL_LIMIT, Client},
    container,
    labels::{self, Owner},
};
use crate::vault::Opened;

/// Who opens secrets and configs.
pub trait Values: Send + Sync + fmt::Debug + 'static {
    fn reveal<'a>(
        &'a self,
        kind: ValueKind,
        name: &'a ValueName,
        version: u64,
    ) -> BoxFuture<'a, Result<Opened, ApiError>>;
}

/// There are none.
#[derive(Debug)]
pub struct NoValues;

impl Values for NoValues {
    fn reveal<'a>(&'a self, kind: ValueKind, name: &'a ValueName, _: u64) -> BoxFuture<'a, Result<Opened, ApiError>> {
        let error = ApiError::new(ErrorCode::ValueNotFound, format!("there is no {kind} `{name}`"));
        Box::pin(async { Err(error) })
    }
}

/// Where the files are, and who is at work on them.
#[derive(Debug)]
pub(super) struct Files {
    cluster: String,
    node: NodeId,
    /// Read by whoever makes a container, from its first file until it is there; written by whoever takes away what none has.
    busy: RwLock<()>,
}

/// What the engine is told of a service's values when a container is made.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) mounts: Vec<Mount>,
    /// `NAME=value`
    pub(super) variables: Vec<String>,
}

impl Files {
    pub(super) fn new(cluster: &str, node: &NodeId) -> Self {
        Self { cluster: cluster.to_owned(), node: node.clone(), busy: RwLock::default() }
    }

    /// To be held until the container is made.
    pub(super) async fn making(&self) -> RwLockReadGuard<'_, ()> {
        self.busy.read().await
    }

    fn of_node(&self) -> Result<PathBuf, Error> {
        Ok(base()?.join(&self.cluster).join(&self.node.0))
    }

    fn of_revision(&self, service: &ServiceName, revision: Revision) -> Result<PathBuf, Error> {
        Ok(self.of_node()?.join(directory_name(service, revision)))
    }
}

fn directory_name(service: &ServiceName, revision: Revision) -> String {
    format!("{service}-{revision}")
}

/// Where memory is that the engine sees, too: `/run` for a node that is root, as far as that is memory, else a directory of its user's.
fn base() -> Result<PathBuf, Error> {
    let uid = rustix::process::geteuid().as_raw();
    let path = if uid == 0 && is_memory(Path::new("/run"))? {
        PathBuf::from("/run/flotilla/values")
    } else {
        PathBuf::from(format!("/dev/shm/flotilla-{uid}"))
    };
    private_directory(&path)?;
    let metadata = fs::symlink_metadata(&path).map_err(|source| failed("look at", &path, source))?;
    // Anybody may make a directory in `/dev/shm`, and this one is to be ours alone.
    if !metadata.is_dir() || metadata.uid() != uid || metadata.permissions().mode() & 0o077 != 0 {
        let why = format!("`{}` belongs to somebody else, so no secret can lie there; remove it", path.display());
        return Err(Error::Values(why));
    }
    if !is_memory(&path)? {
        let why = format!("`{}` is on a disk, where no secret may lie; mount a tmpfs there", path.display());
        return Err(Error::Values(why));
    }
    Ok(path)
}

fn is_memory(path: &Path) -> Result<bool, Error> {
    // From linux/magic.h.
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    let found = rustix::fs::statfs(path).map_err(|source| failed("look at", path, source.into()))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a magic number has 32 bits")]
    let kind = found.f_type as u32;
    Ok([TMPFS, RAMFS].contains(&kind))
}

/// Makes what is to be mounted, empty where it is not there yet, and opens what becomes a variable.
pub(super) async fn told(shared: &Shared, spec: &ServiceSpec, revision: Revision) -> Result<Told, Error> {
    let mut told = Told::default();
    for (number, it) in spec.values.iter().enumerate() {
        match &it.given {
            Given::File { target, .. } => {
                let directory = shared.files.of_revision(&spec.name, revision)?;
                let path = directory.join(number.to_string());
                if told.mounts.is_empty() {
                    private_directory(&directory)?;
                }
                let mut options = fs::OpenOptions::new();
                options.write(true).create(true).truncate(false).mode(0o600);
                options.open(&path).map_err(|source| failed("make", &path, source))?;
                told.mounts.push(container::bind(&path, target, true));
            }
            Given::Variable(name) => {
                let opened = reveal(shared, it).await?;
                told.variables.push(format!("{name}={}", variable(it, opened.bytes())?));
            }
        }
    }
    Ok(told)
}

/// A shell takes the last line end off what it puts into a variable, and so do we.
fn variable<'a>(it: &ValueUse, bytes: &'a [u8]) -> Result<&'a str, Error> {
    /// As a compose file's variables (MAX_ARG_STRLEN), with room for the name.
    const VARIABLE_MAX: usize = 127 * 1024;
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0') && text.len() <= VARIABLE_MAX);
    let text = text.ok_or_else(|| {
        let ValueUse { kind, name, .. } = it;
        Error::Invalid(format!(
            "the {kind} `{name}` is no text of at most 127 KiB, so no variable can hold it; use a file"
        ))
    })?;
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(text)
}

/// Writes the files of a container that is about to start.
pub(super) async fn write(shared: &Shared, spec: &ServiceSpec, revision: Revision) -> Result<(), Error> {
    for (number, it) in spec.values.iter().enumerate() {
        let Given::File { uid, gid, mode, .. } = it.given else { continue };
        let opened = reveal(shared, it).await?;
        let directory = shared.files.of_revision(&spec.name, revision)?;
        // After a reboot nothing is there.
        private_directory(&directory)?;
        let path = directory.join(number.to_string());
        let wanted = Wanted { uid, gid, mode };
        let written = tokio::task::spawn_blocking(move || wanted.write(&path, opened.bytes()));
        written.await.map_err(|_| Error::Panicked)??;
    }
    Ok(())
}

async fn reveal(shared: &Shared, it: &ValueUse) -> Result<Opened, Error> {
    shared.values.reveal(it.kind, &it.name, it.version).await.map_err(Error::Data)
}

/// A file as it shall be.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
}

impl Wanted {
    fn write(self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        if self.is_so(path, bytes) {
            return Ok(());
        }
        // Another file takes the place: a container that runs goes on with its own.
        let beside = path.with_extension("new");
        let write = || {
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            io::Write::write_all(&mut file, bytes)?;
            fchown(&file, self.uid, self.gid)?;
            file.set_permissions(fs::Permissions::from_mode(self.mode))?;
            fs::rename(&beside, path)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&beside);
            match source.kind() {
                io::ErrorKind::PermissionDenied => Error::Invalid(
                    "the node is not root, so it can give a secret or config no other owner; leave `uid` and `gid` out"
                        .to_owned(),
                ),
                _ => failed("write", path, source),
            }
        })
    }

    fn is_so(self, path: &Path, bytes: &[u8]) -> bool {
        let owned = |wanted: Option<u32>, is: u32, usual: u32| is == wanted.unwrap_or(usual);
        let Ok(found) = fs::symlink_metadata(path) else { return false };
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        found.is_file()
            && found.permissions().mode() & 0o7777 == self.mode
            && owned(self.uid, found.uid(), uid)
            && owned(self.gid, found.gid(), gid)
            && found.len() == bytes.len() as u64
            && fs::read(path).is_ok_and(|present| present == bytes)
    }
}

/// Takes away the files of revisions that have no container any more, unless somebody is just making one.
pub(super) async fn sweep(shared: &Shared, client: &Client) -> Result<(), Error> {
    let Ok(_idle) = shared.files.busy.try_write() else { return Ok(()) };
    let root = shared.files.of_node()?;
    let present = directories(&root)?;
    if present.is_empty() {
        return Ok(());
    }
    let owner = shared.owner();
    let options = ListContainersOptions { all: true, filters: Some(owner.filter()), ..Default::default() };
    let listed = client.call("list its containers", CALL_LIMIT, client.docker().list_containers(Some(options))).await?;
    let used: BTreeSet<String> = listed.into_iter().filter_map(|it| used_by(&owner, &it.labels?)).collect();
    for name in present.difference(&used) {
        let path = root.join(name);
        fs::remove_dir_all(&path).map_err(|source| failed("delete", &path, source))?;
    }
    Ok(())
}

fn used_by(owner: &Owner, labels: &std::collections::HashMap<String, String>) -> Option<String> {
    let service = labels.get(labels::SERVICE)?.parse().ok()?;
    let revision = labels.get(labels::REVISION)?.parse().ok()?;
    owner.owns(labels).then(|| directory_name(&service, Revision(revision)))
}

fn directories(root: &Path) -> Result<BTreeSet<String>, Error> {
    match fs::read_dir(root) {
        Ok(entries) => {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
            names.collect::<io::Result<_>>().map_err(|source| failed("list", root, source))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(failed("list", root, error)),
    }
}

/// Takes away all files of a cluster, or of one of its nodes, whose containers are gone or have lost their power.
pub(super) fn take_away(cluster: &str, node: Option<&NodeId>) {
    let Ok(base) = base() else { return };
    let of_cluster = base.join(cluster);
    let path = node.map_or(of_cluster.clone(), |node| of_cluster.join(&node.0));
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "files of secrets could not be removed");
        }
        _ => {}
    }
    // The last one takes the cluster's with it; it is not empty otherwise.
    let _ = fs::remove_dir(&of_cluster);
}

fn private_directory(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.map_err(|source| failed("create the directory", path, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Directory { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(given: Given) -> ValueUse {
        ValueUse { kind: ValueKind::Secret, name: "db".parse().unwrap(), version: 1, given }
    }

    #[test]
    fn memory_is_memory_and_nobody_elses() {
        let base = base().unwrap();
        let metadata = fs::metadata(&base).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
        assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
    }

    #[test]
    fn a_file_is_written_as_it_shall_be_and_only_when_it_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0");
        fs::write(&path, "").unwrap();
        let wanted = Wanted { uid: None, gid: None, mode: 0o440 };
        wanted.write(&path, b"ahoy").unwrap();
        let first = fs::metadata(&path).unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), first.mode() & 0o7777), (&b"ahoy"[..], 0o440));
        wanted.write(&path, b"ahoy").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino(), "a container that runs would lose its file");
        wanted.write(&path, b"away").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"away");
        Wanted { mode: 0o400, ..wanted }.write(&path, b"away").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn a_variable_has_no_line_end_and_no_zero() {
        let it = user(Given::Variable("X".to_owned()));
        for (bytes, text) in [(&b"a"[..], "a"), (b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"", "")] {
            assert_eq!(variable(&it, bytes).unwrap(), text);
        }
        for bad in [&b"a\0"[..], b"\xff", &vec![b'a'; 128 * 1024]] {
            let error = variable(&it, bad).unwrap_err().to_string();
            assert!(error.contains("the secret `db`") && error.len() < 120, "{error}");
        }
    }
}
