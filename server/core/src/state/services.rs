//! Services in the state: deploy, roll back, scale, restart, remove.

use std::collections::BTreeSet;

use flotilla_api::{
    ErrorCode, NodeId, Revision, ServiceName, StackName, VolumeName, rest::Deployed, spec::ServiceSpec,
};

use super::{
    Applied, Assignment, Data, Event, NOTE_MAX, Outcome, REPLICAS_MAX, REVISIONS_KEPT, Rejected, RevisionRecord,
    SERVICES_MAX, Service, State,
};
use crate::{command::Entry, dependency};

impl State {
    pub(super) fn deploy(
        &mut self,
        entry: &Entry,
        stack: &StackName,
        services: &[ServiceSpec],
    ) -> Result<Applied, Rejected> {
        self.check_deploy(stack, services)?;
        let services = &self.pinned(services)?;
        let mut deployed = Vec::with_capacity(services.len());
        let mut events = Vec::new();
        for spec in services {
            let (revision, event) = match self.services.get_mut(&spec.name) {
                Some(service) if service.spec() == spec => (None, None),
                Some(service) => {
                    let revision = service.push(entry, spec.clone(), None, None);
                    service.replicas = spec.replicas;
                    (Some(revision), Some(format!("`{}` was deployed as revision {revision}.", spec.name)))
                }
                None => {
                    let mut service = Service::first(entry, spec);
                    service.hosts = self.kept_on.remove(&spec.name).unwrap_or_default();
                    service.home = self.kept_homes.remove(&spec.name);
                    service.data = self.kept_data.remove(&spec.name).unwrap_or_default();
                    service.assignment = self.first_assignment();
                    self.services.insert(spec.name.clone(), service);
                    (Some(Revision(1)), Some(format!("`{}` was deployed.", spec.name)))
                }
            };
            if revision.is_some() {
                self.take_back_volumes(spec);
            }
            events.extend(event.map(|message| Event::new("deployed", Some(&spec.name), message)));
            deployed.push(Deployed {
                service: spec.name.clone(),
                revision: self.services[&spec.name].current,
                url: None,
                changed: revision.is_some(),
            });
        }
        if events.is_empty() {
            events.push(Event::new("unchanged", None, format!("The stack `{stack}` was deployed again as it was.")));
        }
        Ok(Applied { outcome: Outcome::Deployed(deployed), events })
    }

