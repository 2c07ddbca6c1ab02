//! Messages over a stream of bytes: each after its length (four bytes, big-endian).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::{
    codec::{FramedRead, LengthDelimitedCodec},
    sync::CancellationToken,
};

use crate::{
    peers::Stream,
    tunnel::{Channel, ChannelClosed},
};

/// The largest message; those of a mux are a little over 64 KiB. Bytes.
const MESSAGE_MAX: usize = 256 * 1024;
const LENGTH: usize = 4;

/// Messages that wait to be written.
const UNSENT_MAX: usize = 4;

/// What saying goodbye may take.
const CLOSING: Duration = Duration::from_secs(1);

/// A connection that is up. Dropping it ends it.
#[derive(Debug)]
pub(in crate::mesh::nodes) struct Line {
    traffic: Arc<Traffic>,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Line {
    /// Begins to carry messages over a stream that both sides have proven themselves on.
    pub(in crate::mesh::nodes) fn over(stream: Stream) -> (Self, LineChannel) {
        let (from, to) = tokio::io::split(stream);
        let (traffic, closed) = (Arc::new(Traffic::default()), CancellationToken::new());
        let (unsent, queue) = mpsc::channel(UNSENT_MAX);
        tokio::spawn(write(to, queue, Arc::clone(&traffic), closed.clone()));
        let reading = Mutex::new(FramedRead::new(from, codec()));
        let channel = LineChannel { unsent, reading, traffic: Arc::clone(&traffic), closed: closed.clone() };
        (Self { traffic, closed }, channel)
    }

    pub(in crate::mesh::nodes) fn is_up(&self) -> bool {
        !self.closed.is_cancelled()
    }

    pub(in crate::mesh::nodes) async fn lost(&self) {
        self.closed.cancelled().await;
    }

    /// Bytes of all messages so far: sent, and received.
    pub(in crate::mesh::nodes) fn traffic(&self) -> (u64, u64) {
        (self.traffic.sent.load(Ordering::Relaxed), self.traffic.received.load(Ordering::Relaxed))
    }

    pub(in crate::mesh::nodes) fn close(&self) {
        self.closed.cancel();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// The messages of a [`Line`].
pub(in crate::mesh::nodes) struct LineChannel {
    unsent: mpsc::Sender<BytesMut>,
    reading: Mutex<FramedRead<ReadHalf<Stream>, LengthDelimitedCodec>>,
    traffic: Arc<Traffic>,
    closed: CancellationToken,
}

#[async_trait]
impl Channel for LineChannel {
    async fn send(&self, message: BytesMut) -> Result<(), ChannelClosed> {
        if self.closed.is_cancelled() {
            return Err(ChannelClosed);
        }
        self.unsent.send(message).await.map_err(|_| ChannelClosed)
    }

    async fn recv(&self) -> Option<Bytes> {
        let mut reading = self.reading.lock().await;
        let read = self.closed.run_until_cancelled(reading.next()).await;
        let Some(Some(Ok(message))) = read else {
            tracing::debug!(?read, "a TLS link ended");
            self.closed.cancel();
            return None;
        };
        self.traffic.received.fetch_add(LENGTH as u64 + message.len() as u64, Ordering::Relaxed);
        Some(message.freeze())
    }

    /// As far as this side knows: all of it was given to the kernel.
    async fn flushed(&self) {
        // A line that is closed has nothing more to send.
        let _ = self.unsent.reserve_many(UNSENT_MAX).await;
    }

    async fn close(&self) {
        self.closed.cancel();
    }
}

impl fmt::Debug for LineChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineChannel").field("traffic", &self.traffic).finish_non_exhaustive()
    }
}

async fn write(
    mut to: WriteHalf<Stream>,
    mut queue: mpsc::Receiver<BytesMut>,
    traffic: Arc<Traffic>,
    closed: CancellationToken,
) {
    let writing = async {
        while let Some(message) = queue.recv().await {
            traffic.sent.fetch_add(LENGTH as u64 + message.len() as u64, Ordering::Relaxed);
            // Those of a mux are far shorter.
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
            to.write_all_buf(&mut (&length[..]).chain(message)).await?;
            if queue.is_empty() {
                to.flush().await?;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    if let Some(Err(error)) = closed.run_until_cancelled(writing).await {
        tracing::debug!(%error, "a TLS link broke");
    }
    closed.cancel();
    // Without it the other side notices the silence.
    let _ = timeout(CLOSING, to.shutdown()).await;
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_length(LENGTH).max_frame_length(MESSAGE_MAX).new_codec()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::tunnel::tests::PATIENCE;

    fn ends() -> ((Line, LineChannel), Stream) {
        let (one, other) = tokio::io::duplex(64 * 1024);
        (Line::over(Box::new(one)), Box::new(other))
    }

    #[tokio::test]
    async fn messages_keep_their_bounds_and_are_counted() {
        let ((line, one), other) = ends();
        let (_line, other) = Line::over(other);
        let large = BytesMut::from(&[7; MESSAGE_MAX][..]);
        let sending = async {
            for message in [BytesMut::from("a"), large.clone(), BytesMut::from("b")] {
                one.send(message).await.unwrap();
            }
            one.flushed().await;
        };
        let hearing = async { [other.recv().await, other.recv().await, other.recv().await].map(Option::unwrap) };
        let ((), heard) = timeout(PATIENCE, async { tokio::join!(sending, hearing) }).await.unwrap();
        assert_eq!(heard, [Bytes::from("a"), large.freeze(), Bytes::from("b")]);
        assert_eq!(line.traffic().0, (3 * LENGTH + MESSAGE_MAX + 2) as u64);
        line.close();
        assert!(timeout(PATIENCE, other.recv()).await.unwrap().is_none());
        assert!(!line.is_up());
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_ends_the_line() {
        let ((line, channel), mut other) = ends();
        other.write_u32(MESSAGE_MAX as u32 + 1).await.unwrap();
        assert!(timeout(PATIENCE, channel.recv()).await.unwrap().is_none());
        assert!(!line.is_up() && channel.send(BytesMut::from("x")).await.is_err());
    }
}
