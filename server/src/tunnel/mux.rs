//! Frames of one service's channels, taken apart into streams.
//!
//! The reader of a channel never waits for anything but the next frame: behind it stands the driver of the whole connection, and
//! a reader that waits holds up every channel. So frames go to bounded places (inboxes, credit, the control queue), and what
//! does not fit is an error of the browser's.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flotilla_api::{
    ApiError, ErrorCode, ServiceName,
    frame::{self, Cookie, DATA_MAX, FRAME_VERSION, Frame, HEADER_LEN, Hello, Kind, Open, STREAMS_MAX, flags},
};
use serde::de::DeserializeOwned;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    ChannelClosed, Session, Shared,
    counters::ServiceCounters,
    credit::Credit,
    exchange::{self, Asked},
    ids::{Refused, UsedIds},
    inbox::Inbox,
    jar::Jar,
    lane::{self, Lane},
    request::{Head, Sender},
    websocket,
};

/// A channel says hello at once.
const GREETING: Duration = Duration::from_secs(30);

/// A ping is for a clock, not for a file. Bytes.
const PING_MAX: usize = 64;

/// The streams of one service in one session: all of its HTTP lanes, or one WebSocket.
#[derive(Debug)]
pub(super) struct Mux {
    pub(super) session: Arc<Session>,
    pub(super) service: ServiceName,
    pub(super) counters: Arc<ServiceCounters>,
    pub(super) jar: Arc<Jar>,
    carries: Carried,
    table: Mutex<Table>,
    lanes: Mutex<[Weak<Lane>; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Http,
    WebSocket,
}

#[derive(Debug, Default)]
struct Table {
    used: UsedIds,
    open: HashMap<u32, Arc<Stream>>,
}

/// One request with its answer, or one WebSocket.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) inbox: Inbox,
    pub(super) credit: Credit,
    pub(super) cancelled: CancellationToken,
    /// The lane of its `Open`.
    pub(super) lane: Arc<Lane>,
    counters: Arc<ServiceCounters>,
    began: Instant,
    /// Milliseconds from `began` to when the service last took something.
    progress: AtomicU64,
}

impl Stream {
    /// The service has taken so many bytes of what the browser sent.
    pub(super) fn passed_on(&self, bytes: usize) {
        self.counters.sent_to_service(bytes);
        self.progress.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
        if let Some(owed) = self.inbox.passed_on(bytes)
            && !self.lane.send_control(Frame::new(Kind::Credit, self.id, &owed.to_be_bytes()))
        {
            // A stream without its credit would wait for ever.
            self.cancelled.cancel();
        }
    }

    /// When the service last took something, or the stream began.
    pub(super) fn last_progress(&self) -> Instant {
        self.began + Duration::from_millis(self.progress.load(Relaxed))
    }

    /// Sends an answer as one frame. False where that would be too long, and nothing is sent.
    pub(super) async fn send_whole(&self, lane: &Lane, head: &frame::Head, body: &[u8]) -> Result<bool, ChannelClosed> {
        let Some(message) = lane::whole(self.id, head, body) else { return Ok(false) };
        lane.send_message(message).await?;
        self.counters.got_from_service(body.len());
        Ok(true)
    }

    /// Sends all of `payload` as `Data` frames, as credit comes.
    pub(super) async fn send_data(
        &self,
        lane: &Lane,
        mut payload: BytesMut,
        last_flags: u8,
    ) -> Result<(), ChannelClosed> {
        loop {
            let granted = self.credit.take(payload.len().min(DATA_MAX)).await;
            let part = payload.split_to(granted);
            let more = if payload.is_empty() { last_flags } else { last_flags | flags::MORE };
            lane.send(Frame::new(Kind::Data, self.id, &part).with_flags(more)).await?;
            self.counters.got_from_service(part.len());
            if payload.is_empty() {
                return Ok(());
            }
        }
    }
}

/// A stream's place in the table. Dropping it, however the stream ended, frees what waits for the stream.
#[derive(Debug)]
struct Seat {
    mux: Arc<Mux>,
    stream: Arc<Stream>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.mux.lock().open.remove(&self.stream.id);
        self.mux.open_count().fetch_sub(1, Relaxed);
        self.stream.cancelled.cancel();
        self.stream.inbox.abandon();
    }
}

