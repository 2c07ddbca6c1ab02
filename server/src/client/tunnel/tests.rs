//! Against the node's own signalling, sessions and tunnel over a real socket and real WebRTC; the service is a small one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::WebSocketUpgrade, routing::get};
use flotilla_api::{ApiError, ErrorCode, Grant, ServiceName, rest::Principal};
use futures::{FutureExt, future::BoxFuture};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::*;
use crate::{
    mesh::{Admission, Mesh},
    tunnel::tests::{PATIENCE, World, client, principal, wait_for},
};

/// Knows one token, which can be revoked.
#[derive(Default)]
struct Gate {
    revoked: CancellationToken,
}

impl Admission for Gate {
    fn verify(&self, token: &str, proof: Option<&str>, _url: &str) -> Result<Principal, ApiError> {
        match (token, proof) {
            ("good", None) => Ok(principal(Grant::admin())),
            _ => Err(ApiError::new(ErrorCode::TokenInvalid, "this is no token of this cluster")),
        }
    }

    fn learns<'a>(&'a self, _: &'a str) -> BoxFuture<'a, bool> {
        async { false }.boxed()
    }

    fn refused(&self, _: IpAddr) -> Result<(), ApiError> {
        Ok(())
    }

    fn ended(&self, _: &Principal) -> BoxFuture<'static, ApiError> {
        let revoked = self.revoked.clone();
        async move {
            revoked.cancelled().await;
            ApiError::new(ErrorCode::TokenRevoked, "your token was revoked")
        }
        .boxed()
    }
}

struct Node {
    world: World,
    gate: Arc<Gate>,
    mesh: Mesh,
    api: Url,
    listening: JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        let (world, gate) = (World::new().await, Arc::new(Gate::default()));
        let addresses = Addresses::Only(vec![Ipv4Addr::LOCALHOST.into()]);
        let config = mesh::Config::new(addresses, Certificate::generate().unwrap());
        let mesh = Mesh::new(config, Arc::clone(&gate) as Arc<dyn Admission>, world.tunnel.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let sessions = mesh.clone();
        let signal = get(move |upgrade: WebSocketUpgrade| async move {
            upgrade.on_upgrade(async move |socket| sessions.signal(socket, client()).await)
        });
        let router = Router::new().route("/signal", signal);
        let listening = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { world, gate, mesh, api: format!("http://{address}").parse().unwrap(), listening }
    }

    async fn client(&self) -> TunnelClient {
        TunnelClient::connect(&self.api, "good").await.unwrap()
    }
}

