//! Which machines a unit may run on, and which of them is better. Points are whole numbers, so that every leader counts alike.

use std::fmt;

use flotilla_api::{
    NodeId, ServiceName, UnixMillis,
    spec::{Attribute, Constraint, Operator},
};

use super::{
    draft::Draft,
    fleet::{Bar, Fleet, LINK_BEST, Site},
    needs::{Needs, shown_bytes, shown_cpu},
    unit::{Data, Unit},
};
use crate::{
    dependency,
    state::{Phase, Power, Service, State},
};

/// Of an empty machine; a full one has none, and one that was promised twice what it has loses half as many.
const ROOM: i64 = 200;
/// For each other replica of a service that is there already: one machine's end shall not be the service's.
const APART: i64 = -1_000;
/// For each other replica on machines with the same label, where `spread` asks for different ones.
const SPREAD: i64 = -500;
/// Others of its stack run there.
const STACK: i64 = 30;
const BATTERY: i64 = -80;
/// It can start without fetching its images first.
const IMAGE: i64 = 60;
/// Data that may be given up is still better kept.
const DATA: i64 = 400;
/// It has been standing by.
const STANDBY: i64 = 120;
/// For each member of the unit that is there already.
const THERE: i64 = 50;

/// What a machine gets points for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Apart,
    Spread,
    Data,
    StandBy,
    Room,
    Image,
    Power,
    Links,
    There,
    Stack,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Score {
    /// Only those that are not zero.
    pub(super) parts: Vec<(Part, i64)>,
}

/// Why a unit can't be on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle<'a> {
    Barred(Bar),
    KeptOut { until: UnixMillis },
    Constraint { service: &'a ServiceName, constraint: &'a Constraint, found: String },
    DataElsewhere { service: &'a ServiceName, machines: Vec<&'a NodeId> },
    Crowded { service: &'a ServiceName, most: u32 },
    Cpu { needed: u64, left: u64 },
    Memory { needed: u64, left: u64 },
}

impl Score {
    pub(super) fn total(&self) -> i64 {
        self.parts.iter().map(|(_, points)| points).sum()
    }

    /// Without what is measured anew all the time, or soon made up for: the measure of rebalancing.
    pub(super) fn lasting(&self) -> i64 {
        let lasts = |part| matches!(part, Part::Apart | Part::Spread | Part::Room | Part::Power | Part::Stack);
        self.parts.iter().filter(|(part, _)| lasts(*part)).map(|(_, points)| points).sum()
    }

    pub(super) fn of(&self, part: Part) -> i64 {
        self.parts.iter().filter(|(present, _)| *present == part).map(|(_, points)| points).sum()
    }
}

/// May anything new come to the machine?
pub(super) fn admit<'a>(site: &Site<'a>) -> Result<(), Obstacle<'a>> {
    match (site.bar, site.kept_out_until) {
        (Some(bar), _) => Err(Obstacle::Barred(bar)),
        (None, Some(until)) => Err(Obstacle::KeptOut { until }),
        (None, None) => Ok(()),
    }
}

/// Has the machine what the service asks for?
pub(super) fn fulfils<'a>(service: &'a Service, site: &Site<'a>) -> Result<(), Obstacle<'a>> {
    for constraint in &service.spec().placement.constraints {
        let found = value(&constraint.attribute, site);
        if (found == constraint.value) != (constraint.operator == Operator::Equal) {
            return Err(Obstacle::Constraint { service: &service.name, constraint, found: found.to_owned() });
        }
    }
    Ok(())
}

/// May the service be on the machine at all, whatever else is there?
pub(super) fn allowed<'a>(state: &'a State, service: &'a Service, site: &Site<'a>) -> Result<(), Obstacle<'a>> {
    fulfils(service, site)?;
    match Data::of(state, service).only_on() {
        Some(machines) if !machines.contains(site.id) => {
            Err(Obstacle::DataElsewhere { service: &service.name, machines: machines.into_iter().collect() })
        }
        _ => Ok(()),
    }
}

