//! `flotilla demo`: a cluster of this machine with a sample service, until Ctrl-C.

mod child;
mod image;
pub mod sample;
mod state;

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use flotilla_api::{
    Grant, StackName,
    rest::{CreateInvitation, DeployRequest, ServiceView},
};
use flotilla_core::compose;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    cli::{
        self, Failure, Output, Session, local,
        wait::{self, Awaited},
    },
    client::{Archive, Client, Error},
    config::{Config, Flags, PORT},
    engine, node,
};
use child::{NodeProcess, Recipe};
use image::SampleImage;
use state::{RECORD_VERSION, Record, StateDir, write_atomically};

/// The compose file of the sample, which is also an example for people.
const COMPOSE: &str = include_str!("../../../docs/examples/notes.compose.yaml");

/// The variable in it that names the image.
const IMAGE_VARIABLE: &str = "FLOTILLA_SAMPLE_IMAGE";

const CLUSTER: &str = "demo";

/// The settings of a real node on this machine are not the demo's.
const NO_FILE: &str = "/dev/null";

/// How long the sample may take to get healthy on a slow machine.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the link works that signs a browser in. Seconds.
const INVITATION_TTL: u64 = 24 * 3600;

#[derive(Args, Debug)]
pub struct Demo {
    /// Directory for all that it keeps; used again if it is there, deleted when the demo ends
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir().join("flotilla-demo"))]
    state: PathBuf,
    /// Port on this machine; 0 takes a free one
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Write one JSON object with all addresses into this file as soon as everything is healthy
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Container engine, as in DOCKER_HOST
    #[arg(long, value_name = "URL")]
    docker_host: Option<String>,
}

/// What goes into the ready file.
#[derive(Clone, Debug, Serialize)]
struct Ready {
    /// Signs one browser in, once.
    dashboard_url: String,
    api_url: String,
    admin_token: String,
    services: Vec<ReadyService>,
    machines: Vec<ReadyMachine>,
}

