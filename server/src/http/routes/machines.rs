//! The machines of the cluster: one, for now.

use std::sync::Arc;

use axum::extract::State;
use flotilla_api::rest::MachineView;

use crate::http::{App, answer::Json, caller::Operator};

pub(super) async fn list(State(app): State<Arc<App>>, Operator(_): Operator) -> Json<Vec<MachineView>> {
    let (observed_at, resources) = app.machine.resources().await;
    let instances = app.engine.observed().map_or(0, |observed| observed.containers.len());
    let state = app.store.state();
    let own = state.machines.values().filter(|machine| machine.record.id == app.node).map(|machine| MachineView {
        id: machine.record.id.clone(),
        name: machine.name().clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: machine.record.labels.clone(),
        started_at: app.started_at,
        observed_at,
        resources: resources.clone(),
        engine: app.engine.status(),
        instances: u32::try_from(instances).unwrap_or(u32::MAX),
    });
    Json(own.collect())
}
