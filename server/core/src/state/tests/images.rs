//! Which machines hold images, and which images stay.

use super::*;
use crate::{command::ImageChange, images};

const OTHER: &str = "id-of-atlas";
const THIRD: &str = "id-of-boreas";

fn id(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

impl Cluster {
    fn of_three() -> Self {
        let mut cluster = Self::of_two();
        cluster.join("boreas");
        cluster
    }

    fn holders(&self, name: &str) -> BTreeSet<&str> {
        images::holders(&self.state, self.service(name)).into_iter().map(|machine| machine.0.as_str()).collect()
    }

    fn wants(&self, machine: &str) -> Vec<&str> {
        images::wanted(&self.state, &id(machine)).into_keys().collect()
    }
}

#[test]
fn an_image_is_where_its_service_runs_and_where_it_stands_by() {
    let mut cluster = Cluster::of_three();
    cluster.deploy(&[spec("web", "web:1")]).unwrap();
    cluster.assign("web", 1, OTHER).unwrap();
    cluster.decide(vec![Change::StandBy { service: service("web"), machines: vec![id(THIRD)] }]).unwrap();
    assert_eq!(cluster.holders("web"), BTreeSet::from([OTHER, THIRD]));
    assert_eq!(cluster.wants(THIRD), ["web:1"]);
    assert!(cluster.wants("node").is_empty());
}

#[test]
fn the_loss_of_a_machine_takes_an_image_from_nobody() {
    let mut cluster = Cluster::of_three();
    cluster.deploy(&[spec("web", "web:1")]).unwrap();
    assert_eq!(cluster.holders("web").len(), 2, "before it runs anywhere");
    cluster.assign("web", 1, OTHER).unwrap();
    let first = cluster.holders("web").into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert!(first.len() == 2 && first.contains(&OTHER.to_owned()));
    // Whichever was chosen beside the one that runs it: when that is lost, the last one is.
    let beside = first.iter().find(|machine| *machine != OTHER).unwrap().clone();
    cluster.apply(CommandV1::MachineLost { term: 1, machine: id(&beside) }).unwrap();
    let there = cluster.holders("web").into_iter().filter(|machine| **machine != beside).count();
    assert_eq!(there, 2);
    let mut alone = Cluster::new();
    alone.deploy(&[spec("web", "web:1")]).unwrap();
    assert_eq!(alone.holders("web"), BTreeSet::from(["node"]));
}

#[test]
fn a_drained_machine_is_sent_no_image_that_it_does_not_run() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[spec("web", "web:1")]).unwrap();
    cluster.assign("web", 1, OTHER).unwrap();
    cluster
        .apply(CommandV1::SetAvailability {
            machine: node(),
            availability: Availability::Drained { since: UnixMillis(1) },
        })
        .unwrap();
    assert_eq!(cluster.holders("web"), BTreeSet::from([OTHER]));
}

#[test]
fn services_choose_different_machines() {
    let mut cluster = Cluster::of_three();
    let names: Vec<String> = (0..30).map(|number| format!("web{number}")).collect();
    cluster.deploy(&names.iter().map(|name| spec(name, "web:1")).collect::<Vec<_>>()).unwrap();
    for machine in ["node", OTHER, THIRD] {
        let holds = names.iter().filter(|name| cluster.holders(name).contains(machine)).count();
        assert!((10..=30).contains(&holds), "{machine} holds {holds} of 30 twice held images");
    }
}

#[test]
fn the_image_that_a_service_is_rolled_back_to_stays_at_hand() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[spec("web", "web:1")]).unwrap();
    cluster.assign("web", 1, OTHER).unwrap();
    cluster.apply(CommandV1::ConfirmRevision { service: service("web"), revision: Revision(1) }).unwrap();
    cluster.deploy(&[spec("web", "web:2")]).unwrap();
    assert_eq!(cluster.wants(OTHER), ["web:1", "web:2"]);
    assert_eq!(cluster.wants("node"), ["web:1", "web:2"]);
    cluster.deploy(&[spec("web", "web:3")]).unwrap();
    let uses = |image: &str| {
        let uses = images::uses(&cluster.state, |key| key == image);
        uses.into_iter().map(|it| (it.revision.0, it.current)).collect::<Vec<_>>()
    };
    assert_eq!(uses("web:1"), [(1, true)], "it runs still");
    assert_eq!(uses("web:2"), [(2, false)]);
    assert_eq!(uses("web:3"), [(3, true)]);
    assert!(uses("web:4").is_empty());
}

#[test]
fn one_machine_gets_an_image_from_its_registry_for_all() {
    let mut cluster = Cluster::of_three();
    let replicated = ServiceSpec { replicas: 2, ..spec("web", "web:1") };
    cluster.deploy(&[replicated]).unwrap();
    cluster.assign("web", 1, THIRD).unwrap();
    cluster.assign("web", 2, OTHER).unwrap();
    assert_eq!(images::puller(&cluster.state, "web:1", |_| true), Some(&id(THIRD)));
    assert_eq!(images::puller(&cluster.state, "web:1", |machine| *machine != id(THIRD)), Some(&id(OTHER)));
    assert_eq!(images::puller(&cluster.state, "web:1", |_| false), None);
    assert_eq!(images::puller(&cluster.state, "web:2", |_| true), None);
}

#[test]
fn what_nobody_names_stays_for_a_week_and_for_an_hour_where_there_is_no_room() {
    let since = UnixMillis(1_000);
    let after = |millis: u64| since.plus(millis);
    assert!(!images::is_disposable(since, after(7 * DAY_MS - 1), false));
    assert!(images::is_disposable(since, after(7 * DAY_MS), false));
    assert!(!images::is_disposable(since, after(3_599_999), true));
    assert!(images::is_disposable(since, after(3_600_000), true));
    assert!(!images::is_disposable(since, UnixMillis(0), true), "a clock that was set back");
}

#[test]
fn what_became_of_images_is_told_and_changes_nothing_else() {
    let mut cluster = Cluster::new();
    let note = |change, images: &[&str]| CommandV1::NoteImages {
        change,
        images: images.iter().map(|&image| image.to_owned()).collect(),
    };
    let before = State { applied: cluster.state.applied + 1, ..cluster.state.clone() };
    let applied = cluster.apply(note(ImageChange::Pushed, &["notes:1"])).unwrap();
    assert_eq!(cluster.state, before);
    assert_eq!(applied.events[0].message, "The image `notes:1` was pushed.");
    let applied = cluster.apply(note(ImageChange::Collected, &["notes:1", "web:2"])).unwrap();
    assert_eq!(
        applied.events[0].message,
        "The images `notes:1` and `web:2` were removed, as nothing needs them any more."
    );
    for bad in [&[][..], &[""], &["a b"], &["x".repeat(513).as_str()], &["x"; 101]] {
        assert_eq!(cluster.refused(note(ImageChange::Removed, bad)), ErrorCode::InvalidRequest, "{bad:?}");
    }
}
