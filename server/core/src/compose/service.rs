//! One service of a compose file.

use std::collections::BTreeMap;

use docker_compose_types as compose;
use flotilla_api::{
    ApiError, ServiceName, StackName, VolumeName,
    spec::{ServiceSpec, VolumeRules},
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    Build, EXTENSION, deploy, forms,
    runtime::{capabilities, depends_on, duration, health, hostname, replicas, restart, stop_signal, working_dir},
    section::Section,
    tree::{Value, shown},
    values::{self, Names},
};

/// Docker's own, when nothing is said. Milliseconds.
const STOP_GRACE_MS: u64 = 10_000;
/// The engine keeps what belongs to whom in labels that begin so.
const LABELS_RESERVED: &str = "flotilla.";
/// Linux gives no process a longer one (MAX_ARG_STRLEN), the `=` and the final zero included.
const VARIABLE_MAX: usize = 128 * 1024 - 2;
/// No reference is longer: a registry's limit on names (255), a host, a tag (128) and a digest.
const IMAGE_MAX: usize = 512;

pub(super) struct Reader<'a> {
    stack: &'a StackName,
    pub(super) declared: BTreeMap<VolumeName, VolumeRules>,
    /// Secrets and configs that the file declares.
    names: Names,
    variables: &'a BTreeMap<String, String>,
    /// Who mounts each volume.
    pub(super) owners: BTreeMap<VolumeName, ServiceName>,
    services: Vec<ServiceSpec>,
    builds: Vec<Build>,
}

