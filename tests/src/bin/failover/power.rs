//! Power loss of a machine that runs a service.

use std::time::Instant;

use anyhow::{Result, ensure};
use flotilla_tests::bed::{
    Cluster,
    cluster::Sample,
    probe::clock,
    visitor::{PROMISE, Visitor},
};

use flotilla_tests::series::{Report, Series, Unit};

const MACHINES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Worker,
    LeaderAndHost,
}

pub(crate) async fn worker(runs: usize, report: &mut Report) -> Result<()> {
    series(Lost::Worker, "power loss of a worker", runs, report).await
}

pub(crate) async fn leader_and_host(runs: usize, report: &mut Report) -> Result<()> {
    series(Lost::LeaderAndHost, "power loss of the leader with the service", runs, report).await
}

async fn series(lost: Lost, what: &str, runs: usize, report: &mut Report) -> Result<()> {
    let measured = |seen: &str| Series::new(format!("{what}, {seen}"), Unit::Seconds).at_most(PROMISE.as_secs_f64());
    let mut stateless = measured("no volume");
    let mut lost_node = measured("no volume, the visitor's node is the one that is lost");
    let mut volume = measured("volume that starts empty");
    for run in 1..=runs {
        // A cluster for each run: a machine that is lost again and again is kept out, and that is right.
        match once(lost).await {
            Ok([first, second, third]) => {
                stateless.add(first);
                lost_node.add(second);
                volume.add(third);
            }
            Err(error) => report.failed(&format!("{what}, run {run}"), &error),
        }
    }
    report.add(stateless);
    report.add(lost_node);
    report.add(volume);
    Ok(())
}

async fn once(lost: Lost) -> Result<[f64; 3]> {
    let pages = Sample::stateless("pages");
    let notes = Sample::exclusive("notes");
    let mut cluster = Cluster::up(MACHINES).await?;
    let leader = cluster.leader().await?;
    let host = if lost == Lost::Worker { (leader + 1) % MACHINES } else { leader };
    cluster.deploy_to(host, &[pages, notes]).await?;
    let stays = cluster.all_but(host);
    let goes = [&[host], stays.as_slice()].concat();
    let visitors: [Visitor; 3] = [
        cluster.visit(pages.name, &stays).await?,
        cluster.visit(pages.name, &goes).await?,
        cluster.visit(notes.name, &stays).await?,
    ];
    let (event, at) = (clock(), Instant::now());
    cluster.bed.power_off(host)?;
    let mut gaps = [0.0; 3];
    for (gap, visitor) in gaps.iter_mut().zip(&visitors) {
        visitor.answered_by_a_later_one(event).await?;
        let outage = visitor.outage_since(at).await?;
        ensure!(!outage.gap.is_zero(), "a power loss that nobody noticed was none");
        *gap = outage.gap.as_secs_f64();
    }
    Ok(gaps)
}
