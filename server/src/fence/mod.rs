//! Fencing: what could write a volume stands still before this machine's lease ends, whatever happens to the daemon.
//!
//! Three parts. The [`Freezer`] stops all processes of a container through the kernel, without the container engine, which may
//! hang. The *guard* is a small process beside the daemon that knows until when which containers may run, and freezes them then,
//! also when the daemon was killed, hangs, or was stopped. [`Fence`] is the daemon's end of both.
//!
//! The guard is told of a container before it is started. A restarted daemon takes the deadline over from the guard that its
//! predecessor left. While no deadline is set (a cluster of one or two machines has nobody who could take over) there is no guard.

mod alarm;
mod freezer;
pub mod guard;
mod hold;
mod link;
mod pause;
mod sleep;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use flotilla_api::{ApiError, ErrorCode, UnixMillis};
use flotilla_core::lease::Mono;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use freezer::{Freezer, Frost, Version};
pub use hold::Held;
use link::Link;
use pause::Pauser;
use wire::{Answer, Hold};

use crate::clock;

/// How long it may take until the guard knows of something. It answers within a millisecond; a new one is there in 50 ms.
const GUARD_PATIENCE: Duration = Duration::from_secs(1);

/// For how long a container that was announced is guarded though nobody has seen it run: as long as a start may take, and some.
const ANNOUNCED_FOR: Duration = Duration::from_secs(180);

/// Why something was not frozen, thawed or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this node may not freeze containers (`{}`); run it as root, or it depends on Docker Engine for that", path.display())]
    Denied { path: PathBuf },
    #[error("container {container} did not freeze within {} ms: a process of it waits for a disk", within.as_millis())]
    Slow { container: String, within: Duration },
    #[error("container {container} has a process that this node can't see; run the node outside of containers")]
    Foreign { container: String },
    #[error("could not {operation} `{}`: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("Docker Engine could not {what} the container: {why}")]
    Engine { what: &'static str, why: String },
    #[error("the guard process does not answer, so nothing that writes a volume is started: {why}")]
    Unguarded { why: String },
    #[error("this machine's lease has ended, so nothing that writes a volume may run")]
    Expired,
    #[error("this machine is about to sleep, so nothing that writes a volume may run")]
    Asleep,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Engine { .. } | Error::Slow { .. } | Error::Denied { .. } | Error::Foreign { .. } => {
                ErrorCode::EngineFailed
            }
            Error::Unguarded { .. } | Error::Expired | Error::Asleep => ErrorCode::ServiceUnavailable,
            Error::Io { .. } => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// A container that could write a volume, and the epoch under which it may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The engine's id.
    pub container: String,
    pub epoch: u64,
}

/// How the guard runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a process of its own, by this program. What a node has.
    Process { program: PathBuf },
    /// As a thread: for a node inside of another program, such as a test. It ends with that.
    Thread,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    /// As in [`crate::engine::EngineConfig`].
    pub docker_host: Option<String>,
    pub form: Form,
}

impl Config {
    /// The guard is a process if [`is_program`] was called in this one.
    pub fn new(data_dir: &Path, docker_host: Option<String>) -> Self {
        let form = if IS_PROGRAM.get().is_some() { Form::Process { program: this_program() } } else { Form::Thread };
        Self { data_dir: data_dir.to_owned(), docker_host, form }
    }
}

static IS_PROGRAM: std::sync::OnceLock<()> = std::sync::OnceLock::new();

/// Says that this process is the program `flotilla`, so that its file can be run as the guard.
pub fn is_program() {
    let _ = IS_PROGRAM.set(());
}

/// Also where the file was replaced by a newer one meanwhile.
fn this_program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) if path.is_file() => path,
        _ => PathBuf::from("/proc/self/exe"),
    }
}

