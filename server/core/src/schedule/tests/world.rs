//! A cluster in virtual time whose machines do as they are told: they run what is placed on them, end what is not, and tell so.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    Grant, NodeId, Scope, ServiceName, TokenId, UnixMillis,
    rest::{EngineView, LinkPath, LinkState, LinkView, MachineResources},
};

use crate::{
    Applied, Command, CommandV1, Entry, Rejected, State,
    command::{
        Actor, Availability, ClusterRecord, Copies, Generation, GenerationName, InvitationRecord, MachineFacts,
        MachineRecord,
    },
    compose,
    reconcile::{Container, Health, Memory, Observed, ROLLBACK_AFTER, Status},
    report::Report,
    schedule::{self, Input, Plan, Standing},
    state::{Phase, Placement, Power, Service},
};

pub(super) const GIB: u64 = 1 << 30;
pub(super) const MINUTE: u64 = 60_000;

pub(super) struct World {
    pub(super) now: UnixMillis,
    pub(super) state: State,
    pub(super) machines: BTreeMap<NodeId, Machine>,
    /// Every change and command of the leader, as it was made.
    pub(super) told: Vec<String>,
}

/// What a machine really is.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// It has no power, or no network: its instances are frozen, and its lease has ended.
    pub(super) gone: bool,
    /// Its lease ended: its instances stand still until it acts upon a state in which it is back.
    frozen: bool,
    /// It hears nothing and does nothing, but has its lease.
    pub(super) slow: bool,
    /// Index of the state that it acts upon.
    applied: u64,
    containers: Vec<Container>,
    /// Ids of those that were made with a volume that they may write.
    writers: BTreeSet<String>,
    pub(super) images: Vec<String>,
    pub(super) links: Vec<LinkView>,
    /// It keeps up with what its instances write.
    pub(super) captures: bool,
    pub(super) engine_gone_since: Option<UnixMillis>,
    report: Option<Report>,
}

impl Machine {
    fn new() -> Self {
        Self {
            gone: false,
            frozen: false,
            slow: false,
            applied: 0,
            containers: Vec::new(),
            writers: BTreeSet::new(),
            images: Vec::new(),
            links: Vec::new(),
            captures: true,
            engine_gone_since: None,
            report: None,
        }
    }
}

/// Its image makes every container end at once.
pub(super) const BAD: &str = "bad";

impl World {
    /// With machines of four cores and 8 GiB.
    pub(super) fn new(names: &[&str]) -> Self {
        let mut world = Self {
            now: UnixMillis(1_800_000_000_000),
            state: State::default(),
            machines: BTreeMap::new(),
            told: Vec::new(),
        };
        let cluster = ClusterRecord { id: "00".repeat(16), name: "home".parse().unwrap(), token_key: String::new() };
        world.apply(CommandV1::Init { cluster, machine: record(names[0]) }).unwrap();
        world.machines.insert(id(names[0]), Machine::new());
        world.apply(CommandV1::Lead { node: id(names[0]), term: 1 }).unwrap();
        for name in &names[1..] {
            world.join(name);
        }
        for name in names {
            world.has(name, 4_000, 8 * GIB);
        }
        world
    }

    pub(super) fn join(&mut self, name: &str) {
        self.join_as(name, |invitation| CommandV1::CreateInvitation { invitation });
    }

    /// A machine that only stores.
    pub(super) fn join_storage(&mut self, name: &str) {
        self.join_as(name, |invitation| CommandV1::InviteStorage { invitation });
        self.has(name, 4_000, 8 * GIB);
    }

    fn join_as(&mut self, name: &str, invite: impl FnOnce(InvitationRecord) -> CommandV1) {
        let invitation = TokenId(format!("join-{name}"));
        let record = InvitationRecord {
            id: invitation.clone(),
            name: "join".to_owned(),
            grant: Grant { scope: Scope::Machine, services: BTreeSet::new() },
            secret_hash: String::new(),
            created_at: self.now,
            expires_at: self.now.plus(1_000),
            used_at: None,
            stores_only: false,
        };
        self.apply(invite(record)).unwrap();
        let facts = MachineFacts::default();
        self.apply(CommandV1::AdmitMachine { invitation, machine: self::record(name), facts }).unwrap();
        self.machines.insert(id(name), Machine::new());
    }

