//! Reads that see everything that was agreed on before they began (ReadIndex; Ongaro's dissertation, 6.4).

use openraft::{
    ReadPolicy,
    errors::{LinearizableReadError, RaftError},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Consensus, Error,
    core::{Core, longer},
    timing,
    wire::{ReadAt, decode, encode},
};
use crate::peers::{CallError, Method};

impl Consensus {
    /// Waits until this node's state has everything that was agreed on before now, anywhere. Returns the index that it had to have
    /// applied.
    ///
    /// # Errors
    /// No leader could be sure of itself in time.
    pub async fn linearize(&self) -> Result<u64, Error> {
        let core = &*self.core;
        let deadline = Instant::now() + timing::READ_WITHIN;
        let mut pause = timing::RETRY_FIRST;
        loop {
            let leader = core.status().borrow().leader.clone();
            let index = match &leader {
                Some(leader) if *leader == core.node => core.read_index(deadline).await,
                Some(leader) => {
                    let body = encode(&()).map_err(|error| Error::Failed(error.message))?;
                    let within = deadline.saturating_duration_since(Instant::now());
                    match core.network.call(leader, Method::ReadIndex, body, within).await {
                        Ok(answer) => {
                            decode::<ReadAt>(&answer).map(|at| at.index).map_err(|error| Error::Failed(error.message))
                        }
                        Err(CallError::Refused(error)) => Err(Error::Failed(error.message)),
                        Err(_) => Err(Error::NoLeader),
                    }
                }
                None => Err(Error::NoLeader),
            };
            match index {
                Ok(index) => {
                    timeout_at(deadline, core.applied(index)).await.map_err(|_| Error::NoLeader)??;
                    return Ok(index);
                }
                Err(Error::Closed) => return Err(Error::Closed),
                // A read may be asked for as often as it takes.
                Err(error) => {
                    if timeout_at(deadline, tokio::time::sleep(pause)).await.is_err() {
                        return Err(error);
                    }
                }
            }
            pause = longer(pause);
        }
    }
}

impl Core {
    /// On the leader: asks a quorum whether it still leads, and says up to where the log was agreed on by then.
    pub(super) async fn read_index(&self, deadline: Instant) -> Result<u64, Error> {
        let raft = self.raft()?;
        let asked =
            timeout_at(deadline, raft.get_read_log_id(ReadPolicy::ReadIndex)).await.map_err(|_| Error::NoLeader)?;
        match asked {
            Ok((read, _)) => Ok(read.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Error::NotLeading { leader: forward.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(Error::NoLeader),
            Err(RaftError::Fatal(_)) => Err(self.raft().err().unwrap_or(Error::NoLeader)),
        }
    }
}
