//! The loop that makes the engine show what the state says: one task owns it, and all it decides is in `flotilla-core`.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use flotilla_api::{ErrorCode, NodeId, ServiceName, StackName, UnixMillis, rest::EngineView, spec::ServiceSpec};
use flotilla_core::{
    CommandV1, State,
    reconcile::{Action, Incarnation, Memory, Observed, reconcile},
};
use futures::StreamExt;
use tokio::{
    sync::watch,
    task::{self, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Lease, Proposer, Shared, Standing, Surroundings,
    connection::Client,
    container,
    labels::{Identity, Owner},
    observe::{self, Observer},
    ports::Ports,
    provision, scratch, spare, values, volume,
};
use crate::clock;

/// Even where no event told of a change the engine is looked at this often, so that what is known never grows stale
/// (`OBSERVATION_STALE_MS`). One call of a few milliseconds.
const REFRESH: Duration = Duration::from_secs(10);

/// After so many refreshes each container is inspected anew, in case an event was lost.
const REFRESHES_PER_INSPECTION: u32 = 6;

/// Events come in bursts (create, start, health): they are taken in together.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Waits before the engine is tried again.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Services that are worked on at once. More would only fight for the disk.
const SERVICES_AT_ONCE: usize = 8;

/// How long a clean stop waits for actions under way. A pull is broken off; the rest is done in seconds.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// How long a container that is to stop may still answer what it was asked, before it is told.
const ANSWERS_MAX: Duration = Duration::from_secs(3);

/// Actions that must follow one another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Service(ServiceName),
    Stack(StackName),
    /// Proposals that belong to nobody.
    Cluster,
}

/// What one lane's task brings back: for each action when it ended, and how.
type Results = Vec<(UnixMillis, Result<(), Error>)>;

struct Underway {
    /// What the service was when its actions were planned; another makes a pull pointless.
    incarnations: Vec<(u32, Incarnation)>,
    cancel: CancellationToken,
    task: task::Id,
    /// Epochs of the instances that it starts.
    starts: Vec<u64>,
    actions: Vec<Action>,
}

pub(super) struct Reconciler {
    shared: Arc<Shared>,
    state: watch::Receiver<Arc<State>>,
    proposer: Arc<dyn Proposer>,
    lease: Arc<dyn Lease>,
    observer: Observer,
    ports: Ports,
    memory: Memory,
    underway: BTreeMap<Lane, Underway>,
    /// Epochs of starts that ended since the last observation began, which may not show them.
    started: BTreeSet<u64>,
    tasks: JoinSet<(Lane, Results)>,
}

/// Why a connection's loop came to an end.
enum End {
    Stopped,
    Lost(Error),
}

