//! The WebSocket to `/signal` on which a connection is agreed upon.

use std::time::Duration;

use flotilla_api::signal::{FromBrowser, FromNode, SIGNAL_MAX};
use futures::{SinkExt, StreamExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{
    Client, Error,
    socket::{Socket, why_broken},
};

/// A node reads its signalling at once. Longer, and the connection is taken for dead.
const WRITING: Duration = Duration::from_secs(10);

const DOING: &str = "agreeing on a connection";

pub(super) struct Signalling(Socket);

impl Signalling {
    pub(super) async fn open(client: &Client) -> Result<Self, Error> {
        // Without the bearer token: signalling brings its own, as a browser can't set headers on a WebSocket.
        let asked = client.http.get(client.url_at("signal"));
        Ok(Self(client.upgrade(asked, SIGNAL_MAX).await?))
    }

    pub(super) async fn say(&mut self, message: &FromBrowser) -> Result<(), Error> {
        let text = serde_json::to_string(message).map_err(|error| Error::Answer { why: error.to_string() })?;
        timeout(WRITING, self.0.send(Message::text(text)))
            .await
            .map_err(|_| Error::Broken { doing: DOING, why: "the node does not read it".into() })?
            .map_err(|error| Error::Broken { doing: DOING, why: why_broken(&error) })
    }

    /// The next message that this version knows. Dropping the future loses none.
    pub(super) async fn hear(&mut self) -> Result<FromNode, Error> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => {
                    // As a browser: what this version does not know is not for it.
                    if let Ok(message) = serde_json::from_str(&text) {
                        return Ok(message);
                    }
                }
                Some(Ok(Message::Close(_))) | None => return Err(closed()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Error::Broken { doing: DOING, why: why_broken(&error) }),
            }
        }
    }

    pub(super) async fn close(&mut self) {
        // Gone already is as good.
        let _ = self.0.close(None).await;
    }
}

pub(super) fn closed() -> Error {
    Error::Broken { doing: DOING, why: "the node ended it".into() }
}
