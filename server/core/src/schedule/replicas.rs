//! Which machines keep copies of what a service writes. Copying takes long, so that whoever has a copy keeps it; and one is made anew
//! only when its machine has been lost for a while.
//!
//! A machine that only stores keeps the last copy of an encrypted volume that has two or more: the others are where the service can go on at
//! once, and it is wherever the others are not. Nothing else is kept there.

use flotilla_api::NodeId;

use super::{
    draft::Draft,
    fleet::{Fleet, LINK_BEST, Site},
    rollout::Wake,
    unit::{Member, Unit},
};
use crate::{
    command::Change,
    state::{Power, Service},
};

/// How long a lost machine's copies are waited for: a restart, or an evening. Milliseconds.
pub const GRACE_MS: u64 = 600_000;

/// It has what is committed: only what came after it has to travel. In points.
const HOLDER: i64 = 300;
/// It wrote there before, or had a copy: much of it is there.
const HOST: i64 = 100;
/// The service could not run on what it has.
const NOT_ALLOWED: i64 = -400;
const LOST: i64 = -250;
const BATTERY: i64 = -80;
/// For each other service that it has copies of.
const BURDEN: i64 = -10;

/// The copies of services that belong together are on the same machines: they go there together.
pub(super) fn replicate<'a>(draft: &mut Draft<'a>, fleet: &Fleet<'a>, units: &[Unit<'a>], wake: &mut Wake) {
    let state = draft.input.state;
    let stopped = state.services.values().filter(|service| service.replicas == 0);
    let stopped = stopped.map(|service| Unit { members: vec![Member { service, replica: 1 }] });
    for unit in units.iter().cloned().chain(stopped) {
        let members: Vec<&Service> = unit.members.iter().filter(|it| it.replica == 1).map(|it| it.service).collect();
        let ranked = Ranked::of(draft, fleet, &members, wake);
        for service in members {
            // Of what nobody has written yet nothing can be said.
            let machines = if service.home.is_some() { ranked.chosen(service) } else { Vec::new() };
            if service.data.replicas != machines {
                draft.changes.push(Change::Replicate { service: service.name.clone(), machines });
            }
        }
    }
}

/// Machines that may have copies, the first first. Those that have some stay, in their order, as long as they will do.
struct Ranked<'a> {
    running: Vec<&'a NodeId>,
    storing: Vec<&'a NodeId>,
    /// So many of each will do, the first ones.
    good: (usize, usize),
}

impl<'a> Ranked<'a> {
    fn of(draft: &Draft<'a>, fleet: &Fleet<'a>, members: &[&'a Service], wake: &mut Wake) -> Self {
        let sites = ranked(draft, fleet, members, wake);
        let (storing, running): (Vec<_>, Vec<_>) = sites.into_iter().partition(|site| site.machine.stores_only);
        let mut good = |sites: &[&Site<'a>]| sites.iter().filter(|site| will_do(draft, site, wake)).count();
        let good = (good(&running), good(&storing));
        let ids = |sites: Vec<&Site<'a>>| sites.into_iter().map(|site| site.id).collect();
        Self { running: ids(running), storing: ids(storing), good }
    }

    fn chosen(&self, service: &Service) -> Vec<NodeId> {
        let copies = |encrypted: bool| {
            let mounts = service.spec().written().filter(|mount| mount.rules.encrypted == encrypted);
            mounts.map(|mount| mount.rules.replicas as usize).max().unwrap_or(0)
        };
        let (plain, encrypted) = (copies(false), copies(true));
        let (good_running, good_storing) = self.good;
        let reserved = usize::from(encrypted >= 2).min(good_storing);
        let mut running = plain.max(good_running.min(encrypted - reserved)).min(self.running.len());
        let storing = encrypted.saturating_sub(running).clamp(reserved, good_storing.max(reserved));
        // One that is drained, or lost for long, where nobody else can.
        running = running.max(encrypted.saturating_sub(storing).min(self.running.len()));
        let storing = storing.max(encrypted.saturating_sub(running)).min(self.storing.len());
        let chosen = self.running[..running].iter().chain(&self.storing[..storing]);
        chosen.map(|id| (*id).clone()).collect()
    }
}

fn ranked<'f, 'a>(
    draft: &Draft<'a>,
    fleet: &'f Fleet<'a>,
    members: &[&'a Service],
    wake: &mut Wake,
) -> Vec<&'f Site<'a>> {
    let is_home = |site: &&Site<'_>| members.iter().any(|service| service.home.as_ref() == Some(site.id));
    let mut candidates: Vec<&'f Site<'a>> = fleet.sites().filter(|site| !is_home(site)).collect();
    candidates.sort_by_key(|site| {
        let rank = members.iter().filter_map(|service| service.data.replicas.iter().position(|id| id == site.id)).min();
        let points = points(fleet, members, site);
        (!will_do(draft, site, wake), rank.unwrap_or(usize::MAX), std::cmp::Reverse(points), site.id)
    });
    candidates
}

/// One that is drained, or lost for long, has a copy only where nobody else can.
fn will_do(draft: &Draft<'_>, site: &Site<'_>, wake: &mut Wake) -> bool {
    let given_up = site.machine.lost_at.map(|at| at.plus(GRACE_MS));
    if let Some(at) = given_up.filter(|at| *at > draft.input.now) {
        wake.at(at);
    }
    !site.is_drained() && given_up.is_none_or(|at| at > draft.input.now)
}

fn points<'a>(fleet: &Fleet<'a>, members: &[&'a Service], site: &Site<'a>) -> i64 {
    let holds = |service: &&Service| {
        service.data.committed.as_ref().is_some_and(|committed| committed.holders().contains(site.id))
    };
    let may_run = members.iter().all(|service| super::score::fulfils(service, site).is_ok());
    let others = fleet.state.services.values().filter(|service| service.data.replicas.contains(site.id)).count();
    let parts = [
        (members.iter().any(holds), HOLDER),
        (members.iter().any(|service| service.hosts.contains(site.id)), HOST),
        (!may_run, NOT_ALLOWED),
        (site.is_lost(), LOST),
        (site.facts().power == Power::Battery, BATTERY),
    ];
    let burden = i64::try_from(others).unwrap_or(0) * BURDEN;
    parts.iter().filter(|(is, _)| *is).map(|(_, points)| points).sum::<i64>() + site.links - LINK_BEST + burden
}
