//! Secrets and configs in containers: in memory, as they were asked for, and nowhere else.

use std::path::PathBuf;

use flotilla::engine::{Engine, ExecEvent, pull_the_plug, take_down};
use flotilla_api::{
    NodeId, Revision,
    rest::{ExecRequest, ServiceState},
    spec::ValueKind::{Config, Secret},
};
use flotilla_core::CommandV1;

use crate::playground::{PATIENCE, Playground, name};

const PASSWORD: &str = "correct horse battery staple";

const NOTES: &str = r#"
  notes:
    image: $IMAGE
    read_only: true
    secrets:
      - db
      - { source: db, target: owned, uid: "1000", gid: "1000", mode: 0400 }
    configs: [{ source: motd, target: /etc/motd }]
secrets: { db: }
configs: { motd: }
"#;

/// What a command in the service's container prints.
pub(crate) async fn printed(engine: &Engine, service: &str, command: &[&str]) -> String {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    let request = ExecRequest { command, tty: false, rows: 0, columns: 0 };
    let mut exec = engine.exec(&name(service), None, &request).await.unwrap();
    exec.input.close().await;
    let mut text = Vec::new();
    let reading = async {
        while let Some(event) = exec.output.next().await {
            match event.unwrap() {
                ExecEvent::Out(bytes) | ExecEvent::Err(bytes) => text.extend_from_slice(&bytes),
                ExecEvent::Exit(_) => break,
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the command ends");
    String::from_utf8(text).unwrap()
}

impl Playground {
    /// Where on this machine the container's secrets are.
    pub(crate) async fn files_of(&self, container: &str) -> Vec<PathBuf> {
        let mounts = self.inspect(container).await.mounts.unwrap();
        let target = |it: &bollard::models::MountPoint| it.destination.clone().unwrap_or_default();
        let ours = mounts.iter().filter(|it| target(it).starts_with("/run/secrets/") || target(it) == "/etc/motd");
        ours.map(|it| PathBuf::from(it.source.clone().unwrap())).collect()
    }

    async fn until_gone(&self, files: &[PathBuf]) {
        let gone = async {
            while files.iter().any(|path| path.exists()) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("they stay: {files:?}"));
    }
}

#[tokio::test]
async fn a_container_reads_its_secrets_from_memory_and_the_engine_does_not_know_them() {
    let playground = Playground::new().await;
    playground.set(Secret, "db", PASSWORD);
    playground.set(Config, "motd", "ahoy");
    playground.deploy(NOTES);
    let engine = playground.start();
    let container = playground.until_running(&engine, "notes").await;
    assert_eq!(printed(&engine, "notes", &["cat", "/run/secrets/db"]).await, PASSWORD);
    assert_eq!(printed(&engine, "notes", &["cat", "/run/secrets/owned"]).await, PASSWORD);
    assert_eq!(printed(&engine, "notes", &["cat", "/etc/motd"]).await, "ahoy");
    let told = printed(&engine, "notes", &["stat", "-c", "%a %u:%g", "/run/secrets/db", "/run/secrets/owned"]).await;
    assert_eq!(told, "444 0:0\n400 1000:1000\n");
    assert_eq!(printed(&engine, "notes", &["stat", "-f", "-c", "%T", "/run/secrets/db"]).await, "tmpfs\n");
    let refused = printed(&engine, "notes", &["sh", "-c", "echo x > /run/secrets/db"]).await;
    assert!(refused.contains("Read-only file system"), "{refused}");

    let inspected = serde_json::to_string(&playground.inspect(&container.id).await).unwrap();
    assert!(inspected.contains("/run/secrets/db") && !inspected.contains(PASSWORD), "{inspected}");
    let files = playground.files_of(&container.id).await;
    assert_eq!(files.len(), 3);
    for file in &files {
        let kind = rustix::fs::statfs(file).unwrap().f_type;
        assert_eq!(kind, 0x0102_1994, "{} is on no tmpfs", file.display());
        let parent = std::fs::metadata(file.parent().unwrap()).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&parent) & 0o777, 0o700);
    }

    // A new version is a new instance; what the old one had goes with it.
    playground.set(Secret, "db", "another");
    playground
        .until(&engine, "notes", |it| {
            it.state == ServiceState::Running && it.instances.iter().all(|it| it.revision == Revision(2))
        })
        .await;
    assert_eq!(printed(&engine, "notes", &["cat", "/run/secrets/db"]).await, "another");
    playground.until_gone(&files).await;
    let newer = playground.files_of(&playground.until_running(&engine, "notes").await.id).await;
    assert!(newer.iter().all(|path| path.exists()));
    playground.apply(CommandV1::Remove { service: name("notes"), volumes: true });
    playground.until_gone(&newer).await;
    engine.stop().await;
}

#[tokio::test]
async fn what_a_reboot_took_is_there_again_before_the_container_starts() {
    let playground = Playground::new().await;
    playground.set(Secret, "db", PASSWORD);
    playground.set(Config, "motd", "ahoy");
    playground.deploy(&NOTES.replace("read_only: true", "command: [sh, -c, 'cat /run/secrets/db && exec sleep 1000']"));
    let engine = playground.start();
    let before = playground.until_running(&engine, "notes").await;
    let files = playground.files_of(&before.id).await;
    engine.stop().await;
    pull_the_plug(None, &playground.cluster, &NodeId("node".into())).await.unwrap();
    assert!(files.iter().all(|path| !path.exists()), "memory does not outlive the power");

    let engine = playground.start();
    let after = playground.until_running(&engine, "notes").await;
    assert_eq!(after.id, before.id, "it is the same container");
    assert_eq!(printed(&engine, "notes", &["cat", "/run/secrets/db"]).await, PASSWORD);
    engine.stop().await;
    take_down(None, &playground.cluster, None, playground.data.path(), &[]).await.unwrap();
    assert!(files.iter().all(|path| !path.exists()));
}

#[tokio::test]
async fn a_variable_holds_a_secret_for_images_that_take_nothing_else() {
    let playground = Playground::new().await;
    playground.set(Secret, "db", &format!("{PASSWORD}\n"));
    playground.set(Config, "level", "info");
    playground.deploy(
        "  notes:\n    image: $IMAGE\n    environment: { PLAIN: x }\n    x-flotilla:\n      environment:\n        \
         DB_PASSWORD: { secret: db }\n        LEVEL: { config: level }\nsecrets: { db: }\nconfigs: { level: }\n",
    );
    let engine = playground.start();
    playground.until_running(&engine, "notes").await;
    let printed = printed(&engine, "notes", &["env"]).await;
    for line in [&format!("DB_PASSWORD={PASSWORD}"), "LEVEL=info", "PLAIN=x"] {
        assert!(printed.lines().any(|it| it == line), "{line} is not in {printed}");
    }
    // Nor is it in what anybody reads of the service.
    let spec = serde_json::to_string(playground.state().services[&name("notes")].spec()).unwrap();
    assert!(spec.contains("DB_PASSWORD") && !spec.contains(PASSWORD), "{spec}");
    engine.stop().await;
}

#[tokio::test]
async fn a_service_whose_secret_can_not_be_opened_waits_and_says_so() {
    let playground = Playground::new().await;
    playground.set(Secret, "db", PASSWORD);
    playground.set(Config, "motd", "ahoy");
    playground.deploy(NOTES);
    playground.lose_values();
    let engine = playground.start();
    playground
        .until(&engine, "notes", |it| it.message.as_ref().is_some_and(|text| text.contains("the key is not here")))
        .await;
    playground.set(Secret, "db", "another");
    playground.set(Config, "motd", "ahoy");
    playground.until_running(&engine, "notes").await;
    assert_eq!(printed(&engine, "notes", &["cat", "/run/secrets/db"]).await, "another");
    engine.stop().await;
}
