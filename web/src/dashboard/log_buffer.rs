//! The lines of a service's log that the page holds: bounded, filtered, free of terminal codes.

use std::collections::VecDeque;

use flotilla_api::{
    UnixMillis,
    rest::{LogLine, LogStream},
};

/// What one page keeps. A browser lays some thousand lines out without a pause; the whole log is a download away.
pub(crate) const LINES_MAX: usize = 3000;

/// Together with [`LINES_MAX`], bounds the memory of a log with very long lines. Bytes.
pub(crate) const BYTES_MAX: usize = 2 * 1024 * 1024;

/// Longer lines are cut: nobody reads them in a list, and one alone must not fill the buffer. Bytes.
pub(crate) const LINE_MAX: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Grows by one with each line that was ever taken, so that it names a line for as long as it is kept.
    pub(crate) number: u64,
    pub(crate) at: UnixMillis,
    pub(crate) instance: String,
    pub(crate) error: bool,
    pub(crate) text: String,
}

/// A ring of the newest lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogBuffer {
    lines: VecDeque<Line>,
    bytes: usize,
    taken: u64,
    dropped: u64,
}

impl LogBuffer {
    pub(crate) fn push(&mut self, line: LogLine) {
        let text = readable(&line.text);
        self.taken += 1;
        self.bytes += text.len();
        self.lines.push_back(Line {
            number: self.taken,
            at: line.at,
            instance: line.instance.0,
            error: line.stream == LogStream::Err,
            text,
        });
        while self.lines.len() > LINES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
            self.dropped += 1;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.lines.clear();
        self.bytes = 0;
        self.dropped = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Lines that were let go because newer ones needed the room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Lines that were ever taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Oldest first; those that contain `needle` in any case, among those numbered up to `last`.
    pub(crate) fn matching(&self, needle: &str, last: u64) -> Vec<Line> {
        let needle = needle.to_lowercase();
        self.lines
            .iter()
            .take_while(|line| line.number <= last)
            .filter(|line| needle.is_empty() || line.text.to_lowercase().contains(&needle))
            .cloned()
            .collect()
    }

    /// What a download holds.
    pub(crate) fn to_text(&self, stamp: impl Fn(UnixMillis) -> String) -> String {
        let mut text = String::with_capacity(self.bytes + self.lines.len() * 32);
        for line in &self.lines {
            text.push_str(&stamp(line.at));
            text.push_str(if line.error { " err " } else { " out " });
            text.push_str(&line.text);
            text.push('\n');
        }
        text
    }
}

/// Without terminal control sequences (ECMA-48, 5.4 and 5.6) and other control characters, and cut to [`LINE_MAX`].
fn readable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(LINE_MAX));
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => match characters.next() {
                // Control sequence: parameters, then one final character.
                Some('[') => while characters.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
                // Operating system command: up to BEL or ESC \.
                Some(']') => {
                    while let Some(c) = characters.next() {
                        if c == '\u{7}' || (c == '\u{1b}' && characters.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                _ => {}
            },
            '\t' => clean.push_str("    "),
            c if c.is_control() => {}
            c => clean.push(c),
        }
        if clean.len() > LINE_MAX {
            let end = (0..=LINE_MAX).rev().find(|end| clean.is_char_boundary(*end)).unwrap_or(0);
            clean.truncate(end);
            clean.push('…');
            break;
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use flotilla_api::InstanceId;

    use super::*;

    fn line(text: &str) -> LogLine {
        LogLine {
            at: UnixMillis(1),
            instance: InstanceId("web-1-0-x".into()),
            stream: LogStream::Out,
            text: text.into(),
        }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn the_newest_lines_stay_and_numbers_never_repeat() {
        let mut buffer = LogBuffer::default();
        for number in 0..LINES_MAX + 5 {
            buffer.push(line(&number.to_string()));
        }
        assert_eq!(buffer.len(), LINES_MAX);
        assert_eq!(buffer.dropped(), 5);
        let lines = buffer.matching("", u64::MAX);
        assert_eq!(lines[0].text, "5");
        assert_eq!(lines[0].number, 6);
        assert_eq!(lines.last().map(|line| line.number), Some(buffer.taken()));
        buffer.clear();
        buffer.push(line("after"));
        assert_eq!(buffer.matching("", u64::MAX)[0].number, LINES_MAX as u64 + 6);
    }

    #[test]
    fn long_lines_are_cut_and_many_of_them_stay_within_the_bound() {
        let mut buffer = LogBuffer::default();
        for _ in 0..400 {
            buffer.push(line(&"é".repeat(LINE_MAX)));
        }
        assert!(buffer.bytes <= BYTES_MAX);
        assert!(buffer.len() < 400 && buffer.len() > 0);
        let lines = buffer.matching("", u64::MAX);
        assert!(lines[0].text.len() <= LINE_MAX + '…'.len_utf8());
        assert!(lines[0].text.ends_with('…'));
    }

    #[test]
    fn a_filter_looks_for_text_in_any_case_and_a_pause_hides_what_came_later() {
        let mut buffer = LogBuffer::default();
        for text in ["GET /", "Error: no disk", "get /x"] {
            buffer.push(line(text));
        }
        assert_eq!(texts(&buffer.matching("get", u64::MAX)), ["GET /", "get /x"]);
        assert_eq!(texts(&buffer.matching("get", 2)), ["GET /"]);
        assert!(buffer.matching("nothing", u64::MAX).is_empty());
    }

    #[test]
    fn terminal_codes_are_taken_out() {
        for (raw, clean) in [
            ("\u{1b}[1;32mok\u{1b}[0m done", "ok done"),
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]0;title\u{1b}\\text", "text"),
            ("a\tb\r", "a    b"),
            ("cut \u{1b}[", "cut "),
            ("bell\u{7}", "bell"),
            ("\u{1b}", ""),
        ] {
            assert_eq!(readable(raw), clean);
        }
    }

    #[test]
    fn a_download_has_time_stream_and_text_of_each_line() {
        let mut buffer = LogBuffer::default();
        buffer.push(line("one"));
        buffer.push(LogLine { stream: LogStream::Err, ..line("two") });
        assert_eq!(buffer.to_text(|at| at.0.to_string()), "1 out one\n1 err two\n");
    }
}
