//! The streams of a bulk link, side by side on its one channel.
//!
//! Not a data channel for each: the library gives the number of a channel that was closed to the next one while the other side's reset
//! of it may still be under way, and that reset would end the new one (RFC 8831, section 6.7). Ids here are never used twice. Streams
//! have a window each, and their messages are as long as a batch of the connection, so that they share it fairly.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::bulk::LABEL_MAX;
use crate::tunnel::{Channel, ChannelClosed};

/// Messages of one stream that its task has not taken yet. It takes all that comes, so that more would mean it does not run.
const ARRIVED_MAX: usize = 256;

/// Each side says so often that it is there.
const ALIVE_EVERY: Duration = Duration::from_secs(3);

/// Silence after which a link is of no use, though the connection below may not know: an association of SCTP that gives up sending again says so to
/// nobody. On a bad line what was lost may be sent again four times, after 1, 2, 4 and 8 s.
const SILENCE: Duration = Duration::from_secs(16);

/// Kind and id.
const HEADER_LEN: usize = 5;

/// First byte of a frame; the stream's id follows.
mod kind {
    /// A label follows. From whoever opens the stream.
    pub(super) const OPEN: u8 = 1;
    /// The stream is taken.
    pub(super) const ACCEPT: u8 = 2;
    /// A message follows.
    pub(super) const MESSAGE: u8 = 3;
    /// Nothing more follows; or the stream is not taken.
    pub(super) const CLOSE: u8 = 4;
    /// The sender is there; of no stream.
    pub(super) const ALIVE: u8 = 5;
}

/// A stream that the other node opens. Dropping it refuses it.
pub(super) struct Offered {
    pub(super) label: String,
    channel: MuxChannel,
}

impl Offered {
    /// # Errors
    /// The link is gone.
    pub(super) async fn accept(self) -> Result<MuxChannel, ChannelClosed> {
        self.channel.shared.send(kind::ACCEPT, self.channel.id, b"").await?;
        Ok(self.channel)
    }
}

/// One end of a link's streams.
pub(super) struct Mux {
    shared: Arc<Shared>,
    /// Of streams that this node opens: even for the node that made the link, odd for the other.
    next: AtomicU32,
}

struct Shared {
    channel: Box<dyn Channel>,
    streams: Mutex<HashMap<u32, Entry>>,
}

struct Entry {
    arrived: mpsc::Sender<Bytes>,
    /// Of a stream that was opened here, until the other node has taken it.
    accepted: Option<oneshot::Sender<()>>,
}

impl Mux {
    /// `channel` is open.
    pub(super) fn new(channel: Box<dyn Channel>, made_here: bool) -> Self {
        let shared = Shared { channel, streams: Mutex::default() };
        Self { shared: Arc::new(shared), next: AtomicU32::new(u32::from(!made_here)) }
    }

    /// Opens a stream, and waits until the other node has taken it.
    ///
    /// # Errors
    /// It did not, or the link is gone.
    pub(super) async fn open(&self, label: &str) -> Result<MuxChannel, ChannelClosed> {
        let id = self.next.fetch_add(2, Ordering::Relaxed);
        let (sender, accepted) = oneshot::channel();
        let channel = self.shared.enter(id, Some(sender));
        self.shared.send(kind::OPEN, id, label.as_bytes()).await?;
        accepted.await.map_err(|_| ChannelClosed)?;
        Ok(channel)
    }

    /// Carries the link until it ends, falls silent, or the other node breaks the protocol. What that opens is handed to `take`, which does
    /// not wait.
    pub(super) async fn carry(&self, take: impl FnMut(Offered)) {
        let mut saying = pin!(async {
            while self.shared.send(kind::ALIVE, 0, b"").await.is_ok() {
                sleep(ALIVE_EVERY).await;
            }
        });
        let mut reading = pin!(self.read(take));
        tokio::select! {
            // Whether there is nothing more to read as well is for the reader to say.
            () = &mut saying => reading.await,
            () = &mut reading => {}
        }
    }

