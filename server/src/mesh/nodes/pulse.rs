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
}
