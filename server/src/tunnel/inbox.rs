//! What a browser sent on one stream and the service has not taken yet: bounded by the credit that we gave.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use flotilla_api::frame::{CREDIT_STEP, DATA_MAX, INITIAL_CREDIT};
use futures::task::AtomicWaker;

/// Messages of a WebSocket that wait at once. Credit counts payload alone, so that empty messages need a limit of their own.
const MESSAGES_MAX: usize = 16 * 1024;

/// Payload of one `Data` frame, or of several that a body's reader need not tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) flags: u8,
    pub(super) payload: Bytes,
}

/// A browser that broke the rules of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("more was sent than the credit of the stream allows")]
    Credit,
    #[error("more than {MESSAGES_MAX} messages wait to be taken by the service")]
    Messages,
    #[error("data was sent after the end of the stream")]
    AfterEnd,
}

#[derive(Debug)]
pub(super) struct Inbox {
    /// Whether frames have boundaries that matter (WebSocket) or are one body.
    messages: bool,
    state: Mutex<State>,
    reader: AtomicWaker,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Piece>,
    /// Small frames of a body, laid together.
    tail: BytesMut,
    /// What the browser may still send.
    credit: u64,
    /// Passed on, and not yet returned as credit.
    owed: u32,
    end: Option<Bytes>,
}

impl Inbox {
    pub(super) fn new(messages: bool) -> Self {
        let state = State {
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            credit: u64::from(INITIAL_CREDIT),
            owed: 0,
            end: None,
        };
        Self { messages, state: Mutex::new(state), reader: AtomicWaker::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a `Data` frame from the browser.
    pub(super) fn push(&self, flags: u8, payload: Bytes) -> Result<(), Violation> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Err(Violation::AfterEnd);
        }
        state.credit = state.credit.checked_sub(payload.len() as u64).ok_or(Violation::Credit)?;
        if self.messages {
            if state.queue.len() >= MESSAGES_MAX {
                return Err(Violation::Messages);
            }
            state.queue.push_back(Piece { flags, payload });
        } else if payload.len() >= DATA_MAX / 4 {
            state.flush_tail();
            state.queue.push_back(Piece { flags: 0, payload });
        } else {
            state.tail.extend_from_slice(&payload);
            if state.tail.len() >= DATA_MAX {
                state.flush_tail();
            }
        }
        drop(state);
        self.reader.wake();
        Ok(())
    }

    /// Takes the `End` frame from the browser.
    pub(super) fn end(&self, payload: Bytes) -> Result<(), Violation> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Err(Violation::AfterEnd);
        }
        state.end = Some(payload);
        drop(state);
        self.reader.wake();
        Ok(())
    }

    /// The next piece; `None` at the end, whose payload [`Self::end_payload`] tells. For one reader.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.reader.register(cx.waker());
        let mut state = self.lock();
        if let Some(piece) = state.queue.pop_front() {
            return Poll::Ready(Some(piece));
        }
        if !state.tail.is_empty() {
            let payload = state.tail.split().freeze();
            return Poll::Ready(Some(Piece { flags: 0, payload }));
        }
        if state.end.is_some() { Poll::Ready(None) } else { Poll::Pending }
    }

    pub(super) async fn next(&self) -> Option<Piece> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Nobody will read or fill it any more: what waits for it is woken and finds its end.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.queue.clear();
        state.tail = BytesMut::new();
        state.end.get_or_insert_default();
        drop(state);
        self.reader.wake();
    }

    pub(super) fn end_payload(&self) -> Option<Bytes> {
        self.lock().end.clone()
    }

    /// The reader has passed on so many bytes. Returns the credit to give back, in steps.
    #[must_use]
    pub(super) fn passed_on(&self, bytes: usize) -> Option<u32> {
        let mut state = self.lock();
        state.owed += u32::try_from(bytes).unwrap_or(u32::MAX);
        if state.owed < CREDIT_STEP || state.end.is_some() {
            return None;
        }
        let owed = std::mem::take(&mut state.owed);
        state.credit += u64::from(owed);
        Some(owed)
    }
}

impl State {
    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            let payload = self.tail.split().freeze();
            self.queue.push_back(Piece { flags: 0, payload });
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn more_than_the_credit_is_refused() {
        let inbox = Inbox::new(false);
        for _ in 0..INITIAL_CREDIT as usize / DATA_MAX {
            inbox.push(0, Bytes::from(vec![0; DATA_MAX])).unwrap();
        }
        assert_eq!(inbox.push(0, Bytes::from_static(b"x")), Err(Violation::Credit));
    }

    #[test]
    fn empty_messages_are_bounded_too() {
        let inbox = Inbox::new(true);
        let refused = (0..).find(|_| inbox.push(0, Bytes::new()) == Err(Violation::Messages));
        assert_eq!(refused, Some(MESSAGES_MAX));
    }

    #[test]
    fn credit_comes_back_in_quarters() {
        let inbox = Inbox::new(false);
        let step = CREDIT_STEP as usize;
        inbox.push(0, Bytes::from(vec![0; step])).unwrap();
        assert_eq!(inbox.passed_on(step - 1), None);
        assert_eq!(inbox.passed_on(1), Some(CREDIT_STEP));
    }

    #[test]
    fn nothing_comes_after_the_end() {
        let inbox = Inbox::new(true);
        inbox.push(1, Bytes::from_static(b"last")).unwrap();
        inbox.end(Bytes::from_static(b"{}")).unwrap();
        assert_eq!(inbox.push(1, Bytes::new()), Err(Violation::AfterEnd));
        assert_eq!(inbox.end(Bytes::new()), Err(Violation::AfterEnd));
        let read = inbox.next().now_or_never().flatten().unwrap();
        assert_eq!(read, Piece { flags: 1, payload: Bytes::from_static(b"last") });
        assert_eq!(inbox.next().now_or_never(), Some(None));
        assert_eq!(inbox.end_payload(), Some(Bytes::from_static(b"{}")));
    }

    proptest! {
        #[test]
        fn a_body_arrives_whole_whatever_its_frames(sizes in proptest::collection::vec(0_usize..DATA_MAX, 0..12), read_between: bool) {
            let inbox = Inbox::new(false);
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            let read = |got: &mut Vec<u8>| while let Some(Some(piece)) = inbox.next().now_or_never() {
                got.extend_from_slice(&piece.payload);
            };
            for (n, size) in sizes.into_iter().enumerate() {
                let payload = vec![u8::try_from(n).unwrap(); size];
                sent.extend_from_slice(&payload);
                inbox.push(0, Bytes::from(payload)).unwrap();
                if read_between {
                    read(&mut got);
                }
            }
            inbox.end(Bytes::new()).unwrap();
            read(&mut got);
            prop_assert_eq!(got, sent);
        }
    }
}
