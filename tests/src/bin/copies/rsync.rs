//! The same with rsync, from one machine to a daemon on the others: it neither encrypts nor hashes what it copies as a whole.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use flotilla_tests::{
    bed::{Bed, BedSpec},
    process::{self, Process},
    series::{Report, Series, Unit},
    wait,
};

use crate::{
    content::{self, LARGE, PATCH, Tree},
    way::Way,
};

const PORT: u16 = 8730;
const DISK_MB: u32 = 30_000;
const LIMIT: Duration = Duration::from_secs(600);
/// As nearly everybody calls it.
pub(crate) const PLAIN: &str = "-a";
/// The same, and it compresses what it sends.
pub(crate) const COMPRESSED: &str = "-az";

struct Rsync {
    // Before the bed, which can't be taken away below them.
    _daemons: Vec<Process>,
    bed: Bed,
}

impl Rsync {
    async fn up(machines: usize, way: Way) -> Result<Self> {
        let bed = Bed::up(way.between(BedSpec::lan(machines).without_engines().disk_mb(DISK_MB))).await?;
        let mut daemons = Vec::new();
        for machine in &bed.machines()[1..] {
            let srv = machine.srv();
            fs::create_dir_all(srv.join("copy"))?;
            let module = "use chroot = no\n[copy]\npath = /srv/copy\nread only = no\nuid = 0\ngid = 0\n";
            fs::write(srv.join("rsyncd.conf"), module)?;
            let mut command = machine.command("rsync")?;
            command.args(["--daemon", "--no-detach", "--config", "/srv/rsyncd.conf", "--port", &PORT.to_string()]);
            daemons.push(Process::spawn(&mut command, &machine.log("rsync"))?);
        }
        fs::create_dir_all(bed.machines()[0].srv().join("source"))?;
        let rsync = Self { _daemons: daemons, bed };
        for index in 1..machines {
            wait::holds("an rsync daemon", LIMIT, async || Ok(rsync.copy(index, PLAIN).await.is_ok())).await?;
        }
        Ok(rsync)
    }

    fn source(&self) -> PathBuf {
        self.bed.machines()[0].srv().join("source")
    }

    fn target(&self, index: usize) -> PathBuf {
        self.bed.machines()[index].srv().join("copy")
    }

    fn url(&self, index: usize) -> String {
        format!("rsync://{}:{PORT}/copy/", self.bed.machines()[index].address())
    }

    async fn copy(&self, index: usize, flags: &str) -> Result<()> {
        let mut command = self.bed.machines()[0].command("rsync")?;
        command.args([flags, "/srv/source/", &self.url(index)]);
        process::run(&mut command, LIMIT).await.map(drop)
    }
}

/// Copied over and over to two others.
pub(crate) async fn small(runs: usize, report: &mut Report) -> Result<()> {
    let rsync = Rsync::up(3, Way::Lan).await?;
    let script =
        format!("while :; do rsync -a /srv/source/ {}; rsync -a /srv/source/ {}; done", rsync.url(1), rsync.url(2));
    let mut command = rsync.bed.machines()[0].command("sh")?;
    let _loop = Process::spawn(command.args(["-c", &script]), &rsync.bed.machines()[0].log("rsync"))?;
    let mut series = Series::new("rsync in a loop, small write to two others", Unit::Seconds);
    for run in 0..runs {
        let name = format!("small-{run}");
        content::random(&rsync.source().join(&name), 1_000)?;
        let begun = Instant::now();
        let copies = [rsync.target(1).join(&name), rsync.target(2).join(&name)];
        wait::holds("two copies", LIMIT, async || Ok(copies.iter().all(|copy| copy.exists()))).await?;
        series.add_time(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(300 + (run as u64 * 377) % 1_000)).await;
    }
    report.add(series);
    Ok(())
}

/// How long it takes for each tree, as a rule. Seconds.
pub(crate) async fn first(runs: usize, way: Way, trees: &[Tree], flags: &str, report: &mut Report) -> Result<Vec<f64>> {
    let mut medians = Vec::new();
    for &tree in trees {
        let what = format!("rsync {flags}, first copy of {}", tree.name());
        let mut series = Series::new(way.of(what), Unit::Seconds);
        for run in 0..runs {
            // A new one each time, as for Flotilla: what was copied before is not looked at again.
            let rsync = Rsync::up(2, way).await?;
            tree.write(&rsync.source().join(format!("tree-{run}"))).await?;
            let begun = Instant::now();
            rsync.copy(1, flags).await?;
            series.add_time(begun.elapsed());
        }
        medians.push(series.median());
        report.add(series);
    }
    Ok(medians)
}

pub(crate) async fn change(runs: usize, way: Way, report: &mut Report) -> Result<()> {
    let rsync = Rsync::up(2, way).await?;
    let file = rsync.source().join("large");
    content::random(&file, LARGE)?;
    rsync.copy(1, PLAIN).await?;
    let mut took = Series::new(way.of("rsync, 1 MB changed inside 500 MB"), Unit::Seconds);
    let mut wire = Series::new(way.of("rsync, the same, on the wire"), Unit::Megabytes);
    for run in 0..runs {
        let before = rsync.bed.machines()[0].sent().await?;
        content::patch(&file, 50_000_000 + run as u64 * 77_777_777 % 400_000_000, PATCH)?;
        let begun = Instant::now();
        rsync.copy(1, PLAIN).await?;
        took.add_time(begun.elapsed());
        wire.add((rsync.bed.machines()[0].sent().await? - before) as f64 / 1e6);
    }
    report.add(took);
    report.add(wire);
    Ok(())
}
