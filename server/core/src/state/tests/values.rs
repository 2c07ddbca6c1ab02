//! Secrets and configs: versions, who uses them, what is forgotten and what never is.

use flotilla_api::{
    ValueName,
    spec::{Given, ValueKind, ValueUse},
};

use super::*;
use crate::state::{KeyId, SEAL_BYTES, Sealed, VALUES_BYTES_MAX, VERSIONS_KEPT};

const SECRET: ValueKind = ValueKind::Secret;

fn value(name: &str) -> ValueName {
    name.parse().unwrap()
}

/// As if this many bytes had been sealed.
fn sealed(key: &str, bytes: usize) -> Sealed {
    Sealed { key: KeyId(key.to_owned()), bytes: "A".repeat(((bytes + SEAL_BYTES) * 4).div_ceil(3)).into() }
}

fn set(name: &str, version: u64, bytes: usize) -> CommandV1 {
    CommandV1::SetValue { kind: SECRET, name: value(name), version, sealed: sealed("key", bytes), update: true }
}

fn remove(name: &str) -> CommandV1 {
    CommandV1::RemoveValue { kind: SECRET, name: value(name) }
}

/// A service that is given secrets.
fn given(service: &str, secrets: &[&str]) -> ServiceSpec {
    let uses = secrets.iter().map(|name| ValueUse {
        kind: SECRET,
        name: value(name),
        version: 0,
        given: Given::File { target: format!("/run/secrets/{name}"), uid: None, gid: None, mode: 0o444 },
    });
    ServiceSpec { values: uses.collect(), ..spec(service, "app:1") }
}

impl Cluster {
    fn kept(&self, name: &str) -> Vec<u64> {
        self.state.values.secrets.get(&value(name)).into_iter().flat_map(|it| it.versions.keys().copied()).collect()
    }

    fn version_of(&self, service: &str) -> u64 {
        self.service(service).spec().values[0].version
    }

    fn confirm(&mut self, name: &str) {
        let revision = self.service(name).current;
        self.place();
        self.apply(CommandV1::ConfirmRevision { service: service(name), revision }).unwrap();
    }
}

#[test]
fn a_service_is_given_the_newest_version_and_each_new_one_as_a_revision() {
    let mut cluster = Cluster::new();
    cluster.apply(set("db", 1, 10)).unwrap();
    cluster.apply(set("db", 2, 10)).unwrap();
    cluster.deploy(&[given("notes", &["db"]), spec("other", "app:1")]).unwrap();
    assert_eq!(cluster.version_of("notes"), 2);
    let again = cluster.deploy(&[given("notes", &["db"]), spec("other", "app:1")]).unwrap();
    assert!(again.iter().all(|deployed| !deployed.changed), "the same file is the same service");

    let applied = cluster.apply(set("db", 3, 10)).unwrap();
    let Outcome::ValueSet { version: 3, updated } = applied.outcome else { panic!("{applied:?}") };
    assert_eq!(updated.iter().map(|it| it.service.as_str()).collect::<Vec<_>>(), ["notes"]);
    assert_eq!(cluster.version_of("notes"), 3);
    assert_eq!((cluster.service("notes").current, cluster.service("other").current), (Revision(2), Revision(1)));
    assert!(cluster.service("notes").record().note.as_deref().unwrap().contains("`db` has a new version, 3"));

    let later =
        CommandV1::SetValue { kind: SECRET, name: value("db"), version: 4, sealed: sealed("key", 10), update: false };
    cluster.apply(later).unwrap();
    assert_eq!(cluster.version_of("notes"), 3, "it was to wait for the next deployment");
    assert!(cluster.deploy(&[given("notes", &["db"])]).unwrap()[0].changed);
    assert_eq!(cluster.version_of("notes"), 4);
}

#[test]
fn a_revision_that_is_gone_back_to_is_given_what_it_had() {
    let mut cluster = Cluster::new();
    cluster.apply(set("db", 1, 10)).unwrap();
    cluster.deploy(&[given("notes", &["db"])]).unwrap();
    cluster.confirm("notes");
    cluster.apply(set("db", 2, 10)).unwrap();
    assert_eq!(cluster.version_of("notes"), 2);
    // The new password is wrong: the instances fail.
    cluster.apply(CommandV1::RollBack { service: service("notes"), to: Some(Revision(1)), reason: None }).unwrap();
    assert_eq!(cluster.version_of("notes"), 1);
}

#[test]
fn what_is_missing_or_in_use_is_named() {
    let mut cluster = Cluster::new();
    let refused = cluster.deploy(&[given("notes", &["db"])]).unwrap_err().0;
    assert_eq!(refused.code, ErrorCode::ValueNotFound);
    assert_eq!(
        refused.message,
        "`notes` uses the secret `db`, which the cluster does not have; make it with `flotilla secret set db`"
    );
    assert_eq!(cluster.refused(remove("db")), ErrorCode::ValueNotFound);
    cluster.apply(set("db", 1, 10)).unwrap();
    cluster.deploy(&[given("notes", &["db"]), given("web", &["db"])]).unwrap();
    cluster.confirm("notes");
    let refused = cluster.apply(remove("db")).unwrap_err().0;
    assert_eq!(refused.code, ErrorCode::ValueInUse);
    assert!(refused.message.contains("while `notes` and `web` use it"), "{}", refused.message);

    cluster.deploy(&[spec("notes", "app:1"), spec("web", "app:1")]).unwrap();
    let refused = cluster.apply(remove("db")).unwrap_err().0;
    assert!(refused.message.contains("`notes` goes back to a revision"), "{}", refused.message);
    cluster.confirm("notes");
    cluster.confirm("web");
    cluster.apply(remove("db")).unwrap();

    // A new secret of the name is not what the old revisions were given.
    assert_eq!(cluster.refused(set("db", 1, 10)), ErrorCode::Conflict);
    cluster.apply(set("db", 2, 10)).unwrap();
    let back = CommandV1::RollBack { service: service("notes"), to: Some(Revision(1)), reason: None };
    assert_eq!(cluster.refused(back), ErrorCode::ValueNotFound);
}

