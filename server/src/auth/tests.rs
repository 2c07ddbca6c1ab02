use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey};
use flotilla_api::{ApiError, ErrorCode, NodeId, Scope, ServiceName};
use flotilla_core::command::{ClusterRecord, MachineRecord};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::*;

const START: u64 = 1_800_000_000_000;
const CLUSTER: &str = "0123456789abcdef";
const URL: &str = "http://app.home.localhost:7070/api/v1/services";

thread_local! {
    /// Tests run side by side, each with its own time.
    static NOW: AtomicU64 = const { AtomicU64::new(START) };
}

fn clock() -> UnixMillis {
    UnixMillis(NOW.with(|now| now.load(Ordering::Relaxed)))
}

fn pass(millis: u64) {
    NOW.with(|now| now.fetch_add(millis, Ordering::Relaxed));
}

/// A browser's key, and what it signs.
pub(crate) struct Browser {
    signing: EncodingKey,
    pub(crate) public: PublicKey,
}

impl Browser {
    pub(crate) fn new() -> Self {
        // PKCS#8 (RFC 5958) around an ECPrivateKey (RFC 5915) on P-256: all but the key itself is the same for each.
        let mut der =
            vec![0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
        der.extend([
            0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01, 0x01,
        ]);
        der.extend([0x04, 0x20]);
        der.extend(rand::rng().random::<[u8; 32]>());
        let signing = EncodingKey::from_ec_der(&der);
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&signing, Algorithm::ES256).unwrap();
        let jsonwebtoken::jwk::AlgorithmParameters::EllipticCurve(key) = jwk.algorithm else { panic!("no EC key") };
        let public = PublicKey { kty: "EC".to_owned(), crv: "P-256".to_owned(), x: key.x, y: key.y };
        Self { signing, public }
    }

    fn sign(&self, header: Value, claims: &Value) -> String {
        let header: Header = serde_json::from_value(header).unwrap();
        jsonwebtoken::encode(&header, claims, &self.signing).unwrap()
    }

    fn header(&self) -> Value {
        json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": { "kty": "EC", "crv": "P-256", "x": self.public.x, "y": self.public.y } })
    }

    fn claims(token: &str, method: &str, url: &str, at: UnixMillis) -> Value {
        json!({
            "jti": hexadecimal(&rand::rng().random::<[u8; 16]>()),
            "htm": method,
            "htu": url,
            "iat": at.0 / 1000,
            "ath": BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(token)),
        })
    }

    pub(crate) fn prove(&self, token: &str, method: &str, url: &str, at: UnixMillis) -> String {
        self.sign(self.header(), &Self::claims(token, method, url, at))
    }
}

struct Cluster {
    _directory: tempfile::TempDir,
    store: Store,
    authority: Authority,
    key: SigningKey,
}

async fn cluster() -> Cluster {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state.db"), &NodeId("n1".to_owned())).await.unwrap();
    let cluster = ClusterRecord { id: CLUSTER.to_owned(), name: "home".parse().unwrap(), token_key: "k".to_owned() };
    let machine = MachineRecord {
        id: NodeId("n1".to_owned()),
        name: "anna".parse().unwrap(),
        public_key: "p".to_owned(),
        labels: [].into(),
    };
    let command = Command::V1(CommandV1::Init { cluster, machine });
    store.propose(Entry { at: clock(), actor: actor(), command }).await.unwrap();
    let key = SigningKey::generate(&mut rand::rng());
    let authority = Authority::with_clock(store.clone(), CLUSTER, &ClusterKey::Private(key.clone()), clock).unwrap();
    Cluster { _directory: directory, store, authority, key }
}

fn actor() -> Actor {
    Actor { name: "test".to_owned(), token: None, from: None }
}

fn wanted(life_ms: u64) -> Wanted {
    Wanted { name: "ada".to_owned(), grant: Grant::admin(), life_ms, stores_only: false }
}

const HOUR: u64 = 3_600_000;

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorCode {
    ApiError::from(result.unwrap_err()).code
}

impl Cluster {
    fn bearer(&self, token: &str) -> Result<Principal, Error> {
        self.authority.verify(Presented::Bearer { token }, "GET", URL)
    }

