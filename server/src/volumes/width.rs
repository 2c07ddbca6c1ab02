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

/// Eight that carry less each have filled a slow line, as a rule. Bytes per second.
const SLOW: f64 = 250e3;

/// What the connections carry is judged after this time.
const JUDGED_AFTER: Duration = Duration::from_secs(1);

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

/// What the connections carry, by which it is seen whether more of them would carry more: as a rule each packet that is lost on the way halves
/// what one of them carries.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// When it was looked at them first, and bytes until then.
    since: Option<(Instant, u64)>,
    decided: bool,
}

impl Judge {
    /// Would more connections than these carry more? Says so once.
    pub(super) fn wants_more(&mut self, now: Instant, lines: usize, bytes: u64) -> bool {
        let (since, from) = *self.since.get_or_insert((now, bytes));
        let took = now.saturating_duration_since(since);
        if self.decided || took < JUDGED_AFTER {
            return false;
        }
        self.decided = true;
        let each = (bytes - from) as f64 / took.as_secs_f64() / lines as f64;
        (SLOW..FAST).contains(&each)
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
    fn connections_are_added_where_each_is_slowed_down_for_itself() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        for (megabytes, wants) in [(1, false), (8, true), (100, false)] {
            let mut judge = Judge::default();
            assert!(!judge.wants_more(at(0), 8, 5_000_000));
            assert!(!judge.wants_more(at(900), 8, 6_000_000));
            assert_eq!(judge.wants_more(at(1_000), 8, 5_000_000 + megabytes * 1_000_000), wants, "{megabytes} MB");
            assert!(!judge.wants_more(at(3_000), 16, 500_000_000), "that is decided");
        }
    }
}
