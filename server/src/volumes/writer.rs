//! What is written here under one epoch: watched, captured, offered to the machines that shall have it, and committed. When, is decided
//! by `flotilla_core::replication`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use flotilla_api::{NodeId, ServiceName, UnixMillis, VolumeName, spec::VolumeRules};
use flotilla_core::{
    CommandV1, State,
    lease::Mono,
    reconcile::Observed,
    replication::{Commit, Offers, Pace, Replicas, Terms, Writer},
    report::{CopyReport, DataReport},
    state::{Copies, Generation, GenerationName, Phase, Placement, Service},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    Error, Shared,
    capture::{Job, Made},
    directories::Beginning,
    hooks::Hooks,
    import::Tree,
    layout,
    mapped::Mapped,
    record::Shown,
    watched::Watched,
    wire::{self, Offer, Offered},
};
use crate::{
    clock,
    engine::{Engine, Standing},
    peers::Method,
};

/// Words that may wait to be heard.
const WORDS_MAX: usize = 256;

const OFFER_WITHIN: Duration = Duration::from_secs(5);

/// Everything is looked at this often, whatever a watch tells: it makes exceptions (`flotilla_data::watch`).
const RESCAN: Duration = Duration::from_secs(600);

/// The same where the kernel can't watch a volume.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(10);

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a writer is told.
#[derive(Debug)]
pub(super) enum Word {
    Changed,
    Holds {
        machine: NodeId,
        sequence: u64,
        /// When it gave up a copy last, as it knows.
        dropped: Option<u64>,
    },
    /// How long it took to read, without the disk that was waited for; and what is to be told of it, though it was made.
    Captured {
        result: Result<Option<Made>, Error>,
        took: Duration,
        remark: Option<String>,
    },
    Committed {
        commit: Commit,
        taken: bool,
    },
    Adopt(Adoption),
}

/// Volumes that become something else in the next generation.
#[derive(Debug)]
pub(super) struct Adoption {
    pub(super) trees: BTreeMap<VolumeName, Tree>,
    /// The generation; `None` where there is another adoption under way.
    pub(super) answer: oneshot::Sender<Option<GenerationName>>,
}

/// Takes what other tasks say.
pub(super) type Words = mpsc::Sender<Word>;

struct Task {
    shared: Arc<Shared>,
    engine: Engine,
    service: ServiceName,
    epoch: u64,
    writer: Writer,
    words: Words,
    watched: BTreeMap<VolumeName, Arc<Watched>>,
    offers: Offers,
    /// What may be offered, or committed.
    made: BTreeMap<u64, Made>,
    /// The newest that the log has.
    committed: u64,
    committing: bool,
    adopts: Option<Adoption>,
    /// The capture that is under way has it.
    adopting: bool,
    /// Whoever brought volumes waits until this generation is committed.
    awaited: u64,
    scanned: Instant,
    mapped: Mapped,
    looked: Instant,
    changed_at: Option<UnixMillis>,
    problem: Option<String>,
    /// The last generation is committed, and the directories are known to show it.
    rests: bool,
}

/// Until the placement of this epoch is gone. False where it can't be looked after now.
pub(super) async fn run(shared: Arc<Shared>, engine: Engine, service: ServiceName, epoch: u64) -> bool {
    let (words, mut heard) = mpsc::channel(WORDS_MAX);
    let pace = {
        let state = shared.parts.state.borrow();
        let any = |asks: fn(&VolumeRules) -> bool| {
            state.services.get(&service).is_some_and(|it| it.spec().written().any(|mount| asks(&mount.rules)))
        };
        Pace { sync: any(|rules| rules.sync), hooked: any(|rules| !rules.hooks.is_empty()) }
    };
    let found = async {
        shared.recall(&service).await?;
        let (shared, service) = (Arc::clone(&shared), service.clone());
        super::blocking(move || shared.directories.newest_of(&service, epoch)).await
    };
    let newest = match found.await {
        Ok(newest) => newest,
        Err(error) => {
            tracing::error!(%service, %error, "the generations of a service can't be read");
            return false;
        }
    };
    let writer = Writer::new(shared.parts.node.clone(), pace, newest, clock::since_boot());
    shared.writers().insert(epoch, words.clone());
    let mut task = Task {
        shared: Arc::clone(&shared),
        engine,
        service,
        epoch,
        writer,
        words,
        watched: BTreeMap::new(),
        offers: Offers::default(),
        made: BTreeMap::new(),
        committed: 0,
        committing: false,
        adopts: None,
        adopting: false,
        awaited: 0,
        scanned: Instant::now(),
        mapped: Mapped::default(),
        looked: Instant::now(),
        changed_at: None,
        problem: None,
        rests: false,
    };
    task.serve(&mut heard).await;
    shared.writers().remove(&epoch);
    shared.reports.send_if_modified(|reports| match reports.get(&task.service) {
        Some(report) if report.epoch == epoch => reports.remove(&task.service).is_some(),
        _ => false,
    });
    task.pin(BTreeSet::clear);
    true
}

