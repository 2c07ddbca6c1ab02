//! This node as a member of the cluster: its lease, its reports, and what it does while it leads. The decisions are
//! `flotilla_core::node`'s; here they are carried out.

pub mod facts;
pub mod join;
mod leading;
mod member;
mod messages;
mod reports;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, UnixMillis, rest::LinkView};
use flotilla_core::{
    State,
    lease::{Grant, Mono, Renewal, START_LEFT_MS},
    node::Leader,
    report::Report,
    schedule::{Input, Standing},
};
use futures::future::BoxFuture;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use reports::StoresTold;

use crate::{
    clock,
    engine::{Engine, Lease, Others},
    fence::Fence,
    http::{Members, Quorum, Told},
    peers::{Method, Network},
    store::Store,
};

/// The parts that a [`Cluster`] is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    pub node: NodeId,
    pub store: Store,
    pub peers: Network,
    pub fence: Fence,
    pub started_at: UnixMillis,
    pub data_dir: PathBuf,
}

/// A handle to this node's membership. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    reports: reports::Reports,
    /// While this node leads.
    leader: Mutex<Option<Leader>>,
    /// Something happened that a leader has to look at.
    led: Notify,
    /// Something happened that this node's lease depends on.
    held: Notify,
    /// Nobody could take over from this node.
    alone: AtomicBool,
    lease_until: watch::Sender<Option<Mono>>,
    stop: CancellationToken,
}

