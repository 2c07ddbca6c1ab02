//! Machines that share a log and not their keys: who can open what, and how keys travel.

use std::{fs, path::PathBuf};

use flotilla_core::state::KeyId;

use super::*;
use crate::{
    consensus::{
        Consensus,
        tests::{Bed, PATIENCE},
    },
    peers::{Handler, Stream},
};

const SECRET: ValueKind = ValueKind::Secret;

/// Answers for one machine, as the node does.
struct Answers {
    consensus: Consensus,
    vault: Vault,
}

impl Handler for Answers {
    fn call(&self, from: NodeId, method: Method, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        match method {
            Method::Keys => {
                let vault = self.vault.clone();
                Box::pin(async move { vault.answer(&from, &body).await })
            }
            _ => self.consensus.call(from, method, body),
        }
    }

    fn stream(&self, _: NodeId, _: String, _: Stream) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

struct Machines {
    bed: Bed,
    vaults: Vec<Vault>,
}

impl Machines {
    /// All of them vote, and none has a key.
    async fn of(count: u64) -> Self {
        let bed = Bed::of(count).await;
        let mut machines = Self { bed, vaults: Vec::new() };
        for number in 1..=count {
            let vault = machines.open(number);
            machines.vaults.push(vault);
        }
        machines
    }

    fn ring(&self, number: u64) -> PathBuf {
        self.bed.directory.path().join(format!("{number}.values.json"))
    }

    /// Begins with what is on the machine's disk.
    fn open(&self, number: u64) -> Vault {
        let (node, store) = (NodeId::from(number), self.bed[number].clone());
        let vault =
            Vault::open_at(&self.ring(number), node.clone(), store.clone(), self.bed.wires.join(&node)).unwrap();
        let answers = Answers { consensus: store.consensus().clone(), vault: vault.clone() };
        self.bed.wires.serve(&node, Arc::new(answers));
        vault
    }

    /// The machine loses its keys, and starts again.
    fn forget(&mut self, number: u64) {
        fs::remove_file(self.ring(number)).unwrap();
        self.vaults[number as usize - 1] = self.open(number);
    }

    fn vault(&self, number: u64) -> &Vault {
        &self.vaults[number as usize - 1]
    }

    async fn set(&self, on: u64, name: &str, plain: &str) -> Result<ValueSet, ApiError> {
        self.vault(on).set(&actor(), (SECRET, &value(name)), &Opened::new(plain.into()), true).await
    }

