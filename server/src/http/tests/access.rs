//! Who may do what.

use flotilla_api::{
    TokenId,
    rest::{BindToken, CreatedInvitation, IssuedToken, RedeemInvitation, TokenView},
};

use super::*;
use crate::{auth::tests::Browser, clock};

/// Every route, and the scopes that may use it: user, operator, admin, machine.
pub(super) const ROUTES: &[(&str, &str, [bool; 4])] = &[
    ("GET", "/api/v1/cluster", [true, true, true, true]),
    ("GET", "/api/v1/services", [true, true, true, true]),
    ("POST", "/api/v1/tokens/renew", [true, true, true, true]),
    ("POST", "/api/v1/tokens/bind", [true, true, true, true]),
    ("GET", "/api/v1/machines", [false, true, true, false]),
    ("GET", "/api/v1/machines/ghost", [false, true, true, false]),
    ("POST", "/api/v1/machines/ghost/drain", [false, true, true, false]),
    ("POST", "/api/v1/machines/ghost/undrain", [false, true, true, false]),
    ("PATCH", "/api/v1/machines/ghost", [false, false, true, false]),
    ("DELETE", "/api/v1/machines/ghost", [false, false, true, false]),
    ("GET", "/api/v1/audit", [false, true, true, false]),
    ("GET", "/api/v1/events?replay=0", [false, true, true, false]),
    ("GET", "/api/v1/images", [false, true, true, false]),
    ("GET", "/api/v1/images/held", [false, true, true, false]),
    ("POST", "/api/v1/images", [false, true, true, false]),
    ("DELETE", "/api/v1/images", [false, true, true, false]),
    ("POST", "/api/v1/images/lacking", [false, true, true, false]),
    ("POST", "/api/v1/images/layers/0", [false, true, true, false]),
    ("POST", "/api/v1/images/renew", [false, true, true, false]),
    ("POST", "/api/v1/images/gc?dry_run=true", [false, true, true, false]),
    ("POST", "/api/v1/images/uploads", [false, true, true, false]),
    ("HEAD", "/api/v1/images/uploads/0", [false, true, true, false]),
    ("PATCH", "/api/v1/images/uploads/0", [false, true, true, false]),
    ("POST", "/api/v1/images/uploads/0/finish", [false, true, true, false]),
    ("POST", "/api/v1/builds?image=x", [false, true, true, false]),
    ("POST", "/api/v1/deployments", [false, true, true, false]),
    ("GET", "/api/v1/services/ghost", [false, true, true, false]),
    ("DELETE", "/api/v1/services/ghost", [false, true, true, false]),
    ("POST", "/api/v1/services/ghost/restart", [false, true, true, false]),
    ("POST", "/api/v1/services/ghost/rollback", [false, true, true, false]),
    ("POST", "/api/v1/services/ghost/scale", [false, true, true, false]),
    ("GET", "/api/v1/services/ghost/logs", [false, true, true, false]),
    ("GET", "/api/v1/services/ghost/exec", [false, true, true, false]),
    ("GET", "/api/v1/services/ghost/explain", [false, true, true, false]),
    ("POST", "/api/v1/services/ghost/restore", [false, true, true, false]),
    ("GET", "/api/v1/volumes", [false, true, true, false]),
    ("GET", "/api/v1/volumes/ghost/ghost", [false, true, true, false]),
    ("GET", "/api/v1/volumes/ghost/ghost/diff", [false, true, true, false]),
    ("GET", "/api/v1/volumes/ghost/ghost/export", [false, true, true, false]),
    ("PUT", "/api/v1/volumes/ghost/ghost/import", [false, true, true, false]),
    ("POST", "/api/v1/machines/ghost/scrub", [false, true, true, false]),
    ("GET", "/api/v1/secrets", [false, true, true, false]),
    ("GET", "/api/v1/secrets/ghost", [false, true, true, false]),
    ("PUT", "/api/v1/secrets/ghost", [false, true, true, false]),
    ("DELETE", "/api/v1/secrets/ghost", [false, true, true, false]),
    ("GET", "/api/v1/configs", [false, true, true, false]),
    ("GET", "/api/v1/configs/ghost", [false, true, true, false]),
    ("PUT", "/api/v1/configs/ghost", [false, true, true, false]),
    ("DELETE", "/api/v1/configs/ghost", [false, true, true, false]),
    ("GET", "/api/v1/configs/ghost/value", [false, true, true, false]),
    ("POST", "/api/v1/cluster/rekey", [false, false, true, false]),
    ("GET", "/api/v1/tokens", [false, false, true, false]),
    ("POST", "/api/v1/tokens", [false, false, true, false]),
    ("DELETE", "/api/v1/tokens/ghost", [false, false, true, false]),
    ("POST", "/api/v1/demo/machines/ghost/kill", [false, false, true, false]),
    ("POST", "/api/v1/demo/machines/ghost/start", [false, false, true, false]),
    ("POST", "/api/v1/invitations", [false, false, true, false]),
    ("GET", "/api/v1/state/backup", [false, false, true, false]),
];

