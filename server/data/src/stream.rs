//! Bytes of any length as chunks, cut where their content says.
//!
//! A change in the middle moves no cut behind it (FastCDC, Xia et al. 2020), so that equal stretches of two streams are equal
//! chunks. The list of a long stream's chunks is a stream itself, and so on, until what is left is short.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    ops::Range,
    panic,
    sync::mpsc,
    thread,
};

use fastcdc::v2020::{FastCDC, StreamCDC};
use serde::{Deserialize, Serialize};

use crate::{
    Hash,
    seal::{Kind, Reference},
    store::{self, Objects, Sink},
};

/// Chunks that a stream names itself; a longer list is a stream of its own.
const PARTS_MAX: usize = 64;

/// A list of a list of a list: more than any disk holds.
const DEPTH_MAX: u8 = 6;

/// Chunks that are cut and not kept yet, where the two are done side by side.
const CUT_AHEAD: usize = 16;

/// What is shorter than this is cut where it was read to. Bytes.
const SHORT: usize = 1024 * 1024;

/// Bytes of one part in a list.
const PART_LEN: usize = Hash::LEN + 4;

/// How fine a stream is cut: bytes of the smallest, the usual and the largest chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Content of files. A change of one byte costs a chunk, so that small ones suit databases; each one costs some forty bytes.
    Content,
    /// Directories and lists, which are small and change in few places.
    List,
}

impl Grain {
    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Self::Content => (16 * 1024, 64 * 1024, 256 * 1024),
            Self::List => (1024, 4 * 1024, 16 * 1024),
        }
    }
}

/// Bytes that are kept as chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stream {
    /// Bytes.
    pub len: u64,
    /// 0: the parts are the chunks. 1: the parts are the chunks of their list, and so on.
    depth: u8,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    pub hash: Hash,
    /// Bytes.
    pub len: u32,
}

/// What went wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read what shall be kept")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("a list of chunks is damaged")]
    Damaged,
}

impl Stream {
    /// Cuts bytes into chunks and keeps them.
    ///
    /// # Errors
    /// Where they can't be read, or not be kept.
    pub fn write(bytes: impl Read, grain: Grain, sink: &mut impl Sink) -> Result<Self, Error> {
        let stream = Self::cut(bytes, grain, &mut |_| Vec::new(), sink)?;
        Self::listed(stream, Kind::Leaf, sink)
    }

    /// The same of much, by two threads: what is cut is hashed and kept while what comes next is read and cut.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_beside(bytes: impl Read, grain: Grain, sink: &mut (impl Sink + Send)) -> Result<Self, Error> {
        let stream = thread::scope(|scope| {
            let (cut, chunks) = mpsc::sync_channel::<Vec<u8>>(CUT_AHEAD);
            let kept_in = &mut *sink;
            let keeping = thread::Builder::new().spawn_scoped(scope, move || {
                let mut stream = Self::default();
                for chunk in chunks {
                    stream.push(&chunk, &mut |_| Vec::new(), kept_in)?;
                }
                Ok::<_, Error>(stream)
            });
            let keeping = keeping.map_err(Error::Read)?;
            let (smallest, usual, largest) = grain.sizes();
            for chunk in StreamCDC::new(bytes, smallest, usual, largest) {
                let chunk = chunk.map_err(|error| Error::Read(error.into()))?.data;
                if cut.send(chunk).is_err() {
                    // It could not be kept, which is told below.
                    break;
                }
            }
            drop(cut);
            keeping.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        });
        Self::listed(stream?, Kind::Leaf, sink)
    }

    /// The same of bytes that name objects: `below` says which are named in a stretch of them. A stretch begins where the one before it ended.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn write_nodes(
        bytes: impl Read,
        grain: Grain,
        below: &mut dyn FnMut(Range<u64>) -> Vec<Reference>,
        sink: &mut impl Sink,
    ) -> Result<Self, Error> {
        let stream = Self::cut(bytes, grain, below, sink)?;
        Self::listed(stream, Kind::Node, sink)
    }

    /// What this stream names itself. `kind` is that of its chunks.
    pub(crate) fn references(&self, kind: Kind) -> impl Iterator<Item = Reference> {
        let kind = if self.depth > 0 { Kind::Node } else { kind };
        self.parts.iter().map(move |part| Reference { name: part.hash, kind })
    }

    /// Until what it names itself is short.
    fn listed(mut stream: Self, kind: Kind, sink: &mut impl Sink) -> Result<Self, Error> {
        while stream.parts.len() > PARTS_MAX {
            let mut list = Vec::with_capacity(stream.parts.len() * PART_LEN);
            for part in &stream.parts {
                list.extend_from_slice(part.hash.as_bytes());
                list.extend_from_slice(&part.len.to_be_bytes());
            }
            let named: Vec<Reference> = stream.references(kind).collect();
            let mut below = |range: Range<u64>| {
                // A part that lies in two stretches is named by both.
                let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX) / PART_LEN;
                named.get(at(range.start)..=at(range.end - 1)).unwrap_or_default().to_vec()
            };
            let parts = Self::cut(list.as_slice(), Grain::List, &mut below, sink)?.parts;
            stream = Self { len: stream.len, depth: stream.depth + 1, parts };
        }
        Ok(stream)
    }

    fn cut(
        mut bytes: impl Read,
        grain: Grain,
        below: &mut dyn FnMut(Range<u64>) -> Vec<Reference>,
        sink: &mut impl Sink,
    ) -> Result<Self, Error> {
        thread_local! {
            static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let (smallest, usual, largest) = grain.sizes();
        let mut stream = Self::default();
        // Most files are short: for them a cutter's own buffers would be most of the work.
        let mut short = BUFFER.take();
        short.clear();
        short.reserve(smallest);
        bytes.by_ref().take(SHORT as u64).read_to_end(&mut short).map_err(Error::Read)?;
        if short.len() < SHORT {
            for chunk in FastCDC::new(&short, smallest, usual, largest) {
                stream.push(&short[chunk.offset..chunk.offset + chunk.length], below, sink)?;
            }
        } else {
            for chunk in StreamCDC::new(short.as_slice().chain(bytes), smallest, usual, largest) {
                stream.push(&chunk.map_err(|error| Error::Read(error.into()))?.data, below, sink)?;
            }
        }
        BUFFER.set(short);
        Ok(stream)
    }

    fn push(
        &mut self,
        chunk: &[u8],
        below: &mut dyn FnMut(Range<u64>) -> Vec<Reference>,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        // No chunk has more bytes than a few hundred thousand.
        let len = chunk.len() as u32;
        let end = self.len + u64::from(len);
        let references = below(self.len..end);
        self.parts.push(Part { hash: sink.put_with(chunk, &references)?, len });
        self.len = end;
        Ok(())
    }

    /// All objects of the stream, in order: the lists of its chunks, each before what it names, and the chunks.
    pub fn pieces<'a>(&'a self, objects: &'a dyn Objects) -> Pieces<'a> {
        Pieces { objects, cursor: Cursor::new(self.clone()), told: None, over: false }
    }

    /// Reads all of it.
    pub fn read<'a>(&'a self, objects: &'a dyn Objects) -> Reader<'a> {
        Reader { pieces: self.pieces(objects), objects, chunk: Vec::new(), read: 0 }
    }
}

