//! What concerns a container of another machine is asked there.

use std::{collections::BTreeSet, fmt, sync::Mutex};

use axum::{Router, extract::Request, routing::get};
use flotilla_api::{
    Revision, UnixMillis,
    rest::{LinkView, LogLine, LogQuery},
};
use flotilla_core::command::Change;
use futures::{StreamExt, future::BoxFuture};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::sync::watch;

use super::{
    known::{Known, client, container, own, report, spec},
    *,
};
use crate::{
    client::Error,
    http::{PEER_LABEL, serve_member},
    peers::{CallError, Method as Call, Network, Peers, Stream},
};

/// A wire to one other machine: what is at its end, if anything is.
struct Wire {
    end: End,
    connected: watch::Sender<BTreeSet<NodeId>>,
}

enum End {
    Nothing,
    /// A node.
    Node(Arc<App>),
    /// Something that answers as a test wants it.
    Answers(Router),
}

impl Wire {
    fn to(machine: &NodeId, end: End) -> Network {
        Arc::new(Self { end, connected: watch::Sender::new([machine.clone()].into()) })
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Peers for Wire {
    fn call(
        &self,
        _: &NodeId,
        _: Call,
        _: bytes::Bytes,
        _: Duration,
    ) -> BoxFuture<'static, Result<bytes::Bytes, CallError>> {
        Box::pin(std::future::ready(Err(CallError::Unreachable)))
    }

    fn stream(&self, _: &NodeId, label: &str) -> BoxFuture<'static, Result<Stream, CallError>> {
        assert_eq!(label, PEER_LABEL);
        let (here, there) = tokio::io::duplex(64 * 1024);
        match &self.end {
            End::Nothing => return Box::pin(std::future::ready(Err(CallError::Unreachable))),
            End::Node(app) => drop(tokio::spawn(serve_member(app.clone(), app.node.clone(), Box::new(there)))),
            End::Answers(router) => {
                let service = TowerToHyperService::new(router.clone());
                let server = hyper::server::conn::http1::Builder::new();
                drop(tokio::spawn(server.serve_connection(TokioIo::new(there), service).with_upgrades()));
            }
        }
        Box::pin(std::future::ready(Ok(Box::new(here) as Stream)))
    }

    fn connected(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.connected.subscribe()
    }

    fn links(&self) -> Vec<LinkView> {
        Vec::new()
    }
}

/// A node that knows of the machine `berta`, which has one of two replicas of `web`, and has this at the end of its wire.
async fn with_berta(running: &Running, end: End) -> SocketAddr {
    let berta = admit(running, "berta").await;
    let (stack, services) = spec();
    let term = running.node.app().store.state().leadership.term + 100;
    propose(running, CommandV1::Lead { node: berta.clone(), term }).await;
    propose(running, CommandV1::Deploy { stack, services }).await;
    let anna = own(running);
    let place = |replica, machine: &NodeId| Change::Assign {
        service: "web".parse().unwrap(),
        replica,
        machine: machine.clone(),
        revision: Revision(1),
        restarts: 0,
        reason: "it has room".to_owned(),
    };
    propose(running, CommandV1::Place { term, changes: vec![place(1, &anna), place(2, &berta)] }).await;
    let web = container(2, 2, UnixMillis(clock::now().0 - 60_000));
    let mut known = Known::of(&berta, &[&anna, &berta]).told(&berta, clock::now(), report(vec![web], 0));
    known.network = Some(Wire::to(&berta, end));
    beside(running, Arc::new(known)).await
}

fn line(at: u64, text: &str) -> String {
    json!({ "at": at, "instance": "web-1-2-x", "stream": "out", "text": text }).to_string() + "\n"
}

#[tokio::test]
async fn a_machine_that_is_not_there_is_named() {
    let running = Running::start().await;
    let address = with_berta(&running, End::Nothing).await;
    let error = client(&running, address).images_of(&"berta".parse().unwrap()).await.unwrap_err();
    let Error::Api(error) = error else { panic!("{error:?}") };
    assert!(error.code == ErrorCode::ServiceUnavailable && error.message.contains("`berta`"), "{error}");
    let unknown = client(&running, address).images_of(&"ghost".parse().unwrap()).await.unwrap_err();
    assert_eq!(unknown.code(), Some(ErrorCode::MachineNotFound));
    running.node.stop().await;
}

