//! Objects on disk: appended to packs, found by an index.
//!
//! ```text
//! store/index.redb       where each object is; generations; what was seen of files when they were read
//! store/packs/0000….pack objects, one behind the other
//! ```
//!
//! An object is there when the index says so, and the index says so only when the object's bytes are on the disk. Whatever a crash
//! leaves behind in a pack that no index entry knows is cut off at the next start.

mod collect;
mod index;
mod pack;

#[cfg(test)]
pub(crate) mod memory;

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fmt, fs, io, mem,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

pub use crate::object::Damaged;
use crate::{
    Hash,
    object::{self, OBJECT_MAX},
    seal::{self, Key, KeyId, Reference},
};
use collect::Claims;
pub use collect::Collected;
pub use index::{Generation, Seen, Sight};
use index::{Index, Location};
use pack::Packs;

/// Where objects are read from.
pub trait Objects: fmt::Debug {
    /// # Errors
    /// Where it is not there, or not whole.
    fn get(&self, name: &Hash) -> Result<Vec<u8>, Error>;
}

/// Where objects are kept.
pub trait Sink {
    /// The name under which it is found again. `references` are all objects that are needed with it.
    ///
    /// # Errors
    /// Where it can't be kept.
    fn put_with(&mut self, bytes: &[u8], references: &[Reference]) -> Result<Hash, Error>;

    /// [`Self::put_with`] of what needs nothing else.
    ///
    /// # Errors
    /// As [`Self::put_with`].
    fn put(&mut self, bytes: &[u8]) -> Result<Hash, Error> {
        self.put_with(bytes, &[])
    }
}

/// Why the store can't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {operation} `{}`", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the index of the volumes' store can't be used; the store can be made anew from the other machines")]
    Index(#[source] Box<redb::Error>),
    #[error("the store has no object {name}")]
    Missing { name: Hash },
    #[error("the object {name} is damaged: {damage}")]
    Damaged { name: Hash, damage: Damaged },
    #[error("the object {name} is encrypted with the key {key}, and this machine does not have that")]
    Sealed { name: Hash, key: KeyId },
    #[error("what is kept here shall be encrypted with the key {key}, and this machine does not have that yet")]
    NoKey { key: KeyId },
    #[error("an object has at most {OBJECT_MAX} bytes; this one has {len}")]
    TooLarge { len: usize },
    #[error("the store of the volumes is closed, as the node stops")]
    Closed,
    #[error("the store was written by a newer version of Flotilla ({version}); update this machine")]
    Newer { version: u64 },
}

impl Error {
    /// Did the disk not give back what was laid down?
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing { .. } | Self::File { .. })
    }

    /// Has somebody to be asked for a key?
    pub fn is_sealed(&self) -> bool {
        matches!(self, Self::Sealed { .. } | Self::NoKey { .. })
    }

    /// Is there no room left on the disk?
    pub fn is_full(&self) -> bool {
        let full =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            Self::File { source, .. } => full(source),
            Self::Index(error) => matches!(&**error, redb::Error::Io(error) if full(error)),
            _ => false,
        }
    }
}

/// A handle to the objects of one machine.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    packs: Packs,
    index: Index,
    claims: Mutex<Claims>,
    /// What is sealed is opened with these.
    keys: RwLock<HashMap<KeyId, Key>>,
    /// One collection at a time.
    collecting: Mutex<()>,
}

