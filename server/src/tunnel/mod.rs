//! The node's side of the tunnel: frames on a browser's data channels become requests to a service's container.
//!
//! [`Session::serve`] takes each data channel of a browser. The service is what the channel's label says, the person is whom
//! the session's token speaks for, and the grant is checked for each channel. Everything below works over the small trait
//! [`Channel`], so that it runs without WebRTC in tests.

mod backend;
mod body;
mod channel;
mod counters;
mod credit;
mod csp;
mod exchange;
mod html;
mod ids;
mod inbox;
mod jar;
mod lane;
mod mux;
mod pages;
mod request;
mod response;
mod session;
mod spool;
#[cfg(test)]
pub(crate) mod tests;
mod upstream;
mod websocket;

use std::{fmt, path::PathBuf, sync::Arc};

use flotilla_api::{ServiceName, rest::Principal};

pub use backend::{Backend, Backends, Hold};
pub use channel::{Channel, ChannelClosed};
pub use counters::{Counters, ServiceSnapshot, Snapshot};
pub use session::Session;
pub(crate) use upstream::connect;

use crate::mesh::Client;

/// How browsers reach this node: services live at `<scheme>://<service>.<domain>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// For example `home.localhost:7070`; with the port if it is not the scheme's own.
    pub domain: String,
}

impl Site {
    /// The `Host` of a service.
    pub fn host(&self, service: &ServiceName) -> String {
        format!("{service}.{}", self.domain)
    }

    /// The origin of a service.
    pub fn origin(&self, service: &ServiceName) -> String {
        format!("{}://{service}.{}", self.scheme, self.domain)
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub site: Site,
    /// A directory of the node's own for request bodies whose length the browser did not say, and for cookies.
    pub directory: PathBuf,
    /// All such bodies together. Bytes.
    pub spool_max: u64,
}

impl Config {
    /// 4 GiB of spool: a few large uploads at once, and far below what fills an ordinary disk.
    pub const SPOOL_MAX: u64 = 4 * 1024 * 1024 * 1024;

    pub fn new(site: Site, directory: PathBuf) -> Self {
        Self { site, directory, spool_max: Self::SPOOL_MAX }
    }
}

/// What all sessions share. Cheap to clone.
#[derive(Clone)]
pub struct Tunnel {
    shared: Arc<Shared>,
}

struct Shared {
    site: Site,
    backends: Arc<dyn Backends>,
    counters: Arc<Counters>,
    jars: jar::Jars,
    spool: Arc<spool::Spool>,
    upstream: upstream::Upstream,
}

impl Tunnel {
    pub fn new(config: Config, backends: Arc<dyn Backends>) -> Self {
        let shared = Shared {
            upstream: upstream::Upstream::new(Arc::clone(&backends)),
            backends,
            counters: Arc::default(),
            jars: jar::Jars::new(config.directory.join("cookies")),
            spool: Arc::new(spool::Spool::new(config.directory.join("spool"), config.spool_max)),
            site: config.site,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The tunnel of one browser session.
    pub fn session(&self, principal: Principal, client: Client) -> Arc<Session> {
        Arc::new(Session::new(Arc::clone(&self.shared), principal, client))
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("site", &self.shared.site).finish_non_exhaustive()
    }
}
