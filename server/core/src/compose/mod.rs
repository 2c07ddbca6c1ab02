//! Reads a compose file into specifications, or says at which line and why not.
//!
//! The text becomes a tree within limits ([`tree`]); every key of it must stand in the table of what is supported
//! ([`SUPPORT`]); variables are put in ([`interpolate`]); and each key's value is read by the Compose library's types, whose
//! short and long forms are then made one specification ([`service`]).

mod deploy;
mod forms;
mod interpolate;
mod mounts;
mod runtime;
mod section;
mod service;
mod support;
mod tree;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use flotilla_api::{
    ApiError, ErrorCode, ServiceName, StackName, VolumeName,
    rest::COMPOSE_MAX,
    spec::{COPIES_MAX, HistoryRules, OnLoss, ServiceSpec, VolumeHooks, VolumeRules},
};

use interpolate::Interpolation;
use section::Section;
pub use support::{Key, SUPPORT, markdown};
use tree::{Mark, Value};
pub use values::{DeclaredValue, ValueSource};

use crate::{dependency, state::SERVICES_MAX};

/// Our own part of a service.
const EXTENSION: &str = "x-flotilla";

/// The stack's name where neither the file nor the caller says one.
const STACK_DEFAULT: &str = "default";

/// What a compose file asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Composition {
    pub stack: StackName,
    pub services: Vec<ServiceSpec>,
    /// Services whose image is built: the spec's image is the tag to give it.
    pub builds: Vec<Build>,
    /// Secrets and configs that come with the file.
    pub values: Vec<DeclaredValue>,
}

/// `build:` of a service; paths as written, relative to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    pub service: ServiceName,
    pub image: String,
    pub context: String,
    pub dockerfile: Option<String>,
    pub args: BTreeMap<String, String>,
    pub target: Option<String>,
}

/// `stack` is used where the file has no `name:`; `variables` stand for `${NAME}`.
///
/// # Errors
/// Names the key and its line.
pub fn read(text: &str, stack: Option<&str>, variables: &BTreeMap<String, String>) -> Result<Composition, ApiError> {
    if text.len() > COMPOSE_MAX {
        return Err(ApiError::new(
            ErrorCode::ComposeTooLarge,
            format!("the compose file has {} KiB; at most {} are read", text.len() / 1024, COMPOSE_MAX / 1024),
        ));
    }
    let mut tree = tree::parse(text)?;
    if !matches!(tree.value, Value::Map(_)) {
        let message = format!("a compose file is a map with `services`, but this is {}", tree.kind());
        return Err(tree.mark.invalid(message));
    }
    support::check(&tree)?;
    Interpolation::new(variables).apply(&mut tree)?;
    let root = Section::root(&tree);
    let stack = stack_name(&root, stack)?;
    only_default_network(&root)?;
    let volumes = declared_volumes(&root)?;
    let Some(section) = root.get("services") else {
        return Err(tree.mark.invalid("the file has no `services`; name at least one"));
    };
    let (names, values) = values::declared(&root, stack.as_str())?;
    let mut reader = service::Reader::new(&stack, volumes, names, variables);
    let entries = section.named("a map of services")?;
    if entries.len() > SERVICES_MAX {
        return Err(section.invalid(&format!("has {} entries; a cluster has at most {SERVICES_MAX}", entries.len())));
    }
    let mut places = BTreeMap::new();
    for (key, entry) in entries {
        let name: ServiceName =
            key.text.parse().map_err(|error: flotilla_api::InvalidName| invalid_name(key.mark, &error))?;
        places.insert(name.clone(), entry.get("depends_on").map_or(key.mark, |section| section.mark()));
        reader.service(name, &entry)?;
    }
    let (services, builds) = reader.finish();
    if services.is_empty() {
        return Err(section.invalid("is empty; name at least one service"));
    }
    check_dependencies(&services, &places)?;
    Ok(Composition { stack, services, builds, values })
}

fn invalid_name(mark: Mark, error: &flotilla_api::InvalidName) -> ApiError {
    mark.error(ErrorCode::InvalidName, error.to_string())
}

fn stack_name(root: &Section<'_>, fallback: Option<&str>) -> Result<StackName, ApiError> {
    if let Some(name) = root.get("name") {
        return name.text()?.parse().map_err(|error| invalid_name(name.mark(), &error));
    }
    // A directory may be called anything; as much of its name is taken as makes a label.
    let mut label = String::new();
    for c in fallback.unwrap_or(STACK_DEFAULT).chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => label.push(c),
            _ if label.is_empty() || label.ends_with('-') => {}
            _ => label.push('-'),
        }
        if label.len() >= flotilla_api::id::NAME_MAX {
            break;
        }
    }
    let label = label.trim_matches('-');
    let label = if label.is_empty() { STACK_DEFAULT } else { label };
    label.parse().map_err(|error: flotilla_api::InvalidName| ApiError::new(ErrorCode::InvalidName, error.to_string()))
}

