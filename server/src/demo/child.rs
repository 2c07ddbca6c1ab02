//! A node as a child process.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::process::{Child, ChildStdin, Command};

use super::family;
use crate::{cli::Failure, client::Client};

/// From the start of the process until it says that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(40);

/// From SIGTERM to SIGKILL. The node itself gives what is under way a few seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Of the log, what is shown when the node does not start. Bytes.
const TAIL_LEN: u64 = 4096;
const TAIL_LINES: usize = 12;

/// How to run the node.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) data_dir: PathBuf,
    pub(super) listen: SocketAddr,
    /// As people know the cluster, whichever machine they reach.
    pub(super) domain: String,
    pub(super) log: PathBuf,
    pub(super) docker_host: Option<String>,
    /// Where the demo takes orders, for the button on the dashboard.
    pub(super) socket: PathBuf,
}

impl Recipe {
    /// This program with the verb, for the machine's directory; what it says goes to the machine's log.
    pub(super) fn command(&self, verb: &str) -> Result<Command, Failure> {
        let log =
            OpenOptions::new().create(true).append(true).open(&self.log).map_err(Failure::io("write", &self.log))?;
        let errors = log.try_clone().map_err(Failure::io("write", &self.log))?;
        let mut command = Command::new(program());
        command.arg0("flotilla").arg(verb).arg("--data-dir").arg(&self.data_dir);
        command.args(["--config", super::NO_FILE]).arg("--listen").arg(self.listen.to_string());
        command.arg("--domain").arg(&self.domain);
        if let Some(host) = &self.docker_host {
            command.arg("--docker-host").arg(host);
        }
        if std::env::var_os("FLOTILLA_RELAY_PORT").is_none() {
            // Beside a real node on this machine, which has the usual port.
            command.env("FLOTILLA_RELAY_PORT", "0");
        }
        command.env("FLOTILLA_DEMO_SOCKET", &self.socket).env(family::MARK, &self.data_dir);
        // A group of its own: Ctrl-C is for this program, which stops the node in order.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        Ok(command)
    }

    /// What went wrong, in the program's own words where its log has them.
    pub(super) fn failure(&self, what: &str, why: &str) -> Failure {
        let logs = tail(&self.log);
        // Its own sentence says it best.
        let own = logs.iter().rev().find_map(|line| line.strip_prefix("error: "));
        match own {
            Some(sentence) => Failure::Other(format!("{what}: {sentence}")),
            None => Failure::NotHealthy { sentence: format!("{what}: {why}"), logs },
        }
    }
}

#[derive(Debug)]
pub(super) struct NodeProcess {
    recipe: Recipe,
    child: Child,
    /// The node stops when this end is closed: also when this program is killed, so that none is ever left behind.
    _lifeline: Option<ChildStdin>,
    started: Instant,
}

impl NodeProcess {
    /// Starts the node and waits until it is ready.
    pub(super) async fn start(recipe: Recipe, client: &Client) -> Result<Self, Failure> {
        let mut process = Self::spawn(recipe)?;
        process.ready(client).await?;
        Ok(process)
    }

    fn spawn(recipe: Recipe) -> Result<Self, Failure> {
        let mut command = recipe.command("up")?;
        command.arg("--stop-with-stdin").stdin(Stdio::piped());
        let mut child = command.spawn().map_err(Failure::io("start", program()))?;
        let lifeline = child.stdin.take();
        Ok(Self { recipe, child, _lifeline: lifeline, started: Instant::now() })
    }

    async fn ready(&mut self, client: &Client) -> Result<(), Failure> {
        let asking = async {
            loop {
                // Refused while it does not listen, and unavailable until its parts are there.
                if client.ready().await.unwrap_or(false) {
                    return;
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        tokio::select! {
            () = asking => Ok(()),
            ended = self.child.wait() => {
                let how = ended.map_or_else(|error| error.to_string(), describe);
                Err(self.did_not_start(&format!("it {how}")))
            }
            () = tokio::time::sleep(READY_TIMEOUT) => {
                Err(self.did_not_start(&format!("it is not ready after {} s", READY_TIMEOUT.as_secs())))
            }
        }
    }

    fn did_not_start(&self, why: &str) -> Failure {
        self.recipe.failure("the node did not start", why)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Resolves when the node has died; the text completes "the node ...".
    pub(super) async fn died(&mut self) -> String {
        self.child.wait().await.map_or_else(|error| error.to_string(), describe)
    }

    pub(super) fn ran_for(&self) -> Duration {
        self.started.elapsed()
    }

    /// As when its machine's plug is pulled: the node and all that it has started are dead at once, without a goodbye.
    pub(super) async fn kill(mut self) {
        family::kill(self.child.id(), &self.recipe.data_dir);
        // Collects what is left of the process.
        let _ = self.child.kill().await;
    }

    /// SIGTERM, and SIGKILL if that does not help.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            // Gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await;
        // What is beside the node ends with it; what did not is in nobody's interest.
        self.kill().await;
    }
}

/// This program, also where its file was replaced by a newer one meanwhile.
fn program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.is_file() => path,
        _ => PathBuf::from("/proc/self/exe"),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".into(),
    }
}

/// The last lines of a log; none if it can't be read.
fn tail(log: &Path) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let len = fs::metadata(log)?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_LEN)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_LEN).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        assert!(tail(&log).is_empty());
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        fs::write(&log, text).unwrap();
        let lines = tail(&log);
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines.last().unwrap(), "line 999");
    }

    #[test]
    fn the_end_of_a_process_is_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by signal 9");
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "ended with exit code 1");
    }
}
