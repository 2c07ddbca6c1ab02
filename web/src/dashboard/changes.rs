//! What changes between two generations of a volume, in words; and what a generation becomes as a file.

use flotilla_api::{
    ServiceName, UnixMillis, VolumeName,
    rest::{BranchView, ChangeKind, ChangeView, MomentView, VolumeDiff, VolumeView},
};

use super::format;

/// A generation that a person has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// `<epoch>.<sequence>`
    pub(crate) generation: String,
    pub(crate) at: UnixMillis,
    /// The machine that put it aside, where it is no part of the history.
    pub(crate) aside_on: Option<String>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl From<&MomentView> for Chosen {
    fn from(moment: &MomentView) -> Self {
        let MomentView { generation, files, bytes, .. } = moment;
        let (generation, at) = (generation.generation.clone(), generation.taken_at);
        Self { generation, at, aside_on: None, files: *files, bytes: *bytes }
    }
}

impl From<&BranchView> for Chosen {
    fn from(branch: &BranchView) -> Self {
        let BranchView { generation, machine, kept_at, files, bytes } = branch;
        let aside_on = Some(machine.to_string());
        Self { generation: generation.clone(), at: *kept_at, aside_on, files: *files, bytes: *bytes }
    }
}

/// The generation before this one, as far as it is kept. `history` has the oldest first.
pub(crate) fn before<'a>(history: &'a [MomentView], generation: &str) -> Option<&'a MomentView> {
    let at = history.iter().position(|moment| moment.generation.generation == generation)?;
    history.get(at.checked_sub(1)?)
}

/// The service's volumes, that which the person looks at first.
pub(crate) fn volumes_of(all: &[VolumeView], service: &str, first: &str) -> Vec<VolumeName> {
    let of_service = all.iter().filter(|volume| volume.service.as_str() == service);
    let mut names: Vec<_> = of_service.map(|volume| volume.volume.clone()).collect();
    names.sort_by_key(|name| name.as_str() != first);
    names
}

/// How many names differ.
pub(crate) fn total(diff: &VolumeDiff) -> u64 {
    diff.added + diff.removed + diff.changed
}

/// Names that differ and are not among those that were told.
pub(crate) fn untold(diff: &VolumeDiff) -> Option<String> {
    match total(diff).saturating_sub(diff.changes.len() as u64) {
        0 => None,
        1 => Some("One more is not listed.".to_owned()),
        more => Some(format!("{more} more are not listed.")),
    }
}

/// What a kind of change is called, marked with and coloured like: three ways, so that none of them is needed.
pub(crate) fn appearance(change: ChangeKind) -> (&'static str, &'static str, &'static str) {
    match change {
        ChangeKind::Added => ("+", "added", "good"),
        ChangeKind::Removed => ("−", "removed", "bad"),
        ChangeKind::Changed => ("~", "changed", "warn"),
    }
}

/// "4.0 KiB", "1.0 KiB → 4.0 KiB"; nothing of a directory.
pub(crate) fn sizes(change: &ChangeView) -> Option<String> {
    if change.path.ends_with('/') {
        return None;
    }
    match (change.bytes_from, change.bytes_to) {
        (Some(from), Some(to)) if from != to => Some(format!("{} → {}", format::bytes(from), format::bytes(to))),
        (Some(bytes), _) | (None, Some(bytes)) => Some(format::bytes(bytes)),
        (None, None) => None,
    }
}