    fn proven(&self, token: &str, proof: &str) -> Result<Principal, Error> {
        self.authority.verify(Presented::Proven { token, proof }, "GET", URL)
    }

    async fn bound(&self, browser: &Browser) -> Issued {
        let invited = self.authority.invite(actor(), wanted(HOUR)).await.unwrap();
        self.authority.redeem(None, &invited.invitation, &browser.public, "Chromium on Linux").await.unwrap()
    }

    fn forge(&self, header: &Header, claims: &Value, key: &EncodingKey) -> String {
        jsonwebtoken::encode(header, claims, key).unwrap()
    }
}

fn signing(key: &SigningKey) -> EncodingKey {
    EncodingKey::from_ed_der(key.to_pkcs8_der().unwrap().as_bytes())
}

fn claims_of(issued: &Issued) -> Value {
    let body = issued.token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_speaks_for_its_holder_until_it_expires() {
    let cluster = cluster().await;
    let issued = cluster.authority.issue(actor(), wanted(HOUR)).await.unwrap();
    let principal = cluster.bearer(&issued.token).unwrap();
    assert_eq!((principal.name.as_str(), &principal.grant), ("ada", &Grant::admin()));
    assert_eq!(principal.expires_at, UnixMillis(START + HOUR));
    pass(HOUR - 1);
    cluster.bearer(&issued.token).unwrap();
    pass(1);
    assert_eq!(code(cluster.bearer(&issued.token)), ErrorCode::TokenExpired);
}

#[tokio::test]
async fn a_revoked_token_ends_at_once() {
    let cluster = cluster().await;
    let issued = cluster.authority.issue(actor(), wanted(HOUR)).await.unwrap();
    cluster.authority.revoke(actor(), issued.principal.token.clone()).await.unwrap();
    assert_eq!(code(cluster.bearer(&issued.token)), ErrorCode::TokenRevoked);
    assert_eq!(code(cluster.authority.standing(&issued.principal.token)), ErrorCode::TokenRevoked);
}

#[tokio::test]
async fn a_token_that_this_cluster_did_not_sign_as_it_is_does_not_count() {
    let cluster = cluster().await;
    let issued = cluster.authority.issue(actor(), wanted(HOUR)).await.unwrap();
    let claims = claims_of(&issued);
    let eddsa = Header::new(Algorithm::EdDSA);
    let other = SigningKey::generate(&mut rand::rng());
    let public = cluster.key.verifying_key();
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        cluster.forge(&eddsa, &claims, &signing(&cluster.key))
    };
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signature = issued.token.rsplit('.').next().unwrap();
    let mut flipped = issued.token.clone().into_bytes();
    let middle = flipped.len() / 2;
    flipped[middle] = if flipped[middle] == b'A' { b'B' } else { b'A' };

    for (what, token) in [
        ("another key", cluster.forge(&eddsa, &claims, &signing(&other))),
        (
            "the public key as a shared secret",
            cluster.forge(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(public.as_bytes())),
        ),
        ("no algorithm", format!("{}.{}.", part(&json!({ "alg": "none", "typ": "JWT" })), part(&claims))),
        ("no algorithm, a signature", format!("{}.{}.{signature}", part(&json!({ "alg": "none" })), part(&claims))),
        ("another cluster", with("iss", json!("fedcba9876543210"))),
        ("no cluster", with("iss", Value::Null)),
        ("a wider grant", with("scope", json!("machine"))),
        ("a key that it was not bound to", with("cnf", json!({ "jkt": "x" }))),
        ("an id that was never issued", with("jti", json!("0".repeat(32)))),
        ("issued in the future", with("iat", json!(START / 1000 + 3600))),
        ("no end", with("exp", Value::Null)),
        ("a flipped bit", String::from_utf8(flipped).unwrap()),
        ("no signature", issued.token.rsplit_once('.').unwrap().0.to_owned()),
        ("an empty signature", format!("{}.", issued.token.rsplit_once('.').unwrap().0)),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
        ("far too long", format!("{}{}", issued.token, "A".repeat(TOKEN_MAX))),
    ] {
        assert_eq!(code(cluster.bearer(&token)), ErrorCode::TokenInvalid, "{what}");
    }
    cluster.bearer(&issued.token).unwrap();
}

