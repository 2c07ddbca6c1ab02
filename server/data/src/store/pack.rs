//! The files that hold objects: each is appended to until it is large, and then only read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    mem,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::{
    buffer::spare_capacity,
    io::{pread, pwritev, retry_on_intr},
};

use super::{Error, failed, index::Location};
use crate::Hash;

/// A pack that is longer than this is not appended to any more. Bytes. Large enough that a disk has few of them, small enough to
/// be written anew when most of it is not needed.
const FULL: u64 = 64 * 1024 * 1024;

/// Full packs that may be on their way to the disk while the next one is appended to.
const SYNCING_MAX: usize = 2;

/// Packs that are held open to be read.
const OPEN_MAX: usize = 64;

/// Before each object: its length and its name, by which a lost index can be made anew.
pub(super) const RECORD_HEAD: usize = 4 + Hash::LEN;

#[derive(Debug)]
pub(super) struct Packs {
    directory: PathBuf,
    last: Mutex<Last>,
    open: Mutex<HashMap<u64, Arc<File>>>,
}

/// The one that is appended to.
#[derive(Debug)]
struct Last {
    number: u64,
    /// Made when it is needed.
    file: Option<File>,
    end: u64,
    /// Something was appended since it was last synced.
    unsynced: bool,
    /// A pack was begun since the directory was last synced.
    unlisted: bool,
    /// Full ones that are on their way to the disk, the oldest first.
    syncing: VecDeque<(u64, JoinHandle<io::Result<()>>)>,
    /// Packs that could not be synced. After such a failure the kernel forgets what it could not write, and a second try would succeed
    /// with nothing.
    lost: BTreeSet<u64>,
}

impl Packs {
    /// `ends` says for each pack how far the index knows it: what lies behind that was never committed.
    pub(super) fn open(directory: PathBuf, ends: &BTreeMap<u64, u64>) -> Result<Self, Error> {
        let entries = fs::read_dir(&directory).map_err(|source| failed("list", &directory, source))?;
        for entry in entries {
            let path = entry.map_err(|source| failed("list", &directory, source))?.path();
            let Some(number) = number_of(&path) else { continue };
            if !ends.contains_key(&number) {
                fs::remove_file(&path).map_err(|source| failed("delete", &path, source))?;
            }
        }
        let (number, end) = ends.last_key_value().map_or((0, 0), |(number, end)| (*number, *end));
        let packs = Self {
            directory,
            last: Mutex::new(Last {
                number,
                file: None,
                end,
                unsynced: false,
                unlisted: false,
                syncing: VecDeque::new(),
                lost: BTreeSet::new(),
            }),
            open: Mutex::default(),
        };
        if number > 0 {
            let path = packs.path(number);
            let file = OpenOptions::new().read(true).write(true).open(&path);
            let file = file.and_then(|file| {
                // A shorter one has lost something, which shows when that is read.
                if file.metadata()?.len() > end {
                    file.set_len(end)?;
                }
                Ok(file)
            });
            packs.last().file = match file {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(failed("open", &path, source)),
            };
        }
        Ok(packs)
    }

    pub(super) fn append(&self, name: &Hash, coded: &[u8]) -> Result<Location, Error> {
        // Nothing that is laid down is longer than `LAID_DOWN_MAX`.
        let len = coded.len() as u32;
        let mut head = [0; RECORD_HEAD];
        head[..4].copy_from_slice(&len.to_be_bytes());
        head[4..].copy_from_slice(name.as_bytes());

        let mut last = self.last();
        if last.file.is_none() || last.end >= FULL {
            self.begin_next(&mut last)?;
        }
        let Last { number, file: Some(file), end, unsynced, .. } = &mut *last else {
            return Err(failed("write", &self.directory, io::ErrorKind::NotFound.into()));
        };
        *unsynced = true;
        write_both_at(file, &head, coded, *end).map_err(|source| failed("write", &self.path(*number), source))?;
        let location = Location { pack: *number, offset: *end + RECORD_HEAD as u64, len };
        *end += RECORD_HEAD as u64 + u64::from(len);
        Ok(location)
    }

