//! The same in the dashboard: the sentence stands on the page, and nothing is changed.

use std::net::TcpListener as StdListener;

use anyhow::{Context, Result, ensure};
use flotilla::client;
use flotilla_api::{
    Grant, Scope,
    rest::{COMPOSE_MAX, CreateInvitation, CreateToken, ServiceState},
};
use flotilla_tests::{
    browser::{Browser, PAGE_LIMIT},
    cluster::Cluster,
    engine::EngineSocket,
    image,
    registry::Registry,
    wait,
};

use super::{
    super::{
        dashboard::{press, write_compose},
        echo, sign_in, signed_in,
    },
    disk::SmallDisk,
    files::bad_files,
    state,
};

/// On a page a sentence begins with a capital, and what is between backticks is set in other letters.
fn as_shown(sentence: &str) -> String {
    sentence.chars().skip(1).filter(|letter| *letter != '`').collect()
}

/// Waits until the check of the file has found what the node says of it when it is asked for the same directly.
async fn finds(cluster: &Cluster, browser: &Browser, text: &str) -> Result<()> {
    let error = cluster.submit(text).await.err().context("the node takes it")?;
    let Some(client::Error::Api(error)) = error.downcast_ref() else { anyhow::bail!("{error:#}") };
    write_compose(browser, text).await?;
    match error.line {
        Some(line) => {
            browser.sees("#editor-error", &format!("Line {line}. ")).await?;
            browser.sees("#editor-error", &as_shown(&error.message)).await?;
        }
        None => drop(browser.sees(".check", &as_shown(&error.message)).await?),
    }
    ensure!(browser.count(".page-actions .primary:not(:disabled)").await? == 0, "`Deploy` can be pressed");
    Ok(())
}

#[tokio::test]
async fn files_and_images_that_are_not_right_can_not_be_deployed() -> Result<()> {
    let (cluster, browser) = signed_in("bad-files", Cluster::with()).await?;
    let registry = Registry::start().await?;
    let dead = StdListener::bind("127.0.0.1:0")?.local_addr()?;
    browser.goto(&cluster.dashboard("/deploy")).await?;
    let before = state(&cluster).await?;
    for bad in bad_files().into_iter().filter(|bad| bad.text.len() <= COMPOSE_MAX) {
        finds(&cluster, &browser, &bad.text).await.context(bad.what)?;
    }
    for image in [format!("{}/none:1", registry.address), format!("{dead}/none:1"), "UPPER/case".to_owned()] {
        finds(&cluster, &browser, &echo(&image)).await.context(image)?;
    }
    browser.picture("image-not-found").await?;
    write_compose(&browser, &format!("# {}\n", "x".repeat(COMPOSE_MAX))).await?;
    browser.sees(".check", "larger than 256 KiB").await?;
    ensure!(state(&cluster).await? == before, "a check changed something");
    browser.close().await
}

#[tokio::test]
async fn an_engine_that_is_away_is_told() -> Result<()> {
    let mut socket = EngineSocket::open()?;
    let (cluster, browser) = signed_in("no-engine", Cluster::with().env("FLOTILLA_DOCKER_HOST", &socket.url())).await?;
    let file = echo(&image::echo().await?);
    cluster.deploy(&file).await?;
    browser.goto(&cluster.dashboard("/deploy")).await?;
    let other = format!("name: tests\n{file}    environment: {{A: b}}\n");
    write_compose(&browser, &other).await?;
    browser.sees(".check", "in order").await?;

    socket.cut()?;
    cluster.becomes("echo", ServiceState::Unknown).await?;
    let before = cluster.client.cluster().await?.applied_index;
    press(&browser, "Deploy").await?;
    browser.sees("body", "Docker Engine is not running").await?;
    browser.picture("engine-away-deploy").await?;
    ensure!(cluster.client.cluster().await?.applied_index == before, "a refused deployment changed something");
    browser.goto(&cluster.dashboard("/")).await?;
    browser.sees("[data-service=echo]", "Unknown").await?;
    browser.picture("engine-away-services").await?;
    let machine = cluster.client.machines().await?.remove(0).name;
    browser.goto(&cluster.dashboard(&format!("/machines/{machine}"))).await?;
    browser.sees("main", "Docker Engine is not running").await?;
    browser.picture("engine-away-machine").await?;

    socket.mend()?;
    browser.goto(&cluster.dashboard("/")).await?;
    browser.sees("[data-service=echo]", "Running").await?;
    browser.close().await
}