#[tokio::test]
async fn a_service_is_deployed_whose_image_another_machine_has() {
    let running = Running::start().await;
    let id = format!("sha256:{}", "5".repeat(64));
    let answer = json!([{ "id": id, "references": ["lab/app:2"], "size_bytes": 1, "created_at": 7, "used_by": [] }]);
    let router = Router::new().route(
        "/api/v1/images",
        get(move |request: Request| async move {
            match request.uri().query() {
                Some("name=lab%2Fapp%3A2") => axum::Json(answer),
                _ => axum::Json(json!([])),
            }
        }),
    );
    let address = with_berta(&running, End::Answers(router)).await;
    let client = client(&running, address);
    let deploy = async |image: &str| {
        let compose = format!("services:\n  tool:\n    image: {image}\n");
        let request = json!({ "compose": compose, "stack": "lab" });
        client.deploy(&serde_json::from_value(request).unwrap()).await
    };
    // What nobody has is for this machine's engine to pull, and there is none.
    assert_eq!(deploy("lab/app:3").await.unwrap_err().code(), Some(ErrorCode::EngineUnavailable));
    deploy("lab/app:2").await.unwrap();
    let state = running.node.app().store.state();
    assert_eq!(state.services[&"tool".parse().unwrap()].spec().image_id, Some(id));
    running.node.stop().await;
}

#[tokio::test]
async fn a_machine_that_only_stores_has_no_say_in_what_an_image_is() {
    let running = Running::start().await;
    let asked = Arc::new(Mutex::new(0));
    let seen = asked.clone();
    let theirs = format!("sha256:{}", "6".repeat(64));
    let answer =
        json!([{ "id": theirs, "references": ["lab/app:2"], "size_bytes": 1, "created_at": u64::MAX, "used_by": [] }]);
    let router = Router::new().fallback(move || async move {
        *seen.lock().unwrap() += 1;
        axum::Json(answer)
    });
    let (anna, vault) = (own(&running), admit_as(&running, "vault", true).await);
    let mut known = Known::of(&anna, &[&anna]);
    known.network = Some(Wire::to(&vault, End::Answers(router)));
    let address = beside(&running, Arc::new(known)).await;
    let request = json!({ "compose": "services:\n  tool:\n    image: lab/app:2\n", "stack": "lab" });
    let deployed = client(&running, address).deploy(&serde_json::from_value(request).unwrap()).await;
    // No other machine is left to ask, and this one has no engine to pull it.
    assert_eq!(deployed.unwrap_err().code(), Some(ErrorCode::EngineUnavailable));
    assert_eq!(*asked.lock().unwrap(), 0);
    running.node.stop().await;
}

#[tokio::test]
async fn another_node_takes_a_members_word_for_who_asks_and_nobody_elses() {
    let (running, elsewhere) = (Running::start().await, Running::start().await);
    let address = with_berta(&running, End::Node(elsewhere.node.app().clone())).await;
    // The token of `running` is nothing to the node that answers, which has no engine, and says so.
    let get = |token: &str| {
        let url = format!("http://{address}/api/v1/images?machine=berta");
        running.http.get(url).bearer_auth(token).timeout(Duration::from_secs(20))
    };
    assert_eq!(code(get(&running.admin)).await, ErrorCode::EngineUnavailable);
    assert_eq!(code(get(&running.token_of(Scope::User).await)).await, ErrorCode::ScopeInsufficient);

    let word = json!({ "principal": { "token": "x", "name": "Eve", "grant": { "scope": "admin" }, "expires_at": u64::MAX }, "peer": "::1" });
    let word = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, word.to_string());
    let url = format!("http://{}/api/v1/tokens", elsewhere.address());
    let forged = running.http.get(url).header("flotilla-on-behalf", word);
    assert_eq!(code(forged).await, ErrorCode::TokenMissing);
    running.node.stop().await;
    elsewhere.node.stop().await;
}

