//! The image that a service runs: from this machine, from another one of the cluster, or from a registry, in this order. And
//! what a machine that stands by for a service has ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_api::{rest::ImageStep, spec::ServiceSpec};
use flotilla_core::{State, images};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Error, Shared, again::Again, connection::Client, image, spare, stored, values};

/// Somebody may have pulled or removed an image by hand. One call of a few milliseconds.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// How long the machine is waited for that gets an image from its registry for all. While it does, it says so.
const PULLER_PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What names the image of a specification on this machine.
pub(super) fn key(spec: &ServiceSpec) -> String {
    images::key(spec).to_owned()
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
    let known = images::key(spec);
    if let Some(id) = image::local(client, known).await? {
        return Ok(id);
    }
    if let Some(id) = &spec.image_id {
        if let Some(id) = fetch_or_wait(shared, client, spec, id).await? {
            return Ok(id);
        }
        tracing::warn!(%service, image, id, "no machine has the image that was deployed; taking what its name means now");
    }
    shared.activity(service, Some(format!("pulling image `{image}`")));
    let progress = |progress: image::PullProgress| shared.activity(service, Some(progress.sentence(image)));
    pull(shared, client, known, image, progress).await
}

/// From other machines; and where none has it, from the one that gets it from its registry for all. `None`: that is this one.
async fn fetch_or_wait(
    shared: &Arc<Shared>,
    client: &Client,
    spec: &ServiceSpec,
    id: &str,
) -> Result<Option<String>, Error> {
    let began = Instant::now();
    loop {
        if let Some(id) = stored::fetch(shared, client, spec, id).await? {
            return Ok(Some(id));
        }
        let node = &shared.config.node_id;
        let connected = shared.others.network().map(|it| it.connected().borrow().clone()).unwrap_or_default();
        let puller = images::puller(&shared.state.borrow(), id, |it| it == node || connected.contains(it)).cloned();
        let Some(puller) = puller.filter(|puller| puller != node) else { return Ok(None) };
        if began.elapsed() > PULLER_PATIENCE {
            return Ok(None);
        }
        let puller = shared.machine_name(&puller);
        shared.activity(&spec.name, Some(format!("waiting until `{puller}` has image `{}`", spec.image)));
        sleep(ASK_AGAIN).await;
    }
}

/// Looks on this machine first, then asks the registry. `key` is what others may ask for it by.
pub(super) async fn pull(
    shared: &Shared,
    client: &Client,
    key: &str,
    image: &str,
    mut progress: impl FnMut(image::PullProgress),
) -> Result<String, Error> {
    let _permit = shared.pulls.acquire().await.map_err(|_| Error::Cancelled)?;
    if let Some(id) = image::local(client, image).await? {
        return Ok(id);
    }
    let moving = shared.images.moves().begin(key, image, ImageStep::Pulling, 0);
    let pulled = image::ensure(client, image, |now| {
        moving.reached(now.current_bytes, now.total_bytes);
        progress(now);
    });
    let id = pulled.await?;
    let names = if image::check_tag(image).is_ok() { vec![image.to_owned()] } else { Vec::new() };
    shared.images.brought(&id, &names).await;
    Ok(id)
}

/// Images that the state names, by their key.
fn wanted(state: &State) -> BTreeMap<String, &ServiceSpec> {
    let specs = state.services.values().flat_map(|service| {
        let placed = service.placements.iter().filter_map(|placement| service.revisions.get(&placement.revision));
        placed.map(|record| &record.spec).chain([service.spec()])
    });
    specs.map(|spec| (images::key(spec).to_owned(), spec)).collect()
}

/// Knows which of the services' images are on this machine, and brings those here that it stands by for; then makes containers of
/// them that have only to be started.
pub(super) async fn keep(shared: Arc<Shared>) {
    let stop = shared.stop.clone();
    let mut state = shared.state.clone();
    let mut clients = shared.client.subscribe();
    let (mut again, mut spares_again) = (Again::default(), Again::default());
    let mut bringing = JoinSet::new();
    let mut looked: Option<Instant> = None;
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let client = clients.borrow_and_update().clone();
        let now = state.borrow_and_update().clone();
        if let Some(client) = client {
            let mut keys: BTreeSet<String> = wanted(&now).into_keys().collect();
            keys.extend(images::wanted(&now, &shared.config.node_id).into_keys().map(str::to_owned));
            keys.extend(shared.images.ids());
            match image::held(&client, &keys).await {
                Ok(held) => {
                    let missing = missing(&shared, &now, &held, &again);
                    shared.held.send_if_modified(|known| std::mem::replace(known, held.clone()) != held);
                    if bringing.is_empty()
                        && let Some((key, spec)) = missing
                    {
                        bringing.spawn(bring(Arc::clone(&shared), client.clone(), key, spec));
                    }
                    if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
                        match spare::look(&shared, &client).await {
                            Ok(()) => looked = Some(Instant::now()),
                            Err(error) => tracing::debug!(%error, "the containers that stand by are not known"),
                        }
                    }
                    if looked.is_some() {
                        spare::keep(&shared, &client, &now, &held, &mut spares_again).await;
                        if let Err(error) = values::sweep(&shared, &client).await {
                            tracing::debug!(%error, "files of secrets stay that no container needs");
                        }
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
            Some(brought) = bringing.join_next() => match brought {
                Ok((key, Ok(true))) => again.much_later(key),
                Ok((key, Ok(false))) => again.later(key),
                Ok((_, Err(Error::Cancelled))) => {}
                Ok((key, Err(error))) => {
                    tracing::warn!(image = key, %error, "an image that may be needed here is not here");
                    again.later(key);
                }
                Err(panic) => tracing::error!(%panic, "bringing an image here panicked"),
            },
            _ = tick.tick() => {}
        }
    }
}

/// An image that this machine should have before it is needed, and may try to get now.
fn missing(
    shared: &Shared,
    state: &State,
    held: &BTreeSet<String>,
    again: &Again<String>,
) -> Option<(String, ServiceSpec)> {
    // What is placed here is brought by whoever starts it.
    let placed = |spec: &ServiceSpec| {
        let service = state.services.get(&spec.name);
        service.is_some_and(|it| it.replicas > 0 && it.placed_on(&shared.config.node_id).next().is_some())
    };
    let wanted = images::wanted(state, &shared.config.node_id).into_iter().filter(|(_, spec)| !placed(spec));
    wanted
        .map(|(key, spec)| (key.to_owned(), spec))
        .find_map(|(key, spec)| (!held.contains(&key) && again.is_due(&key)).then(|| (key, spec.clone())))
}

/// True where it is here now. Where the engine has it under another id it would be looked for again, at once.
async fn bring(shared: Arc<Shared>, client: Client, key: String, spec: ServiceSpec) -> (String, Result<bool, Error>) {
    let stopped = shared.state.borrow().services.get(&spec.name).is_none_or(|service| service.replicas == 0);
    let brought = match &spec.image_id {
        // What does not run is kept where there is a copy of it, and nobody is asked for more.
        Some(id) if stopped => stored::fetch(&shared, &client, &spec, id).await.map(|id| id.is_some()),
        _ => image(&shared, &client, &spec, &shared.stop).await.map(|_| true),
    };
    shared.activity(&spec.name, None);
    (key, brought)
}
