//! A machine joins: from the token that the API makes to the directory of a member. What carries the words is left out.

use std::{fs, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flotilla_api::{JoinToken, MachineName, UnixMillis};
use flotilla_core::state::Power;

use super::*;
use crate::{
    cluster::join::{self, Contacting, Joined, Member, Told, Wanted},
    identity::{self, DataDir, Identity},
};

/// The keys of a running node, whose directory is locked.
fn identity(running: &Running) -> Identity {
    let copy = tempfile::tempdir().unwrap();
    let directory = DataDir::open(copy.path()).unwrap();
    for key in ["node.pem", "cluster.pem", "webrtc.pem"] {
        fs::copy(running.config.data_dir.join("keys").join(key), copy.path().join("keys").join(key)).unwrap();
    }
    Identity::load(&directory).unwrap()
}

async fn token(running: &Running) -> JoinToken {
    let grant = Grant { scope: Scope::Machine, services: [].into() };
    running.token(grant).await.token.parse().unwrap()
}

/// Changes a request on its way, as another version, clock or hand would.
type Change = fn(&mut Value);

struct Machine {
    directory: tempfile::TempDir,
    name: MachineName,
}

impl Machine {
    fn new(name: &str) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), name: name.parse().unwrap() }
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    async fn join(&self, running: &Running, token: &JoinToken) -> Result<Joined, join::Error> {
        self.join_changed(running, token, |_| {}).await
    }

    async fn join_changed(&self, running: &Running, token: &JoinToken, change: Change) -> Result<Joined, join::Error> {
        let facts = MachineFacts {
            addresses: vec!["192.0.2.9:7070".to_owned()],
            power: Power::Battery,
            version: "0.1.0".to_owned(),
            ..MachineFacts::default()
        };
        let wanted = Wanted { data_dir: self.data_dir(), token: token.clone(), name: self.name.clone(), facts };
        join::join(wanted, async |contacting: Contacting, request| {
            assert_eq!(contacting.addresses, token.addresses);
            let mut request: Value = serde_json::from_slice(&request).unwrap();
            change(&mut request);
            answer(running, &contacting, &request).await
        })
        .await
    }
}

async fn answer(running: &Running, contacting: &Contacting, request: &Value) -> Result<bytes::Bytes, ApiError> {
    let app = running.node.app();
    let identity = identity(running);
    let cluster_key = identity.cluster.private().unwrap();
    let member = Member { store: &app.store, authority: &app.authority, cluster_key, vault: &app.vault };
    let key = BASE64_URL_SAFE_NO_PAD.encode(contacting.key.verifying_key().as_bytes());
    join::answer_join(member, &key, request.to_string().as_bytes()).await
}

