//! The stores of some machines, without an engine.

use flotilla_api::rest::{AskLayers, PushImage};
use flotilla_core::{Actor, Command, CommandV1, Entry, compose};
use futures::StreamExt as _;
use serde_json::json;

use super::*;
use crate::{
    cluster::Alone,
    engine::{EngineConfig, NoData, NoOthers, NoValues, Proposer, Surroundings},
    fence::{self, Fence},
    peers::{Handler, Stream, memory::Wires},
    volumes,
};

/// Machines that share a network and a state.
struct Bed {
    wires: Wires,
    state: watch::Sender<Arc<State>>,
}

/// One of them.
struct Machine {
    node: NodeId,
    images: Images,
    volumes: Volumes,
    fence: Fence,
    data: tempfile::TempDir,
}

/// Bytes that nothing makes shorter.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let bytes = (0_u64..).flat_map(|at| *Hash::of(&[&[seed][..], &at.to_be_bytes()].concat()).as_bytes());
    bytes.take(len).collect()
}

/// Nobody proposes anything here.
struct Silent;

impl Proposer for Silent {
    fn propose(&self, _: CommandV1) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Says the same to whoever asks for an image or for layers, and gives what is in a store.
#[derive(Clone)]
struct Says {
    image: serde_json::Value,
    layers: serde_json::Value,
    volumes: Option<Volumes>,
    asked: Arc<AtomicU64>,
}

impl Handler for Says {
    fn call(&self, _: NodeId, method: Method, _: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        self.asked.fetch_add(1, Relaxed);
        let answer = if method == Method::Image { &self.image } else { &self.layers };
        let answer = Bytes::from(answer.to_string());
        Box::pin(async { Ok(answer) })
    }

    fn stream(&self, from: NodeId, _: String, stream: Stream) -> BoxFuture<'static, ()> {
        let volumes = self.volumes.clone();
        Box::pin(async move {
            if let Some(volumes) = volumes {
                volumes.serve(&from, stream, volumes::Served::All).await;
            }
        })
    }
}

/// Answers for a machine as its node does.
struct Answers {
    images: Images,
    volumes: Volumes,
    engine: Engine,
}

impl Handler for Answers {
    fn call(&self, _: NodeId, method: Method, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        let (images, engine) = (self.images.clone(), self.engine.clone());
        Box::pin(async move { images.answer(&engine, method, &body).await })
    }

    fn stream(&self, from: NodeId, _: String, stream: Stream) -> BoxFuture<'static, ()> {
        let volumes = self.volumes.clone();
        Box::pin(async move { volumes.serve(&from, stream, volumes::Served::All).await })
    }
}

impl Machine {
    fn shared(&self) -> &Arc<Shared> {
        &self.images.shared
    }

    /// Puts an image of these layers into the store, as if the engine had given it.
    fn put(&self, layers: &[&[u8]]) -> Digest {
        let mut session = self.shared().store.session();
        let config = config_of(layers);
        let id = Digest::of(config.as_bytes());
        let mut blobs = BTreeMap::new();
        for bytes in layers.iter().copied().chain([config.as_bytes()]) {
            let digest = Digest::of(bytes);
            let file = archive::take_layer(bytes, &digest, &mut session).unwrap();
            blobs.insert(digest, file);
        }
        let layers = layers.iter().map(|layer| Digest::of(layer)).collect();
        let image = Image::of(id.clone(), layers, &blobs).unwrap();
        self.shared().add(&id, &image, &mut session).unwrap();
        id
    }

    fn root(&self, id: &Digest) -> Hash {
        self.shared().root(id).unwrap()
    }

    /// Names in the store that begin so.
    fn names(&self, prefix: &str) -> BTreeSet<String> {
        self.shared().store.volumes(prefix).unwrap()
    }

    /// That of a machine without Docker Engine: whoever asks it waits a moment, and hears that it is not there.
    fn engine(&self) -> Engine {
        let config = EngineConfig {
            docker_host: Some("unix:///nonexistent/docker.sock".to_owned()),
            data_dir: self.data.path().to_owned(),
            cluster_id: "test".to_owned(),
            node_id: self.node.clone(),
        };
        let surroundings = Surroundings {
            proposer: Arc::new(Silent),
            lease: Arc::new(Alone),
            fence: self.fence.clone(),
            others: Arc::new(NoOthers::default()),
            data: Arc::new(NoData),
            images: Arc::new(self.images.clone()),
            values: Arc::new(NoValues),
        };
        Engine::start(config, self.shared().state.clone(), surroundings).unwrap()
    }

