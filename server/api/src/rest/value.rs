//! Secrets and configs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Revision, ServiceName, UnixMillis, ValueName, spec::ValueKind};

/// The largest secret or config, as Docker's own. Bytes.
pub const VALUE_MAX: usize = 500 * 1024;

/// All values that come with one deployment. Bytes.
pub const DEPLOYED_VALUES_MAX: usize = 4 * 1024 * 1024;

/// The bytes of a secret or config, base64 (RFC 4648, 4).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Plain(pub String);

impl fmt::Debug for Plain {
    /// Without the bytes: a log would keep them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain(…)")
    }
}

/// `PUT /api/v1/secrets/{name}` and `PUT /api/v1/configs/{name}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetValue {
    pub value: Plain,
    /// Services that use it get it at once, as a new revision; otherwise at their next deployment.
    #[serde(default = "yes")]
    pub update: bool,
}

fn yes() -> bool {
    true
}

/// What setting a value did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueSet {
    pub name: ValueName,
    /// The newest.
    pub version: u64,
    /// False where that is the same already.
    pub changed: bool,
    /// Services that are brought to it.
    pub updated: Vec<ValueUpdated>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueUpdated {
    pub service: ServiceName,
    /// The new one.
    pub revision: Revision,
}

/// `GET /api/v1/secrets` and `GET /api/v1/configs`, an array of it; also `…/{name}`. Never the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueView {
    pub kind: ValueKind,
    pub name: ValueName,
    /// The newest.
    pub version: u64,
    /// Those that are kept, the newest first.
    pub versions: Vec<ValueVersionView>,
    pub used_by: Vec<ValueUser>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueVersionView {
    pub version: u64,
    pub bytes: u64,
    pub set_at: UnixMillis,
    /// Name of the token that set it.
    pub set_by: String,
}

/// A service, and the version that its current revision has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueUser {
    pub service: ServiceName,
    pub version: u64,
}

/// Query of `GET /api/v1/configs/{name}/value`, which answers the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueQuery {
    /// Absent: the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// Answer of `POST /api/v1/cluster/rekey`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekeyed {
    /// Id of the new key.
    pub key: String,
    /// Versions that were sealed anew.
    pub resealed: u64,
    /// Versions that no machine has the key of any more: set them again, or remove them.
    pub unreadable: u64,
}

/// A value that a deployment brings with it: the compose file names a file or a variable of whoever deploys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedValue {
    pub kind: ValueKind,
    /// Its key under `secrets` or `configs` in the compose file.
    pub key: String,
    pub value: Plain,
}
