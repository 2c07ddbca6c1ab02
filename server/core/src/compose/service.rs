//! One service of a compose file.

use std::collections::{BTreeMap, BTreeSet};

use docker_compose_types as compose;
use flotilla_api::{
    ApiError, ServiceName, StackName, VolumeName,
    spec::{HealthCheck, Resources, Restart, ServiceSpec, VolumeMount},
};
use serde::Deserialize;

use super::{Build, EXTENSION, forms, invalid_name, section::Section};
use crate::state::REPLICAS_MAX;

/// Docker's own, when nothing is said. Milliseconds.
const STOP_GRACE_MS: u64 = 10_000;
/// Longer than any shutdown that somebody waits for. Milliseconds.
const DURATION_MAX_MS: u64 = 3_600_000;
/// Docker refuses less. Bytes.
const MEMORY_MIN: u64 = 6 * 1024 * 1024;
/// The engine keeps what belongs to whom in labels that begin so.
const LABELS_RESERVED: &str = "flotilla.";
/// No reference is longer: a registry's limit on names (255), a host, a tag (128) and a digest.
const IMAGE_MAX: usize = 512;

pub(super) struct Reader<'a> {
    stack: &'a StackName,
    declared: BTreeSet<VolumeName>,
    variables: &'a BTreeMap<String, String>,
    /// Who mounts each volume.
    owners: BTreeMap<VolumeName, ServiceName>,
    services: Vec<ServiceSpec>,
    builds: Vec<Build>,
}

/// `x-flotilla` of a service.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    port: Option<u16>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        stack: &'a StackName,
        declared: BTreeSet<VolumeName>,
        variables: &'a BTreeMap<String, String>,
    ) -> Self {
        Self { stack, declared, variables, owners: BTreeMap::new(), services: Vec::new(), builds: Vec::new() }
    }

    pub(super) fn finish(self) -> (Vec<ServiceSpec>, Vec<Build>) {
        (self.services, self.builds)
    }

    pub(super) fn service(&mut self, name: ServiceName, section: &Section<'_>) -> Result<(), ApiError> {
        section.named("a map of keys")?;
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
        let spec = ServiceSpec {
            stack: self.stack.clone(),
            image,
            entrypoint: words(section.get("entrypoint"))?,
            command: words(section.get("command"))?,
            environment: self.environment(section)?,
            port: port(section)?,
            volumes,
            tmpfs,
            resources: resources(section)?,
            health: health(section)?,
            labels: labels(section)?,
            user: text(section, "user")?,
            working_dir: text(section, "working_dir")?,
            hostname: text(section, "hostname")?,
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
        if let Some(bad) = environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(section.invalid(&format!("has the name `{}`, which no variable can have", bad.escape_debug())));
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
                return Err(section.invalid(&format!("has `{}`; write `NAME=value`", text.escape_debug())));
            }
            pairs.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(pairs)
    }

    fn mounts(
        &mut self,
        name: &ServiceName,
        section: &Section<'_>,
    ) -> Result<(Vec<VolumeMount>, Vec<String>), ApiError> {
        let mut volumes = Vec::new();
        let mut tmpfs = tmpfs(section)?;
        let items = match section.get("volumes") {
            Some(section) => section.items("a list of volumes")?,
            None => Vec::new(),
        };
        let mut targets: BTreeSet<String> =
            tmpfs.iter().map(|text| text.split(':').next().unwrap_or_default().to_owned()).collect();
        for item in items {
            let mount = read_mount(&item)?;
            if !forms::is_container_path(&mount.target) {
                return Err(item.invalid("must be mounted at an absolute path in the container, and not at `/`"));
            }
            if !targets.insert(mount.target.trim_end_matches('/').to_owned()) {
                return Err(item.invalid(&format!("mounts a second volume at `{}`; keep one", mount.target)));
            }
            match mount.source {
                Source::Tmpfs { size } => {
                    let size = size.map_or_else(String::new, |size| format!(":size={size}"));
                    tmpfs.push(format!("{}{size}", mount.target));
                }
                Source::Volume(source) => {
                    let volume = self.own(name, &item, &source)?;
                    volumes.push(VolumeMount { volume, target: mount.target, read_only: mount.read_only });
                }
            }
        }
        Ok((volumes, tmpfs))
    }

    fn own(&mut self, name: &ServiceName, item: &Section<'_>, source: &str) -> Result<VolumeName, ApiError> {
        let volume: VolumeName = source.parse().map_err(|error| invalid_name(item.mark(), &error))?;
        if !self.declared.contains(&volume) {
            return Err(item.invalid(&format!(
                "mounts the volume `{volume}`, which is not declared; add `{volume}:` under the top-level `volumes`"
            )));
        }
        let owner = self.owners.entry(volume.clone()).or_insert_with(|| name.clone());
        if owner != name {
            return Err(item.unsupported(&format!(
                "mounts the volume `{volume}` of `{owner}`; a volume belongs to one service, so give each its own"
            )));
        }
        Ok(volume)
    }
}

