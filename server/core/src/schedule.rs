//! Where instances shall run: pure and deterministic, from the state and what is known of the machines.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{NodeId, UnixMillis};

use crate::{
    command::Change,
    report::Report,
    state::{Availability, Phase, Service, State},
};

/// What the leader knows of a machine beside the state.
#[derive(Clone, Debug, Default)]
pub struct Standing<'a> {
    /// Its lease has ended for certain: whatever it held may be given away.
    pub ended: bool,
    /// Epochs that it no longer holds, by its own word, though they are placed on it.
    pub released: BTreeSet<u64>,
    /// The newest that it told of itself.
    pub report: Option<&'a Report>,
}

/// All that a decision is made of.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub now: UnixMillis,
    pub state: &'a State,
    pub machines: BTreeMap<NodeId, Standing<'a>>,
}

impl<'a> Input<'a> {
    /// Of a cluster whose machines are all well and have told nothing yet.
    pub fn unreported(now: UnixMillis, state: &'a State) -> Self {
        Self { now, state, machines: state.machines.keys().map(|id| (id.clone(), Standing::default())).collect() }
    }
}

/// What a leader should propose now, in this order; empty when all is well.
pub fn plan(input: &Input<'_>) -> Vec<Change> {
    let mut changes = Vec::new();
    for service in input.state.services.values() {
        plan_service(input, service, &mut changes);
    }
    changes
}

fn plan_service(input: &Input<'_>, service: &Service, changes: &mut Vec<Change>) {
    for placement in &service.placements {
        let standing = input.machines.get(&placement.machine);
        let over = standing.is_none_or(|standing| standing.ended || standing.released.contains(&placement.epoch));
        if placement.replica > service.replicas || (placement.phase == Phase::Vacating && over) {
            changes.push(Change::End { epoch: placement.epoch, reason: "it is not wanted any more".to_owned() });
        } else if !service.is_current(placement) {
            changes.push(Change::Update {
                epoch: placement.epoch,
                revision: service.current,
                restarts: service.restarts,
            });
        }
    }
    for replica in 1..=service.replicas {
        if service.placements.iter().any(|placement| placement.replica == replica) {
            continue;
        }
        let usable = input.state.machines.iter().filter(|(_, machine)| {
            machine.lost_at.is_none() && matches!(machine.availability, Availability::Active)
        });
        let load = |id: &NodeId| {
            input.state.services.values().flat_map(|service| service.placed_on(id)).count()
        };
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
