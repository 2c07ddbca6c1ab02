//! How much of a relay one user, one source and all of them together may use.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{Counters, Snapshot};

/// A client refreshes its allocation at least every 10 minutes (RFC 8656, 3.2); one that does not has none.
const SOURCE_KEPT: Duration = Duration::from_secs(11 * 60);

/// Addresses that are remembered as users' or as askers: a few hundred bytes each.
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
    open: AtomicUsize,
    /// Sources of each user that authenticated lately; a source has one allocation at most (RFC 8656, 2.2).
    users: Mutex<HashMap<String, HashMap<SocketAddr, Instant>>>,
    challenges: Mutex<Challenges>,
    pub(crate) challenges_since_start: AtomicU64,
    pub(crate) counters: Counters,
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
            open: AtomicUsize::new(0),
            users: Mutex::default(),
            challenges: Mutex::new(challenges),
            challenges_since_start: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// May this user use the relay from this source?
    pub(crate) fn admit(&self, user: &str, source: SocketAddr) -> bool {
        let now = Instant::now();
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= SOURCES_MAX && !users.contains_key(user) {
            users.retain(|_, sources| sources.values().any(|seen| now.duration_since(*seen) < SOURCE_KEPT));
        }
        let sources = users.entry(user.to_owned()).or_default();
        sources.retain(|_, seen| now.duration_since(*seen) < SOURCE_KEPT);
        let admitted = sources.contains_key(&source) || sources.len() < self.per_user_max;
        if admitted {
            sources.insert(source, now);
        } else {
            self.counters.allocations_denied.fetch_add(1, Relaxed);
        }
        admitted
    }

    /// May this source be asked for credentials?
    pub(crate) fn challenge(&self, source: IpAddr) -> bool {
        let mut challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        let Challenges { all, by_source } = &mut *challenges;
        if by_source.len() >= SOURCES_MAX {
            let refilled = Duration::from_secs_f64(CHALLENGES_BURST / CHALLENGES_PER_SECOND);
            by_source.retain(|_, bucket| bucket.filled_at.elapsed() < refilled);
        }
        let known = by_source.len() < SOURCES_MAX || by_source.contains_key(&source);
        let granted = known
            && by_source
                .entry(source)
                .or_insert_with(|| Bucket::full(CHALLENGES_BURST))
                .take(CHALLENGES_BURST, CHALLENGES_PER_SECOND)
            && all.take(ALL_CHALLENGES_BURST, ALL_CHALLENGES_PER_SECOND);
        if granted {
            self.challenges_since_start.fetch_add(1, Relaxed);
        } else {
            self.counters.challenges_denied.fetch_add(1, Relaxed);
        }
        granted
    }

    /// Takes a place for an allocation; to be given back with [`Self::release`].
    pub(crate) fn allocate(&self) -> bool {
        let taken = self.open.fetch_update(Relaxed, Relaxed, |open| (open < self.allocations_max).then_some(open + 1));
        let counter = if taken.is_ok() { &self.counters.allocations_total } else { &self.counters.allocations_denied };
        counter.fetch_add(1, Relaxed);
        taken.is_ok()
    }

    pub(crate) fn release(&self) {
        self.open.fetch_sub(1, Relaxed);
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
            allocations_open: self.open.load(Relaxed) as u64,
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

    fn source(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn a_user_has_only_so_many_sources() {
        let limits = Limits::new(10, 2);
        assert!(limits.admit("ada", source(1)) && limits.admit("ada", source(2)) && limits.admit("ada", source(1)));
        assert!(!limits.admit("ada", source(3)));
        assert!(limits.admit("bob", source(3)));
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
        assert!(limits.allocate());
        assert!(!limits.allocate());
        limits.release();
        assert!(limits.allocate());
        let counted = limits.snapshot();
        assert_eq!((counted.allocations_open, counted.allocations_total, counted.allocations_denied), (1, 2, 1));
    }
}
