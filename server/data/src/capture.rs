//! A generation of a directory.
//!
//! [`Capture::read`] reads what has changed while programs go on writing, as often as is wanted, [`Capture::base`] makes a tree of it,
//! and [`Capture::look_ahead`] has at hand what the rest will be compared with. What is left to [`Capture::still`], for which they stand
//! still, is what they changed meanwhile; and of that only what can't wait is read before they go on. So the tree is the directory at one
//! instant, and the instant is short. [`Still::finish`] writes the tree, and [`Captured::commit`] makes it last, which takes the disk its
//! time and holds up nobody.
//!
//! A file is read again only if its inode was changed since it was read last. That is told by the time of the last change, which
//! no program can set back, and by more ([`Seen`]); a file that was changed at the very moment when it was read counts as changed.

mod content;
mod look;
mod taken;

use std::{
    collections::{BTreeMap, HashMap},
    fs, panic,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{FileType, Stat};

pub use look::Still;
use taken::Aside;

use crate::{
    Hash,
    place::{self, Place, kind},
    seal::KeyId,
    store::{self, Generation, NewSight, News, Seen, Session, Sight, Store},
    stream::{self, Stream},
    tree::{self, DEPTH_MAX, Entry, File, Name, Node, Root, Totals},
};

/// How exact the times of a file system are: the kernel sets them by its tick. Nanoseconds.
const TICK: i128 = 20_000_000;

/// Files and directories of one volume. What was seen of each takes some hundred bytes of memory while a generation is made.
pub const NAMES_MAX: usize = 2_000_000;

/// Files that are read side by side at a time; each may hold its directory open.
const BATCH: usize = 256;

/// Fewer are not worth a thread.
const BATCH_SMALL: usize = 8;

/// Files that are read at one moment: the programs that write them have work to do, too.
const READERS_MAX: usize = 4;

/// Entries of directories that are read ahead: some hundred bytes of memory each.
const AHEAD_MAX: usize = 100_000;

/// Which part of a directory is looked at; of the rest is known that nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    /// These names alone, and below them what their own scope says.
    Only(BTreeMap<Name, Scope>),
}

impl Scope {
    pub fn nothing() -> Self {
        Self::Only(BTreeMap::new())
    }

    /// Adds what lies at a path, and everything below it.
    pub fn add(&mut self, path: &[Name]) {
        match (self, path.split_first()) {
            (Self::Everything, _) => {}
            (scope, None) => *scope = Self::Everything,
            (Self::Only(names), Some((first, rest))) => {
                names.entry(first.clone()).or_insert_with(Self::nothing).add(rest);
            }
        }
    }

    /// Adds what lies in another.
    pub fn merge(&mut self, more: Self) {
        match (&mut *self, more) {
            (Self::Only(names), Self::Only(others)) => {
                for (name, scope) in others {
                    names.entry(name).or_insert_with(Self::nothing).merge(scope);
                }
            }
            (Self::Only(_), Self::Everything) => *self = Self::Everything,
            (Self::Everything, _) => {}
        }
    }

    /// Has it more than so many names?
    pub fn is_wide(&self, names: usize) -> bool {
        let mut left = names;
        !self.fits(&mut left)
    }

    fn fits(&self, left: &mut usize) -> bool {
        let Self::Only(names) = self else { return false };
        names.values().all(|scope| {
            let counts = *left > 0;
            *left = left.saturating_sub(1);
            // What ends here is one name, whatever lies below it.
            counts && (*scope == Self::Everything || scope.fits(left))
        })
    }

    fn of(&self, name: &Name) -> Option<&Self> {
        match self {
            Self::Everything => Some(self),
            Self::Only(names) => names.get(name),
        }
    }
}

/// Why no generation could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] place::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("`{path}` lies in more than {DEPTH_MAX} directories; a volume can't keep it")]
    TooDeep { path: String },
    #[error(
        "it has more than {max} files and directories, which is more than a volume can keep; pack up what changes little, or \
         spread them over several volumes"
    )]
    TooMany { max: usize },
    #[error("what has changed takes longer to read than the {} s for which its programs may stand still", .0.as_secs_f32())]
    TooLong(Duration),
}

