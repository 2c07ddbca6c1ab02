//! Nodes in this process, over loopback and real WebRTC. Each runs on threads of its own, so that it can die without a word.

mod calls;
mod join;
mod links;
mod signals;
mod streams;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use flotilla_api::{ApiError, ErrorCode, NodeId, rest::LinkState};
use flotilla_core::State;
use futures::{FutureExt, future::BoxFuture};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::{rt::TokioIo, server::conn::auto::upgrade::downcast};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
    time::timeout,
};

use super::*;
use crate::{
    identity,
    tunnel::tests::{PATIENCE, wait_for},
};

/// What a node is made of, and is made of again when it comes back.
#[derive(Clone)]
struct Plan {
    seed: u8,
    config: NodeConfig,
    gate: Option<Gate>,
    /// Its listener takes TLS links.
    takes_tls: bool,
}

/// Lets signalling in only when it says so.
type Gate = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

impl Plan {
    fn new(seed: u8) -> Self {
        let addresses = Addresses::Only(vec![[127, 0, 0, 1].into()]);
        let config = NodeConfig::new(SigningKey::from_bytes(&[seed; 32]), Certificate::generate().unwrap(), addresses);
        Self { seed, config, gate: None, takes_tls: false }
    }

    fn id(&self) -> NodeId {
        identity::node_id(&self.config.key.verifying_key())
    }

    async fn start(&self) -> Node {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (mut plan, handler) = (self.clone(), Arc::new(Echo::default()));
        let port = Port::new(0);
        plan.config.port = Some(port.clone());
        let (state, members) = watch::channel(Arc::new(State::default()));
        let echo: Arc<dyn Handler> = Arc::clone(&handler) as _;
        let started = runtime.spawn(async move {
            let mesh = NodeMesh::new(plan.config.clone()).unwrap();
            mesh.start(members, echo);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            tokio::spawn(serve(listener, Arc::clone(&mesh), plan.gate, plan.takes_tls));
            (mesh, address)
        });
        let (mesh, address) = started.await.unwrap();
        Node { plan: self.clone(), mesh, address, port, handler, state, runtime: Some(runtime) }
    }
}

