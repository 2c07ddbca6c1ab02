//! How far generations are that are on their way here, as far as that takes long.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flotilla_api::{ServiceName, VolumeName};
use flotilla_core::{report::Coming, state::GenerationName};
use flotilla_data::fetch::Figures;
use tokio::sync::watch;

/// How often it is told how far a generation is on its way; one that takes less time is not told of.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// By volume.
pub(super) type Comings = BTreeMap<(ServiceName, VolumeName), Coming>;

/// Tells how far one volume's generation has come, until it is dropped.
pub(super) struct Progress {
    coming: watch::Sender<Comings>,
    key: (ServiceName, VolumeName),
    name: GenerationName,
    pace: Pace,
    told: Option<Instant>,
}

impl Progress {
    pub(super) fn begin(
        told: &watch::Sender<Comings>,
        service: &ServiceName,
        volume: &VolumeName,
        name: GenerationName,
    ) -> Self {
        let key = (service.clone(), volume.clone());
        Self { coming: told.clone(), key, name, pace: Pace::begin(Instant::now()), told: None }
    }

    pub(super) fn reached(&mut self, figures: Figures) {
        let now = Instant::now();
        let since = now.duration_since(self.told.unwrap_or(self.pace.began));
        if since < TELL_EVERY {
            return;
        }
        self.told = Some(now);
        let coming = Coming {
            service: self.key.0.clone(),
            volume: self.key.1.clone(),
            name: self.name,
            bytes: figures.there.min(figures.of),
            of: figures.of,
            per_second: self.pace.note(now, figures.came),
        };
        self.coming.send_modify(|known| drop(known.insert(self.key.clone(), coming)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.coming.send_if_modified(|known| known.remove(&self.key).is_some());
    }
}

/// How fast something has been going lately.
#[derive(Clone, Copy, Debug)]
struct Pace {
    began: Instant,
    last: (Instant, u64),
    per_second: Option<f64>,
}

impl Pace {
    fn begin(now: Instant) -> Self {
        Self { began: now, last: (now, 0), per_second: None }
    }

    /// So much there is now. Bytes per second.
    fn note(&mut self, now: Instant, bytes: u64) -> u64 {
        /// What happened so long ago counts for a third.
        const MEMORY: f64 = 10.0;
        let (at, before) = std::mem::replace(&mut self.last, (now, bytes));
        let seconds = now.duration_since(at).as_secs_f64().max(0.001);
        let rate = bytes.saturating_sub(before) as f64 / seconds;
        let known = self.per_second.unwrap_or(rate);
        let weight = 1.0 - (-seconds / MEMORY).exp();
        let rate = known + (rate - known) * weight;
        self.per_second = Some(rate);
        rate as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut pace = Pace::begin(began);
        assert_eq!(pace.note(at(1), 1_000_000), 1_000_000);
        for second in 2..=10 {
            assert_eq!(pace.note(at(second), second * 1_000_000), 1_000_000);
        }
        let slower: Vec<u64> =
            (11..=70).map(|second| pace.note(at(second), 10_000_000 + (second - 10) * 100_000)).collect();
        assert!(slower.is_sorted_by(|a, b| a >= b), "{slower:?}");
        assert!((100_000..110_000).contains(slower.last().unwrap()), "{slower:?}");
        assert!(pace.note(at(71), 0) < 100_000, "less than before is nothing");
    }

    #[test]
    fn what_takes_long_is_told_of_until_it_ends() {
        let comings = watch::Sender::default();
        let (service, volume): (ServiceName, VolumeName) = ("notes".parse().unwrap(), "board".parse().unwrap());
        let name = GenerationName { epoch: 3, sequence: 4 };
        let mut progress = Progress::begin(&comings, &service, &volume, name);
        let figures = Figures { objects: 1, bytes: 10, there: 90, came: 50, of: 200 };
        progress.reached(figures);
        assert!(comings.borrow().is_empty(), "it has only begun");
        progress.pace = Pace::begin(Instant::now().checked_sub(Duration::from_secs(2)).unwrap());
        progress.reached(figures);
        let told = comings.borrow().values().next().cloned().unwrap();
        assert_eq!((told.name, told.bytes, told.of), (name, 90, 200));
        // What was here before did not come.
        assert!((20..=25).contains(&told.per_second), "{}", told.per_second);
        progress.reached(Figures { there: 140, came: 100, ..figures });
        assert_eq!(comings.borrow().values().next().unwrap().bytes, 90, "not all the time");
        drop(progress);
        assert!(comings.borrow().is_empty());
    }
}
