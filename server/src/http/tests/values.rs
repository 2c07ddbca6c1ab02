//! Secrets and configs over the API: set, listed, never told.

use flotilla_api::{
    rest::{Plain, Rekeyed, SetValue, ValueSet, ValueView},
    spec::{Given, ServiceSpec, ValueKind, ValueUse},
};

use super::*;

/// Of which no part may be anywhere but in a container.
const VALUE: &str = "correct horse battery staple";

fn plain(text: &str) -> Plain {
    use base64::Engine as _;

    Plain(base64::prelude::BASE64_STANDARD.encode(text))
}

async fn set(running: &Running, path: &str, value: &str) -> ValueSet {
    let request = SetValue { value: plain(value), update: true };
    let response = running.as_admin(Method::PUT, path).json(&request).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    response.json().await.unwrap()
}

/// A service that is given the secret, as if it had been deployed.
async fn deploy(running: &Running, name: &str) {
    let text = format!("services: {{ {name}: {{ image: x, secrets: [db] }} }}\nsecrets: {{ db: }}");
    let services: Vec<ServiceSpec> = flotilla_core::compose::read(&text, Some("test"), &[].into()).unwrap().services;
    propose(running, CommandV1::Deploy { stack: "test".parse().unwrap(), services }).await;
}

#[tokio::test]
async fn a_secret_is_set_listed_and_removed_and_told_to_nobody() {
    let running = Running::start().await;
    assert_eq!(code(running.as_admin(Method::GET, "/api/v1/secrets/db")).await, ErrorCode::ValueNotFound);
    let first = set(&running, "/api/v1/secrets/db", VALUE).await;
    assert_eq!((first.version, first.changed, first.updated.len()), (1, true, 0));
    assert!(!set(&running, "/api/v1/secrets/db", VALUE).await.changed);
    deploy(&running, "notes").await;
    let second = set(&running, "/api/v1/secrets/db", "another").await;
    assert_eq!((second.version, second.updated[0].service.as_str(), second.updated[0].revision.0), (2, "notes", 2));

    let view: ValueView =
        running.as_admin(Method::GET, "/api/v1/secrets/db").send().await.unwrap().json().await.unwrap();
    assert_eq!((view.kind, view.version), (ValueKind::Secret, 2));
    assert_eq!(view.versions.iter().map(|it| (it.version, it.bytes)).collect::<Vec<_>>(), [(2, 7), (1, 28)]);
    assert_eq!((view.used_by[0].service.as_str(), view.used_by[0].version), ("notes", 2));

    // There is no way to read one back, and nothing that is read has it.
    for path in ["/api/v1/secrets/db/value", "/api/v1/configs/db", "/api/v1/configs/db/value"] {
        let error = refusal(running.as_admin(Method::GET, path).send().await.unwrap()).await;
        assert!(matches!(error.code, ErrorCode::NotFound | ErrorCode::ValueNotFound), "{path}: {error:?}");
    }
    set(&running, "/api/v1/secrets/db", VALUE).await;
    let encoded = plain(VALUE).0;
    for path in ["services", "services/notes", "secrets", "secrets/db", "audit", "cluster", "machines", "state/backup"]
    {
        let answer = running.as_admin(Method::GET, &format!("/api/v1/{path}")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let bytes = answer.bytes().await.unwrap();
        for part in [VALUE, &encoded] {
            assert!(!bytes.windows(part.len()).any(|window| window == part.as_bytes()), "{path} tells the secret");
        }
    }
    let metrics = running.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("flotilla_values{kind=\"secret\"} 1"), "{metrics}");
    assert!(metrics.contains("flotilla_value_keys_missing 0"), "{metrics}");

    let used = refusal(running.as_admin(Method::DELETE, "/api/v1/secrets/db").send().await.unwrap()).await;
    assert_eq!(used.code, ErrorCode::ValueInUse);
    assert!(used.message.contains("`notes` uses it"), "{}", used.message);
    propose(&running, CommandV1::Remove { service: "notes".parse().unwrap(), volumes: true }).await;
    let removed = running.as_admin(Method::DELETE, "/api/v1/secrets/db").send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    let trail = running.node.app().store.audit(None, None, 100).await.unwrap();
    let kinds: Vec<&str> =
        trail.iter().map(|row| row.event.kind.as_str()).filter(|kind| kind.starts_with("secret")).collect();
    assert_eq!(kinds, ["secret-set", "secret-set", "secret-set", "secret-removed"]);
    running.node.stop().await;
}

