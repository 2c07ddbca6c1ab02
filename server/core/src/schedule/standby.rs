//! The machine that keeps a service's image and a container, to take over with no more than a start. Only services with one
//! replica have one: the others go on with the replicas that are left.

use flotilla_api::NodeId;

use super::{
    draft::Draft,
    fleet::Fleet,
    pack::ranked,
    place::{Task, choices},
    score,
    unit::Unit,
};
use crate::command::Change;

/// A standby is changed for one that is better by so many points; what it has prepared is worth something.
const MARGIN: i64 = 100;

pub(super) fn stand_by<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, units: &[Unit<'a>]) {
    for unit in units {
        let wanted: Vec<NodeId> = best(draft, fleet, unit).into_iter().cloned().collect();
        for member in unit.members.iter().filter(|member| member.replica == 1) {
            let wanted = if member.service.replicas == 1 { wanted.clone() } else { Vec::new() };
            if member.service.standby != wanted {
                draft.changes.push(Change::StandBy { service: member.service.name.clone(), machines: wanted });
            }
        }
    }
    for service in draft.input.state.services.values() {
        if service.replicas == 0 && !service.standby.is_empty() {
            draft.changes.push(Change::StandBy { service: service.name.clone(), machines: Vec::new() });
        }
    }
}

/// Where the unit would go if its machine ended now: a machine that flaps where there is no other.
fn best<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, unit: &Unit<'a>) -> Option<&'a NodeId> {
    let first = unit.members.first().filter(|member| member.service.replicas == 1)?;
    let here = draft.active(&first.service.name, first.replica)?.machine;
    let mut sites: Vec<_> = choices(fleet, unit).into_iter().filter(|choice| choice.machine != here).collect();
    // One that has a copy and shall have none has it today.
    let keeps = |machine: &NodeId| {
        let mut replicas = unit.members.iter().map(|member| &member.service.data.replicas);
        replicas.all(|replicas| replicas.is_empty() || replicas.contains(machine))
    };
    if sites.iter().any(|choice| keeps(choice.machine)) {
        sites.retain(|choice| keeps(choice.machine));
    }
    let task = Task { unit: unit.clone(), sites, cause: None };
    let ranked = ranked(draft, fleet, &task);
    let points = |machine: &NodeId| {
        let score = fleet.site(machine).map(|site| score::score(draft, fleet, unit, site));
        score.map_or(0, |score| score.total() - score.of(score::Part::StandBy))
    };
    let best = *ranked.first()?;
    let present = ranked.iter().find(|machine| first.service.standby.first() == Some(**machine));
    Some(present.filter(|present| points(present) + MARGIN >= points(best)).map_or(best, |present| *present))
}