struct Mount {
    source: Source,
    target: String,
    read_only: bool,
}

enum Source {
    Volume(String),
    Tmpfs { size: Option<u64> },
}

fn read_mount(item: &Section<'_>) -> Result<Mount, ApiError> {
    let bind = |item: &Section<'_>| {
        item.unsupported(
            "mounts a directory of the host, which another machine would not have; use a named volume, or bake it into the image",
        )
    };
    if item.get("tmpfs").is_some() || item.get("type").is_some() {
        return long_mount(item, &bind);
    }
    let text = match item.parse("`name:/path`, or a map with `type`, `source` and `target`")? {
        compose::Volumes::Simple(text) => text,
        compose::Volumes::Advanced(_) => return long_mount(item, &bind),
    };
    let Some(mount) = forms::mount(&text) else {
        return Err(item.invalid("must be `name:/path` or `name:/path:ro`"));
    };
    let Some(source) = mount.source else {
        return Err(item.unsupported("is a volume without a name; write `name:/path`, and the name under `volumes`"));
    };
    if forms::is_host_path(source) {
        return Err(bind(item));
    }
    let mut read_only = false;
    for mode in mount.modes {
        match mode {
            "ro" => read_only = true,
            // SELinux labels are the engine's business, and a directory of ours needs none.
            "rw" | "z" | "Z" => {}
            _ => return Err(item.unsupported(&format!("has the mode `{}`; use `ro` or `rw`", mode.escape_debug()))),
        }
    }
    Ok(Mount { source: Source::Volume(source.to_owned()), target: mount.target.to_owned(), read_only })
}

fn long_mount(item: &Section<'_>, bind: &dyn Fn(&Section<'_>) -> ApiError) -> Result<Mount, ApiError> {
    let size = match item.get("tmpfs").and_then(|tmpfs| tmpfs.get("size")) {
        Some(size) => Some(forms::bytes(size.text()?).ok_or_else(|| size.invalid("must be a size such as `64m`"))?),
        None => None,
    };
    let part = |key: &str| item.get(key).map(|section| section.text().map(str::to_owned)).transpose();
    let target = part("target")?.ok_or_else(|| item.invalid("has no `target`; say where the container sees it"))?;
    let read_only = flag(item, "read_only")?;
    let source = match part("type")?.as_deref() {
        Some("tmpfs") => Source::Tmpfs { size },
        Some("volume") => {
            let source = part("source")?.filter(|source| !source.is_empty());
            let source = source.ok_or_else(|| item.unsupported("is a volume without a name; add `source`"))?;
            if forms::is_host_path(&source) {
                return Err(bind(item));
            }
            Source::Volume(source)
        }
        Some("bind") => return Err(bind(item)),
        Some(other) => {
            return Err(item.unsupported(&format!("has the type `{}`; use `volume` or `tmpfs`", other.escape_debug())));
        }
        None => return Err(item.invalid("has no `type`; use `volume` or `tmpfs`")),
    };
    Ok(Mount { source, target, read_only })
}

fn tmpfs(section: &Section<'_>) -> Result<Vec<String>, ApiError> {
    let Some(section) = section.get("tmpfs") else { return Ok(Vec::new()) };
    let list = match section.parse("a path, or a list of paths")? {
        compose::Tmpfs::Simple(text) => vec![text],
        compose::Tmpfs::List(list) => list,
    };
    for text in &list {
        let path = text.split(':').next().unwrap_or_default();
        if !forms::is_container_path(path) {
            return Err(
                section.invalid(&format!("has `{}`; write an absolute path in the container", text.escape_debug()))
            );
        }
    }
    Ok(list)
}

