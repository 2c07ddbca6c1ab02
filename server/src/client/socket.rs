//! A WebSocket to the node: for commands in instances, and for signalling.

use base64::Engine as _;
use reqwest::{RequestBuilder, StatusCode, Upgraded, header};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{Client, Error, error::root_cause};

pub(super) type Socket = WebSocketStream<Upgraded>;

impl Client {
    /// Upgrades a request, which is one of the same HTTP client as all others, so that TLS, proxies, names and errors are the
    /// same. Messages have at most `message_max` bytes in either direction.
    pub(super) async fn upgrade(&self, request: RequestBuilder, message_max: usize) -> Result<Socket, Error> {
        let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
        let upgrade = request
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = self.endless(upgrade).await?;
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || accept.is_none_or(|accept| accept.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(Error::NotANode { api: self.api().to_owned(), status: response.status().as_u16() });
        }
        let upgraded = response
            .upgrade()
            .await
            .map_err(|error| Error::Broken { doing: "opening a WebSocket", why: why_broken(&error) })?;
        let limits = WebSocketConfig::default().max_message_size(Some(message_max)).max_frame_size(Some(message_max));
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await)
    }
}

/// What ended a socket, in a few words.
pub(super) fn why_broken(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => "it was closed".into(),
        _ => root_cause(error),
    }
}
