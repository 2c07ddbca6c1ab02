//! Where a service runs, as the tunnel asks for it, and what its connections are.

use std::{
    any::Any,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use flotilla_api::{ApiError, NodeId, ServiceName};
use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::peers;

/// An instance that takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub service: ServiceName,
    /// The machine that it runs on; absent where that is this one.
    pub machine: Option<NodeId>,
    /// The engine's id of its container.
    pub container: String,
    /// Of its port, in its machine's own network.
    pub address: SocketAddr,
}

/// Held as long as a request is under way: meanwhile its instance is not stopped, if it can be helped.
pub struct Hold(#[expect(dead_code, reason = "it counts as long as it is there")] Option<Box<dyn Any + Send + Sync>>);

impl Hold {
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(held)))
    }

    /// Holds nothing.
    pub fn none() -> Self {
        Self(None)
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

/// Where services are.
pub trait Backends: Send + Sync + 'static {
    /// Is there such a service?
    ///
    /// # Errors
    /// `ServiceNotFound`, with a sentence that the person will read.
    fn check(&self, service: &ServiceName) -> Result<(), ApiError>;

    /// The instance that the next request goes to: not the one that just failed, if there is another. Where none takes requests
    /// because the service moves, it waits a while for that.
    ///
    /// # Errors
    /// `ServiceNotFound`, `ServiceStopped`, `ServiceUnavailable` or `PortClosed`, with a sentence that the person will read.
    fn choose<'a>(
        &'a self,
        service: &'a ServiceName,
        failed: Option<&'a Backend>,
    ) -> BoxFuture<'a, Result<(Backend, Hold), ApiError>>;

    /// A connection to the instance's port, as soon as its application listens.
    ///
    /// # Errors
    /// Nobody listens, for a while; or the way there is broken.
    fn connect(&self, backend: &Backend) -> BoxFuture<'static, io::Result<peers::Stream>>;

    /// Resolves when the instance can't answer any more: it ended, was frozen, or its machine is lost.
    fn lost<'a>(&'a self, backend: &'a Backend) -> BoxFuture<'a, ()>;
}

/// A connection, as the pool wants it.
pub(super) struct Wire(pub(super) peers::Stream);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
