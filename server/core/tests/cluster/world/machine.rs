//! What one machine does: its daemon follows the state and keeps its lease, its guard freezes, and its engine takes its time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_api::{
    ApiError, ErrorCode, UnixMillis,
    rest::{EngineView, LinkState, LinkView, MachineResources},
};
use flotilla_core::{
    CommandV1,
    node::Sight,
    reconcile::{Action, reconcile},
    report::Report,
};

use super::{ACTION_MAX_MS, Event, FREEZE_MAX_MS, Message, TICK_MS, World};
use crate::node::Node;

impl World {
    pub(super) fn reconcile(&mut self, number: usize) {
        let wall = self.wall(number);
        let life = self.nodes[number].life;
        let may_start = self.may_start(number);
        let chance = &mut self.chance;
        let node = &mut self.nodes[number];
        let Some(daemon) = &mut node.daemon else { return };
        daemon.recent.clear();
        let observed = node.engine.observe(wall);
        let mut fresh = || format!("{:08x}", chance.next() as u32);
        let plan = reconcile(wall, &node.id, may_start, &node.state, &observed, &mut daemon.memory, &mut fresh);
        daemon.planned = node.state.applied;
        let epochs: BTreeMap<String, u64> =
            observed.containers.iter().map(|container| (container.id.clone(), container.epoch)).collect();
        daemon.observed = Some(observed);
        let mut lanes: BTreeMap<String, u64> = BTreeMap::new();
        for action in plan.actions {
            if let Action::Propose(command) = action {
                // Whether a revision is good is no matter here; only that what is condemned is purged.
                if matches!(command, CommandV1::VolumesPurged { .. }) {
                    self.propose(number, command);
                }
                continue;
            }
            let Some(daemon) = &mut self.nodes[number].daemon else { return };
            daemon.memory.begin(&action);
            let begins = lanes.entry(lane(&action)).or_default();
            let takes = self.chance.between(5, ACTION_MAX_MS);
            let issued = *begins;
            *begins += takes;
            self.serial += 1;
            let key = self.serial;
            let epoch = match &action {
                Action::Run { epoch, .. } => Some(*epoch),
                Action::Start { container, .. } => epochs.get(container).copied(),
                _ => None,
            };
            if let (Some(epoch), Some(daemon)) = (epoch, &mut self.nodes[number].daemon) {
                daemon.under_way.insert(key, epoch);
            }
            self.after(issued, Event::Issue { machine: number, life, key, action, takes });
        }
    }

    fn may_start(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        let clock = node.clock(self.now);
        node.daemon.as_ref().is_some_and(|daemon| daemon.member.may_start(clock, self.is_alone(number)))
    }

    /// What the real one does: it looks at the lease once more before it starts what could write a volume.
    pub(super) fn issue(&mut self, machine: usize, life: u64, key: u64, action: Action, takes: u64) {
        let node = &self.nodes[machine];
        if node.life != life || node.daemon.is_none() {
            return;
        }
        if !node.acts() {
            return self.after(1, Event::Issue { machine, life, key, action, takes });
        }
        let starts = match &action {
            Action::Run { spec, .. } => spec.volumes.iter().any(|mount| !mount.read_only),
            Action::Start { container, .. } => node.engine.containers.get(container).is_some_and(|real| real.writes),
            _ => false,
        };
        let wall = self.wall(machine);
        if starts && !self.may_start(machine) {
            if let Some(daemon) = &mut self.nodes[machine].daemon {
                daemon.under_way.remove(&key);
                daemon.memory.dropped(&action, wall);
            }
            return;
        }
        if let Action::Start { container, .. } = &action
            && starts
        {
            let now = self.now;
            self.nodes[machine].guard.announced.insert(container.clone(), now);
        }
        let boot = self.boots[machine];
        let writes =
            !matches!(action, Action::Remove { .. } | Action::RemoveNetwork { .. } | Action::DeleteVolumes { .. });
        let failed = self.nodes[machine].disk_fails && writes;
        // An engine that fails may have done it nevertheless.
        if !failed || self.chance.percent(20) {
            let effect = self.chance.between(1, takes);
            self.after(effect, Event::Effect { machine, boot, action: action.clone() });
        }
        self.after(takes, Event::Ended { machine, life, key, action, failed });
    }

    /// What the real one does: it registers what it has created with the guard before it starts.
    pub(super) fn effect(&mut self, machine: usize, action: &Action) {
        let (now, wall) = (self.now, self.wall(machine));
        self.begin_data(machine, action);
        let node = &mut self.nodes[machine];
        let before: BTreeSet<String> = node.engine.containers.keys().cloned().collect();
        node.engine.execute(machine, wall, action);
        let made = node.engine.containers.values().filter(|real| !before.contains(&real.container.id) && real.writes);
        node.guard.announced.extend(made.map(|real| (real.container.id.clone(), now)));
        self.note(|| format!("node-{machine} {}", summary(action)));
    }

    pub(super) fn ended(&mut self, machine: usize, life: u64, key: u64, action: &Action, failed: bool) {
        let wall = self.wall(machine);
        let node = &self.nodes[machine];
        if node.life == life && node.daemon.is_some() && !node.acts() {
            return self.after(TICK_MS, Event::Ended { machine, life, key, action: action.clone(), failed });
        }
        let node = &mut self.nodes[machine];
        if node.life != life || !node.acts() {
            return;
        }
        if let Some(daemon) = &mut node.daemon {
            let full = ApiError::new(ErrorCode::DiskFull, "the disk is full");
            daemon.memory.end(action, wall, if failed { Err(&full) } else { Ok(()) });
            if let Some(epoch) = daemon.under_way.remove(&key) {
                daemon.recent.insert(epoch);
            }
        }
    }