    fn check_deploy(&self, stack: &StackName, services: &[ServiceSpec]) -> Result<(), Rejected> {
        if services.is_empty() {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "nothing was deployed: name at least one service"));
        }
        let encrypted = services.iter().find(|spec| spec.needs_key());
        if let Some(spec) = encrypted.filter(|_| self.values.key.is_none()) {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("`{}` has an encrypted volume, and the cluster has no key yet; deploy it once more", spec.name),
            ));
        }
        let mut names = BTreeSet::new();
        for spec in services {
            if !names.insert(&spec.name) {
                return Err(Rejected::new(
                    ErrorCode::InvalidRequest,
                    format!("the service `{}` is named twice; keep one of the two", spec.name),
                ));
            }
            if spec.stack != *stack {
                return Err(Rejected::new(
                    ErrorCode::InvalidRequest,
                    format!("the service `{}` says stack `{}`, but `{stack}` is deployed", spec.name, spec.stack),
                ));
            }
            if let Some(present) = self.services.get(&spec.name)
                && present.stack != *stack
            {
                return Err(Rejected::new(
                    ErrorCode::Conflict,
                    format!(
                        "the stack `{}` already has a service `{}`; choose another name, or remove that service first",
                        present.stack, spec.name
                    ),
                ));
            }
            check_replicas(spec, spec.replicas)?;
        }
        for spec in services {
            for dependency in &spec.depends_on {
                let present = names.contains(dependency)
                    || self.services.get(dependency).is_some_and(|service| service.stack == *stack);
                if !present {
                    return Err(Rejected::new(
                        ErrorCode::InvalidRequest,
                        format!(
                            "`{}` depends on `{dependency}`, which the stack `{stack}` does not have; add it or remove the \
                             dependency",
                            spec.name
                        ),
                    ));
                }
            }
        }
        self.check_circles(services)?;
        let new = names.iter().filter(|name| !self.services.contains_key(**name)).count();
        if self.services.len() + new > SERVICES_MAX {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("a cluster has at most {SERVICES_MAX} services; remove some first"),
            ));
        }
        Ok(())
    }

    pub(super) fn roll_back(
        &mut self,
        entry: &Entry,
        name: &ServiceName,
        to: Option<Revision>,
        reason: Option<&str>,
    ) -> Result<Applied, Rejected> {
        let service = self.service_mut(name)?;
        let target = match to {
            Some(target) => target,
            None => service.revisions.range(..service.current).next_back().map(|(revision, _)| *revision).ok_or_else(
                || {
                    Rejected::new(
                        ErrorCode::RevisionNotFound,
                        format!(
                            "`{name}` has no revision before {}; there is nothing to roll back to",
                            service.current
                        ),
                    )
                },
            )?,
        };
        let Some(record) = service.revisions.get(&target) else {
            return Err(Rejected::new(
                ErrorCode::RevisionNotFound,
                format!("`{name}` has no revision {target}; `flotilla inspect {name}` lists those that are kept"),
            ));
        };
        if record.spec == *service.spec() {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("`{name}` already runs what revision {target} says; choose another revision"),
            ));
        }
        let spec = record.spec.clone();
        self.check_circles(std::slice::from_ref(&spec))?;
        self.check_versions(&spec, target)?;
        let service = self.service_mut(name)?;
        let from = service.current;
        let note = match reason {
            Some(reason) => format!("rolled back from revision {from} to {target}: {}", clip(reason)),
            None => format!("rolled back from revision {from} to {target}"),
        };
        service.replicas = spec.replicas;
        let revision = service.push(entry, spec.clone(), Some(target), Some(note.clone()));
        self.take_back_volumes(&spec);
        Ok(Applied {
            outcome: Outcome::RolledBack { service: name.clone(), revision },
            events: vec![Event::new("rolled-back", Some(name), format!("`{name}` was {note}."))],
        })
    }

    /// Would services that are `new`, beside those that are there, wait for each other without end?
    fn check_circles(&self, new: &[ServiceSpec]) -> Result<(), Rejected> {
        let present = self.services.values().map(Service::spec);
        let circle = dependency::circle(present.chain(new).map(|spec| (&spec.name, &spec.depends_on)));
        if circle.is_empty() {
            return Ok(());
        }
        Err(Rejected::new(
            ErrorCode::InvalidRequest,
            format!("{} would wait for each other in a circle; remove one `depends_on`", dependency::listed(circle)),
        ))
    }

    pub(super) fn scale(&mut self, entry: &Entry, name: &ServiceName, replicas: u32) -> Result<Applied, Rejected> {
        let service = self.service_mut(name)?;
        check_replicas(service.spec(), replicas)?;
        let before = std::mem::replace(&mut service.replicas, replicas);
        service.changed_at = entry.at;
        let message = match replicas {
            0 => format!("`{name}` was stopped."),
            _ => format!("`{name}` was scaled from {before} to {replicas}."),
        };
        Ok(Applied::done(Event::new("scaled", Some(name), message)))
    }

    pub(super) fn restart(&mut self, entry: &Entry, name: &ServiceName) -> Result<Applied, Rejected> {
        let service = self.service_mut(name)?;
        service.restarts += 1;
        service.changed_at = entry.at;
        Ok(Applied::done(Event::new("restarted", Some(name), format!("`{name}` was restarted."))))
    }

    pub(super) fn remove(&mut self, name: &ServiceName, with_volumes: bool) -> Result<Applied, Rejected> {
        let kept = self.kept_volumes.contains_key(name);
        let Some(service) = self.services.get(name) else {
            // What is left of a service that was removed before can still be deleted.
            if with_volumes && kept {
                let hosts = self.hosts_of(name);
                self.condemn(name, hosts);
                return Ok(Applied::done(Event::new(
                    "volumes-condemned",
                    Some(name),
                    format!("The volumes that `{name}` had left behind were given up."),
                )));
            }
            return Err(unknown(name));
        };
        // Directories that are still to be deleted are not there to be kept.
        let condemned = self.condemned_on.get(name);
        let mut hosts = self.hosts_of(name);
        hosts.retain(|machine| condemned.is_none_or(|condemned| !condemned.contains(machine)));
        let volumes = service.volumes();
        let home = service.home.clone().filter(|machine| hosts.contains(machine));
        let data = service.data.clone();
        if let Some(service) = self.services.remove(name) {
            self.leave_over(name, &service.placements);
        }
        let message = match (with_volumes, hosts.is_empty() || (volumes.is_empty() && !kept)) {
            (_, true) => {
                self.kept_volumes.remove(name);
                format!("`{name}` was removed.")
            }
            (true, false) => {
                self.condemn(name, hosts);
                format!("`{name}` was removed with its volumes.")
            }
            (false, false) => {
                self.kept_volumes.entry(name.clone()).or_default().extend(volumes);
                if !self.leadership.is_unknown() {
                    self.kept_on.insert(name.clone(), hosts);
                    self.kept_homes.extend(home.map(|home| (name.clone(), home)));
                    if !data.is_empty() {
                        self.kept_data.insert(name.clone(), Data { restores: None, restored_by: None, ..data });
                    }
                }
                format!("`{name}` was removed; its volumes are kept.")
            }
        };
        Ok(Applied::done(Event::new("removed", Some(name), message)))
    }

    pub(super) fn confirm(&mut self, name: &ServiceName, revision: Revision) -> Result<Applied, Rejected> {
        let service = self.service_mut(name)?;
        if !service.revisions.contains_key(&revision) {
            return Err(Rejected::new(ErrorCode::RevisionNotFound, format!("`{name}` has no revision {revision}")));
        }
        if service.confirmed >= Some(revision) {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("revision {revision} of `{name}`, or a newer one, is confirmed already"),
            ));
        }
        service.confirmed = Some(revision);
        Ok(Applied::done(Event::new("confirmed", Some(name), format!("Revision {revision} of `{name}` runs well."))))
    }

    pub(super) fn volumes_purged(&mut self, name: &ServiceName, machine: Option<&NodeId>) -> Result<Applied, Rejected> {
        if !self.condemned_volumes.contains(name) {
            return Err(Rejected::new(
                ErrorCode::Conflict,
                format!("nobody asked for the volumes of `{name}` to be deleted"),
            ));
        }
        match machine {
            Some(machine) => {
                if let Some(machines) = self.condemned_on.get_mut(name) {
                    machines.remove(machine);
                }
            }
            None => drop(self.condemned_on.remove(name)),
        }
        self.forget_purged();
        let dropped = self.services.get(name).map(|service| &service.data.dropped);
        let former = machine.filter(|machine| dropped.is_some_and(|dropped| dropped.contains_key(*machine)));
        Ok(Applied::done(match former.and_then(|machine| self.machines.get(machine)) {
            Some(machine) => {
                let of = &machine.record.name;
                Event::new("copy-deleted", Some(name), format!("`{of}` has deleted its copy of `{name}`.")).on(of)
            }
            None => Event::new("volumes-deleted", Some(name), format!("The volumes of `{name}` were deleted.")),
        }))
    }

    /// Whether this machine has to delete the volumes of a service that is gone, or a copy that it gave up.
    pub fn must_purge(&self, name: &ServiceName, machine: &NodeId) -> bool {
        self.condemned_on.get(name).is_some_and(|machines| machines.contains(machine))
    }

    /// May this machine take generations of a service? What is there and has to be deleted goes first, or what comes would be deleted with
    /// it; and what it is not known to have nobody would ever delete.
    pub fn may_keep(&self, name: &ServiceName, machine: &NodeId) -> bool {
        let hosts = self.services.get(name).is_some_and(|service| service.hosts.contains(machine));
        hosts && !self.must_purge(name, machine)
    }

    /// Machines that may hold directories of a service's volumes, whether it is there or left them behind.
    fn hosts_of(&self, name: &ServiceName) -> BTreeSet<NodeId> {
        if self.leadership.is_unknown() {
            return self.machines.keys().cloned().collect();
        }
        let hosts = self.services.get(name).map(|service| &service.hosts).or_else(|| self.kept_on.get(name));
        hosts.into_iter().flatten().filter(|id| self.machines.contains_key(*id)).cloned().collect()
    }

    /// Where a service runs that is deployed before any leader spoke.
    fn first_assignment(&self) -> Option<Assignment> {
        let machine = self.machines.keys().next().filter(|_| self.leadership.is_unknown())?;
        Some(Assignment { machine: machine.clone(), epoch: self.applied + 1 })
    }

    fn condemn(&mut self, name: &ServiceName, hosts: BTreeSet<NodeId>) {
        self.kept_volumes.remove(name);
        self.kept_on.remove(name);
        self.kept_homes.remove(name);
        self.kept_data.remove(name);
        self.condemned_volumes.insert(name.clone());
        // A machine that is away may still hold what was condemned in a former life.
        self.condemned_on.entry(name.clone()).or_default().extend(hosts);
        self.forget_purged();
    }

    /// Volumes that no machine has any more are deleted.
    pub(super) fn forget_purged(&mut self) {
        self.condemned_on.retain(|_, machines| !machines.is_empty());
        let left = &self.condemned_on;
        self.condemned_volumes.retain(|name| left.contains_key(name));
    }

    fn service_mut(&mut self, name: &ServiceName) -> Result<&mut Service, Rejected> {
        self.services.get_mut(name).ok_or_else(|| unknown(name))
    }

    /// A service that comes back finds the volumes that it left.
    fn take_back_volumes(&mut self, spec: &ServiceSpec) {
        if let Some(kept) = self.kept_volumes.get_mut(&spec.name) {
            for mount in &spec.volumes {
                kept.remove(&mount.volume);
            }
            if kept.is_empty() {
                self.kept_volumes.remove(&spec.name);
            }
        }
    }
}

