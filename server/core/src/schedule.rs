//! Where instances shall run: pure and deterministic, from the state and what is known of the machines.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{NodeId, UnixMillis};

use crate::{
    command::{Change, CommandV1},
    report::Report,
    state::{Availability, Phase, Service, State},
};

/// What the leader knows of a machine beside the state.
#[derive(Clone, Debug, Default)]
pub struct Standing<'a> {
    /// Its lease has ended for certain: whatever it held may be given away.
    pub ended: bool,
    /// Epochs of placements and leftovers that shall end there, and have ended by its own word: it acts upon a state no older
    /// than their [`index`](crate::state::Placement::index), and does not hold them.
    pub released: BTreeSet<u64>,
    /// The newest that it told of itself.
    pub report: Option<&'a Report>,
}

/// All that a decision is made of.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub now: UnixMillis,
    pub state: &'a State,
    /// Of every member, and of each machine that only a leftover names.
    pub machines: BTreeMap<NodeId, Standing<'a>>,
}

impl<'a> Input<'a> {
    /// Of a cluster of one machine, which tells nothing: it is well, and what shall end there is taken to have ended. Its
    /// reconciler alone keeps two instances from writing one volume.
    pub fn unreported(now: UnixMillis, state: &'a State) -> Self {
        let placed = state.services.values().flat_map(|service| &service.placements).map(|placement| placement.epoch);
        let left = state.leftovers.iter().map(|leftover| leftover.epoch);
        let released: BTreeSet<u64> = placed.chain(left).collect();
        let standing = Standing { released, ..Standing::default() };
        Self { now, state, machines: state.machines.keys().map(|id| (id.clone(), standing.clone())).collect() }
    }
}

impl Input<'_> {
    /// Is it certain that the machine no longer runs what it was given under this epoch?
    fn is_over(&self, machine: &NodeId, epoch: u64) -> bool {
        self.machines.get(machine).is_some_and(|standing| standing.ended || standing.released.contains(&epoch))
    }
}

/// What a leader should propose now: the changes as one decision, then the commands. Empty when all is well.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub changes: Vec<Change>,
    pub commands: Vec<CommandV1>,
    /// When to look again even if nothing happens.
    pub wake_at: Option<UnixMillis>,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let mut changes = Vec::new();
    for leftover in &input.state.leftovers {
        if input.is_over(&leftover.machine, leftover.epoch) {
            changes.push(Change::End { epoch: leftover.epoch, reason: "its service is gone".to_owned() });
        }
    }
    for service in input.state.services.values() {
        plan_service(input, service, &mut changes);
    }
    Plan { changes, ..Plan::default() }
}

fn plan_service(input: &Input<'_>, service: &Service, changes: &mut Vec<Change>) {
    let mut updates = Vec::new();
    for placement in &service.placements {
        let over = !placement.exclusive || input.is_over(&placement.machine, placement.epoch);
        let drained = input
            .state
            .machines
            .get(&placement.machine)
            .is_some_and(|machine| machine.availability != Availability::Active);
        if input.machines.get(&placement.machine).is_some_and(|standing| standing.ended) {
            changes.push(Change::End { epoch: placement.epoch, reason: "its machine is lost".to_owned() });
            continue;
        }
        let unwanted =
            placement.replica > service.replicas || drained || (placement.exclusive && !service.is_exclusive(service.current));
        let reason = || "it is not wanted any more".to_owned();
        if placement.phase == Phase::Vacating || (unwanted && over) {
            if over {
                changes.push(Change::End { epoch: placement.epoch, reason: reason() });
            }
        } else if unwanted {
            changes.push(Change::Vacate { epoch: placement.epoch, reason: reason() });
        } else if !service.is_current(placement) {
            updates.push(Change::Update {
                epoch: placement.epoch,
                revision: service.current,
                restarts: service.restarts,
            });
        }
    }
    // What has to be alone comes after the end of the others.
    changes.extend(updates);
    for replica in 1..=service.replicas {
        if service.placements.iter().any(|placement| placement.replica == replica) {
            continue;
        }
        let usable =
            input.state.machines.iter().filter(|(_, machine)| {
                machine.lost_at.is_none() && matches!(machine.availability, Availability::Active)
            });
        let load = |id: &NodeId| input.state.services.values().flat_map(|service| service.placed_on(id)).count();
        let Some((machine, _)) = usable.min_by_key(|(id, _)| load(id)) else { continue };
        changes.push(Change::Assign {
            service: service.name.clone(),
            replica,
            machine: machine.clone(),
            revision: service.current,
            restarts: service.restarts,
            reason: "it runs the fewest instances".to_owned(),
        });
    }
}
