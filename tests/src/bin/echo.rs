//! A service that shows how it was called, for what no ordinary application can tell: packed into an image with the
//! libraries that it links, and nothing else.
//!
//! `flotilla-echo --exit CODE` ends at once; `--listen-after MS` is slow to start; `--unhealthy` answers 503 on `/healthz`;
//! `--check` is a health check's client: it succeeds if `/healthz` of the running one does.
#![allow(clippy::print_stdout, reason = "its output is what `flotilla logs` is tested with")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Form, Path, Query, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket},
    },
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{Html, IntoResponse, Redirect, Response, Sse, sse::Event},
    routing::{any, get, post},
};
use flotilla_tests::body::{hex, noise_chunks};
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::interval,
};

const PORT: u16 = 8080;

const PAGE: &str = include_str!("echo.html");

/// What is under way, so that a test sees when a browser's abort arrives.
#[derive(Debug, Default)]
struct Open {
    events: AtomicU64,
    drips: AtomicU64,
    uploads: AtomicU64,
    sockets: AtomicU64,
    hits: AtomicU64,
    unhealthy: AtomicBool,
}

type Shared = Arc<Open>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let open = Shared::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--check" => std::process::exit(i32::from(!check().await?)),
            "--exit" => {
                println!("echo ends with code {value}");
                std::process::exit(value.parse()?);
            }
            "--listen-after" => tokio::time::sleep(Duration::from_millis(value.parse()?)).await,
            "--unhealthy" => open.unhealthy.store(true, Ordering::Relaxed),
            _ => anyhow::bail!("unknown argument {argument}"),
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    println!("echo listens on {}", listener.local_addr()?);
    let stop = async {
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
        if let Some(term) = &mut term {
            term.recv().await;
        }
        println!("echo stops");
    };
    tokio::select! {
        served = axum::serve(listener, router(open)).into_future() => served?,
        () = stop => {}
    }
    Ok(())
}

async fn check() -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

fn router(open: Shared) -> Router {
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/frame-denied", get(frame_denied))
        .route("/healthz", get(healthz))
        .route("/health", post(set_health))
        .route("/request", any(request))
        .route("/bytes/{len}", get(bytes))
        .route("/sink", post(sink).put(sink))
        .route("/form", post(form))
        .route("/greeting", get(greeting))
        .route("/redirect/{code}", any(redirect))
        .route("/events", get(events))
        .route("/drip", get(drip))
        .route("/open", get(under_way))
        .route("/ws", get(socket))
        .route("/cookies/set", get(set_cookies))
        .route("/cookies", get(cookies))
        .route("/status/{code}", any(status))
        .route("/etag", get(etag))
        .route("/gzip", get(gzip))
        .route("/env/{name}", get(environment))
        .route("/files/{name}", get(read_file).put(write_file))
        .route("/log/{line}", post(log))
        .route("/exit/{code}", post(exit))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(open)
}

