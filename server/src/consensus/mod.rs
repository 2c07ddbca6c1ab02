//! The agreement of all nodes on the state log: openraft over [`peers`](crate::peers) and the [`store`](crate::store).
//!
//! [`Consensus`] is the handle; [`core`] keeps openraft running. A node proposes through [`Store::propose`](crate::store::Store), on any
//! node; see `docs/adr/0008-raft.md`.

mod core;
mod handler;
mod members;
mod network;
mod propose;
mod read;
mod status;
#[cfg(test)]
pub(crate) mod tests;
pub mod timing;
mod types;
mod wire;

use std::{fmt, sync::Arc};

use flotilla_api::{ApiError, ErrorCode};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use self::core::Core;
pub use self::status::{Follower, Moment, Status};
pub(crate) use self::{
    core::{Parts, start},
    types::{
        Answer, LogEntry, LogId, Membership, Payload, Proposal, SnapshotMeta, SnapshotOf, StoredMembership, Types,
        Vote, log_id,
    },
};

/// Why the consensus did not do what it was asked to. Nothing was changed, except with [`Unknown`](Self::Unknown).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("no leader: too few of the voting machines can reach each other; see `flotilla machines`, and try again")]
    NoLeader,
    #[error("this machine does not lead the cluster; ask `{}`", leader.as_ref().map_or("another one", |leader| leader.0.as_str()))]
    NotLeading { leader: Option<flotilla_api::NodeId> },
    #[error("it was not agreed on in time, so that it may or may not be done; look before you repeat it")]
    Unknown,
    #[error("the machine `{node}` has not caught up with the log yet; try again in a moment")]
    CatchingUp { node: flotilla_api::NodeId },
    #[error("the voting machines are being changed already; try again in a moment")]
    Changing,
    #[error("a cluster needs a machine that votes; name one at least")]
    NoVoters,
    #[error("there is no other machine that votes and can be reached; leadership stays here")]
    NoSuccessor,
    #[error("{0}")]
    Failed(String),
    #[error("the node is stopping; try again when it runs")]
    Closed,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NoLeader | Error::NotLeading { .. } => ErrorCode::NoLeader,
            Error::Unknown => ErrorCode::Timeout,
            Error::CatchingUp { .. } | Error::Changing | Error::NoVoters | Error::NoSuccessor => ErrorCode::Conflict,
            Error::Failed(_) | Error::Closed => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// A handle to this node's part in the agreement. Clones share it; when the last one is gone, it ends.
#[derive(Clone)]
pub struct Consensus {
    core: Arc<Core>,
    _end: Arc<DropGuard>,
}

impl fmt::Debug for Consensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consensus").field("status", &*self.core.status().borrow()).finish_non_exhaustive()
    }
}

impl Consensus {
    /// Sees every newest status.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.core.status()
    }

    /// From a proposal's arrival on the leader to its answer, in seconds. Counted on the leader.
    pub fn commit_latency(&self) -> &Histogram {
        &self.core.latency
    }

    /// Stops openraft; what was agreed on stays applied.
    pub(crate) async fn close(&self) {
        self.core.close().await;
    }
}
