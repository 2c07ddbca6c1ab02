//! How offers get there, and which are refused.

use super::*;

fn offer(purpose: Purpose) -> Body {
    Body::Offer(Offer {
        purpose,
        attempt: envelope::random_name(),
        description: "v=0".to_owned(),
        relay: false,
        shared_port: false,
        far: false,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_goes_through_a_node_that_both_know() {
    let plans = [Plan::new(1), Plan::new(2), Plan::new(3)];
    let (one, between, other) = (plans[0].start().await, plans[1].start().await, plans[2].start().await);
    let nowhere = "127.0.0.1:9";
    // The node between knows nobody's address, and is known to both.
    one.knows(&[(&one, nowhere), (&between, &between.address), (&other, nowhere)]);
    other.knows(&[(&one, nowhere), (&between, &between.address), (&other, nowhere)]);
    between.knows(&[(&one, nowhere), (&between, nowhere), (&other, nowhere)]);
    all_linked(&[&one, &between, &other]).await;
    assert_eq!(one.call(&other, Method::Report, "past").await.unwrap(), "past");
    let through = between.handler.heard.lock().unwrap().len();
    assert_eq!(through, 0, "what is signalled is not for the handler");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_offers_at_once_gets_one_link() {
    // Each node lets signalling in only when both have something to say.
    let (one, other) = (Plan::new(1), Plan::new(2));
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let gate: Gate = Arc::new(move || {
        let both = Arc::clone(&both);
        async move {
            let _ = timeout(Duration::from_secs(1), both.wait()).await;
        }
        .boxed()
    });
    let (one, other) = (Plan { gate: Some(gate.clone()), ..one }, Plan { gate: Some(gate), ..other });
    let (one, other) = (one.start().await, other.start().await);
    introduce(&[&one, &other]);
    all_linked(&[&one, &other]).await;
    let since = (one.link(&other).since, other.link(&one).since);
    let remote = (one.link(&other).remote, other.link(&one).remote);
    for _ in 0..20 {
        assert_eq!(one.call(&other, Method::Report, "a").await.unwrap(), "a");
        assert_eq!(other.call(&one, Method::Report, "b").await.unwrap(), "b");
    }
    // Whatever else was offered is settled by now.
    let settled = std::time::Instant::now() + Duration::from_secs(2);
    wait_for("time passes", || std::time::Instant::now() > settled).await;
    assert_eq!((one.link(&other).since, other.link(&one).since), since);
    assert_eq!((one.link(&other).remote, other.link(&one).remote), remote);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_is_lost_does_not_block_the_other_ones() {
    // Nothing that is sent to the node with the greater id is ever answered.
    let (one, other) = (Plan::new(1), Plan::new(2));
    let (first, second) = if one.id() < other.id() { (one, other) } else { (other, one) };
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let gate: Gate = Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::pending().boxed()
    });
    let (first, second) = (first.start().await, Plan { gate: Some(gate), ..second }.start().await);
    introduce(&[&first, &second]);
    all_linked(&[&first, &second]).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the other offer waited until this one was given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_member_offers_is_refused() {
    let node = Plan::new(1).start().await;
    let (known, stranger, removed) = (Plan::new(2), Plan::new(3), Plan::new(4));
    let mut state = State::default();
    state.machines.extend([machine(&node.plan, &node.address), machine(&known, "127.0.0.1:9")]);
    state
        .removed_machines
        .insert(removed.id(), flotilla_core::state::RemovedMachine { name: "m-4".parse().unwrap(), at: clock::now() });
    node.state.send_replace(Arc::new(state));
    wait_for("the member is known", || node.mesh.links().len() == 1).await;
    let from = |plan: &Plan, body| Author::new(plan.config.key.clone()).seal(Some(&node.id()), body).0;
    let refused = async |bytes: Vec<u8>, code, says: &str| {
        let error = node.mesh.signal(&bytes).await.unwrap_err();
        assert!(error.code == code && error.message.contains(says), "{error:?}");
    };
    let (invalid, forbidden) = (ErrorCode::SignalInvalid, ErrorCode::ScopeInsufficient);
    refused(from(&stranger, offer(Purpose::Control)), forbidden, "not known").await;
    refused(from(&stranger, offer(Purpose::Bulk)), forbidden, "not known").await;
    refused(from(&removed, offer(Purpose::Control)), forbidden, "removed").await;
    refused(from(&node.plan, offer(Purpose::Control)), ErrorCode::Conflict, "copied disk").await;
    refused(b"not an envelope".to_vec(), invalid, "no signalling message").await;
    refused(vec![b'x'; ENVELOPE_MAX + 1], ErrorCode::RequestTooLarge, "at most").await;
    let answer = Answer { reply_to: String::new(), description: String::new(), voucher: None };
    refused(from(&known, Body::Answer(answer)), invalid, "no offer").await;
    let elsewhere = Author::new(known.config.key.clone()).seal(Some(&stranger.id()), offer(Purpose::Control)).0;
    refused(elsewhere, invalid, "another node").await;

    // A member's offer that is none is refused in a signed answer, and once only.
    let (bytes, answer, error) = loop {
        let bytes = from(&known, offer(Purpose::Control));
        let answer = envelope::open(&node.mesh.signal(&bytes).await.unwrap()).unwrap();
        let Body::Refusal { error, .. } = &answer.message.body else { panic!("{answer:?}") };
        // The node tries to reach the member, too, and while it does that goes before.
        if error.code != ErrorCode::Conflict {
            let error = error.clone();
            break (bytes, answer, error);
        }
    };
    assert_eq!((answer.message.from, error.code), (node.id(), ErrorCode::SignalInvalid));
    refused(bytes, invalid, "taken before").await;
}
