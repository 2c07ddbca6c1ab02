//! TLS links: where TCP gets through, what is large goes over TLS to the other node's listener (ADR 19, ADR 22).
//!
//! A data channel does in the program what the kernel does for TCP, and takes four times as long on the processor for it; between machines that TCP gets through to
//! that buys nothing. Far away it counts how TCP takes a lost packet: only with [BBR](congestion) it fills a line that loses some.
//!
//! Who is at the other end is proven as on every link: a signed offer and its answer name the certificates, and the connection is taken only from and to who has
//! them. Where it can't be made a data channel carries it.

mod congestion;
mod line;
mod pinned;

use std::{
    collections::{BTreeSet, HashMap},
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flotilla_api::{ApiError, ErrorCode, NodeId, rest::LinkPath};
use http::{
    Request, StatusCode,
    header::{CONNECTION, HOST, UPGRADE},
};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::rustls::{self, pki_types::ServerName};

use super::{
    NodeMesh, Shared,
    bulk::{BulkLink, Carrier},
    control::Control,
    dial::{self, Failure},
    envelope::{NONCE_LEN, Offer, Purpose, invalid, random_name},
    peer::{Peer, doubled},
};
use crate::{
    mesh::{Certificate, Error as MeshError},
    peers::{Duplex, Stream},
    tunnel::{Channel, ChannelClosed},
};
pub(super) use line::Line;
pub(super) use pinned::Fingerprint;
use pinned::Identity;

/// The route on every node's listener.
pub const BULK_PATH: &str = "/mesh/v1/bulk";

/// What the connection is for afterwards (RFC 9110, 7.8).
pub const BULK_PROTOCOL: &str = "flotilla-bulk";

/// Header that names the attempt.
pub const BULK_ATTEMPT: &str = "flotilla-attempt";

/// A round trip below this is that of one network: Wi-Fi has some milliseconds.
const NEAR_MS: f64 = 10.0;

/// TLS links to one machine: each keeps one core busy at either end, and loses nothing that another one would have to make up for.
pub(super) const LANES: usize = 2;

/// From an offer that was answered to a connection that is taken.
const AWAITED: Duration = Duration::from_secs(10);

/// What the connection itself may take: four round trips. Something in between may swallow it.
const CONNECTING: Duration = Duration::from_millis(500);
const CONNECTING_FAR: Duration = Duration::from_secs(2);

/// Connections that are awaited at one time, of all machines.
const AWAITED_MAX: usize = 64;

/// Addresses of one machine that are tried.
const ADDRESSES_MAX: usize = 4;

/// After a failure data channels do for so long; twice as long after each further one, up to the second value: a firewall seldom comes to let something in.
const AGAIN_AFTER: Duration = Duration::from_secs(300);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(6 * 3600);

/// The answering side's first word: TLS 1.3 lets the other one write before it was looked at.
const GREETING: &[u8] = b"flotilla";

/// What it takes to make TLS links.
pub(super) struct Tls {
    pub(super) identity: Identity,
    /// Those that may come, by attempt.
    awaited: Mutex<HashMap<String, Awaited>>,
}

struct Awaited {
    from: NodeId,
    boot: String,
    certificate: Fingerprint,
    distance: Distance,
    until: Instant,
}

impl Tls {
    pub(super) fn new(certificate: &Certificate) -> Result<Self, MeshError> {
        Ok(Self { identity: Identity::new(certificate)?, awaited: Mutex::default() })
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<String, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a TLS link to a machine could not be made, and how often in a row before that.
#[derive(Debug, Default)]
pub(super) struct Failed(Mutex<Option<(Instant, u32)>>);

impl Failed {
    fn now(&self) {
        // Several lanes may fail at once.
        if !self.lately() {
            let mut last = self.last();
            *last = Some((Instant::now(), last.map_or(0, |(_, before)| before.saturating_add(1))));
        }
    }

    fn lately(&self) -> bool {
        self.last().is_some_and(|(at, before)| at.elapsed() < doubled(AGAIN_AFTER, before, AGAIN_AFTER_MAX))
    }

    pub(super) fn is_over(&self) {
        *self.last() = None;
    }

    fn last(&self) -> MutexGuard<'_, Option<(Instant, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the offer was not taken: {0:?}")]
    Offer(Failure),
    #[error("there is no address to try")]
    NoAddress,
    #[error("it does not connect in time")]
    Timeout,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Request(#[from] http::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("it was answered with {0}")]
    Status(StatusCode),
    #[error("something was said before its time")]
    Noise,
    #[error(transparent)]
    Closed(#[from] ChannelClosed),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// How far a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distance {
    /// In one network.
    Near,
    Far,
}

impl Distance {
    /// `None` before the way was measured.
    fn over(control: &Control) -> Option<Self> {
        let round_trip = control.figures().rtt_ms?;
        Some(if round_trip < NEAR_MS { Self::Near } else { Self::Far })
    }

    fn connecting(self) -> Duration {
        match self {
            Self::Near => CONNECTING,
            Self::Far => CONNECTING_FAR,
        }
    }

    /// Whether TCP carries as much as many data channels do, from this machine.
    fn suits_tcp(self) -> bool {
        self == Self::Near || congestion::has_bbr()
    }

    /// Makes a connection ready for it.
    fn prepare(self, tcp: impl AsFd) -> io::Result<()> {
        match self {
            Self::Near => Ok(()),
            Self::Far => congestion::take_bbr(tcp),
        }
    }
}

/// Whether TLS links are worth a try.
pub(super) fn is_wanted(shared: &Shared, peer: &Peer, over: &Control) -> bool {
    let direct = over.path().is_some_and(|path| path.kind == LinkPath::Direct);
    let suits = Distance::over(over).is_some_and(Distance::suits_tcp);
    direct && suits && !shared.config.relayed_only && !peer.tls_failed.lately()
}

/// Makes a TLS link; `None` where that can't be done.
pub(super) async fn link(shared: &Arc<Shared>, peer: &Arc<Peer>, over: &Control) -> Option<Arc<BulkLink>> {
    match make(shared, peer, over).await {
        Ok(link) => {
            peer.tls_failed.is_over();
            Some(link)
        }
        Err(error) => {
            tracing::debug!(peer = %peer.id, %error, "no TLS link; a data channel carries it");
            peer.tls_failed.now();
            None
        }
    }
}

async fn make(shared: &Arc<Shared>, peer: &Arc<Peer>, over: &Control) -> Result<Arc<BulkLink>, Error> {
    let distance = Distance::over(over).unwrap_or(Distance::Far);
    let known = shared.addresses_of(&peer.id).iter().filter_map(|address| address.parse().ok()).collect();
    let remote: Option<SocketAddr> = over.path().and_then(|path| path.remote.parse().ok());
    let addresses = addresses(known, remote.map(|remote| remote.ip()), distance);
    if addresses.is_empty() {
        return Err(Error::NoAddress);
    }
    let attempt = random_name();
    let offer = Offer {
        purpose: Purpose::Tls,
        attempt: attempt.clone(),
        description: shared.tls.identity.fingerprint().0,
        relay: false,
        shared_port: false,
        far: distance == Distance::Far,
    };
    let answer = dial::over_control(shared, peer, over, &offer).await.map_err(Error::Offer)?;
    let connector = shared.tls.identity.connector(Fingerprint(answer.description))?;
    let mut last = Error::NoAddress;
    for address in addresses {
        let connecting = async {
            let tcp = connect(address, &attempt).await?;
            distance.prepare(&tcp)?;
            let name = ServerName::IpAddress(address.ip().into());
            let (line, channel) = Line::over(Box::new(connector.connect(name, tcp).await?));
            channel.recv().await.ok_or(ChannelClosed)?;
            Ok((line, channel))
        };
        match timeout(distance.connecting(), connecting).await.unwrap_or(Err(Error::Timeout)) {
            Ok((line, channel)) => {
                let taker = shared.taker(&peer.id);
                return Ok(peer.bulk.add(Carrier::Tls(line), Box::new(channel), answer.boot, true, taker));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Where the other node's listener may be reached, if packets of the control link go to `remote`: there first. Far away nowhere else, as a private address is another
/// machine's there; but the machine itself may not know that one, if its router lets the port in.
fn addresses(mut known: Vec<SocketAddr>, remote: Option<IpAddr>, distance: Distance) -> Vec<SocketAddr> {
    match distance {
        Distance::Near => known.sort_by_key(|address| Some(address.ip()) != remote),
        Distance::Far => {
            let ports: BTreeSet<u16> = known.iter().map(SocketAddr::port).collect();
            known = ports.into_iter().filter_map(|port| Some((remote?, port).into())).collect();
        }
    }
    known.truncate(ADDRESSES_MAX);
    known
}

/// A connection to another node's listener that is no HTTP any more.
pub(super) async fn connect(address: SocketAddr, attempt: &str) -> Result<TcpStream, Error> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(BULK_PATH)
        .header(HOST, address.to_string())
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, BULK_PROTOCOL)
        .header(BULK_ATTEMPT, attempt)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Status(response.status()));
    }
    let parts = hyper::upgrade::on(response).await?.downcast::<TokioIo<TcpStream>>().map_err(|_| Error::Noise)?;
    if !parts.read_buf.is_empty() {
        return Err(Error::Noise);
    }
    Ok(parts.io.into_inner())
}

impl Shared {
    /// Answers an offer: who made it may connect now.
    pub(super) fn answer_tls(&self, peer: &Peer, offer: &Offer, boot: &str) -> Result<String, ApiError> {
        let busy = || ApiError::new(ErrorCode::RateLimited, "there are many links already; try again");
        if offer.attempt.len() != NONCE_LEN {
            return Err(invalid("an attempt has another name than that"));
        }
        if peer.bulk.is_full() {
            return Err(busy());
        }
        let distance = if offer.far { Distance::Far } else { Distance::Near };
        if !distance.suits_tcp() {
            let said = "TCP would be slow so far away: this machine's kernel has no BBR for it";
            return Err(ApiError::new(ErrorCode::Conflict, said));
        }
        let mut awaited = self.tls.awaited();
        let now = Instant::now();
        awaited.retain(|_, awaited| awaited.until > now);
        if awaited.len() >= AWAITED_MAX {
            return Err(busy());
        }
        let certificate = Fingerprint(offer.description.clone());
        let from =
            Awaited { from: peer.id.clone(), boot: boot.to_owned(), certificate, distance, until: now + AWAITED };
        awaited.insert(offer.attempt.clone(), from);
        Ok(self.tls.identity.fingerprint().0)
    }
}

/// A connection that may become a TLS link.
pub struct Arrival {
    shared: Arc<Shared>,
    awaited: Awaited,
}

impl NodeMesh {
    /// Looks at a connection to the listener that names an attempt. Each attempt is good once.
    ///
    /// # Errors
    /// Nobody was told that they may come under this name.
    pub fn arrival(&self, attempt: &str) -> Result<Arrival, ApiError> {
        let awaited = self.shared.tls.awaited().remove(attempt).filter(|awaited| awaited.until > Instant::now());
        let nobody = || ApiError::new(ErrorCode::NotFound, "no machine is awaited under this name");
        Ok(Arrival { shared: Arc::clone(&self.shared), awaited: awaited.ok_or_else(nobody)? })
    }
}

impl Arrival {
    /// Takes the connection once it is no HTTP any more.
    pub fn take<S>(self, upgraded: impl Future<Output = Option<S>> + Send + 'static)
    where
        S: Duplex + AsFd + 'static,
    {
        let tasks = self.shared.tasks.clone();
        tasks.spawn(async move {
            match timeout(AWAITED, self.greet(upgraded)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a TLS link was not made"),
                Err(_) => tracing::debug!("a TLS link was not made in time"),
            }
        });
    }

    async fn greet<S>(self, upgraded: impl Future<Output = Option<S>>) -> Result<(), Error>
    where
        S: Duplex + AsFd + 'static,
    {
        let Self { shared, awaited } = self;
        let tcp = upgraded.await.ok_or(Error::Timeout)?;
        awaited.distance.prepare(&tcp)?;
        let stream: Stream = Box::new(tcp);
        let acceptor = shared.tls.identity.acceptor(awaited.certificate)?;
        let (line, channel) = Line::over(Box::new(acceptor.accept(stream).await?));
        channel.send(BytesMut::from(GREETING)).await?;
        // One that was removed meanwhile is gone.
        if let Some(peer) = shared.peer(&awaited.from) {
            let taker = shared.taker(&awaited.from);
            peer.bulk.add(Carrier::Tls(line), Box::new(channel), awaited.boot, false, taker);
        }
        Ok(())
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").field("from", &self.awaited.from).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[test]
    fn far_away_only_the_address_counts_that_packets_go_to() {
        let told = ["192.168.1.2:7070", "10.0.0.2:7070"].map(|address| address.parse().unwrap());
        let to = |remote: Option<[u8; 4]>, distance| addresses(told.to_vec(), remote.map(IpAddr::from), distance);
        assert_eq!(to(Some([10, 0, 0, 2]), Distance::Near), [told[1], told[0]]);
        assert_eq!(to(None, Distance::Near), told);
        assert_eq!(to(Some([10, 0, 0, 2]), Distance::Far), [told[1]]);
        // A router's.
        assert_eq!(to(Some([203, 0, 113, 7]), Distance::Far), [SocketAddr::from(([203, 0, 113, 7], 7070))]);
        assert!(to(None, Distance::Far).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn after_each_failure_data_channels_do_for_longer_until_a_link_is_made() {
        let failed = Failed::default();
        assert!(!failed.lately());
        for minutes in [5, 10, 20, 40, 80, 160, 320, 360, 360] {
            failed.now();
            advance(Duration::from_secs(minutes * 60 - 1)).await;
            // Of another lane.
            failed.now();
            assert!(failed.lately(), "before {minutes} minutes");
            advance(Duration::from_secs(1)).await;
            assert!(!failed.lately(), "after {minutes} minutes");
        }
        failed.is_over();
        failed.now();
        advance(AGAIN_AFTER).await;
        assert!(!failed.lately());
    }
}
