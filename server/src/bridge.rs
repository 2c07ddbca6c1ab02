//! Between tasks that wait and threads that block: bytes from one to the other, piece by piece.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::{sync::mpsc, time::timeout};

/// Pieces that have come and are not read yet.
const PIECES: usize = 8;

/// What arrives in an async task, read by one that blocks.
#[derive(Debug)]
pub(crate) struct Incoming {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Incoming {
    /// Whoever sends is gone ([`io::ErrorKind::TimedOut`]) when nothing has come for so long.
    pub(crate) fn of(
        mut bytes: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
        patience: Duration,
    ) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    // Whoever read it is gone, and whoever sends need not go on.
                    () = sender.closed() => return,
                    next = timeout(patience, bytes.next()) => next,
                };
                let piece = match next {
                    Ok(Some(piece)) => piece,
                    Ok(None) => return,
                    Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long")),
                };
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() || failed {
                    return;
                }
            }
        });
        Self { pieces, piece: Bytes::new() }
    }
}

impl io::Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.piece.len());
        buffer[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}

/// What is written by a thread that blocks, for an async task.
#[derive(Debug)]
pub(crate) struct Outgoing(pub(crate) mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn whoever_sends_is_let_go_with_the_reader_though_nothing_comes() {
        let held = Arc::new(());
        let bytes = stream::unfold(Arc::clone(&held), |held| async move {
            std::future::pending::<()>().await;
            Some((Ok(Bytes::new()), held))
        });
        let reader = Incoming::of(Box::pin(bytes), Duration::from_secs(3600));
        tokio::task::yield_now().await;
        drop(reader);
        let let_go = async {
            while Arc::strong_count(&held) > 1 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), let_go).await.expect("the sender is still held");
    }
}