#[tokio::test]
async fn a_full_disk_is_told() -> Result<()> {
    let disk = SmallDisk::mount(24).await?;
    let (cluster, browser) = signed_in("full-disk", Cluster::with().data(disk.path())).await?;
    let file = echo(&image::echo().await?);
    cluster.deploy(&file).await?;
    browser.goto(&cluster.dashboard("/deploy")).await?;
    write_compose(&browser, &format!("name: tests\n{file}    environment: {{A: \"{}\"}}\n", "x".repeat(20_000)))
        .await?;
    browser.sees(".check", "in order").await?;
    disk.fill()?;
    wait::holds("what was set aside to be used up", PAGE_LIMIT, async || {
        let n = cluster.client.cluster().await?.applied_index;
        let taken = cluster.submit(&format!("{file}    environment: {{N: \"{n}-{}\"}}\n", "x".repeat(20_000))).await;
        Ok(taken.is_err())
    })
    .await?;
    let before = state(&cluster).await?;
    press(&browser, "Deploy").await?;
    browser.sees("body", "disk").await?;
    browser.picture("disk-full").await?;
    ensure!(state(&cluster).await? == before, "a refused deployment changed something");
    disk.relieve()?;
    press(&browser, "Deploy").await?;
    browser.sees("main", "Everything runs").await?;
    browser.close().await
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told() -> Result<()> {
    let (cluster, browser) = signed_in("deaf", Cluster::with()).await?;
    let image = image::echo().await?;
    let file = format!("services:\n  echo:\n    image: {image}\n    ports: [\"9\"]\n");
    let path = cluster.scratch("deaf.yaml");
    std::fs::write(&path, &file)?;
    let path = path.display().to_string();
    let refused = cluster.cli()?.fails(&["deploy", "-p", "tests", "-f", &path, "--wait", "--timeout", "4s"]).await?;
    ensure!(refused.code == "not-healthy" && refused.message.contains("nothing listens on port 9"), "{refused:?}");
    browser.sees("[data-service=echo]", "Nothing listens on port 9 yet").await?;
    browser.sees("[data-service=echo]", "Starting").await?;
    let listed: Vec<serde_json::Value> = cluster.cli()?.json(&["ps"]).await?;
    ensure!(listed[0]["state"] == "starting", "{listed:#?}");

    browser.picture("nothing-listens").await?;

    // With the right port it runs, as soon as the application listens.
    std::fs::write(&path, format!("{}    command: [\"--listen-after\", \"3000\"]\n", echo(&image)))?;
    cluster.cli()?.ok(&["deploy", "-p", "tests", "-f", &path, "--wait"]).await?;
    let log = cluster.cli()?.ok(&["logs", "echo"]).await?;
    ensure!(log.contains("echo listens on"), "it was healthy before it listened: {log}");
    browser.sees("[data-service=echo]", "Running").await?;
    browser.close().await
}

#[tokio::test]
async fn tokens_that_are_not_good_sign_nobody_in() -> Result<()> {
    let cluster = Cluster::start().await?;
    let issue = async |name: &str, ttl_seconds: u64| {
        let wanted = CreateToken { name: name.to_owned(), grant: Grant::admin(), ttl_seconds, storage_only: false };
        cluster.client.create_token(&wanted).await
    };
    let revoked = issue("revoked", 600).await?;
    cluster.client.revoke_token(&revoked.id).await?;
    let short = issue("short", 1).await?;
    wait::until("the short token to end", PAGE_LIMIT, async || {
        let ended = cluster.cli()?.with_token(&short.token)?.run(&["ps", "--json"]).await?;
        Ok((ended.code != Some(0)).then_some(()))
    })
    .await?;
    let browser = Browser::open("bad-tokens").await?;
    for (token, sentence) in [(&short.token, "expired"), (&revoked.token, "revoked")] {
        browser.goto(&cluster.dashboard("/")).await?;
        let field = browser.find("#credential").await?;
        field.clear().await?;
        field.send_keys(token).await?;
        press(&browser, "Sign in").await?;
        browser.sees("#credential-error", sentence).await?;
        ensure!(browser.count("#page-title").await? == 0, "a token that is {sentence} signs in");
    }
    sign_in(&cluster, &browser).await?;
    browser.close().await?;

    // Somebody who may only open services finds nothing to change, not by an address either.
    let guest = Browser::open("narrow").await?;
    let grant = Grant { scope: Scope::User, services: ["echo".parse()?].into() };
    let asked = CreateInvitation { name: "guest".to_owned(), grant, ttl_seconds: 600 };
    guest.goto(&cluster.client.create_invitation(&asked).await?.url).await?;
    guest.sees("#page-title", "Services").await?;
    for path in ["/deploy", "/access", "/secrets"] {
        guest.goto(&cluster.dashboard(path)).await?;
        guest.sees("main", "not among your rights").await.with_context(|| path.to_owned())?;
    }
    guest.picture("too-narrow").await?;
    guest.close().await
}
