//! The way of a request to an instance, wherever in the cluster that runs; and what other nodes' requests find here.
//!
//! The choice looks at what is known: this machine's engine, the other machines' reports, and who is connected. Where no instance
//! takes requests because the service moves, the request waits for one.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use flotilla_api::{
    ApiError, NodeId, ServiceName, UnixMillis,
    rest::{EngineView, ServiceState},
};
use flotilla_core::{
    State,
    reconcile::{self, Container, Memory, Observed, Status, View, Views},
    state::{Phase, Service},
};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    clock,
    engine::{Engine, Error, Others, Told, Traffic},
    peers,
    tunnel::{self, Backend, Backends, Hold},
};

/// How long a request waits for a service that moves. A machine's power loss is made good in about seven seconds at the worst.
const MOVING_MAX: Duration = Duration::from_secs(10);

/// Conditions ripen with time alone, too; so often is looked again where nothing is told.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What streams to services are labelled with: `service/<name>/<container>`.
pub const LABEL: &str = "service/";

/// A stream to a connected machine opens within a few round trips.
const OPENING_STREAM: Duration = Duration::from_secs(3);

/// The other side waits a while for its application to listen.
const ANSWERING_STREAM: Duration = Duration::from_secs(8);

/// Requests and sockets of other nodes that are served at once: all browsers of a cluster.
const SERVED_MAX: usize = 4_096;

/// What is read at once. Bytes.
const BUFFER: usize = 64 * 1024;

/// An answer that has not gone on for so long is over; the connection waits for the next request.
const ANSWERED_AFTER: Duration = Duration::from_millis(150);

/// The first byte on a stream: the application took the connection.
const CONNECTED: u8 = 0;
const REFUSED: u8 = 1;

/// What this node knows, as it changes.
#[derive(Clone)]
pub struct Sources {
    pub node: NodeId,
    pub state: watch::Receiver<Arc<State>>,
    pub observed: watch::Receiver<Option<Arc<Observed>>>,
    pub memory: watch::Receiver<Arc<Memory>>,
    pub engine: watch::Receiver<EngineView>,
    pub traffic: Traffic,
    pub others: Arc<dyn Others>,
    /// Does this machine do something for the service that takes long, such as pulling its image?
    pub busy: Arc<dyn Fn(&ServiceName) -> bool + Send + Sync>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Finds instances for requests.
#[derive(Clone, Debug)]
pub struct Router {
    sources: Sources,
    turn: Arc<AtomicUsize>,
    served: Arc<Semaphore>,
}

/// How things stand with a service.
enum Look {
    Serving(Backend),
    /// An instance will take requests soon, by all that is known.
    Moving(ApiError),
    Down(ApiError),
}

/// What is known at one moment.
struct Moment {
    now: UnixMillis,
    state: Arc<State>,
    observed: Option<Arc<Observed>>,
    memory: Arc<Memory>,
    reports: BTreeMap<NodeId, Told>,
}

impl Router {
    pub fn new(sources: Sources) -> Self {
        Self { sources, turn: Arc::default(), served: Arc::new(Semaphore::new(SERVED_MAX)) }
    }

    /// Of a node with this engine.
    pub fn of(engine: &Engine, node: NodeId, state: watch::Receiver<Arc<State>>) -> Self {
        Self::new(Sources {
            node,
            state,
            observed: engine.watch_observed(),
            memory: engine.watch_memory(),
            engine: engine.watch_status(),
            traffic: engine.traffic().clone(),
            others: Arc::clone(engine.others()),
            busy: Arc::new({
                let engine = engine.clone();
                move |service| engine.activity(service).is_some()
            }),
        })
    }

    /// Serves a stream `service/<name>/<container>` that another node opened, to the end of both sides.
    pub async fn serve(&self, rest: &str, mut stream: peers::Stream) {
        let Ok(_permit) = self.served.try_acquire() else {
            tracing::warn!("more than {SERVED_MAX} requests of other nodes at once; one was refused");
            return;
        };
        let visit = rest.split_once('/').and_then(|(service, container)| {
            let address = self.address_here(&service.parse().ok()?, container)?;
            Some((address, self.sources.traffic.enter(container)?))
        });
        let Some((address, visit)) = visit else {
            tracing::debug!(rest, "another node asked for an instance that takes no requests");
            refuse(&mut stream).await;
            return;
        };
        match tunnel::connect(address).await {
            Ok(socket) => {
                if stream.write_u8(CONNECTED).await.is_ok() && stream.flush().await.is_ok() {
                    carry(stream, socket, visit).await;
                }
            }
            Err(error) => {
                tracing::debug!(%address, %error, "an instance takes no connection of another node");
                refuse(&mut stream).await;
            }
        }
    }

