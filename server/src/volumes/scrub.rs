//! Reads everything that is kept, bit by bit, over and over, and at once where somebody asks for it: a disk that forgets is found out
//! while other machines still remember. First the objects, of which another machine has those that are damaged; then the directories
//! of copies, from which an instance would start, and which the objects make right. How far that is, and when it was done last, is on
//! the disk: a node that is often restarted comes to an end, too.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use flotilla_api::{
    ServiceName, UnixMillis, VolumeName,
    rest::{ScrubView, ScrubbedView, ScrubbingView},
};
use flotilla_data::{
    Hash, Store,
    store::{self, News},
    verify::Mark,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{Error, Shared, blocking, wire};
use crate::clock;

const VERSION: u8 = 1;

/// Objects that are read at once, and how often: some 35 GB a day, which no disk notices.
const OBJECTS: usize = 64;
const EVERY: Duration = Duration::from_secs(10);

/// Bytes of copies' directories that are read at once. Whoever wants to start an instance there waits so long.
const BYTES: u64 = 8 * 1024 * 1024;

/// After everything was read.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Somebody who asked waits for it: half of the disk's time is taken.
const ASKED_REST: u32 = 1;

/// How often it is written down how far it is.
const SAVED_EVERY: Duration = Duration::from_secs(60);

/// A link may be lost just when it is needed.
const REPAIR_TRIES: usize = 2;

/// One machine's answer to a question for one object.
const REPAIR_WITHIN: Duration = Duration::from_secs(60);

/// What is known of it, here and on the disk.
#[derive(Debug)]
pub(super) struct Scrub {
    path: PathBuf,
    known: Mutex<Known>,
    view: watch::Sender<ScrubView>,
    asked: Notify,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    version: u8,
    /// The last one that came to its end.
    #[serde(default)]
    finished: Option<ScrubbedView>,
    #[serde(default)]
    running: Option<Running>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    #[serde(flatten)]
    view: ScrubbingView,
    #[serde(default)]
    at: At,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum At {
    /// Behind this object.
    Objects(Option<String>),
    /// In this directory of a copy.
    Copy { service: ServiceName, volume: VolumeName, mark: Option<Mark> },
}

impl Default for At {
    fn default() -> Self {
        Self::Objects(None)
    }
}

impl Running {
    fn begin(asked: bool, now: UnixMillis) -> Self {
        Self { view: ScrubbingView { began_at: now, asked, ..ScrubbingView::default() }, at: At::default() }
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    objects: u64,
    /// Bytes of files.
    files: u64,
    damaged: u64,
    repaired: u64,
}

/// How much there is to read.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    objects: u64,
    /// Bytes of files; 0 before the objects are read.
    files: u64,
}

impl Scrub {
    pub(super) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("scrub.json");
        let read = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Known>(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
            Err(error) => Err(error),
        };
        let known = read.map(|known| if known.version <= VERSION { known } else { Known::default() });
        let known = known.unwrap_or_else(|error| {
            // It begins anew, which costs a day.
            tracing::warn!(path = %path.display(), %error, "it is not known any more when all that is kept was read");
            Known::default()
        });
        let view = watch::Sender::new(view(&known));
        Self { path, known: Mutex::new(Known { version: VERSION, ..known }), view, asked: Notify::new() }
    }

    pub(super) fn watch(&self) -> watch::Receiver<ScrubView> {
        self.view.subscribe()
    }

    /// Everything is read from its beginning, as fast as the disk bears it; one that somebody asked for already goes on.
    pub(super) fn ask(&self, now: UnixMillis) -> ScrubView {
        let mut known = self.known();
        if known.running.as_ref().is_none_or(|running| !running.view.asked) {
            known.running = Some(Running::begin(true, now));
        }
        self.asked.notify_one();
        self.tell(&known)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, known: &Known) -> ScrubView {
        let view = view(known);
        self.view.send_if_modified(|shown| std::mem::replace(shown, view) != view);
        view
    }

    /// The one that runs, or the next one where it is due; otherwise how long it is until that.
    fn current(&self, now: UnixMillis) -> Result<Running, Duration> {
        let mut known = self.known();
        if let Some(running) = &known.running {
            return Ok(running.clone());
        }
        // What ended in the future did so by a clock that was wrong.
        let finished = known.finished.filter(|finished| finished.finished_at <= now);
        let rest = finished.map_or(Duration::ZERO, |finished| {
            AGAIN.saturating_sub(Duration::from_millis(now.since(finished.finished_at)))
        });
        if !rest.is_zero() {
            return Err(rest);
        }
        let running = known.running.insert(Running::begin(false, now)).clone();
        self.tell(&known);
        Ok(running)
    }

    /// Notes a step of one that may have been begun anew meanwhile, and where the next one begins: nowhere at the end. True if it has
    /// ended.
    fn reached(&self, of: &Running, total: Total, found: Found, next: Option<At>, now: UnixMillis) -> bool {
        let mut known = self.known();
        let Some(running) = known.running.as_mut().filter(|it| it.view.began_at == of.view.began_at) else {
            return false;
        };
        let view = &mut running.view;
        view.objects += found.objects;
        view.of = total.objects.max(view.objects);
        view.files_bytes += found.files;
        view.files_of_bytes = total.files.max(view.files_bytes);
        view.damaged += found.damaged;
        view.repaired += found.repaired;
        let ended = next.is_none();
        match next {
            Some(next) => running.at = next,
            None => {
                let ScrubbingView { began_at, objects, files_bytes, damaged, repaired, .. } = *view;
                known.finished =
                    Some(ScrubbedView { began_at, finished_at: now, objects, files_bytes, damaged, repaired });
                known.running = None;
            }
        }
        self.tell(&known);
        ended
    }

    /// Whole, or as it was.
    fn write(&self) -> Result<(), Error> {
        let known = self.known().clone();
        let new = self.path.with_extension("new");
        let written = serde_json::to_vec(&known).map_err(io::Error::from).and_then(|text| {
            let mut file = fs::File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        });
        written.map_err(|source| Error::file("write", &self.path, source))
    }
}

fn view(known: &Known) -> ScrubView {
    ScrubView { finished: known.finished, running: known.running.as_ref().map(|running| running.view) }
}

pub(super) async fn keep(shared: Arc<Shared>) {
    let mut saved = Instant::now();
    loop {
        let pause = match shared.scrub.current(clock::now()) {
            Err(rest) => rest,
            Ok(running) => {
                let began = Instant::now();
                match step(&shared, &running).await {
                    Ok(ended) => {
                        if ended || saved.elapsed() >= SAVED_EVERY {
                            save(&shared).await;
                            saved = Instant::now();
                        }
                        if running.view.asked { began.elapsed() * ASKED_REST } else { EVERY }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "what is kept of volumes could not be read");
                        EVERY
                    }
                }
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => {
                save(&shared).await;
                return;
            }
            () = shared.scrub.asked.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

async fn save(shared: &Arc<Shared>) {
    let known = Arc::clone(shared);
    if let Err(error) = blocking(move || known.scrub.write()).await {
        tracing::warn!(%error, "it was not noted how far reading what is kept has come");
    }
}

/// Reads some more. True if there is no more.
async fn step(shared: &Arc<Shared>, running: &Running) -> Result<bool, Error> {
    match &running.at {
        At::Objects(behind) => objects(shared, running, behind.as_ref().and_then(|name| name.parse().ok())).await,
        At::Copy { service, volume, mark } => copy(shared, running, service, volume, mark.clone()).await,
    }
}

/// Reads some objects, and repairs those that are damaged.
async fn objects(shared: &Arc<Shared>, running: &Running, behind: Option<Hash>) -> Result<bool, Error> {
    let store = shared.store.clone();
    let (scrubbed, count) = blocking(move || Ok((store.scrub(behind.as_ref(), OBJECTS)?, store.count()?))).await?;
    let mut found = Found { objects: scrubbed.read, ..Found::default() };
    let mut lost = Vec::new();
    for name in scrubbed.damaged {
        found.damaged += 1;
        if repair(shared, name).await? {
            found.repaired += 1;
            tracing::warn!(object = %name, "a damaged object was repaired from another machine");
        } else {
            lost.push(name);
        }
    }
    // Once it was freed nothing unneeded is come upon any more: where something was lost already, this is lost as well.
    if !lost.is_empty() && running.view.damaged == running.view.repaired {
        let (store, count) = (shared.store.clone(), lost.len() as u64);
        lost = blocking(move || Ok(needed(&store, lost)?)).await?;
        // With what nobody needs any more nothing is lost.
        found.repaired += count - lost.len() as u64;
    }
    for name in lost {
        tracing::error!(object = %name, "an object is damaged, and no machine that can be asked has it; look at this disk");
    }
    shared.counters.damaged.fetch_add(found.damaged, Relaxed);
    shared.counters.repaired.fetch_add(found.repaired, Relaxed);
    shared.counters.scrubbed.fetch_add(found.objects, Relaxed);
    let mut total = Total { objects: count, files: 0 };
    let next = match scrubbed.last {
        Some(last) => Some(At::Objects(Some(last.to_string()))),
        None => {
            let known = Arc::clone(shared);
            total.files = blocking(move || Ok(known.directories.shown_bytes(&services(&known)))).await?;
            next_copy(shared, None).await?
        }
    };
    Ok(shared.scrub.reached(running, total, found, next, clock::now()))
}

/// Reads some of a copy's directory, and makes it what it should be.
async fn copy(
    shared: &Arc<Shared>,
    running: &Running,
    service: &ServiceName,
    volume: &VolumeName,
    mark: Option<Mark>,
) -> Result<bool, Error> {
    let compared = {
        let _lock = shared.directories.lock(service).await;
        let (known, service, volume) = (Arc::clone(shared), service.clone(), volume.clone());
        blocking(move || {
            let compared = known.directories.verify(&service, &volume, mark.as_ref(), BYTES)?;
            if compared.as_ref().is_some_and(|compared| compared.is_other) {
                tracing::warn!(%service, %volume, "a copy's files are not those of its generation, and are made anew");
                let state = known.parts.state.borrow().clone();
                known.directories.remake(&state, &service, clock::now())?;
            }
            Ok(compared)
        })
        .await
    };
    let (mut found, mut next) = (Found::default(), None);
    match compared {
        // An instance has begun to write there.
        Ok(None) => {}
        Ok(Some(compared)) => {
            if compared.healed > 0 {
                tracing::warn!(%service, %volume, chunks = compared.healed, "what the disk had spoiled of a copy was made right");
            }
            let damaged = compared.healed + u64::from(compared.is_other);
            shared.counters.compared.fetch_add(compared.bytes, Relaxed);
            shared.counters.damaged.fetch_add(damaged, Relaxed);
            shared.counters.repaired.fetch_add(damaged, Relaxed);
            found = Found { files: compared.bytes, damaged, repaired: damaged, ..found };
            next = compared.next.map(|mark| At::Copy {
                service: service.clone(),
                volume: volume.clone(),
                mark: Some(mark),
            });
        }
        Err(error) => {
            tracing::error!(%service, %volume, %error, "a copy could not be compared with what it should be");
            shared.counters.damaged.fetch_add(1, Relaxed);
            found.damaged = 1;
        }
    }
    if next.is_none() {
        next = next_copy(shared, Some((service, volume))).await?;
    }
    let total = Total { objects: running.view.of, files: running.view.files_of_bytes };
    Ok(shared.scrub.reached(running, total, found, next, clock::now()))
}

fn services(shared: &Shared) -> Vec<ServiceName> {
    shared.parts.state.borrow().services.keys().cloned().collect()
}

/// The directory that comes behind this one, in the order of their names.
async fn next_copy(shared: &Arc<Shared>, behind: Option<(&ServiceName, &VolumeName)>) -> Result<Option<At>, Error> {
    let (shared, behind) = (Arc::clone(shared), behind.map(|(service, volume)| (service.clone(), volume.clone())));
    blocking(move || {
        for service in services(&shared) {
            if behind.as_ref().is_some_and(|(last, _)| service < *last) {
                continue;
            }
            let volumes = shared.directories.shown_volumes(&service).unwrap_or_else(|error| {
                tracing::warn!(%service, %error, "it is not known what the directories of a service show");
                Vec::new()
            });
            for volume in volumes {
                if behind.as_ref().is_none_or(|behind| (&service, &volume) > (&behind.0, &behind.1)) {
                    return Ok(Some(At::Copy { service, volume, mark: None }));
                }
            }
        }
        Ok(None)
    })
    .await
}

/// Those of them that some generation is made of.
fn needed(store: &Store, names: Vec<Hash>) -> Result<Vec<Hash>, store::Error> {
    // Where it can't be told, all of them may be.
    if let Err(error) = store.collect() {
        tracing::debug!(%error, "what nobody needs could not be freed");
        return Ok(names);
    }
    let mut kept = Vec::new();
    for name in names {
        if store.contains(&name)? {
            kept.push(name);
        }
    }
    Ok(kept)
}

/// Asks the other machines one after the other. True if one had it.
async fn repair(shared: &Arc<Shared>, name: Hash) -> Result<bool, Error> {
    let connected = || shared.parts.network.connected().borrow().clone();
    // The second time of whoever is connected then.
    for machine in std::iter::repeat_with(connected).take(REPAIR_TRIES).flatten() {
        let asked = async {
            let stream = shared.parts.network.stream(&machine, wire::LABEL).await.ok()?;
            let (mut from, mut to) = tokio::io::split(stream);
            wire::ask(&mut to, &[name]).await.ok()?;
            wire::answered(&mut from).await.ok()?
        };
        let Ok(Some(coded)) = tokio::time::timeout(REPAIR_WITHIN, asked).await else { continue };
        let store = shared.store.clone();
        let repaired = blocking(move || {
            let mut session = store.session();
            // What is damaged there as well is not taken.
            if session.repair(&name, &coded).is_err() {
                return Ok(false);
            }
            session.commit(&News::default())?;
            Ok(true)
        });
        if repaired.await? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn name(text: &str) -> Hash {
        text.repeat(32).parse().unwrap()
    }

    fn found(objects: u64) -> Found {
        Found { objects, ..Found::default() }
    }

    fn total(objects: u64) -> Total {
        Total { objects, files: 0 }
    }

    fn behind(text: &str) -> Option<At> {
        Some(At::Objects(Some(name(text).to_string())))
    }

    #[test]
    fn it_goes_on_where_it_was_and_knows_when_it_ended_after_a_restart() {
        let place = tempfile::tempdir().unwrap();
        let scrub = Scrub::open(place.path());
        let running = scrub.current(NOW).unwrap();
        assert!(!scrub.reached(
            &running,
            total(100),
            Found { objects: 64, files: 0, damaged: 2, repaired: 1 },
            behind("ab"),
            NOW
        ));
        scrub.write().unwrap();

        let scrub = Scrub::open(place.path());
        let running = scrub.current(NOW.plus(5)).unwrap();
        assert_eq!(Some(running.at.clone()), behind("ab"));
        assert_eq!((running.view.began_at, running.view.objects, running.view.of), (NOW, 64, 100));
        let mark = serde_json::from_str(r#"{"path": [[110, 255]], "read": 7}"#).unwrap();
        let in_copy = At::Copy { service: "notes".parse().unwrap(), volume: "data".parse().unwrap(), mark: Some(mark) };
        let all = Total { objects: 100, files: 5_000 };
        assert!(!scrub.reached(&running, all, found(36), Some(in_copy.clone()), NOW.plus(7)));
        scrub.write().unwrap();

        let scrub = Scrub::open(place.path());
        let running = scrub.current(NOW.plus(8)).unwrap();
        assert_eq!((running.at.clone(), running.view.files_of_bytes), (in_copy, 5_000));
        assert!(scrub.reached(&running, all, Found { files: 5_000, ..found(0) }, None, NOW.plus(9)));
        scrub.write().unwrap();

        let scrub = Scrub::open(place.path());
        let ended = ScrubbedView {
            began_at: NOW,
            finished_at: NOW.plus(9),
            objects: 100,
            files_bytes: 5_000,
            damaged: 2,
            repaired: 1,
        };
        assert_eq!(*scrub.watch().borrow(), ScrubView { finished: Some(ended), running: None });
        let day = u64::try_from(AGAIN.as_millis()).unwrap();
        assert_eq!(scrub.current(NOW.plus(10)).unwrap_err(), AGAIN - Duration::from_millis(1));
        assert_eq!(Scrub::open(place.path()).current(NOW).unwrap().view.began_at, NOW, "the clock was set back");
        assert_eq!(scrub.current(NOW.plus(9 + day)).unwrap().view.began_at, NOW.plus(9 + day));
        assert_eq!(scrub.watch().borrow().finished, Some(ended), "it is still known");
    }

    #[test]
    fn who_asks_has_it_begun_anew_and_once() {
        let place = tempfile::tempdir().unwrap();
        let scrub = Scrub::open(place.path());
        let slow = scrub.current(NOW).unwrap();
        scrub.reached(&slow, total(100), found(64), behind("ab"), NOW);
        let asked = scrub.ask(NOW.plus(1)).running.unwrap();
        assert_eq!((asked.asked, asked.began_at, asked.objects), (true, NOW.plus(1), 0));
        assert!(!scrub.reached(&slow, total(100), found(36), None, NOW.plus(2)), "that one is over");
        let running = scrub.current(NOW.plus(2)).unwrap();
        assert_eq!(running.view, asked);
        scrub.reached(&running, total(100), found(64), behind("cd"), NOW.plus(3));
        let again = scrub.ask(NOW.plus(4)).running.unwrap();
        assert_eq!((again.began_at, again.objects), (NOW.plus(1), 64), "it goes on");
    }

    #[test]
    fn what_is_damaged_or_newer_on_the_disk_is_nothing() {
        let place = tempfile::tempdir().unwrap();
        for text in ["{", "{\"version\": 2, \"finished\": null, \"running\": null}"] {
            fs::write(place.path().join("scrub.json"), text).unwrap();
            assert_eq!(*Scrub::open(place.path()).watch().borrow(), ScrubView::default());
        }
    }
}
