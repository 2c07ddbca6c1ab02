//! What carries what is large: TLS within one network, data channels between homes.

use anyhow::{Context, Result};
use flotilla_api::rest::BulkPath;
use flotilla_tests::{
    bed::{Bed, BedSpec, Cluster, Line, cluster::SETTLED_LIMIT},
    wait,
};

use crate::ledger::{Database, SERVICE, copied, deploy};

#[tokio::test]
async fn copies_go_over_tls_within_one_network() -> Result<()> {
    carried(BedSpec::lan(3), BulkPath::Tls).await
}

#[tokio::test]
async fn copies_go_over_data_channels_between_homes() -> Result<()> {
    carried(BedSpec::lan(3).shaped(Line::HOME), BulkPath::Channels).await
}

async fn carried(spec: BedSpec, by: BulkPath) -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    let cluster = Cluster::on(spec, 3).await?;
    deploy(&cluster, &Database::Sqlite).await?;
    copied(&cluster, 2).await?;
    let host = cluster.name(cluster.runs(SERVICE).await?[0])?;
    let mut last = Vec::new();
    let carried = wait::holds(format!("copies that go by {by:?}"), SETTLED_LIMIT, async || {
        let (_, machines) = cluster.ask("a node", async |client| Ok(Some(client.machines().await?))).await?;
        let machine = machines.into_iter().find(|machine| machine.name == host).context("its machine")?;
        last = machine.links.into_iter().filter_map(|link| link.bulk).collect();
        Ok(last.len() == 2 && last.iter().all(|bulk| *bulk == by))
    });
    let carried = carried.await;
    carried.with_context(|| format!("they go by {last:?}"))
}
