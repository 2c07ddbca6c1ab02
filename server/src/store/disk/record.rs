//! Forms on disk of what openraft keeps beside the log. They are our own, so that another version of openraft reads them as well.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::NodeId;
use openraft::EmptyNode;
use serde::{Deserialize, Serialize};

use crate::consensus::{LogId, Membership, StoredMembership, Vote, log_id};

/// An entry's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct At {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// For whom this node voted, and whether that one won.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voted {
    pub(crate) term: u64,
    pub(crate) node: NodeId,
    pub(crate) won: bool,
}

/// Who votes and who listens. While the voters change there are two sets, each of which has to agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Members {
    pub(crate) voters: Vec<BTreeSet<NodeId>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) learners: BTreeSet<NodeId>,
}

/// A membership and the entry that brought it about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<At>,
    #[serde(flatten)]
    pub(crate) members: Members,
}

/// How far the log was applied: its audit rows are in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) at: At,
    pub(crate) membership: Standing,
}

impl From<LogId> for At {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<At> for LogId {
    fn from(at: At) -> Self {
        log_id(at.term, at.index)
    }
}

impl From<&Vote> for Voted {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for.clone(), won: vote.committed }
    }
}

impl From<Voted> for Vote {
    fn from(voted: Voted) -> Self {
        if voted.won { Self::new_committed(voted.term, voted.node) } else { Self::new(voted.term, voted.node) }
    }
}

impl Members {
    pub(crate) fn alone(node: NodeId) -> Self {
        Self { voters: vec![[node].into()], learners: BTreeSet::new() }
    }

    pub(crate) fn of(membership: &Membership) -> Self {
        Self { voters: membership.get_joint_config().clone(), learners: membership.learner_ids().collect() }
    }

    pub(crate) fn membership(&self) -> Result<Membership, String> {
        if self.voters.is_empty() && self.learners.is_empty() {
            return Ok(Membership::default());
        }
        let everybody = self.voters.iter().flatten().chain(&self.learners);
        let nodes = everybody.map(|node| (node.clone(), EmptyNode {})).collect::<BTreeMap<_, _>>();
        Membership::new(self.voters.clone(), nodes).map_err(|error| error.to_string())
    }

    /// Whether this node decides alone, so that whatever is in its log is agreed on.
    pub(crate) fn is_alone(&self, node: &NodeId) -> bool {
        self.voters.len() == 1 && self.voters[0].len() == 1 && self.voters[0].contains(node)
    }
}

impl Standing {
    pub(crate) fn of(stored: &StoredMembership) -> Self {
        Self { since: stored.log_id().map(At::from), members: Members::of(stored.membership()) }
    }

    pub(crate) fn stored(&self) -> Result<StoredMembership, String> {
        Ok(StoredMembership::new(self.since.map(LogId::from), self.members.membership()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes<const N: usize>(names: [u64; N]) -> BTreeSet<NodeId> {
        names.into_iter().map(NodeId::from).collect()
    }

    #[test]
    fn what_is_kept_reads_as_it_was_written() {
        let members = Members { voters: vec![nodes([1, 2, 3]), nodes([2, 3, 4])], learners: nodes([5]) };
        assert_eq!(Members::of(&members.membership().unwrap()), members);
        let standing = Standing { since: Some(At { term: 2, index: 7 }), members };
        assert_eq!(Standing::of(&standing.stored().unwrap()), standing);
        for vote in [Vote::new(3, NodeId::from(1)), Vote::new_committed(4, NodeId::from(2))] {
            assert_eq!(Vote::from(Voted::from(&vote)), vote);
        }
    }

    /// Files of released versions hold these bytes.
    #[test]
    fn the_forms_on_disk_stay_what_they_are() {
        let standing = Standing {
            since: Some(At { term: 1, index: 0 }),
            members: Members { voters: vec![nodes([1])], learners: nodes([2]) },
        };
        let text = r#"{"since":{"term":1,"index":0},"voters":[["1"]],"learners":["2"]}"#;
        assert_eq!(serde_json::to_string(&standing).unwrap(), text);
        assert_eq!(serde_json::from_str::<Standing>(text).unwrap(), standing);
        let voted = Voted { term: 3, node: NodeId::from(1), won: true };
        assert_eq!(serde_json::to_string(&voted).unwrap(), r#"{"term":3,"node":"1","won":true}"#);
        let reached = Reached { at: At { term: 1, index: 9 }, membership: Standing::default() };
        assert_eq!(
            serde_json::to_string(&reached).unwrap(),
            r#"{"at":{"term":1,"index":9},"membership":{"voters":[]}}"#
        );
    }
}
