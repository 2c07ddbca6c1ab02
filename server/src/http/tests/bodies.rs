//! What comes in: limits, types, compose files, uploads.

use flotilla_api::rest::{COMPOSE_MAX, DEPLOYED_VALUES_MAX, UploadView};
use sha2::{Digest, Sha256};

use super::*;

const COMPOSE: &str = "services:\n  notes:\n    image: notes:1\n    ports: ['80']\n";

fn deployment(compose: &str) -> Value {
    json!({ "compose": compose, "stack": "test" })
}

#[tokio::test]
async fn a_body_over_its_limit_is_refused() {
    let running = Running::start().await;
    let post = |path: &str, body: &Value| running.as_admin(Method::POST, path).json(body);
    let name = json!({ "name": "x".repeat(100_000), "grant": { "scope": "admin" }, "ttl_seconds": 60 });
    assert_eq!(code(post("/api/v1/tokens", &name)).await, ErrorCode::RequestTooLarge);
    let huge = deployment(&"#".repeat(COMPOSE_MAX + 1));
    assert_eq!(code(post("/api/v1/deployments", &huge)).await, ErrorCode::ComposeTooLarge);
    let enormous = deployment(&"#".repeat(COMPOSE_MAX * 8 + DEPLOYED_VALUES_MAX * 2));
    assert_eq!(code(post("/api/v1/deployments", &enormous)).await, ErrorCode::RequestTooLarge);
    running.node.stop().await;
}

#[tokio::test]
async fn what_is_not_json_is_refused() {
    let running = Running::start().await;
    let before = running.applied();
    let token = r#"{"name":"x","grant":{"scope":"admin"},"ttl_seconds":60}"#;
    let post = |kind: &'static str, body: &str| {
        running.as_admin(Method::POST, "/api/v1/tokens").header("content-type", kind).body(body.to_owned())
    };
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        assert_eq!(code(post(kind, token)).await, ErrorCode::InvalidRequest, "{kind}");
    }
    for body in ["", "{", "[]", "null", r#"{"name":"x"}"#, r#"{"name":"x","grant":{"scope":"root"},"ttl_seconds":60}"#]
    {
        assert_eq!(code(post("application/json", body)).await, ErrorCode::InvalidRequest, "{body}");
    }
    assert_eq!(running.applied(), before);
    assert_eq!(post("application/json; charset=utf-8", token).send().await.unwrap().status(), StatusCode::CREATED);
    running.node.stop().await;
}

#[tokio::test]
async fn a_bad_compose_file_is_refused_with_its_line() {
    let running = Running::start().await;
    let before = running.applied();
    for (compose, expected, line) in [
        ("services:\n  notes:\n    image: a\n    privileged: true\n", ErrorCode::ComposeUnsupported, Some(4)),
        ("services:\n  notes:\n    imag: a\n", ErrorCode::ComposeUnsupported, Some(3)),
        ("services: [", ErrorCode::ComposeInvalid, None),
        ("services:\n  Not_A_Host:\n    image: a\n", ErrorCode::InvalidName, Some(2)),
        ("", ErrorCode::ComposeInvalid, None),
    ] {
        let request = running.as_admin(Method::POST, "/api/v1/deployments").json(&deployment(compose));
        let error = refusal(request.send().await.unwrap()).await;
        assert_eq!(error.code, expected, "{compose:?}: {error:?}");
        assert!(line.is_none() || error.line == line, "{compose:?}: {error:?}");
    }
    assert_eq!(running.applied(), before);
    running.node.stop().await;
}

#[tokio::test]
async fn without_an_engine_nothing_is_deployed_and_the_reason_is_told() {
    let running = Running::start().await;
    let before = running.applied();
    let request = running.as_admin(Method::POST, "/api/v1/deployments").json(&deployment(COMPOSE));
    let error = refusal(request.send().await.unwrap()).await;
    assert_eq!(error.code, ErrorCode::EngineUnavailable);
    assert!(error.message.contains("/nonexistent/docker.sock"), "{}", error.message);
    assert_eq!(running.applied(), before);
    let machines: Value = running.as_admin(Method::GET, "/api/v1/machines").send().await.unwrap().json().await.unwrap();
    assert_eq!(machines[0]["engine"]["state"], "unavailable");
    running.node.stop().await;
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was_broken_off() {
    let running = Running::start().await;
    let archive = vec![7_u8; 300_000];
    let digest: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("/api/v1/images/uploads/{digest}");
    let begin = || {
        running
            .as_admin(Method::POST, "/api/v1/images/uploads")
            .json(&json!({ "digest": digest, "size": archive.len() }))
    };
    let append = |offset: &'static str, piece: &[u8]| {
        running.as_admin(Method::PATCH, &path).header("upload-offset", offset).body(piece.to_vec())
    };
    assert_eq!(code(append("0", b"x")).await, ErrorCode::UploadNotFound);
    let begun: UploadView = begin().send().await.unwrap().json().await.unwrap();
    assert_eq!((begun.offset, begun.size), (0, 300_000));
    let response = append("0", &archive[..100_000]).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(response.headers()["upload-offset"], "100000");
    for (offset, expected) in
        [("0", ErrorCode::UploadOffset), ("100001", ErrorCode::UploadOffset), ("x", ErrorCode::InvalidRequest)]
    {
        assert_eq!(code(append(offset, b"x")).await, expected, "{offset}");
    }
    let head = running.as_admin(Method::HEAD, &path).send().await.unwrap();
    assert_eq!((head.status(), head.headers()["upload-offset"].to_str().unwrap()), (StatusCode::OK, "100000"));
    let again: UploadView = begin().send().await.unwrap().json().await.unwrap();
    assert_eq!(again.offset, 100_000);
    let unfinished = running.as_admin(Method::POST, &format!("{path}/finish"));
    assert_eq!(code(unfinished).await, ErrorCode::UploadOffset);
    append("100000", &archive[100_000..]).send().await.unwrap().error_for_status().unwrap();
    let finished = running.as_admin(Method::POST, &format!("{path}/finish"));
    assert_eq!(code(finished).await, ErrorCode::EngineUnavailable, "there is no engine to load it");
    running.node.stop().await;
}

#[tokio::test]
async fn an_upload_beyond_the_limit_is_refused_before_it_begins() {
    let running = Running::start_with(|config| config.limits.upload_bytes = 1000).await;
    let request = json!({ "digest": "0".repeat(64), "size": 1001 });
    let begin = running.as_admin(Method::POST, "/api/v1/images/uploads").json(&request);
    assert_eq!(code(begin).await, ErrorCode::RequestTooLarge);
    running.node.stop().await;
}
