//! Answers other nodes for the consensus. Who asks is proven by the mesh; here it may only speak for itself.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId};
use flotilla_core::Entry;
use futures::future::{BoxFuture, ready};
use openraft::{
    Snapshot,
    errors::{Fatal, RaftError},
    raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Consensus, Error,
    core::Core,
    propose::Refusal,
    timing,
    types::{Types, Vote},
    wire::{Proposed, ReadAt, SnapshotMessage, decode, encode},
};
use crate::peers::{Handler, Method, Stream};

/// What a leader leaves of a proposal's time for the way back.
const WAY_BACK: std::time::Duration = std::time::Duration::from_secs(1);

impl Handler for Consensus {
    fn call(&self, from: NodeId, method: Method, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        let core = self.core.clone();
        Box::pin(async move { core.answer(&from, method, &body).await })
    }

    /// The consensus opens no streams.
    fn stream(&self, _: NodeId, _: String, _: Stream) -> BoxFuture<'static, ()> {
        Box::pin(ready(()))
    }
}

impl Consensus {
    /// Whether a method is answered here.
    pub fn answers(method: Method) -> bool {
        matches!(
            method,
            Method::Append
                | Method::Vote
                | Method::PreVote
                | Method::Snapshot
                | Method::TransferLeader
                | Method::Propose
                | Method::ReadIndex
        )
    }
}

impl Consensus {
    /// What [`Method::Propose`] carries.
    ///
    /// # Errors
    /// It is none.
    pub fn proposed(body: &[u8]) -> Result<Entry, ApiError> {
        decode(body)
    }

    #[cfg(test)]
    pub(crate) fn proposal(entry: &Entry) -> Bytes {
        encode(entry).expect("an entry has such a form")
    }
}

impl Core {
    async fn answer(self: &Arc<Self>, from: &NodeId, method: Method, body: &[u8]) -> Result<Bytes, ApiError> {
        match method {
            Method::Append => {
                let message: AppendEntriesRequest<Types> = decode(body)?;
                speaks_for_itself(from, &message.vote)?;
                encode(&self.raft()?.append_entries(message).await.map_err(gone)?)
            }
            Method::Vote => {
                let message: VoteRequest<Types> = decode(body)?;
                speaks_for_itself(from, &message.vote)?;
                encode(&self.raft()?.vote(message).await.map_err(gone)?)
            }
            Method::PreVote => {
                let message: VoteRequest<Types> = decode(body)?;
                speaks_for_itself(from, &message.vote)?;
                encode(&self.raft()?.pre_vote(message).await.map_err(gone)?)
            }
            Method::Snapshot => {
                let (vote, meta, image) = decode::<SnapshotMessage>(body)?.into_parts();
                speaks_for_itself(from, &vote)?;
                let snapshot = Snapshot { meta, snapshot: image };
                encode(&self.raft()?.install_full_snapshot(vote, snapshot).await.map_err(ended)?)
            }
            Method::TransferLeader => {
                let message: TransferLeaderRequest<Types> = decode(body)?;
                speaks_for_itself(from, message.from_leader())?;
                encode(&self.raft()?.handle_transfer_leader(message).await.map_err(ended)?)
            }
            Method::Propose => self.take_proposal(from, decode(body)?).await,
            Method::ReadIndex => {
                let index = self.read_index(Instant::now() + timing::READ_WITHIN).await?;
                encode(&ReadAt { index })
            }
            other => Err(ApiError::new(
                ErrorCode::InvalidRequest,
                format!("`{other:?}` is nothing that the consensus answers"),
            )),
        }
    }

    async fn take_proposal(self: &Arc<Self>, from: &NodeId, entry: Entry) -> Result<Bytes, ApiError> {
        if !self.state.borrow().machines.contains_key(from) {
            return Err(ApiError::new(
                ErrorCode::ScopeInsufficient,
                format!("the machine `{from}` is no member of the cluster; join it first"),
            ));
        }
        let deadline = Instant::now() + timing::PROPOSE_WITHIN - WAY_BACK;
        let busy = || ApiError::from(crate::store::Error::Busy);
        let _place = timeout_at(deadline, self.proposals.acquire()).await.map_err(|_| busy())?;
        match self.propose_here(&Arc::new(entry), deadline).await {
            Ok(committed) => encode(&Proposed { index: committed.index, outcome: committed.outcome }),
            Err(Refusal::Elsewhere) => Err(Error::NotLeading { leader: self.status().borrow().leader.clone() }.into()),
            Err(Refusal::Final(error)) => Err(error.into()),
        }
    }
}

/// A leader or candidate speaks with its own vote only: a stray message of another cluster, or a program that errs, ends here.
fn speaks_for_itself(from: &NodeId, vote: &Vote) -> Result<(), ApiError> {
    if vote.leader_id.voted_for == *from {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InvalidRequest,
        format!("the machine `{from}` speaks for `{}`; only that one may", vote.leader_id.voted_for),
    ))
}

fn gone(error: RaftError<Types>) -> ApiError {
    ended(error.unwrap_fatal())
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn ended(fatal: Fatal<Types>) -> ApiError {
    ApiError::new(ErrorCode::NoLeader, format!("the consensus stands still on this machine: {fatal}"))
}