    pub(super) fn has(&mut self, name: &str, cpu_millis: u64, memory_bytes: u64) {
        let facts = MachineFacts { cpu_millis, memory_bytes, ..self.state.machines[&id(name)].facts.clone() };
        self.apply(CommandV1::AnnounceMachine { machine: id(name), facts }).unwrap();
    }

    pub(super) fn runs_on_battery(&mut self, name: &str) {
        let facts = MachineFacts { power: Power::Battery, ..self.state.machines[&id(name)].facts.clone() };
        self.apply(CommandV1::AnnounceMachine { machine: id(name), facts }).unwrap();
    }

    pub(super) fn label(&mut self, name: &str, key: &str, value: &str) {
        let labels = BTreeMap::from([(key.to_owned(), Some(value.to_owned()))]);
        self.apply(CommandV1::LabelMachine { machine: id(name), labels }).unwrap();
    }

    /// `services:` of a compose file, with a volume `data` that waits and one `cache` that may be lost.
    #[track_caller]
    pub(super) fn deploy(&mut self, services: &str) {
        self.deploy_stack("stack", services);
    }

    #[track_caller]
    pub(super) fn deploy_stack(&mut self, stack: &str, services: &str) {
        let text = format!(
            "name: {stack}\nservices:\n{services}\nvolumes:\n  data:\n  more:\n  cache: {{x-flotilla: {{on-loss: start-empty}}}}\n  vault: {{x-flotilla: {{encrypted: true}}}}\n  one: {{x-flotilla: {{encrypted: true, replicas: 1}}}}\n"
        );
        let composition =
            compose::read(&text, None, &BTreeMap::new()).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        self.apply(CommandV1::Deploy { stack: composition.stack, services: composition.services }).unwrap();
    }

    #[track_caller]
    pub(super) fn scale(&mut self, service: &str, replicas: u32) {
        self.apply(CommandV1::Scale { service: name(service), replicas }).unwrap();
    }

    #[track_caller]
    pub(super) fn drain(&mut self, machine: &str) {
        let availability = Availability::Drained { since: self.now };
        self.apply(CommandV1::SetAvailability { machine: id(machine), availability }).unwrap();
    }

    #[track_caller]
    pub(super) fn undrain(&mut self, machine: &str) {
        self.apply(CommandV1::SetAvailability { machine: id(machine), availability: Availability::Active }).unwrap();
    }

    /// The machine goes, and its lease ends.
    #[track_caller]
    pub(super) fn lose(&mut self, machine: &str) {
        self.machine(machine).gone = true;
        self.machine(machine).frozen = true;
        self.apply(CommandV1::MachineLost { term: 1, machine: id(machine) }).unwrap();
    }

    #[track_caller]
    pub(super) fn bring_back(&mut self, machine: &str) {
        self.machine(machine).gone = false;
        self.apply(CommandV1::MachineBack { term: 1, machine: id(machine) }).unwrap();
    }