impl Mux {
    pub(super) fn new(session: &Arc<Session>, service: ServiceName, carries: Carried) -> Self {
        let Shared { counters, jars, site, .. } = &*session.shared;
        Self {
            counters: counters.service(&service),
            jar: jars.jar(&session.principal().token, &service, site),
            session: Arc::clone(session),
            service,
            carries,
            table: Mutex::default(),
            lanes: Mutex::default(),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.session.shared
    }

    pub(super) fn sender(&self) -> Sender<'_> {
        Sender { site: &self.shared().site, service: &self.service, client: &self.session.client, jar: &self.jar }
    }

    /// The lane for an answer: the wanted one, or the one that its request came on where the browser has no other.
    pub(super) fn lane(&self, wanted: frame::Lane, own: &Arc<Lane>) -> Arc<Lane> {
        self.lock_lanes()[wanted as usize].upgrade().unwrap_or_else(|| Arc::clone(own))
    }

    /// Serves a channel until it is closed, or its browser breaks the rules: the error is to be said in a `GoAway`.
    pub(super) async fn serve(self: Arc<Self>, lane: &Arc<Lane>, kind: frame::Lane) -> Result<(), ApiError> {
        self.lock_lanes()[kind as usize] = Arc::downgrade(lane);
        let mut streams = JoinSet::new();
        let mut greeted = false;
        let greet_by = Instant::now() + GREETING;
        // Streams end with their channel: dropping the set aborts them.
        loop {
            tokio::select! {
                message = lane.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    if greeted {
                        self.take(&message, lane, &mut streams)?;
                    } else {
                        greet(&message)?;
                        greeted = true;
                    }
                }
                Some(ended) = streams.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(service = %self.service, "a stream's task panicked");
                    }
                }
                () = sleep_until(greet_by), if !greeted => {
                    return Err(ApiError::new(ErrorCode::FrameInvalid, "the channel said no hello; reload the page"));
                }
            }
        }
    }

    fn take(self: &Arc<Self>, message: &Bytes, lane: &Arc<Lane>, streams: &mut JoinSet<()>) -> Result<(), ApiError> {
        let frame = match Frame::decode(message) {
            Ok(frame) => frame,
            Err(error) => {
                // A frame that at least names its stream costs that stream alone.
                let stream = message.get(4..HEADER_LEN).and_then(|id| id.try_into().ok()).map_or(0, u32::from_be_bytes);
                return self.fault(lane, stream, &invalid(error));
            }
        };
        let payload = message.slice(HEADER_LEN..);
        match frame.kind {
            Kind::Open => return self.open(&frame, lane, streams),
            Kind::Cookie => {
                let Cookie { path, cookie } = parse(&payload)?;
                self.jar.said_by_page(&path, &cookie);
                return Ok(());
            }
            Kind::Ping if frame.flags & flags::REPLY != 0 => return Ok(()),
            Kind::Ping if payload.len() <= PING_MAX => {
                // A browser that floods pings misses answers; nobody else notices.
                let _ = lane.send_control(Frame::new(Kind::Ping, 0, &payload).with_flags(flags::REPLY));
                return Ok(());
            }
            Kind::Ping => return Err(invalid(format!("a ping carries at most {PING_MAX} bytes"))),
            Kind::GoAway => return Ok(()),
            Kind::Hello => return Err(invalid("a channel says hello once")),
            Kind::Head => return self.fault(lane, frame.stream, &invalid("a browser sends no answers")),
            Kind::Data | Kind::End | Kind::Reset | Kind::Credit => {}
        }
        let stream = {
            let table = self.lock();
            match table.open.get(&frame.stream) {
                Some(stream) => Arc::clone(stream),
                // Sent before the browser knew that the stream was over.
                None if table.used.contains(frame.stream) => return Ok(()),
                None => {
                    drop(table);
                    return self.fault(lane, frame.stream, &invalid("the stream was never opened"));
                }
            }
        };
        let taken = match frame.kind {
            Kind::Data => stream.inbox.push(frame.flags, payload).map_err(invalid),
            Kind::End => stream.inbox.end(payload).map_err(invalid),
            Kind::Credit => match frame.credit() {
                Some(credit) if stream.credit.give(credit) => Ok(()),
                _ => Err(invalid("this credit is no number of bytes, or far too many")),
            },
            _ => {
                tracing::debug!(stream = stream.id, service = %self.service, "the browser gave a stream up");
                stream.cancelled.cancel();
                Ok(())
            }
        };
        taken.or_else(|error| self.fault(lane, stream.id, &error))
    }

    fn open(self: &Arc<Self>, frame: &Frame<'_>, lane: &Arc<Lane>, streams: &mut JoinSet<()>) -> Result<(), ApiError> {
        let id = frame.stream;
        if id == 0 || (self.carries == Carried::WebSocket && id != 1) {
            return Err(invalid(format!("{id} is no id of a stream on this channel")));
        }
        let (full, taken) = {
            let mut table = self.lock();
            (table.open.len() >= STREAMS_MAX, table.used.take(id))
        };
        match taken {
            Ok(()) => {}
            Err(Refused::Used) => return self.fault(lane, id, &invalid(format!("stream {id} was used before"))),
            Err(Refused::TooScattered) => {
                return Err(invalid("the ids of streams are too scattered to be remembered; reload the page"));
            }
        }
        if full {
            let error = ApiError::new(
                ErrorCode::RateLimited,
                format!("at most {STREAMS_MAX} requests to one service run at once; wait for some to end"),
            );
            return self.fault(lane, id, &error);
        }
        let head = match parse::<Open>(frame.payload).and_then(|open| Head::parse(open, self.carries)) {
            Ok(head) => head,
            Err(error) => return self.fault(lane, id, &error),
        };
        let stream = Arc::new(Stream {
            id,
            inbox: Inbox::new(self.carries == Carried::WebSocket),
            credit: Credit::new(),
            cancelled: CancellationToken::new(),
            lane: Arc::clone(lane),
            counters: Arc::clone(&self.counters),
            began: Instant::now(),
            progress: AtomicU64::new(0),
        });
        self.lock().open.insert(id, Arc::clone(&stream));
        self.counters.streams_total.fetch_add(1, Relaxed);
        self.open_count().fetch_add(1, Relaxed);
        let seat = Seat { mux: Arc::clone(self), stream };
        let asked = Asked { has_body: frame.flags & flags::BODY != 0, takes_whole: frame.flags & flags::WHOLE != 0 };
        streams.spawn(async move {
            let Seat { mux, stream } = &seat;
            let ended = async {
                match mux.carries {
                    Carried::Http => exchange::run(mux, stream, head, asked).await,
                    Carried::WebSocket => websocket::run(mux, stream, &head).await,
                }
            };
            if let Some(Err(Ended::Reset(error))) = stream.cancelled.run_until_cancelled(ended).await {
                mux.count_reset(stream.id, &error);
                // The channel is gone, or the browser reads it.
                let _ = stream.lane.send_json(Kind::Reset, stream.id, &error).await;
            }
        });
        Ok(())
    }

    /// Ends one stream for what its browser did wrong; or the channel, where no stream is named.
    fn fault(&self, lane: &Lane, stream: u32, error: &ApiError) -> Result<(), ApiError> {
        if stream == 0 {
            return Err(error.clone());
        }
        let open = self.lock().open.get(&stream).map(Arc::clone);
        if let Some(open) = open {
            open.cancelled.cancel();
        }
        self.count_reset(stream, error);
        if lane.reset(stream, error) {
            return Ok(());
        }
        Err(ApiError::new(ErrorCode::RateLimited, "the channel has more faults than answers fit; reload the page"))
    }

    fn count_reset(&self, stream: u32, error: &ApiError) {
        tracing::debug!(stream, service = %self.service, code = error.code.as_str(), "stream reset: {error}");
        self.shared().counters.reset(error.code);
    }

    fn open_count(&self) -> &AtomicU64 {
        match self.carries {
            Carried::Http => &self.counters.streams_open,
            Carried::WebSocket => &self.counters.websockets_open,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_lanes(&self) -> std::sync::MutexGuard<'_, [Weak<Lane>; 2]> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a stream ended before its end.
#[derive(Debug)]
pub(super) enum Ended {
    /// The browser is told why.
    Reset(ApiError),
    /// There is nobody to tell.
    Closed,
}

impl From<ChannelClosed> for Ended {
    fn from(ChannelClosed: ChannelClosed) -> Self {
        Self::Closed
    }
}

fn greet(message: &Bytes) -> Result<(), ApiError> {
    let hello = match Frame::decode(message) {
        Ok(Frame { kind: Kind::Hello, payload, .. }) => parse::<Hello>(payload)?,
        _ => return Err(invalid("a channel begins with hello; reload the page")),
    };
    if hello.version != FRAME_VERSION {
        return Err(invalid(format!(
            "the page speaks version {} of the tunnel, this node version {FRAME_VERSION}; reload the page",
            hello.version
        )));
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(payload).map_err(|_| invalid("the payload is not what a frame of this kind carries"))
}

fn invalid(what: impl fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::FrameInvalid, format!("{what}"))
}
