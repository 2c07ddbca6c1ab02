//! `flotilla image`: images go from this machine's engine, or from an archive, to the cluster; and who holds them.

use std::{collections::BTreeSet, path::Path, time::Duration};

use bollard::Docker;
use comfy_table::Cell;
use flotilla_api::{
    ErrorCode, MachineName,
    rest::{CollectQuery, CollectedImage, CollectedView, HeldImageView, ImageHolderView, RemoveImageQuery},
};
use futures::StreamExt;

use super::{Failure, Output, Session, args::Image, output, progress::Progress, time};
use crate::{
    bridge::Incoming,
    client::{Archive, Error, Layers, Pushed},
    clock,
};

/// How long the local engine may take to answer, and to send the next part of an image.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(60);

/// An engine that saves an image and sends nothing for so long has given up.
const SAVE_STALL: Duration = Duration::from_secs(120);

pub(super) async fn run(verb: Image, session: &Session) -> Result<(), Failure> {
    match verb {
        Image::Push { source } => push(&source, session).await,
        Image::Ls { machine: Some(machine), .. } => list_of(&machine, session).await,
        Image::Ls { machine: None, layers } => list(layers, session).await,
        Image::Rm { image, yes } => remove(image, yes, session).await,
        Image::Gc { dry_run } => collect(dry_run, session).await,
    }
}

async fn list(layers: bool, session: &Session) -> Result<(), Failure> {
    let images = session.client.held_images().await?;
    if session.output.json {
        return session.output.value(&images);
    }
    let rows = images.iter().flat_map(|image| {
        let mut rows = vec![row(image)];
        if layers {
            rows.extend(image.layers.iter().map(|layer| {
                let shared = match layer.shared_with {
                    0 => String::new(),
                    1 => "in one more image".to_owned(),
                    others => format!("in {others} more images"),
                };
                vec![
                    Cell::new(format!("  {}", short(&layer.digest))),
                    Cell::new(""),
                    Cell::new(time::size(layer.size_bytes)),
                    Cell::new(""),
                    Cell::new(shared),
                    Cell::new(""),
                ]
            }));
        }
        rows
    });
    let header = ["IMAGE", "ID", "SIZE", "SHARED", "HELD BY", "USED BY"];
    session.output.table(&header, rows.collect(), "No service uses an image, and no machine holds one.")
}

fn row(image: &HeldImageView) -> Vec<Cell> {
    let used_by: Vec<String> = image
        .used_by
        .iter()
        .map(|it| if it.current { it.service.to_string() } else { format!("{} (earlier)", it.service) })
        .collect();
    let held_by: Vec<String> = image.machines.iter().map(holder).collect();
    vec![
        Cell::new(image.references.join("\n")),
        Cell::new(short(&image.id)),
        Cell::new(image.size_bytes.map(time::size).unwrap_or_default()),
        Cell::new(image.shared_bytes.filter(|bytes| *bytes > 0).map(time::size).unwrap_or_default()),
        Cell::new(held_by.join(", ")),
        Cell::new(used_by.join(", ")),
    ]
}

fn holder(holder: &ImageHolderView) -> String {
    let machine = &holder.machine;
    match holder {
        ImageHolderView { lost: true, .. } => format!("{machine} (lost)"),
        ImageHolderView { transfer: Some(it), .. } if it.of > 0 => {
            let percent = it.bytes.saturating_mul(100) / it.of;
            format!("{machine} ({} {percent} %)", it.step.as_str())
        }
        ImageHolderView { transfer: Some(it), .. } => format!("{machine} ({})", it.step.as_str()),
        ImageHolderView { engine: true, store: true, .. } => machine.to_string(),
        ImageHolderView { engine: true, store: false, .. } => format!("{machine} (engine)"),
        ImageHolderView { engine: false, store: true, .. } => format!("{machine} (store)"),
        _ => format!("{machine} (missing)"),
    }
}

