use std::{
    io::{BufRead, BufReader, Write},
    process::{Command as Process, Stdio},
};

use flotilla_api::{ApiError, ErrorCode, Grant, NodeId, TokenId, UnixMillis};
use flotilla_core::{
    Actor, Command, CommandV1,
    command::{ClusterRecord, MachineRecord, TokenRecord},
};

use super::{disk::options, *};

mod conformance;
mod legacy;
mod ways_out;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn entry(command: CommandV1) -> Entry {
    let actor =
        Actor { name: "ada".to_owned(), token: Some(TokenId("t1".to_owned())), from: Some("192.0.2.1".to_owned()) };
    Entry { at: NOW, actor, command: Command::V1(command) }
}

fn init() -> Entry {
    entry(CommandV1::Init {
        cluster: ClusterRecord { id: "c1".to_owned(), name: "home".parse().unwrap(), token_key: "k".to_owned() },
        machine: MachineRecord {
            id: NodeId("n1".to_owned()),
            name: "anna".parse().unwrap(),
            public_key: "p".to_owned(),
            labels: [].into(),
        },
    })
}

fn token(id: u64) -> Entry {
    entry(CommandV1::IssueToken {
        token: TokenRecord {
            id: TokenId(format!("token-{id}")),
            name: "x".repeat(90),
            grant: Grant::admin(),
            created_at: NOW,
            expires_at: NOW.plus(3_600_000),
            revoked_at: None,
            bound_to: None,
            made_from: None,
        },
    })
}

fn node() -> NodeId {
    NodeId("n1".to_owned())
}

async fn open(path: &Path) -> Result<Store, Error> {
    Store::open(path, &node()).await
}

async fn open_with(path: &Path, limits: Limits) -> Result<Store, Error> {
    Store::open_with(path, &node(), limits, Arc::new(Nobody::default())).await
}

/// A store with a cluster in it. Entry 0 is of the membership, 1 of the new leader, 2 makes the cluster.
async fn begun(path: &Path, limits: Limits) -> Store {
    let store = open_with(path, limits).await.unwrap();
    store.propose(init()).await.unwrap();
    store
}

async fn rows(path: &Path, sql: &'static str) -> i64 {
    use sqlx::{ConnectOptions, Connection};
    let mut connection = options(path, Limits::default()).connect().await.unwrap();
    let count = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    count
}

async fn execute(path: &Path, sql: &'static str) {
    use sqlx::{ConnectOptions, Connection};
    let mut connection = options(path, Limits::default()).connect().await.unwrap();
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    let committed = store.propose(token(1)).await.unwrap();
    assert_eq!(committed, Committed { index: 3, outcome: Outcome::Done });
    let before = store.state();
    store.close().await;

    let store = open(&path).await.unwrap();
    // A new leader's first entry says nothing.
    assert_eq!(*store.state(), State { applied: 4, ..(*before).clone() });
    store.close().await;
}

#[tokio::test]
async fn a_rejected_proposal_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    let before = store.state();
    let mut watch = store.watch();
    watch.mark_unchanged();
    let error = store.propose(init()).await.unwrap_err();
    assert!(matches!(&error, ProposeError::Rejected(error) if error.code == ErrorCode::Conflict), "{error:?}");
    assert_eq!(store.state(), before);
    assert!(!watch.has_changed().unwrap());
    store.close().await;
    assert_eq!(rows(&path, "SELECT count(*) FROM log").await, 3);
}

#[tokio::test]
async fn proposals_that_come_together_are_applied_in_one_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    let proposals = (0..200).map(|id| {
        let store = store.clone();
        async move { store.propose(token(id)).await.unwrap().index }
    });
    let mut indices = futures::future::join_all(proposals).await;
    indices.sort_unstable();
    assert_eq!(indices, (3..=202).collect::<Vec<u64>>());
    store.close().await;
    let reopened = open(&path).await.unwrap();
    assert_eq!(reopened.state().tokens.len(), 200);
    reopened.close().await;
}

