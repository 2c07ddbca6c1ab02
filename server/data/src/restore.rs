//! A directory of a generation.
//!
//! [`restore`] changes a directory that shows one generation, or nothing, into one that shows another. Broken off in the middle it is
//! neither; done again, from the same generation, it comes to the same.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, fchown, fstat, futimens, linkat, mkdirat,
        mknodat, openat, renameat, symlinkat, syncfs, unlinkat, utimensat,
    },
    io::Errno,
};

use crate::{
    Hash,
    diff::{self, Change},
    place::{self, Place, kind, os},
    store::Objects,
    tree::{self, Entry, File, Meta, Name, Node, Root},
};

/// Under which a file is written before it takes its name. No volume keeps a file of this name.
const STAGING: &[u8] = b".flotilla-restoring";

/// Why a directory does not show the generation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] place::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
}

/// What it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub files_written: u64,
    /// Bytes.
    pub written: u64,
    pub removed: u64,
}

/// Makes a directory that shows `from` (or is empty) show `to`, and sees that it is on the disk.
///
/// # Errors
/// Where the objects are not there, or something can't be written.
pub fn restore(objects: &dyn Objects, directory: &Path, from: Option<&Hash>, to: &Hash) -> Result<Figures, Error> {
    let old = from.map(|from| Root::read(objects, from)).transpose()?;
    let new = Root::read(objects, to)?;
    let top = Place::open(directory)?;
    let mut restorer =
        Restorer { objects, top: &top, here: None, figures: Figures::default(), directories: Vec::new() };
    let old = old.as_ref().map(|root| &root.entries);
    diff::diff(objects, old, Some(&new.entries), &mut Vec::new(), &mut |path, change| restorer.apply(path, change))?;
    restorer.finish_directories()?;
    set_meta(top.fd(), &new.meta).map_err(|source| place::failed("change", directory, source))?;
    syncfs(top.fd()).map_err(|error| place::failed("write", directory, error))?;
    Ok(restorer.figures)
}

struct Restorer<'a> {
    objects: &'a dyn Objects,
    top: &'a Place,
    /// The directory that was opened last: most of what differs lies beside what differs.
    here: Option<(Vec<Name>, Rc<Place>)>,
    figures: Figures,
    /// Whose own attributes are set last, as each change in them sets their time.
    directories: Vec<(Vec<Name>, Meta)>,
}

