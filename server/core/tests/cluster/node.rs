//! A machine: its power, its daemon and guard, its clock, its part of the log, its engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_api::{NodeId, UnixMillis};
use flotilla_core::{
    State,
    lease::Mono,
    node::{Leader, Member},
    reconcile::{Memory, Observed},
    report::Report,
};

use crate::{disk::Disk, engine::Engine, world::data::Keeper};

/// Time of day when the world begins.
const WALL_AT_FIRST: u64 = 1_800_000_000_000;

/// As in the node. Milliseconds.
const ANNOUNCED_FOR_MS: u64 = 180_000;

/// What the guard was told last. It outlives the daemon.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    pub(crate) deadline: Option<Mono>,
    pub(crate) targets: Vec<String>,
    /// Containers that were about to be started, and when that was; nobody has seen them run yet.
    pub(crate) announced: BTreeMap<String, u64>,
}

impl Guard {
    /// What the daemon sees run is no longer only announced.
    pub(crate) fn tell(&mut self, now: u64, deadline: Option<Mono>, targets: Vec<String>) {
        self.announced.retain(|container, since| now - *since < ANNOUNCED_FOR_MS && !targets.contains(container));
        (self.deadline, self.targets) = (deadline, targets);
    }

    pub(crate) fn guarded(&self) -> impl Iterator<Item = &String> {
        self.targets.iter().chain(self.announced.keys())
    }
}

/// What is lost when the daemon dies.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) member: Member,
    pub(crate) leader: Option<Leader>,
    pub(crate) memory: Memory,
    pub(crate) observed: Option<Observed>,
    /// Index of the state that was planned from last.
    pub(crate) planned: u64,
    /// Epochs of starts under way, by action.
    pub(crate) under_way: BTreeMap<u64, u64>,
    /// Epochs of starts that ended since the last observation began.
    pub(crate) recent: BTreeSet<u64>,
    pub(crate) reports: BTreeMap<NodeId, Arc<Report>>,
    pub(crate) changing_members: bool,
    pub(crate) known_leader: Option<usize>,
    /// By epoch.
    pub(crate) keepers: BTreeMap<u64, Keeper>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) powered: bool,
    /// Sleeping, or stopped as a whole: nothing runs, and the clock goes on.
    pub(crate) suspended: bool,
    /// The daemon was stopped alone (SIGSTOP).
    pub(crate) stopped: bool,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) guard: Guard,
    pub(crate) engine: Engine,
    pub(crate) disk: Disk,
    /// Counts daemons, so that what one set going does not end in the next.
    pub(crate) life: u64,
    /// Thousandths by which its clock is fast or slow.
    pub(crate) drift: i64,
    /// Where its clock began.
    pub(crate) began: u64,
    /// Milliseconds by which its time of day is wrong.
    pub(crate) wall_off: i64,
    /// Nothing can be written to its disk: it keeps no entry, and its engine does nothing.
    pub(crate) disk_fails: bool,
    /// Of the log: what is on its disk, what it has applied, and its term.
    pub(crate) stored: u64,
    pub(crate) applied: u64,
    pub(crate) term: u64,
    /// When it heard of a leader last, in true time.
    pub(crate) heard_leader: u64,
    pub(crate) election_after: u64,
    pub(crate) state: Arc<State>,
}

impl Daemon {
    pub(crate) fn starting(&self) -> BTreeSet<u64> {
        self.under_way.values().chain(&self.recent).copied().collect()
    }
}

impl Node {
    pub(crate) fn new(number: usize, drift: i64) -> Self {
        let id = NodeId(format!("node-{number}"));
        Self {
            id,
            powered: true,
            suspended: false,
            stopped: false,
            daemon: None,
            guard: Guard::default(),
            engine: Engine::default(),
            disk: Disk::default(),
            life: 0,
            drift,
            began: 0,
            wall_off: 0,
            disk_fails: false,
            stored: 0,
            applied: 0,
            term: 0,
            heard_leader: 0,
            election_after: 700,
            state: Arc::default(),
        }
    }

    /// Its time of day, which goes wrong now and then.
    pub(crate) fn wall(&self, now: u64) -> UnixMillis {
        UnixMillis((WALL_AT_FIRST + now).saturating_add_signed(self.wall_off))
    }

    /// Its own clock, which counts sleep.
    pub(crate) fn clock(&self, now: u64) -> Mono {
        let ran = i64::try_from(now - self.began).unwrap();
        Mono(1_000_000 + u64::try_from(ran + ran * self.drift / 1000).unwrap())
    }

    pub(crate) fn start_daemon(&mut self) {
        self.life += 1;
        self.daemon = Some(Daemon {
            member: Member::new(self.id.clone(), self.guard.deadline.map(|at| at.plus(300))),
            leader: None,
            memory: Memory::default(),
            observed: None,
            planned: 0,
            under_way: BTreeMap::new(),
            recent: BTreeSet::new(),
            reports: BTreeMap::new(),
            changing_members: false,
            known_leader: None,
            keepers: BTreeMap::new(),
        });
    }

    /// Does its daemon run, and can it do something now?
    pub(crate) fn acts(&self) -> bool {
        self.powered && !self.suspended && !self.stopped && self.daemon.is_some()
    }
}