/// `x-flotilla` of a service.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    port: Option<u16>,
    #[serde(default, rename = "environment")]
    _environment: IgnoredAny,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        stack: &'a StackName,
        declared: BTreeMap<VolumeName, VolumeRules>,
        names: Names,
        variables: &'a BTreeMap<String, String>,
    ) -> Self {
        Self { stack, declared, names, variables, owners: BTreeMap::new(), services: Vec::new(), builds: Vec::new() }
    }

    pub(super) fn finish(self) -> (Vec<ServiceSpec>, Vec<Build>) {
        (self.services, self.builds)
    }

    pub(super) fn service(&mut self, name: ServiceName, section: &Section<'_>) -> Result<(), ApiError> {
        section.named("a map of keys")?;
        deploy::check_shape(section)?;
        let image = self.image(&name, section)?;
        let (volumes, tmpfs) = self.mounts(&name, section)?;
        let replicas = replicas(section)?;
        if let Some(mount) = volumes.iter().find(|mount| replicas > 1 && !mount.read_only) {
            return Err(section.invalid(&format!(
                "writes the volume `{}`, so it can't have {replicas} replicas; use one, or mount the volume read-only",
                mount.volume
            )));
        }
        for key in ["networks", "pull_policy", "expose"] {
            if let Some(section) = section.get(key) {
                check_harmless(key, &section)?;
            }
        }
        let writes = volumes.iter().find(|mount| !mount.read_only).map(|mount| mount.volume.as_str());
        let update = deploy::update(section, writes)?;
        let resources = deploy::limits(section)?;
        let spec = ServiceSpec {
            stack: self.stack.clone(),
            image,
            image_id: None,
            entrypoint: words(section.get("entrypoint"))?,
            command: words(section.get("command"))?,
            environment: self.environment(section)?,
            port: port(section)?,
            volumes,
            tmpfs,
            values: values::uses(&self.names, section)?,
            resources,
            reservations: deploy::reservations(section, resources)?,
            placement: deploy::placement(section)?,
            update,
            health: health(section)?,
            labels: labels(section)?,
            user: text(section, "user")?,
            working_dir: working_dir(section)?,
            hostname: hostname(section)?,
            restart: restart(section)?,
            replicas,
            depends_on: depends_on(section)?,
            init: flag(section, "init")?,
            read_only: flag(section, "read_only")?,
            cap_add: capabilities(section, "cap_add")?,
            cap_drop: capabilities(section, "cap_drop")?,
            stop_signal: stop_signal(section)?,
            stop_grace_ms: duration(section, "stop_grace_period")?.unwrap_or(STOP_GRACE_MS),
            name,
        };
        values::check_places(&spec, section)?;
        self.services.push(spec);
        Ok(())
    }

    fn image(&mut self, name: &ServiceName, section: &Section<'_>) -> Result<String, ApiError> {
        let image = match section.get("image") {
            Some(section) => {
                let text = section.text()?;
                if text.is_empty() || text.len() > IMAGE_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(section.invalid("must be an image reference such as `nginx:1.27`, without spaces"));
                }
                Some(text.to_owned())
            }
            None => None,
        };
        let Some(build) = section.get("build") else {
            return image.ok_or_else(|| section.invalid("has neither `image` nor `build`; name the image to run"));
        };
        let image = image.unwrap_or_else(|| format!("flotilla/{}-{name}:latest", self.stack));
        let (context, dockerfile, args, target) = match build.parse("a directory, or a map with `context`")? {
            compose::BuildStep::Simple(context) => (context, None, BTreeMap::new(), None),
            compose::BuildStep::Advanced(step) => {
                let args = match step.args {
                    None => BTreeMap::new(),
                    Some(compose::BuildArgs::Simple(arg)) => self.pairs(&build, [arg.as_str()].into_iter())?,
                    Some(compose::BuildArgs::List(args)) => self.pairs(&build, args.iter().map(String::as_str))?,
                    Some(compose::BuildArgs::KvPair(args)) => args.into_iter().collect(),
                };
                (step.context, step.dockerfile, args, step.target)
            }
        };
        if context.contains("://") || context.starts_with("git@") {
            return Err(build.unsupported("names a remote context; clone it, and name the directory"));
        }
        self.builds.push(Build { service: name.clone(), image: image.clone(), context, dockerfile, args, target });
        Ok(image)
    }

    fn environment(&self, section: &Section<'_>) -> Result<BTreeMap<String, String>, ApiError> {
        let Some(section) = section.get("environment") else { return Ok(BTreeMap::new()) };
        let environment = match section.parse("a map, or a list of `NAME=value`")? {
            compose::Environment::List(list) => self.pairs(&section, list.iter().map(String::as_str))?,
            compose::Environment::KvPair(map) => {
                let mut environment = BTreeMap::new();
                for (name, value) in map {
                    let value = value.map(|value| value.to_string()).or_else(|| self.variables.get(&name).cloned());
                    environment.extend(value.map(|value| (name, value)));
                }
                environment
            }
        };
        for (name, value) in &environment {
            if name.is_empty() || name.contains('=') {
                return Err(section.invalid(&format!("has the name `{}`, which no variable can have", shown(name))));
            }
            if name.len() + value.len() > VARIABLE_MAX {
                let reason =
                    format!("has a value for `{}` of more than 128 KiB, which no process can be given", shown(name));
                return Err(section.invalid(&reason));
            }
        }
        Ok(environment)
    }

    /// `NAME=value`, or `NAME` for the variable of that name, if it is set.
    fn pairs<'t>(
        &self,
        section: &Section<'_>,
        list: impl Iterator<Item = &'t str>,
    ) -> Result<BTreeMap<String, String>, ApiError> {
        let mut pairs = BTreeMap::new();
        for text in list {
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, self.variables.get(text).cloned()),
            };
            if name.is_empty() {
                return Err(section.invalid(&format!("has `{}`; write `NAME=value`", shown(text))));
            }
            pairs.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(pairs)
    }
}

pub(super) fn words(section: Option<Section<'_>>) -> Result<Option<Vec<String>>, ApiError> {
    let Some(section) = section else { return Ok(None) };
    match section.parse("a text, or a list of words")? {
        compose::Command::Args(words) => Ok(Some(words)),
        compose::Command::Simple(text) => shell_words::split(&text)
            .map(Some)
            .map_err(|_| section.invalid("has a quote that is never closed; close it, or write a list of words")),
    }
}

