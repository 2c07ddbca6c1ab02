//! Secrets and configs: what the file declares, and how services are given them.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    ApiError, ValueName,
    spec::{Given, ServiceSpec, ValueKind, ValueUse},
};

use super::{
    EXTENSION, forms, invalid_name,
    section::Section,
    service::flag,
    tree::{Value, shown},
};

/// Permission bits of a file where nothing is said, as Docker's.
const MODE_DEFAULT: u32 = 0o444;

/// An entry under the top-level `secrets` or `configs` whose value comes with the deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredValue {
    pub kind: ValueKind,
    /// In the file.
    pub key: String,
    /// In the cluster.
    pub name: ValueName,
    pub source: ValueSource,
}

/// Where the value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// In a file of whoever deploys; the path as written, relative to the compose file.
    File(String),
    /// In an environment variable of whoever deploys.
    Environment(String),
    /// In the compose file itself.
    Content(String),
}

/// By kind and key: the name in the cluster.
pub(super) type Names = BTreeMap<(ValueKind, String), ValueName>;

fn top(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::Secret => "secrets",
        ValueKind::Config => "configs",
    }
}

/// What the file declares. One that brings its value is named for the stack, as Docker does it: another stack may have a file of the
/// same name.
pub(super) fn declared(root: &Section<'_>, stack: &str) -> Result<(Names, Vec<DeclaredValue>), ApiError> {
    let (mut names, mut values) = (Names::new(), Vec::new());
    for kind in ValueKind::ALL {
        let Some(section) = root.get(top(*kind)) else { continue };
        for (key, entry) in section.named(&format!("a map of {}", top(*kind)))? {
            if !entry.node.is_null() && !matches!(entry.node.value, Value::Map(_)) {
                return Err(entry.wrong("empty, or a map with `external`, `name` or where its value is"));
            }
            let source = source(&entry)?;
            let name = match (entry.get("name"), &source) {
                (Some(name), _) => name.text()?.parse().map_err(|error| invalid_name(name.mark(), &error))?,
                (None, None) => key.text.parse().map_err(|error| invalid_name(key.mark, &error))?,
                (None, Some(_)) => {
                    format!("{stack}_{}", key.text).parse().map_err(|error| invalid_name(key.mark, &error))?
                }
            };
            if let Some(source) = source {
                let same = |it: &&DeclaredValue| it.kind == *kind && it.name == name;
                if let Some(other) = values.iter().find(same) {
                    let reason = format!("gives `{name}` a value, and so does `{}`; keep one", shown(&other.key));
                    return Err(entry.invalid(&reason));
                }
                values.push(DeclaredValue { kind: *kind, key: key.text.clone(), name: name.clone(), source });
            }
            names.insert((*kind, key.text.clone()), name);
        }
    }
    Ok((names, values))
}

fn source(entry: &Section<'_>) -> Result<Option<ValueSource>, ApiError> {
    let text = |key: &str| entry.get(key).map(|section| section.text().map(str::to_owned)).transpose();
    let sources = [
        text("file")?.map(ValueSource::File),
        text("environment")?.map(ValueSource::Environment),
        text("content")?.map(ValueSource::Content),
    ];
    let mut sources = sources.into_iter().flatten();
    let source = sources.next();
    if sources.next().is_some() || (source.is_some() && flag(entry, "external")?) {
        return Err(
            entry.invalid("says twice where its value is; keep one of `external`, `file`, `environment` and `content`")
        );
    }
    Ok(source)
}

/// What a service is given.
pub(super) fn uses(names: &Names, section: &Section<'_>) -> Result<Vec<ValueUse>, ApiError> {
    let mut uses = Vec::new();
    for kind in ValueKind::ALL {
        let items = section.get(top(*kind)).map(|section| section.items(&format!("a list of {}", top(*kind))));
        for item in items.transpose()?.unwrap_or_default() {
            uses.push(file(names, *kind, &item)?);
        }
    }
    if let Some(variables) = section.get(EXTENSION).and_then(|extension| extension.get("environment")) {
        for (key, entry) in variables.named("a map of variables, each with a `secret` or a `config`")? {
            uses.push(variable(names, &key.text, &entry)?);
        }
    }
    Ok(uses)
}

