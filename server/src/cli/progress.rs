//! How far something is that takes long: a bar for a person who watches, lines for a log, nothing for a program.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Output, time};

/// In a log, a line this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Bytes that are read or sent.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    lines: bool,
    began: Instant,
    told: Instant,
    /// What an earlier attempt had done already says nothing of the speed.
    first: Option<u64>,
}

impl Progress {
    pub(super) fn new(output: Output, what: &'static str, of: Option<u64>) -> Self {
        let template = "{msg:<26} {bar:30.cyan/dim} {decimal_bytes:>9} of {decimal_total_bytes} \
                        {decimal_bytes_per_sec:>11} {eta:>4}";
        let bar = output.draws_progress().then(|| {
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = of.map_or_else(ProgressBar::no_length, ProgressBar::new);
            bar.with_style(style).with_message(what)
        });
        let now = Instant::now();
        Self { what, lines: bar.is_none() && !output.json, bar, began: now, told: now, first: None }
    }

    pub(super) fn reached(&mut self, bytes: u64, of: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(of);
            bar.set_position(bytes);
            return;
        }
        let first = *self.first.get_or_insert(bytes);
        if self.lines && self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            let _ = writeln!(
                std::io::stderr(),
                "{}",
                line(self.what, bytes, of, bytes - first.min(bytes), self.began.elapsed())
            );
        }
    }

    /// What is done now. In a log only where it has been told of before: what is over at once needs no line.
    pub(super) fn now(&self, what: &'static str) {
        match &self.bar {
            Some(bar) => bar.set_message(what),
            None if self.lines && self.told > self.began => drop(writeln!(std::io::stderr(), "{what}")),
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// One line of a log. `since` bytes took `elapsed`.
fn line(what: &str, bytes: u64, of: u64, since: u64, elapsed: Duration) -> String {
    let rate = since as f64 / elapsed.as_secs_f64().max(0.001);
    let left = if rate < 1.0 || bytes >= of {
        String::new()
    } else {
        let seconds = ((of - bytes) as f64 / rate).ceil() as u64;
        let left = if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) };
        format!(", {left} left")
    };
    format!("{what}: {} of {}, {}/s{left}", time::size(bytes), time::size(of), time::size(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_it_is_how_fast_and_how_long_it_takes() {
        let ten = Duration::from_secs(10);
        assert_eq!(
            line("Sending", 60_000_000, 100_000_000, 20_000_000, ten),
            "Sending: 60.0 MB of 100 MB, 2.0 MB/s, 20 s left"
        );
        assert_eq!(line("Sending", 0, 100, 0, ten), "Sending: 0 B of 100 B, 0 B/s");
        assert!(line("Sending", 1_000_000, 1_000_000_000, 1_000_000, ten).ends_with("167 min left"));
        assert!(!line("Sending", 100, 100, 100, ten).contains("left"));
    }
}
