//! `make bench-data`: how soon what a service writes is safe on other machines, what that costs, and how soon the service is back with
//! its data; beside rsync and Syncthing on the same simulated machines. It needs root.
#![allow(clippy::print_stdout, reason = "its table is what it is for")]

mod content;
mod flotilla;
mod rsync;
mod syncthing;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use flotilla_tests::{bed::Bed, series::Report};

/// How often each thing is done.
const RUNS: usize = 5;

/// In the order in which they are measured.
const PARTS: [&str; 6] = ["small", "first", "change", "still", "idle", "failover"];

/// Measures how data reaches other machines.
#[derive(Clone, Debug, Parser)]
struct Settings {
    /// How often each thing is done; the small write ten times as often
    #[arg(long, default_value_t = RUNS, value_parser = at_least_one)]
    runs: usize,
    /// Parts that are measured, parted by commas; all, if nothing is said
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = PARTS)]
    only: Vec<String>,
    /// Bytes of the volume that a service is lost with, in gigabytes. Each of three machines needs twice as much
    #[arg(long, default_value_t = 5)]
    gigabytes: u64,
    /// Without rsync and Syncthing
    #[arg(long)]
    alone: bool,
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
        if let Err(error) = measure(part, &settings, &mut report).await {
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

async fn measure(part: &str, settings: &Settings, report: &mut Report) -> Result<()> {
    let runs = settings.runs;
    match part {
        "small" => {
            flotilla::small(runs * 10, report).await?;
            if !settings.alone {
                rsync::small(runs * 10, report).await?;
                syncthing::small(runs, report).await?;
            }
        }
        "first" => {
            let rival = if settings.alone { None } else { Some(rsync::first(runs, report).await?) };
            flotilla::first(runs, rival, report).await?;
            if !settings.alone {
                syncthing::first(runs, report).await?;
            }
        }
        "change" => {
            flotilla::change(runs, report).await?;
            if !settings.alone {
                rsync::change(runs, report).await?;
            }
        }
        "still" => flotilla::still(runs, report).await?,
        "idle" => flotilla::idle(report).await?,
        "failover" => flotilla::failover(runs, settings.gigabytes, report).await?,
        other => bail!("there is no part {other}"),
    }
    Ok(())
}
