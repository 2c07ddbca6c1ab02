//! The audit trail as stories: what belongs to the loss or the drain of a machine stands together.

use std::collections::BTreeMap;

use flotilla_api::{MachineName, ServiceName, UnixMillis, rest::EventView};

/// What happens so long after a machine was lost, or told to be empty, and concerns what ran there, is of that. Milliseconds.
const BELONGS_MS: u64 = 10 * 60 * 1000;

/// A line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Event(EventView),
    Incident(Incident),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incident {
    pub(crate) kind: Kind,
    pub(crate) machine: MachineName,
    pub(crate) began: UnixMillis,
    /// The machine is back, or takes instances again.
    pub(crate) ended: Option<UnixMillis>,
    /// By the time when they ended there.
    pub(crate) moves: Vec<Move>,
    /// All of it, oldest first.
    pub(crate) events: Vec<EventView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lost,
    Drained,
}

/// What became of a service that ran on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) service: ServiceName,
    /// Where it was placed then.
    pub(crate) to: Option<MachineName>,
    pub(crate) placed_at: Option<UnixMillis>,
    /// When it was seen running again; nobody may have looked.
    pub(crate) runs_at: Option<UnixMillis>,
}

impl Entry {
    /// Where it stands on the timeline: an incident where it began.
    pub(crate) fn at(&self) -> UnixMillis {
        match self {
            Self::Event(event) => event.at,
            Self::Incident(incident) => incident.began,
        }
    }
}

/// From events, newest first, to entries, newest first.
pub(crate) fn grouped(newest_first: Vec<EventView>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    // Positions in `entries` of the last incident of each machine.
    let mut last: BTreeMap<MachineName, usize> = BTreeMap::new();
    let oldest_first: Vec<EventView> = newest_first.into_iter().rev().collect();
    for (index, event) in oldest_first.iter().enumerate() {
        if let Some(incident) = Incident::begun_by(event, &oldest_first[index + 1..]) {
            last.insert(incident.machine.clone(), entries.len());
            entries.push(Entry::Incident(incident));
            continue;
        }
        let place = last
            .values()
            .copied()
            .filter(|place| incident(&entries, *place).is_some_and(|one| one.concerns(event)))
            .max();
        match place.and_then(|place| entries.get_mut(place)) {
            Some(Entry::Incident(incident)) => incident.take(event),
            _ => entries.push(Entry::Event(event.clone())),
        }
    }
    entries.reverse();
    entries
}

fn incident(entries: &[Entry], place: usize) -> Option<&Incident> {
    match entries.get(place) {
        Some(Entry::Incident(incident)) => Some(incident),
        _ => None,
    }
}

impl Incident {
    /// With the services that leave the machine in what follows: a new place may be found before the old one is given up.
    fn begun_by(event: &EventView, following: &[EventView]) -> Option<Self> {
        let kind = match event.kind.as_str() {
            "machine-lost" => Kind::Lost,
            "machine-drained" => Kind::Drained,
            _ => return None,
        };
        let machine = event.machine.clone()?;
        let mut moves: Vec<Move> = Vec::new();
        let leaving = following
            .iter()
            .take_while(|later| later.at.since(event.at) <= BELONGS_MS)
            .filter(|later| later.machine.as_ref() == Some(&machine))
            .take_while(|later| !later.kind.starts_with("machine-"))
            .filter(|later| matches!(later.kind.as_str(), "ended" | "moving"));
        for service in leaving.filter_map(|later| later.service.as_ref()) {
            if moves.iter().all(|moved| moved.service != *service) {
                moves.push(Move { service: service.clone(), to: None, placed_at: None, runs_at: None });
            }
        }
        Some(Self { kind, machine, began: event.at, ended: None, moves, events: vec![event.clone()] })
    }

    fn concerns(&self, event: &EventView) -> bool {
        let here = event.machine.as_ref() == Some(&self.machine);
        if here && matches!(event.kind.as_str(), "machine-back" | "machine-undrained") {
            return self.ended.is_none() && self.ends_with(&event.kind);
        }
        if event.at.since(self.began) > BELONGS_MS {
            return false;
        }
        match (event.kind.as_str(), &event.service) {
            ("ended" | "moving", Some(service)) => here && self.ended.is_none() && self.moved(service).is_some(),
            ("placed", Some(service)) => self.moved(service).is_some_and(|moved| moved.to.is_none()),
            // As it was seen until it ran again.
            ("observed", Some(service)) => {
                self.moved(service).is_some_and(|moved| moved.placed_at.is_some() && moved.runs_at.is_none())
            }
            _ => false,
        }
    }

    fn ends_with(&self, kind: &str) -> bool {
        match self.kind {
            Kind::Lost => kind == "machine-back",
            Kind::Drained => kind == "machine-undrained",
        }
    }

    fn take(&mut self, event: &EventView) {
        match (event.kind.as_str(), &event.service) {
            ("machine-back" | "machine-undrained", _) => self.ended = Some(event.at),
            ("placed", Some(service)) => {
                if let Some(moved) = self.moved_mut(service) {
                    moved.to.clone_from(&event.machine);
                    moved.placed_at = Some(event.at);
                }
            }
            ("observed", Some(service)) if event.message.contains(" is running") => {
                if let Some(moved) = self.moved_mut(service) {
                    moved.runs_at = Some(event.at);
                }
            }
            _ => {}
        }
        self.events.push(event.clone());
    }