/// One object of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A stretch of the list of chunks, or of the list of that list.
    List(Part),
    Chunk(Part),
}

/// Goes through the objects of a stream, for one who has to get the lists from somewhere.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// What the stream names itself: the chunks, or stretches of the last list.
    stream: Stream,
    at: usize,
    /// What is left of each list; the first names the chunks, and each is fed by what the next one names.
    lists: Vec<List>,
    /// The list that the stretch which was told last belongs to.
    awaits: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct List {
    bytes: Vec<u8>,
    at: usize,
}

impl List {
    fn next(&mut self) -> Option<Part> {
        let bytes = self.bytes.get(self.at..self.at + PART_LEN)?;
        self.at += PART_LEN;
        let (hash, len) = bytes.split_first_chunk::<{ Hash::LEN }>()?;
        Some(Part { hash: Hash::from(*hash), len: u32::from_be_bytes(len.try_into().ok()?) })
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }
}

impl Cursor {
    pub fn new(stream: Stream) -> Self {
        let lists = vec![List::default(); usize::from(stream.depth.min(DEPTH_MAX))];
        Self { stream, at: 0, lists, awaits: None }
    }

    /// The next object. After a [`Piece::List`] its bytes are wanted ([`Self::feed`]) before there is another.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the lists make no sense.
    pub fn advance(&mut self) -> Result<Option<Piece>, Error> {
        if self.stream.depth > DEPTH_MAX || self.awaits.is_some() {
            return Err(Error::Damaged);
        }
        for level in 0..=self.lists.len() {
            let next = match self.lists.get_mut(level) {
                Some(list) => list.next(),
                None => {
                    let part = self.stream.parts.get(self.at).copied();
                    self.at += 1;
                    part
                }
            };
            let Some(part) = next else { continue };
            return Ok(Some(match level.checked_sub(1) {
                None => Piece::Chunk(part),
                Some(list) => {
                    self.awaits = Some(list);
                    Piece::List(part)
                }
            }));
        }
        match self.lists.iter().all(|list| list.at == list.bytes.len()) {
            true => Ok(None),
            // A part of a part.
            false => Err(Error::Damaged),
        }
    }

    /// The bytes of the list that was told last.
    pub fn feed(&mut self, bytes: &[u8]) {
        if let Some(list) = self.awaits.take() {
            self.lists[list].feed(bytes);
        }
    }
}

/// Iterates over the objects of a stream. A list is read after it was told.
#[derive(Debug)]
pub struct Pieces<'a> {
    objects: &'a dyn Objects,
    cursor: Cursor,
    told: Option<Part>,
    over: bool,
}

