//! A stream of bytes in both directions over one channel, with credit, half-close and reset.
//!
//! SCTP has one window for a whole connection: a stream that nobody reads would stop all others. So each stream has credit of its
//! own, and what arrives is always taken.

use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::timeout,
};

use crate::tunnel::{Channel, ChannelClosed};

/// What one direction may have under way, or waiting for its reader: 100 MB/s over 40 ms. Bytes.
const WINDOW: usize = 4 * 1024 * 1024;

/// What a message costs of the window at least, so that a thousand single bytes are no burden.
const COST_MIN: usize = 4 * 1024;

/// Bytes of one message: what fills the batches of the connection below.
const MESSAGE: usize = 64 * 1024;

/// What a writer may be ahead of the connection.
const BUFFER: usize = 4 * MESSAGE;

/// Credit is given back in such amounts.
const GIVE_BACK: usize = WINDOW / 4;

/// The last words of a stream are brought in this time, or never. A slow line has the whole window to carry.
const ENDING: Duration = Duration::from_secs(30);

/// First byte of a message.
mod kind {
    pub(super) const DATA: u8 = 1;
    /// `{bytes:u32}`: credit given back.
    pub(super) const CREDIT: u8 = 2;
    /// No more data in this direction.
    pub(super) const END: u8 = 3;
    /// The sender has dropped its end.
    pub(super) const RESET: u8 = 4;
}

/// One end of a stream. Dropping it before [`AsyncWrite::poll_shutdown`] resets it: the other side reads what was written, then an error.
pub(super) struct NodeStream {
    shared: Arc<Shared>,
}

impl NodeStream {
    /// `held` is dropped once the channel is closed.
    pub(super) fn start(channel: Arc<dyn Channel>, held: impl Send + 'static) -> Self {
        let shared =
            Arc::new(Shared { flow: Mutex::new(Flow { credit: WINDOW, ..Flow::default() }), changed: Notify::new() });
        let carried = Arc::clone(&shared);
        tokio::spawn(async move {
            carried.carry(&*channel).await;
            let _ = timeout(ENDING, channel.flushed()).await;
            channel.close().await;
            drop(held);
        });
        Self { shared }
    }
}

#[derive(Default)]
struct Flow {
    /// Messages to send; the last one may still grow.
    unsent: VecDeque<BytesMut>,
    unsent_bytes: usize,
    credit: usize,
    writer: Option<Waker>,
    /// Nothing more will be written.
    finished: bool,
    /// The other side has been told so.
    end_sent: bool,

    /// With what each message costs, which is given back once all of it is read.
    arrived: VecDeque<(Bytes, usize)>,
    /// Of the window, by what has arrived and was not given back.
    taken: usize,
    /// To be given back.
    owed: usize,
    reader: Option<Waker>,
    /// Nothing more will arrive.
    end_arrived: bool,

    /// This end is dropped.
    dropped: bool,
    broken: Option<Broken>,
}

#[derive(Clone, Copy)]
enum Broken {
    Reset,
    Lost,
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Reset => Self::new(io::ErrorKind::ConnectionReset, "the other machine dropped the stream"),
            Broken::Lost => Self::new(io::ErrorKind::ConnectionAborted, "the connection to the other machine was lost"),
        }
    }
}

