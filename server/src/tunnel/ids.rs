//! Which stream ids a browser has used on one connection and service.

use std::collections::BTreeMap;

/// Ids that are not in a row with others. A browser that counts up has one row, or two; one that picks ids at random is told to
/// reconnect after so many.
const ROWS_MAX: usize = 4096;

/// A set of ids as rows of consecutive ones, so that it stays small for ever.
#[derive(Debug, Default)]
pub(super) struct UsedIds {
    /// First id of a row, and the last.
    rows: BTreeMap<u32, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Used,
    TooScattered,
}

impl UsedIds {
    pub(super) fn contains(&self, id: u32) -> bool {
        self.rows.range(..=id).next_back().is_some_and(|(_, last)| *last >= id)
    }

    /// Marks an id as used.
    pub(super) fn take(&mut self, id: u32) -> Result<(), Refused> {
        if self.contains(id) {
            return Err(Refused::Used);
        }
        let before = id.checked_sub(1).and_then(|before| {
            let (first, last) = self.rows.range(..=before).next_back()?;
            (*last == before).then_some(*first)
        });
        let after = id.checked_add(1).and_then(|after| self.rows.get(&after).map(|last| (after, *last)));
        if before.is_none() && after.is_none() && self.rows.len() >= ROWS_MAX {
            return Err(Refused::TooScattered);
        }
        let last = after.map_or(id, |(first, last)| {
            self.rows.remove(&first);
            last
        });
        self.rows.insert(before.unwrap_or(id), last);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counting_up_takes_one_row() {
        let mut used = UsedIds::default();
        for id in 1..10_000 {
            assert_eq!(used.take(id), Ok(()));
        }
        assert_eq!(used.rows.len(), 1);
        assert_eq!(used.take(5000), Err(Refused::Used));
    }

    #[test]
    fn scattered_ids_are_refused_before_they_fill_memory() {
        let mut used = UsedIds::default();
        let refused = (0..).map(|n| used.take(n * 2)).position(|taken| taken == Err(Refused::TooScattered));
        assert_eq!(refused, Some(ROWS_MAX));
    }

    proptest! {
        #[test]
        fn an_id_is_taken_once(ids in proptest::collection::vec(0_u32..300, 0..600)) {
            let (mut used, mut naive) = (UsedIds::default(), HashSet::new());
            for id in ids {
                prop_assert_eq!(used.take(id).is_ok(), naive.insert(id));
                prop_assert!(used.contains(id));
            }
            for id in 0..300 {
                prop_assert_eq!(used.contains(id), naive.contains(&id));
            }
        }

        #[test]
        fn the_ends_of_the_range_are_ids_like_others(ids in proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(u32::MAX - 1)], 0..12)) {
            let (mut used, mut naive) = (UsedIds::default(), HashSet::new());
            for id in ids {
                prop_assert_eq!(used.take(id).is_ok(), naive.insert(id));
            }
        }
    }
}
