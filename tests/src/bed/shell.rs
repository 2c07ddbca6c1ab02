//! Short commands of the system: they end by themselves at once, or something is wrong with this machine.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// What `ip`, `nft`, `mount` and the like may take, on a machine that is busy with ten others. For `timeout`.
const LIMIT: &str = "30";

/// Runs a script of `sh`, which ends with the first of its commands that fails.
pub(super) fn run(script: &str) -> Result<String> {
    let mut command = Command::new("timeout");
    command.args([LIMIT, "sh", "-ec", script]);
    finish(command, "", script)
}

/// The same in a network namespace.
pub(super) fn run_in(namespace: &str, script: &str) -> Result<String> {
    finish(inside(namespace, &["sh", "-ec", script]), "", script)
}

/// Gives a namespace a set of rules, all at once.
pub(super) fn rules_in(namespace: &str, rules: &str) -> Result<()> {
    finish(inside(namespace, &["nft", "-f", "-"]), rules, rules).map(drop)
}

fn inside(namespace: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args([LIMIT, "nsenter"]).arg(format!("--net={}", path(namespace))).arg("--").args(arguments);
    command
}

/// Where `ip netns` keeps a namespace.
pub(super) fn path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

fn finish(mut command: Command, input: &str, shown: &str) -> Result<String> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("start {:?}", command.get_program()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing has closed it already.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: {}\n{shown}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
