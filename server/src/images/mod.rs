//! Images beyond one engine: each lies in the store of objects of every machine that runs its service or may start it, and travels from
//! store to store; an engine takes it from there. No registry is asked for what some machine has. The decisions are `flotilla_core`'s;
//! ADR 17 has the whole.

pub(crate) mod archive;
mod blobs;
mod error;
mod keep;
mod lately;
mod push;
mod record;
mod travel;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, UnixMillis, rest::ImageStep};
use flotilla_core::{
    State,
    report::{STORED_IMAGES_TOLD, StoredImage, StoredImages},
};
use flotilla_data::{
    Hash, Session, Store,
    store::{Generation, News},
};
use futures::future::BoxFuture;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bridge::{Incoming, Outgoing},
    clock,
    engine::{Engine, ImageArchive, ImageParts, ImageStore, Moves, Need, Progress, uploads},
    peers::{Method, Network},
    volumes::{Haste, Volumes},
};
use archive::Image;
pub use archive::{Digest, Error as ArchiveError};
pub use error::Error;
pub use keep::{Collected, refuse_used};
use lately::Lately;
use record::Record;

/// What is left free, so that the state log and the containers can go on. Bytes.
const DISK_RESERVE: u64 = uploads::DISK_RESERVE_DEFAULT;

/// Pieces of an archive that wait, and bytes of each.
const PIECES: usize = 8;
const PIECE: usize = 256 * 1024;

/// The engine at the other end of an archive is gone when nothing has moved for so long.
const STALL: Duration = Duration::from_secs(120);

/// What images need of the rest of their node.
#[derive(Clone)]
pub struct Parts {
    pub node: NodeId,
    pub data_dir: PathBuf,
    pub state: watch::Receiver<Arc<State>>,
    pub network: Network,
    /// Whose store they share.
    pub volumes: Volumes,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("node", &self.node).field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// A handle. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeId,
    data_dir: PathBuf,
    state: watch::Receiver<Arc<State>>,
    network: Network,
    volumes: Volumes,
    store: Store,
    /// What is in the store.
    stock: Mutex<BTreeMap<Digest, Stored>>,
    record: Record,
    moves: Moves,
    /// Images that could not be taken in from the engine, and when that was.
    refused: Lately,
    /// Images that another machine could not fetch from this one, and when they were looked at for that.
    doubted: Lately,
    /// Parts of images that were found to be damaged: no image counts on what the store has of them before it was laid down once more.
    suspect: Mutex<BTreeSet<Digest>>,
    /// Layers that other machines say they have, and that could not be brought here; and when that was.
    unfetched: Lately,
    /// One at a time works on an image.
    turns: Mutex<BTreeMap<Digest, Arc<Turn>>>,
    /// The store has another image, or the engine.
    changed: Notify,
    reports: watch::Sender<StoredImages>,
    counters: Counters,
    stop: CancellationToken,
}

/// Of those who work on one image.
struct Turn {
    lock: AsyncMutex<()>,
    /// Of all of them: who waits for the lock waits for what is done under it.
    haste: Haste,
}

/// An image that the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    root: Hash,
    /// When it came.
    pub at: UnixMillis,
    /// Of its layers, unpacked.
    pub bytes: u64,
    /// From the bottom up.
    pub layers: Vec<(Digest, u64)>,
}

/// Since the node started.
#[derive(Debug, Default)]
struct Counters {
    fetches: AtomicU64,
    fetched_bytes: AtomicU64,
    pushed_layers: AtomicU64,
    pushed_bytes: AtomicU64,
    stored: AtomicU64,
    loads: AtomicU64,
    removed: AtomicU64,
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// In the store.
    pub held: u64,
    /// Bytes of their layers, unpacked, each layer once.
    pub held_bytes: u64,
    /// Images that came from other machines.
    pub fetches: u64,
    /// Bytes that came for them.
    pub fetched_bytes: u64,
    /// Layers that were pushed here.
    pub pushed_layers: u64,
    pub pushed_bytes: u64,
    /// Images that were taken in from the engine.
    pub stored: u64,
    /// Images that the engine took from the store.
    pub loads: u64,
    /// Images that nobody needed any more.
    pub removed: u64,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images").field("data_dir", &self.shared.data_dir).finish_non_exhaustive()
    }
}

