//! Content of files that is put aside while programs wait, so that they wait no longer than that takes: a copy that shares the blocks
//! where the file system can make one (btrfs, xfs), a copy in memory of what is small, and what is left is read.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, Mode, OFlags, Stat, ioctl_ficlone, openat},
    io::Errno,
};

use super::{Error, content};
use crate::{
    place::{self, Place},
    store::Session,
    tree::{File, Hole, Name},
};

/// Below this a copy in memory is made sooner than one on the disk. Bytes.
const SMALL: u64 = 1024 * 1024;

/// Copies in memory, of one volume. Bytes.
const MEMORY_MAX: u64 = 64 * 1024 * 1024;

/// Copies on the disk; each is an open file.
const CLONES_MAX: usize = 256;

/// Where content is put aside, and for how long.
#[derive(Debug)]
pub(super) struct Aside {
    /// A directory on the same file system that nobody watches. Nothing ever gets a name in it.
    scratch: Option<PathBuf>,
    began: Instant,
    at_most: Duration,
    /// Bytes in memory.
    memory: u64,
    clones: usize,
}

/// A file's content at one instant.
#[derive(Debug)]
pub(super) enum Taken {
    Memory { len: u64, holes: Vec<Hole>, bytes: Vec<u8> },
    Clone { file: fs::File, path: PathBuf },
}

impl Aside {
    pub(super) fn new(volume: &Path, began: Instant, at_most: Duration) -> Self {
        Self { scratch: volume.parent().map(Path::to_owned), began, at_most, memory: 0, clones: 0 }
    }

    pub(super) fn end(&self) -> Instant {
        self.began + self.at_most
    }

    /// # Errors
    /// The time is over.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.began.elapsed() > self.at_most { Err(Error::TooLong(self.at_most)) } else { Ok(()) }
    }

    /// What was put aside is not needed.
    pub(super) fn empty(&mut self) {
        (self.memory, self.clones) = (0, 0);
    }

    /// `None` where it is quickest to read it.
    pub(super) fn take(
        &mut self,
        file: &fs::File,
        stat: &Stat,
        place: &Place,
        name: &Name,
    ) -> Result<Option<Taken>, Error> {
        let len = stat.st_size as u64;
        if len > SMALL
            && let Some(clone) = self.clone_of(file)
        {
            self.clones += 1;
            return Ok(Some(Taken::Clone { file: clone, path: place.path_of(name) }));
        }
        let room = MEMORY_MAX - self.memory;
        let data = (stat.st_blocks as u64).saturating_mul(content::BLOCK).min(len);
        if data > room {
            return Ok(None);
        }
        let failed = |source: io::Error| Error::File(place.failed("read", name, source));
        let (len, holes) = content::extent(file, stat).map_err(failed)?;
        let mut bytes = Vec::with_capacity(usize::try_from(data).unwrap_or(0));
        // A file system may keep more in fewer blocks than a length tells.
        let read = content::bytes(file, len, &holes).take(room + 1).read_to_end(&mut bytes).map_err(failed)?;
        if read as u64 > room {
            return Ok(None);
        }
        self.memory += read as u64;
        Ok(Some(Taken::Memory { len, holes, bytes }))
    }

    fn clone_of(&mut self, file: &fs::File) -> Option<fs::File> {
        if self.clones >= CLONES_MAX {
            return None;
        }
        let scratch = self.scratch.as_ref()?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let cloned = openat(CWD, scratch, flags, Mode::RUSR | Mode::WUSR).and_then(|clone| {
            ioctl_ficlone(&clone, file)?;
            Ok(clone)
        });
        match cloned {
            Ok(clone) => Some(clone.into()),
            // Not this one: it is in a file system of its own, or the disk is full.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::INVAL | Errno::TXTBSY) => None,
            // No other one either.
            Err(_) => {
                self.scratch = None;
                None
            }
        }
    }
}

impl Taken {
    pub(super) fn keep(self, session: &Session) -> Result<File, Error> {
        match self {
            Self::Memory { len, holes, bytes } => content::write(bytes.as_slice(), len, holes, session),
            Self::Clone { file, path } => {
                let failed = |source: io::Error| Error::File(place::failed("read the copy of", &path, source));
                let stat = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
                let (len, holes) = content::extent(&file, &stat).map_err(failed)?;
                content::write(content::bytes(&file, len, &holes), len, holes.clone(), session)
            }
        }
    }
}
