//! Copies of the state, and the ways out when what was agreed on is lost with its machines.
//!
//! A copy is the whole file without what was deleted: log, snapshot, vote and audit trail. It has no keys.

use std::path::{Path, PathBuf};

use flotilla_api::NodeId;
use openraft::EntryPayload;
use sqlx::{Connection as _, SqliteConnection};

use super::{
    Error, Limits, beside,
    disk::{
        self, kept,
        record::{At, Members, Voted},
        row::Row,
        verify::{self, Opened},
    },
};
use crate::consensus::{LogEntry, log_id};

/// How much the term is raised by a node that goes on alone. Whoever led before, and was perhaps being elected when the others were lost,
/// had a smaller one.
const TERMS_SKIPPED: u64 = 1_000;

/// Where a copy shall be put, and how.
#[derive(Clone, Debug)]
pub struct Restore<'a> {
    /// What [`back_up`] wrote.
    pub from: &'a Path,
    pub to: &'a Path,
    /// Whose keys are beside `to`.
    pub node: &'a NodeId,
    /// A state that is there is put aside.
    pub force: bool,
    /// The node goes on as the only voter, whoever voted before.
    pub recover_alone: bool,
}

/// What was put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Entries that the state is made of.
    pub applied: u64,
    /// Where the state is now that was there before.
    pub replaced: Option<PathBuf>,
    pub recovered: Option<Recovered>,
}

/// What a node knows that goes on alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Members that voted before; they must never run with their old state again.
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// Up to here the log was certainly agreed on.
    pub agreed: u64,
    /// Up to here it goes on: what lies between may not have been agreed on, and is taken to be.
    pub last: u64,
    /// It was the only voter already: nothing was changed.
    pub was_alone: bool,
}

/// Copies the state of a node that does not run.
///
/// # Errors
/// There is no state, it is damaged, or the copy can't be written.
pub async fn back_up(path: &Path, node: &NodeId, to: &Path) -> Result<u64, Error> {
    let (mut connection, opened) = open(path, node).await?;
    let copied = disk::copy(&mut connection, to).await.map_err(|error| Error::of_database(to, error));
    close(connection, path).await?;
    copied?;
    Ok(last_of(&opened))
}

/// Puts a copy in place, checked.
///
/// # Errors
/// There is a state already and it is not forced, the copy is damaged, or it is of a cluster that others vote in, too: a node that
/// forgets what it voted for must not vote again.
pub async fn restore(wanted: Restore<'_>) -> Result<Restored, Error> {
    let Restore { from, to, node, force, recover_alone } = wanted;
    if to.exists() && !force {
        return Err(Error::Present { path: to.to_owned() });
    }
    let copy = beside(to, ".restoring");
    discard(&copy)?;
    std::fs::copy(from, &copy).map_err(io_error(from))?;
    let checked = check(&copy, node, recover_alone).await;
    let (applied, recovered) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            discard(&copy)?;
            return Err(error.at(from));
        }
    };
    let replaced = if to.exists() { Some(put_aside(to)?) } else { None };
    // The write-ahead log of what was there would be taken for that of the copy.
    for companion in ["-wal", "-shm"] {
        remove(&beside(to, companion))?;
    }
    std::fs::rename(&copy, to).map_err(io_error(to))?;
    if let Some(directory) = to.parent() {
        std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error(directory))?;
    }
    Ok(Restored { applied, replaced, recovered })
}

async fn check(copy: &Path, node: &NodeId, recover_alone: bool) -> Result<(u64, Option<Recovered>), Error> {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::set_permissions(copy, std::fs::Permissions::from_mode(0o600)).map_err(io_error(copy))?;
    if recover_alone {
        let recovered = go_on_alone(copy, node).await?;
        return Ok((recovered.last, Some(recovered)));
    }
    let (mut connection, opened) = open(copy, node).await?;
    let members = verify::newest_members(copy, &mut connection).await;
    close(connection, copy).await?;
    if !members?.is_alone(node) {
        return Err(Error::OthersVote { path: copy.to_owned() });
    }
    Ok((last_of(&opened), None))
}