    pub(super) fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(&id(name)).unwrap()
    }

    pub(super) fn link(&mut self, from: &str, to: &str, path: LinkPath, rtt_ms: f64) {
        let link = LinkView {
            peer: id(to),
            state: LinkState::Up,
            path: Some(path),
            bulk: None,
            remote: None,
            rtt_ms: Some(rtt_ms),
            jitter_ms: None,
            loss: None,
            sent_per_second: 0,
            received_per_second: 0,
            since: self.now,
            observed_at: self.now,
            problem: None,
        };
        self.machine(from).links.push(link);
    }

    pub(super) fn apply(&mut self, command: CommandV1) -> Result<Applied, Rejected> {
        let actor = Actor { name: "tester".to_owned(), token: None, from: None };
        self.state.apply(&Entry { at: self.now, actor, command: Command::V1(command) })
    }

    pub(super) fn input(&self) -> Input<'_> {
        let machines = self.machines.iter().map(|(id, machine)| {
            let holds = |epoch: u64| machine.containers.iter().any(|it| it.epoch == epoch && is_running(it));
            let placed = self.state.services.values().flat_map(|service| service.placed_on(id));
            let vacating = placed.filter(|it| it.phase == Phase::Vacating).map(|it| (it.epoch, it.index));
            let left = self.state.leftovers.iter().filter(|it| it.machine == *id).map(|it| (it.epoch, it.index));
            let released = vacating
                .chain(left)
                .filter(|(epoch, index)| machine.applied >= *index && !holds(*epoch))
                .map(|(epoch, _)| epoch);
            let standing =
                Standing { ended: machine.gone, released: released.collect(), report: machine.report.as_ref() };
            (id.clone(), standing)
        });
        Input { now: self.now, state: &self.state, machines: machines.collect() }
    }

    pub(super) fn plan(&self) -> Plan {
        schedule::plan(&self.input())
    }

    /// Machines act and tell, then the leader decides. False if it had nothing to decide.
    pub(super) fn step(&mut self, millis: u64) -> bool {
        self.now = self.now.plus(millis);
        let ids: Vec<NodeId> = self.machines.keys().cloned().collect();
        for id in &ids {
            self.act(id);
        }
        self.check();
        self.decide()
    }

    /// The leader's decision, which the state has to accept.
    pub(super) fn decide(&mut self) -> bool {
        let plan = self.plan();
        assert_eq!(plan, self.plan(), "two leaders would decide differently");
        let idle = plan.changes.is_empty() && plan.commands.is_empty();
        for change in &plan.changes {
            self.tell(&format!("{change:?}"));
        }
        if !plan.changes.is_empty() {
            let changes = plan.changes.clone();
            let placed = self.apply(CommandV1::Place { term: 1, changes });
            placed.unwrap_or_else(|rejected| panic!("{rejected}\n{:#?}\n{}", plan.changes, self.story()));
        }
        for command in plan.commands {
            self.tell(&format!("{command:?}"));
            self.apply(command).unwrap_or_else(|rejected| panic!("{rejected}\n{}", self.story()));
        }
        self.check();
        !idle
    }

    fn tell(&mut self, what: &str) {
        let at = self.now.since(UnixMillis(1_800_000_000_000));
        self.told.push(format!("{at:>9} {what}"));
    }

    /// Until nothing happens for two minutes.
    #[track_caller]
    pub(super) fn settle(&mut self) {
        let mut quiet_since = self.now;
        for _ in 0..1_000 {
            if self.step_far(15_000) {
                quiet_since = self.now;
            } else if self.now.since(quiet_since) > 2 * MINUTE {
                return;
            }
        }
        panic!("it never rests:\n{}", self.story());
    }

    pub(super) fn run_for(&mut self, millis: u64) {
        for _ in 0..millis / 1_000 {
            self.step(1_000);
        }
    }

    /// The same in few steps, where nothing is expected to happen.
    pub(super) fn run_far(&mut self, millis: u64) {
        let until = self.now.plus(millis);
        while self.now < until {
            self.step_far(MINUTE);
        }
    }

    /// To when the leader wants to look again; a machine needs a second to act after a decision.
    fn step_far(&mut self, most: u64) -> bool {
        let acted = self.machines.values().all(|machine| machine.gone || machine.applied == self.state.applied);
        let wait = match self.plan().wake_at {
            _ if !acted => 1_000,
            Some(at) => at.since(self.now).clamp(1_000, most),
            None => most,
        };
        self.step(wait)
    }

    pub(super) fn act(&mut self, id: &NodeId) {
        let machine = self.machines.get_mut(id).unwrap();
        if machine.gone || machine.slow || !self.state.machines.contains_key(id) {
            return;
        }
        let wanted: Vec<(&Service, &Placement)> = self
            .state
            .services
            .values()
            .flat_map(|service| service.placed_on(id).map(move |placement| (service, placement)))
            .filter(|(_, placement)| placement.is_wanted())
            .collect();
        // It begins anew what was updated, at once, and ends what it does not want.
        machine.containers.retain(|container| {
            wanted
                .iter()
                .any(|(service, it)| it.incarnation() == container.incarnation() && container.service == service.name)
        });
        let mut memory = Memory::default();
        for (service, placement) in &wanted {
            let spec = service.spec_of(placement.revision);
            let shown = machine.containers.iter().any(|container| container.incarnation() == placement.incarnation());
            if !shown && machine.engine_gone_since.is_none() {
                if spec.volumes.iter().any(|mount| !mount.read_only) {
                    machine.writers.insert(container_id(service, placement));
                }
                let health = if spec.health.is_some() { Health::Healthy } else { Health::None };
                machine.containers.push(Container {
                    id: container_id(service, placement),
                    instance: flotilla_api::InstanceId(format!("{}-{}", service.name, placement.epoch)),
                    service: service.name.clone(),
                    stack: service.stack.clone(),
                    revision: placement.revision,
                    replica: placement.replica,
                    restarts: placement.restarts,
                    epoch: placement.epoch,
                    status: match spec.image.as_str() {
                        BAD => Status::Exited { code: 7, at: self.now, out_of_memory: false },
                        _ => Status::Running { since: self.now, health },
                    },
                    address: None,
                    closed_port: None,
                });
            }
            if spec.image == BAD {
                let attempts = memory.instances.entry((service.name.clone(), placement.replica)).or_default();
                attempts.faults = ROLLBACK_AFTER;
                attempts.incarnation = placement.incarnation();
            }
        }
        machine.applied = self.state.applied;
        machine.frozen = false;
        machine.report = Some(Report {
            at: self.now,
            applied: machine.applied,
            started_at: UnixMillis(0),
            version: String::new(),
            engine: match machine.engine_gone_since {
                Some(since) => EngineView::Unavailable { message: "it does not answer".to_owned(), since },
                None => EngineView::Ready {
                    version: String::new(),
                    api_version: String::new(),
                    operating_system: String::new(),
                },
            },
            resources: MachineResources::default(),
            observed: Some(Observed { at: self.now, containers: machine.containers.clone(), networks: Vec::new() }),
            memory,
            activities: BTreeMap::new(),
            usage: BTreeMap::new(),
            links: machine.links.clone(),
            images: machine.images.clone(),
            data: BTreeMap::new(),
            copy_limit: None,
            coming: Vec::new(),
            stored_images: Default::default(),
        });
        self.keep(id);
    }

    /// Captures what an instance that was told to end wrote last, where others have earlier generations of it.
    fn keep(&mut self, id: &NodeId) {
        let ended = |service: &Service, placement: &Placement| {
            let containers = &self.machines[id].containers;
            let data = &service.data;
            self.machines[id].captures
                && placement.exclusive
                && placement.phase == Phase::Vacating
                && data
                    .committed
                    .as_ref()
                    .is_some_and(|committed| !(committed.last && committed.name.epoch == placement.epoch))
                && !containers.iter().any(|it| it.service == service.name && it.epoch == placement.epoch)
        };
        let services = self.state.services.values();
        let ended: Vec<ServiceName> = services
            .filter(|service| service.placed_on(id).any(|placement| ended(service, placement)))
            .map(|service| service.name.clone())
            .collect();
        for name in ended {
            let committed = self.state.services[&name].data.committed.as_ref();
            let holders = committed.map(|committed| committed.holders().into_iter().cloned().collect());
            self.commit(&name, holders.unwrap_or_default(), true);
        }
    }

    /// The machine that writes the service's volumes commits its next generation, which these hold besides it.
    #[track_caller]
    pub(super) fn commit(&mut self, service: &ServiceName, mut holders: BTreeSet<NodeId>, last: bool) {
        let service = &self.state.services[service];
        let Some(placement) = service.placements.iter().find(|placement| placement.exclusive) else { return };
        let before = service.data.committed.as_ref().filter(|before| before.name.epoch == placement.epoch);
        let sequence = before.map_or(0, |before| before.name.sequence) + 1;
        let machine = placement.machine.clone();
        holders.insert(machine.clone());
        let copies = Copies { root: "ab".repeat(32), bytes: 1, holders };
        let volumes = service.volumes().into_iter().map(|volume| (volume, copies.clone())).collect();
        let generation =
            Generation { name: GenerationName { epoch: placement.epoch, sequence }, taken_at: self.now, last, volumes };
        let generations = BTreeMap::from([(service.name.clone(), generation)]);
        let committed = self.apply(CommandV1::CommitGenerations { machine, generations, seen: 0 });
        committed.unwrap_or_else(|rejected| panic!("{rejected}\n{}", self.story()));
    }

    /// What must be true at every moment.
    pub(super) fn check(&self) {
        for service in self.state.services.values() {
            let exclusive = service.placements.iter().any(|placement| placement.exclusive);
            assert!(!exclusive || service.placements.len() == 1, "one writes beside others:\n{}", self.story());
            let mut placed = service.placements.iter().map(|placement| &placement.machine).chain(&service.standby);
            assert!(placed.all(|id| !self.state.stores_only(id)), "something runs where it can't:\n{}", self.story());
            for mount in service.spec().written().filter(|mount| !mount.rules.encrypted) {
                let mut keepers = service.keepers(&self.state, mount).into_iter();
                assert!(keepers.all(|id| !self.state.stores_only(id)), "it can be read there:\n{}", self.story());
            }
        }
        let mut writers: BTreeMap<&ServiceName, u64> = BTreeMap::new();
        for machine in self.machines.values().filter(|machine| !machine.gone && !machine.frozen) {
            for container in machine.containers.iter().filter(|it| machine.writers.contains(&it.id) && is_running(it)) {
                let other = writers.insert(&container.service, container.epoch);
                assert!(other.is_none(), "two write the volumes of `{}`:\n{}", container.service, self.story());
            }
        }
        let mut epochs = BTreeSet::new();
        for placement in self.state.services.values().flat_map(|service| &service.placements) {
            assert!(epochs.insert(placement.epoch), "two placements have one epoch:\n{}", self.story());
        }
    }

    /// Machines of the active placements, by replica.
    #[track_caller]
    pub(super) fn on(&self, service: &str) -> Vec<String> {
        let service = &self.state.services[&name(service)];
        let active = service.placements.iter().filter(|placement| placement.phase == Phase::Active);
        active.map(|placement| self.state.machines[&placement.machine].name().to_string()).collect()
    }

    #[track_caller]
    pub(super) fn only(&self, service: &str) -> String {
        match &self.on(service)[..] {
            [one] => one.clone(),
            others => panic!("`{service}` is on {others:?}\n{}", self.story()),
        }
    }

    pub(super) fn service(&self, service: &str) -> &Service {
        &self.state.services[&name(service)]
    }

    /// How many instances answer, on machines that others reach.
    pub(super) fn answering(&self, service: &str) -> usize {
        let machines = self.machines.values().filter(|machine| !machine.gone);
        let containers = machines.flat_map(|machine| machine.containers.iter().map(move |it| (it, &machine.report)));
        containers
            .filter(|(container, report)| {
                container.service.as_str() == service
                    && report.as_ref().is_some_and(|report| container.is_ready(report.at))
            })
            .count()
    }

    pub(super) fn story(&self) -> String {
        let from = self.told.len().saturating_sub(60);
        let placements: Vec<String> = self
            .state
            .services
            .values()
            .flat_map(|service| service.placements.iter().map(move |it| format!("{} {it:?}", service.name)))
            .collect();
        format!("{}\nplacements:\n{}", self.told[from..].join("\n"), placements.join("\n"))
    }

    /// How many of the leader's changes so far are of this kind.
    pub(super) fn count(&self, kind: &str) -> usize {
        self.told.iter().filter(|told| told.split_whitespace().nth(1) == Some(kind)).count()
    }
}

fn container_id(service: &Service, placement: &Placement) -> String {
    format!("{}-{}-{}-{}", service.name, placement.epoch, placement.revision, placement.restarts)
}

fn is_running(container: &Container) -> bool {
    matches!(container.status, Status::Running { .. } | Status::Paused)
}

pub(super) fn id(name: &str) -> NodeId {
    NodeId(format!("id-of-{name}"))
}

pub(super) fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

fn record(name: &str) -> MachineRecord {
    MachineRecord { id: id(name), name: name.parse().unwrap(), public_key: String::new(), labels: BTreeMap::new() }
}