    /// Flips a bit of a layer in what the store has on the disk.
    fn damage(&self, layer: &[u8]) {
        for pack in std::fs::read_dir(self.data.path().join("objects/packs")).unwrap() {
            let path = pack.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(layer.len().min(64)).position(|window| layer.starts_with(window));
            if let Some(at) = found {
                bytes[at + 10] ^= 1;
                std::fs::write(&path, bytes).unwrap();
                return;
            }
        }
        panic!("the layer is nowhere as it is");
    }

    async fn bring(&self, id: &Digest) -> Result<bool, ApiError> {
        self.images.bring(&id.id(), "notes:1", Need::Now, &|_, _| {}).await
    }
}

fn config_of(layers: &[&[u8]]) -> String {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).id()).collect();
    json!({ "os": "linux", "rootfs": { "diff_ids": diff_ids } }).to_string()
}

fn here(root: &Hash) -> serde_json::Value {
    json!({ "answer": "here", "root": root.to_string(), "bytes": 1 })
}

impl Bed {
    fn new() -> Self {
        let bed = Self { wires: Wires::default(), state: watch::Sender::default() };
        let cluster = json!({ "id": "test", "name": "test", "token_key": "key" });
        let machine = json!({ "id": "first", "name": "first", "public_key": "key" });
        bed.apply(CommandV1::Init {
            cluster: serde_json::from_value(cluster).unwrap(),
            machine: serde_json::from_value(machine).unwrap(),
        });
        bed
    }

    fn apply(&self, command: CommandV1) {
        let actor = Actor { name: "test".to_owned(), token: None, from: None };
        let entry = Entry { at: clock::now(), actor, command: Command::V1(command) };
        self.state.send_modify(|state| drop(Arc::make_mut(state).apply(&entry).unwrap()));
    }

    /// A service names the image.
    fn deploy(&self, id: &Digest) {
        let text = "services:\n  notes:\n    image: notes:1\n";
        let mut read = compose::read(text, Some("test"), &BTreeMap::new()).unwrap();
        read.services[0].image_id = Some(id.id());
        self.apply(CommandV1::Deploy { stack: read.stack, services: read.services });
    }

    fn admit(&self, name: &str, stores_only: bool) -> NodeId {
        let id = NodeId(name.to_owned());
        let machine =
            json!({ "id": name, "name": name, "public_key": "key", "labels": {}, "stores_only": stores_only });
        let machine = serde_json::from_value(machine).unwrap();
        self.state.send_modify(|state| drop(Arc::make_mut(state).machines.insert(id.clone(), machine)));
        id
    }

    /// A member with a store of its own.
    fn machine(&self, name: &str) -> Machine {
        let data = tempfile::tempdir().unwrap();
        self.open(self.admit(name, false), data)
    }

    fn open(&self, node: NodeId, data: tempfile::TempDir) -> Machine {
        let config = fence::Config { data_dir: data.path().to_owned(), docker_host: None, form: fence::Form::Thread };
        let (network, state) = (self.wires.join(&node), self.state.subscribe());
        let fence = Fence::start(config).unwrap();
        let volumes = Volumes::open(volumes::Parts {
            node: node.clone(),
            data_dir: data.path().to_owned(),
            state: state.clone(),
            fence: fence.clone(),
            proposer: Arc::new(Silent),
            network: network.clone(),
        })
        .unwrap();
        let parts =
            Parts { node: node.clone(), data_dir: data.path().to_owned(), state, network, volumes: volumes.clone() };
        let images = Images::open(parts).unwrap();
        Machine { node, images, volumes, fence, data }
    }

    /// Its node starts anew.
    fn again(&self, machine: Machine) -> Machine {
        let Machine { node, images, volumes, fence, data } = machine;
        drop((images, fence));
        volumes.store().close();
        self.open(node, data)
    }

    /// From now on the machine says so, whatever it has.
    fn says(
        &self,
        node: &NodeId,
        volumes: Option<&Volumes>,
        image: serde_json::Value,
        layers: serde_json::Value,
    ) -> Says {
        let says = Says { image, layers, volumes: volumes.cloned(), asked: Arc::default() };
        self.wires.join(node);
        self.wires.serve(node, Arc::new(says.clone()));
        says
    }
}

