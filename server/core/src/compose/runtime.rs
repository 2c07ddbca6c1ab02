//! How a service lives: what it may use, when it is well, when it is started again, and how it ends.

use std::collections::BTreeSet;

use docker_compose_types as compose;
use flotilla_api::{
    ApiError, ServiceName,
    spec::{HealthCheck, Restart},
};

use super::{forms, invalid_name, section::Section, tree::shown};
use crate::state::REPLICAS_MAX;

/// Longer than any start, check or shutdown that somebody waits for. Milliseconds.
const DURATION_MAX_MS: u64 = 3_600_000;

/// A value that may stand at two places, if they say the same.
pub(super) fn agreed<T: PartialEq>(
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

pub(super) fn replicas(section: &Section<'_>) -> Result<u32, ApiError> {
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

pub(super) fn health(section: &Section<'_>) -> Result<Option<HealthCheck>, ApiError> {
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

pub(super) fn restart(section: &Section<'_>) -> Result<Restart, ApiError> {
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

pub(super) fn depends_on(section: &Section<'_>) -> Result<BTreeSet<ServiceName>, ApiError> {
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
                        shown(&depends.condition)
                    )));
                }
                names.insert(name(&text)?);
            }
            Ok(names)
        }
    }
}

pub(super) fn capabilities(section: &Section<'_>, key: &str) -> Result<BTreeSet<String>, ApiError> {
    let Some(section) = section.get(key) else { return Ok(BTreeSet::new()) };
    let mut names = BTreeSet::new();
    for text in section.parse::<Vec<String>>("a list of capabilities")? {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            return Err(section.invalid(&format!("has `{}`; write a name such as `NET_ADMIN`", shown(&text))));
        }
        if key == "cap_add" && !CAPABILITIES.contains(&name) {
            return Err(section.invalid(&format!(
                "has `{}`, which would let the container out of its box; possible are {}",
                shown(&text),
                CAPABILITIES.join(", ")
            )));
        }
        names.insert(name.to_owned());
    }
    Ok(names)
}

/// What a container may be given: what Docker gives anyway, and what stays inside its own network and processes.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "KILL",
    "LEASE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_PTRACE",
    "SYS_RESOURCE",
];

pub(super) fn working_dir(section: &Section<'_>) -> Result<Option<String>, ApiError> {
    let Some(section) = section.get("working_dir") else { return Ok(None) };
    let path = section.text()?;
    if !path.starts_with('/') {
        return Err(section.invalid("must be an absolute path in the container"));
    }
    Ok(Some(path.to_owned()))
}

pub(super) fn hostname(section: &Section<'_>) -> Result<Option<String>, ApiError> {
    let Some(section) = section.get("hostname") else { return Ok(None) };
    let name = section.text()?;
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // The kernel's limit (HOST_NAME_MAX) and RFC 1123, 2.1.
    if name.len() > 64 || !name.split('.').all(label) {
        return Err(section.invalid("must be a host name: letters, digits and hyphens, at most 64 characters"));
    }
    Ok(Some(name.to_owned()))
}

pub(super) fn stop_signal(section: &Section<'_>) -> Result<Option<String>, ApiError> {
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

pub(super) fn duration(section: &Section<'_>, key: &str) -> Result<Option<u64>, ApiError> {
    let Some(section) = section.get(key) else { return Ok(None) };
    match forms::duration(section.text()?) {
        Some(millis) if millis <= DURATION_MAX_MS => Ok(Some(millis)),
        Some(_) => Err(section.invalid("is longer than an hour; use a shorter time")),
        None => Err(section.invalid("must be a time such as `30s` or `1m30s`")),
    }
}
