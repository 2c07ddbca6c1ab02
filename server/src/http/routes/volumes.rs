//! Volumes: who has copies of them, and what they were.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use flotilla_api::{
    ErrorCode, NodeId, ServiceName, VolumeName,
    rest::{DiffQuery, ExportQuery, RestoreRequest, Restored, VolumeDetail, VolumeDiff, VolumeView},
};
use flotilla_core::{
    CommandV1, State as ClusterState,
    state::{GenerationName, InvalidGeneration},
};
use futures::{StreamExt as _, future::join_all};
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::time::timeout;

use crate::http::{
    App,
    answer::{Answer, Asked, Failure, Json, Segment, read_json},
    caller::{Caller, Operator},
    copies,
    forward::{self, OnBehalf},
    streams,
};

/// How long other machines are waited for that may know more.
const ASKING: Duration = Duration::from_secs(3);

/// How long an archive may travel, be taken in and be copied: 100 GB in a home's network.
const IMPORTING: Duration = Duration::from_secs(6 * 3600);

/// Bytes of another machine's answer: some hundred generations, or a thousand paths.
const DETAIL_MAX: usize = 1024 * 1024;

pub(super) async fn list(State(app): State<Arc<App>>, Operator(_): Operator) -> Json<Vec<VolumeView>> {
    Json(copies::views(&app))
}

/// The longest history that any machine has, and the branches of all.
pub(super) async fn detail(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment((service, volume)): Segment<(ServiceName, VolumeName)>,
    request: Request,
) -> Answer<Json<VolumeDetail>> {
    let own = copies::detail(&app, &service, &volume).await?;
    if request.extensions().get::<OnBehalf>().is_some() {
        return Ok(Json(own));
    }
    let connected = app.members.network().map(|network| network.connected().borrow().clone()).unwrap_or_default();
    let asked = connected.iter().map(|machine| timeout(ASKING, ask(&app, &caller, machine, &service, &volume)));
    let mut detail = own;
    for answered in join_all(asked).await {
        let late = || Err(Failure::new(ErrorCode::Timeout, "it did not answer in time"));
        match answered.unwrap_or_else(|_| late()) {
            Ok(other) => {
                detail.branches.extend(other.branches);
                if other.history.len() > detail.history.len() {
                    (detail.history, detail.read_on) = (other.history, other.read_on);
                }
            }
            Err(Failure(error)) => tracing::debug!(%service, %volume, %error, "a machine was not asked"),
        }
    }
    Ok(Json(detail))
}

/// Stops the service, and begins it anew with what it was, or with what another one was.
pub(super) async fn restore(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    extensions: Extensions,
    Json(request): Json<RestoreRequest>,
) -> Answer<Response> {
    let mut generation = named(&request.generation)?;
    let of = request.of.as_ref().unwrap_or(&service);
    if !app.volumes.is_kept(of, generation).await? {
        let why = format!(
            "no machine that can be asked has generation {generation} of `{of}`; `flotilla volume history` shows all"
        );
        return Err(Failure::new(ErrorCode::VolumeNotFound, why));
    }
    if *of != service {
        if let Some(home) = elsewhere(&app, &service, &extensions)? {
            let path = format!("/api/v1/services/{service}/restore");
            let body =
                serde_json::to_vec(&request).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
            return passed_on(&app, &home, &caller, Method::POST, &path, Body::from(body)).await;
        }
        generation = app.volumes.adopt_from(&service, of, generation).await?;
        committed(&app, &service, generation).await?;
    }
    app.propose(caller.actor(), CommandV1::Restore { service: service.clone(), generation }).await?;
    Ok(Json(Restored { service, generation: generation.to_string() }).into_response())
}

/// Makes a volume what an archive has, and begins its service anew with that.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment((service, volume)): Segment<(ServiceName, VolumeName)>,
    request: Request,
) -> Answer<Response> {
    copies::detail(&app, &service, &volume).await?;
    let (parts, body) = request.into_parts();
    if let Some(home) = elsewhere(&app, &service, &parts.extensions)? {
        let path = format!("/api/v1/volumes/{service}/{volume}/import");
        return passed_on(&app, &home, &caller, Method::PUT, &path, body).await;
    }
    let _place = streams::place(&app)?;
    let generation = app.volumes.import(&service, &volume, body.into_data_stream()).await?;
    committed(&app, &service, generation).await?;
    app.propose(caller.actor(), CommandV1::Restore { service: service.clone(), generation }).await?;
    Ok(Json(Restored { service, generation: generation.to_string() }).into_response())
}

/// The machine that writes a service's volumes, where that is another one than this.
fn elsewhere(app: &App, service: &ServiceName, extensions: &Extensions) -> Answer<Option<NodeId>> {
    let state = app.store.state();
    let known = state.services.get(service).ok_or_else(|| {
        let why = format!("there is no service `{service}`; `flotilla volume ls` shows all volumes");
        Failure::new(ErrorCode::ServiceNotFound, why)
    })?;
    let home = known.home.clone().filter(|home| *home != app.node);
    if home.is_some() && extensions.get::<OnBehalf>().is_some() {
        return Err(Failure::new(ErrorCode::Conflict, format!("`{service}` has moved to another machine; try again")));
    }
    Ok(home)
}

