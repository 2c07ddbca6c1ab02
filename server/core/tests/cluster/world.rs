//! Time, the network, and what happens when.

pub(crate) mod data;
mod machine;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_api::{NodeId, ServiceName, UnixMillis};
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    lease::{Grant, Mono, Renewal},
    node::{Leader, Members, Outcome},
    reconcile::Action,
    report::Report,
    state::Phase,
};

use self::data::Offer;
use crate::{chance::Chance, disk::Writes, engine::Engine, log::Log, node::Node};

/// How often a daemon looks, its guard looks, and a leader sends heartbeats. Milliseconds.
const TICK_MS: u64 = 40;
const GUARD_MS: u64 = 20;
const HEARTBEAT_MS: u64 = 160;
/// A follower that heard a leader within this time votes for no other. Milliseconds.
const LOYAL_MS: u64 = 600;
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
    Held { epoch: u64, sequence: u64 },
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

    /// Voters, this one included, that can hear and answer it now, and would follow a leader of this term.
    fn followers(&self, number: usize, term: u64) -> BTreeSet<usize> {
        self.log.voters.iter().copied().filter(|other| self.follows(number, *other, term)).collect()
    }

    fn follows(&self, number: usize, other: usize, term: u64) -> bool {
        let reaches = other == number
            || (!self.cut.contains(&(number, other))
                && !self.cut.contains(&(other, number))
                && self.nodes[other].acts()
                && self.nodes[other].term <= term);
        reaches && !self.nodes[other].disk_fails
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

    fn elect(&mut self, number: usize) {
        let node = &self.nodes[number];
        let leads = node.daemon.as_ref().is_some_and(|daemon| daemon.leader.is_some());
        let patient = self.now.saturating_sub(node.heard_leader) < node.election_after;
        if leads || patient || node.disk_fails || !self.log.voters.contains(&number) || self.log.len() == 0 {
            return;
        }
        let wait = self.chance.between(600, 900);
        self.nodes[number].election_after = wait;
        self.nodes[number].heard_leader = self.now;
        let term = 1 + self.nodes.iter().map(|node| node.term).max().unwrap_or(0);
        let candidates = self.followers(number, term);
        let mut granted: BTreeSet<usize> = candidates
            .into_iter()
            .filter(|other| {
                let other = &self.nodes[*other];
                self.now.saturating_sub(other.heard_leader) >= LOYAL_MS && other.stored <= self.nodes[number].stored
            })
            .collect();
        granted.insert(number);
        if !self.log.is_quorum(&granted) {
            return;
        }
        for voter in &granted {
            self.adopt_term(*voter, term);
        }
        assert_eq!(self.nodes[number].stored, self.log.len(), "a leader lacks what is committed");
        let newest = self.log.newest();
        let node = &mut self.nodes[number];
        (node.applied, node.state) = (node.stored, newest);
        let id = node.id.clone();
        if let Some(daemon) = &mut node.daemon {
            daemon.leader = Some(Leader::new(id, term));
            daemon.known_leader = Some(number);
            daemon.changing_members = false;
            daemon.member.hurry();
        }
        self.note(|| format!("node-{number} leads in term {term}"));
    }

    fn adopt_term(&mut self, number: usize, term: u64) {
        let node = &mut self.nodes[number];
        if term > node.term {
            node.term = term;
            if let Some(daemon) = &mut node.daemon {
                daemon.leader = None;
            }
        }
    }

    fn heartbeat(&mut self, number: usize) {
        let now = self.now;
        let node = &self.nodes[number];
        let Some(term) = node.daemon.as_ref().and_then(|daemon| daemon.leader.as_ref()).map(Leader::term) else {
            return;
        };
        if now < self.heartbeat_at.get(&number).copied().unwrap_or(0) {
            return;
        }
        self.heartbeat_at.insert(number, now + HEARTBEAT_MS);
        let sent = node.clock(now);
        let commit = node.stored;
        self.nodes[number].heard_leader = now;
        self.acks.retain(|(leader, _, at), _| *leader != number || sent.since(*at) < 5_000);
        self.acks.insert((number, term, sent), BTreeSet::new());
        self.acked(number, number, term, sent);
        for other in 0..self.nodes.len() {
            if other != number && self.is_member(other) {
                self.send(number, other, &Message::Heartbeat { term, commit, sent });
            }
        }
    }

    fn is_member(&self, number: usize) -> bool {
        self.log.newest().machines.contains_key(&self.nodes[number].id)
    }

    fn acked(&mut self, leader: usize, from: usize, term: u64, sent: Mono) {
        let Some(acks) = self.acks.get_mut(&(leader, term, sent)) else { return };
        acks.insert(from);
        let acks = acks.clone();
        if !self.log.is_quorum(&acks) {
            return;
        }
        let Some(daemon) = &mut self.nodes[leader].daemon else { return };
        if let Some(leader) = daemon.leader.as_mut().filter(|leader| leader.term() == term) {
            leader.confirm(sent);
        }
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
            Message::Held { epoch, sequence } => self.held(from, to, epoch, sequence),
            Message::Report(report) => {
                let id = self.nodes[from].id.clone();
                if let Some(daemon) = &mut self.nodes[to].daemon {
                    daemon.reports.insert(id, report);
                }
            }
        }
    }

    fn lead(&mut self, number: usize) {
        let (now, wall) = (self.now, self.wall(number));
        let id_of = |voter: &usize| self.nodes[*voter].id.clone();
        let voters: BTreeSet<NodeId> = self.log.voters.iter().map(id_of).collect();
        let node = &mut self.nodes[number];
        let clock = node.clock(now);
        let state = node.state.clone();
        let life = node.life;
        let single = voters.len() == 1;
        let learners = state.machines.keys().filter(|id| !voters.contains(*id)).cloned().collect();
        let Some(daemon) = &mut node.daemon else { return };
        let Some(leader) = &mut daemon.leader else { return };
        if single {
            leader.confirm(clock);
        }
        let term = leader.term();
        let step = leader.step(clock, wall, &state, &daemon.reports, &Members { voters, learners });
        let members = step.members.filter(|_| !daemon.changing_members);
        if let Some(members) = members {
            daemon.changing_members = true;
            let delay = self.chance.between(1, 30);
            self.after(delay, Event::ChangeMembers { by: number, life, term, members });
        }
        if let Some(command) = step.propose {
            let delay = self.chance.between(0, 30);
            self.after(delay, Event::Commit { by: number, life, term, command });
        }
    }

    fn commit(&mut self, by: usize, life: u64, term: u64, command: CommandV1) {
        let outcome = match self.try_commit(by, life, term, command) {
            Some(outcome) => outcome,
            None => Outcome::Unknown,
        };
        let wait = if outcome == Outcome::Unknown { 1_000 } else { self.chance.between(1, 20) };
        // Now and then the answer is lost, though it was done.
        let outcome = if self.chance.percent(2) { Outcome::Unknown } else { outcome };
        self.after(wait, Event::ProposalEnd { by, life, term, outcome });
    }

    fn leads(&self, by: usize, life: u64, term: u64) -> bool {
        let node = &self.nodes[by];
        let leads = node.daemon.as_ref().and_then(|daemon| daemon.leader.as_ref()).map(Leader::term) == Some(term);
        node.acts() && !node.disk_fails && node.life == life && node.term == term && leads
    }

    fn try_commit(&mut self, by: usize, life: u64, term: u64, command: CommandV1) -> Option<Outcome> {
        if !self.leads(by, life, term) {
            return None;
        }
        let quorum = self.followers(by, term);
        if !self.log.is_quorum(&quorum) {
            return None;
        }
        self.note(|| format!("node-{by} (term {term}) commits {command:?}"));
        let actor = Actor { name: "sim".to_owned(), token: None, from: None };
        let result = self.log.commit(Entry { at: self.wall(by), actor, command: Command::V1(command) });
        let (length, newest) = (self.log.len(), self.log.newest());
        for service in newest.services.values() {
            for placement in service.placements.iter().filter(|placement| placement.exclusive) {
                if let Some(machine) = self.number_of(&placement.machine) {
                    self.writers.entry(service.name.clone()).or_default().insert(placement.epoch, machine);
                }
            }
        }
        for follower in quorum {
            self.adopt_term(follower, term);
            self.nodes[follower].stored = length;
        }
        let node = &mut self.nodes[by];
        (node.applied, node.state) = (length, newest);
        match result {
            Ok(index) => {
                self.acknowledged.push(index);
                Some(Outcome::Applied)
            }
            Err(rejected) => {
                self.note(|| format!("rejected: {rejected}"));
                Some(Outcome::Rejected)
            }
        }
    }

    fn proposal_end(&mut self, by: usize, life: u64, term: u64, outcome: Outcome) {
        let node = &self.nodes[by];
        if node.life == life && node.daemon.is_some() && !node.acts() {
            // It hears of it when it wakes.
            return self.after(TICK_MS, Event::ProposalEnd { by, life, term, outcome });
        }
        if !self.leads(by, life, term) {
            return;
        }
        let clock = self.nodes[by].clock(self.now);
        if let Some(leader) = self.nodes[by].daemon.as_mut().and_then(|daemon| daemon.leader.as_mut()) {
            leader.proposed(clock, outcome);
        }
    }

    fn change_members(&mut self, by: usize, life: u64, term: u64, members: &Members) {
        if self.nodes[by].life == life
            && let Some(daemon) = &mut self.nodes[by].daemon
        {
            daemon.changing_members = false;
        }
        if !self.leads(by, life, term) {
            return;
        }
        let voters: BTreeSet<usize> = members.voters.iter().filter_map(|id| self.number_of(id)).collect();
        // A joint consensus: a quorum of both.
        let reachable = self.followers(by, term);
        let new: BTreeSet<usize> = voters.iter().copied().filter(|other| self.follows(by, *other, term)).collect();
        if self.log.is_quorum(&reachable) && 2 * new.len() > voters.len() {
            let length = self.log.len();
            for voter in reachable.iter().chain(&new) {
                self.adopt_term(*voter, term);
                self.nodes[*voter].stored = length;
            }
            self.note(|| format!("voters are {voters:?}"));
            self.log.voters = voters;
        }
    }

    /// A client's command, through whoever leads. True if it was acknowledged.
    pub(crate) fn propose(&mut self, by: usize, command: CommandV1) -> bool {
        let _ = by;
        let leader = (0..self.nodes.len()).find(|number| {
            let node = &self.nodes[*number];
            let term = node.daemon.as_ref().and_then(|daemon| daemon.leader.as_ref()).map(Leader::term);
            node.acts()
                && !node.disk_fails
                && term.is_some_and(|term| self.log.is_quorum(&self.followers(*number, term)) && term == node.term)
        });
        let Some(leader) = leader else { return false };
        let (life, term) = (self.nodes[leader].life, self.nodes[leader].term);
        self.try_commit(leader, life, term, command) == Some(Outcome::Applied)
    }

    /// What a founder does before anybody leads.
    pub(crate) fn found(&mut self, command: CommandV1) {
        let actor = Actor { name: "init".to_owned(), token: None, from: None };
        let entry = Entry { at: self.wall(0), actor, command: Command::V1(command) };
        self.log.commit(entry).unwrap();
        let (length, newest) = (self.log.len(), self.log.newest());
        let node = &mut self.nodes[0];
        (node.stored, node.applied, node.state) = (length, length, newest);
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
