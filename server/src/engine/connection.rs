//! The way to Docker Engine: where it listens, whether it answers, and a limit on how long each call may take.

use std::{error::Error as _, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error as DockerError};
use flotilla_api::rest::EngineView;

use super::Error;

/// The socket of an engine that was installed the usual way.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// A call that only reads or flips a switch. A busy disk can hold one up for seconds, not for half a minute.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(30);

/// The first question to an engine. One that does not answer this within 5 s answers nothing.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Bollard's own limit on the wait for the head of an answer. It would cut uploads and quiet log streams short, so it is
/// out of the way of the limits that this module sets per call.
const HEAD_LIMIT_SECONDS: u64 = 24 * 60 * 60;

/// Since 1.41 (Docker 20.10) single readings of statistics exist.
const API_MIN: (usize, usize) = (1, 41);

/// Where the engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DockerHost {
    Unix(PathBuf),
    /// `host:port`, plain HTTP.
    Tcp(String),
}

impl DockerHost {
    /// What was set, else `DOCKER_HOST`, else [`DEFAULT_HOST`].
    ///
    /// # Errors
    /// See [`DockerHost::parse`].
    pub(crate) fn find(set: Option<&str>) -> Result<Self, Error> {
        let environment = || std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        let host = set.map(ToOwned::to_owned).or_else(environment);
        Self::parse(host.as_deref().unwrap_or(DEFAULT_HOST))
    }

    /// # Errors
    /// For a scheme that Flotilla does not speak.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.starts_with('/').then_some(text)) {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Some(address) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
            let address = address.trim_end_matches('/');
            let with_port = if address.contains(':') { address.to_owned() } else { format!("{address}:2375") };
            return Ok(Self::Tcp(with_port));
        }
        Err(Error::Unavailable(format!(
            "the address of Docker Engine `{}` is not understood; use unix:///path/to/docker.sock or tcp://host:port",
            text.escape_debug()
        )))
    }
}

impl fmt::Display for DockerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// An engine that answered once. Cheap to clone; it holds no connection, each call makes its own.
#[derive(Clone, Debug)]
pub(super) struct Client {
    docker: Docker,
    host: Arc<DockerHost>,
}

impl Client {
    /// Asks the engine who it is.
    pub(super) async fn connect(host: &Arc<DockerHost>) -> Result<(Self, EngineView), Error> {
        let docker = match host.as_ref() {
            DockerHost::Unix(path) => {
                Docker::connect_with_unix(&path.to_string_lossy(), HEAD_LIMIT_SECONDS, API_DEFAULT_VERSION)
            }
            DockerHost::Tcp(address) => {
                Docker::connect_with_http(&format!("tcp://{address}"), HEAD_LIMIT_SECONDS, API_DEFAULT_VERSION)
            }
        };
        let docker = docker.map_err(|error| classify(host, "answer", error))?;
        let client = Self { docker, host: Arc::clone(host) };
        let hello = async {
            let docker = client.docker.clone().negotiate_version().await?;
            let version = docker.version().await?;
            let info = docker.info().await?;
            Ok::<_, DockerError>((docker, version, info))
        };
        let (docker, version, info) =
            client.call("answer", HELLO_LIMIT, hello).await.map_err(|error| match error {
                Error::Timeout { seconds, .. } => Error::Unavailable(format!(
                    "Docker Engine at {host} did not answer within {seconds} s; restart it (`sudo systemctl restart docker`)"
                )),
                Error::Refused { message, .. } => {
                    Error::Unavailable(format!("what answers at {host} does not speak as Docker Engine does: {message}"))
                }
                other => other,
            })?;
        let api = docker.client_version();
        if (api.major_version, api.minor_version) < API_MIN {
            return Err(Error::Unavailable(format!(
                "Docker Engine at {host} is too old (API {api}); Flotilla needs Docker 20.10 or newer"
            )));
        }
        let view = EngineView::Ready {
            version: version.version.unwrap_or_default(),
            api_version: api.to_string(),
            operating_system: info.operating_system.unwrap_or_default(),
        };
        Ok((Self { docker, host: Arc::clone(host) }, view))
    }

