//! What is measured of a link: round trip, its variation, lost probes, bytes per second.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Probes of the last minute, two a second.
const PROBES_KEPT: usize = 120;

/// A probe without an answer after this time counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(1500);

/// Seconds over which bytes are averaged.
const TRAFFIC_OVER: Duration = Duration::from_secs(5);

/// Samples in that time: one for each probe, and one before it.
const TRAFFIC_SAMPLES: usize = 11;

#[derive(Debug, Default)]
pub(super) struct Figures {
    next: u32,
    probes: VecDeque<Probe>,
    /// Smoothed, and mean deviation from it, as RFC 6298 computes them. Seconds.
    round_trip: Option<(f64, f64)>,
    traffic: VecDeque<(Instant, u64, u64)>,
}

#[derive(Debug)]
struct Probe {
    number: u32,
    at: Instant,
    answered: bool,
}

/// The figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Read {
    pub(super) rtt_ms: Option<f64>,
    pub(super) jitter_ms: Option<f64>,
    pub(super) loss: Option<f64>,
    pub(super) sent_per_second: u64,
    pub(super) received_per_second: u64,
}

impl Figures {
    /// A probe is sent now; returns its number.
    pub(super) fn probe(&mut self, now: Instant) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        if self.probes.len() == PROBES_KEPT {
            self.probes.pop_front();
        }
        self.probes.push_back(Probe { number, at: now, answered: false });
        number
    }

    /// The answer to a probe came. One that was never sent, or answered before, changes nothing.
    pub(super) fn answered(&mut self, number: u32, now: Instant) {
        let Some(probe) = self.probes.iter_mut().find(|probe| probe.number == number && !probe.answered) else {
            return;
        };
        probe.answered = true;
        let took = now.saturating_duration_since(probe.at).as_secs_f64();
        self.round_trip = Some(match self.round_trip {
            None => (took, took / 2.0),
            Some((smoothed, deviation)) => {
                (smoothed + (took - smoothed) / 8.0, deviation + ((took - smoothed).abs() - deviation) / 4.0)
            }
        });
    }

    /// All bytes so far.
    pub(super) fn traffic(&mut self, now: Instant, sent: u64, received: u64) {
        if self.traffic.len() == TRAFFIC_SAMPLES {
            self.traffic.pop_front();
        }
        self.traffic.push_back((now, sent, received));
    }

    pub(super) fn read(&self, now: Instant) -> Read {
        let settled =
            self.probes.iter().filter(|probe| probe.answered || now.saturating_duration_since(probe.at) > LOST_AFTER);
        let (lost, all) =
            settled.fold((0_u32, 0_u32), |(lost, all), probe| (lost + u32::from(!probe.answered), all + 1));
        let recent = self.traffic.iter().find(|(at, ..)| now.saturating_duration_since(*at) <= TRAFFIC_OVER);
        let (sent_per_second, received_per_second) = match (recent, self.traffic.back()) {
            (Some((from, sent, received)), Some((to, sent_now, received_now))) if to > from => {
                let seconds = to.duration_since(*from).as_secs_f64();
                // Bytes in five seconds are far below what a float holds exactly.
                let rate = |bytes: u64| (bytes as f64 / seconds) as u64;
                (rate(sent_now.saturating_sub(*sent)), rate(received_now.saturating_sub(*received)))
            }
            _ => (0, 0),
        };
        Read {
            rtt_ms: self.round_trip.map(|(smoothed, _)| smoothed * 1e3),
            jitter_ms: self.round_trip.map(|(_, deviation)| deviation * 1e3),
            loss: (all > 0).then(|| f64::from(lost) / f64::from(all)),
            sent_per_second,
            received_per_second,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_round_trip_is_smoothed_and_its_variation_is_kept() {
        let (begin, mut figures) = (Instant::now(), Figures::default());
        for n in 0..100 {
            let at = begin + ms(500 * n);
            let number = figures.probe(at);
            figures.answered(number, at + ms(if n % 2 == 0 { 10 } else { 20 }));
            // Said twice, or of a probe that there never was: nothing changes.
            figures.answered(number, at + ms(400));
            figures.answered(number + 7, at);
        }
        let read = figures.read(begin + ms(50_000));
        assert!((14.0..16.0).contains(&read.rtt_ms.unwrap()), "{read:?}");
        assert!((4.0..6.0).contains(&read.jitter_ms.unwrap()), "{read:?}");
        assert_eq!(read.loss, Some(0.0));
    }

    #[test]
    fn probes_of_the_last_minute_say_how_many_are_lost() {
        let (begin, mut figures) = (Instant::now(), Figures::default());
        assert_eq!(figures.read(begin), Read::default());
        for n in 0..400_u64 {
            let at = begin + ms(500 * n);
            let number = figures.probe(at);
            // All were lost, long ago.
            if n > 200 && n % 4 != 0 {
                figures.answered(number, at + ms(1));
            }
        }
        let end = begin + ms(500 * 400);
        let loss = figures.read(end + ms(2000)).loss.unwrap();
        assert!((0.24..0.26).contains(&loss), "{loss}");
        // The last one is still under way.
        figures.probe(end + ms(2000));
        let again = figures.read(end + ms(2001)).loss.unwrap();
        assert!((again - loss).abs() < 0.01);
    }

    #[test]
    fn bytes_are_of_the_last_seconds() {
        let (begin, mut figures) = (Instant::now(), Figures::default());
        for n in 0..100_u64 {
            // A burst that is over.
            figures.traffic(begin + ms(500 * n), 1_000_000 + 500 * n, 250 * n);
        }
        let read = figures.read(begin + ms(500 * 99));
        assert_eq!((read.sent_per_second, read.received_per_second), (1000, 500));
    }
}