    fn begin_next(&self, last: &mut Last) -> Result<(), Error> {
        last.sync_beside();
        let number = last.number + 1;
        let path = self.path(number);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| failed("create", &path, source))?;
        (last.number, last.file, last.end, last.unlisted) = (number, Some(file), 0, true);
        Ok(())
    }

    /// All that was appended so far to these packs is on the disk.
    pub(super) fn sync(&self, packs: &BTreeSet<u64>) -> Result<(), Error> {
        let mut last = self.last();
        while !last.syncing.is_empty() {
            last.synced_one();
        }
        self.sync_last(&mut last)?;
        if last.unlisted {
            sync_directory(&self.directory)?;
            last.unlisted = false;
        }
        match packs.iter().find(|pack| last.lost.contains(pack)) {
            Some(lost) => {
                Err(failed("write", &self.path(*lost), io::Error::other("it was lost on its way to the disk")))
            }
            None => Ok(()),
        }
    }

    fn sync_last(&self, last: &mut Last) -> Result<(), Error> {
        if let (Some(file), true) = (&last.file, last.unsynced) {
            let synced = file.sync_data();
            last.unsynced = false;
            if let Err(source) = synced {
                last.file = None;
                last.lost.insert(last.number);
                return Err(failed("write", &self.path(last.number), source));
            }
        }
        Ok(())
    }

    pub(super) fn read(&self, location: &Location) -> Result<Vec<u8>, Error> {
        let path = || self.path(location.pack);
        let file = self.file(location.pack).map_err(|source| failed("open", &path(), source))?;
        read_at(&file, location).map_err(|source| failed("read", &path(), source))
    }

    /// The pack that is appended to; those before it are complete.
    pub(super) fn last_number(&self) -> u64 {
        self.last().number
    }

    pub(super) fn delete(&self, number: u64) -> Result<(), Error> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        let path = self.path(number);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("delete", &path, source)),
            _ => Ok(()),
        }
    }

    fn file(&self, number: u64) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.path(number))?);
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(number, Arc::clone(&file));
        Ok(file)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:016x}.pack"))
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Last {
    /// Whoever appends goes on while the disk takes what is full, as long as the disk is not too far behind.
    fn sync_beside(&mut self) {
        let Some(file) = self.file.take().map(Arc::new).filter(|_| mem::take(&mut self.unsynced)) else { return };
        if self.syncing.len() >= SYNCING_MAX {
            self.synced_one();
        }
        let beside = Arc::clone(&file);
        match thread::Builder::new().spawn(move || beside.sync_data()) {
            Ok(syncing) => self.syncing.push_back((self.number, syncing)),
            // No thread is to be had.
            Err(_) if file.sync_data().is_ok() => {}
            Err(_) => drop(self.lost.insert(self.number)),
        }
    }

    /// Waits for the oldest of those that are on their way to the disk.
    fn synced_one(&mut self) {
        let Some((number, syncing)) = self.syncing.pop_front() else { return };
        // One that panicked has synced nothing.
        if !matches!(syncing.join(), Ok(Ok(()))) {
            self.lost.insert(number);
        }
    }
}

/// Two parts of a record, one behind the other, in one go.
fn write_both_at(file: &File, first: &[u8], second: &[u8], at: u64) -> io::Result<()> {
    let written = retry_on_intr(|| pwritev(file, &[IoSlice::new(first), IoSlice::new(second)], at))?;
    if written < first.len() + second.len() {
        // The disk may be full, which the second attempt tells.
        file.write_all_at(&[first, second].concat()[written..], at + written as u64)?;
    }
    Ok(())
}

fn read_at(file: &File, location: &Location) -> io::Result<Vec<u8>> {
    let len = location.len as usize;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = location.offset + bytes.len() as u64;
        // There may be more room than was asked for.
        let read = retry_on_intr(|| pread(file, spare_capacity(&mut bytes), at))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".pack")?;
    u64::from_str_radix(name, 16).ok().filter(|_| name.len() == 16)
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|source| failed("write", path, source))
}
