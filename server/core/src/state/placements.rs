//! Where instances run: what a leader decided, entry by entry.

use std::collections::BTreeSet;

use flotilla_api::{
    ErrorCode, MachineName, NodeId, Revision, ServiceName, UnixMillis,
    rest::{PlacedPhase, PlacedView},
};
use serde::{Deserialize, Serialize};

use super::{Applied, Assignment, Event, GenerationName, Leftover, Rejected, Service, Sources, State};
use crate::{
    command::Change,
    lease::{LEASE_MAX_MS, LEASE_MIN_MS},
};

/// Changes of one entry: a drain of a machine that is full.
const CHANGES_MAX: usize = 1_000;

/// Who leads, as far as the log says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leadership {
    /// Of the consensus; only grows.
    pub term: u64,
    pub node: Option<NodeId>,
    /// How long a lease is; 0 is the shortest. Milliseconds.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub lease_ms: u64,
    /// The longest that leases still running may have: more than `lease_ms` for a while after that was made shorter.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub longest_ms: u64,
}

/// One instance that shall be: which replica of a service runs where, under which epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// From 1.
    pub replica: u32,
    pub machine: NodeId,
    /// Unique in the cluster, and larger than that of every earlier placement: an instance of another epoch may not write the
    /// service's volumes.
    pub epoch: u64,
    /// Its instance may write a volume, so that it has to be alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exclusive: bool,
    /// The generation that its first instance begins with, as what its machine has is not the newest, or not all of it is safe.
    /// Absent: it goes on with what is in its machine's directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<GenerationName>,
    /// The specification that shall run there; a rollout brings one placement after another to the current one.
    pub revision: Revision,
    /// `Service::restarts` that it has followed.
    pub restarts: u64,
    pub phase: Phase,
    pub since: UnixMillis,
    /// Of the entry that changed it last: a machine that has applied less acts on something older.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub index: u64,
    /// Why there: one clause, for people.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It shall run.
    Active,
    /// It shall run until its successor is ready.
    Leaving,
    /// It shall end, and its successor waits for that.
    Vacating,
}

impl Placement {
    /// As people and programs are told of it.
    pub fn view(&self, service: &ServiceName, machine: &MachineName) -> PlacedView {
        PlacedView {
            service: service.clone(),
            replica: self.replica,
            machine: machine.clone(),
            epoch: self.epoch,
            revision: self.revision,
            phase: match self.phase {
                Phase::Active => PlacedPhase::Active,
                Phase::Leaving => PlacedPhase::Leaving,
                Phase::Vacating => PlacedPhase::Vacating,
            },
            since: self.since,
            reason: self.reason.clone(),
        }
    }
}

impl Leadership {
    pub(super) fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    pub fn lease_ms(&self) -> u64 {
        self.lease_ms.clamp(LEASE_MIN_MS, LEASE_MAX_MS)
    }

    /// What a new leader waits out.
    pub fn longest_ms(&self) -> u64 {
        self.longest_ms.max(self.lease_ms())
    }
}

impl Service {
    /// Does the specification of this revision, or of one that is not known any more, write a volume? Only one such instance may
    /// run at a time, in the whole cluster.
    pub fn is_exclusive(&self, revision: Revision) -> bool {
        self.revisions.get(&revision).is_none_or(|record| record.spec.volumes.iter().any(|mount| !mount.read_only))
    }

    /// The placements on one machine.
    pub fn placed_on<'a>(&'a self, machine: &'a NodeId) -> impl Iterator<Item = &'a Placement> {
        self.placements.iter().filter(move |placement| placement.machine == *machine)
    }

    /// A container is made where a machine stands by, and with it the directories that it mounts.
    pub(super) fn note_standby(&mut self) {
        if !self.spec().volumes.is_empty() {
            self.hosts.extend(self.standby.iter().cloned());
        }
    }

    /// An instance of this revision comes to a machine: from then on directories may be there, and written there.
    fn note_host(&mut self, machine: &NodeId, revision: Revision) {
        if self.revisions.get(&revision).is_some_and(|record| !record.spec.volumes.is_empty()) {
            self.hosts.insert(machine.clone());
        }
        if self.is_exclusive(revision) {
            self.home = Some(machine.clone());
            self.data.settled = false;
        }
    }

    /// Does this placement run what shall run now?
    pub fn is_current(&self, placement: &Placement) -> bool {
        placement.revision == self.current && placement.restarts == self.restarts
    }
}

impl State {
    /// The placement of this epoch, and its service.
    pub fn placement(&self, epoch: u64) -> Option<(&Service, &Placement)> {
        self.services.values().find_map(|service| {
            service.placements.iter().find(|placement| placement.epoch == epoch).map(|placement| (service, placement))
        })
    }

