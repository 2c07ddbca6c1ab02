//! A real registry on loopback, which Docker Engine takes as insecure without being told.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::{net::TcpListener, process::Command};

use crate::{
    artefacts, image,
    process::{Process, run},
    test_cache, wait,
};

#[derive(Debug)]
pub struct Registry {
    pub address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

impl Registry {
    /// # Errors
    /// Where `docker-registry` is missing or does not answer.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // The port is free when it is taken by name a moment later; the registry has no way to report one of its own choice.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let configuration = directory.path().join("config.yml");
        let root = directory.path().join("data");
        std::fs::write(
            &configuration,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
                root.display()
            ),
        )?;
        let log = artefacts().join("registry.log");
        let process = Process::spawn(Command::new(program()?).arg("serve").arg(&configuration), &log)?;
        wait::holds("the registry", Duration::from_secs(10), async || {
            Ok(reqwest::get(format!("http://{address}/v2/")).await?.status().is_success())
        })
        .await?;
        Ok(Self { address, _process: process, _directory: directory })
    }

    /// Puts an image of the engine's into the registry and returns its name there; the engine keeps no such name.
    ///
    /// # Errors
    /// What `docker push` says.
    pub async fn put(&self, local: &str, name: &str) -> Result<String> {
        let remote = format!("{}/{name}", self.address);
        image::tag(local, &remote).await?;
        run(Command::new("docker").args(["push", &remote]), Duration::from_secs(120)).await?;
        image::forget(&remote).await?;
        Ok(remote)
    }
}

fn program() -> Result<PathBuf> {
    let candidates =
        [PathBuf::from("/usr/bin/docker-registry"), test_cache().join("docker-registry/usr/bin/docker-registry")];
    candidates.into_iter().find(|path| path.is_file()).context("docker-registry is missing; run `make setup`")
}
