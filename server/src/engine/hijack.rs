//! A raw, two-way byte stream with the engine, for commands in containers.
//!
//! Not bollard's, because a terminal's bytes have no frames: its decoder takes output that begins with a byte below 3 for a
//! frame's head, and waits for as much as that claims.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf},
    net::{TcpStream, UnixStream},
};

use super::{
    Error,
    connection::{Client, DockerHost, one_line},
};

/// The engine has the command started by then.
const UPGRADE_LIMIT: Duration = Duration::from_secs(30);

/// The longest error that is read. Bytes.
const REFUSAL_MAX: usize = 64 * 1024;

pub(super) type Reader = ReadHalf<TokioIo<hyper::upgrade::Upgraded>>;
pub(super) type Writer = WriteHalf<TokioIo<hyper::upgrade::Upgraded>>;

trait Wire: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}

/// Posts `body` (JSON) and takes the connection over. Shutting the writer down leaves the reader open.
pub(super) async fn hijack(
    client: &Client,
    operation: &'static str,
    path: &str,
    body: String,
) -> Result<(Reader, Writer), Error> {
    let upgraded = tokio::time::timeout(UPGRADE_LIMIT, upgrade(client, operation, path, body)).await;
    let upgraded = upgraded.map_err(|_| Error::Timeout { operation, seconds: UPGRADE_LIMIT.as_secs() })??;
    Ok(tokio::io::split(TokioIo::new(upgraded)))
}

async fn upgrade(
    client: &Client,
    operation: &'static str,
    path: &str,
    body: String,
) -> Result<hyper::upgrade::Upgraded, Error> {
    let wire: Pin<Box<dyn Wire>> = match client.host() {
        DockerHost::Unix(path) => {
            Box::pin(UnixStream::connect(path).await.map_err(|error| client.error(operation, error.into()))?)
        }
        DockerHost::Tcp(address) => {
            Box::pin(TcpStream::connect(address).await.map_err(|error| client.error(operation, error.into()))?)
        }
    };
    let broken = |error: hyper::Error| client.error(operation, error.into());
    let (mut sender, connection) = http1::handshake(TokioIo::new(wire)).await.map_err(broken)?;
    // Ends with the connection: when it is taken over, refused or dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a stream with the engine broke");
        }
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, "docker")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "tcp")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Error::Invalid(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return hyper::upgrade::on(response).await.map_err(broken);
    }
    let status = response.status().as_u16();
    let text = Limited::new(response.into_body(), REFUSAL_MAX)
        .collect()
        .await
        .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned())
        .unwrap_or_default();
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let message = json.as_ref().and_then(|json| json.get("message")?.as_str()).unwrap_or(&text);
    Err(Error::Refused { operation, status: Some(status), message: one_line(message) })
}
