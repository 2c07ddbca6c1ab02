//! What people ask before they do it.

use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName};

use super::{
    Input,
    draft::Draft,
    explain::lacks,
    fleet::{Fleet, Site},
    pack,
    place::task,
    unit::{Data, Unit, units},
};
use crate::{
    dependency,
    state::{Availability, Rejected, State},
};

/// Would everything that runs on the machine find another place, if it were drained now? Changes nothing.
///
/// # Errors
/// Says what lacks where, or that there is no such machine.
pub fn check_drain(input: &Input<'_>, machine: &NodeId) -> Result<(), Rejected> {
    let mut state = State::clone(input.state);
    let Some(drained) = state.machines.get_mut(machine) else {
        return Err(Rejected(ApiError::new(
            ErrorCode::MachineNotFound,
            format!("there is no machine `{machine}`; `flotilla machine ls` lists those that there are"),
        )));
    };
    drained.availability = Availability::Drained { since: input.now };
    let input = Input { now: input.now, state: &state, machines: input.machines.clone() };
    let fleet = Fleet::of(&input);
    let mut draft = Draft::of(&input);
    let units = units(&state);
    let here = |unit: &&Unit<'_>| {
        unit.members.iter().any(|member| {
            draft.active(&member.service.name, member.replica).is_some_and(|slot| slot.machine == machine)
        })
    };
    let tasks: Vec<_> = units.iter().filter(here).filter_map(|unit| task(&draft, &fleet, unit)).collect();
    let chosen = pack::pack(&mut draft, &fleet, &tasks);
    let Some(site) = fleet.site(machine) else { return Ok(()) };
    let mut stuck: Vec<String> = tasks
        .iter()
        .zip(chosen)
        .filter(|(_, chosen)| chosen.is_none())
        .map(|(task, _)| stuck(&input, &draft, &fleet, &task.unit, site))
        .collect();
    stuck.dedup();
    if stuck.is_empty() {
        return Ok(());
    }
    Err(Rejected(ApiError::new(
        ErrorCode::NoRoom,
        format!("`{}` can't be drained, and nothing was changed: {}", site.name(), stuck.join("; and ")),
    )))
}

fn stuck<'a>(input: &Input<'_>, draft: &Draft<'a>, fleet: &Fleet<'a>, unit: &Unit<'a>, site: &Site<'a>) -> String {
    let names = dependency::listed(unit.services());
    let verb = if unit.services().len() == 1 { "finds" } else { "find" };
    if let Some(owner) = unit.members.iter().find(|member| Data::of(input.state, member.service).pin() == Some(site.id))
    {
        let whose = if unit.services().len() == 1 {
            "its data".to_owned()
        } else {
            format!("the data of `{}`", owner.service.name)
        };
        return format!("{names} can't go elsewhere, because only `{}` has {whose}", site.name());
    }
    format!("{names} {verb} no place ({})", lacks(input, draft, fleet, unit, Some(site)))
}

impl State {
    /// Services whose data is only on this machine: what is lost with it when it is removed.
    pub fn data_only_on(&self, machine: &NodeId) -> Vec<&ServiceName> {
        let services = self.services.values().filter(|service| Data::of(self, service).pin() == Some(machine));
        services.map(|service| &service.name).collect()
    }
}
