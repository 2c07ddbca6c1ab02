//! A service whose volume is written by the bench itself.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use flotilla::client::Client;
use flotilla_api::rest::VolumeView;
use flotilla_tests::{
    bed::{BedSpec, Cluster, FileSystem, Machine, probe::clock},
    series::{Report, Series, Unit},
    wait,
};

use crate::{
    content::{self, LARGE, PATCH, Tree},
    way::Way,
};

const MACHINES: usize = 3;
const SERVICE: &str = "store";
/// Room for what each run writes, as a directory and as objects. Takes no room before it is written.
const DISK_MB: u32 = 30_000;
/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(600);
/// How often it is asked whether it is done, at first.
const POLL: Duration = Duration::from_millis(5);
/// And where it takes long. Each time takes a millisecond of the processors that the machines share.
const POLL_RARELY: Duration = Duration::from_millis(100);
/// A wait may seem longer by such a part of it.
const POLL_SHARE: u32 = 50;
/// A directory of a hundred thousand files, as a mail server has it.
const DIRECTORIES: usize = 100;
const IN_EACH: usize = 1_000;
/// How long an instance may stand still for a capture, in milliseconds: longer where files can't share what they have in common.
const STILL: [(FileSystem, &str, f64); 2] = [(FileSystem::Xfs, "xfs", 50.0), (FileSystem::Ext4, "ext4", 250.0)];
/// Bytes of changes that are captured together.
const CHANGES: u64 = 300_000_000;
const CHANGED_FILES: u64 = 300;

struct Store {
    cluster: Cluster,
    host: usize,
    /// Asks the machine that writes it.
    client: Client,
    directory: PathBuf,
    /// Beside it, on the same disk.
    beside: PathBuf,
}

fn machines() -> BedSpec {
    BedSpec::lan(MACHINES).disk_mb(DISK_MB)
}

