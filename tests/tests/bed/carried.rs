//! What carries what is large: TLS where TCP gets through, else data channels.

use anyhow::{Context, Result};
use flotilla_api::rest::BulkPath;
use flotilla_tests::{
    bed::{Bed, BedSpec, Cluster, Line, cluster::SETTLED_LIMIT},
    wait,
};
use rustix::net::{AddressFamily, SocketType, socket, sockopt::set_tcp_congestion};

use crate::ledger::{Database, SERVICE, copied, deploy};

#[tokio::test]
async fn copies_go_over_tls_within_one_network() -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    carried(&Cluster::on(BedSpec::lan(3), 3).await?, BulkPath::Tls).await
}

#[tokio::test]
async fn copies_go_over_tls_between_homes_where_tcp_has_bbr() -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    let has_bbr = set_tcp_congestion(socket(AddressFamily::INET, SocketType::STREAM, None)?, "bbr").is_ok();
    let by = if has_bbr { BulkPath::Tls } else { BulkPath::Channels };
    carried(&Cluster::on(BedSpec::lan(3).shaped(Line::HOME), 3).await?, by).await
}

#[tokio::test]
async fn copies_go_over_data_channels_between_homes_that_let_no_tcp_in() -> Result<()> {
    if !Bed::can_be_made()? {
        return Ok(());
    }
    let cluster = Cluster::on(BedSpec::lan(3).shaped(Line::HOME), 3).await?;
    let machines = cluster.bed.machines();
    for machine in machines {
        let port = machine.listen().port().to_string();
        for other in machines.iter().filter(|other| other.name() != machine.name()) {
            // As a router does: without an answer.
            let from = other.address().to_string();
            let rule = ["iptables", "-I", "INPUT", "-p", "tcp", "--syn", "--dport", &port, "-s", &from, "-j", "DROP"];
            machine.exec(&rule).await?;
        }
    }
    carried(&cluster, BulkPath::Channels).await
}

async fn carried(cluster: &Cluster, by: BulkPath) -> Result<()> {
    deploy(cluster, &Database::Sqlite).await?;
    copied(cluster, 2).await?;
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
