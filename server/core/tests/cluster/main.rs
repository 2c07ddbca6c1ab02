//! A cluster in virtual time: nodes that lease, lead, place and reconcile, over a network, engines, clocks and a log that fail
//! in every way that a seed finds.
//!
//! `FLOTILLA_SIM_SEEDS=10000` runs more seeds, `FLOTILLA_SIM_SEED=17` one alone, with its whole history. The log is a model: it
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

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("FLOTILLA_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLOTILLA_SIM_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn whatever_fails_no_volume_has_two_writers_and_all_services_come_back() {
    for seed in seeds() {
        let run = catch_unwind(AssertUnwindSafe(|| scenarios::random(seed)));
        if run.is_err() {
            panic!("seed {seed} failed; FLOTILLA_SIM_SEED={seed} runs it again");
        }
    }
}