/// A name that can't break the line, hide, or turn what stands beside it around.
pub(crate) fn printable(path: &str) -> String {
    let mut shown = String::with_capacity(path.len());
    for character in path.chars() {
        let turns = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || turns {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// "notes-board-17.3.tar"
pub(crate) fn file_name(service: &str, volume: &str, generation: &str) -> String {
    format!("{service}-{volume}-{generation}.tar")
}

/// How large an archive becomes, about: each file has a header, and begins at a block of 512 bytes. Bytes.
pub(crate) fn archive_bytes(chosen: &Chosen) -> u64 {
    /// A header, half a block at the end of a file, and now and then a second header for a long name or an owner.
    const PER_FILE: u64 = 1024;
    /// Two empty blocks end an archive.
    const END: u64 = 1024;
    chosen.bytes.saturating_add(chosen.files.saturating_mul(PER_FILE)).saturating_add(END)
}

/// What a person types who wants to have it without a browser.
pub(crate) fn export_command(service: &str, volume: &str, generation: &str) -> String {
    let file = file_name(service, volume, generation);
    format!("flotilla volume export {service}/{volume} --generation {generation} {file}")
}

/// "`notes` begins anew with generation 17.3; …"
pub(crate) fn restored(service: &ServiceName, generation: &str) -> String {
    format!("`{service}` ends and begins anew with generation {generation}; what it had is kept in its history.")
}

#[cfg(test)]
mod tests {
    use flotilla_api::rest::{GenerationView, VolumeState};

    use super::*;

    fn moment(generation: &str) -> MomentView {
        let generation = GenerationView { generation: generation.to_owned(), taken_at: UnixMillis(1) };
        MomentView { generation, files: 3, bytes: 100, committed: true }
    }

    fn change(path: &str, change: ChangeKind, bytes_from: Option<u64>, bytes_to: Option<u64>) -> ChangeView {
        ChangeView { path: path.to_owned(), change, bytes_from, bytes_to }
    }

    #[test]
    fn the_one_before_is_the_next_older_that_is_kept() {
        let history = [moment("1.4"), moment("1.9"), moment("2.1")];
        let found = |generation| before(&history, generation).map(|moment| moment.generation.generation.as_str());
        assert_eq!(found("2.1"), Some("1.9"));
        assert_eq!(found("1.9"), Some("1.4"));
        assert_eq!(found("1.4"), None, "the oldest");
        assert_eq!(found("7.7"), None, "forgotten meanwhile");
    }

    #[test]
    fn all_volumes_of_the_service_are_looked_at_and_its_own_first() {
        let volume = |service: &str, volume: &str| VolumeView {
            service: service.parse().unwrap(),
            volume: volume.parse().unwrap(),
            machine: None,
            state: VolumeState::Copied,
            message: None,
            bytes: None,
            replicas: 2,
            sync: false,
            encrypted: false,
            history: Default::default(),
            committed: None,
            uncommitted_since: None,
            held_ms: None,
            copies: Vec::new(),
            observed_at: None,
        };
        let all = [volume("mail", "box"), volume("notes", "board"), volume("notes", "index"), volume("notes", "files")];
        let names: Vec<_> = volumes_of(&all, "notes", "index").iter().map(ToString::to_string).collect();
        assert_eq!(names, ["index", "board", "files"]);
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        let mut diff = VolumeDiff {
            from: moment("1.1").generation,
            to: moment("1.2").generation,
            added: 1,
            removed: 0,
            changed: 0,
            bytes_from: 0,
            bytes_to: 0,
            changes: vec![change("a", ChangeKind::Added, None, Some(1))],
        };
        assert_eq!(untold(&diff), None);
        diff.removed = 1;
        assert_eq!(untold(&diff).as_deref(), Some("One more is not listed."));
        diff.changed = 2000;
        assert_eq!((total(&diff), untold(&diff).as_deref()), (2002, Some("2001 more are not listed.")));
    }

    #[test]
    fn sizes_are_told_of_files_and_both_where_they_differ() {
        use ChangeKind::{Added, Changed, Removed};
        assert_eq!(sizes(&change("a", Added, None, Some(5))).as_deref(), Some("5 B"));
        assert_eq!(sizes(&change("a", Removed, Some(2048), None)).as_deref(), Some("2.0 KiB"));
        assert_eq!(sizes(&change("a", Changed, Some(1), Some(1024))).as_deref(), Some("1 B → 1.0 KiB"));
        assert_eq!(sizes(&change("a", Changed, Some(7), Some(7))).as_deref(), Some("7 B"));
        assert_eq!(sizes(&change("old/", Removed, Some(0), None)), None);
    }

    #[test]
    fn a_name_can_not_play_tricks() {
        assert_eq!(printable("Übung/日本 1.txt"), "Übung/日本 1.txt");
        assert_eq!(printable("two\nlines\u{202e}gpj.exe\u{7}"), "two\\nlines\\u{202e}gpj.exe\\u{7}");
    }

    #[test]
    fn an_archive_is_a_little_more_than_its_files() {
        let chosen = Chosen::from(&moment("17.3"));
        assert_eq!(archive_bytes(&chosen), 100 + 3 * 1024 + 1024);
        assert_eq!(archive_bytes(&Chosen { files: u64::MAX, ..chosen }), u64::MAX);
        assert_eq!(
            export_command("notes", "board", "17.3"),
            "flotilla volume export notes/board --generation 17.3 notes-board-17.3.tar"
        );
    }
}
