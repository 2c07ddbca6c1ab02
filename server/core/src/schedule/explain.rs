//! Why a service is where it is, and not elsewhere.

use flotilla_api::{
    ApiError, ErrorCode, ServiceName,
    rest::{ExplainView, MachineVerdict, PlacedView, ScorePart, Verdict},
};

use super::{
    Input,
    draft::Draft,
    fleet::{Fleet, Site},
    place::{better, task},
    score::{self, Obstacle, Score},
    unit::{Data, Unit, units},
};
use crate::{
    dependency,
    state::{Phase, Rejected, Service},
};

/// For people and programs: each machine, whether the service is or could be there, and why.
///
/// # Errors
/// There is no such service.
pub fn explain(input: &Input<'_>, name: &ServiceName) -> Result<ExplainView, Rejected> {
    let Some(service) = input.state.services.get(name) else {
        return Err(Rejected(ApiError::new(
            ErrorCode::ServiceNotFound,
            format!("there is no service `{name}`; `flotilla ps` lists those that there are"),
        )));
    };
    let fleet = Fleet::of(input);
    let draft = Draft::of(input);
    let units = units(input.state);
    let own: Vec<&Unit<'_>> =
        units.iter().filter(|unit| unit.members.iter().any(|member| member.service.name == *name)).collect();
    let together = own.first().map(|unit| unit.services()).unwrap_or_default();
    Ok(ExplainView {
        service: name.clone(),
        summary: summary(input, &draft, &fleet, service, &own),
        replicas: service.replicas,
        together_with: together.into_iter().filter(|other| *other != name).cloned().collect(),
        placements: placements(&fleet, service),
        standby: service.standby.iter().filter_map(|id| fleet.site(id)).map(|site| site.name().clone()).collect(),
        machines: own.first().map(|unit| verdicts(&draft, &fleet, service, unit)).unwrap_or_default(),
        at: input.now,
    })
}

/// What keeps a service from being placed, as the rest of a sentence that begins with its name; absent where nothing does.
pub fn waiting(input: &Input<'_>, name: &ServiceName) -> Option<String> {
    let service = input.state.services.get(name)?;
    let (fleet, draft) = (Fleet::of(input), Draft::of(input));
    let units = units(input.state);
    let mut own = units.iter().filter(|unit| unit.members.iter().any(|member| member.service.name == *name));
    own.find_map(|unit| obstacle(input, &draft, &fleet, service, unit))
}

/// Why a unit has no machine that is well, if it has none and gets none.
fn obstacle<'a>(
    input: &Input<'a>,
    draft: &Draft<'a>,
    fleet: &Fleet<'a>,
    service: &Service,
    unit: &Unit<'a>,
) -> Option<String> {
    if let Some(leftover) = input.state.leftovers.iter().find(|leftover| leftover.service == service.name)
        && service.is_exclusive(service.current)
    {
        let machine = fleet.name(&leftover.machine);
        return Some(format!("waits until a former instance on `{machine}` has ended for certain"));
    }
    let runs = unit.members.iter().filter(|member| member.service.name == service.name).all(|member| {
        draft
            .of_replica(&service.name, member.replica)
            .any(|slot| slot.phase != Phase::Vacating && fleet.site(slot.machine).is_some_and(|site| !site.is_lost()))
    });
    let task = task(draft, fleet, unit).filter(|_| !runs)?;
    if task
        .sites
        .iter()
        .any(|choice| fleet.site(choice.machine).is_some_and(|site| score::fit(draft, unit, site).is_ok()))
    {
        return None;
    }
    let pinned = unit.members.iter().find_map(|member| {
        let home = Data::of(input.state, member.service).pin()?;
        Some((&member.service.name, home))
    });
    if let Some((owner, home)) = pinned {
        let data = if *owner == service.name { "its data".to_owned() } else { format!("the data of `{owner}`") };
        let why = fleet.site(home).map_or_else(String::new, |site| match possible(draft, unit, site) {
            Err(Obstacle::Barred(bar)) => format!(": {bar}"),
            Err(obstacle) => format!(": {}", obstacle.clause(input.now, fleet)),
            Ok(()) => String::new(),
        });
        return Some(format!("waits for `{}`, which alone has {data}{why}", fleet.name(home)));
    }
    Some(format!("waits for a machine: {}", lacks(input, draft, fleet, unit, None)))
}

/// What lacks where: `atlas`: it is drained; `boreas`: 2 GiB of memory are reserved, and it has 1 GiB left.
pub(super) fn lacks<'a>(
    input: &Input<'_>,
    draft: &Draft<'a>,
    fleet: &Fleet<'a>,
    unit: &Unit<'a>,
    except: Option<&Site<'a>>,
) -> String {
    let clauses: Vec<String> = fleet
        .sites()
        .filter(|site| except.is_none_or(|except| except.id != site.id))
        .filter_map(|site| {
            let obstacle = possible(draft, unit, site).err()?;
            Some(format!("on `{}` {}", site.name(), obstacle.clause(input.now, fleet)))
        })
        .collect();
    if clauses.is_empty() { "there is no other".to_owned() } else { clauses.join("; ") }
}