/// The port of the service's page.
fn port(section: &Section<'_>) -> Result<Option<u16>, ApiError> {
    let mut ports = Vec::new();
    if let Some(section) = section.get("ports") {
        for item in section.items("a list of ports")? {
            ports.push(read_port(&item)?);
        }
    }
    let extension = match section.get(EXTENSION) {
        Some(section) => {
            let extension: Extension =
                section.parse("a map with `port`, a number from 1 to 65535, and `environment`")?;
            if extension.port == Some(0) {
                return Err(section.invalid("has the port 0; use a number from 1 to 65535"));
            }
            extension.port
        }
        None => None,
    };
    Ok(extension.or_else(|| ports.iter().find(|port| port.tcp).map(|port| port.number)))
}

fn read_port(item: &Section<'_>) -> Result<forms::Port, ApiError> {
    const FORMS: &str = "a port such as `80`, `8080:80` or `53/udp`, or a map with `target`";
    if let Value::Map(_) = item.node.value {
        let port: compose::Port = item.parse("a map with `target`, a number from 1 to 65535")?;
        let protocol = port.protocol.as_deref().unwrap_or("tcp");
        return forms::port(&format!("{}/{protocol}", port.target))
            .ok_or_else(|| item.invalid("must have a `target` from 1 to 65535, and as `protocol` `tcp` or `udp`"));
    }
    forms::port(item.text()?).ok_or_else(|| item.invalid(&format!("must be {FORMS}")))
}

fn labels(section: &Section<'_>) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(section) = section.get("labels") else { return Ok(BTreeMap::new()) };
    let labels: BTreeMap<String, String> = match section.parse("a map, or a list of `NAME=value`")? {
        compose::Labels::Map(map) => map.into_iter().collect(),
        compose::Labels::List(list) => list
            .iter()
            .map(|text| text.split_once('=').unwrap_or((text, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    };
    for name in labels.keys() {
        if name.is_empty() || name.starts_with(LABELS_RESERVED) {
            return Err(section.invalid(&format!(
                "has the label `{}`; labels have a name, and `{LABELS_RESERVED}` is reserved",
                shown(name)
            )));
        }
    }
    Ok(labels)
}

/// Keys that ask for what happens anyway.
fn check_harmless(key: &str, section: &Section<'_>) -> Result<(), ApiError> {
    match key {
        "networks" => {
            if let Value::Map(_) = section.node.value {
                for (_, network) in section.named("a map of networks")? {
                    check_empty(&network)?;
                }
                return Ok(());
            }
            for item in section.items("a list with `default`")? {
                if item.text()? != "default" {
                    return Err(
                        item.unsupported("is another network than `default`; the services of one stack share one")
                    );
                }
            }
            Ok(())
        }
        "pull_policy" => match section.text()? {
            "missing" | "if_not_present" => Ok(()),
            _ => {
                Err(section.unsupported("is another policy than `missing`; images are pulled when they are not there"))
            }
        },
        _ => {
            for item in section.items("a list of ports")? {
                if forms::port(item.text()?).is_none() {
                    return Err(item.invalid("must be a port such as `80`"));
                }
            }
            Ok(())
        }
    }
}

pub(super) fn check_empty(section: &Section<'_>) -> Result<(), ApiError> {
    match &section.node.value {
        _ if section.node.is_null() => Ok(()),
        Value::Map(entries) => match entries.iter().find(|(key, _)| !key.text.starts_with("x-")) {
            None => Ok(()),
            Some((key, _)) => Err(key.mark.error(
                flotilla_api::ErrorCode::ComposeUnsupported,
                format!("`{}.{}` is not supported: leave the entry empty", section.path, shown(&key.text)),
            )),
        },
        _ => Err(section.wrong("empty")),
    }
}

fn text(section: &Section<'_>, key: &str) -> Result<Option<String>, ApiError> {
    section.get(key).map(|section| section.text().map(str::to_owned)).transpose()
}

pub(super) fn flag(section: &Section<'_>, key: &str) -> Result<bool, ApiError> {
    section.get(key).map_or(Ok(false), |section| section.parse("`true` or `false`"))
}
