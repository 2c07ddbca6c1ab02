//! Whom the listener answers: other nodes from the start, everybody once this node knows the state of its cluster.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header};

use super::{
    App,
    answer::Json,
    attempts::Attempts,
    gate, mesh,
    meter::{self, Meter},
    router, routes,
};
use crate::{
    config::{Config, Limits},
    mesh::nodes::{BULK_PATH, NodeMesh, SIGNAL_PATH},
    metrics::{Metrics, Traffic},
    peers::starting,
};

/// Seconds after which a client may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// What the listener passes requests to.
#[derive(Debug)]
pub struct Reception {
    nodes: Arc<NodeMesh>,
    attempts: Arc<Attempts>,
    pub(super) metrics: Metrics,
    pub(super) limits: Limits,
    open: OnceLock<Open>,
}

#[derive(Debug)]
struct Open {
    app: Arc<App>,
    router: Router,
}

impl Reception {
    /// Answers other nodes. What they offer meanwhile is what this node learns the state by: were they left waiting, they would offer
    /// nothing else for as long.
    pub fn new(config: &Config, nodes: Arc<NodeMesh>, attempts: Arc<Attempts>, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { nodes, attempts, metrics, limits: config.limits.clone(), open: OnceLock::new() })
    }

    /// From now on everybody is answered. Once.
    pub fn open(&self, app: Arc<App>) {
        let router = router(app.clone());
        if self.open.set(Open { app, router }).is_err() {
            tracing::error!("the listener was opened twice");
        }
    }

    pub(super) async fn answer(&self, peer: SocketAddr, meter: Arc<Meter>, request: Request) -> Response {
        if let Some(Open { app, router }) = self.open.get() {
            return gate::answer(app.clone(), router.clone(), peer, meter, request).await;
        }
        let begun = Instant::now();
        let traffic = match (request.method(), request.uri().path()) {
            (&Method::POST, SIGNAL_PATH) => Traffic::Signal,
            (&Method::GET, BULK_PATH) => Traffic::Bulk,
            (&Method::GET, "/healthz") => Traffic::Probe,
            _ => Traffic::Refused,
        };
        meter.begin(traffic);
        let mut response = match traffic {
            Traffic::Signal => {
                let answer = mesh::answer(&self.nodes, &self.attempts, peer.ip(), request);
                routes::within(self.limits.request(), answer).await
            }
            Traffic::Bulk => mesh::take(&self.nodes, request),
            Traffic::Probe => "ok\n".into_response(),
            _ => refused(),
        };
        gate::guard(traffic, response.headers_mut());
        self.metrics.request(traffic, response.status().as_u16(), begun.elapsed().as_secs_f64());
        meter::until_sent(response, meter)
    }
}

/// Whoever waits for this node asks many times: no line in the log for each.
fn refused() -> Response {
    let error = starting();
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    (status, [(header::RETRY_AFTER, RETRY_AFTER)], Json(&error)).into_response()
}
