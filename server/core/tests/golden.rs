//! The state log outlives the program: entries and snapshots that were written once stay readable, and mean the same.
//!
//! The files under `golden/` are never changed. A command with a new meaning is a new variant, and gets a file of its own;
//! `FLOTILLA_BLESS=1` writes those that are missing, and only those.
#![expect(clippy::disallowed_methods, reason = "a test compares files of the repository")]

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    Grant, NodeId, Revision, Scope, ServiceName, TokenId, UnixMillis,
    spec::{HealthCheck, Resources, Restart, ServiceSpec, VolumeMount},
};
use flotilla_core::{
    Actor, Command, CommandV1, Entry, State,
    command::{ClusterRecord, InvitationRecord, MachineRecord, TokenRecord},
};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const LATER: UnixMillis = UnixMillis(1_900_000_000_000);

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A specification in which nothing is left out.
fn full() -> ServiceSpec {
    ServiceSpec {
        name: service("web"),
        stack: "shop".parse().unwrap(),
        image: "localhost:5000/web:1".to_owned(),
        image_id: Some(format!("sha256:{}", "cd".repeat(32))),
        entrypoint: Some(vec!["/entry".to_owned()]),
        command: Some(vec!["serve".to_owned(), "--port=80".to_owned()]),
        environment: BTreeMap::from([("LOG".to_owned(), "info".to_owned())]),
        port: Some(80),
        volumes: vec![VolumeMount { volume: "pg_data".parse().unwrap(), target: "/data".to_owned(), read_only: false }],
        tmpfs: vec!["/run:size=64m".to_owned()],
        resources: Resources { cpu_millis: Some(1_500), memory_bytes: Some(512 << 20) },
        health: Some(HealthCheck {
            test: vec!["CMD".to_owned(), "check".to_owned()],
            interval_ms: 30_000,
            timeout_ms: 5_000,
            start_period_ms: 0,
            retries: 3,
        }),
        labels: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        user: text("1000:1000"),
        working_dir: text("/srv"),
        hostname: text("web"),
        restart: Restart::OnFailure { max: Some(5) },
        replicas: 1,
        depends_on: BTreeSet::from([service("db")]),
        init: true,
        read_only: true,
        cap_add: BTreeSet::from(["NET_ADMIN".to_owned()]),
        cap_drop: BTreeSet::from(["ALL".to_owned()]),
        stop_signal: text("SIGINT"),
        stop_grace_ms: 10_000,
    }
}

/// One in which everything is left out that can be.
fn bare() -> ServiceSpec {
    let text = "services:\n  db:\n    image: postgres:17\n";
    flotilla_core::compose::read(text, Some("shop"), &BTreeMap::new()).unwrap().services.remove(0)
}

fn token(id: &str) -> TokenRecord {
    TokenRecord {
        id: TokenId(id.to_owned()),
        name: "Ada's laptop".to_owned(),
        grant: Grant { scope: Scope::User, services: BTreeSet::from([service("web")]) },
        created_at: NOW,
        expires_at: LATER,
        revoked_at: None,
        bound_to: text("thumbprint"),
        made_from: None,
    }
}

fn invitation() -> InvitationRecord {
    let TokenRecord { name, grant, created_at, expires_at, .. } = token("");
    InvitationRecord {
        id: TokenId("invitation".to_owned()),
        name,
        grant,
        secret_hash: "ab".repeat(32),
        created_at,
        expires_at,
        used_at: None,
    }
}

