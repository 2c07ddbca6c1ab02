//! Any node answers any call: what concerns a container of another machine is asked there, over a stream between the two nodes that
//! speaks HTTP/1.1.
//!
//! The caller was verified here, and the other node takes this node's word for who that is: the stream comes from a member of the
//! cluster, which has the cluster's key anyway. The word is in a header that only such a stream is believed; on the listener it is
//! a header like any other, and nobody looks at it. What was forwarded once is not forwarded again.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flotilla_api::{ApiError, ErrorCode, NodeId, rest::Principal};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use hyper::{body::Incoming, client, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tower::ServiceExt as _;

use super::{
    App,
    answer::{Answer, Failure},
    caller::Caller,
    gate::Asker,
};
use crate::peers::{CallError, Stream};

/// What a stream between nodes is labelled with that carries calls of the API.
pub const LABEL: &str = "api";

/// Says for whom a node asks.
const ON_BEHALF: HeaderName = HeaderName::from_static("flotilla-on-behalf");

/// How long opening a stream and getting the head of an answer may take. The other node's own limit on a request comes first.
const OPENING: Duration = Duration::from_secs(20);

/// How long the other node may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Headers of a client's request that the other node needs: for a WebSocket, and nothing else. Never a token.
const PASSED: &[HeaderName] = &[
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
];

/// Whom another node asks for, as an extension of the request: it was verified there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OnBehalf {
    pub(super) principal: Principal,
    /// Where that one is.
    pub(super) peer: IpAddr,
}

impl OnBehalf {
    fn header(&self) -> Answer<HeaderValue> {
        let failed = |_| Failure::new(ErrorCode::Internal, "whom this is for can't be told to the other machine");
        let text = serde_json::to_vec(self).map_err(|_| failed(()))?;
        HeaderValue::try_from(BASE64_URL_SAFE_NO_PAD.encode(text)).map_err(|_| failed(()))
    }

    fn in_headers(headers: &HeaderMap) -> Option<Self> {
        let text = BASE64_URL_SAFE_NO_PAD.decode(headers.get(ON_BEHALF)?.as_bytes()).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Asks another machine in the caller's name. The answer is as it came; its body comes as it is read.
///
/// # Errors
/// The machine can't be reached, or does not answer in time.
pub(super) async fn ask(
    app: &App,
    machine: &NodeId,
    caller: &Caller,
    method: Method,
    path: &str,
    headers: &HeaderMap,
) -> Answer<http::Response<Incoming>> {
    let name = name_of(app, machine);
    let mut request = http::Request::new(Body::empty());
    *request.method_mut() = method;
    let passed = PASSED.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone())));
    request.headers_mut().extend(passed.map(|(name, value)| (Some(name), value)));
    tokio::time::timeout(OPENING, send(app, machine, caller, path, request)).await.map_err(|_| {
        Failure::new(
            ErrorCode::Timeout,
            format!("the machine `{name}` did not answer within {} s; try again", OPENING.as_secs()),
        )
    })?
}

/// As [`ask`], with a body of any length. The answer comes when the other machine has taken it all, or refuses to.
///
/// # Errors
/// As those of [`ask`], and no answer within `limit`.
pub(super) async fn hand_on(
    app: &App,
    machine: &NodeId,
    caller: &Caller,
    method: Method,
    path: &str,
    body: Body,
    limit: Duration,
) -> Answer<http::Response<Incoming>> {
    let name = name_of(app, machine);
    let mut request = http::Request::new(body);
    *request.method_mut() = method;
    tokio::time::timeout(limit, send(app, machine, caller, path, request)).await.map_err(|_| {
        Failure::new(
            ErrorCode::Timeout,
            format!("the machine `{name}` was not done within {} s; try again", limit.as_secs()),
        )
    })?
}

