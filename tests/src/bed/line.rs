//! A way that is as long, as narrow and as bad as those between homes: when a frame that goes in comes out, if it does. Time is told to
//! it and chance is seeded, so that what it does can be tried without a network.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What goes over a wire beside each frame: preamble, checksum and the gap to the next. Bytes.
const BESIDE_A_FRAME: usize = 24;
/// What is shorter is filled up. Bytes, without the checksum.
const FRAME_MIN: usize = 60;

/// What a cable is like, in each of its directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// From one end to the other.
    pub delay: Duration,
    /// As Ethernet counts: frames with their preamble, checksum and gap. Of 100, TCP has 94 for what it carries.
    pub megabits: u32,
    /// Of a million frames.
    pub lost: u32,
    /// What waits at its beginning is sent within this time; what comes while so much waits is dropped, as a router does that has no
    /// room left.
    pub queue: Duration,
    /// Which frames are lost: the same of the same frames in the same order.
    pub seed: u64,
}

impl Line {
    /// Two machines with such cables are 40 ms there and back from each other, at 100 Mbit/s, and one of a thousand frames is lost
    /// between them.
    pub const HOME: Self =
        Self { delay: Duration::from_millis(10), megabits: 100, lost: 500, queue: Duration::from_millis(60), seed: 1 };

    /// How long a frame keeps the line busy.
    fn takes(&self, bytes: usize) -> Duration {
        let bits = (bytes.max(FRAME_MIN) + BESIDE_A_FRAME) as u64 * 8;
        Duration::from_nanos(bits * 1_000 / u64::from(self.megabits))
    }
}

/// One direction of a line.
#[derive(Debug)]
pub(super) struct Lane<F> {
    line: Line,
    /// When all that waits is sent.
    busy_until: Option<Instant>,
    /// What waits or is on its way, and when it comes out. In this order it went in.
    under_way: VecDeque<(Instant, F)>,
    chance: Chance,
}

impl<F> Lane<F> {
    /// `which`: no two lanes lose the same frames.
    pub(super) fn new(line: Line, which: u64) -> Self {
        let chance = Chance(line.seed ^ which.wrapping_mul(0xA076_1D64_78BD_642F));
        Self { line, busy_until: None, under_way: VecDeque::new(), chance }
    }

    /// A frame goes in.
    pub(super) fn put(&mut self, now: Instant, bytes: usize, frame: F) {
        let begins = self.busy_until.map_or(now, |busy| busy.max(now));
        if begins - now > self.line.queue {
            return;
        }
        let sent = begins + self.line.takes(bytes);
        self.busy_until = Some(sent);
        // What is lost on the way has used the line as well.
        if self.chance.of_a_million() >= self.line.lost {
            self.under_way.push_back((sent + self.line.delay, frame));
        }
    }

    /// When the next one comes out.
    pub(super) fn next(&self) -> Option<Instant> {
        self.under_way.front().map(|(out, _)| *out)
    }

    /// The next one, if it is out by then.
    pub(super) fn take(&mut self, by: Instant) -> Option<F> {
        self.next().filter(|out| *out <= by)?;
        self.under_way.pop_front().map(|(_, frame)| frame)
    }
}

/// SplitMix64: any seed is as good as another.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn of_a_million(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // The upper half of the product with a range is a number in it.
        u32::try_from((u128::from(mixed) * 1_000_000) >> 64).expect("less than a million")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 1_514;
    const PERFECT: Line = Line { lost: 0, ..Line::HOME };

    /// All that comes out, and when, counted from `start`.
    fn out_of(lane: &mut Lane<usize>, start: Instant) -> Vec<(Duration, usize)> {
        std::iter::from_fn(|| {
            let at = lane.next()?;
            assert!(lane.take(at - Duration::from_nanos(1)).is_none(), "nothing comes out before its time");
            Some((at - start, lane.take(at)?))
        })
        .collect()
    }

    #[test]
    fn a_frame_alone_takes_the_delay_and_its_own_length() {
        let (mut lane, start) = (Lane::new(PERFECT, 0), Instant::now());
        lane.put(start, FRAME, 7);
        // (1514 + 24) * 8 bits at 100 bits a microsecond.
        assert_eq!(out_of(&mut lane, start), [(PERFECT.delay + Duration::from_nanos(123_040), 7)]);
    }

    #[test]
    fn frames_come_out_in_order_at_the_rate_of_the_line_and_what_finds_no_room_is_dropped() {
        let (mut lane, start) = (Lane::new(PERFECT, 0), Instant::now());
        for frame in 0..2_000 {
            lane.put(start, FRAME, frame);
        }
        let out = out_of(&mut lane, start);
        // Whoever has at most 60 ms of others before it.
        assert_eq!(out.len(), 488);
        assert!(out.iter().enumerate().all(|(number, (_, frame))| number == *frame));
        assert!(out.windows(2).all(|pair| pair[1].0 - pair[0].0 == Duration::from_nanos(123_040)));
        // It is empty again.
        let later = start + Duration::from_secs(1);
        lane.put(later, FRAME, 1);
        assert_eq!(out_of(&mut lane, later), [(PERFECT.delay + Duration::from_nanos(123_040), 1)]);
    }

    #[test]
    fn what_comes_at_the_rate_of_the_line_never_waits() {
        let (mut lane, start) = (Lane::new(PERFECT, 0), Instant::now());
        for frame in 0..10_000_u32 {
            lane.put(start + Duration::from_nanos(123_040) * frame, FRAME, frame as usize);
        }
        let out = out_of(&mut lane, start);
        assert_eq!(out.len(), 10_000);
        assert_eq!(out[9_999].0, PERFECT.delay + Duration::from_nanos(123_040) * 10_000);
    }

    #[test]
    fn as_many_as_asked_for_are_lost_others_on_each_lane_and_the_same_again() {
        let arrived = |line: Line, which| -> Vec<usize> {
            let (mut lane, start) = (Lane::new(line, which), Instant::now());
            for frame in 0..1_000_000_u32 {
                lane.put(start + Duration::from_micros(200) * frame, FRAME, frame as usize);
            }
            out_of(&mut lane, start).into_iter().map(|(_, frame)| frame).collect()
        };
        let one = arrived(Line::HOME, 0);
        // 500 are to be lost; the deviation is 22.
        assert!((390..610).contains(&(1_000_000 - one.len())), "{} of a million are lost", 1_000_000 - one.len());
        assert_eq!(one, arrived(Line::HOME, 0));
        assert_ne!(one, arrived(Line::HOME, 1));
        assert_ne!(one, arrived(Line { seed: 2, ..Line::HOME }, 0));
        assert_eq!(arrived(PERFECT, 0).len(), 1_000_000);
    }
}