impl Error {
    /// It was there when its directory was listed, and is not any more.
    fn is_gone(&self) -> bool {
        matches!(self, Self::File(error) if error.is_gone())
    }
}

impl From<stream::Error> for Error {
    fn from(error: stream::Error) -> Self {
        Self::Tree(error.into())
    }
}

/// What a generation has, and what it took to make it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub files_read: u64,
    /// Bytes.
    pub read: u64,
    /// Files that were changed while they were read, although everything should have stood still: paths from the volume's directory.
    pub torn: Vec<String>,
}

impl Figures {
    fn add(&mut self, read: &Read) {
        self.files_read += 1;
        self.read += read.file.content.len;
    }
}

/// A file that is to be read.
#[derive(Debug)]
struct Changed {
    place: Arc<Place>,
    path: Vec<u8>,
    name: Name,
}

/// A generation that is being made.
#[derive(Debug)]
pub struct Capture {
    store: Store,
    session: Session,
    volume: String,
    place: Place,
    /// The newest generation that was made here, of which is known what was seen of its files.
    previous: Option<Root>,
    /// Files that were read by this capture, by path.
    read: HashMap<Vec<u8>, Read>,
    /// What to remember of files, by [`Seen::key`]; nothing where they shall be read next time, or are gone.
    seen: HashMap<[u8; 16], Option<Seen>>,
    /// Directories as they were in the generation before, by path: read before programs wait.
    ahead: HashMap<Vec<u8>, Vec<Entry>>,
    /// What to remember, of the look that is under way: it may have to begin anew.
    noted: Vec<([u8; 16], Option<Seen>)>,
    figures: Figures,
    programs: Programs,
    /// Names that may be met before the directory has too many.
    names_left: usize,
    names_max: usize,
}

/// What those that write do meanwhile.
#[derive(Debug)]
enum Programs {
    /// They go on: what they change is looked at again later.
    Run,
    /// There are none, and all the time in the world.
    AreNone,
    /// They wait.
    Wait(Aside),
}

/// A tree that is complete, and lasts when it is committed.
#[derive(Debug)]
pub struct Captured {
    session: Session,
    volume: String,
    seen: HashMap<[u8; 16], Option<Seen>>,
    pub root: Hash,
    pub totals: Totals,
    pub figures: Figures,
}

impl Capture {
    /// Of a volume that is not sealed.
    ///
    /// # Errors
    /// Where the directory or the store can't be read.
    pub fn begin(store: &Store, volume: &str, directory: &Path) -> Result<Self, Error> {
        Self::begin_sealed(store, volume, directory, None)
    }

