//! The SQLite file: the log, the vote, the snapshot and the audit trail. One task writes it, in transactions; see [`writer`].

pub(crate) mod kept;
pub(crate) mod record;
pub(crate) mod row;
mod schema;
pub(crate) mod snapshot;
mod tail;
pub(crate) mod verify;
mod writer;

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flotilla_api::{ApiError, NodeId, ServiceName, UnixMillis, rest::EventView};
use sqlx::{
    ConnectOptions, Row as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::sync::{mpsc, oneshot};

use self::{row::Row, tail::Tail, writer::Writer};
pub(crate) use self::{
    verify::Opened,
    writer::{Done, Taken, Work},
};
use super::{Error, Limits, Recorded};
use crate::consensus::LogEntry;

/// How long a writer waits for another process (a backup, `sqlite3`) that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that read: the log for followers, the audit trail for people, a backup.
const READERS_MAX: u32 = 4;

/// Work that may wait for the writer. It takes all that waits in one transaction, so that a full queue means a slow disk.
const WORKS_MAX: usize = 256;

/// What an append leaves on the disk for votes, for audit rows of what was agreed on, and for a snapshot: some times the state.
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// The same where the file itself is limited, in pages.
const RESERVE_PAGES: u32 = 16;

/// A handle to the file; clones share it.
#[derive(Clone)]
pub(crate) struct Disk {
    shared: Arc<Shared>,
    works: mpsc::Sender<Work>,
}

struct Shared {
    path: PathBuf,
    node: NodeId,
    limits: Limits,
    readers: SqlitePool,
    tail: Mutex<Tail>,
    /// Why nothing is written any more, until [`Disk::reload`].
    failure: Mutex<Option<ApiError>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> MutexGuard<'_, Option<ApiError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn options(path: &Path, limits: Limits) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .log_statements(tracing::log::LevelFilter::Trace);
    match limits.pages {
        Some(pages) => options.pragma("max_page_count", pages.to_string()),
        None => options,
    }
}

/// Opens the file for one that reads or repairs it while no node runs: checked and brought to this version's form.
///
/// # Errors
/// As [`Disk::open`].
pub(crate) async fn connect(path: &Path, node: &NodeId, limits: Limits) -> Result<SqliteConnection, Error> {
    let failed = |error| Error::of_database(path, error);
    let mut connection = options(path, limits).connect().await.map_err(failed)?;
    let check: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await.map_err(failed)?;
    if check != "ok" {
        return Err(Error::Damaged { path: path.to_owned(), what: check });
    }
    schema::prepare(path, node, &mut connection).await?;
    Ok(connection)
}

impl Disk {
    /// Opens the file, or makes an empty one, and begins to write it.
    ///
    /// # Errors
    /// A damaged file, one of a newer version or of another node, and a disk that fails are refused and left as they are.
    pub(crate) async fn open(path: &Path, node: &NodeId, limits: Limits) -> Result<(Self, Opened), Error> {
        schema::create_private(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source: sqlx::Error::Io(source) })?;
        let mut connection = connect(path, node, limits).await?;
        let opened = verify::read(path, node, &mut connection).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(options(path, limits).read_only(true).create_if_missing(false));
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            node: node.clone(),
            limits,
            readers,
            tail: Mutex::new(tail_of(&opened)),
            failure: Mutex::new(None),
        });
        let (works, queue) = mpsc::channel(WORKS_MAX);
        let writer = Writer::new(shared.clone(), connection, opened.batch);
        tokio::spawn(writer.run(queue));
        Ok((Self { shared, works }, opened))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(crate) fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Why nothing is written any more.
    pub(crate) fn failure(&self) -> Option<ApiError> {
        self.shared.failure().clone()
    }

    pub(crate) fn node(&self) -> &NodeId {
        &self.shared.node
    }

    /// Looks at what is known of the log. Hold it for a moment only.
    pub(crate) fn with_tail<T>(&self, look: impl FnOnce(&mut Tail) -> T) -> T {
        look(&mut self.shared.tail())
    }

    /// Hands work to the writer; [`Done`] says when it is done.
    ///
    /// # Errors
    /// The file was closed.
    pub(crate) async fn submit(&self, work: Work) -> io::Result<()> {
        self.works.send(work).await.map_err(|_| io::Error::other(Error::Closed))
    }

    /// Has work done.
    ///
    /// # Errors
    /// Nothing of it was kept; the writer does no more until [`reload`](Self::reload).
    pub(crate) async fn perform(&self, work: impl FnOnce(Done) -> Work) -> io::Result<()> {
        let (done, told) = oneshot::channel();
        self.submit(work(Done::Told(done))).await?;
        told.await.unwrap_or_else(|_| Err(io::Error::other(Error::Closed)))
    }

    /// Begins to write again after a failure, from what the file holds now.
    ///
    /// # Errors
    /// The disk still fails, or what it holds is damaged.
    pub(crate) async fn reload(&self) -> Result<Opened, Error> {
        let (done, told) = oneshot::channel();
        self.works.send(Work::Reload { done }).await.map_err(|_| Error::Closed)?;
        told.await.map_err(|_| Error::Closed)?
    }

    /// Whether there is room for new entries beyond the reserve.
    ///
    /// # Errors
    /// Says that the disk is full.
    pub(crate) async fn room(&self) -> Result<(), Error> {
        let failed = |error| Error::of_database(&self.shared.path, error);
        if self.shared.limits.pages.is_none() {
            return room_on_disk(&self.shared.path);
        }
        let mut connection = self.shared.readers.acquire().await.map_err(failed)?;
        room_in_file(&self.shared.path, self.shared.limits, &mut connection).await
    }

    /// Entries in `range`, from the first that is still there. With `bytes_max`, it stops once so many bytes of JSON have come
    /// together, after one entry at least.
    pub(crate) async fn entries(&self, range: Range<u64>, bytes_max: Option<usize>) -> io::Result<Vec<LogEntry>> {
        let (older, newer) = self.shared.tail().read(range);
        let mut bytes = 0;
        let mut taken = |size: usize| {
            let more = bytes == 0 || bytes_max.is_none_or(|max| bytes + size <= max);
            bytes += size.max(1);
            more
        };
        let mut entries = Vec::new();
        if !older.is_empty() {
            let (start, end) = (older.start, older.end);
            for row in self.rows(older).await? {
                if !taken(row.text.len()) {
                    return Ok(entries);
                }
                entries
                    .push(row.entry().map_err(|_| io::Error::other(format!("entry {} can't be read", row.id.index)))?);
            }
            let first = entries.first().map(|entry| entry.log_id.index);
            if first != Some(start) || entries.len() as u64 != end - start {
                return Err(io::Error::other(format!("entries {start} to {} are not all in the log", end - 1)));
            }
        }
        for (entry, size) in newer {
            if !taken(size) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    async fn rows(&self, range: Range<u64>) -> io::Result<Vec<Row>> {
        sqlx::query(
            "SELECT position, term, kind, entry FROM log WHERE position >= ?1 AND position < ?2 ORDER BY position",
        )
        .bind(range.start.cast_signed())
        .bind(range.end.cast_signed())
        .try_map(|row| Row::read(&row))
        .fetch_all(&self.shared.readers)
        .await
        .map_err(io::Error::other)
    }

    pub(crate) async fn snapshot(&self) -> Result<Option<snapshot::Row>, Error> {
        let path = &self.shared.path;
        let failed = |error| Error::of_database(path, error);
        let mut connection = self.shared.readers.acquire().await.map_err(failed)?;
        match snapshot::read(&mut connection).await.map_err(failed)? {
            None => Ok(None),
            Some(snapshot::Found::Whole(row)) => Ok(Some(row)),
            Some(snapshot::Found::Damaged { position, what }) => {
                Err(Error::Damaged { path: path.clone(), what: format!("the snapshot at entry {position} {what}") })
            }
        }
    }

    /// The newest `limit` rows of the audit trail that lie before entry `before`, oldest first.
    pub(crate) async fn audit(
        &self,
        before: u64,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> Result<Vec<Recorded>, Error> {
        let mut rows = sqlx::query(
            "SELECT position, ordinal, at, actor, token, origin, kind, service, machine, message FROM audit
             WHERE position < ?1 AND (?2 IS NULL OR service = ?2) ORDER BY position DESC, ordinal DESC LIMIT ?3",
        )
        .bind(i64::try_from(before).unwrap_or(i64::MAX))
        .bind(service.map(ServiceName::as_str))
        .bind(limit)
        .try_map(|row| recorded(&row))
        .fetch_all(&self.shared.readers)
        .await
        .map_err(|error| Error::of_database(&self.shared.path, error))?;
        rows.reverse();
        Ok(rows)
    }

    /// Writes a copy of the file, as it is now, to `to`, which must not exist.
    pub(crate) async fn copy(&self, to: &Path) -> Result<(), Error> {
        let failed = |error| Error::of_database(&self.shared.path, error);
        let mut connection = self.shared.readers.acquire().await.map_err(failed)?;
        copy(&mut connection, to).await.map_err(failed)
    }

    /// Writes what waits, and closes the file. The writer goes last: only then SQLite brings all into the one file that is told of as
    /// the state, and leaves no log beside it.
    pub(crate) async fn close(&self) {
        self.shared.readers.close().await;
        let (done, told) = oneshot::channel();
        if self.works.send(Work::Close { done }).await.is_ok() {
            // The writer dropping its end says that it has closed, too.
            let _ = told.await;
        }
    }
}

/// Writes a consistent copy, without what was deleted.
pub(crate) async fn copy(connection: &mut SqliteConnection, to: &Path) -> Result<(), sqlx::Error> {
    sqlx::query("VACUUM INTO ?1").bind(to.to_string_lossy()).execute(connection).await.map(drop)
}

/// Writes one entry at the end of the log, inside a transaction of the caller's.
pub(crate) async fn append(connection: &mut SqliteConnection, row: &Row) -> Result<(), sqlx::Error> {
    let end = writer::end_of_chain(connection).await?;
    schema::insert(connection, row, &row.link(&end)).await
}

fn tail_of(opened: &Opened) -> Tail {
    Tail::new(opened.purged, opened.last, opened.vote.clone(), opened.committed)
}

fn room_on_disk(path: &Path) -> Result<(), Error> {
    let room = path.parent().and_then(|directory| rustix::fs::statvfs(directory).ok());
    match room {
        // What a file system does not tell can't be waited for: the write itself will say.
        None => Ok(()),
        Some(room) if room.f_bavail.saturating_mul(room.f_frsize) >= RESERVE_BYTES => Ok(()),
        Some(_) => Err(Error::DiskFull { path: path.to_owned() }),
    }
}

async fn room_in_file(path: &Path, limits: Limits, connection: &mut SqliteConnection) -> Result<(), Error> {
    let Some(max) = limits.pages else { return room_on_disk(path) };
    let failed = |error| Error::of_database(path, error);
    let used: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *connection).await.map_err(failed)?;
    let free: i64 = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(&mut *connection).await.map_err(failed)?;
    if used - free + i64::from(RESERVE_PAGES) <= i64::from(max) {
        return Ok(());
    }
    Err(Error::DiskFull { path: path.to_owned() })
}

fn recorded(row: &SqliteRow) -> Result<Recorded, sqlx::Error> {
    let service: Option<String> = row.try_get("service")?;
    Ok(Recorded {
        event: EventView {
            index: Some(row.try_get::<i64, _>("position")?.cast_unsigned()),
            at: UnixMillis(row.try_get::<i64, _>("at")?.cast_unsigned()),
            kind: row.try_get("kind")?,
            actor: row.try_get("actor")?,
            from: row.try_get("origin")?,
            service: service.and_then(|name| name.parse().ok()),
            machine: row.try_get::<Option<String>, _>("machine")?.and_then(|name| name.parse().ok()),
            message: row.try_get("message")?,
        },
        ordinal: row.try_get("ordinal")?,
        token: row.try_get("token")?,
    })
}