async fn list_of(machine: &MachineName, session: &Session) -> Result<(), Failure> {
    let images = session.client.images_of(machine).await?;
    if session.output.json {
        return session.output.value(&images);
    }
    let now = clock::now();
    let rows = images
        .iter()
        .map(|image| {
            let used_by: Vec<&str> = image.used_by.iter().map(AsRef::as_ref).collect();
            vec![
                Cell::new(image.references.join("\n")),
                Cell::new(short(&image.id)),
                Cell::new(time::size(image.size_bytes)),
                // Made reproducibly, without a date.
                Cell::new(if image.created_at.0 == 0 { String::new() } else { time::age(now, image.created_at) }),
                Cell::new(used_by.join(", ")),
            ]
        })
        .collect();
    session.output.table(&["IMAGE", "ID", "SIZE", "AGE", "USED BY"], rows, "The engine has no image.")
}

fn short(id: &str) -> &str {
    let hex = id.trim_start_matches("sha256:");
    hex.get(..12).filter(|_| id.starts_with("sha256:")).unwrap_or(id)
}

async fn remove(image: String, yes: bool, session: &Session) -> Result<(), Failure> {
    if !yes {
        output::confirm(&format!("Remove {image} from all machines?"), "nothing was removed")?;
    }
    let removed = session.client.remove_image(&RemoveImageQuery { name: image }).await?;
    tell(&removed, false, session.output)
}

async fn collect(dry_run: bool, session: &Session) -> Result<(), Failure> {
    let collected = session.client.collect_images(CollectQuery { dry_run }).await?;
    tell(&collected, dry_run, session.output)?;
    if !collected.is_empty() && collected.iter().all(|machine| machine.problem.is_some()) {
        return Err(Failure::Other("no machine could look for images that nothing needs".to_owned()));
    }
    Ok(())
}

fn tell(machines: &[CollectedView], dry_run: bool, output: Output) -> Result<(), Failure> {
    if output.json {
        return output.value(&machines);
    }
    for machine in machines {
        for image in &machine.images {
            output.line(&removed(&machine.machine, image, dry_run))?;
        }
        if let Some(problem) = &machine.problem {
            output.note(&format!("{}: {problem}", machine.machine));
        }
    }
    match summary(machines, dry_run) {
        Some(sentence) => output.line(&sentence),
        None => Ok(()),
    }
}

fn removed(machine: &MachineName, image: &CollectedImage, dry_run: bool) -> String {
    let verb = if dry_run { "Would remove" } else { "Removed" };
    let name = image.references.first().map_or_else(|| short(&image.id), String::as_str);
    let of = match (image.engine, image.store) {
        (true, true) => "its engine and its store",
        (true, false) => "its engine",
        (false, true) => "its store",
        (false, false) => "the names in its engine",
    };
    format!("{machine}: {verb} {name} ({of}).")
}

/// What all of them come to, where that is not told by what each did.
fn summary(machines: &[CollectedView], dry_run: bool) -> Option<String> {
    if machines.iter().any(|machine| !machine.images.is_empty()) {
        let freed = machines.iter().map(|machine| machine.freed_bytes).sum::<u64>();
        let verb = if dry_run { "would be" } else { "are" };
        return (freed > 0).then(|| format!("{} {verb} given back within minutes.", time::size(freed)));
    }
    let failed = machines.iter().filter(|machine| machine.problem.is_some()).count();
    match failed {
        0 => Some("There is no image that nothing needs.".to_owned()),
        all if all == machines.len() => None,
        _ => Some("There is no image that nothing needs, on the machines that could look.".to_owned()),
    }
}

async fn push(source: &str, session: &Session) -> Result<(), Failure> {
    let path = Path::new(source);
    let looks_like_a_path =
        path.extension().is_some_and(|end| end == "tar" || end == "tgz") || source.starts_with(['.', '/']);
    let pushed = if path.is_file() {
        push_archive(path, session).await?
    } else if looks_like_a_path {
        return Err(Failure::Usage(format!("there is no file `{source}`")));
    } else {
        push_from_engine(source, session).await?
    };
    let names = if pushed.images.is_empty() { pushed.id.clone() } else { pushed.images.join(", ") };
    let Pushed { layers, sent_layers, sent_bytes, .. } = pushed;
    let sentence = match (layers, sent_layers) {
        (0, _) if sent_bytes == 0 => format!("The node already has {names}."),
        (0, _) => format!("Pushed {names}."),
        (_, 0) => format!("Pushed {names}: the cluster had all of its {layers} layers."),
        _ => format!("Pushed {names}: {sent_layers} of {layers} layers, {}.", time::size(sent_bytes)),
    };
    session.output.done(&sentence, &pushed)
}

