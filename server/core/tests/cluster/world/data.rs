//! What instances write, and how it comes to other machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_api::ServiceName;
use flotilla_core::{
    CommandV1, State,
    node::Leader,
    reconcile::Action,
    replication::{Commit, Offers, Pace, Replicas, Terms, Writer},
    state::{Copies, Generation, GenerationName, Phase},
};

use super::{Event, Message, World};
use crate::disk::Writes;

/// What a capture may take. Milliseconds.
const CAPTURE_MAX_MS: u64 = 300;

/// A generation on its way to a replica.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) service: ServiceName,
    pub(crate) name: GenerationName,
    pub(crate) writes: Writes,
}

/// The decisions of one placement's data, and what they are about.
#[derive(Debug)]
pub(crate) struct Keeper {
    service: ServiceName,
    writer: Writer,
    seen: usize,
    captured: Option<Writes>,
    offers: Offers,
    made: BTreeMap<u64, Arc<Offer>>,
}

impl World {
    /// Instances that run and are not frozen write.
    pub(super) fn write(&mut self, number: usize) {
        let node = &self.nodes[number];
        if !self.keeps_data || !node.powered || node.suspended {
            return;
        }
        let writing = node.engine.containers.values().filter(|real| real.is_writing());
        let services: Vec<ServiceName> = writing.map(|real| real.container.service.clone()).collect();
        for service in services {
            if self.chance.percent(10) {
                self.writes += 1;
                let write = self.writes;
                self.written.push((number, service.clone(), write));
                self.nodes[number].disk.directories.entry(service).or_default().writes.push(write);
            }
        }
    }

    /// An instance is about to run on its directory.
    pub(super) fn begin_data(&mut self, number: usize, action: &Action) {
        let node = &self.nodes[number];
        let (service, epoch) = match action {
            Action::Run { spec, epoch, .. } if spec.volumes.iter().any(|mount| !mount.read_only) => {
                (spec.name.clone(), *epoch)
            }
            Action::Start { container, .. } => match node.engine.containers.get(container) {
                Some(real) if real.writes => (real.container.service.clone(), real.container.epoch),
                _ => return,
            },
            Action::DeleteVolumes { service } => {
                let is_copy = node.state.services.get(service).is_some_and(|it| it.data.dropped.contains_key(&node.id));
                if !is_copy {
                    self.writers.remove(service);
                }
                self.written.retain(|(machine, name, _)| *machine != number || name != service);
                self.nodes[number].disk.delete(service);
                return;
            }
            _ => return,
        };
        let source = node.state.placement(epoch).and_then(|(_, placement)| placement.source);
        let disk = &mut self.nodes[number].disk;
        let before = disk.directories.get(&service).map(|directory| directory.writes.clone()).unwrap_or_default();
        let begun = disk.begin(&service, epoch, source);
        let after = disk.directories.get(&service).map(|directory| directory.writes.clone()).unwrap_or_default();
        if let Err(why) = begun {
            panic!("node-{number} can't begin `{service}` under {epoch}: {why}\n{}", self.told());
        }
        // Whoever wrote last goes on where it was.
        let mut former = self.writers.get(&service).into_iter().flat_map(|writers| writers.range(..epoch));
        if former.next_back().is_some_and(|(_, machine)| *machine == number) {
            assert!(after.starts_with(&before), "node-{number} forgets what it wrote of `{service}`\n{}", self.told());
        }
    }

