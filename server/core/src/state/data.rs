//! What a service's volumes hold beyond the machine that writes them: which machines shall have copies, and the newest generation
//! that is certain to exist elsewhere. ADR 15 says how a generation comes to be committed, and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use flotilla_api::{ErrorCode, NodeId, ServiceName, UnixMillis, VolumeName, spec::VolumeMount};
use serde::{Deserialize, Serialize};

use super::{Applied, Event, Outcome, Rejected, Service, State, placements::stale};
use crate::dependency;

/// Machines that shall have copies of one service's data, besides the one that writes it.
pub const DATA_REPLICAS_MAX: usize = 9;
/// Volumes of one service in a generation: more than a compose file of a person names.
pub const GENERATION_VOLUMES_MAX: usize = 64;

/// What is known of the data of one service. All its volumes are captured at one instant, so one generation is of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Machines that shall have a copy, the first first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<NodeId>,
    /// Absent until there is a first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<Generation>,
    /// Machines that gave up a copy, and the index of the entry that says so: what they had before that, they do not have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<NodeId, u64>,
    /// With which it begins next, as somebody asked for, until that is committed; its present instance has to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restores: Option<GenerationName>,
    /// The placement that begins with that. It may be lost before it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_by: Option<u64>,
    /// Nothing was written since the committed generation: its instance had ended, and none has come after it.
    #[serde(default, skip_serializing_if = "super::placements::is_false")]
    pub settled: bool,
}

/// What names a generation; a later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GenerationName {
    /// Of the placement under which it was written.
    pub epoch: u64,
    /// From 1 in each epoch.
    pub sequence: u64,
}

impl fmt::Display for GenerationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// Why a text names no generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no generation; write an epoch and a sequence, such as `17.3`")]
pub struct InvalidGeneration(pub String);

impl FromStr for GenerationName {
    type Err = InvalidGeneration;

    fn from_str(text: &str) -> Result<Self, InvalidGeneration> {
        let invalid = || InvalidGeneration(text.chars().take(40).collect::<String>().escape_debug().to_string());
        let (epoch, sequence) = text.split_once('.').ok_or_else(invalid)?;
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| plain).ok_or_else(invalid)
        };
        Ok(Self { epoch: number(epoch)?, sequence: number(sequence)? })
    }
}

/// One instant of all volumes that a service writes; never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    #[serde(flatten)]
    pub name: GenerationName,
    pub taken_at: UnixMillis,
    /// The instance had ended before it was captured: nothing was written after it under this epoch.
    #[serde(default, skip_serializing_if = "super::placements::is_false")]
    pub last: bool,
    pub volumes: BTreeMap<VolumeName, Copies>,
}

/// One volume in a generation, and who has it on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// BLAKE3 of its root object, 64 hexadecimal digits.
    pub root: String,
    /// Of its files.
    pub bytes: u64,
    pub holders: BTreeSet<NodeId>,
}

/// Where a service may begin, as far as its data is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources<'a> {
    /// It has none, or none that is known: anywhere.
    Anywhere,
    On(BTreeSet<&'a NodeId>),
}

impl Data {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn forget_machine(&mut self, machine: &NodeId) {
        self.replicas.retain(|replica| replica != machine);
        self.dropped.remove(machine);
        if let Some(committed) = &mut self.committed {
            for copies in committed.volumes.values_mut() {
                copies.holders.remove(machine);
            }
            // A volume that nobody else has is lost; the others are not.
            committed.volumes.retain(|_, copies| !copies.holders.is_empty());
        }
        if self.committed.as_ref().is_some_and(|committed| committed.holders().is_empty()) {
            let (replicas, dropped) = (std::mem::take(&mut self.replicas), std::mem::take(&mut self.dropped));
            *self = Self { replicas, dropped, ..Self::default() };
        }
    }

    /// Has the machine given up what it had when the state was at this index?
    fn has_dropped(&self, machine: &NodeId, seen: u64) -> bool {
        self.dropped.get(machine).is_some_and(|dropped| *dropped > seen)
    }

    /// Is a volume of the committed generation on this machine alone?
    fn is_only_on(&self, machine: &NodeId) -> bool {
        let mut volumes = self.committed.iter().flat_map(|committed| committed.volumes.values());
        volumes.any(|copies| copies.holders.len() == 1 && copies.holders.contains(machine))
    }

