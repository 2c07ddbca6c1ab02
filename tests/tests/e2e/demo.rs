//! `flotilla demo`, the first thing that a person runs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use flotilla::client::Client;
use flotilla_api::rest::{MachineState, ServiceState};
use flotilla_tests::{
    artefacts,
    browser::Browser,
    cli::Cli,
    process::{Process, Signal, run},
    wait,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpListener, process::Command};

const READY_LIMIT: Duration = Duration::from_secs(120);
const ORDER_LIMIT: Duration = Duration::from_secs(120);
const CTRL_C_LIMIT: Duration = Duration::from_secs(60);

/// What is promised after the loss of a machine.
const PROMISE: Duration = Duration::from_secs(30);

struct Demo {
    process: Process,
    told: Value,
    client: Client,
    cluster: String,
    port: u16,
    /// The engine's sample images before it began: a demo that is killed may have left one.
    samples: String,
    directory: TempDir,
}

impl Demo {
    async fn start(name: &str, machines: Option<u8>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let log = artefacts().join(format!("{name}.log"));
        let _ = std::fs::remove_file(&log);
        let samples = sample_images().await?;
        let (process, told) = Self::run(directory.path(), port, machines, &log).await?;
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned).with_context(|| format!("a text: {told:#}"));
        let client = Client::new(&text(&told["api_url"])?, Some(text(&told["admin_token"])?))?;
        let cluster = client.cluster().await?.id;
        Ok(Self { process, told, client, cluster, port, samples, directory })
    }

    async fn run(directory: &Path, port: u16, machines: Option<u8>, log: &Path) -> Result<(Process, Value)> {
        let ready = directory.join("ready.json");
        let mut command = Cli::new(None, None)?.command();
        command.arg("demo").arg("--state").arg(directory.join("state")).args(["--port", &port.to_string()]);
        command.arg("--ready-file").arg(&ready).env("FLOTILLA_RELAY_PORT", "0");
        if let Some(machines) = machines {
            command.args(["--machines", &machines.to_string()]);
        }
        let mut process = Process::spawn(&mut command, log)?;
        let told: Value = wait::until("the demo", READY_LIMIT, async || {
            if let Some(status) = process.ended()? {
                return Ok(Some(Err(anyhow::anyhow!("the demo ended with {status}:\n{}", process.output()))));
            }
            // Once it is there it is whole.
            Ok(std::fs::read(&ready).ok().map(|text| Ok(serde_json::from_slice(&text)?)))
        })
        .await??;
        Ok((process, told))
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn text(&self, pointer: &str) -> Result<String> {
        let value = self.told.pointer(pointer).and_then(Value::as_str);
        value.map(ToOwned::to_owned).with_context(|| format!("{pointer} is no text in {:#}", self.told))
    }

    /// What `flotilla demo VERB` in another terminal says.
    async fn order(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Cli::new(None, None)?.command();
        command.arg("demo").args(arguments).arg("--json").arg("--state").arg(self.state());
        let said = run(&mut command, ORDER_LIMIT).await.with_context(|| self.process.output())?;
        serde_json::from_str(&said).with_context(|| said)
    }

    /// Machines that run an instance of the service.
    async fn hosts(&self, service: &str) -> Result<Vec<String>> {
        let services = self.client.services().await?;
        let view = services.iter().find(|view| view.service.as_str() == service).context("the service is gone")?;
        let running = view.instances.iter().filter(|instance| instance.state == ServiceState::Running);
        Ok(running.map(|instance| instance.machine.to_string()).collect())
    }

    /// The engine's containers of the service that run.
    async fn containers(&self, service: &str) -> Result<usize> {
        let mut docker = Command::new("docker");
        docker.args(["ps", "-q", "--filter", &format!("label=flotilla.cluster={}", self.cluster)]);
        docker.args(["--filter", &format!("label=flotilla.service={service}")]);
        Ok(run(&mut docker, Duration::from_secs(20)).await?.lines().count())
    }

    /// Ctrl-C leaves nothing.
    async fn end(mut self) -> Result<()> {
        self.process.signal(Signal::Interrupt).await?;
        let status = self.process.wait(CTRL_C_LIMIT).await.context("Ctrl-C")?;
        ensure!(status.success(), "the demo ended with {status}:\n{}", self.process.output());
        for kind in [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]] {
            let mut docker = Command::new("docker");
            docker.args(kind).args(["--filter", &format!("label=flotilla.cluster={}", self.cluster)]);
            let left = run(&mut docker, Duration::from_secs(20)).await?;
            ensure!(left.is_empty(), "{kind:?} are left: {left}");
        }
        let samples = sample_images().await?;
        ensure!(samples == self.samples, "sample images are left: {samples}");
        ensure!(!self.state().exists(), "the state is left");
        ensure!(!self.directory.path().join("ready.json").exists(), "the ready file is left");
        TcpListener::bind(("127.0.0.1", self.port)).await.context("the port is free again")?;
        let left = processes_of(&self.state())?;
        ensure!(left.is_empty(), "processes are left: {left:?}");
        Ok(())
    }
}

