//! What a service has written goes with it, as it was at one instant: no more is lost than was said before.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use flotilla::client::Archive;
use flotilla_api::rest::{VolumeDetail, VolumeState, VolumeView};
use flotilla_tests::{
    bed::{Cluster, cluster::SETTLED_LIMIT, probe::clock, visitor::Visitor},
    image,
    ledger::{DATA, JOURNAL, Ledger},
    wait,
};
use tokio::time::{Instant, sleep, timeout};

const SERVICE: &str = "ledger";

/// A volume is committed a second after something was written, at the latest, and on a busy machine some later. What a test allows.
const COMMITTED_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked at how far the ledger is, and what is committed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_database_goes_on_with_all_that_was_said_to_be_safe() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    lose_power_again_and_again(cluster, 3).await
}

#[tokio::test]
async fn a_database_goes_on_after_fifty_losses_of_power() -> Result<()> {
    let Some(cluster) = Cluster::long_or_skip(3).await? else { return Ok(()) };
    lose_power_again_and_again(cluster, 50).await
}

#[tokio::test]
async fn nothing_is_lost_where_a_service_is_moved() -> Result<()> {
    let Some(cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    deploy(&cluster).await?;
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

/// Power is lost at random instants, each time on the machine that writes.
async fn lose_power_again_and_again(mut cluster: Cluster, rounds: u32) -> Result<()> {
    deploy(&cluster).await?;
    let mut worst = Duration::ZERO;
    for round in 1..=rounds {
        copied(&cluster).await?;
        let host = cluster.runs(SERVICE).await?[0];
        let stays = cluster.all_but(host);
        let visitor = cluster.visit(SERVICE, &stays).await?;
        let observer = Observer::watch(&cluster, stays[0], &visitor);
        // Whenever: that is the point.
        sleep(Duration::from_millis(u64::from(random(round)) % 2_000)).await;
        let (event, at) = (clock(), Instant::now());
        // What was said before counts; what its successor commits is another matter.
        let seen = observer.stop();
        cluster.bed.power_off(host)?;
        let after = later(&visitor, event).await?;
        let outage = visitor.outage_since(at.into_std()).await?;
        let safe = seen.acknowledged_by(seen.committed);
        let (acknowledged, last) = seen.last();
        let lost = acknowledged.saturating_sub(after.found);
        let bound = last.saturating_sub(seen.committed);
        worst = worst.max(Duration::from_millis(bound));
        eprintln!(
            "MEASURED power loss {round}: back after {:.2} s; {lost} of {acknowledged} rows are behind, {bound} ms were \
             said not to be safe",
            outage.gap.as_secs_f64()
        );
        ensure!(after.integrity == "ok", "{after:?}");
        ensure!(after.found >= safe, "row {safe} was said to be safe, and {} are there", after.found);
        consistent(&after)?;

        cluster.boot(host).await?;
        if lost > 0 {
            kept_aside(&cluster, host).await?;
        }
    }
    eprintln!("MEASURED at most {} ms were not committed when power was lost, of {rounds} times", worst.as_millis());
    Ok(())
}

/// Both volumes are of one instant: a line is written after its row.
fn consistent(found: &Ledger) -> Result<()> {
    let Ledger { found, found_in_journal, .. } = found;
    ensure!(
        *found_in_journal <= *found && *found <= found_in_journal + 1,
        "the database has {found} rows, and the journal {found_in_journal} lines"
    );
    Ok(())
}

async fn deploy(cluster: &Cluster) -> Result<()> {
    let image = image::ledger().await?;
    let path = cluster.bed.scratch("ledger.tar");
    image.write(&path)?;
    let archive = Archive::open(&path, |_| {}).await?;
    cluster.client(0)?.upload(&archive, |_| {}).await.context("give the cluster the image")?;
    let reference = image.reference;
    cluster
        .deploy(&format!(
            "services:
  {SERVICE}:
    image: {reference}
    ports: [\"8080\"]
    stop_grace_period: 3s
    volumes: [\"rows:{DATA}\", \"lines:{JOURNAL}\"]
volumes:
  rows:
  lines:
"
        ))
        .await?;
    cluster.runs(SERVICE).await?;
    copied(cluster).await
}

async fn volumes(cluster: &Cluster) -> Result<Vec<VolumeView>> {
    let (_, volumes) = cluster.ask("the volumes", async |client| Ok(Some(client.volumes().await?))).await?;
    Ok(volumes)
}

/// Waits until both other machines have all of it, and one of them could take over.
async fn copied(cluster: &Cluster) -> Result<()> {
    let mut last = Vec::new();
    let copied = wait::holds("two copies of each volume", SETTLED_LIMIT, async || {
        last = volumes(cluster).await?;
        Ok(last.len() == 2 && last.iter().all(|volume| volume.state == VolumeState::Copied))
    })
    .await;
    copied.with_context(|| format!("they are {last:#?}"))?;
    cluster.stands_by(SERVICE).await.map(drop)
}

/// The first answer of an instance that began after the event.
pub(super) async fn later(visitor: &Visitor, event: u64) -> Result<Ledger> {
    let later = wait::until("another instance", SETTLED_LIMIT, async || {
        Ok(told(visitor).filter(|ledger| ledger.started > event))
    })
    .await;
    later.with_context(|| format!("it saw {:?}", visitor.seen()))
}

pub(super) fn told(visitor: &Visitor) -> Option<Ledger> {
    serde_json::from_slice(&visitor.seen().answer?.body).ok()
}

/// What the machine that was lost had written, and nobody has, is a branch there.
async fn kept_aside(cluster: &Cluster, index: usize) -> Result<()> {
    let name = cluster.name(index)?;
    let (service, volume) = (SERVICE.parse()?, "rows".parse()?);
    let mut last: Option<VolumeDetail> = None;
    let kept = wait::holds("a branch of what was not committed", SETTLED_LIMIT, async || {
        let detail = cluster.client(index)?.volume(&service, &volume).await?;
        let kept = detail.branches.iter().any(|branch| branch.machine == name && branch.bytes > 0);
        last = Some(detail);
        Ok(kept)
    })
    .await;
    kept.with_context(|| format!("it has {last:#?}"))
}

/// Looks from outside at what is acknowledged, and at what is said to be safe.
struct Observer {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Observed>>,
}

#[derive(Clone, Debug, Default)]
struct Observed {
    /// When, and how many rows; of each answer.
    acknowledged: Vec<(u64, u64)>,
    /// When the newest generation was taken that was said to be committed; of the volume that is further behind.
    committed: u64,
}

impl Observed {
    /// Rows that were acknowledged at a time, milliseconds since 1970, or before.
    fn acknowledged_by(&self, at: u64) -> u64 {
        let before = self.acknowledged.iter().filter(|(when, _)| *when <= at);
        before.map(|(_, number)| *number).max().unwrap_or(0)
    }

    /// How many rows were acknowledged at last, and when that was.
    fn last(&self) -> (u64, u64) {
        self.acknowledged.last().map_or((0, 0), |(at, number)| (*number, *at))
    }
}

impl Observer {
    fn watch(cluster: &Cluster, through: usize, visitor: &Visitor) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Observed::default())));
        let host = told(visitor).map(|ledger| ledger.host).unwrap_or_default();
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&seen));
        let client = cluster.client(through);
        let mut answers = visitor.answers();
        tokio::spawn(async move {
            let Ok(client) = client else { return };
            while !stopped.load(Ordering::Relaxed) {
                // First what is safe, then what is acknowledged: so that nothing counts as safe that was acknowledged later.
                if let Ok(Ok(volumes)) = timeout(COMMITTED_WITHIN, client.volumes()).await {
                    let taken = volumes.iter().map(|it| it.committed.as_ref().map_or(0, |it| it.taken_at.0)).min();
                    let mut seen = noted.lock().expect("none panics");
                    seen.committed = seen.committed.max(taken.unwrap_or(0));
                }
                let answer = answers.borrow_and_update().answer.clone();
                let ledger = answer.and_then(|answer| serde_json::from_slice::<Ledger>(&answer.body).ok());
                if let Some(ledger) = ledger.filter(|ledger| ledger.host == host) {
                    noted.lock().expect("none panics").acknowledged.push((ledger.at, ledger.acknowledged));
                }
                sleep(LOOK_EVERY).await;
            }
        });
        Self { stop, seen }
    }

    fn stop(self) -> Observed {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.lock().expect("none panics").clone()
    }
}

/// Some number for each round, the same in each run.
fn random(round: u32) -> u32 {
    round.wrapping_mul(2_654_435_761).rotate_left(13) ^ 0x9e37_79b9
}
