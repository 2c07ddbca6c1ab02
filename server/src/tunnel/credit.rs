//! What a stream may still send.

use std::sync::{Mutex, PoisonError};

use flotilla_api::frame::INITIAL_CREDIT;
use tokio::sync::Notify;

/// Below this a sender waits for more rather than send crumbs. Bytes.
const WORTH_SENDING: usize = 16 * 1024;

/// More credit than this is a mistake of the other side: its counting and ours have come apart.
const CREDIT_MAX: u64 = 64 * INITIAL_CREDIT as u64;

/// Credit that the other side gave, and the one sender that uses it.
#[derive(Debug)]
pub(super) struct Credit {
    left: Mutex<u64>,
    given: Notify,
}

impl Credit {
    pub(super) fn new() -> Self {
        Self { left: Mutex::new(u64::from(INITIAL_CREDIT)), given: Notify::new() }
    }

    /// Takes at most `wanted`, and at least something; waits while there is next to none.
    pub(super) async fn take(&self, wanted: usize) -> usize {
        loop {
            let given = self.given.notified();
            if let Some(taken) = self.try_take(wanted) {
                return taken;
            }
            given.await;
        }
    }

    fn try_take(&self, wanted: usize) -> Option<usize> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let available = usize::try_from(*left).unwrap_or(usize::MAX);
        if available < wanted.min(WORTH_SENDING) {
            return None;
        }
        let taken = wanted.min(available);
        *left -= taken as u64;
        Some(taken)
    }

    /// False if that is more than any receiver can have meant.
    #[must_use]
    pub(super) fn give(&self, bytes: u32) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left += u64::from(bytes);
        let sane = *left <= CREDIT_MAX;
        drop(left);
        // A permit stays stored, so a sender that is about to wait sees it.
        self.given.notify_one();
        sane
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_sender_without_credit_waits_until_there_is_enough_to_send() {
        let credit = Credit::new();
        assert_eq!(credit.take(INITIAL_CREDIT as usize).now_or_never(), Some(INITIAL_CREDIT as usize));
        assert_eq!(credit.take(1).now_or_never(), None);
        assert!(credit.give(10));
        assert_eq!(credit.take(100_000).now_or_never(), None);
        assert_eq!(credit.take(4).now_or_never(), Some(4));
        assert!(credit.give(16 * 1024));
        assert_eq!(credit.take(100_000).now_or_never(), Some(16 * 1024 + 6));
    }

    #[test]
    fn absurd_credit_is_noticed() {
        let credit = Credit::new();
        assert!(!credit.give(u32::MAX));
    }
}