    /// What it makes is sealed with this key throughout, except for what has not changed since it was sealed with another one. Where the
    /// volume was not sealed before, or shall not be any more, everything is read again: the two are never mixed.
    ///
    /// # Errors
    /// Where the directory or the store can't be read, or the key is not here.
    pub fn begin_sealed(store: &Store, volume: &str, directory: &Path, seal: Option<KeyId>) -> Result<Self, Error> {
        let session = seal.map_or_else(|| Ok(store.session()), |key| store.sealing_session(key))?;
        let known = |Sight { root }: Sight| match store.sealed_with(&root)?.is_some() == seal.is_some() {
            true => Root::read(store, &root).map(Some),
            false => Ok(None),
        };
        let previous = match store.sight(volume)?.map_or(Ok(None), known) {
            Ok(previous) => previous,
            // Its key is gone, or the disk has forgotten it; the directory is here.
            Err(tree::Error::Store(error)) if error.is_sealed() || error.is_lost() => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            store: store.clone(),
            session,
            volume: volume.to_owned(),
            place: Place::open(directory)?,
            previous,
            read: HashMap::new(),
            seen: HashMap::new(),
            ahead: HashMap::new(),
            noted: Vec::new(),
            figures: Figures::default(),
            programs: Programs::Run,
            names_left: NAMES_MAX,
            names_max: NAMES_MAX,
        })
    }

    /// This file is read whatever its times say.
    pub fn doubt(&mut self, path: &[Name]) {
        let path = joined(path);
        self.read.remove(&path);
        self.seen.insert(Seen::key(&path), None);
    }

    /// This file is read when programs wait, whatever was read of it before, unless it is as in the generation before. What they write to it in
    /// their memory shows in its times once, and not again before it is written back.
    ///
    /// # Errors
    /// Where the store can't be read, or the file not be looked at.
    pub fn doubt_if_changed(&mut self, path: &[Name], file: &fs::File) -> Result<(), Error> {
        let stat = rustix::fs::fstat(file).map_err(|error| place::failed("look at", self.place.path(), error))?;
        if self.store.seen(&self.volume, Seen::key(&joined(path)))? != Some(place::seen(&stat)) {
            self.doubt(path);
        }
        Ok(())
    }

    /// Reads what has changed in the scope. What changes again meanwhile is left to the next time.
    ///
    /// # Errors
    /// Where something can't be read or kept.
    pub fn read(&mut self, scope: &Scope) -> Result<(), Error> {
        let place = Arc::new(Place::open(self.place.path())?);
        self.names_left = self.names_max;
        let mut changed = Vec::new();
        self.visit(&place, &mut Vec::new(), scope, &mut changed)?;
        self.read_all(&mut changed)
    }

    fn visit(
        &mut self,
        place: &Arc<Place>,
        path: &mut Vec<u8>,
        scope: &Scope,
        changed: &mut Vec<Changed>,
    ) -> Result<(), Error> {
        let names = match scope {
            Scope::Everything => self.names(place)?,
            Scope::Only(names) => names.keys().cloned().collect(),
        };
        for name in names {
            let Some(scope) = scope.of(&name) else { continue };
            let len = enter(path, &name)?;
            match self.visit_one(place, path, &name, scope, changed) {
                Err(error) if error.is_gone() => {}
                visited => visited?,
            }
            path.truncate(len);
        }
        Ok(())
    }

    /// All that is in one of its directories.
    fn names(&mut self, place: &Place) -> Result<Vec<Name>, Error> {
        let names = place.names_up_to(self.names_left)?.ok_or(Error::TooMany { max: self.names_max })?;
        self.names_left -= names.len();
        Ok(names)
    }

    fn visit_one(
        &mut self,
        place: &Arc<Place>,
        path: &mut Vec<u8>,
        name: &Name,
        scope: &Scope,
        changed: &mut Vec<Changed>,
    ) -> Result<(), Error> {
        let stat = place.stat(name)?;
        match kind(&stat) {
            FileType::Directory => self.visit(&Arc::new(place.directory(name)?), path, scope, changed),
            FileType::RegularFile if self.is_known(path, &stat)?.is_none() => {
                changed.push(Changed { place: Arc::clone(place), path: path.clone(), name: name.clone() });
                if changed.len() < BATCH { Ok(()) } else { self.read_all(changed) }
            }
            _ => Ok(()),
        }
    }

    /// Reads files side by side. One that is gone by now is left to the look at its directory.
    fn read_all(&mut self, changed: &mut Vec<Changed>) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let (all, session) = (&*changed, &self.session);
        let some = || {
            let taken = std::iter::from_fn(|| all.get(next.fetch_add(1, Relaxed)));
            let read = |file: &Changed| (file.path.clone(), look::read_file(&file.place, &file.name, session, None));
            taken.map(read).collect::<Vec<_>>()
        };
        let read = thread::scope(|scope| {
            let cores = || thread::available_parallelism().map_or(1, usize::from);
            let others = if all.len() < BATCH_SMALL { 0 } else { cores().min(READERS_MAX) - 1 };
            // With fewer threads it takes longer.
            let others: Vec<_> =
                (0..others).filter_map(|_| thread::Builder::new().spawn_scoped(scope, some).ok()).collect();
            let mut read = some();
            for other in others {
                read.extend(other.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)));
            }
            read
        });
        changed.clear();
        for (path, read) in read {
            match read {
                Ok(read) => {
                    self.figures.add(&read);
                    if read.whole {
                        self.read.insert(path, read);
                    }
                }
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Why a file need not be read, if it has not changed.
    fn is_known(&self, path: &[u8], stat: &Stat) -> Result<Option<Known>, Error> {
        let now = place::seen(stat);
        if let Some(read) = self.read.get(path)
            && read.seen == now
        {
            return Ok(Some(Known::Read(read.clone())));
        }
        let key = Seen::key(path);
        let before = match self.seen.get(&key) {
            Some(seen) => *seen,
            None => self.store.seen(&self.volume, key)?,
        };
        Ok((self.previous.is_some() && before == Some(now)).then_some(Known::Before))
    }

    /// The directory as it is, while programs go on, as far as it differs from the generation before in this scope. What they change
    /// from now on is what [`Self::still`] has to look at.
    ///
    /// # Errors
    /// Where something can't be read or kept.
    pub fn base(&mut self, scope: &Scope) -> Result<(), Error> {
        let (meta, found) = self.look(scope)?;
        let (root, _) = found.write(meta, &mut self.session, &mut self.figures)?;
        self.previous = Some(Root::read(&self.session, &root)?);
        self.ahead.clear();
        // What was torn is whole when it is read again.
        self.figures.torn.clear();
        Ok(())
    }

    /// Reads the directories of the generation before in which something of this scope lies: what changes while this is done mostly lies
    /// there as well, and programs that wait wait for less.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub fn look_ahead(&mut self, scope: &Scope) -> Result<(), Error> {
        self.ahead.clear();
        let Some(entries) = self.previous.as_ref().map(|root| root.entries.clone()) else { return Ok(()) };
        let mut left = AHEAD_MAX;
        self.look_into(&entries, &mut Vec::new(), scope, &mut left)
    }

    fn look_into(
        &mut self,
        directory: &Stream,
        path: &mut Vec<u8>,
        scope: &Scope,
        left: &mut usize,
    ) -> Result<(), Error> {
        // Where all of it is looked at it takes its time in any case.
        let Scope::Only(names) = scope else { return Ok(()) };
        if names.is_empty() {
            return Ok(());
        }
        let entries: Vec<Entry> = tree::entries(directory, &self.session).take(*left + 1).collect::<Result<_, _>>()?;
        let Some(rest) = left.checked_sub(entries.len()) else { return Ok(()) };
        *left = rest;
        for (name, scope) in names {
            let Ok(index) = entries.binary_search_by(|entry| entry.name.cmp(name)) else { continue };
            let Node::Directory(below) = &entries[index].node else { continue };
            let len = enter(path, name)?;
            self.look_into(&below.entries.clone(), path, scope, left)?;
            path.truncate(len);
        }
        self.ahead.insert(path.clone(), entries);
        Ok(())
    }

    /// The directory as it is now, where no program writes to it any more.
    ///
    /// # Errors
    /// Where something can't be read or kept.
    pub fn finish(mut self, scope: &Scope) -> Result<Captured, Error> {
        self.programs = Programs::AreNone;
        self.fix(scope)?.finish()
    }

    /// The directory as it is now. Nobody must write to it until this returns, which takes no longer than `at_most`.
    ///
    /// # Errors
    /// Where something can't be read or kept, or that would take longer.
    pub fn still(mut self, scope: &Scope, at_most: Duration) -> Result<Still, Error> {
        self.programs = Programs::Wait(Aside::new(self.place.path(), Instant::now(), at_most));
        self.fix(scope)
    }
}

