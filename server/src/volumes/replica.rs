//! What other machines write: offered, fetched and kept here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName, VolumeName};
use flotilla_core::state::GenerationName;
use flotilla_data::{
    Hash,
    fetch::{Fetch, Figures},
    store, tree,
};
use futures::future::join_all;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, watch},
};

use super::{
    Error, Shared,
    coming::{Comings, Progress},
    haste::Haste,
    layout,
    lines::Lines,
    name_of,
    wire::{self, Holds, Offer, Offered, Recall},
};
use crate::peers::Method;

/// Services whose generations are fetched at once. More would only share the same line.
const FETCHES_AT_ONCE: usize = 2;

const HOLDS_WITHIN: Duration = Duration::from_secs(5);

/// What was offered, and what is being fetched.
#[derive(Debug)]
pub(super) struct Wanted {
    offers: Mutex<BTreeMap<ServiceName, Wish>>,
    fetches: Semaphore,
    /// A generation has come.
    pub(super) came: Notify,
    /// What is on its way, as far as that takes long.
    coming: watch::Sender<Comings>,
}

/// One service's.
#[derive(Debug)]
struct Wish {
    /// The newest that nobody fetches yet.
    next: Option<(NodeId, Offer)>,
    /// What is being fetched.
    current: Option<(GenerationName, Haste)>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            offers: Mutex::default(),
            fetches: Semaphore::new(FETCHES_AT_ONCE),
            came: Notify::new(),
            coming: watch::Sender::default(),
        }
    }
}

impl Wanted {
    pub(super) fn watch(&self) -> watch::Receiver<Comings> {
        self.coming.subscribe()
    }

