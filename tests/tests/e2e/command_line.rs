//! A service's life, from a terminal.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla_tests::{
    browser::PAGE_LIMIT,
    cluster::{Cluster, NAME},
    image, wait,
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::echo;

/// Three failures, with a growing pause in between.
const ROLL_BACK_LIMIT: Duration = Duration::from_secs(40);
const LINE_LIMIT: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_revision_that_never_runs_gives_way_to_the_last_one_that_did() -> Result<()> {
    let cluster = Cluster::start().await?;
    let cli = cluster.cli()?;
    let image = image::echo().await?;
    let checked = "    healthcheck: {test: [CMD, /echo, --check, now], interval: 1s}\n";
    cluster.deploy(&format!("{}{checked}", echo(&image))).await?;
    wait::holds("the first revision to count as good", PAGE_LIMIT, async || {
        let events: Vec<Value> = cli.json(&["events"]).await?;
        Ok(events.iter().any(|event| event["kind"] == "confirmed"))
    })
    .await?;
    cluster.submit(&format!("{}{checked}    command: [--exit, \"7\"]\n", echo(&image))).await?;
    wait::holds("the roll back", ROLL_BACK_LIMIT, async || {
        Ok(cluster.service("echo").await?.is_some_and(|service| service.revision.0 == 3))
    })
    .await?;
    cluster.runs("echo").await?;
    let detail: Value = cli.json(&["inspect", "echo"]).await?;
    let revisions = detail["revisions"].as_array().context("revisions")?;
    let newest = revisions.iter().find(|revision| revision["revision"] == 3).context("the third revision")?;
    let note = newest["note"].as_str().unwrap_or_default();
    ensure!(note.contains("exit code 7"), "the reason is kept: {newest:#}");
    Ok(())
}

#[tokio::test]
async fn a_service_lives_from_deploy_to_rm() -> Result<()> {
    let cluster = Cluster::start().await?;
    let cli = cluster.cli()?;
    let image = image::echo().await?;
    let file = cluster.scratch("compose.yaml");
    let path = file.display().to_string();
    let compose = |greeting: &str| {
        format!(
            "name: shop\nservices:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n    environment: {{GREETING: {greeting}}}\n    \
             mem_limit: 64m\n    cpus: 0.5\n    volumes: [\"data:/data\"]\n    healthcheck: {{test: [CMD, /echo, --check, now], interval: 1s}}\nvolumes: {{data: {{}}}}\n"
        )
    };
    std::fs::write(&file, compose("one"))?;
    cli.ok(&["deploy", "-f", &path, "--dry-run"]).await?;
    ensure!(cluster.service("echo").await?.is_none(), "a dry run changes nothing");
    cli.ok(&["deploy", "-f", &path, "--wait"]).await?;

    let rows: Vec<Value> = cli.json(&["ps"]).await?;
    ensure!(rows.len() == 1, "{rows:#?}");
    let row = &rows[0];
    ensure!(row["service"] == "echo" && row["state"] == "running" && row["revision"] == 1, "{row}");
    ensure!(row["machine"].is_string() && row["url"] == cluster.url("echo", "/").as_str(), "{row}");
    let table = cli.ok(&["ps"]).await?;
    ensure!(table.contains("echo") && table.contains("running"), "{table}");

    // What the engine was told.
    let container = cluster.containers().await?.pop().context("one container")?;
    let mut docker = tokio::process::Command::new("docker");
    let inspected = flotilla_tests::process::run(docker.args(["inspect", &container]), PAGE_LIMIT).await?;
    let inspected: Value = serde_json::from_str(&inspected)?;
    let host = &inspected[0]["HostConfig"];
    ensure!(host["RestartPolicy"]["Name"] == "no", "only the node restarts: {}", host["RestartPolicy"]);
    ensure!(
        host["Memory"] == 64 << 20 && host["NanoCpus"] == 500_000_000,
        "limits: {} {}",
        host["Memory"],
        host["NanoCpus"]
    );
    ensure!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty), "nothing is published on the host");

    // The same file again changes nothing; another makes a revision, and a roll back one more.
    cli.ok(&["deploy", "-f", &path, "--wait"]).await?;
    ensure!(cluster.runs("echo").await?.revision.0 == 1);
    ensure!(cluster.containers().await? == [container], "an unchanged service keeps its container");
    cli.ok(&["exec", "echo", "--", "/echo", "--check", "now"]).await?;
    std::fs::write(&file, compose("two"))?;
    cli.ok(&["deploy", "-f", &path, "--wait"]).await?;
    ensure!(cluster.runs("echo").await?.revision.0 == 2);
    ensure!(greeting(&cluster).await? == "two");
    cli.ok(&["rollback", "echo"]).await?;
    wait::holds("the greeting of the first revision", PAGE_LIMIT, async || Ok(greeting(&cluster).await? == "one"))
        .await?;
    let shown: Value = cli.json(&["inspect", "echo"]).await?;
    ensure!(shown["revisions"].as_array().is_some_and(|revisions| revisions.len() >= 2), "{shown:#}");

    cli.ok(&["scale", "echo=0"]).await?;
    cluster.becomes("echo", flotilla_api::rest::ServiceState::Stopped).await?;
    wait::holds("the container to be gone", PAGE_LIMIT, async || Ok(cluster.containers().await?.is_empty())).await?;
    cli.ok(&["scale", "echo=1"]).await?;
    cluster.runs("echo").await?;

    cli.ok(&["rm", "echo", "--yes"]).await?;
    wait::holds("the container to be gone", PAGE_LIMIT, async || Ok(cluster.containers().await?.is_empty())).await?;
    ensure!(cluster.service("echo").await?.is_none());
    ensure!(volumes(&cluster)? == 1, "a volume is kept unless it is asked for");
    cli.ok(&["deploy", "-f", &path, "--wait"]).await?;
    cli.ok(&["rm", "echo", "--yes", "--volumes"]).await?;
    wait::holds("the volume to be gone", PAGE_LIMIT, async || Ok(volumes(&cluster)? == 0)).await?;
    wait::holds("the network to be gone", PAGE_LIMIT, async || Ok(cluster.networks().await?.is_empty())).await
}

