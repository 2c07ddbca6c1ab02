//! What the tunnel needs of a data channel.

use std::fmt;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

/// The other side, or the connection under it, is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the channel is closed")]
pub struct ChannelClosed;

/// An ordered, reliable channel of messages.
#[async_trait]
pub trait Channel: Send + Sync + fmt::Debug + 'static {
    /// Sends a message; waits while too much is unsent. Dropping the future sends all of the message or none of it.
    ///
    /// # Errors
    /// [`ChannelClosed`].
    async fn send(&self, message: BytesMut) -> Result<(), ChannelClosed>;

    /// The next message; `None` once the channel is closed. Dropping the future loses no message.
    async fn recv(&self) -> Option<Bytes>;

    /// Waits until the other side has what was sent; for a farewell, because closing discards what is unsent.
    async fn flushed(&self);

    /// Ends the channel.
    async fn close(&self);
}
