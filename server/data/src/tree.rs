//! Directories as objects.
//!
//! A directory is a stream of its entries, in the order of their names; a subdirectory is named by its own stream, so that what is
//! equal in two trees has the same name in both, however deep it lies. A [`Root`] is the whole of a generation.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt,
    io::{self, Read},
    ops::Range,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Hash,
    object::OBJECT_MAX,
    seal::{Kind, Reference},
    store::{self, Objects, Sink},
    stream::{self, Grain, Stream},
};

/// Of [`Root`]; one of a newer version is not read.
const VERSION: u8 = 1;

/// Bytes of one entry: a name, a link's target, extended attributes (64 KiB each, as the kernel has it), and what lists chunks and holes.
pub const ENTRY_MAX: usize = OBJECT_MAX;

/// Directories within directories. Paths are no longer in practice, and reading a tree needs some memory for each.
pub const DEPTH_MAX: usize = 256;

/// A file's, or a directory's, own name: bytes, as the kernel has it, and rarely something else than UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Vec<u8>);

/// Why bytes are no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` can't be a file's name", String::from_utf8_lossy(.0).escape_debug())]
pub struct InvalidName(pub Vec<u8>);

impl Name {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = InvalidName;

    /// A tree comes from another machine: its names must not lead out of the directory that they are in.
    fn try_from(bytes: Vec<u8>) -> Result<Self, InvalidName> {
        let leads_out = matches!(bytes.as_slice(), b"" | b"." | b"..") || bytes.contains(&b'/') || bytes.contains(&0);
        if leads_out || bytes.len() > 255 { Err(InvalidName(bytes)) } else { Ok(Self(bytes)) }
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// What every inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permissions, set-id bits and sticky bit; not the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// When its content was changed last: seconds since 1970, and nanoseconds.
    pub modified: (i64, u32),
    /// Extended attributes, access control lists among them.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    File(File),
    Directory(Directory),
    Link {
        target: Vec<u8>,
    },
    /// Another name of the file at this path from the root, whose own entry comes first.
    Twin {
        of: Vec<u8>,
    },
    Fifo,
    Socket,
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub entries: Stream,
    /// Of everything below it.
    pub totals: Totals,
}

/// How much there is, as whoever made the tree says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Names of everything but directories.
    pub files: u64,
    /// Of files, holes included.
    pub bytes: u64,
}

impl Totals {
    #[must_use]
    pub fn plus(self, entry: &Entry) -> Self {
        let more = match &entry.node {
            Node::Directory(below) => below.totals,
            Node::File(file) => Self { files: 1, bytes: file.len },
            _ => Self { files: 1, bytes: 0 },
        };
        Self { files: self.files.saturating_add(more.files), bytes: self.bytes.saturating_add(more.bytes) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Bytes, holes included.
    pub len: u64,
    /// Its bytes without the holes.
    pub content: Stream,
    pub holes: Vec<Hole>,
    /// It has other names, each of them a [`Node::Twin`].
    pub has_twins: bool,
}

/// A stretch of a file that takes no room on the disk, and reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// Bytes.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: Name,
    pub meta: Meta,
    pub node: Node,
}

/// A whole generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    version: u8,
    /// Of the directory itself.
    pub meta: Meta,
    pub entries: Stream,
    pub totals: Totals,
}

/// What went wrong with a tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Stream(#[from] stream::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("a directory is damaged")]
    Damaged,
    #[error("an entry has at most {ENTRY_MAX} bytes; one has {len}")]
    TooLarge { len: usize },
    #[error("this generation was made by a newer version of Flotilla ({version}); update this machine")]
    Newer { version: u8 },
}

impl Root {
    pub fn new(meta: Meta, Directory { entries, totals }: Directory) -> Self {
        Self { version: VERSION, meta, entries, totals }
    }

