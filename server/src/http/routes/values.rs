//! Secrets and configs: list, set, remove. A config is read back; a secret never is.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flotilla_api::{
    ErrorCode, ValueName,
    rest::{Plain, Rekeyed, SetValue, VALUE_MAX, ValueQuery, ValueSet, ValueUser, ValueVersionView, ValueView},
    spec::ValueKind,
};
use flotilla_core::{
    CommandV1,
    state::{self, unknown_value},
};
use http::{HeaderValue, StatusCode, header};

use crate::{
    http::{
        App,
        answer::{Answer, Asked, Failure, Json, Segment, check_is_json, read_json},
        caller::{Admin, Operator},
    },
    vault::Opened,
};

/// The largest value in base64, and what stands around it. Bytes.
const SET_MAX: usize = VALUE_MAX.div_ceil(3) * 4 + 4096;

/// Which of the two a route is about.
pub(super) trait Of {
    const KIND: ValueKind;
}

pub(super) struct Secrets;
pub(super) struct Configs;

impl Of for Secrets {
    const KIND: ValueKind = ValueKind::Secret;
}

impl Of for Configs {
    const KIND: ValueKind = ValueKind::Config;
}

pub(super) async fn list<O: Of>(State(app): State<Arc<App>>, Operator(_): Operator) -> Json<Vec<ValueView>> {
    let state = app.store.state();
    Json(state.values.of(O::KIND).keys().filter_map(|name| view(&state, O::KIND, name)).collect())
}

pub(super) async fn detail<O: Of>(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(name): Segment<ValueName>,
) -> Answer<Json<ValueView>> {
    let found = view(&app.store.state(), O::KIND, &name);
    found.map(Json).ok_or_else(|| Failure(unknown_value(O::KIND, &name).0))
}

pub(super) async fn set<O: Of>(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(name): Segment<ValueName>,
    request: Request,
) -> Answer<Json<ValueSet>> {
    check_is_json(&request)?;
    let SetValue { value, update } = read_json(request.into_body(), SET_MAX).await?;
    let plain = decode(&value)?;
    Ok(Json(app.vault.set(&caller.actor(), (O::KIND, &name), &plain, update).await?))
}

pub(super) async fn remove<O: Of>(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(name): Segment<ValueName>,
) -> Answer<StatusCode> {
    app.propose(caller.actor(), CommandV1::RemoveValue { kind: O::KIND, name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// There is no such route for secrets.
pub(super) async fn read(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(name): Segment<ValueName>,
    Asked(ValueQuery { version }): Asked<ValueQuery>,
) -> Answer<Response> {
    let kind = ValueKind::Config;
    let newest = || app.store.state().values.of(kind).get(&name).map(state::Value::newest);
    let version = version.or_else(newest).ok_or_else(|| Failure(unknown_value(kind, &name).0))?;
    let opened = app.vault.reveal(kind, &name, version).await?;
    let mut response = Body::from(opened.bytes().to_vec()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

pub(super) async fn rekey(State(app): State<Arc<App>>, Admin(caller): Admin) -> Answer<Json<Rekeyed>> {
    // Half of it would be no harm, and no use either: it goes on to its end, whether or not somebody still waits.
    let rekeyed = tokio::spawn(async move { app.vault.rekey(&caller.actor()).await });
    Ok(Json(rekeyed.await.map_err(|_| Failure::new(ErrorCode::Internal, "sealing anew broke off; ask for it again"))??))
}

pub(super) fn decode(value: &Plain) -> Answer<Opened> {
    let bytes = BASE64_STANDARD.decode(&value.0);
    bytes
        .map(Opened::new)
        .map_err(|_| Failure::new(ErrorCode::InvalidRequest, "the value must be base64 (RFC 4648, 4)"))
}

fn view(state: &flotilla_core::State, kind: ValueKind, name: &ValueName) -> Option<ValueView> {
    let value = state.values.of(kind).get(name)?;
    let versions = value.versions.iter().rev().map(|(version, kept)| ValueVersionView {
        version: *version,
        bytes: kept.sealed.len() as u64,
        set_at: kept.set_at,
        set_by: kept.set_by.clone(),
    });
    let users = state.users_of(kind, name).into_iter();
    Some(ValueView {
        kind,
        name: name.clone(),
        version: value.newest(),
        versions: versions.collect(),
        used_by: users.map(|(service, version)| ValueUser { service: service.clone(), version }).collect(),
    })
}
