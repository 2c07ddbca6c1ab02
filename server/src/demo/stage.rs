//! All that a demo has made and will take down: from an empty directory to healthy services, and back.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use flotilla_api::{
    Grant, MachineName, Scope, StackName,
    rest::{CreateInvitation, CreateToken, DeployRequest, ServiceView, VolumeView},
};
use flotilla_core::compose;
use futures::future::{join_all, select_all};
use serde::Serialize;
use tokio::{task::JoinHandle, time::Instant};

use super::{
    NO_FILE, Play,
    child::Recipe,
    control::Control,
    family,
    front::{self, Front},
    image::{self, SampleImage},
    machine::{Machine, Parts},
    orders::Orders,
    state::{MachineRecord, RECORD_VERSION, Record, StateDir, write_atomically},
};
use crate::{
    cli::{
        self, Failure, Output, Session, local,
        wait::{self, Awaited},
    },
    client::{Archive, Client, Error},
    config::{Config, Flags},
    engine, node,
};

/// The compose files of the samples, which are also examples for people.
const COMPOSE: [&str; 2] = [
    include_str!("../../../docs/examples/notes.compose.yaml"),
    include_str!("../../../docs/examples/hello.compose.yaml"),
];

/// The variable in them that names the image.
const IMAGE_VARIABLE: &str = "FLOTILLA_SAMPLE_IMAGE";

const CLUSTER: &str = "demo";

/// As many as a cluster may have.
const NAMES: [&str; 10] =
    ["atlas", "boreas", "calypso", "daphne", "electra", "fortuna", "galatea", "helios", "iris", "juno"];

/// How long all machines may take to know each other and a leader, on a slow computer.
const FORMED_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a sample may take to get healthy on a slow computer.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(120);

/// How often it is looked whether the machines know each other.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a machine may take to join, which is one call to another machine here.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the link works that signs a browser in. Seconds.
const INVITATION_TTL: u64 = 24 * 3600;

/// How long a machine's token works, which is used at once. Seconds.
const JOIN_TTL: u64 = 10 * 60;

/// What goes into the ready file.
#[derive(Clone, Debug, Serialize)]
struct Ready {
    /// Signs one browser in, once.
    dashboard_url: String,
    /// Leads to a machine that is alive, as do the others but those of the machines.
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
    /// Of this one machine.
    api_url: String,
    /// Absent while it is off.
    pid: Option<u32>,
}

/// All that the demo has made and will take down.
#[derive(Debug)]
pub(super) struct Stage {
    output: Output,
    state: StateDir,
    /// Until the front has it.
    listener: Option<TcpListener>,
    address: SocketAddr,
    wanted: usize,
    ready_file: Option<PathBuf>,
    docker_host: Option<String>,
    record: Option<Record>,
    machines: Vec<(Machine, JoinHandle<()>)>,
    front: Option<Front>,
    control: Option<Control>,
}

