//! The part of a file that a request asks for (RFC 9110, 14).

use std::ops::RangeInclusive;

/// What to answer to a `Range` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    Part(RangeInclusive<u64>),
    /// 416
    NotThere,
}

/// More than one range, another unit and nonsense are answered with the whole, as the RFC allows.
pub(super) fn wanted(header: Option<&str>, len: u64) -> Wanted {
    let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else { return Wanted::All };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::All };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Wanted::NotThere,
            Ok(_) if len == 0 => Wanted::NotThere,
            Ok(suffix) => Wanted::Part(len.saturating_sub(suffix)..=len - 1),
            Err(_) => Wanted::All,
        };
    }
    let Ok(first) = first.parse::<u64>() else { return Wanted::All };
    let last = match last {
        "" => u64::MAX,
        last => match last.parse::<u64>() {
            Ok(last) if last >= first => last,
            _ => return Wanted::All,
        },
    };
    if first >= len { Wanted::NotThere } else { Wanted::Part(first..=last.min(len - 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (header, len, expected) in [
            (None, 10, Wanted::All),
            (Some("bytes=0-3"), 10, Wanted::Part(0..=3)),
            (Some("bytes=5-"), 10, Wanted::Part(5..=9)),
            (Some("bytes=-3"), 10, Wanted::Part(7..=9)),
            (Some("bytes=-99"), 10, Wanted::Part(0..=9)),
            (Some("bytes=8-99"), 10, Wanted::Part(8..=9)),
            (Some("bytes=10-"), 10, Wanted::NotThere),
            (Some("bytes=-0"), 10, Wanted::NotThere),
            (Some("bytes=-1"), 0, Wanted::NotThere),
            (Some("bytes=3-1"), 10, Wanted::All),
            (Some("bytes=0-1,3-4"), 10, Wanted::All),
            (Some("lines=1-2"), 10, Wanted::All),
        ] {
            assert_eq!(wanted(header, len), expected, "{header:?} of {len}");
        }
    }
}
