//! What something was found of a moment ago, so that it is not found out again for a while.

use std::{
    collections::{BTreeMap, btree_map::Entry},
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
    /// From now on for a while. True if it was so already, and then that while does not begin anew: it may end for one who asks all the time.
    pub(super) fn add(&self, digest: &Digest) -> bool {
        match self.recent().entry(digest.clone()) {
            Entry::Occupied(_) => true,
            Entry::Vacant(vacant) => {
                vacant.insert(Instant::now());
                false
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn asking_again_does_not_make_it_longer() {
        let (lately, id) = (Lately::default(), format!("sha256:{}", "0".repeat(64)).parse().unwrap());
        assert!(!lately.add(&id));
        tokio::time::advance(AGAIN / 2).await;
        assert!(lately.add(&id));
        tokio::time::advance(AGAIN / 2).await;
        assert!(!lately.has(&id));
        assert!(!lately.add(&id));
    }
}
