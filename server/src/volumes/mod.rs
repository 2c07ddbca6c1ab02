//! Volumes beyond one machine: what an instance writes here is captured, and committed once others have it; what is written elsewhere
//! is fetched; and what an instance begins with is in its directories before it runs. The decisions are `flotilla_core`'s, the files
//! `flotilla_data`'s; ADR 15 has the whole.

mod capture;
mod compare;
mod directories;
mod export;
mod history;
mod hooks;
mod import;
pub(crate) mod layout;
mod record;
mod replica;
mod scrub;
mod storage;
mod watched;
mod wire;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName, UnixMillis, VolumeName, rest::StorageView};
use flotilla_core::{
    State,
    report::{DataReport, DataReports},
    state::GenerationName,
};
use flotilla_data::{Store, fetch, restore, store, tree};
use futures::{Stream, future::BoxFuture, stream};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock,
    engine::{self, Engine, Proposer},
    fence::{self, Fence},
    peers::{self, Method, Network},
};
pub use compare::{Comparison, Difference};
use directories::{Beginning, Directories};
pub use import::Refused;
use record::Shown;
pub(crate) use replica::Lines;
pub use wire::LABEL;
pub(crate) use wire::{answered, ask};
use writer::{Word, Words};

/// After a writer that failed.
const WRITER_AGAIN: Duration = Duration::from_secs(10);

/// Pieces of an archive that wait to be sent, and bytes of each.
const EXPORT_PIECES: usize = 8;
const EXPORT_PIECE: usize = 64 * 1024;

/// How long a clean stop waits for captures under way: an instance may be held.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Why the data of a service is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {operation} `{}`: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error("a volume could not be read: {0}")]
    Capture(#[from] flotilla_data::capture::Error),
    #[error("a volume could not be brought to another generation: {0}")]
    Restore(#[from] restore::Error),
    #[error("its instance could not be held still: {0}")]
    Fence(#[from] fence::Error),
    #[error("generation {name} of `{service}`, with which it shall begin, is not on this machine")]
    NotHere { service: ServiceName, name: GenerationName },
    #[error("the volumes of `{service}` are not there yet")]
    NoDirectory { service: ServiceName },
    #[error(
        "`{file}` of `{service}` was changed while its instance stood still; something outside of its container writes it"
    )]
    Torn { service: ServiceName, file: String },
    #[error("the volumes of `{service}` were deleted meanwhile")]
    Deleted { service: ServiceName },
    #[error("no machine that has it sends it: {why}")]
    NoSource { why: String },
    #[error("the node failed inside; look at its log")]
    Panicked,
    #[error("the node stops")]
    Stopped,
}

impl Error {
    fn file(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { operation, path: path.to_owned(), source }
    }

    fn is_full(&self) -> bool {
        match self {
            Self::File { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Store(error) | Self::Tree(tree::Error::Store(error)) => error.is_full(),
            _ => false,
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match &error {
            _ if error.is_full() => ErrorCode::DiskFull,
            Error::Stopped | Error::NoSource { .. } | Error::NotHere { .. } | Error::NoDirectory { .. } => {
                ErrorCode::ServiceUnavailable
            }
            _ => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

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
    reports: watch::Sender<DataReports>,
    /// What all of it takes up, once it was measured.
    storage: watch::Sender<Option<StorageView>>,
    /// There is a new generation, so that an old one may go.
    history: Notify,
    /// Something was forgotten whose room is to be freed.
    garbage: AtomicBool,
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
    /// Objects that this machine's disk did not give back as they were.
    pub damaged: u64,
    /// Those of them that another machine had.
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
            reports: watch::Sender::default(),
            storage: watch::Sender::default(),
            history: Notify::new(),
            // What an earlier daemon forgot may not be freed yet.
            garbage: AtomicBool::new(true),
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
            ("the copies of volumes", tokio::spawn(replica::tend(Arc::clone(&self.shared), engine.clone()))),
            ("the history of volumes", tokio::spawn(history::keep(Arc::clone(&self.shared)))),
            ("the scrub of volumes", tokio::spawn(scrub::keep(Arc::clone(&self.shared)))),
            ("the measure of volumes", tokio::spawn(storage::measure(Arc::clone(&self.shared)))),
        ]
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
                let wire::Holds { name, .. } = wire::read(body)?;
                let words = self.shared.writers().get(&name.epoch).cloned();
                if let Some(words) = words {
                    let word = Word::Holds { machine: from.clone(), sequence: name.sequence };
                    // Where it is not heard the generation is offered again.
                    drop(words.try_send(word));
                }
                Ok(Bytes::new())
            }
            Method::Recall => {
                let wire::Holds { service, name } = wire::read(body)?;
                let kept = self.shared.kept(&service, name).await?;
                wire::write(&kept.map(|(kept, taken_at)| wire::Offer {
                    service,
                    name,
                    taken_at,
                    volumes: kept.roots,
                    holders: Vec::new(),
                }))
            }
            other => Err(ApiError::new(ErrorCode::NotFound, format!("{other:?} is nothing that volumes know"))),
        }
    }

