//! The stores of some machines, without an engine.

use flotilla_core::CommandV1;
use flotilla_data::store::News;
use serde_json::json;

use super::*;
use crate::{
    engine::Proposer,
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
    data: tempfile::TempDir,
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

impl Bed {
    fn new() -> Self {
        Self { wires: Wires::default(), state: watch::Sender::default() }
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
        let volumes = Volumes::open(volumes::Parts {
            node: node.clone(),
            data_dir: data.path().to_owned(),
            state: state.clone(),
            fence: Fence::start(config).unwrap(),
            proposer: Arc::new(Silent),
            network: network.clone(),
        })
        .unwrap();
        let parts =
            Parts { node: node.clone(), data_dir: data.path().to_owned(), state, network, volumes: volumes.clone() };
        let images = Images::open(parts).unwrap();
        Machine { node, images, volumes, data }
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
    assert!(!here.images.bring(&digest.id(), "notes:1", Need::Now, &|_, _| {}).await.unwrap());
    assert!(asked.iter().all(|says| says.asked.load(Relaxed) == 0));

    bed.says(&bed.admit("berta", false), None, absent, layers);
    assert_eq!(travel::elsewhere(&here.images.shared, &wanted).await, wanted);
}
