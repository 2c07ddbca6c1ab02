//! A machine whose lid is closed: its login manager tells whoever asked to be told, waits for them, and only then does it sleep.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use super::machine::Machine;
use crate::{process::Process, repository, test_cache, wait};

/// A bus and a manager are there in a moment; whoever wants to be told of sleep looks for them at growing intervals.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// The manager waits for others for at most five seconds.
const ASLEEP_LIMIT: Duration = Duration::from_secs(20);

impl Machine {
    /// Starts its login manager, and waits until its node has asked to be told of sleep.
    pub async fn start_login_manager(&mut self) -> Result<()> {
        let elogind = test_cache().join("elogind");
        ensure!(elogind.join("lib").is_dir(), "no elogind in {}; `make setup` unpacks it", elogind.display());
        // A mount point on this machine, which has another login manager or none.
        fs::create_dir_all("/etc/elogind")?;
        let mut command = self.command(repository().join("tests/bed/logind"))?;
        command.arg(elogind);
        self.login_manager = Some(Process::spawn(&mut command, &self.log("elogind"))?);
        wait::holds(format!("the node of {} to ask to be told of sleep", self.name()), READY_LIMIT, async || {
            Ok(self.ask_login_manager(&["ListInhibitors"]).await.is_ok_and(|locks| locks.contains("Flotilla")))
        })
        .await
        .with_context(|| {
            format!("elogind said:\n{}", self.login_manager.as_ref().map(Process::output).unwrap_or_default())
        })
    }

    /// The lid is closed.
    pub async fn fall_asleep(&mut self) -> Result<()> {
        self.ask_login_manager(&["Suspend", "boolean:false"]).await?;
        let falls = self.falls_asleep();
        wait::holds(format!("{} to fall asleep", self.name()), ASLEEP_LIMIT, async || Ok(falls.exists())).await?;
        self.suspend()
    }

    /// There while its login manager takes it for asleep.
    pub(super) fn falls_asleep(&self) -> PathBuf {
        self.hardware.run.join("run/falls-asleep")
    }

    async fn ask_login_manager(&self, method: &[&str]) -> Result<String> {
        let (method, arguments) = method.split_first().context("a method to call")?;
        let method = format!("org.freedesktop.login1.Manager.{method}");
        let call =
            ["dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.login1", "/org/freedesktop/login1"];
        let call: Vec<&str> = call.into_iter().chain([method.as_str()]).chain(arguments.iter().copied()).collect();
        self.exec(&call).await
    }
}
