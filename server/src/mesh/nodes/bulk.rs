//! The bulk links to another node: made when a stream is wanted, closed when there has been none for a while.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use flotilla_api::{ApiError, ErrorCode, NodeId, rest::BulkPath};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    mux::{Mux, MuxChannel, Offered},
    pulse::GAPS_AT_MOST_EVERY,
    stream::NodeStream,
    tls,
};
use crate::{
    mesh::{
        Error,
        link::{Link, LinkState, MeshChannel, Peer as End},
    },
    peers::{CallError, Handler, LANES_MAX, Stream},
    tunnel::{Channel, ChannelClosed},
};

/// Streams that one node has open to another on one link.
const STREAMS_MAX: usize = 128;

/// Streams that the other node has open on one link: more, as its places are free again a moment before ours.
const ACCEPTED_MAX: usize = 2 * STREAMS_MAX;

/// Links that are there at one time: all lanes each way, when both began at once, and those that end.
const LINKS_MAX: usize = 2 * LANES_MAX + 2;

/// Characters of a label: what for, and of what.
pub(super) const LABEL_MAX: usize = 256;

/// From a stream that is wanted to one that is open. A link has to be made first, over a slow line.
pub(super) const OPENING: Duration = Duration::from_secs(10);

/// A link without streams is closed after this time by who made it: an open one costs keep-alives and a megabyte.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// A node without a control link for so long is gone, and what is open to it with it. A control link that was lost is there again far sooner.
const GONE: Duration = Duration::from_secs(4);

/// Id of the channel that carries the streams.
const STREAMS: u16 = 0;

const GREETING: &[u8] = b"flotilla";

/// To be opened before the link is up.
pub(super) async fn open_channel(link: &Link) -> Result<MeshChannel, Error> {
    link.open_agreed(STREAMS, true).await
}

/// Says the first word on a link, on the side that answered: what reaches its channel before that is open breaks it, so that the other
/// side waits for this ([`greeted`]).
pub(super) async fn greet(channel: &MeshChannel) -> Result<(), ChannelClosed> {
    channel.opened().await?;
    channel.send(BytesMut::from(GREETING)).await
}

/// Waits until the link may be used, on the side that offered it.
pub(super) async fn greeted(channel: &MeshChannel) -> Result<(), ChannelClosed> {
    channel.opened().await?;
    channel.recv().await.map(drop).ok_or(ChannelClosed)
}

#[derive(Debug, Default)]
pub(super) struct Bulk {
    links: Mutex<Vec<Arc<BulkLink>>>,
    /// Bytes of links that are gone: sent, and received.
    past: Mutex<(u64, u64)>,
    /// When links to the other node were given up for a gap.
    gap: Mutex<Option<Instant>>,
    /// One link of a lane is made at a time, and who waits for it takes it.
    pub(super) making: [tokio::sync::Mutex<()>; LANES_MAX],
}

#[derive(Debug)]
pub(super) struct BulkLink {
    carrier: Carrier,
    mux: Mux,
    /// The run of the other node that it leads to.
    boot: String,
    opened: Arc<Semaphore>,
    accepted: Arc<Semaphore>,
    /// No new streams.
    retired: AtomicBool,
    closed: CancellationToken,
}

/// What carries a bulk link.
#[derive(Debug)]
pub(super) enum Carrier {
    /// A WebRTC connection, and what its buffers were chosen for.
    WebRtc(Link, End),
    Tls(tls::Line),
}

impl Carrier {
    /// The first is preferred.
    fn rank(&self) -> u8 {
        match self {
            Self::Tls(_) => 0,
            Self::WebRtc(_, End::Node) => 1,
            Self::WebRtc(..) => 2,
        }
    }

    fn is_up(&self) -> bool {
        match self {
            Self::WebRtc(link, _) => *link.state().borrow() == LinkState::Connected,
            Self::Tls(line) => line.is_up(),
        }
    }

