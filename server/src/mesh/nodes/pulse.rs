//! Whether the other end of a link is still there.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// How often it is looked whether anything was heard.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks in a row without a word after which a link is dead: 1.5 s, in which three probes went unanswered. They are counted, not
/// measured: a machine that was too busy to look was too busy to hear.
const SILENT_LOOKS_MAX: u32 = 6;

/// After so many, a word comes too late for the link, though it is not dead: what was sent meanwhile is lost, and is sent again only after
/// 1 s, 3 s, 7 s (RFC 9260, 6.3.3), with everything that comes after it on the same channel waiting. A new link is there in 30 ms.
const GAP_LOOKS_MIN: u32 = 4;

/// Links to one node are made again for a gap at most this often: where both machines are busy all the time, handshakes would keep them
/// so.
pub(super) const GAPS_AT_MOST_EVERY: Duration = Duration::from_secs(10);

/// Set by whoever hears anything of the other end.
#[derive(Debug, Default)]
pub(super) struct Heard(AtomicBool);

impl Heard {
    pub(super) fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Silence {
    looks: u32,
}

impl Silence {
    /// To be called every [`LOOK_EVERY`]; whether the link is dead.
    pub(super) fn look(&mut self, heard: &Heard) -> bool {
        self.looks = if heard.take() { 0 } else { self.looks + 1 };
        self.looks >= SILENT_LOOKS_MAX
    }

    /// To be called when something is heard: whether that ends a gap.
    pub(super) fn ends_gap(&self) -> bool {
        self.looks >= GAP_LOOKS_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_now_and_then_is_enough() {
        let (heard, mut silence) = (Heard::default(), Silence::default());
        for look in 0..100 {
            if look % 5 == 0 {
                heard.now();
            }
            assert!(!silence.look(&heard));
        }
        heard.now();
        let looks = std::iter::repeat_with(|| silence.look(&heard)).take_while(|dead| !dead).count();
        assert_eq!(looks + 1, 1 + SILENT_LOOKS_MAX as usize);
    }

    #[test]
    fn a_word_after_a_second_of_silence_ends_a_gap() {
        let (heard, mut silence) = (Heard::default(), Silence::default());
        for _ in 1..GAP_LOOKS_MIN {
            assert!(!silence.look(&heard) && !silence.ends_gap());
        }
        assert!(!silence.look(&heard) && silence.ends_gap());
        heard.now();
        assert!(!silence.look(&heard) && !silence.ends_gap());
    }
}