#[test]
fn only_versions_that_nobody_may_need_are_forgotten() {
    let mut cluster = Cluster::new();
    cluster.apply(set("db", 1, 10)).unwrap();
    cluster.deploy(&[given("notes", &["db"])]).unwrap();
    cluster.confirm("notes");
    for version in 2..=30 {
        let kind = SECRET;
        let (name, sealed) = (value("db"), sealed("key", 10));
        cluster.apply(CommandV1::SetValue { kind, name, version, sealed, update: false }).unwrap();
        let kept = cluster.kept("db");
        assert!(kept.len() <= VERSIONS_KEPT && kept.contains(&1) && kept.contains(&version), "{kept:?}");
    }
    assert_eq!(cluster.kept("db"), [1, 22, 23, 24, 25, 26, 27, 28, 29, 30]);
}

#[test]
fn all_values_together_have_a_limit_and_old_versions_go_first() {
    let mut cluster = Cluster::new();
    let half = VALUES_BYTES_MAX / 10;
    for (name, version) in [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2), ("c", 1), ("d", 1), ("e", 1), ("f", 1)] {
        cluster.apply(set(name, version, half)).unwrap();
    }
    cluster.apply(set("g", 1, half)).unwrap();
    assert_eq!((cluster.kept("a"), cluster.kept("b")), (vec![1, 2, 3], vec![1, 2]), "ten fit");
    cluster.apply(set("h", 1, half)).unwrap();
    assert_eq!((cluster.kept("a"), cluster.kept("b")), (vec![2, 3], vec![1, 2]), "the oldest went");
    for name in ["i", "j", "k"] {
        cluster.apply(set(name, 1, half)).unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
        if cluster.kept("a") == [3] && cluster.kept("b") == [2] {
            break;
        }
    }
    let refused = cluster.apply(set("z", 1, half)).unwrap_err().0;
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(refused.message.contains("remove some first"), "{}", refused.message);
    cluster.apply(remove("c")).unwrap();
    cluster.apply(set("z", 1, half)).unwrap();
}

#[test]
fn what_is_no_sealed_value_is_refused() {
    let mut cluster = Cluster::new();
    let command = |sealed| CommandV1::SetValue { kind: SECRET, name: value("db"), version: 1, sealed, update: true };
    let of = |bytes: &str| Sealed { key: KeyId("key".to_owned()), bytes: bytes.into() };
    for bad in [of(""), of("plain"), of(&"*".repeat(80)), sealed("", 10), sealed("key", 500 * 1024 + 3)] {
        assert_eq!(cluster.refused(command(bad)), ErrorCode::InvalidRequest);
    }
    assert_eq!(cluster.refused(set("db", 2, 10)), ErrorCode::Conflict, "the first is 1");
    cluster.apply(set("db", 1, 500 * 1024)).unwrap();
}

#[test]
fn a_new_key_takes_the_place_of_the_old_one_value_by_value() {
    let mut cluster = Cluster::new();
    let id = |key: &str| KeyId(key.to_owned());
    cluster.apply(set("db", 1, 10)).unwrap();
    cluster.apply(set("db", 2, 10)).unwrap();
    let change = |key: &str, instead: &str| CommandV1::UseValueKey { key: id(key), instead_of: Some(id(instead)) };
    assert_eq!(cluster.refused(change("new", "another")), ErrorCode::Conflict);
    cluster.apply(change("new", "key")).unwrap();
    assert_eq!(cluster.state.values.keys().len(), 2);
    assert_eq!(cluster.refused(set("db", 3, 10)), ErrorCode::Conflict, "sealed with the old key");
    let reseal = |version, bytes| CommandV1::ResealValue {
        kind: SECRET,
        name: value("db"),
        version,
        sealed: sealed("new", bytes),
        instead_of: Some(id("key")),
    };
    assert_eq!(cluster.refused(reseal(3, 10)), ErrorCode::ValueNotFound);
    assert_eq!(cluster.refused(reseal(2, 11)), ErrorCode::InvalidRequest, "another value");
    for version in [1, 2] {
        cluster.apply(reseal(version, 10)).unwrap();
    }
    assert_eq!(cluster.refused(reseal(2, 10)), ErrorCode::ValueNotFound, "that may be another one by now");
    assert_eq!(cluster.state.values.keys().into_iter().collect::<Vec<_>>(), [&id("new")]);
    assert_eq!(cluster.state.next_version(SECRET, &value("db")), 3, "it is the same value still");
}

#[test]
fn no_debug_text_has_what_is_sealed() {
    let text = format!("{:?}", set("db", 1, 100));
    assert!(!text.contains("AAAA"), "{text}");
}