#[tokio::test]
async fn the_log_is_folded_into_a_snapshot_and_the_state_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let limits = Limits { snapshot_every: 10, audit_rows: 15, pages: None };
    let store = begun(&path, limits).await;
    // A snapshot is taken beside the writing, so that where exactly is not known before.
    let status = store.consensus().status();
    let mut written = 0;
    while status.borrow().snapshot < 40 {
        store.propose(token(written)).await.unwrap();
        written += 1;
    }
    let before = store.state();
    store.close().await;
    // What a snapshot holds is deleted after it was taken, which the end of the node may cut short.
    let store = open_with(&path, limits).await.unwrap();
    for _ in 0..30 {
        store.propose(token(written)).await.unwrap();
        written += 1;
    }
    store.close().await;
    assert!(rows(&path, "SELECT count(*) FROM log").await < written as i64 / 2, "nothing was deleted");
    assert!(rows(&path, "SELECT count(*) FROM audit").await < 15 + 20 + 1);
    assert!(rows(&path, "SELECT min(position) FROM log").await > 30);
    let store = open_with(&path, limits).await.unwrap();
    assert_eq!(store.state().tokens.len() as u64, written);
    assert!(before.tokens.iter().all(|(id, token)| store.state().tokens.get(id) == Some(token)));
    // The chain goes on over the snapshot.
    store.propose(token(written)).await.unwrap();
    store.close().await;
    open_with(&path, limits).await.unwrap().close().await;
}

#[tokio::test]
async fn the_audit_trail_says_who_what_when_and_from_where() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    let mut events = store.events();
    store.propose(token(1)).await.unwrap();
    let trail = store.audit(None, None, 10).await.unwrap();
    assert_eq!(trail.len(), 2);
    assert_eq!(trail[1].event.index, Some(3));
    assert_eq!(trail[1].event.kind, "token-issued");
    assert_eq!((trail[1].event.actor.as_str(), trail[1].event.at), ("ada", NOW));
    assert_eq!((trail[1].token.as_deref(), trail[1].event.from.as_deref()), (Some("t1"), Some("192.0.2.1")));
    assert_eq!(events.recv().await.unwrap(), trail[1]);
    assert_eq!(store.audit(Some(3), None, 10).await.unwrap(), trail[..1]);
    assert_eq!(store.audit(None, Some(&"notes".parse().unwrap()), 10).await.unwrap(), []);
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_refuses_the_change_and_the_next_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let full = Limits { pages: Some(64), ..Limits::default() };
    let store = begun(&path, full).await;
    let mut id = 0;
    let error = loop {
        match store.propose(token(id)).await {
            Ok(_) => id += 1,
            Err(error) => break ApiError::from(error),
        }
    };
    assert!(id > 0);
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    let before = store.state();
    assert_eq!(before.tokens.len() as u64, id);
    // Still full: still refused, and still nothing published.
    assert_eq!(ApiError::from(store.propose(token(id)).await.unwrap_err()).code, ErrorCode::DiskFull);
    assert_eq!(store.state(), before);
    store.close().await;

    let store = open(&path).await.unwrap();
    assert_eq!(store.state().tokens, before.tokens);
    store.propose(token(id)).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn damage_is_told_and_not_repaired() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    for (damage, what) in [
        ("UPDATE log SET entry = replace(entry, 'ada', 'eve') WHERE position = 2", "entry 2 is not what was written"),
        ("UPDATE log SET entry = replace(entry, 'n1', 'n2') WHERE position = 0", "entry 0 is not what was written"),
        ("UPDATE log SET term = 9 WHERE position = 3", "entry 3 is not what was written"),
        ("UPDATE log SET kind = 'blank' WHERE position = 3", "entry 3 is not what was written"),
        ("DELETE FROM log WHERE position = 2", "entry 2 is missing"),
        ("DELETE FROM log WHERE position = 0", "entry 0 is missing"),
        ("DELETE FROM log WHERE position = 4", "entry 4 is missing"),
        ("UPDATE log SET chain = zeroblob(32) WHERE position = 3", "entry 3 is not what was written"),
        ("UPDATE raft SET value = 'x' WHERE name = 'vote'", "expected value"),
    ] {
        let _ = std::fs::remove_file(&path);
        let store = begun(&path, Limits::default()).await;
        store.propose(token(1)).await.unwrap();
        store.propose(token(2)).await.unwrap();
        store.close().await;
        execute(&path, damage).await;
        let error = open(&path).await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { .. }), "{damage}: {error}");
        assert!(error.to_string().contains(what), "{damage}: {error}");
        assert!(error.to_string().contains("flotilla state restore"), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let limits = Limits { snapshot_every: 10, ..Limits::default() };
    for (damage, what) in [
        ("UPDATE snapshot SET state = replace(state, 'home', 'away')", "is not what was written"),
        ("UPDATE snapshot SET membership = replace(membership, 'n1', 'n2')", "is not what was written"),
        ("UPDATE snapshot SET position = position - 1", "is not what was written"),
        ("DELETE FROM snapshot", "is missing"),
    ] {
        let _ = std::fs::remove_file(&path);
        let store = begun(&path, limits).await;
        for id in 0..20 {
            store.propose(token(id)).await.unwrap();
        }
        let mut status = store.consensus().status();
        status.wait_for(|status| status.snapshot >= 10).await.unwrap();
        store.close().await;
        execute(&path, damage).await;
        let error = open_with(&path, limits).await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { .. }), "{damage}: {error}");
        assert!(error.to_string().contains(what), "{damage}: {error}");
    }
}

