//! Sessions over real WebRTC on loopback: our own endpoint plays the browser.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use flotilla_api::{
    ApiError, ErrorCode, Grant,
    frame::Open,
    rest::Principal,
    signal::{CANDIDATES_MAX, Candidate, FromBrowser, FromNode, SIGNAL_VERSION},
};
use futures::{FutureExt, future::BoxFuture};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Addresses, Admission, Certificate, Config, Link, LinkState, Mesh, MeshChannel, Port, Signals, link::Peer};
use crate::tunnel::{
    Channel,
    tests::{PATIENCE, Page, World, client, get, principal, wait_for},
};

/// Knows the tokens `good` and `other`; `good` can be revoked.
#[derive(Default)]
struct Gate {
    revoked: CancellationToken,
    renewed: Mutex<u32>,
}

impl Admission for Gate {
    fn verify(&self, token: &str, _proof: Option<&str>, url: &str) -> Result<Principal, ApiError> {
        assert_eq!(url, client().url);
        let mut known = principal(Grant::admin());
        match token {
            "good" => Ok(known),
            "other" => {
                known.token.0 = "t-2".to_owned();
                Ok(known)
            }
            _ => Err(ApiError::new(ErrorCode::TokenInvalid, "this is no token of this cluster")),
        }
    }

    fn learns<'a>(&'a self, _: &'a str) -> BoxFuture<'a, bool> {
        async { false }.boxed()
    }

    fn refused(&self, _: std::net::IpAddr) -> Result<(), ApiError> {
        Ok(())
    }

    fn ended(&self, _principal: &Principal) -> BoxFuture<'static, ApiError> {
        *self.renewed.lock().unwrap() += 1;
        let revoked = self.revoked.clone();
        async move {
            revoked.cancelled().await;
            ApiError::new(ErrorCode::TokenRevoked, "your token was revoked")
        }
        .boxed()
    }
}

struct Node {
    _world: World,
    gate: Arc<Gate>,
    mesh: Mesh,
    certificate: Certificate,
}

fn loopback() -> Addresses {
    Addresses::Only(vec![[127, 0, 0, 1].into()])
}

impl Node {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let (world, gate) = (World::new().await, Arc::new(Gate::default()));
        let certificate = Certificate::generate().unwrap();
        let mut config = Config { port: Some(Port::new(0)), ..Config::new(loopback(), certificate.clone()) };
        change(&mut config);
        let mesh = Mesh::new(config, Arc::clone(&gate) as Arc<dyn Admission>, world.tunnel.clone());
        Self { _world: world, gate, mesh, certificate }
    }

    fn socket(&self) -> Socket {
        let (to_node, incoming) = mpsc::channel(64);
        let (outgoing, from_node) = mpsc::channel(64);
        let mesh = self.mesh.clone();
        tokio::spawn(async move { mesh.serve(Signals { incoming, outgoing }, client()).await });
        Socket { to_node, from_node }
    }

    async fn browser(&self) -> Browser {
        let link = Link::new(Peer::Node, &loopback(), &self.certificate).await.unwrap();
        let interactive = link.open("http/interactive/notes").await.unwrap();
        let bulk = link.open("http/bulk/notes").await.unwrap();
        let mut socket = self.socket();
        socket.say(connect("good", &link.offer(false).await.unwrap())).await;
        let session = socket.answer(&link).await;
        link.connected(PATIENCE).await.unwrap();
        for channel in [&interactive, &bulk] {
            channel.opened().await.unwrap();
        }
        Browser { link, socket, session, interactive: Arc::new(interactive), bulk: Arc::new(bulk) }
    }
}

struct Socket {
    to_node: mpsc::Sender<Result<FromBrowser, ApiError>>,
    from_node: mpsc::Receiver<FromNode>,
}

impl Socket {
    async fn say(&self, message: FromBrowser) {
        self.to_node.send(Ok(message)).await.unwrap();
    }

    async fn hear(&mut self) -> FromNode {
        timeout(PATIENCE, self.from_node.recv()).await.expect("a message in time").expect("the socket is open")
    }

    async fn refused(&mut self) -> ErrorCode {
        match self.hear().await {
            FromNode::Error { error } => error.code,
            other => panic!("{other:?} instead of an error"),
        }
    }

    /// Takes an answer; returns the session's id.
    async fn answer(&mut self, link: &Link) -> String {
        match self.hear().await {
            FromNode::Answer { version, answer, session } => {
                assert_eq!(version, SIGNAL_VERSION);
                link.answered(answer).await.unwrap();
                session
            }
            other => panic!("{other:?} instead of an answer"),
        }
    }
}

struct Browser {
    link: Link,
    socket: Socket,
    session: String,
    interactive: Arc<MeshChannel>,
    bulk: Arc<MeshChannel>,
}