/// What the running container has in its environment, as the engine says.
async fn greeting(cluster: &Cluster) -> Result<String> {
    let container = cluster.containers().await?.pop().context("one container")?;
    let mut docker = tokio::process::Command::new("docker");
    docker.args(["inspect", "-f", "{{range .Config.Env}}{{println .}}{{end}}", &container]);
    let environment = flotilla_tests::process::run(&mut docker, PAGE_LIMIT).await?;
    let greeting = environment.lines().find_map(|line| line.strip_prefix("GREETING=")).context("no GREETING")?;
    Ok(greeting.to_owned())
}

/// Directories of volumes in the data directory.
fn volumes(cluster: &Cluster) -> Result<usize> {
    match std::fs::read_dir(cluster.data().join("volumes")) {
        Ok(entries) => Ok(entries.count()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn logs_follow_a_service_through_its_restarts() -> Result<()> {
    let cluster = Cluster::start().await?;
    let image = image::echo().await?;
    cluster.deploy(&echo(&image)).await?;
    let mut follow = cluster.cli()?.command();
    let mut follow = follow.args(["logs", "-f", "echo"]).stdout(std::process::Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(follow.stdout.take().context("a piped output")?).lines();
    // In any order: the new instance may start before the old one stops.
    let mut until = async |wanted: &[&str]| -> Result<()> {
        let mut wanted = wanted.to_vec();
        while !wanted.is_empty() {
            let line = tokio::time::timeout(LINE_LIMIT, lines.next_line())
                .await
                .with_context(|| format!("no {wanted:?}"))??;
            let line = line.context("the log ended")?;
            wanted.retain(|wanted| !line.contains(wanted));
        }
        Ok(())
    };
    until(&["echo listens on"]).await?;
    cluster.cli()?.ok(&["restart", "echo"]).await?;
    until(&["echo stops", "echo listens on"]).await?;
    follow.kill().await?;

    let lines: Vec<Value> = cluster
        .cli()?
        .ok(&["logs", "echo", "--tail", "1", "--json"])
        .await?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(lines.len() == 1 && lines[0]["text"].as_str().is_some_and(|text| text.starts_with("echo ")), "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn exec_passes_input_output_and_the_exit_code_on() -> Result<()> {
    let cluster = Cluster::start().await?;
    let image = image::nginx().await?;
    cluster.deploy(&super::nginx(&image)).await?;
    let cli = cluster.cli()?;
    ensure!(cli.ok(&["exec", "site", "--", "sh", "-c", "echo $((6 * 7))"]).await? == "42\n");
    let counted = cli.run_with(&["exec", "-i", "site", "--", "wc", "-c"], &"x".repeat(100_000)).await?;
    ensure!(counted.out.trim() == "100000", "{counted:?}");
    let failed = cli.run(&["exec", "site", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    ensure!(failed.code == Some(7) && failed.out == "out\n" && failed.err == "err\n", "{failed:?}");
    let refused = cli.fails(&["exec", "nobody", "--", "true"]).await?;
    ensure!(refused.code == "service-not-found", "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_failing_service_is_restarted_with_a_growing_pause_and_says_why() -> Result<()> {
    let cluster = Cluster::start().await?;
    let image = image::echo().await?;
    cluster.submit(&format!("services:\n  crash:\n    image: {image}\n    command: [--exit, \"3\"]\n")).await?;
    let view = wait::until("two restarts", PAGE_LIMIT, async || {
        let view = cluster.service("crash").await?.context("the service is there")?;
        Ok(view.instances.iter().any(|instance| instance.restarts >= 2).then_some(view))
    })
    .await?;
    let told = format!("{:?} {:?}", view.message, view.instances);
    ensure!(told.contains('3'), "the exit code is told: {told}");

    let file = cluster.scratch("once.yaml");
    std::fs::write(
        &file,
        format!("services:\n  once:\n    image: {image}\n    command: [--exit, \"4\"]\n    restart: \"no\"\n"),
    )?;
    let ended = cluster.cli()?.run(&["deploy", "-f", &file.display().to_string(), "--wait"]).await?;
    ensure!(ended.code == Some(6), "deployed, and not healthy: {ended:?}");
    ensure!(ended.err.contains("code 4") && ended.err.contains("echo ends with code 4"), "it says why: {ended:?}");
    Ok(())
}

#[tokio::test]
async fn health_checks_decide_whether_a_service_runs() -> Result<()> {
    let cluster = Cluster::start().await?;
    let image = image::echo().await?;
    let compose = |arguments: &str| {
        format!(
            "services:\n  echo:\n    image: {image}\n    command: [{arguments}]\n    ports: [\"8080\"]\n    \
             healthcheck: {{test: [CMD, /echo, --check, now], interval: 500ms, retries: 2}}\n"
        )
    };
    cluster.submit(&compose("--unhealthy, now")).await?;
    cluster.becomes("echo", flotilla_api::rest::ServiceState::Unhealthy).await?;
    cluster.deploy(&compose("")).await?;
    ensure!(cluster.runs("echo").await?.revision.0 == 2);
    Ok(())
}

#[tokio::test]
async fn the_probes_and_metrics_answer_without_a_token() -> Result<()> {
    let cluster = Cluster::start().await?;
    for path in ["healthz", "readyz"] {
        ensure!(reqwest::get(format!("{}/{path}", cluster.api())).await?.status().is_success(), "{path}");
    }
    let metrics = reqwest::get(format!("{}/metrics", cluster.api())).await?.text().await?;
    ensure!(metrics.contains("# TYPE") && metrics.contains("flotilla"), "{metrics}");
    let dashboard = cluster.dashboard("/");
    ensure!(dashboard.contains(&format!("app.{NAME}.localhost")));
    Ok(())
}