#[tokio::test]
async fn a_later_end_in_the_token_does_not_help() {
    let cluster = cluster().await;
    let issued = cluster.authority.issue(actor(), wanted(HOUR)).await.unwrap();
    let mut claims = claims_of(&issued);
    claims["exp"] = json!(START / 1000 + 10_000_000);
    let token = cluster.forge(&Header::new(Algorithm::EdDSA), &claims, &signing(&cluster.key));
    pass(HOUR);
    assert_eq!(code(cluster.bearer(&token)), ErrorCode::TokenExpired);
}

#[tokio::test]
async fn a_bound_token_needs_a_proof_for_each_request() {
    let cluster = cluster().await;
    let browser = Browser::new();
    let issued = cluster.bound(&browser).await;
    let token = &issued.token;
    assert_eq!(issued.principal.name, "ada (Chromium on Linux)");
    assert_eq!(code(cluster.bearer(token)), ErrorCode::ProofInvalid, "as a bearer token");
    let proof = browser.prove(token, "GET", URL, clock());
    cluster.proven(token, &proof).unwrap();
    assert_eq!(code(cluster.proven(token, &proof)), ErrorCode::ProofInvalid, "the same proof again");
    cluster.proven(token, &browser.prove(token, "GET", URL, clock())).unwrap();
}

#[tokio::test]
async fn a_proof_that_is_not_about_this_request_does_not_count() {
    let cluster = cluster().await;
    let browser = Browser::new();
    let issued = cluster.bound(&browser).await;
    let token = &issued.token;
    let claims = Browser::claims(token, "GET", URL, clock());
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        browser.sign(browser.header(), &claims)
    };
    let headed = |name: &str, value: Value| {
        let mut header = browser.header();
        header[name] = value;
        header
    };
    let thief = Browser::new();
    let stolen_header = {
        // Signed by the thief, with the owner's key in its header.
        let mut proof = thief.sign(thief.header(), &claims);
        let rest = proof.split_off(proof.find('.').unwrap());
        format!("{}{rest}", BASE64_URL_SAFE_NO_PAD.encode(browser.header().to_string()))
    };
    let private = {
        let mut header = browser.header();
        header["jwk"]["d"] = json!("AAAA");
        let good = browser.sign(browser.header(), &claims);
        let rest = &good[good.find('.').unwrap()..];
        format!("{}{rest}", BASE64_URL_SAFE_NO_PAD.encode(header.to_string()))
    };
    for (what, proof) in [
        ("another method", with("htm", json!("POST"))),
        ("another address", with("htu", json!("http://app.home.localhost:7070/api/v1/tokens"))),
        ("another host", with("htu", json!("http://evil.example/api/v1/services"))),
        ("another token", with("ath", json!("AAAA"))),
        ("no token", with("ath", Value::Null)),
        ("too old", with("iat", json!(START / 1000 - proof::WINDOW - 1))),
        ("of the future", with("iat", json!(START / 1000 + proof::WINDOW + 1))),
        ("no id", with("jti", json!(""))),
        ("a huge id", with("jti", json!("x".repeat(1000)))),
        ("another type", browser.sign(headed("typ", json!("JWT")), &claims)),
        ("another key", thief.prove(token, "GET", URL, clock())),
        ("another key behind this one", stolen_header),
        ("a private key inside", private),
        ("the token itself", token.clone()),
        ("nothing", String::new()),
        ("far too long", "A".repeat(100_000)),
    ] {
        assert_eq!(code(cluster.proven(token, &proof)), ErrorCode::ProofInvalid, "{what}");
    }
    cluster.proven(token, &browser.sign(browser.header(), &claims)).unwrap();
}

#[tokio::test]
async fn signalling_takes_proofs_for_signalling_alone() {
    let cluster = cluster().await;
    let browser = Browser::new();
    let token = cluster.bound(&browser).await.token;
    let url = "http://app.home.localhost:7070/signal";
    let verify = |proof: Option<String>| cluster.authority.verify_signal(&token, proof.as_deref(), url);
    verify(Some(browser.prove(&token, SIGNAL_METHOD, "ws://app.home.localhost:7070/signal", clock()))).unwrap();
    assert_eq!(code(verify(Some(browser.prove(&token, "GET", url, clock())))), ErrorCode::ProofInvalid);
    assert_eq!(code(verify(None)), ErrorCode::ProofInvalid);
    let plain = cluster.authority.issue(actor(), wanted(HOUR)).await.unwrap();
    cluster.authority.verify_signal(&plain.token, None, url).unwrap();
    assert_eq!(code(cluster.authority.verify_signal(&plain.token, Some("x"), url)), ErrorCode::ProofInvalid);
}