fn words(section: Option<Section<'_>>) -> Result<Option<Vec<String>>, ApiError> {
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
            let extension: Extension = section.parse("a map with `port`, a number from 1 to 65535")?;
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
    if let super::tree::Value::Map(_) = item.node.value {
        let port: compose::Port = item.parse("a map with `target`, a number from 1 to 65535")?;
        let protocol = port.protocol.as_deref().unwrap_or("tcp");
        return forms::port(&format!("{}/{protocol}", port.target))
            .ok_or_else(|| item.invalid("must have a `target` from 1 to 65535, and as `protocol` `tcp` or `udp`"));
    }
    forms::port(item.text()?).ok_or_else(|| item.invalid(&format!("must be {FORMS}")))
}

fn resources(section: &Section<'_>) -> Result<Resources, ApiError> {
    let limits =
        section.get("deploy").and_then(|deploy| deploy.get("resources")).and_then(|resources| resources.get("limits"));
    if let Some(deploy) = section.get("deploy") {
        // The library's own opinion on the shape of it all, where ours only picks what it needs.
        deploy.parse::<compose::Deploy>("a map as the Compose specification has it")?;
    }
    let cpu_millis = agreed(section.get("cpus"), limits.as_ref().and_then(|limits| limits.get("cpus")), |section| {
        forms::cpu_millis(section.text()?)
            .filter(|millis| *millis > 0)
            .ok_or_else(|| section.invalid("must be a number of cores such as `0.5`"))
    })?;
    let memory_bytes =
        agreed(section.get("mem_limit"), limits.as_ref().and_then(|limits| limits.get("memory")), |section| {
            forms::bytes(section.text()?)
                .filter(|bytes| *bytes >= MEMORY_MIN)
                .ok_or_else(|| section.invalid("must be a size such as `512m`, and at least `6m`"))
        })?;
    Ok(Resources { cpu_millis, memory_bytes })
}

/// A value that may stand at two places, if they say the same.
fn agreed<T: PartialEq>(
    one: Option<Section<'_>>,
    other: Option<Section<'_>>,
    read: impl Fn(&Section<'_>) -> Result<T, ApiError>,
) -> Result<Option<T>, ApiError> {
    match (one, other) {
        (Some(one), Some(other)) => {
            let value = read(&one)?;
            if value != read(&other)? {
                return Err(one.invalid(&format!("says something else than `{}`; keep one of the two", other.path)));
            }
            Ok(Some(value))
        }
        (Some(section), None) | (None, Some(section)) => read(&section).map(Some),
        (None, None) => Ok(None),
    }
}

fn replicas(section: &Section<'_>) -> Result<u32, ApiError> {
    let deploy = section.get("deploy").and_then(|deploy| deploy.get("replicas"));
    let replicas = agreed(section.get("scale"), deploy, |section| {
        let number: i64 = section.parse("a whole number")?;
        u32::try_from(number)
            .ok()
            .filter(|number| *number <= REPLICAS_MAX)
            .ok_or_else(|| section.invalid(&format!("must be a number from 0 to {REPLICAS_MAX}")))
    })?;
    Ok(replicas.unwrap_or(1))
}

fn health(section: &Section<'_>) -> Result<Option<HealthCheck>, ApiError> {
    let Some(section) = section.get("healthcheck") else { return Ok(None) };
    let check: compose::Healthcheck = section.parse("a map with `test`")?;
    let interval_ms = duration(&section, "interval")?.unwrap_or(30_000);
    let timeout_ms = duration(&section, "timeout")?.unwrap_or(30_000);
    let start_period_ms = duration(&section, "start_period")?.unwrap_or(0);
    let test = match check.test {
        _ if check.disable => vec!["NONE".to_owned()],
        Some(compose::HealthcheckTest::Single(command)) => vec!["CMD-SHELL".to_owned(), command],
        Some(compose::HealthcheckTest::Multiple(words)) => words,
        None => return Err(section.invalid("has no `test`; say how the health is checked, or `disable: true`")),
    };
    let good = match test.first().map(String::as_str) {
        Some("NONE") => test.len() == 1,
        Some("CMD") => test.len() > 1,
        Some("CMD-SHELL") => test.len() == 2,
        _ => false,
    };
    if !good {
        return Err(section
            .invalid("must have a `test` that is a text, or a list that begins with `CMD`, `CMD-SHELL` or `NONE`"));
    }
    if interval_ms == 0 || timeout_ms == 0 {
        return Err(section.invalid("has a time of 0; `interval` and `timeout` must be longer"));
    }
    let retries = match check.retries {
        // The library's word for "not there".
        0 if section.get("retries").is_none() => 3,
        number => u32::try_from(number)
            .ok()
            .filter(|number| (1..=1_000).contains(number))
            .ok_or_else(|| section.invalid("must have `retries` from 1 to 1000"))?,
    };
    Ok(Some(HealthCheck { test, interval_ms, timeout_ms, start_period_ms, retries }))
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
                name.escape_debug()
            )));
        }
    }
    Ok(labels)
}