impl Store {
    /// Opens what is in the directory, or begins it.
    ///
    /// # Errors
    /// Where it can't be read or written, is in use, or is a newer version's.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let packs = directory.join("packs");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&packs)
            .map_err(|source| failed("create the directory", &packs, source))?;
        let index = Index::open(&directory.join("index.redb"))?;
        let packs = Packs::open(packs, &index.ends()?)?;
        let (claims, keys, collecting) = (Mutex::default(), RwLock::default(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { packs, index, claims, keys, collecting }) })
    }

    /// From now on these are the keys that it opens with, and no others. A machine may have none.
    pub fn use_keys(&self, keys: impl IntoIterator<Item = Key>) {
        let keys = keys.into_iter().map(|key| (key.id(), key)).collect();
        *self.shared.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn key(&self, id: KeyId) -> Option<Key> {
        self.shared.keys.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Which key an object is sealed with; `None` where it is not.
    ///
    /// # Errors
    /// Where it is not there, or can't be read.
    pub fn sealed_with(&self, name: &Hash) -> Result<Option<KeyId>, Error> {
        let coded = self.laid_down(name)?;
        if !seal::is_sealed(&coded) {
            return Ok(None);
        }
        seal::key_of(&coded).map(Some).map_err(|damage| Error::Damaged { name: *name, damage })
    }

    /// Which key the newest generation is sealed with that was captured of a volume here; `None` where it is not, or there is none.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub fn captured_with(&self, volume: &str) -> Result<Option<KeyId>, Error> {
        self.sight(volume)?.map_or(Ok(None), |sight| self.sealed_with(&sight.root))
    }

    fn opened(&self, coded: &[u8], name: &Hash) -> Result<Vec<u8>, Error> {
        let damaged = |damage| Error::Damaged { name: *name, damage };
        if !seal::is_sealed(coded) {
            return object::decode(coded, name).map_err(damaged);
        }
        seal::verify(coded, name).map_err(damaged)?;
        let id = seal::key_of(coded).map_err(damaged)?;
        let key = self.key(id).ok_or(Error::Sealed { name: *name, key: id })?;
        seal::open(coded, &key).map_err(damaged)
    }

    /// What a sealed object refers to; nothing is opened for it.
    pub(crate) fn references(&self, name: &Hash) -> Result<Vec<Reference>, Error> {
        references(&self.laid_down(name)?, name)
    }

    /// Ends the use of the store by all handles; it can be opened anew.
    pub fn close(&self) {
        self.shared.index.close();
    }

    /// Begins to write. Nothing of it is there for others before [`Session::commit`].
    pub fn session(&self) -> Session {
        let id = self.claims().begin();
        Session { store: self.clone(), id, fresh: Mutex::default(), seal: None, renews: false }
    }

    /// The same, of which all that is put is laid down, though it is here already: that may be damaged.
    pub fn renewing_session(&self) -> Session {
        let mut session = self.session();
        session.renews = true;
        session
    }

    /// The same, of which all that is put is sealed.
    ///
    /// # Errors
    /// [`Error::NoKey`] where the key is not here.
    pub fn sealing_session(&self, key: KeyId) -> Result<Session, Error> {
        let key = self.key(key).ok_or(Error::NoKey { key })?;
        let mut session = self.session();
        session.seal = Some(key);
        Ok(session)
    }

    /// # Errors
    /// Where the index can't be read.
    pub fn contains(&self, name: &Hash) -> Result<bool, Error> {
        Ok(self.shared.index.find(name)?.is_some())
    }

    /// The bytes as they are laid down, to send them on.
    ///
    /// # Errors
    /// Where it is not there, or can't be read. Whether they are the object is for the receiver to see.
    pub fn laid_down(&self, name: &Hash) -> Result<Vec<u8>, Error> {
        let find = || self.shared.index.find(name)?.ok_or(Error::Missing { name: *name });
        let location = find()?;
        match self.shared.packs.read(&location) {
            // It may have been moved to another pack just now.
            Err(error) if find()? == location => Err(error),
            Err(_) => self.shared.packs.read(&find()?),
            read => read,
        }
    }

    /// Generations of a volume that are kept, the oldest first.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn generations(&self, volume: &str) -> Result<Vec<Generation>, Error> {
        self.shared.index.generations(volume)
    }

    /// Gives a tree that is here one more name, among the generations of a volume.
    ///
    /// # Errors
    /// Where its root is not here, or the index can't be written.
    pub fn name(&self, volume: &str, generation: Generation) -> Result<(), Error> {
        let mut session = self.session();
        if !session.contains(&generation.root)? {
            return Err(Error::Missing { name: generation.root });
        }
        session.commit(&News { generation: Some((volume.to_owned(), generation)), sight: None })
    }

    /// Volumes of which there are generations, those alone whose names begin so.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn volumes(&self, prefix: &str) -> Result<BTreeSet<String>, Error> {
        self.shared.index.volumes(prefix)
    }

    /// Forgets all generations of a volume, and what was seen of its files. [`Self::collect`] frees their room.
    ///
    /// # Errors
    /// Where the index can't be written.
    pub fn forget_volume(&self, volume: &str) -> Result<(), Error> {
        self.shared.index.forget_volume(volume)
    }

    /// Forgets generations of a volume: their epochs and sequences. [`Self::collect`] frees their room.
    ///
    /// # Errors
    /// Where the index can't be written.
    pub fn forget(&self, volume: &str, generations: &[(u64, u64)]) -> Result<(), Error> {
        self.shared.index.forget(volume, generations)
    }

    /// Reads objects whole, so many at a time and in the order of their names: the next call goes on behind the last of them.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn scrub(&self, behind: Option<&Hash>, at_most: usize) -> Result<Scrubbed, Error> {
        let names = self.shared.index.names(behind, at_most)?;
        let (read, last) = (names.len() as u64, names.last().copied());
        let mut damaged = Vec::new();
        for name in names {
            let read = self.laid_down(&name);
            match read.and_then(|coded| verified(&coded, &name)) {
                // It may have been freed since.
                Ok(_) | Err(Error::Missing { .. }) => {}
                Err(error @ Error::Index(_)) => return Err(error),
                Err(_) => damaged.push(name),
            }
        }
        Ok(Scrubbed { read, damaged, last })
    }

    /// Objects that there are.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn count(&self) -> Result<u64, Error> {
        self.shared.index.count()
    }

    /// Bytes of all packs.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn size(&self) -> Result<u64, Error> {
        Ok(self.shared.index.ends()?.values().sum())
    }

    /// What was seen of a volume's files when its newest generation was made here.
    pub(crate) fn sight(&self, volume: &str) -> Result<Option<Sight>, Error> {
        self.shared.index.sight(volume)
    }

    /// What was seen of one file then, by [`Seen::key`] of its path.
    pub(crate) fn seen(&self, volume: &str, key: [u8; 16]) -> Result<Option<Seen>, Error> {
        self.shared.index.seen(volume, key)
    }
}

