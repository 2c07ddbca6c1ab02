//! Images: what a reference means, pulling it where it is missing, loading archives, and what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use bollard::{
    body_try_stream,
    errors::Error as DockerError,
    models::{CreateImageInfo, ImageSummary},
    query_parameters::{
        CreateImageOptions, ImportImageOptions, ListImagesOptions, RemoveImageOptions, TagImageOptions,
    },
};
use bytes::Bytes;
use flotilla_api::{ServiceName, UnixMillis, rest::ImageView};
use flotilla_core::State;
use futures::{Stream, StreamExt, TryStreamExt};

use super::{
    Error,
    connection::{CALL_LIMIT, Client, one_line},
};

/// The longest reference: 255 bytes of name (as Docker has it), 128 of tag and a digest.
const REFERENCE_MAX: usize = 512;

/// A pull that has not moved for so long is given up: the registry, or the way to it, is gone.
const PULL_STALL: Duration = Duration::from_secs(90);

/// For a registry to say whether it has an image.
const REGISTRY_LIMIT: Duration = Duration::from_secs(15);

/// All of a pull: 20 GB at 1 MB/s. Something that is still not done is done by hand.
const PULL_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);

/// The engine unpacks an archive of some gigabytes in minutes.
const LOAD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The engine deletes the files of some gigabytes on a busy disk.
const REMOVE_LIMIT: Duration = Duration::from_secs(120);

const DEFAULT_REGISTRY: &str = "docker.io";