impl Service {
    fn first(entry: &Entry, spec: &ServiceSpec) -> Self {
        let record = RevisionRecord {
            spec: spec.clone(),
            created_at: entry.at,
            created_by: entry.actor.name.clone(),
            restores: None,
            note: None,
        };
        Self {
            name: spec.name.clone(),
            stack: spec.stack.clone(),
            current: Revision(1),
            revisions: [(Revision(1), record)].into(),
            replicas: spec.replicas,
            restarts: 0,
            confirmed: None,
            placements: Vec::new(),
            standby: Vec::new(),
            hosts: BTreeSet::new(),
            home: None,
            data: Data::default(),
            assignment: None,
            changed_at: entry.at,
        }
    }

    /// Makes `spec` the newest revision, and forgets the oldest when there are too many.
    pub(super) fn push(
        &mut self,
        entry: &Entry,
        spec: ServiceSpec,
        restores: Option<Revision>,
        note: Option<String>,
    ) -> Revision {
        self.current = Revision(self.current.0 + 1);
        let created_by = entry.actor.name.clone();
        self.revisions.insert(self.current, RevisionRecord { spec, created_at: entry.at, created_by, restores, note });
        self.changed_at = entry.at;
        self.note_standby();
        while self.revisions.len() > REVISIONS_KEPT {
            // The last revision that ran well outlives older ones that did not: it is the way back.
            let oldest = self.revisions.keys().copied().find(|revision| Some(*revision) != self.confirmed);
            let Some(oldest) = oldest else { break };
            self.revisions.remove(&oldest);
        }
        self.current
    }

