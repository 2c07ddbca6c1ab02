//! Images: what the engine has, and archives on their way to it (resumable, as tus has it).

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use flotilla_api::{
    ErrorCode, MachineName, NodeId,
    rest::{BeginUpload, ImageView, LoadedImages, UploadView},
};
use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use tokio::time::timeout;

use crate::http::{
    App,
    answer::{Answer, Asked, Failure, Json, Segment, read_json},
    caller::{Caller, Operator},
    forward::{self, OnBehalf},
};

/// How long other machines are waited for that may know an image's name.
const ASKING: Duration = Duration::from_secs(3);

/// Bytes of another machine's answer about one image.
const NAMED_MAX: usize = 256 * 1024;

const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");

#[derive(Debug, Deserialize)]
pub(super) struct ImagesQuery {
    /// Whose engine is asked; absent: this one's.
    machine: Option<MachineName>,
    /// A reference or an id: the image that it means, if it is there; absent: all.
    name: Option<String>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Asked(ImagesQuery { machine, name }): Asked<ImagesQuery>,
    request: Request,
) -> Answer<Response> {
    let state = app.store.state();
    let asked = machine.as_ref().map(|name| super::machines::named(&state, name)).transpose()?.map(|(id, _)| id);
    let is_passed_on = request.extensions().get::<OnBehalf>().is_some();
    if let Some(machine) = asked.filter(|machine| **machine != app.node && !is_passed_on) {
        let answer =
            forward::ask(&app, machine, &caller, Method::GET, &path(name.as_deref()), &HeaderMap::new()).await?;
        return Ok(forward::passed_on(answer));
    }
    let images: Vec<ImageView> = app.engine.images(name.as_deref()).await?;
    Ok(Json(images).into_response())
}

fn path(name: Option<&str>) -> String {
    match name {
        Some(name) => {
            let encoded: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
            format!("/api/v1/images?name={encoded}")
        }
        None => "/api/v1/images".to_owned(),
    }
}

/// What a name of an image means on the machines that answer soon: the newest of them, so that it does not depend on which machine
/// is asked to deploy it.
pub(super) async fn meaning(app: &App, caller: &Caller, name: &str) -> Option<ImageView> {
    let here = async { app.engine.images(Some(name)).await.map_err(Failure::from) };
    let there = async |machine: NodeId| {
        let answer = forward::ask(app, &machine, caller, Method::GET, &path(Some(name)), &HeaderMap::new()).await?;
        let answer = forward::refusal(answer).await?;
        read_json::<Vec<ImageView>>(Body::new(answer.into_body()), NAMED_MAX).await
    };
    let connected = app.members.network().map(|network| network.connected().borrow().clone()).unwrap_or_default();
    let others = join_all(connected.into_iter().map(|machine| timeout(ASKING, there(machine))));
    let (here, others) = tokio::join!(here, others);
    let others = others.into_iter().filter_map(|answered| {
        let answered = answered.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Timeout, "it did not answer in time")));
        answered.inspect_err(|Failure(error)| tracing::debug!(image = name, %error, "a machine was not asked")).ok()
    });
    // Of two that are as old the last one counts, which is this machine's.
    others.flatten().chain(here.unwrap_or_default()).max_by_key(|image| image.created_at)
}

pub(super) async fn begin(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Json(request): Json<BeginUpload>,
) -> Answer<Json<UploadView>> {
    Ok(Json(in_background(app, move |app| app.uploads.begin(&request)).await?))
}

pub(super) async fn offset(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(digest): Segment<String>,
) -> Answer<Response> {
    let view = in_background(app, move |app| app.uploads.view(&digest)).await?;
    Ok((StatusCode::OK, position(&view)).into_response())
}

/// Bounded by the size that was announced and by how long its sender may be quiet, not by the time of an ordinary request.
pub(super) async fn append(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(digest): Segment<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let offset = headers.get(UPLOAD_OFFSET).and_then(|value| value.to_str().ok()?.parse().ok()).ok_or_else(|| {
        Failure::new(ErrorCode::InvalidRequest, "send `Upload-Offset`: the byte that this piece begins at")
    })?;
    let view = app.uploads.append(&digest, offset, body.into_data_stream()).await?;
    Ok((StatusCode::NO_CONTENT, position(&view)).into_response())
}

pub(super) async fn finish(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(digest): Segment<String>,
) -> Answer<Json<LoadedImages>> {
    let limit = app.config.limits.build();
    let loaded = timeout(limit, app.engine.load_upload(&app.uploads, &digest)).await;
    let loaded = loaded.map_err(|_| {
        let message = format!("Docker Engine did not load the image within {} s; finish it again", limit.as_secs());
        Failure::new(ErrorCode::Timeout, message)
    })?;
    Ok(Json(loaded?))
}

fn position(view: &UploadView) -> [(HeaderName, HeaderValue); 2] {
    [(UPLOAD_OFFSET, view.offset.into()), (UPLOAD_LENGTH, view.size.into())]
}

/// The spool reads and writes directories; a slow disk must not hold up other requests.
async fn in_background<T: Send + 'static>(
    app: Arc<App>,
    work: impl FnOnce(&App) -> Result<T, crate::engine::uploads::Error> + Send + 'static,
) -> Answer<T> {
    let done = tokio::task::spawn_blocking(move || work(&app)).await;
    let done =
        done.map_err(|_| Failure::new(ErrorCode::Internal, "the node failed on this upload; its log says where"))?;
    done.map_err(|error| Failure::from(crate::engine::Error::from(error)))
}