async fn sample_images() -> Result<String> {
    run(Command::new("docker").args(["images", "-q", "flotilla-sample"]), Duration::from_secs(20)).await
}

/// Those that were started for machines below this directory, as their environment says.
fn processes_of(state: &Path) -> Result<Vec<String>> {
    let mark = format!("FLOTILLA_DEMO_MACHINE={}", state.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        if String::from_utf8_lossy(&read("environ")).split('\0').any(|variable| variable.starts_with(&mark)) {
            found.push(String::from_utf8_lossy(&read("cmdline")).replace('\0', " "));
        }
    }
    Ok(found)
}

#[tokio::test]
async fn the_demo_says_where_it_is_works_and_leaves_nothing() -> Result<()> {
    let demo = Demo::start("demo", Some(1)).await?;
    ensure!(demo.told["machines"][0]["pid"].is_u64(), "{:#}", demo.told);
    ensure!(demo.text("/machines/0/name")? == "atlas" && demo.text("/services/0/name")? == "notes", "{:#}", demo.told);
    // The address for people is not that of one machine.
    let (front, machine) = (demo.text("/api_url")?, demo.text("/machines/0/api_url")?);
    ensure!(front.ends_with(&format!(":{}", demo.port)) && machine.starts_with("http://") && front != machine);

    // What it prints for a person signs a browser in, and the links of the samples open them.
    let printed = demo.process.output();
    let link = printed.split_whitespace().find(|word| word.contains("#invite=")).context("the demo prints no link")?;
    let browser = Browser::open("demo").await?;
    browser.goto(link).await?;
    browser.sees("#page-title", "Services").await?;
    for (index, name) in ["notes", "hello"].into_iter().enumerate() {
        browser.goto(&demo.text(&format!("/services/{index}/url"))?).await?;
        browser.enter_app().await?;
        browser.find("h1").await?;
        browser.leave_frames().await?;
        browser.picture(&format!("sample-{name}")).await?;
    }
    browser.close().await?;

    let status = demo.order(&["status"]).await?;
    ensure!(status["machines"][0]["power"] == "on", "{status:#}");
    let unknown =
        demo.order(&["kill", "nessie"]).await.map_or_else(|error| format!("{error:#}"), |said| said.to_string());
    ensure!(unknown.contains("no machine `nessie`"), "{unknown}");
    demo.end().await
}

#[tokio::test]
async fn a_machine_that_loses_its_power_is_replaced_within_the_promise() -> Result<()> {
    let demo = Demo::start("demo-of-three", None).await?;
    ensure!(demo.told["machines"].as_array().is_some_and(|machines| machines.len() == 3), "{:#}", demo.told);
    let [victim] = &demo.hosts("notes").await?[..] else { anyhow::bail!("`notes` runs on one machine") };
    let told = demo.order(&["kill", victim]).await?;
    let back = wait::until("`notes` on another machine", PROMISE, async || {
        let hosts = demo.hosts("notes").await?;
        Ok((hosts.len() == 1 && hosts[0] != *victim).then_some(hosts))
    });
    back.await.with_context(|| format!("{told:#}"))?;
    ensure!(demo.containers("notes").await? == 1, "another instance runs");
    demo.order(&["start", victim]).await?;
    wait::holds("the machine is back", PROMISE, async || {
        let machines = demo.client.machines().await?;
        Ok(machines.len() == 3 && machines.iter().all(|machine| machine.condition.state == MachineState::Ready))
    })
    .await?;
    demo.end().await
}
