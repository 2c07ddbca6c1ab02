//! `make bench-failover`: what people notice when machines of a cluster die, are emptied or updated, on simulated machines with
//! engines of their own; and the same of Docker Swarm on the same machines. It needs root.
#![allow(clippy::print_stdout, reason = "its table is what it is for")]

mod change;
mod planned;
mod power;
mod size;
mod swarm;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use flotilla_tests::bed::Bed;

use flotilla_tests::series::Report;

/// How often each thing is done.
const RUNS: usize = 20;

/// In the order in which they are measured.
const PARTS: [&str; 8] = ["worker", "leader", "drain", "update", "commit", "join", "memory", "swarm"];

/// Measures what people notice when machines of a cluster die.
#[derive(Debug, Parser)]
struct Settings {
    /// How often each thing is done
    #[arg(long, default_value_t = RUNS, value_parser = at_least_one)]
    runs: usize,
    /// Parts that are measured, parted by commas; all, if nothing is said
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = PARTS)]
    only: Vec<String>,
    /// Writes the figures down
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize> {
    let count = text.parse()?;
    ensure!(count > 0, "at least one");
    Ok(count)
}

// One thread, as that thread is on the bed's network.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let settings = Settings::parse();
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
