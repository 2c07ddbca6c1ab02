//! Time, the network, and what happens when.

pub(crate) mod data;
mod leading;
mod machine;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_api::{NodeId, ServiceName, UnixMillis};
use flotilla_core::{
    CommandV1,
    lease::{Grant, Mono, Renewal},
    node::{Members, Outcome},
    reconcile::Action,
    report::Report,
    state::Phase,
};

use self::data::Offer;
use crate::{chance::Chance, disk::Writes, engine::Engine, log::Log, node::Node};

/// How often a daemon looks, and its guard. Milliseconds.
const TICK_MS: u64 = 40;
const GUARD_MS: u64 = 20;
/// What an action of the engine may take; less than what [`flotilla_core::lease::START_LEFT_MS`] leaves. Milliseconds.
const ACTION_MAX_MS: u64 = 350;
/// What freezing may take; less than `FREEZE_BEFORE_MS`. Milliseconds.
const FREEZE_MAX_MS: u64 = 120;

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Heartbeat { term: u64, commit: u64, sent: Mono },
    Ack { term: u64, sent: Mono },
    Renew(Renewal),
    Grant(Grant),
    Report(Arc<Report>),
    Offer(Arc<Offer>),
    Held { epoch: u64, sequence: u64, dropped: Option<u64> },
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Tick(usize),
    Guard(usize),
    Deliver {
        from: usize,
        to: usize,
        message: Message,
    },
    /// The daemon tells its engine to do something that takes so long.
    Issue {
        machine: usize,
        life: u64,
        key: u64,
        action: Action,
        takes: u64,
    },
    /// An action takes effect; the engine goes on though its daemon died.
    Effect {
        machine: usize,
        boot: u64,
        action: Action,
    },
    /// The daemon hears of it.
    Ended {
        machine: usize,
        life: u64,
        key: u64,
        action: Action,
        failed: bool,
    },
    Freeze {
        machine: usize,
        boot: u64,
        container: String,
        frozen: bool,
    },
    /// A capture, begun so long ago, has ended.
    Captured {
        machine: usize,
        life: u64,
        epoch: u64,
        writes: Writes,
        takes: u64,
    },
    Commit {
        by: usize,
        life: u64,
        term: u64,
        command: CommandV1,
    },
    ProposalEnd {
        by: usize,
        life: u64,
        term: u64,
        outcome: Outcome,
    },
    ChangeMembers {
        by: usize,
        life: u64,
        term: u64,
        members: Members,
    },
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) chance: Chance,
    pub(crate) nodes: Vec<Node>,
    pub(crate) log: Log,
    /// Which node's messages do not reach which.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Messages lost, of a hundred.
    pub(crate) loss: u64,
    /// The longest that a message takes. Milliseconds.
    pub(crate) latency: u64,
    /// Entries whose proposer was told that they are applied.
    pub(crate) acknowledged: Vec<u64>,
    /// Instances write, and machines keep copies of that.
    pub(crate) keeps_data: bool,
    /// All that was ever written, where, and by which service, except what was deleted.
    pub(crate) written: Vec<(usize, ServiceName, u64)>,
    /// Where each epoch's instance could write.
    writers: BTreeMap<ServiceName, BTreeMap<u64, usize>>,
    /// The newest number that was written.
    writes: u64,
    /// All that happened, for a run that failed.
    pub(crate) history: Vec<String>,
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    acks: BTreeMap<(usize, u64, Mono), BTreeSet<usize>>,
    heartbeat_at: BTreeMap<usize, u64>,
    boots: Vec<u64>,
    keep_history: bool,
}

impl World {
    pub(crate) fn new(seed: u64, machines: usize, keep_history: bool) -> Self {
        let mut chance = Chance::new(seed);
        let nodes =
            (0..machines).map(|number| Node::new(number, i64::try_from(chance.between(0, 20)).unwrap() - 10)).collect();
        let mut world = Self {
            now: 0,
            chance,
            nodes,
            log: Log::new(),
            cut: BTreeSet::new(),
            loss: 0,
            latency: 5,
            acknowledged: Vec::new(),
            keeps_data: false,
            written: Vec::new(),
            writers: BTreeMap::new(),
            writes: 0,
            history: Vec::new(),
            queue: BTreeMap::new(),
            serial: 0,
            acks: BTreeMap::new(),
            heartbeat_at: BTreeMap::new(),
            boots: vec![0; machines],
            keep_history,
        };
        for number in 0..machines {
            world.nodes[number].state = world.log.state_at(0);
            world.nodes[number].start_daemon();
            let (tick, guard) = (world.chance.between(0, TICK_MS), world.chance.between(0, GUARD_MS));
            world.after(tick, Event::Tick(number));
            world.after(guard, Event::Guard(number));
        }
        world
    }

    /// The time of day, as that machine has it.
    pub(crate) fn wall(&self, number: usize) -> UnixMillis {
        self.nodes[number].wall(self.now)
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.keep_history {
            let line = format!("{:>8} {}", self.now, text());
            self.history.push(line);
        }
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.serial += 1;
        self.queue.insert((self.now + millis, self.serial), event);
    }

    /// The time of the next event, if that is no later.
    pub(crate) fn next_before(&self, until: u64) -> Option<u64> {
        self.queue.keys().next().map(|(at, _)| *at).filter(|at| *at <= until)
    }

