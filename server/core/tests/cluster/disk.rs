//! What a machine has on its disk of each service's volumes. What an instance writes is a list of numbers, each of which is written once
//! in the whole world: so one state is older than another if it is its beginning.

use std::collections::BTreeMap;

use flotilla_api::ServiceName;
use flotilla_core::state::GenerationName;

pub(crate) type Writes = Vec<u64>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) directories: BTreeMap<ServiceName, Directory>,
    /// Generations that are complete here.
    pub(crate) generations: BTreeMap<(ServiceName, GenerationName), Writes>,
    /// What was written and never committed, put aside before the directory showed something else.
    pub(crate) branches: Vec<(ServiceName, Writes)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    pub(crate) writes: Writes,
    /// The generation that it shows, if no instance has run on it since.
    pub(crate) shows: Option<GenerationName>,
    /// The epoch of the instance that ran on it last.
    pub(crate) epoch: Option<u64>,
}

impl Disk {
    /// Before an instance runs: its directory shows what it shall begin with. What ran under this epoch before goes on.
    pub(crate) fn begin(
        &mut self,
        service: &ServiceName,
        epoch: u64,
        source: Option<GenerationName>,
    ) -> Result<(), String> {
        if let Some(name) = source
            && self.directories.get(service).and_then(|directory| directory.epoch) != Some(epoch)
        {
            let writes = self.generations.get(&(service.clone(), name));
            let writes = writes.ok_or_else(|| format!("generation {name} of `{service}` is not here"))?.clone();
            self.show(service, name, writes);
        }
        let directory = self.directories.entry(service.clone()).or_default();
        (directory.shows, directory.epoch) = (None, Some(epoch));
        Ok(())
    }

    /// Brings the directory to a generation; what it has beyond that is put aside.
    pub(crate) fn show(&mut self, service: &ServiceName, name: GenerationName, writes: Writes) {
        let directory = self.directories.entry(service.clone()).or_default();
        if !writes.starts_with(&directory.writes) {
            self.branches.push((service.clone(), directory.writes.clone()));
        }
        *directory = Directory { writes, shows: Some(name), epoch: None };
    }

    /// The sequence of the newest generation of an epoch that is here; 0 if there is none.
    pub(crate) fn newest_of(&self, service: &ServiceName, epoch: u64) -> u64 {
        let of_epoch = self.generations.keys().filter(|(of, name)| of == service && name.epoch == epoch);
        of_epoch.map(|(_, name)| name.sequence).max().unwrap_or(0)
    }

    /// Its volumes are deleted.
    pub(crate) fn delete(&mut self, service: &ServiceName) {
        self.directories.remove(service);
        self.generations.retain(|(name, _), _| name != service);
        self.branches.retain(|(name, _)| name != service);
    }

    pub(crate) fn has(&self, service: &ServiceName, write: u64) -> bool {
        let directory = self.directories.get(service).map(|directory| &directory.writes);
        let generations = self.generations.iter().filter(|((name, _), _)| name == service).map(|(_, writes)| writes);
        let branches = self.branches.iter().filter(|(name, _)| name == service).map(|(_, writes)| writes);
        directory.into_iter().chain(generations).chain(branches).any(|writes| writes.contains(&write))
    }
}
