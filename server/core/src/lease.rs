//! Leases: a node's time-bounded right to run instances that write volumes.
//!
//! The node counts from when it *sent* a renewal, the leader from when it *received* it, so that the node's end comes first
//! whatever the network does. A leader grants no longer than it knows that nobody else leads: [`Grantor::confirm`] takes the
//! time of the last heartbeat that a quorum answered, and a lease ends at the latest one lease after that. A new leader takes
//! nothing from anybody before a whole lease and a margin have passed since it began to lead, by which time every lease of its
//! predecessors has ended. (Gray and Cheriton, "Leases", SOSP 1989; the quorum-bounded grant is that of Chubby's successors.)
//!
//! All times are of the machine's own clock that also runs while it sleeps; clocks of two machines are never compared, only
//! their speed is trusted, to within [`MARGIN_MS`].

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::NodeId;
use serde::{Deserialize, Serialize};

/// The shortest lease: renewals go out twice a second, so that three may be lost. Milliseconds.
pub const LEASE_MIN_MS: u64 = 2_500;
/// The longest lease, on links with much jitter. Milliseconds.
pub const LEASE_MAX_MS: u64 = 4_000;
/// How often a node renews. Milliseconds.
pub const RENEW_EVERY_MS: u64 = 500;
/// How long before the end of its lease a node freezes: what freezing takes on a busy machine. Milliseconds.
pub const FREEZE_BEFORE_MS: u64 = 300;
/// What a leader waits beyond a lease's end: clocks that differ by 2 % over a lease, and a freeze that was late. Milliseconds.
pub const MARGIN_MS: u64 = 250;
/// An instance that could write a volume is started only if at least so much of the lease is left. Milliseconds.
pub const START_LEFT_MS: u64 = 700;
/// Renewals that may be under way at one time.
const RENEWALS_MAX: usize = 16;

