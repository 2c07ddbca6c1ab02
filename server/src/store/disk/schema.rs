//! The form of the file: made, checked, and brought up from what one machine wrote alone.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use flotilla_api::NodeId;
use flotilla_core::State;
use sha2::{Digest, Sha256};
use sqlx::{
    Connection as _, Row as _, SqliteConnection,
    migrate::{MigrateError, Migrator},
};

use super::{
    kept,
    record::{At, Members, Standing, Voted},
    row::{Chain, Kind, Row, Unreadable, chain_of, read_entry},
    snapshot,
};
use crate::{consensus::log_id, store::Error};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The format of snapshots and entries. A build refuses a file whose number is larger than its own.
///
/// 2: the log of a Raft group.
const STATE_FORMAT: u32 = 2;

/// Under which term what one machine wrote before there were terms stands in the log.
const FIRST_TERM: u64 = 1;

/// SQLite gives its companion files (`-wal`, `-shm`) the mode of the main file.
pub(super) fn create_private(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

/// Brings the file to this version's form.
pub(super) async fn prepare(path: &Path, node: &NodeId, connection: &mut SqliteConnection) -> Result<(), Error> {
    // `run` is generic over connections in a way that futures of threads can't have.
    MIGRATIONS.run_direct(None, connection, false).await.map_err(|error| migration_failed(path, error))?;
    check_format(path, connection).await?;
    convert(path, node, connection).await
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

/// Turns the log of one machine into the log of a group of one, as if it had been that from the start: the membership stands before its
/// first entry. All of it or nothing.
async fn convert(path: &Path, node: &NodeId, connection: &mut SqliteConnection) -> Result<(), Error> {
    let failed = |error| Error::of_database(path, error);
    let old: Option<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table' AND name = 'log_of_one'")
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
    if old.is_none() {
        return Ok(());
    }
    let mut transaction = connection.begin().await.map_err(failed)?;
    convert_rows(path, node, &mut transaction).await?;
    for drop in ["DROP TABLE log_of_one", "DROP TABLE snapshot_of_one"] {
        sqlx::query(drop).execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

async fn convert_rows(path: &Path, node: &NodeId, connection: &mut SqliteConnection) -> Result<(), Error> {
    let failed = |error| Error::of_database(path, error);
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let encoded = |error: serde_json::Error| damaged(error.to_string());
    let first = Row {
        id: log_id(0, 0),
        kind: Kind::Membership,
        text: serde_json::to_string(&Members::alone(node.clone())).map_err(encoded)?,
    };
    let mut state = State::default();
    let (mut old_chain, mut chain): (Chain, Chain) = ([0; 32], [0; 32]);
    if let Some(row) = sqlx::query("SELECT position, state, digest, chain FROM snapshot_of_one")
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed)?
    {
        let position = row.try_get::<i64, _>("position").map_err(failed)?.cast_unsigned();
        let text: String = row.try_get("state").map_err(failed)?;
        let digest: &[u8] = row.try_get("digest").map_err(failed)?;
        if Sha256::digest(text.as_bytes()).as_slice() != digest {
            return Err(damaged(format!("the snapshot at entry {position} is not what was written")));
        }
        state = serde_json::from_str::<State>(&text)
            .map(State::upgrade)
            .map_err(|error| damaged(format!("the snapshot at entry {position} can't be read: {error}")))?;
        if state.applied != position {
            return Err(damaged(format!("the snapshot at entry {position} is of another entry")));
        }
        old_chain = chain_of(&row).map_err(failed)?;
        chain = old_chain;
        let at = At { term: FIRST_TERM, index: position };
        let membership = Standing { since: Some(first.id.into()), members: Members::alone(node.clone()) };
        snapshot::write(connection, &snapshot::Row { at, membership, state: text, chain }).await.map_err(failed)?;
        kept::put(connection, kept::PURGED, &kept::Purged::new(at, &chain)).await.map_err(failed)?;
    }
    let rows = sqlx::query("SELECT position, entry, chain FROM log_of_one ORDER BY position")
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    if state.applied == 0 && !rows.is_empty() {
        chain = first.link(&chain);
        insert(connection, &first, &chain).await.map_err(failed)?;
    }
    for row in &rows {
        let position = row.try_get::<i64, _>("position").map_err(failed)?.cast_unsigned();
        let expected = state.applied + 1;
        if position != expected {
            return Err(damaged(format!("entry {expected} is missing")));
        }
        let text: String = row.try_get("entry").map_err(failed)?;
        old_chain = Sha256::new().chain_update(old_chain).chain_update(text.as_bytes()).finalize().into();
        if old_chain != chain_of(row).map_err(failed)? {
            return Err(damaged(format!("entry {position} is not what was written")));
        }
        let entry = read_entry(position, &text).map_err(|error| unreadable(path, error))?;
        if let Err(rejected) = state.apply(&entry) {
            return Err(damaged(format!("entry {position} does not follow from those before it: {rejected}")));
        }
        let row = Row { id: log_id(FIRST_TERM, position), kind: Kind::Normal, text };
        chain = row.link(&chain);
        insert(connection, &row, &chain).await.map_err(failed)?;
    }
    if state.applied > 0 {
        // Everything was agreed on when it was written, and its audit rows are there.
        let at = At { term: FIRST_TERM, index: state.applied };
        let membership = Standing { since: Some(first.id.into()), members: Members::alone(node.clone()) };
        kept::put(connection, kept::APPLIED, &super::record::Reached { at, membership }).await.map_err(failed)?;
        kept::put(connection, kept::COMMITTED, &at).await.map_err(failed)?;
        let vote = Voted { term: FIRST_TERM, node: node.clone(), won: true };
        kept::put(connection, kept::VOTE, &vote).await.map_err(failed)?;
    }
    Ok(())
}

pub(super) async fn insert(connection: &mut SqliteConnection, row: &Row, chain: &Chain) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO log (position, term, kind, entry, chain) VALUES (?1, ?2, ?3, ?4, ?5)")
        .bind(row.id.index.cast_signed())
        .bind(row.id.leader_id.term.cast_signed())
        .bind(row.kind.as_str())
        .bind(&row.text)
        .bind(chain.as_slice())
        .execute(connection)
        .await
        .map(drop)
}

pub(super) fn unreadable(path: &Path, error: Unreadable) -> Error {
    match error {
        Unreadable::Newer(found) => Error::Newer { path: path.to_owned(), found },
        Unreadable::Damaged(what) => Error::Damaged { path: path.to_owned(), what },
    }
}
