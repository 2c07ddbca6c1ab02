//! The guard: knows until when which containers may run, and freezes them then.
//!
//! It is a process of its own (`flotilla guard`), in a session of its own, one for each data directory. It is told by the daemon
//! and does what it was told last, so that it makes no difference how the daemon ended, or whether it only hangs. It never thaws.
//!
//! It ends when it is told to, when its data directory is gone, or when there has been neither a daemon nor anything to guard for
//! a minute. Before the machine sleeps it freezes all that it guards, as if the deadline had passed: nothing of it shall run on when
//! the machine wakes, before anybody knows how long it has slept. SIGTERM makes it leave as soon as all that it guards is frozen, which a machine that shuts down waits for; SIGINT and
//! SIGHUP are for the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_core::lease::Mono;
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{setpriority_process, setsid},
};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{interval, timeout},
};

use super::{
    Error, Freezer, Frost, Target,
    alarm::Alarm,
    pause::Pauser,
    sleep::{self, Tell},
    wire::{self, Answer, Ask, Hold},
};
use crate::clock;

/// After the deadline what is frozen is looked at this often: somebody may thaw it by hand. Milliseconds.
const WATCH_EVERY_MS: u64 = 200;

/// A container that freezes is looked at this often. Milliseconds.
const FREEZING_EVERY_MS: u64 = 2;

/// A container that was announced may be just starting: its control group is waited for, this often and for so long. The engine's
/// runtime needs longer between making it and running the first instruction in it. Milliseconds.
const STARTING_EVERY_MS: u64 = 10;
const STARTING_MS: u64 = 180_000;

/// An unusual place is searched for this often. Milliseconds.
const SEARCH_EVERY_MS: u64 = 50;

/// The engine is asked again to pause a container only after this time. Milliseconds.
const PAUSE_AGAIN_MS: u64 = 1_000;

/// While the machine is about to sleep, what shall stand still is looked at this often. Milliseconds.
const BEDTIME_EVERY_MS: u64 = 10;

/// A machine that was about to sleep and has run for so long is awake, whatever was said: sleep does not count on this clock.
const BEDTIME_MAX: Duration = Duration::from_secs(60);

/// Whether it is still needed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const IDLE_MS: u64 = 60_000;

/// One daemon, and the one that takes over from it.
const CONNECTIONS_MAX: usize = 8;

/// What waits for the loop: one question of each connection.
const ASKS_MAX: usize = CONNECTIONS_MAX;

/// How long the last answer may take to be read.
const FAREWELL: Duration = Duration::from_millis(200);

/// More important than what it shall stop; not so much that it could hurt.
const PRIORITY: i32 = -15;

/// What the guard needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// An absolute path.
    pub data_dir: PathBuf,
    pub docker_host: Option<String>,
}

/// `flotilla guard`: runs until it is not needed any more.
///
/// # Errors
/// The data directory can't be used.
pub fn run(options: &Options) -> Result<(), Error> {
    // Away from the daemon's terminal and group, and from whatever directory it was started in.
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    // All three need rights, and are worth having without.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = setpriority_process(None, PRIORITY);
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_max_level(tracing::Level::INFO);
    let _ = log.try_init();
    block_on(options, true)
}

/// As a thread of another program; see [`super::Form::Thread`].
pub(super) fn run_in_thread(options: &Options) -> Result<(), Error> {
    block_on(options, false)
}

fn block_on(options: &Options, process: bool) -> Result<(), Error> {
    let failed = |source| Error::Io { operation: "guard", path: options.data_dir.clone(), source };
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let guarding = async {
        // Before anybody can know of it by its lock.
        let signals = if process { Some(Signals::new()?) } else { None };
        match lock(&options.data_dir)? {
            Some(lock) => Guard::new(options, lock).watch(signals).await,
            None => {
                tracing::info!("another guard is there already");
                Ok(())
            }
        }
    };
    runtime.block_on(guarding).map_err(failed)
}

/// `None` if another guard has it.
fn lock(data_dir: &Path) -> io::Result<Option<File>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(data_dir.join(wire::LOCK))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())?;
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

