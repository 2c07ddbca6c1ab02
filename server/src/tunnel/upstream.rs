//! HTTP to instances: pooled connections, and what went wrong in words.

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode};
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, Uri, uri::PathAndQuery};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tower::Service;

use super::{Backend, Backends, backend::Wire};

/// A container on this machine answers at once or not at all.
const CONNECTING: Duration = Duration::from_secs(5);

/// A container runs a moment before its application listens; who asks then waits, and sees no error.
pub(super) const OPENING: Duration = Duration::from_secs(2);
const OPENING_STEP_MIN: Duration = Duration::from_millis(10);
const OPENING_STEP_MAX: Duration = Duration::from_millis(160);

/// From the end of the request to the head of the answer: reports and exports take minutes.
pub(super) const ANSWERING: Duration = Duration::from_secs(300);

/// Shorter than the 5 s after which many servers close an idle connection, so that we are never the one who is surprised.
const POOL_IDLE: Duration = Duration::from_secs(3);

/// Instances whose connections may be in the pool: more than a cluster has in use at one time.
const INSTANCES_MAX: usize = 1024;

/// Idle connections to one container: a page's worth of assets.
const POOL_IDLE_MAX: usize = 16;

/// Head of an answer. What does not fit into a frame of 64 KiB could not be passed on anyway. Bytes.
const HEAD_MAX: usize = 128 * 1024;

/// A request body; its errors end the request.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Upstream {
    client: Client<Connector, RequestBody>,
    connector: Connector,
}

impl Upstream {
    pub(super) fn new(backends: Arc<dyn Backends>) -> Self {
        let connector = Connector { backends, known: Arc::default() };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_MAX)
            .http1_max_buf_size(HEAD_MAX.max(512 * 1024))
            .http1_ignore_invalid_headers_in_responses(true)
            // Header names as the service wrote them do not matter to a browser.
            .http1_title_case_headers(false)
            .build(connector.clone());
        Self { client, connector }
    }

    /// Sends a request that changes nothing if it is sent twice, on a pooled connection; resolves with the head of the answer.
    /// Dropping the future, or the answer's body, drops the connection.
    pub(super) async fn send(
        &self,
        backend: &Backend,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let authority = self.connector.name(backend);
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
        *request.uri_mut() = uri.map_err(|error| UpstreamError::Request { source: error.into() })?;
        self.client.request(request).await.map_err(|error| {
            if error.is_connect() {
                UpstreamError::Connect { port: backend.address.port(), source: error.into() }
            } else {
                UpstreamError::Request { source: error.into() }
            }
        })
    }

    /// A connection of one's own, for what must not be sent twice: so it is known whether anything was sent at all.
    pub(super) async fn connect(&self, backend: &Backend) -> Result<crate::peers::Stream, UpstreamError> {
        let connected = self.connector.backends.connect(backend).await;
        connected.map_err(|error| UpstreamError::Connect { port: backend.address.port(), source: error.into() })
    }

    /// Sends a request on a connection of its own; else as [`send`](Self::send).
    pub(super) async fn send_on(
        &self,
        connection: crate::peers::Stream,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let broken = |error: hyper::Error| UpstreamError::Request { source: error.into() };
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX.max(512 * 1024))
            .ignore_invalid_headers_in_responses(true)
            .handshake(TokioIo::new(Wire(connection)))
            .await
            .map_err(broken)?;
        // Ends with the answer's body, or when that or the request is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an application broke");
            }
        });
        sender.send_request(request).await.map_err(broken)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

/// A connection to an application, as soon as it listens.
///
/// # Errors
/// Nobody listens for [`OPENING`], or nothing answers for [`CONNECTING`].
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let began = Instant::now();
    let mut step = OPENING_STEP_MIN;
    loop {
        match timeout(CONNECTING, TcpStream::connect(address)).await.map_err(io::Error::from).flatten() {
            Ok(stream) => {
                // A message of a terminal or a notebook must not wait for the next one; failing that it is slower, and no error.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && began.elapsed() < OPENING => {
                sleep(step).await;
                step = (step * 2).min(OPENING_STEP_MAX);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Connects for the pool, which knows an instance by the name that stands in a request's URI.
#[derive(Clone)]
struct Connector {
    backends: Arc<dyn Backends>,
    known: Arc<Mutex<HashMap<String, Backend>>>,
}

impl Connector {
    /// Addresses alone would not do: each machine's engine gives out the same.
    fn name(&self, backend: &Backend) -> String {
        let machine = backend.machine.as_ref().map_or("here", |machine| machine.0.as_str());
        let name = format!("{}.{machine}", backend.container);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= INSTANCES_MAX && !known.contains_key(&name) {
            known.clear();
        }
        known.insert(name.clone(), backend.clone());
        name
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = uri.authority().and_then(|authority| known.get(authority.as_str())).cloned();
        let connecting = backend.map(|backend| self.backends.connect(&backend));
        async move {
            let connecting = connecting.ok_or(io::ErrorKind::InvalidInput)?;
            Ok(TokioIo::new(Wire(connecting.await?)))
        }
        .boxed()
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error(
        "the container does not answer on port {port}; check that the application listens on it, on all addresses (0.0.0.0)"
    )]
    Connect { port: u16, source: BoxError },
    #[error("the application broke off the connection without an answer; look at its log")]
    Request { source: BoxError },
    #[error(
        "the instance that worked on this request stopped or moved before it answered; look whether it was done before you \
         repeat it"
    )]
    Moved,
    #[error("the application gave no answer within {} s", within.as_secs())]
    Silent { within: Duration },
    #[error("the application's answer has a head that is too large to pass on (64 KiB)")]
    HeadTooLarge,
    #[error("the application's answer is encoded as `{coding}`, which was not asked for and can't be decoded")]
    Coding { coding: String },
}

impl UpstreamError {
    /// The service worker gave up the upload, or it broke the rules: its own fault, not the application's.
    pub(super) fn is_from_body(&self) -> bool {
        let Self::Request { source } = self else { return false };
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
        while let Some(error) = source {
            if error.is::<super::request::UploadBroken>() {
                return true;
            }
            source = error.source();
        }
        false
    }
}

impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        let code = match error {
            UpstreamError::Connect { .. } => ErrorCode::PortClosed,
            UpstreamError::Silent { .. } => ErrorCode::Timeout,
            UpstreamError::Request { .. }
            | UpstreamError::Moved
            | UpstreamError::HeadTooLarge
            | UpstreamError::Coding { .. } => ErrorCode::ServiceUnavailable,
        };
        Self::new(code, error.to_string())
    }
}
