//! `make bench-data`: how soon what a service writes is safe on other machines, what that costs, and how soon the service is back with
//! its data; beside rsync and Syncthing on the same simulated machines. It needs root.

mod content;
mod flotilla;
mod rsync;
mod syncthing;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use flotilla_tests::{
    bed::Bed,
    series::{Asked, Report, at_least_one},
};

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
    /// Bytes of the volume that a service is lost with, in gigabytes. Each of three machines needs twice as much
    #[arg(long, default_value_t = 5)]
    gigabytes: u64,
    /// Without rsync and Syncthing
    #[arg(long)]
    alone: bool,
    #[command(flatten)]
    asked: Asked,
}

// One thread, as that thread is on the bed's network.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let settings = Settings::parse();
    ensure!(Bed::can_be_made()?, "a bench that measures nothing is a failure");
    settings.asked.measure(&PARTS, async |part, report| measure(part, &settings, report).await).await
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
