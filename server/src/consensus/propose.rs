//! The way of a proposal: on the leader into the log, elsewhere to the leader.

use std::{sync::Arc, time::Duration};

use flotilla_api::{ApiError, ErrorCode, NodeId};
use flotilla_core::{Entry, Outcome};
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use tokio::time::{Instant, timeout_at};

use super::{
    Consensus, Error,
    core::{Core, longer},
    timing,
    types::{Answer, Proposal, Types},
    wire::{Proposed, decode, encode},
};
use crate::{
    peers::{CallError, Method},
    store::{self, Committed, ProposeError},
};

/// How long a proposal waits for its place among those under way.
const PLACE_WITHIN: Duration = Duration::from_secs(5);

/// Why a proposal was not taken here.
pub(super) enum Refusal {
    /// Nothing was written: another node leads, or nobody does.
    Elsewhere,
    Final(ProposeError),
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        Self::Final(error)
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::Final(error.into())
    }
}

impl Consensus {
    /// Has the entry agreed on, by whoever leads, and waits until this node has applied it.
    ///
    /// # Errors
    /// An entry that was rejected, or that found no leader, changed nothing; the sentence says where that is not known.
    pub(crate) async fn propose(&self, entry: Entry) -> Result<Committed, ProposeError> {
        let core = &self.core;
        let deadline = Instant::now() + timing::PROPOSE_WITHIN;
        let _place = timeout_at((Instant::now() + PLACE_WITHIN).min(deadline), core.proposals.acquire())
            .await
            .map_err(|_| store::Error::Busy)?;
        let entry = Arc::new(entry);
        let mut pause = timing::RETRY_FIRST;
        let mut status = core.status();
        loop {
            let leader = status.borrow_and_update().leader.clone();
            let tried = match leader {
                Some(leader) if leader != core.node => core.hand_on(&leader, &entry, deadline).await,
                _ => core.propose_here(&entry, deadline).await,
            };
            match tried {
                Ok(committed) => {
                    // Its proposer shall read what it wrote. It is agreed on in any case.
                    let caught_up = tokio::time::timeout(timing::CATCH_UP_WITHIN, core.applied(committed.index)).await;
                    if !matches!(caught_up, Ok(Ok(()))) {
                        tracing::warn!(index = committed.index, "this node is behind the change that it proposed");
                    }
                    return Ok(committed);
                }
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::Elsewhere) => {}
            }
            // Until something is known, but not as often as it is told.
            let rest = timeout_at(deadline, async {
                tokio::time::sleep(pause).await;
                let known = status.borrow().leader.is_some();
                if !known {
                    let _ = tokio::time::timeout(timing::RETRY_MAX, status.changed()).await;
                }
            });
            if rest.await.is_err() {
                return Err(ProposeError::Rejected(Error::NoLeader.into()));
            }
            pause = longer(pause);
        }
    }
}

impl Core {
    /// Hands a proposal to the node that leads.
    async fn hand_on(&self, leader: &NodeId, entry: &Entry, deadline: Instant) -> Result<Committed, Refusal> {
        // A link that breaks later may have carried it.
        if !self.network.connected().borrow().contains(leader) {
            return Err(Refusal::Elsewhere);
        }
        let body = encode(entry).map_err(ProposeError::Rejected)?;
        let within = deadline.saturating_duration_since(Instant::now());
        match self.network.call(leader, Method::Propose, body, within).await {
            Ok(answer) => {
                let Proposed { index, outcome } = decode(&answer).map_err(ProposeError::Rejected)?;
                Ok(Committed { index, outcome })
            }
            Err(CallError::Refused(error)) if error.code == ErrorCode::NoLeader => Err(Refusal::Elsewhere),
            Err(CallError::Refused(error)) => Err(ProposeError::Rejected(error).into()),
            Err(error @ CallError::TooLarge { .. }) => {
                let error = ApiError::new(ErrorCode::RequestTooLarge, error.to_string());
                Err(ProposeError::Rejected(error).into())
            }
            Err(CallError::Timeout { .. } | CallError::Unreachable) => Err(unknown()),
        }
    }

    /// Proposes on this node, if it leads.
    pub(super) async fn propose_here(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        deadline: Instant,
    ) -> Result<Committed, Refusal> {
        let began = Instant::now();
        let raft = self.raft().map_err(|error| match error {
            Error::NoLeader => Refusal::Elsewhere,
            Error::Closed => store::Error::Closed.into(),
            other => ProposeError::Rejected(self.disk.failure().unwrap_or_else(|| other.into())).into(),
        })?;
        {
            let status = self.status();
            let status = status.borrow();
            // Before it has applied an entry of its own term, it can't tell what is allowed.
            if !status.leads {
                return Err(Refusal::Elsewhere);
            }
        }
        if let Err(error) = self.disk.room().await {
            self.make_way();
            return Err(error.into());
        }
        let state = self.state.borrow().clone();
        state.check(entry).map_err(|rejected| ProposeError::Rejected(rejected.0))?;
        let written = timeout_at(deadline, raft.client_write(Proposal(entry.clone()))).await.map_err(|_| unknown())?;
        match written {
            Ok(written) => {
                self.latency.observe(began.elapsed().as_secs_f64());
                let Answer(answer) = written.data;
                let outcome: Outcome = answer.map_err(ProposeError::Rejected)?;
                Ok(Committed { index: written.log_id.index, outcome })
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(Refusal::Elsewhere),
            Err(RaftError::APIError(_)) => Err(unknown()),
            Err(RaftError::Fatal(fatal)) => Err(self.ended(&fatal)),
        }
    }

    /// openraft ended while it had the proposal. Where nobody else has a copy, it is as the disk says: what failed to be written is not
    /// there.
    fn ended(&self, fatal: &Fatal<Types>) -> Refusal {
        match (fatal, self.disk.failure()) {
            (Fatal::Stopped, None) => store::Error::Closed.into(),
            (_, Some(failure)) if self.status().borrow().is_alone() => ProposeError::Rejected(failure).into(),
            _ => unknown(),
        }
    }
}

fn unknown() -> Refusal {
    ProposeError::Rejected(Error::Unknown.into()).into()
}
