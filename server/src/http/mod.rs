//! The listener: bootstrap files, the API under `/api/v1`, signalling and probes. Never a byte of a service.

mod answer;
mod attempts;
mod caller;
mod condition;
mod copies;
mod fleet;
mod forward;
mod gate;
mod holdings;
mod listener;
mod machine;
mod members;
mod merge;
mod mesh;
mod meter;
mod probes;
mod reception;
mod removal;
mod routes;
mod sight;
mod signal;
mod site;
mod streams;
#[cfg(test)]
mod tests;
mod tls;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, middleware::from_fn_with_state};
use flotilla_api::{NodeId, ServiceName, UnixMillis, rest::EventView};
use flotilla_core::{Actor, Command, CommandV1, Entry, Outcome};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::Authority,
    config::Config,
    engine::{Engine, uploads::Uploads},
    images::Images,
    mesh::{
        Mesh,
        nodes::{BULK_PATH, NodeMesh, SIGNAL_PATH},
    },
    metrics::Metrics,
    store::{ProposeError, Store},
    vault::Vault,
    volumes::Volumes,
};

pub use attempts::Attempts;
pub(crate) use condition::tell_changes;
pub use forward::{LABEL as PEER_LABEL, serve_member};
pub use listener::{Error, Listener};
pub(crate) use machine::Machine;
pub use members::{Members, Quorum, Single, Told, scheduler};
pub use reception::Reception;
pub(crate) use routes::demo::SOCKET_VARIABLE as DEMO_SOCKET_VARIABLE;
pub use site::{Domain, Site};

/// All that answering a request takes.
#[derive(Debug)]
pub struct App {
    pub config: Config,
    pub domain: Domain,
    pub node: NodeId,
    /// This machine keeps copies that it can't read, and answers nobody.
    pub stores_only: bool,
    /// Where the listener is.
    pub listening: SocketAddr,
    pub started_at: UnixMillis,
    pub store: Store,
    pub authority: Authority,
    pub engine: Engine,
    pub volumes: Volumes,
    pub images: Images,
    pub vault: Vault,
    pub uploads: Uploads,
    pub mesh: Mesh,
    /// The links to other nodes.
    pub nodes: Arc<NodeMesh>,
    pub metrics: Metrics,
    pub members: Arc<dyn Members>,
    /// Cancelled when the node stops: endless answers end.
    pub stop: CancellationToken,
    /// Where the demo listens that this node is a machine of.
    pub demo_socket: Option<PathBuf>,
    requests: Semaphore,
    streams: Arc<Semaphore>,
    attempts: Arc<Attempts>,
    machine: Machine,
    /// Changes of services that the engine showed, as sentences.
    observations: tokio::sync::broadcast::Sender<EventView>,
}

/// The parts of an [`App`] that somebody else makes.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    pub domain: Domain,
    pub node: NodeId,
    pub stores_only: bool,
    pub listening: SocketAddr,
    pub store: Store,
    pub authority: Authority,
    pub engine: Engine,
    pub volumes: Volumes,
    pub images: Images,
    pub vault: Vault,
    pub uploads: Uploads,
    pub mesh: Mesh,
    pub nodes: Arc<NodeMesh>,
    pub metrics: Metrics,
    pub members: Arc<dyn Members>,
    pub attempts: Arc<Attempts>,
    pub demo_socket: Option<PathBuf>,
    pub stop: CancellationToken,
}

impl App {
    pub fn new(parts: Parts) -> Self {
        let Parts {
            config,
            domain,
            node,
            stores_only,
            listening,
            store,
            authority,
            engine,
            volumes,
            images,
            vault,
            uploads,
            mesh,
            nodes,
            metrics,
            members,
            attempts,
            demo_socket,
            stop,
        } = parts;
        Self {
            requests: Semaphore::new(config.limits.requests as usize),
            streams: Arc::new(Semaphore::new(config.limits.streams as usize)),
            machine: Machine::new(config.data_dir.clone()),
            observations: tokio::sync::broadcast::channel(condition::OBSERVATIONS_MAX).0,
            started_at: crate::clock::now(),
            config,
            domain,
            node,
            stores_only,
            listening,
            store,
            authority,
            engine,
            volumes,
            images,
            vault,
            uploads,
            mesh,
            nodes,
            metrics,
            members,
            attempts,
            demo_socket,
            stop,
        }
    }

    /// Changes the state in somebody's name.
    async fn propose(&self, actor: Actor, command: CommandV1) -> Result<Outcome, ProposeError> {
        let entry = Entry { at: crate::clock::now(), actor, command: Command::V1(command) };
        Ok(self.store.propose(entry).await?.outcome)
    }

    /// Where a browser opens the service, if it has a page.
    fn url_of(&self, service: &ServiceName) -> Option<String> {
        let state = self.store.state();
        state.services.get(service)?.spec().port.map(|_| self.domain.service_url(service))
    }

    fn request_timeout(&self) -> Duration {
        self.config.limits.request()
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .nest("/api/v1", routes::router(&app))
        .merge(probes::router())
        .route("/signal", axum::routing::get(signal::connect))
        .route(
            SIGNAL_PATH,
            axum::routing::post(mesh::signal).route_layer(from_fn_with_state(app.clone(), routes::within_time)),
        )
        .route(BULK_PATH, axum::routing::get(mesh::bulk))
        .fallback(routes::nothing_here)
        .method_not_allowed_fallback(routes::another_method)
        .with_state(app)
}
