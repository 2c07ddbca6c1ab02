//! An engine that is not there, goes away, and comes back.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use flotilla::engine::answers;
use flotilla_api::{ErrorCode, rest::EngineView};
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

use crate::playground::{PATIENCE, Playground, name};

/// A socket before the engine's that can be cut.
struct Wire {
    path: PathBuf,
    up: Arc<watch::Sender<bool>>,
}

impl Wire {
    fn new(directory: &Path) -> Self {
        let wire = Self { path: directory.join("docker.sock"), up: Arc::new(watch::Sender::new(false)) };
        wire.mend();
        wire
    }

    fn mend(&self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        self.up.send_replace(true);
        let mut up = self.up.subscribe();
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (mut near, _) = accepted.unwrap();
                        connections.spawn(async move {
                            let mut far = UnixStream::connect("/var/run/docker.sock").await.unwrap();
                            let _ = copy_bidirectional(&mut near, &mut far).await;
                        });
                    }
                    _ = up.wait_for(|up| !up) => return,
                }
            }
        });
    }

    fn cut(&self) {
        std::fs::remove_file(&self.path).unwrap();
        self.up.send_replace(false);
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }
}

async fn until(status: &mut watch::Receiver<EngineView>, ready: bool) -> EngineView {
    let is_so = |view: &EngineView| matches!(view, EngineView::Ready { .. }) == ready;
    let reached = tokio::time::timeout(PATIENCE, status.wait_for(is_so)).await;
    reached.expect("the engine's status changes").unwrap().clone()
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_in_one_sentence() {
    let playground = Playground::new().await;
    playground.deploy("  notes: { image: $IMAGE, ports: [80] }");
    let absent = playground.data.path().join("absent.sock");
    let engine_at = Some(format!("unix://{}", absent.display()));
    let engine = playground.start_at(engine_at.clone());
    let mut status = engine.watch_status();
    let told =
        |view: &EngineView| matches!(view, EngineView::Unavailable { message, .. } if message.contains("absent.sock"));
    tokio::time::timeout(PATIENCE, status.wait_for(told)).await.unwrap().unwrap();

    for error in [
        engine.images(None).await.unwrap_err(),
        engine.ensure_image(&playground.image, |_| {}).await.unwrap_err(),
        answers(engine_at.as_deref()).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), ErrorCode::EngineUnavailable);
        assert!(error.to_string().contains("absent.sock") && error.to_string().contains("start"), "{error}");
    }
    let error = engine.address_of(&name("notes")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ServiceUnavailable);
    assert!(engine.observed().is_none());
    assert!(engine.usage().await.is_empty());
}

#[tokio::test]
async fn what_answers_but_is_no_engine_is_told_so() {
    let playground = Playground::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").await;
        }
    });
    let engine = playground.start_at(Some(format!("tcp://{address}")));
    let mut status = engine.watch_status();
    let told = |view: &EngineView| matches!(view, EngineView::Unavailable { message, .. } if message.contains("does not speak"));
    tokio::time::timeout(PATIENCE, status.wait_for(told)).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_engine_that_goes_and_comes_back_is_taken_up_again() {
    let playground = Playground::new().await;
    playground.deploy("  notes: { image: $IMAGE, command: [httpd, -f, -p, \"80\", -h, /etc], ports: [80] }");
    let wire = Wire::new(playground.data.path());
    let engine = playground.start_at(Some(wire.host()));
    let mut status = engine.watch_status();
    let EngineView::Ready { version, api_version, operating_system } = until(&mut status, true).await else {
        unreachable!()
    };
    assert!(!version.is_empty() && api_version.starts_with("1.") && !operating_system.is_empty());
    let before = playground.until_running(&engine, "notes").await;

    wire.cut();
    until(&mut status, false).await;
    assert_eq!(engine.images(None).await.unwrap_err().code(), ErrorCode::EngineUnavailable);
    // The container runs on, and requests still reach it.
    assert!(engine.address_of(&name("notes")).is_ok());
    // Meanwhile somebody wants something else.
    playground.deploy("  notes: { image: $IMAGE, command: [httpd, -f, -p, \"80\", -h, /etc], ports: [80] }\n  more: { image: $IMAGE }");

    wire.mend();
    until(&mut status, true).await;
    playground.until_running(&engine, "more").await;
    let after = playground.until_running(&engine, "notes").await;
    assert_eq!(before, after);
}
