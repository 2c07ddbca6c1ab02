//! What a node knows of the consensus: who leads, who votes, how far everybody is, and until when a leader was certainly the only one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use flotilla_api::NodeId;
use flotilla_core::lease::Mono;
use openraft::{RaftMetrics, ServerState};
use tokio::{sync::watch, time::Instant};

use super::types::Types;
use crate::clock;

/// One moment on both clocks: tokio's, which tests can hold, and the machine's, which goes on while it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub instant: Instant,
    pub boot: Mono,
}

impl Moment {
    pub fn now() -> Self {
        Self { instant: Instant::now(), boot: clock::since_boot() }
    }
}

/// Changes often: compare the fields that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub node: NodeId,
    /// Whom this node believes to lead. It may be gone already.
    pub leader: Option<NodeId>,
    pub term: u64,
    /// This node leads, and its state is the newest: it has applied an entry of its own term.
    pub leads: bool,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// The membership is on its way from one to another.
    pub changing: bool,
    /// Index of the newest entry in this node's log.
    pub last: u64,
    /// Up to where the log is agreed on, as far as this node knows.
    pub committed: u64,
    pub applied: u64,
    /// The entry that the newest snapshot stands after.
    pub snapshot: u64,
    /// Of a leader: when the newest message was *sent* that a quorum answered. At that moment nobody else led, nor could have been
    /// elected. See [`confirmed`](Self::confirmed).
    pub last_quorum_ack: Option<Moment>,
    /// Of a leader: the other members.
    pub followers: BTreeMap<NodeId, Follower>,
    /// Why the consensus stands still on this node, as one sentence: its disk is full, or fails.
    pub failure: Option<String>,
}

/// What a leader knows of another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Up to where its log is that of the leader.
    pub matched: u64,
    /// Entries that it lacks.
    pub lag: u64,
    /// When the newest message was sent that it answered.
    pub heard: Option<Moment>,
}

impl Status {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            leader: None,
            term: 0,
            leads: false,
            voters: BTreeSet::new(),
            learners: BTreeSet::new(),
            changing: false,
            last: 0,
            committed: 0,
            applied: 0,
            snapshot: 0,
            last_quorum_ack: None,
            followers: BTreeMap::new(),
            failure: None,
        }
    }

    pub(super) fn read(metrics: &RaftMetrics<Types>, acks: &Acks) -> Self {
        let index = |id: &Option<super::LogId>| id.map_or(0, |id| id.index);
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let leads = metrics.state == ServerState::Leader;
        let term = metrics.current_term;
        let followers = metrics.replication.iter().flatten().filter(|(node, _)| **node != metrics.id);
        let followers = followers.map(|(node, matched)| {
            let matched = index(matched);
            let heard = acks.heard(term, node);
            (node.clone(), Follower { matched, lag: last.saturating_sub(matched), heard })
        });
        Self {
            node: metrics.id.clone(),
            leader: metrics.current_leader.clone(),
            term,
            leads: leads && metrics.last_applied.is_some_and(|id| id.leader_id.term == term),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            changing: membership.get_joint_config().len() > 1
                || metrics.membership_config != metrics.committed_membership_config,
            last,
            committed: index(&metrics.cluster_committed).max(index(&metrics.last_applied)),
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            last_quorum_ack: acks.quorum(term, &metrics.id, membership.get_joint_config()).filter(|_| leads),
            followers: followers.collect(),
            failure: None,
        }
    }

    /// This node is the only one that votes: what it writes is agreed on.
    pub fn is_alone(&self) -> bool {
        self.voters.len() == 1 && self.voters.contains(&self.node)
    }

    /// When this node was certainly the only leader, at the latest: now, where nobody else votes.
    pub fn confirmed(&self) -> Option<Moment> {
        if self.leads && self.is_alone() { Some(Moment::now()) } else { self.last_quorum_ack }
    }
}

