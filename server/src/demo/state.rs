//! The demo's directory: what is in it, who uses it, and how it goes away again.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use flotilla_api::MachineName;
use serde::{Deserialize, Serialize};

use crate::cli::Failure;

const RECORD: &str = "demo.json";
const LOCK: &str = "lock";
const SOCKET: &str = "control.sock";
const MACHINES: &str = "machines";
const LOGS: &str = "logs";
const ARCHIVE: &str = "sample.tar";
const TOKEN: &str = "token";

/// What a later demo in this directory, and the end of this one, must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) cluster: String,
    pub(super) admin_token: String,
    pub(super) machines: Vec<MachineRecord>,
    /// Images that a demo has put into the engine.
    #[serde(default)]
    pub(super) images: Vec<String>,
    /// The directory itself was made by a demo, and goes with the last one.
    #[serde(default)]
    pub(super) made_directory: bool,
}

/// 1 was of demos with one machine.
pub(super) const RECORD_VERSION: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineRecord {
    pub(super) name: MachineName,
    /// Of its own listener on 127.0.0.1. The others know it by it.
    pub(super) port: u16,
}

/// A directory that this demo holds alone.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    _lock: File,
    made_now: bool,
}

impl StateDir {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let made_now = !path.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Failure::io("make", path))?;
        let path = path.canonicalize().map_err(Failure::io("find", path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(Failure::io("write", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock, made_now }),
            Err(TryLockError::WouldBlock) => Err(Failure::Other(format!(
                "another demo runs in `{}`; stop it first, or choose another directory with --state",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(Failure::io("lock", lock_path)(error)),
        }
    }

    /// Did this demo make the directory?
    pub(super) fn made_now(&self) -> bool {
        self.made_now
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where demos in this directory take orders.
    pub(super) fn socket_in(path: &Path) -> PathBuf {
        path.join(SOCKET)
    }

    pub(super) fn socket(&self) -> PathBuf {
        Self::socket_in(&self.path)
    }

    /// A machine's data directory.
    pub(super) fn machine(&self, name: &MachineName) -> PathBuf {
        self.path.join(MACHINES).join(name.as_str())
    }

    pub(super) fn log(&self, name: &MachineName) -> PathBuf {
        self.path.join(LOGS).join(format!("{name}.log"))
    }

    /// What machines keep their directories and logs in.
    pub(super) fn make_rooms(&self) -> Result<(), Failure> {
        for name in [MACHINES, LOGS] {
            let path = self.path.join(name);
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(Failure::io("make", path))?;
        }
        Ok(())
    }

    /// Deletes what machines have left that a demo had before it had a record, and so before it had started any.
    pub(super) fn clear(&self) -> Result<(), Failure> {
        [MACHINES, LOGS].iter().try_for_each(|name| remove_tree(&self.path.join(name)))
    }

    pub(super) fn archive(&self) -> PathBuf {
        self.path.join(ARCHIVE)
    }

    /// For a person's own commands.
    pub(super) fn token(&self) -> PathBuf {
        self.path.join(TOKEN)
    }

    /// What an earlier demo has left here.
    pub(super) fn record(&self) -> Result<Option<Record>, Failure> {
        let path = self.path.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io("read", path)(error)),
        };
        match serde_json::from_str::<Record>(&text) {
            Ok(record) if record.version == RECORD_VERSION => Ok(Some(record)),
            _ => Err(Failure::Other(format!(
                "`{}` is not of a demo of this version; delete it, or choose another directory with --state",
                path.display()
            ))),
        }
    }

    pub(super) fn keep(&self, record: &Record) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(record).map_err(|error| Failure::Other(error.to_string()))?;
        let path = self.path.join(RECORD);
        write_atomically(&path, &text).map_err(Failure::io("write", path))?;
        write_atomically(&self.token(), record.admin_token.as_bytes()).map_err(Failure::io("write", self.token()))
    }

    /// Deletes what demos have made here, and the directory itself if one has made it. What else lies here stays.
    pub(super) fn delete(self, made_directory: bool) -> Result<(), Failure> {
        self.clear()?;
        for file in [SOCKET, ARCHIVE, TOKEN, RECORD, LOCK].map(|name| self.path.join(name)) {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::io("delete", file)(error));
                }
                _ => {}
            }
        }
        if made_directory || self.made_now {
            // Not empty: somebody has put something of their own into it.
            let _ = fs::remove_dir(&self.path);
        }
        Ok(())
    }
}

fn remove_tree(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io("delete", path)(error)),
        _ => Ok(()),
    }
}

/// Who waits for the file sees all of it or nothing; for its owner alone, as it holds a token.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            version: RECORD_VERSION,
            cluster: "c".into(),
            admin_token: "t".into(),
            machines: vec![MachineRecord { name: "atlas".parse().unwrap(), port: 7071 }],
            images: vec!["i".into()],
            made_directory: true,
        }
    }

    #[test]
    fn two_demos_do_not_share_a_directory() {
        let base = tempfile::tempdir().unwrap();
        let first = StateDir::open(&base.path().join("demo")).unwrap();
        let second = StateDir::open(&base.path().join("demo")).unwrap_err();
        assert!(second.to_string().contains("another demo runs"), "{second}");
        first.delete(false).unwrap();
        assert!(!base.path().join("demo").exists());
    }

    #[test]
    fn what_a_demo_knew_is_known_to_the_next_one_and_then_gone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("demo");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.record().unwrap(), None);
        state.keep(&record()).unwrap();
        drop(state);

        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.record().unwrap(), Some(record()));
        state.make_rooms().unwrap();
        fs::create_dir_all(state.machine(&"atlas".parse().unwrap()).join("keys")).unwrap();
        fs::write(path.join("mine.txt"), "").unwrap();
        state.delete(true).unwrap();
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["mine.txt"]);
    }
}
