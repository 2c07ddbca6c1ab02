//! Which machine is told of which generation, and when.
//!
//! A machine that is fetching a generation goes on with that one, whatever is made meanwhile: it would never come to an end where there is
//! a new one before it has one. Then it is told of the oldest that waits to be committed, and of the newest where none waits.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{NodeId, VolumeName};

use crate::lease::Mono;

/// A machine that has not said that it has a generation is told of it again after this time. Milliseconds.
const AGAIN_MS: u64 = 2_000;
/// The same while the limit of this machine holds back what can wait: another one that has the generation may send it. Milliseconds.
const HELD_BACK_AGAIN_MS: u64 = 60_000;
/// For how long a machine may fetch one generation while there are newer ones: a first copy over a slow line. Milliseconds.
const FETCHING_MAX_MS: u64 = 24 * 3_600_000;
/// Generations that may be offered still. Older ones are superseded by those that came after.
const MADE_MAX: usize = 64;

/// What there is to offer, and what was.
#[derive(Clone, Debug, Default)]
pub struct Offers {
    /// Sequences of the generations that may be offered.
    made: BTreeSet<u64>,
    /// The newest that each machine has.
    copies: BTreeMap<NodeId, u64>,
    /// What each machine was told of last.
    told: BTreeMap<NodeId, Told>,
    /// Volumes of each generation that a machine was told of, and has.
    has: BTreeMap<(u64, NodeId), BTreeSet<VolumeName>>,
    /// Machines that gave up a copy, as the state has it.
    dropped: BTreeMap<NodeId, u64>,
}

#[derive(Clone, Debug)]
struct Told {
    sequence: u64,
    volumes: BTreeSet<VolumeName>,
    first: Mono,
    last: Mono,
    awaited: bool,
}

/// What holds at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub now: Mono,
    /// The other machines that shall have copies.
    pub wanted: &'a BTreeSet<NodeId>,
    /// Machines that can be told anything.
    pub reached: &'a BTreeSet<NodeId>,
    /// The newest generation that the log has; 0 if there is none.
    pub committed: u64,
    /// Something waits for what is offered: a successor, or a person.
    pub awaited: bool,
    /// This machine's limit sends nothing now that can wait.
    pub held_back: bool,
}

/// A machine is to be told of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub machine: NodeId,
    pub sequence: u64,
    /// Those that it shall have.
    pub volumes: BTreeSet<VolumeName>,
    pub awaited: bool,
}

impl Offers {
    /// A generation is on this machine's disk. Where there are many, the oldest are forgotten, except for what a machine is fetching.
    pub fn made(&mut self, sequence: u64) {
        self.made.insert(sequence);
        let told = self.sequences();
        let mut over = self.made.len().saturating_sub(MADE_MAX);
        self.made.retain(|sequence| {
            let goes = over > 0 && !told.contains(sequence);
            over -= usize::from(goes);
            !goes
        });
        self.has.retain(|(sequence, _), _| self.made.contains(sequence));
    }

    /// May this generation be offered still?
    pub fn knows(&self, sequence: u64) -> bool {
        self.made.contains(&sequence)
    }

    /// Of the generations that machines were told of: they must not be deleted.
    pub fn sequences(&self) -> BTreeSet<u64> {
        self.told.values().map(|told| told.sequence).collect()
    }

    /// What the state says of machines that gave up a copy (`Data::dropped`). Those that did since it was told last: they have nothing of
    /// what they had.
    pub fn follow(&mut self, dropped: &BTreeMap<NodeId, u64>) -> Vec<NodeId> {
        let news = dropped.iter().filter(|(machine, at)| self.dropped.get(*machine) != Some(*at));
        let news: Vec<NodeId> = news.map(|(machine, _)| machine.clone()).collect();
        for machine in &news {
            self.told.remove(machine);
            self.copies.remove(machine);
            self.has.retain(|(_, holder), _| holder != machine);
        }
        self.dropped.clone_from(dropped);
        news
    }

    /// A machine says that it has all that it was told of, and when it gave up a copy last. False where it was told of something else last,
    /// or one of the two does not know yet what the other knows of that.
    pub fn held(&mut self, machine: &NodeId, sequence: u64, dropped: Option<u64>) -> bool {
        if self.dropped.get(machine).copied() != dropped {
            return false;
        }
        let Some(told) = self.told.get(machine).filter(|told| told.sequence == sequence) else { return false };
        self.has.insert((sequence, machine.clone()), told.volumes.clone());
        self.copies.insert(machine.clone(), sequence);
        true
    }

    /// The newest generation that each machine has.
    pub fn copies(&self) -> impl Iterator<Item = (&NodeId, u64)> {
        self.copies.iter().map(|(machine, sequence)| (machine, *sequence))
    }

