//! The engine of a machine dies, and its disk is full.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flotilla_api::rest::ChangeMachine;
use flotilla_tests::{
    bed::{Cluster, cluster::SETTLED_LIMIT},
    checker::Checker,
    wait,
};

use super::{NOTES, PAGES, ends_well};

/// A moment that is too short to be taken for the end of an engine.
const AWAY: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_engine_is_killed_and_started_again() -> Result<()> {
    let Some(mut cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = (cluster.leader().await? + 1) % 3;
    cluster.deploy_to(host, &[NOTES, PAGES]).await?;
    let others = cluster.all_but(host);
    let visitors = [cluster.visit(NOTES.name, &others).await?, cluster.visit(PAGES.name, &others).await?];

    let at = Instant::now();
    cluster.bed.machine(host).kill_engine().await?;
    // It is gone for that long, and that is all that this waits for.
    tokio::time::sleep(AWAY).await;
    cluster.bed.machine(host).start_engine().await?;
    cluster.ready(host).await?;
    for service in [NOTES.name, PAGES.name] {
        cluster.runs(service).await?;
    }
    for visitor in &visitors {
        visitor.outage_within_promise(&format!("an engine that is away for {AWAY:?}"), at).await?;
    }
    ends_well(&cluster, checker).await.map(drop)
}

#[tokio::test]
async fn a_full_disk_of_the_leader_stops_no_change_for_long() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let leader = cluster.leader().await?;
    let host = (leader + 1) % 3;
    cluster.deploy_to(host, &[NOTES]).await?;
    let visitor = cluster.visit(NOTES.name, &cluster.all_but(leader)).await?;

    let at = Instant::now();
    cluster.bed.machines()[leader].fill_disk().await?;
    let name = cluster.name(host)?;
    let change =
        ChangeMachine { labels: [("disk".to_owned(), Some("well".to_owned()))].into(), ..ChangeMachine::default() };
    wait::holds("a change to be taken", SETTLED_LIMIT, async || {
        for index in (0..3).filter(|index| *index != leader) {
            if cluster.client(index)?.change_machine(&name, &change).await.is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await?;
    eprintln!("MEASURED the leader's disk is full: a change was taken after {:?}", at.elapsed());
    cluster.bed.machines()[leader].free_disk().await?;
    cluster.ready(leader).await?;
    let applied = cluster.client(cluster.leader().await?)?.cluster().await?.applied_index;
    catches_up(&cluster, leader, applied).await?;
    visitor.outage_within_promise("a full disk of the leader", at).await?;
    ends_well(&cluster, checker).await.map(drop)
}

#[tokio::test]
async fn a_full_disk_of_a_worker_leaves_its_services_as_they_are() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = (cluster.leader().await? + 1) % 3;
    cluster.deploy_to(host, &[NOTES, PAGES]).await?;
    let visitor = cluster.visit(PAGES.name, &cluster.all_but(host)).await?;

    let at = Instant::now();
    cluster.bed.machines()[host].fill_disk().await?;
    // A change that its node can't write down, and takes up later.
    let leader = cluster.leader().await?;
    let change =
        ChangeMachine { labels: [("disk".to_owned(), Some("small".to_owned()))].into(), ..ChangeMachine::default() };
    cluster.client(leader)?.change_machine(&cluster.name(host)?, &change).await?;
    let applied = cluster.client(leader)?.cluster().await?.applied_index;
    cluster.bed.machines()[host].free_disk().await?;
    catches_up(&cluster, host, applied).await?;
    cluster.ready(host).await?;
    for service in [NOTES.name, PAGES.name] {
        cluster.runs(service).await?;
    }
    visitor.outage_within_promise("a full disk of a worker", at).await?;
    let report = ends_well(&cluster, checker).await?;
    ensure!(report.epochs(NOTES.name).len() == 1, "it was moved, though it ran: {report}");
    Ok(())
}

async fn catches_up(cluster: &Cluster, index: usize, applied: u64) -> Result<()> {
    wait::holds("the machine to catch up", SETTLED_LIMIT, async || {
        Ok(cluster.client(index)?.cluster().await?.applied_index >= applied)
    })
    .await
}