    pub(super) fn guard(&mut self, number: usize) {
        let now = self.now;
        let node = &self.nodes[number];
        if !node.powered || node.suspended {
            return;
        }
        let Some(deadline) = node.guard.deadline.filter(|deadline| *deadline <= node.clock(now)) else { return };
        let awake: Vec<String> = node
            .guard
            .guarded()
            .filter(|id| node.engine.containers.get(*id).is_some_and(|real| !real.frozen))
            .cloned()
            .collect();
        if awake.is_empty() {
            return;
        }
        self.note(|| format!("the guard of node-{number} freezes {awake:?} ({deadline:?})"));
        self.freeze(number, &awake, true);
    }

    pub(super) fn freeze(&mut self, number: usize, containers: &[String], frozen: bool) {
        let boot = self.boots[number];
        for container in containers {
            // One event for each, as each is a file.
            let takes = self.chance.between(1, FREEZE_MAX_MS);
            self.after(takes, Event::Freeze { machine: number, boot, container: container.clone(), frozen });
        }
    }

    fn is_alone(&self, number: usize) -> bool {
        let state = &self.nodes[number].state;
        state.machines.len() < 3 && self.log.voters == BTreeSet::from([number])
    }

    pub(super) fn keep_lease(&mut self, number: usize) {
        let now = self.now;
        let alone = self.is_alone(number);
        let node = &mut self.nodes[number];
        let clock = node.clock(now);
        let frozen = node.engine.frozen();
        let Some(daemon) = &mut node.daemon else { return };
        let starting = daemon.starting();
        let sight = Sight {
            state: &node.state,
            observed: daemon.observed.as_ref(),
            planned: daemon.planned,
            starting: &starting,
            frozen: &frozen,
            alone,
        };
        let orders = daemon.member.orders(clock, &sight);
        let guarded = orders.guarded.into_iter().map(|(container, _)| container).collect();
        node.guard.tell(now, orders.deadline, guarded);
        let leader = daemon.known_leader;
        if !orders.freeze.is_empty() {
            self.note(|| format!("node-{number} freezes {:?}", orders.freeze));
            self.freeze(number, &orders.freeze, true);
        }
        if !orders.thaw.is_empty() {
            self.note(|| format!("node-{number} thaws {:?}", orders.thaw));
            for container in &orders.thaw {
                self.nodes[number].engine.freeze(container, false);
            }
        }
        if let (Some(renewal), Some(leader)) = (orders.renew, leader) {
            if leader == number {
                let message = Message::Renew(renewal);
                self.after(0, Event::Deliver { from: number, to: number, message });
            } else {
                self.send(number, leader, &Message::Renew(renewal));
            }
        }
        self.tell(number);
    }

    /// What it measures: how much messages differ in how long they take.
    fn links(&self, number: usize) -> Vec<LinkView> {
        let at = self.wall(number);
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != number);
        let link = |node: &Node| LinkView {
            peer: node.id.clone(),
            state: LinkState::Up,
            path: None,
            bulk: None,
            remote: None,
            rtt_ms: Some(self.latency as f64),
            jitter_ms: Some(self.latency as f64 / 4.0),
            loss: None,
            sent_per_second: 0,
            received_per_second: 0,
            since: at,
            observed_at: at,
            problem: None,
        };
        others.map(|(_, node)| link(node)).collect()
    }

    fn tell(&mut self, number: usize) {
        let wall = self.wall(number);
        let links = self.links(number);
        let node = &mut self.nodes[number];
        let Some(daemon) = &mut node.daemon else { return };
        let report = Arc::new(Report {
            at: wall,
            applied: node.state.applied,
            started_at: UnixMillis(0),
            version: "0".to_owned(),
            engine: EngineView::Ready {
                version: String::new(),
                api_version: String::new(),
                operating_system: String::new(),
            },
            resources: MachineResources::default(),
            observed: daemon.observed.clone(),
            memory: daemon.memory.clone(),
            activities: BTreeMap::new(),
            usage: BTreeMap::new(),
            links,
            images: Vec::new(),
            data: BTreeMap::new(),
            stored_images: Default::default(),
            copy_limit: None,
            coming: Vec::new(),
        });
        daemon.reports.insert(node.id.clone(), report.clone());
        for other in 0..self.nodes.len() {
            if other != number {
                self.send(number, other, &Message::Report(report.clone()));
            }
        }
    }
}

fn lane(action: &Action) -> String {
    match action {
        Action::CreateNetwork { stack } | Action::RemoveNetwork { stack } => format!("network {stack}"),
        Action::Run { spec, .. } => spec.name.to_string(),
        Action::Start { service, .. } | Action::Remove { service, .. } | Action::DeleteVolumes { service } => {
            service.to_string()
        }
        Action::Propose(_) => String::new(),
    }
}

fn summary(action: &Action) -> String {
    match action {
        Action::Run { spec, epoch, .. } => format!("runs {} under {epoch}", spec.name),
        other => format!("{other:?}"),
    }
}
