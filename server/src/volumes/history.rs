//! Which generations stay on this machine, and the room of those that go.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use flotilla_api::UnixMillis;
use flotilla_core::{
    history::{self, Moment},
    state::{GenerationName, Service},
};
use tokio::time::{Instant, sleep};

use super::{Error, Shared, layout, name_of};
use crate::clock;

/// Looked at no more often, however many generations come.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(15);

/// Looked at even if none comes: an old one becomes too old by itself.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// The room of what was forgotten is freed no more often: each time all that is kept is gone through.
const COLLECT_AT_MOST_EVERY: Duration = Duration::from_secs(300);

pub(super) async fn keep(shared: Arc<Shared>) {
    let (mut forgotten, mut collected) = (false, Instant::now());
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.history.notified() => {}
            () = sleep(LOOK_EVERY) => {}
        }
        let known = Arc::clone(&shared);
        match super::blocking(move || forget(&known)).await {
            Ok(any) => forgotten |= any | shared.garbage.swap(false, Relaxed),
            Err(error) => tracing::warn!(%error, "old generations could not be forgotten"),
        }
        if forgotten && collected.elapsed() >= COLLECT_AT_MOST_EVERY {
            let known = Arc::clone(&shared);
            match super::blocking(move || Ok(known.store.collect()?)).await {
                Ok(freed) => {
                    tracing::debug!(objects = freed.objects, bytes = freed.bytes, "room of old generations was freed");
                    forgotten = false;
                }
                Err(error) => tracing::warn!(%error, "the room of old generations could not be freed"),
            }
            collected = Instant::now();
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(LOOK_AT_MOST_EVERY) => {}
        }
    }
}

/// True if anything was forgotten.
fn forget(shared: &Shared) -> Result<bool, Error> {
    let state = shared.parts.state.borrow().clone();
    let mut any = false;
    for service in state.services.values() {
        match forget_of(shared, service) {
            Ok(forgotten) => any |= forgotten,
            // The others' are none the worse for it.
            Err(error) => tracing::warn!(service = %service.name, %error, "old generations could not be forgotten"),
        }
    }
    Ok(any)
}

fn forget_of(shared: &Shared, service: &Service) -> Result<bool, Error> {
    let needed = needed(shared, service)?;
    let committed = service.data.committed.as_ref().map(|committed| committed.name);
    let rules = history::rules(service.spec());
    let mut any = false;
    for volume in shared.store.volumes(&format!("{}/", service.name))? {
        let generations = shared.store.generations(&volume)?;
        let moments: Vec<Moment> =
            generations.iter().map(|it| Moment { name: name_of(it), taken_at: UnixMillis(it.taken_at) }).collect();
        let kept = history::kept(&moments, &rules, clock::now());
        let branches: Vec<GenerationName> =
            shared.store.generations(&layout::branch_of(&volume))?.iter().map(name_of).collect();
        // What is newer than what this machine knows to be committed may be committed by now.
        let is_newer = |name: &GenerationName| committed.is_none_or(|committed| *name >= committed);
        let stays = |name: &GenerationName| {
            kept.contains(name) || needed.contains(name) || branches.contains(name) || is_newer(name)
        };
        let gone = moments.iter().map(|moment| moment.name).filter(|name| !stays(name));
        let gone: Vec<(u64, u64)> = gone.map(|name| (name.epoch, name.sequence)).collect();
        if !gone.is_empty() {
            shared.store.forget(&volume, &gone)?;
            any = true;
        }
    }
    Ok(any)
}

/// Generations that something begins with, or shows, whatever their age.
fn needed(shared: &Shared, service: &Service) -> Result<BTreeSet<GenerationName>, Error> {
    let mut needed: BTreeSet<GenerationName> =
        service.placements.iter().filter_map(|placement| placement.source).collect();
    needed.extend(service.data.committed.as_ref().map(|committed| committed.name));
    needed.extend(service.data.restores);
    let offered = shared.offered.lock().unwrap_or_else(PoisonError::into_inner);
    needed.extend(offered.get(&service.name).into_iter().flatten());
    drop(offered);
    if let Some(record) = shared.directories.record(&service.name)? {
        needed.extend(record.shows.into_iter().chain(record.becomes).map(|shown| shown.name));
    }
    Ok(needed)
}
