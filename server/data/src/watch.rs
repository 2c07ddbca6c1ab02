//! What programs change, told by the kernel, so that not everything has to be looked at.
//!
//! A watch tells too much rather than too little, with three exceptions that the kernel makes: a file that is written where it is mapped into memory shows
//! when it is closed; one that is written under one of several names shows under that name alone; and where more happens than the
//! kernel notes down, it says so, and everything has to be looked at. So whoever relies on a watch looks at everything now and then.

use std::{
    collections::{HashMap, HashSet},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        FileType,
        inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    },
    io::Errno,
};

use crate::{
    capture::Scope,
    place::{self, Place, kind},
    tree::{DEPTH_MAX, Name},
};

/// Directories of one volume that are watched. The kernel takes a kilobyte for each, and has a limit of its own.
const DIRECTORIES_MAX: usize = 100_000;

/// Bytes of events that are read at once.
const BUFFER: usize = 64 * 1024;

const WANTED: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);

/// Why a directory can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] place::Error),
    #[error("the kernel can't watch `{path}`")]
    Kernel {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("it has more than {DIRECTORIES_MAX} directories")]
    TooMany,
}

/// A directory, with everything below it, that is watched.
#[derive(Debug)]
pub struct Watch {
    kernel: OwnedFd,
    top: Place,
    /// By the kernel's number.
    paths: HashMap<i32, Vec<Name>>,
}

impl Watch {
    /// From here on every change is told. What was changed before is for a look at everything.
    ///
    /// # Errors
    /// Where it can't be watched: then everything has to be looked at each time.
    pub fn begin(directory: &Path) -> Result<Self, Error> {
        let top = Place::open(directory)?;
        let kernel = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|error| Error::Kernel { path: directory.display().to_string(), source: error.into() })?;
        let mut watch = Self { kernel, top, paths: HashMap::new() };
        watch.add(&[])?;
        Ok(watch)
    }

    /// Adds what was changed since the last time to the scope. True if anything was.
    ///
    /// # Errors
    /// Where a new directory can't be watched; the scope is good nevertheless, and the watch is not any more.
    pub fn tell(&mut self, scope: &mut Scope) -> Result<bool, Error> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let (mut any, mut overflown) = (false, false);
        let mut new = HashSet::new();
        let kernel = self.kernel.try_clone().map_err(|source| self.broken(source))?;
        let mut reader = Reader::new(kernel, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(self.broken(error.into())),
            };
            let happened = event.events();
            if happened.contains(ReadFlags::QUEUE_OVERFLOW) {
                overflown = true;
                continue;
            }
            if happened.contains(ReadFlags::IGNORED) {
                self.paths.remove(&event.wd());
                continue;
            }
            // What happens to a directory itself is told where it lies.
            let Some(path) = self.paths.get(&event.wd()) else { continue };
            let Some(Ok(name)) = event.file_name().map(|name| Name::try_from(name.to_bytes().to_vec())) else {
                continue;
            };
            let path: Vec<Name> = path.iter().cloned().chain([name]).collect();
            scope.add(&path);
            any = true;
            if happened.contains(ReadFlags::ISDIR) {
                if happened.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
                    self.paths.retain(|_, other| !other.starts_with(&path));
                }
                if happened.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                    new.insert(path);
                }
            }
        }
        if overflown {
            *scope = Scope::Everything;
            self.paths.clear();
            self.add(&[])?;
            return Ok(true);
        }
        for path in new {
            self.add(&path)?;
        }
        Ok(any)
    }

    /// Watches a directory, and then what is in it: what comes later is told.
    fn add(&mut self, path: &[Name]) -> Result<(), Error> {
        let mut left = vec![path.to_vec()];
        while let Some(path) = left.pop() {
            let place = match self.top.below(&path) {
                Ok(place) => place,
                // It is gone again, which is told, too.
                Err(error) if error.is_gone() => continue,
                Err(error) => return Err(error.into()),
            };
            let open = format!("/proc/self/fd/{}", place.fd().as_raw_fd());
            let number = inotify::add_watch(&self.kernel, open, WANTED)
                .map_err(|error| Error::Kernel { path: place.path().display().to_string(), source: error.into() })?;
            if self.paths.len() >= DIRECTORIES_MAX {
                return Err(Error::TooMany);
            }
            for name in place.names()? {
                let is_directory = match place.stat(&name) {
                    Ok(stat) => kind(&stat) == FileType::Directory,
                    Err(error) if error.is_gone() => false,
                    Err(error) => return Err(error.into()),
                };
                // A capture refuses what lies deeper.
                if is_directory && path.len() < DEPTH_MAX {
                    left.push(path.iter().cloned().chain([name]).collect());
                }
            }
            self.paths.insert(number, path);
        }
        Ok(())
    }

    fn broken(&self, source: io::Error) -> Error {
        Error::Kernel { path: self.top.path().display().to_string(), source }
    }
}

/// Becomes readable when there is something to tell.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}