    /// The daemon looks after what its instances write.
    pub(super) fn keep_data(&mut self, number: usize) {
        if !self.keeps_data || self.nodes[number].disk_fails {
            return;
        }
        let clock = self.nodes[number].clock(self.now);
        let node = &mut self.nodes[number];
        let (state, life) = (node.state.clone(), node.life);
        let Some(daemon) = &mut node.daemon else { return };
        daemon.keepers.retain(|epoch, _| {
            state.placement(*epoch).is_some_and(|(_, placement)| placement.exclusive && placement.machine == node.id)
        });
        for service in state.services.values() {
            for placement in service.placed_on(&node.id).filter(|placement| placement.exclusive) {
                daemon.keepers.entry(placement.epoch).or_insert_with(|| Keeper {
                    service: service.name.clone(),
                    writer: Writer::new(
                        node.id.clone(),
                        Pace::default(),
                        node.disk.newest_of(&service.name, placement.epoch),
                        clock,
                    ),
                    seen: 0,
                    captured: None,
                    offers: Offers::default(),
                    made: BTreeMap::new(),
                });
            }
        }
        let starting = daemon.starting();
        let mut captures = Vec::new();
        let mut commits = Vec::new();
        let mut offers = Vec::new();
        for (epoch, keeper) in &mut daemon.keepers {
            let Some((service, placement)) = state.placement(*epoch) else { continue };
            let runs = node.engine.containers.values().any(|real| real.container.epoch == *epoch);
            let ended = placement.phase == Phase::Vacating && !runs && !starting.contains(epoch);
            // One that was told to end before it ever ran has nothing to add, and says so under its own epoch.
            if ended && node.disk.directories.get(&keeper.service).and_then(|it| it.epoch) != Some(*epoch) {
                node.disk.begin(&keeper.service, *epoch, placement.source).unwrap_or_else(|why| panic!("{why}"));
            }
            // Its directory is not its own before its instance has begun.
            let Some(directory) = node.disk.directories.get(&keeper.service).filter(|it| it.epoch == Some(*epoch))
            else {
                continue;
            };
            for machine in keeper.offers.follow(&service.data.dropped) {
                keeper.writer.dropped(&machine);
            }
            if directory.writes.len() != keeper.seen {
                keeper.seen = directory.writes.len();
                keeper.writer.changed(clock);
            }
            if ended {
                keeper.writer.ended(clock);
            }
            if let Some(committed) = service.data.committed.as_ref().filter(|it| it.name.epoch == *epoch) {
                keeper.writer.committed(&Commit {
                    sequence: committed.name.sequence,
                    last: committed.last,
                    holders: committed.holders().into_iter().cloned().collect(),
                });
            }
            let wanted: BTreeSet<_> = service.data.replicas.iter().filter(|id| **id != node.id).cloned().collect();
            let lost = |id: &&_| state.machines.get(*id).is_none_or(|machine| machine.lost_at.is_some());
            let lost = wanted.iter().filter(lost).cloned().collect();
            let replicas = Replicas { wanted, lost };
            let orders = keeper.writer.orders(clock, &replicas);
            if orders.capture {
                captures.push((*epoch, directory.writes.clone()));
            }
            if let Some(commit) = orders.commit
                && let Some(offer) = keeper.made.get(&commit.sequence)
            {
                let copies = Copies {
                    root: format!("{:064x}", offer.writes.len()),
                    bytes: offer.writes.len() as u64,
                    holders: commit.holders.clone(),
                };
                let volumes =
                    service.spec().volumes.iter().map(|mount| (mount.volume.clone(), copies.clone())).collect();
                let name = offer.name;
                let generation = Generation { name, taken_at: flotilla_api::UnixMillis(0), last: commit.last, volumes };
                commits.push((keeper.service.clone(), generation));
            }
            let name = service.data.committed.as_ref().map(|committed| committed.name);
            let terms = Terms {
                now: clock,
                wanted: &replicas.wanted,
                // Whoever does not hear it is told again.
                reached: &replicas.wanted,
                committed: name.filter(|name| name.epoch == *epoch).map_or(0, |name| name.sequence),
                awaited: placement.phase == Phase::Vacating,
                held_back: false,
            };
            let volumes: BTreeSet<_> = service.spec().volumes.iter().map(|mount| mount.volume.clone()).collect();
            for due in keeper.offers.due(&terms, |_, _| volumes.clone()) {
                offers.extend(keeper.made.get(&due.sequence).map(|offer| (due.machine, offer.clone())));
            }
        }
        let id = node.id.clone();
        for (epoch, writes) in captures {
            let takes = self.chance.between(1, CAPTURE_MAX_MS);
            self.after(takes, Event::Captured { machine: number, life, epoch, writes, takes });
        }
        for (machine, offer) in offers {
            if let Some(to) = self.nodes.iter().position(|node| node.id == machine) {
                self.send(number, to, &Message::Offer(offer));
            }
        }
        for (service, generation) in commits {
            if self.reaches_leader(number) {
                let generations = BTreeMap::from([(service, generation)]);
                let seen = state.applied;
                self.propose(number, CommandV1::CommitGenerations { machine: id.clone(), generations, seen });
            }
        }
        self.bring_copies(number, &state);
        self.drop_copies(number, &state);
    }

    /// The daemon gives up copies that are not wanted any more, unless something is in them that nobody else has.
    fn drop_copies(&mut self, number: usize, state: &State) {
        let id = self.nodes[number].id.clone();
        for service in state.services.values().filter(|service| state.may_drop(service, &id)) {
            let disk = &self.nodes[number].disk;
            let is_clean = disk.directories.get(&service.name).is_none_or(|directory| directory.epoch.is_none())
                && disk.branches.iter().all(|(name, _)| *name != service.name);
            if is_clean && self.reaches_leader(number) && self.chance.percent(20) {
                let (machine, service) = (id.clone(), service.name.clone());
                self.propose(number, CommandV1::DropCopy { machine, service });
            }
        }
    }

