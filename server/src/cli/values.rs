//! The verbs about secrets and configs.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read, Write as _},
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use comfy_table::Cell;
use flotilla_api::{
    ValueName,
    rest::{Plain, SetValue, VALUE_MAX, ValueUser, ValueView},
    spec::ValueKind,
};
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    Failure, Output, Session,
    args::{Config, Secret, ValueRm, ValueSet},
    output, prompt, time,
};
use crate::clock;

pub(super) async fn secrets(verb: Option<Secret>, session: &Session) -> Result<(), Failure> {
    const KIND: ValueKind = ValueKind::Secret;
    match verb.unwrap_or(Secret::Ls) {
        Secret::Ls => list(KIND, session).await,
        Secret::Set(args) => set(KIND, &args, session).await,
        Secret::Inspect { name } => inspect(KIND, &name, session).await,
        Secret::Rm(args) => remove(KIND, &args, session).await,
        Secret::Rekey => rekey(session).await,
    }
}

pub(super) async fn configs(verb: Option<Config>, session: &Session) -> Result<(), Failure> {
    const KIND: ValueKind = ValueKind::Config;
    match verb.unwrap_or(Config::Ls) {
        Config::Ls => list(KIND, session).await,
        Config::Set(args) => set(KIND, &args, session).await,
        Config::Inspect { name } => inspect(KIND, &name, session).await,
        Config::Cat { name, version } => cat(&name, version, session).await,
        Config::Rm(args) => remove(KIND, &args, session).await,
    }
}

async fn list(kind: ValueKind, session: &Session) -> Result<(), Failure> {
    let values = session.client.values(kind).await?;
    if session.output.json {
        return session.output.value(&values);
    }
    let now = clock::now();
    let row = |value: &ValueView| {
        let newest = value.versions.first();
        vec![
            Cell::new(&value.name),
            Cell::new(value.version),
            Cell::new(newest.map(|it| time::size(it.bytes)).unwrap_or_default()),
            Cell::new(newest.map(|it| format!("{} ago", time::age(now, it.set_at))).unwrap_or_default()),
            Cell::new(newest.map(|it| it.set_by.as_str()).unwrap_or_default()),
            Cell::new(users(value)),
        ]
    };
    let none = format!("There are no {kind}s.");
    session.output.table(&["NAME", "VERSION", "SIZE", "SET", "BY", "USED BY"], values.iter().map(row).collect(), &none)
}

/// Who has another version than the newest says so.
fn users(value: &ValueView) -> String {
    let user = |it: &ValueUser| match it.version == value.version {
        true => it.service.to_string(),
        false => format!("{} (version {})", it.service, it.version),
    };
    value.used_by.iter().map(user).collect::<Vec<_>>().join(", ")
}

async fn set(kind: ValueKind, args: &ValueSet, session: &Session) -> Result<(), Failure> {
    let bytes = match &args.file {
        Some(path) => read_file(path)?,
        None if io::stdin().is_terminal() => {
            prompt::hidden(&format!("Value of the {kind} {} (it is not shown):", args.name))?
        }
        None => read(io::stdin(), "the standard input")?,
    };
    if bytes.is_empty() && args.file.is_none() {
        return Err(Failure::Usage(format!("the {kind} is empty, and nothing was set; give it a value")));
    }
    let request = SetValue { value: encode(&bytes), update: !args.no_update };
    let done = session.client.set_value(kind, &args.name, &request).await?;
    if session.output.json {
        return session.output.value(&done);
    }
    let name = &done.name;
    if !done.changed {
        return session.output.line(&format!("{name} is the same already, in version {}.", done.version));
    }
    session.output.line(&format!("{name} has version {} now.", done.version))?;
    let updated: Vec<String> =
        done.updated.iter().map(|it| format!("{} (revision {})", it.service, it.revision)).collect();
    if updated.is_empty() {
        return Ok(());
    }
    session.output.line(&format!("Updated with it: {}. `flotilla ps` shows how they do.", updated.join(", ")))
}

async fn inspect(kind: ValueKind, name: &ValueName, session: &Session) -> Result<(), Failure> {
    let value = session.client.value(kind, name).await?;
    if session.output.json {
        return session.output.value(&value);
    }
    describe(&value, session.output)
}

fn describe(value: &ValueView, output: Output) -> Result<(), Failure> {
    let now = clock::now();
    let rows = value.versions.iter().map(|it| {
        let users = value.used_by.iter().filter(|user| user.version == it.version);
        vec![
            Cell::new(it.version),
            Cell::new(time::size(it.bytes)),
            Cell::new(time::stamp(it.set_at)),
            Cell::new(time::age(now, it.set_at)),
            Cell::new(&it.set_by),
            Cell::new(users.map(|user| user.service.to_string()).collect::<Vec<_>>().join(", ")),
        ]
    });
    output.table(&["VERSION", "SIZE", "SET", "AGE", "BY", "USED BY"], rows.collect(), "No version of it is kept.")
}

async fn cat(name: &ValueName, version: Option<u64>, session: &Session) -> Result<(), Failure> {
    let bytes = session.client.config(name, version).await?;
    if session.output.json {
        return session
            .output
            .value(&json!({ "name": name, "version": version, "value": BASE64_STANDARD.encode(&bytes) }));
    }
    let mut out = io::stdout().lock();
    out.write_all(&bytes)?;
    out.flush()?;
    Ok(())
}

async fn remove(kind: ValueKind, args: &ValueRm, session: &Session) -> Result<(), Failure> {
    let names = args.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !args.yes {
        output::confirm(&format!("Remove {names} for good, with all versions?"), &format!("no {kind} was removed"))?;
    }
    for name in &args.names {
        session.client.remove_value(kind, name).await?;
    }
    session.output.done(&format!("Removed {names}."), &json!({ "removed": args.names }))
}

async fn rekey(session: &Session) -> Result<(), Failure> {
    let done = session.client.rekey().await?;
    if session.output.json {
        return session.output.value(&done);
    }
    session.output.line(&format!("The key is {} now; {} versions were sealed with it.", done.key, done.resealed))?;
    if done.unreadable > 0 {
        session.output.line(&format!(
            "Of {} versions no machine has the key any more: set those secrets and configs again.",
            done.unreadable
        ))?;
    }
    session.output.line(
        "A machine that was removed knows what it was told before: give the secrets themselves new values where that matters.",
    )
}

/// A file that a value is in.
///
/// # Errors
/// It can't be read, or is larger than a value may be.
pub(super) fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let name = format!("`{}`", path.display());
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Usage(format!("there is no file {name}")),
        _ => Failure::Usage(format!("{name} can't be read: {error}")),
    })?;
    read(file, &name)
}

fn read(from: impl Read, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = from.take(VALUE_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Usage(format!("{name} can't be read: {error}")))?;
    if bytes.len() > VALUE_MAX {
        let max = VALUE_MAX / 1024;
        return Err(Failure::Usage(format!("{name} has more than {max} KiB, which no secret or config may have")));
    }
    Ok(bytes)
}

pub(super) fn encode(bytes: &[u8]) -> Plain {
    Plain(BASE64_STANDARD.encode(bytes))
}