    /// # Errors
    /// Where it can't be kept.
    pub fn write(&self, sink: &mut impl Sink) -> Result<Hash, Error> {
        let references: Vec<Reference> = self.entries.references(Kind::Node).collect();
        Ok(sink.put_with(&coded(self), &references)?)
    }

    /// # Errors
    /// Where it is not there, or is a newer version's.
    pub fn read(objects: &dyn Objects, name: &Hash) -> Result<Self, Error> {
        let bytes = objects.get(name)?;
        match bytes.first() {
            Some(&VERSION) => postcard::from_bytes(&bytes).map_err(|_| Error::Damaged),
            Some(&version) => Err(Error::Newer { version }),
            None => Err(Error::Damaged),
        }
    }
}

/// Keeps a directory. The entries come in the order of their names.
///
/// # Errors
/// Where it can't be kept.
pub fn write(entries: impl IntoIterator<Item = Result<Entry, Error>>, sink: &mut impl Sink) -> Result<Stream, Error> {
    let mut failed = None;
    let named = RefCell::new(Named::default());
    let bytes = Coded {
        entries: entries.into_iter().map_while(|entry| entry.map_err(|error| failed = Some(error)).ok()),
        named: &named,
        bytes: Vec::new(),
        read: 0,
    };
    let stream = Stream::write_nodes(bytes, Grain::List, &mut |range| named.borrow_mut().within(range), sink)?;
    failed.map_or(Ok(stream), Err)
}

/// What entries name that are read and may not be cut yet: by the bytes that each has, in order.
#[derive(Default)]
struct Named {
    entries: VecDeque<(Range<u64>, Vec<Reference>)>,
    len: u64,
}

impl Named {
    fn add(&mut self, entry: &Entry, len: usize) {
        let range = self.len..self.len + len as u64;
        self.len = range.end;
        let references: Vec<Reference> = match &entry.node {
            Node::File(file) => file.content.references(Kind::Leaf).collect(),
            Node::Directory(below) => below.entries.references(Kind::Node).collect(),
            _ => return,
        };
        if !references.is_empty() {
            self.entries.push_back((range, references));
        }
    }

    /// Of all entries of which a part lies in the stretch. Whoever lies in the next one, too, stays.
    fn within(&mut self, stretch: Range<u64>) -> Vec<Reference> {
        let within = self.entries.iter().take_while(|(range, _)| range.start < stretch.end);
        let references = within.flat_map(|(_, references)| references).copied().collect();
        while self.entries.front().is_some_and(|(range, _)| range.end <= stretch.end) {
            self.entries.pop_front();
        }
        references
    }
}

/// Entries one after the other, each behind its length.
struct Coded<'a, I> {
    entries: I,
    named: &'a RefCell<Named>,
    bytes: Vec<u8>,
    read: usize,
}

impl<I: Iterator<Item = Entry>> Read for Coded<'_, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.bytes.len() {
            let Some(entry) = self.entries.next() else { return Ok(0) };
            let bytes = coded(&entry);
            if bytes.len() > ENTRY_MAX {
                return Err(io::Error::other(Error::TooLarge { len: bytes.len() }));
            }
            self.bytes.clear();
            self.bytes.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            self.bytes.extend_from_slice(&bytes);
            self.named.borrow_mut().add(&entry, self.bytes.len());
            self.read = 0;
        }
        let len = buffer.len().min(self.bytes.len() - self.read);
        buffer[..len].copy_from_slice(&self.bytes[self.read..self.read + len]);
        self.read += len;
        Ok(len)
    }
}

/// The entries of a directory, in the order of their names.
pub fn entries<'a>(directory: &'a Stream, objects: &'a dyn Objects) -> Entries<'a> {
    Entries { bytes: io::BufReader::new(directory.read(objects)), last: None, over: false }
}

/// Iterates over the entries of a directory.
#[derive(Debug)]
pub struct Entries<'a> {
    bytes: io::BufReader<stream::Reader<'a>>,
    last: Option<Name>,
    over: bool,
}

