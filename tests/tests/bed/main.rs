//! Clusters of simulated machines whose power is lost, whose network is cut, whose daemons are killed.
//!
//! They need root. `make bed` runs all of them, the long ones too. What they measure is printed behind `MEASURED`.

mod board;
mod carried;
mod daemon;
mod damage;
mod data;
mod engine;
mod ledger;
mod machines;
mod partition;
mod power;
mod rolling;
mod slow;
mod storage;

use std::time::Duration;

use anyhow::{Result, ensure};
use flotilla_tests::{
    bed::{Cluster, cluster::Sample},
    checker::{Checker, Report},
};

/// Writes a volume: two of it must never run at one time.
const NOTES: Sample<'static> = Sample::exclusive("notes");
/// Writes nothing.
const PAGES: Sample<'static> = Sample::stateless("pages");

/// The end of a test in which machines were lost: all of them are well, and of `notes` one instance runs, and never two did.
async fn ends_well(cluster: &Cluster, checker: Checker) -> Result<Report> {
    is_well(cluster, &checker).await?;
    told(checker.finish()?)
}

/// [`ends_well`], after a machine was paused from outside: for so long two may have run.
async fn ends_well_but(cluster: &Cluster, checker: Checker, tolerated: Duration) -> Result<Report> {
    is_well(cluster, &checker).await?;
    told(checker.finish_after_pause(tolerated)?)
}

async fn is_well(cluster: &Cluster, checker: &Checker) -> Result<()> {
    cluster.all_ready(cluster.bed.machines().len()).await?;
    let on = cluster.runs(NOTES.name).await?;
    let running = checker.running(NOTES.name);
    let seen: Result<Vec<usize>> = running.iter().map(|(machine, _)| cluster.bed.index_of(machine)).collect();
    ensure!(seen? == on, "the cluster says that it runs on {on:?}, and the kernels say {running:?}");
    Ok(())
}

fn told(report: Report) -> Result<Report> {
    eprintln!("{report}");
    Ok(report)
}
