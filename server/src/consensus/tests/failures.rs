//! Machines that are gone, cut off, or full.

use tokio::time::Instant;

use super::*;

/// Proposes on one node until it is told to stop, and notes what was acknowledged.
fn writer(
    store: Store,
    name: String,
    stop: tokio_util::sync::CancellationToken,
) -> tokio::task::JoinHandle<Vec<TokenId>> {
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        let mut number = 0;
        while !stop.is_cancelled() {
            let id = format!("{name}-{number}");
            number += 1;
            if propose(&store, &id).await.is_ok() {
                acknowledged.push(TokenId(id));
            }
        }
        acknowledged
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_crash_loses_no_acknowledged_command() {
    let mut bed = Bed::of(3).await;
    let mut acknowledged = Vec::new();
    for round in 0..2 {
        let leader = bed.leading().await;
        let stop = tokio_util::sync::CancellationToken::new();
        let writers: Vec<_> = bed
            .nodes
            .iter()
            .filter(|(number, _)| **number != leader)
            .map(|(number, store)| writer(store.clone(), format!("{round}-{number}"), stop.clone()))
            .collect();
        let so_far = bed[leader].state().tokens.len();
        bed[leader].watch().wait_for(|state| state.tokens.len() >= so_far + 20).await.unwrap();
        bed.crash(leader).await;
        let (_, store) = bed.leader_but(Some(leader)).await;
        let so_far = store.state().tokens.len();
        let going_on = async { store.watch().wait_for(|state| state.tokens.len() >= so_far + 20).await.map(drop) };
        tokio::time::timeout(PATIENCE, going_on).await.unwrap().unwrap();
        stop.cancel();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        bed.start(leader).await;
        let state = bed.check().await;
        let lost: Vec<_> = acknowledged.iter().filter(|id| !state.tokens.contains_key(*id)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
    assert!(acknowledged.len() >= 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_agrees_on_nothing_and_follows_again() {
    let bed = Bed::of(3).await;
    let (old, store) = bed.leader_but(None).await;
    propose(&store, "before").await.unwrap();
    bed.wires.isolate(&NodeId::from(old));
    let cut = Instant::now();
    let alone = tokio::spawn(async move { propose(&store, "alone").await });
    let (_, successor) = bed.leader_but(Some(old)).await;
    propose(&successor, "after").await.unwrap();
    // It can't be sure of itself beyond the moment of the cut.
    let confirmed = bed[old].consensus().status().borrow().confirmed();
    assert!(confirmed.is_none_or(|moment| moment.instant <= cut), "a leader was confirmed after it was cut off");
    // Written before the leader noticed, it may come about; that is said.
    let refused = alone.await.unwrap().unwrap_err();
    assert!(matches!(refused.code, ErrorCode::NoLeader | ErrorCode::Timeout), "{refused}");
    bed.wires.heal_all();
    until(&bed[old], "the old leader follows again", |status| !status.leads && status.leader.is_some()).await;
    let state = bed.check().await;
    assert!(state.tokens.contains_key(&TokenId("after".to_owned())));
    if refused.code == ErrorCode::NoLeader {
        assert!(!state.tokens.contains_key(&TokenId("alone".to_owned())), "what was refused came about");
    }
}

/// Where a leader is heard and hears nothing, its followers have to get rid of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hears_nobody_is_replaced() {
    let bed = Bed::of(3).await;
    let old = bed.leading().await;
    for other in (1..=3).filter(|other| *other != old) {
        bed.wires.cut(&NodeId::from(other), &NodeId::from(old));
    }
    let (_, successor) = bed.leader_but(Some(old)).await;
    propose(&successor, "after").await.unwrap();
    bed.wires.heal_all();
    bed.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_comes_back_deposes_nobody() {
    let bed = Bed::of(3).await;
    let before = bed.leader().await.consensus().status().borrow().clone();
    let follower = (1..=3).find(|number| NodeId::from(*number) != before.node).unwrap();
    bed.wires.isolate(&NodeId::from(follower));
    // Several elections long, in which it would have raised its term without pre-vote.
    let cut = Instant::now();
    let mut round = 0;
    while cut.elapsed() < Duration::from_secs(5) {
        propose(&bed.leader().await, &format!("f{round}")).await.unwrap();
        round += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bed.wires.heal_all();
    bed.check().await;
    let after = bed.leader().await.consensus().status().borrow().clone();
    assert_eq!((after.node, after.term), (before.node, before.term));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_survive_two() {
    let mut bed = Bed::of(5).await;
    for _ in 0..2 {
        let leader = bed.leading().await;
        bed.crash(leader).await;
        let (_, successor) = bed.leader_but(Some(leader)).await;
        propose(&successor, &format!("without-{leader}")).await.unwrap();
    }
    assert_eq!(bed.check().await.tokens.len(), 2);
    // A third is too many: the rest says so, and agrees on nothing.
    let leader = bed.leading().await;
    bed.crash(leader).await;
    let rest = bed.nodes.values().next().unwrap().clone();
    let refused = propose(&rest, "too-few").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoLeader, "{refused}");
    bed.start(leader).await;
    propose(&rest, "enough").await.unwrap();
    let state = bed.check().await;
    assert_eq!(state.tokens.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_lets_another_one_lead() {
    let full = Limits { pages: Some(64), ..Limits::default() };
    let mut bed = Bed::with(3, [(1, full)].into()).await;
    assert_eq!(bed.leading().await, 1);
    let mut acknowledged = 0;
    let refused = loop {
        match propose(&bed[1], &format!("d{acknowledged}")).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(acknowledged > 0);
    assert_eq!(refused.code, ErrorCode::DiskFull, "{refused}");
    let (_, successor) = bed.leader_but(Some(1)).await;
    for id in 0..50 {
        propose(&successor, &format!("e{id}")).await.unwrap();
    }
    // It stands still, and says why; with room it goes on.
    let status = until(&bed[1], "the full node says so", |status| status.failure.is_some()).await;
    assert!(status.failure.unwrap().contains("free some space"));
    bed.crash(1).await;
    bed.limits.remove(&1);
    bed.start(1).await;
    let state = bed.check().await;
    assert_eq!(state.tokens.len(), acknowledged + 50);
}