    pub(super) fn docker(&self) -> &Docker {
        &self.docker
    }

    pub(super) fn host(&self) -> &DockerHost {
        &self.host
    }

    /// One call with its limit. `operation` completes the sentence "Docker Engine could not ...".
    pub(super) async fn call<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<T, DockerError>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.error(operation, error)),
            Err(_) => Err(Error::Timeout { operation, seconds: limit.as_secs() }),
        }
    }

    pub(super) fn error(&self, operation: &'static str, error: DockerError) -> Error {
        classify(&self.host, operation, error)
    }
}

fn classify(host: &DockerHost, operation: &'static str, error: DockerError) -> Error {
    match error {
        DockerError::DockerResponseServerError { status_code, message } => {
            Error::Refused { operation, status: Some(status_code), message: one_line(&message) }
        }
        DockerError::DockerStreamError { error } => {
            Error::Refused { operation, status: None, message: one_line(&error) }
        }
        DockerError::RequestTimeoutError => Error::Timeout { operation, seconds: HEAD_LIMIT_SECONDS },
        DockerError::SocketNotFoundError(_) => Error::Unavailable(unreachable(host, Some(io::ErrorKind::NotFound))),
        DockerError::IOError { .. } | DockerError::HyperLegacyError { .. } | DockerError::HyperResponseError { .. } => {
            Error::Unavailable(unreachable(host, io_kind(&error)))
        }
        other => Error::Refused { operation, status: None, message: one_line(&other.to_string()) },
    }
}

/// What the operating system said, however deep the libraries wrapped it.
fn io_kind(error: &DockerError) -> Option<io::ErrorKind> {
    let mut cause = error.source();
    if let DockerError::IOError { err } = error {
        return Some(err.kind());
    }
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

fn unreachable(host: &DockerHost, kind: Option<io::ErrorKind>) -> String {
    match (host, kind) {
        (DockerHost::Unix(path), Some(io::ErrorKind::NotFound)) => format!(
            "Docker Engine is not running: there is no socket {}; start it (`sudo systemctl start docker`) or name \
             another with `--docker-host`",
            path.display()
        ),
        (DockerHost::Unix(path), Some(io::ErrorKind::PermissionDenied)) => format!(
            "Docker Engine's socket {} may not be opened by this user; add it to the group `docker` and sign in again",
            path.display()
        ),
        (DockerHost::Unix(path), Some(io::ErrorKind::ConnectionRefused)) => format!(
            "Docker Engine is not running: nothing listens on {}; start it (`sudo systemctl start docker`)",
            path.display()
        ),
        _ => format!("Docker Engine at {host} does not answer; check that it runs (`docker info`)"),
    }
}

/// The engine's messages sometimes have several lines; an answer of ours is one sentence.
pub(super) fn one_line(message: &str) -> String {
    /// The longest of the engine's messages that is worth showing. Characters.
    const MESSAGE_MAX: usize = 600;
    let mut line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(MESSAGE_MAX) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_that_docker_itself_takes_are_understood() {
        let unix = DockerHost::Unix("/var/run/docker.sock".into());
        assert_eq!(DockerHost::parse(DEFAULT_HOST).unwrap(), unix);
        assert_eq!(DockerHost::parse("/var/run/docker.sock").unwrap(), unix);
        assert_eq!(DockerHost::parse("tcp://10.0.0.1:2375").unwrap(), DockerHost::Tcp("10.0.0.1:2375".into()));
        assert_eq!(DockerHost::parse("tcp://engine").unwrap(), DockerHost::Tcp("engine:2375".into()));
        assert!(DockerHost::parse("ssh://somewhere").is_err());
    }

    #[test]
    fn a_message_becomes_one_bounded_line() {
        assert_eq!(one_line("a\n  b\tc\n"), "a b c");
        assert_eq!(one_line(&"é".repeat(5000)).chars().count(), 601);
    }
}
