//! Where instances run: what a leader decided, entry by entry.

use std::collections::BTreeSet;

use flotilla_api::{ErrorCode, NodeId, Revision, ServiceName, UnixMillis};
use serde::{Deserialize, Serialize};

use super::{Applied, Event, Leftover, Rejected, Service, State};
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
    /// The specification that shall run there; a rollout brings one placement after another to the current one.
    pub revision: Revision,
    /// `Service::restarts` that it has followed.
    pub restarts: u64,
    pub phase: Phase,
    pub since: UnixMillis,
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
        if term == self.leadership.term {
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
        self.leadership.longest_ms = if before == lease_ms { lease_ms } else { self.leadership.longest_ms().max(lease_ms) };
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
                let (service, index) = self.find(*epoch)?;
                if !service.revisions.contains_key(revision) {
                    return Err(stale(format!("`{}` has no revision {revision}", service.name)));
                }
                let placement = &mut service.placements[index];
                (placement.revision, placement.restarts, placement.since) = (*revision, *restarts, at);
                Ok(None)
            }
            Change::Leave { epoch, reason } => self.turn(*epoch, Phase::Leaving, reason).map(Some),
            Change::Vacate { epoch, reason } => self.turn(*epoch, Phase::Vacating, reason).map(Some),
            Change::Stay { epoch } => {
                let (service, index) = self.find(*epoch)?;
                service.placements[index].phase = Phase::Active;
                Ok(None)
            }
            Change::End { epoch, reason } => self.end(*epoch, reason),
            Change::StandBy { service, machines } => {
                if let Some(unknown) = machines.iter().find(|id| !self.machines.contains_key(*id)) {
                    return Err(stale(format!("there is no machine `{unknown}`")));
                }
                self.services
                    .get_mut(service)
                    .ok_or_else(|| stale(format!("there is no service `{service}`")))?
                    .standby
                    .clone_from(machines);
                Ok(None)
            }
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
        let leftover = self.leftovers.iter().find(|leftover| leftover.service == *name).cloned();
        let service = self.services.get_mut(name).ok_or_else(|| stale(format!("there is no service `{name}`")))?;
        if !service.revisions.contains_key(&revision) {
            return Err(stale(format!("`{name}` has no revision {revision}")));
        }
        // The invariant of all: what may write a volume runs alone, so nothing is assigned beside it.
        let exclusive = service.is_exclusive(revision)
            || service.placements.iter().any(|placement| service.is_exclusive(placement.revision));
        if exclusive && let Some(other) = service.placements.first() {
            return Err(stale(format!("`{name}` may still write its volumes under epoch {}", other.epoch)));
        }
        if service.is_exclusive(revision)
            && let Some(leftover) = leftover
        {
            return Err(stale(format!("a former `{name}` may still write its volumes under epoch {}", leftover.epoch)));
        }
        if service.placements.iter().any(|other| other.replica == replica && other.phase == Phase::Active) {
            return Err(stale(format!("replica {replica} of `{name}` is placed already")));
        }
        self.epoch += 1;
        let epoch = self.epoch;
        service.placements.push(Placement {
            replica,
            machine: machine.clone(),
            epoch,
            revision,
            restarts,
            phase: Phase::Active,
            since: at,
            reason: super::services::clip(reason),
        });
        service.placements.sort_by_key(|placement| (placement.replica, placement.epoch));
        if service.revisions.get(&revision).is_some_and(|record| !record.spec.volumes.is_empty()) {
            service.hosts.insert(machine.clone());
        }
        let which = if service.replicas > 1 { format!("`{name}` ({replica})") } else { format!("`{name}`") };
        let message = format!("{which} was placed on `{machine_name}`: {}.", super::services::clip(reason));
        Ok(Event::new("placed", Some(name), message).on(&machine_name))
    }

    fn turn(&mut self, epoch: u64, phase: Phase, reason: &str) -> Result<Event, Rejected> {
        let (service, index) = self.find(epoch)?;
        let placement = &mut service.placements[index];
        placement.phase = phase;
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

    /// What a service that goes leaves behind: only instances that could write a volume matter to whoever comes after it.
    pub(super) fn leave_over(&mut self, service: &Service) {
        let exclusive = service.placements.iter().filter(|placement| service.is_exclusive(placement.revision));
        self.leftovers.extend(exclusive.map(|placement| Leftover {
            service: service.name.clone(),
            machine: placement.machine.clone(),
            epoch: placement.epoch,
        }));
    }

    /// Machines that hold volume directories of a service.
    pub(super) fn hosts_of(&self, service: &Service) -> BTreeSet<NodeId> {
        service.hosts.iter().filter(|id| self.machines.contains_key(*id)).cloned().collect()
    }
}

/// The leader decided on what is not so any more; it decides anew.
fn stale(why: String) -> Rejected {
    Rejected::new(ErrorCode::Conflict, why)
}