impl Objects for Store {
    fn get(&self, name: &Hash) -> Result<Vec<u8>, Error> {
        self.opened(&self.laid_down(name)?, name)
    }
}

/// What [`Store::scrub`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// How many were read.
    pub read: u64,
    pub damaged: Vec<Hash>,
    /// The last that was read; `None` where there are no more.
    pub last: Option<Hash>,
}

/// What is being written together, by several threads if need be.
#[derive(Debug)]
pub struct Session {
    store: Store,
    id: u64,
    /// Laid down, and not in the index yet.
    fresh: Mutex<HashMap<Hash, Location>>,
    /// What is put is sealed with it.
    seal: Option<Key>,
    /// What is here is laid down once more.
    renews: bool,
}

/// What becomes known at the same instant as the objects of a session.
#[derive(Debug, Default)]
pub struct News {
    pub generation: Option<(String, Generation)>,
    /// What was seen of the files that this generation was made of.
    pub sight: Option<NewSight>,
}

/// What was seen of a volume's files, beside what was seen before.
#[derive(Debug)]
pub struct NewSight {
    pub volume: String,
    pub sight: Sight,
    pub seen: Vec<([u8; 16], Option<Seen>)>,
}

impl Session {
    /// Bytes that were laid down in it and are not in the index yet.
    pub fn fresh_bytes(&self) -> u64 {
        self.fresh().values().map(|location| u64::from(location.len)).sum()
    }

    /// Is the object there, or about to be?
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn contains(&self, name: &Hash) -> Result<bool, Error> {
        if self.fresh().contains_key(name) {
            return Ok(true);
        }
        // Nobody may free it between the look and the claim.
        let mut claims = self.store.claims();
        let found = self.store.contains(name)?;
        if found {
            claims.of(self.id).found.insert(*name);
        }
        Ok(found)
    }

