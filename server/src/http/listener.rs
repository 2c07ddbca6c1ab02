//! The listener: accepts, serves HTTP/1.1, and drains when the node stops.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App, gate,
    meter::{Meter, Metered},
};

/// How long a client may take to send a request's head, and how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's head: a token, a proof and what browsers add.
const HEAD_MAX: usize = 64 * 1024;

/// How long requests under way may take when the node stops.
const DRAIN: Duration = Duration::from_secs(5);

/// After `accept` failed, most often because there are no file descriptors left, some connections have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// # Errors
/// Says what holds the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::InUse { address },
        io::ErrorKind::PermissionDenied => Error::Forbidden { address },
        _ => Error::Bind { address, source },
    })
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another program listens on {address}; stop it, or choose another address with --listen")]
    InUse { address: SocketAddr },
    #[error("this user may not listen on {address}; choose a port from 1024 with --listen")]
    Forbidden { address: SocketAddr },
    #[error("failed to listen on {address} ({source}); choose another address with --listen")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Serves until `stop`, then lets requests under way finish.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let router = super::router(app.clone());
    let places = Arc::new(Semaphore::new(app.config.limits.connections as usize));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    tasks.spawn(connection(stream, peer, app.clone(), router.clone(), stop.clone(), place));
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

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    app: Arc<App>,
    router: Router,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    // A signalling message is small, and the browser waits for it.
    let _ = stream.set_nodelay(true);
    let meter = Arc::new(Meter::new(&app.metrics));
    app.metrics.connections().inc();
    let io = TokioIo::new(Metered { io: stream, meter: meter.clone() });
    let gauge = app.metrics.connections().clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (app, router, meter) = (app.clone(), router.clone(), meter.clone());
        let request: Request = request.map(Body::new);
        async move { Ok::<_, std::convert::Infallible>(gate::answer(app, router, peer, meter, request).await) }
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
