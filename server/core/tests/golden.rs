//! The state log outlives the program: entries and snapshots that were written once stay readable, and mean the same.
//!
//! The files under `golden/` are never changed. A command with a new meaning is a new variant, and gets a file of its own;
//! `FLOTILLA_BLESS=1` writes those that are missing, and only those.
#![expect(clippy::disallowed_methods, reason = "a test compares files of the repository")]

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    Grant, NodeId, Revision, Scope, ServiceName, TokenId, UnixMillis,
    limit::{CopyLimit, LimitWindow},
    spec::{
        Attribute, Constraint, Given, HealthCheck, OnFailure, OnLoss, Operator, PlacementRules, Resources, Restart,
        ServiceSpec, UpdateOrder, UpdateRules, ValueKind, ValueUse, VolumeMount, VolumeRules,
    },
};
use flotilla_core::{
    Actor, Change, Command, CommandV1, Entry, State,
    command::{
        Availability, ClusterRecord, Copies, Generation, GenerationName, ImageChange, InvitationRecord, KeyId,
        MachineFacts, MachineRecord, Sealed, TokenRecord,
    },
    state::Power,
};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const LATER: UnixMillis = UnixMillis(1_900_000_000_000);

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A specification in which nothing is left out that there was when clusters were one machine.
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
        volumes: vec![VolumeMount {
            volume: "pg_data".parse().unwrap(),
            target: "/data".to_owned(),
            read_only: false,
            rules: VolumeRules::default(),
        }],
        tmpfs: vec!["/run:size=64m".to_owned()],
        values: Vec::new(),
        resources: Resources { cpu_millis: Some(1_500), memory_bytes: Some(512 << 20) },
        reservations: Resources::default(),
        placement: PlacementRules::default(),
        update: UpdateRules::default(),
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

/// One with all that came with several machines.
fn ruled() -> ServiceSpec {
    let constraint = |operator, attribute, value: &str| Constraint { attribute, operator, value: value.to_owned() };
    let mut spec = ServiceSpec {
        name: service("ruled"),
        depends_on: BTreeSet::new(),
        reservations: Resources { cpu_millis: Some(250), memory_bytes: Some(128 << 20) },
        placement: PlacementRules {
            constraints: vec![
                constraint(Operator::Equal, Attribute::Label("zone".to_owned()), "attic"),
                constraint(Operator::Unequal, Attribute::Hostname, "atlas"),
                constraint(Operator::Unequal, Attribute::Id, "node"),
            ],
            spread: vec![Attribute::Label("zone".to_owned())],
            max_per_machine: Some(2),
        },
        update: UpdateRules {
            order: UpdateOrder::StopFirst,
            parallelism: 2,
            delay_ms: 5_000,
            monitor_ms: Some(20_000),
            on_failure: OnFailure::Pause,
        },
        ..full()
    };
    spec.volumes[0].rules.on_loss = OnLoss::StartEmpty;
    spec
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
        stores_only: false,
    }
}

fn node() -> NodeId {
    NodeId("node".to_owned())
}

fn second() -> NodeId {
    NodeId("second".to_owned())
}

