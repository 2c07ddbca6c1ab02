//! The API over a real listener, with a real store; most of it without an engine, which then is not there.

mod access;
mod bodies;
mod demo;
mod engine;
mod forward;
mod hosts;
mod join;
mod known;
mod machines;
mod mesh;
mod signal;
mod streams;
mod tls;
mod values;
mod volumes;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flotilla_api::{
    ApiError, ErrorCode, Grant, NodeId, Scope,
    rest::{CreateToken, CreatedToken},
};
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    command::{MachineFacts, MachineRecord},
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use super::{App, Listener, Members, Parts, Reception};
use crate::{
    auth, clock,
    config::Config,
    node::{self, Node},
    store,
};

/// A node in this process, on a port of its own.
struct Running {
    node: Node,
    config: Config,
    admin: String,
    http: reqwest::Client,
    _directory: tempfile::TempDir,
}

impl Running {
    /// Without an engine.
    async fn start() -> Self {
        Self::start_with(|config| config.docker_host = Some("unix:///nonexistent/docker.sock".to_owned())).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (config, admin) = initialised(directory.path(), change).await;
        let node = node::start(config.clone()).await.unwrap();
        // What a node says of itself when it starts is said: from here on the state is changed by the test alone.
        let id = node.app().node.clone();
        let mut states = node.app().store.watch();
        let settled = states.wait_for(|state| {
            let known = state.machines.get(&id).is_some_and(|machine| !machine.facts.version.is_empty());
            known && state.leadership.node.is_some()
        });
        tokio::time::timeout(Duration::from_secs(30), settled).await.expect("the node is settled").unwrap();
        Self { node, config, admin, http: reqwest::Client::new(), _directory: directory }
    }

    fn address(&self) -> SocketAddr {
        self.node.address()
    }

    /// A request by address, without a token.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address())).timeout(Duration::from_secs(20))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn as_admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).bearer_auth(&self.admin)
    }

    async fn token(&self, grant: Grant) -> CreatedToken {
        let request = CreateToken { name: "test".to_owned(), grant, ttl_seconds: 3600, storage_only: false };
        let response = self.as_admin(Method::POST, "/api/v1/tokens").json(&request).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        response.json().await.unwrap()
    }

    async fn token_of(&self, scope: Scope) -> String {
        let grant = Grant { scope, services: [].into() };
        if scope != Scope::Machine {
            return self.token(grant).await.token;
        }
        // The API gives a join token for this scope.
        let wanted = auth::Wanted { name: "test".to_owned(), grant, life_ms: 3_600_000, stores_only: false };
        let actor = Actor { name: "test".to_owned(), token: None, from: None };
        self.node.app().authority.issue(actor, wanted).await.unwrap().token
    }

    fn applied(&self) -> u64 {
        self.node.app().store.state().applied
    }
}

/// Another listener on the same node's state, engine and keys, which knows the cluster by `members`.
async fn beside(running: &Running, members: Arc<dyn Members>) -> SocketAddr {
    beside_in_demo(running, members, None).await
}

async fn beside_in_demo(running: &Running, members: Arc<dyn Members>, demo_socket: Option<PathBuf>) -> SocketAddr {
    beside_as(running, members, demo_socket, false).await
}

async fn beside_as(
    running: &Running,
    members: Arc<dyn Members>,
    demo_socket: Option<PathBuf>,
    stores_only: bool,
) -> SocketAddr {
    let app = running.node.app();
    let config = Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..app.config.clone() };
    let listener = Listener::bind(&config).await.unwrap();
    let address = listener.address();
    let app = Arc::new(App::new(Parts {
        config: app.config.clone(),
        domain: app.domain.clone(),
        node: app.node.clone(),
        stores_only,
        listening: address,
        store: app.store.clone(),
        authority: app.authority.clone(),
        engine: app.engine.clone(),
        volumes: app.volumes.clone(),
        images: app.images.clone(),
        vault: app.vault.clone(),
        uploads: app.uploads.clone(),
        mesh: app.mesh.clone(),
        nodes: app.nodes.clone(),
        metrics: app.metrics.clone(),
        members,
        attempts: app.attempts.clone(),
        demo_socket,
        stop: app.stop.clone(),
    }));
    let reception = Reception::new(&config, app.nodes.clone(), app.attempts.clone(), app.metrics.clone());
    reception.open(app.clone());
    tokio::spawn(listener.serve(reception, app.stop.clone()));
    address
}

/// Changes the state as if the cluster had.
async fn propose(running: &Running, command: CommandV1) {
    let actor = Actor { name: "test".to_owned(), token: None, from: None };
    let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
    running.node.app().store.propose(entry).await.unwrap();
}

/// A further member, of which nothing is there but its record.
async fn admit(running: &Running, name: &str) -> NodeId {
    admit_as(running, name, false).await
}