/// Could the whole unit be on the machine, beside what is there of others?
pub(super) fn fit<'a>(draft: &Draft<'a>, unit: &Unit<'a>, site: &Site<'a>) -> Result<(), Obstacle<'a>> {
    let mut needs = Needs::default();
    for member in &unit.members {
        allowed(draft.input.state, member.service, site)?;
        needs = needs.plus(Needs::of(member.service.spec()));
        if let Some(most) = member.service.spec().placement.max_per_machine {
            let own = unit.members.iter().filter(|other| other.service.name == member.service.name).count();
            if own + others_on(draft, unit, member.service, site) > most as usize {
                return Err(Obstacle::Crowded { service: &member.service.name, most });
            }
        }
    }
    let left = site.capacity.left(draft.load_of_others(site.id, unit).needs.reserved);
    let needed = needs.reserved;
    if needed.memory_bytes > left.memory_bytes {
        return Err(Obstacle::Memory { needed: needed.memory_bytes, left: left.memory_bytes });
    }
    if needed.cpu_millis > left.cpu_millis {
        return Err(Obstacle::Cpu { needed: needed.cpu_millis, left: left.cpu_millis });
    }
    Ok(())
}

/// How good the machine is for the unit.
pub(super) fn score<'a>(draft: &Draft<'a>, fleet: &Fleet<'a>, unit: &Unit<'a>, site: &Site<'a>) -> Score {
    let needs = unit.members.iter().fold(Needs::default(), |sum, member| sum.plus(Needs::of(member.service.spec())));
    let after = draft.load_of_others(site.id, unit).needs.plus(needs).expected;
    let taken = i64::try_from(after.share_of(site.capacity)).unwrap_or(i64::MAX);
    let room = 1_000_i64.saturating_sub(taken).max(-500) * ROOM / 1_000;

    let services: Vec<&Service> =
        unit.services().into_iter().filter_map(|name| draft.input.state.services.get(name)).collect();
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX / SPREAD.abs().max(APART.abs()));
    let mut apart = 0;
    let mut spread = 0;
    for service in &services {
        apart += APART * count(others_on(draft, unit, service, site));
        for attribute in &service.spec().placement.spread {
            let here = value(attribute, site);
            let alike = others(draft, unit, service)
                .filter(|machine| fleet.site(machine).is_some_and(|other| value(attribute, other) == here));
            spread += SPREAD * count(alike.count());
        }
    }
    let stack = services.iter().any(|service| draft.has_stack(site.id, &service.stack, unit));
    let images = site.report().is_some_and(|report| {
        services.iter().all(|service| {
            let spec = service.spec();
            report.images.iter().any(|image| *image == spec.image || Some(image) == spec.image_id.as_ref())
        })
    });
    let data = services.iter().any(|service| Data::of(draft.input.state, service).is_better_on(site.id));
    let standby = services.iter().any(|service| service.standby.contains(site.id));
    let there = unit.members.iter().filter(|member| {
        draft.active(&member.service.name, member.replica).is_some_and(|slot| slot.machine == site.id)
    });
    let parts = [
        (Part::Apart, apart),
        (Part::Spread, spread),
        (Part::Data, if data { DATA } else { 0 }),
        (Part::StandBy, if standby { STANDBY } else { 0 }),
        (Part::Room, room),
        (Part::Image, if images { IMAGE } else { 0 }),
        (Part::Power, if site.facts().power == Power::Battery { BATTERY } else { 0 }),
        (Part::Links, site.links - LINK_BEST),
        (Part::There, if unit.members.len() > 1 { THERE * count(there.count()) } else { 0 }),
        (Part::Stack, if stack { STACK } else { 0 }),
    ];
    Score { parts: parts.into_iter().filter(|(_, points)| *points != 0).collect() }
}

