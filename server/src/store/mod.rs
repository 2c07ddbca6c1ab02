//! The state log on disk, and the one task that writes it.
//!
//! A change is an [`Entry`]. The writer applies it to a copy of the state, writes it with `synchronous=FULL`, and only then
//! publishes the new state and answers. So whoever saw a state or an answer will see it again after `kill -9`.

mod disk;
mod error;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flotilla_api::{ServiceName, UnixMillis, rest::EventView};
use flotilla_core::{Entry, Outcome, State};
use sqlx::{
    Row, SqlitePool,
    sqlite::{SqlitePoolOptions, SqliteRow},
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use error::{Error, ProposeError};

/// Proposals that may wait for the writer. It takes all that wait in one transaction, so that a full queue means a slow disk.
const QUEUE_MAX: usize = 256;

/// How long a proposal waits for a place in the queue.
const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// Bytes of one entry as JSON: a compose file of the largest size, many times over.
const ENTRY_MAX: usize = 4 * 1024 * 1024;

/// Events that a slow listener may lag behind before it has to read the audit trail again.
const EVENTS_MAX: usize = 1024;

/// Rows of the audit trail that one question gets.
pub const AUDIT_PAGE_MAX: u32 = 1000;

/// What was agreed on, and how to change it. Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    proposals: mpsc::Sender<writer::Request>,
    state: watch::Receiver<Arc<State>>,
    events: broadcast::WeakSender<Recorded>,
    readers: SqlitePool,
    path: Arc<PathBuf>,
}

/// A proposal that is on disk and part of the state.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    pub index: u64,
    pub outcome: Outcome,
}

/// A row of the audit trail.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    pub event: EventView,
    /// Events of one entry, in order, from 0.
    pub ordinal: u32,
    /// Id of the token that asked.
    pub token: Option<String>,
}

/// How often the log is folded into a snapshot, and what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries after which the log is replaced by a snapshot: bounds the time of a start.
    pub snapshot_every: u64,
    /// Rows of the audit trail; the oldest go.
    pub audit_rows: u32,
    /// Pages (4 KiB) that the database may have; `None` is as many as the disk holds.
    pub pages: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { snapshot_every: 1024, audit_rows: 10_000, pages: None }
    }
}

impl Store {
    /// Opens the state at `path`, or makes an empty one.
    ///
    /// # Errors
    /// A damaged file, one of a newer version, and a disk that fails are refused and left as they are.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, Limits::default()).await
    }

    pub async fn open_with(path: &Path, limits: Limits) -> Result<Self, Error> {
        let (disk, replayed) = disk::Disk::open(path, limits).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(disk::options(path, limits).read_only(true).create_if_missing(false));
        let (proposals, requests) = mpsc::channel(QUEUE_MAX);
        let (publish, state) = watch::channel(Arc::new(replayed.state));
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let weak = events.downgrade();
        tokio::spawn(writer::Writer::new(disk, replayed.chain, publish, events).run(requests));
        Ok(Self { proposals, state, events: weak, readers, path: Arc::new(path.to_owned()) })
    }

    /// The newest state. Cheap.
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Sees every newest state; states that follow each other quickly may be seen as one.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Changes the state: when this returns, the change is on disk and [`state`](Self::state) shows it.
    ///
    /// A caller that goes away while it waits does not take its proposal back.
    ///
    /// # Errors
    /// A proposal that was rejected, or that could not be written, changed nothing.
    pub async fn propose(&self, entry: Entry) -> Result<Committed, ProposeError> {
        let (answer, answered) = oneshot::channel();
        let request = writer::Request::Propose { entry: Box::new(entry), answer };
        self.proposals.send_timeout(request, QUEUE_WAIT).await.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => Error::Busy,
            mpsc::error::SendTimeoutError::Closed(_) => Error::Closed,
        })?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Events from now on, in order. Who lags gets `Lagged` and reads [`audit`](Self::audit).
    pub fn events(&self) -> broadcast::Receiver<Recorded> {
        // After the writer has ended nothing more happens: a channel whose sender is gone says just that.
        self.events.upgrade().map_or_else(|| broadcast::channel(1).1, |events| events.subscribe())
    }

    /// The newest `limit` rows of the audit trail that lie before entry `before`, oldest first.
    pub async fn audit(
        &self,
        before: Option<u64>,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> Result<Vec<Recorded>, Error> {
        let before = before.map_or(i64::MAX, |index| i64::try_from(index).unwrap_or(i64::MAX));
        let mut rows = sqlx::query(
            "SELECT position, ordinal, at, actor, token, origin, kind, service, machine, message FROM audit
             WHERE position < ?1 AND (?2 IS NULL OR service = ?2) ORDER BY position DESC, ordinal DESC LIMIT ?3",
        )
        .bind(before)
        .bind(service.map(ServiceName::as_str))
        .bind(limit.min(AUDIT_PAGE_MAX))
        .try_map(|row| recorded(&row))
        .fetch_all(&self.readers)
        .await
        .map_err(|error| Error::of_database(&self.path, error))?;
        rows.reverse();
        Ok(rows)
    }

    /// Writes what waits, closes the database and lets no further proposal in.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.proposals.send(writer::Request::Close { answer }).await.is_ok() {
            // The writer dropping its end says that it has closed, too.
            let _ = answered.await;
        }
        self.readers.close().await;
    }
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
