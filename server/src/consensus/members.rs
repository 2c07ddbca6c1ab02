//! Who votes, who listens, and who leads next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use flotilla_api::NodeId;
use openraft::{
    ChangeMembers, EmptyNode,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Consensus, Error, Status,
    core::{Core, Raft},
    timing,
    types::Types,
};

type Written = Result<openraft::raft::ClientWriteResponse<Types>, RaftError<Types, ClientWriteError<Types>>>;

impl Consensus {
    /// Makes these the members: learners are added at once and catch up by themselves; a learner that shall vote has to have caught up.
    /// Voters change by joint consensus, so that there is a majority of the old and of the new at any time. Does nothing where it is so
    /// already. A leader that shall not vote hands over and changes nothing: it is for its successor.
    ///
    /// # Errors
    /// This node does not lead, a new voter has not caught up, or another change is under way. With [`Error::Unknown`] the change
    /// may still come about: look at the status.
    pub async fn set_members(&self, voters: BTreeSet<NodeId>, learners: BTreeSet<NodeId>) -> Result<(), Error> {
        if voters.is_empty() {
            return Err(Error::NoVoters);
        }
        let deadline = Instant::now() + timing::MEMBERS_WITHIN;
        let raft = self.core.raft()?;
        let status = self.leading()?;
        if !voters.contains(&status.node) {
            // Once it does not vote any more it can't lead the change to its end: its successor makes it.
            self.core.transfer_to(|node| voters.contains(node)).await?;
            let leader = self.core.status().borrow().leader.clone();
            return Err(Error::NotLeading { leader });
        }
        let members: BTreeSet<NodeId> = voters.union(&learners).cloned().collect();
        let known: BTreeSet<NodeId> = status.voters.union(&status.learners).cloned().collect();
        let new: BTreeMap<NodeId, EmptyNode> =
            members.difference(&known).map(|node| (node.clone(), EmptyNode {})).collect();
        if !new.is_empty() {
            change(&raft, ChangeMembers::AddNodes(new), deadline).await?;
        }
        if voters != status.voters || status.changing {
            for node in voters.difference(&status.voters) {
                self.caught_up(node, deadline).await?;
            }
            // Who votes no more listens until it is removed below.
            change(&raft, ChangeMembers::ReplaceAllVoters(voters), deadline).await?;
        }
        let gone: BTreeSet<NodeId> = known.difference(&members).cloned().collect();
        if !gone.is_empty() {
            change(&raft, ChangeMembers::RemoveNodes(gone), deadline).await?;
        }
        Ok(())
    }

    /// Takes a machine out: it neither votes nor listens any more.
    ///
    /// # Errors
    /// As [`set_members`](Self::set_members); also where it is the only voter.
    pub async fn remove(&self, node: &NodeId) -> Result<(), Error> {
        let status = self.leading()?;
        let without = |nodes: &BTreeSet<NodeId>| nodes.iter().filter(|other| *other != node).cloned().collect();
        self.set_members(without(&status.voters), without(&status.learners)).await
    }

    /// Hands leadership to the voter that is furthest, and waits until somebody else leads. Does nothing on a node that does not lead.
    ///
    /// # Errors
    /// There is nobody to hand it to, or nobody took it in time.
    pub async fn transfer(&self) -> Result<(), Error> {
        self.core.transfer_to(|_| true).await
    }

    fn leading(&self) -> Result<Status, Error> {
        let status = self.core.status().borrow().clone();
        if status.leads { Ok(status) } else { Err(Error::NotLeading { leader: status.leader }) }
    }

    /// Waits until a member's log is nearly that of the leader.
    async fn caught_up(&self, node: &NodeId, deadline: Instant) -> Result<(), Error> {
        let mut status = self.core.status();
        let near = status.wait_for(|status| {
            // Of a short log nobody lacks much: who does not answer has not caught up, and as a voter would stop all others.
            let near = status.followers.get(node).is_some_and(|follower| {
                let heard = follower.heard.is_some_and(|heard| heard.instant.elapsed() < timing::PROMOTE_HEARD_WITHIN);
                heard && follower.lag <= timing::PROMOTE_LAG_MAX
            });
            *node == status.node || !status.leads || near
        });
        match timeout_at(deadline, near).await {
            Ok(Ok(status)) if status.leads => Ok(()),
            Ok(Ok(status)) => Err(Error::NotLeading { leader: status.leader.clone() }),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::CatchingUp { node: node.clone() }),
        }
    }
}

impl Core {
    async fn transfer_to(&self, may_lead: impl Fn(&NodeId) -> bool) -> Result<(), Error> {
        let mut status = self.status();
        let now = status.borrow().clone();
        if now.leader.as_ref() != Some(&now.node) {
            return Ok(());
        }
        let connected = self.network.connected().borrow().clone();
        let successor = now
            .followers
            .iter()
            .filter(|(node, _)| now.voters.contains(*node) && connected.contains(*node) && may_lead(node))
            .max_by_key(|(_, follower)| (follower.matched, follower.heard.map(|heard| heard.boot)));
        let Some((successor, _)) = successor else { return Err(Error::NoSuccessor) };
        let raft = self.raft()?;
        raft.trigger().transfer_leader(successor.clone()).await.map_err(|error| Error::Failed(error.to_string()))?;
        let node = now.node;
        let another = status.wait_for(|status| status.leader.as_ref().is_some_and(|leader| *leader != node));
        match tokio::time::timeout(timing::TRANSFER_WITHIN, another).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::NoSuccessor),
        }
    }

    /// A leader whose disk is full lets another one lead, if there is one. In the background: who proposed is told at once.
    pub(super) fn make_way(self: &Arc<Self>) {
        if self.status().borrow().is_alone() || self.making_way.swap(true, Ordering::Relaxed) {
            return;
        }
        let core = self.clone();
        self.tasks.spawn(async move {
            if let Err(error) = core.transfer_to(|_| true).await {
                tracing::warn!(%error, "the disk is full, and no other machine takes over");
            }
            core.making_way.store(false, Ordering::Relaxed);
        });
    }
}

async fn change(raft: &Raft, changes: ChangeMembers<NodeId, EmptyNode>, deadline: Instant) -> Result<(), Error> {
    let written: Written =
        timeout_at(deadline, raft.change_membership(changes, true)).await.map_err(|_| Error::Unknown)?;
    match written {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Err(Error::NotLeading { leader: forward.leader_id })
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)))) => {
            Err(Error::Changing)
        }
        Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_)) => Err(Error::Unknown),
        Err(RaftError::APIError(other)) => Err(Error::Failed(other.to_string())),
    }
}
