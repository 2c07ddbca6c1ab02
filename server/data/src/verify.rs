//! Does a directory still have the bytes of the generation that it shows?
//!
//! A capture, and a change from one generation to another, look at what tells that a file was written to. A disk that forgets tells
//! nothing: only reading finds it. [`verify`] reads some of a directory at a time, and writes right what was not.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, futimens, openat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    Hash,
    place::{self, Place, kind, os},
    restore::Error,
    store::{self, Objects},
    stream::Piece,
    tree::{self, DEPTH_MAX, Entry, File, Hole, Name, Node, Root},
};

/// What looking at one name counts as, beside the bytes of its file: as much as the kernel reads for it.
const NAME_COST: u64 = 4096;

/// Where the next look begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Of a file, from the directory.
    path: Vec<Name>,
    /// Bytes of its content that were read already.
    read: u64,
}

/// What a look came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of files that were read and compared.
    pub bytes: u64,
    /// Chunks that were not what they should be, and are now.
    pub healed: u64,
    /// Names are missing, or stand for something else than they should: a change from what is there makes it right.
    pub is_other: bool,
    /// There is more.
    pub next: Option<Mark>,
}

/// Compares about `at_most` bytes of a directory that shows `root` with it, from a mark on, and writes right what differs. Nobody else
/// may write to it meanwhile.
///
/// # Errors
/// Where the tree can't be read from the store, or something not from the disk. Content that is damaged in the store itself is passed over.
pub fn verify(
    objects: &dyn Objects,
    directory: &Path,
    root: &Hash,
    from: Option<&Mark>,
    at_most: u64,
) -> Result<Verified, Error> {
    let root = Root::read(objects, root)?;
    let mut look = Look { objects, from: from.cloned(), left: at_most, verified: Verified::default() };
    look.directory(&Place::open(directory)?, tree::entries(&root.entries, objects), &mut Vec::new())?;
    Ok(look.verified)
}

struct Look<'a> {
    objects: &'a dyn Objects,
    /// Until it is reached.
    from: Option<Mark>,
    left: u64,
    verified: Verified,
}

impl Look<'_> {
    fn directory(&mut self, place: &Place, entries: tree::Entries<'_>, path: &mut Vec<Name>) -> Result<(), Error> {
        // A tree may come from anywhere.
        if path.len() > DEPTH_MAX {
            return Err(tree::Error::Damaged.into());
        }
        let mut present = place.names()?.into_iter().peekable();
        for entry in entries {
            let entry = entry?;
            while present.next_if(|name| *name < entry.name).is_some() {
                self.verified.is_other = true;
            }
            let is_there = present.next_if(|name| *name == entry.name).is_some();
            path.push(entry.name.clone());
            if !is_there {
                self.verified.is_other = true;
            } else if !self.is_behind(path) {
                self.entry(place, &entry, path)?;
            }
            path.pop();
            if self.verified.next.is_some() {
                return Ok(());
            }
        }
        self.verified.is_other |= present.next().is_some();
        Ok(())
    }

    /// Was all of it looked at before the mark?
    fn is_behind(&self, path: &[Name]) -> bool {
        self.from.as_ref().is_some_and(|mark| path < mark.path.as_slice() && !mark.path.starts_with(path))
    }

    fn entry(&mut self, place: &Place, entry: &Entry, path: &mut Vec<Name>) -> Result<(), Error> {
        let stat = match place.stat(&entry.name) {
            Ok(stat) => stat,
            Err(error) if error.is_gone() => {
                self.verified.is_other = true;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if !is_of(&entry.node, kind(&stat)) {
            self.verified.is_other = true;
            return Ok(());
        }
        match &entry.node {
            Node::Directory(below) => {
                let below = tree::entries(&below.entries, self.objects);
                return self.directory(&place.directory(&entry.name)?, below, path);
            }
            Node::File(file) => {
                let mark = self.from.take_if(|mark| mark.path == *path);
                if self.left == 0 {
                    self.verified.next = Some(Mark { path: path.clone(), read: mark.map_or(0, |mark| mark.read) });
                    return Ok(());
                }
                if u64::try_from(stat.st_size) == Ok(file.len) {
                    self.file(place, entry, file, path, mark.map_or(0, |mark| mark.read))?;
                } else {
                    self.verified.is_other = true;
                }
            }
            Node::Link { target } => self.verified.is_other |= place.link(&entry.name)? != *target,
            Node::Twin { .. } | Node::Fifo | Node::Socket | Node::Device { .. } => {}
        }
        // What lies behind the mark now was changed since.
        self.from = self.from.take().filter(|mark| mark.path > *path);
        self.left = self.left.saturating_sub(NAME_COST);
        Ok(())
    }

    fn file(&mut self, place: &Place, entry: &Entry, file: &File, path: &[Name], behind: u64) -> Result<(), Error> {
        let failed = |source: io::Error| place.failed("read", &entry.name, source);
        let opened = place.file(&entry.name)?;
        let mut stretches = Stretches::of(&file.holes);
        let (mut read, mut healed) = (0, 0);
        for piece in file.content.pieces(self.objects) {
            let Piece::Chunk(part) = piece.map_err(tree::Error::from)? else { continue };
            let len = u64::from(part.len);
            let stretches = stretches.next(len);
            if read < behind {
                read += len;
                continue;
            }
            if self.left == 0 {
                self.verified.next = Some(Mark { path: path.to_vec(), read });
                break;
            }
            let bytes = match read_stretches(&opened, &stretches) {
                Ok(bytes) => bytes,
                // The disk knows that it has forgotten them: they are written anew.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Vec::new(),
                Err(error) => return Err(failed(error).into()),
            };
            // The name of what is sealed says nothing of the plain bytes.
            if Hash::of(&bytes) != part.hash {
                match self.objects.get(&part.hash) {
                    Ok(wanted) if wanted == bytes => {}
                    Ok(wanted) if wanted.len() == part.len as usize => {
                        heal(place, entry, &stretches, &wanted)?;
                        healed += 1;
                    }
                    Ok(_) => return Err(tree::Error::Damaged.into()),
                    // Whoever reads the store finds that, and has it repaired.
                    Err(store::Error::Damaged { .. }) => {}
                    Err(error) => return Err(tree::Error::from(error).into()),
                }
            }
            read += len;
            self.verified.bytes += len;
            self.left = self.left.saturating_sub(len);
        }
        self.verified.healed += healed;
        Ok(())
    }
}

fn read_stretches(file: &fs::File, stretches: &[(u64, usize)]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; stretches.iter().map(|(_, len)| len).sum()];
    let mut rest = bytes.as_mut_slice();
    for (at, len) in stretches {
        let (these, others) = rest.split_at_mut(*len);
        file.read_exact_at(these, *at)?;
        rest = others;
    }
    Ok(bytes)
}

