//! The one task that writes. It takes all work that waits, does it in order in one transaction, and says so when that is on disk.
//!
//! The log and the vote are promised to other nodes and to proposers: a transaction with either of them ends with `fsync`
//! (`synchronous=FULL`). What follows from the log, the audit rows and how far it was applied, can be had again from it: a transaction
//! with nothing else ends without, and may be lost with the power, but never out of order.
//!
//! After a failure nothing more is written until [`Work::Reload`]: work that came after what was lost would leave a gap.

use std::{io, path::Path, sync::Arc};

use flotilla_api::ApiError;
use openraft::storage::IOFlushed;
use sqlx::{ConnectOptions, Connection, Row as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::{
    Opened, Shared, WORKS_MAX, kept, options,
    record::{At, Reached, Voted},
    room_in_file,
    row::{Chain, Kind, Row, chain_of},
    schema, snapshot, tail_of, verify,
};
use crate::{
    consensus::{LogId, Types, Vote},
    store::{Error, Limits, Recorded},
};

pub(crate) enum Work {
    /// Entries that follow the last one.
    Append {
        rows: Vec<Row>,
        done: Done,
    },
    /// Entries after `kept` go.
    Truncate {
        kept: Option<LogId>,
        done: Done,
    },
    /// Entries up to `upto` go; the snapshot has what they did.
    Purge {
        upto: LogId,
        done: Done,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// What entries did that are agreed on.
    Apply {
        reached: Reached,
        committed: Option<LogId>,
        audit: Vec<Recorded>,
        done: Done,
    },
    /// Replaces the snapshot; `audit` comes with one from another node.
    Snapshot {
        snapshot: Taken,
        audit: Vec<Recorded>,
        done: Done,
    },
    /// This node joins a cluster that will tell it everything.
    Join {
        done: Done,
    },
    /// Begins again after a failure.
    Reload {
        done: oneshot::Sender<Result<Opened, Error>>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// A snapshot of this node's own, whose chain is that of its log, or one that another node sent with its chain.
pub(crate) struct Taken {
    pub(crate) at: At,
    pub(crate) membership: super::record::Standing,
    pub(crate) state: String,
    pub(crate) chain: Option<Chain>,
}

/// Who is told that work is done.
pub(crate) enum Done {
    Flushed(IOFlushed<Types>),
    Told(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, failure: Option<&ApiError>) {
        let result = failure.map_or(Ok(()), |failure| Err(io::Error::other(failure.clone())));
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            Self::Told(sender) => drop(sender.send(result)),
        }
    }
}

impl Work {
    /// Whether it has to outlive a loss of power once it is done.
    fn is_promise(&self) -> bool {
        !matches!(self, Self::Apply { .. } | Self::Purge { .. })
    }

    fn done(self) -> Option<Done> {
        match self {
            Self::Append { done, .. }
            | Self::Truncate { done, .. }
            | Self::Purge { done, .. }
            | Self::Vote { done, .. }
            | Self::Apply { done, .. }
            | Self::Snapshot { done, .. }
            | Self::Join { done } => Some(done),
            Self::Reload { .. } | Self::Close { .. } => None,
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// Absent after a failure.
    connection: Option<SqliteConnection>,
    /// Number of the last transaction.
    batch: u64,
    /// `synchronous` of the connection is `FULL`.
    full: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, connection: SqliteConnection, batch: u64) -> Self {
        Self { shared, connection: Some(connection), batch, full: true }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut waiting = Vec::with_capacity(WORKS_MAX);
        let mut closed = None;
        while closed.is_none() && queue.recv_many(&mut waiting, WORKS_MAX).await > 0 {
            let mut group = Vec::with_capacity(waiting.len());
            for work in waiting.drain(..) {
                match work {
                    Work::Close { done } => {
                        // What came in meanwhile is dropped with the queue, and told that the file is closed.
                        queue.close();
                        closed = Some(done);
                        break;
                    }
                    Work::Reload { done } => {
                        self.commit(std::mem::take(&mut group)).await;
                        drop(done.send(self.reload().await));
                    }
                    // Large, and allowed to fail without taking an entry with it.
                    Work::Snapshot { .. } => {
                        self.commit(std::mem::take(&mut group)).await;
                        self.commit(vec![work]).await;
                    }
                    other => group.push(other),
                }
            }
            self.commit(group).await;
        }
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the state was not closed cleanly; the next start reads it from its log");
        }
        drop(closed);
    }

    async fn commit(&mut self, group: Vec<Work>) {
        if group.is_empty() {
            return;
        }
        let failure = self.shared.failure().clone();
        let failure = match failure {
            Some(failure) => Some(failure),
            None => self.write(&group).await.err().map(|error| {
                tracing::error!(%error, "the state can't be written");
                let failure = ApiError::from(error);
                *self.shared.failure() = Some(failure.clone());
                failure
            }),
        };
        if failure.is_none() {
            let flushed = group.iter().rev().find_map(|work| match work {
                Work::Append { rows, .. } => rows.last().map(|row| row.id.index),
                _ => None,
            });
            if let Some(index) = flushed {
                self.shared.tail().flush(index);
            }
        }
        for done in group.into_iter().filter_map(Work::done) {
            done.tell(failure.as_ref());
        }
    }

    /// # Errors
    /// Nothing of the group is on disk, except with [`Error::OutcomeUnknown`].
    async fn write(&mut self, group: &[Work]) -> Result<(), Error> {
        let path = self.shared.path.clone();
        let Some(mut connection) = self.connection.take() else { return Err(Error::Closed) };
        if group
            .iter()
            .any(|work| matches!(work, Work::Append { rows, .. } if rows.iter().any(|row| row.kind == Kind::Normal)))
            && let Err(error) = room_in_file(&path, self.shared.limits, &mut connection).await
        {
            self.connection = Some(connection);
            return Err(error);
        }
        let full = group.iter().any(Work::is_promise);
        let batch = self.batch + 1;
        match transact(&self.shared, &mut connection, group, batch, (full != self.full).then_some(full)).await {
            Ok(()) => {
                self.connection = Some(connection);
                self.full = full;
                self.batch = batch;
                Ok(())
            }
            Err(error) => {
                // A failed COMMIT leaves SQLite in one of several states, so that a fresh connection has to tell.
                drop(connection.close_hard().await);
                let failed = Error::of_database(&path, error);
                match self.last_batch(&path).await {
                    Ok(Some(found)) if found == batch => {
                        tracing::warn!(%failed, "the disk reported a failure for a change that it kept");
                        self.batch = batch;
                        Ok(())
                    }
                    Ok(_) => Err(failed),
                    Err(error) => {
                        tracing::error!(%error, %failed, "the state can't be read after a failed write");
                        Err(Error::OutcomeUnknown { path })
                    }
                }
            }
        }
    }

    async fn last_batch(&mut self, path: &Path) -> Result<Option<u64>, Error> {
        let failed = |error| Error::of_database(path, error);
        let mut connection = options(path, self.shared.limits).connect().await.map_err(failed)?;
        let batch = kept::get(&mut connection, kept::BATCH).await.map_err(failed)?;
        self.connection = Some(connection);
        self.full = true;
        Ok(batch)
    }

    async fn reload(&mut self) -> Result<Opened, Error> {
        let path = self.shared.path.clone();
        let failed = |error| Error::of_database(&path, error);
        if let Some(connection) = self.connection.take() {
            drop(connection.close_hard().await);
        }
        let mut connection = options(&path, self.shared.limits).connect().await.map_err(failed)?;
        let opened = verify::read(&path, &self.shared.node, &mut connection).await?;
        self.connection = Some(connection);
        self.full = true;
        self.batch = opened.batch;
        *self.shared.tail() = tail_of(&opened);
        *self.shared.failure() = None;
        Ok(opened)
    }
}

async fn transact(
    shared: &Shared,
    connection: &mut SqliteConnection,
    group: &[Work],
    batch: u64,
    synchronous: Option<bool>,
) -> Result<(), sqlx::Error> {
    // Not inside a transaction: there SQLite ignores it.
    if let Some(full) = synchronous {
        let pragma = if full { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
        sqlx::query(pragma).execute(&mut *connection).await?;
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut chain = None;
    for work in group {
        perform(shared.limits, &mut transaction, work, &mut chain).await?;
    }
    kept::put(&mut transaction, kept::NODE, &shared.node).await?;
    kept::put(&mut transaction, kept::BATCH, &batch).await?;
    transaction.commit().await
}

/// `chain` is that of the end of the log, where it is known.
async fn perform(
    limits: Limits,
    connection: &mut SqliteConnection,
    work: &Work,
    chain: &mut Option<Chain>,
) -> Result<(), sqlx::Error> {
    match work {
        Work::Append { rows, .. } => {
            let mut end = match chain.take() {
                Some(chain) => chain,
                None => end_of_chain(connection).await?,
            };
            for row in rows {
                end = row.link(&end);
                schema::insert(connection, row, &end).await?;
            }
            *chain = Some(end);
        }
        Work::Truncate { kept, .. } => {
            *chain = None;
            sqlx::query("DELETE FROM log WHERE position > ?1")
                .bind(kept.map_or(-1, |id| id.index.cast_signed()))
                .execute(connection)
                .await?;
        }
        Work::Purge { upto, .. } => {
            *chain = None;
            let at = At::from(*upto);
            let base = chain_at(connection, at.index).await?;
            sqlx::query("DELETE FROM log WHERE position <= ?1")
                .bind(at.index.cast_signed())
                .execute(&mut *connection)
                .await?;
            kept::put(connection, kept::PURGED, &kept::Purged::new(at, &base)).await?;
        }
        Work::Vote { vote, .. } => kept::put(connection, kept::VOTE, &Voted::from(vote)).await?,
        Work::Apply { reached, committed, audit, .. } => {
            record(connection, audit).await?;
            kept::put(connection, kept::APPLIED, reached).await?;
            if let Some(committed) = committed {
                kept::put(connection, kept::COMMITTED, &At::from(*committed)).await?;
            }
        }
        Work::Snapshot { snapshot, audit, .. } => {
            let chain = match snapshot.chain {
                Some(chain) => chain,
                None => chain_at(connection, snapshot.at.index).await?,
            };
            let row = snapshot::Row {
                at: snapshot.at,
                membership: snapshot.membership.clone(),
                state: snapshot.state.clone(),
                chain,
            };
            snapshot::write(connection, &row).await?;
            record(connection, audit).await?;
            forget(limits, connection).await?;
            if snapshot.chain.is_some() {
                let reached = Reached { at: row.at, membership: row.membership };
                kept::put(connection, kept::APPLIED, &reached).await?;
                kept::put(connection, kept::COMMITTED, &row.at).await?;
            }
        }
        Work::Join { .. } => kept::put(connection, kept::JOINING, &true).await?,
        Work::Reload { .. } | Work::Close { .. } => {}
    }
    Ok(())
}

/// The chain after the newest entry.
pub(super) async fn end_of_chain(connection: &mut SqliteConnection) -> Result<Chain, sqlx::Error> {
    let row =
        sqlx::query("SELECT chain FROM log ORDER BY position DESC LIMIT 1").fetch_optional(&mut *connection).await?;
    match row {
        Some(row) => chain_of(&row),
        None => base_of_chain(connection).await,
    }
}

/// The chain that the first entry continues.
async fn base_of_chain(connection: &mut SqliteConnection) -> Result<Chain, sqlx::Error> {
    let purged: Option<kept::Purged> = kept::get(connection, kept::PURGED).await?;
    Ok(purged.and_then(|purged| purged.chain()).unwrap_or_default())
}

/// The chain after entry `index`: of the log, else of the snapshot that stands for it. A log that never had it (which Raft does
/// not bring about) begins a chain anew.
async fn chain_at(connection: &mut SqliteConnection, index: u64) -> Result<Chain, sqlx::Error> {
    let index = index.cast_signed();
    let row =
        sqlx::query("SELECT chain FROM log WHERE position = ?1").bind(index).fetch_optional(&mut *connection).await?;
    if let Some(row) = row {
        return chain_of(&row);
    }
    let row = sqlx::query("SELECT position, chain FROM snapshot").fetch_optional(&mut *connection).await?;
    match row {
        Some(row) if row.try_get::<i64, _>("position")? == index => chain_of(&row),
        _ => base_of_chain(connection).await,
    }
}

async fn record(connection: &mut SqliteConnection, audit: &[Recorded]) -> Result<(), sqlx::Error> {
    for Recorded { event, ordinal, token } in audit {
        // What is applied again after a loss of power is there already, or not.
        sqlx::query(
            "INSERT OR IGNORE INTO audit (position, ordinal, at, actor, token, origin, kind, service, machine, message)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )
        .bind(event.index.unwrap_or_default().cast_signed())
        .bind(ordinal)
        .bind(event.at.0.cast_signed())
        .bind(&event.actor)
        .bind(token)
        .bind(&event.from)
        .bind(&event.kind)
        .bind(event.service.as_ref().map(flotilla_api::ServiceName::as_str))
        .bind(event.machine.as_ref().map(flotilla_api::MachineName::as_str))
        .bind(&event.message)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Drops the oldest rows of the audit trail.
async fn forget(limits: Limits, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM audit WHERE position <
         (SELECT position FROM audit ORDER BY position DESC, ordinal DESC LIMIT 1 OFFSET ?1)",
    )
    .bind(limits.audit_rows)
    .execute(connection)
    .await
    .map(drop)
}
