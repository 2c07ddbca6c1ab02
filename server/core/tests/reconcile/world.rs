//! A node in virtual time: the state, the reconciler, and an engine whose containers do what their image's name says.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    ApiError, ErrorCode, NodeId, Revision, ServiceName, StackName, UnixMillis,
    rest::ServiceState,
    spec::{Restart, ServiceSpec, VolumeMount},
};
use flotilla_core::{
    Actor, Applied, Command, CommandV1, Entry, Rejected, State,
    command::{ClusterRecord, MachineRecord},
    compose,
    reconcile::{self, Action, Condition, Container, Health, Incarnation, Memory, Observed, Plan, Status, View, Views},
    schedule::{self, Input},
    state::Service,
};

/// A container, and what is behind it.
#[derive(Clone, Debug)]
pub(crate) struct Real {
    pub(crate) container: Container,
    pub(crate) volumes: Vec<VolumeMount>,
    image: String,
    checked: bool,
}

pub(crate) struct World {
    pub(crate) now: UnixMillis,
    pub(crate) state: State,
    pub(crate) memory: Memory,
    pub(crate) containers: BTreeMap<String, Real>,
    pub(crate) networks: BTreeSet<StackName>,
    /// Services whose volume directories were deleted.
    pub(crate) deleted: Vec<ServiceName>,
    /// Commands that the reconciler proposed.
    pub(crate) proposed: Vec<CommandV1>,
    /// All that was executed, as `time action`.
    pub(crate) history: Vec<(u64, String)>,
    /// While set, the engine refuses everything with it.
    pub(crate) broken: Option<ErrorCode>,
    pub(crate) node: NodeId,
    serial: u32,
    begin: UnixMillis,
}

/// How long after its start a container's image makes it end, and with which code.
fn fate(image: &str) -> Option<(u64, i64)> {
    match image {
        "crashes" => Some((500, 1)),
        "crashes-late" => Some((20_000, 1)),
        "job" => Some((1_000, 0)),
        "failing-job" => Some((1_000, 3)),
        _ => None,
    }
}

/// How long after its start a container's image listens on its port; absent: never.
fn opening(image: &str) -> Option<u64> {
    match image {
        "deaf" => None,
        "slow" => Some(20_000),
        _ => Some(0),
    }
}

/// When a container with a health check is found healthy or not.
const CHECKED_AFTER_MS: u64 = 1_500;

impl World {
    pub(crate) fn new() -> Self {
        let begin = UnixMillis(1_800_000_000_000);
        let node = NodeId("node".to_owned());
        let mut world = Self {
            now: begin,
            state: State::default(),
            memory: Memory::default(),
            containers: BTreeMap::new(),
            networks: BTreeSet::new(),
            deleted: Vec::new(),
            proposed: Vec::new(),
            history: Vec::new(),
            broken: None,
            node: node.clone(),
            serial: 0,
            begin,
        };
        let init = CommandV1::Init {
            cluster: ClusterRecord { id: "00".repeat(16), name: "home".parse().unwrap(), token_key: String::new() },
            machine: MachineRecord {
                id: node.clone(),
                name: "laptop".parse().unwrap(),
                public_key: String::new(),
                labels: BTreeMap::new(),
            },
        };
        world.apply(init).unwrap();
        world.apply(CommandV1::Lead { node, term: 1 }).unwrap();
        world
    }

    pub(crate) fn apply(&mut self, command: CommandV1) -> Result<Applied, Rejected> {
        let actor = Actor { name: "tester".to_owned(), token: None, from: None };
        let applied = self.state.apply(&Entry { at: self.now, actor, command: Command::V1(command) });
        self.place();
        applied
    }

    /// What the leader would do, at once.
    fn place(&mut self) {
        let actor = Actor { name: "node".to_owned(), token: None, from: None };
        loop {
            let plan = schedule::plan(&Input::unreported(self.now, &self.state));
            if plan.changes.is_empty() {
                return;
            }
            let place = CommandV1::Place { term: self.state.leadership.term, changes: plan.changes };
            for command in [place].into_iter().chain(plan.commands) {
                self.state.apply(&Entry { at: self.now, actor: actor.clone(), command: Command::V1(command) }).unwrap();
            }
        }
    }

    /// Deploys `services:` of a compose file, each line indented as it stands there, with a `data` volume declared.
    #[track_caller]
    pub(crate) fn deploy(&mut self, services: &str) {
        let (stack, services) = specs(services);
        self.apply(CommandV1::Deploy { stack, services }).unwrap();
    }

