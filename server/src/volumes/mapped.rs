//! Files that programs have mapped into their memory, so that they write to them without a call that the kernel could tell of (LMDB, for
//! one). The kernel sets such a file's times when a page of it is written to that was clean. So these files are looked at now and then;
//! and they are written back when they are captured, after which every page is clean, and whatever is written later shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use flotilla_api::VolumeName;
use flotilla_data::tree::Name;

use super::watched::Watched;

/// How often it is asked which files are mapped; their times are looked at whenever [`Mapped::look`] is called.
const SEARCH_EVERY: Duration = Duration::from_secs(10);

/// Of one instance: processes that are asked, what each may say, files that are followed.
const PROCESSES_MAX: usize = 1_024;
const TEXT_MAX: u64 = 4 * 1024 * 1024;
const FILES_MAX: usize = 1_024;

/// What was seen of the mapped files of one instance.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    searched: Option<Instant>,
    files: BTreeMap<(VolumeName, Vec<Name>), Option<Times>>,
}

/// Of the last change, and how long the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    changed: (i64, i64),
    len: u64,
}

impl Mapped {
    /// Tells the watched volumes of mapped files that have changed. True if there are any. Blocking.
    pub(super) fn look(
        &mut self,
        processes: impl FnOnce() -> Vec<i32>,
        volumes: &BTreeMap<VolumeName, Arc<Watched>>,
    ) -> bool {
        if self.searched.is_none_or(|at| at.elapsed() >= SEARCH_EVERY) {
            self.searched = Some(Instant::now());
            let texts = maps(&processes());
            let found = volumes.iter().flat_map(|(volume, watched)| {
                find(&texts, &watched.target, &watched.directory).into_iter().map(move |path| (volume.clone(), path))
            });
            let mut before = std::mem::take(&mut self.files);
            // One that was not known may have been written to since it was mapped.
            self.files = found.take(FILES_MAX).map(|key| (key.clone(), before.remove(&key).flatten())).collect();
        }
        let mut any = false;
        for ((volume, path), seen) in &mut self.files {
            let Some(watched) = volumes.get(volume) else { continue };
            let now = times(&below(&watched.directory, path));
            if now != *seen {
                *seen = now;
                watched.note(path);
                any = true;
            }
        }
        any
    }
}

/// What the kernel says that these processes have mapped.
pub(super) fn maps(processes: &[i32]) -> Vec<String> {
    let read = |pid: &i32| {
        let mut text = Vec::new();
        // One that has ended maps nothing.
        File::open(format!("/proc/{pid}/maps")).ok()?.take(TEXT_MAX).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    processes.iter().take(PROCESSES_MAX).filter_map(read).collect()
}

/// The files of a volume that can be written to in somebody's memory: their paths in it. `target` is where the programs see `directory`.
pub(super) fn find(maps: &[String], target: &Path, directory: &Path) -> BTreeSet<Vec<Name>> {
    let mut found = BTreeSet::new();
    for (inode, path) in maps.iter().flat_map(|text| text.lines()).filter_map(writable) {
        let Ok(relative) = Path::new(path).strip_prefix(target) else { continue };
        let names: Result<Vec<Name>, _> =
            relative.components().map(|it| Name::try_from(it.as_os_str().as_bytes().to_vec())).collect();
        let Ok(names) = names else { continue };
        // Something else may lie there in the container, or have taken its name since.
        if fs::symlink_metadata(below(directory, &names)).is_ok_and(|meta| meta.is_file() && meta.ino() == inode) {
            found.insert(names);
        }
    }
    found
}

/// Inode and path of a line of `/proc/<pid>/maps` (proc_pid_maps(5)) that is a file's, shared and writable.
fn writable(line: &str) -> Option<(u64, &str)> {
    let mut rest = line;
    let mut field = || {
        let (field, after) = rest.trim_start().split_once(' ')?;
        rest = after;
        Some(field)
    };
    let (_, rights, _, _, inode) = (field()?, field()?, field()?, field()?, field()?);
    let shared = matches!(rights.as_bytes(), [_, b'w', _, b's']);
    let path = rest.trim_start();
    (shared && path.starts_with('/')).then_some((inode.parse().ok()?, path))
}

pub(super) fn below(directory: &Path, path: &[Name]) -> PathBuf {
    path.iter().fold(directory.to_owned(), |path, name| path.join(std::ffi::OsStr::from_bytes(name.as_bytes())))
}

fn times(path: &Path) -> Option<Times> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some(Times { changed: (meta.ctime(), meta.ctime_nsec()), len: meta.len() })
}

#[cfg(test)]
mod tests {
    use sqlx::{
        Connection as _, SqliteConnection,
        sqlite::{SqliteConnectOptions, SqliteJournalMode},
    };

    use super::*;

    #[test]
    fn only_what_is_shared_and_written_counts() {
        let shared = "7f12c4000000-7f12c4008000 rw-s 00000000 fe:00 1835012                    /data/a file.mdb";
        assert_eq!(writable(shared), Some((1_835_012, "/data/a file.mdb")));
        for other in [
            "7f12c4000000-7f12c4008000 r--s 00000000 fe:00 1835012                    /data/a.mdb",
            "7f12c4000000-7f12c4008000 rw-p 00000000 fe:00 1835012                    /data/a.mdb",
            "7f12c4000000-7f12c4008000 rw-p 00000000 00:00 0 ",
            "7ffd6f1c5000-7ffd6f1e6000 rw-p 00000000 00:00 0                          [stack]",
            "",
        ] {
            assert_eq!(writable(other), None, "{other}");
        }
    }

    /// SQLite maps the index of its write-ahead log.
    #[tokio::test]
    async fn a_file_that_a_program_has_mapped_is_found_and_told_of_when_it_changes() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("volume");
        fs::create_dir(&directory).unwrap();
        let options = SqliteConnectOptions::new()
            .filename(directory.join("a.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let mut database = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query("CREATE TABLE a (b)").execute(&mut database).await.unwrap();

        let me = i32::try_from(std::process::id()).unwrap();
        let index: Vec<Name> = vec![Name::try_from(b"a.db-shm".to_vec()).unwrap()];
        assert_eq!(find(&maps(&[me]), &directory, &directory), BTreeSet::from([index.clone()]));
        assert!(find(&maps(&[me]), Path::new("/elsewhere"), &directory).is_empty());

        let volume: VolumeName = "data".parse().unwrap();
        let runtime = tokio::runtime::Handle::current();
        let watched = Watched::begin(directory.clone(), directory.clone(), &runtime, || {});
        let volumes = BTreeMap::from([(volume, Arc::new(watched))]);
        let mut mapped = Mapped::default();
        assert!(mapped.look(|| vec![me], &volumes), "it may have been written to before");
        assert!(!mapped.look(|| vec![me], &volumes));
        let file = File::options().write(true).open(below(&directory, &index)).unwrap();
        file.set_len(file.metadata().unwrap().len() + 32_768).unwrap();
        assert!(mapped.look(|| vec![me], &volumes));
    }
}