impl Images {
    /// # Errors
    /// The store, or the record of what was brought here, can't be read.
    pub fn open(parts: Parts) -> Result<Self, Error> {
        let Parts { node, data_dir, state, network, volumes } = parts;
        let store = volumes.store().clone();
        // Whoever fetched them has not come to look at them.
        for left in store.volumes(FETCHES)? {
            store.forget_volume(&left)?;
        }
        let shared = Shared {
            stock: Mutex::new(stock(&store)?),
            record: Record::open(&data_dir)?,
            store,
            node,
            data_dir,
            state,
            network,
            volumes,
            moves: Moves::default(),
            refused: Lately::default(),
            doubted: Lately::default(),
            suspect: Mutex::default(),
            unfetched: Lately::default(),
            turns: Mutex::default(),
            changed: Notify::new(),
            reports: watch::Sender::default(),
            counters: Counters::default(),
            stop: CancellationToken::new(),
        };
        shared.tell();
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn run(&self, engine: &Engine) -> Vec<(&'static str, JoinHandle<()>)> {
        vec![
            ("the store of images", tokio::spawn(keep::run(Arc::clone(&self.shared), engine.clone()))),
            ("the reports on images", tokio::spawn(report(Arc::clone(&self.shared)))),
        ]
    }

    /// Answers another machine.
    ///
    /// # Errors
    /// What it said makes no sense here.
    pub async fn answer(&self, engine: &Engine, method: Method, body: &[u8]) -> Result<Bytes, ApiError> {
        match method {
            Method::Image => travel::answer(&self.shared, engine, body).await,
            Method::Layers => travel::answer_layers(&self.shared, body).await,
            other => Err(ApiError::new(ErrorCode::NotFound, format!("{other:?} is nothing that images know"))),
        }
    }

    /// What the store has.
    pub fn stored(&self) -> BTreeMap<Digest, Stored> {
        self.shared.stock().clone()
    }

    pub fn watch_reports(&self) -> watch::Receiver<StoredImages> {
        self.shared.reports.subscribe()
    }

    pub fn figures(&self) -> Figures {
        let counters = &self.shared.counters;
        let stock = self.shared.stock();
        let layers: BTreeMap<&Digest, u64> =
            stock.values().flat_map(|stored| stored.layers.iter().map(|(digest, len)| (digest, *len))).collect();
        Figures {
            held: stock.len() as u64,
            held_bytes: layers.values().sum(),
            fetches: counters.fetches.load(Relaxed),
            fetched_bytes: counters.fetched_bytes.load(Relaxed),
            pushed_layers: counters.pushed_layers.load(Relaxed),
            pushed_bytes: counters.pushed_bytes.load(Relaxed),
            stored: counters.stored.load(Relaxed),
            loads: counters.loads.load(Relaxed),
            removed: counters.removed.load(Relaxed),
        }
    }

    /// Takes an image in from the engine, unless the store has it.
    ///
    /// # Errors
    /// The engine does not have it, or it can't be kept.
    pub async fn store(&self, engine: &Engine, id: &str) -> Result<(), Error> {
        self.shared.take_in(engine, &id.parse()?).await
    }

    pub fn stop(&self) {
        self.shared.stop.cancel();
    }
}

/// Of the machines that can be reached, those that are believed on images: members that do more than store. One that the state does
/// not know yet may be of either kind.
pub(crate) fn believed(state: &State, connected: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    connected.iter().filter(|machine| state.is_full_member(machine)).cloned().collect()
}

/// Under which an image is in the store.
fn key(id: &Digest) -> String {
    format!("{IMAGES}{id}")
}

/// Under which a layer is that belongs to no image yet.
fn layer_key(digest: &Digest) -> String {
    format!("{LAYERS}{digest}")
}

/// Under which comes here what is not known yet to be what it should be.
fn fetch_key(digest: &Digest) -> String {
    format!("{FETCHES}{digest}")
}

/// No service's name begins with a colon.
const IMAGES: &str = ":image/";
const LAYERS: &str = ":layer/";
const FETCHES: &str = ":fetch/";

/// What is in the store, by its key without the prefix.
fn kept(store: &Store, prefix: &str) -> Result<Vec<(Digest, Generation)>, Error> {
    let mut kept = Vec::new();
    for key in store.volumes(prefix)? {
        if let Some(digest) = key.strip_prefix(prefix).and_then(|hex| hex.parse().ok())
            && let Some(generation) = store.generations(&key)?.pop()
        {
            kept.push((digest, generation));
        }
    }
    Ok(kept)
}

fn stock(store: &Store) -> Result<BTreeMap<Digest, Stored>, Error> {
    let mut stock = BTreeMap::new();
    for (id, generation) in kept(store, IMAGES)? {
        match Image::read(store, &generation.root) {
            Ok(image) => drop(stock.insert(id, Stored::of(&image, &generation))),
            // What is damaged is fetched anew where somebody needs it. What a newer version wrote stays.
            Err(source) => {
                let is_none = matches!(source, ArchiveError::Format(_));
                let error = Error::Archive { image: id.id(), source };
                tracing::warn!(image = %id, %error, "a stored image can't be read");
                if is_none || error.is_damage() {
                    store.forget_volume(&key(&id))?;
                }
            }
        }
    }
    Ok(stock)
}

impl Stored {
    fn of(image: &Image, generation: &Generation) -> Self {
        let len = |digest: &Digest| image.blobs.get(digest).map_or(0, |file| file.len);
        Self {
            root: generation.root,
            at: UnixMillis(generation.taken_at),
            bytes: image.size(),
            layers: image.description.layers.iter().map(|digest| (digest.clone(), len(digest))).collect(),
        }
    }
}

impl Shared {
    fn stock(&self) -> MutexGuard<'_, BTreeMap<Digest, Stored>> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, id: &Digest) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        let turn = turns.entry(id.clone());
        Arc::clone(turn.or_insert_with(|| Arc::new(Turn { lock: AsyncMutex::default(), haste: Haste::in_advance() })))
    }

