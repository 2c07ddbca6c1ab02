//! What two generations of a volume do not share.

use flotilla_api::{ServiceName, UnixMillis, VolumeName};
use flotilla_core::state::GenerationName;
use flotilla_data::{
    Store,
    diff::{self, Change},
    tree::{self, Entry, Name, Node, Root},
};

use super::{Error, Volumes, blocking, layout, name_of};

/// Differences that are told one by one.
const TOLD_MAX: usize = 1_000;

/// What changes on the way from one generation to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// When the two were taken.
    pub taken_at: (UnixMillis, UnixMillis),
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    /// Of all files in either. Bytes.
    pub bytes: (u64, u64),
    /// The first of them, by path.
    pub told: Vec<Difference>,
}

/// One name that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// From the volume's directory; a directory's ends with a slash.
    pub path: String,
    /// The bytes of a file, 0 of anything else; absent where there is nothing of the name.
    pub before: Option<u64>,
    pub after: Option<u64>,
}

impl Volumes {
    /// What changes from one generation of a volume to another; `None` where one of them is not on this machine.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn compare(
        &self,
        service: &ServiceName,
        volume: &VolumeName,
        from: GenerationName,
        to: GenerationName,
    ) -> Result<Option<Comparison>, Error> {
        let store = self.shared.store.clone();
        let key = layout::key(service, volume);
        blocking(move || compare(&store, &key, from, to)).await
    }
}

fn compare(store: &Store, key: &str, from: GenerationName, to: GenerationName) -> Result<Option<Comparison>, Error> {
    let generations = store.generations(key)?;
    let found = |name| generations.iter().find(|it| name_of(it) == name);
    let (Some(from), Some(to)) = (found(from), found(to)) else { return Ok(None) };
    let (old, new) = (Root::read(store, &from.root)?, Root::read(store, &to.root)?);
    let mut comparison = Comparison {
        taken_at: (UnixMillis(from.taken_at), UnixMillis(to.taken_at)),
        bytes: (old.totals.bytes, new.totals.bytes),
        ..Comparison::default()
    };
    let mut told = |path: &[Name], change: Change| {
        comparison.note(path, &change);
        Ok::<_, tree::Error>(())
    };
    diff::diff(store, Some(&old.entries), Some(&new.entries), &mut Vec::new(), &mut told)?;
    comparison.told.sort();
    Ok(Some(comparison))
}

impl Comparison {
    fn note(&mut self, path: &[Name], change: &Change) {
        let (count, entry, before, after) = match change {
            Change::Gone(entry) => (&mut self.removed, entry, Some(entry), None),
            Change::New(entry) => (&mut self.added, entry, None, Some(entry)),
            // What is in a directory is told by itself, and changes its times.
            Change::Other(before, after)
                if is_directory(before) && is_directory(after) && same_rights(before, after) =>
            {
                return;
            }
            Change::Other(before, after) => (&mut self.changed, after, Some(before), Some(after)),
        };
        *count += 1;
        if self.told.len() < TOLD_MAX {
            let mut text = String::new();
            for name in path {
                text.push_str(&String::from_utf8_lossy(name.as_bytes()));
                text.push('/');
            }
            text.push_str(&String::from_utf8_lossy(entry.name.as_bytes()));
            if is_directory(entry) {
                text.push('/');
            }
            self.told.push(Difference { path: text, before: before.map(bytes), after: after.map(bytes) });
        }
    }
}

fn is_directory(entry: &Entry) -> bool {
    matches!(entry.node, Node::Directory(_))
}

fn same_rights(before: &Entry, after: &Entry) -> bool {
    let rights = |entry: &Entry| (entry.meta.mode, entry.meta.uid, entry.meta.gid, entry.meta.attributes.clone());
    rights(before) == rights(after)
}

fn bytes(entry: &Entry) -> u64 {
    match &entry.node {
        Node::File(file) => file.len,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flotilla_data::capture::{Capture, Scope};

    use super::*;

    #[test]
    fn what_changes_between_two_generations_is_told_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let volume = directory.path().join("volume");
        fs::create_dir_all(volume.join("old/deep")).unwrap();
        fs::create_dir(volume.join("stays")).unwrap();
        for (path, content) in [("old/deep/gone", "12345"), ("same", "same"), ("stays/grows", "1")] {
            fs::write(volume.join(path), content).unwrap();
        }
        let take = |sequence| {
            let capture = Capture::begin(&store, "notes/board", &volume).unwrap();
            capture.finish(&Scope::Everything).unwrap().commit(7, sequence, sequence * 1_000).unwrap();
            GenerationName { epoch: 7, sequence }
        };
        let first = take(1);
        fs::remove_dir_all(volume.join("old")).unwrap();
        fs::write(volume.join("stays/grows"), "1234").unwrap();
        fs::write(volume.join("stays/new"), "12").unwrap();
        let second = take(2);

        let there = compare(&store, "notes/board", first, second).unwrap().unwrap();
        let difference = |path: &str, before, after| Difference { path: path.to_owned(), before, after };
        let told = [
            difference("old/", Some(0), None),
            difference("old/deep/", Some(0), None),
            difference("old/deep/gone", Some(5), None),
            difference("stays/grows", Some(1), Some(4)),
            difference("stays/new", None, Some(2)),
        ];
        assert_eq!((there.added, there.removed, there.changed, there.told.as_slice()), (1, 3, 1, told.as_slice()));
        assert_eq!((there.bytes, there.taken_at), ((10, 10), (UnixMillis(1_000), UnixMillis(2_000))));

        let back = compare(&store, "notes/board", second, first).unwrap().unwrap();
        assert_eq!((back.added, back.removed, back.changed), (3, 1, 1));
        let nothing = compare(&store, "notes/board", first, first).unwrap().unwrap();
        assert_eq!((nothing.told.len(), nothing.added), (0, 0));
        let unknown = GenerationName { epoch: 7, sequence: 9 };
        assert_eq!(compare(&store, "notes/board", first, unknown).unwrap(), None);
    }
}