    pub(crate) fn observe(&self) -> Observed {
        Observed {
            at: self.now,
            containers: self.containers.values().map(|real| real.container.clone()).collect(),
            networks: self.networks.iter().cloned().collect(),
        }
    }

    pub(crate) fn plan(&mut self) -> Plan {
        let observed = self.observe();
        self.plan_from(&observed)
    }

    pub(crate) fn plan_from(&mut self, observed: &Observed) -> Plan {
        let serial = &mut self.serial;
        let mut fresh = || {
            *serial += 1;
            format!("{serial:08x}")
        };
        reconcile::reconcile(self.now, &self.node, true, &self.state, observed, &mut self.memory, &mut fresh)
    }

    /// One round as the shell does it; each action takes a millisecond.
    pub(crate) fn round(&mut self) -> Plan {
        let plan = self.plan();
        for action in &plan.actions {
            self.memory.begin(action);
        }
        let mut failed = BTreeSet::new();
        for action in &plan.actions {
            self.now = self.now.plus(1);
            let lane = lane(action);
            if failed.contains(&lane) {
                self.memory.dropped(action, self.now);
                continue;
            }
            let result = self.execute(action);
            if result.is_err() {
                failed.insert(lane);
            }
            self.memory.end(action, self.now, result.as_ref().copied());
        }
        plan
    }

    /// Rounds and time, until `until`; what the plan and the containers ask for happens at its time.
    pub(crate) fn run_until(&mut self, until: UnixMillis) {
        let mut rounds = 0;
        while self.now < until {
            rounds += 1;
            assert!(rounds < 20_000, "the reconciler never rests:\n{}", self.told());
            let plan = self.round();
            let next = [plan.wake_at, self.next_event()].into_iter().flatten().min();
            let next = next.map_or(until, |at| at.max(self.now.plus(1)));
            self.advance_to(if plan.actions.is_empty() { next.min(until) } else { self.now.plus(1) });
        }
    }

    pub(crate) fn run_for(&mut self, millis: u64) {
        self.run_until(self.now.plus(millis));
    }

    /// To a time at which every container has done what it was to do.
    pub(crate) fn advance_to(&mut self, to: UnixMillis) {
        while let Some(at) = self.next_event().filter(|at| *at <= to) {
            self.now = at.max(self.now);
            for real in self.containers.values_mut() {
                real.live(self.now);
            }
        }
        self.now = to.max(self.now);
    }

    fn next_event(&self) -> Option<UnixMillis> {
        self.containers.values().filter_map(Real::next).min()
    }

    pub(crate) fn execute(&mut self, action: &Action) -> Result<(), ApiError> {
        self.history.push((self.now.since(self.begin), summary(action)));
        if let Action::Propose(command) = action {
            self.proposed.push(command.clone());
            return self.apply(command.clone()).map(drop).map_err(|rejected| rejected.0);
        }
        if let Some(code) = self.broken {
            return Err(ApiError::new(code, "the engine is broken"));
        }
        match action {
            Action::CreateNetwork { stack } => {
                self.networks.insert(stack.clone());
                Ok(())
            }
            Action::RemoveNetwork { stack } => {
                assert!(
                    !self.containers.values().any(|real| real.container.stack == *stack),
                    "a network with containers can't be removed"
                );
                self.networks.remove(stack);
                Ok(())
            }
            Action::Run { instance, spec, revision, replica, restarts, epoch } => {
                if spec.image == "missing" {
                    return Err(ApiError::new(ErrorCode::ImageNotFound, "there is no image `missing`"));
                }
                assert!(self.networks.contains(&spec.stack), "the network of `{}` is not there", spec.stack);
                self.serial += 1;
                let id = format!("c{:04}", self.serial);
                let mut real = Real {
                    container: Container {
                        id: id.clone(),
                        instance: instance.clone(),
                        service: spec.name.clone(),
                        stack: spec.stack.clone(),
                        revision: *revision,
                        replica: *replica,
                        restarts: *restarts,
                        epoch: *epoch,
                        status: Status::Created,
                        address: None,
                        closed_port: None,
                    },
                    volumes: spec.volumes.clone(),
                    image: spec.image.clone(),
                    checked: spec.health.is_some(),
                };
                if spec.image == "won't-start" {
                    self.containers.insert(id, real);
                    return Err(ApiError::new(ErrorCode::EngineFailed, "no such executable"));
                }
                real.start(self.now);
                self.containers.insert(id, real);
                Ok(())
            }
            Action::Start { container, .. } => match self.containers.get_mut(container) {
                None => Err(ApiError::new(ErrorCode::InstanceNotFound, "there is no such container")),
                Some(real) => {
                    real.start(self.now);
                    Ok(())
                }
            },
            Action::Remove { container, .. } => {
                self.containers.remove(container);
                Ok(())
            }
            Action::DeleteVolumes { service } => {
                let used = self.containers.values().any(|real| real.container.service == *service);
                assert!(!used, "volumes of `{service}` were deleted under its container");
                self.deleted.push(service.clone());
                Ok(())
            }
            Action::Propose(_) => unreachable!("handled above"),
        }
    }

