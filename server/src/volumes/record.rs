//! What a service's directories on this machine show, as it is known after whatever happened to the machine.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use flotilla_api::VolumeName;
use flotilla_core::state::GenerationName;
use serde::{Deserialize, Serialize};

use super::Error;

const FILE: &str = ".record.json";
const NEW: &str = ".record.json.new";

/// Lies beside the directories, and goes with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The generation that they show; absent where that is unknown, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shows: Option<Shown>,
    /// The one that they are on the way to: some of them may be anything between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) becomes: Option<Shown>,
    /// An instance of this epoch has written them, or may have, since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) written: Option<u64>,
}

/// A generation of all of a service's volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) name: GenerationName,
    /// BLAKE3 of each volume's root, hexadecimal.
    pub(super) roots: BTreeMap<VolumeName, String>,
}

impl Record {
    /// `None` where there is none: whatever lies there was written before records were kept, or nothing lies there.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::file("read", &path, source)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| Error::file("read", &path, error.into()))
    }

    /// It is on the disk when this returns.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        let (path, new) = (directory.join(FILE), directory.join(NEW));
        let text = serde_json::to_vec(self).map_err(|error| Error::file("write", &path, error.into()))?;
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| Error::file("write", &path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), None);
        let name = GenerationName { epoch: 7, sequence: 3 };
        let shows = Shown { name, roots: BTreeMap::from([("data".parse().unwrap(), "ab".repeat(32))]) };
        for record in [
            Record::default(),
            Record { shows: Some(shows.clone()), ..Record::default() },
            Record { shows: None, becomes: Some(shows), written: Some(8) },
        ] {
            record.write(directory.path()).unwrap();
            assert_eq!(Record::read(directory.path()).unwrap(), Some(record));
        }
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(Record::read(directory.path()).is_err(), "what can't be read is not taken for nothing");
    }
}