    fn root(&self, id: &Digest) -> Option<Hash> {
        self.stock().get(id).map(|stored| stored.root)
    }

    /// An image that is here.
    fn image(&self, id: &Digest) -> Result<Image, Error> {
        let root = self.root(id).ok_or_else(|| Error::NotHere(id.id()))?;
        Image::read(&self.store, &root).map_err(|source| Error::Archive { image: id.id(), source })
    }

    /// From now on the store has it. What is in the session becomes known with it.
    fn add(&self, id: &Digest, image: &Image, session: &mut Session) -> Result<(), Error> {
        let failed = |source| Error::Archive { image: id.id(), source };
        let root = image.write(session).map_err(failed)?;
        let generation = Generation { epoch: 0, sequence: 0, taken_at: clock::now().0, root };
        session.commit(&News { generation: Some((key(id), generation)), sight: None })?;
        self.added(id, image, &generation);
        Ok(())
    }

    fn added(&self, id: &Digest, image: &Image, generation: &Generation) {
        self.cleared(image.blobs.keys());
        let stored = Stored::of(image, generation);
        self.stock().insert(id.clone(), stored);
        self.tell();
        self.changed.notify_one();
    }

    fn forget(&self, id: &Digest) -> Result<(), Error> {
        self.store.forget_volume(&key(id))?;
        self.stock().remove(id);
        self.volumes.freed();
        self.tell();
        Ok(())
    }