fn was_there(id: String, images: Vec<String>) -> Pushed {
    Pushed { id, images, layers: 0, sent_layers: 0, sent_bytes: 0 }
}

async fn push_from_engine(image: &str, session: &Session) -> Result<Pushed, Failure> {
    let unavailable = |error: bollard::errors::Error| {
        Failure::Other(format!(
            "this machine's container engine does not answer ({error}); start it, or push an archive"
        ))
    };
    let docker = Docker::connect_with_defaults().map_err(unavailable)?;
    let docker = within(docker.negotiate_version()).await?.map_err(unavailable)?;
    let inspected = within(docker.inspect_image(image)).await?.map_err(|error| match error {
        bollard::errors::Error::DockerResponseServerError { status_code: 404, .. } => {
            Failure::NotFound(format!("this machine's engine has no image `{image}`; `docker image ls` shows all"))
        }
        other => unavailable(other),
    })?;
    let id = inspected.id.unwrap_or_default();
    if has(session, &id, &[with_tag(image)]).await? {
        renew(session, &id).await?;
        return Ok(was_there(id, vec![image.to_owned()]));
    }
    // What the engine calls its layers is what it calls them in an archive, too, unless it keeps them compressed.
    let digests: Vec<String> = inspected.root_fs.and_then(|it| it.layers).unwrap_or_default();
    let digests: Vec<String> = digests.iter().map(|digest| digest.trim_start_matches("sha256:").to_owned()).collect();
    let lacking = session.client.lacking(digests.clone()).await?.layers;
    let unneeded: BTreeSet<String> = digests.into_iter().filter(|digest| !lacking.contains_key(digest)).collect();
    let size = inspected.size.and_then(|size| u64::try_from(size).ok());
    let mut reading = Progress::new(session.output, "Reading the image", size);
    let name = image.to_owned();
    let saved = async_stream(docker, name);
    let layers = blocking(move || {
        let read = |bytes| reading.reached(bytes, size.unwrap_or_default().max(bytes));
        Layers::spooled(Incoming::of(saved, SAVE_STALL), &unneeded, read)
    });
    let layers = layers.await?.ok_or_else(|| {
        Failure::Other(format!("what this machine's engine saves of `{image}` can't be read; push it as an archive"))
    })?;
    send(&layers, session).await
}

fn async_stream(docker: Docker, image: String) -> futures::stream::BoxStream<'static, std::io::Result<bytes::Bytes>> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut blocks = std::pin::pin!(docker.export_image(&image));
        while let Some(block) = blocks.next().await {
            if sender.send(block.map_err(std::io::Error::other)).await.is_err() {
                return;
            }
        }
    });
    Box::pin(futures::stream::poll_fn(move |context| receiver.poll_recv(context)))
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure::Other("this machine's container engine does not answer; is it overloaded?".into());
    tokio::time::timeout(ENGINE_TIMEOUT, future).await.map_err(late)
}

async fn push_archive(path: &Path, session: &Session) -> Result<Pushed, Failure> {
    let size = std::fs::metadata(path).map_err(Failure::io("read", path))?.len();
    let mut reading = Progress::new(session.output, "Reading the archive", Some(size));
    let file = path.to_owned();
    let layers = blocking(move || Layers::in_archive(&file, |bytes| reading.reached(bytes, size))).await?;
    let Some(layers) = layers else { return upload(path, session).await };
    if !layers.references().is_empty() && has(session, &layers.id(), layers.references()).await? {
        renew(session, &layers.id()).await?;
        return Ok(was_there(layers.id(), layers.references().to_vec()));
    }
    send(&layers, session).await
}

async fn send(layers: &Layers, session: &Session) -> Result<Pushed, Failure> {
    let mut sending = Progress::new(session.output, "Sending", Some(0));
    let pushed = session.client.push(layers, |bytes, of| {
        sending.reached(bytes, of);
        if bytes == of {
            sending.now("The node's engine loads it");
        }
    });
    Ok(pushed.await?)
}

