//! Images: what the engine has, and archives on their way to it (resumable, as tus has it).

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use flotilla_api::{
    ErrorCode, MachineName, NodeId,
    rest::{
        AskLayers, BeginUpload, CollectQuery, CollectedView, HeldImageView, ImageView, LackingLayers, LoadedImages,
        PushImage, PushedImage, RemoveImageQuery, RenewImage, UploadView,
    },
};
use flotilla_core::{CommandV1, command::ImageChange, images, state::NOTED_IMAGES_MAX};
use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use tokio::time::timeout;

use crate::{
    http::{
        App,
        answer::{Answer, Asked, Failure, Json, Segment, check_is_json, read_json},
        caller::{Caller, Operator},
        forward::{self, OnBehalf},
        holdings,
    },
    images::Collected,
};

/// How long other machines are waited for that may know an image's name.
const ASKING: Duration = Duration::from_secs(3);

/// Bytes of another machine's answer about one image.
const NAMED_MAX: usize = 256 * 1024;

/// Bytes of another machine's answer on what it removed.
const COLLECTED_MAX: usize = 1024 * 1024;

/// How long another machine may take to remove images: its engine deletes their files.
const COLLECTING: Duration = Duration::from_secs(60);

/// An image's configuration as a JSON string may have each byte escaped, and its layers besides.
const PUSH_MAX: usize = 10 * 1024 * 1024;

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
    // What a service is to run is nothing that a machine has a say in that only stores.
    let believed = crate::images::believed(&app.store.state(), &connected);
    let others = join_all(believed.into_iter().map(|machine| timeout(ASKING, there(machine))));
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
    Operator(caller): Operator,
    Segment(digest): Segment<String>,
) -> Answer<Json<LoadedImages>> {
    let limit = app.config.limits.build();
    let loaded = timeout(limit, app.engine.load_upload(&app.uploads, &digest)).await;
    let loaded = loaded.map_err(|_| {
        let message = format!("Docker Engine did not load the image within {} s; finish it again", limit.as_secs());
        Failure::new(ErrorCode::Timeout, message)
    })?;
    let loaded = loaded?;
    note(&app, &caller, ImageChange::Pushed, loaded.images.clone()).await;
    Ok(Json(loaded))
}

/// Who holds which image.
pub(super) async fn held(State(app): State<Arc<App>>, Operator(_): Operator) -> Json<Vec<HeldImageView>> {
    Json(holdings::views(&app))
}

pub(super) async fn lacking(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Json(asked): Json<AskLayers>,
) -> Answer<Json<LackingLayers>> {
    Ok(Json(app.images.lacking(&app.uploads, &asked).await?))
}