fn possible<'a>(draft: &Draft<'a>, unit: &Unit<'a>, site: &Site<'a>) -> Result<(), Obstacle<'a>> {
    match score::admit(site) {
        // Where there is nothing else, it will do.
        Ok(()) | Err(Obstacle::KeptOut { .. }) => score::fit(draft, unit, site),
        Err(obstacle) => Err(obstacle),
    }
}

fn summary<'a>(
    input: &Input<'a>,
    draft: &Draft<'a>,
    fleet: &Fleet<'a>,
    service: &Service,
    own: &[&Unit<'a>],
) -> String {
    let name = &service.name;
    if service.replicas == 0 {
        return format!("`{name}` is stopped.");
    }
    if let Some(why) = own.iter().find_map(|unit| obstacle(input, draft, fleet, service, unit)) {
        return format!("`{name}` {why}.");
    }
    let mut machines: Vec<String> = service
        .placements
        .iter()
        .filter(|placement| placement.phase == Phase::Active)
        .map(|placement| format!("`{}`", fleet.name(&placement.machine)))
        .collect();
    machines.dedup();
    if machines.is_empty() {
        return format!("`{name}` is being placed.");
    }
    let linked = own.first().map(|unit| unit.services()).unwrap_or_default();
    let linked = dependency::listed(linked.into_iter().filter(|other| *other != name));
    let with = if linked.is_empty() { String::new() } else { format!(", together with {linked}") };
    format!("`{name}` runs on {}{with}.", machines.join(", "))
}

fn placements(fleet: &Fleet<'_>, service: &Service) -> Vec<PlacedView> {
    let placed = service
        .placements
        .iter()
        .filter_map(|placement| Some(placement.view(&service.name, fleet.site(&placement.machine)?.name())));
    placed.collect()
}

fn verdicts<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, service: &Service, unit: &Unit<'a>) -> Vec<MachineVerdict> {
    let chosen = |site: &Site<'a>| {
        draft.slots(&service.name).iter().any(|slot| slot.phase == Phase::Active && slot.machine == site.id)
    };
    let scored: Vec<(&Site<'a>, Result<Score, Obstacle<'a>>)> = fleet
        .sites()
        .map(|site| (site, possible(draft, unit, site).map(|()| score::score(draft, fleet, unit, site))))
        .collect();
    let placed = scored.iter().find(|(site, _)| chosen(site));
    let best = scored.iter().filter_map(|(_, score)| score.as_ref().ok()).max_by_key(|score| score.total());
    let mut verdicts: Vec<MachineVerdict> = scored
        .iter()
        .map(|(site, score)| {
            let verdict = match score {
                _ if chosen(site) => Verdict::Chosen,
                Ok(_) => Verdict::Possible,
                Err(_) => Verdict::Impossible,
            };
            let why = match score {
                _ if verdict == Verdict::Chosen => reason(draft, fleet, service, site, score),
                Err(obstacle) => obstacle.clause(draft.input.now, fleet),
                Ok(score) => {
                    let rival = placed.and_then(|(_, placed)| placed.as_ref().ok()).or(best);
                    let worse = rival.and_then(|rival| better(rival, score));
                    let ahead = rival.is_some_and(|rival| score.lasting() > rival.lasting());
                    match worse {
                        _ if ahead => "it would be better by now, but not by enough to move".to_owned(),
                        Some(part) => part.against_it().to_owned(),
                        None => "it is as good".to_owned(),
                    }
                }
            };
            let score = score.as_ref().ok();
            MachineVerdict {
                machine: site.name().clone(),
                id: site.id.clone(),
                verdict,
                why,
                score: score.map(Score::total),
                parts: score.map(parts).unwrap_or_default(),
            }
        })
        .collect();
    verdicts.sort_by_key(|verdict| (verdict.verdict, std::cmp::Reverse(verdict.score), verdict.machine.clone()));
    verdicts
}

/// Why it was placed there, and what is against it by now.
fn reason<'a>(
    draft: &Draft<'a>,
    fleet: &Fleet<'a>,
    service: &Service,
    site: &Site<'a>,
    now: &Result<Score, Obstacle<'a>>,
) -> String {
    let placed = service.placements.iter().find(|placement| placement.machine == *site.id);
    let reason = placed.map_or_else(String::new, |placement| placement.reason.clone());
    match now {
        Ok(_) => reason,
        Err(obstacle) => format!("{reason}; but by now {}", obstacle.clause(draft.input.now, fleet)),
    }
}

fn parts(score: &Score) -> Vec<ScorePart> {
    score
        .parts
        .iter()
        .map(|(part, points)| ScorePart {
            part: part.name().to_owned(),
            points: *points,
            why: if *points > 0 { part.for_it() } else { part.against_it() }.to_owned(),
        })
        .collect()
}