struct Guard {
    data_dir: PathBuf,
    lock: File,
    freezer: Freezer,
    pauser: Pauser,
    hold: Hold,
    /// Those that it froze.
    frozen: BTreeSet<String>,
    freezes: u64,
    trouble: Option<String>,
    searched: Mono,
    /// It was told of something since.
    to_search: bool,
    /// When it was told of a container that it had not known.
    told_of_new: Mono,
    /// Requests to the engine, and when each was made.
    pauses: JoinSet<(String, Result<bool, Error>)>,
    asked: BTreeMap<String, Mono>,
    /// Containers that the engine paused; the kernel need not show that.
    paused: BTreeSet<String>,
    /// When a daemon was there last.
    accompanied: Mono,
    leaving: bool,
    bedtime: Option<Bedtime>,
}

/// The machine is about to sleep, or does.
struct Bedtime {
    since: Mono,
    over: tokio::time::Instant,
    /// Keeps the machine awake until all stands still.
    lock: Option<OwnedFd>,
}

impl Guard {
    fn new(options: &Options, lock: File) -> Self {
        Self {
            data_dir: options.data_dir.clone(),
            lock,
            freezer: Freezer::detect(),
            pauser: Pauser::new(options.docker_host.as_deref()),
            hold: Hold::default(),
            frozen: BTreeSet::new(),
            freezes: 0,
            trouble: None,
            searched: Mono(0),
            to_search: false,
            told_of_new: Mono(0),
            pauses: JoinSet::new(),
            asked: BTreeMap::new(),
            paused: BTreeSet::new(),
            accompanied: clock::since_boot(),
            leaving: false,
            bedtime: None,
        }
    }

    /// Until it is not needed; with signals where it is a process of its own.
    async fn watch(mut self, mut signals: Option<Signals>) -> io::Result<()> {
        let listener = self.listen()?;
        let alarm = Alarm::new()?;
        let (asks, mut asked) = mpsc::channel(ASKS_MAX);
        let mut connections = JoinSet::new();
        let mut look = interval(LOOK_EVERY);
        let (tells, mut told) = mpsc::channel(sleep::TELLS_MAX);
        if signals.is_some() {
            tokio::spawn(sleep::listen(tells));
            // Only what is used: all of a program with the web app in it would be too much.
            let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
            tracing::info!(pid = std::process::id(), data_dir = %self.data_dir.display(), "guards");
        }
        loop {
            alarm.set(self.act(clock::since_boot()))?;
            tokio::select! {
                accepted = listener.accept() => if let Ok((stream, _)) = accepted && connections.len() < CONNECTIONS_MAX {
                    connections.spawn(converse(stream, asks.clone()));
                },
                Some((ask, reply)) = asked.recv() => {
                    let over = ask == Ask::End;
                    if over {
                        // Before the answer: whoever reads that may start the next guard.
                        self.give_up_the_place();
                    }
                    // Whoever asked may have gone meanwhile.
                    let _ = oneshot::Sender::send(reply, self.answer(ask));
                    if over {
                        let _ = timeout(FAREWELL, connections.join_next()).await;
                        tracing::info!("ends, as it was told to");
                        return Ok(());
                    }
                }
                Some(_) = connections.join_next() => {}
                Some(paused) = self.pauses.join_next() => if let Ok((container, result)) = paused {
                    self.paused(container, result);
                },
                rung = alarm.rings() => rung?,
                Some(tell) = told.recv() => self.sleep(tell),
                () = Signals::terminate(&mut signals) => {
                    tracing::info!("leaves as soon as nothing that it guards can run");
                    self.leaving = true;
                }
                _ = look.tick() => {}
            }
            if self.bedtime.as_ref().is_some_and(|bedtime| bedtime.over <= tokio::time::Instant::now()) {
                self.sleep(Tell::Over);
            }
            if let Some(why) = self.is_over(clock::since_boot(), connections.is_empty()) {
                tracing::info!("ends: {why}");
                self.give_up_the_place();
                return Ok(());
            }
        }
    }

