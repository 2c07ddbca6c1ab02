//! What other nodes ask of the listener. It carries no token: who asks proves it to the mesh.
//!
//! `/mesh/v1/signal` takes an envelope, whose signature says who wrote it. `/mesh/v1/bulk` becomes a TLS link, whose certificate does.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::to_bytes,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use flotilla_api::ErrorCode;
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{App, answer::Failure, attempts::Attempts, gate::Asker, meter::Metered};
use crate::mesh::nodes::{BULK_ATTEMPT, BULK_PROTOCOL, ENVELOPE_MAX, NodeMesh};

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

pub(super) async fn bulk(State(app): State<Arc<App>>, request: Request) -> Response {
    take(&app.nodes, request)
}

/// Another node's connection for what is large. It was offered before, under the name that the request gives.
pub(super) fn take(nodes: &NodeMesh, mut request: Request) -> Response {
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>().filter(|_| wants_bulk(request.headers())) else {
        let said = format!("this is for other nodes: `Connection: upgrade` and `Upgrade: {BULK_PROTOCOL}` are missing");
        return Failure::new(ErrorCode::InvalidRequest, said).into_response();
    };
    let attempt = request.headers().get(BULK_ATTEMPT).and_then(|attempt| attempt.to_str().ok()).unwrap_or_default();
    match nodes.arrival(attempt) {
        Ok(arrival) => {
            arrival.take(async { upgrade.await.ok().and_then(plain) });
            let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, BULK_PROTOCOL)];
            (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
        }
        Err(error) => Failure(error).into_response(),
    }
}

/// What another node connected with; `None` if that is not TCP by itself, or if it says more than it was asked.
fn plain(upgraded: Upgraded) -> Option<Metered<TcpStream>> {
    let parts = upgraded.downcast::<TokioIo<Metered<TcpStream>>>().ok()?;
    parts.read_buf.is_empty().then(|| parts.io.into_inner())
}

fn wants_bulk(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(BULK_PROTOCOL.as_bytes()))
}
