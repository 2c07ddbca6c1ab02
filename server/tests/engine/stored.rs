//! Images in the stores of two machines, and in the one engine that both have here.

use std::{io::Read as _, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use bollard::query_parameters::{RemoveImageOptions, TagImageOptions};
use bytes::Bytes;
use flotilla::{
    engine::{
        Engine, EngineConfig, ImageStore as _, Need, NoOthers,
        uploads::{Limits, Uploads},
    },
    fence::{self, Fence},
    images::{self, Images},
    peers::{Handler, Method, Stream, memory::Wires},
    volumes::{self, Volumes},
};
use flotilla_api::{
    ApiError, ErrorCode, NodeId,
    rest::{AskLayers, BeginUpload, PushImage},
};
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};

use crate::playground::{PATIENCE, Playground, archive_of, digest, entry};

/// A machine with a store of its own.
struct Machine {
    node: NodeId,
    images: Images,
    engine: Engine,
    data: tempfile::TempDir,
}

/// Answers for a machine as its node would.
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

    fn stream(&self, from: NodeId, label: String, stream: Stream) -> BoxFuture<'static, ()> {
        let volumes = self.volumes.clone();
        Box::pin(async move {
            assert_eq!(label, volumes::LABEL);
            volumes.serve(&from, stream, volumes::Served::All).await;
        })
    }
}

impl Machine {
    fn new(playground: &Playground, wires: &Wires, name: &str) -> Self {
        let (node, data) = (playground.admit(name), tempfile::tempdir().unwrap());
        let config = fence::Config { data_dir: data.path().to_owned(), docker_host: None, form: fence::Form::Thread };
        let fence = Fence::start(config).unwrap();
        let network = wires.join(&node);
        let volumes = Volumes::open(volumes::Parts {
            node: node.clone(),
            data_dir: data.path().to_owned(),
            state: playground.watch_state(),
            fence: fence.clone(),
            proposer: playground.proposer(),
            network: network.clone(),
        })
        .unwrap();
        let images = Images::open(images::Parts {
            node: node.clone(),
            data_dir: data.path().to_owned(),
            state: playground.watch_state(),
            network,
            volumes: volumes.clone(),
        })
        .unwrap();
        let config = EngineConfig {
            docker_host: None,
            data_dir: data.path().to_owned(),
            cluster_id: playground.cluster.clone(),
            node_id: node.clone(),
        };
        let engine = playground.start_among(config, fence, Arc::new(NoOthers::default()), Arc::new(images.clone()));
        let answers = Answers { images: images.clone(), volumes, engine: engine.clone() };
        wires.serve(&node, Arc::new(answers));
        Self { node, images, engine, data }
    }

    fn uploads(&self) -> Uploads {
        Uploads::open(self.data.path(), Limits { disk_reserve: 0, ..Limits::default() }).unwrap()
    }

    fn holds(&self, id: &str) -> bool {
        self.images.stored().contains_key(&id.parse().unwrap())
    }
}

/// An image of two layers: the playground's, and one with noise in it that this machine alone makes.
struct Made {
    reference: String,
    id: String,
    config: String,
    layers: Vec<Vec<u8>>,
}

fn made(playground: &Playground, tag: &str, above: &[Vec<u8>]) -> (Made, Vec<u8>) {
    let reference = format!("flotilla-test/{}:{tag}", playground.cluster);
    let archive = archive_of(&reference, &format!("{}-{tag}", playground.cluster), above);
    let (mut config, mut layers) = (String::new(), Vec::new());
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if path.ends_with("layer.tar") {
            layers.push(bytes);
        } else if path.ends_with("config.json") {
            config = String::from_utf8(bytes).unwrap();
        }
    }
    let id = format!("sha256:{}", digest(config.as_bytes()));
    (Made { reference, id, config, layers }, archive)
}

/// A layer with a file of so many bytes that no other has and that nothing makes shorter.
fn noise(seed: &str, len: usize) -> Vec<u8> {
    let bytes: Vec<u8> =
        (0..).map(|at: u32| digest(format!("{seed}{at}").as_bytes())).flat_map(String::into_bytes).take(len).collect();
    let mut layer = tar::Builder::new(Vec::new());
    entry(&mut layer, "noise", 0o644, 0, &bytes);
    layer.into_inner().unwrap()
}

impl Playground {
    async fn has(&self, image: &str) -> bool {
        self.docker.inspect_image(image).await.is_ok()
    }

