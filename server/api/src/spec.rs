//! What a service shall be: the result of reading a compose file, before anything runs.

mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{ServiceName, StackName, VolumeName};

pub use value::{Given, ValueKind, ValueUse};

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
    /// Secrets and configs, in the order in which the file names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<ValueUse>,
    #[serde(default)]
    pub resources: Resources,
    /// What its machine must have left for it.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub reservations: Resources,
    #[serde(default, skip_serializing_if = "PlacementRules::is_empty")]
    pub placement: PlacementRules,
    #[serde(default, skip_serializing_if = "UpdateRules::is_usual")]
    pub update: UpdateRules,
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
    #[serde(flatten)]
    pub rules: VolumeRules,
}

/// Copies of a volume on other machines, as far as nobody says otherwise.
pub const COPIES_DEFAULT: u32 = 2;
/// The most copies that can be asked for: a cluster has ten machines.
pub const COPIES_MAX: u32 = 9;

/// What a volume's entry in the compose file asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeRules {
    #[serde(skip_serializing_if = "OnLoss::is_usual")]
    pub on_loss: OnLoss,
    /// Other machines that shall have a copy.
    #[serde(skip_serializing_if = "is_usual_copies")]
    pub replicas: u32,
    /// What is written shall be safe elsewhere within a second, whatever that costs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sync: bool,
    #[serde(skip_serializing_if = "VolumeHooks::is_empty")]
    pub hooks: VolumeHooks,
    /// What is kept of it, here and elsewhere, can be read with the cluster's key alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Which of its generations are kept.
    #[serde(skip_serializing_if = "HistoryRules::is_usual")]
    pub history: HistoryRules,
}

impl Default for VolumeRules {
    fn default() -> Self {
        Self {
            on_loss: OnLoss::default(),
            replicas: COPIES_DEFAULT,
            sync: false,
            hooks: VolumeHooks::default(),
            encrypted: false,
            history: HistoryRules::default(),
        }
    }
}

/// How many generations are kept: the newest ones, and for each of so many hours, days and weeks the newest in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryRules {
    /// At least 1.
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
}

impl HistoryRules {
    /// The most that can be asked for. A generation of its own costs little; a list of thousands is no help to anybody.
    pub const MAX: Self = Self { last: 200, hourly: 168, daily: 366, weekly: 260 };

    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for HistoryRules {
    fn default() -> Self {
        Self { last: 10, hourly: 24, daily: 14, weekly: 8 }
    }
}

/// `last 10, hourly 24, daily 14, weekly 8`
impl fmt::Display for HistoryRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { last, hourly, daily, weekly } = self;
        write!(f, "last {last}, hourly {hourly}, daily {daily}, weekly {weekly}")
    }
}

/// Commands in the service's container around the instant at which its volumes are captured, program first; empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeHooks {
    /// Brings the volume to a state that a program can begin with. What it writes is captured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<String>,
    /// Ends what `pre` has begun, whatever came of the capture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<String>,
}

impl VolumeHooks {
    pub fn is_empty(&self) -> bool {
        self.pre.is_empty() && self.post.is_empty()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_usual_copies(replicas: &u32) -> bool {
    *replicas == COPIES_DEFAULT
}

/// What becomes of a service when the only machine that has a volume's data is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLoss {
    /// It waits for the machine.
    #[default]
    Wait,
    /// It begins with an empty volume elsewhere.
    StartEmpty,
}

/// Amounts of processor time and memory: limits, where `None` is no limit, or reservations, where it is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// Which machines a service may run on, and how its instances are spread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRules {
    /// A machine has to fulfil all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Instances go to machines that differ in these, if they can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<Attribute>,
    /// Instances on one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_machine: Option<u32>,
}

/// `node.labels.zone == attic`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    pub attribute: Attribute,
    pub operator: Operator,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operator {
    Equal,
    Unequal,
}

/// What machines can be told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Attribute {
    /// `node.id`
    Id,
    /// `node.hostname`: the machine's name in the cluster.
    Hostname,
    /// `node.labels.<key>`; a machine without the label has an empty value.
    Label(String),
}

/// How a new revision reaches the instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateRules {
    /// Without effect on a service that writes a volume, whose old instance always stops first.
    pub order: UpdateOrder,
    /// Instances that are updated at one time; 0 is all.
    pub parallelism: u32,
    /// Between one instance that is well and the next update. Milliseconds.
    pub delay_ms: u64,
    /// How long an instance has to run before it counts as well; absent: until its health check says so, or ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor_ms: Option<u64>,
    pub on_failure: OnFailure,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The new instance is ready before the old one stops.
    #[default]
    StartFirst,
    StopFirst,
}

/// What becomes of a revision whose instances fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The last one that ran well comes back.
    #[default]
    Rollback,
    /// No further instance is updated.
    Pause,
}

impl Resources {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ServiceSpec {
    /// May it begin anew elsewhere where its data can't be had? One without volumes has none to lose.
    pub fn may_start_empty(&self) -> bool {
        self.volumes.iter().all(|mount| mount.rules.on_loss == OnLoss::StartEmpty)
    }

    /// The volumes that it writes, in the order in which it names them.
    pub fn written(&self) -> impl Iterator<Item = &VolumeMount> {
        self.volumes.iter().filter(|mount| !mount.read_only)
    }

    /// Is what is kept of this volume encrypted?
    pub fn encrypts(&self, volume: &VolumeName) -> bool {
        self.written().any(|mount| mount.volume == *volume && mount.rules.encrypted)
    }

    /// Does it take the cluster's key to keep what it writes?
    pub fn needs_key(&self) -> bool {
        self.written().any(|mount| mount.rules.encrypted)
    }

    /// Other machines that shall have a copy of what it writes.
    pub fn copies(&self) -> u32 {
        self.written().map(|mount| mount.rules.replicas).max().unwrap_or(0)
    }
}

impl OnLoss {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl PlacementRules {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl UpdateRules {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for UpdateRules {
    fn default() -> Self {
        Self {
            order: UpdateOrder::default(),
            parallelism: 1,
            delay_ms: 0,
            monitor_ms: None,
            on_failure: OnFailure::default(),
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.write_str("node.id"),
            Self::Hostname => f.write_str("node.hostname"),
            Self::Label(key) => write!(f, "node.labels.{key}"),
        }
    }
}

/// There is no such attribute of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownAttribute(pub String);

impl fmt::Display for UnknownAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.0.chars().take(64).collect();
        write!(
            f,
            "`{}` is nothing that a machine has; use `node.hostname`, `node.id` or `node.labels.<key>`",
            shown.escape_debug()
        )
    }
}

impl std::error::Error for UnknownAttribute {}

impl FromStr for Attribute {
    type Err = UnknownAttribute;

    fn from_str(text: &str) -> Result<Self, UnknownAttribute> {
        match text {
            "node.id" => Ok(Self::Id),
            "node.hostname" => Ok(Self::Hostname),
            _ => match text.strip_prefix("node.labels.") {
                Some(key) if !key.is_empty() => Ok(Self::Label(key.to_owned())),
                _ => Err(UnknownAttribute(text.to_owned())),
            },
        }
    }
}

impl TryFrom<String> for Attribute {
    type Error = UnknownAttribute;

    fn try_from(text: String) -> Result<Self, UnknownAttribute> {
        text.parse()
    }
}

impl From<Attribute> for String {
    fn from(attribute: Attribute) -> Self {
        attribute.to_string()
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = match self.operator {
            Operator::Equal => "==",
            Operator::Unequal => "!=",
        };
        write!(f, "{} {operator} {}", self.attribute, self.value)
    }
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
