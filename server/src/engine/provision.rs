//! The image that a service runs: from this machine, from another one of the cluster, or from a registry, in this order. And
//! what a machine that stands by for a service has ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_api::spec::ServiceSpec;
use flotilla_core::State;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Error, Shared, again::Again, connection::Client, image, spare, transfer};

/// Somebody may have pulled or removed an image by hand. One call of a few milliseconds.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What names the image of a specification on this machine: the engine's id, or a reference where that is not known.
pub(super) fn key(spec: &ServiceSpec) -> String {
    spec.image_id.clone().unwrap_or_else(|| spec.image.clone())
}

/// Pulling may take long; it is broken off when the service shall be something else. The engine's id of the image.
pub(super) async fn image(
    shared: &Arc<Shared>,
    client: &Client,
    spec: &ServiceSpec,
    cancel: &CancellationToken,
) -> Result<String, Error> {
    tokio::select! {
        () = cancel.cancelled() => Err(Error::Cancelled),
        id = find(shared, client, spec) => {
            shared.images_changed.notify_one();
            id
        }
    }
}

async fn find(shared: &Arc<Shared>, client: &Client, spec: &ServiceSpec) -> Result<String, Error> {
    let (service, image) = (&spec.name, spec.image.as_str());
    let known = spec.image_id.as_deref().unwrap_or(image);
    if let Some(id) = image::local(client, known).await? {
        return Ok(id);
    }
    let _permit = shared.pulls.acquire().await.map_err(|_| Error::Cancelled)?;
    if let Some(id) = &spec.image_id {
        if let Some(id) = transfer::fetch(shared, client, spec, id).await? {
            return Ok(id);
        }
        tracing::warn!(%service, image, id, "no machine has the image that was deployed; taking what its name means now");
    }
    shared.activity(service, Some(format!("pulling image `{image}`")));
    let progress = |progress: image::PullProgress| shared.activity(service, Some(progress.sentence(image)));
    image::ensure(client, image, progress).await
}

/// Images that the state names, by their [`key`].
fn wanted(state: &State) -> BTreeMap<String, &ServiceSpec> {
    let specs = state.services.values().flat_map(|service| {
        let placed = service.placements.iter().filter_map(|placement| service.revisions.get(&placement.revision));
        placed.map(|record| &record.spec).chain([service.spec()])
    });
    specs.map(|spec| (key(spec), spec)).collect()
}

/// Knows which of the services' images are on this machine, and brings those here that it stands by for; then makes containers of
/// them that have only to be started.
pub(super) async fn keep(shared: Arc<Shared>) {
    let stop = shared.stop.clone();
    let mut state = shared.state.clone();
    let mut clients = shared.client.subscribe();
    let (mut again, mut spares_again) = (Again::default(), Again::default());
    let mut looked: Option<Instant> = None;
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let client = clients.borrow_and_update().clone();
        let now = state.borrow_and_update().clone();
        if let Some(client) = client {
            let keys: BTreeSet<String> = wanted(&now).into_keys().collect();
            match image::held(&client, &keys).await {
                Ok(held) => {
                    let missing = missing(&shared, &now, &held, &again);
                    shared.held.send_if_modified(|known| std::mem::replace(known, held.clone()) != held);
                    if let Some((key, spec)) = missing {
                        bring(&shared, &client, key, &spec, &mut again).await;
                        continue;
                    }
                    if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
                        match spare::look(&shared, &client).await {
                            Ok(()) => looked = Some(Instant::now()),
                            Err(error) => tracing::debug!(%error, "the containers that stand by are not known"),
                        }
                    }
                    if looked.is_some() {
                        spare::keep(&shared, &client, &now, &held, &mut spares_again).await;
                    }
                }
                Err(error) => tracing::debug!(%error, "the images are not known"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            changed = clients.changed() => {
                if changed.is_err() {
                    return;
                }
                looked = None;
            }
            () = shared.images_changed.notified() => {}
            _ = tick.tick() => {}
        }
    }
}

/// An image that this machine should have, for a service that it stands by for, and may try to get now.
fn missing(
    shared: &Shared,
    state: &State,
    held: &BTreeSet<String>,
    again: &Again<String>,
) -> Option<(String, ServiceSpec)> {
    let node = &shared.config.node_id;
    let stands_by = state.services.values().filter(|service| service.replicas > 0 && service.standby.contains(node));
    stands_by.map(flotilla_core::state::Service::spec).find_map(|spec| {
        let key = key(spec);
        (!held.contains(&key) && again.is_due(&key)).then(|| (key, spec.clone()))
    })
}

async fn bring(shared: &Arc<Shared>, client: &Client, key: String, spec: &ServiceSpec, again: &mut Again<String>) {
    let brought = image(shared, client, spec, &shared.stop).await;
    shared.activity(&spec.name, None);
    match brought {
        // Where the engine has it under another id it would be looked for again, at once.
        Ok(_) => again.much_later(key),
        Err(Error::Cancelled) => {}
        Err(error) => {
            tracing::warn!(service = %spec.name, %error, "can't stand by: its image is not here");
            again.later(key);
        }
    }
}
