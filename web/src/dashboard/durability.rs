//! What of a volume is safe from the loss of its machine, and what is not, in words; and its history by days.

use flotilla_api::{
    UnixMillis,
    rest::{ComingView, CopyView, MomentView, VolumeState, VolumeView},
};

use super::format;

/// Copies trail what is written by a moment, always. What has waited longer is worth a sentence. Milliseconds.
const NOTABLE_MS: u64 = 5000;

/// A shorter history is one list; headings would only pull it apart.
const BY_DAY_FROM: usize = 12;

/// What the loss of the machine that writes a volume would take with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Risk {
    /// No other machine has a copy.
    All,
    /// What was written from then on.
    Since(UnixMillis),
}

impl Risk {
    pub(crate) fn of(volume: &VolumeView, now: UnixMillis) -> Option<Self> {
        match (volume.state, volume.uncommitted_since) {
            (VolumeState::Alone, _) => Some(Self::All),
            (_, Some(since)) if now.since(since) > NOTABLE_MS => Some(Self::Since(since)),
            _ => None,
        }
    }
}

/// How one copy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Copied,
    Copying,
    Lost,
    /// There is nothing to copy yet.
    Waiting,
}

impl Standing {
    pub(crate) fn of(copy: &CopyView, volume: VolumeState) -> Self {
        match (copy.lost, copy.holds, volume) {
            (true, ..) => Self::Lost,
            (false, true, _) => Self::Copied,
            (false, false, VolumeState::Empty) if copy.coming.is_none() => Self::Waiting,
            (false, false, _) => Self::Copying,
        }
    }
}

/// "3.0 MiB behind"; nothing of a copy that has all, or of a machine that is lost: what it lacks is not known.
pub(crate) fn behind(copy: &CopyView) -> Option<String> {
    let bytes = copy.behind_bytes.filter(|bytes| *bytes > 0 && !copy.lost)?;
    Some(format!("{} behind", format::bytes(bytes)))
}

/// "1.2 GiB of 12 GiB, 3.0 MiB/s, about 2 min left"
pub(crate) fn on_its_way(coming: &ComingView) -> String {
    let bytes = format::bytes(coming.bytes);
    let far = if coming.of > 0 { format!("{bytes} of {}", format::bytes(coming.of)) } else { bytes };
    let left = coming.left_ms().map(|left| format!(", about {} left", format::coarse(left.max(1000))));
    format!("{far}, {}/s{}", format::bytes(coming.per_second), left.unwrap_or_default())
}

/// "2, within a second", "1", "None"
pub(crate) fn asked_for(replicas: u32, sync: bool) -> String {
    match (replicas, sync) {
        (0, _) => "None".to_owned(),
        (count, true) => format!("{count}, within a second"),
        (count, false) => count.to_string(),
    }
}

/// Whether what is kept of a volume is encrypted.
pub(crate) fn encryption(encrypted: bool) -> &'static str {
    if encrypted { "Yes: its copies and its history" } else { "No" }
}

/// For how long an instance stood still: "34 ms", "1.2 s".
pub(crate) fn pause(millis: u64) -> String {
    if millis < 1000 { format!("{millis} ms") } else { format!("{:.1} s", millis as f64 / 1000.0) }
}

/// "3 volumes: 2 copied, 1 alone"
pub(crate) fn summary(volumes: &[VolumeView]) -> String {
    let counts: Vec<_> = VolumeState::ALL
        .iter()
        .map(|state| (volumes.iter().filter(|volume| volume.state == *state).count(), state.as_str()))
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    format!("{}: {}", format::counted(volumes.len(), "volume", "volumes"), counts.join(", "))
}

/// Whether a person who typed `filter`, in lower case, means it.
pub(crate) fn matches(volume: &VolumeView, filter: &str) -> bool {
    let machine = volume.machine.as_ref().map_or("", AsRef::as_ref);
    let name = format!("{}/{}", volume.service, volume.volume).to_lowercase();
    name.contains(filter)
        || [machine, volume.state.as_str()].iter().any(|text| text.contains(filter))
        || volume.copies.iter().any(|copy| copy.machine.as_str().contains(filter))
}

/// Generations under one heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Day {
    /// Absent where the history is one list.
    pub(crate) date: Option<String>,
    pub(crate) moments: Vec<MomentView>,
}

