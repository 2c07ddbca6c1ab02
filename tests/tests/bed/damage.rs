//! Data that goes wrong where it lies: bits that flip, files that are cut short, disks that are full, machines that come back after a
//! long time. Nothing of it reaches a person, and each is told.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use flotilla_api::rest::{DrainQuery, ScrubbedView};
use flotilla_tests::{
    bed::{Cluster, Machine, cluster::SETTLED_LIMIT},
    wait,
};

use crate::{
    board,
    ledger::{Database, SERVICE, copied, deploy, lose_power, volumes},
};

/// Generations that a machine misses: more than any keeps.
const MISSED: u64 = 40;
/// For that many.
const MISSED_LIMIT: Duration = Duration::from_secs(240);

/// Objects that no other machine has: of what this one saw in its own directories.
const OWN_MAX: u64 = 2;

/// Before each object in a pack: its length, and its name.
const RECORD_HEAD: usize = 4 + 32;

#[tokio::test]
async fn what_a_disk_has_spoiled_is_not_passed_on() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let Noted { host, written, copy: spoiled } = note(&cluster, 1, 5_000_000).await?;
    let other = cluster.all_but(host).into_iter().find(|index| *index != spoiled).context("a third machine")?;
    ensure!(flip_bits(&cluster.bed.machines()[spoiled])? > 50, "it has no objects");

    // Of the two that it may ask, one gives it nothing that is right.
    board::keep(&cluster, 2).await?;
    board::copied(&cluster, host, 2, written.len() as u64).await?;
    let told = fs::read_to_string(cluster.bed.machines()[other].log("node"))?;
    ensure!(told.contains("a machine is not asked for more of a generation"), "nobody was told of what is spoiled");
    only_on(&cluster, board::SERVICE, other, host).await?;
    cluster.bed.power_off(host)?;
    cluster.runs_on(board::SERVICE, other).await?;
    ensure!(fs::read(board::directory(&cluster, other).join("note"))? == written, "it is not what was written");
    Ok(())
}

#[tokio::test]
async fn what_a_disk_has_spoiled_is_found_and_made_right_by_reading_it() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let Noted { host, written, copy: spoiled } = note(&cluster, 2, 2_000_000).await?;
    let note = board::directory(&cluster, spoiled).join("note");
    wait::holds(
        "a copy that is shown",
        SETTLED_LIMIT,
        async || Ok(fs::read(&note).is_ok_and(|bytes| bytes == written)),
    )
    .await?;

    let flipped = flip_bits(&cluster.bed.machines()[spoiled])? as u64;
    ensure!(flipped > 50, "it has no objects");
    let read = scrub(&cluster, spoiled).await?;
    ensure!((51..=flipped).contains(&read.damaged) && lost(&read) <= OWN_MAX, "{flipped} were flipped: {read:?}");

    for path in packs(&cluster.bed.machines()[spoiled])? {
        let pack = File::options().write(true).open(&path)?;
        pack.set_len(pack.metadata()?.len() / 2)?;
    }
    let read = scrub(&cluster, spoiled).await?;
    let own = lost(&read);
    ensure!(read.repaired > 0 && own <= OWN_MAX, "half of it was cut off: {read:?}");

    // What an instance would start from. Nothing tells that it was changed.
    let (was, at) = (fs::metadata(&note)?.modified()?, written.len() / 3);
    flip_bit(&note, at, written[at])?;
    File::options().write(true).open(&note)?.set_modified(was)?;
    let read = scrub(&cluster, spoiled).await?;
    ensure!(read.files_bytes == written.len() as u64 && read.repaired == 1 && lost(&read) <= own, "{read:?}");
    ensure!(fs::read(&note)? == written, "a copy is not what was written");
    fs::remove_file(&note)?;
    let read = scrub(&cluster, spoiled).await?;
    ensure!(read.repaired == 1 && lost(&read) <= own, "{read:?}");
    let read = scrub(&cluster, spoiled).await?;
    ensure!(read.damaged <= own, "something is left: {read:?}");

    only_on(&cluster, board::SERVICE, spoiled, host).await?;
    cluster.bed.power_off(host)?;
    cluster.runs_on(board::SERVICE, spoiled).await?;
    ensure!(fs::read(&note)? == written, "it is not what was written");
    Ok(())
}

/// A file that is copied.
struct Noted {
    host: usize,
    written: Vec<u8>,
    /// A machine that has a copy.
    copy: usize,
}

/// Writes so many numbers of four bytes, of which so many other machines have copies.
async fn note(cluster: &Cluster, replicas: u32, numbers: u32) -> Result<Noted> {
    let host = board::keep(cluster, replicas).await?;
    let written: Vec<u8> = (0..numbers).flat_map(u32::to_le_bytes).collect();
    fs::write(board::directory(cluster, host).join("note"), &written)?;
    let copy = board::copied(cluster, host, replicas, written.len() as u64).await?[0];
    Ok(Noted { host, written, copy })
}

fn lost(read: &ScrubbedView) -> u64 {
    read.damaged - read.repaired
}

