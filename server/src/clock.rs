//! The wall clock, read here and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use flotilla_api::UnixMillis;

/// Now, in milliseconds since the Unix epoch; zero on a machine whose clock is set before it.
pub fn now() -> UnixMillis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
