//! A tap on a node's listener: it passes every byte on and keeps a copy, so that a test can say what went over HTTP.
//!
//! The node listens on 127.0.0.2 and the tap on 127.0.0.1, on one port: a browser takes every name under `.localhost` to be
//! 127.0.0.1, so neither it nor the node can tell.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

/// Where a tapped node listens.
pub const BEHIND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Tap {
    record: Arc<Mutex<Record>>,
    task: AbortHandle,
}

/// Both directions of every connection, in the order in which they were opened.
#[derive(Clone, Debug, Default)]
struct Record {
    connections: Vec<Connection>,
}

#[derive(Clone, Debug, Default)]
struct Connection {
    from_browser: Vec<u8>,
    from_node: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Direction {
    FromBrowser,
    FromNode,
}

impl Tap {
    /// Listens on 127.0.0.1 and passes on to the same port of [`BEHIND`].
    ///
    /// # Errors
    /// Where the port is taken.
    pub async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("bind the tap")?;
        let record = Arc::<Mutex<Record>>::default();
        let task = tokio::spawn(accept(listener, (BEHIND, port).into(), Arc::clone(&record))).abort_handle();
        Ok(Self { record, task })
    }

    /// The request lines so far, of every connection: `GET /healthz`, without the protocol's version.
    pub fn requests(&self) -> Vec<Request> {
        self.snapshot().connections.iter().flat_map(|connection| requests(&connection.from_browser)).collect()
    }

    /// Is this anywhere in what went over HTTP, in either direction?
    pub fn carried(&self, needle: &str) -> bool {
        let needle = needle.as_bytes();
        let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        self.snapshot().connections.iter().any(|it| holds(&it.from_browser) || holds(&it.from_node))
    }

    /// Bytes from the browsers, and from the node.
    pub fn bytes(&self) -> (usize, usize) {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.connections.iter().fold((0, 0), |(a, b), it| (a + it.from_browser.len(), b + it.from_node.len()))
    }

    fn snapshot(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub host: String,
}

/// Finds the heads of HTTP/1.1 requests in what a connection carried. A WebSocket's frames are masked and hold none.
fn requests(bytes: &[u8]) -> Vec<Request> {
    let text = String::from_utf8_lossy(bytes);
    let mut found = Vec::new();
    let mut lines = text.split("\r\n").peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_suffix(" HTTP/1.1") else { continue };
        let Some((before, path)) = rest.rsplit_once(' ') else { continue };
        // The end of a body may stand before the method, on the same line.
        let method: String =
            before.chars().rev().take_while(char::is_ascii_uppercase).collect::<Vec<_>>().into_iter().rev().collect();
        let mut host = String::new();
        while let Some(header) = lines.next_if(|line| !line.is_empty()) {
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("host")
            {
                value.trim().clone_into(&mut host);
            }
        }
        found.push(Request { method, path: path.to_owned(), host });
    }
    found
}

async fn accept(listener: TcpListener, node: SocketAddr, record: Arc<Mutex<Record>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((browser, _)) = listener.accept().await else { continue };
        let index = {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            record.connections.push(Connection::default());
            record.connections.len() - 1
        };
        connections.spawn(pass(browser, node, Arc::clone(&record), index));
        while connections.try_join_next().is_some() {}
    }
}

/// Until both directions have ended; a node that is not there closes the browser's connection, as it would itself.
async fn pass(browser: TcpStream, node: SocketAddr, record: Arc<Mutex<Record>>, index: usize) {
    let Ok(Ok(node)) = timeout(CONNECT_LIMIT, TcpStream::connect(node)).await else { return };
    let (from_browser, to_browser) = browser.into_split();
    let (from_node, to_node) = node.into_split();
    tokio::join!(
        copy(from_browser, to_node, &record, index, Direction::FromBrowser),
        copy(from_node, to_browser, &record, index, Direction::FromNode),
    );
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    record: &Mutex<Record>,
    index: usize,
    direction: Direction,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = &mut record.connections[index];
            match direction {
                Direction::FromBrowser => connection.from_browser.extend_from_slice(&buffer[..count]),
                Direction::FromNode => connection.from_node.extend_from_slice(&buffer[..count]),
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_between_bodies() {
        let bytes = b"POST /api/v1/x HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 2\r\n\r\n{}GET /sw.js HTTP/1.1\r\nhost: b.localhost\r\n\r\n";
        let request = |method: &str, path: &str, host: &str| Request {
            method: method.into(),
            path: path.into(),
            host: host.into(),
        };
        assert_eq!(
            requests(bytes),
            [request("POST", "/api/v1/x", "a.localhost"), request("GET", "/sw.js", "b.localhost")]
        );
    }
}
