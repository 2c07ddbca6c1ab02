//! When to try again what failed: after a pause that doubles.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(5);
const MAX: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Again<K>(BTreeMap<K, (Instant, Duration)>);

impl<K> Default for Again<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Again<K> {
    pub(super) fn is_due(&self, what: &K) -> bool {
        self.0.get(what).is_none_or(|(at, _)| *at <= Instant::now())
    }

    /// It failed.
    pub(super) fn later(&mut self, what: K) {
        let pause = self.0.get(&what).map_or(FIRST, |(_, pause)| (*pause * 2).min(MAX));
        self.pause(what, pause);
    }

    /// It is not tried again for the longest pause.
    pub(super) fn much_later(&mut self, what: K) {
        self.pause(what, MAX);
    }

    /// It succeeded: its next failure is the first.
    pub(super) fn forget(&mut self, what: &K) {
        self.0.remove(what);
    }

    fn pause(&mut self, what: K, pause: Duration) {
        self.0.retain(|_, (at, _)| at.elapsed() < MAX);
        self.0.insert(what, (Instant::now() + pause, pause));
    }
}