    /// The newest generation of a volume, if there is one. Nothing of it is freed while this session lasts.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub(crate) fn stand_on(&self, volume: &str) -> Result<Option<Generation>, Error> {
        // A collection that has begun already has seen it, or all that it is made of.
        let mut claims = self.store.claims();
        let newest = self.store.generations(volume)?.last().copied();
        claims.of(self.id).base = newest.map(|generation| generation.root);
        Ok(newest)
    }

    /// Takes an object as another machine has laid it down, if it is what it is said to be.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not; otherwise as [`Sink::put`].
    pub fn take(&self, name: &Hash, coded: &[u8]) -> Result<(), Error> {
        verified(coded, name)?;
        if self.contains(name)? { Ok(()) } else { self.append(*name, coded) }
    }

    /// Takes an object in the place of the one that is here and damaged.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn repair(&self, name: &Hash, coded: &[u8]) -> Result<(), Error> {
        verified(coded, name)?;
        self.append(*name, coded)
    }

    /// As it is laid down.
    fn laid_down(&self, name: &Hash) -> Result<Vec<u8>, Error> {
        let fresh = self.fresh().get(name).copied();
        fresh.map_or_else(|| self.store.laid_down(name), |location| self.store.shared.packs.read(&location))
    }

    /// What an object refers to; `None` where it is not sealed.
    pub(crate) fn references(&self, name: &Hash) -> Result<Option<Vec<Reference>>, Error> {
        let coded = self.laid_down(name)?;
        if seal::is_sealed(&coded) { references(&coded, name).map(Some) } else { Ok(None) }
    }

    fn append(&self, name: Hash, coded: &[u8]) -> Result<(), Error> {
        let mut fresh = self.fresh();
        // Two threads may have come upon the same bytes.
        if let Entry::Vacant(place) = fresh.entry(name) {
            let location = self.store.shared.packs.append(&name, coded)?;
            self.store.claims().of(self.id).packs.insert(location.pack);
            place.insert(location);
        }
        Ok(())
    }

    fn keep(&self, bytes: &[u8], references: &[Reference]) -> Result<Hash, Error> {
        if bytes.len() > OBJECT_MAX {
            return Err(Error::TooLarge { len: bytes.len() });
        }
        if let Some(key) = &self.seal {
            let sealed = seal::seal(bytes, references, key);
            let (name, coded) = sealed.map_err(|damage| Error::Damaged { name: Hash::of(bytes), damage })?;
            if self.renews || !self.contains(&name)? {
                self.append(name, &coded)?;
            }
            return Ok(name);
        }
        let name = Hash::of(bytes);
        if self.renews || !self.contains(&name)? {
            self.append(name, &object::encode(bytes))?;
        }
        Ok(name)
    }

    fn fresh(&self) -> MutexGuard<'_, HashMap<Hash, Location>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was put is on the disk and can be found, and the news are told; or nothing of it.
    ///
    /// # Errors
    /// Where that can't be.
    pub fn commit(&mut self, news: &News) -> Result<(), Error> {
        commit_together(&mut [(self, news)])
    }
}

/// [`Session::commit`] of several sessions of one store: all of it at one instant, for which the disk is waited for once.
///
/// # Errors
/// As [`Session::commit`].
pub(crate) fn commit_together(parts: &mut [(&mut Session, &News)]) -> Result<(), Error> {
    let Some(store) = parts.first().map(|(session, _)| session.store.clone()) else { return Ok(()) };
    let Shared { packs, index, .. } = &*store.shared;
    // Whatever comes of it: what may not have reached the disk is put again by whoever tries again.
    let fresh: Vec<HashMap<Hash, Location>> =
        parts.iter().map(|(session, _)| mem::take(&mut *session.fresh())).collect();
    packs.sync(&fresh.iter().flat_map(HashMap::values).map(|location| location.pack).collect())?;
    // A collection that begins sees what is committed, or is told of it.
    let mut claims = store.claims();
    for ((session, _), fresh) in parts.iter().zip(&fresh) {
        claims.commits(session.id, fresh.keys());
    }
    let known: Vec<_> = fresh.iter().zip(parts.iter()).map(|(fresh, (_, news))| (fresh, *news)).collect();
    index.commit(&known)?;
    // Of a generation that comes in several commits the first must not be freed before the last.
    for ((session, _), fresh) in parts.iter().zip(fresh) {
        claims.of(session.id).found.extend(fresh.into_keys());
    }
    Ok(())
}

impl Drop for Session {
    fn drop(&mut self) {
        self.store.claims().end(self.id);
    }
}

impl Sink for Session {
    fn put_with(&mut self, bytes: &[u8], references: &[Reference]) -> Result<Hash, Error> {
        self.keep(bytes, references)
    }
}

impl Sink for &Session {
    fn put_with(&mut self, bytes: &[u8], references: &[Reference]) -> Result<Hash, Error> {
        self.keep(bytes, references)
    }
}

/// What was put a moment ago can be read, too.
impl Objects for Session {
    fn get(&self, name: &Hash) -> Result<Vec<u8>, Error> {
        self.store.opened(&self.laid_down(name)?, name)
    }
}

/// What is laid down is the object of that name, as far as can be told without a key.
fn verified(coded: &[u8], name: &Hash) -> Result<(), Error> {
    object::verify(coded, name).map_err(|damage| Error::Damaged { name: *name, damage })
}

fn references(coded: &[u8], name: &Hash) -> Result<Vec<Reference>, Error> {
    let damaged = |damage| Error::Damaged { name: *name, damage };
    if !seal::is_sealed(coded) {
        return Err(damaged(Damaged::NotSealed));
    }
    seal::verify(coded, name).and_then(|()| seal::references(coded)).map_err(damaged)
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { operation, path: path.to_owned(), source }
}
