//! A cluster in virtual time: nodes that lease, lead, place and reconcile, over a network, engines, clocks and a log that fail
//! in every way that a seed finds.
//!
//! `FLOTILLA_SIM_SEEDS=10000` runs more seeds (on all cores), `FLOTILLA_SIM_SEED=17` one alone, with its whole history. The log is a model: it
//! commits where a quorum can be reached and nowhere else. The consensus itself is tested where it lives.
#![expect(clippy::disallowed_methods, reason = "a test reads its seeds from the environment")]

mod chance;
mod disk;
mod engine;
mod faults;
mod invariants;
mod log;
mod node;
mod scenarios;
mod world;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
};

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;

/// After so many failures the rest is not run any more.
const FAILURES_MAX: usize = 10;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("FLOTILLA_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLOTILLA_SIM_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn whatever_fails_no_volume_has_two_writers_and_all_services_come_back() {
    let seeds = seeds();
    let (next, failures) = (AtomicU64::new(seeds.start), AtomicUsize::new(0));
    let work = || {
        let mut failed = Vec::new();
        while failures.load(Ordering::SeqCst) < FAILURES_MAX {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= seeds.end {
                break;
            }
            if catch_unwind(AssertUnwindSafe(|| scenarios::random(seed))).is_err() {
                failures.fetch_add(1, Ordering::SeqCst);
                failed.push(seed);
            }
        }
        failed
    };
    let failed: BTreeSet<u64> = thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let first = failed.first().copied().unwrap_or_default();
    assert!(failed.is_empty(), "the seeds {failed:?} failed; FLOTILLA_SIM_SEED={first} runs the first of them again");
}

#[test]
fn leases_are_as_long_as_the_links_need() {
    scenarios::slow_links(7);
}
