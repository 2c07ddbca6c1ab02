//! A cluster of real nodes on the machines of a bed, and what its tests ask of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use flotilla::client::{Archive, Client};
use flotilla_api::{
    Grant, MachineName, Scope, ServiceName,
    rest::{
        ChangeMachine, ClusterView, CreateToken, DeployRequest, DrainQuery, MachineState, MachineView, ServiceDetail,
        ServiceState,
    },
};

use super::{Bed, BedSpec, visitor::Visitor};
use crate::{image, process, wait};

pub const NAME: &str = "home";

/// From the start of a node to a machine that the others take for ready. Ten of them start on two cores.
const JOINED_LIMIT: Duration = Duration::from_secs(90);
/// An image from one engine to another, on a busy machine.
const PUSH_LIMIT: Duration = Duration::from_secs(60);
/// From a deployment, or any other change, to what it asks for.
pub const SETTLED_LIMIT: Duration = Duration::from_secs(60);
/// A machine that was lost is ready again: its node starts, links, catches up and gets a lease.
pub const READY_LIMIT: Duration = Duration::from_secs(60);
/// More voters than this are not made.
const VOTERS_MAX: usize = 5;
/// A node that is asked for its view answers at once or not at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// An engine that lists its containers does so in a moment.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// A node takes an image only where a gigabyte is left besides. What nothing is written to takes no room here.
const DISK_MB: u32 = 3072;
/// Services of [`Cluster::compose`] run where this label is not `yes`.
const AVOIDED: &str = "avoided";

/// Real nodes on simulated machines.
#[derive(Debug)]
pub struct Cluster {
    pub bed: Bed,
    token: String,
    image: String,
    archive: PathBuf,
}

impl Cluster {
    /// A cluster of so many machines at one switch, all of them ready, with the image of `flotilla-beat`.
    pub async fn up(machines: usize) -> Result<Self> {
        Self::on(BedSpec::lan(machines), machines).await
    }

    /// [`Self::up`], where a bed can be made; see [`Bed::can_be_made`].
    pub async fn up_or_skip(machines: usize) -> Result<Option<Self>> {
        if Bed::can_be_made()? { Self::up(machines).await.map(Some) } else { Ok(None) }
    }

    /// As [`Self::up_or_skip`], for a test that takes long: `FLOTILLA_BED=all` asks for it, `make bed` does.
    pub async fn long_or_skip(machines: usize) -> Result<Option<Self>> {
        if long_is_wanted() { Self::up_or_skip(machines).await } else { Ok(None) }
    }

    /// The first `members` machines of a bed become a cluster; the others have an engine and no node.
    pub async fn on(spec: BedSpec, members: usize) -> Result<Self> {
        let megabytes = spec.disk.megabytes.max(DISK_MB);
        let mut bed = Bed::up(spec.disk_mb(megabytes)).await?;
        let token = bed.machine(0).init(NAME).await?;
        bed.machine(0).start_node().await?;
        let archive = bed.scratch("beat.tar");
        let beat = image::beat().await?;
        beat.write(&archive)?;
        let mut cluster = Self { bed, token, image: beat.reference, archive };
        for index in 1..members {
            cluster.join(index, 0).await?;
        }
        for index in 1..members {
            cluster.bed.machine(index).node_serves().await?;
        }
        cluster.all_ready(members).await?;
        let archive = Archive::open(&cluster.archive, |_| {}).await?;
        cluster.client(0)?.upload(&archive, |_| {}).await.context("give the cluster the image")?;
        Ok(cluster)
    }

    /// Lets a machine join through another one, and launches its node.
    pub async fn join(&mut self, index: usize, through: usize) -> Result<()> {
        self.join_as(index, through, false).await
    }

    /// The same of a machine that only stores.
    pub async fn join_storage(&mut self, index: usize, through: usize) -> Result<()> {
        self.join_as(index, through, true).await
    }

    async fn join_as(&mut self, index: usize, through: usize, storage_only: bool) -> Result<()> {
        let grant = Grant { scope: Scope::Machine, services: BTreeSet::new() };
        let asked = CreateToken { name: format!("m{}", index + 1), grant, ttl_seconds: 600, storage_only };
        let token = self.client(through)?.create_token(&asked).await?;
        let machine = self.bed.machine(index);
        machine.join(&token.token).await?;
        machine.launch_node()
    }