/// Milliseconds on one machine's clock that never goes back and counts sleep (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Mono {
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier`; zero if that lies in the future.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub fn minus(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis))
    }
}

/// A node asks the leader for more time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    pub sequence: u64,
    /// Index of the state that the node has applied, and acts upon.
    pub applied: u64,
    /// Epochs of the instances on it that can write a volume now: they run and are not frozen.
    pub holding: BTreeSet<u64>,
}

/// The leader's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub sequence: u64,
    pub term: u64,
    /// From when the renewal was sent; 0 where it was refused.
    pub lease_ms: u64,
}

/// What the leader knows of a machine's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has one, or may have one, until then.
    Until(Mono),
    /// It has none, for certain.
    Ended,
}

/// The leader's side.
#[derive(Clone, Debug)]
pub struct Grantor {
    term: u64,
    lease_ms: u64,
    /// Before this, leases of earlier leaders may be running.
    inherited_until: Mono,
    /// When the last heartbeat was sent that a quorum answered.
    confirmed: Option<Mono>,
    granted: BTreeMap<NodeId, Mono>,
    /// Until when machines may take to ask for their first lease; gone with that.
    expected: BTreeMap<NodeId, Mono>,
    /// Machines from which something is being taken: no lease until that is decided.
    withheld: BTreeSet<NodeId>,
}

impl Grantor {
    /// Of a node that began to lead at `now`.
    pub fn new(now: Mono, term: u64, lease_ms: u64) -> Self {
        Self {
            term,
            lease_ms: lease_ms.clamp(LEASE_MIN_MS, LEASE_MAX_MS),
            inherited_until: now.plus(LEASE_MAX_MS + MARGIN_MS),
            confirmed: None,
            granted: BTreeMap::new(),
            expected: BTreeMap::new(),
            withheld: BTreeSet::new(),
        }
    }

    pub fn term(&self) -> u64 {
        self.term
    }

    /// The leases of earlier leaders had at most this length: what the log says they had.
    pub fn inherit(&mut self, began: Mono, lease_ms: u64) {
        self.inherited_until = began.plus(lease_ms.clamp(LEASE_MIN_MS, LEASE_MAX_MS) + MARGIN_MS);
    }

    pub fn set_lease(&mut self, lease_ms: u64) {
        self.lease_ms = lease_ms.clamp(LEASE_MIN_MS, LEASE_MAX_MS);
    }

    /// A heartbeat that was sent at this time was answered by a quorum: nobody else led then.
    pub fn confirm(&mut self, sent: Mono) {
        self.confirmed = self.confirmed.max(Some(sent));
    }

    /// How old the last proof of leadership is.
    pub fn confirmed_since(&self, now: Mono) -> Option<u64> {
        self.confirmed.map(|at| now.since(at))
    }

    /// From now on nothing is granted to the machine, as something is being taken from it.
    pub fn withhold(&mut self, node: &NodeId) {
        self.withheld.insert(node.clone());
    }

    /// What was being taken is taken, or not: the state says which.
    pub fn release(&mut self, node: &NodeId) {
        self.withheld.remove(node);
    }

    pub fn is_withheld(&self, node: &NodeId) -> bool {
        self.withheld.contains(node)
    }

    /// Answers a renewal that was received at `now`. `taken` is the entry that took something from the node last, and `owned`
    /// says whether the node may hold an epoch by the state that this leader has applied.
    pub fn renew(
        &mut self,
        now: Mono,
        node: &NodeId,
        renewal: &Renewal,
        taken: u64,
        owned: impl Fn(u64) -> bool,
    ) -> Grant {
        let refused = Grant { sequence: renewal.sequence, term: self.term, lease_ms: 0 };
        let Some(confirmed) = self.confirmed else { return refused };
        let ready = renewal.applied >= taken && renewal.holding.iter().all(|epoch| owned(*epoch));
        if !ready || self.withheld.contains(node) {
            return refused;
        }
        let lease_ms = confirmed.plus(self.lease_ms).since(now).min(self.lease_ms);
        if lease_ms == 0 {
            return refused;
        }
        let until = now.plus(lease_ms);
        let known = self.granted.entry(node.clone()).or_insert(until);
        *known = until.max(*known);
        self.expected.remove(node);
        Grant { lease_ms, ..refused }
    }

    /// The machine is there, and asks for its first lease soon: until then it is not taken for lost.
    pub fn expect(&mut self, node: &NodeId, until: Mono) {
        let known = self.expected.entry(node.clone()).or_insert(until);
        *known = until.max(*known);
    }

    /// Whether the machine may still act under a lease.
    pub fn standing(&self, now: Mono, node: &NodeId) -> Standing {
        let known = [self.granted.get(node), self.expected.get(node)].into_iter().flatten().max();
        let until = known.map_or(self.inherited_until, |until| self.inherited_until.max(until.plus(MARGIN_MS)));
        if until > now { Standing::Until(until) } else { Standing::Ended }
    }

    /// Was the machine granted a lease by this leader that has not ended yet?
    pub fn holds(&self, now: Mono, node: &NodeId) -> bool {
        self.granted.get(node).is_some_and(|until| *until > now)
    }

    /// When a standing changes next by time alone.
    pub fn next_end(&self, now: Mono) -> Option<Mono> {
        let ends =
            self.granted.values().chain(self.expected.values()).flat_map(|until| [*until, until.plus(MARGIN_MS)]);
        ends.chain([self.inherited_until]).filter(|end| *end > now).min()
    }
}

/// The node's side.
#[derive(Clone, Debug, Default)]
pub struct Holder {
    sequence: u64,
    /// When each renewal that is not answered was sent.
    sent: BTreeMap<u64, Mono>,
    /// When a renewal was sent last.
    last_sent: Option<Mono>,
    until: Option<Mono>,
    /// The newest term that granted something; answers of older ones come from deposed leaders and count as much, for they
    /// were bounded by what those knew.
    term: u64,
}

impl Holder {
    /// Of a node whose guard says that a lease of an earlier daemon runs until then.
    pub fn adopt(until: Option<Mono>) -> Self {
        Self { until, ..Self::default() }
    }

    /// Notes that a renewal goes out.
    pub fn send(&mut self, now: Mono, applied: u64, holding: BTreeSet<u64>) -> Renewal {
        self.sequence += 1;
        self.sent.insert(self.sequence, now);
        self.last_sent = Some(now);
        while self.sent.len() > RENEWALS_MAX {
            self.sent.pop_first();
        }
        Renewal { sequence: self.sequence, applied, holding }
    }

    /// Takes an answer. True if the lease is longer now.
    pub fn granted(&mut self, grant: &Grant) -> bool {
        let Some(sent) = self.sent.remove(&grant.sequence) else { return false };
        if grant.lease_ms == 0 {
            return false;
        }
        self.term = self.term.max(grant.term);
        let until = sent.plus(grant.lease_ms.min(LEASE_MAX_MS));
        let longer = self.until.is_none_or(|known| until > known);
        if longer {
            self.until = Some(until);
        }
        longer
    }

    /// When a renewal was sent last; absent when the next one is due now.
    pub fn last_renewal(&self) -> Option<Mono> {
        self.last_sent
    }

    /// The next renewal is due now.
    pub fn hurry(&mut self) {
        self.last_sent = None;
    }

    /// The end of the lease, if there was one.
    pub fn until(&self) -> Option<Mono> {
        self.until
    }

    /// What could write a volume has to be frozen by then; absent: it has to be now.
    pub fn freeze_at(&self) -> Option<Mono> {
        self.until.map(|until| until.minus(FREEZE_BEFORE_MS))
    }

    /// May what could write a volume run?
    pub fn may_run(&self, now: Mono) -> bool {
        self.freeze_at().is_some_and(|at| at > now)
    }

    /// May an instance that could write a volume be started?
    pub fn may_start(&self, now: Mono) -> bool {
        self.until.is_some_and(|until| until > now.plus(START_LEFT_MS))
    }
}