    /// What must be true at every moment.
    pub(crate) fn check_invariants(&self) {
        let running: Vec<&Real> = self.containers.values().filter(|real| real.is_running()).collect();
        for (index, one) in running.iter().enumerate() {
            for other in &running[index + 1..] {
                if one.container.service != other.container.service {
                    continue;
                }
                let shared = one.volumes.iter().any(|mine| {
                    other
                        .volumes
                        .iter()
                        .any(|yours| mine.volume == yours.volume && !(mine.read_only && yours.read_only))
                });
                assert!(!shared, "two containers have one volume:\n{one:?}\n{other:?}\n{}", self.told());
                let same = one.container.replica == other.container.replica && one.incarnation() == other.incarnation();
                assert!(!same, "one replica runs twice:\n{one:?}\n{other:?}\n{}", self.told());
            }
        }
    }

    /// What must be true when nothing happens any more.
    pub(crate) fn check_settled(&self) {
        for service in self.state.services.values() {
            let mine: Vec<&Real> = self.of(service.name.as_str());
            assert!(
                mine.iter().all(|real| real.container.incarnation_matches(service)),
                "an instance of another incarnation was left:\n{}",
                self.told()
            );
            let mut replicas: Vec<u32> = mine.iter().map(|real| real.container.replica).collect();
            replicas.sort_unstable();
            assert_eq!(
                replicas,
                (1..=service.replicas).collect::<Vec<_>>(),
                "`{}` has not the instances that it shall have:\n{}",
                service.name,
                self.told()
            );
            if fate(&service.spec().image).is_none() {
                let done = |real: &Real| {
                    service.spec().restart != Restart::Always
                        && matches!(real.container.status, Status::Exited { code: 0, .. })
                };
                let well = mine.iter().all(|real| real.is_running() || done(real));
                assert!(well, "`{}` does not run:\n{}", service.name, self.told());
            }
        }
        for real in self.containers.values() {
            assert!(self.state.services.contains_key(&real.container.service), "an orphan was left:\n{}", self.told());
        }
        assert!(self.state.condemned_volumes.is_empty(), "volumes were not deleted:\n{}", self.told());
        let stacks: BTreeSet<StackName> = self.state.services.values().map(|service| service.stack.clone()).collect();
        for stack in &self.networks {
            assert!(stacks.contains(stack), "the network of `{stack}` was left:\n{}", self.told());
        }
    }

    pub(crate) fn of(&self, service: &str) -> Vec<&Real> {
        self.containers.values().filter(|real| real.container.service.as_str() == service).collect()
    }

    #[track_caller]
    pub(crate) fn only(&self, service: &str) -> &Real {
        match self.of(service)[..] {
            [one] => one,
            ref others => panic!("`{service}` has {} containers: {others:?}\n{}", others.len(), self.told()),
        }
    }

    pub(crate) fn service(&self, name: &str) -> &Service {
        &self.state.services[&name.parse::<ServiceName>().unwrap()]
    }

    pub(crate) fn condition(&self, name: &str) -> Condition {
        let observed = self.observe();
        reconcile::condition(self.now, self.service(name), &self.views(&observed))
    }

    pub(crate) fn views<'a>(&'a self, observed: &'a Observed) -> Views<'a> {
        BTreeMap::from([(&self.node, View { observed: Some(observed), memory: &self.memory, at: observed.at })])
    }

    pub(crate) fn condition_state(&self, name: &str) -> ServiceState {
        self.condition(name).state
    }

    /// Seconds at which something was done, of those whose summary begins so.
    pub(crate) fn times(&self, what: &str) -> Vec<u64> {
        self.history.iter().filter(|(_, summary)| summary.starts_with(what)).map(|(at, _)| at / 1000).collect()
    }

    pub(crate) fn actions(&self) -> Vec<&str> {
        self.history.iter().map(|(_, summary)| summary.as_str()).collect()
    }