#[tokio::test]
async fn an_invitation_works_once_and_for_its_time() {
    let cluster = cluster().await;
    let key = Browser::new().public;
    let redeem = async |invitation: &str| cluster.authority.redeem(None, invitation, &key, "").await;
    let invited = cluster.authority.invite(actor(), wanted(HOUR)).await.unwrap();
    let (id, secret) = invited.invitation.split_once('.').unwrap();
    for wrong in [
        "",
        ".",
        "nonsense",
        id,
        &format!("{id}."),
        &format!("{id}.{secret}A"),
        &format!("{}.{secret}", "0".repeat(32)),
    ] {
        assert_eq!(code(redeem(wrong).await), ErrorCode::InvitationInvalid, "{wrong}");
    }
    redeem(&invited.invitation).await.unwrap();
    assert_eq!(code(redeem(&invited.invitation).await), ErrorCode::InvitationUsed);

    let late = cluster.authority.invite(actor(), wanted(HOUR)).await.unwrap();
    pass(HOUR);
    assert_eq!(code(redeem(&late.invitation).await), ErrorCode::InvitationExpired);
    assert!(!serde_json::to_string(&*cluster.store.state()).unwrap().contains(secret), "the secret is in the state");
}

#[tokio::test]
async fn a_bad_key_uses_no_invitation_up() {
    let cluster = cluster().await;
    let invited = cluster.authority.invite(actor(), wanted(HOUR)).await.unwrap();
    let good = Browser::new().public;
    for bad in [
        PublicKey { crv: "P-384".to_owned(), ..good.clone() },
        PublicKey { kty: "RSA".to_owned(), ..good.clone() },
        PublicKey { x: "AA".to_owned(), ..good.clone() },
        PublicKey { y: format!("{}=", good.y), ..good.clone() },
    ] {
        let redeemed = cluster.authority.redeem(None, &invited.invitation, &bad, "").await;
        assert_eq!(code(redeemed), ErrorCode::InvalidRequest, "{bad:?}");
    }
    cluster.authority.redeem(None, &invited.invitation, &good, "").await.unwrap();
}

#[tokio::test]
async fn a_browser_stays_signed_in_by_renewing() {
    let cluster = cluster().await;
    let browser = Browser::new();
    let first = cluster.bound(&browser).await;
    pass(20 * DAY_MS);
    let second = cluster.authority.renew(None, &first.principal).await.unwrap();
    assert_eq!(second.principal.token, first.principal.token);
    pass(15 * DAY_MS);
    let prove = |token: &str| browser.prove(token, "GET", URL, clock());
    assert_eq!(code(cluster.proven(&first.token, &prove(&first.token))), ErrorCode::TokenExpired);
    cluster.proven(&second.token, &prove(&second.token)).unwrap();
    cluster.authority.revoke(actor(), first.principal.token).await.unwrap();
    assert_eq!(code(cluster.proven(&second.token, &prove(&second.token))), ErrorCode::TokenRevoked);
}

#[tokio::test]
async fn a_bearer_token_can_be_bound_but_not_renewed() {
    let cluster = cluster().await;
    let plain = cluster.authority.issue(actor(), wanted(HOUR)).await.unwrap();
    assert_eq!(code(cluster.authority.renew(None, &plain.principal).await), ErrorCode::InvalidRequest);
    let browser = Browser::new();
    let bound = cluster.authority.bind(None, &plain.principal, &browser.public, "Firefox").await.unwrap();
    assert_ne!(bound.principal.token, plain.principal.token);
    assert_eq!(bound.principal.grant, plain.principal.grant);
    assert_eq!(bound.principal.expires_at, plain.principal.expires_at);
    cluster.proven(&bound.token, &browser.prove(&bound.token, "GET", URL, clock())).unwrap();
    let again = cluster.authority.bind(None, &bound.principal, &browser.public, "Firefox").await;
    assert_eq!(code(again), ErrorCode::Conflict);
}

