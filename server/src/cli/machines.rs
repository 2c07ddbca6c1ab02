//! The verbs about machines.

use std::{collections::BTreeMap, time::Duration};

use comfy_table::{Cell, Color};
use flotilla_api::{
    MachineName, NodeId, UnixMillis,
    limit::{CopyLimit, LimitNow, Rate},
    rest::{
        BulkPath, ChangeMachine, DrainQuery, EngineView, LinkPath, LinkState, LinkView, MachineDetail, MachineState,
        MachineView, Power, RemoveMachineQuery, Role, StorageView,
    },
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    Failure, Output, Session,
    args::{Drain, Label, Limit, LimitRate, Machine, MachineRm},
    output, scrub, time,
};
use crate::clock;

/// How often a drain is looked at. The node answers from memory.
const ASK_EVERY: Duration = Duration::from_millis(300);

pub(super) async fn run(verb: Option<Machine>, session: &Session) -> Result<(), Failure> {
    match verb.unwrap_or(Machine::Ls) {
        Machine::Ls => list(session).await,
        Machine::Inspect { machine } => inspect(&machine, session).await,
        Machine::Rename { machine, name } => rename(&machine, name, session).await,
        Machine::Label(args) => label(args, session).await,
        Machine::Limit(args) => limit(args, session).await,
        Machine::Rm(args) => remove(args, session).await,
        Machine::Drain(args) => drain(&args, session).await,
        Machine::Undrain { machine } => undrain(&machine, session).await,
    }
}

async fn list(session: &Session) -> Result<(), Failure> {
    let machines = session.client.machines().await?;
    if session.output.json {
        return session.output.value(&machines);
    }
    let now = clock::now();
    let rows = machines.iter().map(|machine| row(machine, now, session.output)).collect();
    let header = [
        "MACHINE",
        "STATE",
        "ROLE",
        "ENGINE",
        "INSTANCES",
        "CPU",
        "MEMORY",
        "DISK FREE",
        "VOLUMES",
        "SCRUBBED",
        "LINKS",
        "SEEN",
        "VERSION",
        "LIMIT",
        "LABELS",
        "MESSAGE",
    ];
    session.output.table(&header, rows, "There is no machine.")
}

fn row(machine: &MachineView, now: UnixMillis, output: Output) -> Vec<Cell> {
    let (engine, trouble) = match &machine.engine {
        // It needs none.
        _ if machine.storage_only => (String::new(), None),
        Some(EngineView::Ready { version, .. }) => (format!("Docker {version}"), None),
        Some(EngineView::Unavailable { message, .. }) => ("unavailable".to_owned(), Some(message.as_str())),
        None => (String::new(), None),
    };
    let resources = machine.resources.as_ref();
    let message = machine.condition.reason.as_deref().or(trouble);
    let seen = if machine.here { Some("here".to_owned()) } else { machine.observed_at.map(|at| time::age(now, at)) };
    vec![
        Cell::new(&machine.name),
        state(machine.condition.state, output),
        Cell::new(role(machine)),
        Cell::new(engine),
        Cell::new(machine.instances),
        Cell::new(resources.map_or_else(String::new, |resources| {
            format!("{:.0}% of {}", resources.cpu_used * 100.0, resources.cpu_cores)
        })),
        Cell::new(resources.map_or_else(String::new, |resources| {
            format!("{} of {}", time::size(resources.memory_used_bytes), time::size(resources.memory_total_bytes))
        })),
        Cell::new(resources.map_or_else(String::new, |resources| time::size(resources.disk_free_bytes))),
        Cell::new(resources.and_then(|resources| resources.storage).map_or_else(String::new, |storage| {
            time::size(storage.objects_bytes + storage.written_bytes + storage.copies_bytes)
        })),
        Cell::new(resources.and_then(|resources| resources.scrub).map(|it| scrub::short(&it, now)).unwrap_or_default()),
        Cell::new(links_in_short(&machine.links)),
        Cell::new(seen.unwrap_or_default()),
        Cell::new(&machine.version),
        Cell::new(limited(&machine.copy_limit, machine.copy_limit_now)),
        Cell::new(labels(&machine.labels)),
        Cell::new(message.unwrap_or_default()),
    ]
}

fn role(machine: &MachineView) -> &'static str {
    if machine.storage_only {
        return "stores only";
    }
    match (machine.leads, machine.role) {
        (true, _) => "leader",
        (false, Role::Voter) => "voter",
        (false, Role::Learner) => "learner",
    }
}

