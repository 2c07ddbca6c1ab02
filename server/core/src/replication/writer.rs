//! When a machine captures what an instance writes, and when a generation counts as safe: the decisions of the machine that writes
//! one service's volumes. ADR 15 has the whole.
//!
//! The shell tells of changes ([`Writer::changed`]), of captures that ended ([`Writer::captured`]) and of machines that have a
//! generation on disk ([`Writer::held`]), and does what [`Writer::orders`] says. What a machine tells of an earlier epoch is for
//! another writer: a new one is made for each placement.

use std::collections::{BTreeSet, VecDeque};

use flotilla_api::NodeId;

use crate::lease::Mono;

/// A capture waits until nothing has changed for so long: what is written together is captured together. Milliseconds.
const QUIET_MS: u64 = 100;
/// From a first change to its capture, at the latest, as far as captures are cheap. Milliseconds.
const LATEST_MS: u64 = 1_000;
/// The same where somebody asked for `sync`, whatever captures cost. Milliseconds.
const LATEST_SYNC_MS: u64 = 500;
/// In the long run captures take at most this part of the time.
const SHARE: u64 = 10;
/// So much may be captured before anybody asks how long that takes: a large file is copied at once, and its next change too. Milliseconds.
const BURST_MS: u64 = 10_000;
/// The longest pause that an expensive capture earns. Milliseconds.
const PAUSE_MAX_MS: u64 = 300_000;
/// After a capture that came to nothing. Milliseconds.
const FAILED_PAUSE_MS: u64 = 1_000;
/// Between two captures around which commands are run in the container, which may write, too. Milliseconds.
const HOOKED_PAUSE_MS: u64 = 30_000;
/// For how long a replica that is slower than the others is waited for. Milliseconds.
const REPLICA_PATIENCE_MS: u64 = 2_000;
/// Captures that wait for replicas. Older ones are given up: a newer one holds all that they do.
const PENDING_MAX: usize = 4;

/// What is known of the replicas when orders are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    /// Those that shall have copies.
    pub wanted: BTreeSet<NodeId>,
    /// Of those, the ones that are lost.
    pub lost: BTreeSet<NodeId>,
}

/// The decisions on one service's data, on the machine that writes it, under one epoch.
#[derive(Clone, Debug)]
pub struct Writer {
    node: NodeId,
    pace: Pace,
    /// Of the newest capture; the first is 1.
    sequence: u64,
    /// The first change, and the newest, that no capture has seen.
    dirty: Option<(Mono, Mono)>,
    capturing: bool,
    /// The instance has ended; one more capture shows all that it wrote.
    ended: bool,
    /// No capture before this time, unless it is asked for.
    pause_until: Mono,
    /// How long captures took, less what has been earned since; and when that was so. Milliseconds.
    spent: (u64, Mono),
    pending: VecDeque<Pending>,
    /// What is in the log.
    committed: Option<Commit>,
}

/// What somebody asked of captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Soon after a change, whatever that costs.
    pub sync: bool,
    /// Commands are run in the container before and after.
    pub hooked: bool,
}

/// A capture that waits for replicas, or for the log to hear of more that have it.
#[derive(Clone, Debug)]
struct Pending {
    commit: Commit,
    since: Mono,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Begin a capture; it ends with [`Writer::captured`] or [`Writer::failed`].
    pub capture: bool,
    /// Send this to the log.
    pub commit: Option<Commit>,
    /// When to ask again even if nothing happens.
    pub wake_at: Option<Mono>,
}

/// A generation that counts from now on, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub sequence: u64,
    pub last: bool,
    pub holders: BTreeSet<NodeId>,
}

impl Writer {
    /// Nothing is known of what is in the directories: a first capture is due at once. `sequence` is that of the newest generation under
    /// this epoch that is on this machine's disk, 0 if there is none: a name is never given twice.
    pub fn new(node: NodeId, pace: Pace, sequence: u64, now: Mono) -> Self {
        Self {
            node,
            pace,
            sequence,
            dirty: Some((now, now)),
            capturing: false,
            ended: false,
            pause_until: Mono(0),
            spent: (0, now),
            pending: VecDeque::new(),
            committed: None,
        }
    }