    async fn forget(&self, image: &str) {
        let options = RemoveImageOptions { force: true, ..Default::default() };
        self.docker.remove_image(image, Some(options), None).await.unwrap();
    }

    /// As a person would load it.
    async fn load_archive(&self, archive: Vec<u8>) {
        let options = bollard::query_parameters::ImportImageOptions { quiet: true, ..Default::default() };
        let body = bollard::body_full(Bytes::from(archive));
        self.docker.import_image(options, body, None).try_collect::<Vec<_>>().await.unwrap();
    }
}

#[tokio::test]
async fn an_image_goes_from_an_engine_through_two_stores_into_an_engine_and_is_the_same() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let (one, two) = (Machine::new(&playground, &wires, "one"), Machine::new(&playground, &wires, "two"));
    let (image, archive) = made(&playground, "travels", &[noise(&playground.cluster, 600_000)]);
    playground.load_archive(archive).await;

    one.images.store(&one.engine, &image.id).await.unwrap();
    assert!(one.holds(&image.id));
    playground.forget(&image.reference).await;
    assert!(!playground.has(&image.id).await);

    // The engine has the lowest layer still, as that of the playground's own image: it is left out, and the rest is enough.
    assert!(two.images.bring(&image.id, &image.reference, Need::Now, &|_, _| {}).await.unwrap());
    let layers = |machine: &Machine| machine.images.stored()[&image.id.parse().unwrap()].layers.clone();
    assert_eq!(layers(&two), layers(&one));
    let loaded = two.engine.load_stored(&image.id, std::slice::from_ref(&image.reference)).await.unwrap();
    assert_eq!(loaded, image.id);
    assert!(playground.has(&image.reference).await);

    // Its content, too: what runs reads it.
    playground
        .deploy(&format!("  web: {{ image: \"{}\", command: [httpd, -f, -p, \"8080\", -h, /] }}", image.reference));
    let engine = playground.start();
    let container = playground.until_running(&engine, "web").await;
    let mut file = Vec::new();
    let options = bollard::query_parameters::DownloadFromContainerOptions { path: "/noise".into() };
    let mut download = playground.docker.download_from_container(&container.id, Some(options));
    while let Some(piece) = download.next().await {
        file.extend_from_slice(&piece.unwrap());
    }
    assert!(file.len() > 600_000);
    playground.apply(flotilla_core::CommandV1::Remove { service: crate::playground::name("web"), volumes: false });
    engine.stop().await;
    flotilla::engine::take_down(None, &playground.cluster, None, playground.data.path(), &[]).await.unwrap();
    playground.forget(&image.id).await;
}

#[tokio::test]
async fn an_image_that_only_an_engine_has_is_stored_when_another_machine_asks_for_it() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let (one, two) = (Machine::new(&playground, &wires, "one"), Machine::new(&playground, &wires, "two"));
    let (image, archive) = made(&playground, "asked", &[noise(&playground.cluster, 100_000)]);
    playground.load_archive(archive).await;
    assert!(!one.holds(&image.id));
    let brought = two.images.bring(&image.id, &image.reference, Need::Now, &|_, _| {});
    assert!(tokio::time::timeout(PATIENCE, brought).await.unwrap().unwrap());
    assert!(one.holds(&image.id) && two.holds(&image.id));

    let nowhere = format!("sha256:{}", "0".repeat(64));
    assert!(!two.images.bring(&nowhere, "nowhere", Need::Now, &|_, _| {}).await.unwrap());
    playground.forget(&image.id).await;
}

