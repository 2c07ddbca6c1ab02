//! Which images are in the store and in the engine: what this machine shall have is taken in, and what nobody needs goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use flotilla_api::{UnixMillis, rest::CollectedImage};
use flotilla_core::{State, images};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Digest, Error, Images, Shared, Stored, blocking, free, lately::AGAIN, layer_key, travel};
use crate::{clock, engine::Engine};

/// Somebody may have pulled or removed an image by hand.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// An image that came a moment ago is about to be started: it is taken in after that. Another machine that needs it sooner asks.
const SETTLED: Duration = Duration::from_secs(30);

/// What nobody needs is looked for so often. It is in no hurry.
const COLLECT_EVERY: Duration = Duration::from_secs(600);

/// Layers of a push that was never finished. Milliseconds.
const LAYERS_KEPT_MS: u64 = 24 * 3_600_000;

/// A disk with less free space than this part of it is nearly full.
const NEARLY_FULL: u64 = 10;

/// What a collection removed, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: Vec<CollectedImage>,
    /// Of layers, unpacked, that no other image of the store has. Their room is given back within minutes.
    pub freed_bytes: u64,
}

pub(super) async fn run(shared: Arc<Shared>, engine: Engine) {
    let mut states = shared.state.clone();
    let mut held = engine.held_images();
    // Not before this time.
    let mut next: BTreeMap<Digest, Instant> = BTreeMap::new();
    let mut collected = Instant::now();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let state = states.borrow_and_update().clone();
        let in_engine = held.borrow_and_update().clone();
        let missing = missing(&shared, &state, &in_engine);
        next.retain(|id, _| missing.contains(id));
        let due = missing
            .into_iter()
            .find(|id| *next.entry(id.clone()).or_insert_with(|| Instant::now() + SETTLED) <= Instant::now());
        if let Some(id) = due {
            let taken = tokio::select! {
                () = shared.stop.cancelled() => return,
                taken = shared.take_in(&engine, &id) => taken,
            };
            if let Err(error) = taken {
                tracing::warn!(image = %id, %error, "an image is not in the store, and no other machine can get it here");
                next.insert(id, Instant::now() + AGAIN);
            }
            continue;
        }
        if let Err(error) = note_needed(&shared, &state).await {
            tracing::warn!(%error, "it was not noted which images are needed");
        }
        if collected.elapsed() >= COLLECT_EVERY {
            collected = Instant::now();
            match collect(&shared, &engine, Why::ByItself).await {
                Ok(Collected { images, .. }) if images.is_empty() => {}
                Ok(Collected { images, .. }) => {
                    tracing::info!(images = images.len(), "images that nobody needs were removed");
                }
                Err(error) => tracing::warn!(%error, "images that nobody needs could not be removed"),
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            changed = held.changed() => if changed.is_err() { return },
            () = shared.changed.notified() => {}
            _ = tick.tick() => {}
        }
    }
}

/// Images that this machine shall have, and that only its engine has.
fn missing(shared: &Shared, state: &State, in_engine: &BTreeSet<String>) -> BTreeSet<Digest> {
    // A machine that is alone would keep it for nobody.
    if state.machines.len() < 2 {
        return BTreeSet::new();
    }
    let stock = shared.stock();
    images::wanted(state, &shared.node)
        .into_keys()
        .filter(|key| in_engine.contains(*key))
        .filter_map(|key| key.starts_with("sha256:").then(|| key.parse().ok())?)
        .filter(|id| !stock.contains_key(id))
        .collect()
}

async fn note_needed(shared: &Arc<Shared>, state: &Arc<State>) -> Result<(), Error> {
    let (shared, state) = (Arc::clone(shared), Arc::clone(state));
    blocking(move || {
        let needed: BTreeSet<&str> = state
            .services
            .values()
            .flat_map(|service| service.revisions.values())
            .filter_map(|record| record.spec.image_id.as_deref())
            .collect();
        let stored: BTreeSet<String> = shared.stock().keys().map(Digest::id).collect();
        shared.record.needed(&needed, |id| stored.contains(id), clock::now())
    })
    .await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// What nobody has needed for a while goes.
    ByItself,
    /// Whatever nobody needs goes, or only would.
    Asked { dry_run: bool },
}

/// Is an image named by a revision that could run?
fn is_used(state: &State, id: &str, names: &BTreeSet<String>) -> bool {
    !images::uses(state, |key| key == id || names.contains(key)).is_empty()
}

