//! `flotilla demo`, the first thing that a person runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla::client::Client;
use flotilla_tests::{
    artefacts,
    browser::Browser,
    cli::Cli,
    process::{Process, Signal, run},
    wait,
};
use serde_json::Value;
use tokio::{net::TcpListener, process::Command};

const READY_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_demo_says_where_it_is_works_and_leaves_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (state, ready) = (directory.path().join("state"), directory.path().join("ready.json"));
    let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let mut command = Cli::new(None, None)?.command();
    command.arg("demo").arg("--state").arg(&state).args(["--port", &port.to_string()]).arg("--ready-file").arg(&ready);
    command.env("FLOTILLA_RELAY_PORT", "0");
    let log = artefacts().join("demo.log");
    let _ = std::fs::remove_file(&log);
    let mut demo = Process::spawn(&mut command, &log)?;
    let told: Value = wait::until("the demo", READY_LIMIT, async || {
        if let Some(status) = demo.ended()? {
            return Ok(Some(Err(anyhow::anyhow!("the demo ended with {status}:\n{}", demo.output()))));
        }
        // Once it is there it is whole.
        Ok(std::fs::read(&ready).ok().map(|text| Ok(serde_json::from_slice(&text)?)))
    })
    .await??;

    let text = |value: &Value| value.as_str().map(ToOwned::to_owned).with_context(|| format!("a text: {told:#}"));
    let api = text(&told["api_url"])?;
    let client = Client::new(&api, Some(text(&told["admin_token"])?))?;
    let cluster = client.cluster().await?.id;
    ensure!(told["machines"][0]["pid"].is_u64() && told["machines"][0]["name"].is_string(), "{told:#}");
    ensure!(text(&told["machines"][0]["api_url"])?.starts_with("http://"), "{told:#}");
    let services = told["services"].as_array().context("services")?;
    ensure!(!services.is_empty(), "{told:#}");

    // What it prints for a person signs a browser in, and the link of the sample opens it.
    let printed = demo.output();
    let link = printed.split_whitespace().find(|word| word.contains("#invite=")).context("the demo prints no link")?;
    let browser = Browser::open("demo").await?;
    browser.goto(link).await?;
    browser.sees("#page-title", "Services").await?;
    browser.goto(&text(&services[0]["url"])?).await?;
    browser.enter_app().await?;
    browser.find("h1").await?;
    browser.leave_frames().await?;
    browser.picture("sample").await?;
    browser.close().await?;

    demo.signal(Signal::Interrupt).await?;
    let status = demo.wait(Duration::from_secs(30)).await.context("Ctrl-C")?;
    ensure!(status.success(), "the demo ended with {status}:\n{}", demo.output());
    for kind in [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]] {
        let mut docker = Command::new("docker");
        docker.args(kind).args(["--filter", &format!("label=flotilla.cluster={cluster}")]);
        let left = run(&mut docker, Duration::from_secs(20)).await?;
        ensure!(left.is_empty(), "{kind:?} are left: {left}");
    }
    ensure!(!state.exists(), "the state is left");
    ensure!(!ready.exists() || std::fs::read(&ready).is_ok(), "the ready file is readable");
    TcpListener::bind(("127.0.0.1", port)).await.context("the port is free again")?;
    Ok(())
}
