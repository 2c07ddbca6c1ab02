//! The same with Syncthing: as it comes, and with a folder that it looks at a second after a change.

use std::{
    ffi::OsStr,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use flotilla_tests::{
    bed::{Bed, BedSpec},
    process::{self, Process},
    series::{Report, Series, Unit},
    wait,
};

use crate::{
    content::{self, Tree},
    way::Way,
};

const DISK_MB: u32 = 30_000;
const LIMIT: Duration = Duration::from_secs(600);
const HOME: &str = "/srv/syncthing";
/// What it waits for after a change, as it comes. Seconds.
const AS_IT_COMES: u32 = 10;
const TUNED: u32 = 1;

struct Syncthing {
    // Before the bed, which can't be taken away below them.
    _daemons: Vec<Process>,
    bed: Bed,
}

impl Syncthing {
    async fn up(machines: usize, way: Way, delay: u32) -> Result<Self> {
        let bed = Bed::up(way.between(BedSpec::lan(machines).without_engines().disk_mb(DISK_MB))).await?;
        let mut ids = Vec::new();
        for machine in bed.machines() {
            let mut command = machine.command("syncthing")?;
            command.args(["generate", "--no-default-folder", &format!("--home={HOME}")]);
            process::run(&mut command, LIMIT).await?;
            let mut command = machine.command("syncthing")?;
            let id = process::run(command.args(["--device-id", &format!("--home={HOME}")]), LIMIT).await?;
            ids.push(id.trim().to_owned());
        }
        let members: String = ids.iter().map(|id| format!("<device id=\"{id}\"></device>")).collect();
        let config = |devices: &str| {
            format!(
                "<configuration version=\"36\"><folder id=\"data\" path=\"/srv/data\" type=\"sendreceive\" rescanIntervalS=\"3600\" \
             fsWatcherEnabled=\"true\" fsWatcherDelayS=\"{delay}\">{members}</folder>{devices}\
             <gui enabled=\"false\"></gui><options><listenAddress>tcp://0.0.0.0:22000</listenAddress>\
             <globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>\
             <relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><urAccepted>-1</urAccepted>\
             <crashReportingEnabled>false</crashReportingEnabled><autoUpgradeIntervalH>0</autoUpgradeIntervalH>\
             <reconnectionIntervalS>1</reconnectionIntervalS></options></configuration>"
            )
        };
        let mut daemons = Vec::new();
        for (index, machine) in bed.machines().iter().enumerate() {
            let srv = machine.srv();
            fs::create_dir_all(srv.join("data"))?;
            // One end of each pair calls the other. Where both do, at one time and far from each other, each takes the other's call
            // for one too many, for ever.
            let devices: String = (0..)
                .zip(ids.iter().zip(bed.machines()))
                .map(|(other, (id, machine))| {
                    let calls = index < other;
                    let address =
                        if calls { format!("tcp://{}:22000", machine.address()) } else { "dynamic".to_owned() };
                    format!("<device id=\"{id}\"><address>{address}</address></device>")
                })
                .collect();
            fs::write(srv.join("syncthing/config.xml"), config(&devices))?;
            let mut command = machine.command("syncthing")?;
            command.args(["serve", "--no-browser", "--no-restart", "--no-upgrade", &format!("--home={HOME}")]);
            daemons.push(Process::spawn(&mut command, &machine.log("syncthing"))?);
        }
        let syncthing = Self { _daemons: daemons, bed };
        fs::write(syncthing.data(0).join("first"), "x")?;
        syncthing.reaches("first", &(1..machines).collect::<Vec<_>>()).await.context("Syncthing copies nothing")?;
        Ok(syncthing)
    }

    fn data(&self, index: usize) -> PathBuf {
        self.bed.machines()[index].srv().join("data")
    }

    async fn reaches(&self, name: &str, machines: &[usize]) -> Result<()> {
        for &index in machines {
            let copy = self.data(index).join(name);
            wait::holds("a copy", LIMIT, async || Ok(copy.exists())).await?;
        }
        Ok(())
    }
}

pub(crate) async fn small(runs: usize, report: &mut Report) -> Result<()> {
    for (delay, how) in [(TUNED, "tuned"), (AS_IT_COMES, "as it comes")] {
        let syncthing = Syncthing::up(3, Way::Lan, delay).await?;
        let mut series = Series::new(format!("Syncthing {how}, small write to two others"), Unit::Seconds);
        for run in 0..runs {
            let name = format!("small-{run}");
            content::random(&syncthing.data(0).join(&name), 1_000)?;
            let begun = Instant::now();
            syncthing.reaches(&name, &[1, 2]).await?;
            series.add_time(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(300 + (run as u64 * 377) % 1_000)).await;
        }
        report.add(series);
    }
    Ok(())
}

/// To one other, as it sends to all at once.
pub(crate) async fn first(runs: usize, way: Way, trees: &[Tree], report: &mut Report) -> Result<()> {
    for tree in trees {
        let syncthing = Syncthing::up(2, way, TUNED).await?;
        let what = format!("Syncthing tuned, first copy of {}", tree.name());
        let mut series = Series::new(way.of(what), Unit::Seconds);
        for run in 0..runs {
            let made = syncthing.bed.machines()[0].srv().join(format!("tree-{run}"));
            tree.write(&made).await?;
            let (name, bytes, begun) = (format!("tree-{run}"), content::size(&made)?, Instant::now());
            fs::rename(&made, syncthing.data(0).join(&name))?;
            let copy = syncthing.data(1).join(&name);
            wait::holds("a whole copy", LIMIT, async || {
                Ok(copy.exists() && content::size_of(&copy, is_whole).is_ok_and(|size| size >= bytes))
            })
            .await?;
            series.add_time(begun.elapsed());
        }
        report.add(series);
    }
    Ok(())
}

/// What is still coming has another name, and its whole length from the beginning.
fn is_whole(name: &OsStr) -> bool {
    !name.as_encoded_bytes().starts_with(b".syncthing.")
}