impl Task {
    async fn serve(&mut self, heard: &mut mpsc::Receiver<Word>) {
        let mut states = self.shared.parts.state.clone();
        let mut standings = self.engine.watch_standing();
        let mut begun = self.shared.begun.subscribe();
        let mut connected = self.shared.parts.network.connected();
        let stop = self.shared.stop.clone();
        loop {
            let state = states.borrow_and_update().clone();
            let standing = standings.borrow_and_update().clone();
            begun.borrow_and_update();
            let placed = state.placement(self.epoch).filter(|(_, it)| it.machine == self.shared.parts.node);
            let Some((service, placement)) = placed else { return };
            let wake = match self.step(&state, service, placement, &standing).await {
                Ok(wake) => wake,
                Err(error) => {
                    self.trouble(&error);
                    LOOK_EVERY
                }
            };
            self.tell();
            tokio::select! {
                () = stop.cancelled() => return,
                Some(word) = heard.recv() => {
                    self.hear(word);
                    while let Ok(word) = heard.try_recv() {
                        self.hear(word);
                    }
                }
                changed = states.changed() => if changed.is_err() { return },
                changed = standings.changed() => if changed.is_err() { return },
                changed = begun.changed() => if changed.is_err() { return },
                changed = connected.changed() => if changed.is_err() { return },
                () = sleep(wake.min(LOOK_EVERY)) => {}
            }
        }
    }

    fn trouble(&mut self, error: &Error) {
        let sentence = error.to_string();
        if self.problem.as_ref() != Some(&sentence) {
            tracing::warn!(service = %self.service, %error, "the data of a service is not copied");
            self.problem = Some(sentence);
        }
    }

    /// When to look again, even if nothing happens.
    async fn step(
        &mut self,
        state: &Arc<State>,
        service: &Service,
        placement: &Placement,
        standing: &Standing,
    ) -> Result<Duration, Error> {
        let ended = has_ended(placement, standing);
        let committed = service.data.committed.as_ref().filter(|it| it.name.epoch == self.epoch);
        let begun = self.shared.begun.borrow().get(&self.service).copied() == Some(self.epoch);
        if !begun {
            if !ended || committed.is_some_and(|committed| committed.last) {
                // Its directories are not its own before its instance begins.
                return Ok(LOOK_EVERY);
            }
            // One that was told to end before it ever ran has nothing to add, and says so under its own epoch.
            let beginning = placement.source.map_or(Beginning::AsItIs, Beginning::With);
            let ready = self.shared.ready(state.clone(), &self.service, self.epoch, beginning).await;
            match (ready, &service.data.committed) {
                // An earlier state was asked for that nobody has any more: what is committed is as good, or nobody could come after it.
                (Err(Error::NotHere { .. }), Some(committed)) if placement.source != Some(committed.name) => {
                    let beginning = Beginning::With(committed.name);
                    self.shared.ready(state.clone(), &self.service, self.epoch, beginning).await?;
                }
                (ready, _) => ready?,
            }
            drop(self.shared.begins(&self.service, self.epoch).await?);
        }
        self.watch(service, placement).await?;
        for machine in self.offers.follow(&service.data.dropped) {
            self.writer.dropped(&machine);
        }
        let now = clock::since_boot();
        if ended {
            self.writer.ended(now);
        }
        if let Some(committed) = committed {
            self.committed(committed).await?;
        }
        let wanted: BTreeSet<NodeId> =
            service.data.replicas.iter().filter(|id| **id != self.shared.parts.node).cloned().collect();
        let lost = |id: &&NodeId| state.machines.get(*id).is_none_or(|machine| machine.lost_at.is_some());
        let replicas = Replicas { lost: wanted.iter().filter(lost).cloned().collect(), wanted };
        let orders = self.writer.orders(now, &replicas);
        if orders.capture {
            let hooks = if ended { Hooks::default() } else { Hooks::of(service.spec_of(placement.revision)) };
            self.capture(hooks);
        }
        if let Some(commit) = orders.commit.filter(|_| !self.committing) {
            self.commit(state, commit);
        }
        self.offer(service, placement, &replicas.wanted);
        Ok(orders.wake_at.map_or(LOOK_EVERY, |at| Duration::from_millis(at.since(now).max(1))))
    }