    /// Volumes of all revisions that are kept: a directory stays until the whole service goes.
    pub fn volumes(&self) -> BTreeSet<VolumeName> {
        self.revisions.values().flat_map(|record| &record.spec.volumes).map(|mount| mount.volume.clone()).collect()
    }
}

/// Two writers would spoil one volume, so a service that writes one runs once.
fn check_replicas(spec: &ServiceSpec, replicas: u32) -> Result<(), Rejected> {
    if replicas > REPLICAS_MAX {
        return Err(Rejected::new(
            ErrorCode::InvalidRequest,
            format!("`{}` can't have {replicas} replicas; use at most {REPLICAS_MAX}", spec.name),
        ));
    }
    if let Some(mount) = spec.volumes.iter().find(|mount| replicas > 1 && !mount.read_only) {
        return Err(Rejected::new(
            ErrorCode::InvalidRequest,
            format!(
                "`{}` writes the volume `{}`, so it can't have {replicas} replicas; use one, or mount the volume read-only",
                spec.name, mount.volume
            ),
        ));
    }
    Ok(())
}

pub(super) fn unknown(name: &ServiceName) -> Rejected {
    Rejected::new(
        ErrorCode::ServiceNotFound,
        format!("there is no service `{name}`; `flotilla ps` lists those that there are"),
    )
}

pub(super) fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(NOTE_MAX).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped
}
