//! What waits to be sent on one data channel, in a fair order.

use std::collections::{BTreeMap, VecDeque};

/// Bytes that may wait for one channel. Credit keeps each stream below 1 MiB; this holds against a page that ignores it.
pub(super) const OUTBOX_MAX: usize = 64 * 1024 * 1024;

/// Messages of one stream keep their order; streams take turns, message by message, so that an upload does not hold back a
/// form; urgent ones (credit, resets, pings) go first.
#[derive(Debug)]
pub(super) struct Outbox<M> {
    urgent: VecDeque<M>,
    streams: BTreeMap<u32, VecDeque<(M, usize)>>,
    turns: VecDeque<u32>,
    bytes: usize,
}

impl<M> Default for Outbox<M> {
    fn default() -> Self {
        Self { urgent: VecDeque::new(), streams: BTreeMap::new(), turns: VecDeque::new(), bytes: 0 }
    }
}

/// More waits than a page that honours its credit can have sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl<M> Outbox<M> {
    pub(super) fn push_urgent(&mut self, message: M) {
        self.urgent.push_back(message);
    }

    /// # Errors
    /// [`Full`], and nothing is kept.
    pub(super) fn push(&mut self, stream: u32, message: M, bytes: usize) -> Result<(), Full> {
        if self.bytes + bytes > OUTBOX_MAX {
            return Err(Full);
        }
        self.bytes += bytes;
        let queue = self.streams.entry(stream).or_default();
        if queue.is_empty() {
            self.turns.push_back(stream);
        }
        queue.push_back((message, bytes));
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<M> {
        if let Some(message) = self.urgent.pop_front() {
            return Some(message);
        }
        let stream = self.turns.pop_front()?;
        let queue = self.streams.get_mut(&stream)?;
        let (message, bytes) = queue.pop_front()?;
        self.bytes -= bytes;
        if queue.is_empty() {
            self.streams.remove(&stream);
        } else {
            self.turns.push_back(stream);
        }
        Some(message)
    }

    /// What a stream still wanted to say is not said; gives the first of it.
    pub(super) fn forget(&mut self, stream: u32) -> Option<M> {
        let queue = self.streams.remove(&stream)?;
        self.bytes -= queue.iter().map(|(_, bytes)| bytes).sum::<usize>();
        self.turns.retain(|turn| *turn != stream);
        queue.into_iter().next().map(|(message, _)| message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(outbox: &mut Outbox<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| outbox.pop()).collect()
    }

    #[test]
    fn streams_take_turns_and_keep_their_own_order() {
        let mut outbox = Outbox::default();
        for message in ["a1", "a2", "a3"] {
            outbox.push(1, message, 10).unwrap();
        }
        outbox.push(2, "b1", 10).unwrap();
        assert_eq!(drained(&mut outbox), ["a1", "b1", "a2", "a3"]);
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn urgent_messages_go_first() {
        let mut outbox = Outbox::default();
        outbox.push(1, "data", 10).unwrap();
        outbox.push_urgent("credit");
        assert_eq!(drained(&mut outbox), ["credit", "data"]);
    }

    #[test]
    fn a_forgotten_stream_says_nothing_more() {
        let mut outbox = Outbox::default();
        outbox.push(1, "a1", 10).unwrap();
        outbox.push(2, "b1", 10).unwrap();
        outbox.push(1, "a2", 10).unwrap();
        assert_eq!(outbox.forget(1), Some("a1"));
        assert_eq!(outbox.forget(3), None);
        assert_eq!(drained(&mut outbox), ["b1"]);
        assert_eq!(outbox.bytes, 0);
        outbox.push(1, "a3", 10).unwrap();
        assert_eq!(drained(&mut outbox), ["a3"]);
    }

    #[test]
    fn a_page_that_ignores_its_credit_is_stopped() {
        let mut outbox = Outbox::default();
        outbox.push(1, "much", OUTBOX_MAX).unwrap();
        assert_eq!(outbox.push(2, "more", 1), Err(Full));
        assert_eq!(drained(&mut outbox), ["much"]);
        outbox.push(2, "more", 1).unwrap();
    }
}
