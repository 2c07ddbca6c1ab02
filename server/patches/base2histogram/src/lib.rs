//! Stands in for the crate of this name: as much of it as openraft uses.
//!
//! openraft counts how large its batches are and how long the stages of an entry take, and shows it on demand, which nobody here
//! demands. The real crate keeps tables for 16 resolutions, of which openraft uses one: 27 MB of each node's memory, which is
//! half of what an idle one may take. Here a bucket is a power of two, and there are no tables. To be taken out when the real
//! one makes its tables as they are asked for (it is a patch in the workspace's `Cargo.toml`).

use std::{fmt, marker::PhantomData};

/// One for each position of a value's highest bit, and one for zero.
const BUCKETS: usize = 65;

/// How often values of about some size were recorded. `T` is what the real one may keep beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    kept: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], kept: PhantomData }
    }
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Records a value so many times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.counts[bucket] = self.counts[bucket].saturating_add(times);
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count)),
            p0_1: self.per_mille(1),
            p1: self.per_mille(10),
            p5: self.per_mille(50),
            p10: self.per_mille(100),
            p50: self.per_mille(500),
            p90: self.per_mille(900),
            p99: self.per_mille(990),
            p99_9: self.per_mille(999),
        }
    }

    /// The smallest value of the bucket below which so many of a thousand samples lie; 0 without samples.
    fn per_mille(&self, share: u64) -> u64 {
        let samples: u128 = self.counts.iter().map(|count| u128::from(*count)).sum();
        let rank = (samples * u128::from(share)).div_ceil(1000).max(1);
        let mut below = 0;
        let reached = self.counts.iter().position(|count| {
            below += u128::from(*count);
            below >= rank
        });
        match reached {
            Some(bucket) if bucket > 0 => 1 << (bucket - 1),
            _ => 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(
            f,
            "[samples: {samples}, P0.1: {p0_1}, P1: {p1}, P5: {p5}, P10: {p10}, P50: {p50}, P90: {p90}, P99: {p99}, P99.9: {p99_9}]"
        )
    }
}

/// Histograms below each other, as lines of text.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    rows: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "as the real one has it")]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.rows.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.iter().try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded_to_a_power_of_two() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p50, 0);
        histogram.record(0);
        histogram.record_n(5, 97);
        histogram.record_n(u64::MAX, 2);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p1), (100, 0, 0));
        assert_eq!((stats.p5, stats.p50, stats.p90), (4, 4, 4));
        assert_eq!((stats.p99, stats.p99_9), (1 << 63, 1 << 63));
        assert!(AsciiChart::new().add("stage", histogram).to_string().starts_with("stage: [samples: 100, "));
    }
}
