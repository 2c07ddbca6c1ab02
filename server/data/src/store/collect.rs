//! Freeing what no generation needs any more, while others write.
//!
//! What can be reached from the generations is noted in a Bloom filter, which forgets nothing and now and then remembers too much:
//! that is freed the next time, with another seed. Whoever commits meanwhile adds to the filter what it has written, and what it has found to be there
//! already; what a session has found and not yet committed is spared as well. So nothing is freed that anyone counts on.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, MutexGuard, PoisonError},
};

use fastbloom::AtomicBloomFilter;

use super::{Error, Store, pack};
use crate::{
    Hash, object,
    seal::Kind,
    stream::{self, Piece, Stream},
    tree::{self, Node, Root},
};

/// Of a thousand objects that nobody needs one is taken for needed.
const MISTAKEN: f64 = 0.001;

/// Entries of the index that are looked at in one transaction: writers wait for it.
const BATCH: usize = 2048;

/// A pack of which less than this part is needed is written anew.
const WORTH_KEEPING: f64 = 0.5;

/// Packs that are written anew in one go; the next go takes the next ones.
const REWRITTEN_MAX: usize = 8;

/// Who must not be disturbed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Of the collection that is under way: what is needed.
    needed: Option<Arc<AtomicBloomFilter>>,
    sessions: BTreeMap<u64, Claim>,
    last: u64,
}

/// What one session counts on.
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// It found them to be there.
    pub(super) found: HashSet<Hash>,
    /// It has written to them.
    pub(super) packs: BTreeSet<u64>,
    /// It counts on all that can be reached from here, and does not look for it.
    pub(super) base: Option<Hash>,
}

impl Claims {
    pub(super) fn begin(&mut self) -> u64 {
        self.last += 1;
        self.sessions.insert(self.last, Claim::default());
        self.last
    }

    pub(super) fn of(&mut self, session: u64) -> &mut Claim {
        self.sessions.entry(session).or_default()
    }

    pub(super) fn end(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    /// A session makes known what it has written: with what it found, that is what its generation is made of.
    pub(super) fn commits<'a>(&self, session: u64, fresh: impl Iterator<Item = &'a Hash>) {
        let Some(needed) = &self.needed else { return };
        needed.insert_all(fresh);
        if let Some(claim) = self.sessions.get(&session) {
            needed.insert_all(&claim.found);
        }
    }
}

/// What was freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub objects: u64,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// Takes itself for over however a collection ends.
struct UnderWay<'a>(&'a Store);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.claims().needed = None;
    }
}

impl Store {
    pub(super) fn claims(&self) -> MutexGuard<'_, Claims> {
        self.shared.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the room of objects that no generation needs. Others may read and write meanwhile; one collection runs at a time.
    ///
    /// # Errors
    /// Where a generation can't be read whole: then nothing is freed.
    pub fn collect(&self) -> Result<Collected, tree::Error> {
        let _one = self.shared.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let objects = usize::try_from(self.shared.index.objects()?).unwrap_or(usize::MAX);
        let needed = Arc::new(AtomicBloomFilter::with_false_pos(MISTAKEN).expected_items(objects.max(1024)));
        let under_way = UnderWay(self);
        // One look at both: whoever commits in between would be among neither.
        let mut claims = self.claims();
        claims.needed = Some(Arc::clone(&needed));
        // Whoever commits from now on adds to the filter; what was committed before is among these.
        let mut roots = self.shared.index.roots()?;
        // And what somebody builds upon, though it may just have been forgotten.
        roots.extend(claims.sessions.values().filter_map(|claim| claim.base));
        drop(claims);
        let mut marked = Marked { store: self, needed: &needed, directories: HashSet::new(), nodes: HashSet::new() };
        for root in roots {
            marked.root(&root)?;
        }
        let objects = self.sweep(&needed)?;
        drop(under_way);
        let bytes = self.rewrite()?;
        Ok(Collected { objects, bytes })
    }

    fn sweep(&self, needed: &AtomicBloomFilter) -> Result<u64, Error> {
        let mut freed = 0;
        let mut from = None;
        loop {
            let batch = self.shared.index.names(from.as_ref(), BATCH)?;
            let Some(last) = batch.last() else { break };
            from = Some(*last);
            let claims = self.claims();
            let unneeded = batch.iter().filter(|name| {
                !needed.contains(*name) && !claims.sessions.values().any(|claim| claim.found.contains(*name))
            });
            freed += self.shared.index.remove(unneeded)?;
            drop(claims);
        }
        Ok(freed)
    }

