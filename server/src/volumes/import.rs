//! Volumes that become what somebody brings: an archive, or a generation of another service.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, ServiceName, VolumeName};
use flotilla_core::state::{GenerationName, Phase};
use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    seal::KeyId,
    tree::{Root, Totals},
};
use futures::{Stream, TryStreamExt as _};
use tar::{Archive, EntryType};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Error, Volumes, blocking, layout, replica, sealing,
    writer::{Adoption, Word},
};
use crate::{bridge::Incoming, clock};

/// What an archive leaves free on the disk. Bytes.
const DISK_RESERVE: u64 = 1024 * 1024 * 1024;

/// The free space is looked at again after so many bytes.
const DISK_CHECK_EVERY: u64 = 64 * 1024 * 1024;

/// Whoever sends an archive and is quiet for so long is gone.
const SENDER_PATIENCE: Duration = Duration::from_secs(60);

/// Until the generation is made: everything else that the service has written may have to be read for it.
const ADOPTED_WITHIN: Duration = Duration::from_secs(600);

/// What a compressed archive begins with, and what compressed it.
const COMPRESSED: &[(&[u8], &str)] = &[
    (&[0x1f, 0x8b], "gzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"BZh", "bzip2"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
];

/// Why nothing was taken in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("no instance of `{0}` writes its volumes now; start it, and try again")]
    NotWritten(ServiceName),
    #[error("`{0}` is given something else already; wait until it has begun with that")]
    Busy(ServiceName),
    #[error("a generation of `{service}` could not be made; `flotilla volume ls` says why")]
    NotMade { service: ServiceName },
    #[error("the archive is compressed with {0}; unpack it to a plain tar archive first")]
    Compressed(&'static str),
    #[error("this is no tar archive: {0}")]
    NoArchive(io::Error),
    #[error("`{0}` in the archive leads out of the volume, or is a device; leave it out")]
    Outside(String),
    #[error("the sender was quiet for {} s; send the archive again", SENDER_PATIENCE.as_secs())]
    Quiet,
    #[error(
        "the archive needs more room than its machine's disk has; {free} bytes are free, and {DISK_RESERVE} stay so"
    )]
    DiskFull { free: u64 },
    #[error(
        "generation {name} of `{of}` has the volumes {has}, and `{service}` writes {writes}; their names have to match"
    )]
    NoMatch { of: ServiceName, name: GenerationName, has: String, service: ServiceName, writes: String },
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A volume's tree, which is in the store.
pub(super) type Tree = (Hash, Totals);

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let code = match &refused {
            Refused::NotWritten(_) | Refused::Busy(_) => ErrorCode::Conflict,
            Refused::NotMade { .. } => ErrorCode::ServiceUnavailable,
            Refused::Compressed(_) | Refused::NoArchive(_) | Refused::Outside(_) | Refused::NoMatch { .. } => {
                ErrorCode::InvalidRequest
            }
            Refused::Quiet => ErrorCode::Timeout,
            Refused::DiskFull { .. } => ErrorCode::DiskFull,
            Refused::Failed(_) => {
                let Refused::Failed(error) = refused else { unreachable!("it was looked at") };
                return error.into();
            }
        };
        Self::new(code, refused.to_string())
    }
}

