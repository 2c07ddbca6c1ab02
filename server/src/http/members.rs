//! What a node knows of the other machines beside the state, as the API asks for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use flotilla_api::{ApiError, NodeId, UnixMillis, rest::LinkView};
use flotilla_core::{report::Report, schedule::Input};
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::{clock, peers::Network, store::Store};

/// A report of another machine, and when it came in by this machine's clock.
pub type Told = (UnixMillis, Arc<Report>);

/// The cluster as this node knows it.
pub trait Members: Send + Sync + fmt::Debug + 'static {
    /// The newest report of each other machine.
    fn reports(&self) -> BTreeMap<NodeId, Told>;

    /// Changes whenever a report came in.
    fn watch_reports(&self) -> watch::Receiver<u64>;

    /// Who decides, by what this node heard last.
    fn quorum(&self) -> Quorum;

    /// How long a machine's lease lasts still. Absent where this node does not know: it knows its own, and all while it leads.
    fn lease_left(&self, machine: &NodeId) -> Option<Duration>;

    /// Resolves when this node's state holds everything that anybody was told before the call.
    fn linearize(&self) -> BoxFuture<'_, Result<(), ApiError>>;

    /// This node's own links.
    fn links(&self) -> Vec<LinkView>;

    /// Machines that can be asked now.
    fn connected(&self) -> BTreeSet<NodeId>;

    /// The way to the other machines; absent where there are none.
    fn network(&self) -> Option<Network>;

    /// Shows what a scheduler would go by, here and now. See [`scheduler`].
    fn show_input(&self, look: &mut dyn FnMut(&Input<'_>));
}

/// Asks the scheduler, by what this node knows of the machines. Nothing comes of it.
pub fn scheduler<T>(members: &dyn Members, mut ask: impl FnMut(&Input<'_>) -> T) -> T {
    let mut answer = None;
    members.show_input(&mut |input| answer = Some(ask(input)));
    answer.expect("members show their input before they return")
}

/// Who leads, and whose majority counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    pub term: u64,
    pub leader: Option<NodeId>,
    pub voters: BTreeSet<NodeId>,
}

/// A cluster of one machine: it leads, and there is nobody to ask.
#[derive(Debug)]
pub struct Single {
    node: NodeId,
    store: Store,
    reports: watch::Sender<u64>,
}

impl Single {
    pub fn new(node: NodeId, store: Store) -> Self {
        Self { node, store, reports: watch::Sender::new(0) }
    }
}

impl Members for Single {
    fn reports(&self) -> BTreeMap<NodeId, Told> {
        BTreeMap::new()
    }

    fn watch_reports(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    fn quorum(&self) -> Quorum {
        Quorum {
            term: self.store.state().leadership.term,
            leader: Some(self.node.clone()),
            voters: BTreeSet::from([self.node.clone()]),
        }
    }

    fn lease_left(&self, _: &NodeId) -> Option<Duration> {
        None
    }

    fn linearize(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn links(&self) -> Vec<LinkView> {
        Vec::new()
    }

    fn connected(&self) -> BTreeSet<NodeId> {
        BTreeSet::new()
    }

    fn network(&self) -> Option<Network> {
        None
    }

    fn show_input(&self, look: &mut dyn FnMut(&Input<'_>)) {
        look(&Input::unreported(clock::now(), &self.store.state()));
    }
}
