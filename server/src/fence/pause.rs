//! The container engine's own pause, for a node that may not use the kernel's freezer: one that is not root.
//!
//! Not with the library that the rest of the node speaks to the engine with: the guard needs two requests, and shall stay small.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::Error;
use crate::engine::DockerHost;

/// A pause takes 10 ms. An engine that needs longer than a lease has margin is of no use here.
const PAUSE_LIMIT: Duration = Duration::from_secs(2);

/// Of the engine's answer: its head and one sentence. Bytes.
const ANSWER_MAX: u64 = 16 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Pauser {
    host: Option<Arc<DockerHost>>,
}

impl Pauser {
    /// `docker_host` is as in [`crate::engine::EngineConfig`]; of an address that makes no sense the engine itself tells.
    pub(super) fn new(docker_host: Option<&str>) -> Self {
        Self { host: DockerHost::find(docker_host).ok().map(Arc::new) }
    }

    /// Whether the kernel may know nothing of a container that runs: this process is not root, or the engine is elsewhere.
    pub(super) fn is_needed(&self) -> bool {
        !rustix::process::geteuid().is_root() || matches!(self.host.as_deref(), Some(DockerHost::Tcp(_)))
    }

    /// False if the container does not run.
    pub(super) async fn pause(&self, container: &str) -> Result<bool, Error> {
        let (status, text) = self.ask(container, "pause").await?;
        match status {
            204 => Ok(true),
            409 | 500 if text.contains("already paused") => Ok(true),
            404 | 409 => Ok(false),
            _ => Err(Error::Engine { what: "pause", why: text }),
        }
    }

    /// False if the container does not run, or runs already.
    pub(super) async fn unpause(&self, container: &str) -> Result<bool, Error> {
        let (status, text) = self.ask(container, "unpause").await?;
        match status {
            204 => Ok(true),
            404 | 409 => Ok(false),
            500 if text.contains("is not paused") => Ok(false),
            _ => Err(Error::Engine { what: "unpause", why: text }),
        }
    }

    async fn ask(&self, container: &str, what: &'static str) -> Result<(u16, String), Error> {
        let failed = |why: String| Error::Engine { what, why };
        let host = self.host.as_deref().ok_or_else(|| failed("its address is not understood".to_owned()))?;
        if !container.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(failed("that is no container's id".to_owned()));
        }
        let asking = async {
            match host {
                DockerHost::Unix(path) => exchange(UnixStream::connect(path).await?, container, what).await,
                DockerHost::Tcp(address) => exchange(TcpStream::connect(address).await?, container, what).await,
            }
        };
        match tokio::time::timeout(PAUSE_LIMIT, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("it did not answer within {} s", PAUSE_LIMIT.as_secs()))),
        }
    }
}

async fn exchange(
    mut wire: impl AsyncRead + AsyncWrite + Unpin,
    container: &str,
    what: &str,
) -> std::io::Result<(u16, String)> {
    let request = format!(
        "POST /containers/{container}/{what} HTTP/1.0\r\nHost: docker\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    wire.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    wire.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = status.ok_or_else(|| std::io::Error::other("what answers does not speak as Docker Engine does"))?;
    Ok((status, body.split_whitespace().collect::<Vec<_>>().join(" ")))
}
