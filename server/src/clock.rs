//! The clocks, read here and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use flotilla_api::{UnixMillis, limit::TimeOfDay};
use flotilla_core::lease::Mono;
use rustix::time::{ClockId, clock_gettime};
use time::{OffsetDateTime, UtcOffset};

/// Now, in milliseconds since the Unix epoch; zero on a machine whose clock is set before it.
pub fn now() -> UnixMillis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since this machine was started, the time that it slept included (`CLOCK_BOOTTIME`).
pub fn since_boot() -> Mono {
    let elapsed = clock_gettime(ClockId::Boottime);
    let millis = elapsed.tv_sec.saturating_mul(1000).saturating_add(elapsed.tv_nsec / 1_000_000);
    Mono(u64::try_from(millis).unwrap_or(0))
}

/// What a clock on the wall beside this machine shows: by the system's time zone, or `TZ`, as it was when the node started; UTC where there is none.
pub fn time_of_day() -> TimeOfDay {
    let now = OffsetDateTime::now_utc();
    let local = now.to_offset(UtcOffset::local_offset_at(now).unwrap_or(UtcOffset::UTC));
    TimeOfDay::of_minutes(u16::from(local.hour()) * 60 + u16::from(local.minute()))
}
