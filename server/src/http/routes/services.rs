//! Services: list, look at, change, remove.

use std::sync::Arc;

use axum::extract::State;
use flotilla_api::{
    ErrorCode, ServiceName,
    rest::{Deployed, ExplainView, RemoveQuery, Removed, RollbackRequest, ScaleRequest, ServiceDetail, ServiceView},
};
use flotilla_core::{CommandV1, Outcome, schedule};
use http::StatusCode;

use crate::http::{
    App,
    answer::{Answer, Asked, Failure, Json, Segment},
    caller::{Caller, Operator},
    condition, removal, scheduler,
};

/// A user sees what it may open.
pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Json<Vec<ServiceView>> {
    let grant = &caller.principal.grant;
    let mut services = condition::views(&app).await;
    services.retain(|view| grant.operates() || grant.opens(&view.service));
    Json(services)
}

pub(super) async fn detail(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(name): Segment<ServiceName>,
) -> Answer<Json<ServiceDetail>> {
    condition::detail(&app, &name).await.map(Json).ok_or_else(|| unknown(&name))
}

/// Why it runs where it runs, and not elsewhere.
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(name): Segment<ServiceName>,
) -> Answer<Json<ExplainView>> {
    let explained = scheduler(&*app.members, |input| schedule::explain(input, &name));
    explained.map(Json).map_err(|rejected| Failure::from(rejected.0))
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    Asked(RemoveQuery { volumes }): Asked<RemoveQuery>,
) -> Answer<Json<Removed>> {
    Ok(Json(removal::remove(&app, caller.actor(), service, volumes).await?))
}

pub(super) async fn restart(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
) -> Answer<StatusCode> {
    app.propose(caller.actor(), CommandV1::Restart { service }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn scale(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    Json(ScaleRequest { replicas }): Json<ScaleRequest>,
) -> Answer<StatusCode> {
    app.propose(caller.actor(), CommandV1::Scale { service, replicas }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn roll_back(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    Json(RollbackRequest { revision: to }): Json<RollbackRequest>,
) -> Answer<Json<Deployed>> {
    match app.propose(caller.actor(), CommandV1::RollBack { service, to, reason: None }).await? {
        Outcome::RolledBack { service, revision } => {
            let url = app.url_of(&service);
            Ok(Json(Deployed { service, revision, url, changed: true }))
        }
        Outcome::Done | Outcome::Deployed(_) | Outcome::ValueSet { .. } => {
            Err(Failure::new(ErrorCode::Internal, "the state answered a roll back with something else"))
        }
    }
}

pub(super) fn unknown(name: &ServiceName) -> Failure {
    Failure::new(
        ErrorCode::ServiceNotFound,
        format!("there is no service `{name}`; `flotilla ps` lists those that there are"),
    )
}