#[test]
fn only_members_that_do_more_than_store_are_believed() {
    let bed = Bed::new();
    let (berta, vault) = (bed.admit("berta", false), bed.admit("vault", true));
    let connected = BTreeSet::from([berta.clone(), vault, NodeId("stranger".to_owned())]);
    assert_eq!(believed(&bed.state.borrow(), &connected), BTreeSet::from([berta]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_only_stores_is_asked_neither_for_an_image_nor_for_layers() {
    let bed = Bed::new();
    let (here, digest) = (bed.machine("here"), Digest::of(b"wanted"));
    let absent = json!({ "answer": "coming", "bytes": 1, "of": 2 });
    let layers = json!({ "layers": { digest.hex(): null } });
    let asked: Vec<Says> = [bed.admit("vault", true), NodeId("stranger".to_owned())]
        .iter()
        .map(|node| bed.says(node, None, absent.clone(), layers.clone()))
        .collect();
    let wanted = BTreeSet::from([digest.clone()]);
    assert!(travel::elsewhere(&here.images.shared, &wanted).await.is_empty());
    assert!(!here.bring(&digest).await.unwrap());
    assert!(asked.iter().all(|says| says.asked.load(Relaxed) == 0));

    bed.says(&bed.admit("berta", false), None, absent, layers);
    assert_eq!(travel::elsewhere(&here.images.shared, &wanted).await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_from_a_machine_that_has_it() {
    let bed = Bed::new();
    let (near, far) = (bed.machine("near"), bed.machine("far"));
    let id = far.put(&[b"base", b"top"]);
    bed.says(&far.node, Some(&far.volumes), here(&far.root(&id)), json!({}));
    assert!(near.bring(&id).await.unwrap());
    assert_eq!(near.root(&id), far.root(&id));
    assert_eq!(near.names(":"), BTreeSet::from([key(&id)]), "under its own name alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_than_the_one_that_was_asked_for_never_has_its_name() {
    let bed = Bed::new();
    let (near, far) = (bed.machine("near"), bed.machine("far"));
    let evil = far.put(&[b"base", b"evil"]);
    bed.says(&far.node, Some(&far.volumes), here(&far.root(&evil)), json!({}));
    let good = Digest::of(config_of(&[b"base", b"top"]).as_bytes());
    assert!(!near.bring(&good).await.unwrap(), "a registry may have it");
    assert!(near.images.stored().is_empty());
    assert_eq!(near.names(":"), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_and_not_looked_at_is_dropped_at_the_next_start() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let id = machine.put(&[b"base"]);
    let generation = Generation { epoch: 0, sequence: 0, taken_at: 7, root: machine.root(&id) };
    machine.shared().store.name(&fetch_key(&id), generation).unwrap();
    machine.shared().store.forget_volume(&key(&id)).unwrap();
    let again = bed.again(machine);
    assert!(again.images.stored().is_empty());
    assert_eq!(again.names(":"), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_version_stored_is_kept_for_it_and_what_is_no_image_is_not() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let (newer, none) = (Digest::of(b"newer"), Digest::of(b"none"));
    let directory = machine.data.path().join("tree");
    std::fs::create_dir(&directory).unwrap();
    for (id, description) in [(&newer, r#"{"version": 255}"#), (&none, r#"{"version": 1}"#)] {
        std::fs::write(directory.join("image.json"), description).unwrap();
        let store = &machine.shared().store;
        let captured = flotilla_data::capture::Capture::begin(store, &key(id), &directory).unwrap();
        captured.finish(&flotilla_data::capture::Scope::Everything).unwrap().commit(0, 0, 7).unwrap();
    }
    let again = bed.again(machine);
    assert!(again.images.stored().is_empty());
    assert_eq!(again.names(":"), BTreeSet::from([key(&newer)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_named_while_it_is_collected_stays() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let (named, other) = (machine.put(&[b"named"]), machine.put(&[b"other"]));
    machine.images.brought(&named.id(), &["notes:1".to_owned()]).await;
    let engine = machine.engine();
    let collecting = machine.images.collect(&engine, false);
    let deploying = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        bed.deploy(&named);
    };
    let (collected, ()) = tokio::join!(collecting, deploying);
    let gone: Vec<String> = collected.unwrap().images.into_iter().map(|image| image.id).collect();
    assert_eq!(gone, [other.id()]);
    assert_eq!(machine.images.stored().into_keys().collect::<Vec<_>>(), [named]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_somebody_works_on_is_not_collected() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let id = machine.put(&[b"base"]);
    let engine = machine.engine();
    let turn = machine.shared().turn(&id);
    let working = turn.lock.lock().await;
    assert!(machine.images.collect(&engine, false).await.unwrap().images.is_empty());
    drop(working);
    let dry = machine.images.collect(&engine, true).await.unwrap();
    assert!(dry.images.len() == 1 && machine.images.stored().len() == 1, "{dry:?}");
    let collected = machine.images.collect(&engine, false).await.unwrap();
    assert!(collected.images[0].store && machine.images.stored().is_empty(), "{collected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_gets_no_further_with_an_image_is_not_waited_for_for_ever() {
    let bed = Bed::new();
    let near = bed.machine("near");
    let says = bed.says(&bed.admit("far", false), None, json!({ "answer": "coming", "bytes": 1, "of": 2 }), json!({}));
    let began = tokio::time::Instant::now();
    assert!(!near.bring(&Digest::of(b"slow")).await.unwrap(), "a registry may have it");
    assert!(began.elapsed() > Duration::from_secs(60) && says.asked.load(Relaxed) > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_could_not_be_taken_in_is_not_promised_to_others_for_a_while() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let (engine, id) = (machine.engine(), Digest::of(b"refused"));
    assert!(!machine.shared().refused.has(&id));
    machine.images.store(&engine, &id.id()).await.unwrap_err();
    assert!(machine.shared().refused.has(&id));
    let ask = json!({ "image": id }).to_string();
    let answer = machine.images.answer(&engine, Method::Image, ask.as_bytes()).await.unwrap();
    assert_eq!(answer, json!({ "answer": "absent" }).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_upon_damage_forgets_the_image() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let layer = noise(1, 100_000);
    let id = machine.put(&[&layer]);
    assert!(machine.loads(&id).await);
    machine.damage(&layer);
    assert!(!machine.loads(&id).await, "nobody takes a part for the whole");
    assert!(machine.images.stored().is_empty());

    let config = config_of(&[b"base"]);
    let id = machine.put(&[b"base"]);
    let names = machine.shared().image(&id).unwrap();
    let file = &names.blobs[&Digest::of(config.as_bytes())];
    let Some(Ok(flotilla_data::stream::Piece::Chunk(part))) = file.content.pieces(&machine.shared().store).next()
    else {
        panic!("a chunk")
    };
    machine.damage(&machine.shared().store.laid_down(&part.hash).unwrap());
    machine.images.parts(&id.id()).await.unwrap_err();
    assert!(machine.images.stored().is_empty(), "of a configuration as of a layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_image_another_could_not_fetch_looks_at_it() {
    let bed = Bed::new();
    let (near, far) = (bed.machine("near"), bed.machine("far"));
    let layer = noise(2, 100_000);
    let id = far.put(&[&layer]);
    far.damage(&layer);
    let engine = far.engine();
    bed.wires.serve(&far.node, Arc::new(Answers { images: far.images.clone(), volumes: far.volumes.clone(), engine }));
    assert!(!near.bring(&id).await.unwrap(), "a registry may have it");
    let forgotten = async {
        while !far.images.stored().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), forgotten).await.expect("it says no more that it has it");
}

/// What a person pushes: an image of these layers.
fn pushed(layers: &[&[u8]], reference: &str) -> PushImage {
    PushImage {
        config: config_of(layers),
        layers: layers.iter().map(|layer| Digest::of(layer).hex().to_owned()).collect(),
        references: vec![reference.to_owned()],
    }
}

impl Machine {
    /// As if it had been sent ahead.
    fn keep_layer(&self, layer: &[u8]) -> Hash {
        let (mut session, digest) = (self.shared().session(), Digest::of(layer));
        let file = archive::take_layer(layer, &digest, &mut session).unwrap();
        let root = self.shared().keep_layer(&digest, file, &mut session).unwrap();
        self.shared().cleared([&digest].into_iter());
        root
    }

    /// Does the engine get all of the image?
    async fn loads(&self, id: &Digest) -> bool {
        match self.images.archive(&id.id(), &[], 0).await {
            Ok(archive) => archive.bytes.all(|piece| async move { piece.is_ok() }).await,
            Err(_) => false,
        }
    }

    async fn lacks(&self, layers: &[&[u8]]) -> Vec<String> {
        let uploads = uploads::Uploads::open(self.data.path(), uploads::Limits::default()).unwrap();
        let layers = layers.iter().map(|layer| Digest::of(layer).hex().to_owned()).collect();
        let lacking = self.images.lacking(&uploads, &AskLayers { layers }).await.unwrap();
        lacking.layers.into_keys().collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_another_machine_has_comes_from_there() {
    let bed = Bed::new();
    let (near, far) = (bed.machine("near"), bed.machine("far"));
    let (base, top) = (noise(3, 50_000), b"top");
    far.keep_layer(&base);
    near.keep_layer(top);
    let (engine, theirs) = (near.engine(), far.engine());
    let answers = Answers { images: far.images.clone(), volumes: far.volumes.clone(), engine: theirs };
    bed.wires.serve(&far.node, Arc::new(answers));
    assert_eq!(near.lacks(&[&base, top]).await, [""; 0]);
    // There is no engine to load it.
    let error = near.images.push(&engine, pushed(&[&base, top], "notes:1")).await.unwrap_err();
    assert_eq!(ApiError::from(error).code, ErrorCode::EngineUnavailable);
    let id = Digest::of(config_of(&[&base, top]).as_bytes());
    assert_eq!(near.names(":"), BTreeSet::from([key(&id)]), "its layers belong to it");
    near.shared().image(&id).unwrap().verify(&near.shared().store).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_another_machine_only_claims_to_have_is_to_be_sent() {
    let bed = Bed::new();
    let (near, far) = (bed.machine("near"), bed.machine("far"));
    let (engine, wanted) = (near.engine(), Digest::of(b"wanted"));
    let other = far.keep_layer(b"other");
    let layers = json!({ "layers": { wanted.hex(): other.to_string() } });
    bed.says(&far.node, Some(&far.volumes), json!({}), layers);
    assert_eq!(near.lacks(&[b"wanted"]).await, [""; 0], "so it says");
    let error = near.images.push(&engine, pushed(&[b"wanted"], "notes:1")).await.unwrap_err();
    assert!(error.to_string().contains("push again"), "{error}");
    assert_eq!(near.names(":"), BTreeSet::new());
    assert_eq!(near.lacks(&[b"wanted"]).await, [wanted.hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_none_is_refused_before_anything_is_kept() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    machine.keep_layer(b"base");
    let error = machine.images.push(&machine.engine(), pushed(&[b"base"], "no name")).await.unwrap_err();
    assert_eq!(ApiError::from(error).code, ErrorCode::ImageInvalid);
    assert!(machine.images.stored().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_pushed_once_more_is_kept_as_if_it_were_new() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let (id, unknown) = (machine.put(&[b"base"]).id(), Digest::of(b"unknown").id());
    let (long_ago, now) = (UnixMillis(1), clock::now());
    let record = &machine.shared().record;
    machine.images.renew(&unknown).await.unwrap();
    assert_eq!(record.unneeded_since(&unknown, long_ago), long_ago);
    machine.images.renew(&id).await.unwrap();
    assert!(record.unneeded_since(&id, long_ago) >= now);
    machine.images.renew("notes:1").await.unwrap_err();

    record.found(&id, &[], long_ago).unwrap();
    machine.images.push(&machine.engine(), pushed(&[b"base"], "notes:1")).await.unwrap_err();
    assert!(record.unneeded_since(&id, long_ago) >= now, "by its layers, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_that_another_image_still_names_is_sent_and_laid_down_anew() {
    let bed = Bed::new();
    let machine = bed.machine("here");
    let base = noise(4, 100_000);
    let (first, second) = (machine.put(&[&base, b"one"]), machine.put(&[&base, b"two"]));
    machine.damage(&base);
    assert!(!machine.loads(&second).await);
    assert_eq!(
        machine.images.stored().into_keys().collect::<Vec<_>>(),
        std::slice::from_ref(&first),
        "nobody looked at the first"
    );
    let base_digest = Digest::of(&base).hex().to_owned();
    assert!(machine.lacks(&[&base, b"two"]).await.contains(&base_digest), "what the first names is not counted on");

    machine.keep_layer(&base);
    machine.keep_layer(b"two");
    assert_eq!(machine.lacks(&[&base, b"two"]).await, [""; 0]);
    let error = machine.images.push(&machine.engine(), pushed(&[&base, b"two"], "notes:2")).await.unwrap_err();
    assert_eq!(ApiError::from(error).code, ErrorCode::EngineUnavailable);
    assert!(machine.loads(&second).await && machine.loads(&first).await, "both have the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_that_another_still_names_parts_of_is_fetched_anew() {
    let bed = Bed::new();
    let (near, far) = (bed.machine("near"), bed.machine("far"));
    let base = noise(5, 100_000);
    let (_, second) = (near.put(&[&base, b"one"]), near.put(&[&base, b"two"]));
    assert_eq!(far.put(&[&base, b"two"]), second);
    let root = near.root(&second);
    // In a layer, and in what leads to it.
    near.damage(&base);
    near.damage(&near.shared().store.laid_down(&root).unwrap());
    assert!(!near.loads(&second).await);
    bed.says(&far.node, Some(&far.volumes), here(&far.root(&second)), json!({}));
    assert!(near.bring(&second).await.unwrap());
    assert!(near.loads(&second).await);
}
