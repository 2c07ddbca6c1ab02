//! A generation from other stores.
//!
//! Who fetches goes through the tree and asks for what it does not have. Beside it goes the newest generation of the volume that is here:
//! what both have, is here as a whole, and is not gone through. What came before an interruption is not asked for again. Any number of
//! sources may be asked side by side; each object is checked against its name, so that none of them has to be trusted. What is here and can't
//! be read, though the way goes through it, comes once more. What is sealed is gone through by what its objects
//! refer to in the clear: who fetches it needs no key.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::{
    Hash,
    seal::{Kind, Reference},
    store::{self, Generation, News, Objects, Session, Store},
    stream::{Cursor, Piece, Stream},
    tree::{self, Entry, Node, Root},
};

/// A generation that is on its way here.
#[derive(Debug)]
pub struct Fetch {
    session: Session,
    volume: String,
    generation: Generation,
    /// Names that nobody was asked for yet.
    queue: VecDeque<Hash>,
    /// Names that are in the queue, or were asked for and did not come, and bytes of files that are there with each.
    wanted: HashMap<Hash, u64>,
    /// Of those, the ones that are here, and that the disk did not give back.
    lost: HashSet<Hash>,
    /// What came in the place of such.
    repaired: HashSet<Hash>,
    /// What can be gone on with.
    ready: Vec<Walk>,
    /// What waits for an object.
    waiting: HashMap<Hash, Vec<Waiting>>,
    /// Directories that are not complete, by number.
    directories: HashMap<u64, Directory>,
    last: u64,
    /// The generation that is here.
    base: Option<Root>,
    is_first: bool,
    /// Of what is sealed: what was gone into, or will be when it is here.
    nodes: HashSet<Hash>,
    figures: Figures,
}

/// How much came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub objects: u64,
    /// Bytes, as they travelled.
    pub bytes: u64,
    /// Bytes of files that are here, holes included: what was here before is counted as it is come upon.
    pub there: u64,
    /// The same without what was here before.
    pub came: u64,
    /// Bytes of all files, as whoever made the generation says; 0 before its root came.
    pub of: u64,
}

/// What is gone through.
#[derive(Debug)]
enum Walk {
    Root,
    /// What a sealed object refers to.
    Sealed(Hash),
    Stream {
        cursor: Cursor,
        /// The list that the cursor waits for.
        list: Option<Hash>,
        /// Whose entries it is, by the number in `directories`; absent for a file.
        directory: Option<u64>,
        /// Chunks of the file as it was, which are here.
        known: HashSet<Hash>,
    },
}

#[derive(Debug)]
enum Waiting {
    /// For a list, or the root.
    Walk(Walk),
    /// For one more of its chunks.
    Directory(u64),
}

#[derive(Debug)]
struct Directory {
    entries: Stream,
    /// As they were in the generation that is here.
    before: Option<Stream>,
    /// Chunks that are not here yet.
    missing: usize,
    /// All of its chunks are known.
    listed: bool,
}

impl Fetch {
    /// # Errors
    /// Where the store can't be read.
    pub fn begin(store: &Store, volume: &str, generation: Generation) -> Result<Self, tree::Error> {
        let session = store.session();
        let base = session.stand_on(volume)?;
        let mut fetch = Self {
            is_first: base.is_none(),
            // One that can't be read, whatever be the reason, is of no help.
            base: base.and_then(|base| Root::read(&session, &base.root).ok()),
            session,
            volume: volume.to_owned(),
            generation,
            queue: VecDeque::new(),
            wanted: HashMap::new(),
            lost: HashSet::new(),
            repaired: HashSet::new(),
            ready: Vec::new(),
            waiting: HashMap::new(),
            directories: HashMap::new(),
            last: 0,
            nodes: HashSet::new(),
            figures: Figures::default(),
        };
        fetch.walk(Walk::Root)?;
        Ok(fetch)
    }

    /// Names to ask for next, at most so many. None while all that is known to be missing was asked for.
    ///
    /// # Errors
    /// Where what came makes no sense, or the store can't be read.
    pub fn wants(&mut self, at_most: usize) -> Result<Vec<Hash>, tree::Error> {
        while self.queue.len() < at_most
            && let Some(walk) = self.ready.pop()
        {
            self.walk(walk)?;
        }
        let len = at_most.min(self.queue.len());
        Ok(self.queue.drain(..len).collect())
    }

    /// Takes what was asked for, as it is laid down elsewhere. What nobody asked for is not kept.
    ///
    /// # Errors
    /// [`store::Error::Damaged`] where it is not what it is said to be: it is to be asked for elsewhere ([`Self::again`]).
    pub fn take(&mut self, name: &Hash, coded: &[u8]) -> Result<(), tree::Error> {
        if !self.wanted.contains_key(name) {
            return Ok(());
        }
        if self.lost.contains(name) {
            self.session.repair(name, coded)?;
            self.lost.remove(name);
            self.repaired.insert(*name);
        } else {
            self.session.take(name, coded)?;
        }
        let came = self.wanted.remove(name).unwrap_or_default();
        self.figures.there += came;
        self.figures.came += came;
        self.figures.objects += 1;
        self.figures.bytes += coded.len() as u64;
        for waiting in self.waiting.remove(name).unwrap_or_default() {
            match waiting {
                Waiting::Walk(walk) => self.ready.push(walk),
                Waiting::Directory(number) => self.came(number)?,
            }
        }
        Ok(())
    }