    async fn lost(&self) {
        match self {
            Self::WebRtc(link, _) => {
                let over = |state: &LinkState| !matches!(state, LinkState::Connected | LinkState::Connecting);
                // A connection without a driver is lost, too.
                let _ = link.state().wait_for(over).await;
            }
            Self::Tls(line) => line.lost().await,
        }
    }

    fn traffic(&self) -> (u64, u64) {
        match self {
            Self::WebRtc(link, _) => link.traffic(),
            Self::Tls(line) => line.traffic(),
        }
    }

    async fn close(&self) {
        match self {
            Self::WebRtc(link, _) => link.close().await,
            Self::Tls(line) => line.close(),
        }
    }
}

impl Bulk {
    /// A link that works, the newest first, and before all that which has the most room; another one for each lane.
    pub(super) fn find(&self, lane: usize) -> Option<Arc<BulkLink>> {
        let links = self.links();
        let mut working: Vec<_> = links.iter().rev().filter(|link| link.works()).collect();
        working.sort_by_key(|link| link.carrier.rank());
        working.get(lane).copied().cloned()
    }

    /// What carries streams at present.
    pub(super) fn path(&self) -> Option<BulkPath> {
        self.find(0).map(|link| if link.is_tls() { BulkPath::Tls } else { BulkPath::Channels })
    }

    /// What the next WebRTC connection is made for.
    pub(super) fn next_end(&self) -> End {
        let is_first = |link: &Arc<BulkLink>| matches!(link.carrier, Carrier::WebRtc(_, End::Node)) && link.works();
        if self.links().iter().any(is_first) { End::Lane } else { End::Node }
    }

    pub(super) fn is_full(&self) -> bool {
        self.links().iter().filter(|link| link.works()).count() >= LINKS_MAX
    }

    /// Bytes of all packets of all links so far: sent, and received.
    pub(super) fn traffic(&self) -> (u64, u64) {
        let links = self.links();
        let past = *self.past.lock().unwrap_or_else(PoisonError::into_inner);
        links.iter().map(|link| link.carrier.traffic()).fold(past, |sum, link| (sum.0 + link.0, sum.1 + link.1))
    }

    fn remove(&self, gone: &Arc<BulkLink>) {
        let mut links = self.links();
        links.retain(|link| !Arc::ptr_eq(link, gone));
        let (sent, received) = gone.carrier.traffic();
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        *past = (past.0 + sent, past.1 + received);
    }

    /// Closes the links to other runs of the node than this one; all of them, if it is gone.
    pub(super) fn keep_only(&self, boot: Option<&str>) {
        for link in self.links().iter().filter(|link| Some(link.boot.as_str()) != boot) {
            link.closed.cancel();
        }
    }

    /// After a gap: opens further streams on another link, as on these what was lost is sent again late. Streams that are open go on.
    /// False, and nothing is done, where that was so a moment ago.
    pub(super) fn retire_for_gap(&self) -> bool {
        let mut gap = self.gap.lock().unwrap_or_else(PoisonError::into_inner);
        if gap.is_some_and(|last| last.elapsed() < GAPS_AT_MOST_EVERY) {
            return false;
        }
        *gap = Some(Instant::now());
        drop(gap);
        for link in self.links().iter() {
            link.retired.store(true, Ordering::Relaxed);
        }
        true
    }