#[tokio::test]
async fn what_a_bearer_token_was_exchanged_for_ends_with_it() {
    let cluster = cluster().await;
    let plain = cluster.authority.issue(actor(), wanted(2 * HOUR)).await.unwrap();
    let browser = Browser::new();
    let bound = cluster.authority.bind(None, &plain.principal, &browser.public, "Firefox").await.unwrap();
    pass(HOUR);
    let renewed = cluster.authority.renew(None, &bound.principal).await.unwrap();
    assert_eq!(renewed.principal.expires_at, plain.principal.expires_at, "renewal goes no further");
    cluster.authority.revoke(actor(), plain.principal.token).await.unwrap();
    let proof = browser.prove(&renewed.token, "GET", URL, clock());
    assert_eq!(code(cluster.proven(&renewed.token, &proof)), ErrorCode::TokenRevoked);
}

#[tokio::test]
async fn a_proof_holds_behind_a_proxy_that_speaks_tls() {
    let cluster = cluster().await;
    let browser = Browser::new();
    let token = cluster.bound(&browser).await.token;
    let verify = |claimed: &str, asked: &str| {
        let proof = browser.prove(&token, "CONNECT", claimed, clock());
        cluster.authority.verify_signal(&token, Some(&proof), asked).map(drop)
    };
    verify("https://app.example.org/signal", "http://app.example.org/signal").unwrap();
    let other_port = verify("https://app.example.org:8443/signal", "http://app.example.org/signal");
    assert_eq!(code(other_port), ErrorCode::ProofInvalid);
}

#[tokio::test]
async fn a_life_is_neither_nothing_nor_for_ever() {
    let cluster = cluster().await;
    let before = cluster.store.state().applied;
    for life in [0, TOKEN_LIFE_MAX_MS + 1, u64::MAX] {
        assert_eq!(code(cluster.authority.issue(actor(), wanted(life)).await), ErrorCode::InvalidRequest, "{life}");
        assert_eq!(code(cluster.authority.invite(actor(), wanted(life)).await), ErrorCode::InvalidRequest, "{life}");
    }
    assert_eq!(cluster.store.state().applied, before);
}

#[tokio::test]
async fn a_user_of_every_service_still_has_a_token() {
    let cluster = cluster().await;
    let services: BTreeSet<ServiceName> = (0..flotilla_core::state::SERVICES_MAX)
        .map(|n| format!("{}-{n:03}", "x".repeat(36)).parse().unwrap())
        .collect();
    let grant = Grant { scope: Scope::User, services };
    let wanted = Wanted { name: "ada".to_owned(), grant: grant.clone(), life_ms: HOUR, stores_only: false };
    let issued = cluster.authority.issue(actor(), wanted).await.unwrap();
    assert_eq!(cluster.bearer(&issued.token).unwrap().grant, grant);
}

#[test]
fn a_token_comes_in_two_forms() {
    let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())).collect()
    };
    assert_eq!(
        Presented::in_headers(&headers(&[("authorization", "Bearer abc")])),
        Ok(Presented::Bearer { token: "abc" })
    );
    assert_eq!(
        Presented::in_headers(&headers(&[("authorization", "dpop abc"), ("dpop", "def")])),
        Ok(Presented::Proven { token: "abc", proof: "def" })
    );
    assert_eq!(Presented::in_headers(&headers(&[])), Err(Error::TokenMissing));
    for wrong in ["Basic abc", "abc", ""] {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, wrong.parse().unwrap())]);
        assert_eq!(code(Presented::in_headers(&headers)), ErrorCode::TokenInvalid, "{wrong}");
    }
    assert_eq!(code(Presented::in_headers(&headers(&[("authorization", "DPoP abc")]))), ErrorCode::ProofInvalid);
    let mut twice = headers(&[("authorization", "Bearer abc")]);
    twice.append(AUTHORIZATION, "Bearer def".parse().unwrap());
    assert_eq!(code(Presented::in_headers(&twice)), ErrorCode::TokenInvalid);
}
