//! The placements as they will be when what was decided so far is done, and the changes that lead there.

use std::collections::BTreeMap;

use flotilla_api::{NodeId, Revision, ServiceName, StackName};

use super::{Input, needs::Needs, unit::Unit};
use crate::{
    command::Change,
    state::{Phase, Placement, Service},
};

pub(super) struct Draft<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) changes: Vec<Change>,
    slots: BTreeMap<&'a ServiceName, Vec<Slot<'a>>>,
    loads: BTreeMap<&'a NodeId, Load>,
    stacks: BTreeMap<(&'a NodeId, &'a StackName), u32>,
}

/// A placement that there is or will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot<'a> {
    pub(super) replica: u32,
    pub(super) machine: &'a NodeId,
    /// Absent where it is only made by this plan.
    pub(super) epoch: Option<u64>,
    pub(super) exclusive: bool,
    pub(super) revision: Revision,
    pub(super) restarts: u64,
    pub(super) phase: Phase,
}

/// What a machine was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) needs: Needs,
    pub(super) instances: u32,
}

impl<'a> Draft<'a> {
    pub(super) fn of(input: &'a Input<'a>) -> Self {
        let mut draft = Self {
            input,
            changes: Vec::new(),
            slots: BTreeMap::new(),
            loads: BTreeMap::new(),
            stacks: BTreeMap::new(),
        };
        for service in input.state.services.values() {
            for placement in &service.placements {
                draft.occupy(service, Slot::of(placement));
            }
        }
        draft
    }

    pub(super) fn slots(&self, service: &ServiceName) -> &[Slot<'a>] {
        self.slots.get(service).map_or(&[], Vec::as_slice)
    }

    /// Those of one replica.
    pub(super) fn of_replica(&self, service: &ServiceName, replica: u32) -> impl Iterator<Item = Slot<'a>> {
        self.slots(service).iter().copied().filter(move |slot| slot.replica == replica)
    }

    pub(super) fn active(&self, service: &ServiceName, replica: u32) -> Option<Slot<'a>> {
        self.of_replica(service, replica).find(|slot| slot.phase == Phase::Active)
    }

    pub(super) fn load(&self, machine: &NodeId) -> Load {
        self.loads.get(machine).copied().unwrap_or_default()
    }

    /// What others than the unit asked of a machine.
    pub(super) fn load_of_others(&self, machine: &NodeId, unit: &Unit<'a>) -> Load {
        let mut load = self.load(machine);
        for member in &unit.members {
            for slot in self.of_replica(&member.service.name, member.replica) {
                if slot.machine == machine {
                    load.needs = load.needs.minus(Needs::of(member.service.spec_of(slot.revision)));
                    load.instances = load.instances.saturating_sub(1);
                }
            }
        }
        load
    }

    /// Does a service of this stack that is not of the unit run on the machine?
    pub(super) fn has_stack(&self, machine: &NodeId, stack: &StackName, unit: &Unit<'a>) -> bool {
        let all = self.stacks.get(&(machine, stack)).copied().unwrap_or(0);
        let own = unit.members.iter().filter(|member| member.service.stack == *stack).flat_map(|member| {
            self.of_replica(&member.service.name, member.replica).filter(|slot| slot.machine == machine)
        });
        usize::try_from(all).is_ok_and(|all| all > own.count())
    }

    pub(super) fn assign(
        &mut self,
        service: &'a Service,
        replica: u32,
        machine: &'a NodeId,
        (revision, restarts): (Revision, u64),
        reason: String,
    ) {
        self.occupy(
            service,
            Slot {
                replica,
                machine,
                epoch: None,
                exclusive: service.is_exclusive(revision),
                revision,
                restarts,
                phase: Phase::Active,
            },
        );
        let (service, machine) = (service.name.clone(), machine.clone());
        self.changes.push(Change::Assign { service, replica, machine, revision, restarts, reason });
    }

    /// A placement that this plan has made only now is never ended by it.
    pub(super) fn end(&mut self, service: &'a Service, slot: Slot<'a>, reason: &str) {
        let Some(epoch) = slot.epoch else { return };
        self.free(service, slot);
        self.changes.push(Change::End { epoch, reason: reason.to_owned() });
    }

    pub(super) fn vacate(&mut self, service: &'a Service, slot: Slot<'a>, reason: &str) {
        self.turn(service, slot, Phase::Vacating, |epoch| Change::Vacate { epoch, reason: reason.to_owned() });
    }

    pub(super) fn leave(&mut self, service: &'a Service, slot: Slot<'a>, reason: &str) {
        self.turn(service, slot, Phase::Leaving, |epoch| Change::Leave { epoch, reason: reason.to_owned() });
    }

    pub(super) fn stay(&mut self, service: &'a Service, slot: Slot<'a>) {
        self.turn(service, slot, Phase::Active, |epoch| Change::Stay { epoch });
    }

    pub(super) fn update(&mut self, service: &'a Service, slot: Slot<'a>) {
        let Some(epoch) = slot.epoch else { return };
        let (revision, restarts) = (service.current, service.restarts);
        self.free(service, slot);
        self.occupy(service, Slot { revision, restarts, exclusive: service.is_exclusive(revision), ..slot });
        self.changes.push(Change::Update { epoch, revision, restarts });
    }

    fn turn(&mut self, service: &'a Service, slot: Slot<'a>, phase: Phase, change: impl FnOnce(u64) -> Change) {
        let Some(epoch) = slot.epoch else { return };
        self.free(service, slot);
        self.occupy(service, Slot { phase, ..slot });
        self.changes.push(change(epoch));
    }

    /// Counts a placement in, without deciding on it.
    pub(super) fn occupy(&mut self, service: &'a Service, slot: Slot<'a>) {
        let load = self.loads.entry(slot.machine).or_default();
        load.needs = load.needs.plus(Needs::of(service.spec_of(slot.revision)));
        load.instances += 1;
        *self.stacks.entry((slot.machine, &service.stack)).or_default() += 1;
        self.slots.entry(&service.name).or_default().push(slot);
    }

    /// Undoes [`occupy`](Self::occupy).
    pub(super) fn free(&mut self, service: &'a Service, slot: Slot<'a>) {
        let Some(slots) = self.slots.get_mut(&service.name) else { return };
        let Some(index) = slots.iter().rposition(|present| *present == slot) else { return };
        slots.remove(index);
        if let Some(load) = self.loads.get_mut(slot.machine) {
            load.needs = load.needs.minus(Needs::of(service.spec_of(slot.revision)));
            load.instances -= 1;
        }
        if let Some(count) = self.stacks.get_mut(&(slot.machine, &service.stack)) {
            *count -= 1;
        }
    }
}

impl<'a> Slot<'a> {
    pub(super) fn of(placement: &'a Placement) -> Self {
        Self {
            replica: placement.replica,
            machine: &placement.machine,
            epoch: Some(placement.epoch),
            exclusive: placement.exclusive,
            revision: placement.revision,
            restarts: placement.restarts,
            phase: placement.phase,
        }
    }
}
