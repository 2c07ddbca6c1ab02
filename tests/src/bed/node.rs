//! The program `flotilla` in a simulated machine, as a person would start it there.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::{
    machine::Machine,
    probe::{enter_network, get},
};
use crate::{built, process, process::Process, wait};

/// Of every node's listener.
pub(super) const PORT: u16 = 7070;
/// In every machine.
const DATA: &str = "/srv/flotilla";
/// From the start of the daemon to one that serves.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// For a daemon that was asked to stop: it hands over what it leads.
const END_LIMIT: Duration = Duration::from_secs(30);
/// For a command that talks to the cluster once.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// For one question to a daemon's listener.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

impl Machine {
    /// Makes a new cluster with this machine as its first, and returns an administrator's token.
    pub async fn init(&self, cluster: &str) -> Result<String> {
        let mut command = self.command(built("flotilla"))?;
        command.args(["init", cluster, "--json", "--data-dir", DATA, "--listen", &self.listen().to_string()]);
        let made = process::run(&mut command, COMMAND_LIMIT).await.context("flotilla init")?;
        let made: serde_json::Value = serde_json::from_str(&made).with_context(|| format!("init printed {made}"))?;
        Ok(made["admin_token"].as_str().with_context(|| format!("no token in {made}"))?.to_owned())
    }

    /// Joins the cluster of a token.
    pub async fn join(&self, token: &str) -> Result<String> {
        process::run(&mut self.join_command(token)?, COMMAND_LIMIT).await.context("flotilla join")
    }

    pub fn join_command(&self, token: &str) -> Result<Command> {
        let mut command = self.command(built("flotilla"))?;
        command.args(["join", token, "--data-dir", DATA, "--name", self.name()]);
        command.args(["--listen", &self.listen().to_string()]);
        Ok(command)
    }

    /// Forgets all that its node knew, as if its disk were new.
    pub async fn wipe(&self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the node of {} still runs", self.name());
        self.exec(&["rm", "-rf", DATA]).await.map(drop)
    }

    /// Starts its node, and waits until that serves.
    pub async fn start_node(&mut self) -> Result<()> {
        self.launch_node()?;
        self.node_serves().await
    }

    pub fn launch_node(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the node of {} runs already", self.name());
        let mut command = self.command(built("flotilla"))?;
        command.args(["up", "--data-dir", DATA, "--listen", &self.listen().to_string()]);
        let level = std::env::var("FLOTILLA_LOG_LEVEL").unwrap_or_else(|_| "info,flotilla=debug".to_owned());
        command.env("FLOTILLA_LOG_LEVEL", level);
        self.daemon = Some(Process::spawn(&mut command, &self.log("node"))?);
        Ok(())
    }

    pub async fn node_serves(&mut self) -> Result<()> {
        let (namespace, listen) = (self.hardware.namespace.clone(), self.listen());
        let daemon = self.daemon.as_mut().context("its node was not started")?;
        let ready = wait::until(format!("the node of {}", self.hardware.name), READY_LIMIT, async || {
            if let Some(status) = daemon.ended()? {
                return Ok(Some(Err(anyhow::anyhow!("it ended with {status}"))));
            }
            Ok(inside(&namespace, listen, "/readyz").await.is_ok().then_some(Ok(())))
        })
        .await;
        ready.and_then(|ready| ready).with_context(|| format!("the node said:\n{}", tail(&daemon.output())))
    }

    /// SIGTERM: it ends by itself, with success.
    pub async fn end_node(&mut self) -> Result<()> {
        self.signal_daemon(Signal::TERM)?;
        let mut daemon = self.daemon.take().context("its node was not started")?;
        let status = daemon.wait(END_LIMIT).await?;
        ensure!(status.success(), "the node of {} ended with {status}:\n{}", self.name(), tail(&daemon.output()));
        Ok(())
    }

    /// SIGKILL for the daemon alone: guard, engine and containers are left.
    pub async fn kill_daemon(&mut self) -> Result<()> {
        self.signal_daemon(Signal::KILL)?;
        self.daemon.take().context("its node was not started")?.wait(END_LIMIT).await.map(drop)
    }

    /// SIGSTOP: it hangs, and its connections stay open.
    pub fn hang_daemon(&self) -> Result<()> {
        self.signal_daemon(Signal::STOP)
    }

    /// SIGCONT: it goes on where it was.
    pub fn resume_daemon(&self) -> Result<()> {
        // `nsenter` stops with its child, and has to go on with it, so as to see it end.
        let holder = self.daemon.as_ref().context("its node was not started")?.pid()?;
        self.signal_daemon(Signal::CONT)?;
        signal(i32::try_from(holder)?, Signal::CONT)
    }

    /// Resident memory of the daemon, in bytes.
    pub fn node_memory(&self) -> Result<u64> {
        process::resident(u32::try_from(self.daemon_pid()?)?)
    }

    /// Processor time that the daemon has used.
    pub fn node_cpu(&self) -> Result<Duration> {
        process::cpu(u32::try_from(self.daemon_pid()?)?)
    }

    fn signal_daemon(&self, what: Signal) -> Result<()> {
        signal(self.daemon_pid()?, what)
    }

    /// The daemon is the one child of the `nsenter` that was started for it.
    fn daemon_pid(&self) -> Result<i32> {
        let holder = self.daemon.as_ref().context("its node was not started")?.pid()?;
        let children = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children"))?;
        match children.split_whitespace().collect::<Vec<_>>().as_slice() {
            [one] => Ok(one.parse()?),
            [] => bail!("the node of {} does not run", self.name()),
            more => bail!("the node of {} is one of {more:?}", self.name()),
        }
    }
}

fn signal(pid: i32, what: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("a process id")?;
    kill_process(pid, what).with_context(|| format!("send {what:?} to {pid:?}"))
}

/// A question that is asked within a machine: what is behind a router can't be asked from elsewhere.
async fn inside(namespace: &str, listen: SocketAddr, path: &'static str) -> Result<String> {
    let namespace = namespace.to_owned();
    // A thread of its own, because it stays in the namespace.
    let asked = std::thread::spawn(move || {
        enter_network(&namespace)?;
        get(listen, path, PROBE_LIMIT)
    });
    tokio::task::spawn_blocking(|| asked.join()).await?.map_err(|_| anyhow::anyhow!("a probe panicked"))?
}

/// The last lines of a log: a whole one of a cluster is no message.
pub(super) fn tail(log: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
