//! Brings the directories of services from one generation to another, and never loses what an instance wrote into them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use flotilla_api::{NodeId, ServiceName, UnixMillis, VolumeName};
use flotilla_core::{
    State,
    state::{Generation, GenerationName},
};
use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    restore, store, tree,
    verify::{self, Mark, Verified},
};
use tokio::sync::OwnedMutexGuard;

use super::{
    Error,
    layout::{self, branch_key, directory, key, of_service, passing_key},
    name_of,
    record::{Record, Shown},
    sealing,
};

/// Whoever changes a service's directories, or starts what does, holds this.
pub(super) type Lock = OwnedMutexGuard<()>;

#[derive(Debug)]
pub(super) struct Directories {
    data_dir: PathBuf,
    store: Store,
    locks: Mutex<BTreeMap<ServiceName, Arc<tokio::sync::Mutex<()>>>>,
}

/// With what an instance begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// What is there.
    AsItIs,
    With(GenerationName),
}

impl Directories {
    pub(super) fn new(data_dir: PathBuf, store: Store) -> Self {
        Self { data_dir, store, locks: Mutex::default() }
    }

    pub(super) async fn lock(&self, service: &ServiceName) -> Lock {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|name, lock| name == service || Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(service.clone()).or_default())
        };
        lock.lock_owned().await
    }

    pub(super) fn record(&self, service: &ServiceName) -> Result<Option<Record>, Error> {
        Record::read(&of_service(&self.data_dir, service))
    }

    fn keep(&self, service: &ServiceName, record: &Record) -> Result<(), Error> {
        let directory = of_service(&self.data_dir, service);
        create(&directory)?;
        record.write(&directory)
    }

    /// Makes the record of directories that are about to be made.
    pub(super) fn begin(&self, service: &ServiceName) -> Result<(), Error> {
        if of_service(&self.data_dir, service).exists() {
            return Ok(());
        }
        self.keep(service, &Record::default())
    }

    /// Before an instance of this epoch runs. What ran under this epoch before goes on.
    pub(super) fn ready(
        &self,
        state: &State,
        service: &ServiceName,
        epoch: u64,
        beginning: &Beginning,
        now: UnixMillis,
    ) -> Result<(), Error> {
        let record = self.record(service)?;
        let own = |record: &Record| {
            record.written == Some(epoch) || record.shows.as_ref().is_some_and(|shows| shows.name.epoch == epoch)
        };
        if record.as_ref().is_some_and(own) {
            return Ok(());
        }
        match beginning {
            Beginning::With(name) => {
                let (shown, _) = self
                    .kept(service, *name)?
                    .ok_or_else(|| Error::NotHere { service: service.clone(), name: *name })?;
                self.show(state, service, &shown, now).map(drop)
            }
            Beginning::AsItIs => match record.and_then(|record| record.becomes) {
                // It was on the way to something, and nobody may see what lies between.
                Some(becomes) => self.show(state, service, &becomes, now).map(drop),
                None => Ok(()),
            },
        }
    }

    /// From now on an instance of this epoch may write.
    pub(super) fn begins(&self, service: &ServiceName, epoch: u64) -> Result<(), Error> {
        match self.record(service)? {
            Some(record) if record.written == Some(epoch) => Ok(()),
            _ => self.keep(service, &Record { written: Some(epoch), ..Record::default() }),
        }
    }

    /// Nothing was written since this generation, and nothing will be under its epoch.
    pub(super) fn rests(&self, service: &ServiceName, shown: Shown) -> Result<(), Error> {
        match self.record(service)? {
            Some(record) if record.written == Some(shown.name.epoch) => {
                self.keep(service, &Record { shows: Some(shown), ..Record::default() })
            }
            _ => Ok(()),
        }
    }

    /// A generation that is whole in the store, and when it was taken.
    pub(super) fn kept(
        &self,
        service: &ServiceName,
        name: GenerationName,
    ) -> Result<Option<(Shown, UnixMillis)>, Error> {
        let (mut roots, mut taken_at) = (BTreeMap::new(), None);
        for volume in layout::kept(&self.store, service)? {
            let generations = self.store.generations(&key(service, &volume))?;
            let Some(found) = generations.iter().find(|it| name_of(it) == name) else { continue };
            roots.insert(volume, found.root.to_string());
            taken_at = Some(UnixMillis(found.taken_at));
        }
        Ok(taken_at.map(|taken_at| (Shown { name, roots }, taken_at)))
    }

    /// The sequence of the newest generation of an epoch that is here; 0 if there is none.
    pub(super) fn newest_of(&self, service: &ServiceName, epoch: u64) -> Result<u64, Error> {
        let mut newest = 0;
        for volume in self.store.volumes(&format!("{service}/"))? {
            let generations = self.store.generations(&volume)?;
            let of_epoch = generations.iter().filter(|generation| generation.epoch == epoch);
            newest = newest.max(of_epoch.map(|generation| generation.sequence).max().unwrap_or(0));
        }
        Ok(newest)
    }

    /// What [`Self::look`] kept of these is not needed any more.
    fn passed<'a>(&self, service: &ServiceName, volumes: impl Iterator<Item = &'a VolumeName>) -> Result<(), Error> {
        for volume in volumes {
            self.store.forget_volume(&passing_key(service, volume))?;
        }
        Ok(())
    }

    /// Makes the directories show a generation, and puts aside what was written in them and is nowhere else. True if they did not show
    /// it before.
    pub(super) fn show(
        &self,
        state: &State,
        service: &ServiceName,
        to: &Shown,
        now: UnixMillis,
    ) -> Result<bool, Error> {
        let record = self.record(service)?;
        if let Some(Record { shows: Some(shows), becomes: None, written: None }) = &record
            && shows == to
        {
            return Ok(false);
        }
        // What stands beside the volumes that it shows came there otherwise, and has to be looked at.
        let present = self.volumes(service)?;
        let named = |shows: &Shown| present.iter().all(|volume| shows.roots.contains_key(volume));
        let from: BTreeMap<VolumeName, Hash> = match &record {
            Some(Record { shows: Some(shows), becomes: None, written: None }) if named(shows) => {
                shows.roots.iter().filter_map(|(volume, root)| Some((volume.clone(), root.parse().ok()?))).collect()
            }
            // What was written before there were records counts as well.
            None => self.branch(state, service, 0, now)?,
            Some(Record { written: Some(epoch), .. }) => self.branch(state, service, *epoch, now)?,
            Some(_) => self.look(state, service, 0, now)?,
        };
        self.keep(service, &Record { shows: None, becomes: Some(to.clone()), written: None })?;
        for (volume, root) in &to.roots {
            let path = directory(&self.data_dir, service, volume);
            create(&path)?;
            let root = root.parse().map_err(|_| Error::NotHere { service: service.clone(), name: to.name })?;
            restore::restore(&self.store, &path, from.get(volume), &root)?;
        }
        self.keep(service, &Record { shows: Some(to.clone()), ..Record::default() })?;
        self.passed(service, from.keys())?;
        Ok(true)
    }

    /// What its directories show, where nobody has written since.
    fn shown(&self, service: &ServiceName) -> Result<Option<Shown>, Error> {
        Ok(match self.record(service)? {
            Some(Record { shows, becomes: None, written: None }) => shows,
            _ => None,
        })
    }

    /// Those of its volumes whose directories show something.
    pub(super) fn shown_volumes(&self, service: &ServiceName) -> Result<Vec<VolumeName>, Error> {
        Ok(self.shown(service)?.into_iter().flat_map(|shown| shown.roots.into_keys()).collect())
    }

    /// About, of the files that the directories of all these show: what can't be read is found to be so when it is compared.
    pub(super) fn shown_bytes(&self, services: &[ServiceName]) -> u64 {
        let shown = services.iter().filter_map(|service| self.shown(service).ok().flatten());
        let roots = shown.flat_map(|shown| shown.roots.into_values()).filter_map(|root| root.parse().ok());
        roots.filter_map(|root| tree::Root::read(&self.store, &root).ok()).map(|root| root.totals.bytes).sum()
    }

    /// Compares some of a directory with what it shows, and writes right what a disk has spoiled; `None` where it shows nothing, or may
    /// have been written to.
    pub(super) fn verify(
        &self,
        service: &ServiceName,
        volume: &VolumeName,
        from: Option<&Mark>,
        at_most: u64,
    ) -> Result<Option<Verified>, Error> {
        let Some(root) = self.shown(service)?.and_then(|shown| shown.roots.get(volume).cloned()) else {
            return Ok(None);
        };
        let root = root.parse().map_err(|_| Error::Tree(tree::Error::Damaged))?;
        let directory = directory(&self.data_dir, service, volume);
        verify::verify(&self.store, &directory, &root, from, at_most).map(Some).map_err(Error::Verify)
    }

    /// Makes what directories show anew from whatever is in them.
    pub(super) fn remake(&self, state: &State, service: &ServiceName, now: UnixMillis) -> Result<(), Error> {
        let Some(shown) = self.shown(service)? else { return Ok(()) };
        self.keep(service, &Record { becomes: Some(shown.clone()), ..Record::default() })?;
        self.show(state, service, &shown, now).map(drop)
    }

    /// Puts aside what an instance that was given away has written, and nobody has. What is in the directories is worth nothing then.
    pub(super) fn put_aside(&self, state: &State, service: &ServiceName, now: UnixMillis) -> Result<(), Error> {
        let Some(Record { written: Some(epoch), .. }) = self.record(service)? else { return Ok(()) };
        let roots = self.branch(state, service, epoch, now)?;
        self.keep(service, &Record::default())?;
        self.passed(service, roots.keys())
    }

    /// Keeps what an instance wrote under an epoch, unless its successor began with just that: as one more generation of that epoch, which
    /// nobody else can name, and which is not forgotten. The roots of what is there.
    pub(super) fn branch(
        &self,
        state: &State,
        service: &ServiceName,
        epoch: u64,
        now: UnixMillis,
    ) -> Result<BTreeMap<VolumeName, Hash>, Error> {
        let roots = self.look(state, service, epoch, now)?;
        let succeeded =
            succeeded_from(state, service, epoch).map(|name| self.kept(service, name)).transpose()?.flatten();
        let is_new = |(volume, root): (&VolumeName, &Hash)| -> Result<bool, Error> {
            let known = succeeded.as_ref().and_then(|(shown, _)| shown.roots.get(volume));
            let same = known.is_some_and(|known| *known == root.to_string());
            let branches = self.store.generations(&branch_key(service, volume))?;
            Ok(!same && !branches.iter().any(|branch| branch.root == *root))
        };
        let new = roots.iter().map(is_new).collect::<Result<Vec<_>, _>>()?;
        if !new.contains(&true) {
            return Ok(roots);
        }
        let name = GenerationName { epoch, sequence: self.newest_of(service, epoch)? + 1 };
        for (volume, root) in &roots {
            let generation = store::Generation { epoch, sequence: name.sequence, taken_at: now.0, root: *root };
            self.store.name(&branch_key(service, volume), generation)?;
            self.store.name(&key(service, volume), generation)?;
        }
        tracing::warn!(%service, generation = %name, "what was written and not committed is put aside");
        Ok(roots)
    }

    /// What is in each directory now. It is sealed as it was when it was captured here last, so that what is the same is the same, though
    /// the cluster's key was changed meanwhile.
    fn look(
        &self,
        state: &State,
        service: &ServiceName,
        epoch: u64,
        now: UnixMillis,
    ) -> Result<BTreeMap<VolumeName, Hash>, Error> {
        let mut roots = BTreeMap::new();
        for volume in self.volumes(service)? {
            let path = directory(&self.data_dir, service, &volume);
            let key = key(service, &volume);
            let seal = match self.store.captured_with(&key)? {
                Some(key) => Some(key),
                None => sealing::seal_of(state, service, &volume)?,
            };
            let capture = Capture::begin_sealed(&self.store, &key, &path, seal)?;
            let captured = capture.finish(&Scope::Everything)?;
            let root = captured.root;
            captured.commit_as(&passing_key(service, &volume), epoch, 1, now.0)?;
            roots.insert(volume, root);
        }
        Ok(roots)
    }

    /// Directories that are there.
    pub(super) fn volumes(&self, service: &ServiceName) -> Result<Vec<VolumeName>, Error> {
        let parent = of_service(&self.data_dir, service);
        let entries = match fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::file("list", &parent, source)),
        };
        let mut volumes = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| Error::file("list", &parent, source))?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
            volumes.extend(name.filter(|_| is_directory));
        }
        volumes.sort();
        Ok(volumes)
    }
}

impl Shown {
    pub(super) fn of(generation: &Generation) -> Self {
        let roots = generation.volumes.iter().map(|(volume, copies)| (volume.clone(), copies.root.clone()));
        Self { name: generation.name, roots: roots.collect() }
    }

    /// Those of its volumes that a machine is said to have.
    pub(super) fn on(generation: &Generation, node: &NodeId) -> Self {
        let mut shown = Self::of(generation);
        shown.roots.retain(|volume, _| generation.volumes[volume].holders.contains(node));
        shown
    }
}

/// The generation of an epoch with which the next one began.
fn succeeded_from(state: &State, service: &ServiceName, epoch: u64) -> Option<GenerationName> {
    let service = state.services.get(service)?;
    let sources = service.placements.iter().filter_map(|placement| placement.source);
    let committed = service.data.committed.as_ref().map(|committed| committed.name);
    sources.chain(committed).find(|name| name.epoch == epoch)
}

/// Nobody else on the machine may look into a service's data.
fn create(path: &std::path::Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.map_err(|source| Error::file("create the directory", path, source))
}