async fn admit_as(running: &Running, name: &str, stores_only: bool) -> NodeId {
    let grant = Grant { scope: Scope::Machine, services: [].into() };
    let wanted = auth::Wanted { name: name.to_owned(), grant, life_ms: 60_000, stores_only };
    let actor = Actor { name: "test".to_owned(), token: None, from: None };
    let invitation = running.node.app().authority.invite(actor, wanted).await.unwrap().id;
    let id = NodeId(format!("{name}-id"));
    let record =
        MachineRecord { id: id.clone(), name: name.parse().unwrap(), public_key: String::new(), labels: [].into() };
    let facts = MachineFacts {
        addresses: vec![format!("{name}:7070")],
        version: "0.0.1".to_owned(),
        ..MachineFacts::default()
    };
    propose(running, CommandV1::AdmitMachine { invitation, machine: record, facts }).await;
    id
}

async fn initialised(directory: &Path, change: impl FnOnce(&mut Config)) -> (Config, String) {
    let mut config =
        Config { data_dir: directory.join("data"), listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::default() };
    change(&mut config);
    let made = node::init(node::Init {
        data_dir: config.data_dir.clone(),
        cluster: "home".parse().unwrap(),
        machine: "anna".parse().unwrap(),
        listen: config.listen,
        domain: None,
        secure: false,
        with_token: true,
    })
    .await
    .unwrap();
    (config, made.admin_token.unwrap())
}

/// Every refusal is JSON with a code whose status it has, and one sentence.
async fn refusal(response: Response) -> ApiError {
    let status = response.status();
    assert_eq!(response.headers()["content-type"], "application/json", "{status}");
    let error: ApiError = response.json().await.unwrap();
    if status != StatusCode::METHOD_NOT_ALLOWED {
        assert_eq!(error.code.status(), status.as_u16(), "{error:?}");
    }
    assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error:?}");
    error
}

async fn code(request: RequestBuilder) -> ErrorCode {
    refusal(request.send().await.unwrap()).await.code
}