#[tokio::test]
async fn the_output_of_a_service_comes_from_all_its_machines() {
    let running = Running::start().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let router = Router::new().route(
        "/api/v1/services/web/logs",
        get(move |request: Request| {
            seen.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
            assert!(!request.headers().contains_key("authorization"), "the token was passed on");
            async { format!("{}\n{}{}", line(1, "one"), line(2, "two"), line(3, "three")) }
        }),
    );
    let address = with_berta(&running, End::Answers(router)).await;
    let client = client(&running, address);
    let service = "web".parse().unwrap();
    let read = async |query| {
        let lines = client.logs(&service, query).await.unwrap();
        let lines: Vec<LogLine> = lines.map(|line| line.unwrap()).collect().await;
        lines
    };
    let lines = read(LogQuery::default()).await;
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts[..3], ["one", "two", "three"]);
    // This machine has no engine, and that is not kept quiet.
    assert!(texts[3].starts_with("flotilla: the output on `anna` can't be read"), "{texts:?}");
    assert_eq!(texts.len(), 4);
    read(LogQuery { follow: false, tail: Some(7), since: Some(UnixMillis(2)) }).await;
    assert_eq!(*asked.lock().unwrap(), ["follow=false", "follow=false&tail=7&since=2"]);

    // Of one instance alone only its own machine is asked.
    let one = running.http.get(format!("http://{address}/api/v1/services/web/logs?instance=web-1-2-x"));
    let text = one.bearer_auth(&running.admin).send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().filter(|line| !line.trim().is_empty()).count(), 3);
    assert_eq!(asked.lock().unwrap().last().unwrap(), "follow=false&instance=web-1-2-x");
    running.node.stop().await;
}

#[tokio::test]
async fn output_that_breaks_off_is_followed_from_where_it_was() {
    let running = Running::start().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    // Each answer has one line more, and then ends, as that of a node that is restarted.
    let router = Router::new().route(
        "/api/v1/services/web/logs",
        get(move |request: Request| {
            let count = {
                let mut asked = seen.lock().unwrap();
                asked.push(request.uri().query().unwrap_or_default().to_owned());
                asked.len() as u64
            };
            async move { line(count * 10, &format!("line {count}")) }
        }),
    );
    let address = with_berta(&running, End::Answers(router)).await;
    let query = LogQuery { follow: true, tail: Some(100), since: None };
    let mut lines = client(&running, address).logs(&"web".parse().unwrap(), query).await.unwrap();
    let mut texts = Vec::new();
    while texts.len() < 3 {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next()).await.unwrap().unwrap().unwrap();
        if !line.text.starts_with("flotilla:") {
            texts.push(line.text);
        }
        // Reports are what makes the reader look again.
        running.token_of(Scope::User).await;
    }
    assert_eq!(texts, ["line 1", "line 2", "line 3"]);
    assert_eq!(asked.lock().unwrap()[..3], ["follow=true&tail=100", "follow=true&since=11", "follow=true&since=21"]);
    drop(lines);
    running.node.stop().await;
}

#[tokio::test]
async fn a_command_is_run_where_its_instance_is() {
    let running = Running::start().await;
    // The other end takes the socket and sends back what it gets: first the request, then the input.
    let router = Router::new().route(
        "/api/v1/services/web/exec",
        get(|upgrade: axum::extract::WebSocketUpgrade| async {
            upgrade.on_upgrade(|mut socket| async move {
                use axum::extract::ws::Message;
                while let Some(Ok(message)) = socket.recv().await {
                    let answer = match message {
                        Message::Text(text) if text.contains("command") => {
                            Message::Binary([&[1][..], text.as_bytes()].concat().into())
                        }
                        Message::Binary(_) => Message::text(r#"{"type":"exit","code":7}"#),
                        _ => continue,
                    };
                    if socket.send(answer).await.is_err() {
                        return;
                    }
                }
            })
        }),
    );
    let address = with_berta(&running, End::Answers(router)).await;
    let request = flotilla_api::rest::ExecRequest { command: vec!["ls".to_owned()], tty: false, rows: 0, columns: 0 };
    let mut exec = client(&running, address).exec(&"web".parse().unwrap(), &request).await.unwrap();
    let output = exec.output.next().await.unwrap();
    let crate::client::ExecEvent::Output(bytes) = output else { panic!("{output:?}") };
    assert!(String::from_utf8_lossy(&bytes).contains(r#""command":["ls"]"#));
    exec.input.write(b"x").await.unwrap();
    assert_eq!(exec.output.next().await.unwrap(), crate::client::ExecEvent::Exit(7));
    running.node.stop().await;
}
