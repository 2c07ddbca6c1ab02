//! How long to wait before a node that does not answer is asked again.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Soon after the first failure, because a node that restarts is back within seconds.
    const FIRST: Duration = Duration::from_secs(1);
    /// A person who looks at the page sees a node's return within this.
    const MAX: Duration = Duration::from_secs(15);

    pub(crate) fn new() -> Self {
        Self { failures: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Doubles with each failure in a row. `jitter`, from 0.0 to 1.0, keeps browsers that lost one node from returning at once.
    pub(crate) fn after_failure(&mut self, jitter: f64) -> Duration {
        let doubled = Self::FIRST * 2_u32.pow(self.failures.min(8));
        self.failures += 1;
        doubled.min(Self::MAX).mul_f64(0.75 + 0.25 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_begin_anew_after_success() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..6).map(|_| backoff.after_failure(1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 15, 15]);
        backoff.reset();
        assert_eq!(backoff.after_failure(0.0), Duration::from_millis(750));
    }

    #[test]
    fn a_node_that_is_long_gone_does_not_overflow_the_wait() {
        let mut backoff = Backoff { failures: 1000 };
        assert_eq!(backoff.after_failure(1.0), Backoff::MAX);
    }
}
