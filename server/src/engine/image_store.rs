//! Images beside the engine: in a store of this machine, which gets them from those of other machines.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use flotilla_api::{ApiError, rest::ImageStep};
use flotilla_core::report::ImageMove;
use futures::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::watch;

/// Told how many bytes there are, and of how many.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Whether a container waits for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Now,
    /// It may be needed one day, and can wait for the limits of the machines that send it.
    InAdvance,
}

/// Where images come from that need no registry.
pub trait ImageStore: Send + Sync + fmt::Debug + 'static {
    /// Brings an image here; false where no machine that can be reached has it. `name` is for people.
    fn bring<'a>(
        &'a self,
        id: &'a str,
        name: &'a str,
        need: Need,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<bool, ApiError>>;

    /// Engine's ids of the images that are here.
    fn ids(&self) -> Vec<String>;

    /// What an image is made of that is here.
    fn parts<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<ImageParts, ApiError>>;

    /// What the engine loads, with these names; without the lowest layers where it has them.
    fn archive<'a>(
        &'a self,
        id: &'a str,
        names: &'a [String],
        left_out: usize,
    ) -> BoxFuture<'a, Result<ImageArchive, ApiError>>;

    /// The engine has an image that it would not have without this node, and these names of it.
    fn brought<'a>(&'a self, id: &'a str, names: &'a [String]) -> BoxFuture<'a, ()>;

    /// Somebody brings an image that the engine has, with these names of it: it counts as new, and is whose it was.
    fn found<'a>(&'a self, id: &'a str, names: &'a [String]) -> BoxFuture<'a, ()>;

    /// What is on its way.
    fn moves(&self) -> &Moves;
}

/// What an image is made of, as the engine calls it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageParts {
    /// Its configuration: an image's id, unless an engine names it by its manifest.
    pub config: String,
    /// Its layers, from the bottom up.
    pub diff_ids: Vec<String>,
}

/// An image as `docker save` writes it.
pub struct ImageArchive {
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
    /// Of all of it, about.
    pub len: u64,
    /// Why it did not come to its end: the engine is told only that it did not.
    pub failed: Arc<Mutex<Option<ApiError>>>,
}

impl fmt::Debug for ImageArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageArchive").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Images on their way to this machine, or within it. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    known: watch::Sender<BTreeMap<u64, ImageMove>>,
    last: Arc<AtomicU64>,
}

/// Ends with its last handle.
#[derive(Debug)]
pub struct Moving {
    moves: Moves,
    number: u64,
}

impl Moves {
    pub fn begin(&self, image: &str, name: &str, step: ImageStep, of: u64) -> Moving {
        let number = self.last.fetch_add(1, Relaxed);
        let moving = ImageMove { image: image.to_owned(), name: name.to_owned(), step, bytes: 0, of };
        self.known.send_modify(|known| drop(known.insert(number, moving)));
        Moving { moves: self.clone(), number }
    }

    pub fn watch(&self) -> watch::Receiver<BTreeMap<u64, ImageMove>> {
        self.known.subscribe()
    }

    /// How far an image is that is on its way.
    pub fn of(&self, image: &str) -> Option<ImageMove> {
        self.known.borrow().values().find(|moving| moving.image == image).cloned()
    }
}

impl Moving {
    /// Others are told when it is a hundredth further.
    pub fn reached(&self, bytes: u64, of: u64) {
        self.moves.known.send_if_modified(|known| {
            let Some(moving) = known.get_mut(&self.number) else { return false };
            let part = |bytes: u64, of: u64| (bytes.saturating_mul(100)).checked_div(of).unwrap_or(bytes >> 20);
            let further = part(bytes, of) != part(moving.bytes, moving.of);
            (moving.bytes, moving.of) = (bytes, of);
            further
        });
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.moves.known.send_modify(|known| drop(known.remove(&self.number)));
    }
}

/// There is none: images come from registries alone.
#[derive(Debug, Default)]
pub struct NoImageStore(Moves);

impl ImageStore for NoImageStore {
    fn bring<'a>(&'a self, _: &'a str, _: &'a str, _: Need, _: Progress<'a>) -> BoxFuture<'a, Result<bool, ApiError>> {
        Box::pin(async { Ok(false) })
    }

    fn ids(&self) -> Vec<String> {
        Vec::new()
    }

    fn parts<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<ImageParts, ApiError>> {
        Box::pin(async { Ok(ImageParts::default()) })
    }

    fn archive<'a>(&'a self, _: &'a str, _: &'a [String], _: usize) -> BoxFuture<'a, Result<ImageArchive, ApiError>> {
        Box::pin(async { Ok(ImageArchive { bytes: Box::pin(stream::empty()), len: 0, failed: Arc::default() }) })
    }

    fn brought<'a>(&'a self, _: &'a str, _: &'a [String]) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    fn found<'a>(&'a self, _: &'a str, _: &'a [String]) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    fn moves(&self) -> &Moves {
        &self.0
    }
}