/// What clusters of one machine wrote, before there were leaders; in an order in which all are accepted.
fn commands_of_one() -> Vec<(&'static str, CommandV1)> {
    let cluster = ClusterRecord {
        id: "0123456789abcdef".repeat(2),
        name: "home".parse().unwrap(),
        token_key: "token-key".to_owned(),
    };
    let machine = MachineRecord {
        id: node(),
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
        ("volumes-purged", CommandV1::VolumesPurged { service: web(), machine: None }),
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

/// What came with several machines, after the above.
fn commands_of_several() -> Vec<(&'static str, CommandV1)> {
    let machine = MachineRecord {
        id: second(),
        name: "atlas".parse().unwrap(),
        public_key: "second-key".to_owned(),
        labels: BTreeMap::new(),
    };
    let facts = |memory_bytes| MachineFacts {
        addresses: vec!["192.0.2.7:7443".to_owned()],
        relay_port: Some(3478),
        cpu_millis: 4_000,
        memory_bytes,
        power: Power::Battery,
        version: "0.2.0".to_owned(),
    };
    let joins = InvitationRecord {
        id: TokenId("join".to_owned()),
        grant: Grant { scope: Scope::Machine, services: BTreeSet::new() },
        ..invitation()
    };
    let jobs = || service("jobs");
    let db = || service("db");
    let several = ServiceSpec { name: jobs(), replicas: 2, ..bare() };
    let assign = |service: ServiceName, replica, machine| Change::Assign {
        service,
        replica,
        machine,
        revision: Revision(1),
        restarts: 0,
        reason: "it has the most room".to_owned(),
    };
    let reason = || "its machine is drained".to_owned();
    // `jobs` gets the epochs that follow the index before the entry; `db` kept that of its deployment.
    let (first, other, kept) = (AFTER_ONE + 5, AFTER_ONE + 6, 2);
    let changes = vec![
        assign(jobs(), 1, node()),
        assign(jobs(), 2, node()),
        Change::Update { epoch: kept, revision: Revision(1), restarts: 0 },
        Change::Leave { epoch: first, reason: reason() },
        Change::Stay { epoch: first },
        Change::Vacate { epoch: other, reason: reason() },
        Change::End { epoch: other, reason: reason() },
        assign(jobs(), 2, second()),
        Change::StandBy { service: db(), machines: vec![second()] },
    ];
    let labels = BTreeMap::from([("zone".to_owned(), text("attic")), ("place".to_owned(), None)]);
    let deploy = |services| CommandV1::Deploy { stack: "shop".parse().unwrap(), services };
    let availability = |availability| CommandV1::SetAvailability { machine: second(), availability };
    let volumes_of_web = || {
        vec![Change::Assign {
            service: service("web"),
            replica: 1,
            machine: second(),
            revision: Revision(1),
            restarts: 0,
            reason: reason(),
        }]
    };
    vec![
        ("lead", CommandV1::Lead { node: node(), term: 1 }),
        ("create-invitation-of-a-machine", CommandV1::CreateInvitation { invitation: joins }),
        (
            "admit-machine",
            CommandV1::AdmitMachine { invitation: TokenId("join".to_owned()), machine, facts: facts(8 << 30) },
        ),
        ("deploy-several", deploy(vec![several])),
        ("place", CommandV1::Place { term: 1, changes }),
        ("rename-machine", CommandV1::RenameMachine { machine: second(), name: "boreas".parse().unwrap() }),
        ("label-machine", CommandV1::LabelMachine { machine: node(), labels }),
        ("announce-machine", CommandV1::AnnounceMachine { machine: second(), facts: facts(16 << 30) }),
        ("drain-machine", availability(Availability::Drained { since: NOW })),
        ("undrain-machine", availability(Availability::Active)),
        ("machine-lost", CommandV1::MachineLost { term: 1, machine: second() }),
        ("machine-back", CommandV1::MachineBack { term: 1, machine: second() }),
        ("set-lease", CommandV1::SetLease { term: 1, lease_ms: 3_000 }),
        ("deploy-with-a-volume", deploy(vec![full()])),
        ("place-with-a-volume", CommandV1::Place { term: 1, changes: volumes_of_web() }),
        ("remove-volumes-of-several", CommandV1::Remove { service: service("web"), volumes: true }),
        ("volumes-purged-on-a-machine", CommandV1::VolumesPurged { service: service("web"), machine: Some(node()) }),
        ("deploy-with-rules", deploy(vec![ruled()])),
        ("lead-again", CommandV1::Lead { node: second(), term: 4 }),
        ("remove-machine", CommandV1::RemoveMachine { machine: node() }),
    ]
}

/// Once data was kept on several machines.
fn commands_of_data() -> Vec<(&'static str, CommandV1)> {
    let third = || NodeId("third".to_owned());
    let joins = InvitationRecord {
        id: TokenId("joins-too".to_owned()),
        grant: Grant { scope: Scope::Machine, services: BTreeSet::new() },
        ..invitation()
    };
    let machine = MachineRecord {
        id: third(),
        name: "ceres".parse().unwrap(),
        public_key: "another key".to_owned(),
        labels: BTreeMap::new(),
    };
    let assign = Change::Assign {
        service: service("web"),
        replica: 1,
        machine: second(),
        revision: Revision(1),
        restarts: 0,
        reason: "it has the most room".to_owned(),
    };
    // Of the `web` that was removed before.
    let former = Change::End { epoch: 33, reason: "its service is gone".to_owned() };
    let replicate = Change::Replicate { service: service("web"), machines: vec![third()] };
    let copies = Copies { root: "ab".repeat(32), bytes: 4_096, holders: BTreeSet::from([second(), third()]) };
    let generation = Generation {
        name: GenerationName { epoch: AFTER_SEVERAL + 5, sequence: 1 },
        taken_at: NOW,
        last: true,
        volumes: BTreeMap::from([("pg_data".parse().unwrap(), copies)]),
    };
    let generations = BTreeMap::from([(service("web"), generation)]);
    vec![
        ("create-invitation-of-a-third", CommandV1::CreateInvitation { invitation: joins }),
        (
            "admit-a-third",
            CommandV1::AdmitMachine {
                invitation: TokenId("joins-too".to_owned()),
                machine,
                facts: MachineFacts::default(),
            },
        ),
        ("deploy-with-data", CommandV1::Deploy { stack: "shop".parse().unwrap(), services: vec![full()] }),
        ("lead-with-data", CommandV1::Lead { node: second(), term: 5 }),
        ("place-with-data", CommandV1::Place { term: 5, changes: vec![former, assign, replicate] }),
        ("commit-generations", CommandV1::CommitGenerations { machine: second(), generations }),
    ]
}

/// Once earlier states could be had again.
fn commands_of_history() -> Vec<(&'static str, CommandV1)> {
    let generation = GenerationName { epoch: AFTER_SEVERAL + 5, sequence: 1 };
    vec![("restore", CommandV1::Restore { service: service("web"), generation })]
}

/// Once the audit trail told of images.
fn commands_of_images() -> Vec<(&'static str, CommandV1)> {
    let images = vec!["notes:1".to_owned(), format!("sha256:{}", "cd".repeat(32))];
    vec![("note-images", CommandV1::NoteImages { change: ImageChange::Pushed, images })]
}

/// Once there were secrets and configs.
fn commands_of_values() -> Vec<(&'static str, CommandV1)> {
    let (secret, config) = (ValueKind::Secret, ValueKind::Config);
    let name = |name: &str| name.parse().unwrap();
    let sealed = |key: &str, letter: &str| Sealed { key: KeyId(key.to_owned()), bytes: letter.repeat(60).into() };
    let set = |kind, of: &str, version, letter| CommandV1::SetValue {
        kind,
        name: name(of),
        version,
        sealed: sealed("first", letter),
        update: true,
    };
    let file = |kind, of: &str, uid, target: &str| ValueUse {
        kind,
        name: name(of),
        version: 0,
        given: Given::File { target: target.to_owned(), uid, gid: uid, mode: 0o440 },
    };
    let values = vec![
        file(secret, "db-password", Some(999), "/run/secrets/db-password"),
        file(config, "db.conf", None, "/db.conf"),
        ValueUse { given: Given::Variable("PASSWORD".to_owned()), ..file(secret, "db-password", None, "") },
    ];
    let given = ServiceSpec { values, ..bare() };
    let rekey = CommandV1::UseValueKey { key: KeyId("second".to_owned()), instead_of: Some(KeyId("first".to_owned())) };
    let reseal = CommandV1::ResealValue {
        kind: secret,
        name: name("db-password"),
        version: 1,
        sealed: sealed("second", "d"),
        instead_of: None,
    };
    vec![
        ("set-secret", set(secret, "db-password", 1, "a")),
        ("set-config", set(config, "db.conf", 1, "b")),
        ("deploy-with-values", CommandV1::Deploy { stack: "shop".parse().unwrap(), services: vec![given] }),
        ("set-secret-again", set(secret, "db-password", 2, "c")),
        ("use-value-key", rekey),
        ("reseal-value", reseal),
        (
            "set-spare-config",
            CommandV1::SetValue {
                kind: config,
                name: name("spare"),
                version: 1,
                sealed: sealed("second", "e"),
                update: false,
            },
        ),
        ("remove-value", CommandV1::RemoveValue { kind: config, name: name("spare") }),
    ]
}

/// Once there were machines that only store.
fn commands_of_storage() -> Vec<(&'static str, CommandV1)> {
    let id = TokenId("storage".to_owned());
    let grant = Grant { scope: Scope::Machine, services: BTreeSet::new() };
    let invitation = InvitationRecord { id: id.clone(), grant, ..invitation() };
    let machine = MachineRecord {
        id: NodeId("storage-node".to_owned()),
        name: "cellar".parse().unwrap(),
        public_key: "storage key".to_owned(),
        labels: BTreeMap::new(),
    };
    let mut sealed = full();
    sealed.name = service("sealed");
    sealed.depends_on = BTreeSet::new();
    sealed.volumes[0].rules.encrypted = true;
    vec![
        ("invite-storage", CommandV1::InviteStorage { invitation }),
        ("admit-storage", CommandV1::AdmitMachine { invitation: id, machine, facts: MachineFacts::default() }),
        ("deploy-encrypted", CommandV1::Deploy { stack: "shop".parse().unwrap(), services: vec![sealed] }),
    ]
}

/// Once people said how much of a machine's line copies may take.
fn commands_of_limits() -> Vec<(&'static str, CommandV1)> {
    let windows = [("07:00-23:00", "500kB/s"), ("23:00-01:30", "0")];
    let window = |(span, rate): (&str, &str)| LimitWindow::new(span.parse().unwrap(), rate.parse().unwrap());
    let limit = CopyLimit { rate: Some("2MB/s".parse().unwrap()), windows: windows.map(window).into() };
    vec![
        ("limit-copies", CommandV1::LimitCopies { machine: second(), limit }),
        ("note-scrub", CommandV1::NoteScrub { machine: second() }),
    ]
}

/// Once machines got copies of what nobody writes.
fn commands_of_copies() -> Vec<(&'static str, CommandV1)> {
    let command = CommandV1::HoldGeneration {
        machine: NodeId("third".to_owned()),
        service: service("web"),
        generation: GenerationName { epoch: AFTER_SEVERAL + 5, sequence: 1 },
        volumes: BTreeMap::from([("pg_data".parse().unwrap(), "ab".repeat(32))]),
    };
    vec![("hold-generation", command)]
}

/// Commands of one machine, and the index of the last of them.
const AFTER_ONE: u64 = 18;

/// The index of the last command before data was kept on several machines.
const AFTER_SEVERAL: u64 = 38;

/// The index of the last command before earlier states of data could be had again.
const AFTER_DATA: u64 = 44;

/// The index of the last command before there were secrets and configs.
const AFTER_HISTORY: u64 = 45;

/// The index of the last command before the audit trail told of images.
const AFTER_VALUES: u64 = 53;

/// The index of the last command before there were machines that only store.
const AFTER_IMAGES: u64 = 54;

/// The index of the last command before there were limits of what is copied.
const AFTER_STORAGE: u64 = 57;

/// The index of the last command before machines got copies of what nobody writes.
const AFTER_LIMITS: u64 = 59;

/// The index of the last command with them.
const AFTER_COPIES: u64 = 60;

fn commands() -> Vec<(&'static str, CommandV1)> {
    let mut commands = commands_of_one();
    assert_eq!(commands.len() as u64, AFTER_ONE);
    commands.extend(commands_of_several());
    assert_eq!(commands.len() as u64, AFTER_SEVERAL);
    commands.extend(commands_of_data());
    assert_eq!(commands.len() as u64, AFTER_DATA);
    commands.extend(commands_of_history());
    assert_eq!(commands.len() as u64, AFTER_HISTORY);
    commands.extend(commands_of_values());
    assert_eq!(commands.len() as u64, AFTER_VALUES);
    commands.extend(commands_of_images());
    assert_eq!(commands.len() as u64, AFTER_IMAGES);
    commands.extend(commands_of_storage());
    assert_eq!(commands.len() as u64, AFTER_STORAGE);
    commands.extend(commands_of_limits());
    assert_eq!(commands.len() as u64, AFTER_LIMITS);
    commands.extend(commands_of_copies());
    assert_eq!(commands.len() as u64, AFTER_COPIES);
    commands
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

/// The state after so many of the entries.
fn snapshot(entries_of: usize) -> State {
    let mut state = State::default();
    for (name, entry) in entries().into_iter().take(entries_of) {
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
        CommandV1::AdmitMachine { .. } => "admit-machine",
        CommandV1::RemoveMachine { .. } => "remove-machine",
        CommandV1::RenameMachine { .. } => "rename-machine",
        CommandV1::LabelMachine { .. } => "label-machine",
        CommandV1::AnnounceMachine { .. } => "announce-machine",
        CommandV1::SetAvailability { .. } => "set-availability",
        CommandV1::Lead { .. } => "lead",
        CommandV1::Place { .. } => "place",
        CommandV1::MachineLost { .. } => "machine-lost",
        CommandV1::MachineBack { .. } => "machine-back",
        CommandV1::SetLease { .. } => "set-lease",
        CommandV1::CommitGenerations { .. } => "commit-generations",
        CommandV1::HoldGeneration { .. } => "hold-generation",
        CommandV1::Restore { .. } => "restore",
        CommandV1::NoteImages { .. } => "note-images",
        CommandV1::InviteStorage { .. } => "invite-storage",
        CommandV1::SetValue { .. } => "set-secret",
        CommandV1::RemoveValue { .. } => "remove-value",
        CommandV1::UseValueKey { .. } => "use-value-key",
        CommandV1::ResealValue { .. } => "reseal-value",
        CommandV1::LimitCopies { .. } => "limit-copies",
        CommandV1::NoteScrub { .. } => "note-scrub",
    };
    let covered: BTreeSet<&str> = commands().iter().map(|(_, command)| name(command)).collect();
    assert_eq!(covered.len(), 35);
}

#[test]
fn every_change_has_a_golden_file() {
    let name = |change: &Change| match change {
        Change::Assign { .. } => "assign",
        Change::Update { .. } => "update",
        Change::Leave { .. } => "leave",
        Change::Stay { .. } => "stay",
        Change::Vacate { .. } => "vacate",
        Change::End { .. } => "end",
        Change::StandBy { .. } => "stand-by",
        Change::Replicate { .. } => "replicate",
    };
    let commands = commands();
    let changes = commands.iter().flat_map(|(_, command)| match command {
        CommandV1::Place { changes, .. } => changes.as_slice(),
        _ => &[],
    });
    assert_eq!(changes.map(name).collect::<BTreeSet<&str>>().len(), 8);
}

/// States that are kept: before and after there were several machines, with all that a state could hold then, and so on.
const STATES: [(&str, u64); 8] = [
    ("state", AFTER_ONE),
    ("state-of-several", 33),
    ("state-at-last", AFTER_SEVERAL),
    ("state-with-data", AFTER_DATA),
    ("state-with-history", AFTER_HISTORY),
    ("state-with-values", AFTER_VALUES),
    ("state-with-storage", AFTER_STORAGE),
    ("state-with-limits", AFTER_LIMITS),
];

#[test]
fn a_snapshot_keeps_its_bytes() {
    for (name, entries_of) in STATES {
        let state = snapshot(entries_of as usize);
        let written = serde_json::to_string_pretty(&state).unwrap() + "\n";
        let kept = golden(name, &written);
        assert_eq!(serde_json::from_str::<State>(&kept).unwrap(), state, "{name}");
        assert_eq!(written, kept, "{name}");
    }
}

/// A node of an older version ran its services without placements.
#[test]
fn an_old_snapshot_goes_on_with_placements() {
    let state = snapshot(AFTER_ONE as usize).upgrade();
    let db = &state.services[&service("db")];
    let placed: Vec<(&NodeId, u64)> = db.placements.iter().map(|it| (&it.machine, it.epoch)).collect();
    assert_eq!(placed, [(&node(), 2)], "its container is of this epoch");
    assert_eq!(state.kept_on[&service("web")], BTreeSet::from([node()]), "what was left behind is found again");
    assert_eq!(state.kept_homes[&service("web")], node());
    assert_eq!(state.clone().upgrade(), state);

    let lead = entries().into_iter().find(|(name, _)| *name == "lead").unwrap().1;
    let mut upgraded = state;
    upgraded.apply(&lead).unwrap();
    assert_eq!(upgraded, snapshot(AFTER_ONE as usize + 1), "the log alone leads to the same");
}

/// A log is replayed by a newer program: what it amounts to may not change.
#[test]
fn the_kept_entries_still_amount_to_the_kept_snapshot() {
    let mut state = State::default();
    for (name, entry) in entries() {
        let kept = golden(name, &(serde_json::to_string_pretty(&entry).unwrap() + "\n"));
        state.apply(&serde_json::from_str(&kept).unwrap()).unwrap();
        for (name, _) in STATES.iter().filter(|(_, entries)| *entries == state.applied) {
            let kept = golden(name, "");
            assert_eq!(serde_json::from_str::<State>(&kept).unwrap(), state, "{name}");
        }
    }
}
