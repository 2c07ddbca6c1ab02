//! Child processes that do not outlive their test.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// A running program whose output goes to a file, and which is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pub log: PathBuf,
}

impl Process {
    /// Starts it with standard output and error appended to `log`.
    ///
    /// # Errors
    /// Where the program or the log can't be opened.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let out =
            File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {:?}", command.as_std().get_program()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the process has ended")
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// As a power loss for this program alone: SIGKILL, nothing is cleaned up.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill")
    }

    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let status = Command::new("kill").arg(signal.flag()).arg(self.pid()?.to_string()).status().await?;
        if !status.success() {
            bail!("kill {} failed: {status}", signal.flag());
        }
        Ok(())
    }

    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status =
            timeout(limit, self.child.wait()).await.with_context(|| format!("it still runs after {limit:?}"))??;
        Ok(status)
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Resident memory now, and its peak since the process began. Bytes.
    pub fn memory(&self) -> Result<Memory> {
        let pid = self.pid()?;
        Ok(Memory { resident: field(pid, "VmRSS:")?, peak: field(pid, "VmHWM:")? })
    }

    /// Processor time that it has used, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        cpu(self.pid()?)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    pub peak: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Signal {
    Terminate,
    Interrupt,
    Stop,
    Continue,
}

impl Signal {
    fn flag(self) -> &'static str {
        match self {
            Self::Terminate => "-TERM",
            Self::Interrupt => "-INT",
            Self::Stop => "-STOP",
            Self::Continue => "-CONT",
        }
    }
}

/// Processor time that a process has used, user and system.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field may hold anything, in parentheses; the others are numbers.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |index: usize| -> Result<u64> { Ok(fields.get(index).context("short stat")?.parse()?) };
    // USER_HZ is 100 on every architecture that Debian builds Rust for.
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    field(pid, "VmRSS:")
}

/// A figure of kilobytes in a process's status, in bytes.
fn field(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kilobytes * 1024)
}

/// Runs a command to its end and returns its output; an error holds both streams.
pub async fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let output = timeout(limit, command.stdin(Stdio::null()).kill_on_drop(true).output())
        .await
        .with_context(|| format!("{:?} still runs after {limit:?}", command.as_std()))??;
    if !output.status.success() {
        bail!(
            "{:?} ended with {:?} (signal {:?})\n{}{}",
            command.as_std(),
            output.status.code(),
            output.status.signal(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
