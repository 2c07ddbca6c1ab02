//! How much of a relay one user, one source and all of them together may use.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{Counters, Snapshot};

/// Addresses that are remembered for having asked lately: about a hundred bytes each.
const SOURCES_MAX: usize = 16 * 1024;

/// Requests without credentials, which each client sends once: in a row, and per second, from one address.
const CHALLENGES_BURST: f64 = 30.0;
const CHALLENGES_PER_SECOND: f64 = 0.5;

/// The same from everybody. The server keeps a nonce for each and forgets none, so this bounds its memory too.
const ALL_CHALLENGES_BURST: f64 = 500.0;
const ALL_CHALLENGES_PER_SECOND: f64 = 10.0;

/// Nonces after which the server is replaced by a fresh one: about 50 MiB, at the earliest after half a day of refused floods.
pub(crate) const CHALLENGES_PER_SERVER: u64 = 400_000;

#[derive(Debug)]
pub(crate) struct Limits {
    allocations_max: usize,
    per_user_max: usize,
    allocations: Mutex<Allocations>,
    challenges: Mutex<Challenges>,
    pub(crate) challenges_since_start: AtomicU64,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
struct Allocations {
    open: usize,
    by_user: HashMap<String, usize>,
    /// Whose request the server is handling. It handles one at a time, and makes an allocation only once the request's signature
    /// was checked, so this is who an allocation is for.
    asking: String,
}

#[derive(Debug)]
struct Challenges {
    all: Bucket,
    by_source: HashMap<IpAddr, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    filled_at: Instant,
}

impl Bucket {
    fn full(burst: f64) -> Self {
        Self { left: burst, filled_at: Instant::now() }
    }

    fn take(&mut self, burst: f64, per_second: f64) -> bool {
        let now = Instant::now();
        self.left = burst.min(self.left + now.duration_since(self.filled_at).as_secs_f64() * per_second);
        self.filled_at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

impl Limits {
    pub(crate) fn new(allocations_max: usize, per_user_max: usize) -> Self {
        let challenges = Challenges { all: Bucket::full(ALL_CHALLENGES_BURST), by_source: HashMap::new() };
        Self {
            allocations_max,
            per_user_max,
            allocations: Mutex::default(),
            challenges: Mutex::new(challenges),
            challenges_since_start: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// A request of this user is looked at.
    pub(crate) fn asked_by(&self, user: &str) {
        user.clone_into(&mut self.lock().asking);
    }

    /// May this source be asked for credentials?
    pub(crate) fn challenge(&self, source: IpAddr) -> bool {
        let mut challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        let Challenges { all, by_source } = &mut *challenges;
        // A source over its limit takes nothing from the others, and one that is new is remembered only if there is something
        // left for it: so a flood from everywhere costs neither memory nor time.
        let own = by_source.get_mut(&source).map(|bucket| bucket.take(CHALLENGES_BURST, CHALLENGES_PER_SECOND));
        let granted = own != Some(false) && all.take(ALL_CHALLENGES_BURST, ALL_CHALLENGES_PER_SECOND);
        if granted && own.is_none() {
            if by_source.len() >= SOURCES_MAX {
                let refilled = Duration::from_secs_f64(CHALLENGES_BURST / CHALLENGES_PER_SECOND);
                by_source.retain(|_, bucket| bucket.filled_at.elapsed() < refilled);
            }
            let mut bucket = Bucket::full(CHALLENGES_BURST);
            bucket.take(CHALLENGES_BURST, CHALLENGES_PER_SECOND);
            by_source.insert(source, bucket);
        }
        let counter = if granted { &self.challenges_since_start } else { &self.counters.challenges_denied };
        counter.fetch_add(1, Relaxed);
        granted
    }

    /// Takes a place for an allocation of the asking user; returns the user, to be given back with [`Self::release`].
    pub(crate) fn allocate(&self) -> Option<String> {
        let mut allocations = self.lock();
        let Allocations { open, by_user, asking } = &mut *allocations;
        let own = by_user.get(asking).copied().unwrap_or(0);
        if *open >= self.allocations_max || own >= self.per_user_max {
            self.counters.allocations_denied.fetch_add(1, Relaxed);
            return None;
        }
        *open += 1;
        by_user.insert(asking.clone(), own + 1);
        self.counters.allocations_total.fetch_add(1, Relaxed);
        Some(asking.clone())
    }

    pub(crate) fn release(&self, user: &str) {
        let mut allocations = self.lock();
        allocations.open = allocations.open.saturating_sub(1);
        if let Some(own) = allocations.by_user.get_mut(user) {
            *own -= 1;
            if *own == 0 {
                allocations.by_user.remove(user);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Allocations> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let Counters {
            allocations_total,
            bytes_to_peers,
            bytes_from_peers,
            peers_denied,
            allocations_denied,
            credentials_denied,
            challenges_denied,
        } = &self.counters;
        Snapshot {
            allocations_open: self.lock().open as u64,
            allocations_total: allocations_total.load(Relaxed),
            bytes_to_peers: bytes_to_peers.load(Relaxed),
            bytes_from_peers: bytes_from_peers.load(Relaxed),
            peers_denied: peers_denied.load(Relaxed),
            allocations_denied: allocations_denied.load(Relaxed),
            credentials_denied: credentials_denied.load(Relaxed),
            challenges_denied: challenges_denied.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_only_so_many_allocations() {
        let limits = Limits::new(10, 2);
        limits.asked_by("ada");
        let held = [limits.allocate(), limits.allocate()];
        assert_eq!(held, [Some("ada".to_owned()), Some("ada".to_owned())]);
        assert_eq!(limits.allocate(), None);
        limits.asked_by("bob");
        assert!(limits.allocate().is_some());
        limits.release("ada");
        limits.asked_by("ada");
        assert!(limits.allocate().is_some());
        assert_eq!(limits.snapshot().allocations_denied, 1);
    }

    #[test]
    fn a_flood_from_one_source_leaves_others_their_share() {
        let limits = Limits::new(10, 2);
        let granted = (0..1000).filter(|_| limits.challenge([192, 0, 2, 1].into())).count();
        assert!((30..40).contains(&granted), "{granted}");
        assert!(limits.challenge([192, 0, 2, 2].into()));
    }

    #[test]
    fn a_flood_from_everywhere_is_bounded() {
        let limits = Limits::new(10, 2);
        let granted = (0..100_000_u32).filter(|n| limits.challenge(std::net::Ipv4Addr::from_bits(*n).into())).count();
        assert!(granted < 600, "{granted}");
        assert!(limits.challenges.lock().unwrap().by_source.len() <= SOURCES_MAX);
    }

    #[test]
    fn allocations_are_bounded_and_come_back() {
        let limits = Limits::new(1, 8);
        assert!(limits.allocate().is_some());
        assert!(limits.allocate().is_none());
        limits.release("");
        assert!(limits.allocate().is_some());
        let counted = limits.snapshot();
        assert_eq!((counted.allocations_open, counted.allocations_total, counted.allocations_denied), (1, 2, 1));
    }
}