    /// For the report of this machine.
    fn tell(&self) {
        let stock = self.stock();
        let mut newest: Vec<(&Digest, &Stored)> = stock.iter().collect();
        newest.sort_by_key(|(_, stored)| std::cmp::Reverse(stored.at));
        let held = newest.into_iter().take(STORED_IMAGES_TOLD).map(|(id, stored)| StoredImage {
            id: id.id(),
            names: self.record.names(&id.id()),
            bytes: stored.bytes,
        });
        let held = held.collect();
        drop(stock);
        let moving = self.moves.watch().borrow().values().cloned().collect();
        let told = StoredImages { held, moving };
        self.reports.send_if_modified(|known| std::mem::replace(known, told.clone()) != told);
    }

    /// There is room for so many bytes besides.
    fn check_room(&self, image: &str, bytes: u64) -> Result<(), Error> {
        let free = free(&self.data_dir)?;
        let needed = bytes.saturating_add(DISK_RESERVE);
        if free < needed { Err(Error::DiskFull { image: image.to_owned(), needed, free }) } else { Ok(()) }
    }

    async fn take_in(self: &Arc<Self>, engine: &Engine, id: &Digest) -> Result<(), Error> {
        let turn = self.turn(id);
        let _turn = turn.lock.lock().await;
        self.take_in_by_turn(engine, id).await
    }

    /// The same for one who has the image's turn.
    async fn take_in_by_turn(self: &Arc<Self>, engine: &Engine, id: &Digest) -> Result<(), Error> {
        if self.root(id).is_some() {
            return Ok(());
        }
        let taken = self.take_from(engine, id).await;
        match &taken {
            Ok(()) => self.refused.remove(id),
            Err(_) => drop(self.refused.add(id)),
        }
        taken
    }

    async fn take_from(self: &Arc<Self>, engine: &Engine, id: &Digest) -> Result<(), Error> {
        let name = self.record.names(&id.id()).into_iter().next().unwrap_or_else(|| id.id());
        let size = engine.image_size(&id.id()).await?.ok_or_else(|| Error::NotInEngine(name.clone()))?;
        // Before the engine begins: it may write all of it to the same disk first.
        self.check_room(&name, size)?;
        let saved = engine.save_image(&id.id()).await?;
        let moving = self.moves.begin(&id.id(), &name, ImageStep::Storing, size);
        let (shared, id) = (Arc::clone(self), id.clone());
        let bytes = Incoming::of(saved, STALL);
        blocking(move || {
            let began = std::time::Instant::now();
            let bytes = Counted { bytes, read: 0, told: |read| moving.reached(read, size.max(read)) };
            let known = shared.blobs()?;
            let mut session = shared.session();
            let image = archive::read(bytes, &id, &known, &mut session)
                .map_err(|source| Error::Archive { image: name.clone(), source })?;
            shared.add(&id, &image, &mut session)?;
            shared.counters.stored.fetch_add(1, Relaxed);
            tracing::info!(image = %id, name, bytes = image.size(), took = ?began.elapsed(), "an image is in the store");
            Ok(())
        })
        .await
    }
}

