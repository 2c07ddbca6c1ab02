//! What moves by itself: changes of the board as server-sent events, and who is here over a WebSocket.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::StatusCode,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::routes::App;

/// Pages that are open at once; each holds an event stream and a WebSocket.
const VISITORS_MAX: usize = 500;

/// A visitor's message is at most a pong. Bytes.
const MESSAGE_MAX: usize = 1024;

/// How often a visitor is asked whether it is still there, and how often it may miss.
const PING_EVERY: Duration = Duration::from_secs(20);
const MISSED_MAX: u32 = 2;

/// How long a visitor may take to read a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The pages that are open.
#[derive(Clone, Debug)]
pub(super) struct Presence {
    here: Arc<watch::Sender<u32>>,
    seats: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Presence {
    pub(super) fn new() -> Self {
        let seats = || Arc::new(Semaphore::new(VISITORS_MAX));
        Self { here: Arc::new(watch::Sender::new(0)), seats: seats(), streams: seats() }
    }

    pub(super) fn here(&self) -> u32 {
        *self.here.borrow()
    }
}

/// Counts one visitor as long as it lives.
struct Visit {
    presence: Presence,
    _seat: OwnedSemaphorePermit,
}

impl Visit {
    fn begin(presence: Presence, seat: OwnedSemaphorePermit) -> Self {
        presence.here.send_modify(|here| *here += 1);
        Self { presence, _seat: seat }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.presence.here.send_modify(|here| *here -= 1);
    }
}

fn full() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "Too many pages are open; close one.").into_response()
}

/// `GET /events`: the board's version, now and after each change.
pub(super) async fn events(State(app): State<App>) -> Response {
    let Ok(seat) = app.presence.streams.clone().try_acquire_owned() else { return full() };
    let mut version = app.board.version();
    version.mark_changed();
    let stop = app.stop.clone();
    let changes = stream::unfold((version, seat, stop), |(mut version, seat, stop)| async move {
        tokio::select! {
            changed = version.changed() => changed.ok()?,
            () = stop.cancelled() => return None,
        }
        let now = version.borrow_and_update().to_string();
        let event = Event::default().event("board").id(&now).data(now);
        Some((Ok::<_, Infallible>(event), (version, seat, stop)))
    });
    let answer = Sse::new(changes).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)));
    ([("cache-control", "no-store"), ("x-accel-buffering", "no")], answer).into_response()
}

/// `GET /presence`: how many pages are open, now and after each change.
pub(super) async fn presence(State(app): State<App>, upgrade: WebSocketUpgrade) -> Response {
    let Ok(seat) = app.presence.seats.clone().try_acquire_owned() else { return full() };
    upgrade.max_message_size(MESSAGE_MAX).on_upgrade(move |socket| async move {
        let visit = Visit::begin(app.presence.clone(), seat);
        tokio::select! {
            () = attend(socket, &visit) => {}
            () = app.stop.cancelled() => {}
        }
    })
}

async fn attend(mut socket: WebSocket, visit: &Visit) {
    let mut here = visit.presence.here.subscribe();
    here.mark_changed();
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut missed = 0;
    loop {
        let message = tokio::select! {
            changed = here.changed() => match changed {
                Ok(()) => Message::text(format!("{{\"here\":{}}}", *here.borrow_and_update())),
                Err(_) => return,
            },
            _ = ping.tick() => {
                missed += 1;
                if missed > MISSED_MAX {
                    return;
                }
                Message::Ping(bytes::Bytes::new())
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {
                    missed = 0;
                    continue;
                }
            },
        };
        if !matches!(tokio::time::timeout(SEND_TIMEOUT, socket.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
}