    /// Will an instance of this placement have to end, so that its successor begins with what somebody asked for?
    pub(crate) fn is_superseded(&self, epoch: u64) -> bool {
        self.restores.is_some() && self.restored_by != Some(epoch)
    }
}

impl Generation {
    /// Machines that have all of its volumes.
    pub fn holders(&self) -> BTreeSet<&NodeId> {
        let mut volumes = self.volumes.values();
        let first = volumes.next().into_iter().flat_map(|copies| &copies.holders);
        first.filter(|holder| self.volumes.values().all(|copies| copies.holders.contains(*holder))).collect()
    }

    /// The same, with all that is known of it; `None` where it is another.
    fn joined(&self, other: &Self) -> Option<Self> {
        let mut joined = self.clone();
        joined.last |= other.last;
        let same = self.name == other.name && self.volumes.len() == other.volumes.len();
        for (name, copies) in joined.volumes.iter_mut().filter(|_| same) {
            let others = other.volumes.get(name).filter(|others| others.root == copies.root)?;
            copies.holders.extend(others.holders.iter().cloned());
        }
        same.then_some(joined)
    }
}

impl Service {
    /// Is what is kept of a volume encrypted? As soon as it shall be, and as long as an instance runs of a revision that says so.
    pub fn encrypts(&self, volume: &VolumeName) -> bool {
        let placed = self.placements.iter().map(|placement| self.spec_of(placement.revision));
        placed.chain([self.spec()]).any(|spec| spec.encrypts(volume))
    }

    /// Machines that shall have a copy of a volume, the first first: of several copies one is where it can only be stored, as far as it may
    /// be there at all.
    pub fn keepers<'a>(&'a self, state: &State, mount: &VolumeMount) -> Vec<&'a NodeId> {
        let wanted = mount.rules.replicas as usize;
        let (mut storing, mut keepers): (Vec<&NodeId>, Vec<&NodeId>) =
            self.data.replicas.iter().partition(|id| state.stores_only(id));
        if !mount.rules.encrypted {
            storing.clear();
        }
        // The first is where the service can go on at once.
        keepers.truncate(wanted - storing.len().min(wanted.saturating_sub(1)));
        keepers.extend(storing);
        keepers.truncate(wanted);
        keepers
    }
}

impl State {
    /// The generation with which an instance begins on this machine. One that wrote last goes on with what it has; every other one
    /// shows an older state, or has what it wrote after it was lost. One that may begin anew where its data is not does so. All of that
    /// unless somebody asked for another one.
    pub(super) fn source_on(&self, service: &Service, machine: &NodeId) -> Option<GenerationName> {
        if service.data.restores.is_some() {
            return service.data.restores;
        }
        let committed = service.data.committed.as_ref().filter(|_| service.home.as_ref() != Some(machine))?;
        (committed.holders().contains(machine) || self.is_only_stored(service)).then_some(committed.name)
    }

    fn is_lost(&self, machine: &NodeId) -> bool {
        self.machines.get(machine).is_none_or(|machine| machine.lost_at.is_some())
    }

    /// Is the newest committed generation with machines that only store, whole, while every machine that has it and could run the service
    /// is lost?
    fn is_only_stored(&self, service: &Service) -> bool {
        let Some(committed) = &service.data.committed else { return false };
        let here = |copies: &Copies, stored: bool| {
            copies.holders.iter().any(|it| !self.is_lost(it) && (stored || !self.stores_only(it)))
        };
        let home_is_here = service.home.as_ref().is_some_and(|home| !self.is_lost(home));
        let runs = committed.holders().into_iter().any(|it| !self.is_lost(it) && !self.stores_only(it));
        let volumes = || committed.volumes.values();
        !home_is_here
            && !runs
            && volumes().all(|copies| here(copies, true))
            && !volumes().all(|copies| here(copies, false))
    }

