//! How much of its line a machine may take for copies at a minute of its day.

use flotilla_api::limit::{CopyLimit, LimitNow, LimitWindow, TimeOfDay};

/// Windows of one machine's limit: more than a person keeps in mind.
pub const WINDOWS_MAX: usize = 12;

/// # Errors
/// One sentence that says which windows can't be, and what helps.
pub fn check(limit: &CopyLimit) -> Result<(), String> {
    if limit.windows.len() > WINDOWS_MAX {
        return Err(format!("a machine's limit has at most {WINDOWS_MAX} windows"));
    }
    if let Some(window) = limit.windows.iter().find(|window| window.from == window.to) {
        return Err(format!(
            "a window from {} to {} would be a whole day or nothing; set the limit without hours for the whole day",
            window.from, window.to
        ));
    }
    for (index, window) in limit.windows.iter().enumerate() {
        if let Some(other) = limit.windows.iter().skip(index + 1).find(|other| overlap(window, other)) {
            return Err(format!(
                "the window {} overlaps the window {}; take one of them away first",
                other.span(),
                window.span()
            ));
        }
    }
    Ok(())
}

/// What holds at this time of the day, and until when.
pub fn at(limit: &CopyLimit, now: TimeOfDay) -> LimitNow {
    let rate = |time| limit.windows.iter().find(|window| covers(window, time)).map_or(limit.rate, |it| Some(it.rate));
    let current = rate(now);
    // Rates change where windows begin and end.
    let changes = limit.windows.iter().flat_map(|window| [window.from, window.to]);
    let until = changes.filter(|time| rate(*time) != current).min_by_key(|time| now.until(*time));
    LimitNow { rate: current, until }
}

fn covers(window: &LimitWindow, time: TimeOfDay) -> bool {
    window.from.until(time) < window.from.until(window.to)
}

fn overlap(a: &LimitWindow, b: &LimitWindow) -> bool {
    covers(a, b.from) || covers(b, a.from)
}

#[cfg(test)]
mod tests {
    use flotilla_api::limit::{Rate, Span};
    use proptest::prelude::*;

    use super::*;

    fn limit(rate: Option<&str>, windows: &[(&str, &str)]) -> CopyLimit {
        let window = |(span, rate): &(&str, &str)| LimitWindow::new(span.parse().unwrap(), rate.parse().unwrap());
        CopyLimit { rate: rate.map(|rate| rate.parse().unwrap()), windows: windows.iter().map(window).collect() }
    }

    fn holds(limit: &CopyLimit, time: &str) -> (Option<u64>, Option<String>) {
        let LimitNow { rate, until } = at(limit, time.parse().unwrap());
        (rate.map(Rate::per_second), until.map(|until| until.to_string()))
    }

    #[test]
    fn without_windows_one_rate_holds_for_ever() {
        assert_eq!(holds(&limit(None, &[]), "12:00"), (None, None));
        assert_eq!(holds(&limit(Some("2MB/s"), &[]), "12:00"), (Some(2_000_000), None));
    }

    #[test]
    fn a_window_holds_from_its_first_minute_to_the_one_before_its_end() {
        let day = limit(Some("2MB/s"), &[("07:00-23:00", "500kB/s")]);
        check(&day).unwrap();
        for (time, rate, until) in [
            ("06:59", 2_000_000, "07:00"),
            ("07:00", 500_000, "23:00"),
            ("22:59", 500_000, "23:00"),
            ("23:00", 2_000_000, "07:00"),
            ("00:00", 2_000_000, "07:00"),
        ] {
            assert_eq!(holds(&day, time), (Some(rate), Some(until.to_owned())), "{time}");
        }
    }

