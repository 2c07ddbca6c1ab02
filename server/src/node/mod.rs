//! The daemon: puts the modules together, and takes them apart again in order.

mod init;
mod relay;
mod wiring;

use std::{net::SocketAddr, sync::Arc};

use flotilla_relay::Relay;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{self, Authority},
    cluster,
    config::{self, Config, LogFormat},
    engine::{
        self, Engine, EngineConfig,
        uploads::{self, Uploads},
    },
    http::{self, App, Domain, Listener},
    identity::{self, DataDir, Identity},
    mesh::{self, Certificate, Mesh},
    metrics::Metrics,
    store::{self, Store},
    tunnel::{self, Tunnel},
};

pub use init::{ADMIN_TOKEN_MS, FIRST_INVITATION_MS, Init, Initialised, init};

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
    Mesh(#[from] mesh::Error),
    #[error("the state in `{path}` is empty though the node has keys; repeat `flotilla init` if it was interrupted, else restore `state.db` from a backup", path = path.display())]
    StateMissing { path: std::path::PathBuf },
    #[error("the state in `{path}` is of another cluster than the keys beside it; restore both from one backup", path = path.display())]
    ForeignState { path: std::path::PathBuf },
    #[error("failed to make the cluster: {0}")]
    Rejected(flotilla_api::ApiError),
    #[error("failed to listen for signals of the system: {0}")]
    Signals(#[source] std::io::Error),
}

/// A node that runs in this process.
#[derive(Debug)]
pub struct Node {
    app: Arc<App>,
    address: SocketAddr,
    serving: JoinHandle<()>,
    telling: JoinHandle<()>,
    leading: JoinHandle<()>,
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
    let store = Store::open_with(&directory.state(), limits).await?;
    match assemble(config, &directory, &identity, &listener, store.clone()) {
        Ok(app) => {
            let relay = relay::start(&app.config, app.domain.to_string(), &identity).await;
            if let Some(relay) = &relay {
                app.metrics.watch_relay(relay);
            }
            let telling = tokio::spawn(http::tell_changes(app.clone()));
            let serving = tokio::spawn(listener.serve(app.clone(), app.stop.clone()));
            let leading = cluster::lead(app.store.clone(), app.node.clone(), app.stop.clone());
            Ok(Node { app, address, serving, telling, leading, relay, _directory: directory })
        }
        Err(error) => {
            store.close().await;
            Err(error)
        }
    }
}

fn assemble(
    config: Config,
    directory: &DataDir,
    identity: &Identity,
    listener: &Listener,
    store: Store,
) -> Result<Arc<App>, Error> {
    let state = store.state();
    let Some(cluster) = &state.cluster else {
        return Err(Error::StateMissing { path: directory.state() });
    };
    let node = identity.node_id();
    if cluster.token_key != identity.cluster_key() || !state.machines.contains_key(&node) {
        return Err(Error::ForeignState { path: directory.state() });
    }
    let authority = Authority::new(store.clone(), &cluster.id, &identity.cluster)?;
    let domain = Domain::new(config.domain.as_deref(), cluster.name.as_str(), listener.address(), listener.is_secure());
    let metrics = Metrics::new();
    let limits = uploads::Limits { size_max: config.limits.upload_bytes, ..uploads::Limits::default() };
    let uploads = Uploads::open(directory.path(), limits).map_err(engine::Error::from)?;
    let engine = EngineConfig {
        docker_host: config.docker_host.clone(),
        data_dir: directory.path().to_owned(),
        cluster_id: cluster.id.clone(),
        node_id: node.clone(),
    };
    let engine =
        Engine::start(engine, store.watch(), Arc::new(wiring::Proposals(store.clone())), Arc::new(cluster::Alone))?;
    let tunnel = Tunnel::new(
        tunnel::Config::new(
            tunnel::Site { scheme: domain.scheme(), domain: domain.to_string() },
            directory.path().to_owned(),
        ),
        Arc::new(wiring::Addresses(engine.clone())),
    );
    metrics.watch_tunnel(tunnel.clone());
    let mesh = mesh::Config {
        sessions_max: config.limits.sessions as usize,
        ..mesh::Config::new(candidates(&config), Certificate::from_pem(&identity.webrtc_pem)?)
    };
    let attempts = Arc::new(http::Attempts::default());
    let tokens = wiring::Tokens { authority: authority.clone(), attempts: attempts.clone() };
    let mesh = Mesh::new(mesh, Arc::new(tokens), tunnel);
    let stop = CancellationToken::new();
    Ok(Arc::new(App::new(http::Parts {
        config,
        domain,
        node,
        store,
        authority,
        engine,
        uploads,
        mesh,
        metrics,
        attempts,
        stop,
    })))
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
        for (what, task) in
            [("the listener", self.serving), ("the watch over services", self.telling), ("the leader", self.leading)]
        {
            if task.await.is_err() {
                tracing::error!("{what} ended in a panic");
            }
        }
        if let Some(relay) = self.relay.and_then(Arc::into_inner) {
            relay.stop().await;
        }
        self.app.engine.stop().await;
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
    for name in &config.unknown_environment {
        tracing::warn!("`{name}` in the environment is no setting of Flotilla; docs/OPERATIONS.md lists all");
    }
    let node = start(config).await?;
    tracing::info!(address = %node.address(), "ready; the dashboard is at {}", node.app.domain.dashboard_url());
    shutdown.await;
    node.stop().await;
    Ok(())
}

/// Sends the log where the configuration says. Once in a process, before anything is logged.
pub fn start_log(log: &config::Log) {
    use std::io::IsTerminal as _;

    use tracing_subscriber::{EnvFilter, fmt};

    // Checked when the configuration was read.
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
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