    /// Whoever was asked for it has not given it.
    pub fn again(&mut self, name: &Hash) {
        if self.wanted.contains_key(name) && !self.queue.contains(name) {
            self.queue.push_back(*name);
        }
    }

    pub fn is_complete(&self) -> bool {
        self.wanted.is_empty() && self.ready.is_empty()
    }

    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Nothing was here of this volume, so that most of it has to come.
    pub fn is_first(&self) -> bool {
        self.is_first
    }

    /// What came so far is kept, and not asked for again after an interruption.
    ///
    /// # Errors
    /// Where it can't be kept.
    pub fn save(&mut self) -> Result<(), store::Error> {
        self.session.commit(&News::default())
    }

    /// The generation is here, whole, and lasts.
    ///
    /// # Errors
    /// [`tree::Error::Damaged`] where it is not complete; otherwise where it can't be kept.
    pub fn commit(self) -> Result<Generation, tree::Error> {
        let generation = self.generation;
        Self::commit_all(vec![self])?;
        Ok(generation)
    }

    /// The same of several volumes: all of them last together, or none.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_all(mut all: Vec<Self>) -> Result<(), tree::Error> {
        if !all.iter().all(Self::is_complete) {
            return Err(tree::Error::Damaged);
        }
        let news = |fetch: &Self| News { generation: Some((fetch.volume.clone(), fetch.generation)), sight: None };
        let news: Vec<News> = all.iter().map(news).collect();
        let sessions = all.iter_mut().map(|fetch| &mut fetch.session);
        Ok(store::commit_together(&mut sessions.zip(&news).collect::<Vec<_>>())?)
    }

    /// True where it is here.
    fn have(&mut self, name: &Hash) -> Result<bool, store::Error> {
        if self.wanted.contains_key(name) {
            return Ok(false);
        }
        let here = self.session.contains(name)?;
        if !here {
            self.wanted.insert(*name, 0);
            self.queue.push_back(*name);
        }
        Ok(here)
    }

    /// What is here could not be read: it is as if it were not, once.
    fn lose(&mut self, name: &Hash, error: store::Error) -> Result<(), store::Error> {
        if !error.is_lost() || self.repaired.contains(name) {
            return Err(error);
        }
        self.lost.insert(*name);
        if !self.wanted.contains_key(name) {
            self.wanted.insert(*name, 0);
            self.queue.push_back(*name);
        }
        Ok(())
    }

    fn wait(&mut self, name: Hash, waiting: Waiting) {
        self.waiting.entry(name).or_default().push(waiting);
    }

    /// Goes on until something is missing that has to be here first.
    fn walk(&mut self, walk: Walk) -> Result<(), tree::Error> {
        match walk {
            Walk::Root => {
                let name = self.generation.root;
                if self.have(&name)? {
                    match self.enter_root(&name) {
                        Err(tree::Error::Store(error)) => self.lose(&name, error)?,
                        entered => return entered,
                    }
                }
                self.wait(name, Waiting::Walk(Walk::Root));
                Ok(())
            }
            Walk::Sealed(name) => {
                let damaged = || store::Error::Damaged { name, damage: store::Damaged::NotSealed };
                match self.session.references(&name).and_then(|below| below.ok_or_else(damaged)) {
                    Ok(below) => self.refer(below),
                    Err(error) => {
                        self.lose(&name, error)?;
                        self.wait(name, Waiting::Walk(Walk::Sealed(name)));
                        Ok(())
                    }
                }
            }
            Walk::Stream { mut cursor, list, directory, known } => {
                if let Some(list) = list {
                    cursor.feed(&self.session.get(&list)?);
                }
                self.go_through(cursor, directory, known)
            }
        }
    }

    fn enter_root(&mut self, name: &Hash) -> Result<(), tree::Error> {
        if let Some(below) = self.session.references(name)? {
            return self.refer(below);
        }
        let root = Root::read(&self.session, name)?;
        self.figures.of = root.totals.bytes;
        let before = self.base.take().map(|base| base.entries);
        self.enter(tree::Directory { entries: root.entries, totals: root.totals }, before);
        Ok(())
    }

    /// What is here may have come before an interruption, without what is below it.
    fn refer(&mut self, below: Vec<Reference>) -> Result<(), tree::Error> {
        for Reference { name, kind } in below {
            let here = self.have(&name)?;
            if kind == Kind::Node && self.nodes.insert(name) {
                if here {
                    self.ready.push(Walk::Sealed(name));
                } else {
                    self.wait(name, Waiting::Walk(Walk::Sealed(name)));
                }
            }
        }
        Ok(())
    }

    fn go_through(
        &mut self,
        mut cursor: Cursor,
        directory: Option<u64>,
        known: HashSet<Hash>,
    ) -> Result<(), tree::Error> {
        while let Some(piece) = cursor.advance()? {
            match piece {
                Piece::Chunk(part) if known.contains(&part.hash) => self.figures.there += u64::from(part.len),
                Piece::List(part) => {
                    if self.have(&part.hash)? {
                        match self.session.get(&part.hash) {
                            Ok(list) => {
                                cursor.feed(&list);
                                continue;
                            }
                            Err(error) => self.lose(&part.hash, error)?,
                        }
                    }
                    let walk = Walk::Stream { cursor, list: Some(part.hash), directory, known };
                    self.wait(part.hash, Waiting::Walk(walk));
                    return Ok(());
                }
                Piece::Chunk(part) => match (self.have(&part.hash)?, directory) {
                    (false, Some(number)) => {
                        if let Some(directory) = self.directories.get_mut(&number) {
                            directory.missing += 1;
                            self.wait(part.hash, Waiting::Directory(number));
                        }
                    }
                    (true, Some(_)) => {}
                    (true, None) => self.figures.there += u64::from(part.len),
                    (false, None) => {
                        if let Some(bytes) = self.wanted.get_mut(&part.hash) {
                            *bytes += u64::from(part.len);
                        }
                    }
                },
            }
        }
        if let Some(number) = directory
            && let Some(directory) = self.directories.get_mut(&number)
        {
            directory.listed = true;
            self.expand_if_complete(number)?;
        }
        Ok(())
    }

    fn enter(&mut self, below: tree::Directory, before: Option<Stream>) {
        let tree::Directory { entries, totals } = below;
        if before.as_ref() == Some(&entries) {
            self.figures.there += totals.bytes;
            return;
        }
        self.last += 1;
        let (cursor, known) = (Cursor::new(entries.clone()), HashSet::new());
        self.ready.push(Walk::Stream { cursor, list: None, directory: Some(self.last), known });
        self.directories.insert(self.last, Directory { entries, before, missing: 0, listed: false });
    }

    fn came(&mut self, number: u64) -> Result<(), tree::Error> {
        if let Some(directory) = self.directories.get_mut(&number) {
            directory.missing -= 1;
        }
        self.expand_if_complete(number)
    }

    /// A directory whose entries can be read leads on to what is in it.
    fn expand_if_complete(&mut self, number: u64) -> Result<(), tree::Error> {
        if !self.directories.get(&number).is_some_and(|directory| directory.listed && directory.missing == 0) {
            return Ok(());
        }
        let Some(Directory { entries, before, .. }) = self.directories.remove(&number) else { return Ok(()) };
        let found = match self.entries(Some(&entries)) {
            Ok(found) => found,
            Err(error) => return self.enter_again(number, entries, before, error),
        };
        // What can't be read of the generation that is here is no help, and no harm.
        let mut before = self.entries(before.as_ref()).unwrap_or_default().into_iter().peekable();
        for Entry { name, node, .. } in found {
            while before.next_if(|before| before.name < name).is_some() {}
            let before = before.next_if(|before| before.name == name).map(|before| before.node);
            match (node, before) {
                (Node::Directory(below), Some(Node::Directory(before))) => self.enter(below, Some(before.entries)),
                (Node::Directory(below), _) => self.enter(below, None),
                (Node::File(file), Some(Node::File(before))) if file.content == before.content => {
                    self.figures.there += file.len;
                }
                (Node::File(file), before) => {
                    self.figures.there += file.len.saturating_sub(file.content.len);
                    let known = match before {
                        Some(Node::File(before)) => self.chunks(&before.content).unwrap_or_default(),
                        _ => HashSet::new(),
                    };
                    self.go_through(Cursor::new(file.content), None, known)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A directory that is here could not be read: what the disk does not give back of it comes once more.
    fn enter_again(
        &mut self,
        number: u64,
        entries: Stream,
        before: Option<Stream>,
        error: tree::Error,
    ) -> Result<(), tree::Error> {
        let mut missing = 0;
        for name in self.chunks(&entries)? {
            if let Err(lost) = self.session.get(&name) {
                self.lose(&name, lost)?;
                self.wait(name, Waiting::Directory(number));
                missing += 1;
            }
        }
        if missing == 0 {
            return Err(error);
        }
        self.directories.insert(number, Directory { entries, before, missing, listed: true });
        Ok(())
    }

    /// What has something below it.
    fn entries(&self, directory: Option<&Stream>) -> Result<Vec<Entry>, tree::Error> {
        let all = directory.into_iter().flat_map(|directory| tree::entries(directory, &self.session));
        let leads_on = |entry: &Entry| matches!(entry.node, Node::File(_) | Node::Directory(_));
        all.filter(|entry| entry.as_ref().map_or(true, leads_on)).collect()
    }

    fn chunks(&self, content: &Stream) -> Result<HashSet<Hash>, tree::Error> {
        let chunks = content.pieces(&self.session).filter_map(|piece| match piece {
            Ok(Piece::Chunk(part)) => Some(Ok(part.hash)),
            Ok(Piece::List(_)) => None,
            Err(error) => Some(Err(error.into())),
        });
        chunks.collect()
    }
}