#[tokio::test]
async fn each_route_is_for_its_scopes_alone() {
    let running = Running::start().await;
    let before = running.applied() + 4;
    for (column, scope) in [Scope::User, Scope::Operator, Scope::Admin, Scope::Machine].into_iter().enumerate() {
        let token = running.token_of(scope).await;
        for (method, path, allowed) in ROUTES {
            let request = running.request(method.parse().unwrap(), path).bearer_auth(&token);
            let status = request.send().await.unwrap().status();
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{scope}: {method} {path}");
            assert_eq!(status != StatusCode::FORBIDDEN, allowed[column], "{scope}: {method} {path}: {status}");
        }
    }
    assert_eq!(running.applied(), before, "a request without a body changed something");
    running.node.stop().await;
}

#[tokio::test]
async fn no_route_answers_without_a_token() {
    let running = Running::start().await;
    for (method, path, _) in ROUTES {
        let response = running.request(method.parse().unwrap(), path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        assert!(response.headers().contains_key("www-authenticate"), "{method} {path}");
        if *method != "HEAD" {
            assert_eq!(refusal(response).await.code, ErrorCode::TokenMissing, "{method} {path}");
        }
    }
    running.node.stop().await;
}

#[tokio::test]
async fn a_token_that_does_not_count_is_refused_with_its_reason() {
    let running = Running::start().await;
    let other = Running::start().await;
    let services = |token: &str| running.get("/api/v1/services").bearer_auth(token);
    let mut forged = running.admin.clone().into_bytes();
    let last = forged.len() - 3;
    forged[last] ^= 1;
    for token in ["", "nonsense", &"A".repeat(15_000), &String::from_utf8(forged).unwrap(), &other.admin] {
        assert_eq!(code(services(token)).await, ErrorCode::TokenInvalid, "{token}");
    }
    let short = CreateToken { name: "short".to_owned(), grant: Grant::admin(), ttl_seconds: 1, storage_only: false };
    let short: CreatedToken =
        running.as_admin(Method::POST, "/api/v1/tokens").json(&short).send().await.unwrap().json().await.unwrap();
    let expired = async {
        loop {
            let response = services(&short.token).send().await.unwrap();
            if !response.status().is_success() {
                break refusal(response).await.code;
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), expired).await.unwrap(), ErrorCode::TokenExpired);

    let revoked = running.token(Grant::admin()).await;
    assert!(services(&revoked.token).send().await.unwrap().status().is_success());
    let revoke = running.as_admin(Method::DELETE, &format!("/api/v1/tokens/{}", revoked.id)).send().await.unwrap();
    assert_eq!(revoke.status(), StatusCode::NO_CONTENT);
    assert_eq!(code(services(&revoked.token)).await, ErrorCode::TokenRevoked);
    running.node.stop().await;
    other.node.stop().await;
}

#[tokio::test]
async fn an_invitation_signs_one_browser_in() {
    let running = Running::start().await;
    let invitation = json!({ "name": "Ada", "grant": { "scope": "operator" }, "ttl_seconds": 60 });
    let response = running.as_admin(Method::POST, "/api/v1/invitations").json(&invitation).send().await.unwrap();
    let invitation: CreatedInvitation = response.json().await.unwrap();
    let host = format!("app.home.localhost:{}", running.address().port());
    let (page, fragment) = invitation.url.split_once("#invite=").unwrap();
    assert_eq!(page, format!("http://{host}/"));

    let browser = Browser::new();
    let redeem = RedeemInvitation {
        invitation: fragment.to_owned(),
        key: browser.public.clone(),
        device: "Chromium on Linux".to_owned(),
    };
    let redeem = || running.request(Method::POST, "/api/v1/invitations/redeem").json(&redeem);
    let unused = async || -> Vec<TokenId> {
        let response = running.as_admin(Method::GET, "/api/v1/tokens").send().await.unwrap();
        let listed: Vec<TokenView> = response.json().await.unwrap();
        listed.into_iter().filter(|token| token.unused && token.name == "Ada").map(|token| token.id).collect()
    };
    assert_eq!(unused().await, std::slice::from_ref(&invitation.id), "whoever lost its link can find and withdraw it");
    let issued: IssuedToken = redeem().send().await.unwrap().json().await.unwrap();
    assert_eq!(issued.principal.name, "Ada (Chromium on Linux)");
    assert_eq!(unused().await, []);
    assert_eq!(code(redeem()).await, ErrorCode::InvitationUsed);

    let url = format!("http://{host}/api/v1/services");
    let proven = |proof: String| {
        let request = running.get("/api/v1/services").header("host", &host);
        request.header("authorization", format!("DPoP {}", issued.token)).header("dpop", proof)
    };
    let proof = browser.prove(&issued.token, "GET", &url, clock::now());
    assert_eq!(proven(proof.clone()).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(code(proven(proof)).await, ErrorCode::ProofInvalid, "replayed");
    let elsewhere = browser.prove(&issued.token, "GET", "http://evil.example/api/v1/services", clock::now());
    assert_eq!(code(proven(elsewhere)).await, ErrorCode::ProofInvalid, "made for another host");
    assert_eq!(code(running.get("/api/v1/services").bearer_auth(&issued.token)).await, ErrorCode::ProofInvalid);
    running.node.stop().await;
}

#[tokio::test]
async fn a_plain_token_is_exchanged_for_the_browsers_own() {
    let running = Running::start().await;
    let browser = Browser::new();
    let bind = BindToken { key: browser.public.clone(), device: "Firefox".to_owned() };
    let response = running.as_admin(Method::POST, "/api/v1/tokens/bind").json(&bind).send().await.unwrap();
    let issued: IssuedToken = response.json().await.unwrap();
    assert!(issued.principal.grant.administers());
    let path = "/api/v1/tokens/renew";
    let url = format!("http://{}{path}", running.address());
    let renew = running.request(Method::POST, path).header("authorization", format!("DPoP {}", issued.token));
    let renew = renew.header("dpop", browser.prove(&issued.token, "POST", &url, clock::now()));
    let renewed: IssuedToken = renew.send().await.unwrap().json().await.unwrap();
    assert_eq!(renewed.principal.token, issued.principal.token);
    assert!(renewed.principal.expires_at >= issued.principal.expires_at);
    running.node.stop().await;
}

#[tokio::test]
async fn what_is_followed_ends_with_the_token() {
    let running = Running::start().await;
    let operator = running.token(Grant { scope: Scope::Operator, services: [].into() }).await;
    let mut events =
        running.request(Method::GET, "/api/v1/events?replay=1").bearer_auth(&operator.token).send().await.unwrap();
    assert_eq!(events.status(), 200);
    assert!(events.chunk().await.unwrap().is_some(), "the past comes first");
    let revoked = running.as_admin(Method::DELETE, &format!("/api/v1/tokens/{}", operator.id)).send().await.unwrap();
    assert!(revoked.status().is_success());
    let end = async { while events.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(Duration::from_secs(10), end).await.expect("the stream ends");
    running.node.stop().await;
}

#[tokio::test]
async fn who_guesses_invitations_has_to_wait() {
    let running = Running::start().await;
    let key = Browser::new().public;
    let guess = json!({ "invitation": "0.guess", "key": key, "device": "" });
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(code(running.request(Method::POST, "/api/v1/invitations/redeem").json(&guess)).await);
    }
    assert_eq!(codes.first(), Some(&ErrorCode::InvitationInvalid));
    assert_eq!(codes.last(), Some(&ErrorCode::RateLimited));
    // Whoever has a token is not kept out.
    assert!(running.as_admin(Method::GET, "/api/v1/services").send().await.unwrap().status().is_success());
    running.node.stop().await;
}

#[tokio::test]
async fn the_audit_trail_names_who_and_what() {
    let running = Running::start().await;
    let operator = running.token_of(Scope::Operator).await;
    let audit: Value = running.get("/api/v1/audit").bearer_auth(operator).send().await.unwrap().json().await.unwrap();
    let (of_node, by_people): (Vec<&Value>, Vec<&Value>) =
        audit.as_array().unwrap().iter().partition(|row| row["actor"] == "node");
    let kinds =
        |rows: &[&Value]| -> Vec<String> { rows.iter().map(|row| row["kind"].as_str().unwrap().to_owned()).collect() };
    assert_eq!(kinds(&by_people), ["cluster-created", "invitation-created", "token-issued", "token-issued"]);
    assert_eq!(by_people[3]["actor"], "administrator");
    let mut told = kinds(&of_node);
    told.sort();
    assert_eq!(told, ["leader", "machine-announced"]);
    running.node.stop().await;
}