    fn hear(&mut self, word: Word) {
        let now = clock::since_boot();
        match word {
            Word::Changed => self.changed(now),
            Word::Holds { machine, sequence, dropped } => {
                if self.offers.held(&machine, sequence, dropped) {
                    self.writer.held(&machine, sequence);
                }
            }
            Word::Adopt(adoption) => {
                if self.adopts.is_some() {
                    let _ = adoption.answer.send(None);
                } else {
                    self.adopts = Some(adoption);
                    self.changed(now);
                }
            }
            Word::Captured { result, took, remark } => {
                let adopted = if std::mem::take(&mut self.adopting) { self.adopts.take() } else { None };
                if let (Some(Adoption { answer, .. }), Ok(made)) = (adopted, &result) {
                    let before = self.made.keys().next_back().copied().unwrap_or_default();
                    self.awaited = made.as_ref().map_or(before, |made| made.name.sequence);
                    let newest = self.made.values().next_back().map(|made| made.name);
                    let _ = answer.send(made.as_ref().map(|made| made.name).or(newest));
                }
                let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                if result.is_ok() {
                    self.problem = remark;
                    if self.watched.values().all(|watched| watched.is_quiet()) {
                        self.changed_at = None;
                        self.writer.is_seen();
                    } else {
                        // Whoever looks takes the news, and tells them.
                        self.changed(now);
                    }
                }
                match result {
                    Ok(Some(made)) => {
                        tracing::debug!(service = %self.service, generation = %made.name, took, held = ?made.held, "captured");
                        let sequence = self.writer.captured(now, took);
                        self.made.insert(sequence, made);
                        self.offers.made(sequence);
                        self.made.retain(|sequence, _| self.offers.knows(*sequence));
                        self.shared.history.notify_one();
                    }
                    Ok(None) => self.writer.unchanged(now, took),
                    Err(error) => {
                        self.trouble(&error);
                        self.watched.values().for_each(|watched| watched.doubt());
                        self.writer.failed(now, took);
                    }
                }
            }
            Word::Committed { commit, taken } => {
                self.committing = false;
                if taken {
                    self.writer.committed(&commit);
                }
            }
        }
    }

    fn changed(&mut self, now: Mono) {
        self.changed_at.get_or_insert_with(clock::now);
        self.writer.changed(now);
    }

    /// Watches what the specification that runs writes.
    async fn watch(&mut self, service: &Service, placement: &Placement) -> Result<(), Error> {
        let spec = service.spec_of(placement.revision);
        let volumes: BTreeMap<&VolumeName, &String> =
            spec.written().map(|mount| (&mount.volume, &mount.target)).collect();
        self.watched.retain(|volume, _| volumes.contains_key(volume));
        for (volume, target) in volumes {
            let directory = layout::directory(&self.shared.parts.data_dir, &self.service, volume);
            if self.watched.contains_key(volume) || !directory.is_dir() {
                continue;
            }
            let words = self.words.clone();
            let changed = move || drop(words.try_send(Word::Changed));
            let (runtime, target) = (tokio::runtime::Handle::current(), PathBuf::from(target));
            let watched = super::blocking(move || Ok(Watched::begin(directory, target, &runtime, changed))).await?;
            self.watched.insert(volume.clone(), Arc::new(watched));
            self.changed(clock::since_boot());
        }
        let told = self.watched.values().all(|watched| watched.is_told());
        if self.scanned.elapsed() > if told { RESCAN } else { RESCAN_UNWATCHED } {
            self.scanned = Instant::now();
            self.watched.values().for_each(|watched| watched.doubt());
            self.changed(clock::since_boot());
        }
        self.look_at_mapped().await
    }

