//! The cluster, its machines, and what happens in it.

use flotilla_api::{
    MachineName,
    rest::{EventView, MachineState, ServiceState},
};
use futures::StreamExt;
use serde_json::json;

use super::{Failure, Output, Session, args::Events, time};
use crate::clock;

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
        ("Node", {
            let machine = cluster.machine.as_ref().map_or_else(String::new, |machine| format!(" on {machine}"));
            format!("{}{machine} (flotilla {})", session.client.api(), cluster.version)
        }),
        ("Leader", cluster.leader.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)),
        ("Voters", names(&cluster.voters)),
        ("Learners", names(&cluster.learners)),
        ("State", format!("index {}, term {}", cluster.applied_index, cluster.term)),
        ("You", format!("{} ({}), token ends {ends}", you.name, you.grant.scope)),
    ];
    // A user's token may see neither; what it may see is shown all the same.
    if you.grant.operates() {
        let (machines, services) = tokio::try_join!(session.client.machines(), session.client.services())?;
        let running = services.iter().filter(|view| view.state == ServiceState::Running).count();
        let ready = machines.iter().filter(|machine| machine.condition.state == MachineState::Ready).count();
        lines.push(("Machines", format!("{ready} of {} ready", machines.len())));
        lines.push(("Services", format!("{running} of {} running", services.len())));
    }
    if let Some(why) = &cluster.not_fault_tolerant_because {
        lines.push(("Note", format!("not fault tolerant: {why}")));
    }
    for (name, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
        output.line(&format!("{name:<10} {value}"))?;
    }
    Ok(())
}

fn names(machines: &[MachineName]) -> String {
    machines.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ")
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
