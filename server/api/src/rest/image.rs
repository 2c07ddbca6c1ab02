//! Images of the cluster: which machines hold them, and how they are pushed by layers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{MachineName, Revision, ServiceName, UnixMillis};

/// `GET /api/v1/images/held`, an array of it; also a row of `flotilla image ls --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldImageView {
    /// The engine's id; a reference where that is not known yet.
    pub id: String,
    pub references: Vec<String>,
    /// Of its layers, unpacked; absent until a machine has it in its store.
    pub size_bytes: Option<u64>,
    /// Of layers that another image here has as well, and that are kept once.
    pub shared_bytes: Option<u64>,
    /// From the bottom up, as far as the machine that answers knows them.
    pub layers: Vec<LayerView>,
    pub used_by: Vec<ImageUseView>,
    /// Machines that have it, shall have it, or are getting it.
    pub machines: Vec<ImageHolderView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerView {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    pub size_bytes: u64,
    /// Other images here that have it.
    pub shared_with: u32,
}

/// Revisions of a service that name an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUseView {
    pub service: ServiceName,
    pub revisions: Vec<Revision>,
    /// One of them runs, or shall run. The others can be rolled back to.
    pub current: bool,
}

/// How one machine does with an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHolderView {
    pub machine: MachineName,
    /// Its engine has it: a container can be started.
    pub engine: bool,
    /// Its store has it: other machines can get it there.
    pub store: bool,
    /// It shall have it, as its service runs there or may start there.
    pub wanted: bool,
    /// The machine is lost.
    pub lost: bool,
    pub transfer: Option<TransferView>,
    /// When it told this; absent where it told nothing.
    pub observed_at: Option<UnixMillis>,
}

/// An image on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    pub step: ImageStep,
    pub bytes: u64,
    /// 0 where it is not known.
    pub of: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageStep {
    /// From a registry.
    Pulling,
    /// From other machines.
    Fetching,
    /// A push arrives from a person's machine.
    Receiving,
    /// The store takes it in from the engine.
    Storing,
    /// The engine takes it from the store.
    Loading,
}

impl ImageStep {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulling => "pulling",
            Self::Fetching => "fetching",
            Self::Receiving => "receiving",
            Self::Storing => "storing",
            Self::Loading => "loading",
        }
    }
}

/// `POST /api/v1/images/lacking`: which layers have to be sent?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskLayers {
    /// SHA-256 of each layer as it would be sent, 64 hexadecimal digits.
    pub layers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LackingLayers {
    /// Those that no machine of the cluster has; and which bytes of each have arrived, where it was begun.
    pub layers: BTreeMap<String, u64>,
}

/// `POST /api/v1/images`: an image is made of layers that the cluster has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushImage {
    /// The image's configuration, to the byte: its SHA-256 is the image's id.
    pub config: String,
    /// SHA-256 of each layer, from the bottom up.
    pub layers: Vec<String>,
    /// Names that it is given.
    pub references: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedImage {
    /// The engine's id.
    pub id: String,
    pub references: Vec<String>,
}

/// `POST /api/v1/images/renew`: an image that is there is as new as if it had been pushed now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewImage {
    /// The engine's id.
    pub id: String,
}

/// Query of `DELETE /api/v1/images`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveImageQuery {
    /// A reference or an id.
    pub name: String,
}

/// Query of `POST /api/v1/images/gc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectQuery {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What one machine removed, or would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedView {
    pub machine: MachineName,
    pub images: Vec<CollectedImage>,
    /// Bytes of layers, unpacked, that no other image in its store has. Their room is given back within minutes.
    pub freed_bytes: u64,
    /// Why it could not be asked, or not do it: one sentence.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedImage {
    pub id: String,
    pub references: Vec<String>,
    /// It went from the engine.
    pub engine: bool,
    /// It went from the store.
    pub store: bool,
}
