//! Commands in running containers, with a terminal or without.

use std::time::Duration;

use bollard::models::ExecConfig;
use bytes::{Buf, Bytes, BytesMut};
use flotilla_api::rest::ExecRequest;
use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::OwnedSemaphorePermit,
};

use super::{
    Error,
    connection::{CALL_LIMIT, Client},
    hijack::{self, hijack},
};

/// Commands that run at once on this machine, for all who are signed in.
pub(super) const COMMANDS_AT_ONCE: usize = 32;

/// Of a command and its arguments, as `execve` limits them anyway. Bytes.
const COMMAND_MAX: usize = 128 * 1024;

/// What is read from a command at once. Bytes.
const READ_MAX: usize = 32 * 1024;

/// The engine notes that a command runs, or has ended, a moment after its stream begins or ends.
const PROGRESS_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What a command gets to end by itself after its client has left.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// A command that was started. Dropping the output ends the command, where the engine and the machine let us.
#[derive(Debug)]
pub struct Exec {
    pub input: ExecInput,
    pub output: ExecOutput,
}

#[derive(Debug)]
pub struct ExecInput {
    writer: hijack::Writer,
    client: Client,
    id: String,
}

#[derive(Debug)]
pub struct ExecOutput {
    reader: hijack::Reader,
    buffer: BytesMut,
    frames: Frames,
    guard: Option<Guard>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// Of a terminal: everything.
    Out(Bytes),
    Err(Bytes),
    /// Last.
    Exit(i64),
}

/// Ends the command when its client leaves.
#[derive(Debug)]
struct Guard {
    client: Client,
    id: String,
    container: String,
    _permit: OwnedSemaphorePermit,
}

pub(super) async fn start(
    client: &Client,
    container: &str,
    request: &ExecRequest,
    permit: OwnedSemaphorePermit,
) -> Result<Exec, Error> {
    const OPERATION: &str = "run a command in the container";
    if request.command.first().is_none_or(String::is_empty) {
        return Err(Error::Invalid("no command was given".to_owned()));
    }
    if request.command.iter().map(String::len).sum::<usize>() > COMMAND_MAX {
        return Err(Error::Invalid(format!("the command is longer than {COMMAND_MAX} bytes")));
    }
    let config = ExecConfig {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(request.tty),
        cmd: Some(request.command.clone()),
        env: request.tty.then(|| vec!["TERM=xterm-256color".to_owned()]),
        ..Default::default()
    };
    let id = client.call(OPERATION, CALL_LIMIT, client.docker().create_exec(container, config)).await?.id;
    let body = serde_json::json!({ "Detach": false, "Tty": request.tty }).to_string();
    let (reader, writer) = hijack(client, OPERATION, &format!("/exec/{id}/start"), body).await?;
    let guard = Guard { client: client.clone(), id: id.clone(), container: container.to_owned(), _permit: permit };
    let mut input = ExecInput { writer, client: client.clone(), id };
    let frames = if request.tty { Frames::None } else { Frames::Head };
    let output = ExecOutput { reader, buffer: BytesMut::new(), frames, guard: Some(guard) };
    if request.tty && request.rows > 0 && request.columns > 0 {
        // A command that has ended already has no terminal to resize.
        let resized = match progress(client, &input.id).await {
            Ok(Progress::Runs(_)) => input.resize(request.rows, request.columns).await,
            Ok(Progress::Ended(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = resized {
            tracing::debug!(%error, "a terminal kept its first size");
        }
    }
    Ok(Exec { input, output })
}

impl ExecInput {
    /// Waits while the command does not read.
    ///
    /// # Errors
    /// The command, or the engine, has gone.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.writer.write_all(bytes).await;
        written.map_err(|error| self.client.error("write to the command", error.into()))
    }

    /// No more input; output goes on.
    pub async fn close(&mut self) {
        if let Err(error) = self.writer.shutdown().await {
            tracing::debug!(%error, "the command's input was closed already");
        }
    }

    /// # Errors
    /// The command has ended, or has no terminal.
    pub async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), Error> {
        let size = bollard::exec::ResizeExecOptions { height: rows, width: columns };
        self.client.call("resize the terminal", CALL_LIMIT, self.client.docker().resize_exec(&self.id, size)).await
    }
}

impl ExecOutput {
    /// The next piece of output, and last the exit code; `None` after that.
    ///
    /// # Errors
    /// The stream with the engine broke.
    pub async fn next(&mut self) -> Option<Result<ExecEvent, Error>> {
        loop {
            if let Some(event) = self.frames.take(&mut self.buffer) {
                return Some(Ok(event));
            }
            self.guard.as_ref()?;
            self.buffer.reserve(READ_MAX);
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    let guard = self.guard.take()?;
                    let code = exit_code(&guard.client, &guard.id).await;
                    guard.defuse();
                    return Some(code.map(ExecEvent::Exit));
                }
                Ok(_) => {}
                Err(error) => {
                    let guard = self.guard.take()?;
                    return Some(Err(guard.client.error("read from the command", error.into())));
                }
            }
        }
    }
}

async fn exit_code(client: &Client, id: &str) -> Result<i64, Error> {
    let ended = async {
        loop {
            match progress(client, id).await? {
                Progress::Ended(code) => return Ok(code),
                Progress::Runs(_) => tokio::time::sleep(POLL).await,
            }
        }
    };
    let timeout = Error::Timeout { operation: "tell the command's exit code", seconds: PROGRESS_LIMIT.as_secs() };
    tokio::time::timeout(PROGRESS_LIMIT, ended).await.unwrap_or(Err(timeout))
}

/// How far a command is.
enum Progress {
    Runs(Pid),
    Ended(i64),
}

