//! Links come up, are lost, and come back.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_link_with_each_other() {
    let nodes = linked::<3>().await;
    for one in &nodes {
        let others = nodes.iter().filter(|other| other.id() != one.id());
        assert_eq!(*one.mesh.connected().borrow(), ids(others.clone()));
        for other in others {
            assert_eq!(one.call(other, Method::Report, "hello").await.unwrap(), "hello");
            let link = one.link(other);
            assert_eq!((link.state, link.problem.as_deref()), (LinkState::Up, None));
            assert_eq!(link.path, Some(flotilla_api::rest::LinkPath::Direct));
            // One of the two uses the port that all its links share.
            let shared = |node: &Node| Some(format!("127.0.0.1:{}", node.port.number()));
            assert!((link.remote == shared(other)) != (other.link(one).remote == shared(one)), "{link:?}");
            // Of the first probe, or of none yet.
            assert!(link.loss.is_none_or(|loss| loss == 0.0));
        }
    }
    let [one, other, _] = &nodes;
    wait_for("the round trip is measured", || one.link(other).rtt_ms.is_some_and(|rtt| rtt > 0.0)).await;
    wait_for("bytes are counted", || one.link(other).received_per_second > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_died_is_noticed_and_found_again_elsewhere() {
    let [one, mut other] = linked::<2>().await;
    let (_, took) = timed(async {
        other.die();
        wait_for("the loss is noticed", || !one.sees(&other)).await;
    })
    .await;
    assert!(took < NOTICED, "{took:?}");
    assert_eq!(one.call(&other, Method::Report, "").await, Err(CallError::Unreachable));
    let link = one.link(&other);
    assert!(link.state != LinkState::Up && link.path.is_none(), "{link:?}");
    wait_for("the problem is told", || {
        one.link(&other).problem.is_some_and(|problem| problem.contains(&other.address))
    })
    .await;

    // Another port; nobody tells the first node, but the second knows where the first one is.
    let back = other.plan.start().await;
    assert_ne!(back.address, other.address);
    back.knows(&[(&one, &one.address), (&back, &back.address)]);
    all_linked(&[&one, &back]).await;
    assert_eq!(one.call(&back, Method::Report, "again").await.unwrap(), "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_falls_silent_is_given_up_soon_and_made_again() {
    let [one, other] = linked::<2>().await;
    let mute = |muted| [&one, &other].map(|node| node.port.mute(muted));
    let (_, took) = timed(async {
        mute(true);
        wait_for("both notice", || !one.sees(&other) && !other.sees(&one)).await;
    })
    .await;
    assert!((Duration::from_secs(1)..NOTICED).contains(&took), "{took:?}");
    wait_for("the problem is told", || {
        let problem = one.link(&other).problem.unwrap_or_default();
        problem.contains("firewalls") || problem.contains("nothing was heard")
    })
    .await;
    mute(false);
    all_linked(&[&one, &other]).await;
    assert_eq!(one.call(&other, Method::Report, "again").await.unwrap(), "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_made_again_after_a_gap_in_which_it_was_not_given_up() {
    let [one, other] = linked::<2>().await;
    let since = one.link(&other).since;
    wait_for("the link to be old enough", || clock::now().since(since) > 11_000).await;
    let mute = |muted| [&one, &other].map(|node| node.port.mute(muted));
    // Lost, and to be sent again after 1 s and 3 s: on this link everything else would wait for it.
    mute(true);
    let late = tokio::spawn(one.mesh.call(&other.id(), Method::Report, "late".into(), PATIENCE));
    let gap = std::time::Instant::now() + Duration::from_millis(1_250);
    wait_for("the gap", || std::time::Instant::now() > gap).await;
    mute(false);
    wait_for("another link", || one.sees(&other) && other.sees(&one) && one.link(&other).since != since).await;
    assert_eq!(one.call(&other, Method::Report, "soon").await.unwrap(), "soon");
    assert!(late.await.unwrap().is_err(), "what was under way went down with its link");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_reach_each_other_nowhere_go_through_a_relay() {
    let relay = flotilla_relay::RelayConfig::new(
        "127.0.0.1:0".parse().unwrap(),
        [127, 0, 0, 1].into(),
        "home",
        "a secret of the cluster",
    );
    let relay = flotilla_relay::Relay::start(relay).await.unwrap();
    let mut nodes = Vec::new();
    for seed in 1..=2 {
        let mut plan = Plan::new(seed);
        plan.config.relay_secret = Some("a secret of the cluster".to_owned());
        plan.config.relayed_only = true;
        nodes.push(plan.start().await);
    }
    let [one, other] = &nodes[..] else { unreachable!() };
    let helper = Plan::new(3);
    let mut machines: BTreeMap<_, _> = [machine(&one.plan, &one.address), machine(&other.plan, &other.address)].into();
    let (id, mut third) = machine(&helper, "127.0.0.1:9");
    third.facts.relay_port = Some(relay.address().port());
    machines.insert(id, third);
    for node in [one, other] {
        node.state.send_replace(Arc::new(State { machines: machines.clone(), ..State::default() }));
    }
    all_linked(&[one, other]).await;
    for (node, peer) in [(one, other), (other, one)] {
        assert_eq!(node.link(peer).path, Some(flotilla_api::rest::LinkPath::Relayed));
        assert_eq!(node.call(peer, Method::Report, "around").await.unwrap(), "around");
    }
    let mut stream = one.stream(other, "echo").await;
    stream.write_all(b"bulk").await.unwrap();
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"bulk");
    assert!(relay.snapshot().bytes_to_peers > 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_looked_for_where_it_says_it_is() {
    let [one, mut other] = linked::<2>().await;
    other.die();
    wait_for("the loss is noticed", || !one.sees(&other)).await;
    let back = other.plan.start().await;
    // The second node does not know where the first one is, so that the first has to come.
    back.knows(&[(&one, "127.0.0.1:9"), (&back, &back.address)]);
    one.knows(&[(&one, &one.address), (&back, &back.address)]);
    all_linked(&[&one, &back]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_replaces_its_link_before_the_old_one_is_missed() {
    let [one, mut other] = linked::<2>().await;
    let before = one.link(&other).remote;
    other.die();
    let back = other.plan.start().await;
    introduce(&[&one, &back]);
    let (_, took) = timed(async {
        wait_for("the new run is linked", || back.sees(&one) && one.sees(&back) && one.link(&back).remote != before)
            .await;
        assert_eq!(one.call(&back, Method::Report, "new").await.unwrap(), "new");
    })
    .await;
    assert!(took < NOTICED, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_says_so_and_calls_fail_at_once() {
    let [one, other] = linked::<2>().await;
    let (mesh, id) = (Arc::clone(&one.mesh), other.id());
    let endless = tokio::spawn(mesh.call(&id, Method::Propose, Bytes::new(), PATIENCE));
    wait_for("the call is there", || other.handler.waiting.load(Ordering::SeqCst) == 1).await;
    let plan = other.plan.clone();
    other.stop().await;
    assert_eq!(endless.await.unwrap(), Err(CallError::Unreachable));
    wait_for("the loss is noticed", || !one.mesh.connected().borrow().contains(&plan.id())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_removed_loses_its_links() {
    let [one, other, third] = linked::<3>().await;
    for node in [&one, &other] {
        let mut state = State::clone(&node.state.borrow());
        state.machines.remove(&third.id());
        let removed = flotilla_core::state::RemovedMachine { name: "m-3".parse().unwrap(), at: clock::now() };
        state.removed_machines.insert(third.id(), removed);
        node.state.send_replace(Arc::new(state));
    }
    wait_for("its links are gone", || {
        !one.sees(&third) && !other.sees(&third) && third.mesh.connected().borrow().is_empty()
    })
    .await;
    assert!(one.sees(&other) && one.mesh.links().len() == 1);
    // It goes on trying, as nobody told it but the refusals.
    wait_for("it is told", || {
        third.mesh.links().iter().all(|link| link.problem.as_ref().is_some_and(|problem| problem.contains("removed")))
    })
    .await;
    assert!(!one.sees(&third));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_that_have_nothing_in_common_say_which_is_to_be_updated() {
    let (mut old, mut new) = (Plan::new(1), Plan::new(2));
    old.config.version = "0.1.0".to_owned();
    new.config.version = "9.0.0".to_owned();
    new.config.protocol = (2, 3);
    let (old, new) = (old.start().await, new.start().await);
    introduce(&[&old, &new]);
    for (node, other, whom) in [(&old, &new, "update this one"), (&new, &old, "update that one")] {
        wait_for("the problem is told", || {
            let links = node.mesh.links().into_iter();
            let problem =
                links.filter(|link| link.peer == other.id()).find_map(|link| link.problem).unwrap_or_default();
            problem.contains(whom) && problem.contains("9.0.0") && problem.contains("0.1.0")
        })
        .await;
        assert!(!node.sees(other));
    }
}