    /// Gives the room of packs back that hold little or nothing any more.
    fn rewrite(&self) -> Result<u64, Error> {
        let last = self.shared.packs.last_number();
        let ends = self.shared.index.ends()?;
        let live = self.shared.index.live(pack::RECORD_HEAD as u64)?;
        let written: BTreeSet<u64> = {
            let claims = self.claims();
            claims.sessions.values().flat_map(|claim| claim.packs.iter().copied()).collect()
        };
        let mut sparse: Vec<(u64, u64)> = ends
            .into_iter()
            .filter(|(number, end)| {
                let live = live.get(number).copied().unwrap_or(0);
                *number < last && !written.contains(number) && (live as f64) < *end as f64 * WORTH_KEEPING
            })
            .collect();
        sparse.truncate(REWRITTEN_MAX);
        let numbers: BTreeSet<u64> = sparse.iter().map(|(number, _)| *number).collect();
        if numbers.is_empty() {
            return Ok(0);
        }
        let mut moved = Vec::new();
        let mut kept = 0;
        let mut damaged = BTreeSet::new();
        for (name, from) in self.shared.index.in_packs(&numbers)? {
            let coded = self.shared.packs.read(&from);
            match coded {
                Ok(coded) if object::verify(&coded, &name).is_ok() => {
                    let to = self.shared.packs.append(&name, &coded)?;
                    kept += pack::RECORD_HEAD as u64 + u64::from(to.len);
                    moved.push((name, from, to));
                }
                // It is left where it is, for whoever repairs it.
                _ => drop(damaged.insert(from.pack)),
            }
        }
        self.shared.packs.sync(&moved.iter().map(|(_, _, to)| to.pack).collect())?;
        let gone: BTreeSet<u64> = numbers.difference(&damaged).copied().collect();
        self.shared.index.relocate(&moved, &gone)?;
        for number in &gone {
            self.shared.packs.delete(*number)?;
        }
        let freed: u64 = sparse.iter().filter(|(number, _)| gone.contains(number)).map(|(_, end)| end).sum();
        Ok(freed.saturating_sub(kept))
    }
}

/// Notes what can be reached.
struct Marked<'a> {
    store: &'a Store,
    needed: &'a AtomicBloomFilter,
    /// Whose entries were looked at: generations share most of theirs.
    directories: HashSet<Stream>,
    /// What is sealed, and was gone into.
    nodes: HashSet<Hash>,
}

impl Marked<'_> {
    fn root(&mut self, name: &Hash) -> Result<(), tree::Error> {
        if !self.store.contains(name)? {
            return Err(Error::Missing { name: *name }.into());
        }
        self.needed.insert(name);
        if self.store.sealed_with(name)?.is_some() {
            return Ok(self.sealed(name)?);
        }
        self.directory(Root::read(self.store, name)?.entries)
    }

    /// By what is in the clear: nobody needs a key to keep what others need.
    fn sealed(&mut self, root: &Hash) -> Result<(), Error> {
        let mut left = vec![*root];
        while let Some(name) = left.pop() {
            if !self.nodes.insert(name) {
                continue;
            }
            for reference in self.store.references(&name)? {
                self.needed.insert(&reference.name);
                if reference.kind == Kind::Node {
                    left.push(reference.name);
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, entries: Stream) -> Result<(), tree::Error> {
        let mut left = vec![entries];
        while let Some(entries) = left.pop() {
            if self.directories.contains(&entries) {
                continue;
            }
            self.stream(&entries)?;
            for entry in tree::entries(&entries, self.store) {
                match entry?.node {
                    Node::File(file) => self.stream(&file.content)?,
                    Node::Directory(below) => left.push(below.entries),
                    _ => {}
                }
            }
            self.directories.insert(entries);
        }
        Ok(())
    }

    fn stream(&self, stream: &Stream) -> Result<(), stream::Error> {
        for piece in stream.pieces(self.store) {
            let (Piece::List(part) | Piece::Chunk(part)) = piece?;
            self.needed.insert(&part.hash);
        }
        Ok(())
    }
}
