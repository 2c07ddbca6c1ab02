//! Images between this engine and the store of images: taken in from here, and loaded from there.

use std::{
    collections::BTreeSet,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, rest::ImageStep, spec::ServiceSpec};
use flotilla_core::state::Service;
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::timeout;

use super::{
    Error, Shared,
    connection::{CALL_LIMIT, Client},
    image,
    image_store::{ImageParts, Need},
};

/// Images that the engine is asked about at once.
const INSPECTED_AT_ONCE: usize = 8;

/// The engine, or the store, is gone when nothing has moved for so long.
const STALL: Duration = Duration::from_secs(60);

const MEGABYTE: u64 = 1_000_000;

/// Gets the image of a specification from the store, which gets it from those of other machines; `None` where none has it.
///
/// # Errors
/// One has it, and it could not be brought here; or the engine did not take it.
pub(super) async fn fetch(
    shared: &Shared,
    client: &Client,
    spec: &ServiceSpec,
    id: &str,
) -> Result<Option<String>, Error> {
    let image = &spec.image;
    let progress = |bytes: u64, of: u64| {
        let (bytes, of) = (bytes / MEGABYTE, of.div_ceil(MEGABYTE));
        let sentence = format!("getting image `{image}` from other machines: {bytes} of {of} MB");
        shared.activity(&spec.name, Some(sentence));
    };
    let need = {
        let state = shared.state.borrow();
        let placed = |service: &Service| service.placed_on(&shared.config.node_id).next().is_some();
        if state.services.get(&spec.name).is_some_and(placed) { Need::Now } else { Need::InAdvance }
    };
    if !shared.images.bring(id, image, need, &progress).await.map_err(Error::Image)? {
        return Ok(None);
    }
    let is_name = image::check_tag(image).is_ok();
    let names = if is_name && image::local(client, image).await?.is_none() { vec![image.clone()] } else { Vec::new() };
    load(shared, client, id, image, &names).await.map(Some)
}

/// Has the engine load an image that is in the store, and gives it names; the engine's id of it.
pub(super) async fn load(
    shared: &Shared,
    client: &Client,
    id: &str,
    name: &str,
    names: &[String],
) -> Result<String, Error> {
    if let Some(id) = image::local(client, id).await? {
        // It was there before: whose it is stays as it was.
        for name in names {
            image::tag(client, &id, name).await?;
        }
        shared.images.found(&id, names).await;
        return Ok(id);
    }
    let parts = shared.images.parts(id).await.map_err(Error::Image)?;
    let present = present_layers(client, &parts.diff_ids).await?;
    let loaded = match load_above(shared, client, (id, name), names, present).await {
        // The image with those layers may have gone just now.
        Err(Error::Archive(why)) if present > 0 => {
            tracing::info!(image = id, why, "loading all layers of an image");
            load_above(shared, client, (id, name), names, 0).await?
        }
        loaded => loaded?,
    };
    let id = match image::local(client, id).await? {
        Some(id) => id,
        None => renamed(client, (id, name), names, &parts, loaded).await?,
    };
    // One that loads what an index names takes no names from the archive's list.
    for name in names {
        if image::local(client, name).await?.as_ref() != Some(&id) {
            image::tag(client, &id, name).await?;
        }
    }
    shared.images.brought(&id, names).await;
    shared.images_changed.notify_one();
    Ok(id)
}

/// An engine that names images by another digest than the one that they came from has it under another id; that id, if what was loaded
/// is the same.
async fn renamed(
    client: &Client,
    (id, name): (&str, &str),
    names: &[String],
    parts: &ImageParts,
    loaded: Vec<String>,
) -> Result<String, Error> {
    let absent = || Error::ImageNotLocal { image: name.to_owned() };
    let loaded = loaded.into_iter().next().ok_or_else(absent)?;
    let inspected = client.call("look an image up", CALL_LIMIT, client.docker().inspect_image(&loaded)).await?;
    let (found, layers) = (inspected.id.ok_or_else(absent)?, inspected.root_fs.and_then(|it| it.layers));
    if may_be_called(&found, id, parts) && layers.unwrap_or_default() == parts.diff_ids {
        return Ok(found);
    }
    let names = names.iter().chain([&loaded]).cloned().collect();
    if let Err(error) = forget(client, &found, &names).await {
        tracing::warn!(image = found, %error, "an image that was not meant stays in the engine");
    }
    let why = format!("Docker Engine has loaded `{found}` in the place of the image `{id}`");
    Err(Error::Image(ApiError::new(ErrorCode::ImageInvalid, why)))
}

