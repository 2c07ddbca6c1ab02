//! Which generations of a volume are kept. Every machine that has copies comes to the same by itself, from the times of the generations.

use std::collections::{BTreeMap, BTreeSet};

pub use flotilla_api::spec::HistoryRules as Rules;
use flotilla_api::{UnixMillis, spec::ServiceSpec};

use crate::state::GenerationName;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
const WEEK_MS: u64 = 7 * DAY_MS;

/// One generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub name: GenerationName,
    /// By the clock of the machine that took it.
    pub taken_at: UnixMillis,
}

/// What holds for all volumes of a service. A generation is of all of them, and they go back together: the most that one of them asks
/// for, of each kind, is kept of each.
pub fn rules(spec: &ServiceSpec) -> Rules {
    let asked = spec.written().map(|mount| mount.rules.history);
    let most = asked.reduce(|a, b| Rules {
        last: a.last.max(b.last),
        hourly: a.hourly.max(b.hourly),
        daily: a.daily.max(b.daily),
        weekly: a.weekly.max(b.weekly),
    });
    most.unwrap_or_default()
}

/// Those that stay. An hour, day or week is one since 1970; of a clock that was wrong nothing is lost but what is old by it.
pub fn kept(moments: &[Moment], rules: &Rules, now: UnixMillis) -> BTreeSet<GenerationName> {
    let mut newest_first = moments.to_vec();
    newest_first.sort_by_key(|moment| std::cmp::Reverse(moment.name));
    let mut kept: BTreeSet<GenerationName> =
        newest_first.iter().take(rules.last as usize).map(|moment| moment.name).collect();
    for (length, count) in [(HOUR_MS, rules.hourly), (DAY_MS, rules.daily), (WEEK_MS, rules.weekly)] {
        let current = now.0 / length;
        let mut spans: BTreeMap<u64, GenerationName> = BTreeMap::new();
        for moment in &newest_first {
            let span = (moment.taken_at.0 / length).min(current);
            if current - span < u64::from(count) {
                spans.entry(span).or_insert(moment.name);
            }
        }
        kept.extend(spans.into_values());
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn moment(sequence: u64, age_ms: u64) -> Moment {
        Moment { name: GenerationName { epoch: 1, sequence }, taken_at: UnixMillis(NOW.0 - age_ms) }
    }

    /// One every ten minutes, for a year.
    fn year() -> Vec<Moment> {
        let count = 365 * 24 * 6;
        (0..count).map(|number| moment(count - number, number * HOUR_MS / 6)).collect()
    }

    #[test]
    fn a_year_is_kept_as_hours_days_and_weeks() {
        let kept = kept(&year(), &Rules::default(), NOW);
        assert!((10 + 22..=10 + 24 + 14 + 8).contains(&kept.len()), "{}", kept.len());
        let ages: Vec<u64> = year()
            .iter()
            .filter(|moment| kept.contains(&moment.name))
            .map(|moment| NOW.since(moment.taken_at))
            .collect();
        assert_eq!(ages[0], 0);
        let oldest = ages.last().unwrap();
        assert!((6 * WEEK_MS..8 * WEEK_MS).contains(oldest), "{oldest}");
        assert!(ages.iter().filter(|age| **age < DAY_MS).count() >= 23 + 8);
    }

    #[test]
    fn the_newest_stay_however_old_they_are() {
        let old: Vec<Moment> = (1..=20).map(|sequence| moment(sequence, 50 * WEEK_MS)).collect();
        let names: Vec<u64> = kept(&old, &Rules::default(), NOW).into_iter().map(|name| name.sequence).collect();
        assert_eq!(names, (11..=20).collect::<Vec<_>>());
    }

    #[test]
    fn a_service_keeps_the_most_that_one_of_its_volumes_asks_for() {
        let text = "services: {web: {image: a, volumes: ['a:/a', 'b:/b', 'c:/c:ro']}}\nvolumes:\n  a: {x-flotilla: {history: \
                    {last: 1, hourly: 0, daily: 30}}}\n  b: {x-flotilla: {history: {last: 5, hourly: 48, daily: 0, weekly: 0}}}\n  \
                    c: {x-flotilla: {history: {last: 200}}}\n";
        let mut spec = crate::compose::read(text, Some("s"), &BTreeMap::new()).unwrap().services.remove(0);
        let expected = Rules { last: 5, hourly: 48, daily: 30, weekly: 8 };
        assert_eq!(rules(&spec), expected, "it does not write the last one");
        spec.volumes.clear();
        assert_eq!(rules(&spec), Rules::default());
    }

    #[test]
    fn a_rule_of_its_own_keeps_less() {
        let rules = Rules { last: 1, hourly: 0, daily: 7, weekly: 0 };
        let kept = kept(&year(), &rules, NOW);
        assert!((7..=8).contains(&kept.len()), "{}", kept.len());
        let oldest = year().iter().filter(|it| kept.contains(&it.name)).map(|it| NOW.since(it.taken_at)).max();
        assert!(oldest.unwrap() < 7 * DAY_MS);
    }

    #[test]
    fn one_from_the_future_counts_as_of_now() {
        let moments = [moment(1, 0), Moment { taken_at: NOW.plus(30 * DAY_MS), ..moment(2, 0) }];
        let rules = Rules { last: 0, hourly: 1, daily: 0, weekly: 0 };
        assert_eq!(kept(&moments, &rules, NOW), BTreeSet::from([moments[1].name]));
    }

    proptest! {
        /// Forgetting bit by bit comes to no more than forgetting at once, and the newest always stays.
        #[test]
        fn what_was_forgotten_is_not_missed(ages in prop::collection::vec(0_u64..100 * DAY_MS, 1..60), later in 0_u64..10 * DAY_MS) {
            let mut ages = ages;
            ages.sort_unstable_by(|a, b| b.cmp(a));
            let all: Vec<Moment> = ages.iter().zip(1..).map(|(age, sequence)| moment(sequence, *age)).collect();
            let rules = Rules { last: 3, hourly: 4, daily: 5, weekly: 6 };
            let first = kept(&all, &rules, NOW);
            prop_assert!(first.contains(&all[all.len() - 1].name));
            let left: Vec<Moment> = all.iter().filter(|moment| first.contains(&moment.name)).copied().collect();
            prop_assert_eq!(kept(&left, &rules, NOW), first, "twice is as once");
            let later = NOW.plus(later);
            let (at_once, in_two) = (kept(&all, &rules, later), kept(&left, &rules, later));
            prop_assert!(in_two.len() <= at_once.len() + rules.last as usize, "{} {}", in_two.len(), at_once.len());
        }
    }
}