async fn send(
    app: &App,
    machine: &NodeId,
    caller: &Caller,
    path: &str,
    mut request: http::Request<Body>,
) -> Answer<http::Response<Incoming>> {
    let name = name_of(app, machine);
    let network = app.members.network().ok_or_else(|| unreachable(&name))?;
    let uri = path.parse::<Uri>().map_err(|_| Failure::new(ErrorCode::Internal, "the call can't be passed on"))?;
    let on_behalf = OnBehalf { principal: caller.principal.clone(), peer: caller.peer };
    *request.uri_mut() = uri;
    request.headers_mut().insert(ON_BEHALF, on_behalf.header()?);
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("flotilla"));
    let stream = tokio::time::timeout(OPENING, network.stream(machine, LABEL)).await;
    let stream = stream.map_err(|_| unreachable(&name))?.map_err(|error| told(&name, error))?;
    let (mut sender, connection) =
        client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&name, &error))?;
    // Ends with the answer's body, or with the sockets that an upgrade makes of it.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a stream to another machine ended early");
        }
    });
    sender.send_request(request).await.map_err(|error| broken(&name, &error))
}

fn name_of(app: &App, machine: &NodeId) -> String {
    app.store.state().machines.get(machine).map_or_else(|| machine.to_string(), |machine| machine.name().to_string())
}

fn unreachable(name: &str) -> Failure {
    Failure::new(
        ErrorCode::ServiceUnavailable,
        format!("the machine `{name}` can't be reached from here; `flotilla machine ls` shows how it does"),
    )
}

fn told(name: &str, error: CallError) -> Failure {
    match error {
        CallError::Refused(error) => Failure(error),
        CallError::Unreachable => unreachable(name),
        error => Failure::new(ErrorCode::ServiceUnavailable, format!("the machine `{name}` can't be asked: {error}")),
    }
}

fn broken(name: &str, error: &hyper::Error) -> Failure {
    Failure::new(
        ErrorCode::ServiceUnavailable,
        format!("the stream to the machine `{name}` broke ({error}); try again"),
    )
}

/// The error that an answer carries, if it is no success.
pub(super) async fn refusal(answer: http::Response<Incoming>) -> Result<http::Response<Incoming>, Failure> {
    if answer.status().is_success() || answer.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let error: Result<ApiError, Failure> =
        super::answer::read_json(Body::new(answer.into_body()), super::answer::BODY_MAX).await;
    Err(error.map_or_else(|failure| failure, Failure))
}

/// The answer as this node's own.
pub(super) fn passed_on(answer: http::Response<Incoming>) -> Response {
    let (mut parts, body) = answer.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::DATE] {
        parts.headers.remove(name);
    }
    Response::from_parts(parts, Body::new(body))
}

/// Joins a client's WebSocket with another machine's: bytes both ways, until one of them ends or `over` resolves.
pub(super) fn join_sockets(
    mut request: Request,
    mut answer: http::Response<Incoming>,
    over: impl Future<Output = ()> + Send + 'static,
) -> Response {
    let (client, machine) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    tokio::spawn(async move {
        let joined = async {
            let (client, machine) = tokio::try_join!(client, machine)?;
            let (mut client, mut machine) = (TokioIo::new(client), TokioIo::new(machine));
            // Either end closing is how most of these end.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut machine).await;
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            joined = joined => if let Err(error) = joined {
                tracing::debug!(%error, "a command's socket was not passed on");
            },
            () = over => {}
        }
    });
    response
}

/// Answers the calls that another member of the cluster passes on over a stream.
pub async fn serve_member(app: Arc<App>, from: NodeId, stream: Stream) {
    if app.stores_only {
        // It answers nobody, whoever passes it on.
        return;
    }
    let router = super::router(app.clone());
    let stop = app.stop.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (app, router) = (app.clone(), router.clone());
        let request: Request = request.map(Body::new);
        async move { Ok::<_, std::convert::Infallible>(answer(&app, router, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%from, %error, "a stream of another machine ended early");
    }
}

async fn answer(app: &App, router: axum::Router, mut request: Request) -> Response {
    let Some(on_behalf) = OnBehalf::in_headers(request.headers()) else {
        return Failure::new(ErrorCode::InvalidRequest, "a call that is passed on has to say for whom").into_response();
    };
    let Ok(_busy) = app.requests.try_acquire() else {
        return Failure::new(ErrorCode::RateLimited, "the node answers too many requests just now; try again")
            .into_response();
    };
    let url = request.uri().path().to_owned();
    request.extensions_mut().insert(Asker { peer: (on_behalf.peer, 0).into(), url });
    request.extensions_mut().insert(on_behalf);
    router.oneshot(request).await.unwrap_or_else(|never| match never {})
}
