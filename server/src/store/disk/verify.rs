//! Reads the whole file when it is opened, and refuses it where it is not what was written.

use std::path::Path;

use flotilla_api::NodeId;
use flotilla_core::State;
use openraft::EntryPayload;
use sqlx::SqliteConnection;

use super::{
    kept,
    record::{At, Members, Reached, Standing, Voted},
    row::{Chain, Row, chain_of},
    schema::unreadable,
    snapshot,
};
use crate::{
    consensus::{LogId, Proposal, StoredMembership, Vote},
    store::Error,
};

/// What the file amounts to.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The state after `applied`.
    pub(crate) state: State,
    pub(crate) applied: Option<LogId>,
    /// That of `applied`.
    pub(crate) membership: StoredMembership,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    /// How far the log is agreed on: all of it where this node decides alone.
    pub(crate) committed: Option<LogId>,
    /// The newest membership in the log has this node as its only voter.
    pub(crate) alone: bool,
    /// It joined a cluster, which tells it the state.
    pub(crate) joining: bool,
    pub(super) batch: u64,
}

impl Opened {
    /// There is no log, no snapshot and no vote: nothing was ever agreed on.
    pub(crate) fn is_new(&self) -> bool {
        self.last.is_none() && self.applied.is_none() && self.vote.is_none()
    }
}

struct Log {
    rows: Vec<Row>,
    purged: Option<At>,
    last: Option<LogId>,
    /// The newest membership in it.
    members: Option<Members>,
}

pub(crate) async fn read(path: &Path, node: &NodeId, connection: &mut SqliteConnection) -> Result<Opened, Error> {
    let failed = |error| of_kept(path, error);
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let owner: Option<NodeId> = kept::get(connection, kept::NODE).await.map_err(failed)?;
    if let Some(owner) = owner.filter(|owner| owner != node) {
        return Err(Error::Foreign { path: path.to_owned(), owner, node: node.clone() });
    }
    let snapshot = match snapshot::read(connection).await.map_err(failed)? {
        None => None,
        Some(snapshot::Found::Whole(row)) => Some(row),
        Some(snapshot::Found::Damaged { position, what }) => {
            return Err(damaged(format!("the snapshot at entry {position} {what}")));
        }
    };
    let log = read_log(path, connection, snapshot.as_ref()).await?;
    let reached: Option<Reached> = kept::get(connection, kept::APPLIED).await.map_err(failed)?;
    let committed: Option<At> = kept::get(connection, kept::COMMITTED).await.map_err(failed)?;
    let vote: Option<Voted> = kept::get(connection, kept::VOTE).await.map_err(failed)?;
    let joining: Option<bool> = kept::get(connection, kept::JOINING).await.map_err(failed)?;
    let batch: Option<u64> = kept::get(connection, kept::BATCH).await.map_err(failed)?;

    // The newer of the two; the log in between may be gone.
    let begin = snapshot.as_ref().map(|row| Reached { at: row.at, membership: row.membership.clone() });
    let reached = match (begin, reached) {
        (Some(begin), Some(reached)) if begin.at.index > reached.at.index => Some(begin),
        (begin, reached) => reached.or(begin),
    };
    let mut state = match &snapshot {
        None => State::default(),
        Some(row) => read_state(row).map_err(damaged)?,
    };
    if let Some(reached) = &reached {
        fold(path, &mut state, &log, reached.at.index)?;
    }
    let applied: Option<LogId> = reached.as_ref().map(|reached| reached.at.into());
    let standing = reached.map(|reached| reached.membership).unwrap_or_default();
    let alone = log.members.as_ref().unwrap_or(&standing.members).is_alone(node);
    Ok(Opened {
        state,
        applied,
        membership: standing.stored().map_err(damaged)?,
        purged: log.purged.map(LogId::from),
        last: log.last,
        vote: vote.map(Vote::from),
        committed: if alone { log.last.max(applied) } else { committed.map(LogId::from).max(applied) },
        alone,
        joining: joining.unwrap_or(false),
        batch: batch.unwrap_or(0),
    })
}

/// A row of `raft` or a column that can't be read is damage, not a failure of the disk.
fn of_kept(path: &Path, error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::Decode(source) | sqlx::Error::ColumnDecode { source, .. } => {
            Error::Damaged { path: path.to_owned(), what: source.to_string() }
        }
        other => Error::of_database(path, other),
    }
}