/// Machines of the service's other replicas that stay.
fn others<'d, 'a>(
    draft: &'d Draft<'a>,
    unit: &'d Unit<'a>,
    service: &'d Service,
) -> impl Iterator<Item = &'a NodeId> + 'd {
    draft
        .slots(&service.name)
        .iter()
        .filter(|slot| slot.phase == Phase::Active && !unit.has(&service.name, slot.replica))
        .map(|slot| slot.machine)
}

fn others_on<'a>(draft: &Draft<'a>, unit: &Unit<'a>, service: &Service, site: &Site<'a>) -> usize {
    others(draft, unit, service).filter(|machine| *machine == site.id).count()
}

fn value<'s>(attribute: &Attribute, site: &'s Site<'_>) -> &'s str {
    match attribute {
        Attribute::Id => &site.id.0,
        Attribute::Hostname => site.name().as_str(),
        Attribute::Label(key) => site.label(key),
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StoresOnly => "it only stores: nothing runs there",
            Self::Lost => "it is lost",
            Self::NoLease => "it has no lease at the moment",
            Self::Drained => "it is drained",
            Self::EngineAway => "its container engine does not answer",
        })
    }
}

impl Obstacle<'_> {
    /// One clause about the machine.
    pub(super) fn clause(&self, now: UnixMillis, fleet: &Fleet<'_>) -> String {
        match self {
            Self::Barred(bar) => bar.to_string(),
            Self::KeptOut { until } => {
                let minutes = until.since(now).div_ceil(60_000);
                format!("it was lost again and again, and is kept out for another {minutes} min")
            }
            Self::Constraint { service, constraint, found } => {
                let found = if found.is_empty() { "it has none".to_owned() } else { format!("it has `{found}`") };
                format!("`{service}` asks for `{constraint}`, and {found}")
            }
            Self::DataElsewhere { service, machines } => {
                let verb = if machines.len() == 1 { "has" } else { "have" };
                let names = dependency::listed(machines.iter().map(|machine| fleet.name(machine)));
                format!("only {names} {verb} the data of `{service}`")
            }
            Self::Crowded { service, most } => format!("it may run at most {most} of `{service}`"),
            Self::Cpu { needed, left } => {
                format!("{} are reserved, and it has {} left", shown_cpu(*needed), shown_cpu(*left))
            }
            Self::Memory { needed, left } => {
                format!("{} of memory are reserved, and it has {} left", shown_bytes(*needed), shown_bytes(*left))
            }
        }
    }
}

impl Part {
    pub(super) const ALL: [Self; 10] = [
        Self::Apart,
        Self::Spread,
        Self::Data,
        Self::StandBy,
        Self::Room,
        Self::Image,
        Self::Power,
        Self::Links,
        Self::There,
        Self::Stack,
    ];

    /// For programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Apart => "apart",
            Self::Spread => "spread",
            Self::Data => "data",
            Self::StandBy => "standby",
            Self::Room => "room",
            Self::Image => "image",
            Self::Power => "power",
            Self::Links => "links",
            Self::There => "there",
            Self::Stack => "stack",
        }
    }

    /// Why a machine is better than another.
    pub(super) fn for_it(self) -> &'static str {
        match self {
            Self::Apart => "fewer of its replicas run there",
            Self::Spread => "fewer of its replicas run on machines with that label",
            Self::Data => "its data is there",
            Self::StandBy => "it stood by",
            Self::Room => "it has more room",
            Self::Image => "it has the image",
            Self::Power => "it is on mains power",
            Self::Links => "it has better links",
            Self::There => "what it is linked with runs there",
            Self::Stack => "others of its stack run there",
        }
    }

    /// Why a machine is worse than another.
    pub(super) fn against_it(self) -> &'static str {
        match self {
            Self::Apart => "more of its replicas run there",
            Self::Spread => "more of its replicas run on machines with that label",
            Self::Data => "its data is not there",
            Self::StandBy => "it did not stand by",
            Self::Room => "it has less room",
            Self::Image => "it would have to fetch the image",
            Self::Power => "it runs on battery",
            Self::Links => "its links are worse",
            Self::There => "what it is linked with does not run there",
            Self::Stack => "none of its stack runs there",
        }
    }
}
