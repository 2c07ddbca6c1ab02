//! A machine's power is lost: its cable first, so that it says no goodbye.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flotilla_tests::{
    bed::{Cluster, probe::clock},
    checker::Checker,
};

use super::{NOTES, PAGES, ends_well};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It has the services, and another one leads.
    Worker,
    /// It leads, and another one has the services.
    Leader,
    /// It leads and has the services.
    LeaderAndHost,
}

#[tokio::test]
async fn a_worker_loses_its_power_and_its_services_are_back_elsewhere() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    power_loss(cluster, Lost::Worker).await
}

#[tokio::test]
async fn the_leader_loses_its_power_with_the_services_on_it() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    power_loss(cluster, Lost::LeaderAndHost).await
}

#[tokio::test]
async fn the_leader_loses_its_power_and_services_elsewhere_stay_where_they_are() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    power_loss(cluster, Lost::Leader).await
}

#[tokio::test]
async fn a_worker_of_five_loses_its_power() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(5).await? else { return Ok(()) };
    power_loss(cluster, Lost::Worker).await
}

#[tokio::test]
async fn the_leader_of_five_loses_its_power_with_the_services_on_it() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(5).await? else { return Ok(()) };
    power_loss(cluster, Lost::LeaderAndHost).await
}

#[tokio::test]
async fn a_worker_of_ten_loses_its_power() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(10).await? else { return Ok(()) };
    power_loss(cluster, Lost::Worker).await
}

#[tokio::test]
async fn the_leader_of_ten_loses_its_power_with_the_services_on_it() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(10).await? else { return Ok(()) };
    power_loss(cluster, Lost::LeaderAndHost).await
}

/// Two services, with a volume and without, of which visitors ask through a machine that stays and through the one that is lost.
async fn power_loss(mut cluster: Cluster, lost: Lost) -> Result<()> {
    let machines = cluster.bed.machines().len();
    let leader = cluster.leader().await?;
    let worker = (leader + 1) % machines;
    let (victim, host) = match lost {
        Lost::Worker => (worker, worker),
        Lost::Leader => (leader, worker),
        Lost::LeaderAndHost => (leader, leader),
    };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    cluster.deploy_to(host, &[NOTES, PAGES]).await?;
    let former = cluster.service(NOTES.name).await?.view.epoch.context("it runs under an epoch")?;
    let (heir, spare) = cluster.stands_by(NOTES.name).await?;

    let stays = cluster.all_but(victim);
    let goes = [&[victim], stays.as_slice()].concat();
    let visitors = [
        ("by a machine that stays", cluster.visit(NOTES.name, &stays).await?),
        ("by a machine that stays", cluster.visit(PAGES.name, &stays).await?),
        ("by the one that is lost", cluster.visit(PAGES.name, &goes).await?),
    ];
    let (event, at) = (clock(), Instant::now());
    cluster.bed.power_off(victim)?;

    if victim == host {
        for (_, visitor) in &visitors {
            visitor.answered_by_a_later_one(event).await?;
        }
    }
    for (way, visitor) in &visitors {
        visitor.outage_within_promise(&format!("power loss of {lost:?} of {machines}, {way}"), at).await?;
    }
    if victim == leader {
        cluster.led_by_another_than(victim).await?;
    }
    let now_on = cluster.runs(NOTES.name).await?;
    let epoch = cluster.service(NOTES.name).await?.view.epoch.context("it runs under an epoch")?;
    if victim == host {
        ensure!(now_on == [heir] && epoch > former, "it runs on {now_on:?} under {epoch}, before under {former}");
        let answers = visitors[0].1.answered_by().context("an answer")?;
        ensure!(spare.starts_with(&answers.host), "{} answers, and {spare} had stood by", answers.host);
    } else {
        ensure!(now_on == [host] && epoch == former, "it was moved to {now_on:?} though its machine was well");
    }

    cluster.boot(victim).await?;
    let report = ends_well(&cluster, checker).await?;
    ensure!(report.epochs(NOTES.name).first() == Some(&former), "{report}");
    ensure!(report.epochs(NOTES.name).contains(&epoch), "{report}");
    Ok(())
}
