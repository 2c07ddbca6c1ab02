//! What is planned: nodes are restarted, machines are emptied, join and leave, services get new revisions.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flotilla_api::{
    Grant,
    rest::{CreateToken, HeldImageView, RemoveMachineQuery},
};
use flotilla_tests::{
    bed::{
        Bed, BedSpec, Cluster,
        cluster::{SETTLED_LIMIT, Sample, long_is_wanted},
    },
    checker::Checker,
    wait,
};

use super::{NOTES, PAGES, ends_well};

#[tokio::test]
async fn a_machine_is_emptied_and_no_request_fails() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let leader = cluster.leader().await?;
    let host = (leader + 1) % 3;
    tokens_are_good_everywhere_at_once(&cluster, leader).await?;
    cluster.deploy_to(host, &[PAGES]).await?;
    let visitors = [
        cluster.visit(PAGES.name, &[leader]).await?,
        // Through the machine that is emptied, which stays a way to the services.
        cluster.visit(PAGES.name, &[host]).await?,
    ];
    let at = Instant::now();
    cluster.empty(host).await?;
    eprintln!("MEASURED emptied after {:?}", at.elapsed());
    ensure!(cluster.runs(PAGES.name).await? != [host]);
    for visitor in visitors {
        visitor.outage_within_promise("drain", at).await?;
        visitor.leave_without_a_failure("drain")?;
    }
    cluster.client(leader)?.undrain(&cluster.name(host)?).await?;
    cluster.ready(host).await
}

