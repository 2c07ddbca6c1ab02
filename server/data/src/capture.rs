//! A generation of a directory.
//!
//! [`Capture::read`] reads what has changed while programs go on writing, as often as is wanted; what is left to [`Capture::finish`],
//! for which they stand still, is what they changed meanwhile. So the tree is the directory at one instant, and the instant is short.
//! [`Captured::commit`] makes it last, which takes the disk its time and holds up nobody.
//!
//! A file is read again only if its inode was changed since it was read last. That is told by the time of the last change, which
//! no program can set back, and by more ([`Seen`]); a file that was changed at the very moment when it was read counts as changed.

mod content;

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsFd,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::fs::{FileType, Stat};

use crate::{
    Hash,
    place::{self, Place, kind},
    store::{self, Generation, NewSight, News, Seen, Session, Sight, Store},
    stream::{self, Stream},
    tree::{self, DEPTH_MAX, Directory, Entry, File, Meta, Name, Node, Root, Totals},
};

/// How exact the times of a file system are: the kernel sets them by its tick. Nanoseconds.
const TICK: i128 = 20_000_000;

/// A file that somebody keeps on changing though the instance stands still is taken as it is after so many tries.
const TRIES: usize = 3;

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
    seen: Vec<([u8; 16], Option<Seen>)>,
    figures: Figures,
}

/// A tree that is complete, and lasts when it is committed.
#[derive(Debug)]
pub struct Captured {
    session: Session,
    volume: String,
    seen: Vec<([u8; 16], Option<Seen>)>,
    pub root: Hash,
    pub totals: Totals,
    pub figures: Figures,
}

impl Capture {
    /// # Errors
    /// Where the directory or the store can't be read.
    pub fn begin(store: &Store, volume: &str, directory: &Path) -> Result<Self, Error> {
        let previous = match store.sight(volume)? {
            Some(Sight { root }) => Some(Root::read(store, &root)?),
            None => None,
        };
        Ok(Self {
            store: store.clone(),
            session: store.session(),
            volume: volume.to_owned(),
            place: Place::open(directory)?,
            previous,
            read: HashMap::new(),
            seen: Vec::new(),
            figures: Figures::default(),
        })
    }

    /// Reads what has changed in the scope. What changes again meanwhile is left to the next time.
    ///
    /// # Errors
    /// Where something can't be read or kept.
    pub fn read(&mut self, scope: &Scope) -> Result<(), Error> {
        let place = Place::open(self.place.path())?;
        self.visit(&place, &mut Vec::new(), scope)
    }

    fn visit(&mut self, place: &Place, path: &mut Vec<u8>, scope: &Scope) -> Result<(), Error> {
        let names = match scope {
            Scope::Everything => place.names()?,
            Scope::Only(names) => names.keys().cloned().collect(),
        };
        for name in names {
            let Some(scope) = scope.of(&name) else { continue };
            let len = enter(path, &name)?;
            match self.visit_one(place, path, &name, scope) {
                Err(error) if error.is_gone() => {}
                visited => visited?,
            }
            path.truncate(len);
        }
        Ok(())
    }

