//! Volumes: who has copies of them, and what they were.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use flotilla_api::{
    ErrorCode, NodeId, ServiceName, VolumeName,
    rest::{ExportQuery, RestoreRequest, VolumeDetail, VolumeView},
};
use flotilla_core::{
    CommandV1,
    state::{GenerationName, InvalidGeneration},
};
use futures::{StreamExt as _, future::join_all};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
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

/// Bytes of another machine's answer: some hundred generations.
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

/// Stops the service, and begins it anew with what it was.
pub(super) async fn restore(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    Json(RestoreRequest { generation }): Json<RestoreRequest>,
) -> Answer<StatusCode> {
    let generation = named(&generation)?;
    if !app.volumes.is_kept(&service, generation).await? {
        let why = format!(
            "no machine that can be asked has generation {generation} of `{service}`; `flotilla volume history` shows all"
        );
        return Err(Failure::new(ErrorCode::VolumeNotFound, why));
    }
    app.propose(caller.actor(), CommandV1::Restore { service, generation }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A tar archive, from this machine or from the first that has it.
pub(super) async fn export(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment((service, volume)): Segment<(ServiceName, VolumeName)>,
    Asked(ExportQuery { generation }): Asked<ExportQuery>,
    request: Request,
) -> Answer<Response> {
    let committed =
        || app.store.state().services.get(&service).and_then(|it| it.data.committed.as_ref().map(|it| it.name));
    let name = match generation {
        Some(generation) => named(&generation)?,
        None => committed().ok_or_else(|| {
            Failure::new(
                ErrorCode::VolumeNotFound,
                format!("nothing of `{service}` is committed; `flotilla volume ls` shows all volumes"),
            )
        })?,
    };
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