fn only_default_network(root: &Section<'_>) -> Result<(), ApiError> {
    let Some(networks) = root.get("networks") else { return Ok(()) };
    for (_, network) in networks.named("a map of networks")? {
        service::check_empty(&network)?;
    }
    Ok(())
}

fn declared_volumes(root: &Section<'_>) -> Result<BTreeMap<VolumeName, VolumeRules>, ApiError> {
    let Some(section) = root.get("volumes") else { return Ok(BTreeMap::new()) };
    let mut volumes = BTreeMap::new();
    for (key, entry) in section.named("a map of volumes")? {
        // The check against the table has refused every key in it but our own.
        if !entry.node.is_null() && !matches!(entry.node.value, Value::Map(_)) {
            return Err(entry.wrong("empty"));
        }
        let rules = volume_rules(&entry)?;
        volumes.insert(key.text.parse().map_err(|error| invalid_name(key.mark, &error))?, rules);
    }
    Ok(volumes)
}

fn volume_rules(volume: &Section<'_>) -> Result<VolumeRules, ApiError> {
    const KEYS: [&str; 6] = ["on-loss", "replicas", "sync", "encrypted", "hooks", "history"];
    let mut rules = VolumeRules::default();
    let Some(extension) = volume.get(EXTENSION) else { return Ok(rules) };
    let known = dependency::listed(KEYS);
    for (key, _) in extension.named(&format!("a map with {known}"))? {
        if !KEYS.contains(&key.text.as_str()) {
            let message = format!("`{}` has no key `{}`; it has {known}", extension.path, tree::shown(&key.text));
            return Err(key.mark.invalid(message));
        }
    }
    if let Some(section) = extension.get("on-loss") {
        rules.on_loss = match section.text()? {
            "wait" => OnLoss::Wait,
            "start-empty" => OnLoss::StartEmpty,
            _ => return Err(section.invalid("must be `wait` or `start-empty`")),
        };
    }
    if let Some(section) = extension.get("replicas") {
        let number = section.text()?.parse().ok().filter(|number| *number <= COPIES_MAX);
        let wrong = || section.invalid(&format!("must be a number of other machines, 0 to {COPIES_MAX}"));
        rules.replicas = number.ok_or_else(wrong)?;
    }
    rules.sync = service::flag(&extension, "sync")?;
    rules.encrypted = service::flag(&extension, "encrypted")?;
    if let Some(hooks) = extension.get("hooks") {
        rules.hooks = volume_hooks(&hooks)?;
    }
    if let Some(history) = extension.get("history") {
        rules.history = volume_history(&history)?;
    }
    Ok(rules)
}

fn volume_history(history: &Section<'_>) -> Result<HistoryRules, ApiError> {
    const KEYS: [&str; 4] = ["last", "hourly", "daily", "weekly"];
    let known = dependency::listed(KEYS);
    for (key, _) in history.named(&format!("a map with {known}"))? {
        if !KEYS.contains(&key.text.as_str()) {
            let message = format!("`{}` has no key `{}`; it has {known}", history.path, tree::shown(&key.text));
            return Err(key.mark.invalid(message));
        }
    }
    let usual = HistoryRules::default();
    let number = |key: &str, usual: u32, least: u32, most: u32| {
        let Some(section) = history.get(key) else { return Ok(usual) };
        let number = section.text()?.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| section.invalid(&format!("must be a number of generations, {least} to {most}")))
    };
    let HistoryRules { last, hourly, daily, weekly } = HistoryRules::MAX;
    Ok(HistoryRules {
        last: number("last", usual.last, 1, last)?,
        hourly: number("hourly", usual.hourly, 0, hourly)?,
        daily: number("daily", usual.daily, 0, daily)?,
        weekly: number("weekly", usual.weekly, 0, weekly)?,
    })
}

fn volume_hooks(hooks: &Section<'_>) -> Result<VolumeHooks, ApiError> {
    for (key, _) in hooks.named("a map with `pre` and `post`")? {
        if !["pre", "post"].contains(&key.text.as_str()) {
            let message = format!("`{}` has no key `{}`; it has `pre` and `post`", hooks.path, tree::shown(&key.text));
            return Err(key.mark.invalid(message));
        }
    }
    let command = |key: &str| Ok::<_, ApiError>(service::words(hooks.get(key))?.unwrap_or_default());
    Ok(VolumeHooks { pre: command("pre")?, post: command("post")? })
}

/// Every dependency is there, and none depends on itself by any way round.
fn check_dependencies(services: &[ServiceSpec], places: &BTreeMap<ServiceName, Mark>) -> Result<(), ApiError> {
    for spec in services {
        if let Some(missing) = spec.depends_on.iter().find(|name| !places.contains_key(name)) {
            let message = format!("`{}` depends on `{missing}`, which is no service of this file", spec.name);
            return Err(places[&spec.name].invalid(message));
        }
    }
    let circle = dependency::circle(services.iter().map(|spec| (&spec.name, &spec.depends_on)));
    match circle.first() {
        None => Ok(()),
        Some(name) => Err(places[*name].invalid(format!(
            "{} wait for each other in a circle; remove one `depends_on`",
            dependency::listed(circle)
        ))),
    }
}
