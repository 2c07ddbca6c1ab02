//! A cluster for one test: its state, its data directory, its image, and their removal.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bollard::{
    Docker,
    models::{ContainerInspectResponse, NetworkCreateRequest},
    query_parameters::{ImportImageOptions, ListContainersOptions, ListNetworksOptions, RemoveContainerOptions},
};
use bytes::Bytes;
use flotilla::{
    clock,
    cluster::Alone,
    engine::{
        Engine, EngineConfig, ImageStore, NoData, NoImageStore, NoOthers, Others, Proposer, Surroundings, Values,
    },
    fence::{self, Fence},
    vault::Opened,
};
use flotilla_api::{
    ApiError, ErrorCode, Grant, NodeId, Scope, ServiceName, TokenId, UnixMillis, ValueName, rest::ServiceState,
    spec::ValueKind,
};
use flotilla_core::{
    Actor, Command, CommandV1, Entry, State,
    command::{Change, ClusterRecord, InvitationRecord, KeyId, MachineFacts, MachineRecord, Sealed},
    reconcile::{self, Condition, Container, Status, View},
};
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// Longer than anything takes on a busy machine with two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Playground {
    pub(crate) cluster: String,
    pub(crate) image: String,
    pub(crate) data: tempfile::TempDir,
    pub(crate) docker: Docker,
    log: Arc<Log>,
    values: Arc<Kept>,
}

/// Secrets and configs that nobody has to open.
#[derive(Debug, Default)]
struct Kept(Mutex<BTreeMap<(ValueKind, ValueName, u64), Opened>>);

impl Values for Kept {
    fn reveal<'a>(
        &'a self,
        kind: ValueKind,
        name: &'a ValueName,
        version: u64,
    ) -> BoxFuture<'a, Result<Opened, ApiError>> {
        let missing = || ApiError::new(ErrorCode::ValueKeyMissing, "the key is not here");
        let found = self.0.lock().unwrap().get(&(kind, name.clone(), version)).cloned();
        std::future::ready(found.ok_or_else(missing)).boxed()
    }
}

/// A state log in memory.
struct Log {
    state: watch::Sender<Arc<State>>,
    writer: Mutex<()>,
}

impl Log {
    fn apply(&self, command: CommandV1) -> Result<(), ApiError> {
        let _writer = self.writer.lock().unwrap();
        let mut state = State::clone(&self.state.borrow());
        let actor = Actor { name: "test".into(), token: None, from: None };
        let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
        state.apply(&entry).map_err(|rejected| rejected.0)?;
        let lead = CommandV1::Lead { node: node(), term: state.leadership.term + 1 };
        state.apply(&Entry { command: Command::V1(lead), ..entry.clone() }).unwrap();
        loop {
            let changes = plan(&state);
            if changes.is_empty() {
                break;
            }
            let place = CommandV1::Place { term: state.leadership.term, changes };
            state.apply(&Entry { command: Command::V1(place), ..entry.clone() }).unwrap();
        }
        self.state.send_replace(Arc::new(state));
        Ok(())
    }
}

/// Replicas go to the machines in turn, and follow each change at once: what the scheduler does better is of no matter here.
fn plan(state: &State) -> Vec<Change> {
    let machines: Vec<&NodeId> = state.machines.keys().collect();
    let mut changes = Vec::new();
    for service in state.services.values() {
        for placement in &service.placements {
            if placement.replica > service.replicas {
                changes.push(Change::End { epoch: placement.epoch, reason: "it is not wanted".into() });
            } else if !service.is_current(placement) {
                let (revision, restarts) = (service.current, service.restarts);
                changes.push(Change::Update { epoch: placement.epoch, revision, restarts });
            }
        }
        for replica in 1..=service.replicas {
            if service.placements.iter().all(|placement| placement.replica != replica) {
                changes.push(Change::Assign {
                    service: service.name.clone(),
                    replica,
                    machine: machines[(replica as usize - 1) % machines.len()].clone(),
                    revision: service.current,
                    restarts: service.restarts,
                    reason: "it is its turn".into(),
                });
            }
        }
    }
    changes
}

impl Proposer for Log {
    fn propose(&self, command: CommandV1) -> BoxFuture<'_, Result<(), ApiError>> {
        std::future::ready(self.apply(command)).boxed()
    }
}

