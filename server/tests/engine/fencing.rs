//! Freezing containers, with the guard as the process that it is.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use flotilla::{
    clock,
    engine::{Engine, pull_the_plug},
    fence::{self, Fence, Form, Target},
};
use flotilla_api::{NodeId, rest::ServiceState};
use flotilla_core::{
    CommandV1,
    lease::Mono,
    reconcile::{Container, Health, Status},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::playground::{PATIENCE, Playground, name};

/// Of the processes that this test runs as daemons.
const DATA_DIR: &str = "FENCING_DATA_DIR";
const CONTAINER: &str = "FENCING_CONTAINER";

/// How long a lease is in these tests.
const LEASE_MS: u64 = 1_500;

/// A service whose processes count in files of a volume, each as fast as it can.
const COUNTING: &str = r#"
  notes:
    image: $IMAGE
    command: [sh, -c, "trap '' TERM; for n in 1 2 3; do (while true; do echo >> /data/$$n; done) & done; wait"]
    volumes: ["data:/data"]
    stop_grace_period: 1s
volumes: { data: {} }
"#;

fn fence(playground: &Playground, form: Form) -> Fence {
    let data_dir = playground.data.path().to_owned();
    Fence::start(fence::Config { data_dir, docker_host: None, form }).unwrap()
}

fn process() -> Form {
    Form::Process { program: env!("CARGO_BIN_EXE_flotilla").into() }
}

fn start(playground: &Playground, fence: &Fence) -> Engine {
    playground.start_with(NodeId("node".into()), None, fence.clone(), playground.data.path())
}

fn counts(playground: &Playground) -> Vec<u64> {
    let data = playground.data.path().join("volumes/notes/data");
    (1..=3).map(|n| fs::metadata(data.join(n.to_string())).map_or(0, |file| file.len())).collect()
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

async fn until_counting(playground: &Playground) {
    let before = counts(playground);
    until("all processes count", || counts(playground).iter().zip(&before).all(|(now, before)| now > before)).await;
}

async fn stands_still(playground: &Playground) {
    let before = counts(playground);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(counts(playground), before);
}

fn lease(millis: u64) -> Option<Mono> {
    Some(clock::since_boot().plus(millis))
}

fn guard(data_dir: &Path) -> Option<Pid> {
    let pid = fs::read_to_string(data_dir.join("guard.lock")).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    command.starts_with(b"flotilla\0guard\0").then(|| Pid::from_raw(pid)).flatten()
}

/// Ends the guard when the test ends, however it does.
struct Guarded(PathBuf);

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(guard) = guard(&self.0) {
            let _ = kill_process(guard, Signal::KILL);
        }
    }
}

async fn sees(engine: &Engine, so: impl Fn(&Container) -> bool) -> Container {
    let mut observed = engine.watch_observed();
    let seen = observed.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.containers.iter().any(&so)));
    let seen =
        tokio::time::timeout(PATIENCE, seen).await.expect("the engine's containers change").unwrap().clone().unwrap();
    seen.containers.iter().find(|container| so(container)).unwrap().clone()
}

fn is_running(container: &Container) -> bool {
    matches!(container.status, Status::Running { .. })
}