    fn listen(&self) -> io::Result<UnixListener> {
        // Left by one that was killed.
        match fs::remove_file(self.data_dir.join(wire::SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (_directory, path) = wire::socket(&self.data_dir)?;
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    fn give_up_the_place(&self) {
        if self.has_the_place() {
            let _ = fs::remove_file(self.data_dir.join(wire::SOCKET));
        }
        let _ = self.lock.unlock();
    }

    /// The data directory may be gone, or another in its place.
    fn has_the_place(&self) -> bool {
        let ours = self.lock.metadata().map(|file| (file.dev(), file.ino()));
        let there = fs::metadata(self.data_dir.join(wire::LOCK)).map(|file| (file.dev(), file.ino()));
        matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
    }

    fn sleep(&mut self, tell: Tell) {
        match tell {
            Tell::Comes(lock) => {
                tracing::info!(guarded = self.hold.targets.len(), "the machine is about to sleep");
                let over = tokio::time::Instant::now() + BEDTIME_MAX;
                self.bedtime = Some(Bedtime { since: clock::since_boot(), over, lock: lock.map(OwnedFd::from) });
            }
            Tell::Over => {
                if let Some(bedtime) = self.bedtime.take() {
                    let ms = clock::since_boot().since(bedtime.since);
                    tracing::info!(ms, "the machine is awake");
                }
            }
        }
    }

    fn answer(&mut self, ask: Ask) -> Answer {
        if let Ask::Hold(hold) = ask {
            self.freezer.expect(hold.patterns.iter().cloned());
            let wanted = |container: &String| hold.targets.iter().any(|target| target.container == *container);
            self.paused.retain(wanted);
            self.asked.retain(|container, _| wanted(container));
            if self.bedtime.is_none() && hold.deadline.is_none_or(|deadline| deadline > clock::since_boot()) {
                self.trouble = None;
                // Only the daemon thaws; what it has thawed is not paused any more either.
                self.paused.clear();
            }
            if hold.targets.iter().any(|target| !self.hold.targets.contains(target)) {
                self.told_of_new = clock::since_boot();
            }
            self.to_search |= hold.targets != self.hold.targets || hold.deadline != self.hold.deadline;
            self.hold = hold;
        }
        let (freezer, paused) = (&self.freezer, &self.paused);
        self.frozen
            .retain(|container| matches!(freezer.frost(container), Ok(Frost::Frozen)) || paused.contains(container));
        Answer {
            version: wire::VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            deadline: self.hold.deadline,
            targets: self.hold.targets.clone(),
            frozen: self.frozen.clone(),
            freezes: self.freezes,
            trouble: self.trouble.clone(),
            asleep: self.bedtime.is_some(),
        }
    }

    /// Freezes what is due, and never waits. When to come back.
    fn act(&mut self, now: Mono) -> Option<Mono> {
        let next = self.freeze_what_is_due(now);
        if self.bedtime.is_none() {
            return next;
        }
        let still = |target: &Target| matches!(self.frost(&target.container), Frost::Frozen | Frost::Absent);
        let still = self.hold.deadline.is_none() || self.hold.targets.iter().all(still);
        if let Some(bedtime) = self.bedtime.as_mut().filter(|_| still)
            && let Some(lock) = bedtime.lock.take()
        {
            drop(lock);
            tracing::info!(ms = now.since(bedtime.since), "all that is guarded stands still; the machine may sleep");
        }
        next.map(|next| next.min(now.plus(BEDTIME_EVERY_MS)))
    }

    /// The guarded may run until then.
    fn deadline(&self) -> Option<Mono> {
        let deadline = self.hold.deadline?;
        Some(self.bedtime.as_ref().map_or(deadline, |bedtime| deadline.min(bedtime.since)))
    }

    fn freeze_what_is_due(&mut self, now: Mono) -> Option<Mono> {
        let deadline = self.deadline().filter(|_| !self.hold.targets.is_empty())?;
        if now < deadline {
            return Some(deadline);
        }
        let late = now.since(deadline);
        // A container starts after it was announced, however long ago the deadline was.
        let may_be_starting = late.min(now.since(self.told_of_new)) < STARTING_MS;
        // A daemon without a lease tells of what has run for long, and the deadline is as old as the machine.
        let searching = (may_be_starting || self.to_search) && now.since(self.searched) >= SEARCH_EVERY_MS;
        if searching {
            self.searched = now;
            self.to_search = false;
        }
        let mut next = now.plus(WATCH_EVERY_MS);
        let containers: Vec<String> = self.hold.targets.iter().map(|target| target.container.clone()).collect();
        for container in containers {
            if searching {
                self.freezer.search(&container);
            }
            let again = match self.freezer.frost(&container) {
                Ok(Frost::Frozen) => {
                    self.froze(&container, late);
                    None
                }
                Ok(Frost::Thawed | Frost::Freezing) => match self.freezer.begin(&container) {
                    Ok(_) => Some(FREEZING_EVERY_MS),
                    Err(error) => self.fall_back(now, container, Some(&error)),
                },
                Ok(Frost::Absent) if self.pauser.is_needed() => self.fall_back(now, container, None),
                Ok(Frost::Absent) => may_be_starting.then_some(STARTING_EVERY_MS),
                Err(error) => self.fall_back(now, container, Some(&error)),
            };
            next = again.map_or(next, |again| next.min(now.plus(again)));
        }
        Some(next)
    }

    fn froze(&mut self, container: &str, late_ms: u64) {
        if self.frozen.insert(container.to_owned()) {
            self.freezes += 1;
            match self.bedtime {
                Some(_) => tracing::info!(container, late_ms, "froze it before the machine sleeps"),
                None => tracing::warn!(container, late_ms, "froze it: the deadline has passed"),
            }
        }
    }

    /// Asks the engine where the kernel does not let us.
    fn fall_back(&mut self, now: Mono, container: String, error: Option<&Error>) -> Option<u64> {
        if let Some(error) = error {
            self.trouble = Some(error.to_string());
        }
        let asked = self.asked.get(&container).is_some_and(|at| now.since(*at) < PAUSE_AGAIN_MS);
        if !asked && !self.paused.contains(&container) {
            self.asked.insert(container.clone(), now);
            let pauser = self.pauser.clone();
            self.pauses.spawn(async move {
                let result = pauser.pause(&container).await;
                (container, result)
            });
        }
        None
    }

    fn paused(&mut self, container: String, result: Result<bool, Error>) {
        match result {
            Ok(true) => {
                self.trouble = None;
                let late = self.deadline().map_or(0, |deadline| clock::since_boot().since(deadline));
                self.froze(&container, late);
                self.paused.insert(container);
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(container, %error, "could not freeze a container");
                self.trouble = Some(error.to_string());
            }
        }
    }

    /// Why it is not needed any more, if so.
    fn is_over(&mut self, now: Mono, alone: bool) -> Option<&'static str> {
        if !alone {
            self.accompanied = now;
        }
        if !self.has_the_place() {
            return Some("the data directory is gone");
        }
        let live = || self.hold.targets.iter().filter(|target| self.frost(&target.container) != Frost::Absent);
        let idle = self.hold.deadline.is_none() || live().next().is_none();
        if self.leaving {
            let passed = self.hold.deadline.is_some_and(|deadline| deadline <= now);
            let harmless = passed && live().all(|target| self.frost(&target.container) == Frost::Frozen);
            return (idle || harmless).then_some("it was asked to leave, and nothing that it guards can run");
        }
        (alone && idle && now.since(self.accompanied) >= IDLE_MS).then_some("there is nothing to guard, and no daemon")
    }

    /// What can't be known counts as running.
    fn frost(&self, container: &str) -> Frost {
        if self.paused.contains(container) {
            return Frost::Frozen;
        }
        match self.freezer.frost(container) {
            Ok(Frost::Absent) if self.pauser.is_needed() => Frost::Thawed,
            Ok(frost) => frost,
            Err(_) => Frost::Thawed,
        }
    }
}

async fn converse(stream: UnixStream, asks: mpsc::Sender<(Ask, oneshot::Sender<Answer>)>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    while let Ok(Some(ask)) = wire::read::<Ask>(&mut reader).await {
        let (reply, answer) = oneshot::channel();
        if asks.send((ask, reply)).await.is_err() {
            return;
        }
        let Ok(answer) = answer.await else { return };
        let Ok(line) = wire::line(&answer) else { return };
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// Once listened for, a signal no longer ends the process.
struct Signals {
    terminate: Signal,
    _ignored: [Signal; 3],
}

impl Signals {
    fn new() -> io::Result<Self> {
        let ignored = [SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
        let [interrupt, hangup, quit] = ignored.map(signal);
        Ok(Self { terminate: signal(SignalKind::terminate())?, _ignored: [interrupt?, hangup?, quit?] })
    }

    async fn terminate(signals: &mut Option<Self>) {
        match signals {
            Some(signals) => drop(signals.terminate.recv().await),
            None => std::future::pending().await,
        }
    }
}