    fn visit_one(&mut self, place: &Place, path: &mut Vec<u8>, name: &Name, scope: &Scope) -> Result<(), Error> {
        let stat = place.stat(name)?;
        match kind(&stat) {
            FileType::Directory => self.visit(&place.directory(name)?, path, scope),
            FileType::RegularFile if self.is_known(path, &stat)?.is_none() => {
                let read = self.read_file(place, name)?;
                if read.whole {
                    self.read.insert(path.clone(), read);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Why a file need not be read, if it has not changed.
    fn is_known(&self, path: &[u8], stat: &Stat) -> Result<Option<Known>, Error> {
        let now = place::seen(stat);
        if let Some(read) = self.read.get(path)
            && read.seen == now
        {
            return Ok(Some(Known::Read(read.clone())));
        }
        let before = self.store.seen(&self.volume, Seen::key(path))?;
        Ok((self.previous.is_some() && before == Some(now)).then_some(Known::Before))
    }

    fn read_file(&mut self, place: &Place, name: &Name) -> Result<Read, Error> {
        let opened = place.file(name)?;
        let began = now();
        let look = || rustix::fs::fstat(&opened).map_err(|error| place.failed("look at", name, error));
        let before = look()?;
        let file = content::read(&opened, &before, &mut self.session, || place.path_of(name))?;
        let seen = place::seen(&before);
        self.figures.files_read += 1;
        self.figures.read += file.content.len;
        Ok(Read { file, seen, whole: place::seen(&look()?) == seen, settled: seen.changed + TICK < began })
    }

    /// The directory as it is now. Nobody must write to it until this is done.
    ///
    /// # Errors
    /// Where something can't be read or kept.
    pub fn finish(mut self, scope: &Scope) -> Result<Captured, Error> {
        let place = Place::open(self.place.path())?;
        let previous = self.previous.clone();
        let before = previous.as_ref().map(|root| &root.entries);
        let scope = if before.is_some() { scope } else { &Scope::Everything };
        let limited = matches!(scope, Scope::Only(_));
        let mut twins = Twins { limited, ..Twins::default() };
        let mut entries = self.build(&place, &mut Vec::new(), scope, before, &mut twins)?;
        if twins.are_elsewhere {
            twins = Twins::default();
            entries = self.build(&place, &mut Vec::new(), &Scope::Everything, before, &mut twins)?;
        }
        let stat = rustix::fs::fstat(place.fd()).map_err(|error| place::failed("look at", place.path(), error))?;
        let attributes = place::attributes(place.fd()).map_err(|source| place::failed("read", place.path(), source))?;
        let totals = entries.totals;
        let root = Root::new(meta(&stat, attributes), entries).write(&mut self.session)?;
        let Self { session, volume, seen, figures, .. } = self;
        Ok(Captured { session, volume, seen, root, totals, figures })
    }

    fn build(
        &mut self,
        place: &Place,
        path: &mut Vec<u8>,
        scope: &Scope,
        before: Option<&Stream>,
        twins: &mut Twins,
    ) -> Result<Directory, Error> {
        let known: Vec<Entry> = match before {
            Some(before) => tree::entries(before, &self.session).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let names = match scope {
            Scope::Everything => place.names()?,
            Scope::Only(names) => names.keys().cloned().collect(),
        };
        let mut entries = Vec::with_capacity(known.len().max(names.len()));
        let mut known = known.into_iter().peekable();
        for name in names {
            while let Some(entry) = known.next_if(|entry| entry.name < name) {
                match scope {
                    Scope::Everything => self.gone(path, &entry, twins)?,
                    Scope::Only(_) => entries.push(entry),
                }
            }
            let before = known.next_if(|entry| entry.name == name);
            let Some(scope) = scope.of(&name) else { continue };
            twins.note(before.as_ref());
            let len = enter(path, &name)?;
            match self.build_one(place, path, name, scope, before.as_ref(), twins) {
                Ok(entry) => entries.push(entry),
                Err(error) if error.is_gone() => {
                    path.truncate(len);
                    if let Some(entry) = before {
                        self.gone(path, &entry, twins)?;
                    }
                }
                Err(error) => return Err(error),
            }
            path.truncate(len);
        }
        for entry in known {
            match scope {
                Scope::Everything => self.gone(path, &entry, twins)?,
                Scope::Only(_) => entries.push(entry),
            }
        }
        let totals = entries.iter().fold(Totals::default(), Totals::plus);
        Ok(Directory { entries: tree::write(entries.into_iter().map(Ok), &mut self.session)?, totals })
    }

    /// Forgets what was seen of something that is not there any more.
    fn gone(&mut self, path: &[u8], entry: &Entry, twins: &mut Twins) -> Result<(), Error> {
        twins.note(Some(entry));
        let mut path = path.to_vec();
        enter(&mut path, &entry.name)?;
        match &entry.node {
            Node::Directory(below) => {
                let below: Vec<Entry> = tree::entries(&below.entries, &self.session).collect::<Result<_, _>>()?;
                below.iter().try_for_each(|entry| self.gone(&path, entry, twins))
            }
            Node::File(_) | Node::Twin { .. } => {
                self.seen.push((Seen::key(&path), None));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn build_one(
        &mut self,
        place: &Place,
        path: &mut Vec<u8>,
        name: Name,
        scope: &Scope,
        before: Option<&Entry>,
        twins: &mut Twins,
    ) -> Result<Entry, Error> {
        let stat = place.stat(&name)?;
        if let Some(entry @ Entry { node: Node::Directory(_), .. }) = before
            && kind(&stat) != FileType::Directory
        {
            let above = path.len() - name.as_bytes().len();
            self.gone(path[..above].strip_suffix(b"/").unwrap_or_default(), entry, twins)?;
        }
        let plain = |node| Entry { name: name.clone(), meta: meta(&stat, BTreeMap::new()), node };
        Ok(match kind(&stat) {
            FileType::Directory => {
                let below = place.directory(&name)?;
                let attributes = place::attributes(below.fd()).map_err(|source| place.failed("read", &name, source))?;
                let (scope, before) = match before {
                    Some(Entry { node: Node::Directory(below), .. }) => (scope, Some(&below.entries)),
                    _ => (&Scope::Everything, None),
                };
                let node = Node::Directory(self.build(&below, path, scope, before, twins)?);
                Entry { name, meta: meta(&stat, attributes), node }
            }
            FileType::RegularFile => self.build_file(place, path, name, &stat, before, twins)?,
            FileType::Symlink => plain(Node::Link { target: place.link(&name)? }),
            FileType::Fifo => plain(Node::Fifo),
            FileType::Socket => plain(Node::Socket),
            other => plain(Node::Device {
                block: other == FileType::BlockDevice,
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            }),
        })
    }

    fn build_file(
        &mut self,
        place: &Place,
        path: &[u8],
        name: Name,
        stat: &Stat,
        before: Option<&Entry>,
        twins: &mut Twins,
    ) -> Result<Entry, Error> {
        let has_twins = stat.st_nlink > 1;
        if has_twins {
            // Some may lie where nobody looks.
            twins.are_elsewhere |= twins.limited;
            if let Some(of) = twins.first.get(&stat.st_ino) {
                return Ok(Entry { name, meta: Meta::default(), node: Node::Twin { of: of.clone() } });
            }
            twins.first.insert(stat.st_ino, path.to_vec());
        }
        let known = match self.is_known(path, stat)? {
            Some(Known::Before) => match before {
                Some(Entry { meta, node: Node::File(file), .. }) => {
                    let node = Node::File(File { has_twins, ..file.clone() });
                    return Ok(Entry { name, meta: meta.clone(), node });
                }
                // What it was a twin of is gone.
                _ => None,
            },
            Some(Known::Read(read)) => Some(read),
            None => None,
        };
        let opened = place.file(&name)?;
        let attributes = place::attributes(opened.as_fd()).map_err(|source| place.failed("read", &name, source))?;
        let read = match known {
            Some(read) => read,
            None => self.read_still(place, path, &name)?,
        };
        self.seen.push((Seen::key(path), read.settled.then_some(read.seen)));
        Ok(Entry { name, meta: meta(stat, attributes), node: Node::File(File { has_twins, ..read.file }) })
    }

    /// Reads a file to which nobody should write now.
    fn read_still(&mut self, place: &Place, path: &[u8], name: &Name) -> Result<Read, Error> {
        for _ in 1..TRIES {
            let read = self.read_file(place, name)?;
            if read.whole {
                return Ok(read);
            }
        }
        let read = self.read_file(place, name)?;
        if !read.whole {
            self.figures.torn.push(String::from_utf8_lossy(path).into_owned());
        }
        Ok(Read { settled: read.settled && read.whole, ..read })
    }
}

impl Captured {
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
        let seen = std::mem::take(&mut self.seen);
        let sight = NewSight { volume: self.volume.clone(), sight: Sight { root: self.root }, seen };
        News { generation: Some((name.to_owned(), generation)), sight: Some(sight) }
    }
}

/// A file that was read.
#[derive(Clone, Debug)]
struct Read {
    file: File,
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

/// Files with several names.
#[derive(Debug, Default)]
struct Twins {
    /// By inode, the path at which it was met first.
    first: HashMap<u64, Vec<u8>>,
    /// Not everything is looked at.
    limited: bool,
    /// Names outside of the scope may have to change.
    are_elsewhere: bool,
}

impl Twins {
    /// A name of a file that had others.
    fn note(&mut self, before: Option<&Entry>) {
        let shared = |node: &Node| matches!(node, Node::Twin { .. } | Node::File(File { has_twins: true, .. }));
        self.are_elsewhere |= self.limited && before.is_some_and(|entry| shared(&entry.node));
    }
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

fn meta(stat: &Stat, attributes: BTreeMap<Vec<u8>, Vec<u8>>) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
        attributes,
    }
}

fn now() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128)
}
