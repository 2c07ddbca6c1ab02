//! Signalling over a browser's WebSocket: JSON text, one message each way to set a connection up.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use flotilla_api::{
    ApiError, ErrorCode,
    signal::{FromBrowser, FromNode, SIGNAL_MAX},
};
use futures::{SinkExt, StreamExt};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

/// Messages that wait to be handled, and to be sent: a burst of candidates.
const QUEUE: usize = 64;

/// A proxy or a router forgets a connection that is silent for a minute.
const PING_EVERY: Duration = Duration::from_secs(25);

/// A socket that heard nothing for this long, not even an answer to a ping, is dead.
const SILENT: Duration = Duration::from_secs(70);

/// What a write to a socket may take.
const WRITING: Duration = Duration::from_secs(10);

/// A signalling socket, as the messages it carries. What is no message arrives as the error to answer.
#[derive(Debug)]
pub struct Signals {
    pub incoming: mpsc::Receiver<Result<FromBrowser, ApiError>>,
    pub outgoing: mpsc::Sender<FromNode>,
}

/// Carries a WebSocket's messages until either end is dropped.
pub(super) fn from_websocket(socket: WebSocket) -> Signals {
    let (incoming_sender, incoming) = mpsc::channel(QUEUE);
    let (outgoing, outgoing_receiver) = mpsc::channel(QUEUE);
    tokio::spawn(carry(socket, incoming_sender, outgoing_receiver));
    Signals { incoming, outgoing }
}

async fn carry(
    socket: WebSocket,
    incoming: mpsc::Sender<Result<FromBrowser, ApiError>>,
    mut outgoing: mpsc::Receiver<FromNode>,
) {
    let (mut sink, mut stream) = socket.split();
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            message = stream.next() => {
                heard = Instant::now();
                let read = match message {
                    Some(Ok(Message::Text(text))) => read(text.as_str()),
                    Some(Ok(Message::Binary(_))) => Err(invalid("signalling is text; reload the page")),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                };
                if incoming.send(read).await.is_err() {
                    break;
                }
                continue;
            }
            message = outgoing.recv() => match message {
                Some(message) => match serde_json::to_string(&message) {
                    Ok(text) => Message::text(text),
                    Err(error) => {
                        tracing::error!(%error, "a signalling message can't be written as JSON");
                        continue;
                    }
                },
                None => break,
            },
            _ = pings.tick() => {
                if heard.elapsed() > SILENT {
                    break;
                }
                Message::Ping(bytes::Bytes::new())
            }
        };
        if !matches!(timeout(WRITING, sink.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
    let _ = timeout(WRITING, sink.close()).await;
}

fn read(text: &str) -> Result<FromBrowser, ApiError> {
    if text.len() > SIGNAL_MAX {
        return Err(invalid(&format!("a signalling message has at most {SIGNAL_MAX} bytes; reload the page")));
    }
    serde_json::from_str(text)
        .map_err(|_| invalid("this is no signalling message that this node knows; reload the page"))
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(ErrorCode::SignalInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_message_is_refused_in_one_sentence() {
        let huge = format!(r#"{{"type":"restart","offer":"{}"}}"#, "x".repeat(SIGNAL_MAX));
        for bad in ["", "{}", "[]", r#"{"type":"dance"}"#, r#"{"type":"connect"}"#, huge.as_str()] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.code, ErrorCode::SignalInvalid);
        }
        assert_eq!(read(r#"{"type":"bye"}"#), Ok(FromBrowser::Bye));
    }
}