impl Playground {
    /// With an image of the playground's own: busybox, `/seed` with a file of user 1000, and a default command.
    pub(crate) async fn new() -> Self {
        let cluster = format!("{:032x}", rand::random::<u128>());
        let docker = Docker::connect_with_local_defaults()
            .expect("these tests need Docker Engine; `make setup` installs it")
            .negotiate_version()
            .await
            .expect("these tests need Docker Engine to run");
        let image = format!("flotilla-test/{cluster}:1");
        let log = Arc::new(Log { state: watch::Sender::new(Arc::default()), writer: Mutex::new(()) });
        log.apply(CommandV1::Init {
            cluster: ClusterRecord { id: cluster.clone(), name: "test".parse().unwrap(), token_key: "key".into() },
            machine: MachineRecord {
                id: node(),
                name: "machine".parse().unwrap(),
                public_key: "key".into(),
                labels: BTreeMap::new(),
            },
        })
        .unwrap();
        let playground =
            Self { cluster, image, data: tempfile::tempdir().unwrap(), docker, log, values: Arc::default() };
        playground.load(archive(&playground.image, &playground.cluster)).await;
        playground
    }

    async fn load(&self, archive: Vec<u8>) {
        let options = ImportImageOptions { quiet: true, ..Default::default() };
        let body = bollard::body_full(Bytes::from(archive));
        self.docker.import_image(options, body, None).try_collect::<Vec<_>>().await.unwrap();
    }

    pub(crate) fn start(&self) -> Engine {
        self.start_at(None)
    }

    pub(crate) fn start_at(&self, docker_host: Option<String>) -> Engine {
        self.start_node(node(), self.data.path(), docker_host)
    }

    /// A further node, with a data directory of its own, that shares this one's engine.
    pub(crate) fn start_node(&self, node_id: NodeId, data_dir: &Path, docker_host: Option<String>) -> Engine {
        let fence = fence::Config {
            data_dir: data_dir.to_owned(),
            docker_host: docker_host.clone(),
            form: fence::Form::Thread,
        };
        self.start_with(node_id, docker_host, Fence::start(fence).unwrap(), data_dir)
    }

    pub(crate) fn start_with(
        &self,
        node_id: NodeId,
        docker_host: Option<String>,
        fence: Fence,
        data_dir: &Path,
    ) -> Engine {
        let config =
            EngineConfig { docker_host, data_dir: data_dir.to_owned(), cluster_id: self.cluster.clone(), node_id };
        self.start_among(config, fence, Arc::new(NoOthers::default()), Arc::new(NoImageStore::default()))
    }

    pub(crate) fn start_among(
        &self,
        config: EngineConfig,
        fence: Fence,
        others: Arc<dyn Others>,
        images: Arc<dyn ImageStore>,
    ) -> Engine {
        let proposer: Arc<dyn Proposer> = self.log.clone();
        let data = Arc::new(NoData);
        let values = self.values.clone();
        let surroundings = Surroundings { proposer, lease: Arc::new(Alone), fence, others, data, images, values };
        Engine::start(config, self.log.state.subscribe(), surroundings).unwrap()
    }

    pub(crate) fn apply(&self, command: CommandV1) {
        self.log.apply(command).unwrap();
    }

    /// A new version, which whoever uses it gets.
    pub(crate) fn set(&self, kind: ValueKind, name: &str, plain: &str) {
        let name: ValueName = name.parse().unwrap();
        let version = self.state().next_version(kind, &name);
        let opened = Opened::new(plain.as_bytes().to_vec());
        self.values.0.lock().unwrap().insert((kind, name.clone(), version), opened);
        let sealed = Sealed { key: KeyId("key".into()), bytes: "A".repeat(60).into() };
        self.apply(CommandV1::SetValue { kind, name, version, sealed, update: true });
    }

    /// Nobody can open any of them.
    pub(crate) fn lose_values(&self) {
        self.values.0.lock().unwrap().clear();
    }