impl Restorer<'_> {
    fn apply(&mut self, path: &[Name], change: Change) -> Result<(), Error> {
        match change {
            Change::Gone(entry) => {
                if let Node::Directory(_) = &entry.node {
                    self.here = None;
                }
                match self.open(path) {
                    Ok(place) => remove(&place, &entry.name)?,
                    Err(error) if error.is_gone() => {}
                    Err(error) => return Err(error.into()),
                }
                self.figures.removed += 1;
            }
            Change::New(entry) => self.put(path, None, entry)?,
            Change::Other(before, entry) => self.put(path, Some(&before), entry)?,
        }
        Ok(())
    }

    fn open(&mut self, path: &[Name]) -> Result<Rc<Place>, place::Error> {
        if let Some((at, place)) = &self.here
            && at == path
        {
            return Ok(Rc::clone(place));
        }
        let place = Rc::new(self.top.below(path)?);
        self.here = Some((path.to_vec(), Rc::clone(&place)));
        Ok(place)
    }

    fn put(&mut self, path: &[Name], before: Option<&Entry>, entry: Entry) -> Result<(), Error> {
        let place = self.open(path)?;
        let name = &entry.name;
        let failed = |source: io::Error| place.failed("write", name, source);
        // What this was about to be when it was broken off may be there already.
        let there = match place.stat(name) {
            Ok(stat) => Some(kind(&stat)),
            Err(error) if error.is_gone() => None,
            Err(error) => return Err(error.into()),
        };
        if let Node::Directory(_) = &entry.node {
            // Another one may have stood here.
            self.here = None;
            if there != Some(FileType::Directory) {
                remove(&place, name)?;
                mkdirat(place.fd(), os(name), Mode::from_raw_mode(0o700)).map_err(|error| failed(error.into()))?;
            }
            self.directories.push((path.iter().cloned().chain([name.clone()]).collect(), entry.meta));
            return Ok(());
        }
        if there == Some(FileType::Directory) {
            remove(&place, name)?;
        }
        let staging = Name::try_from(STAGING.to_vec()).map_err(|error| failed(io::Error::other(error)))?;
        // What stands in the way of nothing is written where it shall be.
        let target = if there.is_none() { name } else { &staging };
        remove(&place, &staging)?;
        match &entry.node {
            Node::File(file) => {
                let old = match before.map(|before| &before.node) {
                    Some(Node::File(old)) if there == Some(FileType::RegularFile) => Some(old),
                    _ => None,
                };
                let in_place = if old == Some(file) {
                    let opened = place.file(name)?;
                    set_meta(opened.as_fd(), &entry.meta).map_err(failed)?;
                    true
                } else {
                    // Its other names, which are not told where they stay what they are, follow.
                    let in_place = file.has_twins && old.is_some_and(|old| old.has_twins);
                    let target = if in_place { name } else { target };
                    self.write(&place, target, in_place, file, &entry.meta).map_err(|error| match error {
                        Written::Tree(error) => Error::Tree(error),
                        Written::File(source) => failed(source).into(),
                    })?;
                    in_place
                };
                if in_place {
                    return Ok(());
                }
            }
            Node::Twin { of } => {
                let of = self.path_of(of)?;
                let (last, above) = of.split_last().ok_or(tree::Error::Damaged)?;
                let from = self.open(above)?;
                linkat(from.fd(), os(last), place.fd(), os(target), AtFlags::empty())
                    .map_err(|error| failed(error.into()))?;
            }
            Node::Link { target: points_to } => {
                symlinkat(OsStr::from_bytes(points_to), place.fd(), os(target))
                    .map_err(|error| failed(error.into()))?;
                set_plain_meta(&place, target, &entry.meta, false).map_err(failed)?;
            }
            Node::Fifo => self.make(&place, target, FileType::Fifo, 0, &entry.meta).map_err(failed)?,
            Node::Socket => self.make(&place, target, FileType::Socket, 0, &entry.meta).map_err(failed)?,
            Node::Device { block, major, minor } => {
                let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
                let device = rustix::fs::makedev(*major, *minor);
                self.make(&place, target, kind, device, &entry.meta).map_err(failed)?;
            }
            Node::Directory(_) => {}
        }
        if there.is_some() {
            renameat(place.fd(), os(&staging), place.fd(), os(name)).map_err(|error| failed(error.into()))?;
            // Between two names of one file a rename does nothing.
            remove(&place, &staging)?;
        }
        Ok(())
    }

    fn path_of(&self, path: &[u8]) -> Result<Vec<Name>, Error> {
        let names = path.split(|byte| *byte == b'/').map(|name| Name::try_from(name.to_vec()));
        names.collect::<Result<_, _>>().map_err(|_| Error::Tree(tree::Error::Damaged))
    }

    fn write(&mut self, place: &Place, name: &Name, in_place: bool, file: &File, meta: &Meta) -> Result<(), Written> {
        let how = if in_place { OFlags::TRUNC } else { OFlags::CREATE | OFlags::EXCL };
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | how;
        // Whoever may not read it can't enter the directory that all of this is in.
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        let fd = openat(place.fd(), os(name), flags, mode).map_err(io::Error::from)?;
        let mut opened = fs::File::from(fd);
        let mut holes = file.holes.iter().peekable();
        let mut at = 0;
        let mut bytes = file.content.read(self.objects);
        loop {
            while let Some(hole) = holes.next_if(|hole| hole.at == at) {
                at += hole.len;
                opened.seek(SeekFrom::Start(at))?;
            }
            let until = holes.peek().map_or(u64::MAX, |hole| hole.at);
            let chunk = bytes
                .fill_buf()
                .map_err(|error| Written::Tree(error.downcast().map_or(tree::Error::Damaged, tree::Error::Store)))?;
            let len = usize::try_from(until - at).unwrap_or(usize::MAX).min(chunk.len());
            if len == 0 {
                break;
            }
            opened.write_all(&chunk[..len])?;
            bytes.consume(len);
            at += len as u64;
            self.figures.written += len as u64;
        }
        if at != file.len {
            return Err(Written::Tree(tree::Error::Damaged));
        }
        if file.holes.last().is_some_and(|hole| hole.at.checked_add(hole.len) == Some(file.len)) {
            opened.set_len(file.len)?;
        }
        set_meta(opened.as_fd(), meta)?;
        self.figures.files_written += 1;
        Ok(())
    }

    fn make(&self, place: &Place, name: &Name, kind: FileType, device: u64, meta: &Meta) -> io::Result<()> {
        mknodat(place.fd(), os(name), kind, Mode::from_raw_mode(0o600), device)?;
        set_plain_meta(place, name, meta, true)
    }

    /// The deepest first: to change what is in a directory one must be able to enter it.
    fn finish_directories(&mut self) -> Result<(), Error> {
        let mut directories = std::mem::take(&mut self.directories);
        directories.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        for (path, meta) in directories {
            let place = self.open(&path)?;
            set_meta(place.fd(), &meta).map_err(|source| place::failed("change", place.path(), source))?;
        }
        Ok(())
    }
}

/// Why a file was not written.
enum Written {
    Tree(tree::Error),
    File(io::Error),
}

impl From<io::Error> for Written {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

/// Removes whatever has this name, if anything has.
fn remove(place: &Place, name: &Name) -> Result<(), Error> {
    match unlinkat(place.fd(), os(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            // The standard library goes by directory handles, too, and follows no link.
            match fs::remove_dir_all(place.path_of(name)) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(place.failed("delete", name, error).into()),
            }
        }
        Err(error) => Err(place.failed("delete", name, error).into()),
    }
}

/// What is right already is left alone: each change costs the file system more than a look.
fn set_meta(fd: BorrowedFd<'_>, meta: &Meta) -> io::Result<()> {
    // A change of owner takes set-id bits away, and one of attributes may change the mode.
    let stat = fstat(fd)?;
    if (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid) {
        fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    }
    place::set_attributes(fd, &meta.attributes)?;
    if fstat(fd)?.st_mode & 0o7777 != meta.mode {
        fchmod(fd, Mode::from_raw_mode(meta.mode))?;
    }
    futimens(fd, &place::times(meta))?;
    Ok(())
}

/// For what can't be opened: links, which have no mode of their own, and devices.
fn set_plain_meta(place: &Place, name: &Name, meta: &Meta, has_mode: bool) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    chownat(place.fd(), os(name), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if has_mode {
        chmodat(place.fd(), os(name), Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    utimensat(place.fd(), os(name), &place::times(meta), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