    /// Where an instance of this machine listens, if it runs.
    fn address_here(&self, service: &ServiceName, container: &str) -> Option<SocketAddr> {
        let observed = self.sources.observed.borrow();
        let known = observed.as_ref()?.containers.iter().find(|known| known.id == container)?;
        let state = self.sources.state.borrow();
        let port = state.services.get(service)?.spec_of(known.revision).port?;
        let runs = known.service == *service && matches!(known.status, Status::Running { .. });
        known.address.filter(|_| runs).map(|address| SocketAddr::new(address, port))
    }

    fn moment(&self) -> Moment {
        let sources = &self.sources;
        let state = sources.state.borrow().clone();
        let connected =
            sources.others.network().map(|network| network.connected().borrow().clone()).unwrap_or_default();
        let mut reports = sources.others.reports();
        // What a machine showed before it was lost says nothing of where a request should go.
        reports.retain(|machine, _| {
            connected.contains(machine) && state.machines.get(machine).is_some_and(|machine| machine.lost_at.is_none())
        });
        Moment {
            now: clock::now(),
            state,
            observed: sources.observed.borrow().clone(),
            memory: sources.memory.borrow().clone(),
            reports,
        }
    }

    fn look(&self, service: &ServiceName, failed: Option<&Backend>) -> Look {
        let moment = self.moment();
        let down = |error: Error| Look::Down(error.into());
        let Some(record) = moment.state.services.get(service) else {
            return down(Error::ServiceNotFound(service.clone()));
        };
        if record.replicas == 0 {
            return down(Error::ServiceStopped(service.clone()));
        }
        let views = moment.views(&self.sources.node);
        let mut serving = reconcile::serving(moment.now, record, &views);
        serving.retain(|(_, container)| stays(record, container) && !self.sources.traffic.is_closed(&container.id));
        let mut backends = Vec::with_capacity(serving.len());
        for (machine, container) in serving {
            let Some(port) = record.spec_of(container.revision).port else {
                return down(Error::NoPort(service.clone()));
            };
            let Some(address) = container.address else { continue };
            backends.push(Backend {
                service: service.clone(),
                machine: (*machine != self.sources.node).then(|| machine.clone()),
                container: container.id.clone(),
                address: SocketAddr::new(address, port),
            });
        }
        if backends.len() > 1 {
            backends.retain(|backend| Some(backend) != failed);
        }
        if backends.iter().any(|backend| backend.machine.is_none()) {
            backends.retain(|backend| backend.machine.is_none());
        }
        if !backends.is_empty() {
            let turn = self.turn.fetch_add(1, Relaxed) % backends.len();
            return Look::Serving(backends.swap_remove(turn));
        }
        self.absent(&moment, record, &views)
    }

    /// Why no instance takes requests, and whether one will.
    fn absent(&self, moment: &Moment, record: &Service, views: &Views<'_>) -> Look {
        let unavailable = |why: String| ApiError::from(Error::ServiceUnavailable { service: record.name.clone(), why });
        let here = record.placed_on(&self.sources.node).any(|placement| placement.phase != Phase::Vacating);
        if here && let EngineView::Unavailable { message, .. } = &*self.sources.engine.borrow() {
            return Look::Down(unavailable(message.clone()));
        }
        let condition = reconcile::condition(moment.now, record, views);
        let error =
            unavailable(condition.message.clone().unwrap_or_else(|| format!("it is {}", condition.state.as_str())));
        // An image that is on its way to where it shall run takes minutes: better an answer that says so.
        let placed = |machine: &NodeId| record.placed_on(machine).next().is_some();
        let busy =
            |(machine, (_, report)): (&NodeId, &Told)| placed(machine) && report.activities.contains_key(&record.name);
        let slow = moment.reports.iter().any(busy) || placed(&self.sources.node) && (self.sources.busy)(&record.name);
        let frozen = views.values().any(|view| {
            let containers = view.observed.into_iter().flat_map(|observed| &observed.containers);
            containers
                .into_iter()
                .any(|container| container.service == record.name && container.status == Status::Paused)
        });
        match condition.state {
            _ if slow => Look::Down(error),
            _ if frozen => Look::Moving(error),
            ServiceState::Failed | ServiceState::Restarting | ServiceState::Completed | ServiceState::Stopped => {
                Look::Down(error)
            }
            ServiceState::Running | ServiceState::Starting | ServiceState::Unhealthy | ServiceState::Unknown => {
                Look::Moving(error)
            }
        }
    }