impl Volumes {
    /// Makes a generation of a service that runs here in which a volume is what an archive has, and everything else as it is. It is not
    /// begun with.
    ///
    /// # Errors
    /// The archive can't be taken, or the service does not run here.
    pub async fn import<E>(
        &self,
        service: &ServiceName,
        volume: &VolumeName,
        archive: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    ) -> Result<GenerationName, Refused>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.epoch_here(service)?;
        let bytes = Incoming::of(archive.map_err(io::Error::other), SENDER_PATIENCE);
        let (store, data_dir) = (self.shared.store.clone(), self.shared.parts.data_dir.clone());
        let (key, live) =
            (layout::import_key(service, volume), layout::directory(&self.shared.parts.data_dir, service, volume));
        let named = key.clone();
        let seal = sealing::seal_of(&self.shared.parts.state.borrow(), service, volume)?;
        let unpacked = tokio::task::spawn_blocking(move || {
            let directory = layout::importing(&data_dir).map_err(|source| Error::file("create", &data_dir, source))?;
            unpack(bytes, directory.path(), &live)?;
            let capture = Capture::begin_sealed(&store, &named, directory.path(), seal).map_err(Error::from)?;
            let captured = capture.finish(&Scope::Everything).map_err(Error::from)?;
            let tree = (captured.root, captured.totals);
            captured.commit(1, 1, clock::now().0).map_err(Error::from)?;
            Ok::<Tree, Refused>(tree)
        });
        let tree = unpacked.await.unwrap_or(Err(Refused::Failed(Error::Panicked)))?;
        let adopted = self.adopt(service, BTreeMap::from([(volume.clone(), tree)])).await;
        let store = self.shared.store.clone();
        blocking(move || Ok(store.forget_volume(&key)?)).await?;
        adopted
    }

    /// Makes a generation of a service that runs here, in which volumes are as in a generation of another one. It is not begun with.
    ///
    /// # Errors
    /// The volumes do not match, nobody has that generation, or the service does not run here.
    pub async fn adopt_from(
        &self,
        service: &ServiceName,
        of: &ServiceName,
        name: GenerationName,
    ) -> Result<GenerationName, Refused> {
        self.epoch_here(service)?;
        let state = self.shared.parts.state.borrow().clone();
        if !self.shared.has_all(&state, of, name).await? {
            replica::recall(&self.shared, of, name).await?;
        }
        let kept = self.shared.kept(of, name).await?;
        let (kept, _) = kept.ok_or_else(|| Error::NotHere { service: of.clone(), name })?;
        let writes: BTreeSet<&VolumeName> = state
            .services
            .get(service)
            .into_iter()
            .flat_map(|service| service.spec().written().map(|mount| &mount.volume))
            .collect();
        let has: BTreeSet<&VolumeName> = kept.roots.keys().collect();
        let pairs: Vec<(&VolumeName, &VolumeName)> = match (has.len(), writes.len()) {
            (1, 1) => has.iter().zip(&writes).map(|(from, to)| (*from, *to)).collect(),
            _ if has.is_subset(&writes) => has.iter().map(|volume| (*volume, *volume)).collect(),
            _ => {
                let listed = |names: &BTreeSet<&VolumeName>| flotilla_core::listed(names.iter());
                let (has, writes) = (listed(&has), listed(&writes));
                return Err(Refused::NoMatch { of: of.clone(), name, has, service: service.clone(), writes });
            }
        };
        let roots: Vec<(VolumeName, Hash)> =
            pairs.iter().filter_map(|(from, to)| Some(((*to).clone(), kept.roots[*from].parse().ok()?))).collect();
        let seals = {
            let seal = |(volume, _): &(VolumeName, Hash)| sealing::seal_of(&state, service, volume);
            roots.iter().map(seal).collect::<Result<Vec<_>, _>>()?
        };
        let (store, data_dir, name) = (self.shared.store.clone(), self.shared.parts.data_dir.clone(), service.clone());
        let trees = blocking(move || {
            let tree = |((volume, root), seal): ((VolumeName, Hash), Option<KeyId>)| {
                let tree = (root, Root::read(&store, &root)?.totals);
                let tree = sealing::as_kept(&store, &data_dir, (&name, &volume), seal, tree)?;
                Ok((volume, tree))
            };
            roots.into_iter().zip(seals).map(tree).collect::<Result<BTreeMap<_, _>, Error>>()
        });
        let trees = trees.await?;
        let brought: Vec<String> = trees.keys().map(|volume| layout::import_key(service, volume)).collect();
        let adopted = self.adopt(service, trees).await;
        let store = self.shared.store.clone();
        blocking(move || brought.iter().try_for_each(|key| Ok(store.forget_volume(key)?))).await?;
        adopted
    }

    /// Under which a service writes its volumes here.
    fn epoch_here(&self, service: &ServiceName) -> Result<u64, Refused> {
        let state = self.shared.parts.state.borrow();
        let placed = state.services.get(service).and_then(|known| {
            let mut placements = known.placed_on(&self.shared.parts.node);
            placements.find(|placement| placement.exclusive && placement.phase == Phase::Active)
        });
        let epoch = placed.map(|placement| placement.epoch);
        let begun = self.shared.begun.borrow().get(service).copied();
        epoch.filter(|epoch| begun == Some(*epoch)).ok_or_else(|| Refused::NotWritten(service.clone()))
    }

    async fn adopt(&self, service: &ServiceName, trees: BTreeMap<VolumeName, Tree>) -> Result<GenerationName, Refused> {
        let epoch = self.epoch_here(service)?;
        let words = self.shared.writers().get(&epoch).cloned();
        let words = words.ok_or_else(|| Refused::NotWritten(service.clone()))?;
        let (answer, answered) = oneshot::channel();
        let told = words.send(Word::Adopt(Adoption { trees, answer })).await;
        told.map_err(|_| Refused::NotWritten(service.clone()))?;
        let made = timeout(ADOPTED_WITHIN, answered).await;
        match made.map_err(|_| Refused::NotMade { service: service.clone() })? {
            Ok(Some(name)) => Ok(name),
            Ok(None) => Err(Refused::Busy(service.clone())),
            Err(_) => Err(Refused::NotMade { service: service.clone() }),
        }
    }
}

