//! WebRTC: connections between nodes, and the sessions that browsers set up through `/signal`.
//!
//! [`Mesh::signal`] takes a browser's signalling socket. A session outlives its socket: it ends when the person says so, when
//! the token is revoked or expires, or when the connection is gone for good. Every data channel of a session goes to
//! [`crate::tunnel`].

mod certificate;
mod connect;
mod dial;
mod interfaces;
mod link;
pub mod nodes;
mod pace;
mod port;
mod registry;
mod runtime;
mod session;
mod signal;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, time::Duration};

use flotilla_api::{ApiError, ErrorCode, rest::Principal};
use futures::future::BoxFuture;

pub use certificate::Certificate;
pub use connect::{Offered, answer, answer_browser, offer};
pub use dial::{Dialled, dial};
pub use interfaces::Addresses;
pub use link::{Link, LinkState, MeshChannel};
pub use port::Port;
pub use registry::{Mesh, SessionView};
pub use signal::Signals;

/// What a [`Mesh`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub addresses: Addresses,
    pub certificate: Certificate,
    /// Shared with the links to other nodes; absent: each connection has ports of its own.
    pub port: Option<Port>,
    /// Browser sessions of this node. Each one has sockets, buffers and a driver task (about 1 MiB idle).
    pub sessions_max: usize,
    /// Sessions of one token: tabs of one person, on one device.
    pub sessions_per_principal_max: usize,
    /// How long a connection that fell silent waits for its browser to come back, or to restart ICE.
    pub grace: Duration,
}

impl Config {
    pub fn new(addresses: Addresses, certificate: Certificate) -> Self {
        Self {
            addresses,
            certificate,
            port: None,
            sessions_max: 256,
            sessions_per_principal_max: 32,
            grace: Duration::from_secs(30),
        }
    }
}

/// Who may have a session: what `auth` answers.
pub trait Admission: Send + Sync + 'static {
    /// Checks the token, and the proof that its sender holds its key (`htm` is `CONNECT`, `htu` is `url`).
    ///
    /// # Errors
    /// What the browser is told.
    fn verify(&self, token: &str, proof: Option<&str>, url: &str) -> Result<Principal, ApiError>;

    /// Catches up with the rest of the cluster where a token may have been made a moment ago, elsewhere. True if it is worth a second
    /// look.
    fn learns<'a>(&'a self, token: &'a str) -> BoxFuture<'a, bool>;

    /// A token from this address was refused.
    ///
    /// # Errors
    /// What the browser is told instead, if that happens too often.
    fn refused(&self, address: IpAddr) -> Result<(), ApiError>;

    /// Resolves, with what the browser is told, once this principal's token is revoked or has expired.
    fn ended(&self, principal: &Principal) -> BoxFuture<'static, ApiError>;
}

/// Where a signalling socket comes from, as its HTTP request said.
#[derive(Clone, Debug)]
pub struct Client {
    /// The URL of `/signal` as the request named it.
    pub url: String,
    pub address: IpAddr,
    /// Sent on to services, because a service worker does not see it.
    pub user_agent: Option<String>,
    pub accept_language: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the WebRTC certificate can't be used: {0}")]
    Certificate(String),
    #[error("failed to {step}")]
    SetUp { step: &'static str, source: webrtc::error::Error },
    #[error("this node found no address that a browser could reach")]
    NoCandidates,
    #[error("the connection was not up within {} s", within.as_secs())]
    NotConnected { within: Duration },
    #[error("failed to open a data channel")]
    Channel(#[source] webrtc::error::Error),
    #[error("this node already has {max} sessions; close pages that are not needed")]
    Full { max: usize },
    #[error("there is no such session; connect again")]
    NoSession,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Full { .. } => ErrorCode::RateLimited,
            Error::SetUp { step: "read the offer" | "take the offer", .. } => {
                return Self::new(
                    ErrorCode::SignalInvalid,
                    "the offer is no session description with a data channel; reload the page",
                );
            }
            _ => ErrorCode::ConnectionFailed,
        };
        Self::new(code, error.to_string())
    }
}
