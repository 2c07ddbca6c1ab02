//! Where each object is, which generations there are, and what was seen of files when they were read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    path::Path,
    sync::{PoisonError, RwLock},
};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::{Error, News};
use crate::Hash;

const VERSION: u64 = 1;

/// Bytes of the index that are held in memory. A node has 120 MB for everything.
const CACHE: usize = 8 * 1024 * 1024;

const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
/// By name: pack, offset and length.
const OBJECTS: TableDefinition<'_, &[u8; Hash::LEN], (u64, u64, u32)> = TableDefinition::new("objects");
/// How far each pack is known. Bytes.
const PACKS: TableDefinition<'_, u64, u64> = TableDefinition::new("packs");
/// By volume, epoch and sequence: its root, and when it was taken.
const GENERATIONS: TableDefinition<'_, (&str, u64, u64), (&[u8; Hash::LEN], u64)> = TableDefinition::new("generations");
/// By volume.
const SIGHTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sights");
/// By volume and [`Seen::key`].
const SEEN: TableDefinition<'_, (&str, &[u8; 16]), &[u8]> = TableDefinition::new("seen");

/// Where an object's bytes are laid down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) pack: u64,
    /// Bytes.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u32,
}

/// One state of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation {
    /// Under which it was written.
    pub epoch: u64,
    /// Counts within the epoch.
    pub sequence: u64,
    /// Milliseconds since 1970, by the clock of the machine that made it.
    pub taken_at: u64,
    /// Name of its [`crate::tree::Root`].
    pub root: Hash,
}

/// Which tree what was seen of files belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    pub root: Hash,
}

/// What tells a file that was changed from one that was not: no program can set back the time of an inode's last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds.
    pub modified: i128,
    /// Nanoseconds.
    pub changed: i128,
}

impl Seen {
    /// Under which what was seen of the file at a path is found.
    pub fn key(path: &[u8]) -> [u8; 16] {
        let mut key = [0; 16];
        key.copy_from_slice(&Hash::of(path).as_bytes()[..16]);
        key
    }
}

#[derive(Debug)]
pub(super) struct Index {
    /// Absent once it is closed.
    database: RwLock<Option<Database>>,
}

