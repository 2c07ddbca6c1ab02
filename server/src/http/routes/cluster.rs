//! The cluster, and what was changed in it.

use std::sync::Arc;

use axum::extract::State;
use flotilla_api::{
    ErrorCode, MachineName, NodeId, ServiceName,
    rest::{ClusterView, EventView},
};
use serde::Deserialize;

use crate::{
    http::{
        App,
        answer::{Answer, Asked, Failure, Json},
        caller::{Caller, Operator},
        fleet,
    },
    store::AUDIT_PAGE_MAX,
};

pub(super) async fn view(State(app): State<Arc<App>>, caller: Caller) -> Answer<Json<ClusterView>> {
    let state = app.store.state();
    let cluster = state
        .cluster
        .as_ref()
        .ok_or_else(|| Failure::new(ErrorCode::Internal, "the node has no cluster; make one with `flotilla init`"))?;
    let quorum = app.members.quorum();
    let name_of = |id: &NodeId| state.machines.get(id).map(|machine| machine.name().clone());
    let (voters, learners): (Vec<_>, Vec<_>) = state.machines.keys().partition(|id| quorum.voters.contains(*id));
    let names = |ids: Vec<&NodeId>| {
        let mut names: Vec<MachineName> = ids.into_iter().filter_map(name_of).collect();
        names.sort();
        names
    };
    let weakness = fleet::weakness(&state, &quorum);
    Ok(Json(ClusterView {
        id: cluster.id.clone(),
        name: cluster.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: app.domain.to_string(),
        dashboard_url: app.domain.dashboard_url(),
        applied_index: state.applied,
        machine: name_of(&app.node),
        leader: quorum.leader.as_ref().and_then(name_of),
        term: quorum.term,
        voters: names(voters),
        learners: names(learners),
        fault_tolerant: weakness.is_none(),
        not_fault_tolerant_because: weakness,
        demo: app.demo_socket.is_some(),
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