async fn serve(listener: TcpListener, mesh: Arc<NodeMesh>, gate: Option<Gate>, takes_tls: bool) {
    let taking = Arc::clone(&mesh);
    let answer = move |request: Request| {
        let (mesh, gate) = (Arc::clone(&mesh), gate.clone());
        async move {
            if let Some(gate) = gate {
                gate().await;
            }
            let body = to_bytes(request.into_body(), ENVELOPE_MAX).await.unwrap();
            match mesh.signal(&body).await {
                Ok(answer) => answer.into_response(),
                Err(error) => (http::StatusCode::BAD_REQUEST, serde_json::to_vec(&error).unwrap()).into_response(),
            }
        }
    };
    let take = move |mut request: Request| async move {
        let attempt = request.headers()[BULK_ATTEMPT].to_str().unwrap().to_owned();
        match taking.arrival(&attempt) {
            Ok(arrival) => {
                let upgrade = request.extensions_mut().remove::<OnUpgrade>().unwrap();
                let tcp = |upgraded: Upgraded| downcast::<TokioIo<TcpStream>>(upgraded).unwrap().io.into_inner();
                arrival.take(async move { upgrade.await.ok().map(tcp) });
                (http::StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", BULK_PROTOCOL)])
                    .into_response()
            }
            Err(_) => http::StatusCode::NOT_FOUND.into_response(),
        }
    };
    let mut router = Router::new().route(SIGNAL_PATH, post(answer));
    if takes_tls {
        router = router.route(BULK_PATH, get(take));
    }
    axum::serve(listener, router).await.unwrap();
}

struct Node {
    plan: Plan,
    mesh: Arc<NodeMesh>,
    address: String,
    port: Port,
    handler: Arc<Echo>,
    state: watch::Sender<Arc<State>>,
    runtime: Option<Runtime>,
}

impl Node {
    fn id(&self) -> NodeId {
        self.plan.id()
    }

    /// Tells this node who is a member, and where.
    fn knows(&self, members: &[(&Node, &str)]) {
        let machines = members.iter().map(|(node, address)| machine(&node.plan, address)).collect();
        self.state.send_replace(Arc::new(State { machines, ..State::default() }));
    }

    fn sees(&self, other: &Node) -> bool {
        self.mesh.connected().borrow().contains(&other.id())
    }

    fn link(&self, other: &Node) -> LinkView {
        self.mesh.links().into_iter().find(|link| link.peer == other.id()).expect("a link")
    }

    async fn call(&self, to: &Node, method: Method, body: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.mesh.call(&to.id(), method, body.into(), PATIENCE).await
    }

    async fn stream(&self, to: &Node, label: &str) -> Stream {
        timeout(PATIENCE, self.mesh.stream(&to.id(), label)).await.unwrap().unwrap()
    }

    /// Dies without a word.
    fn die(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Ends in order.
    async fn stop(mut self) {
        let runtime = self.runtime.take().unwrap();
        let mesh = Arc::clone(&self.mesh);
        runtime.spawn(async move { mesh.stop().await }).await.unwrap();
        runtime.shutdown_background();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn machine(plan: &Plan, address: &str) -> (NodeId, flotilla_core::state::Machine) {
    let key =
        base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, plan.config.key.verifying_key().as_bytes());
    let machine = serde_json::json!({
        "id": plan.id(), "name": format!("m-{}", plan.seed), "public_key": key, "facts": { "addresses": [address] },
    });
    (plan.id(), serde_json::from_value(machine).unwrap())
}

/// Tells all of all.
fn introduce(nodes: &[&Node]) {
    let members: Vec<_> = nodes.iter().map(|node| (*node, node.address.as_str())).collect();
    for node in nodes {
        node.knows(&members);
    }
}

async fn all_linked(nodes: &[&Node]) {
    wait_for("all are linked", || {
        nodes.iter().all(|one| nodes.iter().all(|other| one.id() == other.id() || one.sees(other)))
    })
    .await;
}

/// Nodes that are linked with each other.
async fn linked<const N: usize>() -> [Node; N] {
    let mut nodes = Vec::new();
    for seed in 1..=N as u8 {
        nodes.push(Plan::new(seed).start().await);
    }
    let all: Vec<_> = nodes.iter().collect();
    introduce(&all);
    all_linked(&all).await;
    nodes.try_into().unwrap_or_else(|_| unreachable!())
}

/// Says back what it hears, and more, by method.
#[derive(Default)]
struct Echo {
    /// Calls that are being answered and never will be.
    waiting: Arc<AtomicUsize>,
    heard: Mutex<BTreeMap<NodeId, usize>>,
    streams: AtomicUsize,
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Handler for Echo {
    fn call(&self, from: NodeId, method: Method, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        *self.heard.lock().unwrap().entry(from).or_default() += 1;
        match method {
            // Never answers.
            Method::Propose => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let waiting = Waiting(Arc::clone(&self.waiting));
                async move {
                    std::future::pending::<()>().await;
                    drop(waiting);
                    Ok(Bytes::new())
                }
                .boxed()
            }
            Method::Renew => async { Err(ApiError::new(ErrorCode::Conflict, "not now")) }.boxed(),
            Method::Vote => panic!("as a test wants it"),
            _ => async { Ok(body) }.boxed(),
        }
    }

    fn stranger(&self, public_key: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        async move { Ok(Bytes::from(format!("{public_key} {}", String::from_utf8_lossy(&body)))) }.boxed()
    }

    fn stream(&self, _: NodeId, label: String, mut stream: Stream) -> BoxFuture<'static, ()> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        async move {
            match label.as_str() {
                // Never reads.
                "deaf" => std::future::pending().await,
                "drop" => {}
                // The number of bytes, once it has all.
                "count" => {
                    let mut buffer = vec![0; 256 * 1024];
                    let mut bytes = 0_u64;
                    loop {
                        match stream.read(&mut buffer).await {
                            Ok(0) => break,
                            Ok(read) => bytes += read as u64,
                            Err(_) => return,
                        }
                    }
                    stream.write_all(&bytes.to_be_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
                _ => {
                    let (mut read, mut write) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                }
            }
        }
        .boxed()
    }
}

/// A node that is given up after this time is noticed late.
const NOTICED: Duration = Duration::from_secs(5);

/// How long something takes.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let begun = std::time::Instant::now();
    (future.await, begun.elapsed())
}

fn ids<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeSet<NodeId> {
    nodes.into_iter().map(Node::id).collect()
}
