//! The tunnel, driven as a browser drives it, against a small service.

mod http;
mod page;
mod rules;
pub(crate) mod service;
mod websocket;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use flotilla_api::{ApiError, ErrorCode, Grant, ServiceName, TokenId, UnixMillis, rest::Principal};
use futures::future::BoxFuture;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

pub(crate) use self::page::{Answer, Page, get};
use super::{Backend, Backends, Channel, ChannelClosed, Config, Hold, Session, Site, Snapshot, Tunnel};
use crate::{mesh::Client, peers};

/// What a test waits for at most; on a loaded machine, and never reached otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Messages that a channel holds, as a data channel holds a few.
const PIPE: usize = 4;

/// An end of a channel in memory.
#[derive(Debug)]
pub(crate) struct Pipe {
    out: AsyncMutex<Option<mpsc::Sender<Bytes>>>,
    inn: AsyncMutex<mpsc::Receiver<Bytes>>,
}

pub(crate) fn pipe() -> (Arc<Pipe>, Arc<Pipe>) {
    let (a_out, b_in) = mpsc::channel(PIPE);
    let (b_out, a_in) = mpsc::channel(PIPE);
    let end = |out, inn| Arc::new(Pipe { out: AsyncMutex::new(Some(out)), inn: AsyncMutex::new(inn) });
    (end(a_out, a_in), end(b_out, b_in))
}

#[async_trait]
impl Channel for Pipe {
    async fn send(&self, message: BytesMut) -> Result<(), ChannelClosed> {
        let out = self.out.lock().await.clone().ok_or(ChannelClosed)?;
        out.send(message.freeze()).await.map_err(|_| ChannelClosed)
    }

    async fn recv(&self) -> Option<Bytes> {
        self.inn.lock().await.recv().await
    }

    async fn flushed(&self) {}

    async fn close(&self) {
        self.out.lock().await.take();
    }
}

/// Services by name, at addresses that a test may change.
#[derive(Default)]
pub(crate) struct Services {
    addresses: Mutex<HashMap<ServiceName, Result<SocketAddr, ApiError>>>,
}

impl Services {
    pub(crate) fn set(&self, service: &str, address: Result<SocketAddr, ApiError>) {
        self.addresses.lock().unwrap().insert(service.parse().unwrap(), address);
    }
}

impl Services {
    fn address(&self, service: &ServiceName) -> Result<SocketAddr, ApiError> {
        let unknown = || ApiError::new(ErrorCode::ServiceNotFound, format!("there is no service `{service}`"));
        self.addresses.lock().unwrap().get(service).cloned().unwrap_or_else(|| Err(unknown()))
    }

    fn backend(&self, service: &ServiceName) -> Result<Backend, ApiError> {
        let address = self.address(service)?;
        let container = address.to_string().replace(['.', ':'], "-");
        Ok(Backend { service: service.clone(), machine: None, container, address })
    }
}

impl Backends for Services {
    fn check(&self, service: &ServiceName) -> Result<(), ApiError> {
        match self.address(service) {
            Err(error) if error.code == ErrorCode::ServiceNotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn choose<'a>(
        &'a self,
        service: &'a ServiceName,
        _: Option<&'a Backend>,
    ) -> BoxFuture<'a, Result<(Backend, Hold), ApiError>> {
        let backend = self.backend(service);
        Box::pin(async move { Ok((backend?, Hold::none())) })
    }

    fn connect(&self, backend: &Backend) -> BoxFuture<'static, std::io::Result<peers::Stream>> {
        let address = backend.address;
        Box::pin(async move {
            let stream: peers::Stream = Box::new(super::connect(address).await?);
            Ok(stream)
        })
    }

    /// When the test has set another address, or none.
    fn lost<'a>(&'a self, backend: &'a Backend) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            while self.backend(&backend.service).as_ref() == Ok(backend) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }
}

/// A node with a service `notes`, and the session of one person.
pub(crate) struct World {
    pub(crate) services: Arc<Services>,
    pub(crate) tunnel: Tunnel,
    pub(crate) session: Arc<Session>,
    _directory: tempfile::TempDir,
}

pub(crate) fn principal(grant: Grant) -> Principal {
    Principal { token: TokenId("t-1".to_owned()), name: "ada".to_owned(), grant, expires_at: UnixMillis(u64::MAX) }
}

pub(crate) fn client() -> Client {
    Client {
        url: "http://app.home.localhost:7070/signal".to_owned(),
        address: [127, 0, 0, 1].into(),
        user_agent: Some("Browser/1".to_owned()),
        accept_language: Some("de".to_owned()),
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let world = Self::with_grant(Grant::admin());
        world.services.set("notes", Ok(service::start().await));
        world
    }

    pub(crate) fn with_grant(grant: Grant) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let services = Arc::new(Services::default());
        let site = Site { scheme: "http", domain: "home.localhost:7070".to_owned() };
        let tunnel =
            Tunnel::new(Config::new(site, directory.path().to_owned()), Arc::clone(&services) as Arc<dyn Backends>);
        let session = tunnel.session(principal(grant), client());
        Self { services, tunnel, session, _directory: directory }
    }

    /// A channel of this label, served; the browser's end of it.
    pub(crate) fn channel(&self, label: &str) -> Arc<Pipe> {
        Self::channel_of(&self.session, label)
    }

    fn channel_of(session: &Arc<Session>, label: &str) -> Arc<Pipe> {
        let (browser, node) = pipe();
        let (session, label) = (Arc::clone(session), label.to_owned());
        tokio::spawn(async move { session.serve(node, &label).await });
        browser
    }

    /// A page of `notes` with both lanes.
    pub(crate) async fn page(&self) -> Page {
        Page::new(self.channel("http/interactive/notes"), Some(self.channel("http/bulk/notes"))).await
    }

    /// The same page in another tab, which has a session of its own.
    pub(crate) async fn page_in_another_tab(&self) -> Page {
        let session = self.tunnel.session(principal(Grant::admin()), client());
        let channel = |label| Self::channel_of(&session, label);
        Page::new(channel("http/interactive/notes"), Some(channel("http/bulk/notes"))).await
    }

    pub(crate) fn counted(&self) -> Snapshot {
        self.tunnel.counters().snapshot()
    }
}

/// Waits until `holds`, and fails after [`PATIENCE`].
pub(crate) async fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never came: {what}"));
}