    /// Where a service may begin, or go when its instance has ended. While the machine that wrote last is not lost, what it wrote is
    /// newer than every copy, unless its last generation is committed; and what runs there can make that so before it goes. Where nobody has
    /// it any more but machines that only store it begins anywhere, and gets it from there.
    pub fn sources<'a>(&'a self, service: &'a Service) -> Sources<'a> {
        let committed = service.data.committed.as_ref();
        if self.is_only_stored(service) {
            return Sources::Anywhere;
        }
        let holders = || {
            let holders = committed.map(Generation::holders).unwrap_or_default();
            holders.into_iter().filter(|holder| !self.stores_only(holder)).collect::<BTreeSet<_>>()
        };
        let Some(home) = &service.home else {
            return committed.map_or(Sources::Anywhere, |_| Sources::On(holders()));
        };
        let lost = self.machines.get(home).is_none_or(|machine| machine.lost_at.is_some());
        let writes = service.placements.iter().any(|placement| placement.exclusive && placement.machine == *home);
        let mut sources = if lost || writes || service.data.settled { holders() } else { BTreeSet::new() };
        if !lost || sources.is_empty() {
            sources.insert(home);
        }
        Sources::On(sources)
    }

    /// What this machine shall have of the service's committed generation, does not have, and has to get by itself: while somebody writes,
    /// it is offered what is new.
    pub fn lacks<'a>(&'a self, service: &'a Service, machine: &NodeId) -> BTreeMap<&'a VolumeName, &'a Copies> {
        let is_written = service.placements.iter().any(|placement| placement.exclusive);
        let Some(committed) = service.data.committed.as_ref().filter(|_| !is_written) else { return BTreeMap::new() };
        if self.must_purge(&service.name, machine) {
            return BTreeMap::new();
        }
        let kept = service.spec().written().filter(|mount| service.keepers(self, mount).contains(&machine));
        let copies = kept.filter_map(|mount| committed.volumes.get_key_value(&mount.volume));
        copies.filter(|(_, copies)| !copies.holders.contains(machine)).collect()
    }

    /// May this machine delete what it has of a service's data? It had a copy once and shall have none, and all machines that shall have
    /// the newest generation have it. What only it knows of, such as a branch, is for it to see.
    pub fn may_drop(&self, service: &Service, machine: &NodeId) -> bool {
        let (data, home) = (&service.data, service.home.as_ref());
        let is_used = data.replicas.contains(machine)
            || service.standby.contains(machine)
            || home == Some(machine)
            || service.placed_on(machine).next().is_some()
            || self.leftovers.iter().any(|leftover| leftover.service == service.name)
            || data.restores.is_some()
            || data.restored_by.is_some();
        let (Some(committed), Some(home)) = (&data.committed, home) else { return false };
        let has = |machine: &NodeId, copies: &Copies| copies.holders.contains(machine) && !self.is_lost(machine);
        let is_kept = |mount: &VolumeMount| {
            let keepers = service.keepers(self, mount);
            let copies = committed.volumes.get(&mount.volume);
            let all = |copies: &Copies| has(home, copies) && keepers.iter().all(|keeper| has(keeper, copies));
            let others = keepers.iter().filter(|keeper| **keeper != home).count();
            others >= mount.rules.replicas as usize && copies.is_some_and(all)
        };
        !is_used
            && !self.is_lost(machine)
            && service.hosts.contains(machine)
            && !self.must_purge(&service.name, machine)
            && committed.volumes.keys().all(|volume| service.spec().written().any(|mount| mount.volume == *volume))
            && service.spec().written().all(is_kept)
    }

    /// Services, and what is kept of former ones, that lose data for good with this machine.
    pub fn only_on<'a>(&'a self, machine: &'a NodeId) -> BTreeSet<&'a ServiceName> {
        let services = self.services.values().filter(|service| {
            let uncopied = service.data.committed.is_none() && service.is_exclusive(service.current);
            service.data.is_only_on(machine) || uncopied && service.home.as_ref() == Some(machine)
        });
        let former = self.kept_on.iter().filter(|(name, machines)| {
            let data = self.kept_data.get(*name);
            let uncopied = data.is_none_or(|data| data.committed.is_none());
            data.is_some_and(|data| data.is_only_on(machine))
                || uncopied && machines.len() == 1 && machines.contains(machine)
        });
        services.map(|service| &service.name).chain(former.map(|(name, _)| name)).collect()
    }

    /// Each generation that is right is taken; the others are left out, and tell nothing if any was taken.
    pub(super) fn commit_generations(
        &mut self,
        machine: &NodeId,
        generations: &BTreeMap<ServiceName, Generation>,
        seen: u64,
    ) -> Result<Applied, Rejected> {
        self.machine(machine)?;
        let mut events = Vec::new();
        let mut taken = 0;
        let mut refused = None;
        for (name, generation) in generations {
            match self.commit_generation(machine, name, generation, seen) {
                Ok(event) => {
                    taken += 1;
                    events.extend(event);
                }
                Err(rejected) => refused = refused.or(Some(rejected)),
            }
        }
        match refused {
            Some(rejected) if taken == 0 => Err(rejected),
            None if taken == 0 => Err(Rejected::new(ErrorCode::InvalidRequest, "name at least one generation")),
            _ => Ok(Applied { outcome: Outcome::Done, events }),
        }
    }

    /// An event only where others hold it than before: a generation a second is nothing to tell of.
    fn commit_generation(
        &mut self,
        machine: &NodeId,
        name: &ServiceName,
        generation: &Generation,
        seen: u64,
    ) -> Result<Option<Event>, Rejected> {
        let service = self.services.get(name).ok_or_else(|| stale(format!("there is no service `{name}`")))?;
        // What fences an instance fences its data: when its epoch was given away, nothing of it is committed any more.
        let GenerationName { epoch, .. } = generation.name;
        let mut placements = service.placements.iter();
        if !placements.any(|it| it.epoch == epoch && it.machine == *machine && it.exclusive) {
            return Err(stale(format!("the machine writes no volume of `{name}` under epoch {epoch}")));
        }
        self.check_copies(machine, service, generation)?;
        let mut generation = generation.clone();
        for copies in generation.volumes.values_mut() {
            copies.holders.retain(|holder| holder == machine || !service.data.has_dropped(holder, seen));
        }
        let before = service.data.committed.as_ref();
        // The same may come again: with others that have it, or when it is known to be the last.
        let joined = before.and_then(|before| before.joined(&generation));
        if let Some(before) = before.filter(|before| before.name >= generation.name && joined.is_none()) {
            let (before, this) = (before.name, generation.name);
            return Err(stale(format!("generation {before} of `{name}` is committed, and {this} is not newer")));
        }
        let generation = joined.unwrap_or(generation);
        let event = self.told_of_copies(name, machine, before, &generation);
        if let Some(Service { data, .. }) = self.services.get_mut(name) {
            data.settled = generation.last;
            data.committed = Some(generation);
            if data.restored_by.is_some_and(|began| began <= epoch) {
                (data.restores, data.restored_by) = (None, None);
            }
        }
        Ok(event)
    }

    /// Says who else than its home has the data now, where that has changed.
    fn told_of_copies(
        &self,
        name: &ServiceName,
        home: &NodeId,
        before: Option<&Generation>,
        after: &Generation,
    ) -> Option<Event> {
        let others = |generation: &Generation| -> BTreeSet<NodeId> {
            generation.holders().into_iter().filter(|holder| *holder != home).cloned().collect()
        };
        let (had, has) = (before.map(&others).unwrap_or_default(), others(after));
        (had != has).then(|| {
            let names = has.iter().filter_map(|holder| self.machines.get(holder)).map(|it| it.record.name.as_str());
            let text = match has.len() {
                0 => "no other machine".to_owned(),
                _ => dependency::listed(names),
            };
            Event::new("replicated", Some(name), format!("The data of `{name}` is kept on {text}."))
        })
    }

    /// A machine speaks for itself alone, of a copy that it shall have, and of the newest generation.
    pub(super) fn hold_generation(
        &mut self,
        machine: &NodeId,
        name: &ServiceName,
        generation: GenerationName,
        volumes: &BTreeMap<VolumeName, String>,
        seen: u64,
    ) -> Result<Applied, Rejected> {
        self.machine(machine)?;
        let service = self.services.get(name).ok_or_else(|| stale(format!("there is no service `{name}`")))?;
        if volumes.is_empty() {
            return Err(Rejected::new(ErrorCode::InvalidRequest, "name at least one volume that the machine has"));
        }
        if !service.data.replicas.contains(machine) || service.data.has_dropped(machine, seen) {
            return Err(stale(format!("the machine shall have no copy of `{name}`, or gave up the one that it had")));
        }
        let Some(before) = service.data.committed.as_ref().filter(|committed| committed.name == generation) else {
            return Err(stale(format!("generation {generation} of `{name}` is not the one that is committed")));
        };
        let mut after = before.clone();
        for (volume, root) in volumes {
            let Some(copies) = after.volumes.get_mut(volume).filter(|copies| copies.root == *root) else {
                return Err(stale(format!("generation {generation} of `{name}` has another `{volume}`, or none")));
            };
            copies.holders.insert(machine.clone());
        }
        let home = service.home.as_ref().unwrap_or(machine);
        let event = self.told_of_copies(name, home, Some(before), &after);
        if let Some(service) = self.services.get_mut(name) {
            service.data.committed = Some(after);
        }
        Ok(Applied { outcome: Outcome::Done, events: event.into_iter().collect() })
    }

    /// From here on nothing counts that it has; it deletes that like the volumes of a service that is gone.
    pub(super) fn drop_copy(&mut self, machine: &NodeId, name: &ServiceName) -> Result<Applied, Rejected> {
        let of = self.machine(machine)?.record.name.clone();
        let service = self.services.get(name).ok_or_else(|| stale(format!("there is no service `{name}`")))?;
        if !self.may_drop(service, machine) {
            return Err(stale(format!("`{of}` has no copy of `{name}`, or others do not have all of it yet")));
        }
        let index = self.applied + 1;
        if let Some(Service { data, hosts, .. }) = self.services.get_mut(name) {
            data.dropped.insert(machine.clone(), index);
            for copies in data.committed.iter_mut().flat_map(|committed| committed.volumes.values_mut()) {
                copies.holders.remove(machine);
            }
            hosts.remove(machine);
        }
        self.condemned_volumes.insert(name.clone());
        self.condemned_on.entry(name.clone()).or_default().insert(machine.clone());
        let message = format!("`{of}` deletes its copy of `{name}`: all that shall have one have it.");
        Ok(Applied::done(Event::new("copy-dropped", Some(name), message).on(&of)))
    }

    fn check_copies(&self, machine: &NodeId, service: &Service, generation: &Generation) -> Result<(), Rejected> {
        let invalid = |why: String| Rejected::new(ErrorCode::InvalidRequest, why);
        let name = &service.name;
        let count = generation.volumes.len();
        if generation.name.sequence == 0 || count == 0 || count > GENERATION_VOLUMES_MAX {
            let most = GENERATION_VOLUMES_MAX;
            return Err(invalid(format!("a generation of `{name}` has 1 to {most} volumes, and a sequence from 1")));
        }
        let known = service.volumes();
        for (volume, copies) in &generation.volumes {
            let digits = copies.root.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if !known.contains(volume) || copies.root.len() != 64 || !digits {
                return Err(invalid(format!("`{name}` has no volume `{volume}`, or that is no root of one")));
            }
            if !copies.holders.contains(machine) || copies.holders.iter().any(|it| !self.machines.contains_key(it)) {
                return Err(invalid(format!("`{volume}` is held by its own machine, and by members of this cluster")));
            }
        }
        Ok(())
    }

    /// That some machine has that generation is for who proposes it to see: the state knows of the newest alone.
    pub(super) fn restore(&mut self, name: &ServiceName, generation: GenerationName) -> Result<Applied, Rejected> {
        let service = self.services.get_mut(name).ok_or_else(|| super::services::unknown(name))?;
        let newest = service.data.committed.as_ref().map(|committed| committed.name);
        if !service.is_exclusive(service.current) || newest.is_none_or(|newest| newest.epoch < generation.epoch) {
            let why = format!("`{name}` has no generation {generation}; `flotilla volume history` shows all");
            return Err(Rejected::new(ErrorCode::VolumeNotFound, why));
        }
        (service.data.restores, service.data.restored_by) = (Some(generation), None);
        let message = format!("`{name}` begins anew, with its data as it was in generation {generation}.");
        Ok(Applied::done(Event::new("restored", Some(name), message)))
    }

    pub(super) fn replicate(&mut self, name: &ServiceName, machines: &[NodeId]) -> Result<(), Rejected> {
        if let Some(unknown) = machines.iter().find(|id| !self.machines.contains_key(*id)) {
            return Err(stale(format!("there is no machine `{unknown}`")));
        }
        let distinct: BTreeSet<&NodeId> = machines.iter().collect();
        if distinct.len() != machines.len() || machines.len() > DATA_REPLICAS_MAX {
            return Err(stale(format!("copies are kept on at most {DATA_REPLICAS_MAX} different machines")));
        }
        let service = self.services.get_mut(name).ok_or_else(|| stale(format!("there is no service `{name}`")))?;
        service.data.replicas = machines.to_vec();
        // Directories come with them.
        service.hosts.extend(machines.iter().cloned());
        Ok(())
    }
}
