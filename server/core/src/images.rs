//! Which machines hold the images of services before they are needed, and which images nobody needs any more.
//!
//! All of it follows from the state, so that every machine comes to the same by itself.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use flotilla_api::{NodeId, Revision, ServiceName, UnixMillis, spec::ServiceSpec};

use crate::state::{Availability, Service, State};

/// Machines that hold the image of a service, where the cluster has as many: the loss of one takes it from nobody.
pub const HOLDERS_MIN: usize = 2;

/// An image that no service names stays for so long: it may have been pushed for a deployment that is to come. Milliseconds.
pub const UNNAMED_KEPT_MS: u64 = 7 * 24 * 3_600_000;

/// The same where the disk is nearly full. Milliseconds.
pub const UNNAMED_KEPT_WHERE_FULL_MS: u64 = 3_600_000;

/// What names the image of a specification: the engine's id, or a reference where that is not known.
pub fn key(spec: &ServiceSpec) -> &str {
    spec.image_id.as_deref().unwrap_or(&spec.image)
}

/// Machines that shall have the image of a service's current revision: where it runs or may start, and so many others that
/// [`HOLDERS_MIN`] of those that are not lost have it.
pub fn holders<'a>(state: &'a State, service: &'a Service) -> BTreeSet<&'a NodeId> {
    let placed = service.placements.iter().map(|placement| &placement.machine);
    let mut holders: BTreeSet<&NodeId> =
        placed.chain(&service.standby).chain(&service.data.replicas).chain(&service.home).collect();
    holders.retain(|machine| state.machines.contains_key(*machine) && !state.stores_only(machine));
    let is_there = |machine: &NodeId| state.machines.get(machine).is_some_and(|machine| machine.lost_at.is_none());
    let there = holders.iter().filter(|machine| is_there(machine)).count();
    let mut others: Vec<&NodeId> = state
        .machines
        .iter()
        .filter(|(id, machine)| {
            let is_there = machine.lost_at.is_none() && machine.availability == Availability::Active;
            is_there && !machine.stores_only && !holders.contains(id)
        })
        .map(|(id, _)| id)
        .collect();
    others.sort_by_key(|machine| Reverse(weight(&service.name, machine)));
    holders.extend(others.into_iter().take(HOLDERS_MIN.saturating_sub(there)));
    holders
}

/// Rendezvous hashing (Thaler and Ravishankar 1998): services choose different machines, and the choice of one changes only with the
/// machines that it concerns. FNV-1a.
fn weight(service: &ServiceName, machine: &NodeId) -> u64 {
    let bytes = service.as_str().bytes().chain([0]).chain(machine.0.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Images that a machine shall have, by [`key`], and a service for which: of what is placed there, of what may start there, and of the
/// revision that a service is rolled back to where the current one fails.
pub fn wanted<'a>(state: &'a State, machine: &NodeId) -> BTreeMap<&'a str, &'a ServiceSpec> {
    let mut wanted = BTreeMap::new();
    for service in state.services.values() {
        let placed = service.placed_on(machine).filter_map(|placement| service.revisions.get(&placement.revision));
        let mut specs: Vec<&ServiceSpec> = placed.map(|record| &record.spec).collect();
        if holders(state, service).contains(machine) {
            let former = service.confirmed.and_then(|revision| service.revisions.get(&revision));
            specs.extend(former.map(|record| &record.spec));
            specs.push(service.spec());
        }
        wanted.extend(specs.into_iter().map(|spec| (key(spec), spec)));
    }
    wanted
}

/// Of the machines that can be asked, the one that gets an image from its registry for all: where it is to run first.
pub fn puller<'a>(state: &'a State, image: &str, can_be_asked: impl Fn(&NodeId) -> bool) -> Option<&'a NodeId> {
    let services = state.services.values().filter(|service| key(service.spec()) == image);
    let placed = services.flat_map(|service| &service.placements).filter(|placement| can_be_asked(&placement.machine));
    placed.min_by_key(|placement| placement.epoch).map(|placement| &placement.machine)
}

/// A revision that names an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use<'a> {
    pub service: &'a ServiceName,
    pub revision: Revision,
    /// It shall run, or runs still.
    pub current: bool,
}

/// The revisions that name an image; `means` says whether a key does.
pub fn uses<'a>(state: &'a State, means: impl Fn(&str) -> bool) -> Vec<Use<'a>> {
    let mut uses = Vec::new();
    for service in state.services.values() {
        for (revision, record) in &service.revisions {
            if means(key(&record.spec)) {
                let runs = service.placements.iter().any(|placement| placement.revision == *revision);
                uses.push(Use {
                    service: &service.name,
                    revision: *revision,
                    current: runs || *revision == service.current,
                });
            }
        }
    }
    uses
}

/// May an image go that no revision names? `unnamed_since` is when one did last, or when it came.
pub fn is_disposable(unnamed_since: UnixMillis, now: UnixMillis, disk_is_full: bool) -> bool {
    now.since(unnamed_since) >= if disk_is_full { UNNAMED_KEPT_WHERE_FULL_MS } else { UNNAMED_KEPT_MS }
}
