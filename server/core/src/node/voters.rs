//! Which machines count in the quorum.

use std::collections::BTreeSet;

use flotilla_api::{NodeId, UnixMillis};

use crate::state::State;

/// How long a voter may be lost before another machine takes its place: longer than a restart for an update. Milliseconds.
const VOTER_LOST_MS: u64 = 30_000;

/// The members of the consensus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// They make the quorum.
    pub voters: BTreeSet<NodeId>,
    /// They follow the log and do not count.
    pub learners: BTreeSet<NodeId>,
}

/// How many voters a cluster of so many machines has: an odd number, for an even one tolerates no more losses and takes more
/// answers; and one where two machines could only ever wait for each other.
fn voters_of(machines: usize) -> usize {
    match machines {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The members that the cluster should have, if those differ from today's. `leader` is who decides it, and stays a voter.
pub fn wanted_members(now: UnixMillis, state: &State, leader: &NodeId, present: &Members) -> Option<Members> {
    // What only stores never votes: nobody has to trust it with more than to keep its copies.
    let eligible = || state.machines.iter().filter(|(_, machine)| !machine.stores_only).map(|(id, _)| id);
    let count = voters_of(eligible().count());
    let is_gone = |id: &NodeId| {
        state.machines.get(id).is_none_or(|machine| machine.lost_at.is_some_and(|at| now.since(at) >= VOTER_LOST_MS))
    };
    let is_lost = |id: &NodeId| state.machines.get(id).is_none_or(|machine| machine.lost_at.is_some());
    // Who is a voter stays one while it can: each change is a risk. Then by id, so that the order never changes by chance.
    let mut ranked: Vec<&NodeId> = eligible().collect();
    ranked.sort_by_key(|id| {
        let voter = present.voters.contains(*id);
        (*id != leader, voter && is_gone(id), !voter && is_lost(id), !voter, (*id).clone())
    });
    let mut voters: BTreeSet<NodeId> = ranked.iter().take(count).map(|id| (*id).clone()).collect();
    // A lost machine is no better a voter than the lost one that it would replace.
    if voters.difference(&present.voters).any(is_lost) && present.voters.len() >= count {
        voters = present.voters.iter().filter(|id| state.machines.contains_key(*id)).cloned().collect();
    }
    // One that is not heard of is not made a voter: with it a quorum would be harder to reach.
    voters.retain(|id| present.voters.contains(id) || !is_lost(id));
    // Two voters are worse than one.
    if voters.len() == 2 && present.voters.len() == 1 {
        voters.clone_from(&present.voters);
    }
    let learners = state.machines.keys().filter(|id| !voters.contains(*id)).cloned().collect();
    let wanted = Members { voters, learners };
    (wanted != *present && wanted.voters.contains(leader)).then_some(wanted)
}