async fn healthz(State(open): State<Shared>) -> StatusCode {
    if open.unhealthy.load(Ordering::Relaxed) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

async fn set_health(State(open): State<Shared>, body: String) {
    open.unhealthy.store(body == "bad", Ordering::Relaxed);
}

async fn frame_denied() -> impl IntoResponse {
    let headers = [
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'self'; script-src 'nonce-abc'; frame-ancestors 'none'"),
    ];
    (
        headers,
        Html("<!doctype html><title>Denied</title><p id=out></p><script nonce=abc>out.textContent = 'ran'</script>"),
    )
}

/// How this request looks from the service.
async fn request(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Json<Value> {
    let headers: BTreeMap<_, _> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    Json(json!({
        "method": method.as_str(),
        "path": uri.path_and_query().map(ToString::to_string),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
}

/// Noise of a length, whole or a range of it (RFC 9110, 14).
async fn bytes(Path(len): Path<u64>, Query(query): Query<BTreeMap<String, String>>, headers: HeaderMap) -> Response {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(|range| parse_range(range, len));
    let (status, from, to) = match range {
        None => (StatusCode::OK, 0, len),
        Some(Some((from, to))) => (StatusCode::PARTIAL_CONTENT, from, to),
        Some(None) => {
            return (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, format!("bytes */{len}"))])
                .into_response();
        }
    };
    let body = Body::from_stream(stream::iter(noise_chunks(from, to - from).map(Ok::<_, Infallible>)));
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::from_str(&format!("bytes {from}-{}/{len}", to - 1))
    {
        headers.insert(header::CONTENT_RANGE, value);
    }
    if !query.contains_key("chunked") {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
    }
    response
}

/// One range of the three forms `a-b`, `a-` and `-n`, as offsets `from..to`.
fn parse_range(range: &str, len: u64) -> Option<(u64, u64)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (from.parse::<u64>().ok(), to.parse::<u64>().ok()) {
        (Some(from), Some(last)) => (from, last.saturating_add(1).min(len)),
        (Some(from), None) => (from, len),
        (None, Some(tail)) => (len.saturating_sub(tail), len),
        (None, None) => return None,
    };
    (from < to).then_some((from, to))
}

/// Counts one of the numbers in [`Open`] up, and down when whatever holds it is dropped.
struct Counted(Shared, fn(&Open) -> &AtomicU64);

impl Counted {
    fn new(open: &Shared, which: fn(&Open) -> &AtomicU64) -> Self {
        which(open).fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes any body and says what came.
async fn sink(State(open): State<Shared>, headers: HeaderMap, body: Body) -> Result<Json<Value>, StatusCode> {
    let _counted = Counted::new(&open, |open| &open.uploads);
    let mut hash = Sha256::new();
    let mut count = 0;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        count += chunk.len();
        hash.update(&chunk);
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    Ok(Json(json!({
        "bytes": count,
        "sha256": hex(&hash.finalize()),
        "content_length": text(header::CONTENT_LENGTH),
        "content_type": text(header::CONTENT_TYPE),
    })))
}

async fn form(Form(fields): Form<BTreeMap<String, String>>) -> Redirect {
    let name = fields.get("name").cloned().unwrap_or_default();
    let query: String = url::form_urlencoded::Serializer::new(String::new()).append_pair("name", &name).finish();
    Redirect::to(&format!("/greeting?{query}"))
}

async fn greeting(Query(query): Query<BTreeMap<String, String>>) -> Html<String> {
    let name = query.get("name").cloned().unwrap_or_default().replace('&', "&amp;").replace('<', "&lt;");
    Html(format!("<!doctype html><title>Greeting</title><p id=\"greeting\">Good day, {name}.</p>"))
}

async fn redirect(Path(code): Path<u16>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let to = query.get("to").map_or("/request", String::as_str).to_owned();
    (StatusCode::from_u16(code).unwrap_or(StatusCode::FOUND), [(header::LOCATION, to)]).into_response()
}

/// Endless server-sent events: a number every 50 ms.
async fn events(State(open): State<Shared>, headers: HeaderMap) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let counted = Counted::new(&open, |open| &open.events);
    let last: u64 =
        headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok()).unwrap_or_default();
    Sse::new(stream::unfold(
        (interval(Duration::from_millis(50)), last + 1, counted),
        |(mut ticks, n, counted)| async move {
            ticks.tick().await;
            Some((Ok(Event::default().id(n.to_string()).data(n.to_string())), (ticks, n + 1, counted)))
        },
    ))
}

/// Endless bytes, 64 KiB every 10 ms: for aborts, and for a reader that stops reading.
async fn drip(State(open): State<Shared>) -> Body {
    let counted = Counted::new(&open, |open| &open.drips);
    Body::from_stream(stream::unfold(
        (interval(Duration::from_millis(10)), counted),
        |(mut ticks, counted)| async move {
            ticks.tick().await;
            Some((Ok::<_, Infallible>(Bytes::from_static(&[b'.'; 64 * 1024])), (ticks, counted)))
        },
    ))
}

async fn under_way(State(open): State<Shared>) -> Json<Value> {
    let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    Json(json!({
        "events": of(&open.events), "drips": of(&open.drips), "uploads": of(&open.uploads), "sockets": of(&open.sockets),
    }))
}

/// Sends back what it gets. `close CODE REASON` closes; `big N` sends N bytes of text.
async fn socket(State(open): State<Shared>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    let counted = Counted::new(&open, |open| &open.sockets);
    let cookie = headers.get(header::COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    upgrade
        .protocols(["echo.v2", "echo.v1"])
        .max_message_size(32 << 20)
        .on_upgrade(move |socket| async move { echo(socket, cookie, counted).await })
}

async fn echo(mut socket: WebSocket, cookie: String, _counted: Counted) {
    while let Some(Ok(message)) = socket.recv().await {
        let answer = match &message {
            Message::Text(text) if text.as_str() == "cookie" => Message::text(cookie.clone()),
            Message::Text(text) if text.starts_with("close ") => {
                let mut words = text.splitn(3, ' ').skip(1);
                let code = words.next().and_then(|code| code.parse().ok()).unwrap_or(1000);
                let reason = words.next().unwrap_or_default().into();
                let _ = socket.send(Message::Close(Some(CloseFrame { code, reason }))).await;
                continue;
            }
            Message::Text(text) if text.starts_with("big ") => {
                Message::text("x".repeat(text[4..].parse().unwrap_or_default()))
            }
            Message::Text(_) | Message::Binary(_) => message,
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => continue,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

async fn set_cookies() -> impl IntoResponse {
    let mut headers = HeaderMap::new();
    for cookie in ["visible=yes; Path=/", "hidden=secret; Path=/; HttpOnly", "elsewhere=no; Path=/somewhere"] {
        headers.append(header::SET_COOKIE, HeaderValue::from_static(cookie));
    }
    (headers, "set")
}

async fn cookies(headers: HeaderMap) -> String {
    headers.get(header::COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

async fn status(Path(code): Path<u16>) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
    if matches!(code, 204 | 304) { status.into_response() } else { (status, format!("status {code}")).into_response() }
}

/// A cacheable answer that counts how often it was really made.
async fn etag(State(open): State<Shared>, headers: HeaderMap) -> Response {
    let tag = [(header::ETAG, "\"one\""), (header::CACHE_CONTROL, "no-cache")];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|seen| seen == "\"one\"") {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    let made = open.hits.fetch_add(1, Ordering::Relaxed) + 1;
    (tag, made.to_string()).into_response()
}

/// Twenty bytes of gzip, whatever was asked for: `hello` compressed.
async fn gzip() -> impl IntoResponse {
    const HELLO: &[u8] =
        &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 7, 0, 0x86, 0xa6, 0x10, 0x36, 5, 0, 0, 0];
    ([(header::CONTENT_ENCODING, "gzip"), (header::CONTENT_TYPE, "text/plain")], HELLO)
}

async fn environment(Path(name): Path<String>) -> Result<String, StatusCode> {
    std::env::var(name).map_err(|_| StatusCode::NOT_FOUND)
}

fn file(name: &str) -> PathBuf {
    PathBuf::from("/data").join(name)
}

async fn read_file(Path(name): Path<String>) -> Result<Vec<u8>, StatusCode> {
    tokio::fs::read(file(&name)).await.map_err(|_| StatusCode::NOT_FOUND)
}

async fn write_file(Path(name): Path<String>, body: Bytes) -> Result<(), (StatusCode, String)> {
    tokio::fs::write(file(&name), body).await.map_err(|error| (StatusCode::INSUFFICIENT_STORAGE, error.to_string()))
}

async fn log(Path(line): Path<String>) {
    println!("{line}");
    eprintln!("error: {line}");
}

async fn exit(Path(code): Path<i32>) {
    println!("echo was told to end with code {code}");
    std::process::exit(code);
}
