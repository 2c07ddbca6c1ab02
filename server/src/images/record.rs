//! Which images are in the engine only because this node brought them there, and since when nobody needs them.
//!
//! That is how an image of ours is told from one that a person made, or that another program uses: what is not in this record is never
//! removed, and of what is in it only the names that this node gave are taken away. Where the record is lost, images stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use flotilla_api::UnixMillis;
use serde::{Deserialize, Serialize};

use super::Error;

const VERSION: u8 = 1;

/// That an image is still needed is written down no more often. Milliseconds.
const NOTED_EVERY_MS: u64 = 3_600_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    version: u8,
    /// By the engine's id.
    brought: BTreeMap<String, Brought>,
    /// When images were needed last, those of the store as well.
    #[serde(default)]
    needed: BTreeMap<String, UnixMillis>,
}

/// An image that this node brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Brought {
    /// Names that it was given by this node.
    pub(super) names: BTreeSet<String>,
    pub(super) at: UnixMillis,
}

#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    kept: Mutex<Kept>,
}

impl Record {
    pub(super) fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join("images.json");
        let kept = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
            Err(error) => Err(error),
        };
        let kept = match kept {
            Ok(kept) if kept.version <= VERSION => kept,
            // A newer version's, or damaged: what it said of images only means that fewer are removed.
            Ok(_) => Kept::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "it is not known any more which images were brought here");
                Kept::default()
            }
        };
        Ok(Self { path, kept: Mutex::new(Kept { version: VERSION, ..kept }) })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn brought(&self, id: &str, names: &[String], now: UnixMillis) -> Result<(), Error> {
        let mut kept = self.kept();
        let brought = kept.brought.entry(id.to_owned()).or_insert(Brought { names: BTreeSet::new(), at: now });
        brought.names.extend(names.iter().cloned());
        kept.needed.insert(id.to_owned(), now);
        self.write(&kept)
    }

    /// Somebody brought it once more, and it was there: it counts as needed now, and is whose it was.
    pub(super) fn found(&self, id: &str, names: &[String], now: UnixMillis) -> Result<(), Error> {
        let mut kept = self.kept();
        if let Some(brought) = kept.brought.get_mut(id) {
            brought.names.extend(names.iter().cloned());
        }
        kept.needed.insert(id.to_owned(), now);
        self.write(&kept)
    }

    pub(super) fn all(&self) -> BTreeMap<String, Brought> {
        self.kept().brought.clone()
    }

    pub(super) fn of(&self, id: &str) -> Option<Brought> {
        self.kept().brought.get(id).cloned()
    }

    pub(super) fn names(&self, id: &str) -> Vec<String> {
        self.of(id).map(|brought| brought.names.into_iter().collect()).unwrap_or_default()
    }

    pub(super) fn forget(&self, id: &str) -> Result<(), Error> {
        let mut kept = self.kept();
        let known = kept.brought.remove(id).is_some() | kept.needed.remove(id).is_some();
        if known { self.write(&kept) } else { Ok(()) }
    }

    /// Since when nobody needs an image; `came` where that was never noted.
    pub(super) fn unneeded_since(&self, id: &str, came: UnixMillis) -> UnixMillis {
        self.kept().needed.get(id).copied().unwrap_or(came).max(came)
    }

    /// These are needed now. When others were is forgotten, unless they were brought here or `is_stored`: nobody asks for it.
    pub(super) fn needed(
        &self,
        ids: &BTreeSet<&str>,
        is_stored: impl Fn(&str) -> bool,
        now: UnixMillis,
    ) -> Result<(), Error> {
        let mut kept = self.kept();
        let Kept { brought, needed, .. } = &mut *kept;
        let known = needed.len();
        needed.retain(|id, _| ids.contains(id.as_str()) || brought.contains_key(id) || is_stored(id));
        let mut old = needed.len() != known;
        for id in ids {
            if needed.get(*id).is_none_or(|known| now.since(*known) >= NOTED_EVERY_MS) {
                needed.insert((*id).to_owned(), now);
                old = true;
            }
        }
        if old { self.write(&kept) } else { Ok(()) }
    }

    /// Whole, or as it was.
    fn write(&self, kept: &Kept) -> Result<(), Error> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { operation, path, source }
        };
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec(kept).map_err(io::Error::from).map_err(failed("write", &new))?;
        let written = fs::File::create(&new).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.map_err(failed("write", &new))?;
        fs::rename(&new, &self.path).map_err(failed("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_brought_is_known_after_a_restart_and_what_is_damaged_is_nothing() {
        let place = tempfile::tempdir().unwrap();
        let (now, later) = (UnixMillis(1_000), UnixMillis(1_000 + NOTED_EVERY_MS));
        let record = Record::open(place.path()).unwrap();
        assert!(record.all().is_empty());
        record.brought("sha256:aa", &["notes:1".to_owned()], now).unwrap();
        record.brought("sha256:aa", &["notes:2".to_owned()], now).unwrap();
        record.needed(&["sha256:aa", "sha256:bb"].into(), |_| false, later).unwrap();

        let record = Record::open(place.path()).unwrap();
        assert_eq!(record.names("sha256:aa"), ["notes:1", "notes:2"]);
        assert_eq!(record.names("sha256:bb"), [""; 0], "it is needed, and nobody said that it was brought");
        assert_eq!(record.unneeded_since("sha256:bb", now), later);
        assert_eq!(record.unneeded_since("sha256:cc", now), now);
        record.forget("sha256:aa").unwrap();
        assert!(Record::open(place.path()).unwrap().all().is_empty());

        fs::write(place.path().join("images.json"), "{").unwrap();
        assert!(Record::open(place.path()).unwrap().all().is_empty());
    }

    #[test]
    fn an_image_that_is_needed_all_the_time_costs_one_write_an_hour() {
        let place = tempfile::tempdir().unwrap();
        let record = Record::open(place.path()).unwrap();
        record.needed(&["sha256:aa"].into(), |_| false, UnixMillis(1_000)).unwrap();
        fs::remove_file(place.path().join("images.json")).unwrap();
        record.needed(&["sha256:aa"].into(), |_| false, UnixMillis(2_000)).unwrap();
        assert!(!place.path().join("images.json").exists());
    }

    #[test]
    fn an_image_that_is_brought_once_more_is_as_new_and_whose_it_was() {
        let place = tempfile::tempdir().unwrap();
        let (then, now) = (UnixMillis(1_000), UnixMillis(9_000));
        let record = Record::open(place.path()).unwrap();
        record.brought("sha256:aa", &["notes:1".to_owned()], then).unwrap();
        for id in ["sha256:aa", "sha256:bb"] {
            record.found(id, &["notes:2".to_owned()], now).unwrap();
            assert_eq!(record.unneeded_since(id, then), now);
        }
        assert_eq!(record.names("sha256:aa"), ["notes:1", "notes:2"]);
        assert_eq!(record.all().into_keys().collect::<Vec<_>>(), ["sha256:aa"], "the other one is not ours");
    }

    #[test]
    fn images_that_nobody_knows_any_more_are_not_remembered() {
        let place = tempfile::tempdir().unwrap();
        let record = Record::open(place.path()).unwrap();
        let (then, now) = (UnixMillis(1_000), UnixMillis(2_000));
        record.brought("sha256:brought", &[], then).unwrap();
        record.needed(&["sha256:former", "sha256:stored", "sha256:current"].into(), |_| false, then).unwrap();
        record.needed(&["sha256:current"].into(), |id| id == "sha256:stored", now).unwrap();
        for record in [&record, &Record::open(place.path()).unwrap()] {
            let remembered: Vec<String> = record.kept().needed.keys().cloned().collect();
            assert_eq!(remembered, ["sha256:brought", "sha256:current", "sha256:stored"]);
        }
    }
}
