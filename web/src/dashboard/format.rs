//! Numbers and times in words for people. Nothing here reads a clock or knows a time zone; both are passed in.

use flotilla_api::UnixMillis;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Ages below this are "just now": a figure that changes with each look says nothing. Milliseconds.
const JUST_NOW: u64 = 2 * SECOND;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// "just now", "12 s ago", "3 min ago", "2 d ago".
pub(crate) fn age(now: UnixMillis, then: UnixMillis) -> String {
    match now.since(then) {
        0..JUST_NOW => "just now".to_owned(),
        millis => format!("{} ago", coarse(millis)),
    }
}

/// "in 7 d", or "expired" when it lies in the past.
pub(crate) fn expiry(now: UnixMillis, then: UnixMillis) -> String {
    match then.since(now) {
        0 => "expired".to_owned(),
        millis => format!("in {}", coarse(millis)),
    }
}

/// One unit, rounded down: "59 s", "3 min", "23 h", "400 d".
pub(crate) fn coarse(millis: u64) -> String {
    match millis {
        0..MINUTE => format!("{} s", millis / SECOND),
        MINUTE..HOUR => format!("{} min", millis / MINUTE),
        HOUR..DAY => format!("{} h", millis / HOUR),
        _ => format!("{} d", millis / DAY),
    }
}

/// Two units, for how long something has been running: "2 h 5 min".
pub(crate) fn duration(millis: u64) -> String {
    let (whole, rest) = match millis {
        0..MINUTE => return coarse(millis),
        MINUTE..HOUR => (MINUTE, millis % MINUTE),
        HOUR..DAY => (HOUR, millis % HOUR / MINUTE * MINUTE),
        _ => (DAY, millis % DAY / HOUR * HOUR),
    };
    let first = coarse(millis / whole * whole);
    if rest < SECOND { first } else { format!("{first} {}", coarse(rest)) }
}

/// A setting given in milliseconds: "500 ms", "30 s", "1 min 30 s".
pub(crate) fn setting(millis: u64) -> String {
    if millis.is_multiple_of(SECOND) { duration(millis) } else { format!("{millis} ms") }
}

/// Binary units, as engines and kernels count: "512 B", "1.5 GiB".
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// "0.04 cores", "1.2 cores", "1 core".
pub(crate) fn cores(value: f64) -> String {
    if value < 0.005 {
        return "0 cores".to_owned();
    }
    let text = if value < 0.95 { format!("{value:.2}") } else { format!("{value:.1}") };
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "1" { "1 core".to_owned() } else { format!("{text} cores") }
}

/// A share from 0.0 to 1.0; what lies outside is cut off.
pub(crate) fn percent(share: f64) -> String {
    if share.is_nan() {
        return "–".to_owned();
    }
    format!("{:.0} %", share.clamp(0.0, 1.0) * 100.0)
}

pub(crate) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) }
}

/// "1 service", "3 services".
pub(crate) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// `registry:5000/team/notes@sha256:0123…` without the part that nobody reads.
pub(crate) fn image(reference: &str) -> String {
    const DIGEST_SHOWN: usize = 12;
    match reference.split_once("@sha256:") {
        Some((name, digest)) => format!("{name}@{}", digest.get(..DIGEST_SHOWN).unwrap_or(digest)),
        None => reference.to_owned(),
    }
}