    /// For a test that failed.
    pub(crate) fn told(&self) -> String {
        let history: Vec<String> = self.history.iter().map(|(at, summary)| format!("{at:>8} {summary}")).collect();
        let from = history.len().saturating_sub(60);
        let containers: Vec<String> =
            self.containers.values().map(|real| format!("  {} {:?}", real.container.id, real.container)).collect();
        format!(
            "at {} ms\n{}\ncontainers:\n{}\nservices: {:#?}",
            self.now.since(self.begin),
            history[from..].join("\n"),
            containers.join("\n"),
            self.state.services.values().map(|s| (s.name.as_str(), &s.placements, s.replicas)).collect::<Vec<_>>()
        )
    }
}

impl Real {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.container.status, Status::Running { .. })
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        let Container { revision, restarts, epoch, .. } = self.container;
        Incarnation { revision, restarts, epoch }
    }

    pub(crate) fn start(&mut self, now: UnixMillis) {
        let health = if self.checked { Health::Starting } else { Health::None };
        self.container.status = Status::Running { since: now, health };
        self.container.address = Some("10.0.0.2".parse().unwrap());
        self.container.closed_port = (opening(&self.image) != Some(0)).then_some(8080);
    }

    pub(crate) fn exit(&mut self, now: UnixMillis, code: i64) {
        self.container.status = Status::Exited { code, at: now, out_of_memory: false };
        self.container.address = None;
        self.container.closed_port = None;
    }

    fn next(&self) -> Option<UnixMillis> {
        let Status::Running { since, health } = self.container.status else { return None };
        let check = (health == Health::Starting).then(|| since.plus(CHECKED_AFTER_MS));
        let opens =
            opening(&self.image).filter(|_| self.container.closed_port.is_some()).map(|after| since.plus(after));
        [check, opens, fate(&self.image).map(|(after, _)| since.plus(after))].into_iter().flatten().min()
    }

    fn live(&mut self, now: UnixMillis) {
        let Status::Running { since, health } = self.container.status else { return };
        if health == Health::Starting && now.since(since) >= CHECKED_AFTER_MS {
            let health = if self.image == "sick" { Health::Unhealthy } else { Health::Healthy };
            self.container.status = Status::Running { since, health };
        }
        if opening(&self.image).is_some_and(|after| now.since(since) >= after) {
            self.container.closed_port = None;
        }
        if let Some((after, code)) = fate(&self.image)
            && now.since(since) >= after
        {
            self.exit(now, code);
        }
    }
}

pub(crate) trait OfIncarnation {
    fn incarnation_matches(&self, service: &Service) -> bool;
}

impl OfIncarnation for Container {
    fn incarnation_matches(&self, service: &Service) -> bool {
        service.placements.iter().any(|placement| {
            placement.incarnation()
                == Incarnation { revision: self.revision, restarts: self.restarts, epoch: self.epoch }
        })
    }
}

pub(crate) fn specs(services: &str) -> (StackName, Vec<ServiceSpec>) {
    let text = format!("name: stack\nservices:\n{services}\nvolumes:\n  data:\n");
    let composition = compose::read(&text, None, &BTreeMap::new()).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
    (composition.stack, composition.services)
}

/// Actions that the shell executes one after another.
pub(crate) fn lane(action: &Action) -> String {
    match action {
        Action::CreateNetwork { stack } | Action::RemoveNetwork { stack } => format!("network {stack}"),
        Action::Run { spec, .. } => spec.name.to_string(),
        Action::Start { service, .. } | Action::Remove { service, .. } | Action::DeleteVolumes { service } => {
            service.to_string()
        }
        Action::Propose(_) => "proposals".to_owned(),
    }
}

fn summary(action: &Action) -> String {
    match action {
        Action::CreateNetwork { stack } => format!("create network {stack}"),
        Action::RemoveNetwork { stack } => format!("remove network {stack}"),
        Action::Run { spec, revision: Revision(revision), replica, .. } => {
            format!("run {} r{revision} #{replica}", spec.name)
        }
        Action::Start { service, replica, .. } => format!("start {service} #{replica}"),
        Action::Remove { service, .. } => format!("remove {service}"),
        Action::DeleteVolumes { service } => format!("delete volumes {service}"),
        Action::Propose(CommandV1::RollBack { service, .. }) => format!("propose roll back {service}"),
        Action::Propose(CommandV1::ConfirmRevision { service, revision }) => {
            format!("propose confirm {service} r{revision}")
        }
        Action::Propose(CommandV1::VolumesPurged { service, .. }) => format!("propose purged {service}"),
        Action::Propose(other) => format!("propose {other:?}"),
    }
}