/// The daemon's end of the fence. Clones are handles to the same one; when the last is dropped the daemon's side ends, and the
/// guard goes on.
#[derive(Clone)]
pub struct Fence {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

struct Shared {
    config: Config,
    freezer: Freezer,
    pauser: Pauser,
    adopted: Option<Mono>,
    plan: watch::Sender<Plan>,
    /// Of the plan that the guard knows.
    known: watch::Sender<u64>,
    /// Why there is no guard, if there should be one.
    trouble: Mutex<Option<String>>,
    /// By the guard's word.
    asleep: AtomicBool,
    frozen: watch::Sender<BTreeSet<String>>,
    /// Of those, the ones that the engine paused because the kernel's freezer is out of reach.
    paused: Mutex<BTreeSet<String>>,
    /// Those that stand still for a moment only.
    held: Mutex<BTreeSet<String>>,
    thawed: Mutex<BTreeMap<String, UnixMillis>>,
    figures: Counters,
}

/// What shall be guarded.
#[derive(Clone, Debug, Default)]
struct Plan {
    /// Grows with each change.
    sequence: u64,
    /// Absent until somebody has said something.
    deadline: Option<Option<Mono>>,
    targets: Vec<Target>,
    /// About to be started, and by whom the targets are listed not known to run yet.
    announced: BTreeMap<String, (u64, Instant)>,
}

impl Plan {
    fn hold(&self) -> Option<Hold> {
        let deadline = self.deadline?;
        let announced =
            self.announced.iter().map(|(container, (epoch, _))| Target { container: container.clone(), epoch: *epoch });
        let targets = self.targets.iter().cloned().chain(announced).take(wire::TARGETS_MAX).collect();
        Some(Hold { deadline, targets, patterns: Vec::new() })
    }

