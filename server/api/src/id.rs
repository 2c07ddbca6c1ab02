//! Names and ids as types of their own: what was parsed once need not be checked again.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A service name is a label of a host name (RFC 1123, 2.1), because its page lives at `<service>.<cluster domain>`.
pub const NAME_MAX: usize = 40;

/// Characters of a secret's or config's name, as Docker's own.
pub const VALUE_NAME_MAX: usize = 64;

/// Names that the shell, the node or a browser already uses as a host label.
pub const RESERVED_NAMES: &[&str] = &["app", "api", "www", "localhost", "relay", "flotilla"];

/// Why a text is no name. The sentence is meant for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    pub kind: &'static str,
    pub text: String,
    pub why: &'static str,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.text.chars().take(64).collect();
        write!(f, "`{}` is no {}: {}", shown.escape_debug(), self.kind, self.why)
    }
}

impl std::error::Error for InvalidName {}

/// Checks that `text` is a host name label: 1 to 40 of `a-z`, `0-9` and `-`, with no hyphen at either end.
fn check_label(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    let refuse = |why| Err(InvalidName { kind, text: text.to_owned(), why });
    if text.is_empty() {
        return refuse("it is empty; use 1 to 40 letters, digits and hyphens");
    }
    if text.len() > NAME_MAX {
        return refuse("it is too long; use at most 40 characters");
    }
    if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return refuse("use only the letters a to z in lower case, digits and hyphens, as in a host name");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return refuse("it may not begin or end with a hyphen");
    }
    Ok(())
}

/// Checks that `text` can name a volume, by Docker's rule: it is a directory's name, never a host's.
fn check_volume(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    let refuse = |why| Err(InvalidName { kind, text: text.to_owned(), why });
    if text.is_empty() || text.len() > NAME_MAX {
        return refuse("use 1 to 40 letters, digits, `_`, `.` and hyphens");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return refuse("use only letters, digits, `_`, `.` and hyphens");
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return refuse("it must begin with a letter or digit");
    }
    Ok(())
}

/// Checks that `text` can name a secret or config, by Docker's rule: it is a file's name in a container.
fn check_value(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    let refuse = |why| Err(InvalidName { kind, text: text.to_owned(), why });
    if text.is_empty() || text.len() > VALUE_NAME_MAX {
        return refuse("use 1 to 64 letters, digits, `_`, `.` and hyphens");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return refuse("use only letters, digits, `_`, `.` and hyphens");
    }
    let at_an_end = |c: char| c.is_ascii_alphanumeric();
    if !text.starts_with(at_an_end) || !text.ends_with(at_an_end) {
        return refuse("it must begin and end with a letter or digit");
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, reserved: $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                $check($kind, text)?;
                let reserved: &[&str] = $reserved;
                if reserved.contains(&text) {
                    return Err(InvalidName {
                        kind: $kind,
                        text: text.to_owned(),
                        why: "the name is reserved; choose another",
                    });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

label!(
    /// The name of a service, and the first label of its host name.
    ServiceName, "service name", check_label, reserved: RESERVED_NAMES
);
label!(
    /// The name of a stack: the services of one compose file, which share a private network.
    StackName, "stack name", check_label, reserved: &[]
);
label!(
    /// The name of a machine, unique in the cluster.
    MachineName, "machine name", check_label, reserved: &[]
);
label!(
    /// The name of a volume, unique within its service.
    VolumeName, "volume name", check_volume, reserved: &[]
);
label!(
    /// The name of a secret or a config, unique among those of its kind in the cluster.
    ValueName, "name of a secret or config", check_value, reserved: &[]
);

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

opaque_id!(
    /// A node: the hexadecimal SHA-256 of its Ed25519 public key, first 16 bytes.
    NodeId
);
opaque_id!(
    /// One container of a service: `<service>-<revision>-<replica>-<random>`.
    InstanceId
);
opaque_id!(
    /// A token or invitation, as in a JWT's `jti` (RFC 7519, 4.1.7).
    TokenId
);

/// Nodes of tests and simulations are numbered.
impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self(number.to_string())
    }
}

/// The number of a service's specification, from 1; it only grows, a roll back included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_host_label() {
        for good in ["notes", "a", "my-app-2", "0day"] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "Notes", "a.b", "a_b", "é", "a b", &"x".repeat(41), "app", "localhost"] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?} was taken for a service name");
        }
    }

    #[test]
    fn a_value_name_is_a_file_name() {
        for good in ["db-password", "shop_tls.key", "A", "0"] {
            assert_eq!(good.parse::<ValueName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "a-", "a.", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<ValueName>().is_err(), "{bad:?} was taken for a value's name");
        }
    }

    #[test]
    fn a_volume_name_is_a_directory_name() {
        for good in ["data", "pg_data", "Data.1", "a"] {
            assert_eq!(good.parse::<VolumeName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "é", &"x".repeat(41)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?} was taken for a volume name");
        }
    }
}
