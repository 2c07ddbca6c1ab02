//! Files that one machine wrote before the log was replicated.

use sha2::{Digest, Sha256};
use sqlx::{ConnectOptions, Connection};

use super::*;

/// Writes a file as version 0.1 did: entries chained by SHA-256 over the texts, and a snapshot after the first `folded` of them.
async fn write(path: &Path, entries: &[Entry], folded: usize) -> State {
    std::fs::File::create(path).unwrap();
    let mut connection = options(path, Limits::default()).connect().await.unwrap();
    // The migrator remembers what it ran; a directory with the old ones alone makes an old file.
    let old = tempfile::tempdir().unwrap();
    for name in ["0001_state_log.sql", "0002_machines.sql"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(name);
        std::fs::copy(from, old.path().join(name)).unwrap();
    }
    sqlx::migrate::Migrator::new(old.path()).await.unwrap().run(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO meta (name, value) VALUES ('state-format', '1')").execute(&mut connection).await.unwrap();
    let mut state = State::default();
    let mut chain = [0_u8; 32];
    for (number, entry) in entries.iter().enumerate() {
        let text = serde_json::to_string(entry).unwrap();
        chain = Sha256::new().chain_update(chain).chain_update(&text).finalize().into();
        state.apply(entry).unwrap();
        if number < folded {
            let snapshot = serde_json::to_string(&state).unwrap();
            sqlx::query(
                "INSERT OR REPLACE INTO snapshot (id, position, state, digest, chain) VALUES (1, ?1, ?2, ?3, ?4)",
            )
            .bind(state.applied.cast_signed())
            .bind(&snapshot)
            .bind(Sha256::digest(&snapshot).as_slice())
            .bind(chain.as_slice())
            .execute(&mut connection)
            .await
            .unwrap();
        } else {
            sqlx::query("INSERT INTO log (position, entry, chain) VALUES (?1, ?2, ?3)")
                .bind(state.applied.cast_signed())
                .bind(&text)
                .bind(chain.as_slice())
                .execute(&mut connection)
                .await
                .unwrap();
        }
    }
    connection.close().await.unwrap();
    state
}

fn entries(tokens: u64) -> Vec<Entry> {
    [init()].into_iter().chain((0..tokens).map(token)).collect()
}

#[tokio::test]
async fn the_state_of_one_machine_goes_on_as_a_group_of_one() {
    for folded in [0, 1, 7, 11] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let before = write(&path, &entries(10), folded).await;
        let store = open(&path).await.unwrap();
        // Its entries keep their numbers; the new leader's follows.
        assert_eq!(*store.state(), State { applied: 12, ..before.clone() }, "{folded} entries were in a snapshot");
        let status = store.consensus().status().borrow().clone();
        assert!(status.is_alone() && status.leads && status.term > 1, "{status:?}");
        assert_eq!(store.propose(token(10)).await.unwrap().index, 13);
        store.close().await;
        // And again, as it is now.
        let store = open(&path).await.unwrap();
        assert_eq!(store.state().tokens.len(), 11);
        store.close().await;
        assert_eq!(rows(&path, "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%_of_one'").await, 0);
    }
}

#[tokio::test]
async fn an_empty_file_of_one_machine_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    write(&path, &[], 0).await;
    let store = begun(&path, Limits::default()).await;
    assert!(store.state().cluster.is_some());
    store.close().await;
}

#[tokio::test]
async fn a_damaged_file_of_one_machine_is_refused_and_left_as_it_is() {
    for (damage, what) in [
        ("UPDATE log SET entry = replace(entry, 'ada', 'eve') WHERE position = 5", "entry 5 is not what was written"),
        ("DELETE FROM log WHERE position = 5", "entry 5 is missing"),
        (
            "UPDATE snapshot SET state = replace(state, 'home', 'away')",
            "the snapshot at entry 3 is not what was written",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        write(&path, &entries(10), 3).await;
        execute(&path, damage).await;
        // A second look finds the same: nothing was half converted.
        for _ in 0..2 {
            let error = open(&path).await.unwrap_err();
            assert!(matches!(&error, Error::Damaged { .. }), "{damage}: {error}");
            assert!(error.to_string().contains(what), "{damage}: {error}");
        }
    }
}
