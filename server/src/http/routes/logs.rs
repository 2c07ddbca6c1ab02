//! What a service's instances print.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use flotilla_api::{InstanceId, ServiceName, rest::LogQuery};
use serde::Deserialize;

use crate::http::{
    App,
    answer::{Answer, Asked, Segment},
    caller::Operator,
    streams,
};

#[derive(Debug, Deserialize)]
pub(super) struct InstanceQuery {
    /// One instance alone.
    pub(super) instance: Option<InstanceId>,
}

pub(super) async fn read(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    Asked(query): Asked<LogQuery>,
    Asked(InstanceQuery { instance }): Asked<InstanceQuery>,
) -> Answer<Response> {
    let place = streams::place(&app)?;
    let opening = app.engine.logs(&service, instance.as_ref(), query);
    let logs = streams::opened(&app, opening).await??;
    Ok(streams::fallible_lines(&app, &caller, place, logs))
}
