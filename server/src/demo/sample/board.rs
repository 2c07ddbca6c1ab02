//! What is on the board: notes and files. Every change is on the disk before it is seen by anyone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use flotilla_api::UnixMillis;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::journal::Journal;
use crate::clock;

/// Characters of a note: about a page.
pub(super) const NOTE_MAX: usize = 2000;
/// Characters of a visitor's name.
pub(super) const NAME_MAX: usize = 40;
/// Notes on the board; more are no board any more.
pub(super) const NOTES_MAX: usize = 500;
/// Files on the board.
pub(super) const FILES_MAX: usize = 200;
/// One file. Bytes.
pub(super) const FILE_MAX: u64 = 1024 * 1024 * 1024;

/// The journal is written anew when it has this many times more lines than there are things on the board.
const STALE_FACTOR: usize = 4;
const STALE_MIN: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) id: u64,
    pub(super) at: UnixMillis,
    pub(super) author: String,
    pub(super) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upload {
    pub(super) id: u64,
    pub(super) at: UnixMillis,
    pub(super) author: String,
    pub(super) name: String,
    pub(super) size: u64,
}

/// A line of the journal; a new meaning is a new variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
enum Change {
    Note(Note),
    Tear { id: u64 },
    File(Upload),
    Drop { id: u64 },
}

/// Why something was not put on the board; for its reader.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0}")]
    Rule(String),
    #[error("There is no such note or file any more.")]
    Gone,
    #[error("It could not be saved: {0}.")]
    Disk(#[from] io::Error),
}

#[derive(Debug)]
struct Contents {
    journal: Journal<Change>,
    notes: Vec<Note>,
    files: Vec<Upload>,
    next: u64,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Board {
    contents: Arc<Mutex<Contents>>,
    version: Arc<watch::Sender<u64>>,
    directory: PathBuf,
}

impl Board {
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let directory = data.join("files");
        fs::create_dir_all(&directory)?;
        let (journal, changes) = Journal::open(&data.join("notes.log"))?;
        let lines = changes.len();
        let mut contents = Contents { journal, notes: Vec::new(), files: Vec::new(), next: 1 };
        for change in changes {
            contents.apply(change);
        }
        contents.forget_history(lines)?;
        contents.remove_strays(&directory)?;
        Ok(Self {
            version: Arc::new(watch::Sender::new(contents.next)),
            contents: Arc::new(Mutex::new(contents)),
            directory,
        })
    }

    /// Newest first.
    pub(super) fn notes(&self) -> Vec<Note> {
        self.lock().notes.iter().rev().cloned().collect()
    }

    /// Newest first.
    pub(super) fn files(&self) -> Vec<Upload> {
        self.lock().files.iter().rev().cloned().collect()
    }

    /// Grows with each change.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn path_of(&self, id: u64) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// A place for a file that is on its way.
    pub(super) fn incoming(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix("incoming-").tempfile_in(&self.directory)
    }

    pub(super) async fn add(&self, author: String, text: String) -> Result<(), Refused> {
        let text = text.replace("\r\n", "\n");
        if text.trim().is_empty() {
            return Err(Refused::Rule("Write something first.".into()));
        }
        if text.chars().count() > NOTE_MAX {
            return Err(Refused::Rule(format!("A note has at most {NOTE_MAX} characters.")));
        }
        self.change(move |contents| {
            if contents.notes.len() >= NOTES_MAX {
                return Err(Refused::Rule(format!("The board is full with {NOTES_MAX} notes; take one down first.")));
            }
            Ok(Change::Note(Note { id: contents.next, at: clock::now(), author, text: text.trim().to_owned() }))
        })
        .await
    }

    pub(super) async fn remove(&self, id: u64) -> Result<(), Refused> {
        self.change(move |contents| match contents.notes.iter().any(|note| note.id == id) {
            true => Ok(Change::Tear { id }),
            false => Err(Refused::Gone),
        })
        .await
    }

