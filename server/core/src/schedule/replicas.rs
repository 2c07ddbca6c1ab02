//! Which machines keep copies of what a service writes. Copying takes long, so that whoever has a copy keeps it; and one is made anew
//! only when its machine has been lost for a while.

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
        let copies = members.iter().map(|service| service.spec().copies()).max().unwrap_or(0);
        let wanted = chosen(draft, fleet, &members, copies as usize, wake);
        for service in members {
            let len = wanted.len().min(service.spec().copies() as usize);
            // Of what nobody has written yet nothing can be said.
            let machines = if service.home.is_some() { wanted[..len].to_vec() } else { Vec::new() };
            if service.data.replicas != machines {
                draft.changes.push(Change::Replicate { service: service.name.clone(), machines });
            }
        }
    }
}

/// The first first. Those that have copies stay, in their order, as long as they will do.
fn chosen<'a>(
    draft: &Draft<'a>,
    fleet: &Fleet<'a>,
    members: &[&'a Service],
    copies: usize,
    wake: &mut Wake,
) -> Vec<NodeId> {
    let is_home = |site: &&Site<'_>| members.iter().any(|service| service.home.as_ref() == Some(site.id));
    let mut candidates: Vec<&Site<'a>> = fleet.sites().filter(|site| !is_home(site)).collect();
    candidates.sort_by_key(|site| {
        let rank = members.iter().filter_map(|service| service.data.replicas.iter().position(|id| id == site.id)).min();
        let points = points(fleet, members, site);
        (!will_do(draft, site, wake), rank.unwrap_or(usize::MAX), std::cmp::Reverse(points), site.id)
    });
    candidates.into_iter().take(copies).map(|site| site.id.clone()).collect()
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