fn state(state: MachineState, output: Output) -> Cell {
    let colour = match state {
        MachineState::Ready => Color::Green,
        MachineState::Suspect | MachineState::Draining | MachineState::KeptOut => Color::Yellow,
        MachineState::Lost => Color::Red,
        MachineState::Drained => Color::DarkGrey,
    };
    output.coloured(state.as_str(), colour)
}

/// `2 direct`, `1 direct, 1 relayed, 1 down`
fn links_in_short(links: &[LinkView]) -> String {
    let count = |wanted: &dyn Fn(&LinkView) -> bool| links.iter().filter(|link| wanted(link)).count();
    let parts = [
        (count(&|link| link.path == Some(LinkPath::Direct)), "direct"),
        (count(&|link| link.path == Some(LinkPath::Relayed)), "relayed"),
        (count(&|link| link.state != LinkState::Up), "down"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    parts.join(", ")
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// What holds now: `500 kB/s until 23:00`.
fn limited(limit: &CopyLimit, now: Option<LimitNow>) -> String {
    match now {
        None if limit.is_off() => String::new(),
        // It has told nothing yet.
        None => limit.to_string(),
        Some(LimitNow { rate, until }) => {
            let rate = match rate {
                None => String::new(),
                Some(Rate::ZERO) => "no copies".to_owned(),
                Some(rate) => rate.to_string(),
            };
            match until {
                Some(until) if rate.is_empty() => format!("none until {until}"),
                Some(until) => format!("{rate} until {until}"),
                None => rate,
            }
        }
    }
}

async fn inspect(machine: &MachineName, session: &Session) -> Result<(), Failure> {
    let detail = session.client.machine(machine).await?;
    if session.output.json {
        return session.output.value(&detail);
    }
    let machines = session.client.machines().await?;
    let names = machines.into_iter().map(|machine| (machine.id, machine.name)).collect();
    describe(&detail, &names, session.output)
}

fn describe(detail: &MachineDetail, names: &BTreeMap<NodeId, MachineName>, output: Output) -> Result<(), Failure> {
    let now = clock::now();
    let MachineDetail { view, placements, losses } = detail;
    let condition = &view.condition;
    let reason = condition.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
    let drained = if view.drained && !matches!(condition.state, MachineState::Draining | MachineState::Drained) {
        ", drained"
    } else {
        ""
    };
    let engine = match &view.engine {
        _ if view.storage_only => String::new(),
        Some(EngineView::Ready { version, operating_system, .. }) => format!("Docker {version} on {operating_system}"),
        Some(EngineView::Unavailable { message, .. }) => message.clone(),
        None => String::new(),
    };
    let resources = view.resources.as_ref().map_or_else(String::new, |resources| {
        format!(
            "{:.0}% of {} cores, {} of {} memory, {} of {} disk free",
            resources.cpu_used * 100.0,
            resources.cpu_cores,
            time::size(resources.memory_used_bytes),
            time::size(resources.memory_total_bytes),
            time::size(resources.disk_free_bytes),
            time::size(resources.disk_total_bytes)
        )
    });
    let storage = view.resources.as_ref().and_then(|resources| resources.storage).map_or_else(String::new, storage);
    let copies = if view.copy_limit.is_off() {
        String::new()
    } else {
        let now = limited(&view.copy_limit, view.copy_limit_now);
        let now = if now.is_empty() { now } else { format!(" (now {now})") };
        format!("{}{now}", view.copy_limit)
    };
    let scrubbed = view.resources.as_ref().and_then(|resources| resources.scrub);
    let scrubbed = scrubbed.map_or_else(String::new, |it| scrub::words(&it, now));
    let optional_age = |at: Option<UnixMillis>| at.map_or_else(String::new, |at| format!("{} ago", time::age(now, at)));
    let lines = [
        ("Machine", format!("{} ({})", view.name, view.id)),
        ("State", format!("{}{drained} for {}{reason}", condition.state.as_str(), time::age(now, condition.since))),
        ("Role", role(view).to_owned()),
        ("Labels", labels(&view.labels)),
        ("Addresses", view.addresses.join(", ")),
        ("Power", if view.power == Power::Battery { "battery" } else { "mains" }.to_owned()),
        ("Copies", copies),
        ("Engine", engine),
        ("Uses", resources),
        ("Volumes", storage),
        ("Scrubbed", scrubbed),
        ("Lease", view.lease_left_ms.map_or_else(String::new, |left| format!("{left} ms left"))),
        ("Version", view.version.clone()),
        ("Joined", optional_age(view.joined_at)),
        ("Started", optional_age(view.started_at)),
        ("Seen", if view.here { "now".to_owned() } else { optional_age(view.observed_at) }),
        (
            "Lost",
            losses
                .last()
                .map_or_else(String::new, |at| format!("{} times, last {} ago", losses.len(), time::age(now, *at))),
        ),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        output.line(&format!("{name:<10} {value}"))?;
    }
    output.line("")?;
    let rows = placements
        .iter()
        .map(|placement| {
            vec![
                Cell::new(&placement.service),
                Cell::new(placement.replica),
                Cell::new(placement.epoch),
                Cell::new(placement.revision),
                Cell::new(placement.phase.as_str()),
                Cell::new(time::age(now, placement.since)),
                Cell::new(&placement.reason),
            ]
        })
        .collect();
    let header = ["SERVICE", "REPLICA", "EPOCH", "REVISION", "PHASE", "SINCE", "WHY HERE"];
    output.table(&header, rows, "Nothing is placed on it.")?;
    if view.links.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = view.links.iter().map(|link| link_row(link, names, now)).collect();
    output.table(&["LINK TO", "STATE", "PATH", "RTT", "JITTER", "LOSS", "OUT", "IN", "AGE", "REMOTE"], rows, "")
}

/// `1.2 GiB of generations, 600 MiB written there, 300 MiB of copies`
fn storage(storage: StorageView) -> String {
    let StorageView { objects_bytes, written_bytes, copies_bytes, .. } = storage;
    let size = time::size;
    format!(
        "{} of generations, {} written there, {} of copies",
        size(objects_bytes),
        size(written_bytes),
        size(copies_bytes)
    )
}

fn link_row(link: &LinkView, names: &BTreeMap<NodeId, MachineName>, now: UnixMillis) -> Vec<Cell> {
    let millis = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1} ms"));
    vec![
        Cell::new(names.get(&link.peer).map_or_else(|| link.peer.to_string(), ToString::to_string)),
        Cell::new(match link.state {
            LinkState::Up => "up",
            LinkState::Connecting => "connecting",
            LinkState::Down => "down",
        }),
        Cell::new(match link.path {
            Some(LinkPath::Direct) if link.bulk == Some(BulkPath::Tls) => "direct, TLS",
            Some(LinkPath::Direct) => "direct",
            Some(LinkPath::Relayed) => "relayed",
            None => "",
        }),
        Cell::new(millis(link.rtt_ms)),
        Cell::new(millis(link.jitter_ms)),
        Cell::new(link.loss.map_or_else(String::new, |loss| format!("{:.1}%", loss * 100.0))),
        Cell::new(format!("{}/s", time::size(link.sent_per_second))),
        Cell::new(format!("{}/s", time::size(link.received_per_second))),
        Cell::new(time::age(now, link.since)),
        Cell::new(link.remote.as_deref().unwrap_or_default()),
    ]
}

async fn rename(machine: &MachineName, name: MachineName, session: &Session) -> Result<(), Failure> {
    let change = ChangeMachine { name: Some(name.clone()), ..ChangeMachine::default() };
    session.client.change_machine(machine, &change).await?;
    session.output.done(&format!("{machine} is now called {name}."), &json!({ "machine": name, "was": machine }))
}

async fn label(args: Label, session: &Session) -> Result<(), Failure> {
    let labels: BTreeMap<String, Option<String>> = args.labels.into_iter().collect();
    let change = ChangeMachine { labels: labels.clone(), ..ChangeMachine::default() };
    session.client.change_machine(&args.machine, &change).await?;
    let set = session.client.machine(&args.machine).await?.view.labels;
    let shown = if set.is_empty() { "no label".to_owned() } else { self::labels(&set) };
    session.output.done(&format!("{} has {shown}.", args.machine), &json!({ "machine": args.machine, "labels": set }))
}

async fn limit(args: Limit, session: &Session) -> Result<(), Failure> {
    let Limit { machine, rate: LimitRate(rate), between } = args;
    let limit = match between.as_slice() {
        [] if rate.is_none() => CopyLimit::default(),
        [] => CopyLimit { rate, ..session.client.machine(&machine).await?.view.copy_limit },
        spans => session.client.machine(&machine).await?.view.copy_limit.with(rate, spans),
    };
    let change = ChangeMachine { copy_limit: Some(limit.clone()), ..ChangeMachine::default() };
    session.client.change_machine(&machine, &change).await?;
    let sentence = if limit.is_off() {
        format!("{machine} sends copies as fast as its line takes them.")
    } else {
        format!("What {machine} sends of copies is limited: {limit}.")
    };
    session.output.done(&sentence, &json!({ "machine": machine, "copy_limit": limit }))
}

async fn remove(args: MachineRm, session: &Session) -> Result<(), Failure> {
    // Looked up first, so that a typing error is not asked to be confirmed.
    let detail = session.client.machine(&args.machine).await?;
    if !args.yes {
        let question = format!("Remove the machine {} from the cluster, for good?", detail.view.name);
        output::confirm(&question, "nothing was removed")?;
    }
    session.client.remove_machine(&args.machine, RemoveMachineQuery { force: args.force }).await?;
    session.output.done(
        &format!(
            "Removed {}. Its key is not taken again: to come back it needs an empty data directory and a new join token. If somebody \
             else may have it now, `flotilla secret rekey` keeps from it what is set and written from here on.",
            detail.view.name
        ),
        &json!({ "removed": detail.view.name, "id": detail.view.id }),
    )
}

pub(super) async fn drain(args: &Drain, session: &Session) -> Result<(), Failure> {
    let machine = &args.machine;
    session.client.drain(machine, DrainQuery { force: args.force }).await?;
    if !args.wait {
        let sentence = format!("{machine} is being drained; `flotilla machine inspect {machine}` shows what is left.");
        return session.output.done(&sentence, &json!({ "machine": machine, "state": "draining" }));
    }
    let deadline = Instant::now() + args.timeout;
    loop {
        let left = match session.client.machine(machine).await {
            Ok(detail) if detail.view.condition.state == MachineState::Lost => {
                return Err(Failure::Other(format!("{machine} was lost while it was drained")));
            }
            Ok(detail) if !detail.view.drained => {
                return Err(Failure::Other(format!("somebody undid the drain of {machine} meanwhile")));
            }
            Ok(detail) if detail.placements.is_empty() => break,
            Ok(detail) => detail.placements.len(),
            // The node that is asked may be the one that is drained and restarted.
            Err(error) if error.is_transient() => 0,
            Err(error) => return Err(error.into()),
        };
        if tokio::time::timeout_at(deadline, tokio::time::sleep(ASK_EVERY)).await.is_err() {
            return Err(Failure::NotHealthy {
                sentence: format!(
                    "{machine} is not empty after {}: {left} of its instances are still there; `flotilla machine inspect {machine}` shows which",
                    humantime::format_duration(args.timeout)
                ),
                logs: Vec::new(),
            });
        }
    }
    session
        .output
        .done(&format!("{machine} is drained: nothing runs there."), &json!({ "machine": machine, "state": "drained" }))
}

pub(super) async fn undrain(machine: &MachineName, session: &Session) -> Result<(), Failure> {
    session.client.undrain(machine).await?;
    session.output.done(&format!("{machine} takes instances again."), &json!({ "machine": machine, "state": "active" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_counted_by_how_they_lead() {
        let link = |state, path| LinkView {
            peer: NodeId("x".to_owned()),
            state,
            path,
            bulk: None,
            remote: None,
            rtt_ms: None,
            jitter_ms: None,
            loss: None,
            sent_per_second: 0,
            received_per_second: 0,
            since: UnixMillis(0),
            observed_at: UnixMillis(0),
            problem: None,
        };
        let links = [
            link(LinkState::Up, Some(LinkPath::Direct)),
            link(LinkState::Up, Some(LinkPath::Direct)),
            link(LinkState::Up, Some(LinkPath::Relayed)),
            link(LinkState::Down, None),
            link(LinkState::Connecting, None),
        ];
        assert_eq!(links_in_short(&links), "2 direct, 1 relayed, 2 down");
        assert_eq!(links_in_short(&[]), "");
    }

    #[test]
    fn the_limit_of_now_is_told_with_its_end() {
        let off = CopyLimit::default();
        let evening = off.clone().with(Some(Rate::ZERO), &["18:00-22:00".parse().unwrap()]);
        let now = |rate: Option<&str>, until: Option<&str>| {
            let rate = rate.map(|rate| rate.parse().unwrap());
            Some(LimitNow { rate, until: until.map(|until| until.parse().unwrap()) })
        };
        for (limit, now, said) in [
            (&off, now(None, None), ""),
            (&off, None, ""),
            (&evening, now(Some("0"), Some("22:00")), "no copies until 22:00"),
            (&evening, now(None, Some("18:00")), "none until 18:00"),
            (&evening, now(Some("2MB/s"), None), "2 MB/s"),
            (&evening, None, "nothing from 18:00 to 22:00"),
        ] {
            assert_eq!(limited(limit, now), said);
        }
    }
}