    async fn look_at_mapped(&mut self) -> Result<(), Error> {
        if self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        let (mut mapped, volumes) = (std::mem::take(&mut self.mapped), self.watched.clone());
        let (fence, epoch) = (self.shared.parts.fence.clone(), self.epoch);
        let looked = super::blocking(move || {
            let changed = mapped.look(|| fence.processes(epoch), &volumes);
            Ok((mapped, changed))
        });
        let changed;
        (self.mapped, changed) = looked.await?;
        if changed {
            self.changed(clock::since_boot());
        }
        Ok(())
    }

    /// The log has a generation of this epoch.
    async fn committed(&mut self, committed: &Generation) -> Result<(), Error> {
        let holders = committed.volumes.values().flat_map(|copies| &copies.holders).cloned().collect();
        let commit = Commit { sequence: committed.name.sequence, last: committed.last, holders };
        self.committed = committed.name.sequence;
        self.writer.committed(&commit);
        if self.writer.is_settled() && !self.rests {
            let (shared, service, shown) = (Arc::clone(&self.shared), self.service.clone(), Shown::of(committed));
            let _lock = self.shared.directories.lock(&self.service).await;
            super::blocking(move || shared.directories.rests(&service, shown)).await?;
            self.rests = true;
        }
        Ok(())
    }

    fn capture(&mut self, hooks: Hooks) {
        self.adopting = self.adopts.is_some();
        let job = Job {
            adopts: self.adopts.as_ref().map(|adoption| adoption.trees.clone()).unwrap_or_default(),
            shared: Arc::clone(&self.shared),
            service: self.service.clone(),
            name: GenerationName { epoch: self.epoch, sequence: self.writer.next_sequence() },
            watched: self.watched.clone(),
            newest: self.made.values().next_back().cloned(),
            changed_at: self.changed_at.take().unwrap_or_else(clock::now),
        };
        let (words, engine, service) = (self.words.clone(), self.engine.clone(), self.service.clone());
        self.shared.tasks.spawn(async move {
            let began = Instant::now();
            let before = hooks.before(&engine, &service).await;
            let mut took = Duration::ZERO;
            let hooked = began.elapsed();
            let result = job.run(&mut took).await;
            let after = hooks.after(&engine, &service).await;
            let _ = words.send(Word::Captured { result, took: took + hooked, remark: before.or(after) }).await;
        });
    }

    fn commit(&mut self, state: &State, commit: Commit) {
        let Some(made) = self.made.get(&commit.sequence) else { return };
        let volumes = made.volumes.iter().map(|(volume, (root, totals))| {
            let has = |machine: &&NodeId| {
                let here = **machine == self.shared.parts.node;
                (here || self.offers.has(machine, commit.sequence, volume)) && state.machines.contains_key(*machine)
            };
            let holders = commit.holders.iter().filter(has).cloned().collect();
            (volume.clone(), Copies { root: root.to_string(), bytes: totals.bytes, holders })
        });
        let (name, taken_at) = (made.name, made.taken_at);
        let generation = Generation { name, taken_at, last: commit.last, volumes: volumes.collect() };
        let command = CommandV1::CommitGenerations {
            machine: self.shared.parts.node.clone(),
            generations: BTreeMap::from([(self.service.clone(), generation)]),
            seen: state.applied,
        };
        self.committing = true;
        let (proposer, words) = (Arc::clone(&self.shared.parts.proposer), self.words.clone());
        tokio::spawn(async move {
            let proposed = proposer.propose(command).await;
            if let Err(error) = &proposed {
                tracing::debug!(%error, "a generation was not committed");
                // It is asked for again soon; not at once.
                sleep(Duration::from_millis(200)).await;
            }
            let _ = words.send(Word::Committed { commit, taken: proposed.is_ok() }).await;
        });
    }

