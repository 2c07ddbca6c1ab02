//! A directory as it is found, and the tree that is made of it.
//!
//! While programs wait, nothing is written that can be written later: what was found is a [`Found`], of which the directories that
//! have changed are in memory and their new content is put aside.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::fd::AsFd,
    time::Instant,
};

use rustix::fs::{FileType, Stat};

use super::{
    Capture, Captured, Error, Figures, Known, Programs, Read, Scope, TICK, content, enter, now,
    taken::{Aside, Taken},
};
use crate::{
    Hash,
    place::{self, Place, kind},
    store::{Seen, Session},
    stream::Stream,
    tree::{self, Directory, Entry, File, Meta, Name, Node, Root, Totals},
};

/// A file that somebody keeps on changing though the instance stands still is taken as it is after so many tries.
const TRIES: usize = 3;

/// The directory at one instant: whoever waited for that may go on.
#[derive(Debug)]
pub struct Still {
    capture: Capture,
    meta: Meta,
    found: Found,
}

/// What is in a directory.
#[derive(Debug)]
pub(super) enum Found {
    /// It is in the store.
    Kept(Directory),
    InMemory(Vec<Draft>),
}

/// An entry, which may not be in the store yet.
#[derive(Debug)]
pub(super) enum Draft {
    Entry(Entry),
    File { name: Name, meta: Meta, taken: Taken, has_twins: bool },
    Directory { name: Name, meta: Meta, found: Vec<Draft> },
}

impl Still {
    /// Writes the tree.
    ///
    /// # Errors
    /// Where something that was put aside can't be read, or not be kept.
    pub fn finish(self) -> Result<Captured, Error> {
        let Self { capture: Capture { mut session, volume, seen, mut figures, .. }, meta, found } = self;
        let (root, totals) = found.write(meta, &mut session, &mut figures)?;
        Ok(Captured { session, volume, seen, root, totals, figures })
    }
}

impl Found {
    /// The root, and what is below it.
    pub(super) fn write(
        self,
        meta: Meta,
        session: &mut Session,
        figures: &mut Figures,
    ) -> Result<(Hash, Totals), Error> {
        let directory = match self {
            Self::Kept(directory) => directory,
            Self::InMemory(drafts) => write(drafts, session, figures)?,
        };
        let totals = directory.totals;
        Ok((Root::new(meta, directory).write(session)?, totals))
    }
}

fn write(drafts: Vec<Draft>, session: &mut Session, figures: &mut Figures) -> Result<Directory, Error> {
    let mut entries = Vec::with_capacity(drafts.len());
    for draft in drafts {
        entries.push(match draft {
            Draft::Entry(entry) => entry,
            Draft::File { name, meta, taken, has_twins } => {
                let file = taken.keep(session)?;
                figures.files_read += 1;
                figures.read += file.content.len;
                Entry { name, meta, node: Node::File(File { has_twins, ..file }) }
            }
            Draft::Directory { name, meta, found } => {
                Entry { name, meta, node: Node::Directory(write(found, session, figures)?) }
            }
        });
    }
    let totals = entries.iter().fold(Totals::default(), Totals::plus);
    Ok(Directory { entries: tree::write(entries.into_iter().map(Ok), session)?, totals })
}

/// What was found out of one file's content.
enum Content {
    Read(Read),
    Taken { taken: Taken, attributes: BTreeMap<Vec<u8>, Vec<u8>>, settled: bool, seen: Seen },
}

impl Capture {
    pub(super) fn fix(mut self, scope: &Scope) -> Result<Still, Error> {
        let (meta, found) = self.look(scope)?;
        Ok(Still { capture: self, meta, found })
    }

    pub(super) fn look(&mut self, scope: &Scope) -> Result<(Meta, Found), Error> {
        let place = Place::open(self.place.path())?;
        let previous = self.previous.clone();
        let before = previous.as_ref().map(|root| &root.entries);
        let scope = if before.is_some() { scope } else { &Scope::Everything };
        let limited = matches!(scope, Scope::Only(_));
        let mut twins = Twins { limited, ..Twins::default() };
        self.names_left = self.names_max;
        let mut found = self.directory(&place, &mut Vec::new(), scope, before, &mut twins)?;
        if twins.are_elsewhere {
            twins = Twins::default();
            self.names_left = self.names_max;
            self.noted.clear();
            if let Programs::Wait(aside) = &mut self.programs {
                aside.empty();
            }
            found = self.directory(&place, &mut Vec::new(), &Scope::Everything, before, &mut twins)?;
        }
        self.seen.extend(self.noted.drain(..));
        let stat = rustix::fs::fstat(place.fd()).map_err(|error| place::failed("look at", place.path(), error))?;
        let attributes = place::attributes(place.fd()).map_err(|source| place::failed("read", place.path(), source))?;
        Ok((meta(&stat, attributes), found))
    }

