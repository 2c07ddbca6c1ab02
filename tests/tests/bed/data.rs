//! What a service has written goes with it, as it was at one instant: no more is lost than was said before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla_api::rest::RemoveQuery;
use flotilla_tests::{
    bed::{
        Bed, Cluster,
        cluster::{SETTLED_LIMIT, long_is_wanted},
        probe::clock,
        visitor::PROMISE,
    },
    wait,
};
use tokio::time::Instant;

use crate::{
    board,
    ledger::{
        Database, Loss, Observer, SERVICE, consistent, copied, deploy, keep_copies, kept_aside, later, lose_power,
        told, upload,
    },
};

/// A copy that is not wanted any more is kept for a minute.
const FORMER_LIMIT: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_database_goes_on_with_all_that_was_said_to_be_safe() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    lose_power_again_and_again(cluster, &Database::Sqlite, 3).await
}

#[tokio::test]
async fn a_database_goes_on_after_fifty_losses_of_power() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    lose_power_again_and_again(cluster, &Database::Sqlite, 50).await
}

#[tokio::test]
async fn postgresql_goes_on_with_all_that_was_said_to_be_safe() -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    let database = Database::postgres().await?;
    lose_power_again_and_again(Cluster::up(3).await?, &database, 3).await
}

#[tokio::test]
async fn postgresql_goes_on_after_fifty_losses_of_power() -> Result<()> {
    if !long_is_wanted() || !Bed::can_be_made()? {
        return Ok(());
    }
    let database = Database::postgres().await?;
    lose_power_again_and_again(Cluster::up(3).await?, &database, 50).await
}

#[tokio::test]
async fn what_is_written_in_memory_alone_goes_on_as_well() -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    let database = Database::mapped().await?;
    lose_power_again_and_again(Cluster::up(3).await?, &database, 3).await
}

#[tokio::test]
async fn nothing_is_lost_where_a_service_is_moved() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    deploy(&cluster, &Database::Sqlite).await?;
    let host = cluster.runs(SERVICE).await?[0];
    let stays = cluster.all_but(host);
    let visitor = cluster.visit(SERVICE, &stays).await?;
    let (observer, event) = (Observer::watch(&cluster, stays[0], &visitor), clock());
    let at = Instant::now().into_std();
    cluster.empty(host).await?;
    let after = later(&visitor, event).await?;
    let (acknowledged, _) = observer.stop().last();
    ensure!(after.integrity == "ok", "{after:?}");
    ensure!(after.found >= acknowledged, "{acknowledged} rows were acknowledged, and {} are there", after.found);
    consistent(&after)?;
    visitor.outage_within_promise("a machine with a database is emptied", at).await?;
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_where_a_service_is_removed_and_then_the_machine_that_wrote_it() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let image = upload(&cluster, &Database::Sqlite).await?;
    keep_copies(&cluster, 0, &image, 2).await?;
    let host = cluster.runs(SERVICE).await?[0];
    let stays = cluster.all_but(host);
    let visitor = cluster.visit(SERVICE, &stays).await?;
    let observer = Observer::watch(&cluster, stays[0], &visitor);
    wait::holds("some rows", SETTLED_LIMIT, async || Ok(told(&visitor).is_some_and(|ledger| ledger.acknowledged > 20)))
        .await?;
    let removed = cluster.client(stays[0])?.remove(&SERVICE.parse()?, RemoveQuery::default()).await?;
    let (acknowledged, _) = observer.stop().last();
    ensure!(removed.last_writes_on.is_none(), "{removed:?}");
    let event = clock();
    cluster.bed.power_off(host)?;
    cluster.led_by_another_than(host).await?;
    keep_copies(&cluster, stays[0], &image, 1).await?;
    let after = later(&visitor, event).await?;
    ensure!(after.integrity == "ok", "{after:?}");
    ensure!(after.found >= acknowledged, "{acknowledged} rows were acknowledged, and {} are there", after.found);
    consistent(&after)
}

#[tokio::test]
async fn a_new_copy_has_the_past_as_well() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let host = board::keep(&cluster, 1).await?;
    let past = async |machine: usize| {
        let detail = board::detail(&cluster, machine).await?;
        let names = detail.history.into_iter().map(|moment| moment.generation.generation);
        anyhow::Ok((cluster.bed.index_of(detail.read_on.as_str())?, names.collect::<Vec<_>>()))
    };
    let mut before = Vec::new();
    for note in 1..=5 {
        std::fs::write(board::directory(&cluster, host).join("note"), note.to_string())?;
        let had = before.len();
        before = wait::until("one more generation", SETTLED_LIMIT, async || {
            let (_, names) = past(host).await?;
            Ok((names.len() > had).then_some(names))
        })
        .await?;
    }
    board::keep(&cluster, 2).await?;
    let mut last = Vec::new();
    let has_all = wait::holds("all generations on each machine", SETTLED_LIMIT, async || {
        last = Vec::new();
        for machine in cluster.all_but(host) {
            last.push((machine, past(machine).await?));
        }
        Ok(last.iter().all(|(machine, (read_on, names))| {
            machine == read_on && before.iter().all(|generation| names.contains(generation))
        }))
    })
    .await;
    has_all.with_context(|| format!("{before:?} were there, and now there is {last:?}"))
}

