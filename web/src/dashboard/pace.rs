//! How fast something long goes, and how much time it still needs.

use std::collections::VecDeque;

use super::format;

/// What was so quick or slow longer ago says nothing of now. Milliseconds.
const WINDOW: f64 = 5000.0;

/// Less time makes no rate. Milliseconds.
const RATE_FROM: f64 = 500.0;

/// One in each part of the window is enough.
const SAMPLES_MAX: usize = 50;

/// Of something that grows. Whoever measures brings the clock, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    samples: VecDeque<(f64, u64)>,
}

impl Pace {
    pub(crate) fn note(&mut self, at: f64, done: u64) {
        // Between two looks the newest counts; the first stays as the beginning.
        let close = |(last, _): &(f64, u64)| at - last < WINDOW / SAMPLES_MAX as f64;
        if self.samples.len() > 1 && self.samples.iter().nth_back(1).is_some_and(close) {
            self.samples.pop_back();
        }
        self.samples.push_back((at, done));
        while self.samples.len() > 2 && self.samples.get(1).is_some_and(|(second, _)| at - second >= WINDOW) {
            self.samples.pop_front();
        }
    }

    pub(crate) fn done(&self) -> u64 {
        self.samples.back().map_or(0, |(_, done)| *done)
    }

    /// Bytes per second; absent until it can be told.
    pub(crate) fn rate(&self) -> Option<f64> {
        let ((began, from), (at, to)) = (self.samples.front()?, self.samples.back()?);
        let took = at - began;
        (took >= RATE_FROM && to >= from).then(|| (to - from) as f64 * 1000.0 / took)
    }

    /// "12 MiB of about 340 MiB, 34 MiB/s, about 10 s left"; how much it will be is an estimate.
    pub(crate) fn words(&self, about: u64) -> String {
        let done = self.done();
        let mut words = format::bytes(done);
        if done < about {
            words += &format!(" of about {}", format::bytes(about));
        }
        let Some(rate) = self.rate() else { return words };
        words += &format!(", {}/s", format::bytes(rate as u64));
        if done < about && rate >= 1.0 {
            let left = (about - done) as f64 * 1000.0 / rate;
            words += &format!(", about {} left", format::coarse((left as u64).max(1000)));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        pace.note(0.0, 0);
        pace.note(100.0, MIB);
        assert_eq!(pace.rate(), None, "too short to tell");
        // A minute at one mebibyte a second, then ten at ten.
        for second in 1..=60 {
            pace.note(f64::from(second) * 1000.0, u64::from(second as u32) * MIB);
        }
        assert_eq!(pace.rate(), Some(MIB as f64));
        for second in 1..=10u32 {
            pace.note(f64::from(60 + second) * 1000.0, (60 + u64::from(second) * 10) * MIB);
        }
        assert_eq!(pace.rate(), Some(10.0 * MIB as f64));
        // It stands still.
        for second in 71..=76 {
            pace.note(f64::from(second) * 1000.0, 160 * MIB);
        }
        assert_eq!(pace.rate(), Some(0.0));
    }

    #[test]
    fn many_looks_cost_no_memory() {
        let mut pace = Pace::default();
        for at in 0..100_000 {
            pace.note(f64::from(at), u64::from(at as u32));
        }
        // Those of the window, and one at each end.
        assert!(pace.samples.len() <= SAMPLES_MAX + 3, "{}", pace.samples.len());
        assert!((pace.rate().unwrap() - 1000.0).abs() < 1.0);
    }

    #[test]
    fn the_words_say_what_is_left_while_that_is_known() {
        let mut pace = Pace::default();
        pace.note(0.0, 0);
        assert_eq!(pace.words(30 * MIB), "0 B of about 30 MiB");
        pace.note(1000.0, 10 * MIB);
        assert_eq!(pace.words(30 * MIB), "10 MiB of about 30 MiB, 10 MiB/s, about 2 s left");
        assert_eq!(pace.words(9 * MIB), "10 MiB, 10 MiB/s", "there was more than was thought");
        pace.note(6000.0, 10 * MIB);
        assert_eq!(pace.words(30 * MIB), "10 MiB of about 30 MiB, 0 B/s");
    }
}