    /// A second machine joins.
    pub(crate) fn admit(&self, machine: &str) -> NodeId {
        let (at, id) = (clock::now(), TokenId(format!("join-{machine}")));
        self.apply(CommandV1::CreateInvitation {
            invitation: InvitationRecord {
                id: id.clone(),
                name: machine.to_owned(),
                grant: Grant { scope: Scope::Machine, services: BTreeSet::new() },
                secret_hash: "00".repeat(32),
                created_at: at,
                expires_at: at.plus(3_600_000),
                used_at: None,
                stores_only: false,
            },
        });
        let node = NodeId(machine.to_owned());
        let machine = MachineRecord {
            id: node.clone(),
            name: machine.parse().unwrap(),
            public_key: machine.into(),
            labels: BTreeMap::new(),
        };
        self.apply(CommandV1::AdmitMachine { invitation: id, machine, facts: MachineFacts::default() });
        node
    }

    /// Deploys a stack `test`; `$IMAGE` is the playground's.
    pub(crate) fn deploy(&self, services: &str) {
        let text = format!("services:\n{}", services.replace("$IMAGE", &self.image));
        let composition = flotilla_core::compose::read(&text, Some("test"), &BTreeMap::new()).unwrap();
        self.apply(CommandV1::Deploy { stack: composition.stack, services: composition.services });
    }

    pub(crate) fn proposer(&self) -> Arc<dyn Proposer> {
        self.log.clone()
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.log.state.borrow().clone()
    }

    pub(crate) fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        self.log.state.subscribe()
    }

    /// Waits until the service's condition is so, and tells what it was last if it never is.
    pub(crate) async fn until(&self, engine: &Engine, service: &str, is_so: impl Fn(&Condition) -> bool) -> Condition {
        let mut observed = engine.watch_observed();
        let mut memory = engine.watch_memory();
        let name = name(service);
        let mut last = None;
        let reached = async {
            loop {
                let state = self.state();
                if let Some(record) = state.services.get(&name) {
                    let seen = observed.borrow_and_update().clone();
                    let known = memory.borrow_and_update().clone();
                    let at = seen.as_ref().map_or(UnixMillis(0), |seen| seen.at);
                    let own = View { observed: seen.as_deref(), memory: &known, at };
                    let node = node();
                    let condition = reconcile::condition(clock::now(), record, &BTreeMap::from([(&node, own)]));
                    if is_so(&condition) {
                        return condition;
                    }
                    last = Some(condition);
                }
                tokio::select! {
                    changed = observed.changed() => changed.unwrap(),
                    changed = memory.changed() => changed.unwrap(),
                    // Conditions ripen with time alone, too.
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
            }
        };
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(condition) => condition,
            Err(_) => panic!("`{service}` stayed as it was: {last:#?}"),
        }
    }

    pub(crate) async fn until_running(&self, engine: &Engine, service: &str) -> Container {
        let condition = self
            .until(engine, service, |condition| {
                condition.state == ServiceState::Running && condition.instances.len() == 1
            })
            .await;
        let id = &condition.instances[0].container;
        let observed = engine.observed().unwrap();
        observed.containers.iter().find(|container| container.id == *id).expect("it is observed").clone()
    }

    pub(crate) async fn inspect(&self, container: &str) -> ContainerInspectResponse {
        self.docker.inspect_container(container, None).await.unwrap()
    }

    /// Of this cluster, in any state.
    pub(crate) async fn containers(&self) -> Vec<String> {
        containers(&self.docker, &self.cluster).await
    }

    /// Makes a second network with this name and this cluster's labels; newer engines allow none.
    pub(crate) async fn twin_network(&self, name: &str) -> bool {
        let labels =
            [("flotilla.cluster".to_owned(), self.cluster.clone()), ("flotilla.stack".to_owned(), "test".to_owned())];
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            labels: Some(HashMap::from(labels)),
            ..Default::default()
        };
        self.docker.create_network(request).await.is_ok()
    }

    pub(crate) async fn networks(&self) -> Vec<String> {
        networks(&self.docker, &self.cluster).await
    }
}

/// The only container that this node sees, as soon as it runs.
pub(crate) async fn only(engine: &Engine) -> Container {
    let mut observed = engine.watch_observed();
    let runs = |containers: &[Container]| matches!(containers, [one] if matches!(one.status, Status::Running { .. }));
    let seen = observed.wait_for(|seen| seen.as_ref().is_some_and(|seen| runs(&seen.containers)));
    let seen = tokio::time::timeout(PATIENCE, seen).await.expect("one container runs").unwrap().clone();
    seen.unwrap().containers[0].clone()
}

