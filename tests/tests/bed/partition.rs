//! The network between machines is cut, for long or for a moment.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flotilla_tests::{
    bed::{Cluster, probe::clock},
    checker::Checker,
    wait,
};

use super::{NOTES, PAGES, ends_well};

/// A lease, its margin, and what a busy machine adds.
const FENCED_LIMIT: Duration = Duration::from_secs(10);
/// Shorter than the shortest lease, less what a node keeps of it for freezing.
const BLIP: Duration = Duration::from_millis(1200);

#[tokio::test]
async fn a_leader_that_is_cut_off_freezes_what_writes_and_goes_on_with_the_rest() -> Result<()> {
    let Some(mut cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let leader = cluster.leader().await?;
    cluster.deploy_to(leader, &[NOTES, PAGES]).await?;
    let majority = cluster.all_but(leader);
    let notes = cluster.visit(NOTES.name, &majority).await?;
    let pages = cluster.visit(PAGES.name, &majority).await?;
    // On its side of the cut.
    let beside = cluster.visit(PAGES.name, &[leader]).await?;
    let name = cluster.bed.machines()[leader].name().to_owned();

    let (event, at) = (clock(), Instant::now());
    cluster.bed.partition(&[leader])?;
    wait::holds("what writes to freeze", FENCED_LIMIT, async || {
        Ok(checker.running(NOTES.name).iter().all(|(machine, _)| *machine != name))
    })
    .await?;
    eprintln!("MEASURED frozen after {:?}", at.elapsed());
    notes.answered_by_a_later_one(event).await?;
    pages.answered_by_a_later_one(event).await?;
    notes.outage_within_promise("the leader is cut off", at).await?;
    pages.outage_within_promise("the leader is cut off", at).await?;
    let aside = beside.outage_since(at).await?;
    ensure!(aside.failed == 0, "what writes nothing goes on where it is: {aside:?}");
    ensure!(beside.answered_by().is_some_and(|beat| beat.started < event), "and is not started anew");

    let healed = Instant::now();
    cluster.bed.heal()?;
    cluster.ready(leader).await?;
    for (visitor, which) in [(&notes, "notes"), (&pages, "pages"), (&beside, "pages of the minority")] {
        visitor.outage_within_promise(&format!("the cut is healed, {which}"), healed).await?;
    }
    ensure!(cluster.runs(PAGES.name).await?.len() == 1);
    let report = ends_well(&cluster, checker).await?;
    ensure!(report.epochs(NOTES.name).len() >= 2, "{report}");
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_alone_for_a_moment_restarts_nothing() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let host = (cluster.leader().await? + 1) % 3;
    blip(cluster, host).await
}

#[tokio::test]
async fn a_leader_that_is_alone_for_a_moment_restarts_nothing() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let leader = cluster.leader().await?;
    blip(cluster, leader).await
}

async fn blip(mut cluster: Cluster, host: usize) -> Result<()> {
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    cluster.deploy_to(host, &[NOTES, PAGES]).await?;
    let others = cluster.all_but(host);
    let visitors = [cluster.visit(NOTES.name, &others).await?, cluster.visit(PAGES.name, &others).await?];
    let instances = || visitors.each_ref().map(|visitor| visitor.answered_by().map(|beat| (beat.host, beat.started)));
    let before = instances();

    let at = Instant::now();
    cluster.bed.isolate(&[host])?;
    // It is as long as that, and nothing is waited for.
    tokio::time::sleep(BLIP).await;
    cluster.bed.heal()?;
    cluster.ready(host).await?;
    for visitor in &visitors {
        visitor.outage_within_promise(&format!("a blip of {BLIP:?}"), at).await?;
    }
    ensure!(instances() == before, "other instances answer: {:?}, before {before:?}", instances());
    let report = ends_well(&cluster, checker).await?;
    ensure!(report.epochs(NOTES.name).len() == 1, "{report}");
    Ok(())
}