/// Where the id is the configuration's, an engine may call the image by a manifest that it makes of its own; where it is a manifest's, by
/// the configuration.
fn may_be_called(found: &str, id: &str, parts: &ImageParts) -> bool {
    id == parts.config || found == parts.config
}

async fn load_above(
    shared: &Shared,
    client: &Client,
    (id, name): (&str, &str),
    names: &[String],
    left_out: usize,
) -> Result<Vec<String>, Error> {
    let archive = shared.images.archive(id, names, left_out).await.map_err(Error::Image)?;
    let moving = shared.images.moves().begin(id, name, ImageStep::Loading, archive.len);
    let (len, mut read) = (archive.len, 0);
    let bytes = archive.bytes.inspect(move |piece| {
        read += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        moving.reached(read, len.max(read));
    });
    let loaded = image::load(client, bytes).await;
    loaded.map_err(|error| match why(&archive.failed) {
        Some(why) => Error::Image(why),
        None => error,
    })
}

fn why(failed: &Mutex<Option<ApiError>>) -> Option<ApiError> {
    failed.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// How many layers, from the lowest, the engine has: those of an image that begins with them. It skips what it has, by all that is below.
async fn present_layers(client: &Client, diff_ids: &[String]) -> Result<usize, Error> {
    let shared = stream::iter(image::ids(client).await?).map(|id| async move {
        let inspected = client.call("look an image up", CALL_LIMIT, client.docker().inspect_image(&id)).await;
        let layers = inspected.ok().and_then(|it| it.root_fs?.layers).unwrap_or_default();
        layers.iter().zip(diff_ids).take_while(|(here, wanted)| here == wanted).count()
    });
    Ok(shared.buffer_unordered(INSPECTED_AT_ONCE).fold(0, |most, count| async move { most.max(count) }).await)
}

/// Bytes of an image's layers, as the engine counts them; `None` where it does not have it.
pub(super) async fn size(client: &Client, id: &str) -> Result<Option<u64>, Error> {
    match client.call("look an image up", CALL_LIMIT, client.docker().inspect_image(id)).await {
        Ok(inspected) => Ok(Some(u64::try_from(inspected.size.unwrap_or_default()).unwrap_or_default())),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `docker save` writes of an image.
pub(super) fn save(client: &Client, id: &str) -> BoxStream<'static, io::Result<Bytes>> {
    let (client, id) = (client.clone(), id.to_owned());
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut saved = std::pin::pin!(client.docker().export_image(&id));
        loop {
            let next = tokio::select! {
                // Nobody reads it any more: the engine need not go on.
                () = sender.closed() => return,
                next = timeout(STALL, saved.next()) => next,
            };
            let piece = match next {
                Ok(Some(piece)) => piece.map_err(io::Error::other),
                Ok(None) => return,
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "Docker Engine does not go on")),
            };
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    });
    Box::pin(stream::poll_fn(move |context| receiver.poll_recv(context)))
}

/// Takes names from an image, and the image with its last one: never by force. True if it is gone.
///
/// # Errors
/// A container needs it.
pub(super) async fn forget(client: &Client, id: &str, names: &BTreeSet<String>) -> Result<bool, Error> {
    let inspect = || client.call("look an image up", CALL_LIMIT, client.docker().inspect_image(id));
    let given = match inspect().await {
        Ok(inspected) => inspected.repo_tags.unwrap_or_default(),
        Err(error) if error.is_absent() => return Ok(true),
        Err(error) => return Err(error),
    };
    // A name may belong to another image by now.
    let is_ours = |tag: &String| names.iter().any(|name| image::is_same_name(name, tag));
    for tag in given.iter().filter(|tag| is_ours(tag)) {
        image::remove(client, tag).await?;
    }
    let left = match inspect().await {
        Ok(inspected) => inspected.repo_tags.unwrap_or_default(),
        Err(error) if error.is_absent() => return Ok(true),
        Err(error) => return Err(error),
    };
    if !left.is_empty() {
        return Ok(false);
    }
    image::remove(client, id).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_taken_under_another_id_only_where_engines_of_two_kinds_may_differ() {
        let parts = ImageParts { config: "sha256:c".to_owned(), diff_ids: Vec::new() };
        assert!(may_be_called("sha256:m", "sha256:c", &parts), "by a manifest of the engine's own");
        assert!(may_be_called("sha256:c", "sha256:m", &parts), "by the configuration");
        assert!(!may_be_called("sha256:x", "sha256:m", &parts), "by nothing that was sent");
    }
}