impl Captured {
    /// Bytes that it needs beside what was kept before, as they are laid down.
    pub fn fresh_bytes(&self) -> u64 {
        self.session.fresh_bytes()
    }

    /// Makes the generation last: from then on it is found, and whatever happens to the machine it is whole.
    ///
    /// # Errors
    /// Where it can't be kept.
    pub fn commit(self, epoch: u64, sequence: u64, taken_at: u64) -> Result<Generation, Error> {
        let volume = self.volume.clone();
        self.commit_as(&volume, epoch, sequence, taken_at)
    }

    /// The same, among the generations of another name: of what the volume was, and is no more.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_as(mut self, name: &str, epoch: u64, sequence: u64, taken_at: u64) -> Result<Generation, Error> {
        let generation = Generation { epoch, sequence, taken_at, root: self.root };
        let news = self.news(name, generation);
        self.session.commit(&news)?;
        Ok(generation)
    }

    /// Makes several volumes' generations last together, or none of them.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_all(mut all: Vec<Self>, epoch: u64, sequence: u64, taken_at: u64) -> Result<(), Error> {
        let news: Vec<News> = all
            .iter_mut()
            .map(|captured| {
                let volume = captured.volume.clone();
                captured.news(&volume, Generation { epoch, sequence, taken_at, root: captured.root })
            })
            .collect();
        let sessions = all.iter_mut().map(|captured| &mut captured.session);
        Ok(store::commit_together(&mut sessions.zip(&news).collect::<Vec<_>>())?)
    }

    fn news(&mut self, name: &str, generation: Generation) -> News {
        let seen = std::mem::take(&mut self.seen).into_iter().collect();
        let sight = NewSight { volume: self.volume.clone(), sight: Sight { root: self.root }, seen };
        News { generation: Some((name.to_owned(), generation)), sight: Some(sight) }
    }
}

