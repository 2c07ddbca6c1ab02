//! Who leads, and what is agreed on: the consensus as its users see it. It commits where a quorum can be reached, and nowhere else.

use std::collections::BTreeSet;

use flotilla_api::NodeId;
use flotilla_core::{
    Actor, Command, CommandV1, Entry,
    lease::Mono,
    node::{Leader, Members, Outcome},
};

use super::{Event, Message, TICK_MS, World};

/// How often a leader sends heartbeats. Milliseconds.
const HEARTBEAT_MS: u64 = 160;
/// A follower that heard a leader within this time votes for no other. Milliseconds.
const LOYAL_MS: u64 = 600;

impl World {
    /// Voters, this one included, that can hear and answer it now, and would follow a leader of this term.
    pub(super) fn followers(&self, number: usize, term: u64) -> BTreeSet<usize> {
        self.log.voters.iter().copied().filter(|other| self.follows(number, *other, term)).collect()
    }

    pub(super) fn follows(&self, number: usize, other: usize, term: u64) -> bool {
        let reaches = other == number
            || (!self.cut.contains(&(number, other))
                && !self.cut.contains(&(other, number))
                && self.nodes[other].acts()
                && self.nodes[other].term <= term);
        reaches && !self.nodes[other].disk_fails
    }

    pub(super) fn elect(&mut self, number: usize) {
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

    pub(super) fn adopt_term(&mut self, number: usize, term: u64) {
        let node = &mut self.nodes[number];
        if term > node.term {
            node.term = term;
            if let Some(daemon) = &mut node.daemon {
                daemon.leader = None;
            }
        }
    }

    pub(super) fn heartbeat(&mut self, number: usize) {
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

    pub(super) fn acked(&mut self, leader: usize, from: usize, term: u64, sent: Mono) {
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

    pub(super) fn lead(&mut self, number: usize) {
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

    pub(super) fn commit(&mut self, by: usize, life: u64, term: u64, command: CommandV1) {
        let outcome = match self.try_commit(by, life, term, command) {
            Some(outcome) => outcome,
            None => Outcome::Unknown,
        };
        let wait = if outcome == Outcome::Unknown { 1_000 } else { self.chance.between(1, 20) };
        // Now and then the answer is lost, though it was done.
        let outcome = if self.chance.percent(2) { Outcome::Unknown } else { outcome };
        self.after(wait, Event::ProposalEnd { by, life, term, outcome });
    }

    pub(super) fn leads(&self, by: usize, life: u64, term: u64) -> bool {
        let node = &self.nodes[by];
        let leads = node.daemon.as_ref().and_then(|daemon| daemon.leader.as_ref()).map(Leader::term) == Some(term);
        node.acts() && !node.disk_fails && node.life == life && node.term == term && leads
    }

    pub(super) fn try_commit(&mut self, by: usize, life: u64, term: u64, command: CommandV1) -> Option<Outcome> {
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

    pub(super) fn proposal_end(&mut self, by: usize, life: u64, term: u64, outcome: Outcome) {
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

    pub(super) fn change_members(&mut self, by: usize, life: u64, term: u64, members: &Members) {
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
}