#[derive(Clone, Debug, Serialize)]
struct ReadyService {
    name: String,
    url: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct ReadyMachine {
    name: String,
    api_url: String,
    pid: Option<u32>,
}

/// Runs until a signal, then takes everything down.
///
/// # Errors
/// What is in the way; then, too, nothing is left.
pub async fn run(args: Demo, output: Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut stage = Stage::prepare(args, output)?;
    let played = tokio::select! {
        played = stage.play() => played,
        () = signals.next() => Ok(()),
    };
    if stage.has_begun() {
        output.note("\nTaking everything down…");
    }
    let taken_down = tokio::select! {
        done = stage.take_down() => done,
        () = signals.next() => Err(Failure::Other("interrupted; the next demo in the same directory takes over what is left".into())),
    };
    played.and(taken_down)
}

/// The signals by which a person or a program ends the demo.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::Other(format!("could not listen for signals: {error}")));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// All that the demo has made and will take down.
struct Stage {
    output: Output,
    state: StateDir,
    listen: SocketAddr,
    ready_file: Option<PathBuf>,
    docker_host: Option<String>,
    record: Option<Record>,
    node: Option<NodeProcess>,
}

impl Stage {
    /// What can be refused before anything is made.
    fn prepare(args: Demo, output: Output) -> Result<Self, Failure> {
        let listen = free_address(args.port)?;
        if let Some(file) = &args.ready_file {
            // Whoever waits for it must not find that of an earlier demo.
            match fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::io("replace", file)(error));
                }
                _ => {}
            }
        }
        let flags = Flags {
            config: Some(NO_FILE.into()),
            data_dir: Some(args.state.join("node")),
            listen: Some(listen),
            docker_host: args.docker_host,
            ..Flags::default()
        };
        let config = Config::load(&flags).map_err(|error| Failure::Usage(error.to_string()))?;
        let state = StateDir::open(&args.state)?;
        let record = state.record()?;
        Ok(Self {
            output,
            state,
            listen,
            ready_file: args.ready_file,
            docker_host: config.docker_host,
            record,
            node: None,
        })
    }

    fn has_begun(&self) -> bool {
        self.node.is_some() || self.record.is_some()
    }

    /// Ends only with an error.
    async fn play(&mut self) -> Result<(), Failure> {
        engine::answers(self.docker_host.as_deref()).await.map_err(|error| {
            Failure::Other(format!("the demo needs a container engine: {}", error.to_string().trim_end_matches('.')))
        })?;
        let token = self.cluster().await?;
        let api_url = format!("http://{}", self.listen);
        let client = Client::new(&api_url, Some(token.clone()))?;
        let recipe = Recipe {
            data_dir: self.state.node(),
            listen: self.listen,
            log: self.state.log(),
            docker_host: self.docker_host.clone(),
        };
        let node = self.node.insert(NodeProcess::start(recipe, &client).await?);
        self.output.note(&format!("✔ node     {api_url}, pid {}", node.pid().unwrap_or_default()));

        let reference = self.image(&client).await?;
        let services = self.deploy(&client, reference).await?;
        let invitation = CreateInvitation { name: "demo".into(), grant: Grant::admin(), ttl_seconds: INVITATION_TTL };
        let machines = client.machines().await?;
        let pid = self.node.as_ref().and_then(NodeProcess::pid);
        let machine = |name: &str| ReadyMachine { name: name.to_owned(), api_url: api_url.clone(), pid };
        let mut ready = Ready {
            dashboard_url: client.create_invitation(&invitation).await?.url,
            admin_token: token,
            services: services
                .into_iter()
                .map(|view| ReadyService { name: view.service.to_string(), url: view.url })
                .collect(),
            machines: machines.iter().map(|view| machine(view.name.as_str())).collect(),
            api_url,
        };
        self.tell(&ready)?;
        self.write_ready(&ready)?;
        self.keep_alive(&client, &mut ready).await
    }

    /// The cluster of an earlier demo in this directory, or a new one; the token of its administrator.
    async fn cluster(&mut self) -> Result<String, Failure> {
        if let Some(record) = &self.record {
            return Ok(record.admin_token.clone());
        }
        let data_dir = self.state.node();
        if data_dir.exists() {
            // From a demo that was killed before it had a record, and so before it had started anything.
            fs::remove_dir_all(&data_dir).map_err(Failure::io("delete", &data_dir))?;
        }
        let cluster: StackName =
            CLUSTER.parse().map_err(|error: flotilla_api::InvalidName| Failure::Other(error.to_string()))?;
        let wanted = node::Init {
            data_dir,
            cluster,
            machine: local::machine_name(),
            listen: self.listen,
            domain: None,
            secure: false,
            with_token: true,
        };
        let made = node::init(wanted).await.map_err(|error| Failure::Other(error.to_string()))?;
        let admin_token = made.admin_token.unwrap_or_default();
        let record = Record {
            version: RECORD_VERSION,
            cluster: made.cluster_id,
            admin_token: admin_token.clone(),
            images: Vec::new(),
            made_directory: self.state.made_now(),
        };
        self.state.keep(&record)?;
        self.record = Some(record);
        Ok(admin_token)
    }

    /// Makes the sample's image and has the engine load it, unless it has it; the reference.
    async fn image(&mut self, client: &Client) -> Result<String, Failure> {
        let archive = self.state.archive();
        let path = archive.clone();
        let SampleImage { id, reference } = tokio::task::spawn_blocking(move || image::write(&path))
            .await
            .map_err(|error| Failure::Other(error.to_string()))?
            .map_err(|error| Failure::Other(error.to_string()))?;
        // Before it is there, so that it is removed whatever happens next.
        if let Some(record) = &mut self.record
            && !record.images.contains(&reference)
        {
            record.images.push(reference.clone());
            self.state.keep(record)?;
        }
        let present =
            client.images().await?.iter().any(|image| image.id == id && image.references.contains(&reference));
        if !present {
            let archive = Archive::open(&archive, |_| {}).await?;
            client.upload(&archive, |_| {}).await?;
        }
        fs::remove_file(&archive).map_err(Failure::io("delete", &archive))?;
        let how = if present { "was there" } else { "made of this program and loaded, without a registry" };
        self.output.note(&format!("✔ image    {reference} {how}"));
        Ok(reference)
    }

    async fn deploy(&self, client: &Client, reference: String) -> Result<Vec<ServiceView>, Failure> {
        let variables = BTreeMap::from([(IMAGE_VARIABLE.to_owned(), reference)]);
        let specs = compose::read(COMPOSE, None, &variables).map_err(Error::Api)?.services;
        let request = DeployRequest { compose: COMPOSE.to_owned(), stack: None, variables, dry_run: false };
        let deployed = client.deploy(&request).await?;
        let session = Session { client: client.clone(), output: self.output };
        wait::until_healthy(&session, &Awaited::all(&deployed.services, &specs), HEALTHY_TIMEOUT).await?;
        let mut services = client.services().await?;
        services.retain(|view| deployed.services.iter().any(|one| one.service == view.service));
        for view in &services {
            self.output.note(&format!("✔ service  {} is healthy", view.service));
        }
        Ok(services)
    }

    fn tell(&self, ready: &Ready) -> Result<(), Failure> {
        let output = self.output;
        if output.json {
            return output.value(ready);
        }
        let mut lines = vec![String::new(), format!("Dashboard  {}", output.link(&ready.dashboard_url))];
        for service in &ready.services {
            let url = service.url.as_deref().unwrap_or_default();
            lines.push(format!("{:<10} {}", capitalised(&service.name), output.link(url)));
        }
        lines.push(String::new());
        lines.extend(cli::qr(&ready.dashboard_url, output.colours()));
        lines.push("The dashboard's link signs one browser in, once; the sample opens in the same browser.".to_owned());
        let token = self.state.token();
        lines.push(format!(
            "Another:   flotilla --api {} --token \"$(cat {})\" invite create me --scope admin",
            ready.api_url,
            token.display()
        ));
        lines.push(output.strong("Ctrl-C ends the demo and removes everything."));
        output.line(&lines.join("\n"))
    }

    fn write_ready(&self, ready: &Ready) -> Result<(), Failure> {
        let Some(file) = &self.ready_file else { return Ok(()) };
        let text = serde_json::to_vec(ready).map_err(|error| Failure::Other(error.to_string()))?;
        write_atomically(file, &text).map_err(Failure::io("write", file))
    }

    /// Starts the node again whenever it dies.
    async fn keep_alive(&mut self, client: &Client, ready: &mut Ready) -> Result<(), Failure> {
        let output = self.output;
        loop {
            let Some(node) = &mut self.node else { return Ok(()) };
            let how = node.died().await;
            output.note(&format!("The node {how}; starting it again. Containers go on running."));
            node.revive(client, |text| output.note(text)).await;
            let pid = node.pid();
            output.note(&format!("The node is back, pid {}.", pid.unwrap_or_default()));
            ready.machines.iter_mut().for_each(|machine| machine.pid = pid);
            self.write_ready(ready)?;
        }
    }

    async fn take_down(mut self) -> Result<(), Failure> {
        if let Some(file) = &self.ready_file {
            let _ = fs::remove_file(file);
        }
        // First the node: it would start again what is removed.
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
        if let Some(record) = &self.record {
            let images = record.images.as_slice();
            let removed =
                engine::take_down(self.docker_host.as_deref(), &record.cluster, None, &self.state.node(), images).await;
            // The directory stays: with it the next demo finds what could not be removed.
            removed.map_err(|error| Failure::Other(format!("not everything could be removed: {error}")))?;
        }
        self.state.delete(self.record.is_some_and(|record| record.made_directory))
    }
}

