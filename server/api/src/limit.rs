//! How much of its line a machine may take for copies, by the time of its day.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Slower is of no use: one chunk would take minutes. Bytes per second.
pub const RATE_MIN: u64 = 10_000;

/// Faster is no limit for any line that there is. Bytes per second.
pub const RATE_MAX: u64 = 4_000_000_000;

const MINUTES_OF_DAY: u16 = 24 * 60;

/// What a machine may send of copies: of volumes, and of images that nothing waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyLimit {
    /// Outside of all windows; absent: as much as the line takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// By the machine's own local time. None overlaps another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<LimitWindow>,
}

impl CopyLimit {
    pub fn is_off(&self) -> bool {
        self.rate.is_none() && self.windows.is_empty()
    }

    /// The same with other windows: what is said of the same hours takes the place of what was said before; no rate takes a window away.
    #[must_use]
    pub fn with(mut self, rate: Option<Rate>, spans: &[Span]) -> Self {
        self.windows.retain(|window| !spans.contains(&window.span()));
        let windows = rate.into_iter().flat_map(|rate| spans.iter().map(move |span| LimitWindow::new(*span, rate)));
        self.windows.extend(windows);
        self.windows.sort_by_key(|window| window.from);
        self
    }
}

/// `2 MB/s, 500 kB/s from 07:00 to 23:00`
impl fmt::Display for CopyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("no limit");
        }
        let rate = self.rate.map(|rate| rate.to_string());
        let windows = self.windows.iter().map(|LimitWindow { from, to, rate }| match rate.0 {
            0 => format!("nothing from {from} to {to}"),
            _ => format!("{rate} from {from} to {to}"),
        });
        f.write_str(&rate.into_iter().chain(windows).collect::<Vec<_>>().join(", "))
    }
}

/// Hours of each day in which another rate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitWindow {
    pub from: TimeOfDay,
    /// Of the next day, where it is not after `from`.
    pub to: TimeOfDay,
    /// 0: nothing is sent.
    pub rate: Rate,
}

impl LimitWindow {
    pub fn new(Span { from, to }: Span, rate: Rate) -> Self {
        Self { from, to, rate }
    }

    pub fn span(&self) -> Span {
        Span { from: self.from, to: self.to }
    }
}

/// `07:00-23:00`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: TimeOfDay,
    pub to: TimeOfDay,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

impl FromStr for Span {
    type Err = InvalidLimit;

    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        let (from, to) = text.split_once('-').ok_or_else(|| InvalidLimit::new(text, HOURS))?;
        Ok(Self { from: from.trim().parse()?, to: to.trim().parse()? })
    }
}

/// Bytes per second: 0, or [`RATE_MIN`] to [`RATE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Rate(u64);

impl Rate {
    /// Nothing at all.
    pub const ZERO: Self = Self(0);

    pub fn per_second(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Rate {
    type Error = InvalidLimit;

    fn try_from(per_second: u64) -> Result<Self, InvalidLimit> {
        match per_second {
            0 | RATE_MIN..=RATE_MAX => Ok(Self(per_second)),
            _ => Err(InvalidLimit::new(&format!("{per_second} B/s"), "use 10 kB/s to 4 GB/s, or 0 for nothing at all")),
        }
    }
}

impl From<Rate> for u64 {
    fn from(rate: Rate) -> Self {
        rate.0
    }
}

/// `2 MB/s`, in the largest unit that loses nothing worth telling.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0 => return f.write_str("0"),
            1_000_000_000.. => (1_000_000_000, "GB/s"),
            1_000_000.. => (1_000_000, "MB/s"),
            _ => (1_000, "kB/s"),
        };
        let text = format!("{:.3}", self.0 as f64 / f64::from(unit));
        write!(f, "{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Bytes or bits, as lines are sold.
const UNITS: &[(&str, f64)] = &[
    ("B", 1.0),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("kbit", 125.0),
    ("Mbit", 125e3),
    ("Gbit", 125e6),
];

impl FromStr for Rate {
    type Err = InvalidLimit;

    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        let refuse = || InvalidLimit::new(text, RATES);
        let trimmed = text.trim();
        let rest = trimmed.strip_suffix("/s").unwrap_or(trimmed);
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, unit) = rest.split_at(end);
        let number: f64 = number.parse().map_err(|_| refuse())?;
        if number == 0.0 && unit.trim().is_empty() {
            return Ok(Self::ZERO);
        }
        let factor =
            UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, factor)| factor).ok_or_else(refuse)?;
        // What is larger than a number holds is larger than any rate.
        Self::try_from((number * factor).round() as u64).map_err(|error| InvalidLimit::new(text, error.why))
    }
}