    fn offers(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Wish>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers an offer; what is not here is fetched.
pub(super) async fn offered(shared: &Arc<Shared>, from: &NodeId, offer: Offer) -> Result<Offered, ApiError> {
    let conflict = |why: String| Err(ApiError::new(ErrorCode::Conflict, why));
    {
        let state = shared.parts.state.borrow();
        // What nobody writes any more, as far as is known here, may have been deleted: it would come back.
        let placed = state.placement(offer.name.epoch).is_some_and(|(service, placement)| {
            service.name == offer.service && placement.machine == *from && placement.exclusive
        });
        if !placed {
            return conflict(format!(
                "that machine writes no `{}` under epoch {} yet",
                offer.service, offer.name.epoch
            ));
        }
        if state.must_purge(&offer.service, &shared.parts.node) {
            return conflict(format!("former volumes of `{}` are being deleted", offer.service));
        }
        if !state.may_keep(&offer.service, &shared.parts.node) {
            return conflict(format!("this machine is to have no copy of `{}` yet", offer.service));
        }
    }
    let dropped = dropped(shared, &offer.service);
    let held = is_here(shared, &offer).await?;
    if !held {
        want(shared, from.clone(), offer);
    }
    Ok(Offered { held, dropped })
}

/// When this machine gave up a copy of a service last. Who says that it has something says it as of then: read it before you look.
fn dropped(shared: &Shared, service: &ServiceName) -> Option<u64> {
    shared.parts.state.borrow().services.get(service)?.data.dropped.get(&shared.parts.node).copied()
}

/// Is all that is offered on this machine's disk?
pub(super) async fn is_here(shared: &Arc<Shared>, offer: &Offer) -> Result<bool, Error> {
    let (shared, Offer { service, name, volumes, .. }) = (Arc::clone(shared), offer.clone());
    super::blocking(move || {
        for (volume, root) in &volumes {
            let generations = shared.store.generations(&layout::key(&service, volume))?;
            if !generations.iter().any(|it| name_of(it) == name && it.root.to_string() == *root) {
                return Ok(false);
            }
        }
        Ok(!volumes.is_empty())
    })
    .await
}

fn want(shared: &Arc<Shared>, from: NodeId, offer: Offer) {
    let service = offer.service.clone();
    let mut offers = shared.wanted.offers();
    let begins = !offers.contains_key(&service);
    let wish = offers.entry(service.clone()).or_insert(Wish { next: None, current: None });
    if let Some((_, haste)) = wish.current.as_ref().filter(|_| offer.awaited) {
        // Even an earlier one: the awaited one comes after it.
        haste.hurry();
    }
    if wish.current.as_ref().is_none_or(|(current, _)| *current != offer.name) {
        wish.next = Some((from, offer));
    }
    drop(offers);
    if begins {
        shared.tasks.spawn(fetch_all(Arc::clone(shared), service));
    }
}

/// Fetches what is wanted of one service, the newest each time, until nothing is.
async fn fetch_all(shared: Arc<Shared>, service: ServiceName) {
    let stop = shared.stop.clone();
    loop {
        let next = {
            let mut offers = shared.wanted.offers();
            let next = offers.get_mut(&service).and_then(|wish| {
                let (from, offer) = wish.next.take()?;
                let haste = Haste::new(offer.awaited);
                wish.current = Some((offer.name, haste.clone()));
                Some((from, offer, haste))
            });
            if next.is_none() {
                offers.remove(&service);
            }
            next
        };
        let Some((from, offer, haste)) = next else { return };
        let began = Instant::now();
        let dropped = dropped(&shared, &service);
        let fetched = tokio::select! {
            () = stop.cancelled() => return,
            fetched = fetch(&shared, &from, &offer, &haste) => fetched,
        };
        match fetched {
            Ok(figures) => {
                let (generation, took) = (offer.name, began.elapsed());
                tracing::debug!(%service, %generation, objects = figures.objects, bytes = figures.bytes, ?took, "fetched");
                shared.counters.fetched(figures);
                shared.wanted.came.notify_one();
                shared.history.notify_one();
                let holds = Holds { service: service.clone(), name: offer.name, dropped };
                let Ok(body) = wire::write(&holds) else { continue };
                // Where it is not heard the generation is offered again.
                let told = shared.parts.network.call(&from, Method::Holds, body, HOLDS_WITHIN);
                tokio::spawn(async move {
                    if let Err(error) = told.await {
                        tracing::debug!(%error, "it was not heard that a generation is here");
                    }
                });
            }
            // It is offered again when it may come.
            Err(Error::Held(held)) => tracing::debug!(%service, generation = %offer.name, %held, "a generation waits"),
            Err(error) => tracing::warn!(%service, generation = %offer.name, %error, "a generation was not fetched"),
        }
    }
}

/// Fetches a generation, first of all from this machine.
pub(super) async fn fetch(shared: &Arc<Shared>, from: &NodeId, offer: &Offer, haste: &Haste) -> Result<Figures, Error> {
    let _turn = tokio::select! {
        // What an instance waits for does not wait for what can wait.
        biased;
        () = haste.is_called_for() => None,
        turn = shared.wanted.fetches.acquire() => Some(turn.map_err(|_| Error::Stopped)?),
    };
    let connected = shared.parts.network.connected().borrow().clone();
    let others = offer.holders.iter().filter(|id| *id != from && **id != shared.parts.node && connected.contains(*id));
    let mut lines = Lines::open(&shared.parts.network, std::iter::once(from).chain(others), haste).await?;
    let mut sum = Figures::default();
    let mut fetched = Vec::new();
    for (volume, root) in &offer.volumes {
        let root: Hash = root.parse().map_err(|_| Error::Tree(tree::Error::Damaged))?;
        let generation = store::Generation {
            epoch: offer.name.epoch,
            sequence: offer.name.sequence,
            taken_at: offer.taken_at.0,
            root,
        };
        let (store, key) = (shared.store.clone(), layout::key(&offer.service, volume));
        let runtime = Handle::current();
        let mut progress = Progress::begin(&shared.wanted.coming, &offer.service, volume, offer.name);
        let (fetch, back) = super::blocking(move || {
            let fetch = Fetch::begin(&store, &key, generation)?;
            let fetch = lines.drive(fetch, &runtime, |figures| progress.reached(figures))?;
            Ok((fetch, lines))
        })
        .await?;
        lines = back;
        sum.objects += fetch.figures().objects;
        sum.bytes += fetch.figures().bytes;
        fetched.push(fetch);
    }
    let _lock = shared.directories.lock(&offer.service).await;
    if !shared.parts.state.borrow().may_keep(&offer.service, &shared.parts.node) {
        return Err(Error::Deleted { service: offer.service.clone() });
    }
    let (store, keys): (_, Vec<String>) =
        (shared.store.clone(), offer.volumes.keys().map(|volume| layout::key(&offer.service, volume)).collect());
    let is_first = super::blocking(move || {
        Fetch::commit_all(fetched)?;
        let first = |key: &String| Ok(store.generations(key)?.len() == 1);
        keys.iter().map(first).collect::<Result<Vec<bool>, Error>>()
    });
    if is_first.await?.contains(&true) {
        shared.first.notify_one();
    }
    Ok(sum)
}

/// Asks the other machines for a generation; who has some of its volumes, and which.
pub(super) async fn find(shared: &Arc<Shared>, service: &ServiceName, name: GenerationName) -> Vec<(NodeId, Offer)> {
    let Ok(body) = wire::write(&Recall { service: service.clone(), name }) else { return Vec::new() };
    let connected = shared.parts.network.connected().borrow().clone();
    let asked = connected.into_iter().map(|machine| {
        let asked = shared.parts.network.call(&machine, Method::Recall, body.clone(), HOLDS_WITHIN);
        async move { Some((machine, wire::read::<Option<Offer>>(&asked.await.ok()?).ok()??)) }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Brings here what this machine lacks of a generation: all of it, or volumes that have more copies than others.
pub(super) async fn recall(shared: &Arc<Shared>, service: &ServiceName, name: GenerationName) -> Result<(), Error> {
    let kept = shared.kept(service, name).await?;
    let mut here: BTreeSet<VolumeName> = kept.into_iter().flat_map(|(shown, _)| shown.roots.into_keys()).collect();
    let found = find(shared, service, name).await;
    let holders: Vec<NodeId> = found.iter().map(|(machine, _)| machine.clone()).collect();
    for (machine, mut offer) in found {
        offer.volumes.retain(|volume, _| !here.contains(volume));
        if offer.volumes.is_empty() {
            continue;
        }
        here.extend(offer.volumes.keys().cloned());
        offer.holders.clone_from(&holders);
        shared.counters.fetched(fetch(shared, &machine, &offer, &Haste::awaited()).await?);
    }
    if here.is_empty() { Err(Error::NotHere { service: service.clone(), name }) } else { Ok(()) }
}
