//! What other machines write: fetched, kept, and shown by this machine's directories, so that an instance finds it there.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName, VolumeName};
use flotilla_core::{
    State,
    report::Coming,
    state::{GenerationName, Service},
};
use flotilla_data::{
    Hash,
    fetch::{Fetch, Figures},
    store, tree,
};
use futures::future::join_all;
use tokio::{
    io::{ReadHalf, WriteHalf},
    runtime::Handle,
    sync::{Notify, Semaphore, mpsc, watch},
    time::sleep,
};

use super::{
    Error, Shared,
    haste::Haste,
    layout,
    limit::Held,
    name_of,
    record::Shown,
    wire::{self, Holds, NAMES_MAX, Offer, Offered},
};
use crate::{
    clock,
    engine::{Engine, Standing},
    peers::{LANES_MAX, Method, Network, Stream},
};

/// Services whose generations are fetched at once. More would only share the same line.
const FETCHES_AT_ONCE: usize = 2;

/// Machines that one generation is fetched from at once.
const SOURCES_MAX: usize = 3;

/// Objects that one machine is asked for before it has answered.
const ASKED_MAX: usize = 4 * NAMES_MAX;

/// More than so much is fetched over several connections. Bytes.
const STRIPED_FROM: u64 = 2 * 1024 * 1024;

/// Connections for one generation, to all machines that have it.
const LINES_MAX: usize = LANES_MAX;

/// What came so far is kept whenever so much of it is new. Bytes.
const SAVED_EVERY: u64 = 64 * 1024 * 1024;

/// And after so long, where it comes slowly.
const SAVED_AFTER: Duration = Duration::from_secs(60);

const HOLDS_WITHIN: Duration = Duration::from_secs(5);

/// A service's directories are brought to what is committed at most this often; before an instance runs they are in any case.
const SHOWN_EVERY: Duration = Duration::from_secs(2);

/// The same for one whose last time took long: it takes at most this part of the time.
const SHOWN_SHARE: u32 = 10;

/// How often it is told how far a generation is on its way; one that takes less time is not told of.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// After an attempt that failed.
const AGAIN: Duration = Duration::from_secs(10);

/// What was offered, and what is being fetched.
#[derive(Debug)]
pub(super) struct Wanted {
    offers: Mutex<BTreeMap<ServiceName, Wish>>,
    fetches: Semaphore,
    /// A generation has come.
    came: Notify,
    /// What is on its way, as far as that takes long.
    coming: watch::Sender<BTreeMap<(ServiceName, VolumeName), Coming>>,
}

/// One service's.
#[derive(Debug)]
struct Wish {
    /// The newest that nobody fetches yet.
    next: Option<(NodeId, Offer)>,
    /// What is being fetched.
    current: Option<(GenerationName, Haste)>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            offers: Mutex::default(),
            fetches: Semaphore::new(FETCHES_AT_ONCE),
            came: Notify::new(),
            coming: watch::Sender::default(),
        }
    }
}

impl Wanted {
    pub(super) fn watch(&self) -> watch::Receiver<BTreeMap<(ServiceName, VolumeName), Coming>> {
        self.coming.subscribe()
    }