/// From generations, newest first; `date` knows the time zone.
pub(crate) fn by_day(newest_first: &[MomentView], date: impl Fn(UnixMillis) -> String) -> Vec<Day> {
    if newest_first.len() < BY_DAY_FROM {
        return vec![Day { date: None, moments: newest_first.to_vec() }];
    }
    let date = |moment: &MomentView| date(moment.generation.taken_at);
    newest_first
        .chunk_by(|a, b| date(a) == date(b))
        .filter_map(|day| Some(Day { date: Some(date(day.first()?)), moments: day.to_vec() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use flotilla_api::rest::GenerationView;

    use super::*;

    fn volume(name: &str, state: VolumeState) -> VolumeView {
        VolumeView {
            service: "notes".parse().unwrap(),
            volume: name.parse().unwrap(),
            machine: Some("atlas".parse().unwrap()),
            state,
            message: None,
            bytes: None,
            replicas: 2,
            sync: false,
            encrypted: false,
            history: Default::default(),
            committed: None,
            uncommitted_since: None,
            held_ms: None,
            copies: vec![copy("boreas")],
            observed_at: None,
        }
    }

    fn copy(machine: &str) -> CopyView {
        CopyView {
            machine: machine.parse().unwrap(),
            lost: false,
            holds: true,
            generation: None,
            behind_bytes: Some(3 * 1024 * 1024),
            coming: None,
        }
    }

    fn moment(sequence: u64, taken_at: u64) -> MomentView {
        MomentView {
            generation: GenerationView { generation: format!("3.{sequence}"), taken_at: UnixMillis(taken_at) },
            files: 1,
            bytes: 1,
            committed: true,
        }
    }

    #[test]
    fn a_copy_that_trails_by_a_moment_is_no_risk() {
        let mut copied = volume("data", VolumeState::Copied);
        assert_eq!(Risk::of(&copied, UnixMillis(60_000)), None);
        copied.uncommitted_since = Some(UnixMillis(55_000));
        assert_eq!(Risk::of(&copied, UnixMillis(60_000)), None);
        assert_eq!(Risk::of(&copied, UnixMillis(60_001)), Some(Risk::Since(UnixMillis(55_000))));
        assert_eq!(Risk::of(&copied, UnixMillis(0)), None, "its machine's clock is ahead");
    }

    #[test]
    fn a_volume_without_a_copy_is_at_risk_as_a_whole() {
        let mut alone = volume("data", VolumeState::Alone);
        alone.uncommitted_since = Some(UnixMillis(0));
        assert_eq!(Risk::of(&alone, UnixMillis(60_000)), Some(Risk::All));
        assert_eq!(Risk::of(&volume("data", VolumeState::Empty), UnixMillis(60_000)), None);
    }

    #[test]
    fn a_lost_copy_is_lost_whatever_it_has() {
        let has = copy("boreas");
        assert_eq!(Standing::of(&has, VolumeState::Copied), Standing::Copied);
        assert_eq!(behind(&has).as_deref(), Some("3.0 MiB behind"));
        let lost = CopyView { lost: true, ..has.clone() };
        assert_eq!((Standing::of(&lost, VolumeState::Copying), behind(&lost)), (Standing::Lost, None));
        let lacks = CopyView { holds: false, behind_bytes: Some(0), ..has };
        assert_eq!((Standing::of(&lacks, VolumeState::Copying), behind(&lacks)), (Standing::Copying, None));
        assert_eq!(Standing::of(&lacks, VolumeState::Empty), Standing::Waiting);
    }

    #[test]
    fn a_copy_on_its_way_says_how_far_it_is() {
        const MIB: u64 = 1024 * 1024;
        let generation = "3.4".to_owned();
        let coming =
            ComingView { generation, bytes: 60 * MIB, of: 240 * MIB, per_second: 2 * MIB, observed_at: UnixMillis(0) };
        assert_eq!(on_its_way(&coming), "60 MiB of 240 MiB, 2.0 MiB/s, about 1 min left");
        let stands = ComingView { per_second: 0, ..coming.clone() };
        assert_eq!(on_its_way(&stands), "60 MiB of 240 MiB, 0 B/s");
        let unknown = ComingView { of: 0, ..coming.clone() };
        assert_eq!(on_its_way(&unknown), "60 MiB, 2.0 MiB/s");
        let first = CopyView { holds: false, coming: Some(coming), ..copy("boreas") };
        assert_eq!(Standing::of(&first, VolumeState::Empty), Standing::Copying, "the first one ever");
    }

    #[test]
    fn figures_read_like_words() {
        assert_eq!(asked_for(0, true), "None");
        assert_eq!(asked_for(1, false), "1");
        assert_eq!(asked_for(2, true), "2, within a second");
        assert_eq!(pause(0), "0 ms");
        assert_eq!(pause(999), "999 ms");
        assert_eq!(pause(1234), "1.2 s");
    }

    #[test]
    fn the_summary_counts_the_states_that_there_are() {
        let volumes =
            [volume("a", VolumeState::Alone), volume("b", VolumeState::Copied), volume("c", VolumeState::Copied)];
        assert_eq!(summary(&volumes), "3 volumes: 2 copied, 1 alone");
        assert_eq!(summary(&volumes[..1]), "1 volume: 1 alone");
    }

    #[test]
    fn a_volume_is_found_by_name_state_and_machine() {
        let volume = volume("Data", VolumeState::Copying);
        for found in ["", "notes/da", "copying", "atlas", "boreas"] {
            assert!(matches(&volume, found), "{found}");
        }
        assert!(!matches(&volume, "clio"));
    }

    #[test]
    fn a_long_history_is_told_by_days_and_a_short_one_is_not() {
        const DAY: u64 = 24 * 3600 * 1000;
        let date = |at: UnixMillis| format!("day {}", at.0 / DAY);
        let long: Vec<_> = (0..14).rev().map(|sequence| moment(sequence, sequence * DAY / 4)).collect();
        let days = by_day(&long, date);
        let told: Vec<_> = days.iter().map(|day| (day.date.as_deref().unwrap(), day.moments.len())).collect();
        assert_eq!(told, [("day 3", 2), ("day 2", 4), ("day 1", 4), ("day 0", 4)]);
        assert_eq!(days[0].moments[0].generation.generation, "3.13", "the newest comes first");

        let short = by_day(&long[..11], date);
        assert_eq!(short, [Day { date: None, moments: long[..11].to_vec() }]);
    }
}