    fn needs_guard(&self) -> bool {
        matches!(self.deadline, Some(Some(_)))
    }
}

#[derive(Debug, Default)]
struct Counters {
    freezes: AtomicU64,
    thaws: AtomicU64,
    guard_freezes: AtomicU64,
    guard_starts: AtomicU64,
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Containers that this daemon froze, and thawed.
    pub freezes: u64,
    pub thaws: u64,
    /// Containers that the guard froze because the daemon did not.
    pub guard_freezes: u64,
    /// Guards that were started: the first, and those in the place of one that died.
    pub guard_starts: u64,
    /// Containers that are frozen now.
    pub frozen: u64,
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Fence {
    /// Takes over from the guard that an earlier daemon left, if one did. Inside of a runtime; waits for a guard at most a second.
    ///
    /// # Errors
    /// The data directory is not there.
    pub fn start(config: Config) -> Result<Self, Error> {
        let data_dir = config.data_dir.canonicalize().map_err(|source| Error::Io {
            operation: "use the data directory",
            path: config.data_dir.clone(),
            source,
        })?;
        let config = Config { data_dir, ..config };
        let found = link::greet(&config.data_dir);
        let adopted = found.as_ref().and_then(|(_, answer)| answer.deadline);
        let plan = match &found {
            Some((_, answer)) if answer.deadline.is_some() => {
                tracing::info!(
                    pid = answer.pid,
                    frozen = answer.frozen.len(),
                    "taking over from the guard of an earlier daemon"
                );
                Plan {
                    sequence: 1,
                    deadline: Some(answer.deadline),
                    targets: answer.targets.clone(),
                    ..Plan::default()
                }
            }
            _ => Plan::default(),
        };
        let shared = Arc::new(Shared {
            freezer: Freezer::detect(),
            pauser: Pauser::new(config.docker_host.as_deref()),
            config,
            adopted,
            plan: watch::Sender::new(plan),
            known: watch::Sender::new(0),
            trouble: Mutex::default(),
            asleep: AtomicBool::new(false),
            frozen: watch::Sender::default(),
            paused: Mutex::default(),
            held: Mutex::default(),
            thawed: Mutex::default(),
            figures: Counters::default(),
        });
        if let Some((_, answer)) = &found {
            shared.answered(0, answer, 0);
        }
        let stop = CancellationToken::new();
        tokio::spawn(link::supervise(Arc::clone(&shared), found.and_then(|(link, _)| link), stop.clone()));
        Ok(Self { shared, _stop: Arc::new(stop.drop_guard()) })
    }

    /// Until when what could write a volume may run, and which containers that are. Absent: for ever, as nobody could take over.
    /// A machine that needs a lease and never had one says `Some(Mono(0))`.
    ///
    /// Cheap; called at every renewal, and when the containers change.
    pub fn deadline(&self, deadline: Option<Mono>, targets: Vec<Target>) {
        self.shared.plan.send_if_modified(|plan| {
            let announced = plan.announced.len();
            plan.announced.retain(|container, (_, since)| {
                since.elapsed() < ANNOUNCED_FOR && !targets.iter().any(|target| target.container == *container)
            });
            let changed =
                plan.deadline != Some(deadline) || plan.targets != targets || plan.announced.len() != announced;
            if changed {
                plan.sequence += 1;
                plan.deadline = Some(deadline);
                plan.targets = targets;
            }
            changed
        });
    }

    /// The deadline that the guard of an earlier daemon had.
    pub fn adopted(&self) -> Option<Mono> {
        self.shared.adopted
    }

    /// A container that could write a volume is about to be started. When this returns the guard knows it, and will freeze it
    /// when the deadline passes, even if it is only starting then.
    ///
    /// # Errors
    /// There should be a guard, and it does not answer: the container must not be started.
    pub async fn announce(&self, container: &str, epoch: u64) -> Result<(), Error> {
        let mut full = false;
        self.shared.plan.send_modify(|plan| {
            full = plan.targets.len() + plan.announced.len() >= wire::TARGETS_MAX;
            if !full {
                plan.sequence += 1;
                plan.announced.insert(container.to_owned(), (epoch, Instant::now()));
            }
        });
        if full {
            return Err(Error::Unguarded { why: format!("it guards {} containers already", wire::TARGETS_MAX) });
        }
        self.shared.told().await
    }

    /// A container that was announced will not run after all.
    pub fn withdraw(&self, container: &str) {
        self.shared.plan.send_if_modified(|plan| {
            let known = plan.announced.remove(container).is_some();
            plan.sequence += u64::from(known);
            known
        });
    }

    /// Freezes containers at once. True where it is frozen now, false where it does not run.
    pub async fn freeze(&self, containers: &[String]) -> Vec<(String, Result<bool, Error>)> {
        let outcomes = self.stop(containers).await;
        for (container, result) in &outcomes {
            if matches!(result, Ok(true)) && self.shared.mark(container, true) {
                self.shared.figures.freezes.fetch_add(1, Relaxed);
            }
        }
        outcomes
    }

    async fn stop(&self, containers: &[String]) -> Vec<(String, Result<bool, Error>)> {
        let results = self.blocking(containers, Freezer::freeze).await;
        let mut outcomes = Vec::with_capacity(containers.len());
        for (container, result) in containers.iter().zip(results) {
            let paused = match &result {
                Err(Error::Denied { .. }) => Some(self.shared.pauser.pause(container).await),
                Ok(false) if self.shared.pauser.is_needed() => Some(self.shared.pauser.pause(container).await),
                _ => None,
            };
            if matches!(paused, Some(Ok(true))) {
                self.shared.lock(&self.shared.paused).insert(container.clone());
            }
            outcomes.push((container.clone(), paused.unwrap_or(result)));
        }
        outcomes
    }

    /// Lets containers go on, once the guard knows of a deadline that allows it. False where it does not run. One that is held goes on
    /// when it is released.
    pub async fn thaw(&self, containers: &[String]) -> Vec<(String, Result<bool, Error>)> {
        let held = self.shared.lock(&self.shared.held).clone();
        let free: Vec<String> = containers.iter().filter(|container| !held.contains(*container)).cloned().collect();
        let outcomes = self.let_go(&free).await;
        for (container, result) in &outcomes {
            if result.is_ok() {
                self.shared.lock(&self.shared.thawed).insert(container.clone(), clock::now());
                if self.shared.mark(container, false) {
                    self.shared.figures.thaws.fetch_add(1, Relaxed);
                }
            }
        }
        outcomes
    }

    async fn let_go(&self, containers: &[String]) -> Vec<(String, Result<bool, Error>)> {
        let refused = || async {
            // A guard that does not know yet would freeze them again; and it alone knows whether the machine is to sleep.
            self.shared.plan.send_modify(|plan| plan.sequence += 1);
            self.shared.told().await?;
            if self.shared.asleep.load(Relaxed) {
                return Err(Error::Asleep);
            }
            let expired = matches!(self.shared.plan.borrow().deadline, Some(Some(at)) if at <= clock::since_boot());
            if expired { Err(Error::Expired) } else { Ok(()) }
        };
        let mut outcomes = Vec::with_capacity(containers.len());
        for container in containers {
            let result = match refused().await {
                Err(error) => Err(error),
                Ok(()) if self.shared.lock(&self.shared.paused).contains(container) => {
                    self.shared.pauser.unpause(container).await
                }
                Ok(()) => self.shared.freezer.thaw(container),
            };
            if result.is_ok() {
                self.shared.lock(&self.shared.paused).remove(container);
            }
            outcomes.push((container.clone(), result));
        }
        outcomes
    }

    /// Kills a container so that, where it is frozen, none of its processes runs another instruction. It is for the engine to
    /// remove it then. A node that may not use the kernel's freezer leaves it to the engine altogether.
    ///
    /// # Errors
    /// The kernel refuses, other than for want of a right.
    pub async fn kill(&self, container: &str) -> Result<(), Error> {
        let containers = [container.to_owned()];
        let killed = self.blocking(&containers, |freezer, containers| {
            containers.iter().map(|it| freezer.kill(it).map(|()| true)).collect()
        });
        match killed.await.pop() {
            Some(Err(Error::Denied { .. } | Error::Foreign { .. })) | None => Ok(()),
            Some(result) => result.map(drop),
        }
    }

    async fn blocking(
        &self,
        containers: &[String],
        work: impl FnOnce(&Freezer, &[String]) -> Vec<Result<bool, Error>> + Send + 'static,
    ) -> Vec<Result<bool, Error>> {
        let (freezer, ids) = (self.shared.freezer.clone(), containers.to_vec());
        match tokio::task::spawn_blocking(move || work(&freezer, &ids)).await {
            Ok(results) => results,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Containers that are frozen by this machine's fence, and not by a person.
    pub fn frozen(&self) -> BTreeSet<String> {
        self.shared.frozen.borrow().clone()
    }

    pub fn watch_frozen(&self) -> watch::Receiver<BTreeSet<String>> {
        self.shared.frozen.subscribe()
    }

    /// Is this one frozen, by whomever?
    pub fn is_frozen(&self, container: &str) -> bool {
        matches!(self.shared.freezer.frost(container), Ok(Frost::Frozen))
            || self.shared.lock(&self.shared.paused).contains(container)
    }

    /// Is it frozen, or about to be? Then it may not run again, not even to end by itself.
    pub(crate) fn stands_still(&self, container: &str) -> bool {
        let still = matches!(self.shared.freezer.frost(container), Ok(Frost::Freezing)) || self.is_frozen(container);
        // What is held for a moment goes on by itself.
        still && self.counts(container)
    }

    /// Does a deadline count for this container?
    pub(crate) fn guards(&self, container: &str) -> bool {
        let plan = self.shared.plan.borrow();
        plan.needs_guard()
            && (plan.announced.contains_key(container)
                || plan.targets.iter().any(|target| target.container == container))
    }

    /// A container that the engine shows, and one of its processes.
    pub(crate) fn note(&self, container: &str, pid: i64) {
        self.shared.freezer.note(container, pid);
    }

    /// Which of these containers, that run by the engine's word, are frozen in truth. `all` are those that there are.
    pub(crate) fn observe(&self, running: &[&str], all: &BTreeSet<&str>) -> BTreeSet<String> {
        let frozen: BTreeSet<String> = running
            .iter()
            .filter(|container| self.is_frozen(container) && self.counts(container))
            .map(|&container| container.to_owned())
            .collect();
        self.shared.lock(&self.shared.thawed).retain(|container, _| all.contains(container.as_str()));
        self.shared.lock(&self.shared.paused).retain(|container| all.contains(container.as_str()));
        let paused = self.shared.lock(&self.shared.paused).clone();
        let held = self.shared.lock(&self.shared.held).clone();
        self.shared.frozen.send_if_modified(|known| {
            // Of those that the engine itself calls paused only the ones that were paused for us count.
            let paused = paused.iter().filter(|container| !held.contains(*container) || known.contains(*container));
            let next: BTreeSet<String> = frozen.iter().chain(paused).cloned().collect();
            let changed = *known != next;
            *known = next;
            changed
        });
        frozen
    }

    /// When a container was thawed last: what the engine found out about its health before that was found while it was frozen.
    pub(crate) fn thawed_at(&self, container: &str) -> Option<UnixMillis> {
        self.shared.lock(&self.shared.thawed).get(container).copied()
    }

    pub fn figures(&self) -> Figures {
        let counters = &self.shared.figures;
        Figures {
            freezes: counters.freezes.load(Relaxed),
            thaws: counters.thaws.load(Relaxed),
            guard_freezes: counters.guard_freezes.load(Relaxed),
            guard_starts: counters.guard_starts.load(Relaxed),
            frozen: self.shared.frozen.borrow().len() as u64,
        }
    }
}

impl Shared {
    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if that was not known.
    fn mark(&self, container: &str, frozen: bool) -> bool {
        self.frozen.send_if_modified(
            |known| {
                if frozen { known.insert(container.to_owned()) } else { known.remove(container) }
            },
        )
    }

    /// Waits until the guard, if there should be one, knows all that was planned so far.
    async fn told(&self) -> Result<(), Error> {
        let (sequence, needed) = {
            let plan = self.plan.borrow();
            (plan.sequence, plan.needs_guard())
        };
        if !needed {
            return Ok(());
        }
        let mut known = self.known.subscribe();
        let told = known.wait_for(|known| *known >= sequence);
        match tokio::time::timeout(GUARD_PATIENCE, told).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let why = self.lock(&self.trouble).clone();
                Err(Error::Unguarded { why: why.unwrap_or_else(|| "look at the node's log".to_owned()) })
            }
        }
    }

    /// What a guard told. `before` is how many it had frozen when it told last.
    fn answered(&self, sequence: u64, answer: &Answer, before: u64) {
        *self.lock(&self.trouble) = None;
        // Before it is told that the guard knows.
        self.asleep.store(answer.asleep, Relaxed);
        self.known.send_replace(sequence);
        self.figures.guard_freezes.fetch_add(answer.freezes.saturating_sub(before), Relaxed);
        for container in &answer.frozen {
            // It may have been thawed since the guard looked.
            if self.is_known_frozen(container) && self.mark(container, true) {
                tracing::warn!(container, "the guard froze a container");
            }
        }
        if let Some(trouble) = &answer.trouble {
            tracing::error!("the guard could not freeze a container: {trouble}");
        }
    }

    fn is_known_frozen(&self, container: &str) -> bool {
        self.freezer.search(container);
        matches!(self.freezer.frost(container), Ok(Frost::Frozen)) || self.pauser.is_needed()
    }
}

/// Ends the guard of a data directory, whose daemon must not run: nothing of it shall be frozen any more. That there is none is
/// as good.
pub async fn end_guard(data_dir: &Path) {
    let Some((link, answer)) = link::greet(data_dir) else { return };
    let Some(mut link) = link else { return };
    if let Err(error) = Link::end(&mut link).await {
        tracing::warn!(pid = answer.pid, %error, "the guard does not end");
    }
}
