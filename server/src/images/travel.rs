//! Images from the stores of other machines.
//!
//! Who wants an image asks all machines that can be reached and may run it. One that has it in its store says which tree it is; one whose engine has
//! it takes it in first, and says how far that is. Then the objects are fetched as those of a volume are: what is here already does not
//! travel, several machines are asked at once, and what came before an interruption is not asked for again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, rest::ImageStep};
use flotilla_data::{
    Hash, Session,
    fetch::{Fetch, Figures},
    store::{self, Generation, News},
    tree,
};
use futures::future::join_all;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Error, Shared, archive,
    archive::{Digest, Image, LAYERS_MAX},
    believed, blocking, fetch_key, kept, key, layer_key,
};
use crate::{
    clock,
    engine::{Engine, Need, Progress},
    peers::Method,
    volumes::{self, Haste, Lines},
};

/// How long a machine may take to say whether it has an image: it asks its engine.
const ASKING: Duration = Duration::from_secs(5);

/// How often one that is taking it in is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// One that gets no further for so long is not waited for any more.
const STANDSTILL: Duration = Duration::from_secs(90);

/// Damaged objects of one image that are fetched anew. Where there are more the disk is broken.
const MENDED_MAX: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    image: Digest,
    /// It could not be fetched from the machine that is asked, which should look at what it has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    doubted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
enum Answer {
    Absent,
    /// It will be there: so many bytes of so many are.
    Coming {
        bytes: u64,
        of: u64,
    },
    Here {
        /// Name of its tree.
        root: String,
        /// Of its layers, unpacked.
        bytes: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct AskLayers {
    layers: Vec<Digest>,
    /// Those that are there shall stay for a while, under roots of their own.
    lend: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct LayersThere {
    /// Their roots, where they were to be lent.
    layers: BTreeMap<Digest, Option<String>>,
    /// How long each is.
    #[serde(default)]
    bytes: BTreeMap<Digest, u64>,
}

fn write<T: Serialize>(message: &T) -> Result<Bytes, ApiError> {
    let written = serde_json::to_vec(message).map(Bytes::from);
    written.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a message can't be written: {error}")))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let why = format!("a message on images can't be read ({error}); run the same version on both machines");
        ApiError::new(ErrorCode::InvalidRequest, why)
    })
}

/// Says whether an image is here; one that only the engine has is taken in.
pub(super) async fn answer(shared: &Arc<Shared>, engine: &Engine, body: &[u8]) -> Result<Bytes, ApiError> {
    let Ask { image, doubted } = read(body)?;
    if doubted {
        look_at(shared, &image);
    }
    let here = shared.stock().get(&image).map(|it| Answer::Here { root: it.root.to_string(), bytes: it.bytes });
    if let Some(here) = here {
        return write(&here);
    }
    if let Some(moving) = shared.moves.of(&image.id()) {
        return write(&Answer::Coming { bytes: moving.bytes, of: moving.of });
    }
    // Nothing comes of waiting for it; the others may find it elsewhere.
    if shared.refused.has(&image) {
        return write(&Answer::Absent);
    }
    // An engine that does not answer does not have it, as far as anybody else is concerned.
    let Ok(Some(size)) = engine.image_size(&image.id()).await else { return write(&Answer::Absent) };
    let (shared, engine) = (Arc::clone(shared), engine.clone());
    tokio::spawn(async move {
        // Whoever asks asks again, and one is enough to do it.
        let turn = shared.turn(&image);
        let Ok(_turn) = turn.lock.try_lock() else { return };
        if let Err(error) = shared.take_in_by_turn(&engine, &image).await {
            tracing::warn!(%image, %error, "an image that another machine asks for could not be stored");
        }
    });
    write(&Answer::Coming { bytes: 0, of: size })
}

/// Reads all of an image that another machine could not fetch: what is damaged is forgotten. Not again for a while.
fn look_at(shared: &Arc<Shared>, id: &Digest) {
    if shared.root(id).is_none() || shared.doubted.add(id) {
        return;
    }
    let (shared, id) = (Arc::clone(shared), id.clone());
    tokio::task::spawn_blocking(move || {
        let failed = |source| Error::Archive { image: id.id(), source };
        let whole = shared.image(&id).and_then(|image| image.verify(&shared.store).map_err(failed));
        if let Err(error) = whole {
            drop(shared.noticed(&id, error));
        }
    });
}

/// Says which layers are here.
pub(super) async fn answer_layers(shared: &Arc<Shared>, body: &[u8]) -> Result<Bytes, ApiError> {
    let AskLayers { layers, lend } = read(body)?;
    if layers.len() > LAYERS_MAX {
        return Err(ApiError::new(ErrorCode::InvalidRequest, format!("at most {LAYERS_MAX} layers are asked for")));
    }
    let shared = Arc::clone(shared);
    let there = blocking(move || {
        let mut there = LayersThere::default();
        for (digest, file) in shared.whole(&layers.into_iter().collect())? {
            there.bytes.insert(digest.clone(), file.len);
            let root = if lend { Some(shared.keep_layer(&digest, file, &mut shared.store.session())?) } else { None };
            there.layers.insert(digest, root.map(|root| root.to_string()));
        }
        Ok(there)
    });
    write(&there.await?)
}

impl Shared {
    /// Gives a layer that is in the session, or in the store, a name of its own, so that it stays until it belongs to an image; its root.
    pub(super) fn keep_layer(&self, digest: &Digest, file: tree::File, session: &mut Session) -> Result<Hash, Error> {
        let root = archive::write_layer(digest, file, session)
            .map_err(|source| Error::Archive { image: digest.to_string(), source })?;
        let generation = Generation { epoch: 0, sequence: 0, taken_at: clock::now().0, root };
        session.commit(&News { generation: Some((layer_key(digest), generation)), sight: None })?;
        Ok(root)
    }

