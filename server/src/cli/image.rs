//! `flotilla image`: images go from this machine's engine, or from an archive, to the node.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    time::Duration,
};

use bollard::Docker;
use comfy_table::Cell;
use flotilla_api::{MachineName, rest::LoadedImages};
use futures::StreamExt;
use serde::Deserialize;

use super::{Failure, Session, args::Image, output, time};
use crate::{client::Archive, clock};

/// How long the local engine may take to answer, and to send the next part of an image.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(60);

/// The manifest of an archive of `docker save` has a few hundred bytes per image. Bytes.
const MANIFEST_MAX: u64 = 1024 * 1024;

pub(super) async fn run(verb: Image, session: &Session) -> Result<(), Failure> {
    match verb {
        Image::Push { source } => push(&source, session).await,
        Image::Ls { machine } => list(machine.as_ref(), session).await,
    }
}

async fn list(machine: Option<&MachineName>, session: &Session) -> Result<(), Failure> {
    let images = match machine {
        Some(machine) => session.client.images_of(machine).await?,
        None => session.client.images().await?,
    };
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
                Cell::new(image.id.trim_start_matches("sha256:").get(..12).unwrap_or(&image.id)),
                Cell::new(time::size(image.size_bytes)),
                // Made reproducibly, without a date.
                Cell::new(if image.created_at.0 == 0 { String::new() } else { time::age(now, image.created_at) }),
                Cell::new(used_by.join(", ")),
            ]
        })
        .collect();
    session.output.table(&["IMAGE", "ID", "SIZE", "AGE", "USED BY"], rows, "The engine has no image.")
}

async fn push(source: &str, session: &Session) -> Result<(), Failure> {
    let path = Path::new(source);
    let looks_like_a_path =
        path.extension().is_some_and(|end| end == "tar" || end == "tgz") || source.starts_with(['.', '/']);
    let loaded = if path.is_file() {
        push_archive(path, session).await?
    } else if looks_like_a_path {
        return Err(Failure::Usage(format!("there is no file `{source}`")));
    } else {
        push_from_engine(source, session).await?
    };
    let (verb, loaded) = match loaded {
        Pushed::Sent(loaded) => ("Pushed", loaded),
        Pushed::WasThere(images) => ("The node already has", LoadedImages { images }),
    };
    session.output.done(&format!("{verb} {}.", loaded.images.join(", ")), &loaded)
}

enum Pushed {
    Sent(LoadedImages),
    WasThere(Vec<String>),
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
    if let Some(id) = &inspected.id
        && has(session, id, &[with_tag(image)]).await?
    {
        return Ok(Pushed::WasThere(vec![image.to_owned()]));
    }
    let mut archive = tempfile::NamedTempFile::new().map_err(Failure::io("make a file in", std::env::temp_dir()))?;
    let bar =
        output::bar(session.output, "Reading the image", inspected.size.and_then(|size| u64::try_from(size).ok()));
    let mut blocks = std::pin::pin!(docker.export_image(image));
    while let Some(block) = within(blocks.next()).await? {
        let block = block.map_err(unavailable)?;
        archive.write_all(&block).map_err(Failure::io("write", archive.path()))?;
        bar.inc(block.len() as u64);
    }
    archive.flush().map_err(Failure::io("write", archive.path()))?;
    bar.finish_and_clear();
    upload(archive.path(), session).await.map(Pushed::Sent)
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure::Other("this machine's container engine does not answer; is it overloaded?".into());
    tokio::time::timeout(ENGINE_TIMEOUT, future).await.map_err(late)
}

async fn push_archive(path: &Path, session: &Session) -> Result<Pushed, Failure> {
    let owned = path.to_owned();
    let images = tokio::task::spawn_blocking(move || images_in(&owned))
        .await
        .map_err(|error| Failure::Other(error.to_string()))?
        .map_err(Failure::io("read", path))?;
    let mut present = !images.is_empty();
    for image in &images {
        present = present && has(session, &image.id, &image.references).await?;
    }
    if present {
        return Ok(Pushed::WasThere(images.into_iter().flat_map(|image| image.references).collect()));
    }
    upload(path, session).await.map(Pushed::Sent)
}

/// Does the node's engine have this image, under all these references?
async fn has(session: &Session, id: &str, references: &[String]) -> Result<bool, Failure> {
    let images = session.client.images().await?;
    Ok(images
        .iter()
        .any(|image| image.id == id && references.iter().all(|reference| image.references.contains(reference))))
}

async fn upload(path: &Path, session: &Session) -> Result<LoadedImages, Failure> {
    let size = std::fs::metadata(path).map_err(Failure::io("read", path))?.len();
    let reading = output::bar(session.output, "Computing its digest", Some(size));
    let archive = Archive::open(path, {
        let reading = reading.clone();
        move |read| reading.set_position(read)
    })
    .await?;
    reading.finish_and_clear();
    let sending = output::bar(session.output, "Sending", Some(archive.size()));
    let loaded = session
        .client
        .upload(&archive, |sent| {
            sending.set_position(sent);
            if sent == size {
                sending.set_message("The node's engine loads it");
            }
        })
        .await;
    sending.finish_and_clear();
    Ok(loaded?)
}

/// `notes` is short for `notes:latest`.
fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[derive(Debug, PartialEq, Eq)]
struct ArchivedImage {
    id: String,
    references: Vec<String>,
}

/// What an archive of `docker save` holds, as its manifest says. Empty for what is no such archive, or is compressed: the
/// node's engine is the judge of those.
fn images_in(path: &Path) -> io::Result<Vec<ArchivedImage>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        config: String,
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
    }

    let mut archive = tar::Archive::new(File::open(path)?);
    let Ok(entries) = archive.entries_with_seek() else { return Ok(Vec::new()) };
    for entry in entries {
        let Ok(entry) = entry else { return Ok(Vec::new()) };
        if entry.path().is_ok_and(|path| path == Path::new("manifest.json")) {
            let mut text = String::new();
            entry.take(MANIFEST_MAX).read_to_string(&mut text)?;
            let Ok(manifest) = serde_json::from_str::<Vec<Entry>>(&text) else { return Ok(Vec::new()) };
            let image = |entry: Entry| {
                // The configuration's file is named for its digest, which is the image's id.
                let name = entry.config.rsplit('/').next().unwrap_or_default();
                ArchivedImage {
                    id: format!("sha256:{}", name.trim_end_matches(".json")),
                    references: entry.repo_tags.unwrap_or_default(),
                }
            };
            return Ok(manifest.into_iter().map(image).collect());
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
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
    fn an_archive_tells_its_images_and_what_is_none_tells_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.reopen().unwrap());
        let manifest = br#"[{"Config":"blobs/sha256/ab","RepoTags":["notes:1"],"Layers":[]}]"#;
        let mut header = tar::Header::new_gnu();
        header.set_size(manifest.len() as u64);
        tar.append_data(&mut header, "manifest.json", &manifest[..]).unwrap();
        tar.into_inner().unwrap();
        let expected = ArchivedImage { id: "sha256:ab".into(), references: vec!["notes:1".into()] };
        assert_eq!(images_in(file.path()).unwrap(), [expected]);

        std::fs::write(file.path(), "no archive at all").unwrap();
        assert_eq!(images_in(file.path()).unwrap(), []);
    }
}
