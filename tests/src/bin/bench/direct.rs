//! The same requests over plain HTTP to the container: from the same browser, and from this process, which no browser can reach.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use flotilla_tests::{body, cluster::Cluster, process::run};
use futures::StreamExt;
use tokio::process::Command;

use crate::{REQUESTS, Settings, median, megabytes_per_second, report::Report};

/// Where the container answers on this machine, as `http://172.17.0.2:8080`.
pub(crate) async fn address(cluster: &Cluster) -> Result<String> {
    let container = cluster.containers().await?.pop().context("one container")?;
    let mut docker = Command::new("docker");
    docker.args(["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &container]);
    let address = run(&mut docker, Duration::from_secs(10)).await?.trim().to_owned();
    Ok(format!("http://{address}:8080"))
}

pub(crate) async fn measure(base: &str, settings: &Settings, report: &mut Report) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().build()?;

    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        http.get(format!("{base}/bytes/1024")).send().await?.bytes().await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    report.add("direct HTTP, request of 1 KB, p50", median(&mut times), "ms", None);

    let start = Instant::now();
    let mut chunks = http.get(format!("{base}/bytes/{}", settings.bytes())).send().await?.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        chunk?;
    }
    report.add("direct HTTP, down", megabytes_per_second(settings.bytes(), start.elapsed()), "MB/s", None);

    let chunks: Vec<Bytes> = body::noise_chunks(0, settings.bytes()).collect();
    let start = Instant::now();
    let upload = reqwest::Body::wrap_stream(futures::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)));
    http.post(format!("{base}/sink")).body(upload).send().await?.error_for_status()?;
    report.add("direct HTTP, up", megabytes_per_second(settings.bytes(), start.elapsed()), "MB/s", None);
    Ok(())
}
