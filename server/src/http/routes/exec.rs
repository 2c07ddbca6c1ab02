//! A command in a running instance, over a WebSocket. What goes over it stands at `flotilla_api::rest::ExecRequest`.

use std::{sync::Arc, time::Duration};

use axum::{
    RequestPartsExt as _,
    extract::{
        Request, State, WebSocketUpgrade,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse, Response},
};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_api::{
    ApiError, ErrorCode, InstanceId, NodeId, ServiceName,
    rest::{ExecControl, ExecRequest},
};
use flotilla_core::reconcile::{self, View};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::logs::InstanceQuery;
use crate::{
    engine::{ExecEvent, ExecInput, ExecOutput},
    http::{
        App,
        answer::{Answer, Asked, Failure, Segment},
        caller::{Caller, Operator},
        forward::{self, OnBehalf},
        sight::Moment,
        streams,
    },
};

/// A pasted text; a terminal sends a few bytes at a time.
const MESSAGE_MAX: usize = 1024 * 1024;

/// The client says what to run as soon as the socket is open.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Output on its way: a client that does not read stops the command, and nothing grows.
const OUTPUT_QUEUE: usize = 16;

/// A router forgets a connection that is silent for a minute.
const PING_EVERY: Duration = Duration::from_secs(25);

/// Not even an answer to a ping: the client's machine is gone.
const SILENT: Duration = Duration::from_secs(70);

/// What a write to the socket may take.
const WRITING: Duration = Duration::from_secs(30);

/// First byte of a binary message: which stream the rest is of.
const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR_OUTPUT: u8 = 2;

pub(super) async fn run(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Segment(service): Segment<ServiceName>,
    Asked(InstanceQuery { instance }): Asked<InstanceQuery>,
    request: Request,
) -> Answer<Response> {
    if !app.store.state().services.contains_key(&service) {
        return Err(super::services::unknown(&service));
    }
    let place = streams::place(&app)?;
    if request.extensions().get::<OnBehalf>().is_none()
        && let Some(machine) = elsewhere(&app, &service, instance.as_ref())
    {
        tracing::info!(%service, %machine, principal = %caller.principal.name, from = %caller.peer, "a command is passed on");
        return pass_on(&app, &caller, &machine, place, request).await;
    }
    // Only here: it takes the connection out of the request, which `pass_on` needs.
    let upgrade: Result<WebSocketUpgrade, _> = request.into_parts().0.extract().await;
    let upgrade = upgrade.map_err(|_: WebSocketUpgradeRejection| {
        Failure::new(ErrorCode::InvalidRequest, "a command is run over a WebSocket; use `flotilla exec`")
    })?;
    let answer = upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX).on_upgrade(async move |socket| {
        tracing::info!(%service, principal = %caller.principal.name, from = %caller.peer, "a command is run");
        let (sink, stream) = socket.split();
        let (output, queued) = mpsc::channel(OUTPUT_QUEUE);
        let stop = app.stop.clone();
        // Nobody may go on with a token that was revoked, not even with what was begun before.
        let command = command(&app, &service, instance.as_ref(), stream, output);
        tokio::select! {
            () = async { tokio::join!(command, write(sink, queued)); } => {}
            () = stop.cancelled() => {}
            () = caller.allowed_until(&app) => {}
        }
        drop(place);
    });
    Ok(answer.into_response())
}

/// The machine on which the command has to run, if that is another one: where the named instance is, or one that requests go to.
fn elsewhere(app: &App, service: &ServiceName, instance: Option<&InstanceId>) -> Option<NodeId> {
    let moment = Moment::of(app);
    let views = moment.views();
    let machine = match instance {
        Some(instance) => {
            let has = |view: &View<'_>| {
                let mut containers = view.observed.into_iter().flat_map(|observed| &observed.containers);
                containers.any(|container| container.instance == *instance)
            };
            views.iter().find(|(_, view)| has(view)).map(|(machine, _)| (*machine).clone())?
        }
        None => {
            let serving = reconcile::serving(moment.now, moment.state.services.get(service)?, &views);
            if serving.iter().any(|(machine, _)| **machine == app.node) {
                return None;
            }
            serving.first().map(|(machine, _)| (*machine).clone())?
        }
    };
    (machine != app.node).then_some(machine)
}

