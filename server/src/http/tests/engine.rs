//! From a Dockerfile to a service that runs, is looked at, used and removed: with Docker Engine.

use std::{collections::BTreeMap, path::PathBuf};

use flotilla_api::{
    ServiceName,
    rest::{BuildLine, DeployRequest, ExecRequest, LogQuery, LogStream, RemoveQuery, ServiceState},
};
use futures::StreamExt;

use super::*;
use crate::{
    client::{Client, ExecEvent},
    engine::take_down,
};

const PATIENCE: Duration = Duration::from_secs(60);

const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/sh\n";

const COMPOSE: &str = r#"
services:
  hello:
    image: IMAGE
    command: [/bin/sh, -c, "echo greeted; echo warned >&2; exec /bin/sh -c 'while :; do sleep 1; done'"]
    stop_grace_period: 1s
"#;

fn busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("busybox-static is not installed; `make setup` installs what tests need")
}

fn context() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    add("Dockerfile", 0o644, DOCKERFILE.as_bytes());
    add("busybox", 0o755, &std::fs::read(busybox()).unwrap());
    archive.into_inner().unwrap()
}

#[tokio::test]
async fn an_image_is_built_deployed_watched_used_and_removed() {
    let running = Running::start_with(|_| {}).await;
    let client = Client::new(&format!("http://{}", running.address()), Some(running.admin.clone())).unwrap();
    let service: ServiceName = "hello".parse().unwrap();
    let image = format!("flotilla-test/api:{}", std::process::id());

    let build = running.as_admin(Method::POST, &format!("/api/v1/builds?image={image}")).timeout(PATIENCE);
    let lines = build.body(context()).send().await.unwrap().error_for_status().unwrap().text().await.unwrap();
    let last: BuildLine = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert!(matches!(last, BuildLine::Done { .. }), "{lines}");
    assert!(client.images().await.unwrap().iter().any(|known| known.references.contains(&image)));

    let deploy = |dry_run| DeployRequest {
        compose: COMPOSE.replace("IMAGE", &image),
        stack: Some("greetings".to_owned()),
        variables: BTreeMap::new(),
        dry_run,
        values: Vec::new(),
    };
    let before = running.applied();
    assert!(client.deploy(&deploy(true)).await.unwrap().services[0].changed);
    assert_eq!(running.applied(), before, "a dry run changed something");
    let mut events = client.events().await.unwrap();
    let deployed = client.deploy(&deploy(false)).await.unwrap();
    assert!(deployed.services[0].changed && deployed.services[0].url.is_none());
    assert!(!client.deploy(&deploy(false)).await.unwrap().services[0].changed);

    let observed = async {
        while let Some(event) = events.next().await {
            let event = event.unwrap();
            if event.kind == "observed" && event.message == "`hello` is running." {
                return;
            }
        }
        panic!("the events ended");
    };
    tokio::time::timeout(PATIENCE, observed).await.expect("no event told that the service runs");
    let detail = client.service(&service).await.unwrap();
    assert_eq!((detail.view.state, detail.view.instances.len()), (ServiceState::Running, 1));
    assert!(detail.view.instances[0].memory_used_bytes.is_some());

    let query = LogQuery { follow: false, tail: None, since: None };
    let mut lines: Vec<_> = client.logs(&service, query).await.unwrap().map(|line| line.unwrap()).collect().await;
    lines.sort_by_key(|line| line.text.clone());
    let lines: Vec<_> = lines.iter().map(|line| (line.text.as_str(), line.stream)).collect();
    assert_eq!(lines, [("greeted", LogStream::Out), ("warned", LogStream::Err)]);

    let request = ExecRequest {
        command: ["/bin/sh", "-c", "read line; echo got $line; exit 3"].map(str::to_owned).to_vec(),
        tty: false,
        rows: 0,
        columns: 0,
    };
    let mut exec = client.exec(&service, &request).await.unwrap();
    exec.input.write(b"this\n").await.unwrap();
    let mut output = Vec::new();
    let code = loop {
        match tokio::time::timeout(PATIENCE, exec.output.next()).await.unwrap().unwrap() {
            ExecEvent::Output(bytes) | ExecEvent::ErrorOutput(bytes) => output.extend_from_slice(&bytes),
            ExecEvent::Exit(code) => break code,
        }
    };
    assert_eq!((String::from_utf8(output).unwrap().as_str(), code), ("got this\n", 3));

    client.remove(&service, RemoveQuery { volumes: true }).await.unwrap();
    let gone = async {
        while running.node.app().engine.observed().is_none_or(|observed| !observed.containers.is_empty()) {
            running.node.app().engine.watch_observed().changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the container stays");
    let cluster = running.node.app().store.state().cluster.as_ref().unwrap().id.clone();
    running.node.stop().await;
    take_down(None, &cluster, None, &running.config.data_dir, &[image]).await.unwrap();
}

#[tokio::test]
async fn an_image_that_does_not_exist_changes_nothing() {
    let running = Running::start_with(|_| {}).await;
    let before = running.applied();
    let compose = "services:\n  ghost:\n    image: 127.0.0.1:9/ghost:1\n";
    let request = json!({ "compose": compose, "stack": "test" });
    let deploy = running.as_admin(Method::POST, "/api/v1/deployments").timeout(PATIENCE).json(&request);
    let error = refusal(deploy.send().await.unwrap()).await;
    assert!(matches!(error.code, ErrorCode::ImageNotFound | ErrorCode::ImagePullFailed), "{error:?}");
    assert!(error.message.contains("127.0.0.1:9/ghost:1"), "{error:?}");
    assert_eq!(running.applied(), before);
    running.node.stop().await;
}
