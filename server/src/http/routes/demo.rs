//! In a demo alone: a machine's plug is pulled, and put in again. The demo itself does it, over its Unix socket.

use std::{io, path::Path, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use flotilla_api::{ErrorCode, MachineName, rest::DemoAnswer};
use http::Uri;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use crate::http::{
    App,
    answer::{Answer, Failure, Json, Segment},
    caller::Admin,
};

/// Where the demo listens; set by it in the environment of its machines.
pub(crate) const SOCKET_VARIABLE: &str = "FLOTILLA_DEMO_SOCKET";

/// An answer tells what was seen of a few dozen services. Bytes.
const LINE_MAX: u64 = 256 * 1024;

/// An outage is watched for about a minute, and a machine that starts needs some time.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) async fn kill(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Segment(machine): Segment<MachineName>,
    uri: Uri,
) -> Answer<Response> {
    order(&app, &caller.principal.name, "kill", &machine, uri).await
}

pub(super) async fn start(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Segment(machine): Segment<MachineName>,
    uri: Uri,
) -> Answer<Response> {
    order(&app, &caller.principal.name, "start", &machine, uri).await
}

async fn order(app: &App, by: &str, verb: &str, machine: &MachineName, uri: Uri) -> Answer<Response> {
    let Some(socket) = &app.demo_socket else { return Ok(super::nothing_here(uri).await.into_response()) };
    tracing::info!(%machine, verb, by, "a machine of the demo is switched");
    let line = format!("{}\n", json!({ verb: machine }));
    let unavailable = |why: String| {
        Failure::new(
            ErrorCode::ServiceUnavailable,
            format!("the demo that this machine belongs to does not answer ({why})"),
        )
    };
    let answer = timeout(PATIENCE, ask(socket, &line))
        .await
        .map_err(|_| unavailable(format!("within {} s", PATIENCE.as_secs())))?
        .map_err(|error| unavailable(error.to_string()))?;
    let answer: DemoAnswer = serde_json::from_str(&answer).map_err(|error| unavailable(error.to_string()))?;
    match answer.error {
        Some(error) => Err(Failure::new(ErrorCode::Conflict, error)),
        None => Ok(Json(answer).into_response()),
    }
}

async fn ask(socket: &Path, line: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut answer).await?;
    Ok(answer)
}