    /// The reference of the image of `flotilla-beat`.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Speaks with one machine's node.
    pub fn client(&self, index: usize) -> Result<Client> {
        self.client_with(index, &self.token)
    }

    pub fn client_with(&self, index: usize, token: &str) -> Result<Client> {
        let api = format!("http://{}", self.bed.machines()[index].listen());
        Ok(Client::new(&api, Some(token.to_owned()))?)
    }

    /// `flotilla image push` on a machine, from its engine to another machine's node; what it prints with `--json`.
    pub async fn push(&self, from: usize, through: usize, image: &str) -> Result<serde_json::Value> {
        let machines = self.bed.machines();
        let mut command = machines[from].command(crate::built("flotilla"))?;
        command.args(["image", "push", image, "--json", "--token", &self.token]);
        command.arg("--api").arg(format!("http://{}", machines[through].listen()));
        let printed = process::run(&mut command, PUSH_LIMIT).await?;
        serde_json::from_str(&printed).with_context(|| format!("it printed {printed}"))
    }

    pub fn name(&self, index: usize) -> Result<MachineName> {
        Ok(self.bed.machines()[index].name().parse()?)
    }

    /// All machines but one.
    pub fn all_but(&self, one: usize) -> Vec<usize> {
        (0..self.bed.machines().len()).filter(|&index| index != one).collect()
    }

    /// The cluster as the first machine sees it that has a node which answers and knows a leader.
    pub async fn view(&self) -> Result<(usize, ClusterView)> {
        self.ask("a node that knows a leader", async |client: &Client| {
            Ok(Some(client.cluster().await?).filter(|view| view.leader.is_some()))
        })
        .await
    }

    pub async fn leader(&self) -> Result<usize> {
        let (_, view) = self.view().await?;
        self.bed.index_of(view.leader.context("a leader")?.as_str())
    }

