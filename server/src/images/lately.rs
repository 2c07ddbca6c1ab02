//! What something was found of a moment ago, so that it is not found out again for a while.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Digest;

/// How long that is.
pub(super) const AGAIN: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(super) struct Lately(Mutex<BTreeMap<Digest, Instant>>);

impl Lately {
    /// From now on for a while. True if it was so already.
    pub(super) fn add(&self, digest: &Digest) -> bool {
        self.recent().insert(digest.clone(), Instant::now()).is_some()
    }

    pub(super) fn remove(&self, digest: &Digest) {
        self.recent().remove(digest);
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.recent().contains_key(digest)
    }

    fn recent(&self) -> MutexGuard<'_, BTreeMap<Digest, Instant>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, at| at.elapsed() < AGAIN);
        all
    }
}
