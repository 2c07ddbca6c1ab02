//! A cluster of one real node, with its data in a directory of its own, and nothing of it left when the test is over.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use flotilla::client::Client;
use flotilla_api::{
    ServiceName,
    rest::{CreateInvitation, DeployRequest, DeployResponse, ServiceState, ServiceView},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, process::Command};

use crate::{
    built,
    cli::Cli,
    process::{Process, Signal},
    tap::{BEHIND, Tap},
    wait,
};

/// From the start of the process to a node that serves.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// From the acceptance of a deployment to a service that runs.
pub const RUN_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

pub const NAME: &str = "home";

#[derive(Debug)]
pub struct Cluster {
    node: Option<Process>,
    directory: TempDir,
    data: PathBuf,
    id: String,
    port: u16,
    listen: Ipv4Addr,
    token: String,
    environment: Vec<(String, String)>,
    pub client: Client,
    pub tap: Option<Tap>,
}

/// What differs from a plain node.
#[derive(Debug, Default)]
pub struct Options {
    tapped: bool,
    environment: Vec<(String, String)>,
    data: Option<PathBuf>,
}

impl Options {
    /// Keeps the node's data below a directory that the test has made.
    #[must_use]
    pub fn data(mut self, below: &Path) -> Self {
        self.data = Some(below.join("data"));
        self
    }

    /// Puts a [`Tap`] before the listener.
    #[must_use]
    pub fn tapped(mut self) -> Self {
        self.tapped = true;
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// # Errors
    /// Where the node does not start; its log is in the error.
    pub async fn start(self) -> Result<Cluster> {
        let listen = if self.tapped { BEHIND } else { Ipv4Addr::LOCALHOST };
        let port = free_port(listen).await?;
        let directory = tempfile::Builder::new().prefix("flotilla-").tempdir()?;
        let data = self.data.unwrap_or_else(|| directory.path().join("data"));
        let terminal = Cli::new(None, None)?;
        let mut init = terminal.command();
        init.args(["init", NAME, "--json", "--data-dir"]).arg(&data);
        init.args(["--listen", &SocketAddr::from((listen, port)).to_string()]);
        let made = crate::process::run(&mut init, READY_LIMIT).await.context("flotilla init")?;
        let made: serde_json::Value = serde_json::from_str(&made).with_context(|| format!("init printed {made}"))?;
        let token = made["admin_token"].as_str().with_context(|| format!("no token in {made}"))?.to_owned();
        let client = Client::new(&format!("http://{listen}:{port}"), Some(token.clone()))?;
        let tap = if self.tapped { Some(Tap::start(port).await?) } else { None };
        sweep_the_dead();
        let mut cluster = Cluster {
            node: None,
            directory,
            data,
            id: String::new(),
            port,
            listen,
            token,
            environment: self.environment,
            client,
            tap,
        };
        cluster.up().await?;
        // What a new node says of itself comes after it is ready, and would look like the work of a test.
        wait::holds("the node to lead and to say what it has", READY_LIMIT, async || {
            let (trail, machines) = (cluster.client.audit().await?, cluster.client.machines().await?);
            let leads = trail.iter().any(|event| event.kind == "leader");
            Ok(leads && machines.iter().all(|machine| machine.cpu_millis > 0))
        })
        .await?;
        cluster.id = cluster.client.cluster().await?.id;
        let _ = std::fs::write(running().join(&cluster.id), std::process::id().to_string());
        Ok(cluster)
    }
}

impl Cluster {
    /// # Errors
    /// See [`Options::start`].
    pub async fn start() -> Result<Self> {
        Options::default().start().await
    }

    pub fn with() -> Options {
        Options::default()
    }

    /// Starts the node (again) and waits until it says that it serves.
    pub async fn up(&mut self) -> Result<()> {
        let mut command = self.up_command();
        let mut node = Process::spawn(&mut command, &self.log())?;
        let ready = wait::until("the node to be ready", READY_LIMIT, async || {
            if let Some(status) = node.ended()? {
                return Ok(Some(Err(anyhow::anyhow!("the node ended with {status}"))));
            }
            Ok(self.client.ready().await?.then_some(Ok(())))
        })
        .await;
        ready.and_then(|ready| ready).with_context(|| format!("the node said:\n{}", node.output()))?;
        self.node = Some(node);
        Ok(())
    }