async fn collect(shared: &Arc<Shared>, engine: &Engine, why: Why) -> Result<Collected, Error> {
    let collection = Collection { shared, engine, why, is_full: is_nearly_full(shared)? };
    let before = shared.stock().clone();
    let ids: BTreeSet<String> = shared.record.all().into_keys().chain(before.keys().map(Digest::id)).collect();
    let mut gone: BTreeMap<String, CollectedImage> = BTreeMap::new();
    for id in ids {
        if let Some(image) = collection.collect(&id).await? {
            gone.insert(id, image);
        }
    }
    if why != (Why::Asked { dry_run: true }) {
        forget_left_over(shared).await?;
    }
    let stays: BTreeSet<Digest> = layers(&before, |id| !gone.get(&id.id()).is_some_and(|image| image.store));
    let went = before.iter().filter(|(id, _)| gone.get(&id.id()).is_some_and(|image| image.store));
    let unshared: BTreeMap<&Digest, u64> = went
        .flat_map(|(_, stored)| stored.layers.iter().map(|(digest, len)| (digest, *len)))
        .filter(|(digest, _)| !stays.contains(*digest))
        .collect();
    let freed_bytes = unshared.values().sum();
    Ok(Collected { images: gone.into_values().collect(), freed_bytes })
}

/// What belongs to no image, and nobody waits for.
async fn forget_left_over(shared: &Arc<Shared>) -> Result<(), Error> {
    let shared = Arc::clone(shared);
    blocking(move || {
        travel::forget_abandoned(&shared)?;
        for digest in travel::stale_layers(&shared, clock::now().0.saturating_sub(LAYERS_KEPT_MS))? {
            shared.store.forget_volume(&layer_key(&digest))?;
            shared.volumes.freed();
        }
        Ok(())
    })
    .await
}

/// What a collection goes by.
struct Collection<'a> {
    shared: &'a Arc<Shared>,
    engine: &'a Engine,
    why: Why,
    is_full: bool,
}

impl Collection<'_> {
    /// Removes an image that nobody needs, or says that it would; `None` where it stays.
    async fn collect(&self, id: &str) -> Result<Option<CollectedImage>, Error> {
        let shared = self.shared;
        let digest: Option<Digest> = id.parse().ok();
        let turn = digest.as_ref().map(|digest| shared.turn(digest));
        let turn = turn.as_ref().map(|turn| turn.lock.try_lock()).transpose();
        // Somebody brings it here, or puts it together: it is needed.
        let Ok(_turn) = turn else { return Ok(None) };
        let brought = shared.record.of(id);
        let names = brought.as_ref().map(|brought| brought.names.clone()).unwrap_or_default();
        let references = names.iter().cloned().collect();
        let mut image = CollectedImage { id: id.to_owned(), references, engine: false, store: false };
        let mut goes = false;
        if let Some(brought) = brought
            && self.goes(id, &names, brought.at)
            && let Some(engine) = self.leave_engine(id, &names).await?
        {
            (goes, image.engine) = (true, engine);
        }
        // Whatever the engine took its time for: a deployment may have named it meanwhile.
        let came = digest.as_ref().and_then(|digest| shared.stock().get(digest).map(|stored| stored.at));
        if let (Some(digest), Some(came)) = (digest, came)
            && self.goes(id, &names, came)
        {
            if !self.is_dry() {
                forget(shared, &digest).await?;
                shared.counters.removed.fetch_add(1, Relaxed);
            }
            (goes, image.store) = (true, true);
        }
        Ok(goes.then_some(image))
    }

    fn is_dry(&self) -> bool {
        self.why == Why::Asked { dry_run: true }
    }

    /// May it go, by the state of this moment?
    fn goes(&self, id: &str, names: &BTreeSet<String>, came: UnixMillis) -> bool {
        let since = self.shared.record.unneeded_since(id, came);
        let is_old = self.why != Why::ByItself || images::is_disposable(since, clock::now(), self.is_full);
        is_old && !is_used(&self.shared.state.borrow(), id, names) && self.shared.moves.of(id).is_none()
    }

    /// Takes the names from it that this node gave, and the image where it has no other. True if that is gone; `None` where a container of
    /// somebody else's, or of ours that is about to go, needs it.
    async fn leave_engine(&self, id: &str, names: &BTreeSet<String>) -> Result<Option<bool>, Error> {
        if self.is_dry() {
            return Ok(Some(true));
        }
        match self.engine.forget_image(id, names).await {
            Ok(engine_too) => {
                forget_record(self.shared, id).await?;
                Ok(Some(engine_too))
            }
            Err(error) => {
                tracing::debug!(image = id, %error, "an image could not be removed from the engine");
                Ok(None)
            }
        }
    }
}

/// Forgets what the store has of an image: whoever calls this has its turn.
async fn forget(shared: &Arc<Shared>, id: &Digest) -> Result<(), Error> {
    let (shared, id) = (Arc::clone(shared), id.clone());
    blocking(move || shared.forget(&id)).await
}

