//! A model of the replicated log: what a quorum can be reached for is committed, once and in one order.

use std::{collections::BTreeSet, sync::Arc};

use flotilla_core::{Entry, Rejected, State};

#[derive(Debug)]
pub(crate) struct Log {
    /// The state after each entry; the first is that of an empty log.
    states: Vec<Arc<State>>,
    entries: Vec<Entry>,
    pub(crate) voters: BTreeSet<usize>,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { states: vec![Arc::default()], entries: Vec::new(), voters: BTreeSet::from([0]) }
    }

    pub(crate) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn state_at(&self, index: u64) -> Arc<State> {
        self.states[usize::try_from(index).unwrap()].clone()
    }

    pub(crate) fn newest(&self) -> Arc<State> {
        self.state_at(self.len())
    }

    pub(crate) fn is_quorum(&self, of: &BTreeSet<usize>) -> bool {
        2 * of.intersection(&self.voters).count() > self.voters.len()
    }

    /// Commits an entry; a rejected one keeps its index.
    pub(crate) fn commit(&mut self, entry: Entry) -> Result<u64, Rejected> {
        let mut next = State::clone(&self.newest());
        let result = next.apply_at(self.len() + 1, &entry);
        self.entries.push(entry);
        self.states.push(Arc::new(next));
        result.map(|_| self.len())
    }
}
