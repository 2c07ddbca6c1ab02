//! A service with a database, on simulated machines: what it has acknowledged, and what the cluster says to be safe.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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
use tokio::time::{sleep, timeout};

pub(crate) const SERVICE: &str = "ledger";

/// A volume is committed a second after something was written, at the latest, and on a busy machine some later. What a test allows.
const COMMITTED_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked at how far the ledger is, and what is committed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Which database it is.
pub(crate) enum Database {
    Sqlite,
    /// Of the image of several, which Docker Engine has: its reference, and the program. It can't be made on a bed.
    Other(String, &'static str),
}

impl Database {
    pub(crate) async fn postgres() -> Result<Self> {
        Ok(Self::Other(image::databases().await?, "postgres-ledger"))
    }

    /// A file that is written in memory alone.
    pub(crate) async fn mapped() -> Result<Self> {
        Ok(Self::Other(image::databases().await?, "mapped-ledger"))
    }
}

/// Gives the cluster its image, and says how a compose file asks for it.
pub(crate) async fn upload(cluster: &Cluster, database: &Database) -> Result<String> {
    let path = cluster.bed.scratch("ledger.tar");
    let image = match database {
        Database::Sqlite => {
            let image = image::ledger().await?;
            image.write(&path)?;
            format!("image: {}", image.reference)
        }
        Database::Other(reference, program) => {
            image::save(reference, &path).await?;
            format!("image: {reference}\n    command: [\"/usr/local/bin/{program}\"]")
        }
    };
    let archive = Archive::open(&path, |_| {}).await?;
    cluster.client(0)?.upload(&archive, |_| {}).await.context("give the cluster the image")?;
    Ok(image)
}

/// Both volumes are of one instant: a line is written after its row.
pub(crate) fn consistent(found: &Ledger) -> Result<()> {
    let Ledger { found, found_in_journal, .. } = found;
    ensure!(
        *found_in_journal <= *found && *found <= found_in_journal + 1,
        "the database has {found} rows, and the journal {found_in_journal} lines"
    );
    Ok(())
}

/// On two other machines when this returns.
pub(crate) async fn deploy(cluster: &Cluster, database: &Database) -> Result<()> {
    let image = upload(cluster, database).await?;
    keep_copies(cluster, 0, &image, 2).await
}

/// Asks a machine to deploy it so that so many other machines have copies, and waits until they do.
pub(crate) async fn keep_copies(cluster: &Cluster, through: usize, image: &str, replicas: u32) -> Result<()> {
    let copies = format!("{{ x-flotilla: {{ replicas: {replicas} }} }}");
    let compose = format!(
        "services:
  {SERVICE}:
    {image}
    ports: [\"8080\"]
    stop_grace_period: 3s
    volumes: [\"rows:{DATA}\", \"lines:{JOURNAL}\"]
volumes:
  rows: {copies}
  lines: {copies}
"
    );
    cluster.deploy_through(through, "tests", &compose).await?;
    cluster.runs(SERVICE).await?;
    copied(cluster, replicas).await
}

pub(crate) async fn volumes(cluster: &Cluster) -> Result<Vec<VolumeView>> {
    let (_, volumes) = cluster.ask("the volumes", async |client| Ok(Some(client.volumes().await?))).await?;
    Ok(volumes)
}

/// Waits until so many other machines have all of it, and one of them could take over.
pub(crate) async fn copied(cluster: &Cluster, replicas: u32) -> Result<()> {
    let mut last = Vec::new();
    let is_copied = |volume: &VolumeView| volume.state == VolumeState::Copied && volume.replicas == replicas;
    let copied = wait::holds(format!("{replicas} copies of each volume"), SETTLED_LIMIT, async || {
        last = volumes(cluster).await?;
        Ok(last.len() == 2 && last.iter().all(is_copied))
    })
    .await;
    copied.with_context(|| format!("they are {last:#?}"))?;
    cluster.stands_by(SERVICE).await.map(drop)
}

/// The first answer of an instance that began after the event.
pub(crate) async fn later(visitor: &Visitor, event: u64) -> Result<Ledger> {
    let later = wait::until("another instance", SETTLED_LIMIT, async || {
        Ok(told(visitor).filter(|ledger| ledger.started > event))
    })
    .await;
    later.with_context(|| format!("it saw {:?}", visitor.seen()))
}

pub(crate) fn told(visitor: &Visitor) -> Option<Ledger> {
    serde_json::from_slice(&visitor.seen().answer?.body).ok()
}

/// What the machine that was lost had written, and nobody has, is a branch there.
pub(crate) async fn kept_aside(cluster: &Cluster, index: usize) -> Result<()> {
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

/// A loss of power of the machine that writes, and what there was after it.
pub(crate) struct Loss {
    /// From then on until the service answered again.
    pub(crate) gap: Duration,
    pub(crate) acknowledged: u64,
    /// Rows that were acknowledged, and are only on the machine that was lost.
    pub(crate) behind: u64,
    /// For how long before the loss nothing was said to be safe.
    pub(crate) unsafe_for: Duration,
}

/// Power is lost on the machine that writes, so long after the service was open for somebody. Its successor has all that was said to
/// be safe, of one instant, in a database that opens.
pub(crate) async fn lose_power(cluster: &mut Cluster, host: usize, after: Duration) -> Result<Loss> {
    let stays = cluster.all_but(host);
    let visitor = cluster.visit(SERVICE, &stays).await?;
    let observer = Observer::watch(cluster, stays[0], &visitor);
    // Whenever: that is the point.
    sleep(after).await;
    let (event, at) = (clock(), Instant::now());
    // What was said before counts; what its successor commits is another matter.
    let seen = observer.stop();
    cluster.bed.power_off(host)?;
    let found = later(&visitor, event).await?;
    let outage = visitor.outage_since(at).await?;
    let safe = seen.acknowledged_by(seen.committed);
    let (acknowledged, last) = seen.last();
    ensure!(acknowledged > 0, "nobody saw a row");
    ensure!(found.integrity == "ok", "{found:?}");
    ensure!(found.found >= safe, "row {safe} was said to be safe, and {} are there", found.found);
    consistent(&found)?;
    Ok(Loss {
        gap: outage.gap,
        acknowledged,
        behind: acknowledged.saturating_sub(found.found),
        unsafe_for: Duration::from_millis(last.saturating_sub(seen.committed)),
    })
}

/// Looks from outside at what is acknowledged, and at what is said to be safe.
pub(crate) struct Observer {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Observed>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
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
    pub(crate) fn last(&self) -> (u64, u64) {
        self.acknowledged.last().map_or((0, 0), |(at, number)| (*number, *at))
    }
}

impl Observer {
    pub(crate) fn watch(cluster: &Cluster, through: usize, visitor: &Visitor) -> Self {
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

    pub(crate) fn stop(self) -> Observed {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.lock().expect("none panics").clone()
    }
}