/// Makes a node that does not run the only voter of its cluster. For when the majority of the voters is lost for good.
///
/// # Errors
/// There is no state, it is damaged, or it can't be written; nothing is changed then.
pub async fn recover(path: &Path, node: &NodeId) -> Result<Recovered, Error> {
    go_on_alone(path, node).await
}

async fn go_on_alone(path: &Path, node: &NodeId) -> Result<Recovered, Error> {
    let mut connection = disk::connect(path, node, Limits::default()).await?;
    let done = append_membership(path, node, &mut connection).await;
    let closed = close(connection, path).await;
    let recovered = done?;
    closed?;
    Ok(recovered)
}

/// One transaction: another owner of the file, a membership of one at the end of the log, and a term that nobody had.
async fn append_membership(path: &Path, node: &NodeId, connection: &mut SqliteConnection) -> Result<Recovered, Error> {
    let failed = |error| Error::of_database(path, error);
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let owner: Option<NodeId> = kept::get(&mut transaction, kept::NODE).await.map_err(failed)?;
    let owner = owner.unwrap_or_else(|| node.clone());
    let opened = verify::read(path, &owner, &mut transaction).await?;
    let Some(last) = opened.last else {
        return Err(Error::Empty { path: path.to_owned() });
    };
    if !opened.state.machines.contains_key(node) {
        return Err(Error::NoMember { path: path.to_owned(), node: node.clone() });
    }
    let members = verify::newest_members(path, &mut transaction).await?;
    let voters = members.voters.iter().flatten().cloned().collect::<std::collections::BTreeSet<_>>();
    let mut recovered = Recovered {
        voters: voters.into_iter().filter(|voter| voter != node).collect(),
        learners: members.learners.iter().filter(|learner| *learner != node).cloned().collect(),
        agreed: opened.committed.map_or(0, |id| id.index),
        last: last.index,
        was_alone: members.is_alone(node) && owner == *node,
    };
    if recovered.was_alone {
        return Ok(recovered);
    }
    let voted = opened.vote.map_or(0, |vote| vote.leader_id.term);
    let term = voted.max(last.leader_id.term) + TERMS_SKIPPED;
    let id = log_id(term, last.index + 1);
    let membership = Members::alone(node.clone()).membership().map_err(damaged)?;
    let row = Row::of(&LogEntry { log_id: id, payload: EntryPayload::Membership(membership) })
        .map_err(|error| damaged(error.to_string()))?;
    disk::append(&mut transaction, &row).await.map_err(failed)?;
    kept::put(&mut transaction, kept::NODE, node).await.map_err(failed)?;
    kept::put(&mut transaction, kept::VOTE, &Voted { term, node: node.clone(), won: true }).await.map_err(failed)?;
    kept::put(&mut transaction, kept::COMMITTED, &At::from(id)).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    recovered.last = id.index;
    Ok(recovered)
}

async fn open(path: &Path, node: &NodeId) -> Result<(SqliteConnection, Opened), Error> {
    if !path.exists() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    let mut connection = disk::connect(path, node, Limits::default()).await?;
    let opened = verify::read(path, node, &mut connection).await?;
    if opened.is_new() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    Ok((connection, opened))
}

async fn close(connection: SqliteConnection, path: &Path) -> Result<(), Error> {
    connection.close().await.map_err(|error| Error::of_database(path, error))
}

fn last_of(opened: &Opened) -> u64 {
    opened.last.map_or(0, |id| id.index)
}

/// Renames the state that is there, with its write-ahead log: together they stay a whole.
fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    let mut number = 1;
    let aside = loop {
        let aside = beside(path, &format!(".replaced-{number}"));
        if !aside.exists() {
            break aside;
        }
        number += 1;
    };
    for companion in ["-wal", "-shm"] {
        let from = beside(path, companion);
        if from.exists() {
            std::fs::rename(&from, beside(&aside, companion)).map_err(io_error(&from))?;
        }
    }
    std::fs::rename(path, &aside).map_err(io_error(path))?;
    Ok(aside)
}

/// Removes a copy that was not finished.
fn discard(copy: &Path) -> Result<(), Error> {
    for suffix in ["", "-wal", "-shm"] {
        remove(&beside(copy, suffix))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source: sqlx::Error::Io(source) }
}
