//! The SQLite file: what is read at the start and written in one transaction.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_core::{Entry, State};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{Error, Limits, Recorded};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The format of snapshots and entries. A build refuses a file whose number is larger than its own.
const STATE_FORMAT: u32 = 1;

/// How long a writer waits for another process (a backup, `sqlite3`) that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// SHA-256 over all entries so far: equal chains mean equal histories.
pub(super) type Chain = [u8; 32];

pub(super) struct Disk {
    path: PathBuf,
    limits: Limits,
    /// Absent after a failure, until the file could be opened again.
    connection: Option<SqliteConnection>,
    entries_since_snapshot: u64,
}

/// What the file amounted to when it was opened.
pub(super) struct Replayed {
    pub(super) state: State,
    pub(super) chain: Chain,
}

/// An entry that was applied to the copy of the state and is to be written.
pub(super) struct Pending {
    pub(super) position: u64,
    pub(super) text: String,
    pub(super) chain: Chain,
    pub(super) events: Vec<Recorded>,
}

pub(super) fn options(path: &Path, limits: Limits) -> SqliteConnectOptions {
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

pub(super) fn link(previous: &Chain, entry: &str) -> Chain {
    Sha256::new().chain_update(previous).chain_update(entry.as_bytes()).finalize().into()
}

impl Disk {
    pub(super) async fn open(path: &Path, limits: Limits) -> Result<(Self, Replayed), Error> {
        create_private(path).map_err(|source| Error::Io { path: path.to_owned(), source: sqlx::Error::Io(source) })?;
        let failed = |error| Error::of_database(path, error);
        let mut connection = options(path, limits).connect().await.map_err(failed)?;
        let check: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await.map_err(failed)?;
        if check != "ok" {
            return Err(Error::Damaged { path: path.to_owned(), what: check });
        }
        MIGRATIONS.run(&mut connection).await.map_err(|error| migration_failed(path, error))?;
        check_format(path, &mut connection).await?;
        let (replayed, entries_since_snapshot) = replay(path, &mut connection).await?;
        let disk = Self { path: path.to_owned(), limits, connection: Some(connection), entries_since_snapshot };
        Ok((disk, replayed))
    }

    /// Writes `batch`, and the snapshot where one is due, in one transaction.
    ///
    /// # Errors
    /// Nothing of the batch is on disk, except with [`Error::OutcomeUnknown`].
    pub(super) async fn write(&mut self, batch: &[Pending], next: &State) -> Result<(), Error> {
        let Some(last) = batch.last() else { return Ok(()) };
        let snapshot = self.entries_since_snapshot + batch.len() as u64 >= self.limits.snapshot_every;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.reopen(last.position - batch.len() as u64).await?,
        };
        match write(&mut connection, batch, snapshot.then_some(next), self.limits).await {
            Ok(()) => {
                self.connection = Some(connection);
                self.entries_since_snapshot =
                    if snapshot { 0 } else { self.entries_since_snapshot + batch.len() as u64 };
                Ok(())
            }
            Err(error) => {
                // A failed COMMIT leaves SQLite in one of several states, so that a fresh connection has to tell.
                drop(connection.close_hard().await);
                let failed = Error::of_database(&self.path, error);
                match self.last_position().await {
                    Ok(found) if found == last.position => {
                        tracing::warn!(%failed, "the disk reported a failure for a change that it kept");
                        Ok(())
                    }
                    Ok(_) => Err(failed),
                    Err(error) => {
                        tracing::error!(%error, %failed, "the state can't be read after a failed write");
                        Err(Error::OutcomeUnknown { path: self.path.clone() })
                    }
                }
            }
        }
    }

    /// Opens the file again after a failure. If the disk kept what was reported as uncertain, this process goes on from a
    /// state that is not the newest, which it must not.
    async fn reopen(&mut self, expected: u64) -> Result<SqliteConnection, Error> {
        let found = self.last_position().await?;
        let Some(connection) = self.connection.take().filter(|_| found == expected) else {
            self.connection = None;
            return Err(Error::OutcomeUnknown { path: self.path.clone() });
        };
        Ok(connection)
    }

    async fn last_position(&mut self) -> Result<u64, Error> {
        let failed = |error| Error::of_database(&self.path, error);
        let mut connection = options(&self.path, self.limits).connect().await.map_err(failed)?;
        let position: i64 = sqlx::query_scalar(
            "SELECT max(coalesce((SELECT max(position) FROM log), 0), coalesce((SELECT position FROM snapshot), 0))",
        )
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
        self.connection = Some(connection);
        Ok(position.cast_unsigned())
    }

    pub(super) async fn close(self) {
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the state was not closed cleanly; the next start reads it from its log");
        }
    }
}

/// SQLite gives its companion files (`-wal`, `-shm`) the mode of the main file.
fn create_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

fn migration_failed(path: &Path, error: MigrateError) -> Error {
    match error {
        MigrateError::VersionMissing(version) => {
            Error::Newer { path: path.to_owned(), found: format!("schema {version}") }
        }
        MigrateError::VersionMismatch(version) => {
            Error::Damaged { path: path.to_owned(), what: format!("its schema {version} is not the released one") }
        }
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => Error::of_database(path, source),
        other => Error::Damaged { path: path.to_owned(), what: other.to_string() },
    }
}