    #[test]
    fn a_window_goes_on_over_midnight() {
        let night = limit(None, &[("22:00-06:30", "1MB/s")]);
        check(&night).unwrap();
        for time in ["22:00", "23:59", "00:00", "06:29"] {
            assert_eq!(holds(&night, time), (Some(1_000_000), Some("06:30".to_owned())), "{time}");
        }
        assert_eq!(holds(&night, "06:30"), (None, Some("22:00".to_owned())));
    }

    #[test]
    fn it_lasts_until_something_else_holds() {
        let evening = limit(None, &[("18:00-20:00", "0"), ("20:00-23:00", "0"), ("23:00-24:00", "1MB/s")]);
        check(&evening).unwrap();
        assert_eq!(holds(&evening, "18:30"), (Some(0), Some("23:00".to_owned())));
        assert_eq!(holds(&evening, "23:30"), (Some(1_000_000), Some("00:00".to_owned())));
        let always = limit(Some("1MB/s"), &[("07:00-23:00", "1MB/s")]);
        assert_eq!(holds(&always, "08:00"), (Some(1_000_000), None), "it is the same all day");
    }

    #[test]
    fn windows_that_overlap_are_refused_in_one_sentence() {
        for (first, second) in [
            ("07:00-23:00", "22:59-01:00"),
            ("22:00-06:00", "05:00-07:00"),
            ("07:00-23:00", "07:00-23:00"),
            ("07:00-23:00", "08:00-09:00"),
            ("08:00-09:00", "22:00-21:00"),
        ] {
            let why = check(&limit(None, &[(first, "1MB/s"), (second, "2MB/s")])).unwrap_err();
            assert_eq!(why, format!("the window {second} overlaps the window {first}; take one of them away first"));
        }
        check(&limit(None, &[("22:00-06:00", "1MB/s"), ("06:00-22:00", "2MB/s")])).unwrap();
        assert!(check(&limit(None, &[("07:00-07:00", "1MB/s")])).unwrap_err().contains("a whole day or nothing"));
        let spans: Vec<String> = (0..13).map(|hour| format!("{hour:02}:00-{hour:02}:30")).collect();
        let many: Vec<(&str, &str)> = spans.iter().map(|span| (span.as_str(), "1MB/s")).collect();
        assert_eq!(check(&limit(None, &many)).unwrap_err(), "a machine's limit has at most 12 windows");
        check(&limit(None, &many[1..])).unwrap();
    }

    proptest! {
        /// Against going through the day minute by minute.
        #[test]
        fn it_is_as_a_walk_through_the_day_finds(
            ends in prop::collection::btree_set(0_u16..1440, 2..10),
            rates in prop::collection::vec(0_u64..3, 10),
            shift in 0_u16..1440,
            now in 0_u16..1440,
        ) {
            let ends: Vec<u16> = ends.into_iter().collect();
            let windows = ends.chunks_exact(2).zip(&rates).map(|(pair, rate)| {
                let time = |minutes: u16| TimeOfDay::of_minutes(minutes + shift);
                let rate = Rate::try_from(rate * 1_000_000).unwrap();
                LimitWindow::new(Span { from: time(pair[0]), to: time(pair[1]) }, rate)
            });
            let limit = CopyLimit { rate: Some(Rate::try_from(1_000_000).unwrap()), windows: windows.collect() };
            prop_assert_eq!(check(&limit), Ok(()));
            let rate = |minute: u16| {
                let minute = (minute + 1440 - shift) % 1440;
                let inside = ends.chunks_exact(2).zip(&rates).find(|(pair, _)| (pair[0]..pair[1]).contains(&minute));
                inside.map_or(1_000_000, |(_, rate)| rate * 1_000_000)
            };
            let found = at(&limit, TimeOfDay::of_minutes(now));
            prop_assert_eq!(found.rate.map(Rate::per_second), Some(rate(now)));
            let change = (1..1440).map(|ahead| (now + ahead) % 1440).find(|minute| rate(*minute) != rate(now));
            prop_assert_eq!(found.until.map(TimeOfDay::minutes), change);
        }
    }
}
