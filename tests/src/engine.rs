//! A way to Docker Engine that a test can cut and mend, as if the engine had gone away.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    task::{AbortHandle, JoinSet},
};

/// Where Docker Engine answers.
const ENGINE: &str = "/var/run/docker.sock";

#[derive(Debug)]
pub struct EngineSocket {
    directory: TempDir,
    task: Option<AbortHandle>,
}

impl EngineSocket {
    /// # Errors
    /// Where no socket can be made.
    pub fn open() -> Result<Self> {
        let mut socket = Self { directory: tempfile::tempdir()?, task: None };
        socket.mend()?;
        Ok(socket)
    }

    /// For `FLOTILLA_DOCKER_HOST`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    /// Every connection ends, and none is taken.
    pub fn cut(&mut self) -> Result<()> {
        if let Some(task) = self.task.take() {
            task.abort();
            std::fs::remove_file(self.path())?;
        }
        Ok(())
    }

    pub fn mend(&mut self) -> Result<()> {
        let listener = UnixListener::bind(self.path()).context("bind the engine's socket")?;
        self.task = Some(tokio::spawn(pass(listener)).abort_handle());
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }
}

impl Drop for EngineSocket {
    fn drop(&mut self) {
        let _ = self.cut();
    }
}

/// Until it is aborted, and with it every connection that it has taken.
async fn pass(listener: UnixListener) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        connections.spawn(async move {
            if let Ok(mut engine) = UnixStream::connect(Path::new(ENGINE)).await {
                // Either side may end it in any way.
                let _ = copy_bidirectional(&mut client, &mut engine).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