    pub(super) fn check_term(&self, term: u64) -> Result<(), Rejected> {
        if term == self.leadership.term && self.leadership.node.is_some() {
            return Ok(());
        }
        Err(Rejected::new(
            ErrorCode::Conflict,
            format!("this was decided in term {term}, but the cluster is led in term {}", self.leadership.term),
        ))
    }

    pub(super) fn lead(&mut self, _at: UnixMillis, node: &NodeId, term: u64) -> Result<Applied, Rejected> {
        let name = self.machine(node)?.record.name.clone();
        if term <= self.leadership.term {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("the cluster is led in term {} already", self.leadership.term),
            ));
        }
        self.begin_placements();
        self.leadership.term = term;
        self.leadership.node = Some(node.clone());
        Ok(Applied::done(Event::new("leader", None, format!("The machine `{name}` leads the cluster.")).on(&name)))
    }

    pub(super) fn set_lease(&mut self, term: u64, lease_ms: u64) -> Result<Applied, Rejected> {
        self.check_term(term)?;
        if !(LEASE_MIN_MS..=LEASE_MAX_MS).contains(&lease_ms) {
            return Err(Rejected::new(
                ErrorCode::InvalidRequest,
                format!("a lease has {LEASE_MIN_MS} to {LEASE_MAX_MS} ms"),
            ));
        }
        let before = self.leadership.lease_ms();
        // Said twice, the second time when every longer lease has ended, it holds for the next leader too.
        self.leadership.longest_ms =
            if before == lease_ms { lease_ms } else { self.leadership.longest_ms().max(lease_ms) };
        self.leadership.lease_ms = lease_ms;
        Ok(Applied::done(Event::new("lease", None, format!("Leases have {lease_ms} ms from now on."))))
    }

    /// All changes or none: they are tried on a copy.
    pub(super) fn place(&mut self, at: UnixMillis, term: u64, changes: &[Change]) -> Result<Applied, Rejected> {
        self.check_term(term)?;
        if changes.is_empty() || changes.len() > CHANGES_MAX {
            return Err(Rejected::new(
                ErrorCode::InvalidRequest,
                format!("a decision on placements has 1 to {CHANGES_MAX} changes"),
            ));
        }
        let mut next = self.clone();
        let mut events = Vec::new();
        for change in changes {
            events.extend(next.change(at, change)?);
        }
        if events.is_empty() {
            events.push(Event::new("placed", None, "Placements were brought up to date."));
        }
        *self = next;
        Ok(Applied { outcome: super::Outcome::Done, events })
    }

    fn change(&mut self, at: UnixMillis, change: &Change) -> Result<Option<Event>, Rejected> {
        match change {
            Change::Assign { service, replica, machine, revision, restarts, reason } => {
                self.assign(at, service, *replica, machine, *revision, *restarts, reason).map(Some)
            }
            Change::Update { epoch, revision, restarts } => {
                self.update(at, *epoch, *revision, *restarts).map(|()| None)
            }
            Change::Leave { epoch, reason } => self.turn(*epoch, Phase::Leaving, reason).map(Some),
            Change::Vacate { epoch, reason } => self.turn(*epoch, Phase::Vacating, reason).map(Some),
            Change::Stay { epoch } => self.stay(*epoch).map(|()| None),
            Change::End { epoch, reason } => self.end(*epoch, reason),
            Change::StandBy { service, machines } => {
                if let Some(unknown) = machines.iter().find(|id| !self.machines.contains_key(*id)) {
                    return Err(stale(format!("there is no machine `{unknown}`")));
                }
                machines.iter().try_for_each(|machine| self.check_runs(machine))?;
                let service =
                    self.services.get_mut(service).ok_or_else(|| stale(format!("there is no service `{service}`")))?;
                service.standby.clone_from(machines);
                service.note_standby();
                Ok(None)
            }
            Change::Replicate { service, machines } => self.replicate(service, machines).map(|()| None),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one change")]
    fn assign(
        &mut self,
        at: UnixMillis,
        name: &ServiceName,
        replica: u32,
        machine: &NodeId,
        revision: Revision,
        restarts: u64,
        reason: &str,
    ) -> Result<Event, Rejected> {
        let machine_name = self.machine(machine)?.record.name.clone();
        self.check_runs(machine)?;
        self.check_alone(name, revision, None)?;
        self.check_source(name, machine, revision)?;
        // Larger than every index before, which were the epochs as long as no leader had spoken.
        let epoch = self.epoch.max(self.applied) + 1;
        let index = self.applied + 1;
        let source = self.services.get(name).and_then(|service| self.source_on(service, machine));
        let service = self.services.get_mut(name).ok_or_else(|| stale(format!("there is no service `{name}`")))?;
        if replica == 0 || replica > service.replicas {
            return Err(stale(format!("`{name}` has no replica {replica}")));
        }
        if service.placements.iter().any(|other| other.replica == replica && other.phase == Phase::Active) {
            return Err(stale(format!("replica {replica} of `{name}` is placed already")));
        }
        self.epoch = epoch;
        service.placements.push(Placement {
            replica,
            machine: machine.clone(),
            epoch,
            exclusive: service.is_exclusive(revision),
            source,
            revision,
            restarts,
            phase: Phase::Active,
            since: at,
            index,
            reason: super::services::clip(reason),
        });
        service.placements.sort_by_key(|placement| (placement.replica, placement.epoch));
        service.note_host(machine, revision);
        if service.is_exclusive(revision) {
            service.data.restored_by = service.data.restores.map(|_| epoch);
        }
        let which = if service.replicas > 1 { format!("`{name}` ({replica})") } else { format!("`{name}`") };
        let message = format!("{which} was placed on `{machine_name}`: {}.", super::services::clip(reason));
        Ok(Event::new("placed", Some(name), message).on(&machine_name))
    }

    fn update(&mut self, at: UnixMillis, epoch: u64, revision: Revision, restarts: u64) -> Result<(), Rejected> {
        let name = self.find(epoch)?.0.name.clone();
        self.check_alone(&name, revision, Some(epoch))?;
        let index_of_entry = self.applied + 1;
        let (service, index) = self.find(epoch)?;
        let exclusive = service.is_exclusive(revision);
        let placement = &mut service.placements[index];
        if placement.exclusive && !exclusive {
            // Its machine may not have ended the former instance yet, and others would come beside it.
            return Err(stale(format!(
                "the instance of epoch {epoch} writes volumes, and has to end before others begin"
            )));
        }
        (placement.revision, placement.restarts, placement.since) = (revision, restarts, at);
        placement.index = index_of_entry;
        placement.exclusive = exclusive;
        let machine = placement.machine.clone();
        service.note_host(&machine, revision);
        Ok(())
    }

    /// The invariant of all: what may write a volume runs alone. May an instance of this revision begin beside the placements
    /// that there are, except the one that it takes the place of?
    fn check_alone(&self, name: &ServiceName, revision: Revision, except: Option<u64>) -> Result<(), Rejected> {
        let service = self.services.get(name).ok_or_else(|| stale(format!("there is no service `{name}`")))?;
        if !service.revisions.contains_key(&revision) {
            return Err(stale(format!("`{name}` has no revision {revision}")));
        }
        let exclusive = service.is_exclusive(revision);
        let mut others = service.placements.iter().filter(|placement| Some(placement.epoch) != except);
        if let Some(other) = others.find(|other| exclusive || other.exclusive) {
            return Err(stale(format!(
                "`{name}` still has an instance of epoch {}, and one may write volumes",
                other.epoch
            )));
        }
        match self.leftovers.iter().find(|leftover| leftover.service == *name) {
            Some(leftover) if exclusive => {
                Err(stale(format!("a former `{name}` may still write its volumes under epoch {}", leftover.epoch)))
            }
            _ => Ok(()),
        }
    }

    fn check_runs(&self, machine: &NodeId) -> Result<(), Rejected> {
        if self.stores_only(machine) {
            return Err(stale(format!("the machine `{machine}` only stores, and nothing runs there")));
        }
        Ok(())
    }

    /// What writes a volume begins where its data is, once there is some that others have, too.
    fn check_source(&self, name: &ServiceName, machine: &NodeId, revision: Revision) -> Result<(), Rejected> {
        let Some(service) = self.services.get(name) else { return Ok(()) };
        if !service.is_exclusive(revision) || service.spec().may_start_empty() {
            return Ok(());
        }
        match self.sources(service) {
            Sources::On(sources) if service.data.committed.is_some() && !sources.contains(machine) => {
                Err(stale(format!("the data of `{name}` is not on that machine")))
            }
            _ => Ok(()),
        }
    }

    fn stay(&mut self, epoch: u64) -> Result<(), Rejected> {
        let index_of_entry = self.applied + 1;
        let (service, index) = self.find(epoch)?;
        let replica = service.placements[index].replica;
        let others = service.placements.iter().filter(|other| other.epoch != epoch);
        if others.into_iter().any(|other| other.replica == replica && other.phase == Phase::Active) {
            return Err(stale(format!("replica {replica} of `{}` has moved already", service.name)));
        }
        service.placements[index].phase = Phase::Active;
        service.placements[index].index = index_of_entry;
        Ok(())
    }

    fn turn(&mut self, epoch: u64, phase: Phase, reason: &str) -> Result<Event, Rejected> {
        let index_of_entry = self.applied + 1;
        let (service, index) = self.find(epoch)?;
        let placement = &mut service.placements[index];
        placement.phase = phase;
        placement.index = index_of_entry;
        let (name, machine) = (service.name.clone(), placement.machine.clone());
        let machine = self.machine(&machine)?.record.name.clone();
        let message = format!("`{name}` moves away from `{machine}`: {}.", super::services::clip(reason));
        Ok(Event::new("moving", Some(&name), message).on(&machine))
    }

    fn end(&mut self, epoch: u64, reason: &str) -> Result<Option<Event>, Rejected> {
        if let Some(index) = self.leftovers.iter().position(|leftover| leftover.epoch == epoch) {
            self.leftovers.remove(index);
            return Ok(None);
        }
        let index_of_entry = self.applied + 1;
        let machines = &self.machines;
        let is_lost = |id: &NodeId| machines.get(id).is_none_or(|machine| machine.lost_at.is_some());
        let (lost, exclusive, phase) = match self.placement(epoch) {
            Some((_, placement)) => (is_lost(&placement.machine), placement.exclusive, placement.phase),
            None => return Err(stale(format!("there is no placement of epoch {epoch}"))),
        };
        // It may be writing at this moment: it has to be told to end first, and be seen to have ended.
        if exclusive && !lost && phase != Phase::Vacating {
            return Err(stale(format!("epoch {epoch} was not told to end, and its machine is not lost")));
        }
        let (service, index) = self.find(epoch)?;
        let placement = service.placements.remove(index);
        let name = service.name.clone();
        let Some(machine) = self.machines.get_mut(&placement.machine) else { return Ok(None) };
        if machine.lost_at.is_some() {
            machine.taken = index_of_entry;
        }
        let machine = machine.record.name.clone();
        let message = format!("`{name}` no longer runs on `{machine}`: {}.", super::services::clip(reason));
        Ok(Some(Event::new("ended", Some(&name), message).on(&machine)))
    }

    fn find(&mut self, epoch: u64) -> Result<(&mut Service, usize), Rejected> {
        for service in self.services.values_mut() {
            if let Some(index) = service.placements.iter().position(|placement| placement.epoch == epoch) {
                return Ok((service, index));
            }
        }
        Err(stale(format!("there is no placement of epoch {epoch}")))
    }

    /// What placements that go leave behind: only instances that could write a volume matter to whoever comes after them.
    pub(super) fn leave_over(&mut self, service: &ServiceName, placements: &[Placement]) {
        let exclusive = placements.iter().filter(|placement| placement.exclusive);
        let index = self.applied + 1;
        self.leftovers.extend(exclusive.map(|placement| Leftover {
            service: service.clone(),
            machine: placement.machine.clone(),
            epoch: placement.epoch,
            index,
        }));
    }

    /// Until a first leader speaks, a service runs on the only machine, without placements, and all volumes are there. Here
    /// that is written down as it is since then.
    pub(super) fn begin_placements(&mut self) {
        if !self.leadership.is_unknown() {
            return;
        }
        let Some(only) = self.machines.keys().next().cloned() else { return };
        // Only where there is something to write down: whoever reads this state as a snapshot does it, too, and has to come to the
        // same as those who applied the entries.
        let assigned = self.services.values().any(|service| service.assignment.is_some());
        let mut newest = if assigned { self.epoch.max(self.applied) } else { self.epoch };
        let mut used = BTreeSet::new();
        for service in self.services.values_mut() {
            let Some(Assignment { machine, epoch }) = service.assignment.take() else { continue };
            for replica in 1..=service.replicas {
                // Services of one deployment shared an epoch. The first keeps it, and with it its container.
                let epoch = if used.insert(epoch) {
                    epoch
                } else {
                    newest += 1;
                    newest
                };
                service.placements.push(Placement {
                    replica,
                    machine: machine.clone(),
                    epoch,
                    exclusive: service.is_exclusive(service.current),
                    source: None,
                    revision: service.current,
                    restarts: service.restarts,
                    phase: Phase::Active,
                    since: service.changed_at,
                    index: 0,
                    reason: "it was the only machine".to_owned(),
                });
            }
            if !service.volumes().is_empty() {
                service.hosts.insert(machine.clone());
                service.home = Some(machine);
            }
        }
        self.epoch = newest;
        for name in self.kept_volumes.keys().filter(|name| !self.services.contains_key(*name)) {
            self.kept_on.entry(name.clone()).or_insert_with(|| BTreeSet::from([only.clone()]));
            self.kept_homes.entry(name.clone()).or_insert_with(|| only.clone());
        }
        for name in &self.condemned_volumes {
            self.condemned_on.entry(name.clone()).or_insert_with(|| BTreeSet::from([only.clone()]));
        }
    }
}

/// The leader decided on what is not so any more; it decides anew.
pub(super) fn stale(why: String) -> Rejected {
    Rejected::new(ErrorCode::Conflict, why)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
pub(super) fn is_false(value: &bool) -> bool {
    !*value
}