impl Pieces<'_> {
    fn advance(&mut self) -> Result<Option<Piece>, Error> {
        if let Some(part) = self.told.take() {
            self.cursor.feed(&self.objects.get(&part.hash)?);
        }
        let next = self.cursor.advance()?;
        if let Some(Piece::List(part)) = next {
            self.told = Some(part);
        }
        Ok(next)
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.advance().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Reads a stream's bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    pieces: Pieces<'a>,
    objects: &'a dyn Objects,
    chunk: Vec<u8>,
    read: usize,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for Reader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.read == self.chunk.len() {
            let Some(piece) = self.pieces.next() else { break };
            let Piece::Chunk(part) = piece.map_err(io::Error::other)? else { continue };
            self.chunk = self.objects.get(&part.hash).map_err(io::Error::other)?;
            self.read = 0;
        }
        Ok(&self.chunk[self.read..])
    }

    fn consume(&mut self, amount: usize) {
        self.read += amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn all(stream: &Stream, memory: &Memory) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read(memory).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_stream_of_any_length_comes_back() {
        for len in [0, 1, 16 * 1024, 300_000, 30_000_000] {
            let (bytes, mut memory) = (noise(1, len), Memory::default());
            let stream = Stream::write(bytes.as_slice(), Grain::Content, &mut memory).unwrap();
            assert_eq!(stream.len, len as u64);
            assert!(stream.parts.len() <= PARTS_MAX);
            assert!(all(&stream, &memory) == bytes, "{len} bytes");
        }
    }

    #[test]
    fn two_threads_keep_what_one_keeps() {
        for len in [0, 1, 16 * 1024, 300_000, SHORT - 1, SHORT, SHORT + 1, 5_000_000, 30_000_000] {
            let (bytes, mut one, mut two) = (noise(7, len), Memory::default(), Memory::default());
            let stream = Stream::write(bytes.as_slice(), Grain::Content, &mut one).unwrap();
            assert_eq!(
                Stream::write_beside(bytes.as_slice(), Grain::Content, &mut two).unwrap(),
                stream,
                "{len} bytes"
            );
            assert_eq!(one.names(), two.names());
        }
    }

    #[test]
    fn either_of_two_threads_ends_the_other_when_it_fails() {
        /// A disk that is full after some chunks.
        struct Full(usize);

        impl Sink for Full {
            fn put_with(&mut self, bytes: &[u8], _: &[Reference]) -> Result<Hash, store::Error> {
                self.0 = self.0.checked_sub(1).ok_or(store::Error::Closed)?;
                Ok(Hash::of(bytes))
            }
        }

        /// A file that ends in an error.
        struct Torn(usize);

        impl Read for Torn {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::TimedOut)?;
                Ok(buffer.len())
            }
        }

        let full = Stream::write_beside(noise(8, 30_000_000).as_slice(), Grain::Content, &mut Full(3)).unwrap_err();
        assert!(matches!(full, Error::Store(store::Error::Closed)), "{full:?}");
        let torn = Stream::write_beside(Torn(9), Grain::Content, &mut Memory::default()).unwrap_err();
        assert!(matches!(&torn, Error::Read(error) if error.kind() == io::ErrorKind::TimedOut), "{torn:?}");
    }

    #[test]
    fn lists_of_lists_come_back() {
        // So fine that the list of the list is one, too.
        let (bytes, mut memory) = (noise(2, 60_000_000), Memory::default());
        let stream = Stream::write(bytes.as_slice(), Grain::List, &mut memory).unwrap();
        assert_eq!(stream.depth, 2);
        assert!(all(&stream, &memory) == bytes);
    }

    #[test]
    fn the_pieces_are_all_objects_of_a_stream() {
        let mut memory = Memory::default();
        let stream = Stream::write(noise(6, 60_000_000).as_slice(), Grain::List, &mut memory).unwrap();
        let mut told = std::collections::BTreeSet::new();
        for piece in stream.pieces(&memory) {
            let (Piece::List(part) | Piece::Chunk(part)) = piece.unwrap();
            told.insert(part.hash);
        }
        assert_eq!(told, memory.names());
    }

    #[test]
    fn a_change_in_the_middle_costs_little() {
        let mut memory = Memory::default();
        let mut bytes = noise(3, 20_000_000);
        Stream::write(bytes.as_slice(), Grain::Content, &mut memory).unwrap();
        let before = memory.bytes();
        bytes.splice(10_000_000..10_000_010, noise(4, 1_000));
        Stream::write(bytes.as_slice(), Grain::Content, &mut memory).unwrap();
        assert!(memory.bytes() - before < 800_000, "{} more", memory.bytes() - before);
    }

    #[test]
    fn a_chunk_that_is_missing_is_an_error_and_no_end() {
        let mut memory = Memory::default();
        let stream = Stream::write(noise(5, 3_000_000).as_slice(), Grain::Content, &mut memory).unwrap();
        let Some(Ok(Piece::Chunk(lost))) = stream.pieces(&memory).nth(7) else { panic!("a chunk") };
        memory.forget(&lost.hash);
        assert!(stream.read(&memory).read_to_end(&mut Vec::new()).is_err());
    }
}
