//! `make bench-data`: how soon what a service writes is safe on other machines, what that costs, and how soon the service is back with
//! its data; beside rsync and Syncthing on the same simulated machines. It needs root.

mod content;
mod flotilla;
mod real;
mod rsync;
mod syncthing;
mod way;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use flotilla_tests::{
    bed::Bed,
    series::{Asked, Report, at_least_one},
};

use self::{content::Tree, way::Way};

/// How often each thing is done.
const RUNS: usize = 5;
/// What takes a minute each time.
const SLOW_RUNS: usize = 2;

/// In the order in which they are measured.
const PARTS: [&str; 10] =
    ["small", "first", "first-slow", "change", "change-slow", "real", "real-slow", "still", "idle", "failover"];

/// Measures how data reaches other machines.
#[derive(Clone, Debug, Parser)]
struct Settings {
    /// How often each thing is done; the small write ten times as often, what is slow at most twice
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
        "first" => first(settings, Way::Lan, report).await?,
        "first-slow" => first(settings, Way::Slow, report).await?,
        "change" => change(settings, Way::Lan, report).await?,
        "change-slow" => change(settings, Way::Slow, report).await?,
        "real" => real(settings, Way::Lan, report).await?,
        "real-slow" => real(settings, Way::Slow, report).await?,
        "still" => flotilla::still(runs, report).await?,
        "idle" => flotilla::idle(report).await?,
        "failover" => flotilla::failover(runs, settings.gigabytes, report).await?,
        other => bail!("there is no part {other}"),
    }
    Ok(())
}

impl Settings {
    fn runs(&self, way: Way) -> usize {
        match way {
            Way::Lan => self.runs,
            Way::Slow => self.runs.min(SLOW_RUNS),
        }
    }
}

async fn first(settings: &Settings, way: Way, report: &mut Report) -> Result<()> {
    way.explain(report);
    let runs = settings.runs(way);
    // Where the network is the limit, what encrypts has to be nearly as fast as what does not.
    let as_long_as = match way {
        Way::Lan => 2.0,
        Way::Slow => 1.0 / 0.9,
    };
    let goals = if settings.alone {
        None
    } else {
        let rsync = rsync::first(runs, way, &Tree::RANDOM, rsync::PLAIN, report).await?;
        Some(rsync.into_iter().map(|seconds| seconds * as_long_as).collect())
    };
    flotilla::first(runs, way, &Tree::RANDOM, goals, report).await?;
    if !settings.alone {
        syncthing::first(runs, way, &Tree::RANDOM, report).await?;
    }
    Ok(())
}

async fn change(settings: &Settings, way: Way, report: &mut Report) -> Result<()> {
    way.explain(report);
    let runs = settings.runs(way);
    let most = match way {
        Way::Lan => 2.0,
        Way::Slow => 3.0,
    };
    flotilla::change(runs, way, most, report).await?;
    if !settings.alone {
        rsync::change(runs, way, report).await?;
    }
    Ok(())
}

/// What can be compressed, and is in part there twice.
async fn real(settings: &Settings, way: Way, report: &mut Report) -> Result<()> {
    way.explain(report);
    let (runs, trees) = (settings.runs(way), [Tree::Real]);
    let goals = if settings.alone {
        None
    } else {
        let plain = rsync::first(runs, way, &trees, rsync::PLAIN, report).await?;
        rsync::first(runs, way, &trees, rsync::COMPRESSED, report).await?;
        Some(plain)
    };
    flotilla::first(runs, way, &trees, goals, report).await
}
