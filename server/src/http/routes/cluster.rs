//! The cluster, and what was changed in it.

use std::sync::Arc;

use axum::extract::State;
use flotilla_api::{
    ErrorCode, ServiceName,
    rest::{ClusterView, EventView},
};
use serde::Deserialize;

use crate::{
    http::{
        App,
        answer::{Answer, Asked, Failure, Json},
        caller::{Caller, Operator},
    },
    store::AUDIT_PAGE_MAX,
};

/// Machines that a cluster needs to outlive the loss of one.
const FAULT_TOLERANT_FROM: usize = 3;

pub(super) async fn view(State(app): State<Arc<App>>, caller: Caller) -> Answer<Json<ClusterView>> {
    let state = app.store.state();
    let cluster = state
        .cluster
        .as_ref()
        .ok_or_else(|| Failure::new(ErrorCode::Internal, "the node has no cluster; make one with `flotilla init`"))?;
    Ok(Json(ClusterView {
        id: cluster.id.clone(),
        name: cluster.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: app.domain.to_string(),
        dashboard_url: app.domain.dashboard_url(),
        applied_index: state.applied,
        fault_tolerant: state.machines.len() >= FAULT_TOLERANT_FROM,
        you: caller.principal,
    }))
}

#[derive(Debug, Deserialize)]
pub(super) struct AuditQuery {
    /// Entries before this index.
    before: Option<u64>,
    service: Option<ServiceName>,
    limit: Option<u32>,
}

pub(super) async fn audit(
    State(app): State<Arc<App>>,
    Operator(_): Operator,
    Asked(query): Asked<AuditQuery>,
) -> Answer<Json<Vec<EventView>>> {
    let limit = query.limit.unwrap_or(AUDIT_PAGE_MAX);
    let rows = app.store.audit(query.before, query.service.as_ref(), limit).await?;
    Ok(Json(rows.into_iter().map(|row| row.event).collect()))
}
