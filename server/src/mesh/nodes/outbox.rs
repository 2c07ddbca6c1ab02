//! What waits to be said on a control channel, and in which order: small messages go first, large ones in pieces and in turn.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

/// Bytes of one piece. What is larger is cut, so that a small message waits for one piece at most. 32 KiB fill one batch of datagrams.
pub(super) const PIECE: usize = 32 * 1024;

/// Small messages that go before a piece of a large one, so that the large ones come to an end too.
const SMALL_IN_A_ROW: u32 = 16;

/// The kind of a frame: its first byte. What is not known is left out, for later versions.
pub(super) mod kind {
    /// `{id:u32}{method:u8}{total:u32}` and the first piece.
    pub(in super::super) const REQUEST: u8 = 1;
    /// `{id:u32}{status:u8}{total:u32}` and the first piece.
    pub(in super::super) const RESPONSE: u8 = 2;
    /// `{id:u32}` and a further piece of a request.
    pub(in super::super) const REQUEST_MORE: u8 = 3;
    /// `{id:u32}` and a further piece of a response.
    pub(in super::super) const RESPONSE_MORE: u8 = 4;
    /// `{id:u32}`: the asker wants no answer any more.
    pub(in super::super) const CANCEL: u8 = 5;
    /// The link ends; an `ApiError` says why.
    pub(in super::super) const BYE: u8 = 6;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

/// A request or a response on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    side: Side,
    id: u32,
    /// Of a request the method, of a response its status.
    code: u8,
    total: u32,
    rest: Bytes,
    begun: bool,
    /// Given back when the last piece is handed over.
    _room: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    /// `body` is at most [`crate::peers::BODY_MAX`].
    pub(super) fn new(side: Side, id: u32, code: u8, body: Bytes, room: Option<OwnedSemaphorePermit>) -> Self {
        let total = u32::try_from(body.len()).unwrap_or(u32::MAX);
        Self { side, id, code, total, rest: body, begun: false, _room: room }
    }

    fn is(&self, side: Side, id: u32) -> bool {
        self.side == side && self.id == id
    }

    fn next_piece(&mut self) -> BytesMut {
        let len = self.rest.len().min(PIECE);
        let mut frame = BytesMut::with_capacity(10 + len);
        let kind = match (self.side, self.begun) {
            (Side::Request, false) => kind::REQUEST,
            (Side::Response, false) => kind::RESPONSE,
            (Side::Request, true) => kind::REQUEST_MORE,
            (Side::Response, true) => kind::RESPONSE_MORE,
        };
        frame.put_u8(kind);
        frame.put_u32(self.id);
        if !self.begun {
            frame.put_u8(self.code);
            frame.put_u32(self.total);
        }
        frame.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        self.begun = true;
        frame
    }
}

/// How much of a message the other side may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forgotten {
    /// Nothing.
    Unsent,
    /// Some of it, or all.
    Begun,
}

/// Bounded by who puts things in: each call that is open, on either side, has one message here at most.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    urgent: VecDeque<BytesMut>,
    small: VecDeque<Outgoing>,
    large: VecDeque<Outgoing>,
    small_in_a_row: u32,
}

impl Outbox {
    pub(super) fn push(&mut self, message: Outgoing) {
        let queue = if message.rest.len() <= PIECE { &mut self.small } else { &mut self.large };
        queue.push_back(message);
    }

    /// Goes before everything.
    pub(super) fn push_urgent(&mut self, frame: BytesMut) {
        self.urgent.push_back(frame);
    }

    /// Drops what is left of a message.
    pub(super) fn forget(&mut self, side: Side, id: u32) -> Forgotten {
        for queue in [&mut self.small, &mut self.large] {
            if let Some(at) = queue.iter().position(|message| message.is(side, id)) {
                let unsent = queue.remove(at).is_some_and(|message| !message.begun);
                return if unsent { Forgotten::Unsent } else { Forgotten::Begun };
            }
        }
        Forgotten::Begun
    }

    /// The next frame to send.
    pub(super) fn pop(&mut self) -> Option<BytesMut> {
        if let Some(frame) = self.urgent.pop_front() {
            return Some(frame);
        }
        let large_waits = !self.large.is_empty() && self.small_in_a_row >= SMALL_IN_A_ROW;
        if !large_waits && let Some(mut message) = self.small.pop_front() {
            self.small_in_a_row = self.small_in_a_row.saturating_add(1);
            return Some(message.next_piece());
        }
        self.small_in_a_row = 0;
        let mut message = self.large.pop_front()?;
        let frame = message.next_piece();
        if !message.rest.is_empty() {
            self.large.push_back(message);
        }
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(id: u32, bytes: usize) -> Outgoing {
        Outgoing::new(Side::Request, id, 0, Bytes::from(vec![7; bytes]), None)
    }

    fn ids(outbox: &mut Outbox) -> Vec<u32> {
        std::iter::from_fn(|| outbox.pop()).map(|frame| u32::from_be_bytes(frame[1..5].try_into().unwrap())).collect()
    }

    #[test]
    fn large_messages_take_turns_and_small_ones_overtake_them() {
        let mut outbox = Outbox::default();
        outbox.push(outgoing(1, 3 * PIECE));
        outbox.push(outgoing(2, 2 * PIECE));
        assert_eq!(outbox.pop().unwrap().len(), 10 + PIECE);
        outbox.push(outgoing(3, PIECE));
        outbox.push(outgoing(4, 0));
        assert_eq!(ids(&mut outbox), [3, 4, 2, 1, 2, 1]);
    }

    #[test]
    fn a_stream_of_small_messages_does_not_keep_a_large_one_for_ever() {
        let mut outbox = Outbox::default();
        outbox.push(outgoing(1, 2 * PIECE));
        for id in 10..60 {
            outbox.push(outgoing(id, 10));
        }
        let order = ids(&mut outbox);
        let at: Vec<_> = order.iter().enumerate().filter(|(_, id)| **id == 1).map(|(at, _)| at).collect();
        assert_eq!(at, [16, 33]);
        assert_eq!(order.len(), 52);
    }

    #[test]
    fn what_is_forgotten_is_not_sent() {
        let mut outbox = Outbox::default();
        outbox.push(outgoing(1, 2 * PIECE));
        outbox.push(outgoing(2, 2 * PIECE));
        outbox.push(outgoing(3, 1));
        assert_eq!(outbox.forget(Side::Response, 3), Forgotten::Begun);
        assert_eq!(outbox.forget(Side::Request, 3), Forgotten::Unsent);
        outbox.pop();
        assert_eq!(outbox.forget(Side::Request, 1), Forgotten::Begun);
        assert_eq!(outbox.forget(Side::Request, 2), Forgotten::Unsent);
        assert!(outbox.pop().is_none());
    }
}