    async fn read(&self, mut take: impl FnMut(Offered)) {
        // A node of an earlier version says nothing of itself.
        let mut patience = Duration::MAX;
        loop {
            let Ok(frame) = timeout(patience, self.shared.channel.recv()).await else {
                tracing::warn!("nothing comes over a link any more, though it is up; it is given up");
                break;
            };
            let Some(mut frame) = frame else { break };
            let (Ok(kind), Ok(id)) = (frame.try_get_u8(), frame.try_get_u32()) else { break };
            match kind {
                kind::OPEN => {
                    let ours = id % 2 == self.next.load(Ordering::Relaxed) % 2;
                    let label = String::from_utf8(frame.to_vec()).ok().filter(|label| label.len() <= LABEL_MAX);
                    if ours || self.shared.streams().contains_key(&id) {
                        tracing::warn!(id, "a node opened a stream under an id that it may not use");
                        break;
                    }
                    let channel = self.shared.enter(id, None);
                    // Without a label that makes sense it is dropped, and thereby refused.
                    if let Some(label) = label {
                        take(Offered { label, channel });
                    }
                }
                kind::ACCEPT => {
                    let accepted = self.shared.streams().get_mut(&id).and_then(|entry| entry.accepted.take());
                    // Nobody may wait for it any more.
                    let _ = accepted.map(|accepted| accepted.send(()));
                }
                kind::MESSAGE => {
                    let arrived = self.shared.streams().get(&id).map(|entry| entry.arrived.clone());
                    // What is for a stream that ended here meanwhile is for nobody.
                    if let Some(arrived) = arrived {
                        let _ = arrived.send(frame).await;
                    }
                }
                kind::CLOSE => drop(self.shared.streams().remove(&id)),
                kind::ALIVE => patience = SILENCE,
                // Of a later version.
                _ => {}
            }
        }
    }

    /// The link is gone: what was not read is read still, and then every stream has ended.
    pub(super) fn end(&self) {
        self.shared.streams().clear();
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, id: u32, accepted: Option<oneshot::Sender<()>>) -> MuxChannel {
        let (sender, arrived) = mpsc::channel(ARRIVED_MAX);
        self.streams().insert(id, Entry { arrived: sender, accepted });
        MuxChannel { shared: Arc::clone(self), id, arrived: AsyncMutex::new(arrived) }
    }

    async fn send(&self, kind: u8, id: u32, payload: &[u8]) -> Result<(), ChannelClosed> {
        let mut frame = BytesMut::with_capacity(HEADER_LEN + payload.len());
        frame.put_u8(kind);
        frame.put_u32(id);
        frame.put_slice(payload);
        self.channel.send(frame).await
    }
}

/// One stream's share of the link's channel.
pub(super) struct MuxChannel {
    shared: Arc<Shared>,
    id: u32,
    arrived: AsyncMutex<mpsc::Receiver<Bytes>>,
}

#[async_trait]
impl Channel for MuxChannel {
    async fn send(&self, message: BytesMut) -> Result<(), ChannelClosed> {
        if !self.shared.streams().contains_key(&self.id) {
            return Err(ChannelClosed);
        }
        self.shared.send(kind::MESSAGE, self.id, &message).await
    }

    async fn recv(&self) -> Option<Bytes> {
        self.arrived.lock().await.recv().await
    }

    /// Its end comes behind everything else on the same channel, which stays.
    async fn flushed(&self) {}

    async fn close(&self) {
        let entry = self.shared.streams().remove(&self.id);
        if entry.is_some() {
            // A link that is gone has closed it.
            let _ = self.shared.send(kind::CLOSE, self.id, b"").await;
        }
    }
}

impl Drop for MuxChannel {
    fn drop(&mut self) {
        let entry = self.shared.streams().remove(&self.id);
        if entry.is_some()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (shared, id) = (Arc::clone(&self.shared), self.id);
            runtime.spawn(async move { shared.send(kind::CLOSE, id, b"").await });
        }
    }
}