impl Cluster {
    /// Begins with no lease, or that of a daemon that ran before. [`Cluster::run`] sets it going once there is an engine.
    pub fn new(parts: Parts, stop: CancellationToken) -> Self {
        let lease_until = watch::Sender::new(parts.fence.adopted());
        let shared = Shared {
            reports: reports::Reports::default(),
            leader: Mutex::default(),
            led: Notify::new(),
            held: Notify::new(),
            alone: AtomicBool::new(false),
            lease_until,
            stop,
            parts,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts what keeps the lease, tells the others, and leads.
    pub fn run(
        &self,
        engine: &Engine,
        stores: StoresTold,
        listening: SocketAddr,
        relay_port: Option<u16>,
    ) -> Vec<(&'static str, JoinHandle<()>)> {
        let member = member::Keeper::new(self.shared.clone(), engine.clone());
        vec![
            (
                "the announcement of this machine",
                tokio::spawn(until_stopped(
                    self.shared.stop.clone(),
                    reports::announce(self.shared.clone(), listening, relay_port),
                )),
            ),
            ("the keeper of the lease", tokio::spawn(until_stopped(self.shared.stop.clone(), member.run()))),
            ("the leader", tokio::spawn(until_stopped(self.shared.stop.clone(), leading::run(self.shared.clone())))),
            (
                "the reports",
                tokio::spawn(until_stopped(
                    self.shared.stop.clone(),
                    reports::run(self.shared.clone(), engine.clone(), stores),
                )),
            ),
        ]
    }

    /// The end of this node's lease; absent while it has none.
    pub fn lease_until(&self) -> Option<Mono> {
        *self.shared.lease_until.borrow()
    }

    /// Answers another node's message.
    ///
    /// # Errors
    /// This node does not lead, or the message is none.
    pub fn answer(&self, from: &NodeId, method: Method, body: &[u8]) -> Result<Bytes, ApiError> {
        match method {
            Method::Renew => {
                let renewal: Renewal = messages::read(body)?;
                let grant = self.shared.renew(from, &renewal).ok_or_else(|| {
                    ApiError::new(ErrorCode::Conflict, "this node does not lead the cluster; ask the one that does")
                })?;
                messages::write(&grant)
            }
            Method::Report => {
                let report: Report = messages::read(body)?;
                self.shared.reports.take(from.clone(), report);
                self.shared.led.notify_one();
                Ok(Bytes::new())
            }
            other => Err(ApiError::new(ErrorCode::NotFound, format!("{other:?} is none of the cluster's messages"))),
        }
    }
}

impl Lease for Cluster {
    /// Asked at the moment of a start: a daemon that was stopped for a while must not go by what was so before.
    fn may_start(&self) -> bool {
        let left = |until: Mono| until > clock::since_boot().plus(START_LEFT_MS);
        self.shared.alone.load(Ordering::Acquire) || self.lease_until().is_some_and(left)
    }
}

impl Members for Cluster {
    fn reports(&self) -> BTreeMap<NodeId, Told> {
        self.shared.others()
    }

    fn watch_reports(&self) -> watch::Receiver<u64> {
        self.shared.reports.watch()
    }

    fn quorum(&self) -> Quorum {
        let status = self.shared.parts.store.consensus().status();
        let status = status.borrow();
        Quorum { term: status.term, leader: status.leader.clone(), voters: status.voters.clone() }
    }

    fn lease_left(&self, machine: &NodeId) -> Option<Duration> {
        let now = clock::since_boot();
        let left = match &*self.shared.leader() {
            Some(leader) => leader.lease_left(now, machine),
            None if *machine == self.shared.parts.node => self.lease_until().map(|until| until.since(now)),
            None => None,
        };
        left.map(Duration::from_millis)
    }

    fn linearize(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move { self.shared.parts.store.consensus().linearize().await.map(drop).map_err(ApiError::from) })
    }

    fn links(&self) -> Vec<LinkView> {
        self.shared.parts.peers.links()
    }

    fn connected(&self) -> BTreeSet<NodeId> {
        self.shared.parts.peers.connected().borrow().clone()
    }

    fn network(&self) -> Option<Network> {
        Some(self.shared.parts.peers.clone())
    }

    /// Only the leader knows of leases; others go by the state.
    fn show_input(&self, look: &mut dyn FnMut(&Input<'_>)) {
        let state = self.shared.parts.store.state();
        let reports = self.shared.reports.newest();
        if let Some(leader) = &*self.shared.leader() {
            return look(&leader.input(clock::since_boot(), clock::now(), &state, &reports));
        }
        let standing = |(id, machine): (&NodeId, &flotilla_core::state::Machine)| {
            let report = reports.get(id).map(Arc::as_ref);
            (id.clone(), Standing { ended: machine.lost_at.is_some(), released: BTreeSet::new(), report })
        };
        look(&Input { now: clock::now(), state: &state, machines: state.machines.iter().map(standing).collect() });
    }
}

impl Others for Cluster {
    fn reports(&self) -> BTreeMap<NodeId, Told> {
        self.shared.others()
    }

    fn watch_reports(&self) -> watch::Receiver<u64> {
        self.shared.reports.watch()
    }

    fn network(&self) -> Option<Network> {
        Some(self.shared.parts.peers.clone())
    }
}

impl Shared {
    /// What the other machines told, those alone that are there.
    fn others(&self) -> BTreeMap<NodeId, Told> {
        let state = self.parts.store.state();
        let mut all = self.reports.all();
        // How this node does is read where it is newest; what a lost machine told last says nothing of now.
        all.retain(|id, _| {
            *id != self.parts.node && state.machines.get(id).is_some_and(|machine| machine.lost_at.is_none())
        });
        all
    }

    fn leader(&self) -> std::sync::MutexGuard<'_, Option<Leader>> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a renewal, if this node leads.
    fn renew(&self, from: &NodeId, renewal: &Renewal) -> Option<Grant> {
        let state = self.parts.store.state();
        let mut leader = self.leader();
        let leader = leader.as_mut()?;
        // The newest heartbeat that a quorum answered bounds the grant.
        leading::confirm(leader, self.parts.store.consensus());
        let grant = leader.renew(clock::since_boot(), from, renewal, &state);
        drop(state);
        self.led.notify_one();
        Some(grant)
    }

    /// Nobody could ever take over from this node.
    fn is_alone(&self, state: &State) -> bool {
        let eligible = state.machines.values().filter(|machine| !machine.stores_only).count();
        eligible < FENCED_FROM && self.parts.store.consensus().status().borrow().is_alone()
    }
}

/// Machines (without those that only store) from which on a cluster has several voters, so that another may take over.
const FENCED_FROM: usize = 3;

async fn until_stopped(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}

/// A machine that needs nobody's leave: for parts that are tested alone.
#[derive(Debug)]
pub struct Alone;

impl Lease for Alone {
    fn may_start(&self) -> bool {
        true
    }
}

type Newest = BTreeMap<NodeId, Arc<Report>>;
