//! Where settings come from, as providers for figment, and what is said when one is wrong.

use std::path::PathBuf;

use figment::{
    Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use super::{Error, Flags};

/// One setting: its key in the file and what it is for. The environment variable follows from the key.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) key: &'static str,
}

/// All settings, as they stand in docs/OPERATIONS.md.
pub(super) const SETTINGS: &[Setting] = &[
    Setting { key: "data_dir" },
    Setting { key: "listen" },
    Setting { key: "udp_port" },
    Setting { key: "domain" },
    Setting { key: "docker_host" },
    Setting { key: "join" },
    Setting { key: "tls.certificate" },
    Setting { key: "tls.key" },
    Setting { key: "log.level" },
    Setting { key: "log.format" },
    Setting { key: "relay.enabled" },
    Setting { key: "relay.port" },
    Setting { key: "relay.public_address" },
    Setting { key: "limits.connections" },
    Setting { key: "limits.requests" },
    Setting { key: "limits.streams" },
    Setting { key: "limits.sessions" },
    Setting { key: "limits.upload_bytes" },
    Setting { key: "limits.request_seconds" },
    Setting { key: "limits.pull_seconds" },
    Setting { key: "limits.build_seconds" },
];

const PREFIX: &str = "FLOTILLA_";

/// Variables with our prefix that others read: the command line, the demo, the build and the tests.
const OTHERS: &[&str] = &["FLOTILLA_API", "FLOTILLA_TOKEN", "FLOTILLA_CONTEXT"];
const OTHERS_PREFIXES: &[&str] =
    &["FLOTILLA_TEST_", "FLOTILLA_BUILD_", "FLOTILLA_WEB_", "FLOTILLA_BENCH_", "FLOTILLA_DEMO_"];

impl Setting {
    pub(super) fn variable(&self) -> String {
        variable(self.key)
    }
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// `FLOTILLA_DATA_DIR`, `FLOTILLA_LOG_LEVEL`, ...
#[derive(Clone, Debug)]
pub(super) struct Environment {
    values: Vec<(&'static str, String)>,
    pub(super) config: Option<PathBuf>,
    pub(super) unknown: Vec<String>,
}

impl Environment {
    pub(super) fn new(variables: Vec<(String, String)>) -> Self {
        let mut found = Self { values: Vec::new(), config: None, unknown: Vec::new() };
        for (name, value) in variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            if name == "FLOTILLA_CONFIG" {
                found.config = Some(value.into());
            } else if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) {
                found.values.push((setting.key, value));
            } else if !OTHERS.contains(&name.as_str()) && !OTHERS_PREFIXES.iter().any(|other| name.starts_with(other)) {
                found.unknown.push(name);
            }
        }
        found
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("the environment").interpolater(|_, keys| variable(&keys.join(".")))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut dict = Dict::new();
        for (key, text) in &self.values {
            // Never fails: what is no number, boolean or array is a string.
            let value = text.parse::<Value>().unwrap_or_else(|never| match never {});
            insert(&mut dict, key, value);
        }
        Ok(Profile::Default.collect(dict))
    }
}

/// `--data-dir`, `--log-level`, ...
#[derive(Clone, Debug)]
pub(super) struct CommandLine(pub(super) Flags);

impl Provider for CommandLine {
    fn metadata(&self) -> Metadata {
        Metadata::named("the command line").interpolater(|_, keys| format!("--{}", keys.join("-").replace('_', "-")))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let Flags { config: _, data_dir, listen, domain, docker_host, log_level, log_format } = &self.0;
        let mut dict = Dict::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                insert(&mut dict, key, value);
            }
        };
        set("data_dir", data_dir.as_ref().map(Value::serialize).transpose()?);
        set("listen", listen.as_ref().map(Value::serialize).transpose()?);
        set("domain", domain.as_ref().map(Value::serialize).transpose()?);
        set("docker_host", docker_host.as_ref().map(Value::serialize).transpose()?);
        set("log.level", log_level.as_ref().map(Value::serialize).transpose()?);
        set("log.format", log_format.as_ref().map(Value::serialize).transpose()?);
        Ok(Profile::Default.collect(dict))
    }
}

/// A provider under the name of the file that it was read from.
pub(super) struct Named<P> {
    provider: P,
    path: PathBuf,
}

impl<P> Named<P> {
    pub(super) fn new(provider: P, path: PathBuf) -> Self {
        Self { provider, path }
    }
}

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("`{}`", self.path.display())).interpolater(|_, keys| keys.join("."))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        self.provider.data()
    }
}

fn insert(dict: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            dict.insert(key.to_owned(), value);
        }
        Some((table, rest)) => {
            let table = dict.entry(table.to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = table {
                insert(inner, rest, value);
            }
        }
    }
}

/// One sentence that names the setting as it was written, and where.
pub(super) fn sentence(error: &figment::Error) -> Error {
    let place = error.metadata.as_ref().map(|metadata| {
        let profile = error.profile.clone().unwrap_or_default();
        let setting = metadata.interpolate(&profile, &error.path);
        if setting.is_empty() {
            format!(" in {}", metadata.name)
        } else {
            format!(" at `{setting}` in {}", metadata.name)
        }
    });
    // What the TOML parser says has several lines, with a drawing.
    let reason = error.kind.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Invalid(format!("the configuration is not right{}: {reason}", place.unwrap_or_default()))
}
