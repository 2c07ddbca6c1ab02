//! For machines that watch machines: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, State},
    response::{IntoResponse, Response},
    routing::get,
};
use flotilla_api::ErrorCode;
use http::{HeaderName, HeaderValue, header};

use super::{
    App,
    answer::{Answer, Failure},
    caller::Admin,
    condition, fleet,
    gate::Asker,
};
use crate::metrics::Reading;

pub(super) fn router() -> Router<Arc<App>> {
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

/// The process answers. Whoever restarts what does not answer asks here.
async fn alive() -> &'static str {
    "ok\n"
}

/// The node has its state and takes calls. Whoever sends people here asks this first; whether services run is for `/metrics`.
async fn ready(State(app): State<Arc<App>>) -> Answer<&'static str> {
    if app.stop.is_cancelled() {
        return Err(Failure::new(ErrorCode::ServiceUnavailable, "the node is stopping"));
    }
    Ok("ready\n")
}

/// For a collector on this machine, or with an admin's token.
async fn metrics(State(app): State<Arc<App>>, LocalOrAdmin: LocalOrAdmin) -> Answer<Response> {
    let (services, instances) = condition::states(&app);
    let reading = Reading {
        state_index: app.store.state().applied,
        services,
        instances,
        machines: fleet::reading(&app),
        resources: fleet::own(&app).await.1,
    };
    let text = app
        .metrics
        .encode(&reading)
        .map_err(|_| Failure::new(ErrorCode::Internal, "the metrics can't be written; see the node's log"))?;
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

struct LocalOrAdmin;

impl FromRequestParts<Arc<App>> for LocalOrAdmin {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut http::request::Parts, app: &Arc<App>) -> Answer<Self> {
        let asker = Asker::from_request_parts(parts, app).await?;
        // A proxy on this machine makes everybody local, and says so; with a token it is the token that counts.
        let told = [header::AUTHORIZATION, header::FORWARDED, HeaderName::from_static("x-forwarded-for"), header::VIA];
        if asker.peer.ip().to_canonical().is_loopback() && !told.iter().any(|name| parts.headers.contains_key(name)) {
            return Ok(Self);
        }
        Admin::from_request_parts(parts, app).await.map(|_| Self)
    }
}
