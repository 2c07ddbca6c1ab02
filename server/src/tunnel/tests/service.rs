//! A small service, with what real ones do.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        Query, Request, State,
        ws::{self, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Redirect, Response,
        sse::{Event, Sse},
    },
    routing::{any, get, post},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What the service noticed.
#[derive(Debug, Default)]
struct Seen {
    /// Streams whose reader went away.
    dropped: AtomicU64,
    /// Chunks that endless streams were asked for.
    produced: AtomicU64,
}

pub(crate) async fn start() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    serve(listener);
    address
}

pub(crate) fn serve(listener: tokio::net::TcpListener) {
    tokio::spawn(async move { axum::serve(listener, router()).await });
}

fn router() -> Router {
    Router::new()
        .route(
            "/",
            get(|| async { ([(header::CONTENT_TYPE, "text/html")], "<!doctype html><html><head></head>hi</html>") }),
        )
        .route("/hello", get(|| async { "hello" }))
        .route("/echo-headers", any(echo_headers))
        .route("/zeros", get(zeros))
        .route("/endless", get(endless))
        .route("/seen", get(seen))
        .route("/events", get(events))
        .route("/hash", post(hash))
        .route("/never-reads", post(never_reads))
        .route("/early", post(|| async { (StatusCode::PAYLOAD_TOO_LARGE, "too large") }))
        .route("/range", get(range))
        .route("/empty", get(|| async { StatusCode::NO_CONTENT }))
        .route("/not-modified", get(|| async { (StatusCode::NOT_MODIFIED, [(header::ETAG, "\"1\"")]) }))
        .route("/redirect", get(|| async { Redirect::to("http://notes.home.localhost:7070/hello?x=1") }))
        .route("/login", get(login))
        .route("/broken", get(broken))
        .route("/gzip", get(gzip))
        .route("/framed", get(framed))
        .route("/huge-head", get(|| async { ([("x-huge", "x".repeat(70_000))], "small") }))
        .route("/ws", any(websocket))
        .route("/ws-refused", any(|| async { (StatusCode::FORBIDDEN, "no") }))
        .with_state(Arc::new(Seen::default()))
}

async fn echo_headers(request: Request) -> Response {
    let headers: Vec<(String, String)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").to_owned()))
        .collect();
    Json(headers).into_response()
}

#[derive(Deserialize)]
struct Size {
    bytes: usize,
}

async fn zeros(Query(Size { bytes }): Query<Size>) -> Response {
    let chunk = Bytes::from(vec![0_u8; 64 * 1024]);
    let chunks = stream::iter(
        (0..bytes)
            .step_by(chunk.len())
            .map(move |sent| Ok::<_, Infallible>(chunk.slice(..chunk.len().min(bytes - sent)))),
    );
    ([(header::CONTENT_LENGTH, bytes)], Body::from_stream(chunks)).into_response()
}

/// Counts when its reader goes away.
struct Watched<S>(S, Arc<Seen>);

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.1.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

async fn endless(State(seen): State<Arc<Seen>>) -> Response {
    let counter = Arc::clone(&seen);
    let chunks = stream::repeat_with(move || {
        counter.produced.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Infallible>(Bytes::from_static(&[7; 16 * 1024]))
    });
    Body::from_stream(Watched(chunks, seen)).into_response()
}

async fn seen(State(seen): State<Arc<Seen>>) -> Json<(u64, u64)> {
    Json((seen.dropped.load(Ordering::SeqCst), seen.produced.load(Ordering::SeqCst)))
}

/// One event at once, and then nothing for ever.
async fn events(State(seen): State<Arc<Seen>>) -> Response {
    let first = stream::once(async { Ok::<_, Infallible>(Event::default().data("first")) });
    let events = Box::pin(first.chain(stream::pending()));
    Sse::new(Watched(events, seen)).into_response()
}

async fn hash(request: Request) -> Json<(Option<String>, u64, String)> {
    let length = request.headers().get(header::CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned());
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut body = request.into_body().into_data_stream();
    while let Some(Ok(chunk)) = body.next().await {
        digest.update(&chunk);
        bytes += chunk.len() as u64;
    }
    let digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Json((length, bytes, digest))
}

async fn never_reads(request: Request) -> String {
    let body = request.into_body();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    drop(body);
    String::new()
}

async fn range(headers: HeaderMap) -> Response {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_eq!(range, "bytes=2-5");
    (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, "bytes 2-5/10")], "2345").into_response()
}

async fn login() -> Response {
    let mut response = Redirect::to("/hello").into_response();
    for cookie in ["sid=secret; HttpOnly; Path=/", "theme=dark; Path=/"] {
        response.headers_mut().append(header::SET_COOKIE, cookie.parse().unwrap());
    }
    response
}

/// Announces more than it sends.
async fn broken() -> Response {
    // What is not flushed when it breaks is lost with it.
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err("it broke")
    };
    let chunks = stream::once(async { Ok(Bytes::from_static(b"part")) }).chain(stream::once(later));
    ([(header::CONTENT_LENGTH, 100)], Body::from_stream(chunks)).into_response()
}

async fn gzip() -> Response {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&vec![b'z'; 3_000_000]).unwrap();
    ([(header::CONTENT_ENCODING, "gzip")], encoder.finish().unwrap()).into_response()
}

async fn framed() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'self'; frame-ancestors 'none'"),
    ];
    (headers, "<html><head><script>first()</script></head></html>").into_response()
}

async fn websocket(upgrade: WebSocketUpgrade, headers: HeaderMap) -> Response {
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap().to_owned()).unwrap_or_default();
    let mut response = upgrade.protocols(["chat.v2"]).on_upgrade(|socket| echo(socket, origin));
    response.headers_mut().append(header::SET_COOKIE, "ws=1".parse().unwrap());
    response
}

/// Echoes; a few texts mean something.
async fn echo(mut socket: ws::WebSocket, origin: String) {
    while let Some(Ok(message)) = socket.recv().await {
        let answer = match &message {
            ws::Message::Text(text) if text.as_str() == "origin" => ws::Message::text(origin.clone()),
            ws::Message::Text(text) if text.as_str() == "bye" => {
                ws::Message::Close(Some(ws::CloseFrame { code: 4002, reason: "as you wish".into() }))
            }
            ws::Message::Text(text) if text.as_str() == "die" => return,
            ws::Message::Text(text) if text.as_str() == "flood" => {
                for _ in 0..64 {
                    if socket.send(ws::Message::binary(vec![1_u8; 256 * 1024])).await.is_err() {
                        return;
                    }
                }
                continue;
            }
            // The library answers it when it is asked for more.
            ws::Message::Close(_) => continue,
            _ => message,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}
