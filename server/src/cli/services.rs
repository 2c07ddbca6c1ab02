//! The verbs about services that run.

use std::collections::BTreeMap;

use comfy_table::Cell;
use flotilla_api::{
    ErrorCode, Revision, ServiceName, UnixMillis,
    rest::{InstanceView, LogLine, LogQuery, RemoveQuery, ServiceDetail, ServiceView},
    spec::ValueKind,
};
use futures::StreamExt;
use serde_json::json;

use super::{
    Failure, Output, Session,
    args::{Logs, Ps, Rm, Rollback},
    output, time,
};
use crate::clock;

pub(super) async fn ps(args: &Ps, session: &Session) -> Result<(), Failure> {
    let mut views = session.client.services().await?;
    if let Some(missing) = args.services.iter().find(|name| views.iter().all(|view| view.service != **name)) {
        return Err(Failure::NotFound(format!("there is no service `{missing}`; `flotilla ps` shows all")));
    }
    if !args.services.is_empty() {
        views.retain(|view| args.services.contains(&view.service));
    }
    if session.output.json {
        return session.output.value(&views);
    }
    let now = clock::now();
    let rows = views.iter().flat_map(|view| rows(view, now, session.output)).collect();
    let header = ["SERVICE", "STATE", "MACHINE", "REVISION", "EPOCH", "INSTANCES", "SINCE", "URL", "MESSAGE"];
    session.output.table(&header, rows, "No service is deployed; `flotilla deploy -f compose.yaml` deploys one.")
}

/// One row where one instance says all; else one for the service, and below it one for each instance.
fn rows(view: &ServiceView, now: UnixMillis, output: Output) -> Vec<Vec<Cell>> {
    let mut machines: Vec<&str> = view.instances.iter().map(|instance| instance.machine.as_str()).collect();
    machines.dedup();
    let machine = view.machine.as_ref().map_or("", AsRef::as_ref);
    let mut rows = vec![row(view, if machines.len() > 1 { "" } else { machine }, now, output)];
    if view.instances.len() > 1 {
        rows.extend(view.instances.iter().map(|instance| instance_row(instance, now, output)));
    }
    rows
}

fn instance_row(instance: &InstanceView, now: UnixMillis, output: Output) -> Vec<Cell> {
    vec![
        Cell::new(format!("  {}", instance.replica)),
        output.state(instance.state),
        Cell::new(&instance.machine),
        Cell::new(instance.revision),
        Cell::new(instance.epoch),
        Cell::new(""),
        Cell::new(time::age(now, instance.since)),
        Cell::new(""),
        Cell::new(instance.message.as_deref().unwrap_or_default()),
    ]
}

fn row(view: &ServiceView, machine: &str, now: UnixMillis, output: Output) -> Vec<Cell> {
    let running =
        view.instances.iter().filter(|instance| instance.state == flotilla_api::rest::ServiceState::Running).count();
    vec![
        Cell::new(&view.service),
        output.state(view.state),
        Cell::new(machine),
        Cell::new(view.revision),
        Cell::new(view.epoch.filter(|_| view.instances.len() <= 1).map_or_else(String::new, |epoch| epoch.to_string())),
        Cell::new(format!("{running}/{}", view.replicas)),
        Cell::new(time::age(now, view.since)),
        Cell::new(view.url.as_deref().unwrap_or_default()),
        Cell::new(view.message.as_deref().unwrap_or_default()),
    ]
}

pub(super) async fn logs(args: &Logs, session: &Session) -> Result<(), Failure> {
    let query =
        LogQuery { follow: args.follow, tail: args.tail, since: args.since.map(|since| since.seen_from(clock::now())) };
    let mut lines = session.client.logs(&args.service, query).await?;
    while let Some(line) = lines.next().await {
        let line = line?;
        if session.output.json {
            session.output.value_line(&line)?;
        } else {
            session.output.line(&log_text(&line, args.timestamps))?;
        }
    }
    Ok(())
}

fn log_text(line: &LogLine, timestamps: bool) -> String {
    // A service must not be able to clear the screen of who reads its log, or worse; colours and tabs are welcome.
    let text: String = strip_controls(&line.text);
    if timestamps { format!("{} {text}", time::stamp_millis(line.at)) } else { text }
}