/// A moment on a calendar and a clock, in a zone that is `offset_minutes` east of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    year: i64,
    month: usize,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    pub(crate) fn new(at: UnixMillis, offset_minutes: i32) -> Self {
        let seconds = i64::try_from(at.0 / SECOND).unwrap_or(i64::MAX / 2) + i64::from(offset_minutes) * 60;
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400).unsigned_abs());
        // Days to a civil date, by 400-year eras that begin on 1 March (H. Hinnant, "chrono-compatible low-level date algorithms").
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 2 } else { month_from_march - 10 };
        Self {
            year: year_of_era + era * 400 + i64::from(month < 2),
            month: usize::try_from(month).unwrap_or(0),
            day: day.unsigned_abs(),
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// "23 Nov 2026"
    pub(crate) fn date(self) -> String {
        format!("{} {} {}", self.day, MONTHS[self.month], self.year)
    }

    /// "14:03:22"
    pub(crate) fn time(self) -> String {
        format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second)
    }

    /// "23 Nov 2026, 14:03:22"
    pub(crate) fn full(self) -> String {
        format!("{}, {}", self.date(), self.time())
    }

    /// "2026-11-23T14:03:22Z"; of a moment at offset 0.
    pub(crate) fn iso(self) -> String {
        format!("{:04}-{:02}-{:02}T{}Z", self.year, self.month + 1, self.day, self.time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> UnixMillis {
        UnixMillis(millis)
    }

    #[test]
    fn an_age_has_one_unit_and_never_runs_backwards() {
        let now = at(10 * DAY);
        for (then, text) in [
            (now, "just now"),
            (at(11 * DAY), "just now"),
            (at(10 * DAY - 12 * SECOND), "12 s ago"),
            (at(10 * DAY - 59_999), "59 s ago"),
            (at(10 * DAY - MINUTE), "1 min ago"),
            (at(10 * DAY - 23 * HOUR - 59 * MINUTE), "23 h ago"),
            (at(0), "10 d ago"),
        ] {
            assert_eq!(age(now, then), text);
        }
    }

    #[test]
    fn an_expiry_in_the_past_says_so() {
        assert_eq!(expiry(at(5), at(5)), "expired");
        assert_eq!(expiry(at(DAY), at(3)), "expired");
        assert_eq!(expiry(at(0), at(7 * DAY)), "in 7 d");
    }

    #[test]
    fn a_duration_has_at_most_two_units() {
        for (millis, text) in [
            (0, "0 s"),
            (59_000, "59 s"),
            (MINUTE, "1 min"),
            (MINUTE + 30 * SECOND, "1 min 30 s"),
            (2 * HOUR + 5 * MINUTE + 7 * SECOND, "2 h 5 min"),
            (3 * DAY + 59 * MINUTE, "3 d"),
            (3 * DAY + 2 * HOUR, "3 d 2 h"),
        ] {
            assert_eq!(duration(millis), text);
        }
        assert_eq!(setting(1500), "1500 ms");
        assert_eq!(setting(30_000), "30 s");
    }

    #[test]
    fn bytes_change_their_unit_before_they_need_four_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024, "10 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (512 * 1024 * 1024, "512 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn cores_and_shares_read_like_words() {
        assert_eq!(cores(0.0), "0 cores");
        assert_eq!(cores(0.042), "0.04 cores");
        assert_eq!(cores(1.0), "1 core");
        assert_eq!(cores(2.54), "2.5 cores");
        assert_eq!(percent(0.256), "26 %");
        assert_eq!(percent(7.0), "100 %");
        assert_eq!(percent(f64::NAN), "–");
        assert_eq!(percent(share(1, 0)), "0 %");
    }

    #[test]
    fn a_digest_is_shortened_and_a_tag_is_not() {
        assert_eq!(image("nginx:1.27"), "nginx:1.27");
        assert_eq!(image("a/b@sha256:0123456789abcdef0123"), "a/b@0123456789ab");
        assert_eq!(image("a/b@sha256:01"), "a/b@01");
    }

    #[test]
    fn a_moment_is_the_civil_date_of_its_zone() {
        assert_eq!(Moment::new(at(0), 0).iso(), "1970-01-01T00:00:00Z");
        assert_eq!(Moment::new(at(951_782_400_000), 0).date(), "29 Feb 2000");
        assert_eq!(Moment::new(at(1_795_442_602_000), 0).iso(), "2026-11-23T14:03:22Z");
        assert_eq!(Moment::new(at(1_795_442_602_000), 10 * 60).full(), "24 Nov 2026, 00:03:22");
        assert_eq!(Moment::new(at(0), -60).full(), "31 Dec 1969, 23:00:00");
    }
}
