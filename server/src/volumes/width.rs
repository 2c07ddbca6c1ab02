//! How wide a fetch is: how much is asked for over one connection before it has answered, and whether more connections would carry more.

use std::time::{Duration, Instant};

use super::wire::NAMES_MAX;

/// Objects that are asked for over one connection before it has answered, at most.
pub(super) const ASKED_MAX: usize = 4 * NAMES_MAX;

/// And in one question, so that each machine has its share of what is known to be missing.
const ASKED_AT_ONCE: usize = NAMES_MAX / 4;

/// A question for fewer is not worth asking.
pub(super) const ASKED_LEAST: usize = 4;

/// Over a connection that answers so soon more may be asked for. At the end none has much left to answer while the others are done.
const SOON: Duration = Duration::from_millis(300);

/// A connection that carries more has no need of others. Bytes per second.
const FAST: f64 = 3e6;

/// What the connections carry is judged after this time.
const JUDGED_AFTER: Duration = Duration::from_secs(1);

/// Others are added while the last ones made it so much faster.
const WORTH: f64 = 1.1;

/// How many objects may be asked for over a connection before it has answered: what it carries in a moment.
#[derive(Debug)]
pub(super) struct Window {
    objects: usize,
    fastest: Duration,
}

impl Default for Window {
    fn default() -> Self {
        Self { objects: ASKED_AT_ONCE, fastest: Duration::MAX }
    }
}

impl Window {
    pub(super) fn room(&self, asked: usize) -> usize {
        let room = self.objects.saturating_sub(asked);
        let least = (self.objects / 4).clamp(ASKED_LEAST, ASKED_AT_ONCE);
        if room < least { 0 } else { room.min(ASKED_AT_ONCE) }
    }

    pub(super) fn answered(&mut self, after: Duration) {
        self.fastest = self.fastest.min(after);
        // A long way takes its time in any case.
        let soon = self.fastest.saturating_mul(2).max(SOON);
        if after < soon {
            self.objects = (self.objects + 1).min(ASKED_MAX);
        } else if after > soon.saturating_mul(2) {
            self.objects = (self.objects - 1).max(2 * ASKED_LEAST);
        }
    }
}

/// What the connections carry, by which it is seen whether more of them would carry more.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// When so many connections were there first: bytes until then.
    since: Option<(Instant, usize, u64)>,
    /// What fewer carried. Bytes per second.
    before: f64,
    /// With so many, or fewer, that is decided.
    decided: usize,
}

impl Judge {
    /// Are more connections than these worth it? Says so once.
    pub(super) fn wants_more(&mut self, now: Instant, lines: usize, bytes: u64) -> bool {
        if lines <= self.decided {
            return false;
        }
        let (since, _, from) = match self.since {
            Some(since) if since.1 == lines => since,
            _ => *self.since.insert((now, lines, bytes)),
        };
        let took = now.saturating_duration_since(since);
        if took < JUDGED_AFTER {
            return false;
        }
        let rate = (bytes - from) as f64 / took.as_secs_f64();
        let wants = rate > WORTH * self.before && rate < FAST * lines as f64;
        self.before = rate;
        self.decided = if wants { lines } else { usize::MAX };
        wants
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_asked_for_as_a_connection_carries_in_a_moment() {
        let mut window = Window::default();
        assert_eq!(window.room(0), ASKED_AT_ONCE);
        assert_eq!(window.room(ASKED_AT_ONCE - ASKED_LEAST), ASKED_LEAST);
        assert_eq!(window.room(ASKED_AT_ONCE - ASKED_LEAST + 1), 0, "not worth a question");
        (0..1_000).for_each(|_| window.answered(SOON / 2));
        assert_eq!((window.room(0), window.room(ASKED_MAX - ASKED_AT_ONCE + 1)), (ASKED_AT_ONCE, 0));
        (0..1_000).for_each(|_| window.answered(3 * SOON));
        assert_eq!((window.room(0), window.room(ASKED_LEAST)), (2 * ASKED_LEAST, ASKED_LEAST));

        // Over a satellite nothing comes sooner.
        let mut far = Window::default();
        (0..1_000).for_each(|_| far.answered(3 * SOON));
        assert_eq!(far.room(ASKED_MAX - ASKED_AT_ONCE), ASKED_AT_ONCE);
    }

    #[test]
    fn connections_are_added_while_they_carry_more() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!judge.wants_more(at(0), 8, 0));
        assert!(judge.wants_more(at(1), 8, 5_000_000));
        assert!(!judge.wants_more(at(2), 8, 10_000_000), "they are being made");
        assert!(!judge.wants_more(at(3), 12, 15_000_000));
        assert!(judge.wants_more(at(4), 12, 22_000_000));
        assert!(!judge.wants_more(at(5), 16, 29_000_000));
        assert!(!judge.wants_more(at(6), 16, 36_000_000), "the line is full");
        assert!(!judge.wants_more(at(7), 16, 136_000_000), "that is final");

        let mut near = Judge::default();
        near.wants_more(at(0), 8, 0);
        assert!(!near.wants_more(at(1), 8, 150_000_000), "nothing is lost here");
    }
}
