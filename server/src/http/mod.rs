//! The listener: bootstrap files, the API under `/api/v1`, signalling and probes. Never a byte of a service.

mod answer;
mod attempts;
mod caller;
mod gate;
mod listener;
mod meter;
mod probes;
mod routes;
mod site;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::Router;
use flotilla_api::{NodeId, UnixMillis};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{auth::Authority, config::Config, metrics::Metrics, store::Store};

pub use listener::{Error, bind, serve};
pub use site::{Domain, Site};

/// All that answering a request takes.
#[derive(Debug)]
pub struct App {
    pub config: Config,
    pub domain: Domain,
    pub node: NodeId,
    pub started_at: UnixMillis,
    pub store: Store,
    pub authority: Authority,
    pub metrics: Metrics,
    /// Cancelled when the node stops: endless answers end.
    pub stop: CancellationToken,
    requests: Semaphore,
    streams: Arc<Semaphore>,
    attempts: attempts::Attempts,
}

/// The parts of an [`App`] that somebody else makes.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    pub domain: Domain,
    pub node: NodeId,
    pub store: Store,
    pub authority: Authority,
    pub metrics: Metrics,
    pub stop: CancellationToken,
}

impl App {
    pub fn new(parts: Parts) -> Self {
        let Parts { config, domain, node, store, authority, metrics, stop } = parts;
        Self {
            requests: Semaphore::new(config.limits.requests as usize),
            streams: Arc::new(Semaphore::new(config.limits.streams as usize)),
            attempts: attempts::Attempts::new(),
            started_at: crate::clock::now(),
            config,
            domain,
            node,
            store,
            authority,
            metrics,
            stop,
        }
    }

    fn request_timeout(&self) -> Duration {
        self.config.limits.request()
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .nest("/api/v1", routes::router(&app))
        .merge(probes::router())
        .fallback(routes::nothing_here)
        .method_not_allowed_fallback(routes::another_method)
        .with_state(app)
}