/// A token that one node has just made is good at the others, which may not have heard of it.
async fn tokens_are_good_everywhere_at_once(cluster: &Cluster, maker: usize) -> Result<()> {
    for round in 0..10 {
        let wanted = CreateToken {
            name: format!("round-{round}"),
            grant: Grant::admin(),
            ttl_seconds: 600,
            storage_only: false,
        };
        let made = cluster.client(maker)?.create_token(&wanted).await?;
        for other in cluster.all_but(maker) {
            let asked = cluster.client_with(other, &made.token)?.cluster().await;
            asked.with_context(|| format!("the token of round {round}, at machine {other}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn all_nodes_are_restarted_one_after_the_other() -> Result<()> {
    let Some(mut cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = (cluster.leader().await? + 1) % 3;
    cluster.deploy_to(host, &[NOTES, PAGES]).await?;
    let visitors = [cluster.visit(NOTES.name, &[0, 1, 2]).await?, cluster.visit(PAGES.name, &[1, 2, 0]).await?];
    let begun = Instant::now();
    for index in 0..3 {
        let at = Instant::now();
        cluster.bed.machine(index).end_node().await?;
        cluster.bed.machine(index).start_node().await?;
        cluster.ready(index).await?;
        cluster.all_ready(3).await?;
        for visitor in &visitors {
            visitor.outage_within_promise(&format!("restart of the node of m{}", index + 1), at).await?;
        }
    }
    for visitor in &visitors {
        visitor.outage_within_promise("restart of all nodes", begun).await?;
    }
    ensure!(cluster.runs(PAGES.name).await?.len() == 1);
    ends_well(&cluster, checker).await.map(drop)
}

#[tokio::test]
async fn a_new_revision_reaches_all_instances_and_no_request_fails() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let twice = Sample { replicas: 2, ..PAGES };
    let once = Sample::stateless("single");
    cluster.deploy(&cluster.compose(&[twice, once])).await?;
    for service in [twice, once] {
        cluster.runs(service.name).await?;
    }
    let visitors = [
        cluster.visit(twice.name, &[0]).await?,
        cluster.visit(once.name, &[1]).await?,
        cluster.visit(once.name, &[2]).await?,
    ];
    let at = Instant::now();
    let next = [twice, once].map(|service| Sample { revision: 2, ..service });
    cluster.deploy(&cluster.compose(&next)).await?;
    for service in next {
        wait::holds(format!("the new revision of {}", service.name), SETTLED_LIMIT, async || {
            cluster.runs(service.name).await?;
            Ok(cluster.service(service.name).await?.view.revision.0 == 2)
        })
        .await?;
    }
    eprintln!("MEASURED updated after {:?}", at.elapsed());
    for visitor in visitors {
        visitor.outage_within_promise("update", at).await?;
        visitor.leave_without_a_failure("update")?;
    }
    Ok(())
}

#[tokio::test]
async fn a_machine_joins_takes_over_and_leaves_under_load() -> Result<()> {
    if !long_is_wanted() || !Bed::can_be_made()? {
        return Ok(());
    }
    let mut cluster = Cluster::on(BedSpec::lan(4), 3).await?;
    let fourth = 3;
    let host = cluster.leader().await?;
    cluster.deploy_to(host, &[PAGES]).await?;
    let visitors = [cluster.visit(PAGES.name, &[0, 1, 2]).await?, cluster.visit(PAGES.name, &[2, 1, 0]).await?];

    let at = Instant::now();
    cluster.join(fourth, 1).await?;
    cluster.bed.machine(fourth).node_serves().await?;
    cluster.ready(fourth).await?;
    eprintln!("MEASURED joined after {:?}", at.elapsed());
    // It can take over what it never had, its image included.
    cluster.avoid(&[0, 1, 2], true).await?;
    cluster.runs_on(PAGES.name, fourth).await?;
    eprintln!("MEASURED took over after {:?}", at.elapsed());

    cluster.avoid(&[0, 1, 2], false).await?;
    cluster.empty(fourth).await?;
    let client = cluster.client(cluster.leader().await?)?;
    let name = cluster.name(fourth)?;
    client.remove_machine(&name, RemoveMachineQuery { force: false }).await?;
    wait::holds("it to be gone", SETTLED_LIMIT, async || {
        Ok(client.machines().await?.iter().all(|machine| machine.name != name))
    })
    .await?;
    cluster.all_ready(3).await?;
    ensure!(cluster.runs(PAGES.name).await? != [fourth]);
    for visitor in visitors {
        visitor.outage_within_promise("join, take over, leave", at).await?;
        visitor.leave_without_a_failure("join, take over, leave")?;
    }
    Ok(())
}

#[tokio::test]
async fn a_machine_that_joins_later_has_images_though_the_one_that_got_them_is_gone() -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    let mut cluster = Cluster::on(BedSpec::lan(4), 3).await?;
    // The image was given to the first machine alone, which does not run it.
    let (first, second, fourth) = (0, 1, 3);
    cluster.deploy_to(second, &[PAGES]).await?;
    held_by(&cluster, second, &[second]).await?;
    cluster.bed.power_off(first)?;
    cluster.led_by_another_than(first).await?;
    cluster.join(fourth, second).await?;
    cluster.bed.machine(fourth).node_serves().await?;
    cluster.ready(fourth).await?;
    let at = Instant::now();
    cluster.avoid(&[0, 1, 2], true).await?;
    cluster.runs_on(PAGES.name, fourth).await?;
    eprintln!(
        "MEASURED runs on a machine that joined, without the one that was given the image, after {:?}",
        at.elapsed()
    );
    held_by(&cluster, second, &[fourth]).await
}

/// What a machine knows of who has the bed's image.
async fn held(cluster: &Cluster, told_by: usize) -> Result<HeldImageView> {
    let images = cluster.client(told_by)?.held_images().await?;
    let used = |image: &HeldImageView| image.used_by.iter().any(|it| it.service.as_str() == PAGES.name);
    images.into_iter().find(used).context("an image that the service uses")
}

/// Waits until these have it, to run and to give on.
async fn held_by(cluster: &Cluster, told_by: usize, machines: &[usize]) -> Result<()> {
    wait::holds(format!("the image on {machines:?}"), SETTLED_LIMIT, async || {
        let held = held(cluster, told_by).await?;
        let has = |name| held.machines.iter().any(|it| it.machine == name && it.engine && it.store);
        let names = machines.iter().map(|&index| cluster.name(index)).collect::<Result<Vec<_>>>()?;
        Ok(names.into_iter().all(has))
    })
    .await
}
