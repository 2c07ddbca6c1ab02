//! A volume that a test writes itself, so that it knows each of its generations.

use std::path::PathBuf;

use anyhow::{Context, Result};
use flotilla_api::rest::{VolumeDetail, VolumeState};
use flotilla_tests::{
    bed::{Cluster, cluster::SETTLED_LIMIT},
    wait,
};

pub(crate) const SERVICE: &str = "notes";
const VOLUME: &str = "board";

/// Deploys it so that so many other machines have copies; where it runs.
pub(crate) async fn keep(cluster: &Cluster, replicas: u32) -> Result<usize> {
    let image = cluster.image();
    cluster
        .deploy(&format!(
            "services:
  {SERVICE}:
    image: {image}
    ports: [\"8080\"]
    stop_grace_period: 3s
    volumes: [\"{VOLUME}:/board\"]
volumes:
  {VOLUME}: {{ x-flotilla: {{ replicas: {replicas} }} }}
"
        ))
        .await?;
    Ok(cluster.runs(SERVICE).await?[0])
}

/// Where a machine has it.
pub(crate) fn directory(cluster: &Cluster, machine: usize) -> PathBuf {
    cluster.bed.machines()[machine].srv().join("flotilla/volumes").join(SERVICE).join(VOLUME)
}

/// What a machine tells of it.
pub(crate) async fn detail(cluster: &Cluster, machine: usize) -> Result<VolumeDetail> {
    Ok(cluster.client(machine)?.volume(&SERVICE.parse()?, &VOLUME.parse()?).await?)
}

/// Waits until so many other machines have all of it, with so many bytes; which these are.
pub(crate) async fn copied(cluster: &Cluster, host: usize, replicas: u32, bytes: u64) -> Result<Vec<usize>> {
    let mut last = None;
    let copied = wait::until(format!("{replicas} copies of {bytes} bytes"), SETTLED_LIMIT, async || {
        let view = detail(cluster, host).await?.view;
        let all = view.state == VolumeState::Copied && view.replicas == replicas && view.bytes == Some(bytes);
        let on = view.copies.iter().map(|copy| cluster.bed.index_of(copy.machine.as_str()));
        let on = on.collect::<Result<Vec<usize>>>()?;
        last = Some(view);
        Ok(all.then_some(on))
    })
    .await;
    copied.with_context(|| format!("it is {last:#?}"))
}