impl Stage {
    /// What can be refused before anything is made.
    pub(super) fn prepare(args: Play, output: Output) -> Result<Self, Failure> {
        let listener = front::take_port(args.port)?;
        let address = listener.local_addr().map_err(|error| Failure::Other(error.to_string()))?;
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
            data_dir: Some(args.place.state.clone()),
            docker_host: args.docker_host,
            ..Flags::default()
        };
        let config = Config::load(&flags).map_err(|error| Failure::Usage(error.to_string()))?;
        let state = StateDir::open(&args.place.state)?;
        let record = state.record()?;
        Ok(Self {
            output,
            state,
            listener: Some(listener),
            address,
            wanted: usize::from(args.machines),
            ready_file: args.ready_file,
            docker_host: config.docker_host,
            record,
            machines: Vec::new(),
            front: None,
            control: None,
        })
    }

    pub(super) fn has_begun(&self) -> bool {
        self.record.is_some()
    }

    /// Ends only with an error.
    pub(super) async fn play(&mut self) -> Result<(), Failure> {
        engine::answers(self.docker_host.as_deref()).await.map_err(|error| {
            Failure::Other(format!("the demo needs a container engine: {}", error.to_string().trim_end_matches('.')))
        })?;
        let record = self.cluster().await?;
        let token = record.admin_token.clone();
        let api_url = format!("http://{}", self.address);
        let client = Client::new(&api_url, Some(token.clone()))?;
        let recipes: Vec<Recipe> = record.machines.iter().map(|machine| self.recipe(machine)).collect();
        self.set_up(&record, &recipes, &client)?;
        self.start(&client, &recipes).await?;
        self.formed(&client).await?;

        let reference = self.image(&client).await?;
        let services = self.deploy(&client, &reference).await?;
        let invitation = CreateInvitation { name: "demo".into(), grant: Grant::admin(), ttl_seconds: INVITATION_TTL };
        let mut ready = Ready {
            dashboard_url: client.create_invitation(&invitation).await?.url,
            admin_token: token,
            services: services
                .into_iter()
                .map(|view| ReadyService { name: view.service.to_string(), url: view.url })
                .collect(),
            machines: self.ready_machines(),
            api_url,
        };
        self.tell(&ready)?;
        self.write_ready(&ready)?;
        self.keep_ready(&mut ready).await
    }

    /// The cluster of an earlier demo in this directory, or a new one on the first machine.
    async fn cluster(&mut self) -> Result<Record, Failure> {
        if let Some(record) = &mut self.record {
            // A port that somebody else has taken meanwhile is replaced.
            for machine in &mut record.machines {
                if TcpListener::bind((Ipv4Addr::LOCALHOST, machine.port)).is_err() {
                    machine.port = free_port()?;
                }
            }
            self.state.keep(record)?;
            return Ok(record.clone());
        }
        self.state.clear()?;
        self.state.make_rooms()?;
        let mut machines = Vec::new();
        for name in &NAMES[..self.wanted] {
            let name = name.parse().map_err(invalid)?;
            machines.push(MachineRecord { name, port: free_port()? });
        }
        let first = &machines[0];
        let wanted = node::Init {
            data_dir: self.state.machine(&first.name),
            cluster: CLUSTER.parse::<StackName>().map_err(invalid)?,
            machine: first.name.clone(),
            listen: (Ipv4Addr::LOCALHOST, first.port).into(),
            domain: Some(self.domain()),
            secure: false,
            with_token: true,
        };
        let made = node::init(wanted).await.map_err(|error| Failure::Other(error.to_string()))?;
        let record = Record {
            version: RECORD_VERSION,
            cluster: made.cluster_id,
            admin_token: made.admin_token.unwrap_or_default(),
            machines,
            images: Vec::new(),
            made_directory: self.state.made_now(),
        };
        self.state.keep(&record)?;
        self.record = Some(record.clone());
        Ok(record)
    }

    /// As people know the cluster, whichever of its machines answers.
    fn domain(&self) -> String {
        format!("{CLUSTER}.localhost:{}", self.address.port())
    }

    fn recipe(&self, machine: &MachineRecord) -> Recipe {
        Recipe {
            data_dir: self.state.machine(&machine.name),
            listen: (Ipv4Addr::LOCALHOST, machine.port).into(),
            domain: self.domain(),
            log: self.state.log(&machine.name),
            docker_host: self.docker_host.clone(),
            socket: self.state.socket(),
        }
    }

    /// Machines with their plugs out, the address that leads to them, and the socket for orders.
    fn set_up(&mut self, record: &Record, recipes: &[Recipe], client: &Client) -> Result<(), Failure> {
        let addresses: Vec<SocketAddr> = recipes.iter().map(|recipe| recipe.listen).collect();
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let front = Front::open(listener, &addresses)
            .map_err(|error| Failure::Other(format!("port {} can't be used: {error}", self.address.port())))?;
        for (index, (machine, recipe)) in record.machines.iter().zip(recipes).enumerate() {
            // Left over from a demo that was killed.
            family::kill(None, &recipe.data_dir);
            let api = format!("http://{}", recipe.listen);
            self.machines.push(Machine::new(Parts {
                name: machine.name.clone(),
                recipe: recipe.clone(),
                client: Client::new(&api, Some(record.admin_token.clone()))?,
                cluster: record.cluster.clone(),
                doors: front.doors(),
                index,
                output: self.output,
            }));
        }
        self.front = Some(front);
        let orders = Orders::new(self.handles(), client.clone());
        self.control = Some(Control::listen(&self.state.socket(), Arc::new(orders))?);
        Ok(())
    }

    /// Starts those that are members already, at once, as none of them may be able to do without the others; then the others
    /// join.
    async fn start(&self, client: &Client, recipes: &[Recipe]) -> Result<(), Failure> {
        let machines = self.handles();
        let (members, others): (Vec<_>, Vec<_>) =
            machines.iter().zip(recipes).partition(|(_, recipe)| local::is_initialised(&recipe.data_dir));
        join_all(members.iter().map(|(machine, _)| self.switch_on(machine)))
            .await
            .into_iter()
            .collect::<Result<(), _>>()?;
        let joining = others.iter().map(|(machine, recipe)| async {
            join(client, &machine.name, recipe).await?;
            self.switch_on(machine).await
        });
        join_all(joining).await.into_iter().collect()
    }

    async fn switch_on(&self, machine: &Machine) -> Result<(), Failure> {
        machine.start().await?;
        let pid = machine.condition().pid.unwrap_or_default();
        self.output.note(&format!("✔ machine  {} at http://{}, pid {pid}", machine.name, machine.address));
        Ok(())
    }

    /// Waits until all machines are members.
    async fn formed(&self, client: &Client) -> Result<(), Failure> {
        let deadline = Instant::now() + FORMED_TIMEOUT;
        let all = self.machines.len();
        loop {
            let members = client.machines().await.map(|machines| machines.len());
            match members {
                Ok(members) if members == all => return Ok(()),
                Err(error) if !error.is_transient() => return Err(error.into()),
                _ if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
                _ => {
                    let seconds = FORMED_TIMEOUT.as_secs();
                    return Err(Failure::Other(format!(
                        "not all {all} machines have found together after {seconds} s"
                    )));
                }
            }
        }
    }

    /// Makes the samples' image and has the engine load it, unless it has it; the reference.
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

    async fn deploy(&self, client: &Client, reference: &str) -> Result<Vec<ServiceView>, Failure> {
        let variables = BTreeMap::from([(IMAGE_VARIABLE.to_owned(), reference.to_owned())]);
        let (mut specs, mut deployed) = (Vec::new(), Vec::new());
        for text in COMPOSE {
            specs.extend(compose::read(text, None, &variables).map_err(Error::Api)?.services);
            let request = DeployRequest {
                compose: text.to_owned(),
                stack: None,
                variables: variables.clone(),
                dry_run: false,
                values: Vec::new(),
            };
            deployed.extend(client.deploy(&request).await?.services);
        }
        let session = Session { client: client.clone(), output: self.output };
        wait::until_healthy(&session, &Awaited::all(&deployed, &specs), HEALTHY_TIMEOUT).await?;
        copied(client, self.machines.len().saturating_sub(1)).await?;
        let mut services = client.services().await?;
        services.retain(|view| deployed.iter().any(|one| one.service == view.service));
        // In the order of the files.
        services.sort_by_key(|view| deployed.iter().position(|one| one.service == view.service));
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
        lines.push("The dashboard's link signs one browser in, once; the samples open in the same browser.".to_owned());
        let token = self.state.token();
        lines.push(format!(
            "Another:   flotilla --api {} --token \"$(cat {})\" invite create me --scope admin",
            ready.api_url,
            token.display()
        ));
        if let Some(machine) = ready.machines.first().filter(|_| ready.machines.len() > 1) {
            let directory = self.state.path().display();
            lines.push(format!("Pull a plug:  flotilla demo kill {} --state {directory}", machine.name));
            lines.push(format!("Put it back:  flotilla demo start {} --state {directory}", machine.name));
        }
        lines.push(output.strong("Ctrl-C ends the demo and removes everything."));
        output.line(&lines.join("\n"))
    }

    fn write_ready(&self, ready: &Ready) -> Result<(), Failure> {
        let Some(file) = &self.ready_file else { return Ok(()) };
        let text = serde_json::to_vec(ready).map_err(|error| Failure::Other(error.to_string()))?;
        write_atomically(file, &text).map_err(Failure::io("write", file))
    }

    /// Keeps what the ready file says of the machines true.
    async fn keep_ready(&self, ready: &mut Ready) -> Result<(), Failure> {
        let mut conditions: Vec<_> = self.machines.iter().map(|(machine, _)| machine.watch()).collect();
        loop {
            let changes = conditions.iter_mut().map(|condition| Box::pin(condition.changed()));
            let (changed, _, _) = select_all(changes).await;
            if changed.is_err() {
                // Machines are taken down with the stage alone.
                return std::future::pending().await;
            }
            ready.machines = self.ready_machines();
            self.write_ready(ready)?;
        }
    }

    fn ready_machines(&self) -> Vec<ReadyMachine> {
        let ready = |(machine, _): &(Machine, JoinHandle<()>)| ReadyMachine {
            name: machine.name.to_string(),
            api_url: format!("http://{}", machine.address),
            pid: machine.condition().pid,
        };
        self.machines.iter().map(ready).collect()
    }

    fn handles(&self) -> Vec<Machine> {
        self.machines.iter().map(|(machine, _)| machine.clone()).collect()
    }

    pub(super) async fn take_down(mut self) -> Result<(), Failure> {
        if let Some(file) = &self.ready_file {
            let _ = fs::remove_file(file);
        }
        // First whoever could start something, then the nodes: they would start again what is removed.
        self.control = None;
        join_all(self.machines.iter().map(|(machine, _)| machine.stop())).await;
        self.front = None;
        if let Some(record) = &self.record {
            for machine in &record.machines {
                let data_dir = self.state.machine(&machine.name);
                family::kill(None, &data_dir);
                let (host, cluster) = (self.docker_host.as_deref(), &record.cluster);
                let removed = engine::take_down(host, cluster, None, &data_dir, &record.images).await;
                // The directory stays: with it the next demo finds what could not be removed.
                removed.map_err(|error| Failure::Other(format!("not everything could be removed: {error}")))?;
            }
        }
        self.state.delete(self.record.is_some_and(|record| record.made_directory))
    }
}

