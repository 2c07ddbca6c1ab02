//! Commands of every kind, in an order in which all are accepted; what came later stands below what was there before.

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
    Change, CommandV1,
    command::{
        Availability, ClusterRecord, Copies, Generation, GenerationName, ImageChange, InvitationRecord, KeyId,
        MachineFacts, MachineRecord, Sealed, TokenRecord,
    },
    state::Power,
};

pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
pub(crate) const LATER: UnixMillis = UnixMillis(1_900_000_000_000);

pub(crate) fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

pub(crate) fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A specification in which nothing is left out that there was when clusters were one machine.
pub(crate) fn full() -> ServiceSpec {
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
pub(crate) fn ruled() -> ServiceSpec {
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
pub(crate) fn bare() -> ServiceSpec {
    let text = "services:\n  db:\n    image: postgres:17\n";
    flotilla_core::compose::read(text, Some("shop"), &BTreeMap::new()).unwrap().services.remove(0)
}

pub(crate) fn token(id: &str) -> TokenRecord {
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

pub(crate) fn invitation() -> InvitationRecord {
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

pub(crate) fn node() -> NodeId {
    NodeId("node".to_owned())
}

pub(crate) fn second() -> NodeId {
    NodeId("second".to_owned())
}

/// What clusters of one machine wrote, before there were leaders; in an order in which all are accepted.
pub(crate) fn commands_of_one() -> Vec<(&'static str, CommandV1)> {
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
pub(crate) fn commands_of_several() -> Vec<(&'static str, CommandV1)> {
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
pub(crate) fn commands_of_data() -> Vec<(&'static str, CommandV1)> {
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
        ("commit-generations", CommandV1::CommitGenerations { machine: second(), generations, seen: 0 }),
    ]
}

/// Once earlier states could be had again.
pub(crate) fn commands_of_history() -> Vec<(&'static str, CommandV1)> {
    let generation = GenerationName { epoch: AFTER_SEVERAL + 5, sequence: 1 };
    vec![("restore", CommandV1::Restore { service: service("web"), generation })]
}

/// Once the audit trail told of images.
pub(crate) fn commands_of_images() -> Vec<(&'static str, CommandV1)> {
    let images = vec!["notes:1".to_owned(), format!("sha256:{}", "cd".repeat(32))];
    vec![("note-images", CommandV1::NoteImages { change: ImageChange::Pushed, images })]
}

/// Once there were secrets and configs.
pub(crate) fn commands_of_values() -> Vec<(&'static str, CommandV1)> {
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
pub(crate) fn commands_of_storage() -> Vec<(&'static str, CommandV1)> {
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
pub(crate) fn commands_of_limits() -> Vec<(&'static str, CommandV1)> {
    let windows = [("07:00-23:00", "500kB/s"), ("23:00-01:30", "0")];
    let window = |(span, rate): (&str, &str)| LimitWindow::new(span.parse().unwrap(), rate.parse().unwrap());
    let limit = CopyLimit { rate: Some("2MB/s".parse().unwrap()), windows: windows.map(window).into() };
    vec![
        ("limit-copies", CommandV1::LimitCopies { machine: second(), limit }),
        ("note-scrub", CommandV1::NoteScrub { machine: second() }),
    ]
}

/// Once machines got copies of what nobody writes.
pub(crate) fn commands_of_copies() -> Vec<(&'static str, CommandV1)> {
    let command = CommandV1::HoldGeneration {
        machine: NodeId("third".to_owned()),
        service: service("web"),
        generation: GenerationName { epoch: AFTER_SEVERAL + 5, sequence: 1 },
        volumes: BTreeMap::from([("pg_data".parse().unwrap(), "ab".repeat(32))]),
        seen: 0,
    };
    vec![("hold-generation", command)]
}

/// Once machines gave up copies that others keep now.
pub(crate) fn commands_of_former_copies() -> Vec<(&'static str, CommandV1)> {
    let (storage, third) = (NodeId("storage-node".to_owned()), NodeId("third".to_owned()));
    let mut kept = full();
    kept.name = service("kept");
    kept.depends_on = BTreeSet::new();
    kept.volumes.truncate(1);
    kept.volumes[0].rules.encrypted = true;
    kept.volumes[0].rules.replicas = 1;
    let volume = kept.volumes[0].volume.clone();
    let assign = Change::Assign {
        service: service("kept"),
        replica: 1,
        machine: second(),
        revision: Revision(1),
        restarts: 0,
        reason: "it has the most room".to_owned(),
    };
    let replicate = |machine: &NodeId| Change::Replicate { service: service("kept"), machines: vec![machine.clone()] };
    let commit = |holder: &NodeId, seen: u64| {
        let copies =
            Copies { root: "cd".repeat(32), bytes: 4_096, holders: BTreeSet::from([second(), holder.clone()]) };
        let generation = Generation {
            name: GenerationName { epoch: AFTER_COPIES + 2, sequence: 1 },
            taken_at: NOW,
            last: false,
            volumes: BTreeMap::from([(volume.clone(), copies)]),
        };
        let generations = BTreeMap::from([(service("kept"), generation)]);
        CommandV1::CommitGenerations { machine: second(), generations, seen }
    };
    let place = |changes: Vec<Change>| CommandV1::Place { term: 5, changes };
    vec![
        ("deploy-kept", CommandV1::Deploy { stack: "shop".parse().unwrap(), services: vec![kept] }),
        ("place-kept", place(vec![assign, replicate(&third)])),
        ("commit-kept", commit(&third, AFTER_COPIES + 2)),
        ("replicate-kept-elsewhere", place(vec![replicate(&storage)])),
        ("commit-kept-elsewhere", commit(&storage, AFTER_COPIES + 4)),
        ("drop-copy", CommandV1::DropCopy { machine: third.clone(), service: service("kept") }),
        ("commit-kept-by-who-has-not-heard", commit(&third, AFTER_COPIES + 4)),
    ]
}

/// Commands of one machine, and the index of the last of them.
pub(crate) const AFTER_ONE: u64 = 18;

/// The index of the last command before data was kept on several machines.
pub(crate) const AFTER_SEVERAL: u64 = 38;

/// The index of the last command before earlier states of data could be had again.
pub(crate) const AFTER_DATA: u64 = 44;

/// The index of the last command before there were secrets and configs.
pub(crate) const AFTER_HISTORY: u64 = 45;

/// The index of the last command before the audit trail told of images.
pub(crate) const AFTER_VALUES: u64 = 53;

/// The index of the last command before there were machines that only store.
pub(crate) const AFTER_IMAGES: u64 = 54;

/// The index of the last command before there were limits of what is copied.
pub(crate) const AFTER_STORAGE: u64 = 57;

/// The index of the last command before machines got copies of what nobody writes.
pub(crate) const AFTER_LIMITS: u64 = 59;

/// The index of the last command before machines gave up copies.
pub(crate) const AFTER_COPIES: u64 = 60;

/// The index of the last command with them.
pub(crate) const AFTER_FORMER_COPIES: u64 = 67;

pub(crate) fn commands() -> Vec<(&'static str, CommandV1)> {
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
    commands.extend(commands_of_former_copies());
    assert_eq!(commands.len() as u64, AFTER_FORMER_COPIES);
    commands
}