    pub fn has(&self, machine: &NodeId, sequence: u64, volume: &VolumeName) -> bool {
        self.has.get(&(sequence, machine.clone())).is_some_and(|volumes| volumes.contains(volume))
    }

    /// Who is to be told now. `volumes`: those of a generation that a machine shall have.
    pub fn due(&mut self, terms: &Terms<'_>, volumes: impl Fn(&NodeId, u64) -> BTreeSet<VolumeName>) -> Vec<Offer> {
        self.told.retain(|machine, _| terms.wanted.contains(machine));
        let machines = terms.wanted.intersection(terms.reached);
        let due: Vec<Offer> = machines.filter_map(|machine| self.due_to(machine, terms, &volumes)).collect();
        for Offer { machine, sequence, volumes, awaited } in due.iter().cloned() {
            let former = self.told.get(&machine).filter(|told| told.sequence == sequence && told.volumes == volumes);
            let first = former.map_or(terms.now, |told| told.first);
            self.told.insert(machine, Told { sequence, volumes, first, last: terms.now, awaited });
        }
        due
    }

    fn due_to(
        &self,
        machine: &NodeId,
        terms: &Terms<'_>,
        volumes: impl Fn(&NodeId, u64) -> BTreeSet<VolumeName>,
    ) -> Option<Offer> {
        let has = |sequence: u64| self.copies.get(machine).is_some_and(|copy| *copy >= sequence);
        let told = self.told.get(machine);
        let is_fetching = |told: &&Told| {
            !has(told.sequence) && terms.now.since(told.first) < FETCHING_MAX_MS && self.made.contains(&told.sequence)
        };
        let sequence = match told.filter(is_fetching) {
            Some(told) => told.sequence,
            None => {
                let oldest = self.made.range(terms.committed + 1..).next().filter(|oldest| !has(**oldest));
                *oldest.or(self.made.last())?
            }
        };
        // Who shall have what may have changed since.
        let volumes = volumes(machine, sequence);
        let told = told.filter(|told| told.sequence == sequence && told.volumes == volumes);
        let again = if terms.held_back && !terms.awaited { HELD_BACK_AGAIN_MS } else { AGAIN_MS };
        let lately = told.is_some_and(|told| terms.now.since(told.last) < again && (told.awaited || !terms.awaited));
        let done = told.is_some() && has(sequence);
        if done || lately || volumes.is_empty() {
            return None;
        }
        Some(Offer { machine: machine.clone(), sequence, volumes, awaited: terms.awaited })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId(name.to_owned())
    }

    fn volumes(names: &[&str]) -> BTreeSet<VolumeName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    struct World {
        offers: Offers,
        wanted: BTreeSet<NodeId>,
        reached: BTreeSet<NodeId>,
        committed: u64,
        awaited: bool,
        held_back: bool,
    }

    impl World {
        /// The first generation is made, and both others shall have it.
        fn new() -> Self {
            let both = BTreeSet::from([id("b"), id("c")]);
            let mut offers = Offers::default();
            offers.made(1);
            Self { offers, wanted: both.clone(), reached: both, committed: 0, awaited: false, held_back: false }
        }

        fn due_of(&mut self, now: u64, shall_have: &[&str]) -> Vec<(String, u64)> {
            let terms = Terms {
                now: Mono(now),
                wanted: &self.wanted,
                reached: &self.reached,
                committed: self.committed,
                awaited: self.awaited,
                held_back: self.held_back,
            };
            let due = self.offers.due(&terms, |_, _| volumes(shall_have));
            assert!(due.iter().all(|offer| offer.volumes == volumes(shall_have) && offer.awaited == self.awaited));
            due.into_iter().map(|offer| (offer.machine.0, offer.sequence)).collect()
        }

        fn due(&mut self, now: u64) -> Vec<(String, u64)> {
            self.due_of(now, &["data"])
        }
    }

    fn told(all: &[(&str, u64)]) -> Vec<(String, u64)> {
        all.iter().map(|(machine, sequence)| ((*machine).to_owned(), *sequence)).collect()
    }

    #[test]
    fn whoever_has_not_said_that_it_has_it_is_told_again() {
        let mut world = World::new();
        assert_eq!(world.due(0), told(&[("b", 1), ("c", 1)]));
        assert!(world.offers.held(&id("b"), 1, None));
        assert_eq!(world.due(AGAIN_MS - 1), []);
        assert_eq!(world.due(AGAIN_MS), told(&[("c", 1)]));
        assert!(world.offers.has(&id("b"), 1, &"data".parse().unwrap()));
        assert!(!world.offers.has(&id("c"), 1, &"data".parse().unwrap()));
        assert!(!world.offers.held(&id("c"), 2, None), "of that it was never told");
        assert!(world.offers.held(&id("c"), 1, None));
        assert_eq!(world.due(1_000_000), []);
    }

