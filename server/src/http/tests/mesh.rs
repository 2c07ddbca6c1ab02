//! `/mesh/v1/signal`: other nodes, who have no token.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use flotilla_api::NodeId;
use futures::future::BoxFuture;

use super::*;
use crate::{
    mesh::{
        Addresses, Certificate,
        nodes::{BULK_ATTEMPT, BULK_PATH, BULK_PROTOCOL, ENVELOPE_MAX, NodeConfig, NodeMesh, SIGNAL_PATH, contact},
    },
    peers::{Handler, Method as Call, Stream},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_answers_other_nodes_and_tells_everybody_else_to_wait() {
    let running = Running::start().await;
    let app = running.node.app().clone();
    let listener = Listener::bind(&Config { listen: ([127, 0, 0, 1], 0).into(), ..app.config.clone() }).await.unwrap();
    let address = listener.address();
    let nodes = NodeMesh::new(config(1)).unwrap();
    let reception = Reception::new(&app.config, nodes.clone(), app.attempts.clone(), app.metrics.clone());
    tokio::spawn(listener.serve(reception.clone(), app.stop.clone()));
    let ask = |method: Method, path: &str| running.http.request(method, format!("http://{address}{path}"));
    let failed = async |path: &str| {
        let answer = contact(&config(2), &[address.to_string()], path).await.unwrap_err();
        answer.to_string()
    };

    assert_eq!(code(ask(Method::POST, SIGNAL_PATH).body("{}")).await, ErrorCode::SignalInvalid);
    assert!(failed(&nodes.id().0).await.contains("this machine is just starting"), "{}", failed(&nodes.id().0).await);
    assert_eq!(ask(Method::GET, "/healthz").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(code(ask(Method::GET, BULK_PATH)).await, ErrorCode::InvalidRequest);
    for path in ["/readyz", "/api/v1/services", "/", SIGNAL_PATH] {
        let answer = ask(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.headers()["retry-after"], "1", "{path}");
        assert_eq!(refusal(answer).await.code, ErrorCode::ServiceUnavailable, "{path}");
    }

    let doorkeeper = Arc::new(Doorkeeper::default());
    nodes.start(app.store.watch(), doorkeeper.clone());
    let node = nodes.id().0.clone();
    assert!(failed(&node).await.contains("this machine is just starting"));
    doorkeeper.open.store(true, Ordering::SeqCst);
    Box::pin(contact(&config(2), &[address.to_string()], &node)).await.unwrap().close().await;
    reception.open(app);
    assert_eq!(ask(Method::GET, "/readyz").send().await.unwrap().status(), StatusCode::OK);
    nodes.stop().await;
    running.node.stop().await;
}

#[derive(Default)]
struct Doorkeeper {
    open: AtomicBool,
}

impl Handler for Doorkeeper {
    fn call(&self, _: NodeId, _: Call, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        Box::pin(async { Ok(body) })
    }

    fn takes_strangers(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn stranger(&self, _: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        Box::pin(async { Ok(body) })
    }

    fn stream(&self, _: NodeId, _: String, _: Stream) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

fn config(seed: u8) -> NodeConfig {
    let addresses = Addresses::Only(vec![[127, 0, 0, 1].into()]);
    NodeConfig::new(SigningKey::from_bytes(&[seed; 32]), Certificate::generate().unwrap(), addresses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_needs_no_token_and_gets_no_further_than_the_mesh() {
    let running = Running::start().await;
    let post = |body: Vec<u8>| running.request(Method::POST, SIGNAL_PATH).body(body);
    let node = running.node.app().nodes.id().clone();
    assert_eq!(code(post(b"{}".to_vec())).await, ErrorCode::SignalInvalid);
    assert_eq!(code(post(vec![b' '; ENVELOPE_MAX + 1])).await, ErrorCode::RequestTooLarge);
    // Whatever name the other node knows this one by.
    assert_eq!(code(post(b"{}".to_vec()).header("host", "anna.lan")).await, ErrorCode::SignalInvalid);
    assert_eq!(running.get(SIGNAL_PATH).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);

    assert_eq!(code(running.get(BULK_PATH)).await, ErrorCode::InvalidRequest);
    let upgrade = running.get(BULK_PATH).header("connection", "upgrade").header("upgrade", BULK_PROTOCOL);
    assert_eq!(code(upgrade.header(BULK_ATTEMPT, "0".repeat(32))).await, ErrorCode::NotFound, "nobody is awaited");

    let contact = Box::pin(contact(&config(2), &[running.address().to_string()], &node.0)).await.unwrap();
    assert_eq!(contact.node, node);
    contact.close().await;

    let mut codes = Vec::new();
    for _ in 0..200 {
        codes.push(code(post(b"{}".to_vec())).await);
    }
    assert_eq!(codes.last(), Some(&ErrorCode::RateLimited));
    running.node.stop().await;
}