    /// Asks all machines that can be reached and are believed.
    async fn ask_all<T: DeserializeOwned>(&self, method: Method, body: &Bytes) -> Vec<(NodeId, T)> {
        let machines = believed(&self.state.borrow(), &self.network.connected().borrow());
        self.ask(&machines, method, body).await
    }

    async fn ask<'a, T: DeserializeOwned>(
        &self,
        machines: impl IntoIterator<Item = &'a NodeId>,
        method: Method,
        body: &Bytes,
    ) -> Vec<(NodeId, T)> {
        let asked = machines.into_iter().map(|machine| {
            let asked = self.network.call(machine, method, body.clone(), ASKING);
            async move { Some((machine.clone(), read(&asked.await.ok()?).ok()?)) }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }
}

/// Brings an image into the store; false where no machine that can be reached has it, or will have it soon.
pub(super) async fn bring(
    shared: &Arc<Shared>,
    id: &Digest,
    name: &str,
    need: Need,
    progress: Progress<'_>,
) -> Result<bool, Error> {
    let turn = shared.turn(id);
    if need == Need::Now {
        turn.haste.hurry();
    }
    let _turn = turn.lock.lock().await;
    if shared.root(id).is_some() {
        return Ok(true);
    }
    let ask = |doubted| write(&Ask { image: id.clone(), doubted }).map_err(|error| Error::Invalid(error.message));
    let body = ask(false)?;
    let (mut furthest, mut since) = (0, Instant::now());
    loop {
        let answers: Vec<(NodeId, Answer)> = shared.ask_all(Method::Image, &body).await;
        let mut trees: BTreeMap<(String, u64), Vec<NodeId>> = BTreeMap::new();
        for (machine, answer) in &answers {
            if let Answer::Here { root, bytes } = answer {
                trees.entry((root.clone(), *bytes)).or_default().push(machine.clone());
            }
        }
        // The same image is the same tree, unless engines of different kinds wrote it.
        let mut trees: Vec<_> = trees.into_iter().collect();
        trees.sort_by_key(|(_, machines)| std::cmp::Reverse(machines.len()));
        let mut failed = false;
        for ((root, bytes), machines) in trees {
            match fetch(shared, id, name, (&root, bytes), (&machines, &turn.haste), progress).await {
                Ok(()) => return Ok(true),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    tracing::warn!(image = %id, name, %error, "an image could not be fetched");
                    shared.ask::<Answer>(&machines, Method::Image, &ask(true)?).await;
                    failed = true;
                }
            }
        }
        // A registry may have it, or this machine's own engine.
        if failed {
            return Ok(false);
        }
        let coming = answers.iter().filter_map(|(_, answer)| match answer {
            Answer::Coming { bytes, of } => Some((*bytes, *of)),
            _ => None,
        });
        let Some((bytes, of)) = coming.max() else { return Ok(false) };
        progress(0, of);
        // It may have begun anew.
        if bytes != furthest {
            (furthest, since) = (bytes, Instant::now());
        }
        if since.elapsed() > STANDSTILL {
            tracing::warn!(image = %id, name, "an image is not waited for any more: the machine that has it gets no further");
            return Ok(false);
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn fetch(
    shared: &Arc<Shared>,
    id: &Digest,
    name: &str,
    (root, bytes): (&str, u64),
    (machines, haste): (&[NodeId], &Haste),
    progress: Progress<'_>,
) -> Result<(), Error> {
    shared.check_room(name, bytes)?;
    let moving = shared.moves.begin(&id.id(), name, ImageStep::Fetching, bytes);
    let generation = generation(root).ok_or_else(|| Error::Invalid(format!("`{root}` names no tree")))?;
    let began = Instant::now();
    let told = |figures: Figures| {
        moving.reached(figures.bytes, bytes.max(figures.bytes));
        progress(figures.bytes, bytes.max(figures.bytes));
    };
    let figures = get(shared, &fetch_key(id), name, generation, (machines, haste), told).await?;
    let verified = verified(shared, id, name, &generation, machines).await;
    keep(shared, id, generation, verified).await?;
    shared.counters.fetches.fetch_add(1, Relaxed);
    shared.counters.fetched_bytes.fetch_add(figures.bytes, Relaxed);
    let Figures { objects, bytes: came, .. } = figures;
    tracing::info!(image = %id, name, bytes, objects, came, took = ?began.elapsed(), "an image was fetched");
    Ok(())
}

/// From now on the store has what came, if it is the image. Whoever waits for it may be gone before this is done.
async fn keep(
    shared: &Arc<Shared>,
    id: &Digest,
    generation: Generation,
    verified: Result<Image, Error>,
) -> Result<(), Error> {
    let (shared, id) = (Arc::clone(shared), id.clone());
    blocking(move || {
        let named = verified.and_then(|image| {
            shared.store.name(&key(&id), generation)?;
            Ok(image)
        });
        shared.store.forget_volume(&fetch_key(&id))?;
        match named {
            Ok(image) => shared.added(&id, &image, &generation),
            Err(error) => {
                shared.volumes.freed();
                return Err(error);
            }
        }
        Ok(())
    })
    .await
}

fn generation(root: &str) -> Option<Generation> {
    Some(Generation { epoch: 0, sequence: 0, taken_at: clock::now().0, root: root.parse().ok()? })
}

/// Gets a tree under a name.
async fn get(
    shared: &Arc<Shared>,
    key: &str,
    name: &str,
    generation: Generation,
    (machines, haste): (&[NodeId], &Haste),
    told: impl Fn(Figures) + Send + Sync,
) -> Result<Figures, Error> {
    let failed = |source| Error::Fetch { image: name.to_owned(), source };
    let mut lines = Lines::open(&shared.network, machines.iter(), haste).await.map_err(failed)?;
    let (store, key) = (shared.store.clone(), key.to_owned());
    let (sender, mut receiver) = tokio::sync::watch::channel(Figures::default());
    let name = name.to_owned();
    let runtime = tokio::runtime::Handle::current();
    let work = blocking(move || {
        let failed = |source| Error::Fetch { image: name.clone(), source };
        let fetch = Fetch::begin(&store, &key, generation).map_err(|error| failed(error.into()))?;
        let told = |figures| {
            sender.send_replace(figures);
        };
        let fetch = lines.drive(fetch, &runtime, told).map_err(failed)?;
        let figures = fetch.figures();
        fetch.commit().map_err(|error| failed(error.into()))?;
        Ok(figures)
    });
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            figures = &mut work => return figures,
            Ok(()) = receiver.changed() => told(*receiver.borrow_and_update()),
        }
    }
}

/// What came is the image that was asked for, and whole on this machine's disk.
async fn verified(
    shared: &Arc<Shared>,
    id: &Digest,
    name: &str,
    generation: &Generation,
    machines: &[NodeId],
) -> Result<Image, Error> {
    let (store, wanted, root, image) = (shared.store.clone(), id.clone(), generation.root, name.to_owned());
    let look = move || {
        let failed = |source| Error::Archive { image: image.clone(), source };
        let found = Image::read(&store, &root).map_err(failed)?;
        found.verify(&store).map_err(failed)?;
        found.check_is(&wanted, &store).map_err(failed)?;
        Ok(found)
    };
    mended(shared, name, machines, look).await
}

/// The same of a layer.
async fn verified_layer(
    shared: &Arc<Shared>,
    digest: &Digest,
    generation: &Generation,
    machines: &[NodeId],
) -> Result<tree::File, Error> {
    let (store, wanted, root) = (shared.store.clone(), digest.clone(), generation.root);
    let look = move || {
        let failed = |source| Error::Archive { image: wanted.id(), source };
        archive::verified_layer(&wanted, &root, &store).map_err(failed)
    };
    mended(shared, &digest.id(), machines, look).await
}

/// What `look` finds. Where it comes upon an object that is damaged here that is fetched anew, and it looks again.
async fn mended<T: Send + 'static>(
    shared: &Arc<Shared>,
    name: &str,
    machines: &[NodeId],
    look: impl Fn() -> Result<T, Error> + Send + Sync + 'static,
) -> Result<T, Error> {
    let look = Arc::new(look);
    let mut mended = 0;
    loop {
        let looking = Arc::clone(&look);
        let error = match blocking(move || looking()).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let damaged = match error.store() {
            Some(store::Error::Damaged { name, .. }) => Some(*name),
            _ => None,
        };
        let Some(object) = damaged.filter(|_| mended < MENDED_MAX) else { return Err(error) };
        mended += 1;
        tracing::warn!(image = name, %object, "an object of an image is damaged here; it is fetched anew");
        mend(shared, name, object, machines).await?;
    }
}

/// Puts what another machine has in the place of an object that is damaged here.
async fn mend(shared: &Arc<Shared>, name: &str, object: Hash, machines: &[NodeId]) -> Result<(), Error> {
    let mut why = "none of them has it".to_owned();
    for machine in machines {
        let asked = async {
            let mut stream = shared.network.stream(machine, volumes::LABEL).await.map_err(|error| error.to_string())?;
            volumes::ask(&mut stream, &[object]).await.map_err(|error| error.to_string())?;
            volumes::answered(&mut stream).await.map_err(|error| error.to_string())
        };
        let answered = timeout(2 * ASKING, asked).await.unwrap_or_else(|late| Err(late.to_string()));
        let mended = match answered {
            Ok(Some(coded)) => {
                let store = shared.store.clone();
                let mended = blocking(move || {
                    let mut session = store.session();
                    session.repair(&object, &coded)?;
                    session.commit(&News::default())?;
                    Ok(())
                });
                mended.await.map_err(|error| error.to_string())
            }
            Ok(None) => Err("it does not have it either".to_owned()),
            Err(error) => Err(error),
        };
        match mended {
            Ok(()) => return Ok(()),
            Err(error) => why = error,
        }
    }
    Err(Error::Fetch { image: name.to_owned(), source: volumes::Error::NoSource { why } })
}

/// Of these layers, the ones that other machines have. Those that could not be brought here are not counted on for a while.
pub(super) async fn elsewhere(shared: &Shared, layers: &BTreeSet<Digest>) -> BTreeSet<Digest> {
    let ask = AskLayers { layers: layers.iter().cloned().collect(), lend: false };
    let Ok(body) = write(&ask) else { return BTreeSet::new() };
    let answers: Vec<(NodeId, LayersThere)> = shared.ask_all(Method::Layers, &body).await;
    let there = answers.into_iter().flat_map(|(_, there)| there.layers.into_keys());
    there.filter(|it| layers.contains(it) && !shared.unfetched.has(it)).collect()
}

/// Brings layers here that other machines have.
pub(super) async fn bring_layers(shared: &Arc<Shared>, name: &str, layers: &BTreeSet<Digest>) -> Result<(), Error> {
    let ask = AskLayers { layers: layers.iter().cloned().collect(), lend: true };
    let body = write(&ask).map_err(|error| Error::Invalid(error.message))?;
    let answers: Vec<(NodeId, LayersThere)> = shared.ask_all(Method::Layers, &body).await;
    let len = |digest: &Digest| answers.iter().filter_map(|(_, there)| there.bytes.get(digest).copied()).max();
    shared.check_room(name, layers.iter().filter_map(len).fold(0, u64::saturating_add))?;
    for digest in layers {
        let mut lent: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
        for (machine, there) in &answers {
            if let Some(Some(root)) = there.layers.get(digest) {
                lent.entry(root).or_default().push(machine.clone());
            }
        }
        if let Err(error) = bring_layer(shared, name, digest, lent).await {
            // The next push sends it.
            shared.unfetched.add(digest);
            return Err(error);
        }
    }
    Ok(())
}

/// Brings one from whichever machines have it as it should be.
async fn bring_layer(
    shared: &Arc<Shared>,
    name: &str,
    digest: &Digest,
    lent: BTreeMap<&str, Vec<NodeId>>,
) -> Result<(), Error> {
    let turn = shared.turn(digest);
    let _turn = turn.lock.lock().await;
    let mut why = "it was not sent, and no machine has it".to_owned();
    for (root, machines) in lent {
        let moving = shared.moves.begin(&digest.id(), name, ImageStep::Fetching, 0);
        match fetch_layer(shared, name, digest, root, &machines, |figures| moving.reached(figures.bytes, 0)).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                tracing::warn!(layer = %digest, name, %error, "a layer could not be fetched");
                why = error.to_string();
            }
        }
    }
    Err(Error::Invalid(format!("the layer {digest} could not be had ({why}); push again, and it is sent")))
}