fn refusal(result: Result<Joined, join::Error>) -> ApiError {
    match result {
        Err(join::Error::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_member_and_keeps_what_a_member_needs() {
    let running = Running::start().await;
    let token = token(&running).await;
    assert_eq!(token.addresses, [running.address().to_string()]);
    let machine = Machine::new("berta");
    let joined = machine.join(&running, &token).await.unwrap();
    assert_eq!((joined.name.as_str(), joined.cluster.name.as_str()), ("berta", "home"));

    let state = running.node.app().store.state();
    let member = &state.machines[&joined.node];
    assert_eq!((member.facts.power, member.facts.addresses[0].as_str()), (Power::Battery, "192.0.2.9:7070"));
    let directory = DataDir::open(&machine.data_dir()).unwrap();
    let own = Identity::load(&directory).unwrap();
    assert_eq!((own.node_id(), own.node_key()), (joined.node.clone(), member.record.public_key.clone()));
    assert_eq!(own.cluster, identity(&running).cluster);
    let keys = |data_dir: &Path| fs::read_to_string(data_dir.join("keys/values.json")).unwrap();
    assert_eq!(keys(&machine.data_dir()), keys(&running.config.data_dir), "it opens no secret without the key");
    let told = Told::load(&directory).unwrap().unwrap().as_state();
    assert_eq!((told.cluster, told.machines), (state.cluster.clone(), state.machines.clone()));
    let trail = running.node.app().store.audit(None, None, 100).await.unwrap();
    let event = &trail.iter().find(|row| row.event.kind == "machine-joined").unwrap().event;
    assert_eq!((event.actor.as_str(), event.from.as_deref()), ("test", Some("192.0.2.9:7070")));
    drop(directory);

    // Its directory has a cluster now.
    let again = machine.join(&running, &token).await.unwrap_err();
    assert!(matches!(again, join::Error::Identity(identity::Error::AlreadyInitialised { .. })), "{again}");
    running.node.stop().await;
}

#[tokio::test]
async fn a_machine_that_only_stores_gets_the_public_half_of_the_key_and_no_other() {
    let running = Running::start().await;
    let request =
        json!({ "name": "cellar", "grant": { "scope": "machine" }, "ttl_seconds": 3600, "storage_only": true });
    let created: CreatedToken =
        running.as_admin(Method::POST, "/api/v1/tokens").json(&request).send().await.unwrap().json().await.unwrap();
    let machine = Machine::new("cellar");
    // It can't ask to be more than that.
    let sly: Change = |request| request["stores_only"] = json!(false);
    let joined = machine.join_changed(&running, &created.token.parse().unwrap(), sly).await.unwrap();
    assert!(joined.stores_only);
    assert!(running.node.app().store.state().stores_only(&joined.node));
    let keys = machine.data_dir().join("keys");
    assert!(!keys.join("cluster.pem").exists() && !keys.join("values.json").exists());
    let directory = DataDir::open(&machine.data_dir()).unwrap();
    let own = Identity::load(&directory).unwrap();
    assert!(own.cluster.private().is_none());
    assert_eq!(own.cluster_key(), identity(&running).cluster_key());
    let text = fs::read_to_string(machine.data_dir().join("joined.json")).unwrap();
    let private = BASE64_URL_SAFE_NO_PAD.encode(identity(&running).cluster.private().unwrap().to_bytes());
    assert!(!text.contains(&private));
    let told = Told::load(&directory).unwrap().unwrap().as_state();
    assert!(told.stores_only(&joined.node), "it knows what it is before it has the state");

    let shown: Vec<Value> =
        running.as_admin(Method::GET, "/api/v1/machines").send().await.unwrap().json().await.unwrap();
    let cellar = shown.iter().find(|machine| machine["name"] == "cellar").unwrap();
    assert_eq!(cellar["storage_only"], json!(true));
    let refused = json!({ "name": "ada", "grant": { "scope": "admin" }, "ttl_seconds": 3600, "storage_only": true });
    let refused = code(running.as_admin(Method::POST, "/api/v1/tokens").json(&refused)).await;
    assert_eq!(refused, ErrorCode::InvalidRequest);
    running.node.stop().await;
}

#[tokio::test]
async fn a_machine_that_only_stores_answers_collectors_and_nobody_else() {
    let running = Running::start().await;
    let members = running.node.app().members.clone();
    let address = beside_as(&running, members, None, true).await;
    let ask = |path: &str| {
        running.http.get(format!("http://{address}{path}")).timeout(Duration::from_secs(20)).bearer_auth(&running.admin)
    };
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask(path).send().await.unwrap().status(), StatusCode::OK, "{path}");
    }
    for path in ["/", "/api/v1/cluster", "/api/v1/volumes", "/signal", "/api/v1/state/backup", "/sw.js"] {
        let answer = ask(path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
        let error: ApiError = answer.json().await.unwrap();
        assert_eq!(error.code, ErrorCode::StorageOnly, "{path}");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn a_token_works_once_for_one_machine_even_if_the_answer_was_lost() {
    let running = Running::start().await;
    let token = token(&running).await;
    let machine = Machine::new("berta");
    // Admitted, but it never heard of it.
    let facts = MachineFacts::default();
    let wanted = Wanted { data_dir: machine.data_dir(), token: token.clone(), name: machine.name.clone(), facts };
    let lost = join::join(wanted, async |contacting: Contacting, request| {
        let request: Value = serde_json::from_slice(&request).unwrap();
        answer(&running, &contacting, &request).await.unwrap();
        Err(ApiError::new(ErrorCode::Timeout, "lost on the way"))
    });
    assert_eq!(refusal(lost.await).code, ErrorCode::Timeout);
    assert_eq!(running.node.app().store.state().machines.len(), 2);
    let other = refusal(Machine::new("clara").join(&running, &token).await);
    assert_eq!(other.code, ErrorCode::InvitationUsed);
    machine.join(&running, &token).await.unwrap();
    assert_eq!(running.node.app().store.state().machines.len(), 2);
    running.node.stop().await;
}

#[tokio::test]
async fn who_may_not_join_is_told_why_in_one_sentence() {
    let running = Running::start().await;
    let elsewhere = Running::start().await;
    let good = token(&running).await;
    let foreign = token(&elsewhere).await;
    let before = running.node.app().store.state().machines.len();
    let cases: [(&JoinToken, Change, ErrorCode, &str); 8] = [
        (&foreign, |_| {}, ErrorCode::InvitationInvalid, "not one of the cluster `home`"),
        (&good, |request| request["secret"] = json!("guess"), ErrorCode::InvitationInvalid, "not one of the cluster"),
        (&good, |request| request["version"] = json!(0), ErrorCode::InvalidRequest, "too old for the cluster"),
        (
            &good,
            |request| request["version"] = json!(99),
            ErrorCode::InvalidRequest,
            "update the cluster's machines first",
        ),
        (
            &good,
            |request| request["at"] = json!(clock::now().0 + 3_630_000),
            ErrorCode::InvalidRequest,
            "60 minutes ahead of the cluster's",
        ),
        (
            &good,
            |request| request["at"] = json!(clock::now().0 - 3 * 3_600_000 - 1000),
            ErrorCode::InvalidRequest,
            "3 hours behind the cluster's",
        ),
        (&good, |request| request["name"] = json!("Not A Name"), ErrorCode::InvalidRequest, "no request to join"),
        (&good, |request| request["name"] = json!("anna"), ErrorCode::Conflict, "another name with --name"),
    ];
    for (token, change, code, said) in cases {
        let error = refusal(Machine::new("berta").join_changed(&running, token, change).await);
        assert!(
            error.code == code && error.message.contains(said) && !error.message.contains('\n'),
            "{said}: {error:?}"
        );
    }
    assert_eq!(running.node.app().store.state().machines.len(), before);

    let withdrawn = token(&running).await;
    let path = format!("/api/v1/tokens/{}", withdrawn.invitation);
    assert!(running.as_admin(Method::DELETE, &path).send().await.unwrap().status().is_success());
    assert_eq!(refusal(Machine::new("berta").join(&running, &withdrawn).await).code, ErrorCode::InvitationInvalid);

    let request = CreateToken {
        name: "short".to_owned(),
        grant: Grant { scope: Scope::Machine, services: [].into() },
        ttl_seconds: 1,
        storage_only: false,
    };
    let short: CreatedToken =
        running.as_admin(Method::POST, "/api/v1/tokens").json(&request).send().await.unwrap().json().await.unwrap();
    while clock::now() < short.expires_at {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let expired = Machine::new("berta").join(&running, &short.token.parse().unwrap()).await;
    assert_eq!(refusal(expired).code, ErrorCode::InvitationExpired);
    running.node.stop().await;
    elsewhere.node.stop().await;
}

#[tokio::test]
async fn a_removed_machine_needs_a_new_key_and_an_eleventh_is_refused() {
    let running = Running::start().await;
    let machine = Machine::new("berta");
    let joined = machine.join(&running, &token(&running).await).await.unwrap();
    propose(&running, CommandV1::RemoveMachine { machine: joined.node }).await;
    // As if it had never heard of the cluster, but with its old key.
    fs::remove_file(machine.data_dir().join("joined.json")).unwrap();
    fs::remove_file(machine.data_dir().join("keys/cluster.pem")).unwrap();
    let error = refusal(machine.join(&running, &token(&running).await).await);
    assert!(
        error.code == ErrorCode::Conflict && error.message.contains("removed from the cluster as `berta`"),
        "{error}"
    );

    let late = token(&running).await;
    for index in 0..9 {
        admit(&running, &format!("m{index}")).await;
    }
    let error = refusal(Machine::new("clara").join(&running, &late).await);
    assert!(error.message.contains("at most 10 machines"), "{error}");
    // No token is made for a machine that could not come.
    let request = json!({ "name": "eleventh", "grant": { "scope": "machine" }, "ttl_seconds": 60 });
    assert_eq!(code(running.as_admin(Method::POST, "/api/v1/tokens").json(&request)).await, ErrorCode::Conflict);
    running.node.stop().await;
}

#[tokio::test]
async fn an_answer_of_another_cluster_is_not_believed() {
    let (running, elsewhere) = (Running::start().await, Running::start().await);
    let honest = token(&running).await;
    let machine = Machine::new("berta");
    let facts = MachineFacts::default();
    let wanted = Wanted { data_dir: machine.data_dir(), token: honest.clone(), name: machine.name.clone(), facts };
    let fooled = token(&elsewhere).await;
    let tricked = join::join(wanted, async |contacting: Contacting, request| {
        let mut request: Value = serde_json::from_slice(&request).unwrap();
        for (field, value) in
            [("cluster", &fooled.cluster), ("invitation", &fooled.invitation.0), ("secret", &fooled.secret)]
        {
            request[field] = json!(value);
        }
        answer(&elsewhere, &contacting, &request).await
    });
    let error = tricked.await.unwrap_err();
    assert!(matches!(error, join::Error::AnotherCluster { .. }), "{error}");
    assert!(!machine.data_dir().join("keys/cluster.pem").exists(), "a foreign key was kept");
    running.node.stop().await;
    elsewhere.node.stop().await;
}

#[tokio::test]
async fn a_join_token_tells_how_to_use_it_and_is_for_no_browser() {
    let running = Running::start().await;
    let request = json!({ "name": "attic", "grant": { "scope": "machine" }, "ttl_seconds": 3600 });
    let created: CreatedToken =
        running.as_admin(Method::POST, "/api/v1/tokens").json(&request).send().await.unwrap().json().await.unwrap();
    let hint = created.join.unwrap();
    assert!(hint.command.ends_with(&created.token) && hint.command.contains("flotilla join "));
    assert!(hint.warning.unwrap().contains("--listen 0.0.0.0:7070"), "the listener is on loopback");
    let token: JoinToken = created.token.parse().unwrap();
    assert!(token.expires_at > UnixMillis(clock::now().0 + 3_500_000));
    assert_eq!(token.name.as_str(), "home");

    let invitation = format!("{}.{}", token.invitation, token.secret);
    let redeem = json!({ "invitation": invitation, "key": auth::tests::Browser::new().public, "device": "" });
    let refused = running.request(Method::POST, "/api/v1/invitations/redeem").json(&redeem);
    assert_eq!(code(refused).await, ErrorCode::InvitationInvalid);
    assert_eq!(
        code(running.as_admin(Method::POST, "/api/v1/invitations").json(&request)).await,
        ErrorCode::InvalidRequest
    );
    Machine::new("berta").join(&running, &token).await.unwrap();
    running.node.stop().await;
}