/// Does the node's engine have this image, under all these references?
async fn has(session: &Session, id: &str, references: &[String]) -> Result<bool, Failure> {
    let images = session.client.images().await?;
    Ok(images
        .iter()
        .any(|image| image.id == id && references.iter().all(|reference| image.references.contains(reference))))
}

/// What is pushed and not sent is kept as long as what is. An older node does not know of that.
async fn renew(session: &Session, id: &str) -> Result<(), Failure> {
    match session.client.renew_image(id).await {
        Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
        renewed => Ok(renewed?),
    }
}

/// As a whole, for what this program can't take apart.
async fn upload(path: &Path, session: &Session) -> Result<Pushed, Failure> {
    let size = std::fs::metadata(path).map_err(Failure::io("read", path))?.len();
    let mut reading = Progress::new(session.output, "Computing its digest", Some(size));
    let archive = Archive::open(path, move |read| reading.reached(read, size)).await?;
    let mut sending = Progress::new(session.output, "Sending", Some(archive.size()));
    let loaded = session.client.upload(&archive, |sent| {
        sending.reached(sent, size);
        if sent == size {
            sending.now("The node's engine loads it");
        }
    });
    let images = loaded.await?.images;
    Ok(Pushed { id: String::new(), images, layers: 0, sent_layers: 0, sent_bytes: size })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// `notes` is short for `notes:latest`.
fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use flotilla_api::rest::{ImageStep, TransferView};

    use super::*;

    #[test]
    fn a_reference_without_a_tag_means_latest() {
        for (image, full) in [
            ("notes", "notes:latest"),
            ("notes:1", "notes:1"),
            ("localhost:5000/notes", "localhost:5000/notes:latest"),
            ("a@sha256:00", "a@sha256:00"),
        ] {
            assert_eq!(with_tag(image), full);
        }
    }

    #[test]
    fn what_a_collection_came_to_is_said_as_it_is() {
        let view = |images: usize, freed_bytes, problem: Option<&str>| {
            let image =
                CollectedImage { id: "sha256:aa".to_owned(), references: Vec::new(), engine: true, store: true };
            CollectedView {
                machine: "atlas".parse().unwrap(),
                images: vec![image; images],
                freed_bytes,
                problem: problem.map(str::to_owned),
            }
        };
        let (none, away) = (view(0, 0, None), view(0, 0, Some("it is not connected")));
        let says = |machines: &[CollectedView], dry_run| summary(machines, dry_run).unwrap_or_default();
        assert_eq!(says(std::slice::from_ref(&none), false), "There is no image that nothing needs.");
        assert!(says(&[none, away.clone()], false).ends_with("on the machines that could look."));
        assert_eq!(says(std::slice::from_ref(&away), false), "", "nobody knows");
        assert!(says(&[view(1, 5_000_000, None)], false).ends_with(" are given back within minutes."));
        assert!(says(&[view(1, 5_000_000, None), away], true).ends_with(" would be given back within minutes."));
        assert_eq!(says(&[view(1, 0, None)], false), "");
    }

    #[test]
    fn who_holds_an_image_is_told_from_who_is_getting_it() {
        let there = ImageHolderView {
            machine: "atlas".parse().unwrap(),
            engine: true,
            store: true,
            wanted: true,
            lost: false,
            transfer: None,
            observed_at: None,
        };
        let with = |change: &dyn Fn(&mut ImageHolderView)| {
            let mut it = there.clone();
            change(&mut it);
            holder(&it)
        };
        assert_eq!(holder(&there), "atlas");
        assert_eq!(with(&|it| it.lost = true), "atlas (lost)");
        assert_eq!(with(&|it| it.store = false), "atlas (engine)");
        assert_eq!(with(&|it| (it.engine, it.store) = (false, false)), "atlas (missing)");
        let fetching = |of| Some(TransferView { step: ImageStep::Fetching, bytes: 30, of });
        assert_eq!(with(&|it| it.transfer = fetching(120)), "atlas (fetching 25 %)");
        assert_eq!(with(&|it| it.transfer = fetching(0)), "atlas (fetching)");
    }
}
