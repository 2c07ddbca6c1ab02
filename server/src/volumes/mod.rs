//! Volumes beyond one machine: what an instance writes here is captured, and committed once others have it; what is written elsewhere
//! is fetched; and what an instance begins with is in its directories before it runs. The decisions are `flotilla_core`'s, the files
//! `flotilla_data`'s; ADR 15 has the whole.

mod begin;
mod capture;
mod coming;
mod compare;
mod directories;
mod error;
mod export;
mod follow;
mod former;
mod haste;
mod history;
mod hooks;
mod import;
pub(crate) mod layout;
mod limit;
mod lines;
mod mapped;
mod past;
mod record;
mod replica;
mod scrub;
mod sealing;
mod storage;
mod stored;
mod unwritten;
mod watched;
mod width;
mod wire;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{
    ApiError, ErrorCode, NodeId, ServiceName, UnixMillis, VolumeName,
    limit::LimitNow,
    rest::{ScrubView, StorageView},
};
use flotilla_core::{
    State,
    report::{Coming, DataReport, DataReports},
    state::GenerationName,
};
use flotilla_data::{Store, fetch, store, tree};
use futures::{Stream, stream};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    bridge::Outgoing,
    clock,
    engine::{Engine, Proposer},
    fence::Fence,
    peers::{self, Method, Network},
};
pub use compare::{Comparison, Difference};
use directories::Directories;
pub use error::Error;
pub(crate) use haste::Haste;
pub use import::Refused;
use limit::Limiter;
pub use limit::{Held, Sent};
pub(crate) use lines::Lines;
use record::Shown;
pub(crate) use sealing::key_id;
pub use wire::{LABEL, Served};
pub(crate) use wire::{answered, ask};
use writer::{Word, Words};

/// After a writer that failed.
const WRITER_AGAIN: Duration = Duration::from_secs(10);

/// Pieces of an archive that wait to be sent, and bytes of each.
const EXPORT_PIECES: usize = 8;
const EXPORT_PIECE: usize = 64 * 1024;

/// How long a clean stop waits for captures under way: an instance may be held.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// What volumes need of the rest of their node.
#[derive(Clone)]
pub struct Parts {
    pub node: NodeId,
    pub data_dir: PathBuf,
    pub state: watch::Receiver<Arc<State>>,
    pub fence: Fence,
    pub proposer: Arc<dyn Proposer>,
    pub network: Network,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("node", &self.node).field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// A handle. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    shared: Arc<Shared>,
}

struct Shared {
    parts: Parts,
    store: Store,
    directories: Directories,
    /// Under which epoch each service's directories are written.
    begun: watch::Sender<BTreeMap<ServiceName, u64>>,
    /// Who is told of what other machines hold, by epoch.
    writers: Mutex<BTreeMap<u64, Words>>,
    wanted: replica::Wanted,
    limiter: Limiter,
    reports: watch::Sender<DataReports>,
    /// What all of it takes up, once it was measured.
    storage: watch::Sender<Option<StorageView>>,
    scrub: scrub::Scrub,
    /// There is a new generation, so that an old one may go.
    history: Notify,
    /// Something was forgotten whose room is to be freed.
    garbage: AtomicBool,
    /// A first copy of something has come.
    first: Notify,
    /// Generations that other machines are fetching from here.
    offered: Mutex<BTreeMap<ServiceName, BTreeSet<GenerationName>>>,
    counters: Counters,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volumes").field("data_dir", &self.shared.parts.data_dir).finish_non_exhaustive()
    }
}

/// Since the node started.
#[derive(Debug, Default)]
struct Counters {
    captures: AtomicU64,
    captured_bytes: AtomicU64,
    held_micros: AtomicU64,
    fetches: AtomicU64,
    fetched_bytes: AtomicU64,
    scrubbed: AtomicU64,
    compared: AtomicU64,
    damaged: AtomicU64,
    repaired: AtomicU64,
}

/// What a machine has of a volume's past, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub generations: Vec<Kept>,
    /// What was written there and never committed.
    pub branches: Vec<Kept>,
}