    fn directory(
        &mut self,
        place: &Place,
        path: &mut Vec<u8>,
        scope: &Scope,
        before: Option<&Stream>,
        twins: &mut Twins,
    ) -> Result<Found, Error> {
        let known: Vec<Entry> = match (before, self.ahead.remove(path.as_slice())) {
            (Some(_), Some(entries)) => entries,
            (Some(before), None) => tree::entries(before, &self.session).collect::<Result<_, _>>()?,
            (None, _) => Vec::new(),
        };
        let names = match scope {
            Scope::Everything => self.names(place)?,
            Scope::Only(names) => names.keys().cloned().collect(),
        };
        let mut found = Vec::with_capacity(known.len().max(names.len()));
        let mut known = known.into_iter().peekable();
        for name in names {
            if let Programs::Wait(aside) = &self.programs {
                aside.check()?;
            }
            while let Some(entry) = known.next_if(|entry| entry.name < name) {
                match scope {
                    Scope::Everything => self.gone(path, &entry, twins)?,
                    Scope::Only(_) => found.push(Draft::Entry(entry)),
                }
            }
            let before = known.next_if(|entry| entry.name == name);
            let Some(scope) = scope.of(&name) else { continue };
            twins.note(before.as_ref());
            let len = enter(path, &name)?;
            match self.one(place, path, name, scope, before.as_ref(), twins) {
                Ok(draft) => found.push(draft),
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
                Scope::Only(_) => found.push(Draft::Entry(entry)),
            }
        }
        Ok(match self.programs {
            Programs::Wait(_) => Found::InMemory(found),
            // Ten million names are no matter then.
            Programs::Run | Programs::AreNone => Found::Kept(write(found, &mut self.session, &mut self.figures)?),
        })
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
                self.noted.push((Seen::key(&path), None));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn one(
        &mut self,
        place: &Place,
        path: &mut Vec<u8>,
        name: Name,
        scope: &Scope,
        before: Option<&Entry>,
        twins: &mut Twins,
    ) -> Result<Draft, Error> {
        let stat = place.stat(&name)?;
        if let Some(entry @ Entry { node: Node::Directory(_), .. }) = before
            && kind(&stat) != FileType::Directory
        {
            let above = path.len() - name.as_bytes().len();
            self.gone(path[..above].strip_suffix(b"/").unwrap_or_default(), entry, twins)?;
        }
        let node = match kind(&stat) {
            FileType::Directory => {
                let below = place.directory(&name)?;
                let attributes = place::attributes(below.fd()).map_err(|source| place.failed("read", &name, source))?;
                let (scope, before) = match before {
                    Some(Entry { node: Node::Directory(below), .. }) => (scope, Some(&below.entries)),
                    _ => (&Scope::Everything, None),
                };
                let meta = meta(&stat, attributes);
                return Ok(match self.directory(&below, path, scope, before, twins)? {
                    Found::Kept(directory) => Draft::Entry(Entry { name, meta, node: Node::Directory(directory) }),
                    Found::InMemory(found) => Draft::Directory { name, meta, found },
                });
            }
            FileType::RegularFile => return self.file(place, path, name, &stat, before, twins),
            FileType::Symlink => Node::Link { target: place.link(&name)? },
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            other => Node::Device {
                block: other == FileType::BlockDevice,
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            },
        };
        Ok(Draft::Entry(Entry { name, meta: meta(&stat, BTreeMap::new()), node }))
    }

    fn file(
        &mut self,
        place: &Place,
        path: &[u8],
        name: Name,
        stat: &Stat,
        before: Option<&Entry>,
        twins: &mut Twins,
    ) -> Result<Draft, Error> {
        let has_twins = stat.st_nlink > 1;
        if has_twins {
            // Some may lie where nobody looks.
            twins.are_elsewhere |= twins.limited;
            if let Some(of) = twins.first.get(&stat.st_ino) {
                return Ok(Draft::Entry(Entry { name, meta: Meta::default(), node: Node::Twin { of: of.clone() } }));
            }
            twins.first.insert(stat.st_ino, path.to_vec());
        }
        let known = match self.is_known(path, stat)? {
            Some(Known::Before) => match before {
                Some(Entry { meta, node: Node::File(file), .. }) => {
                    let node = Node::File(File { has_twins, ..file.clone() });
                    return Ok(Draft::Entry(Entry { name, meta: meta.clone(), node }));
                }
                // What it was a twin of is gone.
                _ => None,
            },
            Some(Known::Read(read)) => Some(read),
            None => None,
        };
        let content = match known {
            Some(read) => Content::Read(read),
            None => self.content(place, path, &name)?,
        };
        let (settled, seen) = match &content {
            Content::Read(Read { settled, seen, .. }) | Content::Taken { settled, seen, .. } => (*settled, *seen),
        };
        self.noted.push((Seen::key(path), settled.then_some(seen)));
        Ok(match content {
            Content::Read(Read { file, attributes, .. }) => {
                let node = Node::File(File { has_twins, ..file });
                Draft::Entry(Entry { name, meta: meta(stat, attributes), node })
            }
            Content::Taken { taken, attributes, .. } => {
                Draft::File { name, meta: meta(stat, attributes), taken, has_twins }
            }
        })
    }

    /// Of a file to which nobody should write now.
    fn content(&mut self, place: &Place, path: &[u8], name: &Name) -> Result<Content, Error> {
        let mut tries = 1;
        loop {
            let (content, whole) = self.attempt(place, name)?;
            if whole {
                return Ok(content);
            }
            if tries < TRIES {
                tries += 1;
                continue;
            }
            self.figures.torn.push(String::from_utf8_lossy(path).into_owned());
            return Ok(match content {
                Content::Read(read) => Content::Read(Read { settled: false, ..read }),
                Content::Taken { taken, attributes, seen, .. } => {
                    Content::Taken { taken, attributes, settled: false, seen }
                }
            });
        }
    }

    /// And did it stay as it is?
    fn attempt(&mut self, place: &Place, name: &Name) -> Result<(Content, bool), Error> {
        if let Programs::Wait(aside) = &mut self.programs
            && let Some(taken) = aside.attempt(place, name)?
        {
            return Ok(taken);
        }
        let read = self.read_file(place, name)?;
        let whole = read.whole;
        Ok((Content::Read(read), whole))
    }

    fn read_file(&mut self, place: &Place, name: &Name) -> Result<Read, Error> {
        let aside = match &self.programs {
            Programs::Wait(aside) => Some(aside),
            Programs::Run | Programs::AreNone => None,
        };
        match read_file(place, name, &self.session, aside.map(Aside::end)) {
            Ok(read) => {
                self.figures.add(&read);
                Ok(read)
            }
            Err(error) => {
                aside.map_or(Ok(()), Aside::check)?;
                Err(error)
            }
        }
    }
}

/// Keeps the content of a file, for which it is read until `end`.
pub(super) fn read_file(place: &Place, name: &Name, session: &Session, end: Option<Instant>) -> Result<Read, Error> {
    let opened = place.file(name)?;
    let began = now();
    let before = look_at(&opened, place, name)?;
    let failed = |source: io::Error| Error::File(place.failed("read", name, source));
    let (len, holes) = content::extent(&opened, &before).map_err(failed)?;
    let bytes = content::Until { inner: content::bytes(&opened, len, &holes), end };
    let file = content::write(bytes, len, holes.clone(), session)?;
    let attributes = place::attributes(opened.as_fd()).map_err(failed)?;
    let seen = place::seen(&before);
    let whole = place::seen(&look_at(&opened, place, name)?) == seen;
    Ok(Read { file, attributes, seen, whole, settled: seen.changed + TICK < began })
}

impl Aside {
    fn attempt(&mut self, place: &Place, name: &Name) -> Result<Option<(Content, bool)>, Error> {
        let opened = place.file(name)?;
        let began = now();
        let before = look_at(&opened, place, name)?;
        let Some(taken) = self.take(&opened, &before, place, name)? else { return Ok(None) };
        let attributes = place::attributes(opened.as_fd()).map_err(|source| place.failed("read", name, source))?;
        let seen = place::seen(&before);
        let whole = place::seen(&look_at(&opened, place, name)?) == seen;
        Ok(Some((Content::Taken { taken, attributes, settled: seen.changed + TICK < began, seen }, whole)))
    }
}

fn look_at(opened: &fs::File, place: &Place, name: &Name) -> Result<Stat, Error> {
    rustix::fs::fstat(opened).map_err(|error| place.failed("look at", name, error).into())
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

fn meta(stat: &Stat, attributes: BTreeMap<Vec<u8>, Vec<u8>>) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
        attributes,
    }
}
