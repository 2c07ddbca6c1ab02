//! The state log on disk, and the state that it amounts to.
//!
//! A change is an [`Entry`]. The machines that vote agree on its place in the log ([`crate::consensus`]); each writes it with
//! `synchronous=FULL` before it says so, and applies it once a majority has. Only then is the new state published and the proposer
//! answered. So whoever saw a state or an answer will see it again after `kill -9`.

mod backup;
mod disk;
mod error;
mod log;
mod machine;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use flotilla_api::{NodeId, ServiceName, rest::EventView};
use flotilla_core::{Entry, Outcome, State};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::{
    consensus::{self, Consensus},
    peers::{Network, Nobody},
};

pub use backup::{Recovered, Restore, Restored, back_up, recover, restore};
pub(crate) use disk::{Disk, Opened};
pub use error::{Error, ProposeError};
pub(crate) use log::Log;
pub(crate) use machine::{Image, Machine};

/// Bytes of one entry as JSON: a compose file of the largest size, many times over.
const ENTRY_MAX: usize = 4 * 1024 * 1024;

/// Events that a slow listener may lag behind before it has to read the audit trail again.
const EVENTS_MAX: usize = 1024;

/// Rows of the audit trail that one question gets.
pub const AUDIT_PAGE_MAX: u32 = 1000;

/// What was agreed on, and how to change it. Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    consensus: Consensus,
    disk: Disk,
    state: watch::Receiver<Arc<State>>,
    events: broadcast::WeakSender<Recorded>,
}

/// A proposal that was agreed on and is part of the state.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    pub index: u64,
    pub outcome: Outcome,
}

/// A row of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    pub event: EventView,
    /// Events of one entry, in order, from 0.
    pub ordinal: u32,
    /// Id of the token that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    /// Opens the state of one machine alone: for what runs before there is a daemon, and for tests.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub async fn open(path: &Path, node: &NodeId) -> Result<Self, Error> {
        Self::open_with(path, node, Limits::default(), Arc::new(Nobody::default())).await
    }

    /// Opens the state at `path`. An empty one begins with this node as the only voter.
    ///
    /// # Errors
    /// A damaged file, one of a newer version or of another node, and a disk that fails are refused and left as they are.
    pub async fn open_with(path: &Path, node: &NodeId, limits: Limits, network: Network) -> Result<Self, Error> {
        let (disk, opened) = Disk::open(path, node, limits).await?;
        Self::start(disk, opened, network, true).await
    }

    /// Opens a state that begins with what a cluster tells this node, which it joins. Until then the state has no cluster; see
    /// [`known`](Self::known).
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub async fn open_joining(path: &Path, node: &NodeId, limits: Limits, network: Network) -> Result<Self, Error> {
        let (disk, opened) = Disk::open(path, node, limits).await?;
        if opened.is_new() && !opened.joining {
            disk.perform(|done| disk::Work::Join { done }).await.map_err(|_| match disk.failure() {
                Some(failure) => Error::Failed(failure),
                None => Error::Closed,
            })?;
        }
        Self::start(disk, opened, network, false).await
    }

    async fn start(disk: Disk, opened: Opened, network: Network, found: bool) -> Result<Self, Error> {
        let (publish, state) = watch::channel(Arc::new(opened.state.clone()));
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let weak = events.downgrade();
        let parts = consensus::Parts { disk: disk.clone(), network, publish, events, found };
        match consensus::start(parts, opened).await {
            Ok(consensus) => Ok(Self { consensus, disk, state, events: weak }),
            Err(error) => {
                disk.close().await;
                Err(error)
            }
        }
    }

    /// This node's part in the agreement. It also answers the other nodes.
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// The newest state. Cheap.
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Sees every newest state; states that follow each other quickly may be seen as one.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Waits until the state has a cluster: on a node that joins, until it was told.
    ///
    /// # Errors
    /// The store was closed.
    pub async fn known(&self) -> Result<Arc<State>, Error> {
        let mut state = self.watch();
        state.wait_for(|state| state.cluster.is_some()).await.map(|state| state.clone()).map_err(|_| Error::Closed)
    }

    /// Changes the state, wherever the leader is: when this returns, the change is agreed on and [`state`](Self::state) shows it.
    ///
    /// A caller that goes away while it waits does not take its proposal back.
    ///
    /// # Errors
    /// A proposal that was rejected, or that could not be written, changed nothing. Where the answer was lost on the way, the sentence
    /// says that it may have been done.
    pub async fn propose(&self, entry: Entry) -> Result<Committed, ProposeError> {
        let size = size_of(&entry)?;
        if size > ENTRY_MAX {
            return Err(Error::EntryTooLarge { size, max: ENTRY_MAX }.into());
        }
        self.consensus.propose(entry).await
    }

    /// Events from now on, in order. Who lags gets `Lagged` and reads [`audit`](Self::audit).
    pub fn events(&self) -> broadcast::Receiver<Recorded> {
        // After the store was closed nothing more happens: a channel whose sender is gone says just that.
        self.events.upgrade().map_or_else(|| broadcast::channel(1).1, |events| events.subscribe())
    }

    /// The newest `limit` rows of the audit trail that lie before entry `before`, oldest first.
    pub async fn audit(
        &self,
        before: Option<u64>,
        service: Option<&ServiceName>,
        limit: u32,
    ) -> Result<Vec<Recorded>, Error> {
        self.disk.audit(before.unwrap_or(u64::MAX), service, limit.min(AUDIT_PAGE_MAX)).await
    }

    /// Writes a consistent copy of the file to `to`, which must not exist. The node goes on meanwhile.
    ///
    /// # Errors
    /// There is no room, or the file exists.
    pub async fn copy(&self, to: &Path) -> Result<(), Error> {
        self.disk.copy(to).await
    }

    /// Ends the agreement on this node, writes what waits, and closes the file.
    pub async fn close(&self) {
        self.consensus.close().await;
        self.disk.close().await;
    }
}

fn size_of(entry: &Entry) -> Result<usize, ProposeError> {
    /// Counts what is written.
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, entry).map_err(|error| {
        let message = format!("the change has no JSON form: {error}");
        ProposeError::Rejected(flotilla_api::ApiError::new(flotilla_api::ErrorCode::Internal, message))
    })?;
    Ok(count.0)
}

/// The file of a copy that is not complete, or that is to be checked: beside the one that it stands for.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}
