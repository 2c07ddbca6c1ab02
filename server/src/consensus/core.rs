//! Keeps openraft running on this node. openraft ends for good when its disk refuses a write; here it begins again, from what the disk
//! holds, once that works.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use flotilla_api::NodeId;
use flotilla_core::State;
use openraft::{EmptyNode, async_runtime::watch::WatchReceiver as _};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Consensus, Error,
    network::Clients,
    status::{Acks, Status},
    timing,
    types::Types,
};
use crate::{
    peers::Network,
    store::{self, Disk, Log, Machine, Opened, Recorded},
};

pub(super) type Raft = openraft::Raft<Types, Machine>;

/// Proposals that may be under way on one node. The log takes all that wait in one write, so that more means a slow disk or link.
const PROPOSALS_MAX: usize = 256;

/// What the consensus of a node is made of.
pub(crate) struct Parts {
    pub(crate) disk: Disk,
    pub(crate) network: Network,
    pub(crate) publish: watch::Sender<Arc<State>>,
    pub(crate) events: broadcast::Sender<Recorded>,
    /// Nothing was ever agreed on here: begin as the only voter, rather than wait to be told.
    pub(crate) found: bool,
}

/// Where what was applied goes.
#[derive(Clone)]
struct Outlets {
    publish: watch::Sender<Arc<State>>,
    events: broadcast::Sender<Recorded>,
}

pub(super) struct Core {
    pub(super) node: NodeId,
    pub(super) disk: Disk,
    pub(super) network: Network,
    pub(super) state: watch::Receiver<Arc<State>>,
    pub(super) proposals: Semaphore,
    pub(super) latency: Histogram,
    /// Leadership is being handed over because the disk is full.
    pub(super) making_way: AtomicBool,
    pub(super) tasks: TaskTracker,
    /// Absent once it was closed, so that who listens learns that nothing follows.
    outlets: Mutex<Option<Outlets>>,
    acks: Arc<Acks>,
    /// Absent while it stands still.
    raft: watch::Sender<Option<Raft>>,
    status: watch::Sender<Status>,
    stop: CancellationToken,
}

/// Begins. Returns when the state is the newest where this node votes alone, else at once.
///
/// # Errors
/// A log that openraft can't go on from.
pub(crate) async fn start(parts: Parts, opened: Opened) -> Result<Consensus, store::Error> {
    let node = parts.disk.node().clone();
    let stop = CancellationToken::new();
    let core = Arc::new(Core {
        node: node.clone(),
        disk: parts.disk,
        network: parts.network,
        state: parts.publish.subscribe(),
        proposals: Semaphore::new(PROPOSALS_MAX),
        // From an SSD that is alone (1 ms) to a slow disk behind a relay.
        latency: Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]),
        making_way: AtomicBool::new(false),
        outlets: Mutex::new(Some(Outlets { publish: parts.publish, events: parts.events })),
        acks: Arc::default(),
        raft: watch::channel(None).0,
        status: watch::channel(Status::new(node)).0,
        stop: stop.clone(),
        tasks: TaskTracker::new(),
    });
    let found = parts.found && opened.is_new() && !opened.joining;
    let alone = found || opened.alone;
    if let Err(error) = core.begin(&opened, found).await {
        core.failed(&error)?;
    }
    core.tasks.spawn(run(core.clone()));
    if alone {
        core.wait_until_it_leads().await;
    }
    Ok(Consensus { core, _end: Arc::new(stop.drop_guard()) })
}

/// Until the node stops: passes on what openraft says of itself, and begins it again when it has ended.
async fn run(core: Arc<Core>) {
    let mut pause = timing::RESTART_FIRST;
    loop {
        let raft = core.raft.borrow().clone();
        if let Some(raft) = raft {
            let led = core.follow(&raft).await;
            core.raft.send_replace(None);
            if let Err(error) = raft.shutdown().await {
                tracing::error!(%error, "the consensus ended in a panic");
            }
            if led {
                pause = timing::RESTART_FIRST;
            }
        }
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(timing::RESTART_MAX);
        match core.again().await {
            Ok(()) => tracing::info!("the consensus goes on"),
            Err(error) => {
                if core.failed(&error).is_err() {
                    tracing::error!(%error, "the consensus ended for good; the node has to be started again");
                    return;
                }
            }
        }
    }
}

impl Core {
    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// # Errors
    /// It stands still, and why.
    pub(super) fn raft(&self) -> Result<Raft, Error> {
        self.raft.borrow().clone().ok_or_else(|| {
            let failure = self.disk.failure().map(|failure| failure.message);
            match failure.or_else(|| self.status.borrow().failure.clone()) {
                _ if self.stop.is_cancelled() => Error::Closed,
                Some(failure) => Error::Failed(failure),
                None => Error::NoLeader,
            }
        })
    }

