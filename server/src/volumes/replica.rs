//! What other machines write: fetched, kept, and shown by this machine's directories, so that an instance finds it there.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use flotilla_api::{ApiError, ErrorCode, NodeId, ServiceName, VolumeName};
use flotilla_core::{
    State,
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
    sync::{Notify, Semaphore, mpsc},
    time::sleep,
};

use super::{
    Error, Shared, layout, name_of,
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

const HOLDS_WITHIN: Duration = Duration::from_secs(5);

/// A service's directories are brought to what is committed at most this often; before an instance runs they are in any case.
const SHOWN_EVERY: Duration = Duration::from_secs(2);

/// The same for one whose last time took long: it takes at most this part of the time.
const SHOWN_SHARE: u32 = 10;

/// After an attempt that failed.
const AGAIN: Duration = Duration::from_secs(10);

/// What was offered, and what is being fetched.
#[derive(Debug)]
pub(super) struct Wanted {
    offers: Mutex<BTreeMap<ServiceName, Wish>>,
    fetches: Semaphore,
    /// A generation has come.
    came: Notify,
}

/// One service's.
#[derive(Debug)]
struct Wish {
    /// The newest that nobody fetches yet.
    next: Option<(NodeId, Offer)>,
    /// What is being fetched.
    current: Option<GenerationName>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { offers: Mutex::default(), fetches: Semaphore::new(FETCHES_AT_ONCE), came: Notify::new() }
    }
}

impl Wanted {
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
    if wish.current != Some(offer.name) {
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
                wish.current = wish.next.as_ref().map(|(_, offer)| offer.name);
                wish.next.take()
            });
            if next.is_none() {
                offers.remove(&service);
            }
            next
        };
        let Some((from, offer)) = next else { return };
        let fetched = tokio::select! {
            () = stop.cancelled() => return,
            fetched = fetch(&shared, &from, &offer) => fetched,
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
            Err(error) => tracing::warn!(%service, generation = %offer.name, %error, "a generation was not fetched"),
        }
    }
}

/// Fetches a generation, first of all from this machine.
pub(super) async fn fetch(shared: &Arc<Shared>, from: &NodeId, offer: &Offer) -> Result<Figures, Error> {
    let _turn = shared.wanted.fetches.acquire().await.map_err(|_| Error::Stopped)?;
    let connected = shared.parts.network.connected().borrow().clone();
    let others = offer.holders.iter().filter(|id| *id != from && **id != shared.parts.node && connected.contains(*id));
    let mut lines = Lines::open(&shared.parts.network, std::iter::once(from).chain(others)).await?;
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
        let (fetch, back) = super::blocking(move || {
            let fetch = lines.drive(Fetch::begin(&store, &key, generation)?, &runtime, |_| {})?;
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
        shared.counters.fetched(fetch(shared, &machine, &offer).await?);
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
}

struct Line {
    machine: NodeId,
    names: mpsc::Sender<Vec<Hash>>,
    asked: HashSet<Hash>,
}

impl Line {
    /// Asks over a stream, for the line with this number.
    fn over(line: usize, machine: NodeId, stream: Stream, answers: mpsc::Sender<Came>) -> Self {
        let (names, asked) = mpsc::channel(ASKED_MAX / NAMES_MAX + 1);
        tokio::spawn(carry(line, stream, asked, answers));
        Self { machine, names, asked: HashSet::new() }
    }
}

/// Further connections to machines that were reached.
struct More {
    network: Network,
    machines: Vec<NodeId>,
    answers: mpsc::Sender<Came>,
}

impl More {
    /// Over a slow line that takes as long as fetching some megabytes does.
    async fn make(self) {
        let count = self.machines.len();
        for (line, machine) in (count..LINES_MAX).zip(self.machines.iter().cycle()) {
            match self.network.stream_beside(machine, wire::LABEL, line / count).await {
                Ok(stream) => {
                    let one = Line::over(line, machine.clone(), stream, self.answers.clone());
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
    pub(crate) async fn open(network: &Network, machines: impl Iterator<Item = &NodeId>) -> Result<Self, Error> {
        let (sender, answers) = mpsc::channel(2 * NAMES_MAX);
        let (mut lines, mut reached, mut why) = (Vec::new(), Vec::new(), String::new());
        for machine in machines.take(SOURCES_MAX) {
            match network.stream(machine, wire::LABEL).await {
                Ok(stream) => {
                    lines.push(Some(Line::over(lines.len(), machine.clone(), stream, sender.clone())));
                    reached.push(machine.clone());
                }
                Err(error) => why = error.to_string(),
            }
        }
        if lines.is_empty() {
            return Err(Error::NoSource { why });
        }
        let more = More { network: Arc::clone(network), machines: reached, answers: sender };
        Ok(Self { lines, answers, more: Some(more), why })
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
        let mut saved = 0;
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
                    Error::NoSource { why: self.why.clone() }
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
                Some(Came::Lost { line, why }) => self.lose(line, why, &mut fetch),
                // They come in the order of their numbers.
                Some(Came::Line(line)) => self.lines.push(Some(line)),
                None => return Err(Error::NoSource { why: self.why.clone() }),
            }
            told(fetch.figures());
            if fetch.figures().bytes - saved >= SAVED_EVERY {
                saved = fetch.figures().bytes;
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
async fn carry(line: usize, stream: Stream, mut asked: mpsc::Receiver<Vec<Hash>>, answers: mpsc::Sender<Came>) {
    let (mut from, mut to): (ReadHalf<Stream>, WriteHalf<Stream>) = tokio::io::split(stream);
    let (expected_sender, mut expected) = mpsc::channel::<Vec<Hash>>(ASKED_MAX / NAMES_MAX + 2);
    let asking = async {
        while let Some(names) = asked.recv().await {
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
                let coded = wire::answered(&mut from).await?;
                if answers.send(Came::Object { line, name, coded }).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    if let Err(error) = tokio::try_join!(asking, hearing) {
        let _ = answers.send(Came::Lost { line, why: error.to_string() }).await;
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