impl Flow {
    fn fail(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
        self.wake();
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// What is to be sent next.
    fn next(&mut self) -> Next {
        if self.broken.is_some() {
            return Next::Over;
        }
        if self.owed >= GIVE_BACK {
            let mut message = BytesMut::from(&[kind::CREDIT][..]);
            // At most the window.
            message.put_u32(u32::try_from(self.owed).unwrap_or(u32::MAX));
            self.taken -= self.owed;
            self.owed = 0;
            return Next::Send(message);
        }
        if let Some(message) = self.unsent.front() {
            let cost = cost(message.len() - 1);
            if cost > self.credit {
                return Next::Wait;
            }
            self.credit -= cost;
            let message = self.unsent.pop_front().unwrap_or_default();
            self.unsent_bytes -= message.len() - 1;
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
            return Next::Send(message);
        }
        if self.finished && !self.end_sent {
            self.end_sent = true;
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
            return Next::Send(BytesMut::from(&[kind::END][..]));
        }
        if self.end_sent && self.end_arrived {
            return Next::Over;
        }
        if self.dropped { Next::Reset } else { Next::Wait }
    }

    fn take(&mut self, mut message: Bytes) -> Result<(), Broken> {
        if message.is_empty() {
            return Err(Broken::Reset);
        }
        match message.get_u8() {
            kind::DATA => {
                let cost = cost(message.len());
                if self.end_arrived || self.taken + cost > WINDOW {
                    return Err(Broken::Reset);
                }
                self.taken += cost;
                if self.dropped || message.is_empty() {
                    self.owed += cost;
                } else {
                    self.arrived.push_back((message, cost));
                }
            }
            kind::CREDIT => {
                let credit = message.try_get_u32().map_err(|_| Broken::Reset)?;
                self.credit = self.credit.saturating_add(credit as usize).min(WINDOW);
            }
            kind::END => self.end_arrived = true,
            kind::RESET => return Err(Broken::Reset),
            // Of a later version.
            _ => {}
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Ok(())
    }
}

enum Next {
    Send(BytesMut),
    Wait,
    /// This end is gone; the other is told.
    Reset,
    Over,
}

fn cost(bytes: usize) -> usize {
    bytes.max(COST_MIN)
}

struct Shared {
    flow: Mutex<Flow>,
    /// There may be something to send.
    changed: Notify,
}

impl Shared {
    async fn carry(&self, channel: &dyn Channel) {
        let sending = async {
            loop {
                let next = self.flow().next();
                match next {
                    Next::Send(message) => channel.send(message).await?,
                    Next::Wait => self.changed.notified().await,
                    Next::Reset => return channel.send(BytesMut::from(&[kind::RESET][..])).await,
                    Next::Over => return Ok::<_, ChannelClosed>(()),
                }
            }
        };
        let receiving = async {
            while let Some(message) = channel.recv().await {
                let taken = self.flow().take(message);
                if let Err(broken) = taken {
                    return broken;
                }
                self.changed.notify_one();
            }
            Broken::Lost
        };
        tokio::pin!(sending, receiving);
        let broken = tokio::select! {
            Ok(()) = &mut sending => None,
            // Also after a failure to send: the other end has closed, or the link is gone, and what came before that is read still, its
            // end perhaps.
            broken = &mut receiving => Some(broken),
        };
        let mut flow = self.flow();
        if let Some(broken) = broken.filter(|_| !(flow.end_arrived && flow.end_sent)) {
            flow.fail(broken);
        }
        flow.wake();
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for NodeStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.shared.flow();
        let Some((message, cost)) = flow.arrived.front_mut() else {
            if flow.end_arrived {
                return Poll::Ready(Ok(()));
            }
            if let Some(broken) = flow.broken {
                return Poll::Ready(Err(broken.into()));
            }
            flow.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let len = message.len().min(buf.remaining());
        buf.put_slice(&message[..len]);
        message.advance(len);
        if message.is_empty() {
            let cost = *cost;
            flow.arrived.pop_front();
            flow.owed += cost;
            if flow.owed >= GIVE_BACK {
                self.shared.changed.notify_one();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut flow = self.shared.flow();
        if let Some(broken) = flow.broken {
            return Poll::Ready(Err(broken.into()));
        }
        if flow.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let free = BUFFER - flow.unsent_bytes;
        if free == 0 {
            flow.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut rest = &buf[..buf.len().min(free)];
        let written = rest.len();
        while !rest.is_empty() {
            if flow.unsent.back().is_none_or(|message| message.len() > MESSAGE) {
                let mut message = BytesMut::with_capacity(1 + MESSAGE);
                message.put_u8(kind::DATA);
                flow.unsent.push_back(message);
            }
            if let Some(message) = flow.unsent.back_mut() {
                let (now, later) = rest.split_at(rest.len().min(1 + MESSAGE - message.len()));
                message.extend_from_slice(now);
                rest = later;
            }
        }
        flow.unsent_bytes += written;
        drop(flow);
        self.shared.changed.notify_one();
        Poll::Ready(Ok(written))
    }

    /// What is written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends this direction; what arrives may still be read. Ready once all of it is on its way.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.shared.flow();
        if flow.end_sent {
            return Poll::Ready(Ok(()));
        }
        if let Some(broken) = flow.broken {
            return Poll::Ready(Err(broken.into()));
        }
        flow.finished = true;
        flow.writer = Some(cx.waker().clone());
        drop(flow);
        self.shared.changed.notify_one();
        Poll::Pending
    }
}

impl Drop for NodeStream {
    fn drop(&mut self) {
        let mut flow = self.shared.flow();
        flow.dropped = true;
        flow.owed += flow.arrived.drain(..).map(|(_, cost)| cost).sum::<usize>();
        drop(flow);
        self.shared.changed.notify_one();
    }
}

impl fmt::Debug for NodeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeStream").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use async_trait::async_trait;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Mutex as AsyncMutex,
    };

    use super::*;
    use crate::tunnel::tests::{PATIENCE, pipe};

    fn pair() -> (NodeStream, NodeStream) {
        let (a, b) = pipe();
        (NodeStream::start(a, ()), NodeStream::start(b, ()))
    }

    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        timeout(PATIENCE, future).await.expect("it ends in time")
    }

    #[tokio::test]
    async fn both_directions_end_on_their_own() {
        let (mut one, mut other) = pair();
        one.write_all(b"question").await.unwrap();
        in_time(one.shutdown()).await.unwrap();
        let mut heard = String::new();
        in_time(other.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "question");
        other.write_all(b"answer").await.unwrap();
        in_time(other.shutdown()).await.unwrap();
        drop(other);
        heard.clear();
        in_time(one.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "answer");
    }

    /// Nothing can be sent on it any more, and what had come before is still to be taken.
    #[derive(Debug)]
    struct Closed(AsyncMutex<VecDeque<Bytes>>);

    #[async_trait]
    impl Channel for Closed {
        async fn send(&self, _: BytesMut) -> Result<(), ChannelClosed> {
            Err(ChannelClosed)
        }
        async fn recv(&self) -> Option<Bytes> {
            // So that whoever sends is first.
            tokio::task::yield_now().await;
            self.0.lock().await.pop_front()
        }
        async fn flushed(&self) {}
        async fn close(&self) {}
    }

    #[tokio::test]
    async fn what_came_before_the_other_side_closed_is_read_to_its_end() {
        let data = |bytes: &[u8]| Bytes::from([&[kind::DATA], bytes].concat());
        let whole = [data(b"all "), data(b"of it"), Bytes::from_static(&[kind::END])];
        for (sent, end) in [(3, Ok(9)), (2, Err(io::ErrorKind::ConnectionAborted))] {
            let channel = Closed(AsyncMutex::new(whole[..sent].iter().cloned().collect()));
            let mut stream = NodeStream::start(Arc::new(channel), ());
            stream.write_all(b"late").await.unwrap();
            let mut heard = Vec::new();
            let read = in_time(stream.read_to_end(&mut heard)).await;
            assert_eq!((read.map_err(|error| error.kind()), &heard[..]), (end, &b"all of it"[..]));
        }
    }

    #[tokio::test]
    async fn what_was_written_arrives_before_the_news_that_it_was_cut_off() {
        let (mut one, mut other) = pair();
        one.write_all(b"half a").await.unwrap();
        drop(one);
        let mut heard = Vec::new();
        let error = in_time(other.read_to_end(&mut heard)).await.unwrap_err();
        assert_eq!((&heard[..], error.kind()), (&b"half a"[..], io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn a_writer_waits_for_its_reader() {
        let (mut one, mut other) = pair();
        let mut written = 0;
        while let Ok(wrote) = timeout(Duration::from_millis(100), one.write(&[1; MESSAGE])).await {
            written += wrote.unwrap();
        }
        assert!((WINDOW..=WINDOW + BUFFER + MESSAGE).contains(&written), "{written}");
        let mut heard = vec![0; written];
        in_time(other.read_exact(&mut heard)).await.unwrap();
        assert_eq!(in_time(one.write(&[1])).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn many_small_messages_are_bounded_too() {
        let (a, b) = pipe();
        let mut reader = NodeStream::start(b, ());
        let mut sent = 0;
        let message = || BytesMut::from(&[kind::DATA, 1][..]);
        while let Ok(Ok(())) = timeout(Duration::from_millis(100), a.send(message())).await {
            sent += 1;
            assert!(sent <= 2 * WINDOW / COST_MIN, "a thousand single bytes and more");
        }
        // What was over the credit broke the stream.
        let mut heard = Vec::new();
        assert!(in_time(reader.read_to_end(&mut heard)).await.is_err());
        assert_eq!(heard.len(), WINDOW / COST_MIN);
    }

    #[tokio::test]
    async fn what_is_no_stream_is_an_end() {
        for bad in [&b""[..], &[kind::CREDIT, 1], &[kind::RESET]] {
            let (a, b) = pipe();
            let mut stream = NodeStream::start(b, ());
            a.send(BytesMut::from(bad)).await.unwrap();
            assert!(in_time(stream.read_u8()).await.is_err(), "{bad:?}");
        }
        let (a, b) = pipe();
        let mut stream = NodeStream::start(b, ());
        for fine in [&[77, 1][..], &[kind::DATA], &[kind::DATA, 5], &[kind::END]] {
            a.send(BytesMut::from(fine)).await.unwrap();
        }
        let mut heard = Vec::new();
        in_time(stream.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard, [5]);
    }
}
