//! What `flotilla-beat` writes and answers: the service whose life tests read afterwards.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub const PORT: u16 = 8080;
/// Where it writes, if something is mounted there.
pub const DATA: &str = "/data";
/// In that directory: a line for each beat, with the clock, the host and the number of the beat.
pub const BEATS_FILE: &str = "beats";
pub const BEAT_EVERY: Duration = Duration::from_millis(50);

/// What an instance answers. Times are nanoseconds of `CLOCK_BOOTTIME`, which all simulated machines share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Name of the container as it sees itself: the first twelve digits of its id, if nobody gave it another.
    pub host: String,
    pub started: u64,
    pub now: u64,
    pub beats: u64,
    /// From the last beat before each time that it stood still to the first after it.
    pub frozen: Vec<(u64, u64)>,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub at: u64,
    pub host: String,
    pub number: u64,
}

/// Reads what instances have written. A last line that a power loss has cut off is no beat.
pub fn lines(file: &str) -> Vec<Line> {
    let whole = file.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let at = words.next()?.parse().ok()?;
            let host = words.next()?.to_owned();
            Some(Line { at, host, number: words.next()?.parse().ok()? })
        })
        .collect()
}