/// Makes a machine a member of the cluster, as a person would on a new one.
async fn join(client: &Client, name: &MachineName, recipe: &Recipe) -> Result<(), Failure> {
    let grant = Grant { scope: Scope::Machine, services: [].into() };
    let token = client
        .create_token(&CreateToken { name: name.to_string(), grant, ttl_seconds: JOIN_TTL, storage_only: false })
        .await?;
    let mut command = recipe.command("join")?;
    command.arg("--name").arg(name.as_str()).arg(token.token);
    let joined = tokio::time::timeout(JOIN_TIMEOUT, command.status())
        .await
        .map_err(|_| Failure::Other(format!("{name} did not join within {} s", JOIN_TIMEOUT.as_secs())))?
        .map_err(Failure::io("start", "flotilla join"))?;
    if joined.success() {
        return Ok(());
    }
    Err(recipe.failure(&format!("{name} did not join"), "the command failed"))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn invalid(error: flotilla_api::InvalidName) -> Failure {
    Failure::Other(error.to_string())
}

fn free_port() -> Result<u16, Failure> {
    let found = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    found.map(|address| address.port()).map_err(|error| Failure::Other(format!("there is no free port: {error}")))
}

fn capitalised(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// Waits until the other machines, so many, have what is written: a plug may be pulled as soon as the demo is ready.
async fn copied(client: &Client, others: usize) -> Result<(), Failure> {
    let deadline = Instant::now() + HEALTHY_TIMEOUT;
    loop {
        let volumes = client.volumes().await?;
        let is_copied = |volume: &&VolumeView| {
            let copies = volume.copies.iter().filter(|copy| copy.holds).count();
            volume.committed.is_some() && copies >= others.min(volume.replicas as usize)
        };
        match volumes.iter().find(|volume| !is_copied(volume)) {
            None => return Ok(()),
            Some(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
            Some(volume) => {
                let why = volume.message.clone().unwrap_or_default();
                return Err(Failure::Other(format!("the volume `{}` is not copied in time: {why}", volume.volume)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_compose_files_are_right() {
        let variables = BTreeMap::from([(IMAGE_VARIABLE.to_owned(), "flotilla-sample:abc".to_owned())]);
        for (text, name, replicas) in [(COMPOSE[0], "notes", 1), (COMPOSE[1], "hello", 2)] {
            let composition = compose::read(text, None, &variables).unwrap();
            let service = &composition.services[0];
            assert_eq!((service.name.as_str(), service.image.as_str()), (name, "flotilla-sample:abc"));
            assert_eq!((service.port, service.replicas), (Some(8080), replicas), "{name}");
        }
    }

    #[test]
    fn machines_have_names_and_not_one_twice() {
        let names: Vec<MachineName> = NAMES.iter().map(|name| name.parse().unwrap()).collect();
        let mut distinct = names.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), names.len());
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
