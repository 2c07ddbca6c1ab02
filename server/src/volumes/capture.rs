//! One capture of all volumes of a service: most of it while the instance goes on, the rest while it is held still.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use flotilla_api::{ServiceName, UnixMillis, VolumeName};
use flotilla_core::state::GenerationName;
use flotilla_data::{
    Store,
    capture::{Capture, Captured, Scope, Still},
    seal::KeyId,
    store,
};
use rustix::fs::OFlags;

use super::{Error, Shared, directories::Lock, import::Tree, layout, mapped, sealing, watched::Watched};
use crate::clock;

/// What changes while everything is read is read again before the instance is held, so often at most.
const ROUNDS_MAX: usize = 4;

/// A round that took no longer leaves little to read while the instance is held.
const ROUND_SHORT: Duration = Duration::from_millis(100);

/// Where more has changed, a tree of it is made before the instance is held. Names.
const WIDE: usize = 256;

/// For how long an instance stands still at most: as long as people wait for a page, and shorter than a health check.
const HOLD_MAX: Duration = Duration::from_secs(5);

/// A mapped file that is no longer than this is read each time. Bytes.
const SMALL: u64 = 1024 * 1024;

/// A generation that is on this machine's disk.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) name: GenerationName,
    pub(super) taken_at: UnixMillis,
    pub(super) volumes: BTreeMap<VolumeName, Tree>,
    /// Those of them that are sealed.
    pub(super) sealed: BTreeSet<VolumeName>,
    /// Bytes that it, and all before it, needed beside what there was: they have to be sent.
    pub(super) fresh: u64,
    /// For how long the instance stood still.
    pub(super) held: Duration,
    /// Since when there had been something that the one before does not have.
    pub(super) changed_at: UnixMillis,
}

/// One capture of all volumes of a service.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) service: ServiceName,
    pub(super) name: GenerationName,
    pub(super) watched: BTreeMap<VolumeName, Arc<Watched>>,
    /// Volumes that are not as their directories are.
    pub(super) adopts: BTreeMap<VolumeName, Tree>,
    pub(super) newest: Option<Made>,
    pub(super) changed_at: UnixMillis,
}

/// One volume of it.
struct Part {
    volume: VolumeName,
    watched: Arc<Watched>,
    capture: Capture,
    /// What was changed since the generation before.
    scope: Scope,
}

impl Part {
    /// Sees that what programs write to a file in their memory shows: what was written, and what will be from now on.
    fn settle(&mut self, maps: &[String]) -> Result<(), Error> {
        let Watched { directory, target, .. } = &*self.watched;
        for path in mapped::find(maps, target, directory) {
            let file = mapped::below(directory, &path);
            // No program's pipe is waited for, should one lie there by now.
            let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
            match File::options()
                .read(true)
                .custom_flags(flags)
                .open(&file)
                .and_then(|opened| Ok((opened.metadata()?.len(), opened)))
            {
                // The disk takes longer for it than reading it does.
                Ok((len, _)) if len <= SMALL => self.capture.doubt(&path),
                Ok((_, opened)) => {
                    opened.sync_data().map_err(|source| Error::file("write back", &file, source))?;
                    self.capture.doubt_if_changed(&path, &opened)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::file("open", &file, source)),
            }
            self.scope.add(&path);
        }
        Ok(())
    }
}

