//! The services that the demo deploys, inside this same program: its image can be made of the program alone.

mod assets;
mod board;
mod files;
mod hello;
mod journal;
mod live;
mod page;
mod range;
mod routes;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use axum::Router;
use clap::{Args, Subcommand};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use board::Board;
use routes::App;

/// How long a health check waits for the answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long requests under way may take to end when the container is stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub enum Sample {
    /// A shared notes board
    Notes(Notes),
    /// Says which instance answers, on which machine
    Hello {
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Ask a sample on this host whether it serves
    Check {
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}

#[derive(Args, Debug)]
pub struct Notes {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where notes and files are kept
    #[arg(long, value_name = "DIR", default_value = "/data")]
    data: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not open the notes in `{}`: {source}", .data.display())]
    Open { data: PathBuf, source: io::Error },
    #[error("could not listen on port {port}: {source}")]
    Listen { port: u16, source: io::Error },
    #[error("could not wait for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("the sample on port {port} does not serve: {why}")]
    NotServing { port: u16, why: String },
}

pub async fn run(sample: Sample) -> Result<(), Error> {
    match sample {
        Sample::Notes(Notes { port, data }) => {
            let board = Board::open(&data).map_err(|source| Error::Open { data, source })?;
            let stop = CancellationToken::new();
            let app = App::new(board, stop.clone());
            let begun = format!("notes listens on port {port} with {} notes", app.board.notes().len());
            serve(port, routes::router(app), &begun, stop).await
        }
        Sample::Hello { port } => {
            let begun = format!("hello listens on port {port}");
            serve(port, hello::router(hello::Who::am_i()), &begun, CancellationToken::new()).await
        }
        Sample::Check { port } => check(port).map_err(|why| Error::NotServing { port, why: why.to_string() }),
    }
}

async fn serve(port: u16, router: Router, begun: &str, stop: CancellationToken) -> Result<(), Error> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { port, source })?;
    // The first process of a container gets no signal that it has not asked for.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    say(begun);

    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let mut serving = tokio::spawn(serving.into_future());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = &mut serving => {}
    }
    stop.cancel();
    // Whoever still downloads after that long comes back with a range.
    let _ = tokio::time::timeout(STOP_TIMEOUT, serving).await;
    say("stops");
    Ok(())
}

/// To the container's log.
fn say(text: &str) {
    // A log that nobody reads must not stop the service.
    let _ = writeln!(io::stdout(), "{text}");
}

/// By hand and without a runtime: the engine calls it every few seconds.
fn check(port: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), CHECK_TIMEOUT)?;
    stream.set_read_timeout(Some(CHECK_TIMEOUT))?;
    stream.set_write_timeout(Some(CHECK_TIMEOUT))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if head == *b"HTTP/1.1 200" {
        return Ok(());
    }
    Err(io::Error::other(format!("it answered `{}`", String::from_utf8_lossy(&head).escape_debug())))
}