/// The engine hands the stream over a moment before it starts the command; that moment is waited out.
async fn progress(client: &Client, id: &str) -> Result<Progress, Error> {
    let known = async {
        loop {
            let state = client.docker().inspect_exec(id).await?;
            let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            match (state.running, state.exit_code, pid) {
                (Some(true), _, Some(pid)) => return Ok(Progress::Runs(pid)),
                (Some(false), Some(code), _) => return Ok(Progress::Ended(code)),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    };
    client.call("tell how a command does", PROGRESS_LIMIT, known).await
}

/// How output is framed: not at all from a terminal, else `[stream, 0, 0, 0, length (big endian)]` before each piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frames {
    None,
    Head,
    Payload { stream: u8, left: usize },
}

impl Frames {
    /// Passes pieces on as they come, so that no frame, however long, is held.
    fn take(&mut self, buffer: &mut BytesMut) -> Option<ExecEvent> {
        const HEAD: usize = 8;
        loop {
            match *self {
                _ if buffer.is_empty() => return None,
                Self::None => return Some(ExecEvent::Out(buffer.split().freeze())),
                Self::Head if buffer.len() < HEAD => return None,
                Self::Head => {
                    let stream = buffer[0];
                    let left = u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]) as usize;
                    buffer.advance(HEAD);
                    *self = if left == 0 { Self::Head } else { Self::Payload { stream, left } };
                }
                Self::Payload { stream, left } => {
                    let piece = buffer.split_to(left.min(buffer.len())).freeze();
                    let left = left - piece.len();
                    *self = if left == 0 { Self::Head } else { Self::Payload { stream, left } };
                    return Some(if stream == 2 { ExecEvent::Err(piece) } else { ExecEvent::Out(piece) });
                }
            }
        }
    }
}

impl Guard {
    fn defuse(mut self) {
        self.id.clear();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let id = std::mem::take(&mut self.id);
        if id.is_empty() {
            return;
        }
        let (client, container) = (self.client.clone(), std::mem::take(&mut self.container));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = end(&client, &id, &container).await {
                    tracing::debug!(%error, exec = %id, "a command that nobody waits for runs on");
                }
            });
        }
    }
}

/// The engine can start commands, but not end them. So the process is told by the node itself, or, where that may not, by a
/// `kill` in the container.
async fn end(client: &Client, id: &str, container: &str) -> Result<(), Error> {
    for signal in [Signal::HUP, Signal::KILL] {
        let Some(pid) = running_pid(client, id).await? else { return Ok(()) };
        if !belongs_to(pid, container) {
            return Ok(());
        }
        // Any other error means that it ended meanwhile.
        if rustix::process::kill_process(pid, signal) == Err(rustix::io::Errno::PERM) {
            kill_inside(client, pid, container, signal).await?;
        }
        let ended = async {
            while running_pid(client, id).await?.is_some() {
                tokio::time::sleep(POLL).await;
            }
            Ok::<(), Error>(())
        };
        if let Ok(ended) = tokio::time::timeout(HANGUP_GRACE, ended).await {
            return ended;
        }
    }
    Ok(())
}

async fn running_pid(client: &Client, id: &str) -> Result<Option<Pid>, Error> {
    match progress(client, id).await {
        Ok(Progress::Runs(pid)) => Ok(Some(pid)),
        Ok(Progress::Ended(_)) => Ok(None),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Process ids are used again: only one that is in the container's control group is the command's.
fn belongs_to(pid: Pid, container: &str) -> bool {
    let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    std::fs::read_to_string(path).is_ok_and(|groups| groups.contains(container))
}

async fn kill_inside(client: &Client, pid: Pid, container: &str, signal: Signal) -> Result<(), Error> {
    const OPERATION: &str = "end a command in the container";
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last());
    let Some(inner) = inner else { return Ok(()) };
    let config = ExecConfig {
        cmd: Some(vec!["kill".to_owned(), format!("-{}", signal.as_raw()), inner.to_owned()]),
        user: Some("0".to_owned()),
        ..Default::default()
    };
    let id = client.call(OPERATION, CALL_LIMIT, client.docker().create_exec(container, config)).await?.id;
    let options = bollard::exec::StartExecOptions { detach: true, ..Default::default() };
    client.call(OPERATION, CALL_LIMIT, client.docker().start_exec(&id, Some(options))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(frames: &mut Frames, bytes: &[u8]) -> Vec<ExecEvent> {
        let mut buffer = BytesMut::from(bytes);
        std::iter::from_fn(|| frames.take(&mut buffer)).collect()
    }

    #[test]
    fn frames_are_told_apart_and_passed_on_in_pieces() {
        let mut frames = Frames::Head;
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 0, 0, 0, 3, b'a', b'b'][..]);
        assert_eq!(frames.take(&mut buffer), Some(ExecEvent::Out(Bytes::from_static(b"ab"))));
        assert_eq!(frames.take(&mut buffer), None);
        buffer.extend_from_slice(&[b'c', 2, 0, 0, 0, 0, 0, 0, 1, b'e', 1, 0, 0]);
        assert_eq!(frames.take(&mut buffer), Some(ExecEvent::Out(Bytes::from_static(b"c"))));
        assert_eq!(frames.take(&mut buffer), Some(ExecEvent::Err(Bytes::from_static(b"e"))));
        assert_eq!(frames.take(&mut buffer), None);
        assert_eq!(buffer.len(), 3);
    }

    #[test]
    fn a_terminal_may_print_what_looks_like_a_frame() {
        let hostile = [0, 0, 0, 0, 255, 255, 255, 255];
        assert_eq!(all(&mut Frames::None, &hostile), [ExecEvent::Out(Bytes::copy_from_slice(&hostile))]);
    }
}