    /// Lets the next event happen.
    pub(crate) fn happen(&mut self) {
        let Some(((at, _), event)) = self.queue.pop_first() else { return };
        self.now = self.now.max(at);
        match event {
            Event::Tick(number) => {
                if self.nodes[number].acts() {
                    self.tick(number);
                }
                self.after(TICK_MS, Event::Tick(number));
            }
            Event::Guard(number) => {
                self.guard(number);
                self.write(number);
                self.after(GUARD_MS, Event::Guard(number));
            }
            Event::Deliver { from, to, message } => {
                if self.nodes[to].acts() {
                    self.deliver(from, to, message);
                }
            }
            Event::Issue { machine, life, key, action, takes } => self.issue(machine, life, key, action, takes),
            Event::Effect { machine, boot, action } => {
                if self.boots[machine] == boot && self.nodes[machine].powered {
                    self.effect(machine, &action);
                }
            }
            Event::Ended { machine, life, key, action, failed } => self.ended(machine, life, key, &action, failed),
            Event::Freeze { machine, boot, container, frozen } => {
                if self.boots[machine] == boot && self.nodes[machine].powered {
                    self.nodes[machine].engine.freeze(&container, frozen);
                }
            }
            Event::Captured { machine, life, epoch, writes, takes } => {
                self.captured(machine, life, epoch, writes, takes);
            }
            Event::Commit { by, life, term, command } => self.commit(by, life, term, command),
            Event::ProposalEnd { by, life, term, outcome } => self.proposal_end(by, life, term, outcome),
            Event::ChangeMembers { by, life, term, members } => self.change_members(by, life, term, &members),
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &Message) {
        if self.cut.contains(&(from, to)) || self.chance.percent(self.loss) {
            return;
        }
        let copies = if self.chance.percent(2) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if self.chance.percent(2) { 10 * self.latency } else { 0 };
            let delay = 1 + self.chance.between(0, self.latency) + late;
            self.after(delay, Event::Deliver { from, to, message: message.clone() });
        }
    }

    fn number_of(&self, id: &NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == *id)
    }

    fn tick(&mut self, number: usize) {
        if self.nodes[number].disk_fails
            && let Some(daemon) = &mut self.nodes[number].daemon
        {
            daemon.leader = None;
        }
        self.elect(number);
        self.heartbeat(number);
        self.reconcile(number);
        self.keep_lease(number);
        self.keep_data(number);
        self.lead(number);
    }

    fn is_member(&self, number: usize) -> bool {
        self.log.newest().machines.contains_key(&self.nodes[number].id)
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let now = self.now;
        match message {
            Message::Heartbeat { term, commit, sent } => {
                if term < self.nodes[to].term || self.nodes[to].disk_fails {
                    return;
                }
                self.adopt_term(to, term);
                let node = &mut self.nodes[to];
                node.heard_leader = now;
                node.stored = node.stored.max(commit);
                node.applied = node.applied.max(commit);
                node.state = self.log.state_at(node.applied);
                if let Some(daemon) = &mut node.daemon
                    && daemon.known_leader != Some(from)
                {
                    daemon.known_leader = Some(from);
                    daemon.member.hurry();
                }
                self.send(to, from, &Message::Ack { term, sent });
            }
            Message::Ack { term, sent } => self.acked(to, from, term, sent),
            Message::Renew(renewal) => {
                let id = self.nodes[from].id.clone();
                let node = &mut self.nodes[to];
                let (clock, state) = (node.clock(now), node.state.clone());
                let Some(leader) = node.daemon.as_mut().and_then(|daemon| daemon.leader.as_mut()) else { return };
                let grant = leader.renew(clock, &id, &renewal, &state);
                self.send(to, from, &Message::Grant(grant));
            }
            Message::Grant(grant) => {
                if let Some(daemon) = &mut self.nodes[to].daemon {
                    daemon.member.granted(&grant);
                }
            }
            Message::Offer(offer) => self.offered(from, to, &offer),
            Message::Held { epoch, sequence, dropped } => self.held(from, to, epoch, sequence, dropped),
            Message::Report(report) => {
                let id = self.nodes[from].id.clone();
                if let Some(daemon) = &mut self.nodes[to].daemon {
                    daemon.reports.insert(id, report);
                }
            }
        }
    }

    pub(crate) fn power_off(&mut self, number: usize) {
        self.note(|| format!("node-{number} loses its power"));
        self.boots[number] += 1;
        let wall = self.wall(number);
        let node = &mut self.nodes[number];
        (node.powered, node.daemon, node.suspended, node.stopped) = (false, None, false, false);
        node.guard = crate::node::Guard::default();
        node.engine.power_loss(wall);
    }

    pub(crate) fn boot(&mut self, number: usize) {
        self.note(|| format!("node-{number} boots"));
        let now = self.now;
        let node = &mut self.nodes[number];
        (node.powered, node.began, node.heard_leader) = (true, now, now);
        node.start_daemon();
    }

    /// It goes on where it was: its guard first, as its timer is due at once.
    pub(crate) fn wake(&mut self, number: usize) {
        let now = self.now;
        let node = &mut self.nodes[number];
        if !std::mem::replace(&mut node.suspended, false) || !node.powered {
            return;
        }
        if node.guard.deadline.is_some_and(|deadline| deadline <= node.clock(now)) {
            let guarded: Vec<String> = node.guard.guarded().cloned().collect();
            for target in guarded {
                node.engine.freeze(&target, true);
            }
        }
    }

    pub(crate) fn engine(&self, number: usize) -> &Engine {
        &self.nodes[number].engine
    }

    /// Is an instance on its way from one machine to another, or its former container still to be removed?
    pub(crate) fn moves(&self) -> bool {
        let state = self.log.newest();
        let mut placements = state.services.values().flat_map(|service| &service.placements);
        placements.any(|placement| placement.phase != Phase::Active)
            || self
                .nodes
                .iter()
                .flat_map(|node| node.engine.containers.values())
                .any(|real| state.placement(real.container.epoch).is_none())
    }

    pub(crate) fn told(&self) -> String {
        let from = self.history.len().saturating_sub(400);
        self.history[from..].join("\n")
    }
}
