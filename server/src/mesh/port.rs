//! One UDP port for all connections of a node, so that a firewall or a router has one port to open.
//!
//! The library binds a socket for each connection and address; [`Claim::wrap`] puts a view of the shared socket in its place. What
//! arrives belongs to the connection that the sender's address is known for, and an address becomes known by a STUN request, which
//! names the connection (RFC 8445, 7.2.2), or by what is sent there. The session description then names the shared port.
//!
//! Two connections between the same two ports can't be told apart. So of two nodes one uses its shared port for a connection,
//! and the other a port of its own.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::task::AtomicWaker;
use tokio::{io::Interest, net::UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};
use webrtc::runtime::{AsyncUdpSocket, RecvMeta, Transmit, UdpSockRef, UdpSocketState};

/// Datagrams of one connection that it has not taken yet, as a socket of its own would hold them. Bytes.
const QUEUE_MAX: usize = 4 * 1024 * 1024;
/// What a batch costs at least, so that empty ones are bounded too.
const BATCH_COST_MIN: usize = 256;

/// Addresses of the other end that one connection is known for: its candidates, and those that checks reveal.
const REMOTES_MAX: usize = 64;

/// Batches read in one system call, each of as many datagrams as the kernel coalesces.
const BATCHES: usize = 4;

/// The largest datagram that is coalesced.
const DATAGRAM: usize = 1500;

/// A port that connections share. Sockets are bound to it as they are wanted, one for each address of the machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Port {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// 0 until the kernel has chosen one.
    number: AtomicU16,
    refused: AtomicBool,
    sockets: Mutex<HashMap<IpAddr, Weak<SharedSocket>>>,
    #[cfg(test)]
    muted: AtomicBool,
}

