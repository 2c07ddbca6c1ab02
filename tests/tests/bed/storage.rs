//! A machine that only stores: what it has it can't read, and it gives it back.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use flotilla::client::Error;
use flotilla_api::{
    ErrorCode,
    rest::{DrainQuery, VolumeState},
};
use flotilla_tests::{
    bed::{Bed, BedSpec, Cluster, cluster::SETTLED_LIMIT, probe::clock},
    image,
    ledger::{DATA, JOURNAL},
    wait,
};

use crate::ledger::{later, told};

const SERVICE: &str = "ledger";

/// The one that only stores.
const CELLAR: usize = 3;

/// What a database has in it, and the name of its file.
const READABLE: &[&[u8]] = &[b"SQLite format 3", b"CREATE TABLE", b"ledger.db"];

#[tokio::test]
async fn a_machine_that_only_stores_gives_back_what_it_can_t_read() -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    let mut cluster = Cluster::on(BedSpec::lan(4), 3).await?;
    cluster.join_storage(CELLAR, 0).await?;
    cluster.ready(CELLAR).await?;
    let machines = cluster.client(0)?.machines().await?;
    let name = cluster.name(CELLAR)?;
    let cellar = machines.iter().find(|machine| machine.name == name).context("it is a member")?;
    ensure!(cellar.storage_only && cellar.instances == 0, "{cellar:?}");

    // It answers nobody, and has no key.
    match cluster.client(CELLAR)?.volumes().await {
        Err(Error::Api(error)) if error.code == ErrorCode::StorageOnly => {}
        other => anyhow::bail!("a machine that only stores answered {other:?}"),
    }
    let data = cluster.bed.machines()[CELLAR].srv().join("flotilla");
    for key in ["cluster.pem", "values.json"] {
        ensure!(!data.join("keys").join(key).exists(), "it has the key {key}");
    }

    // Nobody else may have a copy: one runs it, two are drained, and one only stores.
    for other in [1, 2] {
        let name = cluster.name(other)?;
        cluster.client(cluster.leader().await?)?.drain(&name, DrainQuery::default()).await?;
    }
    deploy(&cluster).await?;
    ensure!(cluster.runs(SERVICE).await? == [0]);
    let visitor = cluster.visit(SERVICE, &[1, 2]).await?;
    let written =
        wait::until("a row", SETTLED_LIMIT, async || Ok(told(&visitor).filter(|ledger| ledger.acknowledged > 0)))
            .await?;
    wait::holds("a copy of all that was written on the machine that only stores", SETTLED_LIMIT, async || {
        let volumes = cluster.client(0)?.volumes().await?;
        let safe = |volume: &flotilla_api::rest::VolumeView| {
            let taken = volume.committed.as_ref().is_some_and(|committed| committed.taken_at.0 > written.at);
            let copies = volume.copies.iter().filter(|copy| copy.holds).map(|copy| &copy.machine);
            volume.encrypted && taken && volume.state == VolumeState::Copied && copies.eq([&name])
        };
        Ok(volumes.len() == 2 && volumes.iter().all(safe))
    })
    .await?;

    // In the state log, which it has as every machine, are names and specifications; of what was written there is nothing anywhere.
    let (files, bytes) = readable(&[data.join("objects"), data.join("volumes")])?;
    ensure!(files.is_empty(), "what is in {files:?} can be read");
    ensure!(bytes > 1_000, "it has {bytes} bytes, which can't be all");

    // The only other machine that has the data is gone for good.
    let event = clock();
    cluster.bed.power_off(0)?;
    let next = cluster.name(1)?;
    wait::holds("a machine that may run it again", SETTLED_LIMIT, async || {
        cluster.client(cluster.led_by_another_than(0).await?)?.undrain(&next).await?;
        Ok(true)
    })
    .await?;
    let after = later(&visitor, event).await?;
    ensure!(after.integrity == "ok", "{after:?}");
    ensure!(
        after.found >= written.acknowledged,
        "row {} was safe, and {} are there",
        written.acknowledged,
        after.found
    );
    ensure!(cluster.runs(SERVICE).await? == [1]);
    eprintln!(
        "MEASURED {} of {} rows came back from a machine that can't read them",
        after.found, written.acknowledged
    );
    Ok(())
}

async fn deploy(cluster: &Cluster) -> Result<()> {
    let image = image::ledger().await?;
    let path = cluster.bed.scratch("ledger.tar");
    image.write(&path)?;
    // A machine that is drained gets no image beforehand, and the one that has it will be gone.
    for index in [1, 2] {
        cluster.bed.machines()[index].load(&path).await?;
    }
    let reference = image.reference;
    // From the engine of one machine to that of another, without a registry.
    for first in [true, false] {
        let pushed = cluster.push(1, 0, &reference).await?;
        ensure!((pushed["sent_bytes"].as_u64() > Some(0)) == first, "what is there is not sent again: {pushed}");
    }
    cluster
        .deploy(&format!(
            "services:
  {SERVICE}:
    image: {reference}
    ports: [\"8080\"]
    stop_grace_period: 3s
    volumes: [\"rows:{DATA}\", \"lines:{JOURNAL}\"]
volumes:
  rows: {{ x-flotilla: {{ encrypted: true, replicas: 1 }} }}
  lines: {{ x-flotilla: {{ encrypted: true, replicas: 1 }} }}
"
        ))
        .await
}

/// Files in which something can be read, and the bytes of all packs.
fn readable(directories: &[PathBuf]) -> Result<(Vec<PathBuf>, u64)> {
    let (mut found, mut packs, mut left) = (Vec::new(), 0, directories.to_vec());
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
                continue;
            }
            let bytes = fs::read(&path)?;
            if path.extension().is_some_and(|extension| extension == "pack") {
                packs += bytes.len() as u64;
            }
            let has = |text: &&[u8]| bytes.windows(text.len()).any(|window| window == *text);
            if READABLE.iter().any(has) {
                found.push(path);
            }
        }
    }
    Ok((found, packs))
}