    /// `flotilla up` for this cluster's directory and address.
    pub fn up_command(&self) -> Command {
        let mut command = Command::new(built("flotilla"));
        command.arg("up").arg("--data-dir").arg(&self.data).args(["--listen", &self.address().to_string()]);
        // Nodes that run side by side can't share the usual port.
        command.env("FLOTILLA_RELAY_PORT", "0").env("FLOTILLA_LOG_LEVEL", "info,flotilla=debug");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// SIGKILL: whatever was acknowledged must be on disk.
    pub async fn kill(&mut self) -> Result<()> {
        self.node.take().context("the node does not run")?.kill().await
    }

    /// SIGTERM, and the node ends by itself with success.
    pub async fn stop(&mut self) -> Result<()> {
        let mut node = self.node.take().context("the node does not run")?;
        node.signal(Signal::Terminate).await?;
        let status = node.wait(STOP_LIMIT).await?;
        ensure!(status.success(), "the node ended with {status}:\n{}", node.output());
        Ok(())
    }

    pub fn node(&self) -> Result<&Process> {
        self.node.as_ref().context("the node does not run")
    }

    pub fn address(&self) -> SocketAddr {
        (self.listen, self.port).into()
    }

    pub fn api(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn log(&self) -> PathBuf {
        self.directory.path().join("node.log")
    }

    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A terminal of the administrator's.
    pub fn cli(&self) -> Result<Cli> {
        Cli::new(Some(&self.api()), Some(&self.token))
    }

    /// Where a browser finds the dashboard.
    pub fn dashboard(&self, path: &str) -> String {
        format!("http://app.{NAME}.localhost:{}{path}", self.port)
    }

    /// Where a browser finds a service.
    pub fn url(&self, service: &str, path: &str) -> String {
        format!("http://{service}.{NAME}.localhost:{}{path}", self.port)
    }

    pub async fn invitation(&self) -> Result<String> {
        let grant = flotilla_api::Grant::admin();
        let asked = CreateInvitation { name: "browser".to_owned(), grant, ttl_seconds: 600 };
        Ok(self.client.create_invitation(&asked).await?.url)
    }

    /// Deploys and waits until all that was deployed runs.
    pub async fn deploy(&self, compose: &str) -> Result<DeployResponse> {
        let deployed = self.submit(compose).await?;
        for service in &deployed.services {
            self.runs(service.service.as_str()).await?;
        }
        Ok(deployed)
    }

    /// Deploys and does not wait.
    pub async fn submit(&self, compose: &str) -> Result<DeployResponse> {
        let request = DeployRequest {
            compose: compose.to_owned(),
            stack: Some("tests".to_owned()),
            variables: [].into(),
            dry_run: false,
            values: Vec::new(),
        };
        Ok(self.client.deploy(&request).await?)
    }

    pub async fn runs(&self, service: &str) -> Result<ServiceView> {
        self.becomes(service, ServiceState::Running).await
    }

    /// Waits until the node reports a state of a service.
    pub async fn becomes(&self, service: &str, state: ServiceState) -> Result<ServiceView> {
        let mut last = None;
        let seen = wait::until(format!("{service} to be {}", state.as_str()), RUN_LIMIT, async || {
            last = self.service(service).await?;
            Ok(last.clone().filter(|view| view.state == state))
        })
        .await;
        seen.with_context(|| format!("it is {last:#?}"))
    }

    pub async fn service(&self, service: &str) -> Result<Option<ServiceView>> {
        let name: ServiceName = service.parse()?;
        Ok(self.client.services().await?.into_iter().find(|view| view.service == name))
    }

    /// Ids of the engine's containers that belong to this cluster, running or not.
    pub async fn containers(&self) -> Result<Vec<String>> {
        listed(&["ps", "-aq", "--no-trunc"], &self.id).await
    }

    pub async fn networks(&self) -> Result<Vec<String>> {
        listed(&["network", "ls", "-q", "--no-trunc"], &self.id).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            keep_log(&self.log());
        }
        // The process first, as it would start again what is removed.
        self.node = None;
        if self.id.is_empty() {
            return;
        }
        sweep(&self.id);
    }
}

/// A failed test leaves the node's log beside its pictures.
fn keep_log(log: &Path) {
    let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let _ = std::fs::copy(log, crate::artefacts().join(format!("{name}.log")));
}

/// Which clusters of tests are running: a file for each, with the process id of its test.
fn running() -> PathBuf {
    let directory = crate::repository().join("target/e2e/running");
    let _ = std::fs::create_dir_all(&directory);
    directory
}

/// A test that was killed could not clean up; the next one does.
fn sweep_the_dead() {
    let Ok(entries) = std::fs::read_dir(running()) else { return };
    for entry in entries.flatten() {
        let alive = std::fs::read_to_string(entry.path()).is_ok_and(|pid| Path::new("/proc").join(pid.trim()).exists());
        if !alive && let Some(id) = entry.file_name().to_str() {
            sweep(id);
        }
    }
}

/// Removes everything in the engine that carries a cluster's label, as far as that goes.
fn sweep(id: &str) {
    let docker = |arguments: &[&str]| {
        let output = std::process::Command::new("docker").args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    let label = format!("label=flotilla.cluster={id}");
    for container in docker(&["ps", "-aq", "--filter", &label]).lines() {
        docker(&["rm", "-f", "-v", container]);
    }
    for network in docker(&["network", "ls", "-q", "--filter", &label]).lines() {
        docker(&["network", "rm", network]);
    }
    let _ = std::fs::remove_file(running().join(id));
}

async fn listed(arguments: &[&str], id: &str) -> Result<Vec<String>> {
    let mut command = Command::new("docker");
    command.args(arguments).args(["--filter", &format!("label=flotilla.cluster={id}")]);
    let output = crate::process::run(&mut command, Duration::from_secs(20)).await?;
    Ok(output.lines().map(ToOwned::to_owned).collect())
}

/// A port that is free on this address and on 127.0.0.1, which a tap may need.
async fn free_port(address: Ipv4Addr) -> Result<u16> {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        if address == Ipv4Addr::LOCALHOST || TcpListener::bind((address, port)).await.is_ok() {
            return Ok(port);
        }
    }
}