impl Drop for Playground {
    /// In a runtime of its own, because the test's may be unwinding.
    fn drop(&mut self) {
        let (docker, cluster, image) = (self.docker.clone(), self.cluster.clone(), self.image.clone());
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let cleaning = async {
                // What the test's last words asked for may still be on its way through the engine: clean is what is found so
                // twice.
                let mut clean = 0;
                while clean < 2 {
                    let (left, nets) = (containers(&docker, &cluster).await, networks(&docker, &cluster).await);
                    clean = if left.is_empty() && nets.is_empty() { clean + 1 } else { 0 };
                    for id in &left {
                        let options = RemoveContainerOptions { force: true, v: true, link: false };
                        let _ = docker.remove_container(id, Some(options)).await;
                    }
                    for network in nets {
                        let _ = docker.remove_network(&network).await;
                    }
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                let _ = docker.remove_image(&image, None::<bollard::query_parameters::RemoveImageOptions>, None).await;
            };
            let _ = runtime.block_on(async { tokio::time::timeout(PATIENCE, cleaning).await });
        });
        let _ = cleaned.join();
    }
}

async fn containers(docker: &Docker, cluster: &str) -> Vec<String> {
    let mut found = Vec::new();
    for label in ["flotilla.cluster", "flotilla.scratch"] {
        let options = ListContainersOptions { all: true, filters: Some(filter(label, cluster)), ..Default::default() };
        let listed = docker.list_containers(Some(options)).await.unwrap();
        found.extend(listed.into_iter().filter_map(|container| container.id));
    }
    found
}

async fn networks(docker: &Docker, cluster: &str) -> Vec<String> {
    let options = ListNetworksOptions { filters: Some(filter("flotilla.cluster", cluster)) };
    let listed = docker.list_networks(Some(options)).await.unwrap();
    listed.into_iter().filter_map(|network| network.name).collect()
}

fn filter(label: &str, value: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{label}={value}")])])
}

pub(crate) fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

fn node() -> NodeId {
    NodeId("node".into())
}

/// An image as `docker save` writes it, made of the machine's own static busybox. `mark` makes it a different image.
pub(crate) fn archive(reference: &str, mark: &str) -> Vec<u8> {
    archive_of(reference, mark, &[])
}

/// The same with more layers above.
pub(crate) fn archive_of(reference: &str, mark: &str, above: &[Vec<u8>]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["bin/", "tmp/", "etc/"] {
        entry(&mut layer, directory, 0o755, 0, &[]);
    }
    let busybox = std::fs::read("/bin/busybox").expect("these tests need the package busybox-static");
    entry(&mut layer, "bin/busybox", 0o755, 0, &busybox);
    for applet in [
        "sh", "cat", "echo", "false", "true", "sleep", "httpd", "wget", "id", "stat", "ls", "rm", "kill", "tty", "env",
        "touch", "dd", "yes", "stty", "nc", "mkdir", "printf",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, format!("bin/{applet}"), "/bin/busybox").unwrap();
    }
    entry(&mut layer, "etc/passwd", 0o644, 0, b"root:x:0:0::/:/bin/sh\nsailor:x:1000:1000::/:/bin/sh\n");
    entry(&mut layer, "seed/", 0o750, 1000, &[]);
    entry(&mut layer, "seed/hello", 0o640, 1000, b"ahoy");
    let layers: Vec<Vec<u8>> = [layer.into_inner().unwrap()].into_iter().chain(above.iter().cloned()).collect();
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["sleep", "3600"], "Env": ["PATH=/bin"], "Labels": { "mark": mark } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    let paths: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [reference], "Layers": paths }]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    entry(&mut archive, "config.json", 0o644, 0, config.as_bytes());
    for (path, layer) in paths.iter().zip(&layers) {
        entry(&mut archive, path, 0o644, 0, layer);
    }
    entry(&mut archive, "manifest.json", 0o644, 0, manifest.as_bytes());
    archive.into_inner().unwrap()
}

pub(crate) fn entry(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, owner: u64, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).unwrap();
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    String::from_utf8(text).unwrap()
}

pub(crate) fn mode_and_owner(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.uid())
}
