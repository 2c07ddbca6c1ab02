//! What an engine says of an image that it names by the digest of a manifest: an index, and below it manifests and further indexes (OCI
//! image layout). Each names others by their digests, so that the first digest fixes all.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::{Digest, Error};

/// Indexes below each other; engines write one.
const DEPTH_MAX: usize = 3;

/// Manifests that are looked at: some for each platform.
const LOOKED_AT_MAX: usize = 256;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Manifest {
    /// Of an index.
    manifests: Vec<Descriptor>,
    /// Of a manifest.
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
}

fn read(text: &str) -> Result<Manifest, Error> {
    serde_json::from_str(text).map_err(|error| unreadable(&error))
}

fn unreadable(error: &serde_json::Error) -> Error {
    Error::Format(format!("its manifest can't be read ({error})"))
}

/// What an archive's `index.json` has the engine load.
pub(super) fn named(index: &str) -> Result<Vec<Digest>, Error> {
    let digest = |it: Descriptor| it.digest.parse().map_err(|_| Error::Format("its index names no digest".to_owned()));
    read(index)?.manifests.into_iter().map(digest).collect()
}

/// The same `index.json` without names: the engine would give them to the image, and they are not the image's.
pub(super) fn unnamed(index: &str) -> Result<String, Error> {
    let mut index: Value = serde_json::from_str(index).map_err(|error| unreadable(&error))?;
    let entries = index.get_mut("manifests").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
        entry.remove("annotations");
    }
    Ok(index.to_string())
}

/// What one comes to from a manifest or an index.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// All that is named on the way, and where it began.
    pub(super) blobs: BTreeSet<Digest>,
    /// The configuration and the layers of each manifest.
    images: Vec<(Digest, Vec<Digest>)>,
}

impl Reached {
    /// Is there a manifest of exactly this configuration and these layers?
    pub(super) fn has(&self, config: &Digest, layers: &[Digest]) -> bool {
        self.images.iter().any(|(named, of)| named == config && of == layers)
    }
}

/// Goes from a manifest or an index to all that it names. What `blob` does not have is of another platform.
pub(super) fn reach(id: &Digest, blob: impl Fn(&Digest) -> Result<Option<String>, Error>) -> Result<Reached, Error> {
    let mut reached = Reached::default();
    let mut left = vec![(id.clone(), 0)];
    let mut looked_at = 0;
    while let Some((digest, depth)) = left.pop() {
        looked_at += 1;
        if looked_at > LOOKED_AT_MAX || depth > DEPTH_MAX {
            return Err(Error::Format("its manifests lead too far".to_owned()));
        }
        reached.blobs.insert(digest.clone());
        let Some(text) = blob(&digest)? else { continue };
        let Manifest { manifests, config, layers } = read(&text)?;
        left.extend(digests(&manifests).map(|below| (below, depth + 1)));
        let layers: Vec<Digest> = digests(&layers).collect();
        reached.blobs.extend(layers.iter().cloned());
        if let Some(config) = digests(&config).next() {
            reached.blobs.insert(config.clone());
            reached.images.push((config, layers));
        }
    }
    Ok(reached)
}

/// Those that are SHA-256.
fn digests<'a>(named: impl IntoIterator<Item = &'a Descriptor>) -> impl Iterator<Item = Digest> {
    named.into_iter().filter_map(|it| it.digest.parse().ok())
}