impl Store {
    async fn up(machines: BedSpec, replicas: u32) -> Result<Self> {
        let cluster = Cluster::on(machines, MACHINES).await?;
        let image = cluster.image();
        cluster
            .deploy(&format!(
                "services:
  {SERVICE}:
    image: {image}
    ports: [\"8080\"]
    stop_grace_period: 3s
    volumes: [\"data:/store\"]
volumes:
  data: {{ x-flotilla: {{ replicas: {replicas} }} }}
"
            ))
            .await?;
        let host = cluster.runs(SERVICE).await?[0];
        let client = cluster.client(host)?;
        let mut store = Self { cluster, host, client, directory: PathBuf::new(), beside: PathBuf::new() };
        store.find()?;
        store.copied(0).await?;
        Ok(store)
    }

    /// The one that writes it.
    fn machine(&self) -> &Machine {
        &self.cluster.bed.machines()[self.host]
    }

    /// Where the volume is on the machine that writes it.
    fn find(&mut self) -> Result<()> {
        let srv = self.machine().srv();
        self.directory = srv.join("flotilla/volumes").join(SERVICE).join("data");
        self.beside = srv.join("beside");
        self.client = self.cluster.client(self.host)?;
        fs::create_dir_all(&self.beside)?;
        Ok(())
    }

    async fn view(&self) -> Result<VolumeView> {
        let volumes = self.client.volumes().await?;
        volumes.into_iter().next().context("a volume")
    }

    /// Waits until all that was written before this time, milliseconds since 1970, is committed, with all copies that were asked for; and
    /// calls `seen` with what is seen meanwhile.
    async fn copied_and(&self, written: u64, mut seen: impl FnMut(&VolumeView)) -> Result<()> {
        let bytes = content::size(&self.directory)?;
        let begun = Instant::now();
        loop {
            let view = self.view().await?;
            seen(&view);
            let newest = view.committed.as_ref().is_some_and(|committed| committed.taken_at.0 >= written);
            let held = view.copies.iter().filter(|copy| copy.holds).count() >= view.replicas as usize;
            if newest && held && view.bytes == Some(bytes) {
                return Ok(());
            }
            ensure!(begun.elapsed() < LIMIT, "after {LIMIT:?} it is {view:#?}");
            tokio::time::sleep((begun.elapsed() / POLL_SHARE).clamp(POLL, POLL_RARELY)).await;
        }
    }

    async fn copied(&self, written: u64) -> Result<()> {
        self.copied_and(written, |_| {}).await
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub(crate) async fn small(runs: usize, report: &mut Report) -> Result<()> {
    let store = Store::up(machines(), 2).await?;
    let mut series = Series::new("small write to committed on two others", Unit::Seconds).percentiles(0.5, 1.5);
    for run in 0..runs {
        content::random(&store.directory.join(format!("small-{run}")), 1_000)?;
        let (begun, written) = (Instant::now(), now_ms());
        store.copied(written).await?;
        series.add_time(begun.elapsed());
        // At any moment of whatever a node does by itself.
        tokio::time::sleep(Duration::from_millis(300 + (run as u64 * 377) % 1_000)).await;
    }
    report.add(series);
    Ok(())
}

/// `goals`: what it may take, for each tree. Seconds.
pub(crate) async fn first(
    runs: usize,
    way: Way,
    trees: &[Tree],
    goals: Option<Vec<f64>>,
    report: &mut Report,
) -> Result<()> {
    for (number, &tree) in trees.iter().enumerate() {
        let mut series = Series::new(way.of(format!("first copy of {}", tree.name())), Unit::Seconds);
        if let Some(goals) = &goals {
            series = series.median_at_most(goals[number]);
        }
        for run in 0..runs {
            // What a cluster has had before it needs no copy of, and for a while it still brings its directories up to that.
            let store = Store::up(way.between(machines()), 1).await?;
            let made = store.beside.join(format!("tree-{run}"));
            tree.write(&made).await?;
            let (begun, written) = (Instant::now(), now_ms());
            fs::rename(&made, store.directory.join(format!("tree-{run}")))?;
            store.copied(written).await?;
            series.add_time(begun.elapsed());
        }
        report.add(series);
    }
    Ok(())
}

/// `most`: what it may take. Seconds.
pub(crate) async fn change(runs: usize, way: Way, most: f64, report: &mut Report) -> Result<()> {
    let store = Store::up(way.between(machines()), 1).await?;
    let mut took = Series::new(way.of("1 MB changed inside 500 MB"), Unit::Seconds).median_at_most(most);
    let mut wire = Series::new(way.of("the same, on the wire"), Unit::Megabytes).at_most(2.0);
    let file = store.directory.join("large");
    content::random(&file, LARGE)?;
    store.copied(now_ms()).await?;
    for run in 0..runs {
        let before = store.machine().sent().await?;
        let begun = Instant::now();
        content::patch(&file, 50_000_000 + run as u64 * 77_777_777 % 400_000_000, PATCH)?;
        let written = now_ms();
        store.copied(written).await?;
        took.add_time(begun.elapsed());
        wire.add((store.machine().sent().await? - before) as f64 / 1e6);
    }
    report.add(took);
    report.add(wire);
    Ok(())
}

async fn hundred_thousand(store: &Store) -> Result<()> {
    for directory in 0..DIRECTORIES {
        let made = store.beside.join(format!("many-{directory}"));
        fs::create_dir(&made)?;
        for file in 0..IN_EACH {
            fs::write(made.join(format!("file-{file}")), format!("{directory} {file}"))?;
        }
        fs::rename(&made, store.directory.join(format!("many-{directory}")))?;
    }
    store.copied(now_ms()).await
}

pub(crate) async fn still(runs: usize, report: &mut Report) -> Result<()> {
    for (file_system, name, most) in STILL {
        let store = Store::up(machines().file_system(file_system), 1).await?;
        hundred_thousand(&store).await?;
        let what = format!("stands still for 300 MB of changes among 100,000 files, {name}");
        let mut held = Series::new(what, Unit::Milliseconds).at_most(most);
        let mut took = Series::new("the same, until they are copied", Unit::Seconds);
        for run in 0..runs {
            let (begun, started) = (Instant::now(), now_ms());
            for file in 0..CHANGED_FILES {
                let directory = (file as usize * 7 + run) % DIRECTORIES;
                let path = store.directory.join(format!("many-{directory}/file-{}", file * 3));
                content::random(&path, CHANGES / CHANGED_FILES)?;
            }
            let mut longest = 0;
            let holds = |view: &VolumeView| {
                // What was captured before is another matter: all these files.
                if view.committed.as_ref().is_some_and(|committed| committed.taken_at.0 >= started) {
                    longest = longest.max(view.held_ms.unwrap_or(0));
                }
            };
            store.copied_and(now_ms(), holds).await?;
            held.add(longest as f64);
            took.add_time(begun.elapsed());
        }
        report.add(held);
        report.add(took);
    }
    Ok(())
}

pub(crate) async fn idle(report: &mut Report) -> Result<()> {
    const MEASURED: Duration = Duration::from_secs(60);
    let empty = Store::up(machines(), 1).await?;
    let without = processor(&empty, MEASURED).await?;
    drop(empty);
    let store = Store::up(machines(), 1).await?;
    hundred_thousand(&store).await?;
    // What was made is tidied up after.
    tokio::time::sleep(MEASURED).await;
    let with = processor(&store, MEASURED).await?;
    let mut series =
        Series::new("a volume of 100,000 files that nobody changes, of one core", Unit::Percent).at_most(1.0);
    series.add((with - without).max(0.0));
    report.add(series);
    Ok(())
}

/// What its machine's node uses of a core. Per cent.
async fn processor(store: &Store, over: Duration) -> Result<f64> {
    let machine = store.machine();
    let before = machine.node_cpu()?;
    tokio::time::sleep(over).await;
    Ok((machine.node_cpu()? - before).as_secs_f64() / over.as_secs_f64() * 100.0)
}

pub(crate) async fn failover(runs: usize, gigabytes: u64, report: &mut Report) -> Result<()> {
    let mut store = Store::up(machines(), 2).await?;
    for number in 0..gigabytes {
        content::random(&store.directory.join(format!("gigabyte-{number}")), 1_000_000_000)?;
    }
    let what = format!("power loss of the machine with a volume of {gigabytes} GB");
    let mut series = Series::new(what, Unit::Seconds).percentiles(8.0, 8.0).at_most(15.0);
    for _ in 0..runs {
        store.copied(now_ms_of_last_change(&store)?).await?;
        store.cluster.stands_by(SERVICE).await?;
        let visitor = store.cluster.visit(SERVICE, &store.cluster.all_but(store.host)).await?;
        let (event, at) = (clock(), Instant::now());
        store.cluster.bed.power_off(store.host)?;
        visitor.answered_by_a_later_one(event).await?;
        series.add_time(visitor.outage_since(at).await?.gap);
        let lost = store.host;
        store.cluster.boot(lost).await?;
        store.host = store.cluster.runs(SERVICE).await?[0];
        store.find()?;
        wait::holds("the copy of the machine that came back", LIMIT, async || {
            let view = store.view().await?;
            Ok(view.copies.iter().filter(|copy| copy.holds && !copy.lost).count() == MACHINES - 1)
        })
        .await?;
    }
    report.add(series);
    Ok(())
}

/// Nothing is changed after what is there now.
fn now_ms_of_last_change(store: &Store) -> Result<u64> {
    let changed = fs::metadata(&store.directory)?.modified()?;
    Ok(changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}
