//! Directories, told so that two of them can be compared.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// What stands at each path, with everything that a volume keeps.
pub(crate) fn told(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut told = BTreeMap::new();
    let mut twins = BTreeMap::new();
    tell(directory, Path::new(""), &mut told, &mut twins);
    told
}

fn tell(directory: &Path, path: &Path, told: &mut BTreeMap<PathBuf, String>, twins: &mut BTreeMap<u64, PathBuf>) {
    let here = directory.join(path);
    let metadata = fs::symlink_metadata(&here).unwrap();
    let kind = metadata.file_type();
    let meta = format!(
        "{:o} {}:{} {}.{:09} {:?}",
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        attributes(&here, &metadata),
    );
    let what = if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&here).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            tell(directory, &path.join(name), told, twins);
        }
        format!("directory {meta}")
    } else if kind.is_symlink() {
        format!("link {meta} to {:?}", fs::read_link(&here).unwrap())
    } else if kind.is_file() {
        let first = twins.entry(metadata.ino()).or_insert_with(|| path.to_owned()).clone();
        let twin = if metadata.nlink() > 1 { format!("twin of {first:?} ") } else { String::new() };
        let bytes = fs::read(&here).unwrap();
        // Room on the disk is compared roughly: file systems round it.
        let sparse = metadata.blocks() * 512 + 262_144 < metadata.len();
        format!("file {twin}{meta} sparse={sparse} {} bytes {}", bytes.len(), flotilla_data::Hash::of(&bytes))
    } else if kind.is_fifo() {
        format!("fifo {meta}")
    } else if kind.is_socket() {
        format!("socket {meta}")
    } else {
        format!("device {meta} {}", metadata.rdev())
    };
    told.insert(path.to_owned(), what);
}

fn attributes(path: &Path, metadata: &fs::Metadata) -> Vec<(String, Vec<u8>)> {
    if metadata.is_symlink() {
        return Vec::new();
    }
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(path, &mut names[..]).unwrap_or(0);
    let mut attributes: Vec<_> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect();
    attributes.sort();
    attributes
}

/// Says where two directories differ.
pub(crate) fn assert_same(expected: &Path, found: &Path, after: &str) {
    let (expected, found) = (told(expected), told(found));
    let mut differences = Vec::new();
    for path in expected.keys().chain(found.keys().filter(|path| !expected.contains_key(*path))) {
        if expected.get(path) != found.get(path) {
            differences.push(format!("{path:?}:\n  {:?}\n  {:?}", expected.get(path), found.get(path)));
        }
    }
    assert!(differences.is_empty(), "{after}:\n{}", differences.join("\n"));
}