/// Bytes that are free for us on the disk of a directory.
fn free(directory: &Path) -> Result<u64, Error> {
    let looked = rustix::fs::statvfs(directory);
    let stat = looked.map_err(|errno| Error::File {
        operation: "look at",
        path: directory.to_owned(),
        source: errno.into(),
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Tells the others what is on its way, too.
async fn report(shared: Arc<Shared>) {
    let mut moves = shared.moves.watch();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            changed = moves.changed() => if changed.is_err() { return },
        }
        moves.borrow_and_update();
        shared.tell();
    }
}

impl ImageStore for Images {
    fn bring<'a>(
        &'a self,
        id: &'a str,
        name: &'a str,
        need: Need,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<bool, ApiError>> {
        Box::pin(async move {
            let id = id.parse().map_err(Error::from)?;
            Ok(travel::bring(&self.shared, &id, name, need, progress).await?)
        })
    }

    fn ids(&self) -> Vec<String> {
        self.shared.stock().keys().map(Digest::id).collect()
    }

    fn parts<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<ImageParts, ApiError>> {
        Box::pin(async move {
            let (shared, id) = (Arc::clone(&self.shared), id.parse::<Digest>().map_err(Error::from)?);
            let found = blocking(move || {
                let read = |source| Error::Archive { image: id.id(), source };
                let parts = shared.image(&id).and_then(|image| {
                    let diff_ids = image.diff_ids(&shared.store).map_err(read)?;
                    Ok(ImageParts { config: image.description.config.id(), diff_ids })
                });
                parts.map_err(|error| shared.noticed(&id, error))
            });
            Ok(found.await?)
        })
    }

    fn archive<'a>(
        &'a self,
        id: &'a str,
        names: &'a [String],
        left_out: usize,
    ) -> BoxFuture<'a, Result<ImageArchive, ApiError>> {
        Box::pin(async move {
            let id = id.parse::<Digest>().map_err(Error::from)?;
            Ok(self.shared.archive(id, names.to_vec(), left_out).await?)
        })
    }

    fn brought<'a>(&'a self, id: &'a str, names: &'a [String]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.shared.counters.loads.fetch_add(1, Relaxed);
            let noted = self.shared.note(id, names, Record::brought).await;
            if let Err(error) = noted {
                // It stays for ever then, which is the lesser evil.
                tracing::warn!(image = id, %error, "it was not noted that an image was brought here");
            }
            self.shared.changed.notify_one();
        })
    }

    fn found<'a>(&'a self, id: &'a str, names: &'a [String]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let noted = self.shared.note(id, names, Record::found).await;
            if let Err(error) = noted {
                tracing::warn!(image = id, %error, "it was not noted that an image was brought once more");
            }
        })
    }

    fn moves(&self) -> &Moves {
        &self.shared.moves
    }
}

impl Shared {
    /// Writes something down of an image, and tells the others.
    async fn note(
        self: &Arc<Self>,
        id: &str,
        names: &[String],
        what: fn(&Record, &str, &[String], UnixMillis) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (shared, id, names) = (Arc::clone(self), id.to_owned(), names.to_vec());
        let noted = blocking(move || what(&shared.record, &id, &names, clock::now())).await;
        self.tell();
        noted
    }

    async fn archive(self: &Arc<Self>, id: Digest, names: Vec<String>, left_out: usize) -> Result<ImageArchive, Error> {
        let shared = Arc::clone(self);
        let wanted = id.clone();
        let image = blocking(move || shared.image(&wanted).map_err(|error| shared.noticed(&wanted, error))).await?;
        let len = image.size();
        let failed = Arc::<Mutex<Option<ApiError>>>::default();
        let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let (shared, noted) = (Arc::clone(self), Arc::clone(&failed));
        tokio::task::spawn_blocking(move || {
            let pieces = Outgoing(sender.clone());
            let to = io::BufWriter::with_capacity(PIECE, pieces);
            if let Err(source) = archive::write(&shared.store, &image, &names, left_out, to) {
                let error = shared.noticed(&id, Error::Archive { image: id.id(), source });
                let why = error.to_string();
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.into());
                // Whoever reads it takes no part of it for the whole.
                let _ = sender.blocking_send(Err(io::Error::other(why)));
            }
        });
        let bytes = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        Ok(ImageArchive { bytes: Box::pin(bytes), len, failed })
    }
}

/// Tells how much was read.
struct Counted<R, F> {
    bytes: R,
    read: u64,
    told: F,
}

impl<R: io::Read, F: Fn(u64)> io::Read for Counted<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.bytes.read(buffer)?;
        self.read += len as u64;
        (self.told)(self.read);
        Ok(len)
    }
}

/// Work on files, which may take as long as a disk does.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Panicked))
}
