//! `flotilla exec`: a command in a container, with this terminal as its own.

use std::io::{self, IsTerminal as _, Write as _};

use flotilla_api::rest::ExecRequest;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    signal::unix::{Signal, SignalKind, signal},
};

use super::{Failure, Session, args::Exec};
use crate::client::{ExecEvent, ExecInput};

/// Read from the terminal or pipe at once. Bytes.
const READ_LEN: usize = 32 * 1024;

pub(super) async fn run(args: Exec, session: &Session) -> Result<(), Failure> {
    if args.tty && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Failure::Usage("this is no terminal; leave out -t".into()));
    }
    let (rows, columns) = if args.tty { size()? } else { (0, 0) };
    let request = ExecRequest { command: args.command, tty: args.tty, rows, columns };
    let exec = session.client.exec(&args.service, &request).await?;
    let mut output = exec.output;

    // Only now: what went wrong so far was written to an ordinary terminal.
    let raw = if args.tty { Some(RawTerminal::enter()?) } else { None };
    let resized = if args.tty { Some(signal(SignalKind::window_change())?) } else { None };
    let input = tokio::spawn(pass_input(exec.input, args.interactive, resized));

    let code = loop {
        match output.next().await {
            Ok(ExecEvent::Output(bytes)) => emit(&mut io::stdout(), &bytes)?,
            Ok(ExecEvent::ErrorOutput(bytes)) => emit(&mut io::stderr(), &bytes)?,
            Ok(ExecEvent::Exit(code)) => break code,
            Err(error) => {
                drop(raw);
                return Err(error.into());
            }
        }
    };
    input.abort();
    drop(raw);
    match code {
        0 => Ok(()),
        // As a shell reports it: what does not fit into a byte is a failure too.
        code => Err(Failure::CommandEnded(u8::try_from(code).unwrap_or(255))),
    }
}

fn emit(to: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// What is typed, and each new size of the window. Ends quietly: if the connection broke, the output says so.
async fn pass_input(mut to: ExecInput, interactive: bool, mut resized: Option<Signal>) {
    if !interactive && to.end().await.is_err() {
        return;
    }
    let mut from: Option<Box<dyn AsyncRead + Send + Unpin>> = interactive.then(|| Box::new(tokio::io::stdin()) as _);
    let mut buffer = vec![0; READ_LEN];
    loop {
        let passed = tokio::select! {
            read = read_some(&mut from, &mut buffer) => match read {
                Ok(len) if len > 0 => to.write(&buffer[..len]).await,
                _ => {
                    from = None;
                    to.end().await
                }
            },
            true = window_changed(&mut resized) => match size() {
                Ok((rows, columns)) => to.resize(rows, columns).await,
                Err(_) => Ok(()),
            },
            else => return,
        };
        if passed.is_err() {
            return;
        }
    }
}

async fn read_some(from: &mut Option<Box<dyn AsyncRead + Send + Unpin>>, buffer: &mut [u8]) -> io::Result<usize> {
    match from {
        Some(from) => from.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn window_changed(resized: &mut Option<Signal>) -> bool {
    match resized {
        Some(resized) => resized.recv().await.is_some(),
        None => std::future::pending().await,
    }
}

fn size() -> io::Result<(u16, u16)> {
    let size = termios::tcgetwinsize(io::stdout())?;
    Ok((size.ws_row, size.ws_col))
}

/// This terminal without echo, line editing and signals of its own, until it is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing else can be done for a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
        let _ = io::stdout().flush();
    }
}
