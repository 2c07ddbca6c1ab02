//! The daemon's side and a guard in a thread, on control groups of this test's own; `tests/engine` has the guard as a process and
//! containers.

use super::{freezer::tests::Group, *};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(data_dir: &Path) -> Fence {
    Fence::start(Config { data_dir: data_dir.to_owned(), docker_host: None, form: Form::Thread }).unwrap()
}

fn target(group: &Group) -> Target {
    Target { container: group.id(), epoch: 1 }
}

fn soon(millis: u64) -> Option<Mono> {
    Some(clock::since_boot().plus(millis))
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

fn is_guarded(data_dir: &Path) -> bool {
    data_dir.join(wire::SOCKET).exists()
}

#[tokio::test]
async fn there_is_a_guard_only_while_there_is_a_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let fence = start(directory.path());
    fence.announce(&"a".repeat(64), 1).await.unwrap();
    fence.deadline(None, Vec::new());
    fence.announce(&"b".repeat(64), 2).await.unwrap();
    assert!(!is_guarded(directory.path()));

    fence.deadline(soon(60_000), Vec::new());
    fence.announce(&"c".repeat(64), 3).await.unwrap();
    assert!(is_guarded(directory.path()));
    assert_eq!(fence.figures().guard_starts, 1);

    fence.deadline(None, Vec::new());
    until("the guard ends", || !is_guarded(directory.path())).await;
}

#[tokio::test]
async fn what_has_no_guard_may_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let form = Form::Process { program: "/bin/false".into() };
    let fence = Fence::start(Config { data_dir: directory.path().to_owned(), docker_host: None, form }).unwrap();
    fence.deadline(soon(60_000), Vec::new());
    let error = fence.announce(&"a".repeat(64), 1).await.unwrap_err();
    assert!(matches!(&error, Error::Unguarded { why } if why.contains("exit status: 1")), "{error}");
}

#[tokio::test]
async fn the_guard_freezes_when_nobody_extends_the_deadline_and_the_daemon_thaws_with_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let group = Group::of_this_machine();
    let fence = start(directory.path());
    // It is put off while the daemon lives.
    for _ in 0..4 {
        fence.deadline(soon(300), vec![target(&group)]);
        fence.announce(&"a".repeat(64), 9).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(!fence.is_frozen(&group.id()), "it is frozen though the deadline was put off");
    }
    until("it is frozen", || fence.is_frozen(&group.id())).await;
    let before = group.count();
    until("the daemon learns of it", || fence.frozen().contains(&group.id())).await;
    assert_eq!(fence.figures().guard_freezes, 1);

    let refused = fence.thaw(&[group.id()]).await.remove(0).1;
    assert!(matches!(refused, Err(Error::Expired)), "{refused:?}");
    assert_eq!(group.count(), before);

    fence.deadline(soon(60_000), vec![target(&group)]);
    assert!(fence.thaw(&[group.id()]).await.remove(0).1.unwrap());
    assert!(fence.frozen().is_empty() && fence.thawed_at(&group.id()).is_some());
    until("it goes on", || group.count() > before).await;
}

#[tokio::test]
async fn what_somebody_thaws_after_the_deadline_is_frozen_again() {
    let directory = tempfile::tempdir().unwrap();
    let group = Group::of_this_machine();
    let fence = start(directory.path());
    fence.deadline(Some(Mono(0)), vec![target(&group)]);
    until("it is frozen", || fence.is_frozen(&group.id())).await;
    Freezer::detect().search(&group.id());
    let other = Freezer::detect();
    other.search(&group.id());
    assert!(other.thaw(&group.id()).unwrap());
    until("it is frozen again", || fence.is_frozen(&group.id())).await;
}

#[tokio::test]
async fn a_new_daemon_takes_the_deadline_over() {
    let directory = tempfile::tempdir().unwrap();
    let group = Group::of_this_machine();
    let deadline = soon(1_500);
    {
        let fence = start(directory.path());
        assert_eq!(fence.adopted(), None);
        fence.deadline(deadline, vec![target(&group)]);
        fence.announce(&"a".repeat(64), 1).await.unwrap();
    }
    let fence = start(directory.path());
    assert_eq!(fence.adopted(), deadline);
    // Nobody has said anything yet, so what the guard was told last still counts.
    until("it is frozen", || fence.is_frozen(&group.id())).await;
    assert!(Some(clock::since_boot()) >= deadline);
    until("the daemon learns of it", || fence.frozen().contains(&group.id())).await;
    end_guard(directory.path()).await;
}

#[tokio::test]
async fn a_guard_can_be_told_to_end() {
    let directory = tempfile::tempdir().unwrap();
    end_guard(directory.path()).await;
    {
        let fence = start(directory.path());
        fence.deadline(soon(60_000), Vec::new());
        fence.announce(&"a".repeat(64), 1).await.unwrap();
    }
    assert!(is_guarded(directory.path()));
    end_guard(directory.path()).await;
    assert!(!is_guarded(directory.path()));
    assert_eq!(start(directory.path()).adopted(), None);
}

#[tokio::test]
async fn freezing_by_hand_is_told_and_observed() {
    let directory = tempfile::tempdir().unwrap();
    let group = Group::of_this_machine();
    let (id, absent) = (group.id(), "a".repeat(64));
    let fence = start(directory.path());
    let results = fence.freeze(&[id.clone(), absent.clone()]).await;
    assert!(matches!(&results[..], [(_, Ok(true)), (_, Ok(false))]), "{results:?}");
    let all = BTreeSet::from([id.as_str(), absent.as_str()]);
    assert_eq!(fence.observe(&[&id], &all), BTreeSet::from([id.clone()]));
    assert_eq!(fence.figures(), Figures { freezes: 1, frozen: 1, ..Figures::default() });

    // A daemon that was restarted knows it from what it sees.
    let other = start(tempfile::tempdir().unwrap().path());
    Freezer::search(&other.shared.freezer, &id);
    assert_eq!(other.observe(&[&id], &all), BTreeSet::from([id.clone()]));
    assert_eq!(other.frozen(), BTreeSet::from([id.clone()]));

    fence.thaw(std::slice::from_ref(&id)).await.remove(0).1.unwrap();
    assert!(fence.observe(&[&id], &all).is_empty());
    // What is gone is forgotten.
    fence.observe(&[], &BTreeSet::new());
    assert_eq!(fence.thawed_at(&id), None);
}
