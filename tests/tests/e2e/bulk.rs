//! 200 MB, in both directions, through a node that keeps little of it in memory.

use std::{io::Write, time::Duration};

use anyhow::{Result, ensure};
use flotilla_tests::{
    body::{self, NUMBERS_LEN},
    cluster::Cluster,
    image,
};
use serde_json::Value;

use super::{echo, nginx, signed_in, tunnel::carried_only_bootstrap};

/// A development build on a busy machine still moves 2 MB in a second.
const LIMIT: Duration = Duration::from_secs(100);

/// What a node may grow by while it moves 200 MB: sockets, credit and SCTP windows, and no body.
const GROWTH_MAX: u64 = 96 << 20;

#[tokio::test]
async fn a_download_of_200_mb_arrives_whole_and_the_node_stays_small() -> Result<()> {
    let (cluster, browser) = signed_in("download", Cluster::with().tapped()).await?;
    cluster.deploy(&nginx(&image::nginx().await?)).await?;
    browser.goto(&cluster.url("site", "/")).await?;
    browser.enter_app_at("#numbers").await?;
    let before = cluster.node()?.memory()?;
    let Some(tap) = &cluster.tap else { unreachable!("the cluster was started with one") };
    let (_, http_before) = tap.bytes();

    browser.click("#numbers").await?;
    let file = browser.downloaded("numbers.txt", LIMIT).await?;
    let saved = tokio::task::spawn_blocking(move || std::fs::read(file)).await??;
    ensure!(saved.len() == NUMBERS_LEN, "{} bytes were saved", saved.len());
    ensure!(body::sha256([saved]) == body::sha256(body::numbers(NUMBERS_LEN)), "the file is another");

    let after = cluster.node()?.memory()?;
    ensure!(after.peak < before.resident + GROWTH_MAX, "the node grew from {before:?} to {after:?}");
    let (_, http_after) = tap.bytes();
    ensure!(http_after - http_before < 1 << 20, "{} bytes went over HTTP", http_after - http_before);
    carried_only_bootstrap(&cluster)?;
    browser.close().await
}

#[tokio::test]
async fn an_upload_of_200_mb_arrives_whole_and_the_node_stays_small() -> Result<()> {
    let (cluster, browser) = signed_in("upload", Cluster::with().tapped()).await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    let len = 200_000_000;
    let file = browser.scratch("upload.bin");
    let mut writer = std::io::BufWriter::new(std::fs::File::create(&file)?);
    for chunk in body::noise_chunks(0, len) {
        writer.write_all(&chunk)?;
    }
    writer.flush()?;

    browser.goto(&cluster.url("echo", "/")).await?;
    browser.enter_app_at("#file").await?;
    browser.type_into("#file", &file.display().to_string()).await?;
    let before = cluster.node()?.memory()?;
    let Some(tap) = &cluster.tap else { unreachable!("the cluster was started with one") };
    let (http_before, _) = tap.bytes();
    let got = browser
        .js::<Value>(
            "const file = document.getElementById('file').files[0];
             return await (await fetch('/sink', {method: 'POST', body: file})).json()",
            &[],
        )
        .await?;
    ensure!(got["bytes"] == len, "{got}");
    ensure!(got["sha256"] == body::sha256(body::noise_chunks(0, len)).as_str(), "the service got other bytes");
    let after = cluster.node()?.memory()?;
    ensure!(after.peak < before.resident + GROWTH_MAX, "the node grew from {before:?} to {after:?}");
    let (http_after, _) = tap.bytes();
    ensure!(http_after - http_before < 1 << 20, "{} bytes went over HTTP", http_after - http_before);
    carried_only_bootstrap(&cluster)?;
    browser.close().await
}
