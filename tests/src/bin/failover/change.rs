//! A change of the state, and a machine more.

use std::time::Instant;

use anyhow::{Context, Result};
use flotilla_api::rest::{ChangeMachine, RemoveMachineQuery};
use flotilla_tests::bed::{BedSpec, Cluster, cluster::Sample};

use flotilla_tests::series::{Report, Series, Unit};

const MACHINES: usize = 3;
/// Changes of one run.
const CHANGES: usize = 50;
const PAGES: Sample<'static> = Sample::stateless("pages");

/// From the call to its answer, over HTTP: a majority has the change on disk by then.
pub(crate) async fn commit(runs: usize, report: &mut Report) -> Result<()> {
    let mut at_leader = Series::new("a change, asked of the leader of 3", Unit::Milliseconds);
    let mut at_follower = Series::new("a change, asked of another of 3", Unit::Milliseconds);
    let cluster = Cluster::up(MACHINES).await?;
    let leader = cluster.leader().await?;
    for (series, asked) in [(&mut at_leader, leader), (&mut at_follower, (leader + 1) % MACHINES)] {
        let client = cluster.client(asked)?;
        let name = cluster.name(leader)?;
        for number in 0..runs * CHANGES {
            let labels = [("number".to_owned(), Some(number.to_string()))].into();
            let begun = Instant::now();
            client.change_machine(&name, &ChangeMachine { labels, ..ChangeMachine::default() }).await?;
            series.add_quietly(begun.elapsed());
        }
    }
    report.add(at_leader);
    report.add(at_follower);
    Ok(())
}

/// From `flotilla join` on an empty machine to an instance that runs there.
pub(crate) async fn join(runs: usize, report: &mut Report) -> Result<()> {
    let mut ready = Series::new("join, until the machine is ready", Unit::Seconds);
    let mut placed = Series::new("join, until an instance runs there", Unit::Seconds);
    let mut cluster = Cluster::on(BedSpec::lan(MACHINES + 1), MACHINES).await?;
    let (new, members) = (MACHINES, [0, 1, 2]);
    // It waits for a machine that it may run on.
    cluster.avoid(&members, true).await?;
    cluster.deploy(&cluster.compose(&[PAGES])).await?;
    for _ in 0..runs {
        let begun = Instant::now();
        cluster.join(new, 0).await?;
        cluster.bed.machine(new).node_serves().await?;
        cluster.ready(new).await?;
        ready.add_time(begun.elapsed());
        cluster.runs_on(PAGES.name, new).await?;
        placed.add_time(begun.elapsed());
        leave(&mut cluster, new).await?;
    }
    report.add(ready);
    report.add(placed);
    Ok(())
}

async fn leave(cluster: &mut Cluster, index: usize) -> Result<()> {
    let client = cluster.client(cluster.leader().await?)?;
    let name = cluster.name(index)?;
    cluster.avoid(&[0, 1, 2], false).await?;
    cluster.empty(index).await?;
    client.remove_machine(&name, RemoveMachineQuery { force: false }).await?;
    // A node that is told to go may do so with an error, as the next start would say.
    let machine = cluster.bed.machine(index);
    machine.kill_daemon().await.context("end the node that was removed")?;
    machine.wipe().await?;
    cluster.avoid(&[0, 1, 2], true).await
}
