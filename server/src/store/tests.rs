use std::{
    io::{BufRead, BufReader, Write},
    process::{Command as Process, Stdio},
};

use flotilla_api::{ApiError, ErrorCode, Grant, NodeId, TokenId};
use flotilla_core::{
    Actor, Command, CommandV1,
    command::{ClusterRecord, MachineRecord, TokenRecord},
};

use super::*;

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

/// A store with a cluster in it.
async fn begun(path: &Path, limits: Limits) -> Store {
    let store = Store::open_with(path, limits).await.unwrap();
    store.propose(init()).await.unwrap();
    store
}

async fn rows(path: &Path, sql: &'static str) -> i64 {
    use sqlx::{ConnectOptions, Connection};
    let mut connection = disk::options(path, Limits::default()).connect().await.unwrap();
    let count = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    count
}

async fn execute(path: &Path, sql: &'static str) {
    use sqlx::{ConnectOptions, Connection};
    let mut connection = disk::options(path, Limits::default()).connect().await.unwrap();
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let store = begun(&path, Limits::default()).await;
    let committed = store.propose(token(1)).await.unwrap();
    assert_eq!(committed, Committed { index: 2, outcome: Outcome::Done });
    let before = store.state();
    store.close().await;

    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.state(), before);
    assert_eq!(store.state().applied, 2);
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
    assert_eq!(rows(&path, "SELECT count(*) FROM log").await, 1);
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
    assert_eq!(indices, (2..=201).collect::<Vec<u64>>());
    store.close().await;
    let reopened = Store::open(&path).await.unwrap();
    assert_eq!(reopened.state().tokens.len(), 200);
    reopened.close().await;
}

#[tokio::test]
async fn the_log_is_folded_into_a_snapshot_and_the_state_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let limits = Limits { snapshot_every: 10, audit_rows: 15, pages: None };
    let store = begun(&path, limits).await;
    for id in 0..44 {
        store.propose(token(id)).await.unwrap();
    }
    let before = store.state();
    store.close().await;
    assert!(rows(&path, "SELECT count(*) FROM log").await < 10);
    assert!(rows(&path, "SELECT count(*) FROM audit").await < 15 + 10 + 1);
    let store = Store::open_with(&path, limits).await.unwrap();
    assert_eq!(store.state(), before);
    // The chain goes on over the snapshot.
    store.propose(token(44)).await.unwrap();
    store.close().await;
    Store::open_with(&path, limits).await.unwrap().close().await;
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
    assert_eq!(trail[1].event.index, Some(2));
    assert_eq!(trail[1].event.kind, "token-issued");
    assert_eq!((trail[1].event.actor.as_str(), trail[1].event.at), ("ada", NOW));
    assert_eq!((trail[1].token.as_deref(), trail[1].event.from.as_deref()), (Some("t1"), Some("192.0.2.1")));
    assert_eq!(events.recv().await.unwrap(), trail[1]);
    assert_eq!(store.audit(Some(2), None, 10).await.unwrap(), trail[..1]);
    assert_eq!(store.audit(None, Some(&"notes".parse().unwrap()), 10).await.unwrap(), []);
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_refuses_the_change_and_the_next_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let full = Limits { pages: Some(24), ..Limits::default() };
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

    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.state(), before);
    store.propose(token(id)).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn damage_is_told_and_not_repaired() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    for (damage, what) in [
        ("UPDATE log SET entry = replace(entry, 'ada', 'eve') WHERE position = 2", "entry 2 is not what was written"),
        ("DELETE FROM log WHERE position = 2", "entry 2 is missing"),
        ("DELETE FROM log WHERE position = 1", "entry 1 is missing"),
        ("UPDATE log SET chain = zeroblob(32) WHERE position = 3", "entry 3 is not what was written"),
    ] {
        let _ = std::fs::remove_file(&path);
        let store = begun(&path, Limits::default()).await;
        store.propose(token(1)).await.unwrap();
        store.propose(token(2)).await.unwrap();
        store.close().await;
        execute(&path, damage).await;
        let error = Store::open(&path).await.unwrap_err();
        assert!(matches!(&error, Error::Damaged { .. }), "{damage}: {error}");
        assert!(error.to_string().contains(what), "{damage}: {error}");
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let bytes =
        b"this is not a database, and long enough to be looked at as one, as a header has 100 bytes of its own."
            .repeat(50);
    std::fs::write(&path, &bytes).unwrap();
    let error = Store::open(&path).await.unwrap_err();
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
    let error = Store::open(&path).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    for newer in [
        "UPDATE meta SET value = '2' WHERE name = 'state-format'",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999, 'later', 1, x'00', 0)",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        begun(&path, Limits::default()).await.close().await;
        execute(&path, newer).await;
        let error = Store::open(&path).await.unwrap_err();
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
    let store = Store::open_with(Path::new(&path), Limits { snapshot_every: 50, ..Limits::default() }).await.unwrap();
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
        let store = Store::open(&path).await.unwrap();
        let applied = store.state().applied;
        assert!(applied >= acknowledged, "round {round}: {acknowledged} was acknowledged, {applied} is there");
        assert_eq!(store.state().tokens.len() as u64 + 1, applied);
        store.close().await;
    }
}
