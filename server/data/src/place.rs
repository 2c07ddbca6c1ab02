//! Files below one directory, reached from it name by name, so that no link that a program puts there leads out of it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags, fgetxattr, flistxattr, fremovexattr,
    fsetxattr, openat, readlinkat, statat,
};

use crate::{
    store::Seen,
    tree::{Meta, Name},
};

/// Extended attributes that belong to the data; the others are the kernel's or a security module's own.
const KEPT: &[&[u8]] = &[b"user.", b"security.capability", b"system.posix_acl_"];

/// Bytes of all names of one inode's attributes, as the kernel has it.
const ATTRIBUTE_NAMES_MAX: usize = 64 * 1024;

/// What could not be done with which file.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} `{}`", path.display())]
pub struct Error {
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl Error {
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            || self.source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
    }
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Place {
    fd: OwnedFd,
    path: PathBuf,
}

impl Place {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { fd: fd.map_err(|error| failed("open", path, error))?, path: path.to_owned() })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path_of(&self, name: &Name) -> PathBuf {
        self.path.join(os(name))
    }

    /// An error that names what is in this directory.
    pub(crate) fn failed(&self, operation: &'static str, name: &Name, source: impl Into<io::Error>) -> Error {
        Error { operation, path: self.path_of(name), source: source.into() }
    }

    pub(crate) fn directory(&self, name: &Name) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, os(name), flags, Mode::empty());
        Ok(Self { fd: fd.map_err(|error| self.failed("open", name, error))?, path: self.path_of(name) })
    }

    /// The directory at a path from here.
    pub(crate) fn below(&self, path: &[Name]) -> Result<Self, Error> {
        let mut place: Option<Self> = None;
        for name in path {
            place = Some(place.as_ref().unwrap_or(self).directory(name)?);
        }
        place.map_or_else(|| Self::open(&self.path), Ok)
    }

    /// Opens a file to be read. What is no file any more does not hold up: a FIFO would wait for somebody to write.
    pub(crate) fn file(&self, name: &Name) -> Result<fs::File, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = openat(&self.fd, os(name), flags, Mode::empty());
        Ok(fd.map_err(|error| self.failed("open", name, error))?.into())
    }

    /// What is in it, in order.
    pub(crate) fn names(&self) -> Result<Vec<Name>, Error> {
        Ok(self.names_up_to(usize::MAX)?.unwrap_or_default())
    }

    /// The same; `None` where it is more than so many.
    pub(crate) fn names_up_to(&self, at_most: usize) -> Result<Option<Vec<Name>>, Error> {
        let listed = |source: io::Error| Error { operation: "list", path: self.path.clone(), source };
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(|error| listed(error.into()))? {
            let entry = entry.map_err(|error| listed(error.into()))?;
            let bytes = entry.file_name().to_bytes();
            if bytes != b"." && bytes != b".." {
                if names.len() == at_most {
                    return Ok(None);
                }
                names.push(Name::try_from(bytes.to_vec()).map_err(|error| listed(io::Error::other(error)))?);
            }
        }
        names.sort_unstable();
        Ok(Some(names))
    }

    pub(crate) fn stat(&self, name: &Name) -> Result<Stat, Error> {
        statat(&self.fd, os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(|error| self.failed("look at", name, error))
    }

    pub(crate) fn link(&self, name: &Name) -> Result<Vec<u8>, Error> {
        let target = readlinkat(&self.fd, os(name), Vec::new()).map_err(|error| self.failed("read", name, error))?;
        Ok(target.into_bytes())
    }
}

pub(crate) fn os(name: &Name) -> &OsStr {
    OsStr::from_bytes(name.as_bytes())
}

/// What tells whether a file was changed.
#[expect(clippy::useless_conversion, reason = "the fields have other types on other processors")]
pub(crate) fn seen(stat: &Stat) -> Seen {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Seen {
        inode: stat.st_ino.into(),
        size: stat.st_size.try_into().unwrap_or_default(),
        modified: nanos(stat.st_mtime.into(), stat.st_mtime_nsec as i64),
        changed: nanos(stat.st_ctime.into(), stat.st_ctime_nsec as i64),
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Extended attributes of an open file or directory, as far as they belong to the data. A file system without any has none.
pub(crate) fn attributes(fd: BorrowedFd<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    use rustix::io::Errno;
    let mut attributes = BTreeMap::new();
    let mut names = [0_u8; 512];
    let listed = match flistxattr(fd, &mut names) {
        Ok(0) | Err(Errno::NOTSUP | Errno::PERM) => return Ok(attributes),
        Ok(len) => names[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut names = vec![0; ATTRIBUTE_NAMES_MAX];
            let len = flistxattr(fd, &mut names[..])?;
            names.truncate(len);
            names
        }
        Err(error) => return Err(error.into()),
    };
    for name in listed.split(|byte| *byte == 0).filter(|name| KEPT.iter().any(|kept| name.starts_with(kept))) {
        let mut value = vec![0; 64 * 1024];
        match fgetxattr(fd, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                attributes.insert(name.to_vec(), value);
            }
            // It was taken off meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(attributes)
}

/// Gives an open file or directory exactly these attributes.
pub(crate) fn set_attributes(fd: BorrowedFd<'_>, wanted: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<()> {
    let present = attributes(fd)?;
    for name in present.keys().filter(|name| !wanted.contains_key(*name)) {
        fremovexattr(fd, name.as_slice())?;
    }
    for (name, value) in wanted.iter().filter(|(name, value)| present.get(*name) != Some(value)) {
        fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?;
    }
    Ok(())
}

/// For both of a file's times: when it was read last is not kept.
pub(crate) fn times(meta: &Meta) -> Timestamps {
    let (seconds, nanos) = meta.modified;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

pub(crate) fn failed(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
    Error { operation, path: path.to_owned(), source: source.into() }
}
