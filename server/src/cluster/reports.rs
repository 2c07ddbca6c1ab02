//! What nodes tell each other of themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flotilla_api::{
    InstanceId, NodeId, ServiceName, UnixMillis, VolumeName,
    limit::LimitNow,
    rest::{MachineResources, ScrubView, StorageView},
};
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    report::{COMING_TOLD, Coming, DataReports, Report, StoredImages, Usage},
    state::MACHINES_MAX,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Newest, Shared, facts, messages};
use crate::{clock, engine::Engine, http::Machine, peers::Method};

/// A change is told after so long, so that a burst is told once.
const SETTLE: Duration = Duration::from_millis(50);

/// Reports at most this often.
const TELL_AT_MOST_EVERY: Duration = Duration::from_millis(150);

/// Reports at least this often, with figures that change all the time.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What instances use is asked for no more often: each question costs the engine something.
const USAGE_EVERY: Duration = Duration::from_secs(10);

/// How long a report may be under way.
const TELL_WITHIN: Duration = Duration::from_secs(2);

/// The newest report of each machine, and when it came, by this node's clock.
#[derive(Debug, Default)]
pub(super) struct Reports {
    known: Mutex<BTreeMap<NodeId, (UnixMillis, Arc<Report>)>>,
    changed: watch::Sender<u64>,
}

impl Reports {
    pub(super) fn take(&self, from: NodeId, report: Report) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Members alone are heard, but one may go and another come.
        if known.len() >= 2 * MACHINES_MAX && !known.contains_key(&from) {
            let oldest = known.iter().min_by_key(|(_, (at, _))| *at).map(|(id, _)| id.clone());
            oldest.and_then(|id| known.remove(&id));
        }
        known.insert(from, (clock::now(), Arc::new(report)));
        drop(known);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sees that some report is new.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// With the time at which each came, by this node's clock.
    pub(super) fn all(&self) -> BTreeMap<NodeId, (UnixMillis, Arc<Report>)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn newest(&self) -> Newest {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(id, (_, report))| (id.clone(), report.clone())).collect()
    }
}

/// What is told of this node's volumes and images.
#[derive(Clone, Debug)]
pub struct StoresTold {
    /// How what is written here does.
    pub data: watch::Receiver<DataReports>,
    /// What is on its way here.
    pub coming: watch::Receiver<BTreeMap<(ServiceName, VolumeName), Coming>>,
    /// What may be sent of it.
    pub limit: watch::Receiver<LimitNow>,
    /// What all of it takes up.
    pub storage: watch::Receiver<Option<StorageView>>,
    /// When it was read as a whole.
    pub scrub: watch::Receiver<ScrubView>,
    /// Images in the store, and on their way to it.
    pub images: watch::Receiver<StoredImages>,
}

/// Tells the others how this node does, whenever that changes.
pub(super) async fn run(shared: Arc<Shared>, engine: Engine, mut stores: StoresTold) {
    let mut observed = engine.watch_observed();
    let mut memory = engine.watch_memory();
    let mut status = engine.watch_status();
    let mut images = engine.held_images();
    let mut states = shared.parts.store.watch();
    let mut connected = shared.parts.peers.connected();
    let machine = Machine::new(shared.parts.data_dir.clone());
    let mut told = Instant::now();
    let mut usage = (told, Arc::default());
    loop {
        if usage.0.elapsed() > USAGE_EVERY {
            usage = (Instant::now(), engine.usage().await);
        }
        let report = report(&shared, &engine, &machine, &usage.1, &mut stores).await;
        shared.reports.take(shared.parts.node.clone(), report.clone());
        shared.led.notify_one();
        tell(&shared, &report, &connected.borrow_and_update().clone());
        let next = told + TELL_AT_MOST_EVERY;
        told = Instant::now();
        let goes_on = async {
            tokio::select! {
                changed = observed.changed() => changed.is_ok(),
                changed = memory.changed() => changed.is_ok(),
                changed = status.changed() => changed.is_ok(),
                changed = images.changed() => changed.is_ok(),
                changed = stores.data.changed() => changed.is_ok(),
                changed = stores.images.changed() => changed.is_ok(),
                changed = stores.limit.changed() => changed.is_ok(),
                changed = stores.coming.changed() => changed.is_ok(),
                changed = states.changed() => changed.is_ok(),
                changed = connected.changed() => changed.is_ok(),
                () = sleep_until(told + TELL_EVERY) => true,
            }
        };
        if !goes_on.await {
            return;
        }
        sleep_until((Instant::now() + SETTLE).max(next)).await;
    }
}

async fn report(
    shared: &Shared,
    engine: &Engine,
    machine: &Machine,
    usage: &BTreeMap<InstanceId, Usage>,
    stores: &mut StoresTold,
) -> Report {
    let state = shared.parts.store.state();
    let resources = machine.resources().await.1;
    let (storage, scrub) = (*stores.storage.borrow(), Some(*stores.scrub.borrow()));
    let resources = MachineResources { storage, scrub, ..resources };
    Report {
        at: clock::now(),
        applied: state.applied,
        started_at: shared.parts.started_at,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: engine.status(),
        resources,
        observed: engine.observed().map(|observed| (*observed).clone()),
        memory: (*engine.memory()).clone(),
        activities: engine.activities(),
        usage: usage.clone(),
        links: shared.parts.peers.links(),
        images: engine.held_images().borrow().iter().cloned().collect(),
        data: stores.data.borrow_and_update().clone(),
        stored_images: stores.images.borrow_and_update().clone(),
        copy_limit: Some(*stores.limit.borrow_and_update()),
        coming: stores.coming.borrow_and_update().values().take(COMING_TOLD).cloned().collect(),
    }
}

/// Without waiting for those who are slow.
fn tell(shared: &Shared, report: &Report, connected: &BTreeSet<NodeId>) {
    if connected.is_empty() {
        return;
    }
    let body = match messages::write(report) {
        Ok(body) => body,
        Err(error) => return tracing::error!(%error, "a report can't be written"),
    };
    for peer in connected {
        let telling = shared.parts.peers.call(peer, Method::Report, body.clone(), TELL_WITHIN);
        tokio::spawn(async move {
            if let Err(error) = telling.await {
                tracing::debug!(%error, "a report was not taken");
            }
        });
    }
}

/// How often this machine looks whether what it said of itself is still so.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(15);

/// Keeps the state informed of where this machine is found, and what it has.
pub(super) async fn announce(shared: Arc<Shared>, listening: SocketAddr, relay_port: Option<u16>) {
    loop {
        let present = tokio::task::spawn_blocking(move || facts::facts(listening, relay_port)).await;
        let state = shared.parts.store.state();
        let known = state.machines.get(&shared.parts.node).map(|machine| &machine.facts);
        if let (Ok(facts), Some(known)) = (present, known)
            && facts != *known
        {
            let actor = Actor::node();
            let command = CommandV1::AnnounceMachine { machine: shared.parts.node.clone(), facts };
            let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
            if let Err(error) = shared.parts.store.propose(entry).await {
                tracing::warn!(%error, "could not tell the cluster where this machine is; trying again");
            }
        }
        tokio::time::sleep(ANNOUNCE_EVERY).await;
    }
}