    /// Puts a file on the board that has arrived as a whole.
    pub(super) async fn add_file(
        &self,
        author: String,
        name: String,
        incoming: tempfile::NamedTempFile,
    ) -> Result<(), Refused> {
        let directory = self.directory.clone();
        self.change(move |contents| {
            if contents.files.len() >= FILES_MAX {
                return Err(Refused::Rule(format!("There are {FILES_MAX} files already; delete one first.")));
            }
            incoming.as_file().sync_all()?;
            let (id, size) = (contents.next, incoming.as_file().metadata()?.len());
            incoming.persist(directory.join(id.to_string())).map_err(|error| error.error)?;
            fs::File::open(&directory)?.sync_all()?;
            Ok(Change::File(Upload { id, at: clock::now(), author, name, size }))
        })
        .await
    }

    pub(super) async fn remove_file(&self, id: u64) -> Result<(), Refused> {
        self.change(move |contents| match contents.files.iter().any(|file| file.id == id) {
            true => Ok(Change::Drop { id }),
            false => Err(Refused::Gone),
        })
        .await?;
        // From here on it is only a stray, which the next start would remove as well.
        let _ = tokio::fs::remove_file(self.path_of(id)).await;
        Ok(())
    }

    async fn change(
        &self,
        decide: impl FnOnce(&Contents) -> Result<Change, Refused> + Send + 'static,
    ) -> Result<(), Refused> {
        let board = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut contents = board.lock();
            let change = decide(&contents)?;
            contents.journal.append(&change)?;
            contents.apply(change);
            board.version.send_modify(|version| *version += 1);
            Ok(())
        });
        done.await.unwrap_or_else(|error| Err(Refused::Disk(io::Error::other(error))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        // Whoever panicked did so before it changed anything: `apply` can't fail.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Note(note) => {
                self.next = self.next.max(note.id + 1);
                self.notes.push(note);
            }
            Change::Tear { id } => self.notes.retain(|note| note.id != id),
            Change::File(file) => {
                self.next = self.next.max(file.id + 1);
                self.files.push(file);
            }
            Change::Drop { id } => self.files.retain(|file| file.id != id),
        }
    }

    fn forget_history(&mut self, lines: usize) -> io::Result<()> {
        if lines < STALE_MIN + STALE_FACTOR * (self.notes.len() + self.files.len()) {
            return Ok(());
        }
        let mut changes: Vec<Change> = self.notes.iter().cloned().map(Change::Note).collect();
        changes.extend(self.files.iter().cloned().map(Change::File));
        self.journal.replace(&changes)
    }

    /// Files that were on their way, or dropped, when the power failed.
    fn remove_strays(&self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let known = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if known.is_none_or(|id: u64| self.files.iter().all(|file| file.id != id)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn notes_and_files_are_there_after_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let board = Board::open(data.path()).unwrap();
        board.add("Ana".into(), " first\r\nline ".into()).await.unwrap();
        board.add("Ben".into(), "second".into()).await.unwrap();
        let incoming = board.incoming().unwrap();
        fs::write(incoming.path(), "contents").unwrap();
        board.add_file("Ana".into(), "a.txt".into(), incoming).await.unwrap();
        let second = board.notes()[0].id;
        board.remove(second).await.unwrap();
        drop(board);

        let board = Board::open(data.path()).unwrap();
        assert_eq!(board.notes().iter().map(|note| note.text.as_str()).collect::<Vec<_>>(), ["first\nline"]);
        let file = &board.files()[0];
        assert_eq!((file.name.as_str(), file.size), ("a.txt", 8));
        assert_eq!(fs::read_to_string(board.path_of(file.id)).unwrap(), "contents");
    }

    #[tokio::test]
    async fn what_breaks_a_rule_changes_nothing() {
        let data = tempfile::tempdir().unwrap();
        let board = Board::open(data.path()).unwrap();
        let before = *board.version().borrow();
        assert!(matches!(board.add("A".into(), "  \n".into()).await, Err(Refused::Rule(_))));
        assert!(matches!(board.add("A".into(), "x".repeat(NOTE_MAX + 1)).await, Err(Refused::Rule(_))));
        assert!(matches!(board.remove(7).await, Err(Refused::Gone)));
        assert_eq!(*board.version().borrow(), before);
    }

    #[tokio::test]
    async fn an_upload_that_was_broken_off_leaves_nothing() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir_all(data.path().join("files")).unwrap();
        fs::write(data.path().join("files/incoming-x"), "half").unwrap();
        fs::write(data.path().join("files/99"), "of no entry").unwrap();
        Board::open(data.path()).unwrap();
        assert_eq!(fs::read_dir(data.path().join("files")).unwrap().count(), 0);
    }
}