impl Index {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let database = Database::builder().set_cache_size(CACHE).create(path).map_err(broken)?;
        let index = Self { database: RwLock::new(Some(database)) };
        index.begin()?;
        Ok(index)
    }

    /// Whoever uses it from now on is refused, and another may open it.
    pub(super) fn close(&self) {
        self.database.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn read(&self) -> Result<ReadTransaction, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().ok_or(Error::Closed)?.begin_read().map_err(broken)
    }

    fn write(&self) -> Result<WriteTransaction, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().ok_or(Error::Closed)?.begin_write().map_err(broken)
    }

    /// Makes the tables, so that none is missing when it is read.
    fn begin(&self) -> Result<(), Error> {
        let write = self.write()?;
        {
            let mut about = write.open_table(ABOUT).map_err(broken)?;
            let version = about.get("version").map_err(broken)?.map(|version| version.value());
            match version {
                Some(version) if version > VERSION => return Err(Error::Newer { version }),
                Some(_) => {}
                None => {
                    about.insert("version", VERSION).map_err(broken)?;
                }
            }
            write.open_table(OBJECTS).map_err(broken)?;
            write.open_table(PACKS).map_err(broken)?;
            write.open_table(GENERATIONS).map_err(broken)?;
            write.open_table(SIGHTS).map_err(broken)?;
            write.open_table(SEEN).map_err(broken)?;
        }
        write.commit().map_err(broken)
    }

    pub(super) fn find(&self, name: &Hash) -> Result<Option<Location>, Error> {
        let read = self.read()?;
        let objects = read.open_table(OBJECTS).map_err(broken)?;
        let found = objects.get(name.as_bytes()).map_err(broken)?;
        Ok(found.map(|found| {
            let (pack, offset, len) = found.value();
            Location { pack, offset, len }
        }))
    }

    pub(super) fn ends(&self) -> Result<BTreeMap<u64, u64>, Error> {
        let read = self.read()?;
        let packs = read.open_table(PACKS).map_err(broken)?;
        let mut ends = BTreeMap::new();
        for pack in packs.iter().map_err(broken)? {
            let (number, end) = pack.map_err(broken)?;
            ends.insert(number.value(), end.value());
        }
        Ok(ends)
    }

    pub(super) fn generations(&self, volume: &str) -> Result<Vec<Generation>, Error> {
        let read = self.read()?;
        let table = read.open_table(GENERATIONS).map_err(broken)?;
        let mut generations = Vec::new();
        for entry in table.range((volume, 0, 0)..=(volume, u64::MAX, u64::MAX)).map_err(broken)? {
            let (key, value) = entry.map_err(broken)?;
            let ((_, epoch, sequence), (root, taken_at)) = (key.value(), value.value());
            generations.push(Generation { epoch, sequence, taken_at, root: Hash::from(*root) });
        }
        Ok(generations)
    }

    /// Names of volumes that have generations, those alone that begin with a prefix.
    pub(super) fn volumes(&self, prefix: &str) -> Result<BTreeSet<String>, Error> {
        let read = self.read()?;
        let table = read.open_table(GENERATIONS).map_err(broken)?;
        let mut volumes = BTreeSet::new();
        for entry in table.range((prefix, 0, 0)..).map_err(broken)? {
            let (key, _) = entry.map_err(broken)?;
            let (volume, ..) = key.value();
            if !volume.starts_with(prefix) {
                break;
            }
            if !volumes.contains(volume) {
                volumes.insert(volume.to_owned());
            }
        }
        Ok(volumes)
    }

    /// Forgets all that is known of a volume.
    pub(super) fn forget_volume(&self, volume: &str) -> Result<(), Error> {
        let write = self.write()?;
        {
            let mut generations = write.open_table(GENERATIONS).map_err(broken)?;
            generations.retain_in((volume, 0, 0)..=(volume, u64::MAX, u64::MAX), |_, _| false).map_err(broken)?;
            write.open_table(SIGHTS).map_err(broken)?.remove(volume).map_err(broken)?;
            let mut seen = write.open_table(SEEN).map_err(broken)?;
            seen.retain_in((volume, &[0; 16])..=(volume, &[0xff; 16]), |_, _| false).map_err(broken)?;
        }
        write.commit().map_err(broken)
    }

    pub(super) fn forget(&self, volume: &str, generations: &[(u64, u64)]) -> Result<(), Error> {
        let write = self.write()?;
        {
            let mut table = write.open_table(GENERATIONS).map_err(broken)?;
            for (epoch, sequence) in generations {
                table.remove((volume, *epoch, *sequence)).map_err(broken)?;
            }
        }
        write.commit().map_err(broken)
    }

    /// From which all objects that are needed can be reached.
    pub(super) fn roots(&self) -> Result<BTreeSet<Hash>, Error> {
        let read = self.read()?;
        let mut roots = BTreeSet::new();
        for entry in read.open_table(GENERATIONS).map_err(broken)?.iter().map_err(broken)? {
            roots.insert(Hash::from(*entry.map_err(broken)?.1.value().0));
        }
        for entry in read.open_table(SIGHTS).map_err(broken)?.iter().map_err(broken)? {
            let sight: Option<Sight> = postcard::from_bytes(entry.map_err(broken)?.1.value()).ok();
            roots.extend(sight.map(|sight| sight.root));
        }
        Ok(roots)
    }

    /// How many objects there are.
    pub(super) fn objects(&self) -> Result<u64, Error> {
        let read = self.read()?;
        read.open_table(OBJECTS).map_err(broken)?.len().map_err(broken)
    }

    /// Names of objects behind one, in order.
    pub(super) fn names(&self, behind: Option<&Hash>, at_most: usize) -> Result<Vec<Hash>, Error> {
        let read = self.read()?;
        let objects = read.open_table(OBJECTS).map_err(broken)?;
        let from = behind.map_or(Bound::Unbounded, |name| Bound::Excluded(name.as_bytes()));
        let range = objects.range::<&[u8; Hash::LEN]>((from, Bound::Unbounded)).map_err(broken)?;
        range.take(at_most).map(|entry| Ok(Hash::from(*entry.map_err(broken)?.0.value()))).collect()
    }

    pub(super) fn count(&self) -> Result<u64, Error> {
        self.read()?.open_table(OBJECTS).map_err(broken)?.len().map_err(broken)
    }

    /// Forgets where these are; a crash may bring them back. How many there were.
    pub(super) fn remove<'a>(&self, names: impl Iterator<Item = &'a Hash>) -> Result<u64, Error> {
        let mut write = self.write()?;
        write.set_durability(Durability::None).map_err(broken)?;
        let mut removed = 0;
        {
            let mut objects = write.open_table(OBJECTS).map_err(broken)?;
            for name in names {
                removed += u64::from(objects.remove(name.as_bytes()).map_err(broken)?.is_some());
            }
        }
        write.commit().map_err(broken)?;
        Ok(removed)
    }

    /// Bytes of each pack that are needed; `head` are those of a record beside the object.
    pub(super) fn live(&self, head: u64) -> Result<BTreeMap<u64, u64>, Error> {
        let read = self.read()?;
        let mut live = BTreeMap::new();
        for entry in read.open_table(OBJECTS).map_err(broken)?.iter().map_err(broken)? {
            let (pack, _, len) = entry.map_err(broken)?.1.value();
            *live.entry(pack).or_insert(0) += head + u64::from(len);
        }
        Ok(live)
    }

    /// The objects in some packs.
    pub(super) fn in_packs(&self, packs: &BTreeSet<u64>) -> Result<Vec<(Hash, Location)>, Error> {
        let read = self.read()?;
        let mut found = Vec::new();
        for entry in read.open_table(OBJECTS).map_err(broken)?.iter().map_err(broken)? {
            let (name, location) = entry.map_err(broken)?;
            let (pack, offset, len) = location.value();
            if packs.contains(&pack) {
                found.push((Hash::from(*name.value()), Location { pack, offset, len }));
            }
        }
        Ok(found)
    }

    /// Objects are elsewhere now, unless they are gone or were moved already; and packs are gone.
    pub(super) fn relocate(&self, moved: &[(Hash, Location, Location)], gone: &BTreeSet<u64>) -> Result<(), Error> {
        let write = self.write()?;
        {
            let mut objects = write.open_table(OBJECTS).map_err(broken)?;
            let mut packs = write.open_table(PACKS).map_err(broken)?;
            for (name, from, to) in moved {
                let is_there = objects.get(name.as_bytes()).map_err(broken)?.map(|found| found.value());
                if is_there == Some((from.pack, from.offset, from.len)) {
                    objects.insert(name.as_bytes(), (to.pack, to.offset, to.len)).map_err(broken)?;
                }
                extend(&mut packs, to)?;
            }
            for number in gone {
                packs.remove(number).map_err(broken)?;
            }
        }
        write.commit().map_err(broken)
    }

    pub(super) fn sight(&self, volume: &str) -> Result<Option<Sight>, Error> {
        let read = self.read()?;
        let sights = read.open_table(SIGHTS).map_err(broken)?;
        let sight = sights.get(volume).map_err(broken)?;
        // What can't be read was not seen.
        Ok(sight.and_then(|sight| postcard::from_bytes(sight.value()).ok()))
    }

    pub(super) fn seen(&self, volume: &str, key: [u8; 16]) -> Result<Option<Seen>, Error> {
        let read = self.read()?;
        let table = read.open_table(SEEN).map_err(broken)?;
        let seen = table.get((volume, &key)).map_err(broken)?;
        Ok(seen.and_then(|seen| postcard::from_bytes(seen.value()).ok()))
    }

    /// All parts become known at one instant: what is fresh in each, and its news.
    pub(super) fn commit(&self, parts: &[(&HashMap<Hash, Location>, &News)]) -> Result<(), Error> {
        let write = self.write()?;
        for (fresh, news) in parts {
            let mut objects = write.open_table(OBJECTS).map_err(broken)?;
            let mut packs = write.open_table(PACKS).map_err(broken)?;
            for (name, location) in *fresh {
                let Location { pack, offset, len } = *location;
                objects.insert(name.as_bytes(), (pack, offset, len)).map_err(broken)?;
                extend(&mut packs, location)?;
            }
            if let Some((volume, Generation { epoch, sequence, taken_at, root })) = &news.generation {
                let mut generations = write.open_table(GENERATIONS).map_err(broken)?;
                let value = (root.as_bytes(), *taken_at);
                generations.insert((volume.as_str(), *epoch, *sequence), value).map_err(broken)?;
            }
            if let Some(new) = &news.sight {
                let mut sights = write.open_table(SIGHTS).map_err(broken)?;
                sights.insert(new.volume.as_str(), coded(&new.sight).as_slice()).map_err(broken)?;
                let mut table = write.open_table(SEEN).map_err(broken)?;
                for (key, seen) in &new.seen {
                    match seen {
                        Some(seen) => table.insert((new.volume.as_str(), key), coded(seen).as_slice()),
                        None => table.remove((new.volume.as_str(), key)),
                    }
                    .map_err(broken)?;
                }
            }
        }
        write.commit().map_err(broken)
    }
}

/// A pack is known as far as this object, at least.
fn extend(packs: &mut Table<'_, u64, u64>, to: &Location) -> Result<(), Error> {
    let end = to.offset + u64::from(to.len);
    let known = packs.get(to.pack).map_err(broken)?.map_or(0, |known| known.value());
    if end > known {
        packs.insert(to.pack, end).map_err(broken)?;
    }
    Ok(())
}

fn coded(value: &impl Serialize) -> Vec<u8> {
    // Numbers and hashes always have such a form.
    postcard::to_stdvec(value).unwrap_or_default()
}

fn broken(error: impl Into<redb::Error>) -> Error {
    Error::Index(Box::new(error.into()))
}
