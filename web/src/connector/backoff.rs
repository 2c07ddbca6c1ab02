//! When a lost connection is tried again.

/// Longer waits help nobody: a person who looks at the page wants it back soon after the network is.
const WAIT_MAX_MS: f64 = 15_000.0;

const WAIT_FIRST_MS: f64 = 500.0;

/// The first attempt after a loss comes at once; each further one waits twice as long as the one before, with a spread, so that
/// a restarted node is not met by all browsers at the same moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Milliseconds to wait; `random` is from 0 to 1.
    pub(super) fn next(&mut self, random: f64) -> f64 {
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        if failures == 0 {
            return 0.0;
        }
        let wait = (WAIT_FIRST_MS * f64::from(2_u32.saturating_pow(failures - 1))).min(WAIT_MAX_MS);
        wait * (0.75 + random / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Has more than the immediate attempt failed? Only then is it worth a word to the person.
    pub(super) fn is_persistent(&self) -> bool {
        self.failures > 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(0.5)).collect();
        assert_eq!(waits, [0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 15000.0, 15000.0]);
        backoff.reset();
        assert!(!backoff.is_persistent());
        assert_eq!(backoff.next(0.5), 0.0);
    }

    #[test]
    fn the_spread_is_a_quarter_either_way() {
        let mut backoff = Backoff { failures: 1 };
        assert_eq!(backoff.next(0.0), 375.0);
        let mut backoff = Backoff { failures: 1 };
        assert_eq!(backoff.next(1.0), 625.0);
    }
}