impl Entries<'_> {
    fn read(&mut self) -> Result<Option<Entry>, Error> {
        let mut len = [0; 4];
        let first = self.bytes.read(&mut len[..1]).map_err(read_error)?;
        if first == 0 {
            return Ok(None);
        }
        self.bytes.read_exact(&mut len[1..]).map_err(read_error)?;
        let len = u32::from_be_bytes(len) as usize;
        if len > ENTRY_MAX {
            return Err(Error::TooLarge { len });
        }
        let mut bytes = vec![0; len];
        self.bytes.read_exact(&mut bytes).map_err(read_error)?;
        let entry: Entry = decoded(&bytes)?;
        // Whoever walks two trees side by side relies on the order.
        if self.last.as_ref().is_some_and(|last| *last >= entry.name) {
            return Err(Error::Damaged);
        }
        self.last = Some(entry.name.clone());
        Ok(Some(entry))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.read().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

fn read_error(error: io::Error) -> Error {
    match error.downcast::<stream::Error>() {
        Ok(error) => error.into(),
        Err(error) => match error.downcast::<store::Error>() {
            Ok(error) => error.into(),
            Err(_) => Error::Damaged,
        },
    }
}

fn coded(value: &impl Serialize) -> Vec<u8> {
    // Numbers, bytes and lists of them always have such a form.
    postcard::to_stdvec(value).unwrap_or_default()
}

fn decoded<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Error::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::memory::Memory;

    fn name(bytes: &[u8]) -> Name {
        Name::try_from(bytes.to_vec()).unwrap()
    }

    fn file(number: usize) -> Entry {
        let meta = Meta { mode: 0o644, modified: (number as i64, 7), ..Meta::default() };
        Entry { name: name(format!("file-{number:06}").as_bytes()), meta, node: Node::Fifo }
    }

    #[test]
    fn no_name_leads_out_of_its_directory() {
        for bytes in [&b""[..], b".", b"..", b"a/b", b"/etc", b"a\0b", &[b'x'; 256]] {
            assert!(Name::try_from(bytes.to_vec()).is_err(), "{bytes:?}");
        }
        assert!(Name::try_from(vec![0xff, b'.', b'.']).is_ok());
    }

    #[test]
    fn one_changed_entry_among_many_costs_little() {
        let mut memory = Memory::default();
        let mut all: Vec<Entry> = (0..50_000).map(file).collect();
        let written = |all: &[Entry], memory: &mut Memory| write(all.iter().cloned().map(Ok), memory).unwrap();
        let first = written(&all, &mut memory);
        let (whole, read) = (memory.bytes(), entries(&first, &memory).collect::<Result<Vec<_>, _>>().unwrap());
        assert!(read == all);
        all[25_000].meta.mode = 0o600;
        written(&all, &mut memory);
        assert!(memory.bytes() - whole < whole / 20, "{} more than {whole}", memory.bytes() - whole);
    }

    #[test]
    fn what_is_out_of_order_is_damaged() {
        let mut memory = Memory::default();
        let stream = write([file(2), file(1)].map(Ok), &mut memory).unwrap();
        assert!(matches!(entries(&stream, &memory).last(), Some(Err(Error::Damaged))));
    }

    #[test]
    fn a_newer_generation_is_not_read() {
        let mut memory = Memory::default();
        let root = Root { version: VERSION + 1, ..Root::new(Meta::default(), Directory::default()) };
        let name = root.write(&mut memory).unwrap();
        assert!(matches!(Root::read(&memory, &name), Err(Error::Newer { version: 2 })));
    }

    proptest! {
        #[test]
        fn noise_is_no_directory_and_no_panic(noise in proptest::collection::vec(any::<u8>(), 1..500)) {
            let mut memory = Memory::default();
            let stream = Stream::write(noise.as_slice(), Grain::List, &mut memory).unwrap();
            for entry in entries(&stream, &memory) {
                if entry.is_err() { break }
            }
        }
    }
}