async fn fetch_layer(
    shared: &Arc<Shared>,
    name: &str,
    digest: &Digest,
    root: &str,
    machines: &[NodeId],
    told: impl Fn(Figures) + Send + Sync,
) -> Result<(), Error> {
    let generation = generation(root).ok_or_else(|| Error::Invalid(format!("`{root}` names no tree")))?;
    // A person waits for the end of the push.
    get(shared, &fetch_key(digest), name, generation, (machines, &Haste::awaited()), told).await?;
    let verified = verified_layer(shared, digest, &generation, machines).await;
    let (shared, digest) = (Arc::clone(shared), digest.clone());
    blocking(move || {
        let kept = verified.and_then(|file| shared.keep_layer(&digest, file, &mut shared.store.session()));
        if kept.is_ok() {
            shared.cleared([&digest].into_iter());
        }
        shared.store.forget_volume(&fetch_key(&digest))?;
        shared.volumes.freed();
        kept.map(drop)
    })
    .await
}

/// Forgets what came while whoever waited for it went away.
pub(super) fn forget_abandoned(shared: &Shared) -> Result<(), Error> {
    for (digest, _) in kept(&shared.store, super::FETCHES)? {
        let turn = shared.turn(&digest);
        let Ok(_turn) = turn.lock.try_lock() else { continue };
        shared.store.forget_volume(&fetch_key(&digest))?;
        shared.volumes.freed();
    }
    Ok(())
}

/// Layers that were sent ahead and that no image has taken up by now.
pub(super) fn stale_layers(shared: &Shared, before: u64) -> Result<Vec<Digest>, Error> {
    let kept = kept(&shared.store, super::LAYERS)?;
    Ok(kept.into_iter().filter(|(_, generation)| generation.taken_at < before).map(|(digest, _)| digest).collect())
}
