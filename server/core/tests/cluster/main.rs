//! A cluster in virtual time: nodes that lease, lead, place and reconcile, over a network, engines, clocks and a log that fail
//! in every way that a seed finds.
//!
//! `FLOTILLA_SIM_SEEDS=10000` runs more seeds (on all cores), `FLOTILLA_SIM_SEED=17` one alone, with its whole history. The log is a model: it
//! commits where a quorum can be reached and nowhere else. The consensus itself is tested where it lives.
#![expect(clippy::disallowed_methods, reason = "a test reads its seeds from the environment")]

mod chance;
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
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
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
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(BTreeSet::new()));
    let work = || {
        while failed.lock().unwrap().len() < FAILURES_MAX {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= seeds.end {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| scenarios::random(seed))).is_err() {
                failed.lock().unwrap().insert(seed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    let first = failed.first().copied().unwrap_or_default();
    assert!(failed.is_empty(), "the seeds {failed:?} failed; FLOTILLA_SIM_SEED={first} runs the first of them again");
}

#[test]
fn leases_are_as_long_as_the_links_need() {
    scenarios::slow_links(7);
}