/// One state of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub name: GenerationName,
    pub taken_at: UnixMillis,
    pub files: u64,
    /// Of its files.
    pub bytes: u64,
}

impl Kept {
    fn all(store: &Store, key: &str) -> Result<Vec<Self>, Error> {
        let generations = store.generations(key)?.into_iter().map(|it| {
            let tree::Totals { files, bytes } = tree::Root::read(store, &it.root)?.totals;
            Ok(Self { name: name_of(&it), taken_at: UnixMillis(it.taken_at), files, bytes })
        });
        generations.collect()
    }
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Generations that were made here.
    pub captures: u64,
    /// Bytes of files that were read for them.
    pub captured_bytes: u64,
    /// For how long instances stood still for them. Microseconds.
    pub held_micros: u64,
    /// Generations that came from other machines.
    pub fetches: u64,
    /// Bytes that came for them.
    pub fetched_bytes: u64,
    /// Objects that were read to see whether they are still as they were.
    pub scrubbed: u64,
    /// Bytes of copies' files that were read for the same.
    pub compared: u64,
    /// Objects, and chunks of copies' files, that this machine's disk did not give back as they were.
    pub damaged: u64,
    /// Those of them that are right again.
    pub repaired: u64,
}

impl Counters {
    fn captured(&self, held: Duration, bytes: u64) {
        self.captures.fetch_add(1, Relaxed);
        self.captured_bytes.fetch_add(bytes, Relaxed);
        self.held_micros.fetch_add(u64::try_from(held.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn fetched(&self, figures: fetch::Figures) {
        self.fetches.fetch_add(1, Relaxed);
        self.fetched_bytes.fetch_add(figures.bytes, Relaxed);
    }
}

impl Volumes {
    /// Opens what is on this machine. [`Volumes::run`] sets it going once there is an engine.
    ///
    /// # Errors
    /// The store can't be used.
    pub fn open(parts: Parts) -> Result<Self, Error> {
        let store = Store::open(&layout::objects(&parts.data_dir))?;
        import::sweep(&parts.data_dir, &store)?;
        let shared = Shared {
            directories: Directories::new(parts.data_dir.clone(), store.clone()),
            store,
            begun: watch::Sender::default(),
            writers: Mutex::default(),
            wanted: replica::Wanted::default(),
            limiter: Limiter::default(),
            reports: watch::Sender::default(),
            storage: watch::Sender::default(),
            scrub: scrub::Scrub::open(&parts.data_dir),
            history: Notify::new(),
            // What an earlier daemon forgot may not be freed yet.
            garbage: AtomicBool::new(true),
            first: Notify::new(),
            offered: Mutex::default(),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            parts,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn run(&self, engine: &Engine) -> Vec<(&'static str, JoinHandle<()>)> {
        vec![
            ("the writers of volumes", tokio::spawn(supervise(Arc::clone(&self.shared), engine.clone()))),
            ("the copies of volumes", self.tend(engine)),
            ("the copies of what nobody writes", tokio::spawn(unwritten::keep(Arc::clone(&self.shared)))),
            ("the copies that are not wanted any more", tokio::spawn(former::keep(Arc::clone(&self.shared)))),
            ("the limit of copies", tokio::spawn(limit::keep(Arc::clone(&self.shared)))),
            ("the history of volumes", tokio::spawn(history::keep(Arc::clone(&self.shared)))),
            ("the past of volumes", tokio::spawn(past::keep(Arc::clone(&self.shared)))),
            ("the scrub of volumes", tokio::spawn(scrub::keep(Arc::clone(&self.shared)))),
            ("the measure of volumes", tokio::spawn(storage::measure(Arc::clone(&self.shared)))),
        ]
    }

    /// Where nothing ever runs there is nothing to show in directories, and no engine that tells when a volume may go.
    fn tend(&self, engine: &Engine) -> JoinHandle<()> {
        match self.shared.parts.state.borrow().stores_only(&self.shared.parts.node) {
            true => tokio::spawn(stored::tend(self.clone())),
            false => tokio::spawn(follow::tend(Arc::clone(&self.shared), engine.clone())),
        }
    }

    /// Answers another machine.
    ///
    /// # Errors
    /// What it said makes no sense here.
    pub async fn answer(&self, from: &NodeId, method: Method, body: &[u8]) -> Result<Bytes, ApiError> {
        match method {
            Method::Offer => {
                let offer = wire::read(body)?;
                wire::write(&replica::offered(&self.shared, from, offer).await?)
            }
            Method::Holds => {
                let wire::Holds { name, dropped, .. } = wire::read(body)?;
                let words = self.shared.writers().get(&name.epoch).cloned();
                if let Some(words) = words {
                    let word = Word::Holds { machine: from.clone(), sequence: name.sequence, dropped };
                    // Where it is not heard the generation is offered again.
                    drop(words.try_send(word));
                }
                Ok(Bytes::new())
            }
            Method::Recall => {
                let wire::Recall { service, name } = wire::read(body)?;
                let kept = self.shared.kept(&service, name).await?;
                wire::write(&kept.map(|(kept, taken_at)| wire::Offer {
                    service,
                    name,
                    taken_at,
                    volumes: kept.roots,
                    holders: Vec::new(),
                    awaited: false,
                }))
            }
            Method::Past => {
                let (shared, past) = (Arc::clone(&self.shared), wire::read(body)?);
                let stores_only = self.shared.parts.state.borrow().stores_only(from);
                let served = if stores_only { Served::Sealed } else { Served::All };
                wire::write(&blocking(move || past::told(&shared, &past, served)).await?)
            }
            other => Err(ApiError::new(ErrorCode::NotFound, format!("{other:?} is nothing that volumes know"))),
        }
    }

    /// Serves a stream `objects` that another machine opened.
    pub async fn serve(&self, from: &NodeId, stream: peers::Stream, served: Served) {
        if let Err(error) = wire::serve(&self.shared.store, &self.shared.limiter, stream, served).await {
            tracing::debug!(%from, %error, "objects were not sent to their end");
        }
    }

    /// How what is written here does, by service.
    pub fn watch_reports(&self) -> watch::Receiver<DataReports> {
        self.shared.reports.subscribe()
    }

    /// What is on its way here, as far as that takes long.
    pub fn watch_coming(&self) -> watch::Receiver<BTreeMap<(ServiceName, VolumeName), Coming>> {
        self.shared.wanted.watch()
    }

    /// What this machine may send of copies at this time of its day.
    pub fn watch_limit(&self) -> watch::Receiver<LimitNow> {
        self.shared.limiter.watch()
    }

    /// What it has sent.
    pub fn sent(&self) -> Sent {
        self.shared.limiter.sent()
    }

    /// What volumes take up on this machine's disk, as it was measured last.
    pub fn watch_storage(&self) -> watch::Receiver<Option<StorageView>> {
        self.shared.storage.subscribe()
    }

    /// When all that is kept on this machine was read, and with what result.
    pub fn watch_scrub(&self) -> watch::Receiver<ScrubView> {
        self.shared.scrub.watch()
    }

    /// Reads all of it now.
    pub fn scrub(&self) -> ScrubView {
        self.shared.scrub.ask(clock::now())
    }

    /// What this machine has of a volume's past.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn history(&self, service: &ServiceName, volume: &VolumeName) -> Result<History, Error> {
        let store = self.shared.store.clone();
        let (key, branch) = (layout::key(service, volume), layout::branch_key(service, volume));
        blocking(move || Ok(History { generations: Kept::all(&store, &key)?, branches: Kept::all(&store, &branch)? }))
            .await
    }

    /// Is all of a generation on this machine, or on one that can be asked now?
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn is_kept(&self, service: &ServiceName, name: GenerationName) -> Result<bool, Error> {
        Ok(self.shared.kept(service, name).await?.is_some()
            || !replica::find(&self.shared, service, name).await.is_empty())
    }

    /// A generation of a volume as a tar archive; `None` where it is not on this machine.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn export(
        &self,
        service: &ServiceName,
        volume: &VolumeName,
        name: GenerationName,
    ) -> Result<Option<impl Stream<Item = io::Result<Bytes>> + Send + use<>>, Error> {
        let kept = self.shared.kept(service, name).await?;
        let Some(root) = kept.and_then(|(kept, _)| kept.roots.get(volume)?.parse().ok()) else { return Ok(None) };
        let (sender, mut receiver) = mpsc::channel(EXPORT_PIECES);
        let store = self.shared.store.clone();
        tokio::task::spawn_blocking(move || {
            let to = io::BufWriter::with_capacity(EXPORT_PIECE, Outgoing(sender.clone()));
            if let Err(error) = export::write(&store, &root, to) {
                // Whoever reads it takes no part of it for the whole.
                let _ = sender.blocking_send(Err(io::Error::other(error)));
            }
        });
        Ok(Some(stream::poll_fn(move |context| receiver.poll_recv(context))))
    }

    /// For how long each service that is written here has had something that is not committed. Milliseconds.
    pub fn uncommitted(&self) -> BTreeMap<ServiceName, u64> {
        let now = clock::now();
        let age = |(name, report): (&ServiceName, &DataReport)| {
            (name.clone(), report.uncommitted_since.map_or(0, |since| now.since(since)))
        };
        self.shared.reports.borrow().iter().map(age).collect()
    }

    /// What other things share with the volumes.
    pub(crate) fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Something in the store was forgotten whose room is to be freed.
    pub(crate) fn freed(&self) {
        self.shared.garbage.store(true, Relaxed);
        self.shared.history.notify_one();
    }

    pub fn figures(&self) -> Figures {
        let counters = &self.shared.counters;
        Figures {
            captures: counters.captures.load(Relaxed),
            captured_bytes: counters.captured_bytes.load(Relaxed),
            held_micros: counters.held_micros.load(Relaxed),
            fetches: counters.fetches.load(Relaxed),
            fetched_bytes: counters.fetched_bytes.load(Relaxed),
            scrubbed: counters.scrubbed.load(Relaxed),
            compared: counters.compared.load(Relaxed),
            damaged: counters.damaged.load(Relaxed),
            repaired: counters.repaired.load(Relaxed),
        }
    }

    /// Ends what is under way; no instance is held when this returns.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(STOP_PATIENCE, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("work on volumes was still under way when the node stopped");
        }
        let store = self.shared.store.clone();
        let closed = blocking(move || {
            store.close();
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "the store of the volumes was not closed");
        }
    }
}

/// A writer for each placement that writes here.
async fn supervise(shared: Arc<Shared>, engine: Engine) {
    let mut states = shared.parts.state.clone();
    let mut running: BTreeMap<u64, ServiceName> = BTreeMap::new();
    let mut writers = JoinSet::new();
    loop {
        let state = states.borrow_and_update().clone();
        for service in state.services.values() {
            for placement in service.placed_on(&shared.parts.node).filter(|placement| placement.exclusive) {
                if running.contains_key(&placement.epoch) {
                    continue;
                }
                let (epoch, name) = (placement.epoch, service.name.clone());
                running.insert(epoch, name.clone());
                let writer = tokio::spawn(writer::run(Arc::clone(&shared), engine.clone(), name, epoch));
                writers.spawn(async move {
                    if !matches!(writer.await, Ok(true)) {
                        tracing::error!(epoch, "what is written under an epoch is not looked after; trying again");
                        sleep(WRITER_AGAIN).await;
                    }
                    epoch
                });
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            Some(ended) = writers.join_next() => match ended {
                Ok(epoch) => drop(running.remove(&epoch)),
                Err(panic) => tracing::error!(%panic, "a watch over a writer of volumes panicked"),
            },
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

impl Shared {
    fn writers(&self) -> MutexGuard<'_, BTreeMap<u64, Words>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn kept(
        self: &Arc<Self>,
        service: &ServiceName,
        name: GenerationName,
    ) -> Result<Option<(Shown, UnixMillis)>, Error> {
        let (shared, service) = (Arc::clone(self), service.clone());
        blocking(move || shared.directories.kept(&service, name)).await
    }
}

fn name_of(generation: &store::Generation) -> GenerationName {
    GenerationName { epoch: generation.epoch, sequence: generation.sequence }
}

/// Work on files, which may take as long as a disk does.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Panicked))
}
