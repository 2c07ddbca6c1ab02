//! The cluster, its machines, and what happens in it.

use comfy_table::Cell;
use flotilla_api::rest::{EngineView, EventView, MachineView, ServiceState};
use futures::StreamExt;
use serde_json::json;

use super::{Failure, Output, Session, args::Events, time};
use crate::clock;

pub(super) async fn machines(session: &Session) -> Result<(), Failure> {
    let machines = session.client.machines().await?;
    if session.output.json {
        return session.output.value(&machines);
    }
    let rows = machines.iter().map(row).collect();
    let header = ["MACHINE", "ENGINE", "INSTANCES", "CPU", "MEMORY", "DISK FREE", "UP", "VERSION", "ID", "MESSAGE"];
    session.output.table(&header, rows, "There is no machine.")
}

fn row(machine: &MachineView) -> Vec<Cell> {
    let resources = &machine.resources;
    let (engine, message) = match &machine.engine {
        EngineView::Ready { version, .. } => (format!("Docker {version}"), ""),
        EngineView::Unavailable { message, .. } => ("unavailable".to_owned(), message.as_str()),
    };
    vec![
        Cell::new(&machine.name),
        Cell::new(engine),
        Cell::new(machine.instances),
        Cell::new(format!("{:.0}% of {}", resources.cpu_used * 100.0, resources.cpu_cores)),
        Cell::new(format!(
            "{} of {}",
            time::size(resources.memory_used_bytes),
            time::size(resources.memory_total_bytes)
        )),
        Cell::new(time::size(resources.disk_free_bytes)),
        Cell::new(time::age(clock::now(), machine.started_at)),
        Cell::new(&machine.version),
        Cell::new(&machine.id),
        Cell::new(message),
    ]
}

pub(super) async fn status(session: &Session) -> Result<(), Failure> {
    let cluster = session.client.cluster().await?;
    let output = session.output;
    if output.json {
        return output.value(&cluster);
    }
    let you = &cluster.you;
    let ends = time::until(clock::now(), you.expires_at);
    let mut lines = vec![
        ("Cluster", format!("{} ({})", cluster.name, cluster.id)),
        ("Dashboard", output.link(&cluster.dashboard_url)),
        ("Node", format!("{} (flotilla {})", session.client.api(), cluster.version)),
        ("State", format!("index {}", cluster.applied_index)),
        ("You", format!("{} ({}), token ends {ends}", you.name, you.grant.scope)),
    ];
    // A user's token may see neither; what it may see is shown all the same.
    if you.grant.operates() {
        let (machines, services) = tokio::try_join!(session.client.machines(), session.client.services())?;
        let running = services.iter().filter(|view| view.state == ServiceState::Running).count();
        lines.push(("Machines", machines.len().to_string()));
        lines.push(("Services", format!("{running} of {} running", services.len())));
    }
    if !cluster.fault_tolerant {
        lines.push(("Note", "not fault tolerant: that takes three machines".into()));
    }
    for (name, value) in lines {
        output.line(&format!("{name:<10} {value}"))?;
    }
    Ok(())
}

pub(super) async fn events(args: &Events, session: &Session) -> Result<(), Failure> {
    // The stream is opened first, so that nothing falls between the past and what follows.
    let stream = if args.follow { Some(session.client.events().await?) } else { None };
    let past = session.client.audit().await?;
    let shown = &past[past.len().saturating_sub(args.tail)..];
    if session.output.json && !args.follow {
        return session.output.value(&shown);
    }
    for event in shown {
        show(event, session.output)?;
    }
    let Some(mut stream) = stream else { return Ok(()) };
    let last = past.iter().filter_map(|event| event.index).max();
    while let Some(event) = stream.next().await {
        let event = event?;
        if event.index.is_none() || event.index > last {
            show(&event, session.output)?;
        }
    }
    Ok(())
}

fn show(event: &EventView, output: Output) -> Result<(), Failure> {
    if output.json {
        return output.value_line(&json!(event));
    }
    let from = event.from.as_deref().unwrap_or("-");
    output.line(&format!("{}  {:<16}  {from:<15}  {}", time::stamp(event.at), event.actor, event.message))
}
