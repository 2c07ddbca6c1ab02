//! The program `flotilla`, as a person at a terminal calls it.

use std::{ffi::OsStr, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::built;

/// The longest that any one command may take: a cold deployment on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A terminal with its own home directory, so that no saved context of a person plays a part.
#[derive(Debug)]
pub struct Cli {
    api: Option<String>,
    token: Option<String>,
    home: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub command: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Cli {
    /// # Errors
    /// Where no directory can be made.
    pub fn new(api: Option<&str>, token: Option<&str>) -> Result<Self> {
        Ok(Self { api: api.map(ToOwned::to_owned), token: token.map(ToOwned::to_owned), home: tempfile::tempdir()? })
    }

    /// The same terminal for somebody else.
    pub fn with_token(&self, token: &str) -> Result<Self> {
        Self::new(self.api.as_deref(), Some(token))
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(built("flotilla"));
        command.env("HOME", self.home.path()).env("XDG_CONFIG_HOME", self.home.path().join("config"));
        command.env("NO_COLOR", "1").env_remove("FLOTILLA_API").env_remove("FLOTILLA_TOKEN");
        if let Some(api) = &self.api {
            command.env("FLOTILLA_API", api);
        }
        if let Some(token) = &self.token {
            command.env("FLOTILLA_TOKEN", token);
        }
        command.kill_on_drop(true);
        command
    }

    /// Runs a command to its end, whatever that is.
    pub async fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Result<Ended> {
        self.run_with(arguments, "").await
    }

    /// With a standard input.
    pub async fn run_with(&self, arguments: &[impl AsRef<OsStr>], input: &str) -> Result<Ended> {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = format!("{:?}", command.as_std().get_args().collect::<Vec<_>>());
        let mut child = command.spawn().context("start flotilla")?;
        let mut stdin = child.stdin.take().context("a piped input")?;
        let finished = async {
            // A command that reads nothing has closed it already.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = timeout(LIMIT, finished)
            .await
            .with_context(|| format!("flotilla {shown} still runs after {LIMIT:?}"))??;
        Ok(Ended {
            command: shown,
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that has to succeed, and returns its output.
    pub async fn ok(&self, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
        let ended = self.run(arguments).await?;
        ensure!(ended.code == Some(0), "it was to succeed: {ended:#?}");
        Ok(ended.out)
    }

    /// Runs a command with `--json` that has to succeed.
    pub async fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let out = self.ok(&arguments).await?;
        serde_json::from_str(&out).with_context(|| format!("flotilla {arguments:?} printed\n{out}"))
    }

    /// Runs a command that has to fail, and returns what it says to a program. What it says to a person is one sentence.
    pub async fn fails(&self, arguments: &[impl AsRef<OsStr>]) -> Result<Refusal> {
        let ended = self.run(arguments).await?;
        let sentence = ended.sentence()?;
        // First, as whatever stands behind the command of an `exec` belongs to that.
        let arguments: Vec<_> = [OsStr::new("--json")].into_iter().chain(arguments.iter().map(AsRef::as_ref)).collect();
        let ended = self.run(&arguments).await?;
        let refusal: Refusal =
            serde_json::from_str(&ended.err).with_context(|| format!("an error as JSON is one object: {ended:#?}"))?;
        ensure!(refusal.message == sentence, "a person reads `{sentence}`, a program `{}`", refusal.message);
        Ok(refusal)
    }
}

/// An error of the command line, as `--json` prints it.
#[derive(Debug, Deserialize)]
pub struct Refusal {
    pub code: String,
    pub message: String,
    #[serde(default)]
    pub line: Option<u32>,
}

impl Ended {
    /// The sentence behind `error:`; the lines under it, if any, are indented.
    ///
    /// # Errors
    /// Where the command succeeded, crashed, or said something else first.
    pub fn sentence(&self) -> Result<String> {
        ensure!(
            self.code.is_some_and(|code| code != 0 && code != 101),
            "it was to fail with a code of ours: {self:#?}"
        );
        ensure!(self.out.is_empty(), "a failure says nothing on standard output: {self:#?}");
        let mut lines = self.err.trim_end().lines();
        let sentence = lines.next().and_then(|line| line.strip_prefix("error: "));
        let sentence = sentence.with_context(|| format!("a failure begins with its sentence: {self:#?}"))?;
        ensure!(
            lines
                .all(|line| line.is_empty() || line.starts_with(' ') || line.starts_with(|c: char| c.is_ascii_digit())),
            "below the sentence is only what it is about: {self:#?}"
        );
        Ok(sentence.to_owned())
    }
}