    /// Resolves when something may be otherwise.
    async fn changed(&self) {
        let mut state = self.sources.state.clone();
        let mut observed = self.sources.observed.clone();
        let mut reports = self.sources.others.watch_reports();
        state.mark_unchanged();
        observed.mark_unchanged();
        reports.mark_unchanged();
        tokio::select! {
            _ = state.changed() => {}
            _ = observed.changed() => {}
            _ = reports.changed() => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }

    fn can_answer(&self, backend: &Backend) -> bool {
        let moment = self.moment();
        let runs = |observed: Option<&Observed>| {
            let containers = observed.into_iter().flat_map(|observed| &observed.containers);
            containers
                .into_iter()
                .any(|known| known.id == backend.container && matches!(known.status, Status::Running { .. }))
        };
        match &backend.machine {
            None => runs(moment.observed.as_deref()),
            Some(machine) => moment.reports.get(machine).is_some_and(|(_, report)| runs(report.observed.as_ref())),
        }
    }
}

impl Moment {
    fn views<'a>(&'a self, node: &'a NodeId) -> Views<'a> {
        let at = self.observed.as_ref().map_or(UnixMillis(0), |observed| observed.at);
        let own = View { observed: self.observed.as_deref(), memory: &self.memory, at };
        let others = self.reports.iter().map(|(machine, (received, report))| {
            (machine, View { observed: report.observed.as_ref(), memory: &report.memory, at: *received })
        });
        others.chain([(node, own)]).collect()
    }
}

/// One that is to end takes no more requests: its successor does, as soon as it is there.
fn stays(service: &Service, container: &Container) -> bool {
    service.placements.iter().any(|placement| placement.epoch == container.epoch && placement.phase != Phase::Vacating)
}

impl Backends for Router {
    fn check(&self, service: &ServiceName) -> Result<(), ApiError> {
        match self.sources.state.borrow().services.contains_key(service) {
            true => Ok(()),
            false => Err(Error::ServiceNotFound(service.clone()).into()),
        }
    }

    fn choose<'a>(
        &'a self,
        service: &'a ServiceName,
        failed: Option<&'a Backend>,
    ) -> BoxFuture<'a, Result<(Backend, Hold), ApiError>> {
        Box::pin(async move {
            let until = Instant::now() + MOVING_MAX;
            loop {
                match self.look(service, failed) {
                    Look::Serving(backend) => {
                        // Closed since we looked: look again.
                        if let Some(visit) = self.sources.traffic.enter(&backend.container) {
                            return Ok((backend, Hold::new(visit)));
                        }
                    }
                    Look::Down(error) => return Err(error),
                    Look::Moving(error) if Instant::now() >= until => return Err(error),
                    Look::Moving(_) => drop(timeout_at(until, self.changed()).await),
                }
            }
        })
    }

    fn connect(&self, backend: &Backend) -> BoxFuture<'static, io::Result<peers::Stream>> {
        let Backend { service, machine, container, address } = backend.clone();
        let Some(machine) = machine else {
            return Box::pin(async move {
                let stream: peers::Stream = Box::new(tunnel::connect(address).await?);
                Ok(stream)
            });
        };
        let network = self.sources.others.network();
        Box::pin(async move {
            let network = network.ok_or(io::ErrorKind::NotConnected)?;
            let opening = network.stream(&machine, &format!("{LABEL}{service}/{container}"));
            let mut stream = timeout(OPENING_STREAM, opening).await?.map_err(io::Error::other)?;
            match timeout(ANSWERING_STREAM, stream.read_u8()).await?? {
                CONNECTED => Ok(stream),
                _ => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }

    fn lost<'a>(&'a self, backend: &'a Backend) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            while self.can_answer(backend) {
                self.changed().await;
            }
        })
    }
}

async fn refuse(stream: &mut peers::Stream) {
    // Whoever asked may have gone; then nothing is lost.
    let _ = stream.write_u8(REFUSED).await;
    let _ = stream.shutdown().await;
    let _ = timeout(OPENING_STREAM, stream.read_u8()).await;
}

/// Carries both directions to their ends, and notes when a request is under way: from its first byte until its answer has been
/// quiet for a moment. What it can't know is taken for the better: an answer with long pauses may be cut when its instance stops.
async fn carry(stream: peers::Stream, socket: tokio::net::TcpStream, visit: crate::engine::Visit) {
    let (mut from_peer, mut to_peer) = tokio::io::split(stream);
    let (mut from_app, mut to_app) = tokio::io::split(socket);
    let visit = std::sync::Mutex::new((visit, true));
    let under_way = |asked: bool| {
        let mut visit = visit.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        visit.0.counts(true);
        visit.1 = asked;
    };
    let quiet = || {
        let mut visit = visit.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let asked = visit.1;
        visit.0.counts(asked);
    };
    let up = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = from_peer.read(&mut buffer).await?;
            if read == 0 {
                return to_app.shutdown().await;
            }
            under_way(true);
            to_app.write_all(&buffer[..read]).await?;
        }
    };
    let down = async {
        let mut buffer = vec![0; BUFFER];
        let mut answering = false;
        loop {
            let read = if answering {
                match timeout(ANSWERED_AFTER, from_app.read(&mut buffer)).await {
                    Ok(read) => read?,
                    Err(_) => {
                        answering = false;
                        quiet();
                        continue;
                    }
                }
            } else {
                from_app.read(&mut buffer).await?
            };
            if read == 0 {
                return to_peer.shutdown().await;
            }
            answering = true;
            under_way(false);
            to_peer.write_all(&buffer[..read]).await?;
            to_peer.flush().await?;
        }
    };
    let ended: io::Result<((), ())> = tokio::try_join!(up, down);
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of another node to an application broke");
    }
}