    /// Serves a stream `objects` that another machine opened.
    pub async fn serve(&self, from: &NodeId, stream: peers::Stream) {
        if let Err(error) = wire::serve(&self.shared.store, stream).await {
            tracing::debug!(%from, %error, "objects were not sent to their end");
        }
    }

    /// How what is written here does, by service.
    pub fn watch_reports(&self) -> watch::Receiver<DataReports> {
        self.shared.reports.subscribe()
    }

    /// What volumes take up on this machine's disk, as it was measured last.
    pub fn watch_storage(&self) -> watch::Receiver<Option<StorageView>> {
        self.shared.storage.subscribe()
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
            let pieces = Pieces { sender: sender.clone() };
            let to = io::BufWriter::with_capacity(EXPORT_PIECE, pieces);
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

/// Hands on what is written, piece by piece.
pub(crate) struct Pieces {
    pub(crate) sender: mpsc::Sender<io::Result<Bytes>>,
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.sender.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

    /// Learns what an earlier daemon knew of a service's directories.
    async fn recall(self: &Arc<Self>, service: &ServiceName) -> Result<(), Error> {
        let _lock = self.directories.lock(service).await;
        let (shared, name) = (Arc::clone(self), service.clone());
        let record = blocking(move || shared.directories.record(&name)).await?;
        if let Some(epoch) = record.and_then(|record| record.written) {
            self.begun.send_if_modified(|begun| begun.insert(service.clone(), epoch) != Some(epoch));
        }
        Ok(())
    }

    /// What is in the directories counts only if an instance wrote it there, or if it is what is committed: a machine that was to go on
    /// with a service and never did has older data.
    async fn beginning(
        self: &Arc<Self>,
        state: &State,
        service: &ServiceName,
        epoch: u64,
        beginning: Beginning,
    ) -> Result<Beginning, Error> {
        let committed = state.services.get(service).and_then(|service| service.data.committed.as_ref());
        let Some(committed) = committed.filter(|_| beginning == Beginning::AsItIs) else { return Ok(beginning) };
        let (shared, name) = (Arc::clone(self), service.clone());
        let record = blocking(move || shared.directories.record(&name)).await?;
        let own = |record: &record::Record| {
            let shows = record.shows.as_ref().map(|shows| shows.name);
            record.written.is_some() || shows.is_some_and(|shows| shows == committed.name || shows.epoch == epoch)
        };
        // Before there were records, whoever had directories had written them.
        Ok(if record.as_ref().is_none_or(own) { beginning } else { Beginning::With(committed.name) })
    }

    /// Is all of a generation here, as far as is known? An earlier one may be on other machines alone, or some of its volumes.
    async fn has_all(
        self: &Arc<Self>,
        state: &State,
        service: &ServiceName,
        name: GenerationName,
    ) -> Result<bool, Error> {
        let Some((kept, _)) = self.kept(service, name).await? else { return Ok(false) };
        let Some(service) = state.services.get(service) else { return Ok(true) };
        let committed = service.data.committed.as_ref().filter(|committed| committed.name == name);
        Ok(match committed {
            Some(committed) => committed.volumes.keys().all(|volume| kept.roots.contains_key(volume)),
            None => service.volumes().iter().all(|volume| kept.roots.contains_key(volume)),
        })
    }

    async fn ready(
        self: &Arc<Self>,
        state: Arc<State>,
        service: &ServiceName,
        epoch: u64,
        beginning: Beginning,
    ) -> Result<(), Error> {
        let beginning = self.beginning(&state, service, epoch, beginning).await?;
        if let Beginning::With(name) = beginning
            && !self.has_all(&state, service, name).await?
            && let Err(error) = replica::recall(self, service, name).await
        {
            if state.services.get(service).is_none_or(|it| !it.spec().may_start_empty()) {
                return Err(error);
            }
            tracing::warn!(%service, generation = %name, %error, "it begins anew, as its data can't be had");
            return Ok(());
        }
        let _lock = self.directories.lock(service).await;
        let (shared, service) = (Arc::clone(self), service.clone());
        blocking(move || {
            shared.directories.begin(&service)?;
            shared.directories.ready(&state, &service, epoch, &beginning, clock::now())
        })
        .await
    }

    async fn begins(self: &Arc<Self>, service: &ServiceName, epoch: u64) -> Result<directories::Lock, Error> {
        let lock = self.directories.lock(service).await;
        let (shared, name) = (Arc::clone(self), service.clone());
        blocking(move || shared.directories.begins(&name, epoch)).await?;
        self.begun.send_if_modified(|begun| begun.insert(service.clone(), epoch) != Some(epoch));
        Ok(lock)
    }
}

impl engine::Data for Volumes {
    fn ready<'a>(&'a self, service: &'a ServiceName, epoch: u64) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(async move {
            let state = self.shared.parts.state.borrow().clone();
            let source = state.placement(epoch).and_then(|(_, placement)| placement.source);
            let beginning = source.map_or(Beginning::AsItIs, Beginning::With);
            self.shared.ready(state, service, epoch, beginning).await.map_err(ApiError::from)
        })
    }

    fn begins<'a>(&'a self, service: &'a ServiceName, epoch: u64) -> BoxFuture<'a, Result<engine::Begun, ApiError>> {
        Box::pin(async move {
            let lock = self.shared.begins(service, epoch).await?;
            Ok(engine::Begun::new(lock))
        })
    }

    fn prepares<'a>(&'a self, service: &'a ServiceName) -> BoxFuture<'a, Result<engine::Begun, ApiError>> {
        Box::pin(async move {
            let lock = self.shared.directories.lock(service).await;
            let (shared, service) = (Arc::clone(&self.shared), service.clone());
            blocking(move || shared.directories.begin(&service)).await?;
            Ok(engine::Begun::new(lock))
        })
    }

    fn deletes<'a>(&'a self, service: &'a ServiceName) -> BoxFuture<'a, Result<engine::Begun, ApiError>> {
        Box::pin(async move {
            let lock = self.shared.directories.lock(service).await;
            self.shared.begun.send_if_modified(|begun| begun.remove(service).is_some());
            let (shared, prefixes) = (Arc::clone(&self.shared), layout::prefixes(service));
            let forget = move || {
                for prefix in prefixes {
                    for volume in shared.store.volumes(&prefix)? {
                        shared.store.forget_volume(&volume)?;
                    }
                }
                shared.garbage.store(true, Relaxed);
                shared.history.notify_one();
                Ok(())
            };
            blocking(forget).await?;
            Ok(engine::Begun::new(lock))
        })
    }
}

fn name_of(generation: &store::Generation) -> GenerationName {
    GenerationName { epoch: generation.epoch, sequence: generation.sequence }
}

/// Work on files, which may take as long as a disk does.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Panicked))
}
