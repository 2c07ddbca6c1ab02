//! The daemon: puts the modules together, and takes them apart again in order.

mod init;
mod joining;
mod peering;
mod relay;
mod storage;
mod wiring;

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use flotilla_relay::Relay;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{self, Authority},
    cluster::{
        self, Cluster,
        join::{self as joined},
    },
    config::{self, Config, LogFormat},
    engine::{
        self, Engine, EngineConfig,
        uploads::{self, Uploads},
    },
    fence::{self, Fence},
    http::{self, App, Attempts, Domain, Listener, Reception},
    identity::{self, DataDir, Identity},
    images::{self, Images},
    mesh::{
        self, Certificate, Mesh, Port,
        nodes::{NodeConfig, NodeMesh},
    },
    metrics::Metrics,
    peers::Network,
    route::Router,
    store::{self, Store},
    tunnel::{self, Tunnel},
    vault::Vault,
    volumes::{self, Volumes},
};

use peering::{Answering, Peering, Rest};

pub use init::{ADMIN_TOKEN_MS, FIRST_INVITATION_MS, Init, Initialised, init};
pub use joining::join;

/// How long a machine that joined waits for the state of its cluster: the leader has to notice it and link with it.
const FIRST_STATE: Duration = Duration::from_secs(60);

/// How long a clean stop waits until another node leads.
const HANDING_OVER: Duration = Duration::from_secs(3);