impl Browser {
    async fn page(&self) -> Page {
        let (interactive, bulk) = (Arc::clone(&self.interactive), Arc::clone(&self.bulk));
        Page::new(interactive as Arc<dyn Channel>, Some(bulk as Arc<dyn Channel>)).await
    }
}

fn connect(token: &str, offer: &str) -> FromBrowser {
    FromBrowser::Connect { version: SIGNAL_VERSION, token: token.to_owned(), proof: None, offer: offer.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_uses_a_service_over_webrtc() {
    let node = Node::new().await;
    let browser = node.browser().await;
    let page = browser.page().await;
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");

    let (head, body) = page.fetch(&get("/zeros?bytes=50000000")).await;
    assert!(head.status == 200 && body.len() == 50_000_000);

    let data: Vec<u8> = (0..50_000_000_u32).map(|n| (n % 249) as u8).collect();
    let length = ("content-length".to_owned(), data.len().to_string());
    let open = Open { method: "POST".to_owned(), headers: vec![length], ..get("/hash") };
    let mut upload = page.upload(&open).await;
    upload.data(&data).await;
    upload.end().await;
    upload.head().await;
    let (_, bytes, digest): (Option<String>, u64, String) = serde_json::from_slice(&upload.body().await).unwrap();
    let expected: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((bytes, digest), (50_000_000, expected));

    let mut events = page.open(&get("/events")).await;
    events.head().await;
    assert_eq!(&events.next().await.payload[..], b"data: first\n\n");
    events.abort().await;

    let mut request = get("/range");
    request.headers = vec![("range".to_owned(), "bytes=2-5".to_owned())];
    let (head, body) = page.fetch(&request).await;
    assert_eq!((head.status, &body[..]), (206, &b"2345"[..]));
    assert_eq!(page.fetch(&get("/redirect")).await.0.status, 303);
    assert_eq!(page.fetch(&get("/login")).await.0.cookies.as_deref(), Some("theme=dark"));

    let socket = browser.link.open("ws/notes").await.unwrap();
    socket.opened().await.unwrap();
    let socket_page = Page::new(Arc::new(socket) as Arc<dyn Channel>, None).await;
    let mut websocket = socket_page.open(&get("/ws")).await;
    assert_eq!(websocket.head().await.status, 101);
    websocket.frame_data(b"over and out", flotilla_api::frame::flags::TEXT).await;
    assert_eq!(&websocket.next().await.payload[..], b"over and out");

    assert_eq!(node.mesh.sessions().len(), 1);
    browser.socket.say(FromBrowser::Bye).await;
    wait_for("the session is over", || node.mesh.sessions().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_ends_the_session() {
    let node = Node::new().await;
    let mut browser = node.browser().await;
    let page = browser.page().await;
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
    node.gate.revoked.cancel();
    let told = page.own().await.unwrap();
    let error: ApiError = serde_json::from_slice(&told.payload).unwrap();
    assert_eq!(error.code, ErrorCode::TokenRevoked);
    let FromNode::Bye { error: Some(error) } = browser.socket.hear().await else { panic!("no goodbye") };
    assert_eq!(error.code, ErrorCode::TokenRevoked);
    wait_for("the session is over", || node.mesh.sessions().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_its_socket_and_takes_another() {
    let node = Node::new().await;
    let mut browser = node.browser().await;
    let page = browser.page().await;
    browser.socket = node.socket();
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
    let resume = |token: &str, session: &str| FromBrowser::Resume {
        version: SIGNAL_VERSION,
        session: session.to_owned(),
        token: token.to_owned(),
        proof: None,
    };
    for (token, session) in [("other", browser.session.as_str()), ("good", "unknown")] {
        browser.socket.say(resume(token, session)).await;
        assert_eq!(browser.socket.refused().await, ErrorCode::ConnectionFailed);
    }
    browser.socket.say(resume("good", &browser.session)).await;
    assert_eq!(browser.socket.hear().await, FromNode::Resumed);
    browser.socket.say(FromBrowser::Renew { token: "good".to_owned(), proof: None }).await;
    assert_eq!(browser.socket.hear().await, FromNode::Renewed);
    browser.socket.say(FromBrowser::Renew { token: "other".to_owned(), proof: None }).await;
    assert_eq!(browser.socket.refused().await, ErrorCode::TokenInvalid);
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ice_restart_keeps_the_channels() {
    let node = Node::new().await;
    let mut browser = node.browser().await;
    let page = browser.page().await;
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
    for _ in 0..2 {
        let offer = browser.link.offer(true).await.unwrap();
        browser.socket.say(FromBrowser::Restart { offer }).await;
        browser.socket.answer(&browser.link).await;
        assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
    }
    assert_eq!(*browser.link.state().borrow(), LinkState::Connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_connection_is_refused_and_changes_nothing() {
    let node = Node::new().await;
    let link = Link::new(Peer::Node, &loopback(), &node.certificate).await.unwrap();
    let _channel = link.open("http/interactive/notes").await.unwrap();
    let offer = link.offer(false).await.unwrap();
    let FromBrowser::Connect { token, proof, offer, .. } = connect("good", &offer) else { unreachable!() };
    let newer = FromBrowser::Connect { version: 99, token, proof, offer: offer.clone() };
    let mut socket = node.socket();
    for (message, code) in [
        (newer, ErrorCode::SignalVersion),
        (connect("forged", &offer), ErrorCode::TokenInvalid),
        (connect("good", "v=0\r\nnonsense"), ErrorCode::SignalInvalid),
        (FromBrowser::Bye, ErrorCode::SignalInvalid),
    ] {
        socket.say(message).await;
        assert_eq!(socket.refused().await, code);
        assert!(node.mesh.sessions().is_empty());
    }
    socket.say(connect("good", &offer)).await;
    socket.answer(&link).await;
    link.connected(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_limited_for_the_node_and_for_each_person() {
    let node = Node::with(|config| {
        config.sessions_max = 3;
        config.sessions_per_principal_max = 2;
    })
    .await;
    let mut links = Vec::new();
    for (token, fits) in [("good", true), ("good", true), ("good", false), ("other", true), ("other", false)] {
        let link = Link::new(Peer::Node, &loopback(), &node.certificate).await.unwrap();
        let channel = link.open("http/interactive/notes").await.unwrap();
        let mut socket = node.socket();
        socket.say(connect(token, &link.offer(false).await.unwrap())).await;
        if fits {
            socket.answer(&link).await;
        } else {
            assert_eq!(socket.refused().await, ErrorCode::RateLimited);
        }
        links.push((link, channel, socket));
    }
    assert_eq!(node.mesh.sessions().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_adds_only_so_many_candidates() {
    let node = Node::new().await;
    let mut browser = node.browser().await;
    let candidate = Candidate {
        candidate: "candidate:1 1 udp 1 9d9a4f8a.local 9 typ host".to_owned(),
        sdp_mid: Some("0".to_owned()),
        sdp_m_line_index: Some(0),
        username_fragment: None,
    };
    for _ in 0..=CANDIDATES_MAX {
        browser.socket.say(FromBrowser::Candidate { candidate: Some(candidate.clone()) }).await;
    }
    assert_eq!(browser.socket.refused().await, ErrorCode::SignalInvalid);
    assert_eq!(browser.page().await.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_of_a_browser_that_vanished_is_freed() {
    let node = Node::with(|config| config.grace = Duration::from_millis(100)).await;
    let browser = node.browser().await;
    browser.link.close().await;
    wait_for("the session is over", || node.mesh.sessions().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_says_goodbye() {
    let node = Node::new().await;
    let mut browser = node.browser().await;
    node.mesh.stop().await;
    assert!(matches!(browser.socket.hear().await, FromNode::Bye { error: Some(_) }));
    assert!(node.mesh.sessions().is_empty());
    let mut late = node.socket();
    late.say(connect("good", "")).await;
    assert_eq!(late.refused().await, ErrorCode::ServiceUnavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_connect_and_feel_back_pressure() {
    let certificate = Certificate::generate().unwrap();
    let offered = super::offer(&loopback(), &certificate, "bulk").await.unwrap();
    let (theirs, answer) = super::answer(&loopback(), &certificate, offered.description.clone()).await.unwrap();
    let (ours, sending) = offered.answered(answer).await.unwrap();
    sending.opened().await.unwrap();
    let receiving = theirs.accept().await.unwrap();
    assert_eq!(receiving.label().await.unwrap(), "bulk");
    // Nobody reads: the sender must come to wait instead of filling memory.
    let message = || bytes::BytesMut::from(&[5_u8; 64 * 1024][..]);
    let mut sent = 0_u64;
    while timeout(Duration::from_millis(500), sending.send(message())).await.is_ok() {
        sent += 1;
        assert!(sent < 4096, "256 MiB were taken for a reader that does not read");
    }
    for _ in 0..sent {
        assert_eq!(timeout(PATIENCE, receiving.recv()).await.unwrap().unwrap().len(), 64 * 1024);
    }
    ours.close().await;
    let mut state = theirs.state();
    let ended =
        state.wait_for(|state| matches!(state, LinkState::Closed | LinkState::Disconnected | LinkState::Failed));
    timeout(PATIENCE, ended).await.unwrap().unwrap();
}