    /// Something in the directories has changed, or may have.
    pub fn changed(&mut self, now: Mono) {
        let first = self.dirty.map_or(now, |(first, _)| first);
        self.dirty = Some((first, now));
    }

    /// The capture that ends now has seen all that was told of changes. After the instance has ended one more looks at everything.
    pub fn is_seen(&mut self) {
        if !self.ended {
            self.dirty = None;
        }
    }

    /// The instance has ended, and nothing writes any more.
    pub fn ended(&mut self, now: Mono) {
        if !self.ended {
            self.ended = true;
            self.changed(now);
        }
    }

    /// Of the capture that comes next.
    pub fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }

    /// A capture ended, which had begun so long ago. Its sequence.
    pub fn captured(&mut self, now: Mono, took_ms: u64) -> u64 {
        self.capturing = false;
        self.pause(now, took_ms);
        self.sequence += 1;
        let last = self.ended && self.dirty.is_none();
        let holders = BTreeSet::from([self.node.clone()]);
        let commit = Commit { sequence: self.sequence, last, holders };
        self.pending.push_back(Pending { commit, since: now });
        if self.pending.len() > PENDING_MAX {
            // The first of those that wait is the one that replicas are at; the others are superseded.
            self.pending.remove(1);
        }
        self.sequence
    }

    /// A capture found what the one before it had found.
    pub fn unchanged(&mut self, now: Mono, took_ms: u64) {
        self.capturing = false;
        self.pause(now, took_ms);
        if self.ended && self.dirty.is_none() {
            match (self.pending.back_mut(), &self.committed) {
                (Some(newest), _) => newest.commit.last = true,
                // It goes to the log again: now it is known that nothing comes after it.
                (None, Some(committed)) => {
                    let commit = Commit { last: true, ..committed.clone() };
                    self.pending.push_back(Pending { commit, since: now });
                }
                // There is none that it could be equal to.
                (None, None) => self.changed(now),
            }
        }
    }

    /// A capture came to nothing: what it should have seen is still to be captured.
    pub fn failed(&mut self, now: Mono, took_ms: u64) {
        self.capturing = false;
        self.pause(now, took_ms);
        self.pause_until = self.pause_until.max(now.plus(FAILED_PAUSE_MS));
        self.changed(now);
    }

    /// A machine has all of a generation on disk.
    pub fn held(&mut self, machine: &NodeId, sequence: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.commit.sequence == sequence) {
            pending.commit.holders.insert(machine.clone());
        } else if let Some(committed) = self.committed.as_ref().filter(|committed| committed.sequence == sequence)
            && !committed.holders.contains(machine)
        {
            // It goes to the log again, with one more that has it.
            let mut commit = committed.clone();
            commit.holders.insert(machine.clone());
            self.pending.push_front(Pending { commit, since: Mono(0) });
        }
    }

    /// A machine has given up its copy, and with it all that it had.
    pub fn dropped(&mut self, machine: &NodeId) {
        let committed = self.committed.iter_mut();
        for commit in committed.chain(self.pending.iter_mut().map(|pending| &mut pending.commit)) {
            commit.holders.remove(machine);
        }
    }

    /// The log has taken it.
    pub fn committed(&mut self, commit: &Commit) {
        if self.committed.as_ref().is_none_or(|known| known.sequence <= commit.sequence) {
            self.committed = Some(commit.clone());
            self.pending.retain(|Pending { commit: pending, .. }| {
                let more = !commit.holders.is_superset(&pending.holders) || (pending.last && !commit.last);
                pending.sequence > commit.sequence || (pending.sequence == commit.sequence && more)
            });
        }
    }

    /// Is all that was written in the log, and will nothing more be written?
    pub fn is_settled(&self) -> bool {
        self.committed.as_ref().is_some_and(|committed| committed.last) && self.pending.is_empty()
    }

    /// What to do at this moment. A capture that is ordered has begun.
    pub fn orders(&mut self, now: Mono, replicas: &Replicas) -> Orders {
        let mut orders = Orders::default();
        if let Some(due) = self.due().filter(|_| !self.capturing) {
            if due <= now {
                self.capturing = true;
                self.dirty = None;
                orders.capture = true;
            } else {
                orders.wake_at = Some(due);
            }
        }
        // The newest that enough have: with it all before it are safe.
        for pending in self.pending.iter().rev() {
            match self.safe_at(pending, replicas) {
                Some(at) if at <= now => {
                    orders.commit = Some(pending.commit.clone());
                    break;
                }
                Some(at) => orders.wake_at = Some(orders.wake_at.map_or(at, |earlier| earlier.min(at))),
                None => {}
            }
        }
        orders
    }

    /// When the next capture is due, if anything is to be captured.
    fn due(&self) -> Option<Mono> {
        let (first, newest) = self.dirty?;
        if self.ended {
            return Some(newest);
        }
        if self.pace.sync {
            return Some(newest.plus(QUIET_MS).min(first.plus(LATEST_SYNC_MS)));
        }
        Some(newest.plus(QUIET_MS).min(first.plus(LATEST_MS)).max(self.pause_until))
    }

    /// From when on a generation may be committed with the holders that it has; never, if they are too few.
    fn safe_at(&self, pending: &Pending, replicas: &Replicas) -> Option<Mono> {
        let holders = &pending.commit.holders;
        let alive: BTreeSet<&NodeId> = replicas.wanted.difference(&replicas.lost).collect();
        let others = holders.iter().any(|holder| *holder != self.node);
        if !others && !alive.is_empty() {
            return None;
        }
        // Who had the last one keeps up; who is still copying, or has come back a moment ago, holds nobody up.
        let former = self.committed.as_ref().map(|committed| &committed.holders);
        let mut awaited = former.into_iter().flatten().filter(|holder| alive.contains(holder));
        if awaited.all(|holder| holders.contains(holder)) {
            Some(Mono(0))
        } else {
            Some(pending.since.plus(REPLICA_PATIENCE_MS))
        }
    }

    fn pause(&mut self, now: Mono, took_ms: u64) {
        let (before, at) = self.spent;
        let spent = before.saturating_sub(now.since(at) / SHARE) + took_ms;
        self.spent = (spent, now);
        let least = if self.pace.hooked { HOOKED_PAUSE_MS } else { 0 };
        let pause = spent.saturating_sub(BURST_MS) * SHARE;
        self.pause_until = now.plus(pause.clamp(least, PAUSE_MAX_MS));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId(name.to_owned())
    }

    fn ids(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|name| id(name)).collect()
    }

    fn replicas(wanted: &[&str], lost: &[&str]) -> Replicas {
        Replicas { wanted: ids(wanted), lost: ids(lost) }
    }

    /// A writer that has committed its first generation, which both replicas hold, at 1,000.
    fn settled() -> (Writer, Replicas) {
        let both = replicas(&["b", "c"], &[]);
        let mut writer = Writer::new(id("a"), Pace::default(), 0, Mono(0));
        assert!(writer.orders(Mono(QUIET_MS), &both).capture);
        assert_eq!(writer.captured(Mono(200), 10), 1);
        assert_eq!(writer.orders(Mono(200), &both).commit, None, "nobody else has it");
        writer.held(&id("b"), 1);
        writer.held(&id("c"), 1);
        let commit = writer.orders(Mono(300), &both).commit.unwrap();
        assert_eq!((commit.sequence, commit.last, &commit.holders), (1, false, &ids(&["a", "b", "c"])));
        writer.committed(&commit);
        assert_eq!(writer.orders(Mono(1_000), &both), Orders::default());
        (writer, both)
    }

    #[test]
    fn what_is_written_together_is_captured_together_and_never_waits_for_long() {
        let (mut writer, both) = settled();
        writer.changed(Mono(1_000));
        assert_eq!(writer.orders(Mono(1_050), &both).wake_at, Some(Mono(1_100)));
        // It goes on and on.
        let captured = (1_050..).step_by(50).find(|&now| {
            writer.changed(Mono(now));
            writer.orders(Mono(now), &both).capture
        });
        assert_eq!(captured, Some(2_000));
        writer.changed(Mono(2_010));
        assert!(!writer.orders(Mono(9_000), &both).capture, "one at a time");
        writer.captured(Mono(9_000), 7_000);
        assert!(writer.orders(Mono(9_000), &both).capture, "it was worth it, this once");
    }

    #[test]
    fn an_expensive_capture_is_made_less_often_unless_it_is_to_be_in_step() {
        const TOOK: u64 = 2_000;
        const HOUR: u64 = 3_600_000;
        let none = Replicas::default();
        for (sync, most) in [(false, HOUR / SHARE / TOOK + BURST_MS / TOOK + 1), (true, HOUR)] {
            let mut writer = Writer::new(id("a"), Pace { sync, hooked: false }, 0, Mono(0));
            let (mut now, mut times) = (100, Vec::new());
            while now < HOUR {
                writer.changed(Mono(now));
                if writer.orders(Mono(now), &none).capture {
                    now += TOOK;
                    writer.captured(Mono(now), TOOK);
                    times.push(now);
                }
                now += 50;
            }
            let first = times.iter().filter(|time| **time < 20_000).count() as u64;
            assert!(first > BURST_MS / TOOK, "a few at once: {first}");
            let count = times.len() as u64;
            assert!(count <= most && count >= HOUR / SHARE / TOOK - 1, "{count} of at most {most}");
        }
    }

    #[test]
    fn what_can_not_be_captured_is_not_tried_at_once() {
        let mut writer = Writer::new(id("a"), Pace::default(), 0, Mono(0));
        let none = Replicas::default();
        assert!(writer.orders(Mono(100), &none).capture);
        writer.failed(Mono(110), 5);
        assert!(!writer.orders(Mono(110 + FAILED_PAUSE_MS - 1), &none).capture);
        assert!(writer.orders(Mono(110 + FAILED_PAUSE_MS), &none).capture);
    }

    #[test]
    fn what_commands_write_around_a_capture_is_no_reason_for_the_next_one_at_once() {
        let none = Replicas::default();
        let mut writer = Writer::new(id("a"), Pace { sync: false, hooked: true }, 0, Mono(0));
        assert!(writer.orders(Mono(100), &none).capture);
        writer.changed(Mono(150));
        writer.is_seen();
        writer.captured(Mono(200), 10);
        assert_eq!(writer.due(), None, "it was changed before, and seen");
        writer.changed(Mono(250));
        assert!(!writer.orders(Mono(200 + HOOKED_PAUSE_MS - 1), &none).capture);
        assert!(writer.orders(Mono(200 + HOOKED_PAUSE_MS), &none).capture);

        // After its end it is looked at once more in any case.
        writer.ended(Mono(40_000));
        writer.is_seen();
        writer.captured(Mono(40_100), 10);
        assert!(writer.orders(Mono(40_100), &none).capture);
    }

    #[test]
    fn a_slow_replica_is_waited_for_a_moment_and_a_new_one_not_at_all() {
        let (mut writer, _) = settled();
        let more = replicas(&["b", "c", "d"], &[]);
        writer.changed(Mono(2_000));
        assert!(writer.orders(Mono(2_100), &more).capture);
        writer.captured(Mono(2_200), 10);
        writer.held(&id("b"), 2);
        let orders = writer.orders(Mono(2_200), &more);
        assert_eq!((orders.commit, orders.wake_at), (None, Some(Mono(2_200 + REPLICA_PATIENCE_MS))));
        writer.held(&id("c"), 2);
        let commit = writer.orders(Mono(2_300), &more).commit.unwrap();
        assert_eq!(commit.holders, ids(&["a", "b", "c"]), "d has never had one");
        writer.committed(&commit);

        writer.held(&id("d"), 2);
        let again = writer.orders(Mono(2_400), &more).commit.unwrap();
        assert_eq!((again.sequence, &again.holders), (2, &ids(&["a", "b", "c", "d"])));
        writer.committed(&again);
        assert_eq!(writer.orders(Mono(9_000), &more), Orders::default());
    }

    #[test]
    fn who_gave_up_its_copy_is_named_no_more() {
        let (mut writer, _) = settled();
        writer.changed(Mono(2_000));
        let only = replicas(&["c"], &[]);
        assert!(writer.orders(Mono(2_100), &only).capture);
        writer.captured(Mono(2_200), 10);
        writer.held(&id("b"), 2);
        writer.dropped(&id("b"));
        assert_eq!(writer.orders(Mono(2_200), &only).commit, None, "nobody else has it");
        writer.held(&id("c"), 2);
        let commit = writer.orders(Mono(2_300), &only).commit.unwrap();
        assert_eq!(commit.holders, ids(&["a", "c"]));
    }

    #[test]
    fn a_machine_alone_commits_alone_and_a_lost_replica_holds_nobody_up() {
        let (mut writer, _) = settled();
        writer.changed(Mono(2_000));
        assert!(writer.orders(Mono(2_100), &Replicas::default()).capture);
        writer.captured(Mono(2_200), 10);
        assert_eq!(writer.orders(Mono(9_000), &replicas(&["b", "c"], &["b"])).commit, None, "c is there");
        let alone = writer.orders(Mono(2_200), &replicas(&["b", "c"], &["b", "c"])).commit.unwrap();
        assert_eq!(alone.holders, ids(&["a"]));
        writer.held(&id("c"), 2);
        let commit = writer.orders(Mono(2_200), &replicas(&["b", "c"], &["b"])).commit.unwrap();
        assert_eq!(commit.holders, ids(&["a", "c"]));
    }

    #[test]
    fn what_an_instance_wrote_before_its_end_is_the_last() {
        let (mut writer, both) = settled();
        writer.changed(Mono(2_000));
        assert!(writer.orders(Mono(2_100), &both).capture);
        writer.ended(Mono(2_150));
        writer.captured(Mono(2_200), 10);
        assert!(writer.orders(Mono(2_200), &both).capture, "it may have written after that one began");
        writer.captured(Mono(2_300), 10);
        for holder in ["b", "c"] {
            writer.held(&id(holder), 2);
            writer.held(&id(holder), 3);
        }
        let commit = writer.orders(Mono(2_300), &both).commit.unwrap();
        assert_eq!((commit.sequence, commit.last), (3, true));
        assert!(!writer.is_settled());
        writer.committed(&commit);
        assert!(writer.is_settled());
    }

    #[test]
    fn an_end_after_which_nothing_has_changed_is_said_of_the_generation_that_there_is() {
        let (mut writer, both) = settled();
        writer.ended(Mono(2_000));
        assert!(writer.orders(Mono(2_000), &both).capture);
        writer.unchanged(Mono(2_010), 5);
        let commit = writer.orders(Mono(2_010), &both).commit.unwrap();
        assert_eq!((commit.sequence, commit.last, &commit.holders), (1, true, &ids(&["a", "b", "c"])));
        writer.committed(&commit);
        assert!(writer.is_settled());
    }

    #[test]
    fn a_capture_that_failed_is_made_again() {
        let (mut writer, both) = settled();
        writer.changed(Mono(2_000));
        assert!(writer.orders(Mono(2_100), &both).capture);
        writer.failed(Mono(2_200), 100);
        let again = writer.orders(Mono(2_200), &both);
        assert!(!again.capture);
        assert!(writer.orders(again.wake_at.unwrap(), &both).capture);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Change,
        Captured,
        Failed,
        Unchanged,
        Held { machine: usize, back: u64 },
        Lose { machine: usize, lost: bool },
        Taken,
        End,
        Wait { millis: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Change),
            4 => Just(Step::Captured),
            1 => Just(Step::Failed),
            1 => Just(Step::Unchanged),
            6 => (0_usize..3, 0_u64..3).prop_map(|(machine, back)| Step::Held { machine, back }),
            1 => (0_usize..3, any::<bool>()).prop_map(|(machine, lost)| Step::Lose { machine, lost }),
            4 => Just(Step::Taken),
            1 => Just(Step::End),
            4 => (0_u64..3_000).prop_map(|millis| Step::Wait { millis }),
        ]
    }

    proptest! {
        /// Whatever happens: what is committed is held by whom it names, is never older than before, and is alone only where nobody
        /// else could have it. In the end all is committed, once the replicas have it.
        #[test]
        fn what_is_committed_is_safe_and_all_is_committed_at_last(steps in prop::collection::vec(step(), 0..120)) {
            const NAMES: [&str; 3] = ["b", "c", "d"];
            let mut replicas = replicas(&NAMES, &[]);
            let mut writer = Writer::new(id("a"), Pace::default(), 0, Mono(0));
            let mut now = Mono(0);
            let mut holders: BTreeMap<u64, BTreeSet<NodeId>> = BTreeMap::new();
            let (mut capturing, mut ended, mut newest) = (false, false, 0);
            let mut sent: Option<Commit> = None;
            for step in &steps {
                match step {
                    Step::Change if !ended => writer.changed(now),
                    Step::Captured if capturing => {
                        newest = writer.captured(now, 20);
                        holders.insert(newest, ids(&["a"]));
                        capturing = false;
                    }
                    Step::Failed if capturing => {
                        writer.failed(now, 20);
                        capturing = false;
                    }
                    Step::Unchanged if capturing && newest > 0 => {
                        writer.unchanged(now, 20);
                        capturing = false;
                    }
                    Step::Held { machine, back } if newest > *back => {
                        let sequence = newest - back;
                        writer.held(&id(NAMES[*machine]), sequence);
                        holders.entry(sequence).or_default().insert(id(NAMES[*machine]));
                    }
                    Step::Lose { machine, lost: true } => drop(replicas.lost.insert(id(NAMES[*machine]))),
                    Step::Lose { machine, .. } => drop(replicas.lost.remove(&id(NAMES[*machine]))),
                    Step::Taken => {
                        if let Some(commit) = sent.take() {
                            writer.committed(&commit);
                        }
                    }
                    Step::End => {
                        writer.ended(now);
                        ended = true;
                    }
                    Step::Wait { millis } => now = now.plus(*millis),
                    _ => {}
                }
                let before = writer.committed.clone();
                let orders = writer.orders(now, &replicas);
                capturing |= orders.capture;
                if let Some(commit) = orders.commit {
                    if let Some(before) = before {
                        prop_assert!(commit.sequence >= before.sequence);
                    }
                    if let Some(known) = holders.get(&commit.sequence) {
                        prop_assert!(commit.holders.is_subset(known), "{commit:?} {known:?}");
                    }
                    let alone = commit.holders.len() == 1;
                    prop_assert!(!alone || replicas.wanted.is_subset(&replicas.lost), "{commit:?}");
                    prop_assert!(!commit.last || ended);
                    sent = Some(commit);
                }
                prop_assert!(writer.pending.len() <= PENDING_MAX + 1);
            }
            // From here on all is well.
            replicas.lost.clear();
            writer.ended(now);
            for _ in 0..20 {
                now = now.plus(PAUSE_MAX_MS);
                if capturing {
                    writer.captured(now, 20);
                }
                for name in NAMES {
                    for sequence in 1..=writer.sequence {
                        writer.held(&id(name), sequence);
                    }
                }
                let orders = writer.orders(now, &replicas);
                capturing = orders.capture;
                if let Some(commit) = orders.commit {
                    writer.committed(&commit);
                }
            }
            prop_assert!(writer.is_settled(), "{writer:?}");
        }
    }
}