fn is_of(node: &Node, there: FileType) -> bool {
    match node {
        Node::File(_) => there == FileType::RegularFile,
        // Of whatever its other name is.
        Node::Twin { .. } => true,
        Node::Directory(_) => there == FileType::Directory,
        Node::Link { .. } => there == FileType::Symlink,
        Node::Fifo => there == FileType::Fifo,
        Node::Socket => there == FileType::Socket,
        Node::Device { block: true, .. } => there == FileType::BlockDevice,
        Node::Device { block: false, .. } => there == FileType::CharacterDevice,
    }
}

/// Writes into the file itself, which may have other names, and leaves the time of its last change as it was.
fn heal(place: &Place, entry: &Entry, stretches: &[(u64, usize)], wanted: &[u8]) -> Result<(), place::Error> {
    let failed = |source: io::Error| place.failed("write", &entry.name, source);
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(place.fd(), os(&entry.name), flags, Mode::empty());
    let file = fs::File::from(opened.map_err(|error: Errno| failed(error.into()))?);
    let mut rest = wanted;
    for (at, len) in stretches {
        let (these, others) = rest.split_at(*len);
        file.write_all_at(these, *at).map_err(failed)?;
        rest = others;
    }
    futimens(file.as_fd(), &place::times(&entry.meta)).map_err(|error| failed(error.into()))?;
    file.sync_all().map_err(failed)
}

/// Where the bytes of a file's content lie between its holes.
struct Stretches<'a> {
    holes: std::iter::Peekable<std::slice::Iter<'a, Hole>>,
    /// Bytes from the file's beginning.
    at: u64,
}

impl<'a> Stretches<'a> {
    fn of(holes: &'a [Hole]) -> Self {
        Self { holes: holes.iter().peekable(), at: 0 }
    }

    /// Of the next so many bytes: where each begins, and its length.
    fn next(&mut self, mut len: u64) -> Vec<(u64, usize)> {
        let mut stretches = Vec::new();
        while len > 0 {
            while let Some(hole) = self.holes.next_if(|hole| hole.at == self.at) {
                self.at += hole.len;
            }
            let until = self.holes.peek().map_or(u64::MAX, |hole| hole.at);
            let here = len.min(until.saturating_sub(self.at).max(1));
            // A chunk has no more than some hundred thousand bytes.
            stretches.push((self.at, here as usize));
            self.at += here;
            len -= here;
        }
        stretches
    }
}