    fn moved(&self, service: &ServiceName) -> Option<&Move> {
        self.moves.iter().find(|moved| moved.service == *service)
    }

    fn moved_mut(&mut self, service: &ServiceName) -> Option<&mut Move> {
        self.moves.iter_mut().find(|moved| moved.service == *service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, kind: &str, service: Option<&str>, machine: Option<&str>, message: &str) -> EventView {
        EventView {
            index: (kind != "observed").then_some(at),
            at: UnixMillis(at),
            kind: kind.to_owned(),
            actor: "node".to_owned(),
            from: None,
            service: service.map(|name| name.parse().unwrap()),
            machine: machine.map(|name| name.parse().unwrap()),
            message: message.to_owned(),
        }
    }

    fn newest_first(mut events: Vec<EventView>) -> Vec<EventView> {
        events.reverse();
        events
    }

    #[test]
    fn the_loss_of_a_machine_is_one_story() {
        let entries = grouped(newest_first(vec![
            event(1, "deployed", Some("web"), None, "`web` was deployed."),
            event(1000, "machine-lost", None, Some("atlas"), "The machine `atlas` was lost."),
            event(1010, "ended", Some("notes"), Some("atlas"), ""),
            event(1010, "placed", Some("notes"), Some("boreas"), ""),
            event(1020, "placed", Some("web"), Some("boreas"), ""),
            event(2000, "observed", Some("notes"), None, "`notes` is starting."),
            event(6000, "observed", Some("notes"), None, "`notes` is running."),
            event(7000, "observed", Some("notes"), None, "`notes` is unhealthy."),
            event(90_000, "machine-back", None, Some("atlas"), ""),
            event(90_001, "machine-labelled", None, Some("atlas"), ""),
        ]));
        let [
            Entry::Event(labelled),
            Entry::Event(later),
            Entry::Event(other),
            Entry::Incident(incident),
            Entry::Event(first),
        ] = &entries[..]
        else {
            panic!("{entries:#?}")
        };
        assert_eq!((labelled.kind.as_str(), first.kind.as_str()), ("machine-labelled", "deployed"));
        assert_eq!(other.service.as_ref().unwrap().as_str(), "web", "it did not run on atlas");
        assert!(later.message.contains("unhealthy"), "that is another story");
        assert_eq!(
            (incident.kind, incident.began, incident.ended),
            (Kind::Lost, UnixMillis(1000), Some(UnixMillis(90_000)))
        );
        let [moved] = &incident.moves[..] else { panic!("{incident:?}") };
        assert_eq!(moved.to.as_ref().unwrap().as_str(), "boreas");
        assert_eq!((moved.placed_at, moved.runs_at), (Some(UnixMillis(1010)), Some(UnixMillis(6000))));
        assert_eq!(incident.events.len(), 6);
    }

    #[test]
    fn two_machines_that_are_lost_together_are_two_stories() {
        let entries = grouped(newest_first(vec![
            event(1000, "machine-lost", None, Some("atlas"), ""),
            event(1001, "machine-lost", None, Some("boreas"), ""),
            event(1002, "ended", Some("notes"), Some("boreas"), ""),
            event(1003, "ended", Some("web"), Some("atlas"), ""),
            event(1004, "placed", Some("notes"), Some("clio"), ""),
            event(1005, "placed", Some("web"), Some("clio"), ""),
        ]));
        let [Entry::Incident(boreas), Entry::Incident(atlas)] = &entries[..] else { panic!("{entries:#?}") };
        assert_eq!((boreas.machine.as_str(), boreas.moves[0].service.as_str()), ("boreas", "notes"));
        assert_eq!((atlas.machine.as_str(), atlas.moves[0].service.as_str()), ("atlas", "web"));
    }

    #[test]
    fn a_drain_ends_when_it_is_undone_and_not_when_the_machine_comes_back() {
        let entries = grouped(newest_first(vec![
            event(1000, "machine-drained", None, Some("atlas"), ""),
            event(1001, "placed", Some("notes"), Some("boreas"), ""),
            event(1002, "moving", Some("notes"), Some("atlas"), ""),
            event(1500, "ended", Some("notes"), Some("atlas"), ""),
            event(2000, "machine-undrained", None, Some("atlas"), ""),
        ]));
        let [Entry::Incident(drain)] = &entries[..] else { panic!("{entries:#?}") };
        assert_eq!(drain.moves[0].to.as_ref().unwrap().as_str(), "boreas");
        assert_eq!((drain.kind, drain.ended, drain.moves.len()), (Kind::Drained, Some(UnixMillis(2000)), 1));
        assert_eq!(drain.events.len(), 5);
    }

    #[test]
    fn what_comes_long_after_does_not_belong_to_it() {
        let entries = grouped(newest_first(vec![
            event(1000, "machine-drained", None, Some("atlas"), ""),
            event(1001 + BELONGS_MS, "ended", Some("notes"), Some("atlas"), ""),
        ]));
        assert_eq!(entries.len(), 2);
        assert!(grouped(Vec::new()).is_empty());
    }
}
