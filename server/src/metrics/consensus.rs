//! The consensus as metrics, read when somebody asks.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, gauge};
use crate::consensus::{Consensus, Status};

#[derive(Debug)]
pub(super) struct ConsensusFigures(pub(super) Consensus);

type Read = fn(&Status) -> u64;

const FIGURES: &[(Figure, Read)] = &[
    (gauge("consensus_term", "Term of the consensus"), |status| status.term),
    (gauge("consensus_leads", "1 on the node that leads"), |status| u64::from(status.leads)),
    (gauge("consensus_voters", "Machines that vote"), |status| status.voters.len() as u64),
    (gauge("consensus_learners", "Machines that follow the log without a vote"), |status| status.learners.len() as u64),
    (gauge("consensus_last_index", "Newest entry in this node's log"), |status| status.last),
    (gauge("consensus_committed_index", "Up to where the log is agreed on"), |status| status.committed),
    (gauge("consensus_applied_index", "Up to where the log is applied"), |status| status.applied),
    (gauge("consensus_stands_still", "1 while the disk of this node takes no entries"), |status| {
        u64::from(status.failure.is_some())
    }),
];

const LEADER: Figure = gauge("consensus_leader", "Whom this node believes to lead");
const LAG: Figure = gauge("consensus_follower_lag", "Entries that a follower lacks, on the node that leads");

impl Collector for ConsensusFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.status().borrow().clone();
        FIGURES.iter().try_for_each(|(figure, read)| figure.encode_plain(&mut encoder, read(&status)))?;
        LEADER.encode(&mut encoder, "node", status.leader.iter().map(|leader| (leader.0.as_str(), 1)))?;
        LAG.encode(
            &mut encoder,
            "node",
            status.followers.iter().map(|(node, follower)| (node.0.as_str(), follower.lag)),
        )
    }
}
