//! Secrets and configs as a service is given them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ValueName;

/// What a value is: bytes under a name that services are given. Both are sealed in the state log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueKind {
    /// Nobody but a container is ever shown it.
    Secret,
    /// Whoever operates services may read it.
    Config,
}

impl ValueKind {
    pub const ALL: &'static [Self] = &[Self::Secret, Self::Config];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A secret or config that a service is given, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueUse {
    pub kind: ValueKind,
    pub name: ValueName,
    /// From 1. It is part of a revision: one that is rolled back to is given what it had. 0 until the state has chosen the newest.
    #[serde(default)]
    pub version: u64,
    pub given: Given,
}

/// How a container finds a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Given {
    /// In a file that lies in memory, never on a disk.
    File {
        /// An absolute path in the container.
        target: String,
        /// Absent: whoever runs the node, which is root as a rule.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gid: Option<u32>,
        /// Permission bits.
        mode: u32,
    },
    /// In an environment variable of this name.
    Variable(String),
}

impl fmt::Display for Given {
    /// Where it is: a path, or a variable as a shell names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { target, .. } => f.write_str(target),
            Self::Variable(name) => write!(f, "${name}"),
        }
    }
}

impl ValueUse {
    /// Would it stand in the engine's own record of the container? That is so of every environment variable.
    pub fn is_told_to_engine(&self) -> bool {
        matches!(self.given, Given::Variable(_))
    }
}
