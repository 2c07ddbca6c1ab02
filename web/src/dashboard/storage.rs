//! What the disk of a machine holds, by kind.

use flotilla_api::{
    UnixMillis,
    rest::{MachineResources, ScrubView},
};

use super::format;

/// A part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    /// What it is, for those who ask.
    pub(crate) meaning: &'static str,
    /// Of its colour.
    pub(crate) class: &'static str,
    pub(crate) bytes: u64,
}

/// What volumes take up, everything else, and what is free: together the whole disk. Nothing where the disk or the volumes
/// were not measured.
pub(crate) fn parts(resources: &MachineResources) -> Vec<Part> {
    let Some(storage) = resources.storage.filter(|_| resources.disk_total_bytes > 0) else { return Vec::new() };
    let part = |name, meaning, class, bytes| Part { name, meaning, class, bytes };
    let used = resources.disk_total_bytes.saturating_sub(resources.disk_free_bytes);
    // Files with holes, or that share their blocks, take up less than their sizes say.
    let other = used.saturating_sub(volumes(resources).unwrap_or(0));
    vec![
        part("Written here", "files of volumes that are written on this machine", "written", storage.written_bytes),
        part("Copies", "files of volumes that are written elsewhere", "copies", storage.copies_bytes),
        part(
            "History",
            "generations of all of them: what they share once, compressed",
            "objects",
            storage.objects_bytes,
        ),
        part("Other", "images, containers, the system, and whatever else is on the disk", "other", other),
        part("Free", "room that is left", "free", resources.disk_free_bytes),
    ]
}

/// Of the bar, in percent. What is there is seen, however little it is.
pub(crate) fn width(part: &Part, parts: &[Part]) -> f64 {
    const SEEN: f64 = 0.6;
    let all: u64 = parts.iter().map(|part| part.bytes).sum();
    let share = format::share(part.bytes, all) * 100.0;
    if part.bytes > 0 { share.max(SEEN) } else { 0.0 }
}

/// What volumes take up in all; absent where that was not measured. Bytes.
pub(crate) fn volumes(resources: &MachineResources) -> Option<u64> {
    let storage = resources.storage?;
    Some(storage.written_bytes.saturating_add(storage.copies_bytes).saturating_add(storage.objects_bytes))
}

/// "34 GiB free of 40 GiB; volumes take up 1.2 GiB"
pub(crate) fn words(resources: &MachineResources) -> String {
    let disk =
        format!("{} free of {}", format::bytes(resources.disk_free_bytes), format::bytes(resources.disk_total_bytes));
    match volumes(resources) {
        Some(volumes) => format!("{disk}; volumes take up {}", format::bytes(volumes)),
        None => disk,
    }
}

/// How it stands with reading all that a machine keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scrubbed {
    /// The first time is not over yet.
    Never,
    /// When, and the result in words.
    Well(UnixMillis, String),
    /// What is damaged, no machine had.
    Damaged(UnixMillis, String),
}

impl Scrubbed {
    pub(crate) fn of(view: &ScrubView) -> Self {
        let Some(finished) = view.finished else { return Self::Never };
        let objects = format::counted(usize::try_from(finished.objects).unwrap_or(usize::MAX), "object", "objects");
        let all = match finished.files_bytes {
            0 => objects,
            files => format!("{objects} and {} of copies", format::bytes(files)),
        };
        let lost = finished.damaged.saturating_sub(finished.repaired);
        let result = match (finished.damaged, lost) {
            (0, _) => format!("{all}, nothing damaged"),
            (damaged, 0) => format!("{all}, {damaged} damaged and repaired"),
            (damaged, lost) => format!("{all}, {damaged} damaged, and nothing to repair {lost} of them from"),
        };
        let at = finished.finished_at;
        if lost > 0 { Self::Damaged(at, result) } else { Self::Well(at, result) }
    }
}

