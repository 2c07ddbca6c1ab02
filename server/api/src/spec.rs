//! What a service shall be: the result of reading a compose file, before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{ServiceName, StackName, VolumeName};

/// One service of a compose file, with every default filled in. Two equal specifications mean the same containers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub stack: StackName,
    /// An image reference as Docker writes it, for example `nginx:1.27` or `localhost:5000/notes@sha256:…`.
    pub image: String,
    /// The engine's id of what `image` meant when the service was deployed. A tag that has moved since makes another revision,
    /// and a roll back runs what ran before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The TCP port in the container that the service's page is served from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    #[serde(default)]
    pub tmpfs: Vec<String>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default)]
    pub restart: Restart,
    /// How many instances shall run: 0 (stopped) or 1 with a volume, more without.
    pub replicas: u32,
    #[serde(default)]
    pub depends_on: BTreeSet<ServiceName>,
    #[serde(default)]
    pub init: bool,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub cap_add: BTreeSet<String>,
    #[serde(default)]
    pub cap_drop: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How long a container may take to stop before it is killed. Milliseconds.
    pub stop_grace_ms: u64,
}

/// A named volume, kept by Flotilla as a directory, and where the container sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    pub volume: VolumeName,
    /// An absolute path in the container.
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
}

/// Upper limits; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// As in the Compose specification; all times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `["CMD", …]`, `["CMD-SHELL", "…"]` or `["NONE"]`.
    pub test: Vec<String>,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    pub start_period_ms: u64,
    pub retries: u32,
}

/// When an instance that ended is started again (by the node, never by the engine).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "policy")]
pub enum Restart {
    /// Whatever its exit code: the default, because a service is meant to stay.
    #[default]
    Always,
    /// Only after a non-zero exit code, and at most `max` times in a row if given.
    OnFailure {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max: Option<u32>,
    },
    Never,
}
