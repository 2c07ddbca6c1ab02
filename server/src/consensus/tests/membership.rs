//! Machines that come and go.

use super::*;

const FOLDED: Limits = Limits { snapshot_every: 20, audit_rows: 10_000, pages: None };

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_joins_late_is_told_by_a_snapshot() {
    let mut bed = Bed::with(1, (1..=2).map(|number| (number, FOLDED)).collect()).await;
    for id in 0..100 {
        propose(&bed[1], &format!("t{id}")).await.unwrap();
    }
    until(&bed[1], "the log is folded", |status| status.snapshot >= 80).await;
    bed.join(2).await;
    let state = bed.check().await;
    assert_eq!(state.tokens.len(), 100);
    assert!(bed[2].consensus().status().borrow().snapshot >= 80, "it was told entry by entry");
    // And goes on from there: as a listener, after a restart, and as a voter.
    propose(&bed[2], "by-the-learner").await.unwrap();
    bed.crash(2).await;
    bed.start(2).await;
    until(&bed[2], "it knows who votes", |status| (&status.voters, &status.learners) == (&ids([1]), &ids([2]))).await;
    bed[1].consensus().set_members(ids([1, 2]), ids([])).await.unwrap();
    propose(&bed[2], "by-the-voter").await.unwrap();
    assert_eq!(bed.check().await.tokens.len(), 102);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_waits_to_be_told_begins_nothing_by_itself() {
    let mut bed = Bed::of(1).await;
    bed.admit(2).await;
    bed.begin(2, true).await;
    for _ in 0..2 {
        let status = bed[2].consensus().status().borrow().clone();
        assert_eq!((status.leads, status.leader, bed[2].state().cluster.clone()), (false, None, None));
        // Not after a restart either, though it is not said again that it joins.
        bed.crash(2).await;
        bed.start(2).await;
    }
    bed[1].consensus().set_members(ids([1]), ids([2])).await.unwrap();
    bed.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_change_and_nothing_is_lost() {
    let mut bed = Bed::of(3).await;
    for number in 4..=5 {
        bed.join(number).await;
    }
    propose(&bed[4], "by-a-learner").await.unwrap();
    let leader = bed.leader().await;
    leader.consensus().set_members(ids(1..=5), ids([])).await.unwrap();
    let status = until(&leader, "five vote", |status| status.voters == ids(1..=5) && !status.changing).await;
    assert_eq!(status.followers.len(), 4);
    // So it is already: nothing is written.
    let last = leader.consensus().status().borrow().last;
    leader.consensus().set_members(ids(1..=5), ids([])).await.unwrap();
    assert_eq!(leader.consensus().status().borrow().last, last);

    // A voter that is lost is replaced by one that listens.
    let lost = bed.nodes.keys().copied().find(|number| *number != leader_number(&leader)).unwrap();
    leader.consensus().set_members(ids((1..=5).filter(|number| *number != lost)), ids([lost])).await.unwrap();
    bed.crash(lost).await;
    leader.consensus().remove(&NodeId::from(lost)).await.unwrap();
    let status = until(&leader, "it is gone", |status| !status.followers.contains_key(&NodeId::from(lost))).await;
    assert_eq!((status.voters.len(), status.learners.len()), (4, 0));
    propose(&leader, "after").await.unwrap();
    assert_eq!(bed.check().await.tokens.len(), 2);

    // A leader that is taken out of the voters hands over, and its successor does it.
    let leaving = bed.leading().await;
    let rest = ids(bed.nodes.keys().copied().filter(|number| *number != leaving));
    let handed = bed[leaving].consensus().set_members(rest.clone(), ids([leaving])).await;
    assert!(matches!(handed, Err(Error::NotLeading { .. })), "{handed:?}");
    let (_, successor) = bed.leader_but(Some(leaving)).await;
    successor.consensus().set_members(rest.clone(), ids([leaving])).await.unwrap();
    until(&successor, "the rest votes", |status| status.voters == rest).await;
    propose(&bed[leaving], "by-the-former-leader").await.unwrap();
    assert_eq!(bed.check().await.tokens.len(), 3);
}

fn leader_number(store: &Store) -> u64 {
    store.consensus().status().borrow().node.0.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_caught_up_does_not_vote() {
    let mut bed = Bed::with(1, (1..=3).map(|number| (number, FOLDED)).collect()).await;
    bed.join(2).await;
    bed.wires.isolate(&NodeId::from(2));
    for id in 0..100 {
        propose(&bed[1], &format!("t{id}")).await.unwrap();
    }
    let refused = bed[1].consensus().set_members(ids([1, 2]), ids([])).await;
    assert_eq!(refused, Err(Error::CatchingUp { node: NodeId::from(2) }));
    assert!(matches!(bed[2].consensus().set_members(ids([2]), ids([])).await, Err(Error::NotLeading { .. })));
    assert_eq!(bed[1].consensus().set_members(ids([]), ids([1])).await, Err(Error::NoVoters));
    assert_eq!(bed[1].consensus().remove(&NodeId::from(1)).await, Err(Error::NoVoters));
    bed.wires.heal_all();
    bed[1].consensus().set_members(ids([1, 2]), ids([])).await.unwrap();
    bed.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_without_a_wait() {
    let bed = Bed::of(3).await;
    let old = bed.leading().await;
    bed[old].consensus().transfer().await.unwrap();
    let (new, _) = bed.leader_but(Some(old)).await;
    // A proposal that comes meanwhile waits a moment and is done.
    let (proposed, handed) = tokio::join!(propose(&bed[old], "meanwhile"), bed[new].consensus().transfer());
    handed.unwrap();
    proposed.unwrap();
    // Nothing to hand over is no error; nobody to hand it to is one.
    let follower = (1..=3).find(|number| !bed[*number].consensus().status().borrow().leads).unwrap();
    bed[follower].consensus().transfer().await.unwrap();
    assert_eq!(bed.check().await.tokens.len(), 1);
    let alone = Bed::of(1).await;
    assert_eq!(alone[1].consensus().transfer().await, Err(Error::NoSuccessor));
    propose(&alone[1], "goes-on").await.unwrap();
}