/// "12 % of 500 objects", "40 % of 1.2 GiB of copies"; nothing where none is under way.
pub(crate) fn scrubbing(view: &ScrubView) -> Option<String> {
    let running = view.running?;
    let damage = if running.damaged > 0 { format!(", {} damaged", running.damaged) } else { String::new() };
    let (share, all) = match running.files_of_bytes {
        0 => (format::share(running.objects, running.of), format!("{} objects", running.of)),
        all => (format::share(running.files_bytes, all), format!("{} of copies", format::bytes(all))),
    };
    Some(format!("{} of {all}{damage}", format::percent(share)))
}

#[cfg(test)]
mod tests {
    use flotilla_api::rest::{ScrubbedView, ScrubbingView, StorageView};

    use super::*;

    fn disk() -> MachineResources {
        let storage = StorageView { objects_bytes: 100, written_bytes: 50, copies_bytes: 30, ..StorageView::default() };
        MachineResources {
            disk_total_bytes: 1000,
            disk_free_bytes: 400,
            storage: Some(storage),
            ..MachineResources::default()
        }
    }

    #[test]
    fn the_parts_are_the_whole_disk() {
        let parts = parts(&disk());
        let told: Vec<_> = parts.iter().map(|part| (part.class, part.bytes)).collect();
        assert_eq!(told, [("written", 50), ("copies", 30), ("objects", 100), ("other", 420), ("free", 400)]);
        assert_eq!(parts.iter().map(|part| part.bytes).sum::<u64>(), 1000);
        assert_eq!(width(&parts[4], &parts), 40.0);
    }

    #[test]
    fn files_with_holes_make_nothing_negative() {
        let mut sparse = disk();
        sparse.storage = Some(StorageView { written_bytes: 5000, ..StorageView::default() });
        let parts = parts(&sparse);
        assert_eq!(parts[3].bytes, 0);
        assert!(parts.iter().map(|part| width(part, &parts)).sum::<f64>() <= 100.0 + 5.0 * 0.6);
        assert_eq!(width(&parts[1], &parts), 0.0, "what is not there is not drawn");
    }

    #[test]
    fn it_is_told_what_reading_all_of_it_came_to() {
        let view = |damaged, repaired| {
            let at = UnixMillis(7);
            let finished =
                ScrubbedView { began_at: at, finished_at: at, objects: 20, files_bytes: 0, damaged, repaired };
            ScrubView { finished: Some(finished), running: None }
        };
        let well = |words: &str| Scrubbed::Well(UnixMillis(7), words.to_owned());
        assert_eq!(Scrubbed::of(&ScrubView::default()), Scrubbed::Never);
        assert_eq!(Scrubbed::of(&view(0, 0)), well("20 objects, nothing damaged"));
        assert_eq!(Scrubbed::of(&view(2, 2)), well("20 objects, 2 damaged and repaired"));
        let bad = "20 objects, 3 damaged, and nothing to repair 2 of them from".to_owned();
        assert_eq!(Scrubbed::of(&view(3, 1)), Scrubbed::Damaged(UnixMillis(7), bad));

        let running = ScrubbingView { objects: 60, of: 500, ..ScrubbingView::default() };
        let told = |running| scrubbing(&ScrubView { finished: None, running });
        assert_eq!(told(Some(running)).as_deref(), Some("12 % of 500 objects"));
        let damaged = ScrubbingView { damaged: 1, ..running };
        assert_eq!(told(Some(damaged)).as_deref(), Some("12 % of 500 objects, 1 damaged"));
        assert_eq!(told(None), None);
        let copies = ScrubbingView { files_bytes: 512, files_of_bytes: 2048, ..running };
        assert_eq!(told(Some(copies)).as_deref(), Some("25 % of 2.0 KiB of copies"));
    }

    #[test]
    fn a_machine_that_has_not_measured_says_no_more_than_it_knows() {
        let old = MachineResources { storage: None, ..disk() };
        assert!(parts(&old).is_empty());
        assert_eq!(words(&old), "400 B free of 1000 B");
        assert_eq!(words(&disk()), "400 B free of 1000 B; volumes take up 180 B");
    }
}
