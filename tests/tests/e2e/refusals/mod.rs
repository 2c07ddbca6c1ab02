//! Bad input: one clear sentence with a stable code, wherever it comes in, and nothing is changed.

mod dashboard;
mod disk;
mod files;
mod machine;
mod tokens;
mod tunnel;

use anyhow::Result;
use flotilla_tests::cluster::Cluster;

/// The state log's length and the engine's containers, which no refusal may change.
async fn state(cluster: &Cluster) -> Result<(u64, Vec<String>)> {
    Ok((cluster.client.cluster().await?.applied_index, cluster.containers().await?))
}