/// Has a machine read all that it keeps.
async fn scrub(cluster: &Cluster, machine: usize) -> Result<ScrubbedView> {
    let (client, name) = (cluster.client(machine)?, cluster.name(machine)?);
    let began = client.scrub(&name).await?.running.context("one that is under way")?.began_at;
    wait::until("all of it to be read", SETTLED_LIMIT, async || {
        let scrub = client.machine(&name).await?.view.resources.and_then(|it| it.scrub).unwrap_or_default();
        Ok(scrub.finished.filter(|finished| finished.began_at >= began))
    })
    .await
}

#[tokio::test]
async fn a_full_disk_at_either_end_loses_nothing() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    deploy(&cluster, &Database::Sqlite).await?;
    let host = cluster.runs(SERVICE).await?[0];
    let full = cluster.all_but(host)[0];

    // One that can't take it holds nobody up for long.
    cluster.bed.machines()[full].fill_disk().await?;
    let before = committed_at(&cluster).await?;
    wait::holds("a commit without the machine whose disk is full", SETTLED_LIMIT, async || {
        Ok(committed_at(&cluster).await? > before + 1_000)
    })
    .await?;
    cluster.bed.machines()[full].free_disk().await?;
    copied(&cluster, 2).await?;

    // Where it is written nothing can be written, and all of it is there when there is room again.
    cluster.bed.machines()[host].fill_disk().await?;
    wait::holds("a database that can't write", SETTLED_LIMIT, async || {
        let before = committed_at(&cluster).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(committed_at(&cluster).await? == before)
    })
    .await?;
    cluster.bed.machines()[host].free_disk().await?;
    cluster.runs(SERVICE).await?;
    copied(&cluster, 2).await?;
    let host = cluster.runs(SERVICE).await?[0];
    lose_power(&mut cluster, host, Duration::from_millis(300)).await.map(drop)
}

#[tokio::test]
async fn a_machine_that_was_away_for_long_catches_up() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    deploy(&cluster, &Database::Sqlite).await?;
    let host = cluster.runs(SERVICE).await?[0];
    let away = cluster.all_but(host)[0];
    let missed = sequence(&cluster).await?;
    cluster.bed.power_off(away)?;
    wait::holds("many generations", MISSED_LIMIT, async || Ok(sequence(&cluster).await? > missed + MISSED)).await?;
    cluster.boot(away).await?;
    copied(&cluster, 2).await?;
    only_on(&cluster, SERVICE, away, host).await?;
    lose_power(&mut cluster, host, Duration::from_millis(300)).await?;
    ensure!(cluster.runs(SERVICE).await? == [away]);
    Ok(())
}

/// No other machine is left to which the service could go.
async fn only_on(cluster: &Cluster, service: &str, index: usize, host: usize) -> Result<()> {
    for drained in cluster.all_but(index).into_iter().filter(|drained| *drained != host) {
        let name = cluster.name(drained)?;
        cluster.client(cluster.leader().await?)?.drain(&name, DrainQuery::default()).await?;
    }
    let name = cluster.name(index)?;
    wait::holds(format!("{name} to stand by"), SETTLED_LIMIT, async || {
        Ok(cluster.service(service).await?.standby == [name.clone()])
    })
    .await
}

/// When what is committed was taken, of the volume that is further behind. Milliseconds since 1970.
async fn committed_at(cluster: &Cluster) -> Result<u64> {
    let taken = volumes(cluster).await?.into_iter().map(|it| it.committed.map_or(0, |it| it.taken_at.0));
    taken.min().context("a volume")
}

/// Of the newest that is committed.
async fn sequence(cluster: &Cluster) -> Result<u64> {
    let volumes = volumes(cluster).await?;
    let committed = volumes.first().and_then(|volume| volume.committed.as_ref()).context("a committed generation")?;
    let (_, sequence) = committed.generation.split_once('.').context("an epoch and a sequence")?;
    Ok(sequence.parse()?)
}

/// Flips a bit in each object of a machine. How many.
fn flip_bits(machine: &Machine) -> Result<usize> {
    let mut flipped = 0;
    for path in packs(machine)? {
        let bytes = fs::read(&path)?;
        let mut at = 0;
        while let Some(head) = bytes.get(at..at + RECORD_HEAD) {
            let len = u32::from_be_bytes(head[..4].try_into()?) as usize;
            let begin = at + RECORD_HEAD;
            if bytes.len() < begin + len {
                break;
            }
            flip_bit(&path, begin + len / 2, bytes[begin + len / 2])?;
            flipped += 1;
            at = begin + len;
        }
    }
    Ok(flipped)
}

fn flip_bit(path: &Path, at: usize, byte: u8) -> Result<()> {
    Ok(File::options().write(true).open(path)?.write_all_at(&[byte ^ 0x10], at as u64)?)
}

fn packs(machine: &Machine) -> Result<Vec<PathBuf>> {
    let directory = machine.srv().join("flotilla/objects/packs");
    let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let mut packs = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    packs.sort();
    Ok(packs)
}