/// An image reference as Docker writes it: `[registry/]repository[:tag][@digest]`, or the id of a local image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    text: String,
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// # Errors
    /// What is no reference; above all what would mean something else in the path of a URL.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |why| {
            let image = text.chars().take(80).collect::<String>().escape_debug().to_string();
            Err(Error::Reference { image, why })
        };
        if text.is_empty() || text.len() > REFERENCE_MAX {
            return refuse("write it as `name:tag` or `registry/name:tag`, with at most 512 characters");
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return refuse("after the @ stands `sha256:` and 64 hexadecimal digits");
        }
        // A colon after the last slash begins the tag; one before it belongs to the registry's port.
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        let tag_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if tag.is_some_and(|tag| {
            tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.chars().all(tag_char)
        }) {
            return refuse("a tag has letters, digits, `_`, `.` and `-` only");
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DEFAULT_REGISTRY, path),
        };
        let registry_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
        let part = |part: &str| {
            let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            part.starts_with(alphanumeric)
                && part.ends_with(alphanumeric)
                && part.chars().all(|c| alphanumeric(c) || matches!(c, '_' | '.' | '-'))
                && !part.contains("..")
        };
        // A registry of dots would be a way up in the path of a URL.
        let host = registry.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && registry.chars().all(registry_char)
            && !registry.contains("..");
        if !host || !repository.split('/').all(part) {
            return refuse("a name has lower-case letters, digits, and `_`, `.`, `-` between them");
        }
        Ok(Self {
            text: text.to_owned(),
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    fn is_local_id(text: &str) -> bool {
        is_digest(text)
    }

    /// As the engine lists it: without the registry or `library/` that everybody leaves out, and with the default tag.
    fn familiar(&self) -> String {
        let registry = if self.registry == DEFAULT_REGISTRY { String::new() } else { format!("{}/", self.registry) };
        let repository = self.repository.strip_prefix("library/").unwrap_or(&self.repository);
        match &self.digest {
            Some(digest) => format!("{registry}{repository}@{digest}"),
            None => format!("{registry}{repository}:{}", self.tag.as_deref().unwrap_or("latest")),
        }
    }

    /// What the engine's `fromImage` and `tag` want: never all tags of a repository.
    fn pull_options(&self) -> CreateImageOptions {
        let name = if self.registry == DEFAULT_REGISTRY {
            self.repository.clone()
        } else {
            format!("{}/{}", self.registry, self.repository)
        };
        let tag = self.digest.clone().unwrap_or_else(|| self.tag.clone().unwrap_or_else(|| "latest".to_owned()));
        CreateImageOptions { from_image: Some(name), tag: Some(tag), ..Default::default() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Does the engine list what one is called by the other?
pub(super) fn is_same_name(name: &str, other: &str) -> bool {
    name == other || Reference::parse(name).is_ok_and(|reference| reference.familiar() == other)
}

/// A name that an image can be given: no digest, which only its content gives.
pub(super) fn check_tag(image: &str) -> Result<(), Error> {
    match Reference::parse(image)?.digest {
        None => Ok(()),
        Some(_) => Err(Error::Reference { image: image.to_owned(), why: "an image can't be given a digest" }),
    }
}

/// How far a pull is. Sums grow while the registry tells of more layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub current_bytes: u64,
    pub total_bytes: u64,
}

impl PullProgress {
    pub fn sentence(&self, image: &str) -> String {
        const MEGABYTE: u64 = 1_000_000;
        format!(
            "pulling image `{image}`: {} of {} MB",
            self.current_bytes / MEGABYTE,
            self.total_bytes.div_ceil(MEGABYTE)
        )
    }
}

/// Looks on this machine first, then asks the registry. The engine's id of the image.
pub(super) async fn ensure(
    client: &Client,
    image: &str,
    mut progress: impl FnMut(PullProgress),
) -> Result<String, Error> {
    let reference = match look(client, image).await? {
        Looked::Here(id) => return Ok(id),
        Looked::Elsewhere(reference) => reference,
    };
    pull(client, &reference, &mut progress).await?;
    local(client, image).await?.ok_or_else(|| Error::Pull {
        image: image.to_owned(),
        registry: reference.registry.clone(),
        why: "it was pulled, but Docker Engine does not know it".to_owned(),
    })
}

enum Looked {
    /// By the engine's id.
    Here(String),
    /// Only a registry can have it.
    Elsewhere(Reference),
}

async fn look(client: &Client, image: &str) -> Result<Looked, Error> {
    match local(client, image).await? {
        Some(id) => Ok(Looked::Here(id)),
        None if Reference::is_local_id(image) => Err(Error::ImageNotLocal { image: image.to_owned() }),
        None => Reference::parse(image).map(Looked::Elsewhere),
    }
}

/// The engine's id of an image that is on this machine.
pub(super) async fn local(client: &Client, image: &str) -> Result<Option<String>, Error> {
    if !Reference::is_local_id(image) {
        Reference::parse(image)?;
    }
    match client.call("look an image up", CALL_LIMIT, client.docker().inspect_image(image)).await {
        Ok(inspected) => Ok(inspected.id),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// An image's id where it is on this machine; `None` where its registry says that it has it. Nothing is pulled.
pub(super) async fn find(client: &Client, image: &str) -> Result<Option<String>, Error> {
    let reference = match look(client, image).await? {
        Looked::Here(id) => return Ok(Some(id)),
        Looked::Elsewhere(reference) => reference,
    };
    let name = reference.familiar();
    match tokio::time::timeout(REGISTRY_LIMIT, client.docker().inspect_registry_image(&name, None)).await {
        Err(_) => Err(reference.failed(&format!("it did not answer within {} s", REGISTRY_LIMIT.as_secs()))),
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) => Err(reference.refused(client, "ask a registry for an image", error)),
    }
}

/// Which of these images, named by id or reference, are on this machine.
pub(super) async fn held(client: &Client, wanted: &BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
    if wanted.is_empty() {
        return Ok(BTreeSet::new());
    }
    let listed = client.docker().list_images(Some(ListImagesOptions { digests: true, ..Default::default() }));
    let summaries = client.call("list its images", CALL_LIMIT, listed).await?;
    let there = |name: &str| {
        let familiar = Reference::parse(name).map(|reference| reference.familiar()).unwrap_or_default();
        summaries.iter().any(|summary| {
            summary.id == name || summary.repo_tags.contains(&familiar) || summary.repo_digests.contains(&familiar)
        })
    };
    Ok(wanted.iter().filter(|name| there(name)).cloned().collect())
}

/// Of all images on this machine, those without a name among them.
pub(super) async fn ids(client: &Client) -> Result<BTreeSet<String>, Error> {
    let listed = client.docker().list_images(Some(ListImagesOptions { all: true, ..Default::default() }));
    let summaries = client.call("list its images", CALL_LIMIT, listed).await?;
    Ok(summaries.into_iter().map(|summary| summary.id).collect())
}

/// Gives an image a name.
pub(super) async fn tag(client: &Client, id: &str, name: &str) -> Result<(), Error> {
    let reference = Reference::parse(name)?;
    let CreateImageOptions { from_image, tag, .. } = reference.pull_options();
    let options = TagImageOptions { repo: from_image, tag };
    client.call("name an image", CALL_LIMIT, client.docker().tag_image(id, Some(options))).await
}

async fn pull(client: &Client, reference: &Reference, progress: &mut impl FnMut(PullProgress)) -> Result<(), Error> {
    tracing::info!(image = %reference, "pulling");
    let mut answers = client.docker().create_image(Some(reference.pull_options()), None, None);
    let mut layers = Layers::default();
    let pulled = async {
        loop {
            match tokio::time::timeout(PULL_STALL, answers.next()).await {
                Err(_) => return Err(format!("nothing came for {} s", PULL_STALL.as_secs())),
                Ok(None) => return Ok(Ok(())),
                Ok(Some(Err(error))) => return Ok(Err(error)),
                Ok(Some(Ok(info))) => {
                    if let Some(now) = layers.take_in(info) {
                        progress(now);
                    }
                }
            }
        }
    };
    match tokio::time::timeout(PULL_LIMIT, pulled).await {
        Err(_) => Err(reference.failed(&format!("it took longer than {} h", PULL_LIMIT.as_secs() / 3600))),
        Ok(Err(why)) => Err(reference.failed(&why)),
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(reference.refused(client, "pull an image", error)),
    }
}

impl Reference {
    fn failed(&self, why: &str) -> Error {
        Error::Pull { image: self.text.clone(), registry: self.registry.clone(), why: one_line(why) }
    }

    /// What an engine answers that asked this image's registry.
    fn refused(&self, client: &Client, asked: &'static str, error: DockerError) -> Error {
        match error {
            DockerError::DockerResponseServerError { message, .. }
            | DockerError::DockerStreamError { error: message } => {
                if says_absent(&message) {
                    Error::ImageNotFound { image: self.text.clone(), registry: self.registry.clone() }
                } else {
                    self.failed(&message)
                }
            }
            other => client.error(asked, other),
        }
    }
}

/// Registries and engines have no code for it, only these words.
fn says_absent(message: &str) -> bool {
    let message = message.to_lowercase();
    [
        "manifest unknown",
        "name unknown",
        "does not exist",
        "not known to registry",
        "pull access denied",
        "requested access to the resource is denied",
    ]
    .iter()
    .any(|words| message.contains(words))
        || (message.contains("manifest for") && message.contains("not found"))
}

#[derive(Debug, Default)]
struct Layers(BTreeMap<String, PullProgress>);

impl Layers {
    fn take_in(&mut self, info: CreateImageInfo) -> Option<PullProgress> {
        // Unpacking counts from zero again; what was downloaded stays downloaded.
        if info.status.as_deref() != Some("Downloading") {
            return None;
        }
        let detail = info.progress_detail?;
        let bytes = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or_default();
        let layer = PullProgress { current_bytes: bytes(detail.current), total_bytes: bytes(detail.total) };
        self.0.insert(info.id?, layer);
        Some(self.0.values().fold(PullProgress::default(), |sum, layer| PullProgress {
            current_bytes: sum.current_bytes + layer.current_bytes,
            total_bytes: sum.total_bytes + layer.total_bytes,
        }))
    }
}

/// Hands an archive (`docker save` format) to the engine. The references, or ids, that it held.
pub(super) async fn load(
    client: &Client,
    archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> Result<Vec<String>, Error> {
    let options = ImportImageOptions { quiet: true, ..Default::default() };
    let answers = client.docker().import_image(options, body_try_stream(archive), None).try_collect::<Vec<_>>();
    let answers = match client.call("load the image", LOAD_LIMIT, answers).await {
        Ok(answers) => answers,
        Err(Error::Refused { message, .. }) => return Err(Error::Archive(message)),
        Err(error) => return Err(error),
    };
    let text: String = answers.into_iter().filter_map(|answer| answer.stream).collect();
    let images: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Loaded image: ").or_else(|| line.strip_prefix("Loaded image ID: ")))
        .map(|name| name.trim().to_owned())
        .collect();
    if images.is_empty() {
        return Err(Error::Archive("it holds no image".to_owned()));
    }
    Ok(images)
}

/// Those that are called `name`, by reference or id, or all.
pub(super) async fn list(client: &Client, state: &State, name: Option<&str>) -> Result<Vec<ImageView>, Error> {
    let name = match name {
        Some(id) if Reference::is_local_id(id) => Some(id.to_owned()),
        Some(reference) => Some(Reference::parse(reference)?.familiar()),
        None => None,
    };
    let is_meant = |image: &ImageSummary| {
        name.as_ref()
            .is_none_or(|name| image.id == *name || image.repo_tags.contains(name) || image.repo_digests.contains(name))
    };
    let listed = client.docker().list_images(Some(ListImagesOptions { digests: true, ..Default::default() }));
    let summaries = client.call("list its images", CALL_LIMIT, listed).await?;
    Ok(summaries.into_iter().filter(is_meant).map(|summary| view(summary, state)).collect())
}

fn view(summary: ImageSummary, state: &State) -> ImageView {
    let names: Vec<String> = summary.repo_tags.into_iter().filter(|name| !name.contains("<none>")).collect();
    let used_by: Vec<ServiceName> = state
        .services
        .values()
        .filter(|service| {
            let Some(spec) = service.revisions.get(&service.current).map(|record| &record.spec) else { return false };
            match &spec.image_id {
                Some(id) => *id == summary.id,
                None => {
                    spec.image == summary.id
                        || Reference::parse(&spec.image).is_ok_and(|reference| {
                            let familiar = reference.familiar();
                            names.contains(&familiar) || summary.repo_digests.contains(&familiar)
                        })
                }
            }
        })
        .map(|service| service.name.clone())
        .collect();
    ImageView {
        id: summary.id,
        references: names,
        size_bytes: u64::try_from(summary.size).unwrap_or_default(),
        created_at: UnixMillis(u64::try_from(summary.created).unwrap_or_default().saturating_mul(1000)),
        used_by,
    }
}

/// That it is gone already is as good.
pub(super) async fn remove(client: &Client, image: &str) -> Result<(), Error> {
    if !Reference::is_local_id(image) {
        Reference::parse(image)?;
    }
    let removed = client.docker().remove_image(image, None::<RemoveImageOptions>, None);
    match client.call("remove an image", REMOVE_LIMIT, removed).await {
        Err(error) if error.is_absent() => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, registry, familiar) in [
            ("nginx", "docker.io", "nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io", "nginx:1.27".to_owned()),
            ("library/nginx", "docker.io", "nginx:latest".to_owned()),
            ("localhost/notes", "localhost", "localhost/notes:latest".to_owned()),
            ("localhost:5000/team/notes:2", "localhost:5000", "localhost:5000/team/notes:2".to_owned()),
            ("ghcr.io/a/b_c.d-e", "ghcr.io", "ghcr.io/a/b_c.d-e:latest".to_owned()),
            (&format!("ghcr.io/a/b@{digest}"), "ghcr.io", format!("ghcr.io/a/b@{digest}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.registry, registry, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn what_could_reach_another_part_of_the_engine_is_no_reference() {
        for bad in [
            "",
            "..",
            "a/../b",
            "a?b=c",
            "a#b",
            "a b",
            "A",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:b:c",
            "a@sha256:12",
            "a%2f..",
            "-a",
            "../containers/x",
            "./x",
            ".../x",
            "a\n",
            "é",
            "a:t/../x",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was taken for a reference");
        }
        assert!(Reference::parse(&"a".repeat(513)).is_err());
    }

    #[test]
    fn an_absent_image_is_told_from_an_unreachable_registry() {
        for absent in [
            "manifest for localhost:5000/x:y not found: manifest unknown: manifest unknown",
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "repository name not known to registry",
        ] {
            assert!(says_absent(absent), "{absent}");
        }
        for unreachable in [
            "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
            "Get \"http://localhost:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused",
        ] {
            assert!(!says_absent(unreachable), "{unreachable}");
        }
    }
}
