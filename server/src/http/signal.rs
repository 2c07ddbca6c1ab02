//! `/signal`: hands a browser's WebSocket to the mesh.

use std::sync::Arc;

use axum::{
    extract::{State, WebSocketUpgrade},
    response::{IntoResponse, Response},
};
use flotilla_api::{ErrorCode, signal::SIGNAL_MAX};
use http::{HeaderMap, HeaderName, header};

use super::{App, answer::Failure, gate::Asker, streams};
use crate::mesh::Client;

/// Characters of a header that a service is told in place of what its page would have sent.
const HEADER_MAX: usize = 512;

/// The token comes in the first message and is checked there: a browser can't set headers on a WebSocket.
pub(super) async fn connect(
    State(app): State<Arc<App>>,
    asker: Asker,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return Failure::new(ErrorCode::SignalInvalid, "signalling is a WebSocket; open the dashboard in a browser")
            .into_response();
    };
    let place = match streams::place(&app) {
        Ok(place) => place,
        Err(failure) => return failure.into_response(),
    };
    let client = Client {
        url: asker.url,
        address: asker.peer.ip().to_canonical(),
        user_agent: text(&headers, &header::USER_AGENT),
        accept_language: text(&headers, &header::ACCEPT_LANGUAGE),
    };
    upgrade.max_message_size(SIGNAL_MAX).max_frame_size(SIGNAL_MAX).on_upgrade(async move |socket| {
        // The mesh itself says goodbye when the node stops, over this socket.
        // Boxed: it holds a whole connection while one is set up.
        Box::pin(app.mesh.signal(socket, client)).await;
        drop(place);
    })
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= HEADER_MAX).then(|| value.to_owned())
}