    #[test]
    fn a_machine_that_can_not_be_reached_is_told_when_it_can_and_one_that_is_not_wanted_never() {
        let mut world = World::new();
        world.reached.remove(&id("c"));
        world.wanted.remove(&id("b"));
        assert_eq!(world.due(0), []);
        world.reached.insert(id("c"));
        assert_eq!(world.due(1), told(&[("c", 1)]));
        world.wanted.remove(&id("c"));
        assert_eq!((world.due(AGAIN_MS + 1), world.offers.sequences()), (vec![], BTreeSet::new()));
    }

    #[test]
    fn who_fetches_goes_on_with_that_and_then_gets_what_waits_longest() {
        let mut world = World::new();
        world.wanted.remove(&id("c"));
        assert_eq!(world.due(0), told(&[("b", 1)]));
        (2..=4).for_each(|sequence| world.offers.made(sequence));
        world.committed = 1;
        assert_eq!(world.due(AGAIN_MS), told(&[("b", 1)]), "it has not come to an end");
        world.offers.held(&id("b"), 1, None);
        assert_eq!(world.due(AGAIN_MS + 1), told(&[("b", 2)]));
        world.offers.held(&id("b"), 2, None);
        world.committed = 4;
        assert_eq!(world.due(AGAIN_MS + 2), told(&[("b", 4)]), "none waits");
        // For ever it does not go on.
        world.offers.made(5);
        assert_eq!(world.due(AGAIN_MS + 2 + FETCHING_MAX_MS), told(&[("b", 5)]));
    }

    #[test]
    fn what_can_wait_is_offered_rarely_while_a_limit_holds_it_back_and_what_is_awaited_at_once() {
        let mut world = World::new();
        world.wanted.remove(&id("c"));
        world.held_back = true;
        assert_eq!(world.due(0), told(&[("b", 1)]));
        assert_eq!(world.due(HELD_BACK_AGAIN_MS - 1), []);
        assert_eq!(world.due(HELD_BACK_AGAIN_MS), told(&[("b", 1)]));
        world.awaited = true;
        assert_eq!(world.due(HELD_BACK_AGAIN_MS + 1), told(&[("b", 1)]), "it has to know");
        assert_eq!(world.due(HELD_BACK_AGAIN_MS + AGAIN_MS), []);
        assert_eq!(world.due(HELD_BACK_AGAIN_MS + AGAIN_MS + 1), told(&[("b", 1)]));
    }

    #[test]
    fn other_volumes_are_another_offer() {
        let mut world = World::new();
        world.wanted.remove(&id("c"));
        assert_eq!(world.due_of(0, &[]), [], "it shall have none of them");
        assert_eq!(world.due_of(1, &["data"]), told(&[("b", 1)]));
        world.offers.held(&id("b"), 1, None);
        assert_eq!(world.due_of(2, &["data"]), []);
        assert_eq!(world.due_of(3, &["cache", "data"]), told(&[("b", 1)]));
        world.offers.held(&id("b"), 1, None);
        assert!(world.offers.has(&id("b"), 1, &"cache".parse().unwrap()));
    }

    #[test]
    fn who_gave_up_its_copy_has_nothing_until_it_says_so_again() {
        let mut world = World::new();
        world.wanted.remove(&id("c"));
        world.due(0);
        assert!(world.offers.held(&id("b"), 1, None));
        let dropped = BTreeMap::from([(id("b"), 7)]);
        assert_eq!(world.offers.follow(&dropped), [id("b")]);
        assert_eq!(world.offers.follow(&dropped), []);
        assert!(!world.offers.has(&id("b"), 1, &"data".parse().unwrap()));
        assert_eq!(world.offers.copies().next(), None);

        // It shall have one again.
        assert_eq!(world.due(1), told(&[("b", 1)]));
        assert!(!world.offers.held(&id("b"), 1, None), "that was said before");
        assert!(!world.offers.held(&id("b"), 1, Some(9)), "it knows of something that is not known here");
        assert!(world.offers.held(&id("b"), 1, Some(7)));
        assert!(world.offers.has(&id("b"), 1, &"data".parse().unwrap()));
    }

    #[test]
    fn the_oldest_are_forgotten_except_for_what_is_being_fetched() {
        let mut world = World::new();
        world.due(0);
        (2..=2 * MADE_MAX as u64).for_each(|sequence| world.offers.made(sequence));
        assert!(world.offers.knows(1) && !world.offers.knows(2) && world.offers.knows(2 * MADE_MAX as u64));
        assert_eq!(world.offers.made.len(), MADE_MAX);
    }
}
