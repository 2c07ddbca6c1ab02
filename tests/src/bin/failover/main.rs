//! `make bench-failover`: what people notice when machines of a cluster die, are emptied or updated, on simulated machines with
//! engines of their own; and the same of Docker Swarm on the same machines. It needs root.

mod change;
mod planned;
mod power;
mod size;
mod swarm;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use flotilla_tests::bed::Bed;

use flotilla_tests::series::{Asked, Report, at_least_one};

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
    #[command(flatten)]
    asked: Asked,
}

// One thread, as that thread is on the bed's network.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let settings = Settings::parse();
    ensure!(Bed::can_be_made()?, "a bench that measures nothing is a failure");
    settings.asked.measure(&PARTS, async |part, report| measure(part, settings.runs, report).await).await
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