async fn pass_on(
    app: &Arc<App>,
    caller: &Caller,
    machine: &NodeId,
    place: OwnedSemaphorePermit,
    request: Request,
) -> Answer<Response> {
    let path = request.uri().path_and_query().map_or_else(|| request.uri().path(), http::uri::PathAndQuery::as_str);
    // Inside the API's own routes the prefix is taken off.
    let path = format!("/api/v1{}", path.strip_prefix("/api/v1").unwrap_or(path));
    let answer = forward::ask(app, machine, caller, http::Method::GET, &path, request.headers()).await?;
    let answer = forward::refusal(answer).await?;
    let (stop, for_caller, caller) = (app.stop.clone(), app.clone(), caller.clone());
    let over = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = caller.allowed_until(&for_caller) => {}
        }
        drop(place);
    };
    Ok(forward::join_sockets(request, answer, over))
}

/// Runs until the command has ended or the client has left. Dropping `output` ends the writer.
async fn command(
    app: &App,
    service: &ServiceName,
    instance: Option<&InstanceId>,
    mut stream: SplitStream<WebSocket>,
    output: mpsc::Sender<Message>,
) {
    let started = async {
        let request = first(&mut stream).await?;
        app.engine.exec(service, instance, &request).await.map_err(ApiError::from)
    };
    let last = match started.await {
        Ok(exec) => {
            // The output is read by one future to its end: its last step must not be begun twice.
            tokio::select! {
                last = pass_output(exec.output, &output) => last,
                () = pass_input(stream, exec.input) => None,
            }
        }
        Err(error) => Some(ExecControl::Error { error }),
    };
    if let Some(last) = last.and_then(|last| serde_json::to_string(&last).ok()) {
        let _ = output.send(Message::text(last)).await;
    }
}

async fn first(stream: &mut SplitStream<WebSocket>) -> Result<ExecRequest, ApiError> {
    let refuse = |message: &str| ApiError::new(ErrorCode::InvalidRequest, message);
    let message = timeout(FIRST_MESSAGE, stream.next()).await.map_err(|_| refuse("nothing was asked for in time"))?;
    match message {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text)
            .map_err(|error| refuse(&format!("the first message is no command to run: {error}"))),
        _ => Err(refuse("the first message must be text, with the command to run")),
    }
}

/// The last message for the client; `None` if it has left.
async fn pass_output(mut command: ExecOutput, output: &mpsc::Sender<Message>) -> Option<ExecControl> {
    while let Some(event) = command.next().await {
        let message = match event {
            Ok(ExecEvent::Out(bytes)) => piece(OUTPUT, &bytes),
            Ok(ExecEvent::Err(bytes)) => piece(ERROR_OUTPUT, &bytes),
            Ok(ExecEvent::Exit(code)) => return Some(ExecControl::Exit { code }),
            Err(error) => return Some(ExecControl::Error { error: error.into() }),
        };
        output.send(message).await.ok()?;
    }
    None
}

fn piece(stream: u8, bytes: &Bytes) -> Message {
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(stream);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// Ends when the client has left, not when it has no more input.
async fn pass_input(mut stream: SplitStream<WebSocket>, mut command: ExecInput) {
    while let Ok(Some(Ok(message))) = timeout(SILENT, stream.next()).await {
        match message {
            Message::Binary(bytes) if bytes.first() == Some(&INPUT) => {
                if let Err(error) = command.write(&bytes[1..]).await {
                    // A command may end, or close its input, before all of it was read.
                    tracing::debug!(%error, "input was not taken");
                }
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ExecControl::Resize { rows, columns }) => {
                    if let Err(error) = command.resize(rows, columns).await {
                        tracing::debug!(%error, "a terminal kept its size");
                    }
                }
                Ok(ExecControl::Eof) => command.close().await,
                _ => {}
            },
            Message::Close(_) => return,
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

/// Writes what is queued, and pings, until the queue's sender is gone.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut queued: mpsc::Receiver<Message>) {
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = queued.recv() => match message {
                Some(message) => message,
                None => break,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if !matches!(timeout(WRITING, sink.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
    let _ = timeout(WRITING, sink.close()).await;
}