    /// The daemon gets copies of what nobody writes, from whoever has them and can be reached.
    fn bring_copies(&mut self, number: usize, state: &State) {
        let id = self.nodes[number].id.clone();
        for service in state.services.values() {
            let (lacks, committed) = (state.lacks(service, &id), service.data.committed.as_ref());
            let Some(name) = committed.map(|committed| committed.name).filter(|_| !lacks.is_empty()) else { continue };
            let key = (service.name.clone(), name);
            let reached = |other: usize| !self.cut.contains(&(number, other)) && !self.cut.contains(&(other, number));
            let source = (0..self.nodes.len()).filter(|other| *other == number || reached(*other)).find_map(|other| {
                let node = &self.nodes[other];
                let answers = node.acts() && node.daemon.is_some();
                answers.then(|| node.disk.generations.get(&key).cloned()).flatten()
            });
            let Some(writes) = source else { continue };
            let volumes = lacks.into_iter().map(|(volume, copies)| (volume.clone(), copies.root.clone())).collect();
            self.nodes[number].disk.generations.insert(key, writes);
            if self.reaches_leader(number) {
                let (machine, service, seen) = (id.clone(), service.name.clone(), state.applied);
                self.propose(number, CommandV1::HoldGeneration { machine, service, generation: name, volumes, seen });
            }
        }
    }

    fn reaches_leader(&self, number: usize) -> bool {
        let leads = |other: &usize| {
            let daemon = self.nodes[*other].daemon.as_ref();
            daemon.and_then(|daemon| daemon.leader.as_ref()).map(Leader::term) == Some(self.nodes[*other].term)
        };
        let reached = |other: usize| !self.cut.contains(&(number, other)) && !self.cut.contains(&(other, number));
        (0..self.nodes.len()).filter(leads).all(|other| other == number || reached(other))
    }

    /// A capture has ended; what it took is what the directory was when it began, as its instance stood still for that.
    pub(super) fn captured(&mut self, machine: usize, life: u64, epoch: u64, writes: Writes, takes: u64) {
        let node = &mut self.nodes[machine];
        if node.life != life || node.daemon.is_none() {
            return;
        }
        if !node.acts() {
            return self.after(1, Event::Captured { machine, life, epoch, writes, takes });
        }
        let clock = node.clock(self.now);
        let failed = node.disk_fails;
        let Some(keeper) = node.daemon.as_mut().and_then(|daemon| daemon.keepers.get_mut(&epoch)) else { return };
        if failed {
            return keeper.writer.failed(clock, takes);
        }
        if keeper.captured.as_ref() == Some(&writes) {
            return keeper.writer.unchanged(clock, takes);
        }
        let sequence = keeper.writer.captured(clock, takes);
        let name = GenerationName { epoch, sequence };
        keeper.captured = Some(writes.clone());
        node.disk.generations.insert((keeper.service.clone(), name), writes.clone());
        let offer = Arc::new(Offer { service: keeper.service.clone(), name, writes });
        keeper.made.insert(sequence, offer);
        keeper.offers.made(sequence);
        keeper.made.retain(|sequence, _| keeper.offers.knows(*sequence));
    }

    /// A generation has come; it is on disk before that is said.
    pub(super) fn offered(&mut self, from: usize, to: usize, offer: &Offer) {
        let node = &mut self.nodes[to];
        // What nobody writes any more, as far as is known here, may have been deleted: it would come back. It is offered again.
        let gone = node.state.placement(offer.name.epoch).is_none();
        // And what is there has to be deleted first, or this would be deleted with it; what is not wanted here nobody would delete.
        if node.disk_fails || gone || !node.state.may_keep(&offer.service, &node.id) {
            return;
        }
        let key = (offer.service.clone(), offer.name);
        node.disk.generations.insert(key, offer.writes.clone());
        let runs = node.engine.containers.values().any(|real| real.container.service == offer.service && real.writes);
        let placed = node
            .state
            .services
            .get(&offer.service)
            .is_some_and(|service| service.placed_on(&node.id).any(|placement| placement.exclusive));
        // Nothing newer is shown, and nothing runs on it.
        let directory = node.disk.directories.get(&offer.service);
        let newer = directory.is_none_or(|it| it.shows.is_none_or(|shown| shown < offer.name));
        let later = directory.is_none_or(|it| it.epoch.is_none_or(|epoch| epoch < offer.name.epoch));
        if !runs && !placed && newer && later {
            node.disk.show(&offer.service, offer.name, offer.writes.clone());
        }
        let dropped =
            node.state.services.get(&offer.service).and_then(|service| service.data.dropped.get(&node.id)).copied();
        let held = Message::Held { epoch: offer.name.epoch, sequence: offer.name.sequence, dropped };
        self.send(to, from, &held);
    }

    pub(super) fn held(&mut self, from: usize, to: usize, epoch: u64, sequence: u64, dropped: Option<u64>) {
        let id = self.nodes[from].id.clone();
        let keepers = self.nodes[to].daemon.as_mut().map(|daemon| &mut daemon.keepers);
        if let Some(keeper) = keepers.and_then(|keepers| keepers.get_mut(&epoch))
            && keeper.offers.held(&id, sequence, dropped)
        {
            keeper.writer.held(&id, sequence);
        }
    }
}