#[tokio::test]
async fn the_state_of_another_machine_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    begun(&path, Limits::default()).await.close().await;
    let error = Store::open(&path, &NodeId("n2".to_owned())).await.unwrap_err();
    assert!(matches!(&error, Error::Foreign { owner, .. } if *owner == node()), "{error}");
}

/// What a loss of power leaves behind between writing an entry and writing what follows from it.
#[tokio::test]
async fn an_entry_that_was_written_and_not_applied_is_applied_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    for id in 0..5 {
        store.propose(token(id)).await.unwrap();
    }
    let (before, trail) = (store.state(), store.audit(None, None, 100).await.unwrap());
    store.close().await;
    execute(&path, "UPDATE raft SET value = replace(value, '\"index\":7', '\"index\":4') WHERE name = 'applied'").await;
    execute(&path, "UPDATE raft SET value = replace(value, '\"index\":7', '\"index\":4') WHERE name = 'committed'")
        .await;
    execute(&path, "DELETE FROM audit WHERE position > 5").await;
    let store = open(&path).await.unwrap();
    assert_eq!(*store.state(), State { applied: 8, ..(*before).clone() });
    assert_eq!(store.audit(None, None, 100).await.unwrap(), trail, "the audit trail has gaps, or rows twice");
    store.close().await;
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let bytes =
        b"this is not a database, and long enough to be looked at as one, as a header has 100 bytes of its own."
            .repeat(50);
    std::fs::write(&path, &bytes).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn a_torn_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    for id in 0..50 {
        store.propose(token(id)).await.unwrap();
    }
    store.close().await;
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    for newer in [
        "UPDATE meta SET value = '3' WHERE name = 'state-format'",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999, 'later', 1, x'00', 0)",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        begun(&path, Limits::default()).await.close().await;
        execute(&path, newer).await;
        let error = open(&path).await.unwrap_err();
        assert!(matches!(error, Error::Newer { .. }), "{newer}: {error}");
        assert!(error.to_string().contains("newer version of Flotilla"), "{error}");
    }
}

#[tokio::test]
async fn a_closed_store_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    store.close().await;
    assert!(matches!(store.propose(token(1)).await, Err(ProposeError::Store(Error::Closed))));
}

const CRASH_PATH: &str = "FLOTILLA_TEST_CRASH_PATH";

/// Not a test: the process that the next test kills. Writes as fast as it can, and prints each index once it is acknowledged.
#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn crash_child() {
    let Some(path) = std::env::var_os(CRASH_PATH) else { return };
    let store = open_with(Path::new(&path), Limits { snapshot_every: 50, ..Limits::default() }).await.unwrap();
    if store.state().cluster.is_none() {
        store.propose(init()).await.unwrap();
    }
    let writers = (0..8).map(|_| {
        let store = store.clone();
        async move {
            loop {
                let id = rand::random();
                let index = store.propose(token(id)).await.unwrap().index;
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {index}").unwrap();
                out.flush().unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
}

#[tokio::test]
async fn kill_9_in_the_middle_of_writing_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let mut acknowledged = 0;
    for round in 0..4 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash_child", "--ignored", "--nocapture"])
            .env(CRASH_PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = acknowledged + 60 + 17 * round;
        let mut read = |line: &str| {
            if let Some(index) = line.rsplit_once("acknowledged ").and_then(|(_, index)| index.parse::<u64>().ok()) {
                acknowledged = acknowledged.max(index);
            }
            acknowledged
        };
        for line in &mut lines {
            if read(&line.unwrap()) > enough {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it died was acknowledged, too.
        for line in lines.map_while(Result::ok) {
            read(&line);
        }
        let store = open(&path).await.unwrap();
        let applied = store.state().applied;
        assert!(applied >= acknowledged, "round {round}: {acknowledged} was acknowledged, {applied} is there");
        let written = rows(&path, "SELECT count(*) FROM audit WHERE kind = 'token-issued'").await;
        assert_eq!(store.state().tokens.len() as i64, written, "the audit trail is not that of the state");
        store.close().await;
    }
}
