//! Commands in a service's container around a capture.

use std::time::Duration;

use flotilla_api::{
    ServiceName, VolumeName,
    rest::ExecRequest,
    spec::{ServiceSpec, VolumeHooks},
};
use tokio::time::timeout;

use crate::engine::{Engine, ExecEvent};

/// How long one of them may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Of what a command says before it fails, the end is told. Bytes.
const SAID_MAX: usize = 200;

/// What is to be run around captures of one service's volumes.
#[derive(Clone, Debug, Default)]
pub(super) struct Hooks {
    pub(super) of: Vec<(VolumeName, VolumeHooks)>,
}

impl Hooks {
    pub(super) fn of(spec: &ServiceSpec) -> Self {
        let hooked = spec.written().filter(|mount| !mount.rules.hooks.is_empty());
        Self { of: hooked.map(|mount| (mount.volume.clone(), mount.rules.hooks.clone())).collect() }
    }

    /// Those that failed, in one sentence. What is captured then is as after a power loss.
    pub(super) async fn before(&self, engine: &Engine, service: &ServiceName) -> Option<String> {
        let mut failed = None;
        for (volume, hooks) in &self.of {
            failed = run(engine, service, &format!("`pre` of `{volume}`"), &hooks.pre).await.or(failed);
        }
        failed
    }

    /// In the order in which they are undone.
    pub(super) async fn after(&self, engine: &Engine, service: &ServiceName) -> Option<String> {
        let mut failed = None;
        for (volume, hooks) in self.of.iter().rev() {
            failed = run(engine, service, &format!("`post` of `{volume}`"), &hooks.post).await.or(failed);
        }
        failed
    }
}

async fn run(engine: &Engine, service: &ServiceName, what: &str, command: &[String]) -> Option<String> {
    if command.is_empty() {
        return None;
    }
    let request = ExecRequest { command: command.to_vec(), tty: false, rows: 0, columns: 0 };
    let mut said = Vec::new();
    let ran = timeout(LIMIT, async {
        let mut command = engine.exec(service, None, &request).await.map_err(|error| error.to_string())?;
        while let Some(event) = command.output.next().await {
            match event.map_err(|error| error.to_string())? {
                ExecEvent::Out(bytes) | ExecEvent::Err(bytes) => {
                    said.extend_from_slice(&bytes);
                    said.drain(..said.len().saturating_sub(SAID_MAX));
                }
                ExecEvent::Exit(0) => return Ok(()),
                ExecEvent::Exit(code) => return Err(format!("it ended with {code}")),
            }
        }
        Err("its end was not seen".to_owned())
    });
    let why = match ran.await {
        Ok(Ok(())) => return None,
        Ok(Err(why)) => why,
        Err(_) => format!("it took longer than {} s", LIMIT.as_secs()),
    };
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let last = if last.is_empty() { String::new() } else { format!(" ({})", last.trim().escape_debug()) };
    Some(format!("the hook {what} failed: {why}{last}; what is copied is as after a power loss"))
}