    async fn begin(&self, opened: &Opened, found: bool) -> Result<(), store::Error> {
        let broken = |what: String| store::Error::Damaged { path: self.disk.path().to_owned(), what };
        let Outlets { publish, events } = self.outlets().clone().ok_or(store::Error::Closed)?;
        let machine = Machine::new(self.disk.clone(), opened, publish, events);
        let config = timing::config(self.disk.limits().snapshot_every).map_err(|error| broken(error.to_string()))?;
        let clients = Clients {
            node: self.node.clone(),
            network: self.network.clone(),
            acks: self.acks.clone(),
            disk: self.disk.clone(),
        };
        let log = Log(self.disk.clone());
        let raft = Raft::new(self.node.clone(), Arc::new(config), clients, log, machine)
            .await
            .map_err(|error| broken(error.to_string()))?;
        if found {
            let founded = raft.initialize(BTreeMap::from([(self.node.clone(), EmptyNode {})])).await;
            if let Err(error) = founded {
                tracing::warn!(%error, "the node could not begin its log");
            }
        }
        if found || opened.alone {
            // Not worth waiting for: nobody else can lead.
            let _ = raft.trigger().elect(false).await;
        }
        self.raft.send_replace(Some(raft));
        Ok(())
    }

    /// Begins again from what the disk holds.
    async fn again(&self) -> Result<(), store::Error> {
        let opened = self.disk.reload().await?;
        let published = self.state.borrow().applied;
        if opened.state.applied < published {
            return Err(store::Error::Damaged {
                path: self.disk.path().to_owned(),
                what: format!("it ends at entry {}, though entry {published} was written", opened.state.applied),
            });
        }
        if opened.state.applied > published {
            let outlets = self.outlets().clone().ok_or(store::Error::Closed)?;
            outlets.publish.send_replace(Arc::new(opened.state.clone()));
        }
        self.begin(&opened, false).await
    }

    /// Says that it stands still. A disk that fails may work again.
    ///
    /// # Errors
    /// What was read is damaged, which time does not mend.
    fn failed(&self, error: &store::Error) -> Result<(), store::Error> {
        let failure = self.disk.failure().map_or_else(|| error.to_string(), |failure| failure.message);
        self.stand_still(failure);
        match error {
            store::Error::Damaged { path, what } if self.disk.failure().is_none() => {
                Err(store::Error::Damaged { path: path.clone(), what: what.clone() })
            }
            _ => Ok(()),
        }
    }

    fn stand_still(&self, failure: String) {
        self.status.send_modify(|status| {
            status.leader = None;
            status.leads = false;
            status.last_quorum_ack = None;
            status.followers.clear();
            status.failure = Some(failure);
        });
    }

    /// Passes on what openraft says of itself, until it or the node ends. Whether it led meanwhile.
    async fn follow(&self, raft: &Raft) -> bool {
        let mut metrics = raft.metrics();
        let mut acks = self.acks.subscribe();
        let mut led = false;
        loop {
            {
                let metrics = metrics.borrow_watched();
                if let Err(error) = &metrics.running_state {
                    let failure = self.disk.failure().map_or_else(|| error.to_string(), |failure| failure.message);
                    tracing::error!(%error, "the consensus stands still");
                    drop(metrics);
                    self.stand_still(failure);
                    return led;
                }
                let status = Status::read(&metrics, &self.acks);
                led |= status.leads;
                drop(metrics);
                self.status.send_if_modified(|known| {
                    let changed = *known != status;
                    *known = status;
                    changed
                });
            }
            tokio::select! {
                () = self.stop.cancelled() => return led,
                changed = metrics.changed() => if changed.is_err() {
                    self.stand_still("the consensus ended".to_owned());
                    return led;
                },
                _ = acks.changed() => {}
            }
        }
    }

    /// Only where nobody else votes: until its whole log is applied. A disk that fails, or is slow, is not waited for.
    async fn wait_until_it_leads(&self) {
        let mut status = self.status();
        let led = status.wait_for(|status| status.leads || status.failure.is_some());
        if tokio::time::timeout(timing::ALONE_WITHIN, led).await.is_err() {
            tracing::warn!("the node does not lead yet though it votes alone; its disk is slow");
        }
    }

    /// Until this node has applied entry `index`.
    ///
    /// # Errors
    /// The node stops.
    pub(super) async fn applied(&self, index: u64) -> Result<(), Error> {
        let mut state = self.state.clone();
        state.wait_for(|state| state.applied >= index).await.map(drop).map_err(|_| Error::Closed)
    }

    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.outlets().take();
    }

    fn outlets(&self) -> MutexGuard<'_, Option<Outlets>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One wait longer than the one before.
pub(super) fn longer(pause: Duration) -> Duration {
    (pause * 2).min(timing::RETRY_MAX)
}
