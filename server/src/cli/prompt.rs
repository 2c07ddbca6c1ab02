//! What is typed and not shown.

use std::io::{self, Read as _, Write as _};

use rustix::{
    process::{Signal, getpid, kill_process},
    termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr},
};
use zeroize::Zeroizing;

use super::Failure;

/// What Ctrl-C puts into the line, where it is no signal.
const INTERRUPT: u8 = 3;

/// Asks for a line from the terminal, which does not show it. Without its end.
///
/// Ctrl-C ends this process as it does elsewhere, after the terminal shows again what is typed.
pub(super) fn hidden(question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut err = io::stderr();
    write!(err, "{question} ")?;
    err.flush()?;
    let line = {
        let _hidden = Hidden::begin()?;
        read_line()?
    };
    writeln!(err)?;
    if line.last() == Some(&INTERRUPT) {
        // An error here would mean that this process is not its own.
        let _ = kill_process(getpid(), Signal::INT);
    }
    let end = line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n' | &INTERRUPT)).map_or(0, |last| last + 1);
    Ok(Zeroizing::new(line[..end].to_vec()))
}

/// Up to the end of a line, of all there is, or an interrupt.
fn read_line() -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::new());
    for byte in io::stdin().lock().bytes() {
        let byte = byte?;
        line.push(byte);
        if matches!(byte, b'\n' | INTERRUPT) {
            break;
        }
    }
    Ok(line)
}

/// The terminal shows nothing of what is typed, as long as this lives. It still edits the line, which ends with an interrupt, too.
struct Hidden(Termios);

impl Hidden {
    fn begin() -> Result<Self, Failure> {
        let failed =
            |error: rustix::io::Errno| Failure::Other(format!("the terminal can't be told to hide it: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        hidden.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
