//! A generation as a tar archive (POSIX.1-2001, pax), as other programs read it.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use flotilla_data::{
    Hash, Store,
    stream::Stream,
    tree::{self, Entry, File, Meta, Name, Node, Root},
};
use tar::{Builder, EntryType, Header};

use super::Error;

/// Writes what a tree has, with owners, modes, times and extended attributes. Holes are written as zeros.
pub(super) fn write(store: &Store, root: &Hash, to: impl Write) -> Result<(), Error> {
    let root = Root::read(store, root)?;
    let mut archive = Archive { store, builder: Builder::new(to) };
    archive.directory(&mut Vec::new(), &root.entries)?;
    archive.builder.finish().and_then(|()| archive.builder.get_mut().flush()).map_err(written)
}

struct Archive<'a, W: Write> {
    store: &'a Store,
    builder: Builder<W>,
}

fn written(source: io::Error) -> Error {
    Error::file("write", Path::new("the archive"), source)
}

impl<W: Write> Archive<'_, W> {
    fn directory(&mut self, path: &mut Vec<u8>, entries: &Stream) -> Result<(), Error> {
        for entry in tree::entries(entries, self.store) {
            let entry = entry?;
            let len = path.len();
            enter(path, &entry.name);
            self.entry(path, &entry).map_err(|error| match error.downcast::<tree::Error>() {
                Ok(error) => Error::Tree(error),
                Err(error) => written(error),
            })?;
            if let Node::Directory(below) = &entry.node {
                self.directory(path, &below.entries)?;
            }
            path.truncate(len);
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], entry: &Entry) -> io::Result<()> {
        let extended = attributes(&entry.meta);
        let extended = extended.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let mut header = header(&entry.meta);
        let path = path_of(path);
        match &entry.node {
            Node::File(file) => {
                self.builder.append_pax_extensions(extended)?;
                header.set_entry_type(EntryType::Regular);
                header.set_size(file.len);
                let content = Content::of(file, self.store);
                self.builder.append_data(&mut header, path, content)
            }
            Node::Directory(_) => {
                self.builder.append_pax_extensions(extended)?;
                header.set_entry_type(EntryType::Directory);
                self.builder.append_data(&mut header, path, io::empty())
            }
            Node::Link { target } => {
                header.set_entry_type(EntryType::Symlink);
                self.builder.append_link(&mut header, path, path_of(target))
            }
            Node::Twin { of } => {
                header.set_entry_type(EntryType::Link);
                self.builder.append_link(&mut header, path, path_of(of))
            }
            Node::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.builder.append_data(&mut header, path, io::empty())
            }
            Node::Device { block, major, minor } => {
                header.set_entry_type(if *block { EntryType::Block } else { EntryType::Char });
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                self.builder.append_data(&mut header, path, io::empty())
            }
            // No archive has them, and the program that listens makes it anew.
            Node::Socket => Ok(()),
        }
    }
}

fn enter(path: &mut Vec<u8>, name: &Name) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn header(meta: &Meta) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(meta.mode);
    header.set_uid(meta.uid.into());
    header.set_gid(meta.gid.into());
    // An archive knows no time before 1970.
    header.set_mtime(u64::try_from(meta.modified.0).unwrap_or(0));
    header.set_size(0);
    header
}

/// As GNU tar, libarchive and others call them.
fn attributes(meta: &Meta) -> Vec<(String, Vec<u8>)> {
    let named = meta.attributes.iter().filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)));
    named.map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())).collect()
}

/// A file's bytes, its holes as zeros.
struct Content<'a> {
    bytes: Box<dyn Read + 'a>,
    holes: std::slice::Iter<'a, tree::Hole>,
    next: Option<&'a tree::Hole>,
    at: u64,
    len: u64,
}

impl<'a> Content<'a> {
    fn of(file: &'a File, store: &'a Store) -> Self {
        let mut holes = file.holes.iter();
        let next = holes.next();
        Self { bytes: Box::new(file.content.read(store)), holes, next, at: 0, len: file.len }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(hole) = self.next.filter(|hole| self.at >= hole.at + hole.len) {
            self.next = self.holes.next();
            // Holes come in order, and none is empty; what is otherwise ends here.
            if hole.len == 0 {
                return Err(io::Error::other(tree::Error::Damaged));
            }
        }
        let until = self.next.map_or(self.len, |hole| if self.at >= hole.at { hole.at + hole.len } else { hole.at });
        let wanted = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = if self.next.is_some_and(|hole| self.at >= hole.at) {
            buffer[..wanted].fill(0);
            wanted
        } else {
            self.bytes.read(&mut buffer[..wanted])?
        };
        self.at += read as u64;
        if read == 0 && self.at < self.len && !buffer.is_empty() {
            return Err(io::Error::other(tree::Error::Damaged));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::symlink};

    use flotilla_data::capture::{Capture, Scope};

    use super::*;

    #[test]
    fn what_is_in_a_volume_is_in_its_archive() {
        let place = tempfile::tempdir().unwrap();
        let volume = place.path().join("volume");
        fs::create_dir_all(volume.join("deep/er")).unwrap();
        let long = "n".repeat(200);
        fs::write(volume.join("deep/er").join(&long), vec![7; 300_000]).unwrap();
        fs::write(volume.join("first"), "one").unwrap();
        fs::hard_link(volume.join("first"), volume.join("second")).unwrap();
        symlink("first", volume.join("link")).unwrap();
        let sparse = fs::File::create(volume.join("sparse")).unwrap();
        sparse.set_len(5_000_000).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"here", 2_000_000).unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        let capture = Capture::begin(&store, "a/volume", &volume).unwrap();
        let root = capture.finish(&Scope::Everything).unwrap().commit(1, 1, 7).unwrap().root;

        let mut bytes = Vec::new();
        write(&store, &root, &mut bytes).unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let link = entry.link_name().unwrap().map(|link| link.to_string_lossy().into_owned());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(path, (entry.header().entry_type(), link, content));
        }
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        let deep = format!("deep/er/{long}");
        assert_eq!(names, ["deep", "deep/er", &deep, "first", "link", "second", "sparse"]);
        assert_eq!(found[&deep].2, vec![7; 300_000]);
        assert_eq!(found["second"], (EntryType::Link, Some("first".to_owned()), Vec::new()));
        assert_eq!(found["link"].1.as_deref(), Some("first"));
        let content = &found["sparse"].2;
        assert!(content.len() == 5_000_000 && &content[2_000_000..2_000_004] == b"here");
        assert!(content[..2_000_000].iter().chain(&content[2_000_004..]).all(|byte| *byte == 0));
    }
}
