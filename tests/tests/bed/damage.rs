//! Data that goes wrong where it lies: bits that flip, files that are cut short, disks that are full, machines that come back after a
//! long time. Nothing of it reaches a person, and each is told.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use flotilla_api::rest::DrainQuery;
use flotilla_tests::{
    bed::{Cluster, Machine, cluster::SETTLED_LIMIT},
    wait,
};

use crate::ledger::{Database, SERVICE, copied, deploy, keep_copies, lose_power, upload, volumes};

/// Generations that a machine misses: more than any keeps.
const MISSED: u64 = 40;
/// For that many.
const MISSED_LIMIT: Duration = Duration::from_secs(240);

/// Before each object in a pack: its length, and its name.
const RECORD_HEAD: usize = 4 + 32;

#[tokio::test]
async fn what_a_disk_has_spoiled_is_not_passed_on() -> Result<()> {
    let Some(mut cluster) = Cluster::up_or_skip(3).await? else { return Ok(()) };
    let image = upload(&cluster, &Database::Sqlite).await?;
    keep_copies(&cluster, &image, 1).await?;
    let host = cluster.runs(SERVICE).await?[0];
    let copy = volumes(&cluster).await?[0].copies.first().context("a copy")?.machine.clone();
    let spoiled = cluster.bed.index_of(copy.as_str())?;
    let other = cluster.all_but(host).into_iter().find(|index| *index != spoiled).context("a third machine")?;
    ensure!(flip_bits(&cluster.bed.machines()[spoiled], 1)? > 0, "it has no objects");

    // Of the two that it may ask, one gives it nothing that is right.
    keep_copies(&cluster, &image, 2).await?;
    let told = fs::read_to_string(cluster.bed.machines()[other].log("node"))?;
    ensure!(told.contains("a machine is not asked for more of a generation"), "nobody was told of what is spoiled");
    only_on(&cluster, other, host).await?;
    lose_power(&mut cluster, host, Duration::ZERO).await?;
    ensure!(cluster.runs(SERVICE).await? == [other]);
    Ok(())
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
    let (away, stays) = (cluster.all_but(host)[0], cluster.all_but(host)[1]);
    let missed = sequence(&cluster).await?;
    cluster.bed.power_off(away)?;
    wait::holds("many generations", MISSED_LIMIT, async || Ok(sequence(&cluster).await? > missed + MISSED)).await?;
    cluster.boot(away).await?;
    copied(&cluster, 2).await?;
    only_on(&cluster, away, host).await?;
    let _ = stays;
    lose_power(&mut cluster, host, Duration::ZERO).await?;
    ensure!(cluster.runs(SERVICE).await? == [away]);
    Ok(())
}

/// No other machine is left to which the service could go.
async fn only_on(cluster: &Cluster, index: usize, host: usize) -> Result<()> {
    for drained in cluster.all_but(index).into_iter().filter(|drained| *drained != host) {
        let name = cluster.name(drained)?;
        cluster.client(cluster.leader().await?)?.drain(&name, DrainQuery::default()).await?;
    }
    let name = cluster.name(index)?;
    wait::holds(format!("{name} to stand by"), SETTLED_LIMIT, async || {
        Ok(cluster.service(SERVICE).await?.standby == [name.clone()])
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

/// Flips a bit in each nth object of a machine. How many.
fn flip_bits(machine: &Machine, each: usize) -> Result<usize> {
    let mut flipped = 0;
    for path in packs(machine)? {
        let bytes = fs::read(&path)?;
        let (mut at, mut count) = (0, 0);
        while let Some(head) = bytes.get(at..at + RECORD_HEAD) {
            let len = u32::from_be_bytes(head[..4].try_into()?) as usize;
            let begin = at + RECORD_HEAD;
            if bytes.len() < begin + len {
                break;
            }
            if count % each == 0 {
                flip_bit(&path, begin + len / 2, bytes[begin + len / 2])?;
                flipped += 1;
            }
            count += 1;
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
