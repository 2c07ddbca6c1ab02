//! From a specification to a container, and what becomes of it.

use std::{collections::HashSet, fs, time::Duration};

use flotilla::engine::take_down;
use flotilla_api::{ErrorCode, rest::ServiceState};
use flotilla_core::{
    CommandV1,
    reconcile::{Health, Status},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::playground::{PATIENCE, Playground, mode_and_owner, name};

#[tokio::test]
async fn a_container_is_what_its_specification_says() {
    let playground = Playground::new().await;
    playground.deploy(
        r#"
  notes:
    image: $IMAGE
    command: [sleep, "1000"]
    environment: { COLOUR: blue }
    user: "1000"
    working_dir: /tmp
    hostname: harbour
    init: true
    read_only: true
    cap_add: [NET_ADMIN]
    cap_drop: [MKNOD]
    stop_signal: SIGINT
    tmpfs: [/scratch]
    labels: { colour: blue }
    deploy: { resources: { limits: { cpus: "0.5", memory: 64M } } }
"#,
    );
    let engine = playground.start();
    let container = playground.until_running(&engine, "notes").await;

    let inspected = playground.inspect(&container.id).await;
    assert_eq!(inspected.name.unwrap(), format!("/flotilla-{}-node-{}", &playground.cluster[..12], container.instance));
    let config = inspected.config.unwrap();
    assert!(config.env.unwrap().contains(&"COLOUR=blue".to_owned()));
    assert_eq!(config.user.as_deref(), Some("1000"));
    assert_eq!(config.working_dir.as_deref(), Some("/tmp"));
    assert_eq!(config.hostname.as_deref(), Some("harbour"));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    let labels = config.labels.unwrap();
    assert_eq!(labels["colour"], "blue");
    assert_eq!(labels["flotilla.service"], "notes");
    assert_eq!(labels["flotilla.cluster"], playground.cluster);
    let host = inspected.host_config.unwrap();
    assert_eq!(host.nano_cpus, Some(500_000_000));
    assert!(matches!(host.memory, Some(64_000_000 | 67_108_864)), "{:?}", host.memory);
    assert_eq!(host.memory_swap, host.memory);
    assert_eq!(host.init, Some(true));
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(host.cap_add.unwrap().len(), 1);
    assert_eq!(host.cap_drop.unwrap().len(), 1);
    assert!(host.tmpfs.unwrap().contains_key("/scratch"));
    assert_eq!(host.restart_policy.unwrap().name.unwrap().to_string(), "no");
    let log = host.log_config.unwrap();
    assert_eq!(log.typ.as_deref(), Some("json-file"));
    assert_eq!(log.config.unwrap()["max-size"], "10m");
    let networks = inspected.network_settings.unwrap().networks.unwrap();
    assert_eq!(networks.keys().cloned().collect::<Vec<_>>(), playground.networks().await);
    assert!(networks.values().next().unwrap().aliases.as_ref().unwrap().contains(&"notes".to_owned()));
}

#[tokio::test]
async fn a_request_reaches_each_healthy_replica_in_turn() {
    let playground = Playground::new().await;
    playground.deploy(
        r#"
  web:
    image: $IMAGE
    command: [sh, -c, "echo -n hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    ports: [8080]
    deploy: { replicas: 2 }
    healthcheck: { test: [CMD, wget, -q, -O, /dev/null, "http://127.0.0.1:8080/"], interval: 1s, retries: 30 }
"#,
    );
    let engine = playground.start();
    playground
        .until(&engine, "web", |condition| {
            condition.instances.iter().filter(|instance| instance.state == ServiceState::Running).count() == 2
        })
        .await;
    let observed = engine.observed().unwrap();
    assert!(observed.containers.iter().all(|c| matches!(c.status, Status::Running { health: Health::Healthy, .. })));

    let addresses: HashSet<_> = (0..4).map(|_| engine.address_of(&name("web")).unwrap()).collect();
    assert_eq!(addresses.len(), 2);
    for address in addresses {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
    }
}

#[tokio::test]
async fn services_of_a_stack_know_each_other_by_name() {
    let playground = Playground::new().await;
    playground.deploy(
        r#"
  web:
    image: $IMAGE
    command: [httpd, -f, -p, "8080", -h, /etc]
    ports: [8080]
  reader:
    image: $IMAGE
    depends_on: [web]
    restart: on-failure
    command: [wget, -q, -O, /dev/null, "http://web:8080/passwd"]
"#,
    );
    let engine = playground.start();
    playground.until(&engine, "reader", |condition| condition.state == ServiceState::Completed).await;
}

#[tokio::test]
async fn there_is_no_address_without_a_service_that_runs_and_a_port() {
    let playground = Playground::new().await;
    playground.deploy("  quiet: { image: $IMAGE }\n  off: { image: $IMAGE, ports: [80], deploy: { replicas: 0 } }\n  broken: { image: $IMAGE, ports: [80], command: [\"false\"] }");
    let engine = playground.start();
    playground.until_running(&engine, "quiet").await;
    playground.until(&engine, "broken", |condition| condition.state == ServiceState::Restarting).await;
    for (service, code) in [
        ("nobody", ErrorCode::ServiceNotFound),
        ("off", ErrorCode::ServiceStopped),
        ("quiet", ErrorCode::PortClosed),
        ("broken", ErrorCode::ServiceUnavailable),
    ] {
        let error = engine.address_of(&name(service)).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(service), "{error}");
    }
}

#[tokio::test]
async fn a_container_that_ends_at_once_is_started_again_with_back_off() {
    let playground = Playground::new().await;
    playground.deploy("  broken: { image: $IMAGE, command: [sh, -c, \"exit 7\"] }");
    let engine = playground.start();
    let condition = playground
        .until(&engine, "broken", |condition| {
            condition.instances.iter().any(|instance| instance.restarts >= 1 && instance.exit_code == Some(7))
        })
        .await;
    let message = condition.message.unwrap();
    assert!(message.contains("exit code 7"), "{message}");
    assert_eq!(playground.containers().await.len(), 1, "the same container is started again");
}

#[tokio::test]
async fn a_command_that_does_not_exist_leaves_no_container_and_says_so() {
    let playground = Playground::new().await;
    playground.deploy("  typo: { image: $IMAGE, command: [slep] }");
    let engine = playground.start();
    let condition = playground.until(&engine, "typo", |condition| condition.state == ServiceState::Failed).await;
    let message = condition.message.unwrap();
    assert!(message.contains("slep"), "{message}");
    assert_eq!(playground.containers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_restarted_daemon_adopts_what_it_finds() {
    let playground = Playground::new().await;
    playground.deploy("  notes: { image: $IMAGE }");
    let engine = playground.start();
    let before = playground.until_running(&engine, "notes").await;
    drop(engine);

    let engine = playground.start();
    let after = playground.until_running(&engine, "notes").await;
    assert_eq!(before, after);
    assert_eq!(playground.containers().await, [before.id]);
}

#[tokio::test]
async fn of_two_networks_of_one_name_one_is_kept() {
    let playground = Playground::new().await;
    playground.deploy("  notes: { image: $IMAGE, init: true, command: [sleep, \"1000\"] }");
    let engine = playground.start();
    let before = playground.until_running(&engine, "notes").await;
    drop(engine);
    // As a daemon leaves it that was killed while it asked for the network: the engine has two of the same name.
    let network = playground.networks().await.pop().unwrap();
    if !playground.twin_network(&network).await {
        return;
    }
    assert_eq!(playground.networks().await, [network.clone(), network.clone()]);

    playground.deploy("  notes: { image: $IMAGE, init: true, command: [sleep, \"2000\"] }");
    let engine = playground.start();
    playground
        .until(&engine, "notes", |condition| {
            condition.state == ServiceState::Running
                && condition.instances.len() == 1
                && condition.instances[0].container != before.id
        })
        .await;
    assert_eq!(playground.networks().await, [network]);
}

#[tokio::test]
async fn a_container_that_somebody_kills_comes_back() {
    let playground = Playground::new().await;
    playground.deploy("  notes: { image: $IMAGE }");
    let engine = playground.start();
    let container = playground.until_running(&engine, "notes").await;
    playground.docker.kill_container(&container.id, None).await.unwrap();
    playground
        .until(&engine, "notes", |condition| {
            condition.state == ServiceState::Running && condition.instances[0].restarts == 1
        })
        .await;
    let options = bollard::query_parameters::RemoveContainerOptions { force: true, ..Default::default() };
    playground.docker.remove_container(&container.id, Some(options)).await.unwrap();
    playground
        .until(&engine, "notes", |condition| {
            condition.state == ServiceState::Running && condition.instances[0].container != container.id
        })
        .await;
}

#[tokio::test]
async fn a_volume_begins_with_the_images_files_and_outlives_its_containers() {
    let playground = Playground::new().await;
    let compose = |colour: &str| {
        format!(
            r#"
  notes:
    image: $IMAGE
    environment: {{ COLOUR: {colour} }}
    command: [sh, -c, "echo $$COLOUR >> /seed/log; exec sleep 1000"]
    volumes: ["data:/seed"]
volumes: {{ data: {{}} }}
"#
        )
    };
    playground.deploy(&compose("blue"));
    let engine = playground.start();
    let first = playground.until_running(&engine, "notes").await;
    let volume = playground.data.path().join("volumes/notes/data");
    assert_eq!(fs::read_to_string(volume.join("hello")).unwrap(), "ahoy");
    assert_eq!(mode_and_owner(&volume.join("hello")), (0o640, 1000));
    assert_eq!(mode_and_owner(&volume), (0o750, 1000));
    assert_eq!(mode_and_owner(&playground.data.path().join("volumes")).0, 0o700);

    fs::remove_file(volume.join("hello")).unwrap();
    playground.deploy(&compose("red"));
    let second = playground
        .until(&engine, "notes", |condition| {
            condition.state == ServiceState::Running && condition.instances[0].container != first.id
        })
        .await;
    assert_eq!(second.instances.len(), 1);
    tokio::time::timeout(PATIENCE, async {
        while fs::read_to_string(volume.join("log")).unwrap() != "blue\nred\n" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert!(!volume.join("hello").exists(), "what was deleted is not copied again");
}

#[tokio::test]
async fn condemned_volumes_are_deleted_and_links_in_them_are_not_followed() {
    let playground = Playground::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "data").unwrap();
    playground.deploy(
        "  notes: { image: $IMAGE, volumes: [\"data:/data\"] }\n  other: { image: $IMAGE, volumes: [\"kept:/data\"] }\nvolumes: { data: {}, kept: {} }",
    );
    let engine = playground.start();
    playground.until_running(&engine, "notes").await;
    playground.until_running(&engine, "other").await;
    let volumes = playground.data.path().join("volumes");
    std::os::unix::fs::symlink(outside.path(), volumes.join("notes/data/link")).unwrap();
    fs::write(volumes.join("other/kept/file"), "data").unwrap();

    playground.apply(CommandV1::Remove { service: name("notes"), volumes: true });
    playground.apply(CommandV1::Remove { service: name("other"), volumes: false });
    let mut state = playground.watch_state();
    tokio::time::timeout(PATIENCE, state.wait_for(|state| state.condemned_volumes.is_empty())).await.unwrap().unwrap();
    assert!(!volumes.join("notes").exists());
    assert_eq!(fs::read_to_string(volumes.join("other/kept/file")).unwrap(), "data");
    assert_eq!(fs::read_to_string(outside.path().join("precious")).unwrap(), "data");
    let left: Vec<_> = fs::read_dir(&volumes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
}

#[tokio::test]
async fn a_link_in_a_volumes_place_is_refused() {
    let playground = Playground::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(playground.data.path().join("volumes/notes")).unwrap();
    std::os::unix::fs::symlink(outside.path(), playground.data.path().join("volumes/notes/data")).unwrap();
    playground.deploy("  notes: { image: $IMAGE, volumes: [\"data:/seed\"] }\nvolumes: { data: {} }");
    let engine = playground.start();
    let condition = playground.until(&engine, "notes", |condition| condition.state == ServiceState::Failed).await;
    assert!(condition.message.unwrap().contains("no directory"));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn everything_can_be_taken_away() {
    let playground = Playground::new().await;
    playground
        .deploy("  one: { image: $IMAGE, volumes: [\"data:/seed\"] }\n  two: { image: $IMAGE }\nvolumes: { data: {} }");
    let engine = playground.start();
    playground.until_running(&engine, "one").await;
    playground.until_running(&engine, "two").await;
    assert!(playground.data.path().join("volumes/one/data/hello").exists());
    engine.stop().await;
    let images = [playground.image.clone(), "flotilla-test/absent:1".to_owned()];
    take_down(None, &playground.cluster, None, playground.data.path(), &images).await.unwrap();
    assert_eq!(playground.containers().await, Vec::<String>::new());
    assert_eq!(playground.networks().await, Vec::<String>::new());
    assert!(!playground.data.path().join("volumes").exists());
    assert!(playground.docker.inspect_image(&playground.image).await.is_err());
}