#[tokio::test]
async fn a_node_says_that_it_lives_and_is_ready() {
    let running = Running::start().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(running.get(path).send().await.unwrap().status(), StatusCode::OK, "{path}");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn the_cluster_says_who_asks_and_up_to_where_the_answer_is() {
    let running = Running::start().await;
    let response = running.as_admin(Method::GET, "/api/v1/cluster").send().await.unwrap();
    assert_eq!(response.headers()["flotilla-applied-index"].to_str().unwrap(), running.applied().to_string());
    let cluster: Value = response.json().await.unwrap();
    assert_eq!(cluster["name"], "home");
    assert_eq!(cluster["domain"], format!("home.localhost:{}", running.address().port()));
    assert_eq!(cluster["you"]["grant"]["scope"], "admin");
    assert_eq!(cluster["fault_tolerant"], false);
    let machines: Value = running.as_admin(Method::GET, "/api/v1/machines").send().await.unwrap().json().await.unwrap();
    assert_eq!(machines[0]["name"], "anna");
    assert!(machines[0]["resources"]["memory_total_bytes"].as_u64().unwrap() > 0);
    assert!(machines[0]["resources"]["disk_free_bytes"].as_u64().unwrap() > 0);
    running.node.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_told_as_an_error_of_the_api() {
    let running = Running::start().await;
    for path in ["/api", "/api/", "/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v2/cluster"] {
        assert_eq!(code(running.as_admin(Method::GET, path)).await, ErrorCode::NotFound, "{path}");
    }
    for (method, path) in [
        (Method::POST, "/api/v1/cluster"),
        (Method::PUT, "/api/v1/services"),
        (Method::TRACE, "/healthz"),
        (Method::GET, "/api/v1/deployments"),
    ] {
        let response = running.as_admin(method.clone(), path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(refusal(response).await.code, ErrorCode::InvalidRequest);
    }
    for (method, path, expected) in [
        (Method::GET, "/api/v1/services/ghost", ErrorCode::ServiceNotFound),
        (Method::DELETE, "/api/v1/services/ghost", ErrorCode::ServiceNotFound),
        (Method::POST, "/api/v1/services/ghost/restart", ErrorCode::ServiceNotFound),
        (Method::GET, "/api/v1/services/ghost/logs", ErrorCode::ServiceNotFound),
        (Method::GET, "/api/v1/services/No_Host/logs", ErrorCode::InvalidName),
        (Method::GET, "/api/v1/services/app", ErrorCode::InvalidName),
        (Method::DELETE, "/api/v1/tokens/ghost", ErrorCode::TokenNotFound),
        (Method::GET, "/api/v1/audit?limit=many", ErrorCode::InvalidRequest),
    ] {
        assert_eq!(code(running.as_admin(method.clone(), path)).await, expected, "{method} {path}");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn a_port_in_use_and_a_second_daemon_are_named() {
    let running = Running::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (other, _) = initialised(directory.path(), |_| {}).await;
    let error = node::start(Config { listen: running.address(), ..other }).await.unwrap_err().to_string();
    assert!(error.contains(&running.address().to_string()) && error.contains("--listen"), "{error}");

    let error = node::start(running.config.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    let error = node::start(Config { data_dir: directory.path().join("empty"), ..running.config.clone() }).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("flotilla init"), "{error}");
    running.node.stop().await;
}

#[tokio::test]
async fn a_cluster_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let (config, _) = initialised(directory.path(), |_| {}).await;
    let again = node::init(node::Init {
        data_dir: config.data_dir.clone(),
        cluster: "away".parse().unwrap(),
        machine: "anna".parse().unwrap(),
        listen: config.listen,
        domain: None,
        secure: false,
        with_token: true,
    });
    let error = again.await.unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
}

#[tokio::test]
async fn lost_state_and_foreign_state_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (config, _) = initialised(directory.path(), |_| {}).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let (other, _) = initialised(elsewhere.path(), |_| {}).await;
    std::fs::copy(other.data_dir.join("state.db"), config.data_dir.join("state.db")).unwrap();
    let error = node::start(config.clone()).await.unwrap_err();
    assert!(error.to_string().contains("is that of the machine"), "{error}");
    std::fs::remove_file(config.data_dir.join("state.db")).unwrap();
    let error = node::start(config).await.unwrap_err();
    assert!(matches!(error, node::Error::StateMissing { .. }), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_changes() {
    let directory = tempfile::tempdir().unwrap();
    let (config, admin) = initialised(directory.path(), |_| {}).await;
    let full = store::Limits { pages: Some(64), ..store::Limits::default() };
    let node = node::start_with(config.clone(), full).await.unwrap();
    let running = Running { node, config, admin, http: reqwest::Client::new(), _directory: directory };
    let request = CreateToken { name: "x".repeat(90), grant: Grant::admin(), ttl_seconds: 3600, storage_only: false };
    let refused = loop {
        let response = running.as_admin(Method::POST, "/api/v1/tokens").json(&request).send().await.unwrap();
        if !response.status().is_success() {
            break refusal(response).await;
        }
    };
    assert_eq!(refused.code, ErrorCode::DiskFull);
    assert!(refused.message.contains("free some space"), "{}", refused.message);
    let before = running.applied();
    assert_eq!(code(running.as_admin(Method::POST, "/api/v1/tokens").json(&request)).await, ErrorCode::DiskFull);
    assert_eq!(running.applied(), before);
    // What needs no disk goes on.
    assert_eq!(running.as_admin(Method::GET, "/api/v1/cluster").send().await.unwrap().status(), StatusCode::OK);
    running.node.stop().await;
}

#[tokio::test]
async fn a_node_that_stopped_goes_on_where_it_was() {
    let running = Running::start().await;
    let token = running.token_of(Scope::Operator).await;
    let (before, config) = (running.applied(), running.config.clone());
    let address = running.address();
    let Running { node, _directory: directory, http, .. } = running;
    node.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the listener is still there");

    let node = node::start(config).await.unwrap();
    assert!(node.app().store.state().applied >= before);
    let services =
        http.get(format!("http://{}/api/v1/services", node.address())).bearer_auth(token).send().await.unwrap();
    assert_eq!(services.json::<Value>().await.unwrap(), json!([]));
    node.stop().await;
    drop(directory);
}

#[tokio::test]
async fn the_metrics_are_for_this_machine_or_an_administrator() {
    let running = Running::start().await;
    let text = running.get("/metrics").send().await.unwrap().text().await.unwrap();
    for name in [
        "flotilla_state_index ",
        "flotilla_consensus_leads 1",
        "flotilla_consensus_commit_duration_seconds_count ",
        "flotilla_tunnel_sessions_open 0",
        "flotilla_services{state=\"running\"} 0",
        "# EOF",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    // A collector refuses a page on which a family is told twice.
    let mut families: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let told = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), told, "{text}");
    let operator = running.token_of(Scope::Operator).await;
    assert_eq!(code(running.get("/metrics").bearer_auth(operator)).await, ErrorCode::ScopeInsufficient);
    let admin = running.as_admin(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(admin.status(), StatusCode::OK);
    running.node.stop().await;
}

#[test]
fn the_manual_lists_every_route() {
    let manual = include_str!("../../../../docs/API.md");
    for (method, path, _) in access::ROUTES {
        let path = path.strip_prefix("/api/v1").unwrap().split('?').next().unwrap();
        let path =
            path.replace("/ghost", "/{}").replace("/uploads/0", "/uploads/{}").replace("/layers/0", "/layers/{}");
        let listed = manual.lines().any(|line| {
            let route = ["{service}", "{volume}", "{digest}", "{id}", "{machine}", "{name}"]
                .iter()
                .fold(line.to_owned(), |line, variable| line.replace(variable, "{}"));
            route.starts_with(&format!("| `{method} {path}` |"))
        });
        assert!(listed, "docs/API.md has no row for {method} {path}");
    }
}