/// Why a node did not start, or a cluster was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Auth(#[from] auth::Error),
    #[error(transparent)]
    Listener(#[from] http::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Fence(#[from] fence::Error),
    #[error(transparent)]
    Volumes(#[from] volumes::Error),
    #[error(transparent)]
    Images(#[from] images::Error),
    #[error(transparent)]
    Mesh(#[from] mesh::Error),
    #[error(transparent)]
    Join(#[from] joined::Error),
    #[error("the state in `{path}` is empty though the node has keys; repeat `flotilla init` if it was interrupted, else restore `state.db` from a backup", path = path.display())]
    StateMissing { path: std::path::PathBuf },
    #[error("the state in `{path}` is of another cluster than the keys beside it; restore both from one backup", path = path.display())]
    ForeignState { path: std::path::PathBuf },
    #[error("the cluster did not send its state within {} s; is a majority of its machines running, and does one of them reach this machine? Start the node again to go on waiting", within.as_secs())]
    NotTold { within: Duration },
    #[error("this machine was removed from the cluster as `{name}`, and its key is not taken again; delete `{path}` and join with a new token", path = path.display())]
    Removed { name: String, path: std::path::PathBuf },
    #[error("failed to make the cluster: {0}")]
    Rejected(flotilla_api::ApiError),
    #[error("failed to listen for signals of the system: {0}")]
    Signals(#[source] std::io::Error),
}

/// A node that runs in this process.
#[derive(Debug)]
pub struct Node {
    app: Arc<App>,
    volumes: Volumes,
    address: SocketAddr,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
    relay: Option<Arc<Relay>>,
    /// Held until everything else has ended.
    _directory: DataDir,
}

/// Starts a node whose cluster was made by [`init`]. It serves when this returns; with port 0, [`Node::address`] says where.
///
/// # Errors
/// One sentence that says what is in the way.
pub async fn start(config: Config) -> Result<Node, Error> {
    start_with(config, store::Limits::default()).await
}

/// # Errors
/// As [`start`].
pub(crate) async fn start_with(config: Config, limits: store::Limits) -> Result<Node, Error> {
    let directory = DataDir::open(&config.data_dir)?;
    let identity = Identity::load(&directory)?;
    // Before anything else is begun: a port in use is the most common mistake.
    let listener = Listener::bind(&config).await?;
    let address = listener.address();
    let mut mesh =
        NodeConfig::new(identity.node.clone(), Certificate::from_pem(&identity.webrtc_pem)?, candidates(&config));
    mesh.cluster_key = identity.cluster.private().cloned();
    mesh.relay_secret = relay::secret(&identity);
    let port = Port::new(config.udp_port.unwrap_or(address.port()));
    mesh.port = Some(port.clone());
    let nodes = NodeMesh::new(mesh)?;
    let site = (address, listener.is_secure());
    let (attempts, metrics, stop) = (Arc::default(), Metrics::new(), CancellationToken::new());
    let reception = Reception::new(&config, nodes.clone(), Arc::clone(&attempts), metrics.clone());
    let listening = tokio::spawn(listener.serve(reception.clone(), stop.clone()));
    let begun = Begun { site, port, nodes, attempts, metrics, stop: stop.clone() };
    match put_together(config, directory, &identity, limits, begun, &reception).await {
        Ok(mut node) => {
            node.tasks.push(("the listener", listening));
            Ok(node)
        }
        Err(error) => {
            stop.cancel();
            let _ = listening.await;
            Err(error)
        }
    }
}

/// All but the listener, which serves already.
async fn put_together(
    config: Config,
    directory: DataDir,
    identity: &Identity,
    limits: store::Limits,
    begun: Begun,
    reception: &Reception,
) -> Result<Node, Error> {
    let (nodes, (address, _)) = (begun.nodes.clone(), begun.site);
    let (store, peering) = open_store(&directory, identity, limits, &nodes).await?;
    match assemble(config, &directory, identity, begun, (store.clone(), peering)) {
        Ok(assembled) => Ok(assembled.begin(reception, identity, directory, address).await),
        Err(error) => {
            nodes.stop().await;
            store.close().await;
            Err(error)
        }
    }
}

/// The state log, in agreement with the other nodes.
async fn open_store(
    directory: &DataDir,
    identity: &Identity,
    limits: store::Limits,
    nodes: &Arc<NodeMesh>,
) -> Result<(Store, Arc<Peering>), Error> {
    let told = joined::Told::load(directory)?;
    let network: Network = nodes.clone();
    let path = directory.state();
    let store = match &told {
        Some(_) => Store::open_joining(&path, &identity.node_id(), limits, network).await?,
        None => Store::open_with(&path, &identity.node_id(), limits, network).await?,
    };
    let members = peering::members(&store, told.as_ref().map(joined::Told::as_state));
    let peering = Peering::new(store.consensus().clone(), members.clone());
    nodes.start(members, Arc::new(Answering(peering.clone())));
    // Up to the entry that admits it, or one that removed it again.
    let node = identity.node_id();
    let mut states = store.watch();
    let own = states.wait_for(|state| state.machines.contains_key(&node) || state.removed_machines.contains_key(&node));
    if told.is_some() && !matches!(timeout(FIRST_STATE, own).await, Ok(Ok(_))) {
        nodes.stop().await;
        store.close().await;
        return Err(Error::NotTold { within: FIRST_STATE });
    }
    Ok((store, peering))
}

/// What is there before the state of the cluster is known.
struct Begun {
    /// Where the listener is, and whether it speaks TLS.
    site: (SocketAddr, bool),
    port: Port,
    nodes: Arc<NodeMesh>,
    attempts: Arc<Attempts>,
    metrics: Metrics,
    stop: CancellationToken,
}

/// The parts of a node that is about to begin.
struct Assembled {
    app: Arc<App>,
    cluster: Cluster,
    vault: Vault,
    volumes: Volumes,
}

impl Assembled {
    async fn begin(self, reception: &Reception, identity: &Identity, directory: DataDir, address: SocketAddr) -> Node {
        let Self { app, cluster, vault, volumes } = self;
        let images = app.images.clone();
        let relay = relay::start(&app.config, app.domain.to_string(), identity).await;
        if let Some(relay) = &relay {
            app.metrics.watch_relay(relay);
        }
        let relay_port = relay.as_ref().map(|relay| relay.address().port());
        let told = cluster::StoresTold {
            data: volumes.watch_reports(),
            coming: volumes.watch_coming(),
            limit: volumes.watch_limit(),
            storage: volumes.watch_storage(),
            scrub: volumes.watch_scrub(),
            images: images.watch_reports(),
        };
        let mut tasks = cluster.run(&app.engine, told, address, relay_port);
        tasks.extend(volumes.run(&app.engine));
        tasks.extend(images.run(&app.engine));
        tasks.push(("the keys of secrets", tokio::spawn(vault.run(app.stop.clone()))));
        tasks.push(("the watch over services", tokio::spawn(http::tell_changes(app.clone()))));
        reception.open(app.clone());
        Node { app, volumes, address, tasks, relay, _directory: directory }
    }
}

fn assemble(
    config: Config,
    directory: &DataDir,
    identity: &Identity,
    begun: Begun,
    (store, peering): (Store, Arc<Peering>),
) -> Result<Assembled, Error> {
    let Begun { site: (listening, is_secure), port, nodes, attempts, metrics, stop } = begun;
    let state = store.state();
    let Some(record) = &state.cluster else {
        return Err(Error::StateMissing { path: directory.state() });
    };
    let node = identity.node_id();
    if let Some(removed) = state.removed_machines.get(&node) {
        return Err(Error::Removed { name: removed.name.to_string(), path: directory.path().to_owned() });
    }
    let known = state.machines.get(&node).filter(|_| record.token_key == identity.cluster_key());
    let Some(machine) = known.filter(|machine| machine.stores_only == identity.cluster.private().is_none()) else {
        return Err(Error::ForeignState { path: directory.state() });
    };
    let stores_only = machine.stores_only;
    let authority = Authority::new(store.clone(), &record.id, &identity.cluster)?;
    let domain = Domain::new(config.domain.as_deref(), record.name.as_str(), listening, is_secure);
    metrics.watch_consensus(store.consensus());
    let limits = uploads::Limits { size_max: config.limits.upload_bytes, ..uploads::Limits::default() };
    let uploads = Uploads::open(directory.path(), limits).map_err(engine::Error::from)?;
    let fence = Fence::start(fence::Config::new(directory.path(), config.docker_host.clone()))?;
    metrics.watch_fence(fence.clone());
    let parts = cluster::Parts {
        node: node.clone(),
        store: store.clone(),
        peers: nodes.clone(),
        fence: fence.clone(),
        started_at: crate::clock::now(),
        data_dir: directory.path().to_owned(),
    };
    let cluster = Cluster::new(parts, stop.clone());
    let proposer = Arc::new(wiring::Proposals(store.clone()));
    let data_dir = directory.path().canonicalize().map_err(|source| volumes::Error::File {
        operation: "use",
        path: directory.path().to_owned(),
        source,
    })?;
    let volumes = Volumes::open(volumes::Parts {
        node: node.clone(),
        data_dir: data_dir.clone(),
        state: store.watch(),
        fence: fence.clone(),
        proposer: proposer.clone(),
        network: nodes.clone(),
    })?;
    metrics.watch_volumes(volumes.clone());
    let images = Images::open(images::Parts {
        node: node.clone(),
        data_dir,
        state: store.watch(),
        network: nodes.clone(),
        volumes: volumes.clone(),
    })?;
    metrics.watch_images(images.clone());
    let vault = Vault::open(directory, node.clone(), store.clone(), nodes.clone())?;
    vault.give_keys_to(volumes.store().clone());
    metrics.watch_vault(vault.clone(), store.clone());
    let engine = EngineConfig {
        docker_host: config.docker_host.clone(),
        data_dir: directory.path().to_owned(),
        cluster_id: record.id.clone(),
        node_id: node.clone(),
    };
    let surroundings = engine::Surroundings {
        proposer,
        lease: Arc::new(cluster.clone()),
        fence,
        others: Arc::new(cluster.clone()),
        data: Arc::new(volumes.clone()),
        images: Arc::new(images.clone()),
        values: Arc::new(vault.clone()),
    };
    let engine = Engine::start(engine, store.watch(), surroundings)?;
    let router = Router::of(&engine, node.clone(), store.watch());
    let tunnel = Tunnel::new(
        tunnel::Config::new(
            tunnel::Site { scheme: domain.scheme(), domain: domain.to_string() },
            directory.path().to_owned(),
        ),
        Arc::new(router.clone()),
    );
    metrics.watch_tunnel(tunnel.clone());
    let mesh = mesh::Config {
        port: Some(port),
        sessions_max: config.limits.sessions as usize,
        ..mesh::Config::new(candidates(&config), Certificate::from_pem(&identity.webrtc_pem)?)
    };
    let tokens = wiring::Tokens { authority: authority.clone(), attempts: attempts.clone() };
    let mesh = Mesh::new(mesh, Arc::new(tokens), tunnel);
    peering.complete(Rest {
        cluster: cluster.clone(),
        engine: engine.clone(),
        volumes: volumes.clone(),
        images: images.clone(),
        router,
        store: store.clone(),
        authority: authority.clone(),
        cluster_key: identity.cluster.private().cloned(),
        vault: vault.clone(),
        app: tokio::sync::SetOnce::new(),
    });
    let app = App::new(http::Parts {
        config,
        domain,
        node,
        stores_only,
        listening,
        store,
        authority,
        engine,
        volumes: volumes.clone(),
        images,
        vault: vault.clone(),
        uploads,
        mesh,
        nodes,
        metrics,
        members: Arc::new(cluster.clone()),
        attempts,
        demo_socket: std::env::var_os(http::DEMO_SOCKET_VARIABLE).map(std::path::PathBuf::from),
        stop,
    });
    let app = Arc::new(app);
    peering.serve(&app);
    Ok(Assembled { app, cluster, vault, volumes })
}

/// Every way that leads here, and loopback for browsers on this machine: that is whom a cluster on `.localhost` is for.
fn candidates(config: &Config) -> mesh::Addresses {
    let listen = config.listen.ip();
    mesh::Addresses::Interfaces { loopback: listen.is_loopback() || listen.is_unspecified() }
}

impl Node {
    /// Where the listener is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The parts of the node, for a program that runs one inside itself.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Stops in order: no new requests, those under way finish, sessions are told, the state is closed. Containers go on.
    pub async fn stop(self) {
        tracing::info!("stopping; containers go on running");
        self.app.stop.cancel();
        // Browsers are told over their signalling sockets, which the listener drains after that.
        self.app.mesh.stop().await;
        // Another takes over before this one is missed.
        let consensus = self.app.store.consensus();
        if consensus.status().borrow().leads
            && !consensus.status().borrow().is_alone()
            && let Ok(Err(error)) = timeout(HANDING_OVER, consensus.transfer()).await
        {
            tracing::warn!(%error, "leadership was not handed over");
        }
        self.app.images.stop();
        self.volumes.stop().await;
        for (what, task) in self.tasks {
            if task.await.is_err() {
                tracing::error!("{what} ended in a panic");
            }
        }
        if let Some(relay) = self.relay.and_then(Arc::into_inner) {
            relay.stop().await;
        }
        self.app.engine.stop().await;
        self.app.nodes.stop().await;
        self.app.store.close().await;
        tracing::info!("stopped");
    }
}

/// `flotilla up`: runs until SIGTERM or SIGINT.
///
/// # Errors
/// As [`start`].
pub async fn up(config: Config) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    run(config, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await
}

/// Runs a node until `shutdown` resolves.
///
/// # Errors
/// As [`start`].
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let mut shutdown = pin!(shutdown);
    for name in &config.unknown_environment {
        tracing::warn!("`{name}` in the environment is no setting of Flotilla; docs/OPERATIONS.md lists all");
    }
    let node = tokio::select! {
        started = start(config) => started?,
        // A member that hears of no state waits for one, for a minute. What was begun ends as it is dropped.
        () = &mut shutdown => return Ok(()),
    };
    tracing::info!(address = %node.address(), "ready; the dashboard is at {}", node.app.domain.dashboard_url());
    shutdown.await;
    node.stop().await;
    Ok(())
}

/// Libraries that tell at `info` or `warn` what is for who looks for a fault in them: each message of the consensus, each step of a
/// connection. A directive that names one asks for it. A target begins with the name: `rtc` is `rtc_ice`, too.
const CHATTY: &[(&str, &str)] = &[("openraft", "warn"), ("rtc", "error"), ("webrtc", "error")];

/// Libraries that below `info` tell what they send, such as the variables of a container. No directive makes them.
const INDISCREET: &[&str] = &["bollard"];

fn quieted(level: &str) -> String {
    let about = |directive: &str, library: &str| {
        let rest = directive.trim_start_matches(|c: char| c.is_whitespace() || c == '"').strip_prefix(library);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['=', ':', '[']))
    };
    let names = |library: &str| level.split(',').any(|directive| directive.trim_start().starts_with(library));
    let kept = level.split(',').filter(|directive| !INDISCREET.iter().any(|library| about(directive, library)));
    let quiet =
        CHATTY.iter().filter(|(library, _)| !names(library)).map(|(library, level)| format!(",{library}={level}"));
    let discreet = INDISCREET.iter().map(|library| format!(",{library}=info"));
    let mut filter = kept.collect::<Vec<_>>().join(",");
    filter.extend(quiet.chain(discreet));
    filter
}

/// Sends the log where the configuration says. Once in a process, before anything is logged.
pub fn start_log(log: &config::Log) {
    use std::io::IsTerminal as _;

    use tracing_subscriber::{EnvFilter, fmt};

    // Checked when the configuration was read.
    let filter = EnvFilter::try_new(quieted(&log.level)).unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for a terminal; in a file or a journal they are in the way.
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match log.format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "the log was started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_until_they_are_asked_for() {
        let discreet = "bollard=info";
        assert_eq!(quieted("info"), format!("info,openraft=warn,rtc=error,webrtc=error,{discreet}"));
        let asked = "debug,openraft=info, rtc_ice=trace";
        assert_eq!(quieted(asked), format!("{asked},webrtc=error,{discreet}"));
    }

    #[test]
    fn what_a_library_sends_is_never_told() {
        for asked in ["debug,bollard=trace", "debug, bollard::docker=debug", "debug,bollard", "debug,bollard[x]=trace"]
        {
            assert!(quieted(asked).starts_with("debug,openraft=warn"), "{asked}: {}", quieted(asked));
        }
        // Another library may begin like one of them.
        assert!(quieted("debug,bollardier=trace").starts_with("debug,bollardier=trace,"));
    }
}