/// Without control characters and terminal sequences, except for colours (`ESC [ … m`) and tabs.
fn strip_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("\x1b[") {
            let end = after.find(|c: char| ('\x40'..='\x7e').contains(&c)).map_or(after.len(), |at| at + 1);
            let (sequence, following) = after.split_at(end);
            if sequence.ends_with('m') {
                out.push_str("\x1b[");
                out.push_str(sequence);
            }
            rest = following;
            continue;
        }
        if c == '\t' || !c.is_control() {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

pub(super) async fn inspect(service: &ServiceName, session: &Session) -> Result<(), Failure> {
    let detail = session.client.service(service).await?;
    if session.output.json {
        return session.output.value(&detail);
    }
    describe(&detail, session.output)
}

fn describe(detail: &ServiceDetail, output: Output) -> Result<(), Failure> {
    let now = clock::now();
    let ServiceDetail { view, spec, placements, standby, standby_ready, revisions } = detail;
    let mut lines = vec![
        ("Service", format!("{} (stack {})", view.service, view.stack)),
        ("State", format!("{} for {}", view.state.as_str(), time::age(now, view.since))),
        ("Message", view.message.clone().unwrap_or_default()),
        ("Address", view.url.as_deref().map(|url| output.link(url)).unwrap_or_default()),
        ("Image", spec.image.clone()),
        ("Command", spec.command.as_deref().unwrap_or_default().join(" ")),
        ("Port", spec.port.map(|port| port.to_string()).unwrap_or_default()),
        ("Instances", view.replicas.to_string()),
        (
            "CPU limit",
            spec.resources.cpu_millis.map(|millis| format!("{} cores", millis as f64 / 1000.0)).unwrap_or_default(),
        ),
        ("Memory limit", spec.resources.memory_bytes.map(time::size).unwrap_or_default()),
        ("Health check", spec.health.as_ref().map(|health| health.test.join(" ")).unwrap_or_default()),
    ];
    if !standby.is_empty() {
        let told = |machine| match standby_ready.contains(machine) {
            true => machine.to_string(),
            false => format!("{machine} (without the image yet)"),
        };
        lines.push(("Standby", standby.iter().map(told).collect::<Vec<_>>().join(", ")));
    }
    lines.extend(spec.volumes.iter().map(|mount| {
        let read_only = if mount.read_only { ", read only" } else { "" };
        let encrypted = if mount.rules.encrypted { ", encrypted where it is kept" } else { "" };
        ("Volume", format!("{} at {}{read_only}{encrypted}", mount.volume, mount.target))
    }));
    lines.extend(spec.values.iter().map(|it| {
        let kind = if it.kind == ValueKind::Secret { "Secret" } else { "Config" };
        (kind, format!("{} (version {}) at {}", it.name, it.version, it.given))
    }));
    // Values may be secrets that stand in a file for nobody's eyes; `--json` shows them to who asks for all.
    lines.extend(spec.environment.keys().map(|name| ("Environment", name.clone())));
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        output.line(&format!("{name:<13} {value}"))?;
    }
    output.line("")?;
    let instances = view
        .instances
        .iter()
        .map(|instance| {
            vec![
                Cell::new(&instance.id),
                output.state(instance.state),
                Cell::new(&instance.machine),
                Cell::new(instance.epoch),
                Cell::new(instance.revision),
                Cell::new(time::age(now, instance.since)),
                Cell::new(instance.restarts),
                Cell::new(instance.memory_used_bytes.map(time::size).unwrap_or_default()),
                Cell::new(instance.message.as_deref().unwrap_or_default()),
            ]
        })
        .collect();
    let header = ["INSTANCE", "STATE", "MACHINE", "EPOCH", "REVISION", "SINCE", "RESTARTS", "MEMORY", "MESSAGE"];
    output.table(&header, instances, "It has no instance.")?;
    output.line("")?;
    let placed = placements
        .iter()
        .map(|placement| {
            vec![
                Cell::new(placement.replica),
                Cell::new(&placement.machine),
                Cell::new(placement.epoch),
                Cell::new(placement.revision),
                Cell::new(placement.phase.as_str()),
                Cell::new(time::age(now, placement.since)),
                Cell::new(&placement.reason),
            ]
        })
        .collect();
    let header = ["REPLICA", "PLACED ON", "EPOCH", "REVISION", "PHASE", "SINCE", "WHY THERE"];
    output.table(&header, placed, "It is placed nowhere.")?;
    output.line("")?;
    let revisions = revisions
        .iter()
        .map(|revision| {
            vec![
                Cell::new(revision.revision),
                Cell::new(if revision.current { "current" } else { "" }),
                Cell::new(time::age(now, revision.created_at)),
                Cell::new(&revision.created_by),
                Cell::new(&revision.image),
                Cell::new(revision.note.as_deref().unwrap_or_default()),
            ]
        })
        .collect();
    output.table(&["REVISION", "CURRENT", "AGE", "BY", "IMAGE", "NOTE"], revisions, "It has no revision.")
}

