//! Clusters of simulated machines whose power is lost, whose network is cut, whose daemons are killed.
//!
//! They need root. `make bed` runs all of them, the long ones too. What they measure is printed behind `MEASURED`.

mod daemon;
mod engine;
mod machines;
mod partition;
mod power;
mod rolling;

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
    let members = cluster.bed.machines().len();
    cluster.all_ready(members).await?;
    let on = cluster.runs(NOTES.name).await?;
    let running = checker.running(NOTES.name);
    ensure!(
        running.iter().map(|(machine, _)| cluster.bed.index_of(machine)).collect::<Result<Vec<_>>>()? == on,
        "the cluster says that it runs on {on:?}, and the kernels say {running:?}"
    );
    let report = checker.finish()?;
    eprintln!("{report}");
    Ok(report)
}
