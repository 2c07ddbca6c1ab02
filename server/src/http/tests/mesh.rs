//! `/mesh/v1/signal`: other nodes, who have no token.

use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use flotilla_api::NodeId;
use futures::future::BoxFuture;

use super::*;
use crate::{
    mesh::{
        Addresses, Certificate,
        nodes::{ENVELOPE_MAX, NodeConfig, NodeMesh, SIGNAL_PATH, contact},
    },
    peers::{Handler, Method as Call, Stream},
};

struct Doorkeeper;

impl Handler for Doorkeeper {
    fn call(&self, _: NodeId, _: Call, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        Box::pin(async { Ok(body) })
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
    if running.node.app().nodes.get().is_none() {
        assert_eq!(code(post(b"{}".to_vec())).await, ErrorCode::ServiceUnavailable);
        let mesh = NodeMesh::new(config(1)).unwrap();
        mesh.start(running.node.app().store.watch(), Arc::new(Doorkeeper));
        running.node.app().nodes.set(mesh).unwrap();
    }
    let node = running.node.app().nodes.get().unwrap().id().clone();
    assert_eq!(code(post(b"{}".to_vec())).await, ErrorCode::SignalInvalid);
    assert_eq!(code(post(vec![b' '; ENVELOPE_MAX + 1])).await, ErrorCode::RequestTooLarge);
    // Whatever name the other node knows this one by.
    assert_eq!(code(post(b"{}".to_vec()).header("host", "anna.lan")).await, ErrorCode::SignalInvalid);
    assert_eq!(running.get(SIGNAL_PATH).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);

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