impl Job {
    /// `None` where nothing differs from the generation before. `took` is how long it took to read, without the disk that is waited for.
    pub(super) async fn run(self, took: &mut Duration) -> Result<Option<Made>, Error> {
        let began = Instant::now();
        if self.watched.is_empty() {
            return Err(Error::NoDirectory { service: self.service.clone() });
        }
        let (store, service, mut watched) = (self.shared.store.clone(), self.service.clone(), self.watched.clone());
        let seals: BTreeMap<VolumeName, Option<KeyId>> = {
            let state = self.shared.parts.state.borrow();
            let volumes = watched.keys().chain(self.adopts.keys());
            let seal = |volume: &VolumeName| Ok((volume.clone(), sealing::seal_of(&state, &service, volume)?));
            volumes.map(seal).collect::<Result<_, Error>>()?
        };
        watched.retain(|volume, _| !self.adopts.contains_key(volume));
        let (fence, epoch) = (self.shared.parts.fence.clone(), self.name.epoch);
        let (with, adopts) = (seals.clone(), self.adopts.clone());
        let parts = super::blocking(move || {
            sealing::check(&store, &service, &with, adopts.into_iter().map(|(volume, (root, _))| (volume, root)))?;
            let mut parts = read(&store, &service, watched, &with)?;
            // So that little is left to write back while the instance is held.
            let maps = mapped::maps(&fence.processes(epoch));
            parts.iter_mut().try_for_each(|part| part.settle(&maps))?;
            Ok(parts)
        })
        .await?;
        let (captured, held, taken_at) = self.still(parts).await?;
        *took = began.elapsed();
        let roots = captured.iter().map(|(volume, captured)| (volume.clone(), (captured.root, captured.totals)));
        let roots: BTreeMap<VolumeName, Tree> = roots.chain(self.adopts.clone()).collect();
        let torn: Vec<&String> = captured.iter().flat_map(|(_, captured)| &captured.figures.torn).collect();
        if let Some(first) = torn.first() {
            return Err(Error::Torn { service: self.service.clone(), file: (*first).clone() });
        }
        if self.newest.as_ref().is_some_and(|newest| newest.volumes == roots) {
            return Ok(None);
        }
        let read = captured.iter().map(|(_, captured)| captured.figures.read).sum::<u64>();
        let fresh = captured.iter().map(|(_, captured)| captured.fresh_bytes()).sum::<u64>();
        let GenerationName { epoch, sequence } = self.name;
        let captured: Vec<Captured> = captured.into_iter().map(|(_, captured)| captured).collect();
        let _lock = self.lock().await?;
        let (store, service, adopts) = (self.shared.store.clone(), self.service.clone(), self.adopts);
        super::blocking(move || {
            for (volume, (root, _)) in adopts {
                let generation = store::Generation { epoch, sequence, taken_at: taken_at.0, root };
                store.name(&layout::key(&service, &volume), generation)?;
            }
            if captured.is_empty() { Ok(()) } else { Ok(Captured::commit_all(captured, epoch, sequence, taken_at.0)?) }
        })
        .await?;
        self.shared.counters.captured(held, read);
        let before = self.newest.map_or(0, |newest| newest.fresh);
        let changed_at = self.changed_at;
        let sealed = seals.into_iter().filter_map(|(volume, seal)| seal.map(|_| volume)).collect();
        Ok(Some(Made { name: self.name, taken_at, volumes: roots, sealed, fresh: before + fresh, held, changed_at }))
    }

    /// Its machine may have lost the service meanwhile: its directories show something else, or are deleted.
    async fn lock(&self) -> Result<Lock, Error> {
        let lock = self.shared.directories.lock(&self.service).await;
        let begun = self.shared.begun.borrow().get(&self.service) == Some(&self.name.epoch);
        begun.then_some(lock).ok_or(Error::Stopped)
    }

    /// Holds the instance still, and sees what has changed since it was read. For how long it stood still, and when: what was written
    /// later is not in it, however long it takes to keep.
    async fn still(&self, parts: Vec<Part>) -> Result<(Vec<(VolumeName, Captured)>, Duration, UnixMillis), Error> {
        // Nothing is started meanwhile.
        let lock = self.lock().await?;
        let began = Instant::now();
        let held = self.shared.parts.fence.hold(self.name.epoch).await?;
        let taken_at = clock::now();
        let (fence, epoch) = (self.shared.parts.fence.clone(), self.name.epoch);
        let still = super::blocking(move || {
            let maps = mapped::maps(&fence.processes(epoch));
            let still = |mut part: Part| {
                part.scope.merge(part.watched.take());
                part.settle(&maps)?;
                let left = HOLD_MAX.saturating_sub(began.elapsed());
                Ok((part.volume, part.capture.still(&part.scope, left)?))
            };
            parts.into_iter().map(still).collect::<Result<Vec<_>, Error>>()
        })
        .await;
        self.shared.parts.fence.release(held).await;
        drop(lock);
        let (still, took) = (still?, began.elapsed());
        let finish = |(volume, still): (VolumeName, Still)| Ok((volume, still.finish()?));
        let captured = super::blocking(move || still.into_iter().map(finish).collect::<Result<Vec<_>, Error>>());
        Ok((captured.await?, took, taken_at))
    }
}

/// Reads what has changed while the instance goes on, until there is little left.
fn read(
    store: &Store,
    service: &ServiceName,
    watched: BTreeMap<VolumeName, Arc<Watched>>,
    seals: &BTreeMap<VolumeName, Option<KeyId>>,
) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::new();
    for (volume, watched) in watched {
        let (key, seal) = (layout::key(service, &volume), seals.get(&volume).copied().flatten());
        let mut capture = Capture::begin_sealed(store, &key, &watched.directory, seal)?;
        let mut scope = Scope::nothing();
        for _ in 0..ROUNDS_MAX {
            let began = Instant::now();
            let more = watched.take();
            capture.read(&more)?;
            scope.merge(more);
            if began.elapsed() < ROUND_SHORT || scope == Scope::Everything && !watched.is_told() {
                break;
            }
        }
        if watched.is_told() && scope.is_wide(WIDE) {
            capture.base(&scope)?;
            capture.look_ahead(&scope)?;
            scope = Scope::nothing();
        } else {
            capture.look_ahead(&scope)?;
        }
        parts.push(Part { volume, watched, capture, scope });
    }
    Ok(parts)
}