impl fmt::Debug for MuxChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuxChannel").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").field("streams", &self.shared.streams().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::tunnel::tests::{PATIENCE, Pipe, pipe};

    /// A pipe that a mux may own.
    #[derive(Debug)]
    struct Shared(Arc<Pipe>);

    #[async_trait]
    impl Channel for Shared {
        async fn send(&self, message: BytesMut) -> Result<(), ChannelClosed> {
            self.0.send(message).await
        }
        async fn recv(&self) -> Option<Bytes> {
            self.0.recv().await
        }
        async fn flushed(&self) {}
        async fn close(&self) {
            self.0.close().await;
        }
    }

    /// The two ends; what the second is offered comes out of the receiver.
    fn linked() -> (Arc<Mux>, Arc<Mux>, mpsc::UnboundedReceiver<Offered>) {
        let (a, b) = pipe();
        let (one, other) =
            (Arc::new(Mux::new(Box::new(Shared(a)), true)), Arc::new(Mux::new(Box::new(Shared(b)), false)));
        let (sender, offered) = mpsc::unbounded_channel();
        let (reading, taking) = (Arc::clone(&one), Arc::clone(&other));
        tokio::spawn(async move {
            reading.carry(drop).await;
            reading.end();
        });
        tokio::spawn(async move {
            taking.carry(|offer| drop(sender.send(offer))).await;
            taking.end();
        });
        (one, other, offered)
    }

    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        timeout(PATIENCE, future).await.expect("it ends in time")
    }

    #[tokio::test]
    async fn streams_are_apart_and_an_id_is_used_once() {
        let (one, _other, mut offered) = linked();
        let mut ids = Vec::new();
        for round in 0..50_u8 {
            let (opened, taken) =
                in_time(async { tokio::join!(one.open("x"), async { offered.recv().await.unwrap().accept().await }) })
                    .await;
            let (opened, taken) = (opened.unwrap(), taken.unwrap());
            opened.send(BytesMut::from(&[round][..])).await.unwrap();
            assert_eq!(in_time(taken.recv()).await.unwrap()[..], [round]);
            taken.send(BytesMut::from(&[round, round][..])).await.unwrap();
            taken.close().await;
            assert_eq!(in_time(opened.recv()).await.unwrap()[..], [round, round], "what was said before the end");
            assert!(in_time(opened.recv()).await.is_none());
            assert!(opened.send(BytesMut::from(&b"late"[..])).await.is_err());
            ids.push(opened.id);
        }
        ids.dedup();
        assert_eq!(ids.len(), 50);
        assert!(one.shared.streams().is_empty());
    }

    #[tokio::test]
    async fn what_is_not_taken_is_refused_and_the_end_of_the_link_ends_all() {
        let (one, other, mut offered) = linked();
        let refused = in_time(async { tokio::join!(one.open("x"), async { drop(offered.recv().await) }) }).await.0;
        assert_eq!(refused.err(), Some(ChannelClosed));
        let (opened, taken) =
            in_time(async { tokio::join!(one.open("y"), async { offered.recv().await.unwrap().accept().await }) })
                .await;
        let (opened, taken) = (opened.unwrap(), taken.unwrap());
        one.shared.channel.close().await;
        other.shared.channel.close().await;
        assert!(in_time(opened.recv()).await.is_none() && in_time(taken.recv()).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_over_which_nothing_comes_any_more_is_given_up_and_an_idle_one_is_not() {
        let (one, _other, mut offered) = linked();
        let taking = async { offered.recv().await.unwrap().accept().await };
        let (opened, _taken) = in_time(async { tokio::join!(one.open("x"), taking) }).await;
        timeout(10 * SILENCE, opened.unwrap().recv()).await.expect_err("it goes on");

        // The other end says once that it is there, and nothing more.
        let (a, b) = pipe();
        let mux = Mux::new(Box::new(Shared(b)), true);
        timeout(10 * SILENCE, mux.carry(drop)).await.expect_err("one of an earlier version says nothing");
        let mut frame = BytesMut::from(&[kind::ALIVE][..]);
        frame.put_u32(0);
        a.send(frame).await.unwrap();
        timeout(2 * SILENCE, mux.carry(drop)).await.expect("it ends");
    }

    #[tokio::test]
    async fn an_id_that_is_not_the_other_sides_ends_the_link() {
        for id in [0_u32, 2] {
            let (a, b) = pipe();
            let mux = Mux::new(Box::new(Shared(b)), true);
            let mut frame = BytesMut::from(&[kind::OPEN][..]);
            frame.put_u32(id);
            a.send(frame).await.unwrap();
            timeout(Duration::from_secs(5), mux.carry(|_| panic!("it was taken"))).await.expect("it ends");
        }
    }
}
