//! First contact.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_asks_to_join_and_nothing_else() {
    let cluster = SigningKey::from_bytes(&[99; 32]);
    let mut plan = Plan::new(1);
    plan.config.cluster_key = Some(cluster.clone());
    let node = plan.start().await;
    node.knows(&[(&node, &node.address)]);
    let joiner = Plan::new(2);
    let addresses = ["127.0.0.1:9".to_owned(), node.address.clone()];
    for fingerprint in [node.id().0, identity::node_id(&cluster.verifying_key()).0] {
        let contact = Box::pin(contact(&joiner.config, &addresses, &fingerprint)).await.unwrap();
        assert_eq!(contact.node, node.id());
        let answer = contact.call("let me in".into(), PATIENCE).await.unwrap();
        let (_, record) = machine(&joiner, "");
        assert_eq!(answer, format!("{} let me in", record.record.public_key));
        for method in [Method::Report, Method::Ping, Method::Signal, Method::Append] {
            let error = contact.control.rpc().call(method, Bytes::new(), PATIENCE).await.unwrap_err();
            assert!(
                matches!(&error, CallError::Refused(error) if error.code == ErrorCode::ScopeInsufficient),
                "{error:?}"
            );
        }
        contact.close().await;
    }
    assert!(node.mesh.links().is_empty() && node.handler.heard.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_trusts_nobody_but_whom_its_token_names() {
    let node = Plan::new(1).start().await;
    node.knows(&[(&node, &node.address)]);
    let joiner = Plan::new(2);
    let contact = async |plan: &Plan, address: &str, fingerprint: &NodeId| {
        Box::pin(contact(&plan.config, &[address.to_owned()], &fingerprint.0)).await.unwrap_err()
    };
    let error = contact(&joiner, &node.address, &Plan::new(3).id()).await;
    assert!(matches!(error, ContactError::AnotherCluster { .. }), "{error:?}");
    let error = contact(&joiner, "127.0.0.1:9", &node.id()).await;
    assert!(matches!(&error, ContactError::Unreachable { addresses } if addresses == "127.0.0.1:9"), "{error:?}");
    let error = contact(&node.plan, &node.address, &node.id()).await;
    assert!(matches!(&error, ContactError::Refused(error) if error.message.contains("has the key")), "{error:?}");
    let mut newer = joiner;
    newer.config.protocol = (7, 7);
    let error = contact(&newer, &node.address, &node.id()).await;
    assert!(matches!(&error, ContactError::Version(sentence) if sentence.contains("update that one")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_few() {
    let node = Plan::new(1).start().await;
    node.knows(&[(&node, &node.address)]);
    let mut held = Vec::new();
    for seed in 0..contact::STRANGERS_MAX as u8 {
        let joiner = Plan::new(10 + seed);
        held.push(Box::pin(contact(&joiner.config, std::slice::from_ref(&node.address), &node.id().0)).await.unwrap());
    }
    let late = Plan::new(50);
    let id = node.id().0;
    let ask = || Box::pin(contact(&late.config, std::slice::from_ref(&node.address), &id));
    let error = ask().await.unwrap_err();
    assert!(matches!(&error, ContactError::Refused(error) if error.code == ErrorCode::RateLimited), "{error:?}");
    held.pop();
    let begun = std::time::Instant::now();
    while ask().await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "the place was not given back");
    }
}