async fn check_format(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let failed = |error| Error::of_database(path, error);
    let found: Option<String> = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'state-format'")
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed)?;
    if let Some(found) = found {
        match found.parse::<u32>() {
            Ok(format) if format <= STATE_FORMAT => {}
            Ok(_) => return Err(Error::Newer { path: path.to_owned(), found: format!("state format {found}") }),
            Err(_) => {
                return Err(Error::Damaged {
                    path: path.to_owned(),
                    what: format!("`{}` is no state format", found.escape_debug()),
                });
            }
        }
    }
    for (name, value) in [("state-format", STATE_FORMAT.to_string()), ("version", env!("CARGO_PKG_VERSION").to_owned())]
    {
        // Unchanged rows are not written, so that a full disk does not keep a node from starting.
        sqlx::query(
            "INSERT INTO meta (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

async fn replay(path: &Path, connection: &mut SqliteConnection) -> Result<(Replayed, u64), Error> {
    let failed = |error| Error::of_database(path, error);
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let mut replayed = Replayed { state: State::default(), chain: [0; 32] };
    if let Some(row) = sqlx::query("SELECT position, state, digest, chain FROM snapshot")
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed)?
    {
        let position: i64 = row.try_get("position").map_err(failed)?;
        let text: String = row.try_get("state").map_err(failed)?;
        let digest: Vec<u8> = row.try_get("digest").map_err(failed)?;
        if Sha256::digest(text.as_bytes()).as_slice() != digest {
            return Err(damaged(format!("the snapshot at entry {position} is not what was written")));
        }
        replayed.state = serde_json::from_str::<State>(&text)
            .map(State::upgrade)
            .map_err(|error| damaged(format!("the snapshot at entry {position} can't be read: {error}")))?;
        if replayed.state.applied != position.cast_unsigned() {
            return Err(damaged(format!("the snapshot at entry {position} is of another entry")));
        }
        replayed.chain = chain_of(&row).map_err(failed)?;
    }
    // In one go: the number of entries is bounded by the snapshots.
    let rows = sqlx::query("SELECT position, entry, chain FROM log ORDER BY position")
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    for row in &rows {
        let position = row.try_get::<i64, _>("position").map_err(failed)?.cast_unsigned();
        let expected = replayed.state.applied + 1;
        if position != expected {
            return Err(damaged(format!("entry {expected} is missing")));
        }
        let text: &str = row.try_get("entry").map_err(failed)?;
        let chain = link(&replayed.chain, text);
        if chain != chain_of(row).map_err(failed)? {
            return Err(damaged(format!("entry {position} is not what was written")));
        }
        let entry = read_entry(path, position, text)?;
        if let Err(rejected) = replayed.state.apply(&entry) {
            return Err(damaged(format!("entry {position} does not follow from those before it: {rejected}")));
        }
        replayed.chain = chain;
    }
    Ok((replayed, rows.len() as u64))
}

/// An entry that is whole (its chain was right) but not understood comes from a newer version.
fn read_entry(path: &Path, position: u64, text: &str) -> Result<Entry, Error> {
    #[derive(Deserialize)]
    struct Probe {
        command: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    serde_json::from_str(text).map_err(|error| {
        let version = serde_json::from_str::<Probe>(text).map(|probe| probe.command.version);
        let what = version.map_or_else(|_| error.to_string(), |version| format!("command version {version}: {error}"));
        Error::Newer { path: path.to_owned(), found: format!("entry {position}, {what}") }
    })
}

fn chain_of(row: &sqlx::sqlite::SqliteRow) -> Result<Chain, sqlx::Error> {
    let bytes: &[u8] = row.try_get("chain")?;
    bytes.try_into().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

async fn write(
    connection: &mut SqliteConnection,
    batch: &[Pending],
    snapshot: Option<&State>,
    limits: Limits,
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for pending in batch {
        sqlx::query("INSERT INTO log (position, entry, chain) VALUES (?1, ?2, ?3)")
            .bind(pending.position.cast_signed())
            .bind(&pending.text)
            .bind(pending.chain.as_slice())
            .execute(&mut *transaction)
            .await?;
        for Recorded { event, ordinal, token } in &pending.events {
            sqlx::query(
                "INSERT INTO audit (position, ordinal, at, actor, token, origin, kind, service, machine, message)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )
            .bind(pending.position.cast_signed())
            .bind(ordinal)
            .bind(event.at.0.cast_signed())
            .bind(&event.actor)
            .bind(token)
            .bind(&event.from)
            .bind(&event.kind)
            .bind(event.service.as_ref().map(flotilla_api::ServiceName::as_str))
            .bind(event.machine.as_ref().map(flotilla_api::MachineName::as_str))
            .bind(&event.message)
            .execute(&mut *transaction)
            .await?;
        }
    }
    if let (Some(state), Some(last)) = (snapshot, batch.last()) {
        let text = serde_json::to_string(state).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        sqlx::query("INSERT OR REPLACE INTO snapshot (id, position, state, digest, chain) VALUES (1, ?1, ?2, ?3, ?4)")
            .bind(last.position.cast_signed())
            .bind(&text)
            .bind(Sha256::digest(text.as_bytes()).as_slice())
            .bind(last.chain.as_slice())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM log WHERE position <= ?1")
            .bind(last.position.cast_signed())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "DELETE FROM audit WHERE position <
             (SELECT position FROM audit ORDER BY position DESC, ordinal DESC LIMIT 1 OFFSET ?1)",
        )
        .bind(limits.audit_rows)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await
}
