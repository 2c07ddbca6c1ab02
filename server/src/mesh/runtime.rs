//! What WebRTC runs on: tokio, with larger socket buffers and a driver that does not sleep on unsent output.
//!
//! The driver of `webrtc` 0.21 writes, handles events, reads, and then sleeps until its next timer. What reading produced (a
//! handshake flight, a relayed packet) waits out that sleep, up to 200 ms for each step of a set-up. The only place to mend
//! that from outside is [`Runtime::sleep`]: after each packet the next few sleeps are short, so that the driver comes round
//! and sends what it holds. A connection without packets sleeps as long as it likes.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use webrtc::runtime::{
    AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime, TokioRuntime,
    Transmit,
};

use super::port::Claim;

/// The default of 208 KiB overflows at once, and each loss there costs a retransmission timeout of a second. Bytes.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// How long the driver may hold unsent output while there is traffic or the connection is being set up.
const SHORT_SLEEP: Duration = Duration::from_millis(2);

/// Passes with a short sleep after each packet: one sends what the packet caused, the others what that caused in turn.
const SHORT_PASSES: u32 = 4;

/// A connection that nobody completes must not keep its driver busy for ever.
const SET_UP: Duration = Duration::from_secs(15);

/// The [`Runtime`] of one connection; it knows whether that connection has traffic.
pub(crate) struct MeshRuntime {
    inner: TokioRuntime,
    pulse: Arc<Pulse>,
    claim: Arc<Claim>,
}

impl MeshRuntime {
    pub(super) fn new(claim: Arc<Claim>) -> Self {
        Self { inner: TokioRuntime, pulse: Arc::new(Pulse::default()), claim }
    }

    pub(crate) fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }
}

impl fmt::Debug for MeshRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshRuntime").field("pulse", &self.pulse).finish_non_exhaustive()
    }
}

/// Whether a connection has something to do soon.
#[derive(Debug)]
pub(crate) struct Pulse {
    began: Instant,
    /// Milliseconds from `began` until which a set-up may take; 0 while there is none.
    set_up_until: AtomicU64,
    short_passes: AtomicU32,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            set_up_until: AtomicU64::new(0),
            short_passes: AtomicU32::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }
}

impl Pulse {
    /// A description was made or taken: handshakes follow.
    pub(crate) fn begin_set_up(&self) {
        self.set_up_until.store(self.millis() + millis(SET_UP), Ordering::Relaxed);
    }

    /// The connection is up, or given up.
    pub(crate) fn end_set_up(&self) {
        self.set_up_until.store(0, Ordering::Relaxed);
    }

    /// Bytes of all packets so far: sent, and received.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    fn millis(&self) -> u64 {
        millis(self.began.elapsed())
    }

    fn packet(&self) {
        self.short_passes.store(SHORT_PASSES, Ordering::Relaxed);
    }

    fn shorten(&self, wanted: Duration) -> Duration {
        let take = |left: u32| left.checked_sub(1);
        if self.set_up_until.load(Ordering::Relaxed) > self.millis()
            || self.short_passes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
        {
            wanted.min(SHORT_SLEEP)
        } else {
            wanted
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Runtime for MeshRuntime {
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn JoinHandle> {
        self.inner.spawn(future)
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let inner = match self.claim.wrap(&socket) {
            Some(view) => view,
            None => {
                enlarge_buffers(&socket);
                self.inner.wrap_udp_socket(socket)?
            }
        };
        Ok(Arc::new(MeshSocket { inner, pulse: Arc::clone(&self.pulse) }))
    }

    fn wrap_tcp_listener(&self, listener: std::net::TcpListener) -> io::Result<Arc<dyn AsyncTcpListener>> {
        self.inner.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(
        &'a self,
        remote_addr: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Arc<dyn AsyncTcpStream>>> + Send + 'a>> {
        self.inner.connect_tcp(remote_addr)
    }

    fn resolve_host<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        self.inner.resolve_host(host)
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.inner.sleep(self.pulse.shorten(duration))
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        self.inner.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.inner.block_on(future);
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.inner.yield_now()
    }

    fn name(&self) -> &'static str {
        "flotilla"
    }
}

/// Asks for larger buffers; the kernel gives what its limits allow, and less only costs speed.
pub(super) fn enlarge_buffers(socket: &std::net::UdpSocket) {
    let options = socket2::SockRef::from(socket);
    let asked = options.set_recv_buffer_size(SOCKET_BUFFER).and_then(|()| options.set_send_buffer_size(SOCKET_BUFFER));
    if let Err(error) = asked {
        tracing::debug!(%error, "the kernel refused larger UDP buffers");
        return;
    }
    // Linux reports twice what it granted.
    let granted = options.recv_buffer_size().unwrap_or(0);
    if granted < SOCKET_BUFFER
        && rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER).is_err()
    {
        tracing::debug!(
            granted,
            "UDP buffers are small; raise net.core.rmem_max and net.core.wmem_max to 4194304 for speed"
        );
    }
}

struct MeshSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    pulse: Arc<Pulse>,
}

impl fmt::Debug for MeshSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for MeshSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        match self.inner.poll_send(cx, transmit) {
            Poll::Ready(Ok(sent)) => {
                self.pulse.packet();
                self.pulse.sent.fetch_add(sent as u64, Ordering::Relaxed);
                Poll::Ready(Ok(sent))
            }
            // A candidate of the other side that can't be reached from this address is a lost packet, no error: the
            // checks of other pairs go on.
            Poll::Ready(Err(error)) => {
                tracing::trace!(%error, to = %transmit.destination, "datagram not sent");
                Poll::Ready(Ok(transmit.contents.len()))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(messages)) = &received {
            self.pulse.packet();
            let bytes: usize = meta.iter().take(*messages).map(|message| message.len).sum();
            self.pulse.received.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        received
    }

    fn max_gso_segments(&self) -> usize {
        self.inner.max_gso_segments()
    }

    fn max_gro_segments(&self) -> usize {
        self.inner.max_gro_segments()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_connection_without_packets_sleeps_undisturbed() {
        let pulse = Pulse::default();
        assert_eq!(pulse.shorten(LONG), LONG);
    }

    #[test]
    fn a_packet_shortens_the_next_sleeps_and_no_more() {
        let pulse = Pulse::default();
        pulse.packet();
        for _ in 0..SHORT_PASSES {
            assert_eq!(pulse.shorten(LONG), SHORT_SLEEP);
        }
        assert_eq!(pulse.shorten(LONG), LONG);
    }

    #[test]
    fn a_set_up_shortens_every_sleep_until_it_is_over() {
        let pulse = Pulse::default();
        pulse.begin_set_up();
        assert!((0..100).all(|_| pulse.shorten(LONG) == SHORT_SLEEP));
        pulse.end_set_up();
        assert_eq!(pulse.shorten(LONG), LONG);
    }
}
