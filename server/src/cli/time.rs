//! Times as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_api::UnixMillis;

/// A moment in the past, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    Ago(Duration),
    At(UnixMillis),
}

impl Past {
    pub fn seen_from(self, now: UnixMillis) -> UnixMillis {
        match self {
            Self::Ago(duration) => UnixMillis(now.0.saturating_sub(millis(duration))),
            Self::At(at) => at,
        }
    }
}

pub(super) fn parse_past(text: &str) -> Result<Past, String> {
    if let Ok(duration) = humantime::parse_duration(text) {
        return Ok(Past::Ago(duration));
    }
    match humantime::parse_rfc3339_weak(text) {
        Ok(at) => Ok(Past::At(UnixMillis(millis(at.duration_since(UNIX_EPOCH).unwrap_or_default())))),
        Err(_) => Err("write how long ago, as 10m or 1h30m, or a time as 2026-11-23T10:00:00Z".into()),
    }
}

/// `4s`, `3m`, `5h`, `12d`: the largest unit alone, as in the tables of other tools.
pub(super) fn age(now: UnixMillis, then: UnixMillis) -> String {
    let seconds = now.since(then) / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long until `then`, or that it is over.
pub(super) fn until(now: UnixMillis, then: UnixMillis) -> String {
    // Half a minute more, so that what was just made for a day does not end in 23 hours.
    if then <= now { "expired".into() } else { format!("in {}", age(then.plus(30_000), now)) }
}

/// In UTC, to the second.
pub(super) fn stamp(at: UnixMillis) -> String {
    humantime::format_rfc3339_seconds(system(at)).to_string()
}

/// In UTC, to the millisecond.
pub(super) fn stamp_millis(at: UnixMillis) -> String {
    humantime::format_rfc3339_millis(system(at)).to_string()
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn system(at: UnixMillis) -> SystemTime {
    /// 9999-12-31, the last day that RFC 3339 can write.
    const LAST: u64 = 253_402_300_799_000;
    UNIX_EPOCH + Duration::from_millis(at.0.min(LAST))
}

/// `12 B`, `3.4 MB`: powers of 1000, as disks and networks are sold.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.5 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_past_is_a_duration_or_a_time() {
        assert_eq!(parse_past("1h30m").unwrap().seen_from(UnixMillis(6_000_000)), UnixMillis(600_000));
        assert_eq!(parse_past("1970-01-01T00:00:01Z").unwrap().seen_from(UnixMillis(0)), UnixMillis(1000));
        assert!(parse_past("yesterday").unwrap_err().contains("10m"));
    }

    #[test]
    fn ages_and_sizes_are_short() {
        for (seconds, shown) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d")] {
            assert_eq!(age(UnixMillis(seconds * 1000), UnixMillis(0)), shown);
        }
        for (bytes, shown) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_400_000, "3.4 MB"), (120_000_000, "120 MB")]
        {
            assert_eq!(size(bytes), shown);
        }
        assert_eq!(until(UnixMillis(5), UnixMillis(86_400_000)), "in 24h");
        assert_eq!(until(UnixMillis(5), UnixMillis(5)), "expired");
        assert_eq!(stamp(UnixMillis(u64::MAX)), "9999-12-31T23:59:59Z");
    }
}