/// Every command, in an order in which all are accepted.
fn commands() -> Vec<(&'static str, CommandV1)> {
    let cluster = ClusterRecord {
        id: "0123456789abcdef".repeat(2),
        name: "home".parse().unwrap(),
        token_key: "token-key".to_owned(),
    };
    let machine = MachineRecord {
        id: NodeId("node".to_owned()),
        name: "laptop".parse().unwrap(),
        public_key: "public-key".to_owned(),
        labels: BTreeMap::from([("place".to_owned(), "attic".to_owned())]),
    };
    let web = || service("web");
    let mut changed = full();
    changed.image = "localhost:5000/web:2".to_owned();
    let deploy = |services| CommandV1::Deploy { stack: "shop".parse().unwrap(), services };
    vec![
        ("init", CommandV1::Init { cluster, machine }),
        ("deploy", deploy(vec![full(), bare()])),
        ("confirm-revision", CommandV1::ConfirmRevision { service: web(), revision: Revision(1) }),
        ("deploy-again", deploy(vec![changed])),
        ("roll-back", CommandV1::RollBack { service: web(), to: Some(Revision(1)), reason: text("it failed") }),
        ("roll-back-to-the-last", CommandV1::RollBack { service: web(), to: None, reason: None }),
        ("scale", CommandV1::Scale { service: web(), replicas: 0 }),
        ("restart", CommandV1::Restart { service: web() }),
        ("remove", CommandV1::Remove { service: web(), volumes: false }),
        ("remove-volumes", CommandV1::Remove { service: web(), volumes: true }),
        ("volumes-purged", CommandV1::VolumesPurged { service: web() }),
        ("deploy-after-removal", deploy(vec![full()])),
        ("remove-again", CommandV1::Remove { service: web(), volumes: false }),
        ("issue-token", CommandV1::IssueToken { token: token("token") }),
        ("renew-token", CommandV1::RenewToken { id: TokenId("token".to_owned()), expires_at: UnixMillis(LATER.0 + 1) }),
        ("revoke-token", CommandV1::RevokeToken { id: TokenId("token".to_owned()) }),
        ("create-invitation", CommandV1::CreateInvitation { invitation: invitation() }),
        (
            "redeem-invitation",
            CommandV1::RedeemInvitation { id: TokenId("invitation".to_owned()), token: token("redeemed") },
        ),
    ]
}

fn entries() -> Vec<(&'static str, Entry)> {
    let actor =
        Actor { name: "Ada".to_owned(), token: Some(TokenId("admin".to_owned())), from: text("192.0.2.1:4711") };
    commands()
        .into_iter()
        .enumerate()
        .map(|(index, (name, command))| {
            let at = NOW.plus(index as u64);
            (name, Entry { at, actor: actor.clone(), command: Command::V1(command) })
        })
        .collect()
}

fn snapshot() -> State {
    let mut state = State::default();
    for (name, entry) in entries() {
        state.apply(&entry).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
    }
    state
}

fn golden(name: &str, written: &str) -> String {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if std::env::var_os("FLOTILLA_BLESS").is_some() => {
            std::fs::write(&path, written).unwrap();
            written.to_owned()
        }
        Err(error) => panic!("{path}: {error}; `FLOTILLA_BLESS=1` writes it"),
    }
}

#[test]
fn entries_keep_their_bytes() {
    for (name, entry) in entries() {
        let written = serde_json::to_string_pretty(&entry).unwrap() + "\n";
        let kept = golden(name, &written);
        let read: Entry = serde_json::from_str(&kept).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read, entry, "{name} is read as something else");
        assert_eq!(written, kept, "{name} is written otherwise");
    }
}

#[test]
fn every_command_has_a_golden_file() {
    // A new variant makes this match incomplete: give it an entry above, and an arm here.
    let name = |command: &CommandV1| match command {
        CommandV1::Init { .. } => "init",
        CommandV1::Deploy { .. } => "deploy",
        CommandV1::RollBack { .. } => "roll-back",
        CommandV1::Scale { .. } => "scale",
        CommandV1::Restart { .. } => "restart",
        CommandV1::Remove { .. } => "remove",
        CommandV1::ConfirmRevision { .. } => "confirm-revision",
        CommandV1::VolumesPurged { .. } => "volumes-purged",
        CommandV1::IssueToken { .. } => "issue-token",
        CommandV1::RenewToken { .. } => "renew-token",
        CommandV1::RevokeToken { .. } => "revoke-token",
        CommandV1::CreateInvitation { .. } => "create-invitation",
        CommandV1::RedeemInvitation { .. } => "redeem-invitation",
    };
    let covered: BTreeSet<&str> = commands().iter().map(|(_, command)| name(command)).collect();
    assert_eq!(covered.len(), 13);
}

#[test]
fn a_snapshot_keeps_its_bytes() {
    let state = snapshot();
    let written = serde_json::to_string_pretty(&state).unwrap() + "\n";
    let kept = golden("state", &written);
    assert_eq!(serde_json::from_str::<State>(&kept).unwrap(), state);
    assert_eq!(written, kept);
}

/// A log is replayed by a newer program: what it amounts to may not change.
#[test]
fn the_kept_entries_still_amount_to_the_kept_snapshot() {
    let mut state = State::default();
    for (name, entry) in entries() {
        let kept = golden(name, &(serde_json::to_string_pretty(&entry).unwrap() + "\n"));
        state.apply(&serde_json::from_str(&kept).unwrap()).unwrap();
    }
    let kept = golden("state", &(serde_json::to_string_pretty(&state).unwrap() + "\n"));
    assert_eq!(serde_json::from_str::<State>(&kept).unwrap(), state);
}
