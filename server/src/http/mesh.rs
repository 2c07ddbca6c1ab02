//! `/mesh/v1/signal`: hands another node's envelope to the mesh. It carries no token: its signature says who wrote it.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::to_bytes,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use flotilla_api::ErrorCode;
use http::header;

use super::{App, answer::Failure, attempts::Attempts, gate::Asker};
use crate::mesh::nodes::{ENVELOPE_MAX, NodeMesh};

pub(super) async fn signal(State(app): State<Arc<App>>, asker: Asker, request: Request) -> Response {
    answer(&app.nodes, &app.attempts, asker.peer.ip(), request).await
}

pub(super) async fn answer(nodes: &NodeMesh, attempts: &Attempts, from: IpAddr, request: Request) -> Response {
    if let Err(error) = attempts.signalling(from) {
        return Failure(error).into_response();
    }
    let Ok(envelope) = to_bytes(request.into_body(), ENVELOPE_MAX).await else {
        return Failure::new(
            ErrorCode::RequestTooLarge,
            format!("a signalling message has at most {ENVELOPE_MAX} bytes"),
        )
        .into_response();
    };
    match nodes.signal(&envelope).await {
        Ok(answer) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Err(error) => Failure(error).into_response(),
    }
}
