//! What this node does while it leads.

use std::{sync::Arc, time::Duration};

use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    lease::Mono,
    node::{Leader, Members, Outcome, Step},
};
use tokio::sync::{mpsc, watch};

use super::Shared;
use crate::{
    clock,
    consensus::{Consensus, Status},
    store::ProposeError,
};

/// A leader looks at its cluster this often even if nothing happened: leases end by time alone.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Changes of membership wait for each other; one that failed is tried again after this.
const MEMBERS_RETRY: Duration = Duration::from_secs(2);

/// What happened to what was set going.
enum Ended {
    Proposal(u64, Outcome),
    Members,
}

pub(super) async fn run(shared: Arc<Shared>) {
    let mut status = shared.parts.store.consensus().status();
    loop {
        let term = status.borrow_and_update().clone();
        if term.leads {
            lead(&shared, &mut status, term.term).await;
            shared.leader().take();
            shared.held.notify_one();
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Until another leads, or another term.
async fn lead(shared: &Arc<Shared>, status: &mut watch::Receiver<Status>, term: u64) {
    tracing::info!(term, "this node leads the cluster");
    *shared.leader() = Some(Leader::new(shared.parts.node.clone(), term));
    shared.held.notify_one();
    let mut states = shared.parts.store.watch();
    // One proposal and one change of members at a time.
    let (ended_sender, mut ended) = mpsc::channel(2);
    let mut changing_members = false;
    loop {
        let state = states.borrow_and_update().clone();
        let unfinished;
        let members = {
            let now = status.borrow_and_update();
            unfinished = now.changing;
            if !now.leads || now.term != term {
                return;
            }
            Members { voters: now.voters.clone(), learners: now.learners.clone() }
        };
        let reports = shared.reports.newest();
        let now = clock::since_boot();
        let step = {
            let mut leader = shared.leader();
            let Some(leader) = leader.as_mut() else { return };
            confirm(leader, shared.parts.store.consensus());
            leader.step(now, clock::now(), &state, &reports, &members)
        };
        let Step { propose, members: wanted, wake_at } = step;
        if let Some(command) = propose {
            let (shared, ended) = (shared.clone(), ended_sender.clone());
            tokio::spawn(async move {
                let outcome = propose_and_tell(&shared, command).await;
                // The leader may be none any more.
                let _ = ended.send(Ended::Proposal(term, outcome)).await;
            });
        }
        // A change that was broken off has left two sets of voters, and either could stop all: it is brought to its end.
        let wanted = wanted.or_else(|| unfinished.then(|| members.clone()));
        if let Some(Members { voters, learners }) = wanted.filter(|_| !changing_members) {
            changing_members = true;
            let (consensus, ended) = (shared.parts.store.consensus().clone(), ended_sender.clone());
            tokio::spawn(async move {
                tracing::info!(?voters, ?learners, "the members of the consensus change");
                if let Err(error) = consensus.set_members(voters, learners).await {
                    tracing::warn!(%error, "the members of the consensus could not be changed; trying again");
                    tokio::time::sleep(MEMBERS_RETRY).await;
                }
                let _ = ended.send(Ended::Members).await;
            });
        }
        let wake = wake_at.map_or(LOOK_EVERY, |at| until(at, now).min(LOOK_EVERY));
        tokio::select! {
            Some(end) = ended.recv() => match end {
                Ended::Proposal(of, outcome) if of == term => {
                    if let Some(leader) = shared.leader().as_mut() {
                        leader.proposed(clock::since_boot(), outcome);
                    }
                }
                Ended::Proposal(..) => {}
                Ended::Members => changing_members = false,
            },
            changed = states.changed() => if changed.is_err() { return },
            changed = status.changed() => if changed.is_err() { return },
            () = shared.led.notified() => {}
            () = tokio::time::sleep(wake) => {}
        }
    }
}

fn until(at: Mono, now: Mono) -> Duration {
    Duration::from_millis(at.since(now).max(1))
}

/// Tells the leader when the last heartbeat was sent that a quorum answered.
pub(super) fn confirm(leader: &mut Leader, consensus: &Consensus) {
    let confirmed = consensus.status().borrow().confirmed();
    if let Some(sent) = confirmed {
        leader.confirm(sent.boot);
    }
}

async fn propose_and_tell(shared: &Shared, command: CommandV1) -> Outcome {
    let actor = Actor::node();
    let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
    match shared.parts.store.propose(entry).await {
        Ok(_) => Outcome::Applied,
        Err(ProposeError::Rejected(error)) => {
            tracing::debug!(%error, "a decision was not taken");
            Outcome::Rejected
        }
        Err(error) => {
            tracing::warn!(%error, "it is not known whether a decision was taken");
            Outcome::Unknown
        }
    }
}