/// Minutes since midnight, by the clock on the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// Minutes beyond a day count on from its beginning.
    pub fn of_minutes(minutes: u16) -> Self {
        Self(minutes % MINUTES_OF_DAY)
    }

    pub fn minutes(self) -> u16 {
        self.0
    }

    /// How long from this time until another one: less than a day. Minutes.
    pub fn until(self, other: Self) -> u16 {
        (other.0 + MINUTES_OF_DAY - self.0) % MINUTES_OF_DAY
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl FromStr for TimeOfDay {
    type Err = InvalidLimit;

    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        let refuse = || InvalidLimit::new(text, "write it as hours and minutes from 00:00 to 24:00");
        let (hours, minutes) = text.split_once(':').ok_or_else(refuse)?;
        let number = |digits: &str| {
            let digits =
                Some(digits).filter(|it| (1..=2).contains(&it.len()) && it.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|digits| digits.parse::<u16>().ok()).ok_or_else(refuse)
        };
        let (hours, minutes) = (number(hours)?, number(minutes)?);
        let all = hours * 60 + minutes;
        if minutes > 59 || all > MINUTES_OF_DAY { Err(refuse()) } else { Ok(Self::of_minutes(all)) }
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = InvalidLimit;

    fn try_from(text: String) -> Result<Self, InvalidLimit> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> Self {
        time.to_string()
    }
}

/// What holds at this time of a machine's day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitNow {
    /// Absent: as much as the line takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// When another rate begins to hold; absent where none ever does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<TimeOfDay>,
}

impl LimitNow {
    /// Nothing is sent.
    pub fn holds_back(&self) -> bool {
        self.rate == Some(Rate::ZERO)
    }
}

const RATES: &str = "write it as 2MB/s, 500kB/s or 20Mbit/s, or as 0 for nothing at all";
const HOURS: &str = "write it as two times of the day, such as 07:00-23:00";

/// Why a text is no part of a limit. The sentence is meant for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidLimit {
    text: String,
    why: &'static str,
}

impl InvalidLimit {
    fn new(text: &str, why: &'static str) -> Self {
        Self { text: text.chars().take(32).collect(), why }
    }
}

impl fmt::Display for InvalidLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` can't be used here: {}", self.text.escape_debug(), self.why)
    }
}

impl std::error::Error for InvalidLimit {}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> u64 {
        text.parse::<Rate>().unwrap_or_else(|error| panic!("{error}")).per_second()
    }

    #[test]
    fn a_rate_is_written_as_people_and_providers_write_it() {
        for (text, bytes) in [
            ("2MB/s", 2_000_000),
            ("500kB/s", 500_000),
            (" 1.5 MB/s ", 1_500_000),
            ("1MiB", 1_048_576),
            ("20Mbit/s", 2_500_000),
            ("100kbit/s", 12_500),
            ("10000B/s", 10_000),
            ("4GB/s", 4_000_000_000),
            ("0", 0),
            ("0/s", 0),
            ("0kB/s", 0),
        ] {
            assert_eq!(rate(text), bytes, "{text}");
        }
        for (text, shown) in [("2MB/s", "2 MB/s"), ("1.25MB/s", "1.25 MB/s"), ("500kB/s", "500 kB/s"), ("0", "0")] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), shown);
            assert_eq!(rate(shown), rate(text), "what is shown can be given");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused_in_one_sentence() {
        for text in ["", "fast", "2", "-1MB/s", "2 mb/s", "2Mb/s", "1e9B/s", "2MB/s/s", "NaN MB/s", "1.2.3MB/s"] {
            let why = text.parse::<Rate>().unwrap_err().to_string();
            assert!(why.ends_with(RATES), "{text}: {why}");
        }
        for text in ["9999B/s", "1B/s", "5GB/s", "99999999999999999999GB/s"] {
            let why = text.parse::<Rate>().unwrap_err().to_string();
            assert!(why.contains("use 10 kB/s to 4 GB/s"), "{text}: {why}");
        }
    }

    #[test]
    fn a_time_of_the_day_has_hours_and_minutes() {
        for (text, minutes) in [("00:00", 0), ("7:05", 425), ("23:59", 1439), ("24:00", 0)] {
            assert_eq!(text.parse::<TimeOfDay>().unwrap().minutes(), minutes, "{text}");
        }
        for text in ["", "7", "25:00", "24:01", "12:60", "+1:00", "1:2:3", "123:00"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
        let span: Span = "22:30-06:00".parse().unwrap();
        assert_eq!((span.to_string().as_str(), span.from.until(span.to)), ("22:30-06:00", 450));
        assert!("22:30".parse::<Span>().is_err());
    }

    #[test]
    fn what_is_said_of_the_same_hours_takes_the_place_of_what_was() {
        let (day, night): (Span, Span) = ("07:00-23:00".parse().unwrap(), "23:00-07:00".parse().unwrap());
        let (slow, fast): (Rate, Rate) = ("500kB/s".parse().unwrap(), "2MB/s".parse().unwrap());
        let limit = CopyLimit::default().with(Some(fast), &[night, day]).with(Some(slow), &[day]);
        assert_eq!(limit.windows, [LimitWindow::new(day, slow), LimitWindow::new(night, fast)]);
        assert_eq!(limit.to_string(), "500 kB/s from 07:00 to 23:00, 2 MB/s from 23:00 to 07:00");
        let limit = limit.with(None, &[night]);
        assert_eq!(limit.windows, [LimitWindow::new(day, slow)]);
        let limit = CopyLimit { rate: Some(fast), ..limit.with(Some(Rate::ZERO), &[day]) };
        assert_eq!(limit.to_string(), "2 MB/s, nothing from 07:00 to 23:00");
        assert_eq!(CopyLimit::default().to_string(), "no limit");
    }
}