fn notes() -> ServiceName {
    "notes".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_answer_and_the_session_ends_with_the_client() {
    let node = Node::start().await;
    let client = node.client().await;
    let answer = client.get(&notes(), "/hello").await.unwrap();
    assert!(answer.is_success(), "{answer:?}");
    assert_eq!(&answer.body[..], b"hello");
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(client.get(&notes(), "/redirect").await.unwrap().status, 303);
    assert_eq!(client.get(&notes(), "/nothing").await.unwrap().status, 404);
    assert_eq!(node.mesh.sessions().len(), 1);
    client.close().await;
    wait_for("the session is over", || node.mesh.sessions().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_longer_than_its_credit_comes_whole_beside_others() {
    const LEN: usize = 3 * 1024 * 1024;
    let node = Node::start().await;
    let client = node.client().await;
    let (long, service) = (format!("/zeros?bytes={LEN}"), notes());
    let asked = (0..8).map(|n| client.get(&service, if n % 2 == 0 { &long } else { "/hello" }));
    for (n, answer) in futures::future::join_all(asked).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap().body.len(), if n % 2 == 0 { LEN } else { 5 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_an_end_is_given_up_before_it_fills_memory() {
    let node = Node::start().await;
    let client = node.client().await;
    let endless = client.get(&notes(), "/endless").await.unwrap_err();
    assert!(matches!(endless, Error::Answer { .. }), "{endless:?}");
    assert_eq!(&client.get(&notes(), "/hello").await.unwrap().body[..], b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_told_with_its_code() {
    let node = Node::start().await;
    let refused = TunnelClient::connect(&node.api, "forged").await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::TokenInvalid));

    let client = node.client().await;
    for _ in 0..2 {
        let unknown = client.get(&"ghost".parse().unwrap(), "/").await.unwrap_err();
        assert_eq!(unknown.code(), Some(ErrorCode::ServiceNotFound));
    }
    assert!(client.is_open(), "one service's refusal ended the connection");

    let gone = ApiError::new(ErrorCode::ServiceUnavailable, "`notes` starts");
    node.world.services.set("notes", Err(gone));
    assert_eq!(client.get(&notes(), "/hello").await.unwrap().status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_does_not_answer_is_waited_for_no_longer_than_said() {
    let node = Node::start().await;
    let client = node.client().await.answers_within(Duration::from_millis(200));
    let late = client.get(&notes(), "/events").await.unwrap_err();
    assert!(matches!(late, Error::TimedOut { .. }), "{late:?}");
    assert_eq!(&client.get(&notes(), "/hello").await.unwrap().body[..], b"hello");
    // The node was told that nobody waits for the other one.
    let open = || node.world.counted().services.values().map(|service| service.streams_open).sum::<u64>();
    wait_for("the request is given up", || open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_from_the_nodes_side_is_noticed_at_once() {
    let node = Node::start().await;
    let client = node.client().await;
    node.gate.revoked.cancel();
    let told = timeout(PATIENCE, client.ended()).await.unwrap();
    assert_eq!(told.code(), Some(ErrorCode::TokenRevoked));
    assert!(!client.is_open());
    assert_eq!(client.get(&notes(), "/hello").await.unwrap_err().code(), Some(ErrorCode::TokenRevoked));

    let node = Node::start().await;
    let client = node.client().await;
    let pending = async { client.get(&notes(), "/events").await };
    let stop = async {
        wait_for("the request has come", || node.world.counted().services.values().any(|one| one.streams_open > 0))
            .await;
        node.mesh.stop().await;
    };
    let (broken, ()) = tokio::join!(pending, stop);
    assert!(broken.is_err(), "{broken:?}");
    node.listening.abort();
    let nobody = TunnelClient::connect(&node.api, "good").await.unwrap_err();
    assert!(matches!(nobody, Error::Unreachable { .. }), "{nobody:?}");
}

fn impatient() -> Polling {
    Polling {
        every: Duration::from_millis(10),
        within: Duration::from_millis(500),
        noticed: Duration::from_millis(250),
    }
}

async fn seen_until(poller: &Poller, what: impl Fn(&Seen) -> bool) -> Seen {
    let mut seen = poller.seen();
    timeout(PATIENCE, seen.wait_for(what)).await.expect("it was never seen").unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poller_tells_how_long_a_service_did_not_answer() {
    const AWAY: Duration = Duration::from_millis(400);
    let node = Node::start().await;
    let address = crate::tunnel::tests::service::start().await;
    let api = Client::new(node.api.as_str(), Some("good".to_owned())).unwrap();
    let poller = Poller::start(vec![api], notes(), "/hello", impatient());
    seen_until(&poller, |seen| seen.polls >= 5).await;
    node.world.services.set("notes", Err(ApiError::new(ErrorCode::ServiceUnavailable, "`notes` starts")));
    seen_until(&poller, |seen| seen.failing > 0).await;
    let gone = tokio::time::Instant::now();
    seen_until(&poller, |_| gone.elapsed() >= AWAY).await;
    node.world.services.set("notes", Ok(address));
    seen_until(&poller, |seen| !seen.gaps.is_empty()).await;
    let seen = poller.stop().await;
    let gap = &seen.gaps[0];
    assert!(gap.failed > 0 && gap.length >= AWAY && gap.why.as_deref() == Some("it answered 503"), "{gap:?}");
    assert_eq!(seen.longest_gap(gone, seen.last_good.unwrap()), gap.length);
    assert_eq!(seen.answer.unwrap().body, "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poller_goes_on_through_another_node() {
    let (first, second) = (Node::start().await, Node::start().await);
    let apis = [&first, &second].map(|node| Client::new(node.api.as_str(), Some("good".to_owned())).unwrap());
    let poller = Poller::start(apis.to_vec(), notes(), "/hello", impatient());
    seen_until(&poller, |seen| seen.polls >= 5).await;
    assert!(second.mesh.sessions().is_empty());
    first.listening.abort();
    first.mesh.stop().await;
    let before = poller.seen().borrow().last_good;
    seen_until(&poller, |seen| seen.failing == 0 && seen.last_good > before).await;
    wait_for("the second node is asked", || second.mesh.sessions().len() == 1).await;
    assert!(poller.stop().await.polls > 5);
}
