//! Envelopes over HTTP, to a member's listener: one request, one answer.

use std::time::Duration;

use flotilla_api::ApiError;
use http::header::CONTENT_TYPE;
use reqwest::{Client, Response, StatusCode, redirect::Policy};

use super::envelope::ENVELOPE_MAX;

/// The route on every node's listener.
pub const SIGNAL_PATH: &str = "/mesh/v1/signal";

/// A machine that is off does not answer at all; one that is there answers over the farthest line in this time.
const CONNECTING: Duration = Duration::from_millis(1500);

/// The other node gathers its candidates before it answers, and may ask relays for them.
const ANSWERING: Duration = Duration::from_secs(5);

/// Why an envelope had no answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// Nobody answered there, or nobody of ours.
    Unreachable,
    /// The node would not take it.
    Refused(ApiError),
}

#[derive(Clone, Debug)]
pub(super) struct Post {
    client: Client,
}

impl Post {
    /// # Errors
    /// The system's TLS can't be set up.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECTING)
            .timeout(ANSWERING)
            // What an envelope says is proven by its own signature, and the name in a certificate proves nothing to a node.
            .danger_accept_invalid_certs(true)
            .build()?;
        Ok(Self { client })
    }

    /// Brings an envelope to `host:port` (or to a URL), and the answer back.
    pub(super) async fn send(&self, address: &str, envelope: &[u8]) -> Result<Vec<u8>, Failure> {
        if address.contains("://") {
            return self.send_to(address, envelope).await;
        }
        let (answered, speaks) = self.ask(&format!("http://{address}"), envelope).await;
        if speaks == Speaks::SomethingElse {
            return self.send_to(&format!("https://{address}"), envelope).await;
        }
        answered
    }

    async fn send_to(&self, base: &str, envelope: &[u8]) -> Result<Vec<u8>, Failure> {
        self.ask(base, envelope).await.0
    }

    async fn ask(&self, base: &str, envelope: &[u8]) -> (Result<Vec<u8>, Failure>, Speaks) {
        let request = self
            .client
            .post(format!("{}{SIGNAL_PATH}", base.trim_end_matches('/')))
            .header(CONTENT_TYPE, "application/json")
            .body(envelope.to_vec());
        match request.send().await {
            Ok(response) => (read(response).await, Speaks::Http),
            Err(error) => {
                tracing::trace!(base, %error, "signalling found nobody");
                // Whoever speaks TLS there took the request for noise.
                let noise = !error.is_connect() && !error.is_timeout();
                (Err(Failure::Unreachable), if noise { Speaks::SomethingElse } else { Speaks::Nothing })
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http,
    SomethingElse,
    Nothing,
}

async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| Failure::Unreachable)? {
        if body.len() + chunk.len() > ENVELOPE_MAX {
            return Err(Failure::Unreachable);
        }
        body.extend_from_slice(&chunk);
    }
    if status == StatusCode::OK {
        return Ok(body);
    }
    match serde_json::from_slice(&body) {
        Ok(error) => Err(Failure::Refused(error)),
        Err(_) => Err(Failure::Unreachable),
    }
}