impl Port {
    /// 0 takes a free one.
    pub fn new(number: u16) -> Self {
        let inner = Inner {
            number: AtomicU16::new(number),
            refused: AtomicBool::new(false),
            sockets: Mutex::default(),
            #[cfg(test)]
            muted: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The number; 0 if it was left to the kernel and nothing is bound yet.
    pub fn number(&self) -> u16 {
        self.inner.number.load(Ordering::Relaxed)
    }

    /// Whether nothing arrives and nothing leaves, as if the cable were pulled.
    #[cfg(test)]
    pub(super) fn mute(&self, muted: bool) {
        self.inner.muted.store(muted, Ordering::Relaxed);
    }

    /// `None` if the port is not to be had on this address: a connection then has a port of its own there.
    fn socket(&self, address: IpAddr) -> Option<Arc<SharedSocket>> {
        let mut sockets = lock(&self.inner.sockets);
        if let Some(socket) = sockets.get(&address).and_then(Weak::upgrade) {
            return Some(socket);
        }
        sockets.retain(|_, socket| socket.strong_count() > 0);
        let bound = SharedSocket::bind(
            SocketAddr::new(address, self.number()),
            #[cfg(test)]
            self,
        );
        match bound {
            Ok(socket) => {
                self.inner.number.store(socket.address.port(), Ordering::Relaxed);
                sockets.insert(address, Arc::downgrade(&socket));
                Some(socket)
            }
            Err(error) => {
                if !self.inner.refused.swap(true, Ordering::Relaxed) {
                    let port = self.number();
                    tracing::warn!(%address, port, %error, "the UDP port is not free; connections use ports of their own");
                }
                None
            }
        }
    }
}

/// A real socket, and whom its datagrams are for.
struct SharedSocket {
    io: UdpSocket,
    batch: UdpSocketState,
    address: SocketAddr,
    table: Mutex<Table>,
    #[cfg(test)]
    port: Weak<Inner>,
    _stop: DropGuard,
}

#[derive(Default)]
struct Table {
    /// By the user name fragment of ICE that the other end addresses.
    by_fragment: HashMap<String, Arc<Queue>>,
    by_remote: HashMap<SocketAddr, Arc<Queue>>,
}

impl SharedSocket {
    fn bind(address: SocketAddr, #[cfg(test)] port: &Port) -> io::Result<Arc<Self>> {
        let socket = std::net::UdpSocket::bind(address)?;
        super::runtime::enlarge_buffers(&socket);
        socket.set_nonblocking(true)?;
        let io = UdpSocket::from_std(socket)?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Self {
            batch: UdpSocketState::new(UdpSockRef::from(&io))?,
            address: io.local_addr()?,
            io,
            table: Mutex::default(),
            #[cfg(test)]
            port: Arc::downgrade(&port.inner),
            _stop: stop.clone().drop_guard(),
        });
        tokio::spawn(receive(Arc::downgrade(&shared), stop));
        Ok(shared)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<usize> {
        if self.is_muted() {
            return Ok(transmit.contents.len());
        }
        // Through `try_io`, or tokio would go on to believe that the socket can be written to.
        self.io.try_io(Interest::WRITABLE, || {
            self.batch.try_send(UdpSockRef::from(&self.io), transmit).map(|()| transmit.contents.len())
        })
    }

    fn dispatch(&self, datagrams: &[u8], meta: &RecvMeta) {
        if self.is_muted() {
            return;
        }
        let stride = meta.stride.max(1);
        let first = &datagrams[..datagrams.len().min(stride)];
        let queue = {
            let mut table = lock(&self.table);
            match request_fragment(first) {
                Some(fragment) => {
                    let queue = table.by_fragment.get(fragment).cloned();
                    if let Some(queue) = &queue {
                        table.learn(meta.addr, queue, true);
                    }
                    queue
                }
                None => table.by_remote.get(&meta.addr).cloned(),
            }
        };
        match queue {
            Some(queue) => queue.push(datagrams, stride, meta.addr),
            None => tracing::trace!(from = %meta.addr, "a datagram for no connection"),
        }
    }

    fn is_muted(&self) -> bool {
        #[cfg(test)]
        return self.port.upgrade().is_none_or(|port| port.muted.load(Ordering::Relaxed));
        #[cfg(not(test))]
        false
    }
}

impl Table {
    /// From now on what comes from this address is for that queue. Who is `named` by a request goes before who sent something there.
    fn learn(&mut self, remote: SocketAddr, queue: &Arc<Queue>, named: bool) {
        match self.by_remote.get(&remote) {
            Some(known) if Arc::ptr_eq(known, queue) || !named => return,
            _ => {}
        }
        let mut remotes = lock(&queue.remotes);
        if remotes.len() < REMOTES_MAX {
            remotes.insert(remote);
            self.by_remote.insert(remote, Arc::clone(queue));
        }
    }
}

async fn receive(socket: Weak<SharedSocket>, stop: CancellationToken) {
    let Some(segments) = socket.upgrade().map(|socket| socket.batch.gro_segments()) else { return };
    let mut buffers: Vec<Vec<u8>> = (0..BATCHES).map(|_| vec![0; segments.max(2) * DATAGRAM]).collect();
    let mut metas = [RecvMeta::default(); BATCHES];
    loop {
        // Not held while there is nothing to read, so that the last connection takes the socket with it.
        let Some(shared) = socket.upgrade() else { return };
        let received = shared.io.try_io(Interest::READABLE, || {
            let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            shared.batch.recv(UdpSockRef::from(&shared.io), &mut slices, &mut metas)
        });
        match received {
            Ok(count) => {
                for (buffer, meta) in buffers.iter().zip(&metas).take(count) {
                    shared.dispatch(&buffer[..meta.len.min(buffer.len())], meta);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let readable = readable(Arc::downgrade(&shared));
                drop(shared);
                if stop.run_until_cancelled(readable).await.is_none() {
                    return;
                }
            }
            // That somebody is not there is for the connection to find out.
            Err(error) => tracing::trace!(%error, "datagram not received"),
        }
    }
}

/// Resolves when there is something to read.
async fn readable(socket: Weak<SharedSocket>) {
    std::future::poll_fn(|cx| match socket.upgrade() {
        Some(shared) => shared.io.poll_recv_ready(cx).map(drop),
        None => Poll::Ready(()),
    })
    .await;
}

/// Datagrams for one connection on one address.
#[derive(Debug, Default)]
struct Queue {
    batches: Mutex<Batches>,
    reader: AtomicWaker,
    remotes: Mutex<HashSet<SocketAddr>>,
}

#[derive(Debug, Default)]
struct Batches {
    waiting: VecDeque<Batch>,
    cost: usize,
}

#[derive(Debug)]
struct Batch {
    datagrams: Box<[u8]>,
    stride: usize,
    from: SocketAddr,
}

impl Batch {
    fn cost(&self) -> usize {
        self.datagrams.len().max(BATCH_COST_MIN)
    }
}

impl Queue {
    /// What does not fit is lost, as it would be in a socket's buffer.
    fn push(&self, datagrams: &[u8], stride: usize, from: SocketAddr) {
        let batch = Batch { datagrams: datagrams.into(), stride, from };
        let mut batches = lock(&self.batches);
        if batches.cost + batch.cost() > QUEUE_MAX {
            return;
        }
        batches.cost += batch.cost();
        batches.waiting.push_back(batch);
        drop(batches);
        self.reader.wake();
    }

    fn pop(&self) -> Option<Batch> {
        let mut batches = lock(&self.batches);
        let batch = batches.waiting.pop_front()?;
        batches.cost -= batch.cost();
        Some(batch)
    }
}

/// What one connection has of the port.
#[derive(Debug)]
pub(super) struct Claim {
    port: Option<Port>,
    /// Addresses at which a router passes on what comes for the port.
    announced: Vec<SocketAddr>,
    views: Mutex<Vec<Viewed>>,
}

#[derive(Debug)]
struct Viewed {
    /// Where the library believes its socket to be.
    believed: SocketAddr,
    socket: Weak<SharedSocket>,
    queue: Weak<Queue>,
}

impl Claim {
    pub(super) fn new(port: Option<Port>, announced: Vec<SocketAddr>) -> Self {
        Self { port, announced, views: Mutex::default() }
    }

    /// A view of the shared socket in place of this one, which is given up; `None` if the connection shall have this one.
    pub(super) fn wrap(&self, own: &std::net::UdpSocket) -> Option<Arc<dyn AsyncUdpSocket>> {
        let believed = own.local_addr().ok()?;
        let socket = self.port.as_ref()?.socket(believed.ip())?;
        let queue = Arc::new(Queue::default());
        let mut views = lock(&self.views);
        views.retain(|view| view.queue.strong_count() > 0);
        views.push(Viewed { believed, socket: Arc::downgrade(&socket), queue: Arc::downgrade(&queue) });
        Some(Arc::new(View { socket, queue, believed, learned: Mutex::default(), writable: Mutex::default() }))
    }

    /// Makes the connection known by the user name fragment of its description; returns the description with the shared port in it.
    pub(super) fn publish(&self, description: String) -> String {
        let views = lock(&self.views);
        if views.is_empty() {
            return description;
        }
        for fragment in description.lines().filter_map(|line| line.strip_prefix("a=ice-ufrag:")) {
            for view in views.iter() {
                if let (Some(socket), Some(queue)) = (view.socket.upgrade(), view.queue.upgrade()) {
                    lock(&socket.table).by_fragment.insert(fragment.trim().to_owned(), queue);
                }
            }
        }
        let mut published = String::with_capacity(description.len());
        for line in description.lines() {
            match moved(line, &views) {
                Some(line) => published.push_str(&line),
                None => published.push_str(line),
            }
            published.push_str("\r\n");
        }
        // The section of the data channels is the last one.
        for address in self.announced.iter().filter(|at| !views.iter().any(|view| view.believed.ip() == at.ip())) {
            published.push_str(&announced(*address));
            published.push_str("\r\n");
        }
        published
    }
}

/// A candidate for an address that a router has (RFC 8445, 5.1.2.1; RFC 8839, 5.1): after those of the machine, before a relay's.
fn announced(address: SocketAddr) -> String {
    const PRIORITY: u32 = (100 << 24) | (65_535 << 8) | 255;
    let (ip, port) = (address.ip(), address.port());
    let unknown = if ip.is_ipv4() { "0.0.0.0" } else { "::" };
    format!("a=candidate:announced 1 udp {PRIORITY} {ip} {port} typ srflx raddr {unknown} rport 0")
}

/// A candidate's line with the shared port, if it is of one of these views: `a=candidate:<foundation> 1 udp <priority> <address> <port> ...`.
fn moved(line: &str, views: &[Viewed]) -> Option<String> {
    let mut words: Vec<&str> = line.strip_prefix("a=candidate:").map(|_| line.split(' ').collect())?;
    let at = SocketAddr::new(words.get(4)?.parse().ok()?, words.get(5)?.parse().ok()?);
    let socket = views.iter().find(|view| view.believed == at)?.socket.upgrade()?;
    let port = socket.address.port().to_string();
    *words.get_mut(5)? = &port;
    Some(words.join(" "))
}

/// The user name fragment that a STUN binding request addresses (RFC 8489, 5 and 14.3; RFC 8445, 7.2.2).
fn request_fragment(datagram: &[u8]) -> Option<&str> {
    const HEADER: usize = 20;
    const BINDING_REQUEST: [u8; 2] = [0, 1];
    const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
    const USERNAME: u16 = 6;
    if datagram.len() < HEADER || datagram[..2] != BINDING_REQUEST || datagram[4..8] != COOKIE {
        return None;
    }
    let mut rest = &datagram[HEADER..];
    loop {
        let (head, after) = rest.split_at_checked(4)?;
        let (kind, len) = (u16::from_be_bytes([head[0], head[1]]), usize::from(u16::from_be_bytes([head[2], head[3]])));
        if kind == USERNAME {
            let (to, _) = std::str::from_utf8(after.get(..len)?).ok()?.split_once(':')?;
            return Some(to);
        }
        rest = after.get(len.next_multiple_of(4)..)?;
    }
}

/// Resolves when the socket takes a datagram.
type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// The shared socket, as one connection sees it.
struct View {
    socket: Arc<SharedSocket>,
    queue: Arc<Queue>,
    believed: SocketAddr,
    learned: Mutex<HashSet<SocketAddr>>,
    /// Each connection waits on its own: the socket itself remembers one who waits.
    writable: Mutex<Option<Writable>>,
}

impl View {
    /// What is sent somewhere is answered from there.
    fn learn(&self, remote: SocketAddr) {
        let mut learned = lock(&self.learned);
        if learned.len() < REMOTES_MAX && learned.insert(remote) {
            lock(&self.socket.table).learn(remote, &self.queue, false);
        }
    }
}

impl AsyncUdpSocket for View {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.believed)
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        self.learn(transmit.destination);
        loop {
            match self.socket.try_send(transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
            let mut writable = lock(&self.writable);
            let waiting = writable.get_or_insert_with(|| {
                let socket = Arc::clone(&self.socket);
                Box::pin(async move { socket.io.writable().await })
            });
            ready!(waiting.as_mut().poll(cx))?;
            *writable = None;
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (bufs.first_mut(), meta.first_mut()) else { return Poll::Ready(Ok(0)) };
        let batch = match self.queue.pop() {
            Some(batch) => batch,
            None => {
                self.queue.reader.register(cx.waker());
                // One may have come just before.
                match self.queue.pop() {
                    Some(batch) => batch,
                    None => return Poll::Pending,
                }
            }
        };
        let len = batch.datagrams.len().min(buffer.len());
        buffer[..len].copy_from_slice(&batch.datagrams[..len]);
        *meta = RecvMeta::default();
        (meta.addr, meta.len, meta.stride) = (batch.from, len, batch.stride);
        Poll::Ready(Ok(1))
    }

    fn max_gso_segments(&self) -> usize {
        self.socket.batch.max_gso_segments()
    }

    fn max_gro_segments(&self) -> usize {
        self.socket.batch.gro_segments()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let mut table = lock(&self.socket.table);
        table.by_fragment.retain(|_, queue| !Arc::ptr_eq(queue, &self.queue));
        table.by_remote.retain(|_, queue| !Arc::ptr_eq(queue, &self.queue));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for SharedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSocket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("socket", &self.socket).field("believed", &self.believed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut datagram = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        datagram.extend([7; 12]);
        for (kind, value) in attributes {
            datagram.extend(kind.to_be_bytes());
            datagram.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            datagram.extend(*value);
            datagram.resize(datagram.len().next_multiple_of(4), 0);
        }
        datagram
    }

    #[test]
    fn a_check_says_whom_it_is_for() {
        let named = request(&[(0x8022, b"odd"), (6, b"ours:theirs"), (8, &[0; 20])]);
        assert_eq!(request_fragment(&named), Some("ours"));
        for none in [
            &b""[..],
            &named[..19],
            &named[..30],
            &request(&[(6, b"nobody")]),
            &request(&[(6, &[0xff, b':'])]),
            &request(&[(8, b"ours:theirs")]),
            // An answer, and what is no STUN.
            &[&[1, 1], &named[2..]].concat(),
            &[&named[..4], &[0; 4], &named[8..]].concat(),
        ] {
            assert_eq!(request_fragment(none), None, "{none:?}");
        }
    }

    #[tokio::test]
    async fn a_description_names_the_shared_port_and_what_a_router_passes_on() {
        let port = Port::new(0);
        let claim =
            Claim::new(Some(port.clone()), vec!["203.0.113.5:7070".parse().unwrap(), "127.0.0.1:1".parse().unwrap()]);
        let own = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let view = claim.wrap(&own).unwrap();
        let (believed, shared) = (own.local_addr().unwrap().port(), port.number());
        assert!(view.local_addr().unwrap().port() == believed && shared != believed && shared != 0);
        let lines = |port: u16| {
            format!(
                "a=ice-ufrag:abcd\r\na=candidate:1 1 udp 9 127.0.0.1 {port} typ host\r\n\
                 a=candidate:2 1 udp 9 192.0.2.1 {believed} typ host\r\na=end-of-candidates\r\n"
            )
        };
        let published = claim.publish(lines(believed));
        let (rest, announced) = published.split_at(lines(shared).len());
        assert_eq!(rest, lines(shared));
        assert!(announced.contains(" 203.0.113.5 7070 typ srflx ") && announced.lines().count() == 1, "{announced}");

        // A second connection shares it; with the last one it is free again.
        let other = Claim::new(Some(port.clone()), Vec::new());
        let second = other.wrap(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        assert_eq!(port.number(), shared);
        assert!(std::net::UdpSocket::bind(("127.0.0.1", shared)).is_err());
        drop((view, second));
        crate::tunnel::tests::wait_for("the port is free", || std::net::UdpSocket::bind(("127.0.0.1", shared)).is_ok())
            .await;
    }

    #[tokio::test]
    async fn what_comes_is_for_whom_it_is_addressed_to() {
        let port = Port::new(0);
        let claims = [Claim::new(Some(port.clone()), Vec::new()), Claim::new(Some(port.clone()), Vec::new())];
        let views = claims.each_ref().map(|claim| {
            let view = claim.wrap(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            claim.publish(format!("a=ice-ufrag:{}\r\n", view.local_addr().unwrap().port()));
            view
        });
        let remotes = [0, 1].map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let (to, mut buffer) = (("127.0.0.1", port.number()), [0; 100]);
        for remote in &remotes {
            // Nobody knows it yet.
            remote.send_to(b"lost", to).unwrap();
        }
        for (view, remote) in views.iter().zip(&remotes) {
            let check = request(&[(6, format!("{}:x", view.local_addr().unwrap().port()).as_bytes())]);
            remote.send_to(&check, to).unwrap();
            assert_eq!(view.recv_from(&mut buffer).await.unwrap(), (check.len(), remote.local_addr().unwrap()));
            remote.send_to(b"after", to).unwrap();
            assert_eq!(view.recv_from(&mut buffer).await.unwrap().0, 5);
        }
        // A view that sends somewhere hears from there, unless that is another's.
        let third = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for at in [third.local_addr().unwrap(), remotes[1].local_addr().unwrap()] {
            views[0].send_to(b"hello", at).await.unwrap();
        }
        for (from, view, says) in [(&third, &views[0], b"third"), (&remotes[1], &views[1], b"still")] {
            from.send_to(says, to).unwrap();
            let len = view.recv_from(&mut buffer).await.unwrap().0;
            assert_eq!(&buffer[..len], says);
        }
    }
}
