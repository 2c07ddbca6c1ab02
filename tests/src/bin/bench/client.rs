//! The small request without a browser: what it takes is the node's, and a client's that is as quick as the node.

use std::time::Instant;

use anyhow::{Result, ensure};
use flotilla::client::tunnel::TunnelClient;
use flotilla_tests::{cluster::Cluster, image};

use crate::{REQUESTS, Settings, echoing, median, report::Report};

pub(crate) async fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start().await?;
    let image = image::echo().await?;
    cluster.deploy(&echoing(&image)).await?;
    let client = TunnelClient::connect(&cluster.api().parse()?, cluster.token()).await?;
    let echo = "echo".parse()?;
    let mut rounds = Vec::new();
    for _ in 0..settings.rounds {
        let mut times = Vec::new();
        for _ in 0..REQUESTS {
            let start = Instant::now();
            let answer = client.get(&echo, "/bytes/1024").await?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            ensure!(answer.is_success() && answer.body.len() == 1024, "an answer of {}", answer.status);
        }
        rounds.push(median(&mut times));
    }
    client.close().await;
    report.add("tunnel, request of 1 KB without a browser, p50", median(&mut rounds), "ms", None);
    Ok(())
}
