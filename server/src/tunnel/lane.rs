//! The sending half of one data channel, shared by its streams.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_api::{
    ApiError,
    frame::{CONTROL_MAX, Frame, HEADER_LEN, Head, Header, Kind, STREAMS_MAX, flags},
};
use serde::Serialize;
use tokio::sync::{Mutex, mpsc};

use super::{Channel, ChannelClosed};

/// Frames that the reader of a channel wants sent without waiting itself: credit, of which a stream can be owed four steps at
/// once, answers to pings, and refusals.
const CONTROL_QUEUE: usize = 4 * STREAMS_MAX + 256;

/// Streams take turns, frame by frame: the lock is fair. So a large answer delays another stream by one frame, and what waits
/// in the channel is bounded whatever the number of streams.
#[derive(Debug)]
pub(super) struct Lane {
    channel: Arc<dyn Channel>,
    turn: Mutex<()>,
    control: mpsc::Sender<BytesMut>,
}

impl Lane {
    /// The lane, and the queue that [`Self::send_control`] fills: its owner runs [`Self::carry_control`].
    pub(super) fn new(channel: Arc<dyn Channel>) -> (Arc<Self>, mpsc::Receiver<BytesMut>) {
        let (control, queue) = mpsc::channel(CONTROL_QUEUE);
        (Arc::new(Self { channel, turn: Mutex::new(()), control }), queue)
    }

    pub(super) async fn recv(&self) -> Option<Bytes> {
        self.channel.recv().await
    }

    pub(super) async fn send(&self, frame: Frame<'_>) -> Result<(), ChannelClosed> {
        self.send_message(message(frame)).await
    }

    /// Sends a frame whose bytes are laid out already.
    pub(super) async fn send_message(&self, message: BytesMut) -> Result<(), ChannelClosed> {
        let _turn = self.turn.lock().await;
        self.channel.send(message).await
    }

    pub(super) async fn send_json<T: Serialize>(&self, kind: Kind, stream: u32, value: &T) -> Result<(), Unsent> {
        self.send_message(json(kind, stream, value)?).await?;
        Ok(())
    }

    /// Queues a frame without waiting; false if the queue is full.
    pub(super) fn send_control(&self, frame: Frame<'_>) -> bool {
        self.control.try_send(message(frame)).is_ok()
    }

    pub(super) fn reset(&self, stream: u32, error: &ApiError) -> bool {
        json(Kind::Reset, stream, error).is_ok_and(|message| self.control.try_send(message).is_ok())
    }

    pub(super) async fn carry_control(&self, mut queue: mpsc::Receiver<BytesMut>) {
        while let Some(message) = queue.recv().await {
            if self.send_message(message).await.is_err() {
                return;
            }
        }
    }

    /// Says a last frame, waits until it has arrived, and closes the channel.
    pub(super) async fn go_away(&self, error: &ApiError) {
        if self.send_json(Kind::GoAway, 0, error).await.is_ok() {
            self.channel.flushed().await;
        }
        self.channel.close().await;
    }

    pub(super) async fn close(&self) {
        self.channel.close().await;
    }
}

/// Why a control frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsent {
    #[error(transparent)]
    Closed(#[from] ChannelClosed),
    #[error("it has more than {CONTROL_MAX} bytes")]
    TooLarge,
}

fn message(frame: Frame<'_>) -> BytesMut {
    let mut message = BytesMut::with_capacity(HEADER_LEN + frame.payload.len());
    message.put_slice(&frame.header());
    message.put_slice(frame.payload);
    message
}

/// An answer as one frame ([`flags::WHOLE`]); `None` where it does not fit.
pub(super) fn whole(stream: u32, head: &Head, body: &[u8]) -> Option<BytesMut> {
    let head = serde_json::to_vec(head).ok()?;
    let len = size_of::<u32>() + head.len() + body.len();
    if len > CONTROL_MAX {
        return None;
    }
    let mut message = BytesMut::with_capacity(HEADER_LEN + len);
    message.put_slice(&Header { kind: Kind::Head, flags: flags::WHOLE, stream }.encode());
    // It is less than `CONTROL_MAX`.
    message.put_u32(head.len() as u32);
    message.put_slice(&head);
    message.put_slice(body);
    Some(message)
}

fn json<T: Serialize>(kind: Kind, stream: u32, value: &T) -> Result<BytesMut, Unsent> {
    let payload = serde_json::to_vec(value).map_err(|_| Unsent::TooLarge)?;
    if payload.len() > CONTROL_MAX {
        return Err(Unsent::TooLarge);
    }
    Ok(message(Frame::new(kind, stream, &payload)))
}
