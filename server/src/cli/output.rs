//! Where a verb's answer goes: tables and sentences for people, JSON for programs.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use flotilla_api::rest::ServiceState;
use serde::Serialize;

use super::Failure;

/// How to answer. Decided once, from the flags, the terminal and `NO_COLOR`.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    colour: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { json, colour: wanted && io::stdout().is_terminal() }
    }

    pub fn colours(self) -> bool {
        self.colour
    }

    /// Progress is drawn for a person who watches, and for nobody else.
    pub fn draws_progress(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    pub fn value(self, value: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        text.push('\n');
        write(&text)
    }

    /// One value per line, for answers without an end.
    pub fn value_line(self, value: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_string(value).map_err(io::Error::other)?;
        text.push('\n');
        write(&text)
    }

    pub fn line(self, text: &str) -> Result<(), Failure> {
        write(&format!("{text}\n"))
    }

    /// What was done, in a sentence or as a value.
    pub fn done(self, sentence: &str, value: &impl Serialize) -> Result<(), Failure> {
        if self.json { self.value(value) } else { self.line(sentence) }
    }

    /// What a person should know besides; never part of the answer.
    pub fn note(self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// The rows, or a sentence where there are none. Columns that are empty in every row are left out.
    pub fn table(self, header: &[&str], rows: Vec<Vec<Cell>>, none: &str) -> Result<(), Failure> {
        if rows.is_empty() {
            self.note(none);
            return Ok(());
        }
        let shown: Vec<bool> = (0..header.len())
            .map(|at| rows.iter().any(|row| row.get(at).is_some_and(|cell| !cell.content().is_empty())))
            .collect();
        let keep = |at: &usize| shown[*at];
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // A pipe gets whole lines: whoever cuts columns there does not want them wrapped to 80 characters.
        table.set_content_arrangement(if io::stdout().is_terminal() {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        });
        table.set_header((0..header.len()).filter(keep).map(|at| self.bold(header[at])));
        for row in rows {
            table.add_row(row.into_iter().enumerate().filter(|(at, _)| shown[*at]).map(|(_, cell)| cell));
        }
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        write(&text)
    }

    fn bold(self, text: &str) -> Cell {
        let cell = Cell::new(text);
        if self.colour { cell.add_attribute(Attribute::Bold) } else { cell }
    }

    pub fn coloured(self, text: &str, colour: Color) -> Cell {
        let cell = Cell::new(text);
        if self.colour { cell.fg(colour) } else { cell }
    }

    pub fn state(self, state: ServiceState) -> Cell {
        let colour = match state {
            ServiceState::Running | ServiceState::Completed => Color::Green,
            ServiceState::Starting | ServiceState::Restarting => Color::Yellow,
            ServiceState::Unhealthy | ServiceState::Failed => Color::Red,
            ServiceState::Stopped | ServiceState::Unknown => Color::DarkGrey,
        };
        self.coloured(state.as_str(), colour)
    }

    /// A web address that a terminal makes clickable by itself, underlined where it can.
    pub fn link(self, url: &str) -> String {
        if self.colour { format!("\x1b[4m{url}\x1b[0m") } else { url.to_owned() }
    }

    pub fn strong(self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

pub(super) fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// A QR code of two modules per character cell, readable on dark and on light terminals, with the quiet zone of four
/// modules that the standard asks for (ISO/IEC 18004, 5.3.8). `None` if the text is too long for one.
///
/// Without colours it is drawn in the text's own, on the guess that this is the lighter one.
pub fn qr(text: &str, colours: bool) -> Option<String> {
    let code = qrcode::QrCode::with_error_correction_level(text, qrcode::EcLevel::L).ok()?;
    let (width, quiet) = (code.width(), 4);
    let modules = code.to_colors();
    let dark = |x: usize, y: usize| {
        let inside = (quiet..quiet + width).contains(&x) && (quiet..quiet + width).contains(&y);
        inside && modules[(y - quiet) * width + (x - quiet)] == qrcode::Color::Dark
    };
    let side = width + 2 * quiet;
    let mut drawing = String::new();
    for y in (0..side).step_by(2) {
        // Black on white by explicit colours: many scanners do not read an inverted code.
        if colours {
            drawing.push_str("\x1b[38;5;16;48;5;231m");
        }
        for x in 0..side {
            let (upper, lower) = (dark(x, y), y + 1 < side && dark(x, y + 1));
            drawing.push(match (upper == colours, lower == colours) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        }
        drawing.push_str(if colours { "\x1b[0m\n" } else { "\n" });
    }
    Some(drawing)
}

/// Asks a person, who has to say yes.
///
/// # Errors
/// Nobody is there, or it was not confirmed: then `else_` says what was not done.
pub(super) fn confirm(question: &str, else_: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("nobody is there to confirm it; add --yes".into()));
    }
    let mut err = io::stderr();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Other(else_.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qr_code_has_a_quiet_zone_and_is_square() {
        let drawing = qr("http://app.home.localhost:7070/#invite=abc", true).unwrap();
        let lines: Vec<String> =
            drawing.lines().map(|line| line.replace("\x1b[38;5;16;48;5;231m", "").replace("\x1b[0m", "")).collect();
        assert!(lines[0].chars().all(|c| c == ' '), "the first two rows of modules are quiet");
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width));
        assert_eq!(lines.len(), width.div_ceil(2));
        let plain = qr("http://app.home.localhost:7070/#invite=abc", false).unwrap();
        assert!(plain.lines().next().unwrap().chars().all(|c| c == '█') && !plain.contains('\x1b'));
    }
}