fn file(names: &Names, kind: ValueKind, item: &Section<'_>) -> Result<ValueUse, ApiError> {
    const FORMS: &str = "a name, or a map with `source`";
    let (source, target, uid, gid, mode) = match &item.node.value {
        Value::Scalar(_) => (item.text()?, None, None, None, MODE_DEFAULT),
        Value::Map(_) => {
            let source = item.get("source").ok_or_else(|| item.invalid(&format!("must be {FORMS}")))?;
            let mode = item.get("mode").map_or(Ok(MODE_DEFAULT), |mode| permissions(&mode))?;
            (source.text()?, item.get("target"), owner(item, "uid")?, owner(item, "gid")?, mode)
        }
        Value::List(_) => return Err(item.wrong(FORMS)),
    };
    let name = find(names, kind, item, source)?;
    let target = match (target, kind) {
        (Some(target), kind) => {
            let text = target.text()?;
            let path = match kind {
                // As Docker reads it: a name is one in the usual place.
                ValueKind::Secret if !text.starts_with('/') => format!("/run/secrets/{text}"),
                _ => text.to_owned(),
            };
            if !forms::is_container_path(&path) || path.ends_with('/') {
                return Err(target.invalid("must be the absolute path of a file in the container"));
            }
            path
        }
        (None, ValueKind::Secret) => format!("/run/secrets/{source}"),
        (None, ValueKind::Config) => format!("/{source}"),
    };
    Ok(ValueUse { kind, name, version: 0, given: Given::File { target, uid, gid, mode } })
}

fn variable(names: &Names, variable: &str, entry: &Section<'_>) -> Result<ValueUse, ApiError> {
    let wrong = || entry.wrong("a map with one of `secret` and `config`");
    let (kind, source) = match (entry.get("secret"), entry.get("config")) {
        (Some(secret), None) => (ValueKind::Secret, secret),
        (None, Some(config)) => (ValueKind::Config, config),
        _ => return Err(wrong()),
    };
    if let Value::Map(entries) = &entry.node.value
        && entries.len() > 1
    {
        return Err(wrong());
    }
    if variable.is_empty() || variable.contains(['=', '\0']) {
        return Err(entry.invalid("has a name that no variable can have"));
    }
    let name = find(names, kind, &source, source.text()?)?;
    Ok(ValueUse { kind, name, version: 0, given: Given::Variable(variable.to_owned()) })
}

fn find(names: &Names, kind: ValueKind, item: &Section<'_>, key: &str) -> Result<ValueName, ApiError> {
    names.get(&(kind, key.to_owned())).cloned().ok_or_else(|| {
        let (top, key) = (top(kind), shown(key));
        item.invalid(&format!(
            "uses the {kind} `{key}`, which is not declared; add `{key}:` under the top-level `{top}`"
        ))
    })
}

fn owner(item: &Section<'_>, key: &str) -> Result<Option<u32>, ApiError> {
    let Some(section) = item.get(key) else { return Ok(None) };
    // The last one means "nobody" to the kernel.
    let number = section.text()?.parse().ok().filter(|number| *number < u32::MAX);
    number
        .map(Some)
        .ok_or_else(|| section.invalid("must be a number, such as `1000`: names are known in the image alone"))
}

/// YAML's versions do not agree on what `0440` is, so it is read as it is written.
fn permissions(section: &Section<'_>) -> Result<u32, ApiError> {
    let text = section.text()?;
    let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| section.invalid("must be permission bits in octal, such as `0440`"))
}

/// Nothing takes another's place in the container.
pub(super) fn check_places(spec: &ServiceSpec, section: &Section<'_>) -> Result<(), ApiError> {
    let tmpfs = spec.tmpfs.iter().map(|text| text.split(':').next().unwrap_or_default());
    let taken = spec.volumes.iter().map(|mount| mount.target.as_str()).chain(tmpfs);
    let mut targets: BTreeSet<&str> = taken.map(|path| path.trim_end_matches('/')).collect();
    let mut variables: BTreeSet<&str> = spec.environment.keys().map(String::as_str).collect();
    for it in &spec.values {
        match &it.given {
            Given::File { target, .. } if !targets.insert(target) => {
                return Err(
                    section.invalid(&format!("has two things at `{}`; give one another `target`", shown(target)))
                );
            }
            Given::Variable(name) if !variables.insert(name) => {
                return Err(section.invalid(&format!("sets the variable `{}` twice; keep one", shown(name))));
            }
            _ => {}
        }
    }
    Ok(())
}
