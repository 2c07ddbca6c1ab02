//! Moves without need, few and one at a time: only where a machine is clearly better in what lasts, never of what keeps data,
//! and only in quiet times.
//!
//! It comes to an end. A move has to gain [`MARGIN`] points. Fewer replicas side by side (or with one label) count so much that
//! no other part outweighs them, so their number never grows; and where it stays, the emptier of the two machines is, after the
//! move, still emptier than the fuller one was before, so that machines can't swap back.

use flotilla_api::UnixMillis;

use super::{
    draft::Draft,
    fleet::{Bar, Fleet, Site},
    place::{choices, is_ready},
    rollout::Wake,
    score,
    unit::Unit,
};
use crate::state::Phase;

/// What a move has to gain, in points of `score::lasting`. More than a battery and a stack weigh together, so that it takes
/// better room, or replicas that are further apart.
pub const MARGIN: i64 = 120;
/// Nothing is moved so soon after another change of placements, or to a machine that has come a moment ago. Milliseconds.
pub const QUIET_MS: u64 = 60_000;

/// Moves the unit that gains most, if any does.
pub(super) fn rebalance<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, units: &[Unit<'a>], wake: &mut Wake) {
    let services = || draft.input.state.services.values();
    let placements = || services().flat_map(|service| &service.placements);
    // What waits for a machine that is lost, or can't leave one that is drained, is no reason to wait with it.
    let quiet = |site: &Site<'_>| matches!(site.bar, None | Some(Bar::Lost | Bar::Drained));
    let at_rest = placements()
        .all(|placement| placement.phase == Phase::Active && fleet.site(&placement.machine).is_some_and(quiet))
        && services().all(|service| service.placements.iter().all(|placement| service.is_current(placement)));
    if !at_rest {
        return;
    }
    let best = units
        .iter()
        .rev()
        .filter(|unit| !unit.keeps_data() && is_well(draft, fleet, unit))
        .filter_map(|unit| gain(draft, fleet, unit).map(|(points, site)| (points, unit, site)))
        .max_by_key(|(points, ..)| *points);
    let Some((_, unit, site)) = best else { return };
    let changed = placements().map(|placement| placement.since).chain([came(site)]).max().unwrap_or_default();
    let quiet_at = changed.plus(QUIET_MS);
    if quiet_at > draft.input.now {
        wake.at(quiet_at);
        return;
    }
    let reason = format!("it is much better placed on `{}`", site.name());
    for member in &unit.members {
        let Some(slot) = draft.active(&member.service.name, member.replica) else { continue };
        draft.leave(member.service, slot, &reason);
        draft.assign(member.service, member.replica, site.id, (slot.revision, slot.restarts), reason.clone());
    }
}

/// What does not run well would not run better elsewhere, and its successor would never be ready.
fn is_well<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, unit: &Unit<'a>) -> bool {
    unit.members.iter().all(|member| {
        let service = member.service;
        let slot = draft.active(&service.name, member.replica);
        service.confirmed == Some(service.current) && slot.is_some_and(|slot| is_ready(fleet, service, slot))
    })
}

/// How much the unit gains where it gains most, if that is enough.
fn gain<'s, 'a>(draft: &Draft<'a>, fleet: &'s Fleet<'a>, unit: &Unit<'a>) -> Option<(i64, &'s Site<'a>)> {
    let first = unit.members.first()?;
    let here = draft.active(&first.service.name, first.replica)?.machine;
    let together = unit
        .members
        .iter()
        .all(|member| draft.active(&member.service.name, member.replica).is_some_and(|slot| slot.machine == here));
    let now = score::score(draft, fleet, unit, fleet.site(here).filter(|_| together)?).lasting();
    choices(fleet, unit)
        .into_iter()
        .filter(|choice| choice.machine != here)
        .filter_map(|choice| fleet.site(choice.machine))
        .filter(|site| score::admit(site).is_ok() && score::fit(draft, unit, site).is_ok())
        .map(|site| (score::score(draft, fleet, unit, site).lasting() - now, site))
        .filter(|(points, _)| *points >= MARGIN)
        .max_by(|(a, one), (b, other)| a.cmp(b).then(other.name().cmp(one.name())))
}

/// Since when the machine can be counted on.
fn came(site: &Site<'_>) -> UnixMillis {
    site.machine.here_since.unwrap_or_default()
}