async fn passed_on(
    app: &App,
    home: &NodeId,
    caller: &Caller,
    method: Method,
    path: &str,
    body: Body,
) -> Answer<Response> {
    let answer = forward::hand_on(app, home, caller, method, path, body, IMPORTING).await?;
    Ok(forward::passed_on(forward::refusal(answer).await?))
}

/// Until others have it as well: a service that begins with a generation may lose its machine at once.
async fn committed(app: &App, service: &ServiceName, generation: GenerationName) -> Answer<()> {
    let mut states = app.store.watch();
    let is_committed = |state: &ClusterState| {
        let committed = state.services.get(service).and_then(|service| service.data.committed.as_ref());
        committed.is_some_and(|committed| committed.name >= generation)
    };
    let wait = states.wait_for(|state| is_committed(state));
    match timeout(IMPORTING, wait).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Failure::new(ErrorCode::ServiceUnavailable, "the node stops; try again")),
        Err(_) => {
            let why = format!(
                "no other machine has generation {generation} of `{service}` yet; begin with it later by `flotilla volume restore {service} {generation}`"
            );
            Err(Failure::new(ErrorCode::Timeout, why))
        }
    }
}

/// What changes between two generations, from the first machine that has both.
pub(super) async fn diff(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment((service, volume)): Segment<(ServiceName, VolumeName)>,
    Asked(DiffQuery { from, to }): Asked<DiffQuery>,
    extensions: Extensions,
) -> Answer<Json<VolumeDiff>> {
    let (from, to) = (one(&app, &service, from)?, one(&app, &service, to)?);
    if let Some(comparison) = app.volumes.compare(&service, &volume, from, to).await? {
        return Ok(Json(copies::diff(from, to, comparison)));
    }
    if extensions.get::<OnBehalf>().is_none() {
        let connected = app.members.network().map(|network| network.connected().borrow().clone()).unwrap_or_default();
        for machine in &connected {
            let path = format!("/api/v1/volumes/{service}/{volume}/diff?from={from}&to={to}");
            let asked = async {
                let answer = forward::ask(&app, machine, &caller, Method::GET, &path, &HeaderMap::new()).await?;
                let answer = forward::refusal(answer).await?;
                read_json(Body::new(answer.into_body()), DETAIL_MAX).await
            };
            match asked.await {
                Ok(diff) => return Ok(Json(diff)),
                Err(Failure(error)) => tracing::debug!(%service, %volume, %error, "a machine was not asked"),
            }
        }
    }
    let why = format!(
        "no machine that can be asked has both {from} and {to} of `{service}/{volume}`; `flotilla volume history` shows all"
    );
    Err(Failure::new(ErrorCode::VolumeNotFound, why))
}

/// A generation by its name; the newest that is committed where none is named.
fn one(app: &App, service: &ServiceName, generation: Option<String>) -> Answer<GenerationName> {
    if let Some(generation) = generation {
        return named(&generation);
    }
    let state = app.store.state();
    let committed = state.services.get(service).and_then(|it| it.data.committed.as_ref().map(|it| it.name));
    committed.ok_or_else(|| {
        let why = format!("nothing of `{service}` is committed; `flotilla volume ls` shows all volumes");
        Failure::new(ErrorCode::VolumeNotFound, why)
    })
}

/// A tar archive, from this machine or from the first that has it.
pub(super) async fn export(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment((service, volume)): Segment<(ServiceName, VolumeName)>,
    Asked(ExportQuery { generation }): Asked<ExportQuery>,
    request: Request,
) -> Answer<Response> {
    let name = one(&app, &service, generation)?;
    let place = streams::place(&app)?;
    if let Some(archive) = app.volumes.export(&service, &volume, name).await? {
        let pieces = archive.map(move |piece| {
            let _held = &place;
            piece
        });
        let mut response = Body::from_stream(pieces).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        return Ok(response);
    }
    if request.extensions().get::<OnBehalf>().is_none() {
        let connected = app.members.network().map(|network| network.connected().borrow().clone()).unwrap_or_default();
        for machine in &connected {
            let path = format!("/api/v1/volumes/{service}/{volume}/export?generation={name}");
            let answer = forward::ask(&app, machine, &caller, Method::GET, &path, &HeaderMap::new()).await;
            match answer.map(|answer| (answer.status() == StatusCode::OK, answer)) {
                Ok((true, answer)) => return Ok(forward::passed_on(answer)),
                Ok((false, _)) => {}
                Err(Failure(error)) => tracing::debug!(%service, %volume, %error, "a machine was not asked"),
            }
        }
    }
    let why = format!(
        "no machine that can be asked has generation {name} of `{service}/{volume}`; `flotilla volume history` shows all"
    );
    Err(Failure::new(ErrorCode::VolumeNotFound, why))
}

fn named(generation: &str) -> Answer<GenerationName> {
    generation.parse().map_err(|error: InvalidGeneration| Failure::new(ErrorCode::InvalidRequest, error.to_string()))
}

async fn ask(
    app: &App,
    caller: &Caller,
    machine: &NodeId,
    service: &ServiceName,
    volume: &VolumeName,
) -> Answer<VolumeDetail> {
    let path = format!("/api/v1/volumes/{service}/{volume}");
    let answer = forward::ask(app, machine, caller, Method::GET, &path, &HeaderMap::new()).await?;
    let answer = forward::refusal(answer).await?;
    read_json(Body::new(answer.into_body()), DETAIL_MAX).await
}