/// When messages were sent that other nodes answered. openraft keeps such times, too, but on a clock that stands still while the machine
/// sleeps.
#[derive(Debug)]
pub(crate) struct Acks {
    book: Mutex<Book>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Book {
    /// The leader's term that the times are of; they are void in any other.
    term: u64,
    answered: BTreeMap<NodeId, Moment>,
}

impl Default for Acks {
    fn default() -> Self {
        Self { book: Mutex::default(), changed: watch::channel(()).0 }
    }
}

impl Acks {
    /// `node` answered what the leader of `term` had sent at `sent`, and knew of no newer term.
    pub(super) fn answered(&self, term: u64, node: &NodeId, sent: Moment) {
        {
            let mut book = self.book();
            if term > book.term {
                *book = Book { term, answered: BTreeMap::new() };
            }
            if term < book.term {
                return;
            }
            let newest = book.answered.entry(node.clone()).or_insert(sent);
            if sent.boot > newest.boot {
                *newest = sent;
            }
        }
        self.changed.send_replace(());
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn heard(&self, term: u64, node: &NodeId) -> Option<Moment> {
        let book = self.book();
        book.answered.get(node).copied().filter(|_| book.term == term)
    }

    /// The newest moment for which a majority of each set of voters has answered; this node answers itself at any time.
    fn quorum(&self, term: u64, node: &NodeId, configs: &[BTreeSet<NodeId>]) -> Option<Moment> {
        let book = self.book();
        if book.term != term {
            return None;
        }
        let mut oldest: Option<Moment> = None;
        for voters in configs {
            let others = voters.len() / 2 + 1 - usize::from(voters.contains(node));
            if others == 0 {
                continue;
            }
            let answers =
                voters.iter().filter(|voter| *voter != node).filter_map(|voter| book.answered.get(voter).copied());
            let mut answers: Vec<Moment> = answers.collect();
            answers.sort_unstable_by_key(|moment| std::cmp::Reverse(moment.boot));
            let enough = *answers.get(others - 1)?;
            oldest = Some(oldest.map_or(enough, |oldest| if enough.boot < oldest.boot { enough } else { oldest }));
        }
        oldest
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment { boot: Mono(millis), ..Moment::now() }
    }

    fn voters<const N: usize>(nodes: [u64; N]) -> BTreeSet<NodeId> {
        nodes.into_iter().map(NodeId::from).collect()
    }

    fn quorum(acks: &Acks, term: u64, configs: &[BTreeSet<NodeId>]) -> Option<u64> {
        acks.quorum(term, &NodeId::from(1), configs).map(|moment| moment.boot.0)
    }

    #[test]
    fn a_quorum_answered_what_its_last_member_answered() {
        let acks = Acks::default();
        let five = [voters([1, 2, 3, 4, 5])];
        assert_eq!(quorum(&acks, 7, &five), None);
        acks.answered(7, &NodeId::from(2), at(100));
        assert_eq!(quorum(&acks, 7, &five), None, "two of five are no majority");
        acks.answered(7, &NodeId::from(3), at(300));
        assert_eq!(quorum(&acks, 7, &five), Some(100));
        acks.answered(7, &NodeId::from(4), at(200));
        assert_eq!(quorum(&acks, 7, &five), Some(200));
        // An answer that was overtaken changes nothing, and a node that does not vote counts for nothing.
        acks.answered(7, &NodeId::from(4), at(150));
        acks.answered(7, &NodeId::from(9), at(900));
        assert_eq!(quorum(&acks, 7, &five), Some(200));
    }

    #[test]
    fn while_voters_change_both_sets_have_to_answer() {
        let acks = Acks::default();
        acks.answered(7, &NodeId::from(2), at(300));
        acks.answered(7, &NodeId::from(4), at(100));
        assert_eq!(quorum(&acks, 7, &[voters([1, 2, 3]), voters([1, 4, 5])]), Some(100));
        assert_eq!(quorum(&acks, 7, &[voters([1, 2, 3]), voters([1])]), Some(300));
        assert_eq!(quorum(&acks, 7, &[voters([1, 2, 3]), voters([1, 5, 6])]), None);
        // A leader that is leaving does not count itself.
        assert_eq!(quorum(&acks, 7, &[voters([2, 4, 5])]), Some(100));
    }

    #[test]
    fn answers_of_another_term_are_void() {
        let acks = Acks::default();
        let three = [voters([1, 2, 3])];
        acks.answered(7, &NodeId::from(2), at(100));
        assert_eq!(quorum(&acks, 8, &three), None);
        acks.answered(8, &NodeId::from(3), at(50));
        assert_eq!(quorum(&acks, 8, &three), Some(50));
        acks.answered(7, &NodeId::from(2), at(500));
        assert_eq!(quorum(&acks, 8, &three), Some(50), "an answer to a leader of an older term was counted");
        assert_eq!(quorum(&acks, 7, &three), None);
    }
}
