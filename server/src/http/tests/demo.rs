//! The plug of a demo's machine.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixListener,
};

use super::*;
use crate::{client::Client, http::Single};

/// Answers each order with what `answer` makes of its line.
fn demo(socket: &Path, answer: impl Fn(Value) -> Value + Send + 'static) {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (read, mut write) = stream.into_split();
            let mut line = String::new();
            BufReader::new(read).read_line(&mut line).await.unwrap();
            let answer = answer(serde_json::from_str(&line).unwrap());
            write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    });
}

#[tokio::test]
async fn outside_of_a_demo_there_is_no_plug() {
    let running = Running::start().await;
    let client = Client::new(&format!("http://{}", running.address()), Some(running.admin.clone())).unwrap();
    assert!(!client.cluster().await.unwrap().demo);
    assert_eq!(code(running.as_admin(Method::POST, "/api/v1/demo/machines/anna/kill")).await, ErrorCode::NotFound);
    running.node.stop().await;
}

#[tokio::test]
async fn in_a_demo_orders_go_to_it_and_its_answer_comes_back() {
    let running = Running::start().await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let app = running.node.app();
    let members = Arc::new(Single::new(app.node.clone(), app.store.clone()));
    let address = beside_in_demo(&running, members, Some(socket.clone())).await;
    let post = |path: &str| {
        let url = format!("http://{address}/api/v1/demo/machines/{path}");
        running.http.post(url).bearer_auth(&running.admin).timeout(Duration::from_secs(20))
    };
    // Nobody listens yet.
    assert_eq!(code(post("anna/kill")).await, ErrorCode::ServiceUnavailable);

    demo(&socket, |order| match (order["kill"].as_str(), order["start"].as_str()) {
        (Some("anna"), None) => json!({ "ok": true, "machines": [], "outage": { "machine": "anna", "services": [{
            "service": "notes", "polls": 200, "failed": 31, "gap_ms": 3100, "outcome": "back", "before": ["anna"], "after": ["berta"]
        }] } }),
        (None, Some(_)) => json!({ "ok": false, "error": "`anna` is on already" }),
        _ => json!({ "ok": false, "error": "no such machine" }),
    });
    let answer: Value = post("anna/kill").send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["outage"]["services"][0]["gap_ms"], 3100);
    let error = refusal(post("anna/start").send().await.unwrap()).await;
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Conflict, "`anna` is on already"));
    let client = Client::new(&format!("http://{address}"), Some(running.admin.clone())).unwrap();
    assert!(client.cluster().await.unwrap().demo);
    running.node.stop().await;
}
