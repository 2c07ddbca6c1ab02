//! Why a service runs where it runs.

use comfy_table::{Cell, Color};
use flotilla_api::{
    ServiceName,
    rest::{ExplainView, MachineVerdict, Verdict},
};

use super::{Failure, Output, Session, time};
use crate::clock;

pub(super) async fn run(service: &ServiceName, session: &Session) -> Result<(), Failure> {
    let explained = session.client.explain(service).await?;
    if session.output.json {
        return session.output.value(&explained);
    }
    describe(&explained, session.output)
}

fn describe(explained: &ExplainView, output: Output) -> Result<(), Failure> {
    let now = clock::now();
    output.line(&explained.summary)?;
    if !explained.standby.is_empty() {
        let names: Vec<&str> = explained.standby.iter().map(AsRef::as_ref).collect();
        output.line(&format!("{} has all that it needs to take over.", names.join(", ")))?;
    }
    output.line("")?;
    let placed = explained.placements.iter().map(|placed| {
        vec![
            Cell::new(placed.replica),
            Cell::new(&placed.machine),
            Cell::new(placed.epoch),
            Cell::new(placed.revision),
            Cell::new(placed.phase.as_str()),
            Cell::new(time::age(now, placed.since)),
            Cell::new(&placed.reason),
        ]
    });
    let header = ["REPLICA", "MACHINE", "EPOCH", "REVISION", "PHASE", "SINCE", "WHY HERE"];
    output.table(&header, placed.collect(), "It is placed nowhere.")?;
    if explained.machines.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let machines = explained.machines.iter().map(|machine| row(machine, output));
    output.table(&["MACHINE", "", "POINTS", "WHY"], machines.collect(), "")
}

fn row(machine: &MachineVerdict, output: Output) -> Vec<Cell> {
    let (verdict, colour) = match machine.verdict {
        Verdict::Chosen => ("chosen", Color::Green),
        Verdict::Possible => ("possible", Color::DarkGrey),
        Verdict::Impossible => ("impossible", Color::Yellow),
    };
    let parts: Vec<String> =
        machine.parts.iter().map(|part| format!("{} {:+}: {}", part.part, part.points, part.why)).collect();
    let parts = if parts.is_empty() { String::new() } else { format!("\n{}", parts.join("\n")) };
    vec![
        Cell::new(&machine.machine),
        output.coloured(verdict, colour),
        Cell::new(machine.score.map_or_else(String::new, |score| score.to_string())),
        Cell::new(format!("{}{parts}", machine.why)),
    ]
}