#[tokio::test]
async fn a_service_that_is_stopped_keeps_its_copies_and_goes_on_from_one_that_was_made_then() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let host = board::keep(&cluster, 1).await?;
    std::fs::write(board::directory(&cluster, host).join("note"), "kept")?;
    let former = board::copied(&cluster, host, 1, 4).await?[0];
    let other = 3 - host - former;
    let service = board::SERVICE.parse()?;
    cluster.client(host)?.scale(&service, 0).await?;
    wait::holds("the service to be stopped", SETTLED_LIMIT, async || {
        Ok(cluster.service(board::SERVICE).await?.view.instances.is_empty())
    })
    .await?;

    // Nobody writes it; its only copy has to be somewhere else.
    cluster.empty(former).await?;
    let mut last = None;
    let copied = wait::holds("a copy on the third machine", SETTLED_LIMIT, async || {
        let view = board::detail(&cluster, host).await?.view;
        let holders = view.copies.iter().filter(|copy| copy.holds).map(|copy| copy.machine.clone());
        let holders = holders.collect::<Vec<_>>();
        last = Some(view);
        Ok(holders.contains(&cluster.name(other)?))
    })
    .await;
    copied.with_context(|| format!("it is {last:#?}"))?;

    cluster.bed.power_off(host)?;
    cluster.ask("to start", async |client| Ok(client.scale(&service, 1).await.ok())).await?;
    cluster.runs_on(board::SERVICE, other).await?;
    let note = std::fs::read_to_string(board::directory(&cluster, other).join("note"))?;
    ensure!(note == "kept", "the third machine has {note:?}");
    Ok(())
}

#[tokio::test]
async fn a_copy_that_is_not_wanted_any_more_goes_and_comes_back_when_it_is() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let host = board::keep(&cluster, 2).await?;
    std::fs::write(board::directory(&cluster, host).join("note"), "kept")?;
    let both = board::copied(&cluster, host, 2, 4).await?;
    let note = |machine: usize| std::fs::read_to_string(board::directory(&cluster, machine).join("note")).ok();
    let shown = async || Ok(both.iter().all(|machine| note(*machine).as_deref() == Some("kept")));
    wait::holds("both to show it", SETTLED_LIMIT, shown).await?;

    board::keep(&cluster, 1).await?;
    let gone = wait::until("one of the copies to go", FORMER_LIMIT, async || {
        Ok(both.iter().copied().find(|machine| !board::directory(&cluster, *machine).exists()))
    });
    let former = gone.await?;
    let kept = board::copied(&cluster, host, 1, 4).await?;
    ensure!(kept == [3 - host - former] && note(kept[0]).as_deref() == Some("kept"), "{kept:?} without {former}");
    wait::holds("nothing of it to be left", SETTLED_LIMIT, async || {
        let past = cluster.client(former)?.volume(&board::SERVICE.parse()?, &"board".parse()?).await?;
        Ok(cluster.bed.index_of(past.read_on.as_str())? != former)
    })
    .await?;

    board::keep(&cluster, 2).await?;
    board::copied(&cluster, host, 2, 4).await?;
    wait::holds("both to show it again", SETTLED_LIMIT, shown).await
}

/// Power is lost at random instants, each time on the machine that writes.
async fn lose_power_again_and_again(mut cluster: Cluster, database: &Database, rounds: u32) -> Result<()> {
    deploy(&cluster, database).await?;
    let (mut slowest, mut worst) = (Duration::ZERO, Duration::ZERO);
    for round in 1..=rounds {
        copied(&cluster, 2).await?;
        let host = cluster.runs(SERVICE).await?[0];
        let when = Duration::from_millis(u64::from(random(round)) % 2_000);
        let Loss { gap, acknowledged, behind, unsafe_for } = lose_power(&mut cluster, host, when).await?;
        eprintln!(
            "MEASURED power loss {round}: back after {:.2} s; {behind} of {acknowledged} rows are behind, {} ms were said \
             not to be safe",
            gap.as_secs_f64(),
            unsafe_for.as_millis()
        );
        ensure!(gap <= PROMISE, "the service was away for {gap:?}");
        (slowest, worst) = (slowest.max(gap), worst.max(unsafe_for));
        cluster.boot(host).await?;
        if behind > 0 {
            kept_aside(&cluster, host).await?;
        }
    }
    eprintln!(
        "MEASURED {rounds} losses of power: back after {:.2} s at most; {} ms at most were not committed",
        slowest.as_secs_f64(),
        worst.as_millis()
    );
    Ok(())
}

/// Some number for each round, the same in each run.
fn random(round: u32) -> u32 {
    round.wrapping_mul(2_654_435_761).rotate_left(13) ^ 0x9e37_79b9
}