pub(super) async fn keep_layer(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(digest): Segment<String>,
) -> Answer<StatusCode> {
    app.images.keep_layer(&app.uploads, &digest).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Of an image that somebody would push, and that is there.
pub(super) async fn renew(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Json(RenewImage { id }): Json<RenewImage>,
) -> Answer<StatusCode> {
    app.images.renew(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn push(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    request: Request,
) -> Answer<Json<PushedImage>> {
    check_is_json(&request)?;
    let arriving = read_json::<PushImage>(request.into_body(), PUSH_MAX);
    let pushed = timeout(app.request_timeout(), arriving).await.map_err(|_| {
        Failure::new(ErrorCode::Timeout, "what the image is made of did not arrive in time; push it again")
    })??;
    let limit = app.config.limits.build();
    let pushed = timeout(limit, app.images.push(&app.engine, pushed)).await.map_err(|_| {
        let seconds = limit.as_secs();
        let message = format!(
            "the image was not fetched from other machines and loaded within {seconds} s; push it again, and it goes on"
        );
        Failure::new(ErrorCode::Timeout, message)
    })??;
    let names = if pushed.references.is_empty() { vec![pushed.id.clone()] } else { pushed.references.clone() };
    note(&app, &caller, ImageChange::Pushed, names).await;
    Ok(Json(pushed))
}

/// From all machines that can be reached; refused where a service needs it.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Asked(RemoveImageQuery { name }): Asked<RemoveImageQuery>,
    request: Request,
) -> Answer<Json<Vec<CollectedView>>> {
    let is_passed_on = request.extensions().get::<OnBehalf>().is_some();
    if !is_passed_on {
        refuse_used(&app, &caller, &name).await?;
    }
    let own = app.images.remove(&app.engine, &name).await?;
    let mut removed = vec![collected(&app, Ok(own))];
    if is_passed_on {
        return Ok(Json(removed));
    }
    let encoded: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
    removed.extend(ask_all(&app, &caller, Method::DELETE, &format!("/api/v1/images?name={encoded}")).await);
    if let Some(why) = nothing_removed(&name, &removed) {
        return Err(why);
    }
    note(&app, &caller, ImageChange::Removed, vec![name]).await;
    Ok(Json(removed))
}

/// Why no machine has removed an image, if none has.
fn nothing_removed(name: &str, removed: &[CollectedView]) -> Option<Failure> {
    if removed.iter().any(|it| !it.images.is_empty()) {
        return None;
    }
    let problem = |it: &CollectedView| it.problem.as_ref().map(|problem| format!("{}: {problem}", it.machine));
    let problems: Vec<String> = removed.iter().filter_map(problem).collect();
    if problems.is_empty() {
        let why = format!("no machine has an image `{name}`; `flotilla image ls` shows all");
        return Some(Failure::new(ErrorCode::ImageNotFound, why));
    }
    let why = format!("no machine that could be asked has removed an image `{name}` ({})", problems.join("; "));
    Some(Failure::new(ErrorCode::ServiceUnavailable, why))
}

/// On all machines that can be reached.
pub(super) async fn collect(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Asked(CollectQuery { dry_run }): Asked<CollectQuery>,
    request: Request,
) -> Answer<Json<Vec<CollectedView>>> {
    let own = app.images.collect(&app.engine, dry_run).await;
    let mut all = vec![collected(&app, own.map_err(Failure::from))];
    if request.extensions().get::<OnBehalf>().is_some() {
        return Ok(Json(all));
    }
    all.extend(ask_all(&app, &caller, Method::POST, &format!("/api/v1/images/gc?dry_run={dry_run}")).await);
    let gone = all.iter().flat_map(|it| &it.images);
    let names: std::collections::BTreeSet<String> =
        gone.map(|image| image.references.first().unwrap_or(&image.id).clone()).collect();
    if !dry_run && !names.is_empty() {
        note(&app, &caller, ImageChange::Collected, names.into_iter().take(NOTED_IMAGES_MAX).collect()).await;
    }
    Ok(Json(all))
}

/// Whatever the name means on any machine must not be needed: each refuses again by itself.
async fn refuse_used(app: &App, caller: &Caller, name: &str) -> Answer<()> {
    let state = app.store.state();
    let mut ids: std::collections::BTreeSet<String> = std::collections::BTreeSet::from([name.to_owned()]);
    if let Some(image) = meaning(app, caller, name).await {
        ids.insert(image.id);
    }
    let named = |service: &flotilla_core::state::Service| {
        let specs = service.revisions.values().map(|record| &record.spec);
        specs.filter(|spec| spec.image == name).map(|spec| images::key(spec).to_owned()).collect::<Vec<_>>()
    };
    ids.extend(state.services.values().flat_map(named));
    for id in ids {
        crate::images::refuse_used(&state, &id, std::slice::from_ref(&name.to_owned()))?;
    }
    Ok(())
}

fn collected(app: &App, own: Answer<Collected>) -> CollectedView {
    let state = app.store.state();
    let machine = state.machines.get(&app.node).map(|machine| machine.name().clone());
    let machine = machine.unwrap_or_else(|| "removed".parse().unwrap_or_else(|_| unreachable!("it is a name")));
    match own {
        Ok(Collected { images, freed_bytes }) => CollectedView { machine, images, freed_bytes, problem: None },
        Err(Failure(error)) => {
            CollectedView { machine, images: Vec::new(), freed_bytes: 0, problem: Some(error.message) }
        }
    }
}

/// What the other machines did; one that can't be asked says why.
async fn ask_all(app: &App, caller: &Caller, method: Method, path: &str) -> Vec<CollectedView> {
    let state = app.store.state();
    let others = state.machines.iter().filter(|(id, machine)| **id != app.node && !machine.stores_only);
    let asked = others.map(|(id, machine)| {
        let (name, method) = (machine.name().clone(), method.clone());
        async move {
            let asked = async {
                let answer = forward::ask(app, id, caller, method, path, &HeaderMap::new()).await?;
                let answer = forward::refusal(answer).await?;
                read_json::<Vec<CollectedView>>(Body::new(answer.into_body()), COLLECTED_MAX).await
            };
            let late = || Err(Failure::new(ErrorCode::Timeout, format!("`{name}` did not answer in time")));
            match timeout(COLLECTING, asked).await.unwrap_or_else(|_| late()) {
                Ok(views) => views,
                Err(Failure(error)) => {
                    let problem = Some(error.message);
                    vec![CollectedView { machine: name.clone(), images: Vec::new(), freed_bytes: 0, problem }]
                }
            }
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What was done was done, whether the trail tells of it or not.
async fn note(app: &App, caller: &Caller, change: ImageChange, images: Vec<String>) {
    let noted = app.propose(caller.actor(), CommandV1::NoteImages { change, images }).await;
    if let Err(error) = noted {
        tracing::warn!(error = ?error, "the audit trail does not tell what became of an image");
    }
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

#[cfg(test)]
mod tests {
    use flotilla_api::rest::CollectedImage;

    use super::*;

    #[test]
    fn a_name_that_no_machine_has_is_no_image_that_was_removed_whoever_is_away() {
        let view = |machine: &str, images: Vec<CollectedImage>, problem: Option<&str>| CollectedView {
            machine: machine.parse().unwrap(),
            images,
            freed_bytes: 0,
            problem: problem.map(str::to_owned),
        };
        let code = |removed: &[CollectedView]| nothing_removed("typo", removed).map(|Failure(error)| error.code);
        let (here, away) = (view("anna", Vec::new(), None), view("berta", Vec::new(), Some("it is not connected")));
        assert_eq!(code(std::slice::from_ref(&here)), Some(ErrorCode::ImageNotFound));
        assert_eq!(code(&[here, away.clone()]), Some(ErrorCode::ServiceUnavailable));
        let image = CollectedImage { id: "sha256:aa".to_owned(), references: Vec::new(), engine: true, store: false };
        assert_eq!(code(&[view("anna", vec![image], None), away]), None, "what was removed was removed");
    }
}