#[tokio::test]
async fn a_frozen_container_is_seen_as_paused_though_the_engine_says_that_it_runs() {
    let playground = Playground::new().await;
    playground.deploy(COUNTING);
    let fence = fence(&playground, Form::Thread);
    let engine = start(&playground, &fence);
    let container = playground.until_running(&engine, "notes").await;
    until_counting(&playground).await;

    assert!(fence.freeze(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap());
    stands_still(&playground).await;
    sees(&engine, |seen| seen.id == container.id && seen.status == Status::Paused).await;
    let state = playground.inspect(&container.id).await.state.unwrap();
    assert_eq!(state.status.unwrap().to_string(), "running");
    let condition = playground.until(&engine, "notes", |condition| condition.state == ServiceState::Unhealthy).await;
    assert!(condition.message.unwrap().contains("frozen"));

    // A daemon that starts anew sees it, too, and leaves it as it is.
    engine.stop().await;
    drop((engine, fence));
    let fence = self::fence(&playground, Form::Thread);
    let engine = start(&playground, &fence);
    sees(&engine, |seen| seen.id == container.id && seen.status == Status::Paused).await;
    assert!(fence.frozen().contains(&container.id));

    assert!(fence.thaw(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap());
    assert_eq!(playground.until_running(&engine, "notes").await.id, container.id);
    until_counting(&playground).await;
}

#[tokio::test]
async fn a_frozen_container_is_removed_without_running_again() {
    let playground = Playground::new().await;
    playground.deploy(COUNTING);
    let fence = fence(&playground, Form::Thread);
    let engine = start(&playground, &fence);
    let container = playground.until_running(&engine, "notes").await;
    until_counting(&playground).await;
    fence.freeze(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap();
    let before = counts(&playground);

    playground.apply(CommandV1::Remove { service: name("notes"), volumes: false });
    let mut observed = engine.watch_observed();
    let gone = observed.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.containers.is_empty()));
    tokio::time::timeout(PATIENCE, gone).await.expect("it is removed").unwrap();
    assert_eq!(counts(&playground), before);
    assert!(playground.containers().await.is_empty());
}

#[tokio::test]
async fn health_checks_that_failed_in_the_frost_do_not_replace_an_instance() {
    let playground = Playground::new().await;
    playground.deploy(
        r#"
  notes:
    image: $IMAGE
    healthcheck: { test: [CMD, "true"], interval: 1s, timeout: 1s, retries: 1 }
"#,
    );
    let fence = fence(&playground, Form::Thread);
    let engine = start(&playground, &fence);
    let container = playground.until_running(&engine, "notes").await;
    fence.freeze(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap();
    let docker = playground.docker.clone();
    let unhealthy = async {
        loop {
            let state = docker.inspect_container(&container.id, None).await.unwrap().state.unwrap();
            if state.health.unwrap().status.unwrap().to_string() == "unhealthy" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, unhealthy).await.expect("the engine takes it for unhealthy");
    let mut observed = engine.watch_observed();
    observed.mark_unchanged();
    fence.thaw(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap();
    let healthy = async {
        loop {
            let seen = observed.borrow_and_update().clone().unwrap();
            let seen = seen.containers.iter().find(|seen| seen.id == container.id).expect("it is there still");
            match seen.status {
                Status::Running { health: Health::Healthy, .. } => return,
                Status::Running { health: Health::Unhealthy, .. } => {
                    panic!("its health in the frost was taken for today's")
                }
                _ => {}
            }
            observed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, healthy).await.expect("it is healthy again");
}

#[tokio::test]
async fn what_writes_a_volume_does_not_start_without_a_guard() {
    let playground = Playground::new().await;
    let fence = fence(&playground, Form::Process { program: "/bin/false".into() });
    fence.deadline(lease(600_000), Vec::new());
    playground.deploy(&COUNTING.replace("volumes: { data: {} }", "  reader: { image: $IMAGE }\nvolumes: { data: {} }"));
    let engine = start(&playground, &fence);
    playground.until_running(&engine, "reader").await;
    let condition = playground.until(&engine, "notes", |condition| condition.state == ServiceState::Failed).await;
    assert!(condition.message.as_ref().unwrap().contains("guard"), "{condition:?}");
    assert_eq!(counts(&playground), [0, 0, 0]);
}

#[tokio::test]
async fn a_container_that_starts_after_the_deadline_is_frozen_before_it_does_anything() {
    let playground = Playground::new().await;
    let _guarded = Guarded(playground.data.path().to_owned());
    let fence = fence(&playground, process());
    // The lease of these tests lets everything start; the guard knows better.
    fence.deadline(Some(Mono(0)), Vec::new());
    playground.deploy(COUNTING);
    let engine = start(&playground, &fence);
    until("the guard freezes it", || fence.figures().guard_freezes == 1).await;
    stands_still(&playground).await;
    assert_eq!(counts(&playground), [0, 0, 0]);

    let frozen: Vec<String> = fence.frozen().into_iter().collect();
    fence.deadline(lease(600_000), Vec::new());
    assert!(fence.thaw(&frozen).await.remove(0).1.unwrap());
    assert_eq!([playground.until_running(&engine, "notes").await.id], frozen[..]);
    until_counting(&playground).await;
}

#[tokio::test]
async fn a_guard_that_dies_is_replaced_at_once() {
    let playground = Playground::new().await;
    let data_dir = playground.data.path();
    let _guarded = Guarded(data_dir.to_owned());
    playground.deploy(COUNTING);
    let fence = fence(&playground, process());
    let engine = start(&playground, &fence);
    let container = playground.until_running(&engine, "notes").await;
    let targets = || vec![Target { container: container.id.clone(), epoch: container.epoch }];
    fence.deadline(lease(60_000), targets());
    until("there is a guard", || guard(data_dir).is_some()).await;
    let first = guard(data_dir).unwrap();
    // What is meant for the daemon does not end it.
    for signal in [Signal::INT, Signal::HUP] {
        kill_process(first, signal).unwrap();
    }
    assert!(rustix::process::getsid(Some(first)).unwrap() == first, "it has a session of its own");
    fence.announce(&"a".repeat(64), 1).await.unwrap();
    assert_eq!(guard(data_dir), Some(first));

    kill_process(first, Signal::KILL).unwrap();
    until("there is another guard", || guard(data_dir).is_some_and(|guard| guard != first)).await;
    assert_eq!(fence.figures().guard_starts, 2);
    until_counting(&playground).await;
    fence.deadline(lease(0), targets());
    until("the new guard freezes", || fence.figures().guard_freezes == 1).await;
    stands_still(&playground).await;

    // A machine that shuts down need not wait for it.
    let second = guard(data_dir).unwrap();
    drop((engine, fence));
    kill_process(second, Signal::TERM).unwrap();
    until("it leaves, as all is frozen", || guard(data_dir).is_none()).await;
    stands_still(&playground).await;
}

#[tokio::test]
async fn a_guard_ends_when_its_data_directory_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().to_owned();
    let _guarded = Guarded(data_dir.clone());
    let config = fence::Config { data_dir: data_dir.clone(), docker_host: None, form: process() };
    let fence = Fence::start(config).unwrap();
    fence.deadline(lease(60_000), Vec::new());
    fence.announce(&"a".repeat(64), 1).await.unwrap();
    let pid = guard(&data_dir).unwrap();
    drop(fence);
    drop(directory);
    // Its parent, this process, may not have taken note of its end yet.
    until("it ends", || fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default().is_empty())
        .await;
}

#[tokio::test]
async fn the_plug_is_pulled_on_one_node_alone() {
    let playground = Playground::new().await;
    let other_data = tempfile::tempdir().unwrap();
    let other_node = playground.admit("other");
    playground.deploy("  web: { image: $IMAGE, deploy: { replicas: 2 } }");
    let one = playground.start();
    let other = playground.start_node(other_node.clone(), other_data.path(), None);
    let (first, second) = (sees(&one, is_running).await, sees(&other, is_running).await);
    other.stop().await;
    pull_the_plug(None, &playground.cluster, &other_node).await.unwrap();
    let state = async |id: &str| playground.inspect(id).await.state.unwrap();
    assert_eq!(state(&second.id).await.running, Some(false));
    assert_eq!(state(&second.id).await.exit_code, Some(137));
    assert_eq!(state(&first.id).await.running, Some(true));
}

/// A process that does what a daemon does: renews the lease of a container.
struct Daemon(Child);

impl Daemon {
    fn start(data_dir: &Path, container: &Container) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fencing::as_a_daemon", "--ignored", "--nocapture"])
            .env(DATA_DIR, data_dir)
            .env(CONTAINER, &container.id)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let ready = output.lines().map_while(Result::ok).any(|line| line.contains("the guard knows"));
        assert!(ready, "the daemon did not start");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "other tests run it as a process of its own, which they kill"]
async fn as_a_daemon() {
    let Ok(data_dir) = std::env::var(DATA_DIR) else { return };
    let container = std::env::var(CONTAINER).unwrap();
    let fence = Fence::start(fence::Config { data_dir: data_dir.into(), docker_host: None, form: process() }).unwrap();
    let mut told = false;
    loop {
        fence.deadline(lease(LEASE_MS), vec![Target { container: container.clone(), epoch: 1 }]);
        if !std::mem::replace(&mut told, true) {
            fence.announce(&"a".repeat(64), 2).await.unwrap();
            writeln!(std::io::stdout(), "the guard knows").unwrap();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn the_guard_freezes_when_the_daemon_is_killed_and_the_next_daemon_takes_over() {
    let playground = Playground::new().await;
    let data_dir = playground.data.path();
    let _guarded = Guarded(data_dir.to_owned());
    playground.deploy(COUNTING);
    let engine = playground.start();
    let container = playground.until_running(&engine, "notes").await;
    engine.stop().await;
    drop(engine);

    let daemon = Daemon::start(data_dir, &container);
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(2 * LEASE_MS) {
        until_counting(&playground).await;
    }
    daemon.signal(Signal::KILL);
    let killed = clock::since_boot();
    let freezer = fence::Freezer::detect();
    let pid = playground.inspect(&container.id).await.state.unwrap().pid.unwrap();
    freezer.note(&container.id, pid);
    until("it is frozen", || freezer.frost(&container.id).unwrap() == fence::Frost::Frozen).await;
    let after = clock::since_boot().since(killed);
    assert!(after <= LEASE_MS + 250, "it took {after} ms to freeze it");
    stands_still(&playground).await;

    let fence = fence(&playground, process());
    assert!(fence.adopted().is_some_and(|deadline| deadline <= clock::since_boot()));
    assert!(fence.frozen().contains(&container.id));
    let engine = start(&playground, &fence);
    sees(&engine, |seen| seen.id == container.id && seen.status == Status::Paused).await;
    fence.deadline(lease(60_000), vec![Target { container: container.id.clone(), epoch: container.epoch }]);
    assert!(fence.thaw(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap());
    assert_eq!(playground.until_running(&engine, "notes").await.id, container.id);
    until_counting(&playground).await;
}

#[tokio::test]
async fn the_guard_freezes_when_the_daemon_is_stopped() {
    let playground = Playground::new().await;
    let data_dir = playground.data.path();
    let _guarded = Guarded(data_dir.to_owned());
    playground.deploy(COUNTING);
    let engine = playground.start();
    let container = playground.until_running(&engine, "notes").await;
    engine.stop().await;
    drop(engine);

    let daemon = Daemon::start(data_dir, &container);
    daemon.signal(Signal::STOP);
    let freezer = fence::Freezer::detect();
    freezer.note(&container.id, playground.inspect(&container.id).await.state.unwrap().pid.unwrap());
    until("it is frozen", || freezer.frost(&container.id).unwrap() == fence::Frost::Frozen).await;
    // One that goes on renews, as its lease has not been given away; thawing is for the whole daemon, which this is not.
    daemon.signal(Signal::CONT);
    stands_still(&playground).await;
}

#[tokio::test]
async fn what_is_held_for_a_moment_counts_as_running_and_goes_on_only_as_far_as_its_lease() {
    let playground = Playground::new().await;
    let _guarded = Guarded(playground.data.path().to_owned());
    playground.deploy(COUNTING);
    let fence = fence(&playground, process());
    let engine = start(&playground, &fence);
    let container = playground.until_running(&engine, "notes").await;
    let targets = || vec![Target { container: container.id.clone(), epoch: container.epoch }];
    fence.deadline(lease(60_000), targets());
    until_counting(&playground).await;

    let held = fence.hold(container.epoch).await.unwrap();
    stands_still(&playground).await;
    engine.look();
    let observed = sees(&engine, |seen| seen.id == container.id).await;
    assert!(is_running(&observed) && fence.frozen().is_empty(), "{observed:?}");
    assert!(fence.thaw(std::slice::from_ref(&container.id)).await.is_empty(), "who holds it lets it go");
    stands_still(&playground).await;
    fence.release(held).await;
    until_counting(&playground).await;

    // Its lease ends while it is held.
    let held = fence.hold(container.epoch).await.unwrap();
    fence.deadline(Some(Mono(1)), targets());
    fence.freeze(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap();
    fence.release(held).await;
    stands_still(&playground).await;
    assert!(fence.frozen().contains(&container.id));
    fence.deadline(lease(60_000), targets());
    assert!(fence.thaw(std::slice::from_ref(&container.id)).await.remove(0).1.unwrap());
    until_counting(&playground).await;

    // Of another epoch nothing is held.
    let held = fence.hold(container.epoch + 1).await.unwrap();
    until_counting(&playground).await;
    fence.release(held).await;
}