fn restart(section: &Section<'_>) -> Result<Restart, ApiError> {
    let Some(section) = section.get("restart") else { return Ok(Restart::default()) };
    let text = section.text()?;
    let policy = match text.split_once(':') {
        None => match text {
            "no" => Some(Restart::Never),
            "always" | "unless-stopped" => Some(Restart::Always),
            "on-failure" => Some(Restart::OnFailure { max: None }),
            _ => None,
        },
        Some(("on-failure", max)) => max.parse().ok().map(|max| Restart::OnFailure { max: Some(max) }),
        Some(_) => None,
    };
    policy.ok_or_else(|| section.invalid("must be `always`, `unless-stopped`, `on-failure`, `on-failure:3` or `no`"))
}

fn depends_on(section: &Section<'_>) -> Result<BTreeSet<ServiceName>, ApiError> {
    let Some(section) = section.get("depends_on") else { return Ok(BTreeSet::new()) };
    let name = |text: &str| text.parse::<ServiceName>().map_err(|error| invalid_name(section.mark(), &error));
    match section.parse("a list of services, or a map of them with a `condition`")? {
        compose::DependsOnOptions::Simple(names) => names.iter().map(|text| name(text)).collect(),
        compose::DependsOnOptions::Conditional(map) => {
            let mut names = BTreeSet::new();
            for (text, depends) in map {
                if !matches!(depends.condition.as_str(), "service_started" | "service_healthy") {
                    return Err(section.unsupported(&format!(
                        "has the condition `{}`; use `service_started` or `service_healthy`",
                        depends.condition.escape_debug()
                    )));
                }
                names.insert(name(&text)?);
            }
            Ok(names)
        }
    }
}

fn capabilities(section: &Section<'_>, key: &str) -> Result<BTreeSet<String>, ApiError> {
    let Some(section) = section.get(key) else { return Ok(BTreeSet::new()) };
    let mut names = BTreeSet::new();
    for text in section.parse::<Vec<String>>("a list of capabilities")? {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            return Err(section.invalid(&format!("has `{}`; write a name such as `NET_ADMIN`", text.escape_debug())));
        }
        names.insert(name.to_owned());
    }
    Ok(names)
}

fn stop_signal(section: &Section<'_>) -> Result<Option<String>, ApiError> {
    let Some(section) = section.get("stop_signal") else { return Ok(None) };
    let text = section.text()?;
    if text.is_empty()
        || text.len() > 20
        || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-".contains(&byte))
    {
        return Err(section.invalid("must be a signal such as `SIGINT`"));
    }
    Ok(Some(text.to_owned()))
}

/// Keys that ask for what happens anyway.
fn check_harmless(key: &str, section: &Section<'_>) -> Result<(), ApiError> {
    match key {
        "networks" => {
            if let super::tree::Value::Map(_) = section.node.value {
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
        super::tree::Value::Map(entries) => match entries.iter().find(|(key, _)| !key.text.starts_with("x-")) {
            None => Ok(()),
            Some((key, _)) => Err(key.mark.error(
                flotilla_api::ErrorCode::ComposeUnsupported,
                format!("`{}.{}` is not supported: leave the entry empty", section.path, key.text.escape_debug()),
            )),
        },
        _ => Err(section.wrong("empty")),
    }
}

fn text(section: &Section<'_>, key: &str) -> Result<Option<String>, ApiError> {
    section.get(key).map(|section| section.text().map(str::to_owned)).transpose()
}

fn flag(section: &Section<'_>, key: &str) -> Result<bool, ApiError> {
    section.get(key).map_or(Ok(false), |section| section.parse("`true` or `false`"))
}

fn duration(section: &Section<'_>, key: &str) -> Result<Option<u64>, ApiError> {
    let Some(section) = section.get(key) else { return Ok(None) };
    match forms::duration(section.text()?) {
        Some(millis) if millis <= DURATION_MAX_MS => Ok(Some(millis)),
        Some(_) => Err(section.invalid("is longer than an hour; use a shorter time")),
        None => Err(section.invalid("must be a time such as `30s` or `1m30s`")),
    }
}
