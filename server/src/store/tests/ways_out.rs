//! Copies, and what is left when the others are gone.

use super::*;

/// A state whose voters are three, of which this machine is one: as a machine finds it that the others were lost to.
async fn of_three(path: &Path) -> State {
    let store = begun(path, Limits::default()).await;
    for id in 0..5 {
        store.propose(token(id)).await.unwrap();
    }
    let state = State::clone(&store.state());
    store.close().await;
    // The chain is checked, so that the membership has to be written as a node would.
    let mut connection = disk::connect(path, &node(), Limits::default()).await.unwrap();
    let members = disk::record::Members {
        voters: vec![["n1", "n2", "n3"].map(|name| NodeId(name.to_owned())).into()],
        learners: [NodeId("n4".to_owned())].into(),
    };
    let entry = consensus::LogEntry {
        log_id: consensus::log_id(2, state.applied + 1),
        payload: openraft::EntryPayload::Membership(members.membership().unwrap()),
    };
    disk::append(&mut connection, &disk::row::Row::of(&entry).unwrap()).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    state
}

#[tokio::test]
async fn a_copy_is_whole_and_goes_on_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy, offline) =
        (directory.path().join("state.db"), directory.path().join("copy"), directory.path().join("offline"));
    let store = begun(&path, Limits::default()).await;
    store.propose(token(1)).await.unwrap();
    store.copy(&copy).await.unwrap();
    let (before, trail) = (store.state(), store.audit(None, None, 10).await.unwrap());
    assert!(store.copy(&copy).await.is_err(), "a file was overwritten");
    store.propose(token(2)).await.unwrap();
    store.close().await;
    assert_eq!(back_up(&path, &node(), &offline).await.unwrap(), 4);

    let node = node();
    let put = |from, force| Restore { from, to: &path, node: &node, force, recover_alone: false };
    let error = restore(Restore { node: &node, ..put(&copy, false) }).await.unwrap_err();
    assert!(matches!(error, Error::Present { .. }), "{error}");
    let restored = restore(Restore { node: &node, ..put(&copy, true) }).await.unwrap();
    assert_eq!((restored.applied, &restored.recovered), (before.applied, &None));
    let store = open(&path).await.unwrap();
    assert_eq!(store.state().tokens, before.tokens);
    assert_eq!(store.audit(None, None, 10).await.unwrap(), trail);
    store.close().await;

    // What was replaced is whole, too.
    let replaced = restored.replaced.unwrap();
    assert_eq!(open(&replaced).await.unwrap().state().tokens.len(), 2);
    restore(Restore { node: &node, ..put(&offline, true) }).await.unwrap();
    assert_eq!(open(&path).await.unwrap().state().tokens.len(), 2);
}

#[tokio::test]
async fn what_is_no_copy_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("state.db"), directory.path().join("copy"));
    begun(&path, Limits::default()).await.close().await;
    let before = std::fs::read(&path).unwrap();
    let wanted = Restore { from: &copy, to: &path, node: &node(), force: true, recover_alone: false };
    let node = node();
    let wanted = Restore { node: &node, ..wanted };
    assert!(matches!(restore(wanted.clone()).await.unwrap_err(), Error::Io { .. }));
    std::fs::write(&copy, b"no database").unwrap();
    let error = restore(wanted.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Damaged { path, .. } if *path == copy), "{error}");
    std::fs::write(&copy, b"").unwrap();
    assert!(matches!(restore(wanted).await.unwrap_err(), Error::Empty { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(left <= 4, "something was left behind");
}

#[tokio::test]
async fn a_machine_that_others_vote_with_takes_its_old_state_back_only_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("state.db"), directory.path().join("copy"));
    let state = of_three(&copy).await;
    let node = node();
    let wanted = Restore { from: &copy, to: &path, node: &node, force: false, recover_alone: false };
    let error = restore(wanted.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::OthersVote { path } if *path == copy), "{error}");
    assert!(!path.exists());
    let restored = restore(Restore { recover_alone: true, ..wanted }).await.unwrap();
    let recovered = restored.recovered.unwrap();
    assert_eq!(recovered.voters, ["n2", "n3"].map(|name| NodeId(name.to_owned())));
    let store = open(&path).await.unwrap();
    assert_eq!(store.state().tokens, state.tokens);
    store.propose(token(9)).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn the_last_machine_goes_on_alone_when_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let state = of_three(&path).await;

    // Not by itself: two of three may be well.
    let store = open(&path).await.unwrap();
    assert_eq!(*store.state(), state);
    let mut status = store.consensus().status();
    let status = status.wait_for(|status| !status.voters.is_empty()).await.unwrap().clone();
    assert_eq!((status.leads, status.leader, status.voters.len()), (false, None, 3));
    store.close().await;

    let recovered = recover(&path, &node()).await.unwrap();
    assert_eq!(recovered.voters, ["n2", "n3"].map(|name| NodeId(name.to_owned())));
    assert_eq!(recovered.learners, [NodeId("n4".to_owned())]);
    assert_eq!((recovered.agreed, recovered.last, recovered.was_alone), (state.applied, state.applied + 2, false));
    let store = open(&path).await.unwrap();
    let status = store.consensus().status().borrow().clone();
    assert!(status.leads && status.is_alone() && status.learners.is_empty() && status.term > 1000, "{status:?}");
    assert_eq!(store.state().tokens, state.tokens);
    store.propose(token(9)).await.unwrap();
    store.close().await;

    let again = recover(&path, &node()).await.unwrap();
    assert!(again.was_alone, "{again:?}");
    let store = open(&path).await.unwrap();
    assert_eq!(store.state().tokens.len(), 6);
    store.close().await;
}

#[tokio::test]
async fn only_a_machine_of_the_cluster_goes_on_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    of_three(&path).await;
    let stranger = NodeId("n9".to_owned());
    assert!(matches!(recover(&path, &stranger).await.unwrap_err(), Error::NoMember { .. }));
    let missing = directory.path().join("missing");
    assert!(recover(&missing, &node()).await.is_err());
    assert!(!missing.exists());
}