    async fn reveal(&self, on: u64, name: &str, version: u64) -> Result<String, ApiError> {
        self.bed.settle().await;
        let opened = self.vault(on).reveal(SECRET, &value(name), version).await?;
        Ok(String::from_utf8(opened.bytes().to_vec()).unwrap())
    }
}

fn actor() -> Actor {
    Actor { name: "ada".to_owned(), token: None, from: None }
}

fn value(name: &str) -> ValueName {
    name.parse().unwrap()
}

fn key_of(store: &Store) -> KeyId {
    store.state().values.key.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_machine_seals_another_opens_and_the_log_does_not_tell() {
    let machines = Machines::of(3).await;
    for (number, name) in [(1, "db"), (2, "db"), (3, "api")] {
        let set = machines.set(number, name, &format!("hunter-{number}")).await.unwrap();
        assert!(set.changed);
    }
    for number in 1..=3 {
        assert_eq!(machines.reveal(number, "db", 1).await.unwrap(), "hunter-1");
        assert_eq!(machines.reveal(number, "db", 2).await.unwrap(), "hunter-2");
        assert!(machines.vault(number).missing(&machines.bed[number].state()).is_empty());
        assert_eq!(machines.reveal(number, "db", 3).await.unwrap_err().code, ErrorCode::ValueNotFound);
    }
    let again = machines.set(3, "db", "hunter-2").await.unwrap();
    assert_eq!((again.changed, again.version), (false, 2), "it is the same already");

    for entry in fs::read_dir(machines.bed.directory.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"hunter"), "{} has the secret", path.display());
        // Its keys are in no database either.
        let is_ring = path.extension().is_some_and(|extension| extension == "json");
        let text = fs::read_to_string(machines.ring(1)).unwrap();
        let key = text.split('"').nth(5).unwrap();
        let has_key = bytes.windows(key.len()).any(|window| window == key.as_bytes());
        assert_eq!(has_key, is_ring, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_set_one_secret_at_once_all_have_their_turn() {
    let machines = Machines::of(3).await;
    machines.set(1, "db", "first").await.unwrap();
    let plains = ["one", "two", "three"];
    let set = plains.iter().zip(1..).map(|(plain, number)| machines.set(number, "db", plain));
    let mut versions: Vec<u64> = join_all(set).await.into_iter().map(|set| set.unwrap().version).collect();
    versions.sort_unstable();
    assert_eq!(versions, [2, 3, 4]);
    let mut kept = Vec::new();
    for version in versions {
        kept.push(machines.reveal(2, "db", version).await.unwrap());
    }
    kept.sort_unstable();
    assert_eq!(kept, ["one", "three", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_the_key_gets_it_from_one_that_has_it() {
    let mut machines = Machines::of(3).await;
    machines.set(1, "db", "hunter").await.unwrap();
    machines.bed.settle().await;
    machines.forget(3);
    assert_eq!(machines.vault(3).missing(&machines.bed[3].state()).len(), 1);
    assert_eq!(machines.reveal(3, "db", 1).await.unwrap(), "hunter");
    assert!(fs::read_to_string(machines.ring(3)).is_ok(), "it is on its disk");

    // Also before anybody asks for a secret.
    machines.forget(2);
    let stop = CancellationToken::new();
    let task = tokio::spawn(machines.vault(2).clone().run(stop.clone()));
    let found = async {
        while !machines.vault(2).missing(&machines.bed[2].state()).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, found).await.expect("nobody told it");
    stop.cancel();
    task.await.unwrap();

    let stranger = machines.vault(1).answer(&NodeId("stranger".to_owned()), b"{}").await.unwrap_err();
    assert_eq!(stranger.code, ErrorCode::ScopeInsufficient);
    for bad in ["", "{}", r#"{"type":"keep","keys":["AAAA"]}"#] {
        let refused = machines.vault(1).answer(&NodeId::from(2), bad.as_bytes()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidRequest, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_taken_before_most_voters_have_the_key() {
    let machines = Machines::of(3).await;
    let leader = {
        machines.bed.settle().await;
        (1..=3).find(|number| machines.bed[*number].consensus().status().borrow().leads).unwrap()
    };
    machines.bed.wires.isolate(&NodeId::from(leader));
    let refused = machines.set(leader, "db", "hunter").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ServiceUnavailable);
    assert!(refused.message.contains("only 1 of 3 voting machines"), "{}", refused.message);
    assert!(machines.bed[leader].state().values.secrets.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_seals_everything_anew_and_opens_what_it_was() {
    let mut machines = Machines::of(3).await;
    machines.set(1, "db", "one").await.unwrap();
    machines.set(1, "db", "two").await.unwrap();
    machines.set(1, "api", "three").await.unwrap();
    let before = key_of(&machines.bed[1]);
    let done = machines.vault(2).rekey(&actor()).await.unwrap();
    assert_eq!((done.resealed, done.unreadable), (3, 0));
    machines.bed.settle().await;
    let after = key_of(&machines.bed[2]);
    assert_eq!((after.0.as_str(), before != after), (done.key.as_str(), true));
    let state = machines.bed[3].state();
    assert_eq!(state.values.keys().into_iter().collect::<Vec<_>>(), [&after], "nothing needs the old key");
    machines.forget(3);
    for (name, version, plain) in [("db", 1, "one"), ("db", 2, "two"), ("api", 1, "three")] {
        assert_eq!(machines.reveal(3, name, version).await.unwrap(), plain);
    }
    assert_eq!(machines.set(3, "db", "four").await.unwrap().version, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_lost_everywhere_is_said_and_can_be_gone_on_from() {
    let mut machines = Machines::of(1).await;
    machines.set(1, "db", "hunter").await.unwrap();
    let lost = key_of(&machines.bed[1]);
    machines.forget(1);
    let refused = machines.reveal(1, "db", 1).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ValueKeyMissing);
    assert!(refused.message.contains(&lost.0), "{}", refused.message);
    assert_eq!(machines.set(1, "api", "x").await.unwrap_err().code, ErrorCode::ValueKeyMissing);

    let done = machines.vault(1).rekey(&actor()).await.unwrap();
    assert_eq!((done.resealed, done.unreadable), (0, 1));
    assert_eq!(machines.set(1, "db", "hunter2").await.unwrap().version, 2);
    assert_eq!(machines.reveal(1, "db", 2).await.unwrap(), "hunter2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_and_a_value_is_in_no_debug_text() {
    let machines = Machines::of(1).await;
    let plain = Opened::new(vec![b'x'; VALUE_MAX + 1]);
    let refused = machines.vault(1).set(&actor(), (SECRET, &value("db")), &plain, true).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::RequestTooLarge);
    assert!(refused.message.contains("501 KiB") && refused.message.contains("at most 500"), "{}", refused.message);
    assert!(!format!("{plain:?} {:?}", machines.vault(1)).contains("xx"));
    let largest = Opened::new(vec![b'x'; VALUE_MAX]);
    machines.vault(1).set(&actor(), (SECRET, &value("db")), &largest, true).await.unwrap();
}

/// A member of which nothing is there but its record.
async fn admit_storage(machines: &Machines, name: &str) -> NodeId {
    use flotilla_api::{Grant, Scope, TokenId};
    use flotilla_core::command::{InvitationRecord, MachineFacts, MachineRecord};

    let id = TokenId(name.to_owned());
    let invitation = InvitationRecord {
        id: id.clone(),
        name: name.to_owned(),
        grant: Grant { scope: Scope::Machine, services: [].into() },
        secret_hash: "ab".repeat(32),
        created_at: clock::now(),
        expires_at: clock::now().plus(60_000),
        used_at: None,
        stores_only: false,
    };
    let node = NodeId(format!("{name}-id"));
    let machine =
        MachineRecord { id: node.clone(), name: name.parse().unwrap(), public_key: String::new(), labels: [].into() };
    let vault = machines.vault(1);
    vault.propose(&actor(), CommandV1::InviteStorage { invitation }).await.unwrap();
    let facts = MachineFacts::default();
    vault.propose(&actor(), CommandV1::AdmitMachine { invitation: id, machine, facts }).await.unwrap();
    machines.bed.settle().await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_only_stores_gets_no_key_and_gives_none() {
    let machines = Machines::of(3).await;
    machines.set(1, "db", "hunter").await.unwrap();
    let cellar = admit_storage(&machines, "cellar").await;
    let key = key_of(&machines.bed[1]);
    for asked in [
        format!(r#"{{"type":"want","keys":["{key}"]}}"#),
        format!(r#"{{"type":"want","keys":["{key}"],"rest":true}}"#),
        r#"{"type":"keep","keys":[]}"#.to_owned(),
    ] {
        let refused = machines.vault(1).answer(&cellar, asked.as_bytes()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ScopeInsufficient, "{asked}");
    }
    // Nor does it keep one that it is given all the same.
    let (store, network) = (machines.bed[2].clone(), machines.bed.wires.join(&cellar));
    let own = Vault::open_at(&machines.ring(9), cellar, store, network).unwrap();
    let keep = write(&Message::Keep { keys: machines.vault(1).key_texts() }).unwrap();
    let refused = own.answer(&NodeId::from(1), &keep).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StorageOnly);
    assert!(own.missing(&machines.bed[2].state()).is_empty(), "it lacks nothing");
    assert!(!machines.ring(9).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_volume_makes_the_first_key_and_whoever_has_one_has_all() {
    let mut machines = Machines::of(3).await;
    let (one, other) = (machines.vault(1).clone(), machines.vault(2).clone());
    let maker = actor();
    let (first, second) = tokio::join!(one.need_key(&maker), other.need_key(&maker));
    first.unwrap();
    second.unwrap();
    machines.bed.settle().await;
    let first = key_of(&machines.bed[3]);
    assert!(machines.vault(1).key(&first).await.is_some());

    // A machine that was away while the key was changed twice, and of whose first one nothing in the state tells any more.
    let leads = |number: &u64| machines.bed[*number].consensus().status().borrow().leads;
    let leader = (1..=3).find(leads).unwrap();
    let away = leader % 3 + 1;
    machines.forget(away);
    machines.bed.wires.isolate(&NodeId::from(away));
    machines.vault(leader).rekey(&maker).await.unwrap();
    machines.bed.wires.heal_all();
    machines.bed.settle().await;
    machines.vault(leader).rekey(&maker).await.unwrap();
    machines.bed.settle().await;
    assert!(machines.vault(away).ring().find(&first).is_some(), "what is kept of volumes may need it");

    // What seals and opens what is kept of volumes has them all.
    let directory = tempfile::tempdir().unwrap();
    let data = flotilla_data::Store::open(directory.path()).unwrap();
    machines.vault(away).give_keys_to(data.clone());
    let newest = key_of(&machines.bed[away]);
    for key in [&first, &newest] {
        data.sealing_session(crate::volumes::key_id(key).unwrap()).unwrap();
    }
    machines.vault(leader).rekey(&maker).await.unwrap();
    machines.bed.settle().await;
    let newer = crate::volumes::key_id(&key_of(&machines.bed[away])).unwrap();
    data.sealing_session(newer).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_removed_gets_no_key_from_a_machine_that_has_not_heard_of_it() {
    let machines = Machines::of(3).await;
    machines.set(1, "db", "hunter").await.unwrap();
    machines.bed.settle().await;
    let removed = NodeId::from(3);
    let lags = machines.vault(2);
    let want = write(&Message::Want { keys: BTreeSet::new(), rest: true }).unwrap();
    assert!(lags.answer(&removed, &want).await.is_ok());
    machines.vault(1).propose(&actor(), CommandV1::RemoveMachine { machine: removed.clone() }).await.unwrap();
    machines.vault(1).rekey(&actor()).await.unwrap();
    assert_eq!(lags.answer(&removed, &want).await.unwrap_err().code, ErrorCode::ScopeInsufficient);

    // One that can't know whether that is so says nothing.
    machines.bed.wires.isolate(&NodeId::from(2));
    let refused = machines.vault(2).answer(&NodeId::from(1), &want).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ServiceUnavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_new_key_is_new_and_seals_what_a_broken_off_change_has_left() {
    let machines = Machines::of(1).await;
    machines.set(1, "db", "one").await.unwrap();
    machines.set(1, "api", "two").await.unwrap();
    // The first step of a change, and no other.
    let key = Key::generate();
    let vault = machines.vault(1);
    vault.share(&key).await.unwrap();
    let before = key_of(&machines.bed[1]);
    let command = CommandV1::UseValueKey { key: key.id.clone(), instead_of: Some(before) };
    vault.propose(&actor(), command).await.unwrap();
    assert_eq!(machines.set(1, "db", "three").await.unwrap().version, 2);

    let done = vault.rekey(&actor()).await.unwrap();
    assert_ne!(done.key, key.id.to_string());
    assert_eq!((done.resealed, done.unreadable), (3, 0));
    assert_eq!(machines.bed[1].state().values.keys().len(), 1);
    for (name, version, plain) in [("db", 1, "one"), ("db", 2, "three"), ("api", 1, "two")] {
        assert_eq!(machines.reveal(1, name, version).await.unwrap(), plain);
    }
}