/// A file that was read.
#[derive(Clone, Debug)]
struct Read {
    file: File,
    /// Extended ones.
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    seen: Seen,
    /// It did not change while it was read.
    whole: bool,
    /// Nor had it changed just before, so that a change just after shows.
    settled: bool,
}

/// Why a file need not be read.
enum Known {
    /// This capture has read it.
    Read(Read),
    /// It is as in the generation before.
    Before,
}

fn joined(path: &[Name]) -> Vec<u8> {
    path.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/')
}

fn enter(path: &mut Vec<u8>, name: &Name) -> Result<usize, Error> {
    let len = path.len();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    if path.iter().filter(|byte| **byte == b'/').count() >= DEPTH_MAX {
        return Err(Error::TooDeep { path: String::from_utf8_lossy(path).into_owned() });
    }
    Ok(len)
}

fn now() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_as_wide_as_it_has_names() {
        let name = |text: &str| Name::try_from(text.as_bytes().to_vec()).unwrap();
        let mut scope = Scope::nothing();
        assert!(!scope.is_wide(0));
        scope.add(&[name("a"), name("b")]);
        scope.add(&[name("a"), name("c")]);
        assert!(scope.is_wide(2) && !scope.is_wide(3), "the directory counts as well");
        assert!(Scope::Everything.is_wide(1_000));
    }

    #[test]
    fn a_directory_of_too_many_names_is_refused_and_one_of_just_as_many_is_not() {
        let temporary = tempfile::tempdir().unwrap();
        let (volume, store) = (temporary.path().join("volume"), Store::open(&temporary.path().join("store")).unwrap());
        for directory in ["one", "two"] {
            fs::create_dir_all(volume.join(directory)).unwrap();
            fs::write(volume.join(directory).join("file"), directory).unwrap();
        }
        let capture = |max| {
            let mut capture = Capture::begin(&store, "notes/data", &volume).unwrap();
            capture.names_max = max;
            capture.read(&Scope::Everything)?;
            capture.finish(&Scope::Everything)?.commit(1, 1, 7)
        };
        let refused = capture(3).unwrap_err();
        assert!(matches!(refused, Error::TooMany { max: 3 }), "{refused}");
        assert_eq!(store.generations("notes/data").unwrap(), []);
        capture(4).unwrap();
    }
}