impl Reconciler {
    pub(super) fn new(shared: Arc<Shared>, state: watch::Receiver<Arc<State>>, surroundings: Surroundings) -> Self {
        Self {
            shared,
            state,
            proposer: surroundings.proposer,
            lease: surroundings.lease,
            observer: Observer::default(),
            ports: Ports::default(),
            memory: Memory::default(),
            underway: BTreeMap::new(),
            started: BTreeSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Connects, serves the connection while it lasts, and again, until the node stops.
    pub(super) async fn run(mut self) {
        let stop = self.shared.stop.clone();
        let mut backoff = BACKOFF_FIRST;
        loop {
            let connected = tokio::select! {
                () = stop.cancelled() => break,
                connected = Client::connect(&self.shared.host) => connected,
            };
            match connected {
                Ok((client, view)) => {
                    tracing::info!(host = %client.host(), engine = ?view, "Docker Engine answers");
                    self.shared.connected(client.clone(), view);
                    let since = Instant::now();
                    let error = match self.serve(&client).await {
                        End::Stopped => break,
                        End::Lost(error) => error,
                    };
                    tracing::warn!(%error, "lost Docker Engine");
                    if since.elapsed() > BACKOFF_MAX {
                        backoff = BACKOFF_FIRST;
                        continue;
                    }
                    // One that greets and then hangs up is not hurried.
                    self.shared.disconnected(&error);
                }
                Err(error) => {
                    if self.shared.disconnected(&error) {
                        tracing::warn!(%error, "Docker Engine is not available; trying again");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                // Somebody needs the engine now.
                () = self.shared.hurry.notified() => {}
                // Actions that fail meanwhile are noted; their services are planned for when the engine is back.
                Some(finished) = self.tasks.join_next() => self.finished(finished),
            }
        }
        self.wind_down().await;
    }

    async fn serve(&mut self, client: &Client) -> End {
        let stop = self.shared.stop.clone();
        let owner = self.shared.owner();
        let mut events = pin!(observe::events(client, &owner));
        let mut refresh = tokio::time::interval(REFRESH);
        let mut refreshes = 0;
        let mut frozen = self.shared.fence.watch_frozen();
        self.observer.doubt_all();
        if let Err(error) = scratch::sweep(client, &owner).await {
            tracing::debug!(%error, "could not remove what an earlier run left");
        }
        loop {
            let wake_at = match self.round(client).await {
                Ok(wake_at) => wake_at,
                Err(error) => return End::Lost(error),
            };
            let wake = async {
                match wake_at {
                    Some(at) => tokio::time::sleep(Duration::from_millis(at.since(clock::now()))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                event = events.next() => {
                    let mut next = Some(event);
                    let debounced = Instant::now() + DEBOUNCE;
                    while let Some(event) = next {
                        match event {
                            Some(Ok(event)) => observe::container_of(&event).into_iter().for_each(|id| self.observer.doubt(id)),
                            Some(Err(error)) => return End::Lost(error),
                            None => return End::Lost(Error::Unavailable(format!(
                                "Docker Engine at {} ended its stream of events", client.host()
                            ))),
                        }
                        next = tokio::time::timeout_at(debounced, events.next()).await.ok();
                    }
                }
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return End::Stopped;
                    }
                    self.cancel_outdated();
                }
                Some(finished) = self.tasks.join_next() => self.finished(finished),
                () = self.shared.look.notified() => {}
                changed = frozen.changed() => {
                    if changed.is_err() {
                        return End::Stopped;
                    }
                    // The engine does not know; it may tell something else of a container's health now.
                    self.observer.doubt_all();
                }
                () = wake => {}
                _ = refresh.tick() => {
                    refreshes += 1;
                    if refreshes % REFRESHES_PER_INSPECTION == 0 {
                        self.observer.doubt_all();
                    }
                }
            }
        }
    }

    /// Observes, plans and sets the plan going. When to look again, even if nothing happens.
    async fn round(&mut self, client: &Client) -> Result<Option<UnixMillis>, Error> {
        // What was started before now shows in what is observed from now on.
        self.started.clear();
        let mut observed = self.observer.observe(client, &self.shared.owner(), &self.shared.fence).await?;
        let state = Arc::clone(&self.state.borrow_and_update());
        let port_opens = self.ports.look(&mut observed, &state).await;
        let observed = Arc::new(observed);
        self.shared.observed.send_replace(Some(Arc::clone(&observed)));
        let mut fresh = || format!("{:08x}", rand::random::<u32>());
        let plan = reconcile(
            clock::now(),
            &self.shared.config.node_id,
            self.lease.may_start(),
            &state,
            &observed,
            &mut self.memory,
            &mut fresh,
        );
        for (lane, actions) in lanes(plan.actions) {
            self.dispatch(client, &observed, lane, actions);
        }
        self.publish();
        let starting = self.underway.values().flat_map(|underway| &underway.starts).chain(&self.started);
        self.shared.standing.send_replace(Standing {
            starting: starting.copied().collect(),
            planned: state.applied,
            observed: Some(observed),
        });
        Ok([plan.wake_at, port_opens].into_iter().flatten().min())
    }

    /// What finds no room is dropped: it is planned again when something has ended.
    fn dispatch(&mut self, client: &Client, observed: &Arc<Observed>, lane: Lane, actions: Vec<Action>) {
        let full = self.underway.len() >= SERVICES_AT_ONCE && lane != Lane::Cluster;
        if full || self.underway.contains_key(&lane) {
            return;
        }
        for action in &actions {
            tracing::debug!(?action, "begins");
            self.memory.begin(action);
        }
        let cancel = self.shared.stop.child_token();
        let incarnations = incarnations_of(&lane, &self.shared.config.node_id, &self.state.borrow());
        let worker = Worker {
            shared: Arc::clone(&self.shared),
            proposer: Arc::clone(&self.proposer),
            lease: Arc::clone(&self.lease),
            client: client.clone(),
            observed: Arc::clone(observed),
            cancel: cancel.clone(),
        };
        let (name, plan) = (lane.clone(), actions.clone());
        let task = self.tasks.spawn(async move {
            let results = worker.execute(&name, plan).await;
            (name, results)
        });
        let starts = actions.iter().filter_map(|action| epoch_of(action, observed)).collect();
        self.underway.insert(lane, Underway { incarnations, cancel, task: task.id(), starts, actions });
    }

    fn finished(&mut self, joined: Result<(Lane, Results), JoinError>) {
        tracing::debug!(lane = ?joined.as_ref().ok().map(|(lane, _)| lane), "ended");
        let (lane, results) = match joined {
            Ok(finished) => finished,
            Err(panic) => {
                let Some((lane, _)) = self.underway.iter().find(|(_, underway)| underway.task == panic.id()) else {
                    return;
                };
                tracing::error!(?lane, %panic, "an action on a container panicked");
                (lane.clone(), Results::new())
            }
        };
        let Some(underway) = self.underway.remove(&lane) else { return };
        self.started.extend(&underway.starts);
        let mut results = results.into_iter();
        for action in underway.actions {
            let (at, result) = results.next().unwrap_or_else(|| (clock::now(), Err(Error::Panicked)));
            match result {
                Ok(()) => self.memory.end(&action, at, Ok(())),
                Err(Error::Cancelled) => self.memory.dropped(&action, at),
                Err(error) => {
                    tracing::warn!(action = name_of(&action), ?lane, %error, "an action failed");
                    self.memory.end(&action, at, Err(&error.into()));
                }
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.shared.memory.send_if_modified(|known| {
            let changed = **known != self.memory;
            if changed {
                *known = Arc::new(self.memory.clone());
            }
            changed
        });
    }

    /// Breaks off what is under way for a service that shall be something else by now.
    fn cancel_outdated(&self) {
        let state = self.state.borrow();
        for (lane, underway) in &self.underway {
            if underway.incarnations != incarnations_of(lane, &self.shared.config.node_id, &state) {
                underway.cancel.cancel();
            }
        }
    }

    async fn wind_down(&mut self) {
        let done = async {
            while let Some(finished) = self.tasks.join_next().await {
                self.finished(finished);
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, done).await.is_err() {
            tracing::warn!("actions on containers were still under way when the node stopped");
        }
    }
}

/// By lane, in the order in which each first appears: networks stand before the services that need them.
fn lanes(actions: Vec<Action>) -> Vec<(Lane, Vec<Action>)> {
    let mut lanes: Vec<(Lane, Vec<Action>)> = Vec::new();
    for action in actions {
        let lane = lane_of(&action);
        match lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, actions)) => actions.push(action),
            None => lanes.push((lane, vec![action])),
        }
    }
    lanes
}

fn lane_of(action: &Action) -> Lane {
    match action {
        Action::CreateNetwork { stack } | Action::RemoveNetwork { stack } => Lane::Stack(stack.clone()),
        Action::Run { spec, .. } => Lane::Service(spec.name.clone()),
        Action::Start { service, .. } | Action::Remove { service, .. } | Action::DeleteVolumes { service } => {
            Lane::Service(service.clone())
        }
        Action::Propose(
            CommandV1::RollBack { service, .. }
            | CommandV1::ConfirmRevision { service, .. }
            | CommandV1::VolumesPurged { service, .. },
        ) => Lane::Service(service.clone()),
        Action::Propose(_) => Lane::Cluster,
    }
}

/// The epoch of the instance that an action starts.
fn epoch_of(action: &Action, observed: &Observed) -> Option<u64> {
    match action {
        Action::Run { epoch, .. } => Some(*epoch),
        Action::Start { container, .. } => {
            observed.containers.iter().find(|known| known.id == *container).map(|known| known.epoch)
        }
        _ => None,
    }
}

fn name_of(action: &Action) -> &'static str {
    match action {
        Action::CreateNetwork { .. } => "create-network",
        Action::RemoveNetwork { .. } => "remove-network",
        Action::Run { .. } => "run",
        Action::Start { .. } => "start",
        Action::Remove { .. } => "remove",
        Action::DeleteVolumes { .. } => "delete-volumes",
        Action::Propose(_) => "propose",
    }
}

/// What shall run for the lane's service on this node.
fn incarnations_of(lane: &Lane, node: &NodeId, state: &State) -> Vec<(u32, Incarnation)> {
    let Lane::Service(service) = lane else { return Vec::new() };
    let placements = state.services.get(service).into_iter().flat_map(|service| service.placed_on(node));
    placements
        .filter(|placement| placement.is_wanted())
        .map(|placement| (placement.replica, placement.incarnation()))
        .collect()
}

/// Executes the actions of one lane.
struct Worker {
    shared: Arc<Shared>,
    proposer: Arc<dyn Proposer>,
    lease: Arc<dyn Lease>,
    client: Client,
    observed: Arc<Observed>,
    cancel: CancellationToken,
}

impl Worker {
    /// In order; after one that failed the rest is dropped.
    async fn execute(&self, lane: &Lane, actions: Vec<Action>) -> Results {
        let mut results = Results::new();
        let mut failed = false;
        for action in &actions {
            let result = if failed { Err(Error::Cancelled) } else { self.action(action).await };
            failed |= result.is_err();
            results.push((clock::now(), result));
        }
        if let Lane::Service(service) = lane {
            self.shared.activity(service, None);
        }
        results
    }

    async fn action(&self, action: &Action) -> Result<(), Error> {
        let data_dir = &self.shared.config.data_dir;
        let owner = &self.shared.owner();
        let client = &self.client;
        match action {
            Action::CreateNetwork { stack } => container::create_network(client, owner, stack).await,
            Action::RemoveNetwork { stack } => container::remove_network(client, owner, stack).await,
            Action::Run { instance, spec, revision, replica, restarts, epoch } => {
                let identity = Identity {
                    instance: instance.clone(),
                    service: spec.name.clone(),
                    stack: spec.stack.clone(),
                    revision: *revision,
                    replica: *replica,
                    restarts: *restarts,
                    epoch: *epoch,
                };
                let image = provision::image(&self.shared, client, spec, &self.cancel).await?;
                let making = self.shared.files.making().await;
                let told = values::told(&self.shared, spec, *revision).await?;
                self.prepare(spec, *epoch, &image).await?;
                if let Some(id) = spare::take(&self.shared, client, &identity, spec, &image).await {
                    match self.start_new(&id, &identity, spec).await {
                        Ok(()) => return Ok(()),
                        Err(error @ (Error::Cancelled | Error::Fence(_))) => return Err(error),
                        Err(error) => {
                            let service = &spec.name;
                            tracing::warn!(%service, %error, "the container that stood by does not start; making another");
                        }
                    }
                }
                let id = container::create(client, owner, data_dir, &identity, spec, &told, &image).await?;
                drop(making);
                self.start_new(&id, &identity, spec).await
            }
            Action::Start { container, service, .. } => {
                container::one_network_each(client, owner).await?;
                self.write_values(container, service).await?;
                let (epoch, writes) = self.claim(container);
                self.start(container, service, epoch, writes).await
            }
            Action::Remove { container, grace_ms, .. } => {
                let grace = Duration::from_millis(*grace_ms);
                let removed = self.retire(container, grace).await;
                // If it failed the container may still be there to take requests.
                self.shared.traffic.open(container);
                self.sweep_values().await;
                removed
            }
            Action::DeleteVolumes { service } => {
                // The plan says so already; this is the one action that can't be taken back.
                if self.observed.containers.iter().any(|container| container.service == *service) {
                    return Err(Error::Invalid(format!("volumes of `{service}` are still in use")));
                }
                let _deletes = self.shared.data.deletes(service).await.map_err(Error::Data)?;
                volume::delete(client, owner, data_dir, service).await
            }
            Action::Propose(command) => self.propose(command).await,
        }
    }

    /// Directories that an instance of this epoch may begin with.
    async fn prepare(&self, spec: &ServiceSpec, epoch: u64, image: &str) -> Result<(), Error> {
        if spec.written().next().is_some() {
            self.shared.data.ready(&spec.name, epoch).await.map_err(Error::Data)?;
        }
        volume::prepare(&self.shared, &self.client, spec, image).await
    }

    /// Starts a container for the first time. Of a try that fails nothing is left.
    async fn start_new(&self, id: &str, identity: &Identity, spec: &ServiceSpec) -> Result<(), Error> {
        let writes = spec.written().next().is_some();
        let started = async {
            values::write(&self.shared, spec, identity.revision).await?;
            self.start(id, &spec.name, identity.epoch, writes).await
        };
        let started = started.await;
        if started.is_err()
            && let Err(second) = self.remove(id).await
        {
            tracing::warn!(container = id, error = %second, "a container that did not start could not be removed");
        }
        started
    }

    /// What could write a volume is made known to the guard first, and starts only while the lease lasts: pulling its image may
    /// have taken longer than that.
    async fn start(&self, container: &str, service: &ServiceName, epoch: u64, writes: bool) -> Result<(), Error> {
        if !writes {
            return container::start(&self.client, container).await;
        }
        // Held until it has started: what it writes is captured with it or before it, and not in between.
        let _begun = self.shared.data.begins(service, epoch).await.map_err(Error::Data)?;
        self.shared.fence.announce(container, epoch).await?;
        if !self.lease.may_start() {
            self.shared.fence.withdraw(container);
            return Err(Error::Cancelled);
        }
        container::start(&self.client, container).await
    }

    /// Once more the files of a container that ran before: its machine may have been off.
    async fn write_values(&self, container: &str, service: &ServiceName) -> Result<(), Error> {
        let known = self.observed.containers.iter().find(|known| known.id == container);
        let state = self.shared.state.borrow().clone();
        let record = known.and_then(|known| state.services.get(service)?.revisions.get(&known.revision));
        match (known, record) {
            (Some(known), Some(record)) => values::write(&self.shared, &record.spec, known.revision).await,
            _ => Ok(()),
        }
    }

    async fn sweep_values(&self) {
        if let Err(error) = values::sweep(&self.shared, &self.client).await {
            tracing::debug!(%error, "files of secrets stay that no container needs");
        }
    }

    /// Under which epoch a container that was made earlier would run, and whether it could write a volume.
    fn claim(&self, container: &str) -> (u64, bool) {
        let known = self.observed.containers.iter().find(|known| known.id == container);
        let state = self.shared.state.borrow();
        known.map_or((0, true), |known| {
            let writes = state.services.get(&known.service).is_none_or(|service| service.is_exclusive(known.revision));
            (known.epoch, writes)
        })
    }

    /// Stops a container when it has answered what it was asked, and removes it.
    async fn retire(&self, container: &str, grace: Duration) -> Result<(), Error> {
        let fence = &self.shared.fence;
        if fence.stands_still(container) {
            return self.remove(container).await;
        }
        self.shared.traffic.close(container, grace.min(ANSWERS_MAX)).await;
        if fence.guards(container) {
            container::stop_guarded(&self.client, fence, container, grace).await?;
            self.remove(container).await
        } else {
            container::stop_and_remove(&self.client, container, grace).await
        }
    }

    /// Removes a container without a grace. What is frozen must not run again, not even to die.
    async fn remove(&self, container: &str) -> Result<(), Error> {
        let fence = &self.shared.fence;
        if fence.stands_still(container)
            && let Err(error) = fence.kill(container).await
        {
            tracing::error!(container, %error, "a frozen container is killed by the engine, which thaws it first");
        }
        container::remove(&self.client, container).await?;
        fence.withdraw(container);
        Ok(())
    }

    async fn propose(&self, command: &CommandV1) -> Result<(), Error> {
        match self.proposer.propose(command.clone()).await {
            Ok(()) => Ok(()),
            // What it asked for is so already, or no longer makes sense.
            Err(error) if matches!(error.code, ErrorCode::ServiceNotFound | ErrorCode::Conflict) => Ok(()),
            Err(error) => Err(Error::Invalid(error.message)),
        }
    }
}

impl Shared {
    /// What of the engine is this node's. A machine that never joined is the one that made the cluster.
    pub(super) fn owner(&self) -> Owner {
        let node = &self.config.node_id;
        Owner {
            cluster: self.config.cluster_id.clone(),
            node: Some(node.clone()),
            unlabelled: self.state.borrow().machines.get(node).is_some_and(|machine| machine.joined_at.is_none()),
        }
    }

    pub(super) fn machine_name(&self, machine: &NodeId) -> String {
        let state = self.state.borrow();
        state.machines.get(machine).map_or_else(|| machine.to_string(), |machine| machine.name().to_string())
    }

    fn connected(&self, client: Client, view: EngineView) {
        self.client.send_replace(Some(client));
        self.status.send_replace(view);
    }

    /// False where that was known already. `since` stays that of the first failure.
    fn disconnected(&self, error: &Error) -> bool {
        self.client.send_replace(None);
        let message = error.to_string();
        self.status.send_if_modified(|view| {
            let since = match view {
                EngineView::Unavailable { message: known, .. } if *known == message => return false,
                EngineView::Unavailable { since, .. } => *since,
                EngineView::Ready { .. } => clock::now(),
            };
            *view = EngineView::Unavailable { message: message.clone(), since };
            true
        })
    }
}
