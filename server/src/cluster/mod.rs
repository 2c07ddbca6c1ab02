//! This node as a member of the cluster: its lease, its reports, and what it does while it leads.

use flotilla_api::NodeId;
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    schedule::{self, Input},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    engine::Lease,
    store::{ProposeError, Store},
};

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
        let changes = schedule::plan(&Input::unreported(clock::now(), &state));
        if !changes.is_empty()
            && let Err(error) = propose(&store, CommandV1::Place { term, changes }).await
        {
            tracing::warn!(%error, "a decision on placements was not taken");
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

async fn propose(store: &Store, command: CommandV1) -> Result<(), ProposeError> {
    let actor = Actor { name: "node".to_owned(), token: None, from: None };
    store.propose(Entry { at: clock::now(), actor, command: Command::V1(command) }).await.map(drop)
}
