//! The daemon is killed, and whatever was acknowledged is there.

use anyhow::{Context, Result, ensure};
use flotilla_api::rest::ServiceState;
use flotilla_tests::{browser::PAGE_LIMIT, cluster::Cluster, image, wait};

use super::{echo, nginx, signed_in, tunnel::carried_only_bootstrap};

#[tokio::test]
async fn a_killed_daemon_adopts_its_containers_and_pages_go_on() -> Result<()> {
    let (mut cluster, browser) = signed_in("crash", Cluster::with().tapped()).await?;
    cluster.deploy(&nginx(&image::nginx().await?)).await?;
    browser.goto(&cluster.url("site", "/")).await?;
    browser.enter_app_at("#secret").await?;
    let container = one_container(&cluster).await?;

    cluster.kill().await?;
    ensure!(one_container(&cluster).await? == container, "the container lives on without its daemon");
    cluster.up().await?;
    let view = cluster.runs("site").await?;
    ensure!(view.instances.len() == 1 && view.instances[0].restarts == 0, "{view:#?}");
    ensure!(one_container(&cluster).await? == container, "the container is the same");

    // The page that was open works on, without being loaded anew.
    wait::holds("the open page to reach its service", PAGE_LIMIT, async || {
        let title: String = browser
            .js(
                "try { return await (await fetch('/docs/tides.html')).text() } catch (error) { return String(error) }",
                &[],
            )
            .await?;
        Ok(title.contains("<title>Tides</title>"))
    })
    .await?;
    browser.reload().await?;
    browser.enter_app_at("#secret").await?;
    // Neither before nor after went a byte of the service over the listener, nor while there was no node.
    let tap = cluster.tap.as_ref().context("the cluster was started with one")?;
    for secret in ["the-bytes-of-a-service-7f3a91", "<title>Tides</title>"] {
        ensure!(!tap.carried(secret), "`{secret}` went over HTTP");
    }
    carried_only_bootstrap(&cluster)?;
    browser.close().await
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_whenever_the_daemon_is_killed() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let image = image::echo().await?;
    let mut acknowledged = 0;
    for round in 0..5 {
        let client = cluster.client.clone();
        let file = echo(&image);
        let submissions = tokio::spawn(async move {
            let mut last = 0;
            for n in 0.. {
                let compose = format!("{file}    environment: {{ROUND: \"{round}\", N: \"{n}\"}}\n");
                let request = flotilla_api::rest::DeployRequest {
                    compose,
                    stack: Some("tests".to_owned()),
                    variables: [].into(),
                    dry_run: false,
                    values: Vec::new(),
                };
                match client.deploy(&request).await {
                    Ok(response) => last = response.services[0].revision.0,
                    Err(_) => break,
                }
            }
            last
        });
        let base = acknowledged;
        wait::holds("three more revisions", PAGE_LIMIT, async || {
            let service = cluster.service("echo").await?;
            Ok(service.is_some_and(|service| service.revision.0 >= base + 3))
        })
        .await?;
        cluster.kill().await?;
        acknowledged = submissions.await?.max(acknowledged);
        cluster.up().await?;
        let service = cluster.service("echo").await?.context("the service is there")?;
        ensure!(service.revision.0 >= acknowledged, "revision {acknowledged} was acknowledged; now it is {service:?}");
        acknowledged = service.revision.0;
    }
    cluster.runs("echo").await?;
    wait::holds("the containers of old revisions to be gone", PAGE_LIMIT, async || {
        Ok(cluster.containers().await?.len() == 1)
    })
    .await
}

#[tokio::test]
async fn a_container_that_dies_while_no_daemon_runs_is_started_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    let container = one_container(&cluster).await?;
    cluster.kill().await?;
    let mut docker = tokio::process::Command::new("docker");
    flotilla_tests::process::run(docker.args(["kill", &container]), PAGE_LIMIT).await?;
    cluster.up().await?;
    wait::holds("another start of the service", PAGE_LIMIT, async || {
        let view = cluster.service("echo").await?.context("the service is there")?;
        Ok(view.state == ServiceState::Running && view.instances.iter().any(|instance| instance.restarts > 0))
    })
    .await
}

#[tokio::test]
async fn a_daemon_that_is_asked_to_stop_leaves_its_services_running() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    let container = one_container(&cluster).await?;
    cluster.stop().await?;
    ensure!(one_container(&cluster).await? == container);
    cluster.up().await?;
    cluster.runs("echo").await?;
    ensure!(one_container(&cluster).await? == container);
    Ok(())
}

async fn one_container(cluster: &Cluster) -> Result<String> {
    let mut containers = cluster.containers().await?;
    ensure!(containers.len() == 1, "one container was expected: {containers:?}");
    containers.pop().context("one")
}
