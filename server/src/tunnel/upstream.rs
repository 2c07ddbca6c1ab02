//! HTTP to containers: pooled connections, and what went wrong in words.

use std::{
    fmt, io,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode};
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tower::Service;

/// A container on this machine answers at once or not at all.
const CONNECTING: Duration = Duration::from_secs(5);

/// A container runs a moment before its application listens; who asks then waits, and sees no error.
const OPENING: Duration = Duration::from_secs(2);
const OPENING_STEP_MIN: Duration = Duration::from_millis(10);
const OPENING_STEP_MAX: Duration = Duration::from_millis(160);

/// From the end of the request to the head of the answer: reports and exports take minutes.
pub(super) const ANSWERING: Duration = Duration::from_secs(300);

/// Shorter than the 5 s after which many servers close an idle connection, so that we are never the one who is surprised.
const POOL_IDLE: Duration = Duration::from_secs(3);

/// Idle connections to one container: a page's worth of assets.
const POOL_IDLE_MAX: usize = 16;

/// Head of an answer. What does not fit into a frame of 64 KiB could not be passed on anyway. Bytes.
const HEAD_MAX: usize = 128 * 1024;

/// A request body; its errors end the request.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Upstream {
    client: Client<Connector, RequestBody>,
}

impl Upstream {
    pub(super) fn new() -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_MAX)
            .http1_max_buf_size(HEAD_MAX.max(512 * 1024))
            .http1_ignore_invalid_headers_in_responses(true)
            // Header names as the service wrote them do not matter to a browser.
            .http1_title_case_headers(false)
            .build(Connector);
        Self { client }
    }

    /// Sends a request; resolves with the head of the answer. Dropping the future, or the answer's body, drops the connection.
    pub(super) async fn send(
        &self,
        address: SocketAddr,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        self.client.request(request).await.map_err(|error| {
            if error.is_connect() {
                UpstreamError::Connect { port: address.port(), source: error.into() }
            } else {
                UpstreamError::Request { source: error.into() }
            }
        })
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
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
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

/// [`connect`] for the pool. The address in the URI is that of a container.
#[derive(Clone)]
struct Connector;

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let address = uri.authority().and_then(|authority| authority.as_str().parse().ok());
        async move { Ok(TokioIo::new(connect(address.ok_or(io::ErrorKind::InvalidInput)?).await?)) }.boxed()
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
            UpstreamError::Request { .. } | UpstreamError::HeadTooLarge | UpstreamError::Coding { .. } => {
                ErrorCode::ServiceUnavailable
            }
        };
        Self::new(code, error.to_string())
    }
}