/// Layers of the images that are meant.
fn layers(stock: &BTreeMap<Digest, Stored>, is_meant: impl Fn(&Digest) -> bool) -> BTreeSet<Digest> {
    let meant = stock.iter().filter(|(id, _)| is_meant(id));
    meant.flat_map(|(_, stored)| stored.layers.iter().map(|(digest, _)| digest.clone())).collect()
}

fn is_nearly_full(shared: &Shared) -> Result<bool, Error> {
    let looked = rustix::fs::statvfs(&shared.data_dir).map_err(|errno| Error::File {
        operation: "look at",
        path: shared.data_dir.clone(),
        source: errno.into(),
    })?;
    let all = looked.f_blocks.saturating_mul(looked.f_frsize);
    Ok(free(&shared.data_dir)? < (all / NEARLY_FULL).max(2 * super::DISK_RESERVE))
}

async fn forget_record(shared: &Arc<Shared>, id: &str) -> Result<(), Error> {
    let (shared, id) = (Arc::clone(shared), id.to_owned());
    blocking(move || shared.record.forget(&id)).await
}

impl Images {
    /// Removes what no revision of a service names from this machine's store, and from its engine what was brought there for one; or
    /// says what it would remove.
    ///
    /// # Errors
    /// The store can't be read or written. What the engine does not give up stays.
    pub async fn collect(&self, engine: &Engine, dry_run: bool) -> Result<Collected, Error> {
        collect(&self.shared, engine, Why::Asked { dry_run }).await
    }

    /// Removes an image from this machine's store and engine: what a reference means on it, or an id.
    ///
    /// # Errors
    /// A revision of a service names it, or a container needs it.
    pub async fn remove(&self, engine: &Engine, name: &str) -> Result<Collected, Error> {
        let here = engine.images(Some(name)).await?;
        let mut ids: BTreeMap<String, Vec<String>> =
            here.into_iter().map(|image| (image.id, image.references)).collect();
        let by_name = |id: &Digest| id.id() == name || self.shared.record.names(&id.id()).iter().any(|it| it == name);
        for id in self.shared.stock().keys().filter(|id| by_name(id)) {
            ids.entry(id.id()).or_default();
        }
        let mut images = Vec::new();
        for (id, references) in ids {
            images.extend(self.remove_one(engine, name, id, references).await?);
        }
        Ok(Collected { images, freed_bytes: 0 })
    }

    /// Asked in its turn, and by the state of each moment: what a deployment named meanwhile stays.
    async fn remove_one(
        &self,
        engine: &Engine,
        name: &str,
        id: String,
        references: Vec<String>,
    ) -> Result<Option<CollectedImage>, Error> {
        let shared = &self.shared;
        let check = || refuse_used(&shared.state.borrow(), &id, &references);
        check()?;
        let digest: Option<Digest> = id.parse().ok();
        let turn = digest.as_ref().map(|digest| shared.turn(digest));
        let _turn = match &turn {
            Some(turn) => Some(turn.lock.lock().await),
            None => None,
        };
        check()?;
        let had = engine.image_size(&id).await?.is_some();
        // A reference is a name of it, and others may stay.
        if had && name.starts_with("sha256:") {
            for reference in &references {
                engine.remove_image(reference).await?;
            }
            engine.remove_image(&id).await?;
        } else if had {
            engine.remove_image(name).await?;
        }
        let engine_too = had && engine.image_size(&id).await?.is_none();
        let mut store = false;
        if engine_too || !had {
            check()?;
            if let Some(digest) = digest.filter(|digest| shared.root(digest).is_some()) {
                forget(shared, &digest).await?;
                store = true;
            }
            forget_record(shared, &id).await?;
        }
        Ok((had || store).then_some(CollectedImage { id, references, engine: engine_too, store }))
    }
}

/// # Errors
/// [`Error::InUse`] names a service that could not be started, or be rolled back, without it.
pub fn refuse_used(state: &State, id: &str, names: &[String]) -> Result<(), Error> {
    let mut uses = images::uses(state, |key| key == id || names.iter().any(|name| name == key));
    uses.sort_by_key(|it| !it.current);
    let Some(first) = uses.first() else { return Ok(()) };
    let image = names.first().map_or(id, String::as_str);
    let images::Use { service, revision, current } = first;
    Err(Error::InUse(if *current {
        format!("image `{image}` is used by `{service}`; remove the service, or deploy it with another image, first")
    } else {
        format!(
            "image `{image}` is that of revision {revision} of `{service}`, which can be rolled back to; remove the service first, \
             or let it be: it goes when the revision is forgotten"
        )
    }))
}