    fn links(&self) -> MutexGuard<'_, Vec<Arc<BulkLink>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who takes what the other node opens.
pub(super) struct Taker {
    pub(super) from: NodeId,
    pub(super) handler: Option<Arc<dyn Handler>>,
    /// Who has a control link.
    pub(super) connected: watch::Receiver<BTreeSet<NodeId>>,
    pub(super) tasks: TaskTracker,
}

impl Taker {
    /// Resolves when the other node has had no control link for a while.
    async fn gone(&self) {
        let mut connected = self.connected.clone();
        // The mesh outlives its links.
        while connected.wait_for(|connected| !connected.contains(&self.from)).await.is_ok() {
            let back = timeout(GONE, connected.wait_for(|connected| connected.contains(&self.from))).await;
            if back.is_err() {
                return;
            }
        }
    }
}

impl Bulk {
    /// Adds a link that is up, and its channel, on which the answering side has said its first word. `made_here`: this node closes it when it is idle.
    pub(super) fn add(
        self: &Arc<Self>,
        carrier: Carrier,
        channel: Box<dyn Channel>,
        boot: String,
        made_here: bool,
        taker: Taker,
    ) -> Arc<BulkLink> {
        let link = Arc::new(BulkLink {
            carrier,
            mux: Mux::new(channel, made_here),
            boot,
            opened: Arc::new(Semaphore::new(STREAMS_MAX)),
            accepted: Arc::new(Semaphore::new(ACCEPTED_MAX)),
            retired: AtomicBool::new(false),
            closed: CancellationToken::new(),
        });
        self.links().push(Arc::clone(&link));
        let (bulk, carried) = (Arc::clone(self), Arc::clone(&link));
        taker.tasks.clone().spawn(async move {
            carried.carry(made_here, &taker).await;
            carried.closed.cancel();
            bulk.remove(&carried);
            carried.carrier.close().await;
        });
        link
    }
}

impl BulkLink {
    fn works(&self) -> bool {
        !self.closed.is_cancelled() && !self.retired.load(Ordering::Relaxed) && self.carrier.is_up()
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.carrier, Carrier::Tls(_))
    }

    /// Not to be used for another stream.
    pub(super) fn give_up(&self) {
        self.closed.cancel();
    }

    /// Opens a stream.
    pub(super) async fn open(&self, label: &str) -> Result<Stream, CallError> {
        let place = Arc::clone(&self.opened).try_acquire_owned().map_err(|_| {
            CallError::Refused(ApiError::new(
                ErrorCode::RateLimited,
                format!("{STREAMS_MAX} streams to this machine are open; try again when some have ended"),
            ))
        })?;
        match self.closed.run_until_cancelled(timeout(OPENING, self.mux.open(label))).await {
            Some(Ok(Ok(channel))) => Ok(stream(channel, place)),
            Some(Err(_)) => Err(CallError::Timeout { within: OPENING }),
            Some(Ok(Err(ChannelClosed))) | None => Err(CallError::Unreachable),
        }
    }

    async fn carry(&self, made_here: bool, taker: &Taker) {
        tokio::select! {
            () = self.closed.cancelled() => {}
            () = self.carrier.lost() => {}
            () = taker.gone() => {}
            () = self.until_idle(), if made_here => {}
            () = self.mux.carry(|offered| self.take(offered, taker)) => {}
        }
        self.mux.end();
    }

    /// What there is no place for, or nobody to take it, is refused by dropping it.
    fn take(&self, offered: Offered, taker: &Taker) {
        let (Ok(place), Some(handler)) = (Arc::clone(&self.accepted).try_acquire_owned(), &taker.handler) else {
            return;
        };
        let (handler, from) = (Arc::clone(handler), taker.from.clone());
        taker.tasks.spawn(async move {
            let label = offered.label.clone();
            if let Ok(channel) = offered.accept().await {
                handler.stream(from, label, stream(channel, place)).await;
            }
        });
    }

    async fn until_idle(&self) {
        let mut looks = interval(IDLE_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut used_at = Instant::now();
        loop {
            looks.tick().await;
            if self.opened.available_permits() < STREAMS_MAX || self.accepted.available_permits() < ACCEPTED_MAX {
                used_at = Instant::now();
            } else if used_at.elapsed() >= IDLE || self.retired.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

fn stream(channel: MuxChannel, place: OwnedSemaphorePermit) -> Stream {
    Box::new(NodeStream::start(Arc::new(channel) as Arc<dyn Channel>, place))
}