    /// Tells other machines what they shall have.
    fn offer(&mut self, service: &Service, placement: &Placement, wanted: &BTreeSet<NodeId>) {
        let network = Arc::clone(&self.shared.parts.network);
        let state = self.shared.parts.state.borrow().clone();
        let terms = Terms {
            now: clock::since_boot(),
            wanted,
            reached: &network.connected().borrow().clone(),
            committed: self.committed,
            // Its successor waits for all that it wrote; whoever brought volumes for what they brought.
            awaited: placement.phase == Phase::Vacating || self.awaited > self.committed,
            held_back: self.shared.limiter.watch().borrow().holds_back(),
        };
        let made = &self.made;
        let shall_have = |machine: &NodeId, volume: &VolumeName| {
            let mut mounts = service.spec().written().filter(|mount| mount.volume == *volume);
            mounts.any(|mount| service.keepers(&state, mount).contains(&machine))
        };
        let due = self.offers.due(&terms, |machine, sequence| {
            let Some(made) = made.get(&sequence) else { return BTreeSet::new() };
            // The rules may be newer than what was made.
            let may_have = |volume: &VolumeName| !state.stores_only(machine) || made.sealed.contains(volume);
            made.volumes.keys().filter(|volume| shall_have(machine, volume) && may_have(volume)).cloned().collect()
        });
        for flotilla_core::replication::Offer { machine, sequence, volumes, awaited } in due {
            let Some(made) = self.made.get(&sequence) else { continue };
            let holders =
                self.offers.copies().filter(|(_, copy)| *copy == sequence).map(|(id, _)| id.clone()).collect();
            let root = |volume: &VolumeName| Some((volume.clone(), made.volumes.get(volume)?.0.to_string()));
            let offer = Offer {
                service: self.service.clone(),
                name: made.name,
                taken_at: made.taken_at,
                volumes: volumes.iter().filter_map(root).collect(),
                holders,
                awaited,
            };
            let Ok(body) = wire::write(&offer) else { continue };
            let asked = network.call(&machine, Method::Offer, body, OFFER_WITHIN);
            let words = self.words.clone();
            tokio::spawn(async move {
                let answer = match asked.await {
                    Ok(answer) => wire::read::<Offered>(&answer),
                    Err(error) => return tracing::debug!(%machine, %error, "an offer was not taken"),
                };
                if let Ok(Offered { held: true, dropped }) = answer {
                    let _ = words.send(Word::Holds { machine, sequence, dropped }).await;
                }
            });
        }
        let name = |sequence| GenerationName { epoch: self.epoch, sequence };
        let offered: BTreeSet<GenerationName> = self.offers.sequences().into_iter().map(name).collect();
        self.pin(|pinned| *pinned = offered);
    }

    /// Generations that must not be forgotten yet.
    fn pin(&self, change: impl FnOnce(&mut BTreeSet<GenerationName>)) {
        let mut offered = self.shared.offered.lock().unwrap_or_else(PoisonError::into_inner);
        change(offered.entry(self.service.clone()).or_default());
        offered.retain(|_, pinned| !pinned.is_empty());
    }

    /// How it does, for people.
    fn tell(&self) {
        let newest = self.made.values().next_back();
        let copy = |(machine, sequence): (&NodeId, u64)| {
            let made = self.made.get(&sequence)?;
            let behind = newest.map_or(0, |newest| newest.fresh - made.fresh);
            Some((machine.clone(), CopyReport { name: made.name, taken_at: made.taken_at, behind_bytes: behind }))
        };
        let waits = self.made.range(self.committed + 1..).next().map(|(_, made)| made.changed_at);
        let report = DataReport {
            epoch: self.epoch,
            captured: newest.map(|made| CopyReport { name: made.name, taken_at: made.taken_at, behind_bytes: 0 }),
            uncommitted_since: waits.or(self.changed_at),
            held_ms: newest.map_or(0, |made| u64::try_from(made.held.as_millis()).unwrap_or(u64::MAX)),
            copies: self.offers.copies().filter_map(copy).collect(),
            problem: self.problem.clone(),
        };
        self.shared.reports.send_if_modified(|reports| {
            let changed = reports.get(&self.service) != Some(&report);
            if changed {
                reports.insert(self.service.clone(), report);
            }
            changed
        });
    }
}

/// Does nothing of this placement run any more, for certain, and will nothing?
fn has_ended(placement: &Placement, standing: &Standing) -> bool {
    let runs = |observed: &Arc<Observed>| {
        observed.containers.iter().any(|container| container.epoch == placement.epoch && container.is_running())
    };
    placement.phase == Phase::Vacating
        && standing.planned >= placement.index
        && !standing.starting.contains(&placement.epoch)
        && standing.observed.as_ref().is_some_and(|observed| !runs(observed))
}