/// Puts into a new directory what an archive has. What the archive does not say of the directory itself is as it is `like`.
fn unpack(bytes: impl Read, into: &Path, like: &Path) -> Result<(), Refused> {
    let failed = |operation, source| Refused::Failed(Error::file(operation, into, source));
    if let Ok(like) = fs::metadata(like) {
        fs::set_permissions(into, fs::Permissions::from_mode(like.mode() & 0o7777))
            .and_then(|()| match rustix::process::geteuid().is_root() {
                true => std::os::unix::fs::chown(into, Some(like.uid()), Some(like.gid())),
                false => Ok(()),
            })
            .map_err(|source| failed("set the owner of", source))?;
    }
    let mut bytes = Measured { inner: bytes, directory: into.to_owned(), since: 0, full: None };
    let mut first = [0; 6];
    let len = read_up_to(&mut bytes, &mut first).map_err(|error| told(&bytes, error))?;
    if let Some((_, by)) = COMPRESSED.iter().find(|(magic, _)| first[..len].starts_with(magic)) {
        return Err(Refused::Compressed(by));
    }
    let unpacked = {
        let mut archive = Archive::new(Read::chain(&first[..len], &mut bytes));
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
        archive.set_unpack_xattrs(true);
        unpack_all(&mut archive, into)
    };
    match unpacked {
        Ok(()) => Ok(()),
        Err(Trouble::Outside(path)) => Err(Refused::Outside(path)),
        Err(Trouble::Failed(error)) => Err(told(&bytes, error)),
    }
}

enum Trouble {
    Outside(String),
    Failed(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

fn unpack_all(archive: &mut Archive<impl Read>, into: &Path) -> Result<(), Trouble> {
    // Their times and rights come last: a directory that nobody may write to is filled first.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).chars().take(200).collect::<String>();
        match entry.header().entry_type() {
            EntryType::Directory => directories.push(entry),
            EntryType::Char | EntryType::Block => return Err(Trouble::Outside(path)),
            _ if entry.unpack_in(into)? => {}
            _ => return Err(Trouble::Outside(path)),
        }
    }
    directories.sort_by(|one, other| other.path_bytes().cmp(&one.path_bytes()));
    for mut directory in directories {
        if !directory.unpack_in(into)? {
            let path = directory.path_bytes();
            return Err(Trouble::Outside(String::from_utf8_lossy(&path).chars().take(200).collect()));
        }
    }
    Ok(())
}

fn told<R>(bytes: &Measured<R>, error: io::Error) -> Refused {
    if let Some(free) = bytes.full {
        return Refused::DiskFull { free };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => return Refused::Quiet,
            Some(io::ErrorKind::StorageFull) => {
                return Refused::Failed(Error::file("write", &bytes.directory, io::ErrorKind::StorageFull.into()));
            }
            _ => cause = error.source(),
        }
    }
    Refused::NoArchive(error)
}

fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match from.read(&mut buffer[len..])? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

/// Reads as long as there is room for what comes.
struct Measured<R> {
    inner: R,
    directory: PathBuf,
    /// Bytes since the free space was looked at.
    since: u64,
    /// Bytes that were free when it was too little.
    full: Option<u64>,
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since == 0 || self.since >= DISK_CHECK_EVERY {
            let disk = rustix::fs::statvfs(&self.directory)?;
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free < DISK_RESERVE + DISK_CHECK_EVERY {
                self.full = Some(free);
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.since = 0;
        }
        let read = self.inner.read(buffer)?;
        self.since += read as u64;
        Ok(read)
    }
}

/// What an earlier daemon was unpacking when it ended.
pub(super) fn sweep(data_dir: &Path, store: &Store) -> Result<(), Error> {
    layout::sweep_importing(data_dir).map_err(|source| Error::file("clear", data_dir, source))?;
    for key in store.volumes(layout::IMPORTS)? {
        store.forget_volume(&key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tar::{Builder, Header};

    use super::*;

    fn archive(build: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o640);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// Writes a path that the crate itself would refuse to write.
    fn put(builder: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, content: &[u8]) {
        let mut header = header(kind, content.len() as u64);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, Result<(), Refused>) {
        let directory = tempfile::tempdir().unwrap();
        let (into, like) = (directory.path().join("into"), directory.path().join("like"));
        fs::create_dir(&into).unwrap();
        fs::create_dir(&like).unwrap();
        fs::set_permissions(&like, fs::Permissions::from_mode(0o750)).unwrap();
        let done = unpack(bytes, &into, &like);
        (directory, done)
    }

    #[test]
    fn an_archive_becomes_a_directory() {
        let bytes = archive(|builder| {
            put(builder, "notes/", EntryType::Directory, b"");
            put(builder, "notes/today", EntryType::Regular, b"buy bread");
        });
        let (directory, done) = unpacked(&bytes);
        done.unwrap();
        let into = directory.path().join("into");
        assert_eq!(fs::read(into.join("notes/today")).unwrap(), b"buy bread");
        assert_eq!(fs::metadata(into.join("notes/today")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(&into).unwrap().mode() & 0o7777, 0o750, "as the volume is");
    }

    #[test]
    fn what_leads_out_and_what_is_no_archive_is_refused() {
        for (path, kind) in [("../out", EntryType::Regular), ("dev/null", EntryType::Char), ("disk", EntryType::Block)]
        {
            let bytes = archive(|builder| put(builder, path, kind, b""));
            let refused = unpacked(&bytes).1.unwrap_err();
            assert!(matches!(&refused, Refused::Outside(told) if told == path), "{refused}");
        }
        let refused = unpacked(&[b"no archive at all".as_slice(), &[1; 2_000]].concat()).1.unwrap_err();
        assert!(matches!(refused, Refused::NoArchive(_)), "{refused}");
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(b"x").unwrap();
        let refused = unpacked(&zipped.finish().unwrap()).1.unwrap_err();
        assert!(matches!(refused, Refused::Compressed("gzip")), "{refused}");
    }

    #[test]
    fn a_link_does_not_lead_what_comes_after_it_out_of_the_volume() {
        let outside = tempfile::tempdir().unwrap();
        let bytes = archive(|builder| {
            let mut link = header(EntryType::Symlink, 0);
            builder.append_link(&mut link, "door", outside.path()).unwrap();
            put(builder, "door/inside", EntryType::Regular, b"x");
        });
        unpacked(&bytes).1.unwrap_err();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
