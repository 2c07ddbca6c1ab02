//! This node as a member of the cluster: its lease, its reports, and what it does while it leads.

use std::time::Duration;

use flotilla_api::NodeId;
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    schedule::{self, Input},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    engine::Lease,
    store::{ProposeError, Store},
};

/// Nothing is planned for later than this without looking again: the clock may be set meanwhile.
const REPLAN_AFTER: Duration = Duration::from_secs(60);

/// A machine that is alone needs nobody's leave.
#[derive(Debug)]
pub struct Alone;

impl Lease for Alone {
    fn may_start(&self) -> bool {
        true
    }
}

/// Leads a cluster of one machine: places what was deployed.
pub fn lead(store: Store, node: NodeId, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = run(store, node) => {}
        }
    })
}

async fn run(store: Store, node: NodeId) {
    let term = store.state().leadership.term + 1;
    if let Err(error) = propose(&store, CommandV1::Lead { node: node.clone(), term }).await {
        tracing::error!(%error, "the node can't lead");
    }
    let mut states = store.watch();
    loop {
        let state = states.borrow_and_update().clone();
        let plan = schedule::plan(&Input::unreported(clock::now(), &state));
        let place = (!plan.changes.is_empty()).then_some(CommandV1::Place { term, changes: plan.changes });
        for command in place.into_iter().chain(plan.commands) {
            if let Err(error) = propose(&store, command).await {
                tracing::warn!(%error, "a decision was not taken");
            }
        }
        let wake =
            plan.wake_at.map_or(REPLAN_AFTER, |at| Duration::from_millis(at.since(clock::now()))).min(REPLAN_AFTER);
        match timeout(wake, states.changed()).await {
            Ok(Err(_)) => return,
            Ok(Ok(())) | Err(_) => {}
        }
    }
}

async fn propose(store: &Store, command: CommandV1) -> Result<(), ProposeError> {
    let actor = Actor { name: "node".to_owned(), token: None, from: None };
    store.propose(Entry { at: clock::now(), actor, command: Command::V1(command) }).await.map(drop)
}
