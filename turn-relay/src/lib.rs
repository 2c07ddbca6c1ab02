//! A TURN server (RFC 8656) on UDP: carries ciphertext between two peers that can't reach each other.
//!
//! Credentials are long-term ones with a life time in the user name (the "TURN REST API" scheme): whoever knows the secret makes
//! them, the relay keeps none. The `turn` crate speaks the protocol; this crate says who may use it, how much, and which peers
//! may be reached: never the relay's own machine or networks.

mod acl;
mod credentials;
mod limits;
mod socket;

use std::{
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    task::JoinHandle,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;
use turn::server::{
    Server,
    config::{ConnConfig, ServerConfig},
};

pub use acl::{InvalidNetwork, Network};
pub use credentials::Credentials;

use crate::{
    acl::Acl,
    credentials::Secret,
    limits::Limits,
    socket::{Front, RelaySockets},
};

/// What closing may take.
const CLOSING: Duration = Duration::from_secs(3);

/// How often the server's memory is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(60);

/// How a relay is run.
#[derive(Clone)]
pub struct RelayConfig {
    /// The UDP address that clients speak to.
    pub listen: SocketAddr,
    /// The address of this machine that peers see, which relayed addresses are made of.
    pub public_ip: IpAddr,
    pub realm: String,
    /// Shared with whoever makes credentials. At least 16 bytes.
    pub secret: String,
    /// Ports of relayed addresses; the kernel chooses where there are none.
    pub ports: Option<RangeInclusive<u16>>,
    /// Private networks whose peers may be reached all the same.
    pub allowed_peers: Vec<Network>,
    /// Allocations of one user at once. A connection needs one for each of its network interfaces.
    pub allocations_per_user_max: usize,
    /// Allocations at once: each is a socket and a task.
    pub allocations_max: usize,
}

impl RelayConfig {
    pub fn new(listen: SocketAddr, public_ip: IpAddr, realm: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            listen,
            public_ip,
            realm: realm.into(),
            secret: secret.into(),
            ports: None,
            allowed_peers: Vec::new(),
            allocations_per_user_max: 16,
            allocations_max: 512,
        }
    }
}

impl fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayConfig")
            .field("listen", &self.listen)
            .field("public_ip", &self.public_ip)
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the relay's secret is too short; use at least {} bytes", credentials::SECRET_MIN)]
    ShortSecret,
    #[error("the relay can't listen on UDP {listen}; is the port in use?")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("the TURN server did not start")]
    Start(#[source] turn::Error),
}

/// A running relay. Dropping it stops it; [`Relay::stop`] waits for that.
pub struct Relay {
    address: SocketAddr,
    secret: Secret,
    limits: Arc<Limits>,
    task: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

/// What the relay counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) allocations_total: AtomicU64,
    pub(crate) bytes_to_peers: AtomicU64,
    pub(crate) bytes_from_peers: AtomicU64,
    pub(crate) peers_denied: AtomicU64,
    pub(crate) allocations_denied: AtomicU64,
    pub(crate) credentials_denied: AtomicU64,
    pub(crate) challenges_denied: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub allocations_open: u64,
    pub allocations_total: u64,
    pub bytes_to_peers: u64,
    pub bytes_from_peers: u64,
    /// Datagrams to addresses that a relay must not reach.
    pub peers_denied: u64,
    /// Allocations over a limit.
    pub allocations_denied: u64,
    /// Requests with credentials that have expired or are none.
    pub credentials_denied: u64,
    /// Requests without credentials over the limit of their source.
    pub challenges_denied: u64,
}

impl Relay {
    /// Starts a relay.
    ///
    /// # Errors
    /// [`Error::ShortSecret`], or [`Error::Listen`] if the port is taken.
    pub async fn start(config: RelayConfig) -> Result<Self, Error> {
        let secret = Secret::new(&config.secret).ok_or(Error::ShortSecret)?;
        let listen = config.listen;
        let bound = UdpSocket::bind(listen).await.and_then(|socket| Ok((socket.local_addr()?, socket)));
        let (address, socket) = bound.map_err(|source| Error::Listen { listen, source })?;
        let limits = Arc::new(Limits::new(config.allocations_max, config.allocations_per_user_max));
        let acl = Arc::new(Acl::new(address, config.public_ip, config.allowed_peers.clone()));
        let front = Arc::new(Front::new(socket, Arc::clone(&limits)));
        let build = {
            let (secret, limits) = (secret.clone(), Arc::clone(&limits));
            move || {
                let relays = RelaySockets::new(
                    address.ip(),
                    config.public_ip,
                    config.ports.clone(),
                    Arc::clone(&acl),
                    Arc::clone(&limits),
                );
                let listener = ConnConfig { conn: Arc::clone(&front) as _, relay_addr_generator: Box::new(relays) };
                Server::new(ServerConfig {
                    conn_configs: vec![listener],
                    realm: config.realm.clone(),
                    auth_handler: Arc::new(credentials::Gate::new(secret.clone(), Arc::clone(&limits))),
                    channel_bind_timeout: Duration::ZERO,
                    alloc_close_notify: None,
                })
            }
        };
        let server = build().await.map_err(Error::Start)?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep(server, Arc::clone(&limits), stop.clone(), build));
        tracing::info!(%address, "relay started");
        Ok(Self { address, secret, limits, task: Some(task), stop })
    }

    /// The UDP address that clients speak to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Credentials for one user, for so long. The user's name is for limits and logs; it holds no `:`.
    pub fn credentials(&self, user: &str, ttl: Duration) -> Credentials {
        self.secret.credentials(user, ttl)
    }

    pub fn snapshot(&self) -> Snapshot {
        self.limits.snapshot()
    }

    /// Frees every allocation and the port.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::warn!(%error, "the relay ended badly");
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Owns the server. The `turn` crate keeps every nonce that it ever gave; once those are too many, a fresh server takes the
/// socket over. Its clients allocate anew, as after any restart.
async fn keep<F, S>(mut server: Server, limits: Arc<Limits>, stop: CancellationToken, build: F)
where
    F: Fn() -> S,
    S: Future<Output = Result<Server, turn::Error>>,
{
    let mut checks = interval(CHECK_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = checks.tick() => {}
        }
        if limits.challenges_since_start.load(Relaxed) < limits::CHALLENGES_PER_SERVER {
            continue;
        }
        tracing::info!("the relay starts afresh to forget old nonces");
        close(server).await;
        limits.challenges_since_start.store(0, Relaxed);
        server = match build().await {
            Ok(server) => server,
            Err(error) => return tracing::error!(%error, "the relay did not start again"),
        };
    }
    close(server).await;
}

async fn close(server: Server) {
    match timeout(CLOSING, server.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "relay closed with an error"),
        Err(_) => tracing::warn!("relay did not close in time"),
    }
}