pub(crate) fn read_state(row: &snapshot::Row) -> Result<State, String> {
    let position = row.at.index;
    let state = serde_json::from_str::<State>(&row.state)
        .map(State::upgrade)
        .map_err(|error| format!("the snapshot at entry {position} can't be read: {error}"))?;
    if state.applied != position {
        return Err(format!("the snapshot at entry {position} is of another entry"));
    }
    Ok(state)
}

/// Reads the log and follows its chain.
async fn read_log(
    path: &Path,
    connection: &mut SqliteConnection,
    snapshot: Option<&snapshot::Row>,
) -> Result<Log, Error> {
    let failed = |error| of_kept(path, error);
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let purged: Option<kept::Purged> = kept::get(connection, kept::PURGED).await.map_err(failed)?;
    let mut chain: Chain = match &purged {
        None => [0; 32],
        Some(purged) => purged.chain().ok_or_else(|| damaged("what the log begins after is no chain".to_owned()))?,
    };
    let mut expected = purged.as_ref().map_or(0, |purged| purged.at.index + 1);
    if expected > 0 && snapshot.is_none_or(|row| row.at.index + 1 < expected) {
        return Err(damaged(format!("the snapshot up to entry {} is missing", expected - 1)));
    }
    // In one go: the number of entries is bounded by the snapshots.
    let found = sqlx::query("SELECT position, term, kind, entry, chain FROM log ORDER BY position")
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    let mut rows = Vec::with_capacity(found.len());
    let mut members = None;
    for row in &found {
        let written = chain_of(row).map_err(failed)?;
        let row = Row::read(row).map_err(failed)?;
        let position = row.id.index;
        if position != expected {
            return Err(damaged(format!("entry {expected} is missing")));
        }
        chain = row.link(&chain);
        if chain != written {
            return Err(damaged(format!("entry {position} is not what was written")));
        }
        if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.at == row.id.into())
            && snapshot.chain != chain
        {
            return Err(damaged(format!("the snapshot at entry {position} is of another log")));
        }
        if let EntryPayload::Membership(membership) = row.entry().map_err(|error| unreadable(path, error))?.payload {
            members = Some(Members::of(&membership));
        }
        expected += 1;
        rows.push(row);
    }
    let last = rows.last().map(|row| row.id).or(purged.as_ref().map(|purged| purged.at.into()));
    Ok(Log { rows, purged: purged.map(|purged| purged.at), last, members })
}

/// Applies the log to a state, up to and with entry `upto`.
fn fold(path: &Path, state: &mut State, log: &Log, upto: u64) -> Result<(), Error> {
    // Before the first entry a state is at 0 as after it, but the first is of the membership and changes nothing.
    for row in &log.rows {
        let index = row.id.index;
        if index <= state.applied && index > 0 {
            continue;
        }
        if index > upto {
            break;
        }
        match row.entry().map_err(|error| unreadable(path, error))?.payload {
            EntryPayload::Normal(Proposal(entry)) => {
                // A rejected entry keeps its place, as it did when it was applied first.
                let _ = state.apply_at(index, &entry);
            }
            EntryPayload::Blank | EntryPayload::Membership(_) => state.applied = index,
        }
    }
    if state.applied == upto {
        return Ok(());
    }
    Err(Error::Damaged { path: path.to_owned(), what: format!("entry {} is missing", state.applied + 1) })
}

/// Who votes, by the newest membership in the file.
pub(crate) async fn newest_members(path: &Path, connection: &mut SqliteConnection) -> Result<Members, Error> {
    let failed = |error| of_kept(path, error);
    let rows = sqlx::query(
        "SELECT position, term, kind, entry FROM log WHERE kind = 'membership' ORDER BY position DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed)?;
    if let Some(row) = rows {
        let row = Row::read(&row).map_err(failed)?;
        if let EntryPayload::Membership(membership) = row.entry().map_err(|error| unreadable(path, error))?.payload {
            return Ok(Members::of(&membership));
        }
    }
    Ok(match snapshot::read(connection).await.map_err(failed)? {
        Some(snapshot::Found::Whole(row)) => row.membership.members,
        _ => {
            kept::get::<Reached>(connection, kept::APPLIED)
                .await
                .map_err(failed)?
                .map(|reached| reached.membership)
                .unwrap_or_else(Standing::default)
                .members
        }
    })
}