#[tokio::test]
async fn a_config_is_read_back_in_each_version() {
    let running = Running::start().await;
    for text in ["one", "two\n"] {
        set(&running, "/api/v1/configs/motd", text).await;
    }
    let read = async |query: &str| {
        let answer = running.as_admin(Method::GET, &format!("/api/v1/configs/motd/value{query}")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
        answer.text().await.unwrap()
    };
    assert_eq!((read("").await, read("?version=1").await), ("two\n".to_owned(), "one".to_owned()));
    let gone = running.as_admin(Method::GET, "/api/v1/configs/motd/value?version=9");
    assert_eq!(code(gone).await, ErrorCode::ValueNotFound);
    running.node.stop().await;
}

#[tokio::test]
async fn a_value_that_is_none_changes_nothing() {
    let running = Running::start().await;
    let before = running.applied();
    for (path, body, expected) in [
        ("/api/v1/secrets/db", json!({ "value": "not base64!" }), ErrorCode::InvalidRequest),
        ("/api/v1/secrets/db", json!({}), ErrorCode::InvalidRequest),
        ("/api/v1/secrets/-db", json!({ "value": "" }), ErrorCode::InvalidName),
        ("/api/v1/secrets/db", json!({ "value": "A".repeat(700_000) }), ErrorCode::RequestTooLarge),
        ("/api/v1/configs/db", json!({ "value": "A".repeat(682_672) }), ErrorCode::RequestTooLarge),
    ] {
        assert_eq!(code(running.as_admin(Method::PUT, path).json(&body)).await, expected, "{path}");
    }
    assert_eq!(running.applied(), before);
    // What is not understood is not repeated.
    for body in [json!({ "value": 48_151_623 }), json!("48151623"), json!({ "value": ["48151623"] })] {
        let refused =
            refusal(running.as_admin(Method::PUT, "/api/v1/secrets/db").json(&body).send().await.unwrap()).await;
        assert_eq!(refused.code, ErrorCode::InvalidRequest);
        assert!(refused.message.contains("there should be"), "{}", refused.message);
        assert!(!refused.message.contains("4815"), "{}", refused.message);
    }
    running.node.stop().await;
}

#[tokio::test]
async fn a_deployment_brings_its_values_or_says_which_is_missing() {
    let running = Running::start().await;
    let compose = "services: { notes: { image: x, secrets: [db], configs: [motd] } }\n\
                   secrets: { db: { file: ./db } }\nconfigs: { motd: { content: ahoy } }";
    let deploy = |values: Value, dry_run: bool| {
        let body = json!({ "compose": compose, "stack": "test", "values": values, "dry_run": dry_run });
        running.as_admin(Method::POST, "/api/v1/deployments").json(&body)
    };
    let before = running.applied();
    let missing = refusal(deploy(json!([]), false).send().await.unwrap()).await;
    assert_eq!(missing.code, ErrorCode::ValueNotFound);
    assert!(missing.message.contains("`notes` uses the secret `test_db`"), "{}", missing.message);
    let values = json!([{ "kind": "secret", "key": "db", "value": plain(VALUE).0 }]);
    for dry_run in [true, false] {
        // There is no engine to find the image; all before that was well.
        assert_eq!(code(deploy(values.clone(), dry_run)).await, ErrorCode::EngineUnavailable);
    }
    assert_eq!(running.applied(), before, "nothing is kept of a deployment that failed");
    running.node.stop().await;
}

#[tokio::test]
async fn the_key_is_changed_by_an_administrator() {
    let running = Running::start().await;
    let rekey = || running.as_admin(Method::POST, "/api/v1/cluster/rekey");
    assert_eq!(code(rekey()).await, ErrorCode::Conflict, "there is nothing to seal");
    set(&running, "/api/v1/configs/motd", "ahoy").await;
    let done: Rekeyed = rekey().send().await.unwrap().json().await.unwrap();
    assert_eq!((done.resealed, done.unreadable), (1, 0));
    let text = running.as_admin(Method::GET, "/api/v1/configs/motd/value").send().await.unwrap().text().await.unwrap();
    assert_eq!(text, "ahoy");
    running.node.stop().await;
}

#[test]
fn a_deployment_that_is_shown_does_not_show_its_values() {
    let request = SetValue { value: plain(VALUE), update: true };
    assert!(!format!("{request:?}").contains(&plain(VALUE).0));
    let used = ValueUse {
        kind: ValueKind::Secret,
        name: "db".parse().unwrap(),
        version: 1,
        given: Given::Variable("DB".to_owned()),
    };
    assert!(used.is_told_to_engine());
}
