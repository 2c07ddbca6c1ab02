//! A machine that is not as it should be: no engine, a port that is taken, a full disk.

use anyhow::{Context, Result, ensure};
use flotilla_api::rest::{EngineView, ServiceState};
use flotilla_tests::{
    browser::PAGE_LIMIT,
    cluster::Cluster,
    engine::EngineSocket,
    image,
    process::{Process, run},
    wait,
};
use serde_json::Value;
use tokio::process::Command;

use super::{super::echo, disk::SmallDisk, state};

#[tokio::test]
async fn an_engine_that_goes_away_is_told_and_comes_back() -> Result<()> {
    let mut socket = EngineSocket::open()?;
    let cluster = Cluster::with().env("FLOTILLA_DOCKER_HOST", &socket.url()).start().await?;
    let image = image::echo().await?;
    cluster.deploy(&echo(&image)).await?;
    socket.cut()?;
    cluster.becomes("echo", ServiceState::Unknown).await?;
    let machines = cluster.client.machines().await?;
    ensure!(matches!(machines[0].engine, Some(EngineView::Unavailable { .. })), "{machines:#?}");
    let path = cluster.scratch("compose.yaml");
    std::fs::write(&path, format!("{}    environment: {{A: b}}\n", echo(&image)))?;
    let before = cluster.client.cluster().await?.applied_index;
    let refused = cluster.cli()?.fails(&["deploy", "-p", "tests", "-f", &path.display().to_string()]).await?;
    ensure!(refused.code == "engine-unavailable", "{refused:?}");
    ensure!(cluster.client.cluster().await?.applied_index == before);
    socket.mend()?;
    let view = cluster.runs("echo").await?;
    ensure!(view.revision.0 == 1 && view.instances[0].restarts == 0, "{view:#?}");
    Ok(())
}

#[tokio::test]
async fn a_node_starts_without_an_engine_and_says_so() -> Result<()> {
    let cluster = Cluster::with().env("FLOTILLA_DOCKER_HOST", "unix:///nowhere/docker.sock").start().await?;
    let machines = cluster.client.machines().await?;
    let Some(EngineView::Unavailable { message, .. }) = &machines[0].engine else { anyhow::bail!("{machines:#?}") };
    ensure!(message.contains("/nowhere/docker.sock"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_second_daemon_a_taken_port_and_a_wrong_setting_are_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let refused = async |mut command: Command| -> Result<String> {
        let log = cluster.scratch("refused.log");
        let _ = std::fs::remove_file(&log);
        let mut process = Process::spawn(&mut command, &log)?;
        let status = process.wait(PAGE_LIMIT).await?;
        ensure!(
            !status.success() && status.code() != Some(101),
            "it was to be refused: {status}\n{}",
            process.output()
        );
        let output = process.output();
        let sentence = output.lines().find_map(|line| line.strip_prefix("error: ")).with_context(|| output.clone())?;
        Ok(sentence.to_owned())
    };
    let mut second = cluster.up_command();
    second.args(["--log-level", "error"]).env("FLOTILLA_LISTEN", "127.0.0.1:0");
    let sentence = refused(second).await?;
    ensure!(sentence.contains(&cluster.data().display().to_string()), "{sentence}");

    let other = cluster.scratch("other");
    let mut init = cluster.cli()?.command();
    run(init.args(["init", "other", "--json", "--data-dir"]).arg(&other), PAGE_LIMIT).await?;
    let mut taken = Command::new(flotilla_tests::built("flotilla"));
    taken.arg("up").arg("--data-dir").arg(&other).args(["--listen", &cluster.address().to_string()]);
    let sentence = refused(taken).await?;
    ensure!(sentence.contains(&cluster.address().port().to_string()), "{sentence}");

    let mut wrong = Command::new(flotilla_tests::built("flotilla"));
    wrong.arg("up").arg("--data-dir").arg(&other).env("FLOTILLA_LOG_LEVEL", "loud");
    let sentence = refused(wrong).await?;
    ensure!(sentence.contains("loud"), "{sentence}");

    let nothing = cluster.scratch("nothing");
    let mut empty = Command::new(flotilla_tests::built("flotilla"));
    empty.arg("up").arg("--data-dir").arg(&nothing);
    let sentence = refused(empty).await?;
    ensure!(sentence.contains("flotilla init"), "{sentence}");
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_nothing() -> Result<()> {
    let disk = SmallDisk::mount(24).await?;
    let cluster = Cluster::with().data(disk.path()).start().await?;
    let image = image::echo().await?;
    cluster.deploy(&echo(&image)).await?;
    disk.fill()?;
    let path = cluster.scratch("compose.yaml");
    let refused = wait::until("a refusal", PAGE_LIMIT, async || {
        // What the database has set aside may hold a few more entries.
        let n = cluster.client.cluster().await?.applied_index;
        std::fs::write(&path, format!("{}    environment: {{N: \"{n}-{}\"}}\n", echo(&image), "x".repeat(20_000)))?;
        let ended = cluster.cli()?.run(&["deploy", "-p", "tests", "-f", &path.display().to_string(), "--json"]).await?;
        Ok((ended.code != Some(0)).then_some(ended))
    })
    .await?;
    let said: Value = serde_json::from_str(&refused.err).with_context(|| format!("{refused:?}"))?;
    ensure!(said["code"] == "disk-full", "{said}");
    let revision = cluster.runs("echo").await?.revision;
    let before = state(&cluster).await?;
    let again = cluster.cli()?.fails(&["deploy", "-p", "tests", "-f", &path.display().to_string()]).await?;
    ensure!(again.code == "disk-full", "{again:?}");
    ensure!(state(&cluster).await? == before, "a refused deployment changes nothing");
    disk.relieve()?;
    cluster.cli()?.ok(&["deploy", "-p", "tests", "-f", &path.display().to_string(), "--wait"]).await?;
    ensure!(cluster.runs("echo").await?.revision > revision);
    Ok(())
}