    /// Waits until another machine leads than this one, by the word of one that is not it.
    pub async fn led_by_another_than(&self, former: usize) -> Result<usize> {
        let former_name = self.name(former)?;
        wait::until("another leader", SETTLED_LIMIT, async || {
            for index in self.all_but(former).into_iter().filter(|&index| self.bed.machines()[index].is_on()) {
                let Ok(Ok(view)) = tokio::time::timeout(ANSWER_LIMIT, self.client(index)?.cluster()).await else {
                    continue;
                };
                if let Some(leader) = view.leader.filter(|leader| *leader != former_name) {
                    return Ok(Some(self.bed.index_of(leader.as_str())?));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Asks one node after the other until one has an answer.
    pub async fn ask<T>(&self, what: &str, question: impl AsyncFn(&Client) -> Result<Option<T>>) -> Result<(usize, T)> {
        wait::until(what, SETTLED_LIMIT, async || {
            let mut last = None;
            for (index, machine) in self.bed.machines().iter().enumerate().filter(|(_, machine)| machine.is_on()) {
                let client = self.client(index)?;
                match tokio::time::timeout(ANSWER_LIMIT, question(&client)).await {
                    Ok(Ok(Some(answer))) => return Ok(Some((index, answer))),
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => last = Some(error.context(format!("asked {}", machine.name()))),
                    Err(_) => {
                        last = Some(anyhow::anyhow!("{} does not answer within {ANSWER_LIMIT:?}", machine.name()));
                    }
                }
            }
            last.map_or(Ok(None), Err)
        })
        .await
    }

    /// Waits until so many machines are ready, and as many as may vote do.
    pub async fn all_ready(&self, members: usize) -> Result<()> {
        let mut last = None;
        let ready = wait::holds(format!("{members} ready machines"), JOINED_LIMIT, async || {
            let leader = self.leader().await?;
            let client = self.client(leader)?;
            let (machines, view) = tokio::try_join!(client.machines(), client.cluster())?;
            let ready = machines.iter().filter(|machine| is_ready(machine)).count();
            let well = ready == members && view.voters.len() == members.min(VOTERS_MAX);
            last = Some(machines.into_iter().map(|machine| (machine.name, machine.condition)).collect::<Vec<_>>());
            Ok(well)
        })
        .await;
        ready.with_context(|| format!("they are {last:#?}"))
    }

    /// Waits until the leader takes a machine for ready.
    pub async fn ready(&self, index: usize) -> Result<()> {
        let name = self.name(index)?;
        let mut last = None;
        let ready = wait::holds(format!("{name} to be ready"), READY_LIMIT, async || {
            let machines = self.client(self.leader().await?)?.machines().await?;
            let machine = machines.into_iter().find(|machine| machine.name == name).context("it is a member")?;
            let ready = is_ready(&machine);
            last = Some(machine.condition);
            Ok(ready)
        })
        .await;
        ready.with_context(|| format!("it is {last:#?}"))
    }

    /// Drains a machine, and waits until it is empty.
    pub async fn empty(&self, index: usize) -> Result<()> {
        let name = self.name(index)?;
        self.client(self.leader().await?)?.drain(&name, DrainQuery::default()).await?;
        let mut last = None;
        let drained = wait::holds(format!("{name} to be empty"), SETTLED_LIMIT, async || {
            let detail = self.client(self.leader().await?)?.machine(&name).await?;
            let drained = detail.view.condition.state == MachineState::Drained;
            last = Some(detail);
            Ok(drained)
        })
        .await;
        drained.with_context(|| format!("it is {last:#?}"))
    }

    /// Power on, and the node with it; waits until it is one of the cluster again.
    pub async fn boot(&mut self, index: usize) -> Result<()> {
        self.bed.boot(index).await?;
        self.bed.machine(index).start_node().await?;
        self.ready(index).await
    }

    pub async fn deploy(&self, compose: &str) -> Result<()> {
        self.deploy_stack("tests", compose).await
    }

    pub async fn deploy_stack(&self, stack: &str, compose: &str) -> Result<()> {
        // Where the image was sent, as a person would.
        self.deploy_through(0, stack, compose).await
    }

    /// Asks the machine with this index.
    pub async fn deploy_through(&self, index: usize, stack: &str, compose: &str) -> Result<()> {
        let request = DeployRequest {
            compose: compose.to_owned(),
            stack: Some(stack.to_owned()),
            variables: BTreeMap::new(),
            dry_run: false,
            values: Vec::new(),
        };
        self.client(index)?.deploy(&request).await.context("deploy")?;
        Ok(())
    }

    /// Deploys services to one machine, waits until they run there, and lets them go wherever they may from then on; a machine
    /// that could take over has all that it needs by then.
    pub async fn deploy_to(&self, index: usize, services: &[Sample<'_>]) -> Result<()> {
        self.avoid(&self.all_but(index), true).await?;
        self.deploy(&self.compose(services)).await?;
        for service in services {
            self.runs_on(service.name, index).await?;
        }
        self.avoid(&self.all_but(index), false).await?;
        for service in services {
            self.stands_by(service.name).await?;
        }
        Ok(())
    }

    /// Services of [`Self::compose`] stay away from these machines, or may come there again.
    pub async fn avoid(&self, machines: &[usize], avoided: bool) -> Result<()> {
        let client = self.client(self.leader().await?)?;
        let members = client.machines().await?;
        for &index in machines {
            let name = self.name(index)?;
            if !members.iter().any(|member| member.name == name) {
                continue;
            }
            let labels = [(AVOIDED.to_owned(), avoided.then(|| "yes".to_owned()))].into();
            client.change_machine(&name, &ChangeMachine { labels, ..ChangeMachine::default() }).await?;
        }
        Ok(())
    }

    /// A compose file of services of this bed's image.
    pub fn compose(&self, services: &[Sample<'_>]) -> String {
        let image = &self.image;
        let mut text = String::from("services:\n");
        for Sample { name, volume, replicas, revision } in services {
            text.push_str(&format!(
                "  {name}:
    image: {image}
    ports: [\"8080\"]
    stop_grace_period: 3s
    environment: {{ REVISION: \"{revision}\" }}
    deploy:
      replicas: {replicas}
      update_config: {{ monitor: 1s }}
      placement: {{ constraints: [\"node.labels.{AVOIDED} != yes\"] }}
"
            ));
            if *volume {
                text.push_str(&format!("    volumes: [\"{name}:/data\"]\n"));
            }
        }
        let volumes: Vec<&str> = services.iter().filter(|service| service.volume).map(|service| service.name).collect();
        if !volumes.is_empty() {
            text.push_str("volumes:\n");
            volumes
                .iter()
                .for_each(|name| text.push_str(&format!("  {name}: {{ x-flotilla: {{ on-loss: start-empty }} }}\n")));
        }
        text
    }

    pub async fn service(&self, service: &str) -> Result<ServiceDetail> {
        let name: ServiceName = service.parse()?;
        Ok(self.client(self.leader().await?)?.service(&name).await?)
    }

    /// Where all of its instances run, once they do and no other is left.
    pub async fn runs(&self, service: &str) -> Result<Vec<usize>> {
        let mut last = None;
        let runs = wait::until(format!("{service} to run"), SETTLED_LIMIT, async || {
            let detail = self.service(service).await?;
            let instances = &detail.view.instances;
            let runs = detail.view.state == ServiceState::Running
                && instances.len() == detail.view.replicas as usize
                && instances.iter().all(|instance| {
                    instance.state == ServiceState::Running && instance.revision == detail.view.revision
                });
            let on = instances.iter().map(|instance| self.bed.index_of(instance.machine.as_str())).collect();
            last = Some(detail.view);
            if runs { Result::map(on, Some) } else { Ok(None) }
        })
        .await;
        runs.with_context(|| format!("it is {last:#?}"))
    }

    /// Waits until its one instance runs on this machine.
    pub async fn runs_on(&self, service: &str, index: usize) -> Result<()> {
        wait::holds(format!("{service} to run on m{}", index + 1), SETTLED_LIMIT, async || {
            Ok(self.runs(service).await? == [index])
        })
        .await
    }

    /// Waits until a machine that could take over a service has a container of it that only has to be started: the machine, and the
    /// container's id.
    pub async fn stands_by(&self, service: &str) -> Result<(usize, String)> {
        let service_label = format!("label=flotilla.service={service}");
        let list = ["ps", "-aq", "--no-trunc", "--filter", "label=flotilla.spare", "--filter", "status=created"];
        wait::until(format!("a machine that stands by for {service}"), SETTLED_LIMIT, async || {
            for machine in &self.service(service).await?.standby {
                let index = self.bed.index_of(machine.as_str())?;
                let mut docker = self.bed.machines()[index].docker();
                let containers = process::run(docker.args(list).args(["--filter", &service_label]), LIST_LIMIT).await?;
                if let Some(container) = containers.lines().next() {
                    return Ok(Some((index, container.to_owned())));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Somebody who has a service open, through the first of these machines that answers.
    pub async fn visit(&self, service: &str, through: &[usize]) -> Result<Visitor> {
        let nodes = through.iter().map(|&index| format!("http://{}", self.bed.machines()[index].listen()));
        Visitor::of(service, nodes.collect(), &self.token).await
    }
}

/// A service of `flotilla-beat`.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    pub name: &'a str,
    /// Does it write a volume, which begins anew if its machine is lost?
    pub volume: bool,
    pub replicas: u32,
    /// Another one makes another revision.
    pub revision: u32,
}

impl<'a> Sample<'a> {
    /// Writes a volume: two of it must never run at one time.
    pub const fn exclusive(name: &'a str) -> Self {
        Self { name, volume: true, replicas: 1, revision: 1 }
    }

    /// Writes nothing.
    pub const fn stateless(name: &'a str) -> Self {
        Self { name, volume: false, replicas: 1, revision: 1 }
    }
}

/// Are tests that take long asked for? Says so, where one is skipped.
pub fn long_is_wanted() -> bool {
    let wanted = std::env::var("FLOTILLA_BED").is_ok_and(|wanted| wanted == "all");
    if !wanted {
        eprintln!("SKIPPED, nothing was tested: it takes long; `make bed` runs it");
    }
    wanted
}

fn is_ready(machine: &MachineView) -> bool {
    machine.condition.state == MachineState::Ready
}

/// How long something took, as figures of a test are printed.
pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
