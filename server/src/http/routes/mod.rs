//! The routes under `/api/v1`. What each takes and answers stands in `flotilla_api::rest`; docs/API.md lists scopes and errors.

mod builds;
mod cluster;
pub(crate) mod demo;
mod deployments;
mod events;
mod exec;
mod images;
mod logs;
mod machines;
mod services;
mod state;
mod tokens;
mod values;
mod volumes;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, head, post, put},
};
use flotilla_api::ErrorCode;
use http::{Method, Uri};
use serde::Deserialize;

use values::{Configs, Secrets};

use super::{
    App,
    answer::{Asked, Failure},
};

pub(super) fn router(app: &Arc<App>) -> Router<Arc<App>> {
    let prompt = Router::new()
        .route("/cluster", get(cluster::view))
        .route("/machines", get(machines::list))
        .route("/machines/{machine}", get(machines::detail).patch(machines::change).delete(machines::remove))
        .route("/machines/{machine}/drain", post(machines::drain))
        .route("/machines/{machine}/undrain", post(machines::undrain))
        .route("/machines/{machine}/scrub", post(machines::scrub))
        .route("/services", get(services::list))
        .route("/services/{service}", get(services::detail))
        .route("/services/{service}/explain", get(services::explain))
        .route("/services/{service}/restart", post(services::restart))
        .route("/services/{service}/rollback", post(services::roll_back))
        .route("/services/{service}/scale", post(services::scale))
        .route("/volumes", get(volumes::list))
        .route("/volumes/{service}/{volume}", get(volumes::detail))
        .route("/volumes/{service}/{volume}/diff", get(volumes::diff))
        .route("/secrets", get(values::list::<Secrets>))
        .route(
            "/secrets/{name}",
            get(values::detail::<Secrets>).put(values::set::<Secrets>).delete(values::remove::<Secrets>),
        )
        .route("/configs", get(values::list::<Configs>))
        .route(
            "/configs/{name}",
            get(values::detail::<Configs>).put(values::set::<Configs>).delete(values::remove::<Configs>),
        )
        .route("/configs/{name}/value", get(values::read))
        .route("/images", get(images::list))
        .route("/images/held", get(images::held))
        .route("/images/lacking", post(images::lacking))
        .route("/images/renew", post(images::renew))
        .route("/images/uploads", post(images::begin))
        .route("/audit", get(cluster::audit))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{id}", delete(tokens::revoke))
        .route("/tokens/renew", post(tokens::renew))
        .route("/tokens/bind", post(tokens::bind))
        .route("/invitations", post(tokens::invite))
        .route("/invitations/redeem", post(tokens::redeem))
        .route_layer(from_fn_with_state(app.clone(), up_to_date))
        .route_layer(from_fn_with_state(app.clone(), within_time));
    // These move images, wait for instances to end or go on for as long as somebody reads; each has limits of its own.
    let lasting = Router::new()
        .route("/deployments", post(deployments::deploy))
        .route("/images", post(images::push).delete(images::remove))
        .route("/images/gc", post(images::collect))
        .route("/images/layers/{digest}", post(images::keep_layer))
        .route("/images/uploads/{digest}", head(images::offset).patch(images::append))
        .route("/images/uploads/{digest}/finish", post(images::finish))
        .route("/builds", post(builds::build))
        .route("/services/{service}", delete(services::remove))
        .route("/services/{service}/logs", get(logs::read))
        .route("/services/{service}/exec", get(exec::run))
        .route("/events", get(events::follow))
        .route("/state/backup", get(state::back_up))
        .route("/services/{service}/restore", post(volumes::restore))
        .route("/volumes/{service}/{volume}/export", get(volumes::export))
        .route("/volumes/{service}/{volume}/import", put(volumes::import))
        .route("/cluster/rekey", post(values::rekey))
        .route("/demo/machines/{machine}/kill", post(demo::kill))
        .route("/demo/machines/{machine}/start", post(demo::start));
    prompt.merge(lasting)
}

/// How old the answer to a read may be.
#[derive(Debug, Default, Deserialize)]
struct Freshness {
    #[serde(default)]
    consistency: Consistency,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Consistency {
    /// What this node has applied; the header says how far that is.
    #[default]
    Local,
    /// Everything that anybody was told before the question.
    Linearizable,
}

async fn up_to_date(
    State(app): State<Arc<App>>,
    Asked(Freshness { consistency }): Asked<Freshness>,
    request: Request,
    next: Next,
) -> Response {
    if consistency == Consistency::Linearizable
        && let Err(error) = app.members.linearize().await
    {
        return Failure::from(error).into_response();
    }
    next.run(request).await
}

pub(super) async fn within_time(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    within(app.request_timeout(), next.run(request)).await
}

pub(super) async fn within(limit: Duration, answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        Failure::new(
            ErrorCode::Timeout,
            format!("the node did not answer within {} s; try again, or look at its log", limit.as_secs()),
        )
        .into_response()
    })
}

pub(super) async fn nothing_here(uri: Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    Failure::new(
        ErrorCode::NotFound,
        format!("there is nothing at `{}`; docs/API.md lists all routes", path.escape_debug()),
    )
}

pub(super) async fn another_method(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("`{}` does not take {method}; docs/API.md lists what it takes", path.escape_debug());
    let mut response = Failure::new(ErrorCode::InvalidRequest, message).into_response();
    *response.status_mut() = http::StatusCode::METHOD_NOT_ALLOWED;
    response
}