#[tokio::test]
async fn a_push_sends_only_the_layers_that_no_machine_has_and_goes_on_where_it_was() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let (one, two) = (Machine::new(&playground, &wires, "one"), Machine::new(&playground, &wires, "two"));
    let base = noise(&playground.cluster, 400_000);
    let (first, archive) = made(&playground, "first", std::slice::from_ref(&base));
    playground.load_archive(archive).await;
    two.images.store(&two.engine, &first.id).await.unwrap();

    // A second one begins with the layers of the first, which the other machine alone has.
    let (pushed, _) = made(&playground, "second", &[base, noise("top", 300_000)]);
    let digests: Vec<String> = pushed.layers.iter().map(|layer| digest(layer)).collect();
    let uploads = one.uploads();
    let ask = AskLayers { layers: digests.clone() };
    let lacking = one.images.lacking(&uploads, &ask).await.unwrap();
    assert_eq!(lacking.layers.into_iter().collect::<Vec<_>>(), [(digests[2].clone(), 0)]);

    let top = &pushed.layers[2];
    uploads.begin(&BeginUpload { digest: digests[2].clone(), size: top.len() as u64 }).unwrap();
    let piece = |bytes: &[u8]| stream::iter([Ok::<_, String>(Bytes::copy_from_slice(bytes))]);
    uploads.append(&digests[2], 0, piece(&top[..100_000])).await.unwrap();
    let error = one.images.keep_layer(&uploads, &digests[2]).await.unwrap_err();
    assert_eq!(ApiError::from(error).code, ErrorCode::UploadOffset);
    let begun = one.images.lacking(&uploads, &ask).await.unwrap();
    assert_eq!(begun.layers[&digests[2]], 100_000, "what has come is not sent again");
    uploads.append(&digests[2], 100_000, piece(&top[100_000..])).await.unwrap();
    one.images.keep_layer(&uploads, &digests[2]).await.unwrap();
    assert!(one.images.lacking(&uploads, &ask).await.unwrap().layers.is_empty());

    let request = PushImage {
        config: pushed.config.clone(),
        layers: digests.clone(),
        references: vec![pushed.reference.clone()],
    };
    let done = one.images.push(&one.engine, request.clone()).await.unwrap();
    assert_eq!(done.id, pushed.id);
    assert!(playground.has(&pushed.reference).await && one.holds(&pushed.id));

    // Other words for the same layers are no image of these.
    let other = PushImage { config: pushed.config.replace("\"layers\"", "\"Layers\""), ..request.clone() };
    assert!(one.images.push(&one.engine, PushImage { layers: digests[..2].to_vec(), ..other }).await.is_err());
    let unknown = PushImage { layers: vec!["0".repeat(64); 3], ..request };
    let error = ApiError::from(one.images.push(&one.engine, unknown).await.unwrap_err());
    assert!(error.code == ErrorCode::InvalidRequest || error.code == ErrorCode::ImageInvalid, "{error}");
    for id in [&first.id, &pushed.id] {
        playground.forget(id).await;
    }
}

#[tokio::test]
async fn a_layer_that_was_damaged_on_its_way_is_refused() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let one = Machine::new(&playground, &wires, "one");
    let layer = noise(&playground.cluster, 10_000);
    let mut damaged = layer.clone();
    damaged[5_000] ^= 1;
    let uploads = one.uploads();
    uploads.begin(&BeginUpload { digest: digest(&layer), size: layer.len() as u64 }).unwrap();
    let bytes = stream::iter([Ok::<_, String>(Bytes::from(damaged))]);
    uploads.append(&digest(&layer), 0, bytes).await.unwrap();
    let error = ApiError::from(one.images.keep_layer(&uploads, &digest(&layer)).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::UploadDigest, "{error}");
    let ask = AskLayers { layers: vec![digest(&layer)] };
    assert_eq!(one.images.lacking(&uploads, &ask).await.unwrap().layers.len(), 1);
}

/// Flips a bit in what a store holds, as a disk may.
fn damage(machine: &Machine) {
    let packs = machine.data.path().join("objects/packs");
    for pack in std::fs::read_dir(packs).unwrap() {
        let path = pack.unwrap().path();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).unwrap();
        // In each of its two layers, whichever came first.
        for at in [bytes.len() / 4, bytes.len() * 3 / 4] {
            file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_damaged_on_a_disk_is_not_loaded_and_fetched_anew() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let (one, two) = (Machine::new(&playground, &wires, "one"), Machine::new(&playground, &wires, "two"));
    let (image, archive) = made(&playground, "damaged", &[noise(&playground.cluster, 2_000_000)]);
    playground.load_archive(archive).await;
    one.images.store(&one.engine, &image.id).await.unwrap();
    two.images.store(&two.engine, &image.id).await.unwrap();
    playground.forget(&image.id).await;

    damage(&two);
    let error = two.engine.load_stored(&image.id, &[]).await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert!(!playground.has(&image.id).await, "nothing is half loaded");
    assert!(!two.holds(&image.id), "it says no more that it has it");

    assert!(two.images.bring(&image.id, &image.reference, Need::Now, &|_, _| {}).await.unwrap());
    assert_eq!(two.engine.load_stored(&image.id, &[]).await.unwrap(), image.id);
    playground.forget(&image.id).await;
}

#[tokio::test]
async fn one_whose_objects_are_damaged_is_passed_over_for_another() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let machines = ["one", "two", "three"].map(|name| Machine::new(&playground, &wires, name));
    let (image, archive) = made(&playground, "passed", &[noise(&playground.cluster, 2_000_000)]);
    playground.load_archive(archive).await;
    for machine in &machines[..2] {
        machine.images.store(&machine.engine, &image.id).await.unwrap();
    }
    playground.forget(&image.id).await;
    damage(&machines[0]);
    assert!(machines[2].images.bring(&image.id, &image.reference, Need::Now, &|_, _| {}).await.unwrap());
    assert_eq!(machines[2].engine.load_stored(&image.id, &[]).await.unwrap(), image.id);
    playground.forget(&image.id).await;
}