/// Where the node will listen, if nobody else does.
fn free_address(port: u16) -> Result<SocketAddr, Failure> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let taken = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::Other(format!(
            "port {port} is in use by another program; stop that, or choose another with --port"
        )),
        std::io::ErrorKind::PermissionDenied => {
            Failure::Other(format!("port {port} needs root; choose one from 1024 up with --port"))
        }
        _ => Failure::Other(format!("port {port} can't be used: {error}")),
    };
    TcpListener::bind(wanted).and_then(|listener| listener.local_addr()).map_err(taken)
}

fn capitalised(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_compose_file_is_right() {
        let variables = BTreeMap::from([(IMAGE_VARIABLE.to_owned(), "flotilla-sample:abc".to_owned())]);
        let composition = compose::read(COMPOSE, None, &variables).unwrap();
        let notes = &composition.services[0];
        assert_eq!(
            (notes.name.as_str(), notes.image.as_str(), notes.port),
            ("notes", "flotilla-sample:abc", Some(8080))
        );
    }

    #[test]
    fn a_taken_port_is_told_by_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sentence = free_address(port).unwrap_err().to_string();
        assert!(sentence.contains(&format!("port {port} is in use")), "{sentence}");
        assert_ne!(free_address(0).unwrap().port(), 0);
    }

    #[test]
    fn the_ready_file_has_the_agreed_keys() {
        let ready = Ready {
            dashboard_url: "d".into(),
            api_url: "a".into(),
            admin_token: "t".into(),
            services: vec![ReadyService { name: "notes".into(), url: Some("u".into()) }],
            machines: vec![ReadyMachine { name: "m".into(), api_url: "a".into(), pid: Some(7) }],
        };
        assert_eq!(
            serde_json::to_value(ready).unwrap(),
            serde_json::json!({
                "dashboard_url": "d", "api_url": "a", "admin_token": "t",
                "services": [{ "name": "notes", "url": "u" }],
                "machines": [{ "name": "m", "api_url": "a", "pid": 7 }],
            })
        );
    }
}
