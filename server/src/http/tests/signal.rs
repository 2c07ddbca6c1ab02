//! `/signal`: who gets a socket, and what is no message.

use flotilla_api::signal::{FromNode, SIGNAL_MAX, SIGNAL_VERSION};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

type Socket = WebSocketStream<TcpStream>;

async fn open(running: &Running, origin: Option<&str>) -> Result<Socket, tungstenite::Error> {
    let host = format!("app.home.localhost:{}", running.address().port());
    let mut request = format!("ws://{host}/signal").into_client_request().unwrap();
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.replace("HOST", &host).parse().unwrap());
    }
    let stream = TcpStream::connect(running.address()).await.unwrap();
    client_async(request, stream).await.map(|(socket, _)| socket)
}

async fn answer(socket: &mut Socket, message: Message) -> FromNode {
    socket.send(message).await.unwrap();
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn refused(answer: FromNode) -> ErrorCode {
    let FromNode::Error { error } = answer else { panic!("{answer:?}") };
    error.code
}

#[tokio::test]
async fn a_socket_is_for_the_dashboards_own_pages() {
    let running = Running::start().await;
    open(&running, Some("http://HOST")).await.unwrap();
    open(&running, None).await.unwrap();
    for origin in ["http://notes.home.localhost", "http://evil.example", "null"] {
        let Err(tungstenite::Error::Http(response)) = open(&running, Some(origin)).await else { panic!("{origin}") };
        assert_eq!(response.status().as_u16(), 400, "{origin}");
    }
    assert_eq!(code(running.get("/signal")).await, ErrorCode::SignalInvalid, "no WebSocket");
    running.node.stop().await;
}

#[tokio::test]
async fn who_tries_tokens_has_to_wait() {
    let running = Running::start().await;
    let mut codes = Vec::new();
    while codes.last() != Some(&ErrorCode::RateLimited) && codes.len() < 300 {
        let mut socket = open(&running, None).await.unwrap();
        for _ in 0..5 {
            let guess = json!({ "type": "connect", "version": SIGNAL_VERSION, "token": "guessed", "offer": "v=0" });
            codes.push(refused(answer(&mut socket, Message::text(guess.to_string())).await));
        }
    }
    assert_eq!(codes.first(), Some(&ErrorCode::TokenInvalid));
    assert_eq!(codes.last(), Some(&ErrorCode::RateLimited), "never slowed down");
    running.node.stop().await;
}

#[tokio::test]
async fn what_is_no_signalling_is_told_and_the_token_is_checked() {
    let running = Running::start().await;
    let connect = |version: u32, token: &str| {
        Message::text(json!({ "type": "connect", "version": version, "token": token, "offer": "v=0" }).to_string())
    };
    for (message, expected) in [
        (Message::text("{"), ErrorCode::SignalInvalid),
        (Message::text(r#"{"type":"dance"}"#), ErrorCode::SignalInvalid),
        (Message::binary(vec![1, 2, 3]), ErrorCode::SignalInvalid),
        (Message::text(r#"{"type":"bye"}"#), ErrorCode::SignalInvalid),
        (connect(SIGNAL_VERSION + 1, &running.admin), ErrorCode::SignalVersion),
        (connect(SIGNAL_VERSION, "nonsense"), ErrorCode::TokenInvalid),
        (connect(SIGNAL_VERSION, &running.admin), ErrorCode::SignalInvalid),
    ] {
        let mut socket = open(&running, None).await.unwrap();
        assert_eq!(refused(answer(&mut socket, message.clone()).await), expected, "{message:?}");
    }
    assert!(running.node.app().mesh.sessions().is_empty());
    running.node.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_socket() {
    let running = Running::start().await;
    let mut socket = open(&running, None).await.unwrap();
    socket.send(Message::text("x".repeat(SIGNAL_MAX + 1))).await.unwrap();
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the socket stays");
    running.node.stop().await;
}

#[tokio::test]
async fn an_open_socket_does_not_keep_the_node_from_stopping() {
    let running = Running::start().await;
    let mut socket = open(&running, None).await.unwrap();
    let stopped = async {
        running.node.stop().await;
        while let Some(Ok(_)) = socket.next().await {}
    };
    tokio::time::timeout(PATIENCE, stopped).await.expect("the node waits for a socket");
}
