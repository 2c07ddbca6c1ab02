//! `make bench-failover`: what people notice when machines of a cluster die, are emptied or updated, on simulated machines with
//! engines of their own; and the same of Docker Swarm on the same machines. It needs root.
//!
//! `flotilla-failover [--runs N] [--only PART[,PART…]] [--json FILE]`
#![allow(clippy::print_stdout, reason = "its table is what it is for")]

mod change;
mod planned;
mod power;
mod series;
mod size;
mod swarm;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use flotilla_tests::bed::Bed;

use series::Report;

/// How often each thing is done.
const RUNS: usize = 20;

/// In the order in which they are measured.
const PARTS: [&str; 8] = ["worker", "leader", "drain", "update", "commit", "join", "memory", "swarm"];

#[derive(Debug)]
struct Settings {
    runs: usize,
    only: Vec<String>,
    json: Option<PathBuf>,
}

impl Settings {
    fn from_arguments() -> Result<Self> {
        let mut settings = Self { runs: RUNS, only: Vec::new(), json: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
            match argument.as_str() {
                "--runs" => settings.runs = value.parse::<usize>()?.max(1),
                "--json" => settings.json = Some(value.into()),
                "--only" => settings.only = value.split(',').map(ToOwned::to_owned).collect(),
                _ => bail!("unknown argument {argument} {value}"),
            }
        }
        for part in &settings.only {
            ensure!(PARTS.contains(&part.as_str()), "there is no part {part}; there are {}", PARTS.join(", "));
        }
        Ok(settings)
    }
}

// One thread, as that thread is on the bed's network.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let settings = Settings::from_arguments()?;
    ensure!(Bed::can_be_made()?, "a bench that measures nothing is a failure");
    let mut report = Report::default();
    for part in PARTS {
        if !settings.only.is_empty() && !settings.only.iter().any(|wanted| wanted == part) {
            continue;
        }
        eprintln!("{part}:");
        // A part that can't be measured takes none of the others with it.
        if let Err(error) = measure(part, settings.runs, &mut report).await {
            report.failed(part, &error);
        }
    }
    println!("{report}");
    if let Some(path) = &settings.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    if report.missed() > 0 {
        bail!("{} of the figures are short of their goals, or were not measured", report.missed());
    }
    Ok(())
}

async fn measure(part: &str, runs: usize, report: &mut Report) -> Result<()> {
    match part {
        "worker" => power::worker(runs, report).await,
        "leader" => power::leader_and_host(runs, report).await,
        "drain" => planned::drain(runs, report).await,
        "update" => planned::update(runs, report).await,
        "commit" => change::commit(runs, report).await,
        "join" => change::join(runs, report).await,
        "memory" => size::memory(report).await,
        "swarm" => swarm::measure(runs, report).await,
        other => bail!("there is no part {other}"),
    }
}
