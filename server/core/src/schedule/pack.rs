//! Bin packing: machines for several units at once. The best machine for each, largest first, is nearly always the answer; where
//! that leaves a unit without room, others are tried until all fit, within a bound.

use flotilla_api::NodeId;

use super::{
    draft::{Draft, Slot},
    fleet::Fleet,
    needs::{Amount, Needs},
    place::Task,
    score,
};
use crate::state::Phase;

/// Attempts to place a unit before the search is given up and those that fit are placed. A few machines and units are searched
/// through completely; a leader plans again often, and has to be quick.
const STEPS_MAX: u32 = 1_000;

/// A machine for each task, or none where there is none.
pub(super) fn pack<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, tasks: &[Task<'a>]) -> Vec<Option<&'a NodeId>> {
    let mut chosen = vec![None; tasks.len()];
    let mut order: Vec<usize> =
        (0..tasks.len()).filter(|index| !ranked(draft, fleet, &tasks[*index]).is_empty()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(size(&tasks[*index], fleet)), *index));
    let mut search = Search { fleet, tasks, order: &order, steps: STEPS_MAX };
    if !search.all(draft, 0, &mut chosen) {
        chosen.fill(None);
        search.some(draft, &mut chosen);
    }
    chosen
}

/// Machines that the task's unit can go to now, the best first.
pub(super) fn ranked<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, task: &Task<'a>) -> Vec<&'a NodeId> {
    let fitting = task.sites.iter().filter_map(|choice| {
        let site = fleet.site(choice.machine)?;
        score::fit(draft, &task.unit, site).ok()?;
        let points = score::score(draft, fleet, &task.unit, site).total();
        let instances = draft.load(site.id).instances;
        Some((choice.tier, std::cmp::Reverse(points), instances, site.name(), site.id))
    });
    let mut fitting: Vec<_> = fitting.collect();
    fitting.sort();
    // One that flaps is taken where nothing else is left, not where something else is only worse.
    let best = fitting.first().map(|(tier, ..)| *tier);
    fitting.into_iter().filter(|(tier, ..)| Some(*tier) == best).map(|(.., id)| id).collect()
}

/// The share of the largest machine that the unit takes: first what it reserves, then what it probably uses.
fn size(task: &Task<'_>, fleet: &Fleet<'_>) -> (u64, u64) {
    let needs =
        task.unit.members.iter().fold(Needs::default(), |sum, member| sum.plus(Needs::of(member.service.spec())));
    let largest = fleet.sites().fold(Amount::default(), |largest, site| Amount {
        cpu_millis: largest.cpu_millis.max(site.capacity.cpu_millis),
        memory_bytes: largest.memory_bytes.max(site.capacity.memory_bytes),
    });
    (needs.reserved.share_of(largest), needs.expected.share_of(largest))
}

struct Search<'s, 'a> {
    fleet: &'s Fleet<'a>,
    tasks: &'s [Task<'a>],
    order: &'s [usize],
    steps: u32,
}

impl<'a> Search<'_, 'a> {
    /// Places all from `depth` on, or none of them.
    fn all(&mut self, draft: &mut Draft<'a>, depth: usize, chosen: &mut [Option<&'a NodeId>]) -> bool {
        let Some(&index) = self.order.get(depth) else { return true };
        let task = &self.tasks[index];
        for machine in ranked(draft, self.fleet, task) {
            if self.steps == 0 {
                return false;
            }
            self.steps -= 1;
            let taken = occupy(draft, task, machine);
            chosen[index] = Some(machine);
            let found = self.all(draft, depth + 1, chosen);
            free(draft, task, taken);
            if found {
                return true;
            }
            chosen[index] = None;
        }
        false
    }

    /// Places each that fits beside those before it.
    fn some(&mut self, draft: &mut Draft<'a>, chosen: &mut [Option<&'a NodeId>]) {
        let mut taken = Vec::new();
        for &index in self.order {
            let task = &self.tasks[index];
            if let Some(&machine) = ranked(draft, self.fleet, task).first() {
                chosen[index] = Some(machine);
                taken.push((task, occupy(draft, task, machine)));
            }
        }
        for (task, slots) in taken {
            free(draft, task, slots);
        }
    }
}

/// Counts in the instances that would come to the machine.
fn occupy<'a>(draft: &mut Draft<'a>, task: &Task<'a>, machine: &'a NodeId) -> Vec<(usize, Slot<'a>)> {
    let mut taken = Vec::new();
    for (index, member) in task.unit.members.iter().enumerate() {
        let service = member.service;
        let there = draft.of_replica(&service.name, member.replica).any(|slot| slot.machine == machine);
        if !there {
            let slot = Slot {
                replica: member.replica,
                machine,
                epoch: None,
                exclusive: false,
                revision: service.current,
                restarts: service.restarts,
                phase: Phase::Active,
            };
            draft.occupy(service, slot);
            taken.push((index, slot));
        }
    }
    taken
}

fn free<'a>(draft: &mut Draft<'a>, task: &Task<'a>, taken: Vec<(usize, Slot<'a>)>) {
    for (index, slot) in taken {
        draft.free(task.unit.members[index].service, slot);
    }
}