    fn offers(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Wish>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers an offer; what is not here is fetched.
pub(super) async fn offered(shared: &Arc<Shared>, from: &NodeId, offer: Offer) -> Result<Offered, ApiError> {
    let conflict = |why: String| Err(ApiError::new(ErrorCode::Conflict, why));
    {
        let state = shared.parts.state.borrow();
        // What nobody writes any more, as far as is known here, may have been deleted: it would come back.
        let placed = state.placement(offer.name.epoch).is_some_and(|(service, placement)| {
            service.name == offer.service && placement.machine == *from && placement.exclusive
        });
        if !placed {
            return conflict(format!(
                "that machine writes no `{}` under epoch {} yet",
                offer.service, offer.name.epoch
            ));
        }
        if !may_keep(&state, &offer.service, &shared.parts.node) {
            return conflict(format!("volumes of a former `{}` are being deleted", offer.service));
        }
    }
    let (known, wanted) = (Arc::clone(shared), offer.clone());
    let held = super::blocking(move || holds(&known, &wanted)).await?;
    if !held {
        want(shared, from.clone(), offer);
    }
    Ok(Offered { held })
}

fn holds(shared: &Shared, offer: &Offer) -> Result<bool, Error> {
    for (volume, root) in &offer.volumes {
        let generations = shared.store.generations(&layout::key(&offer.service, volume))?;
        if !generations.iter().any(|it| name_of(it) == offer.name && it.root.to_string() == *root) {
            return Ok(false);
        }
    }
    Ok(!offer.volumes.is_empty())
}

fn want(shared: &Arc<Shared>, from: NodeId, offer: Offer) {
    let service = offer.service.clone();
    let mut offers = shared.wanted.offers();
    let begins = !offers.contains_key(&service);
    let wish = offers.entry(service.clone()).or_insert(Wish { next: None, current: None });
    if let Some((_, haste)) = wish.current.as_ref().filter(|_| offer.awaited) {
        // Even an earlier one: the awaited one comes after it.
        haste.hurry();
    }
    if wish.current.as_ref().is_none_or(|(current, _)| *current != offer.name) {
        wish.next = Some((from, offer));
    }
    drop(offers);
    if begins {
        shared.tasks.spawn(fetch_all(Arc::clone(shared), service));
    }
}

/// Fetches what is wanted of one service, the newest each time, until nothing is.
async fn fetch_all(shared: Arc<Shared>, service: ServiceName) {
    let stop = shared.stop.clone();
    loop {
        let next = {
            let mut offers = shared.wanted.offers();
            let next = offers.get_mut(&service).and_then(|wish| {
                let (from, offer) = wish.next.take()?;
                let haste = Haste::new(offer.awaited);
                wish.current = Some((offer.name, haste.clone()));
                Some((from, offer, haste))
            });
            if next.is_none() {
                offers.remove(&service);
            }
            next
        };
        let Some((from, offer, haste)) = next else { return };
        let fetched = tokio::select! {
            () = stop.cancelled() => return,
            fetched = fetch(&shared, &from, &offer, &haste) => fetched,
        };
        match fetched {
            Ok(figures) => {
                shared.counters.fetched(figures);
                shared.wanted.came.notify_one();
                shared.history.notify_one();
                let holds = Holds { service: service.clone(), name: offer.name };
                let Ok(body) = wire::write(&holds) else { continue };
                // Where it is not heard the generation is offered again.
                let told = shared.parts.network.call(&from, Method::Holds, body, HOLDS_WITHIN);
                tokio::spawn(async move {
                    if let Err(error) = told.await {
                        tracing::debug!(%error, "it was not heard that a generation is here");
                    }
                });
            }
            // It is offered again when it may come.
            Err(Error::Held(held)) => tracing::debug!(%service, generation = %offer.name, %held, "a generation waits"),
            Err(error) => tracing::warn!(%service, generation = %offer.name, %error, "a generation was not fetched"),
        }
    }
}

/// Fetches a generation, first of all from this machine.
pub(super) async fn fetch(shared: &Arc<Shared>, from: &NodeId, offer: &Offer, haste: &Haste) -> Result<Figures, Error> {
    let _turn = tokio::select! {
        // What an instance waits for does not wait for what can wait.
        biased;
        () = haste.is_called_for() => None,
        turn = shared.wanted.fetches.acquire() => Some(turn.map_err(|_| Error::Stopped)?),
    };
    let connected = shared.parts.network.connected().borrow().clone();
    let others = offer.holders.iter().filter(|id| *id != from && **id != shared.parts.node && connected.contains(*id));
    let mut lines = Lines::open(&shared.parts.network, std::iter::once(from).chain(others), haste).await?;
    let mut sum = Figures::default();
    let mut fetched = Vec::new();
    for (volume, root) in &offer.volumes {
        let root: Hash = root.parse().map_err(|_| Error::Tree(tree::Error::Damaged))?;
        let generation = store::Generation {
            epoch: offer.name.epoch,
            sequence: offer.name.sequence,
            taken_at: offer.taken_at.0,
            root,
        };
        let (store, key) = (shared.store.clone(), layout::key(&offer.service, volume));
        let runtime = Handle::current();
        let mut progress = Progress::begin(&shared.wanted, &offer.service, volume, offer.name);
        let (fetch, back) = super::blocking(move || {
            let fetch = Fetch::begin(&store, &key, generation)?;
            let fetch = lines.drive(fetch, &runtime, |figures| progress.reached(figures))?;
            Ok((fetch, lines))
        })
        .await?;
        lines = back;
        sum.objects += fetch.figures().objects;
        sum.bytes += fetch.figures().bytes;
        fetched.push(fetch);
    }
    let _lock = shared.directories.lock(&offer.service).await;
    if !may_keep(&shared.parts.state.borrow(), &offer.service, &shared.parts.node) {
        return Err(Error::Deleted { service: offer.service.clone() });
    }
    let (store, keys): (_, Vec<String>) =
        (shared.store.clone(), offer.volumes.keys().map(|volume| layout::key(&offer.service, volume)).collect());
    let is_first = super::blocking(move || {
        Fetch::commit_all(fetched)?;
        let first = |key: &String| Ok(store.generations(key)?.len() == 1);
        keys.iter().map(first).collect::<Result<Vec<bool>, Error>>()
    });
    if is_first.await?.contains(&true) {
        shared.first.notify_one();
    }
    Ok(sum)
}

/// Tells how far one volume's generation has come, until it is dropped.
struct Progress {
    wanted: watch::Sender<BTreeMap<(ServiceName, VolumeName), Coming>>,
    key: (ServiceName, VolumeName),
    name: GenerationName,
    pace: Pace,
    told: Option<Instant>,
}

impl Progress {
    fn begin(wanted: &Wanted, service: &ServiceName, volume: &VolumeName, name: GenerationName) -> Self {
        let key = (service.clone(), volume.clone());
        Self { wanted: wanted.coming.clone(), key, name, pace: Pace::begin(Instant::now()), told: None }
    }

    fn reached(&mut self, figures: Figures) {
        let now = Instant::now();
        let since = now.duration_since(self.told.unwrap_or(self.pace.began));
        if since < TELL_EVERY {
            return;
        }
        self.told = Some(now);
        let coming = Coming {
            service: self.key.0.clone(),
            volume: self.key.1.clone(),
            name: self.name,
            bytes: figures.there.min(figures.of),
            of: figures.of,
            per_second: self.pace.note(now, figures.there),
        };
        self.wanted.send_modify(|known| drop(known.insert(self.key.clone(), coming)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.wanted.send_if_modified(|known| known.remove(&self.key).is_some());
    }
}

/// How fast something has been going lately.
#[derive(Clone, Copy, Debug)]
struct Pace {
    began: Instant,
    last: (Instant, u64),
    per_second: Option<f64>,
}

impl Pace {
    fn begin(now: Instant) -> Self {
        Self { began: now, last: (now, 0), per_second: None }
    }

    /// So much there is now. Bytes per second.
    fn note(&mut self, now: Instant, bytes: u64) -> u64 {
        /// What happened so long ago counts for a third.
        const MEMORY: f64 = 10.0;
        let (at, before) = std::mem::replace(&mut self.last, (now, bytes));
        let seconds = now.duration_since(at).as_secs_f64().max(0.001);
        let rate = bytes.saturating_sub(before) as f64 / seconds;
        let known = self.per_second.unwrap_or(rate);
        let weight = 1.0 - (-seconds / MEMORY).exp();
        let rate = known + (rate - known) * weight;
        self.per_second = Some(rate);
        rate as u64
    }
}

/// Asks the other machines for a generation; who has some of its volumes, and which.
pub(super) async fn find(shared: &Arc<Shared>, service: &ServiceName, name: GenerationName) -> Vec<(NodeId, Offer)> {
    let Ok(body) = wire::write(&Holds { service: service.clone(), name }) else { return Vec::new() };
    let connected = shared.parts.network.connected().borrow().clone();
    let asked = connected.into_iter().map(|machine| {
        let asked = shared.parts.network.call(&machine, Method::Recall, body.clone(), HOLDS_WITHIN);
        async move { Some((machine, wire::read::<Option<Offer>>(&asked.await.ok()?).ok()??)) }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Brings here what this machine lacks of a generation: all of it, or volumes that have more copies than others.
pub(super) async fn recall(shared: &Arc<Shared>, service: &ServiceName, name: GenerationName) -> Result<(), Error> {
    let kept = shared.kept(service, name).await?;
    let mut here: BTreeSet<VolumeName> = kept.into_iter().flat_map(|(shown, _)| shown.roots.into_keys()).collect();
    let found = find(shared, service, name).await;
    let holders: Vec<NodeId> = found.iter().map(|(machine, _)| machine.clone()).collect();
    for (machine, mut offer) in found {
        offer.volumes.retain(|volume, _| !here.contains(volume));
        if offer.volumes.is_empty() {
            continue;
        }
        here.extend(offer.volumes.keys().cloned());
        offer.holders.clone_from(&holders);
        shared.counters.fetched(fetch(shared, &machine, &offer, &Haste::awaited()).await?);
    }
    if here.is_empty() { Err(Error::NotHere { service: service.clone(), name }) } else { Ok(()) }
}

/// What one machine answered.
enum Came {
    /// An object as it is laid down; `None` where it is not there.
    Object {
        line: usize,
        name: Hash,
        coded: Option<Vec<u8>>,
    },
    Lost {
        line: usize,
        why: String,
        held: Option<Held>,
    },
    /// One more connection.
    Line(Line),
}

/// The connections to the machines that are asked.
pub(crate) struct Lines {
    /// Absent where nobody answers any more.
    lines: Vec<Option<Line>>,
    answers: mpsc::Receiver<Came>,
    /// Makes more of them, once there is much to fetch.
    more: Option<More>,
    why: String,
    /// A machine that could send the rest does not do so now.
    held: Option<Held>,
}

struct Line {
    machine: NodeId,
    names: mpsc::Sender<Vec<Hash>>,
    asked: HashSet<Hash>,
}

impl Line {
    /// Asks over a stream, for the line with this number.
    fn over(line: usize, machine: NodeId, stream: Stream, answers: mpsc::Sender<Came>, haste: Haste) -> Self {
        let (names, asked) = mpsc::channel(ASKED_MAX / NAMES_MAX + 1);
        tokio::spawn(carry(line, stream, asked, answers, haste));
        Self { machine, names, asked: HashSet::new() }
    }
}

/// Further connections to machines that were reached.
struct More {
    network: Network,
    machines: Vec<NodeId>,
    answers: mpsc::Sender<Came>,
    haste: Haste,
}

impl More {
    /// Over a slow line that takes as long as fetching some megabytes does.
    async fn make(self) {
        let count = self.machines.len();
        for (line, machine) in (count..LINES_MAX).zip(self.machines.iter().cycle()) {
            match self.network.stream_beside(machine, wire::LABEL, line / count).await {
                Ok(stream) => {
                    let one = Line::over(line, machine.clone(), stream, self.answers.clone(), self.haste.clone());
                    if self.answers.send(Came::Line(one)).await.is_err() {
                        return;
                    }
                }
                // The connections that there are do as well.
                Err(error) => return tracing::debug!(%machine, %error, "no further connection"),
            }
        }
    }
}

impl Lines {
    /// # Errors
    /// None of them can be asked.
    pub(crate) async fn open(
        network: &Network,
        machines: impl Iterator<Item = &NodeId>,
        haste: &Haste,
    ) -> Result<Self, Error> {
        let (sender, answers) = mpsc::channel(2 * NAMES_MAX);
        let (mut lines, mut reached, mut why) = (Vec::new(), Vec::new(), String::new());
        for machine in machines.take(SOURCES_MAX) {
            match network.stream(machine, wire::LABEL).await {
                Ok(stream) => {
                    lines.push(Some(Line::over(lines.len(), machine.clone(), stream, sender.clone(), haste.clone())));
                    reached.push(machine.clone());
                }
                Err(error) => why = error.to_string(),
            }
        }
        if lines.is_empty() {
            return Err(Error::NoSource { why });
        }
        let more = More { network: Arc::clone(network), machines: reached, answers: sender, haste: haste.clone() };
        Ok(Self { lines, answers, more: Some(more), why, held: None })
    }

    /// Until all of it is here. Blocking; `told` how much has come.
    ///
    /// # Errors
    /// Nobody who is asked has the rest of it, or it can't be kept.
    pub(crate) fn drive(
        &mut self,
        mut fetch: Fetch,
        runtime: &Handle,
        mut told: impl FnMut(Figures),
    ) -> Result<Fetch, Error> {
        let (mut saved, mut saved_at) = (0, Instant::now());
        loop {
            if fetch.figures().bytes >= STRIPED_FROM
                && let Some(more) = self.more.take()
            {
                runtime.spawn(more.make());
            }
            self.ask(&mut fetch)?;
            if fetch.is_complete() {
                return Ok(fetch);
            }
            if self.lines.iter().flatten().all(|line| line.asked.is_empty()) {
                return Err(if self.lines.iter().any(Option::is_some) {
                    Error::Tree(tree::Error::Damaged)
                } else {
                    self.gone(&mut fetch)
                });
            }
            match self.answers.blocking_recv() {
                Some(Came::Object { line, name, coded }) => {
                    if let Some(line) = self.lines.get_mut(line).and_then(Option::as_mut) {
                        line.asked.remove(&name);
                    }
                    match coded.map(|coded| fetch.take(&name, &coded)) {
                        Some(Ok(())) => {}
                        Some(Err(error)) if !is_damage(&error) => return Err(error.into()),
                        // Another may have it, and whole.
                        missing => {
                            let why = missing.and_then(Result::err).map(|error| error.to_string());
                            fetch.again(&name);
                            self.lose(line, why.unwrap_or_else(|| format!("it lacks the object {name}")), &mut fetch);
                        }
                    }
                }
                Some(Came::Lost { line, why, held }) => {
                    self.held = held.or(self.held);
                    self.lose(line, why, &mut fetch);
                }
                // They come in the order of their numbers.
                Some(Came::Line(line)) => self.lines.push(Some(line)),
                None => return Err(self.gone(&mut fetch)),
            }
            told(fetch.figures());
            let new = fetch.figures().bytes - saved;
            if new >= SAVED_EVERY || (new > 0 && saved_at.elapsed() >= SAVED_AFTER) {
                (saved, saved_at) = (fetch.figures().bytes, Instant::now());
                fetch.save()?;
            }
        }
    }

    fn ask(&mut self, fetch: &mut Fetch) -> Result<(), Error> {
        for line in self.lines.iter_mut().flatten() {
            while line.asked.len() + NAMES_MAX <= ASKED_MAX && line.names.capacity() > 0 {
                let names = fetch.wants(NAMES_MAX)?;
                if names.is_empty() {
                    return Ok(());
                }
                line.asked.extend(&names);
                // One that has ended says so itself.
                let _ = line.names.try_send(names);
            }
        }
        Ok(())
    }

    /// Why nobody is left to ask. What came is kept for the next time.
    fn gone(&self, fetch: &mut Fetch) -> Error {
        if let Err(error) = fetch.save() {
            return error.into();
        }
        self.held.map_or_else(|| Error::NoSource { why: self.why.clone() }, Error::Held)
    }

    fn lose(&mut self, line: usize, why: String, fetch: &mut Fetch) {
        if let Some(line) = self.lines.get_mut(line).and_then(Option::take) {
            tracing::warn!(machine = %line.machine, %why, "a machine is not asked for more of a generation");
            line.asked.iter().for_each(|name| fetch.again(name));
            self.why = why;
        }
    }
}

/// Is it what came that is wrong?
fn is_damage(error: &tree::Error) -> bool {
    matches!(error, tree::Error::Store(store::Error::Damaged { .. }))
}

/// Carries questions and answers of one machine.
async fn carry(
    line: usize,
    stream: Stream,
    mut asked: mpsc::Receiver<Vec<Hash>>,
    answers: mpsc::Sender<Came>,
    haste: Haste,
) {
    let (mut from, mut to): (ReadHalf<Stream>, WriteHalf<Stream>) = tokio::io::split(stream);
    let (expected_sender, mut expected) = mpsc::channel::<Vec<Hash>>(ASKED_MAX / NAMES_MAX + 2);
    let mut can_wait = !haste.is_awaited();
    let patience = if can_wait { wire::PATIENCE } else { wire::STALL };
    let asking = async {
        if can_wait {
            wire::ask(&mut to, &[]).await?;
        }
        loop {
            let names = tokio::select! {
                names = asked.recv() => names,
                () = haste.is_called_for(), if can_wait => {
                    can_wait = false;
                    wire::ask(&mut to, &[]).await?;
                    continue;
                }
            };
            let Some(names) = names else { break };
            wire::ask(&mut to, &names).await?;
            if expected_sender.send(names).await.is_err() {
                break;
            }
        }
        drop(expected_sender);
        Ok::<_, std::io::Error>(())
    };
    let hearing = async {
        while let Some(names) = expected.recv().await {
            for name in names {
                let coded = wire::answered_within(&mut from, patience).await?;
                if answers.send(Came::Object { line, name, coded }).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    if let Err(error) = tokio::try_join!(asking, hearing) {
        let held = error.get_ref().and_then(|error| error.downcast_ref::<Held>()).copied();
        let _ = answers.send(Came::Lost { line, why: error.to_string(), held }).await;
    }
}

/// Keeps the directories of services that are written elsewhere at what is committed, and puts aside what was written here and never
/// was.
pub(super) async fn tend(shared: Arc<Shared>, engine: Engine) {
    let mut states = shared.parts.state.clone();
    let mut standings = engine.watch_standing();
    let mut tended: BTreeMap<ServiceName, Tended> = BTreeMap::new();
    let (sender, mut ended) = mpsc::channel::<(ServiceName, Duration, Result<(), Error>)>(8);
    loop {
        let state = states.borrow_and_update().clone();
        let standing = standings.borrow_and_update().clone();
        tended.retain(|name, it| it.under_way || state.services.contains_key(name));
        let mut wake = Duration::from_secs(60);
        for service in state.services.values() {
            let it = tended.entry(service.name.clone()).or_default();
            if !is_free(&shared.parts.node, &state, service, &standing, it) {
                continue;
            }
            let Some(wanted) = wanted(&shared.parts.node, service, it) else { continue };
            let left = it.next.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            if it.under_way || !left.is_zero() {
                wake = wake.min(left.max(Duration::from_millis(10)));
                continue;
            }
            it.under_way = true;
            it.shown = Some(wanted.clone());
            let (shared, state, name) = (Arc::clone(&shared), state.clone(), service.name.clone());
            let sender = sender.clone();
            shared.clone().tasks.spawn(async move {
                let began = Instant::now();
                let shown = shared.follow(state, &name, wanted).await;
                let _ = sender.send((name, began.elapsed(), shown)).await;
            });
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            Some((name, took, result)) = ended.recv() => {
                let it = tended.entry(name.clone()).or_default();
                it.under_way = false;
                it.next = Some(Instant::now() + SHOWN_EVERY.max(took * (SHOWN_SHARE - 1)));
                if let Err(error) = result {
                    tracing::warn!(service = %name, %error, "a copy is not shown yet");
                    it.shown = None;
                    it.next = Some(Instant::now() + AGAIN);
                }
            }
            () = shared.wanted.came.notified() => {}
            changed = states.changed() => if changed.is_err() { return },
            changed = standings.changed() => if changed.is_err() { return },
            () = sleep(wake) => {}
        }
    }
}

/// What is known of the directories of one service.
#[derive(Debug, Default)]
struct Tended {
    /// Index of the state that was the first to have no placement of it here.
    free_since: Option<u64>,
    /// What was done last.
    shown: Option<Follow>,
    under_way: bool,
    /// Not before this time.
    next: Option<Instant>,
}

/// What becomes of directories that no instance runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// They show this.
    Show(Shown),
    /// What was written in them is put aside, by the epoch of who writes now.
    PutAside(u64),
}

/// Nothing runs on its directories here, and nothing is about to.
fn is_free(node: &NodeId, state: &State, service: &Service, standing: &Standing, it: &mut Tended) -> bool {
    if service.home.as_ref() == Some(node) || service.placed_on(node).next().is_some() {
        it.free_since = None;
        it.shown = None;
        return false;
    }
    let since = *it.free_since.get_or_insert(state.applied);
    let Some(observed) = standing.observed.as_ref().filter(|_| standing.planned >= since) else { return false };
    let runs = observed.containers.iter().any(|container| container.service == service.name && container.is_running());
    let epochs: BTreeSet<u64> = service.placements.iter().map(|placement| placement.epoch).collect();
    !runs && standing.starting.is_disjoint(&epochs)
}

fn wanted(node: &NodeId, service: &Service, it: &Tended) -> Option<Follow> {
    let committed = service.data.committed.as_ref();
    let here = committed.map(|committed| Shown::on(committed, node)).filter(|shown| !shown.roots.is_empty());
    let follow = match here {
        Some(shown) => Follow::Show(shown),
        // Until it has a generation of who writes now, what was written here is put aside at least.
        None => Follow::PutAside(service.placements.iter().map(|placement| placement.epoch).max()?),
    };
    (it.shown.as_ref() != Some(&follow)).then_some(follow)
}

/// What a former service of the name left has to be deleted first, or what comes now would be deleted with it.
fn may_keep(state: &State, service: &ServiceName, node: &NodeId) -> bool {
    state.services.contains_key(service) && !state.must_purge(service, node)
}

impl Shared {
    /// Brings the directories of a service to where they belong, unless it has come back here meanwhile.
    async fn follow(self: &Arc<Self>, state: Arc<State>, service: &ServiceName, follow: Follow) -> Result<(), Error> {
        let _lock = self.directories.lock(service).await;
        {
            // An instance may have been placed here while the lock was waited for.
            let state = self.parts.state.borrow();
            let node = &self.parts.node;
            let here = |it: &Service| it.home.as_ref() == Some(node) || it.placed_on(node).next().is_some();
            if state.services.get(service).is_none_or(here) || state.must_purge(service, &self.parts.node) {
                return Ok(());
            }
        }
        self.begun.send_if_modified(|begun| begun.remove(service).is_some());
        let (shared, service) = (Arc::clone(self), service.clone());
        super::blocking(move || {
            let began = Instant::now();
            match follow {
                Follow::Show(shown) => {
                    let shown_now = shared.directories.show(&state, &service, &shown, clock::now())?;
                    if shown_now {
                        tracing::debug!(%service, generation = %shown.name, took = ?began.elapsed(), "a copy is shown");
                    }
                }
                Follow::PutAside(_) => shared.directories.put_aside(&state, &service, clock::now())?,
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;
    use flotilla_api::limit::{LimitNow, Rate};
    use flotilla_data::{
        Store,
        capture::{Capture, Scope},
    };
    use futures::future::BoxFuture;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        peers::{Handler, memory::Wires},
        volumes::limit::Limiter,
    };

    /// A machine that gives what its store has.
    #[derive(Clone)]
    struct Source {
        store: Store,
        limiter: Arc<Limiter>,
    }

    impl Handler for Source {
        fn call(&self, _: NodeId, _: Method, _: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
            Box::pin(async { Ok(Bytes::new()) })
        }

        fn stream(&self, _: NodeId, _: String, stream: Stream) -> BoxFuture<'static, ()> {
            let Self { store, limiter } = self.clone();
            Box::pin(async move { drop(wire::serve(&store, &limiter, stream, wire::Served::All).await) })
        }
    }

    /// Machines that have a volume of some megabytes, and one that fetches it.
    struct World {
        _directory: tempfile::TempDir,
        wires: Wires,
        network: Network,
        sources: Vec<(NodeId, Source)>,
        store: Store,
        generation: store::Generation,
    }

    const KEY: &str = "notes/board";

    impl World {
        fn new(limits: &[LimitNow]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let volume = directory.path().join("volume");
            fs::create_dir(&volume).unwrap();
            let noise = (0..100_000_u64).flat_map(|at| *Hash::of(&at.to_be_bytes()).as_bytes());
            fs::write(volume.join("file"), noise.collect::<Vec<u8>>()).unwrap();
            let wires = Wires::default();
            let network = wires.join(&NodeId("here".to_owned()));
            let mut generation = None;
            let source = |(number, limit): (usize, &LimitNow)| {
                let id = NodeId(format!("far-{number}"));
                let store = Store::open(&directory.path().join(&id.0)).unwrap();
                let captured = Capture::begin(&store, KEY, &volume).unwrap().finish(&Scope::Everything).unwrap();
                generation = Some(captured.commit(1, 1, 7).unwrap());
                let source = Source { store, limiter: Arc::default() };
                source.limiter.set(*limit);
                wires.join(&id);
                wires.serve(&id, Arc::new(source.clone()));
                (id, source)
            };
            let sources = limits.iter().enumerate().map(source).collect();
            let store = Store::open(&directory.path().join("here")).unwrap();
            Self { _directory: directory, wires, network, sources, store, generation: generation.unwrap() }
        }

        async fn fetch(&self, haste: &Haste) -> Result<Figures, Error> {
            let machines = self.sources.iter().map(|(id, _)| id);
            let mut lines = Lines::open(&self.network, machines, haste).await?;
            let (store, generation, runtime) = (self.store.clone(), self.generation, Handle::current());
            let work = move || {
                let fetch = lines.drive(Fetch::begin(&store, KEY, generation)?, &runtime, |_| {})?;
                let figures = fetch.figures();
                fetch.commit()?;
                Ok(figures)
            };
            timeout(Duration::from_secs(60), super::super::blocking(work)).await.expect("it takes far too long")
        }
    }

    fn limit(rate: Option<&str>, until: Option<&str>) -> LimitNow {
        let rate = rate.map(|rate| rate.parse().unwrap());
        LimitNow { rate, until: until.map(|until| until.parse().unwrap()) }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_can_wait_is_not_fetched_from_a_machine_that_sends_nothing_and_what_can_not_is() {
        let world = World::new(&[limit(Some("0"), Some("23:00"))]);
        let error = world.fetch(&Haste::in_advance()).await.unwrap_err();
        assert!(matches!(error, Error::Held(Held { until: Some(_) })), "{error:?}");
        assert!(error.to_string().ends_with("its limit holds copies back until 23:00"), "{error}");
        let figures = world.fetch(&Haste::awaited()).await.unwrap();
        assert!(figures.there == 3_200_000 && figures.of == figures.there, "{figures:?}");
        let sent = world.sources[0].1.limiter.sent();
        assert!(sent.in_advance == 0 && sent.at_once >= figures.bytes, "{sent:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_machine_gives_what_one_holds_back() {
        let world = World::new(&[limit(Some("0"), None), limit(None, None)]);
        let figures = world.fetch(&Haste::in_advance()).await.unwrap();
        let sent: Vec<u64> = world.sources.iter().map(|(_, source)| source.limiter.sent().in_advance).collect();
        assert!(sent[0] == 0 && sent[1] >= figures.bytes, "{sent:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_to_be_waited_for_is_hurried_on_its_way() {
        // It would take minutes.
        let world = World::new(&[limit(Some("10kB/s"), None)]);
        let (haste, limiter) = (Haste::in_advance(), Arc::clone(&world.sources[0].1.limiter));
        let hurried = haste.clone();
        let hurry = async move {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while limiter.sent().in_advance == 0 {
                looks.tick().await;
            }
            hurried.hurry();
        };
        let (figures, ()) = tokio::join!(world.fetch(&haste), hurry);
        let (figures, sent) = (figures.unwrap(), world.sources[0].1.limiter.sent());
        assert!(sent.at_once > sent.in_advance && sent.at_once + sent.in_advance >= figures.bytes, "{sent:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_limit_that_comes_to_nothing_ends_what_can_wait_and_what_came_is_kept() {
        let world = World::new(&[limit(Some("10kB/s"), None)]);
        let limiter = Arc::clone(&world.sources[0].1.limiter);
        let hold = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while limiter.sent().in_advance < 20_000 {
                looks.tick().await;
            }
            limiter.set(LimitNow { rate: Some(Rate::ZERO), until: None });
        };
        let haste = Haste::in_advance();
        let (fetched, ()) = tokio::join!(world.fetch(&haste), hold);
        assert!(matches!(fetched, Err(Error::Held(Held { until: None }))), "{fetched:?}");
        limiter.set(LimitNow::default());
        let rest = world.fetch(&Haste::in_advance()).await.unwrap();
        assert!(rest.objects < world.sources[0].1.store.count().unwrap(), "{rest:?}");
        world.wires.leave(&world.sources[0].0);
        let error = world.fetch(&Haste::awaited()).await.unwrap_err();
        assert!(matches!(error, Error::NoSource { .. }), "{error:?}");
    }

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut pace = Pace::begin(began);
        assert_eq!(pace.note(at(1), 1_000_000), 1_000_000);
        for second in 2..=10 {
            assert_eq!(pace.note(at(second), second * 1_000_000), 1_000_000);
        }
        let slower: Vec<u64> =
            (11..=70).map(|second| pace.note(at(second), 10_000_000 + (second - 10) * 100_000)).collect();
        assert!(slower.is_sorted_by(|a, b| a >= b), "{slower:?}");
        assert!((100_000..110_000).contains(slower.last().unwrap()), "{slower:?}");
        assert!(pace.note(at(71), 0) < 100_000, "less than before is nothing");
    }

    #[test]
    fn what_takes_long_is_told_of_until_it_ends() {
        let wanted = Wanted::default();
        let (service, volume): (ServiceName, VolumeName) = ("notes".parse().unwrap(), "board".parse().unwrap());
        let name = GenerationName { epoch: 3, sequence: 4 };
        let mut progress = Progress::begin(&wanted, &service, &volume, name);
        let figures = Figures { objects: 1, bytes: 10, there: 50, of: 200 };
        progress.reached(figures);
        assert!(wanted.watch().borrow().is_empty(), "it has only begun");
        progress.pace = Pace::begin(Instant::now().checked_sub(Duration::from_secs(2)).unwrap());
        progress.reached(figures);
        let told = wanted.watch().borrow().values().next().cloned().unwrap();
        assert_eq!((told.name, told.bytes, told.of), (name, 50, 200));
        assert!((20..=25).contains(&told.per_second), "{}", told.per_second);
        progress.reached(Figures { there: 100, ..figures });
        assert_eq!(wanted.watch().borrow().values().next().unwrap().bytes, 50, "not all the time");
        drop(progress);
        assert!(wanted.watch().borrow().is_empty());
    }
}
