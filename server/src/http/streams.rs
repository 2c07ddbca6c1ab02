//! Answers that go on for long: bounded in number, ended when the node stops.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flotilla_api::ErrorCode;
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, header};
use serde::Serialize;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    App,
    answer::{Answer, Failure},
    caller::Caller,
};

/// Proxies and routers forget a connection that is silent for a minute. An empty line is skipped by whoever reads lines of JSON.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A place among the long answers of this node.
pub(super) fn place(app: &App) -> Answer<OwnedSemaphorePermit> {
    app.streams.clone().try_acquire_owned().map_err(|_| {
        Failure::new(
            ErrorCode::RateLimited,
            "too many logs, events and commands are followed on this node; close some and try again",
        )
    })
}

/// Waits for a stream to begin, as long as for any answer.
pub(super) async fn opened<T>(app: &App, opening: impl Future<Output = T>) -> Answer<T> {
    let limit = app.request_timeout();
    tokio::time::timeout(limit, opening).await.map_err(|_| {
        Failure::new(
            ErrorCode::Timeout,
            format!("nothing came within {} s; try again, or look at the node's log", limit.as_secs()),
        )
    })
}

/// Newline-delimited JSON, one line for each item, until `items` ends, the caller's token does or the node stops.
pub(super) fn lines<T: Serialize + 'static>(
    app: &Arc<App>,
    caller: &Caller,
    place: OwnedSemaphorePermit,
    items: impl Stream<Item = T> + Send + 'static,
) -> Response {
    fallible_lines(app, caller, place, items.map(Ok::<_, std::convert::Infallible>))
}

/// As [`lines`]; after an error the connection is broken off, so that nobody takes what came for the whole.
pub(super) fn fallible_lines<T: Serialize, E: std::fmt::Display + Send + Sync + std::error::Error + 'static>(
    app: &Arc<App>,
    caller: &Caller,
    place: OwnedSemaphorePermit,
    items: impl Stream<Item = Result<T, E>> + Send + 'static,
) -> Response {
    let mut pulse = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (stop, caller, for_caller) = (app.stop.clone(), caller.clone(), Arc::clone(app));
    let over = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = caller.allowed_until(&for_caller) => {}
        }
    };
    let lines = stream::unfold((Box::pin(items), pulse, place), async move |(mut items, mut pulse, place)| {
        let line = tokio::select! {
            item = items.next() => item?.map(|item| line(&item)),
            _ = pulse.tick() => Ok(Bytes::from_static(b"\n")),
        };
        if let Err(error) = &line {
            tracing::info!(%error, "a stream was broken off");
        }
        Some((line, (items, pulse, place)))
    });
    let body = Body::from_stream(lines.take_until(over));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))], body).into_response()
}

fn line<T: Serialize>(item: &T) -> Bytes {
    let mut line = serde_json::to_vec(item).unwrap_or_else(|error| {
        tracing::error!(%error, "a line can't be written as JSON");
        Vec::new()
    });
    line.push(b'\n');
    line.into()
}
