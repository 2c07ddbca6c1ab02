//! Counts each byte of a connection to what it was for, so that it can be shown what the listener carried.
//!
//! HTTP/1.1 has one request at a time on a connection. The bytes of its head are read before it is known what it is for, so
//! they wait until then; its answer's bytes are written until the next request is known.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    response::Response,
};
use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::metrics::{Direction, Metrics, Traffic};

/// The figures of one connection.
#[derive(Debug)]
pub(super) struct Meter {
    received: [Counter; Traffic::ALL.len()],
    sent: [Counter; Traffic::ALL.len()],
    /// What is read now belongs to `Traffic::ALL[reading]`; `UNKNOWN` between requests.
    reading: AtomicUsize,
    writing: AtomicUsize,
    /// Bytes read while `reading` was `UNKNOWN`.
    waiting: AtomicU64,
}

const UNKNOWN: usize = usize::MAX;

impl Meter {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            received: Traffic::ALL.map(|traffic| metrics.listener_bytes(traffic, Direction::Received)),
            sent: Traffic::ALL.map(|traffic| metrics.listener_bytes(traffic, Direction::Sent)),
            reading: AtomicUsize::new(UNKNOWN),
            // What is written before any request is known answers what was no HTTP.
            writing: AtomicUsize::new(Traffic::Refused as usize),
            waiting: AtomicU64::new(0),
        }
    }

    /// A request's head was read, and it is for `traffic`.
    pub(super) fn begin(&self, traffic: Traffic) {
        self.writing.store(traffic as usize, Ordering::Relaxed);
        self.reading.store(traffic as usize, Ordering::Relaxed);
        self.received[traffic as usize].inc_by(self.waiting.swap(0, Ordering::Relaxed));
    }

    /// The answer is complete: what comes next is another request's head.
    fn end(&self) {
        self.reading.store(UNKNOWN, Ordering::Relaxed);
    }

    fn count_received(&self, bytes: u64) {
        match self.received.get(self.reading.load(Ordering::Relaxed)) {
            Some(counter) => drop(counter.inc_by(bytes)),
            None => drop(self.waiting.fetch_add(bytes, Ordering::Relaxed)),
        }
    }

    fn count_sent(&self, bytes: u64) {
        if let Some(counter) = self.sent.get(self.writing.load(Ordering::Relaxed)) {
            counter.inc_by(bytes);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.received[Traffic::Refused as usize].inc_by(*self.waiting.get_mut());
    }
}

/// A connection whose bytes are counted.
#[derive(Debug)]
pub(super) struct Metered<T> {
    pub(super) io: T,
    pub(super) meter: Arc<Meter>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.io).poll_read(cx, buf);
        self.meter.count_received((buf.filled().len() - before) as u64);
        poll
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(&poll);
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: AsFd> AsFd for Metered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<T> Metered<T> {
    fn count(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.meter.count_sent(*bytes as u64);
        }
    }
}

/// An answer whose body tells the meter when it ends.
pub(super) fn until_sent(response: Response, meter: Arc<Meter>) -> Response {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // From now on the connection is one WebSocket or one TLS link, and all of it is of this kind.
        return response;
    }
    response.map(|body| Body::new(Sending { body, meter }))
}

struct Sending {
    body: Body,
    meter: Arc<Meter>,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.meter.end();
    }
}
