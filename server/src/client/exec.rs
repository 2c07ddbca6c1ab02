//! A command in a running instance, over a WebSocket.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_api::{
    ServiceName,
    rest::{ExecControl, ExecRequest},
};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use reqwest::Method;
use tokio_tungstenite::tungstenite::Message;

use super::{
    Client, Error,
    socket::{Socket, why_broken},
};

/// How long the node may take to read what was typed. Longer, and the connection is taken for dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest message in either direction; the node cuts output far below this. Bytes.
const MESSAGE_MAX: usize = 1024 * 1024;

/// First byte of a binary message: which stream the rest is of.
const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR_OUTPUT: u8 = 2;

/// A command that runs. Split it to read and write at the same time.
#[derive(Debug)]
pub struct Exec {
    pub input: ExecInput,
    pub output: ExecOutput,
}

#[derive(Debug)]
pub struct ExecInput(SplitSink<Socket, Message>);

#[derive(Debug)]
pub struct ExecOutput(SplitStream<Socket>);

/// What a command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    Output(Bytes),
    ErrorOutput(Bytes),
    /// Last.
    Exit(i64),
}

impl Client {
    /// Starts `request.command` in the service's (first) instance.
    pub async fn exec(&self, service: &ServiceName, request: &ExecRequest) -> Result<Exec, Error> {
        let asked = self.request(Method::GET, &format!("services/{service}/exec"));
        let (sink, stream) = self.upgrade(asked, MESSAGE_MAX).await?.split();
        let mut input = ExecInput(sink);
        input.send(Message::text(json(request)?)).await?;
        Ok(Exec { input, output: ExecOutput(stream) })
    }
}

impl ExecInput {
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(MESSAGE_MAX / 2) {
            let mut message = BytesMut::with_capacity(1 + piece.len());
            message.put_u8(INPUT);
            message.put_slice(piece);
            self.send(Message::binary(message.freeze())).await?;
        }
        Ok(())
    }

    pub async fn resize(&mut self, rows: u16, columns: u16) -> Result<(), Error> {
        self.send(Message::text(json(&ExecControl::Resize { rows, columns })?)).await
    }

    /// There is no more input.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.send(Message::text(json(&ExecControl::Eof)?)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Error> {
        tokio::time::timeout(WRITE_TIMEOUT, self.0.send(message))
            .await
            .map_err(|_| Error::Broken { doing: "sending input", why: "the node does not read it".into() })?
            .map_err(|error| broken(&error))
    }
}

impl ExecOutput {
    /// The next event; the last is [`ExecEvent::Exit`].
    ///
    /// # Errors
    /// Also when the connection ends before the command does.
    pub async fn next(&mut self) -> Result<ExecEvent, Error> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(mut bytes))) if !bytes.is_empty() => match bytes.split_to(1)[0] {
                    OUTPUT => return Ok(ExecEvent::Output(bytes)),
                    ERROR_OUTPUT => return Ok(ExecEvent::ErrorOutput(bytes)),
                    _ => {}
                },
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(ExecControl::Exit { code }) => return Ok(ExecEvent::Exit(code)),
                    Ok(ExecControl::Error { error }) => return Err(Error::Api(error)),
                    Ok(_) => {}
                    Err(error) => return Err(Error::Answer { why: error.to_string() }),
                },
                Some(Ok(Message::Close(_))) | None => {
                    let why = "the node ended the connection before the command ended".into();
                    return Err(Error::Broken { doing: "reading the command's output", why });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(&error)),
            }
        }
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Answer { why: error.to_string() })
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Broken { doing: "running the command", why: why_broken(error) }
}
