//! What becomes of instances when the daemon beside them dies or hangs, or the whole machine sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flotilla_tests::{
    beat::Beat,
    bed::{Cluster, probe::clock},
    checker::Checker,
    wait,
};

use super::{NOTES, PAGES, ends_well, ends_well_but};

/// A lease, its margin, and what a busy machine adds.
const FENCED_LIMIT: Duration = Duration::from_secs(10);

/// As a machine that was paused from outside goes on, so does what it runs, until its guard has seen that the lease is over.
const WOKEN_FOR: Duration = Duration::from_millis(250);

/// A worker, with a service that writes a volume and one that does not.
async fn with_a_host(cluster: &Cluster) -> Result<usize> {
    let host = (cluster.leader().await? + 1) % cluster.bed.machines().len();
    cluster.deploy_to(host, &[NOTES, PAGES]).await?;
    Ok(host)
}

#[tokio::test]
async fn a_daemon_that_hangs_is_fenced_by_its_guard_and_its_services_are_back_elsewhere() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = with_a_host(&cluster).await?;
    let visitor = cluster.visit(NOTES.name, &cluster.all_but(host)).await?;

    let (event, at) = (clock(), Instant::now());
    cluster.bed.machine(host).hang_daemon()?;
    frozen(&cluster, &checker, host, at).await?;
    visitor.answered_by_a_later_one(event).await?;
    visitor.outage_within_promise("a daemon that hangs", at).await?;

    // It goes on where it was, and finds that its lease is over and its instance another's.
    cluster.bed.machine(host).resume_daemon()?;
    cluster.ready(host).await?;
    let report = ends_well(&cluster, checker).await?;
    ensure!(report.epochs(NOTES.name).len() >= 2, "{report}");
    Ok(())
}

#[tokio::test]
async fn a_daemon_that_is_killed_and_stays_away_is_fenced_by_its_guard() -> Result<()> {
    let Some(mut cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = with_a_host(&cluster).await?;
    let visitor = cluster.visit(NOTES.name, &cluster.all_but(host)).await?;

    let (event, at) = (clock(), Instant::now());
    cluster.bed.machine(host).kill_daemon().await?;
    frozen(&cluster, &checker, host, at).await?;
    visitor.answered_by_a_later_one(event).await?;
    visitor.outage_within_promise("a daemon that is killed", at).await?;

    cluster.bed.machine(host).start_node().await?;
    cluster.ready(host).await?;
    ends_well(&cluster, checker).await.map(drop)
}

#[tokio::test]
async fn a_daemon_that_is_killed_and_starts_at_once_adopts_what_runs() -> Result<()> {
    let Some(mut cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = with_a_host(&cluster).await?;
    let visitor = cluster.visit(NOTES.name, &cluster.all_but(host)).await?;
    let before = visitor.answered_by();

    let at = Instant::now();
    cluster.bed.machine(host).kill_daemon().await?;
    cluster.bed.machine(host).start_node().await?;
    let away = at.elapsed();
    cluster.ready(host).await?;
    visitor.outage_within_promise(&format!("a daemon that is back after {away:?}"), at).await?;
    goes_on(&cluster, checker, before, visitor.answered_by()).await
}

#[tokio::test]
async fn a_machine_that_sleeps_loses_its_services_and_wakes_without_them() -> Result<()> {
    is_away_for_long(true).await
}

#[tokio::test]
async fn a_machine_that_naps_goes_on_where_it_was() -> Result<()> {
    let Some(mut cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = with_a_host(&cluster).await?;
    cluster.bed.machine(host).start_login_manager().await?;
    let visitor = cluster.visit(NOTES.name, &cluster.all_but(host)).await?;
    let before = visitor.answered_by();

    let at = Instant::now();
    cluster.bed.machine(host).fall_asleep().await?;
    // No process of it runs on from here to where it is awake, and sees how long it has slept.
    frozen(&cluster, &checker, host, at).await?;
    cluster.bed.machine(host).wake()?;
    visitor.outage_within_promise("a machine that naps", at).await?;
    goes_on(&cluster, checker, before, visitor.answered_by()).await
}

/// As a virtual machine whose host pauses it: nothing in it is told.
#[tokio::test]
async fn a_machine_that_is_paused_from_outside_loses_its_services_and_goes_on_without_them() -> Result<()> {
    is_away_for_long(false).await
}

/// A machine with services stands still for longer than its lease, and is told before, or not.
async fn is_away_for_long(told: bool) -> Result<()> {
    let Some(mut cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    let checker = Checker::watch(&cluster.bed, &[NOTES.name])?;
    let host = with_a_host(&cluster).await?;
    if told {
        cluster.bed.machine(host).start_login_manager().await?;
    }
    let visitor = cluster.visit(NOTES.name, &cluster.all_but(host)).await?;

    let (event, at) = (clock(), Instant::now());
    if told {
        cluster.bed.machine(host).fall_asleep().await?;
    } else {
        cluster.bed.machine(host).suspend()?;
    }
    visitor.answered_by_a_later_one(event).await?;
    visitor.outage_within_promise("a machine that stands still", at).await?;

    let woken = Instant::now();
    cluster.bed.machine(host).wake()?;
    cluster.ready(host).await?;
    visitor.outage_within_promise("a machine that goes on", woken).await?;
    let ended =
        if told { ends_well(&cluster, checker).await } else { ends_well_but(&cluster, checker, WOKEN_FOR).await };
    ended.map(drop)
}

/// The instance that answers is the one that did before, and there was no other.
async fn goes_on(cluster: &Cluster, checker: Checker, before: Option<Beat>, after: Option<Beat>) -> Result<()> {
    let started = |beat: &Option<Beat>| beat.as_ref().map(|beat| (beat.host.clone(), beat.started));
    ensure!(started(&before) == started(&after), "another instance answers: {before:?}, then {after:?}");
    let report = ends_well(cluster, checker).await?;
    ensure!(report.epochs(NOTES.name).len() == 1, "{report}");
    Ok(())
}

/// Waits until the kernel shows none of the instance's processes running on its former machine.
async fn frozen(cluster: &Cluster, checker: &Checker, host: usize, since: Instant) -> Result<()> {
    let name = cluster.bed.machines()[host].name().to_owned();
    wait::holds(format!("the guard of {name} to freeze it"), FENCED_LIMIT, async || {
        Ok(checker.running(NOTES.name).iter().all(|(machine, _)| *machine != name))
    })
    .await?;
    eprintln!("MEASURED frozen after {:?}", since.elapsed());
    Ok(())
}
