//! What two trees do not share.

use crate::{
    store::Objects,
    stream::Stream,
    tree::{self, DEPTH_MAX, Entry, Error, Name, Node},
};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Only the first tree has it. Of a directory everything in it is gone, too, and named before it.
    Gone(Entry),
    /// Only the second tree has it. Of a directory what is in it follows.
    New(Entry),
    /// Both have it: as it was, and as it is. What is in a directory follows, as far as it differs.
    Other(Entry, Entry),
}

/// Calls `told` with every difference, and the path of the directory that it is in. What is gone is told before what is new.
///
/// # Errors
/// Where one of the trees can't be read, or `told` fails.
pub fn diff<E: From<Error>>(
    objects: &dyn Objects,
    old: Option<&Stream>,
    new: Option<&Stream>,
    path: &mut Vec<Name>,
    told: &mut impl FnMut(&[Name], Change) -> Result<(), E>,
) -> Result<(), E> {
    if old == new {
        return Ok(());
    }
    // A tree may come from anywhere.
    if path.len() > DEPTH_MAX {
        return Err(Error::Damaged.into());
    }
    let read = |stream: Option<&Stream>| match stream {
        Some(stream) => tree::entries(stream, objects).collect::<Result<Vec<_>, _>>(),
        None => Ok(Vec::new()),
    };
    let mut old = read(old)?.into_iter().peekable();
    let new = read(new)?;
    let mut later = Vec::new();
    for entry in new {
        while let Some(gone) = old.next_if(|old| old.name < entry.name) {
            lose(objects, gone, path, told)?;
        }
        match old.next_if(|old| old.name == entry.name) {
            Some(same) if same == entry => {}
            before => later.push((before, entry)),
        }
    }
    for gone in old {
        lose(objects, gone, path, told)?;
    }
    for (before, entry) in later {
        let below = |entry: Option<&Entry>| match entry.map(|entry| &entry.node) {
            Some(Node::Directory(below)) => Some(below.entries.clone()),
            _ => None,
        };
        let (old, new) = (below(before.as_ref()), below(Some(&entry)));
        let name = entry.name.clone();
        match before {
            // A directory in the place of something else, or the other way round.
            Some(before) if old.is_some() != new.is_some() => {
                lose(objects, before, path, told)?;
                told(path, Change::New(entry))?;
                path.push(name);
                diff(objects, None, new.as_ref(), path, told)?;
            }
            before => {
                told(
                    path,
                    before.map_or_else(|| Change::New(entry.clone()), |before| Change::Other(before, entry.clone())),
                )?;
                path.push(name);
                diff(objects, old.as_ref(), new.as_ref(), path, told)?;
            }
        }
        path.pop();
    }
    Ok(())
}

fn lose<E: From<Error>>(
    objects: &dyn Objects,
    gone: Entry,
    path: &mut Vec<Name>,
    told: &mut impl FnMut(&[Name], Change) -> Result<(), E>,
) -> Result<(), E> {
    if let Node::Directory(below) = &gone.node {
        path.push(gone.name.clone());
        diff(objects, Some(&below.entries), None, path, told)?;
        path.pop();
    }
    told(path, Change::Gone(gone))
}
