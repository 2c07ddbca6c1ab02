//! What a token allows.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ServiceName;

/// The kinds of token, from the narrowest to the widest right over the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Opens services in a browser, and nothing else.
    User,
    /// Deploys, restarts and removes services, and opens all of them.
    Operator,
    /// Everything: also tokens, invitations and machines.
    Admin,
    /// A node among nodes; opens nothing and administers nothing.
    Machine,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Machine => "machine",
        })
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "user" => Ok(Self::User),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            "machine" => Ok(Self::Machine),
            _ => Err(format!("`{}` is no scope; use admin, operator, user or machine", text.escape_debug())),
        }
    }
}

/// A scope and, for a user, which services. An empty `services` of a user opens none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub scope: Scope,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<ServiceName>,
}

impl Grant {
    pub fn admin() -> Self {
        Self { scope: Scope::Admin, services: BTreeSet::new() }
    }

    /// May its holder open this service in a browser?
    pub fn opens(&self, service: &ServiceName) -> bool {
        match self.scope {
            Scope::Admin | Scope::Operator => true,
            Scope::User => self.services.contains(service),
            Scope::Machine => false,
        }
    }

    /// May its holder see and change services?
    pub fn operates(&self) -> bool {
        matches!(self.scope, Scope::Admin | Scope::Operator)
    }

    /// May its holder make and revoke tokens?
    pub fn administers(&self) -> bool {
        self.scope == Scope::Admin
    }
}
