//! The machines of the cluster: look at, name, label, empty and remove.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use flotilla_api::{
    ErrorCode, MachineName, NodeId, ServiceName,
    rest::{ChangeMachine, DrainQuery, MachineDetail, MachineView, RemoveMachineQuery},
};
use flotilla_core::{
    CommandV1, State as ClusterState, listed, schedule,
    state::{Availability, Machine},
};
use http::{Extensions, Method, StatusCode};

use crate::{
    clock,
    http::{
        App,
        answer::{Answer, Asked, Failure, Json, Segment},
        caller::{Admin, Operator},
        fleet,
        forward::{self, OnBehalf},
        scheduler,
    },
};

/// How long another machine may take to begin what was asked of it.
const PASSED_ON_WITHIN: Duration = Duration::from_secs(10);

pub(super) async fn list(State(app): State<Arc<App>>, Operator(_): Operator) -> Json<Vec<MachineView>> {
    Json(fleet::views(&app).await)
}

pub(super) async fn detail(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Segment(name): Segment<MachineName>,
) -> Answer<Json<MachineDetail>> {
    let state = app.store.state();
    let (id, _) = named(&state, &name)?;
    fleet::detail(&app, id).await.map(Json).ok_or_else(|| unknown(&name))
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Segment(name): Segment<MachineName>,
    Json(ChangeMachine { name: new, labels, copy_limit }): Json<ChangeMachine>,
) -> Answer<StatusCode> {
    let state = app.store.state();
    let (id, machine) = named(&state, &name)?;
    if new.is_none() && labels.is_empty() && copy_limit.is_none() {
        let why = "there is nothing to change; send a `name`, `labels` or a `copy_limit`";
        return Err(Failure::new(ErrorCode::InvalidRequest, why));
    }
    // The name last: a machine that was renamed is not found again.
    if !labels.is_empty() {
        app.propose(caller.actor(), CommandV1::LabelMachine { machine: id.clone(), labels }).await?;
    }
    if let Some(limit) = copy_limit {
        app.propose(caller.actor(), CommandV1::LimitCopies { machine: id.clone(), limit }).await?;
    }
    if let Some(name) = new.filter(|new| new != machine.name()) {
        app.propose(caller.actor(), CommandV1::RenameMachine { machine: id.clone(), name }).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(name): Segment<MachineName>,
    Asked(DrainQuery { force }): Asked<DrainQuery>,
) -> Answer<StatusCode> {
    if !force {
        let state = app.store.state();
        let (id, _) = named(&state, &name)?;
        scheduler(&*app.members, |input| schedule::check_drain(input, id))
            .map_err(|rejected| Failure::from(rejected.0))?;
    }
    let availability = Availability::Drained { since: clock::now() };
    set_availability(&app, &caller, &name, availability).await
}

pub(super) async fn undrain(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(name): Segment<MachineName>,
) -> Answer<StatusCode> {
    set_availability(&app, &caller, &name, Availability::Active).await
}

/// Has all that a machine keeps read. How far that is, is told with its resources.
pub(super) async fn scrub(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(name): Segment<MachineName>,
    extensions: Extensions,
) -> Answer<Response> {
    let state = app.store.state();
    let (id, _) = named(&state, &name)?;
    let is_passed_on = extensions.get::<OnBehalf>().is_some();
    if !is_passed_on {
        app.propose(caller.actor(), CommandV1::NoteScrub { machine: id.clone() }).await?;
    }
    if *id == app.node {
        return Ok(Json(app.volumes.scrub()).into_response());
    }
    if is_passed_on {
        return Err(unknown(&name));
    }
    let path = format!("/api/v1/machines/{id}/scrub");
    let answer = forward::hand_on(&app, id, &caller, Method::POST, &path, Body::empty(), PASSED_ON_WITHIN).await?;
    Ok(forward::passed_on(forward::refusal(answer).await?))
}

async fn set_availability(
    app: &App,
    caller: &crate::http::caller::Caller,
    name: &MachineName,
    availability: Availability,
) -> Answer<StatusCode> {
    let state = app.store.state();
    let (id, _) = named(&state, name)?;
    app.propose(caller.actor(), CommandV1::SetAvailability { machine: id.clone(), availability }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Segment(name): Segment<MachineName>,
    Asked(RemoveMachineQuery { force }): Asked<RemoveMachineQuery>,
) -> Answer<StatusCode> {
    let state = app.store.state();
    let (id, machine) = named(&state, &name)?;
    if !force {
        check_removal(&state, id, machine)?;
    }
    app.propose(caller.actor(), CommandV1::RemoveMachine { machine: id.clone() }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A machine that is gone for good can be taken off the list; one that works has to be emptied first.
fn check_removal(state: &ClusterState, id: &NodeId, machine: &Machine) -> Answer<()> {
    let name = machine.name();
    let refuse = |message| Err(Failure::new(ErrorCode::Conflict, message));
    // What the state itself refuses, force or not, is for it to say.
    if state.machines.len() == 1 {
        return Ok(());
    }
    let lost = machine.lost_at.is_some();
    // Nothing runs on one that only stores, and nothing could be drained.
    if !lost && machine.availability == Availability::Active && !machine.stores_only {
        return refuse(format!(
            "`{name}` is in use; empty it first with `flotilla drain {name}`, or remove it with --force"
        ));
    }
    let only = state.only_on(id);
    if !only.is_empty() {
        let of = listed(only.into_iter().map(ServiceName::as_str));
        let first = if lost { "switch it on" } else { "wait until another machine has a copy" };
        return refuse(format!(
            "nobody but `{name}` has all data of {of}; {first}, or lose that data and remove it with --force"
        ));
    }
    if lost {
        return Ok(());
    }
    match fleet::placed_on(state, id) {
        0 => Ok(()),
        1 => refuse(format!(
            "one instance is still on `{name}`; wait until it has moved away, or remove it with --force"
        )),
        many => refuse(format!(
            "{many} instances are still on `{name}`; wait until they have moved away, or remove it with --force"
        )),
    }
}

/// By its name, or by its id, which is what a copied disk and a log know it by.
pub(super) fn named<'a>(state: &'a ClusterState, name: &MachineName) -> Answer<(&'a NodeId, &'a Machine)> {
    let by_id = || state.machines.get_key_value(&NodeId(name.to_string()));
    state.machine_named(name).or_else(by_id).ok_or_else(|| unknown(name))
}

fn unknown(name: &MachineName) -> Failure {
    Failure::new(
        ErrorCode::MachineNotFound,
        format!("there is no machine `{name}`; `flotilla machine ls` lists those that there are"),
    )
}
