//! What is placed as one: a replica, or services that depend on each other.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{NodeId, ServiceName};

use crate::state::{Service, Sources, State};

/// Instances that have to be on one machine.
#[derive(Clone, Debug)]
pub(super) struct Unit<'a> {
    /// By service, then replica.
    pub(super) members: Vec<Member<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) service: &'a Service,
    pub(super) replica: u32,
}

/// Where the data of a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Data<'a> {
    sources: Sources<'a>,
    /// It would begin anew elsewhere, and may.
    disposable: bool,
}

impl<'a> Data<'a> {
    pub(super) fn of(state: &'a State, service: &'a Service) -> Self {
        let spec = service.spec();
        let sources = if spec.volumes.is_empty() { Sources::Anywhere } else { state.sources(service) };
        Self { sources, disposable: spec.may_start_empty() }
    }

    /// The only machines that will do, if not all will.
    pub(super) fn only_on(self) -> Option<BTreeSet<&'a NodeId>> {
        match self.sources {
            Sources::On(machines) if !self.disposable => Some(machines),
            Sources::Anywhere | Sources::On(_) => None,
        }
    }

    /// The only machine that will do.
    pub(super) fn pin(self) -> Option<&'a NodeId> {
        let machines = self.only_on()?;
        machines.first().copied().filter(|_| machines.len() == 1)
    }

    /// Would it find its data there, where others would do as well?
    pub(super) fn is_better_on(&self, machine: &NodeId) -> bool {
        matches!(&self.sources, Sources::On(machines) if self.disposable && machines.contains(machine))
    }
}

impl<'a> Unit<'a> {
    fn of(services: &[&'a Service], replicas: &(impl Iterator<Item = u32> + Clone)) -> Self {
        let members = services.iter().flat_map(|service| {
            replicas.clone().filter(|replica| *replica <= service.replicas).map(|replica| Member { service, replica })
        });
        Self { members: members.collect() }
    }

    pub(super) fn has(&self, service: &ServiceName, replica: u32) -> bool {
        self.members.iter().any(|member| member.service.name == *service && member.replica == replica)
    }

    pub(super) fn services(&self) -> BTreeSet<&'a ServiceName> {
        self.members.iter().map(|member| &member.service.name).collect()
    }

    /// Does it keep anything on a disk? Such a unit is moved only where it must be.
    pub(super) fn keeps_data(&self) -> bool {
        self.members.iter().any(|member| !member.service.spec().volumes.is_empty())
    }
}

/// All that shall run, in units. Services that depend on each other reach each other only on their machine's network, so they
/// go together: all of their replicas to one machine; or, where each has as many as the others, one of each to one machine.
pub(super) fn units(state: &State) -> Vec<Unit<'_>> {
    let mut units = Vec::new();
    for services in linked(state) {
        let replicas = services[0].replicas;
        let even = services.iter().all(|service| service.replicas == replicas);
        let data = services.iter().filter_map(|service| Data::of(state, service).only_on());
        let shared = data.reduce(|some, others| some.intersection(&others).copied().collect());
        if services.len() > 1 && shared.is_some_and(|shared| shared.is_empty()) {
            // Their data was apart before they were linked: each stays with its own.
            for service in services {
                units.extend((1..=service.replicas).map(|replica| Unit::of(&[service], &(replica..=replica))));
            }
        } else if even {
            units.extend((1..=replicas).map(|replica| Unit::of(&services, &(replica..=replica))));
        } else {
            let most = services.iter().map(|service| service.replicas).max().unwrap_or(0);
            units.push(Unit::of(&services, &(1..=most)));
        }
    }
    units
}

/// Services that shall run, those linked by `depends_on` together. One that is stopped links nobody: nobody waits for it.
fn linked(state: &State) -> Vec<Vec<&Service>> {
    let running: BTreeMap<&ServiceName, &Service> =
        state.services.iter().filter(|(_, service)| service.replicas > 0).collect();
    let mut links: BTreeMap<&ServiceName, BTreeSet<&ServiceName>> = BTreeMap::new();
    for (name, service) in &running {
        for other in service.spec().depends_on.iter().filter(|other| running.contains_key(other)) {
            links.entry(name).or_default().insert(other);
            links.entry(other).or_default().insert(name);
        }
    }
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for name in running.keys() {
        let mut group = BTreeSet::new();
        let mut next = vec![*name];
        while let Some(name) = next.pop() {
            if seen.insert(name) {
                group.insert(name);
                next.extend(links.get(name).into_iter().flatten());
            }
        }
        if !group.is_empty() {
            groups.push(group.into_iter().map(|name| running[name]).collect());
        }
    }
    groups
}