pub(super) async fn rm(args: Rm, session: &Session) -> Result<(), Failure> {
    // All are looked up first: a typing error in the second name must not leave the first one removed.
    for service in &args.services {
        match session.client.service(service).await {
            // Its volumes may have been kept when it was removed before; removing those is for the node to refuse.
            Err(error) if args.volumes && error.code() == Some(ErrorCode::ServiceNotFound) => {}
            looked_up => drop(looked_up?),
        }
    }
    if !args.yes {
        confirm(&args)?;
    }
    let mut uncopied = BTreeMap::new();
    for service in &args.services {
        let removed = session.client.remove(service, RemoveQuery { volumes: args.volumes }).await?;
        let volumes = if args.volumes { " and its volumes" } else { "" };
        if !session.output.json {
            session.output.line(&format!("Removed {service}{volumes}."))?;
            if let Some(machine) = &removed.last_writes_on {
                session.output.note(&format!(
                    "What {service} wrote last is on {machine} alone: deploy it again before you remove that machine."
                ));
            }
        }
        uncopied.extend(removed.last_writes_on.map(|machine| (service, machine)));
    }
    if session.output.json {
        return session
            .output
            .value(&json!({ "removed": args.services, "volumes": args.volumes, "last_writes_on": uncopied }));
    }
    Ok(())
}

fn confirm(args: &Rm) -> Result<(), Failure> {
    let names: Vec<&str> = args.services.iter().map(ServiceName::as_str).collect();
    let volumes = if args.volumes { " and ALL DATA in their volumes, for good" } else { " (their volumes are kept)" };
    output::confirm(&format!("Remove {}{volumes}?", names.join(", ")), "nothing was removed")
}

pub(super) async fn restart(services: &[ServiceName], session: &Session) -> Result<(), Failure> {
    for service in services {
        session.client.restart(service).await?;
        if !session.output.json {
            session.output.line(&format!("Restarting {service}."))?;
        }
    }
    if session.output.json { session.output.value(&json!({ "restarted": services })) } else { Ok(()) }
}

pub(super) async fn roll_back(args: &Rollback, session: &Session) -> Result<(), Failure> {
    let deployed = session.client.roll_back(&args.service, args.to.map(Revision)).await?;
    let sentence = match args.to {
        Some(to) => {
            format!("{} is back at what revision {to} was, as revision {}.", deployed.service, deployed.revision)
        }
        None => format!("{} is back at its previous revision, as revision {}.", deployed.service, deployed.revision),
    };
    session.output.done(&sentence, &deployed)
}

pub(super) async fn scale(services: &[(ServiceName, u32)], session: &Session) -> Result<(), Failure> {
    for (service, replicas) in services {
        session.client.scale(service, *replicas).await?;
        if !session.output.json {
            session.output.line(&match replicas {
                0 => format!("{service} is stopped."),
                1 => format!("{service} has 1 instance."),
                more => format!("{service} has {more} instances."),
            })?;
        }
    }
    if session.output.json {
        let scaled: Vec<_> =
            services.iter().map(|(service, replicas)| json!({ "service": service, "replicas": replicas })).collect();
        session.output.value(&scaled)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_can_colour_but_not_command_the_terminal() {
        assert_eq!(strip_controls("\x1b[31mred\x1b[0m\tok"), "\x1b[31mred\x1b[0m\tok");
        assert_eq!(strip_controls("a\x1b[2Jb\x07c\rd\x1b]0;title\x07"), "abcd]0;title");
        assert_eq!(strip_controls("\x1b["), "");
    }
}