#[tokio::test]
async fn only_images_that_were_brought_and_that_nothing_needs_are_collected() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let (one, two) = (Machine::new(&playground, &wires, "one"), Machine::new(&playground, &wires, "two"));
    let (brought, archive) = made(&playground, "brought", &[noise("brought", 10_000)]);
    playground.load_archive(archive).await;
    one.images.store(&one.engine, &brought.id).await.unwrap();
    playground.forget(&brought.id).await;
    let (own, archive) = made(&playground, "own", &[noise("own", 10_000)]);
    playground.load_archive(archive).await;
    one.images.store(&one.engine, &own.id).await.unwrap();

    for image in [&brought, &own] {
        assert!(two.images.bring(&image.id, &image.reference, Need::Now, &|_, _| {}).await.unwrap());
        two.engine.load_stored(&image.id, std::slice::from_ref(&image.reference)).await.unwrap();
    }
    playground.deploy(&format!("  web: {{ image: \"{}\" }}", brought.reference));
    assert!(two.images.collect(&two.engine, false).await.unwrap().images.iter().all(|it| it.id != brought.id));
    assert!(playground.has(&brought.id).await);
    let error = two.images.remove(&two.engine, &brought.reference).await.unwrap_err();
    assert!(error.to_string().contains("is used by `web`"), "{error}");
    assert_eq!(ApiError::from(error).code, ErrorCode::ImageInUse);

    playground.apply(flotilla_core::CommandV1::Remove { service: crate::playground::name("web"), volumes: false });
    let would = two.images.collect(&two.engine, true).await.unwrap();
    assert!(would.images.iter().any(|it| it.id == brought.id) && playground.has(&brought.id).await);
    // A name that somebody else gave keeps it.
    let tag =
        TagImageOptions { repo: Some(format!("flotilla-test/{}", playground.cluster)), tag: Some("theirs".into()) };
    playground.docker.tag_image(&brought.id, Some(tag)).await.unwrap();
    let collected = two.images.collect(&two.engine, false).await.unwrap();
    let gone = collected.images.iter().find(|it| it.id == brought.id).unwrap();
    assert!(!gone.engine && gone.store, "{gone:?}");
    assert!(playground.has(&brought.id).await && !playground.has(&brought.reference).await);
    assert!(playground.has(&own.reference).await, "a person made it: it was there before");
    for image in [&brought, &own] {
        playground.forget(&image.id).await;
    }
}

#[tokio::test]
async fn an_image_of_ours_goes_with_its_last_name() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let (one, two) = (Machine::new(&playground, &wires, "one"), Machine::new(&playground, &wires, "two"));
    let (image, archive) = made(&playground, "goes", &[noise("goes", 10_000)]);
    playground.load_archive(archive).await;
    one.images.store(&one.engine, &image.id).await.unwrap();
    playground.forget(&image.id).await;
    assert!(two.images.bring(&image.id, &image.reference, Need::Now, &|_, _| {}).await.unwrap());
    two.engine.load_stored(&image.id, std::slice::from_ref(&image.reference)).await.unwrap();
    let collected = two.images.collect(&two.engine, false).await.unwrap();
    let gone = collected.images.iter().find(|it| it.id == image.id).unwrap();
    assert!(gone.engine && gone.store && collected.freed_bytes > 10_000, "{collected:?}");
    assert!(!playground.has(&image.id).await && !two.holds(&image.id));
    assert!(one.holds(&image.id), "each machine has its own");
}

#[tokio::test]
async fn a_machine_that_is_cut_off_is_not_waited_for_for_ever() {
    let playground = Playground::new().await;
    let wires = Wires::default();
    let (one, two) = (Machine::new(&playground, &wires, "one"), Machine::new(&playground, &wires, "two"));
    wires.isolate(&one.node);
    let nowhere = format!("sha256:{}", "1".repeat(64));
    let asked = two.images.bring(&nowhere, "nowhere", Need::Now, &|_, _| {});
    assert!(!tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap().unwrap());
}
