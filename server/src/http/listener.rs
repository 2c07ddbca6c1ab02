//! The listener: accepts, serves HTTP/1.1, and drains when the node stops.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Reception,
    meter::{Meter, Metered},
    tls::Acceptor,
};
use crate::config::Config;

/// How long a client may take to send a request's head, and how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's head: a token, a proof and what browsers add.
const HEAD_MAX: usize = 64 * 1024;

/// How long requests under way may take when the node stops.
const DRAIN: Duration = Duration::from_secs(5);

/// After `accept` failed, most often because there are no file descriptors left, some connections have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An address that is listened on, and the certificate for it.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    tls: Option<Acceptor>,
}

impl Listener {
    /// # Errors
    /// Says what holds the address, or what is wrong with the certificate.
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let address = config.listen;
        let tls = match config.tls.files() {
            Some((certificate, key)) => Some(Acceptor::load(certificate, key)?),
            None => None,
        };
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => Error::InUse { address },
            io::ErrorKind::PermissionDenied => Error::Forbidden { address },
            _ => Error::Bind { address, source },
        };
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(Self { tcp, address, tls })
    }

    /// Where it listens: with port 0 the one that was free.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another program listens on {address}; stop it, or choose another address with --listen")]
    InUse { address: SocketAddr },
    #[error("this user may not listen on {address}; choose a port from 1024 with --listen")]
    Forbidden { address: SocketAddr },
    #[error(transparent)]
    Tls(#[from] super::tls::Error),
    #[error("failed to listen on {address} ({source}); choose another address with --listen")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

impl Listener {
    /// Serves until `stop`, then lets requests under way finish.
    pub async fn serve(self, reception: Arc<Reception>, stop: CancellationToken) {
        let Self { tcp, tls, .. } = self;
        let watching = tls.clone().map(|tls| tokio::spawn(tls.watch(stop.clone())));
        serve(tcp, tls, reception, stop).await;
        if let Some(watching) = watching {
            watching.abort();
        }
    }
}

async fn serve(listener: TcpListener, tls: Option<Acceptor>, reception: Arc<Reception>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(reception.limits.connections as usize));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let (reception, stop, tls) = (reception.clone(), stop.clone(), tls.clone());
                    tasks.spawn(async move {
                        // A signalling message is small, and the browser waits for it.
                        let _ = stream.set_nodelay(true);
                        match tls {
                            None => connection(stream, peer, reception, stop).await,
                            Some(tls) => {
                                if let Some(stream) = tls.accept(stream).await {
                                    connection(stream, peer, reception, stop).await;
                                }
                            }
                        }
                        drop(place);
                    });
                }
                // Closed at once: a client that is told nothing tries again, one that waits would hold a descriptor.
                Err(_) => tracing::warn!(%peer, "too many connections"),
            },
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "stopped with requests under way");
    }
}

async fn connection<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: T,
    peer: SocketAddr,
    reception: Arc<Reception>,
    stop: CancellationToken,
) {
    let meter = Arc::new(Meter::new(&reception.metrics));
    let gauge = reception.metrics.connections().clone();
    gauge.inc();
    let io = TokioIo::new(Metered { io: stream, meter: meter.clone() });
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (reception, meter) = (reception.clone(), meter.clone());
        let request: Request = request.map(Body::new);
        async move { Ok::<_, std::convert::Infallible>(reception.answer(peer, meter, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(io, service)
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
        tracing::debug!(%peer, %error, "connection ended early");
    }
    gauge.dec();
}
