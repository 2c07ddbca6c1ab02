//! Machines that only store: what they keep, and that nothing else comes to them.

use super::world::{World, id, name};
use crate::{
    CommandV1, images,
    node::{Members, wanted_members},
    schedule::{GRACE_MS, explain},
    state::KeyId,
};

const VAULT: &str = "  db: {image: good, volumes: ['vault:/data']}";
const MIXED: &str = "  db: {image: good, volumes: ['vault:/data', 'data:/plain']}";

impl World {
    fn with_key(names: &[&str], storage: &[&str]) -> Self {
        let mut world = Self::new(names);
        world.apply(CommandV1::UseValueKey { key: KeyId("key".to_owned()), instead_of: None }).unwrap();
        storage.iter().for_each(|name| world.join_storage(name));
        world
    }

    fn kept_by(&self, service: &str) -> Vec<String> {
        self.service(service).data.replicas.iter().map(|id| self.state.machines[id].name().to_string()).collect()
    }

    #[track_caller]
    fn begun(mut self, services: &str) -> (Self, String) {
        self.deploy(services);
        self.settle();
        let home = self.only("db");
        (self, home)
    }
}

#[test]
fn one_of_two_copies_is_where_it_can_only_be_stored_and_the_other_where_it_can_go_on() {
    let (world, home) = World::with_key(&["atlas", "boreas", "ceres"], &["cellar"]).begun(VAULT);
    let kept = world.kept_by("db");
    assert_eq!((kept.len(), kept[1].as_str()), (2, "cellar"), "{kept:?}");
    assert!(kept[0] != home && kept[0] != "cellar");
}

#[test]
fn what_is_not_encrypted_never_goes_there() {
    let (world, _) = World::with_key(&["atlas"], &["cellar"]).begun("  db: {image: good, volumes: ['data:/data']}");
    assert_eq!(world.kept_by("db"), Vec::<String>::new());
    let (world, home) = World::with_key(&["atlas", "boreas", "ceres"], &["cellar"]).begun(MIXED);
    assert_eq!(world.kept_by("db").len(), 3, "two for what is not encrypted, and it");
    for mount in world.service("db").spec().written() {
        let keepers = world.service("db").keepers(&world.state, mount);
        assert_eq!(keepers.len(), 2);
        assert!(!keepers.contains(&&id(&home)));
        assert_eq!(keepers.contains(&&id("cellar")), mount.rules.encrypted, "{}", mount.volume);
    }
}

#[test]
fn where_there_is_no_other_it_keeps_the_only_copy() {
    let (world, home) = World::with_key(&["atlas"], &["cellar"]).begun(VAULT);
    assert_eq!((home.as_str(), world.kept_by("db")), ("atlas", vec!["cellar".to_owned()]));
    let (world, _) = World::with_key(&["atlas"], &["cellar", "loft"]).begun(VAULT);
    assert_eq!(world.kept_by("db"), ["cellar", "loft"]);
}

#[test]
fn it_comes_before_one_that_is_drained() {
    let mut world = World::with_key(&["atlas", "boreas"], &["cellar"]);
    world.drain("boreas");
    let (world, home) = world.begun("  db: {image: good, volumes: ['one:/data']}");
    assert_eq!((home.as_str(), world.kept_by("db")), ("atlas", vec!["cellar".to_owned()]));
}

#[test]
fn one_that_is_lost_for_long_gives_its_copy_to_one_that_is_not() {
    let (mut world, _) = World::with_key(&["atlas", "boreas", "ceres"], &["cellar"]).begun(VAULT);
    world.lose("cellar");
    world.settle();
    assert_eq!(world.kept_by("db")[1], "cellar", "a restart, or an evening");
    world.run_far(GRACE_MS);
    assert!(!world.kept_by("db").contains(&"cellar".to_owned()));
    assert_eq!(world.kept_by("db").len(), 2);
}

#[test]
fn nothing_runs_or_waits_there_and_no_image_comes() {
    let (mut world, home) = World::with_key(&["atlas", "boreas"], &["cellar"]).begun(VAULT);
    assert!(world.service("db").standby.iter().all(|id| !world.state.stores_only(id)));
    assert!(!images::holders(&world.state, world.service("db")).contains(&id("cellar")));
    world.deploy_stack("more", "  web: {image: good, deploy: {replicas: 6}}");
    world.settle();
    assert!(!world.on("web").contains(&"cellar".to_owned()));
    let told = explain(&world.input(), &name("db")).unwrap();
    let verdict = told.machines.iter().find(|verdict| verdict.machine.as_str() == "cellar").unwrap();
    assert_eq!(verdict.why, "it only stores: nothing runs there");

    // Even where there is nothing else.
    for machine in ["atlas", "boreas"].into_iter().filter(|name| *name != home).chain([home.as_str()]) {
        world.lose(machine);
    }
    world.run_far(1_000);
    assert!(!world.on("web").contains(&"cellar".to_owned()) && !world.on("db").contains(&"cellar".to_owned()));
}

#[test]
fn a_service_whose_data_is_only_stored_goes_on_anywhere_with_what_is_stored() {
    let (mut world, home) = World::with_key(&["atlas", "boreas", "ceres"], &["cellar"]).begun(VAULT);
    world.commit(&name("db"), [id(&home), id("cellar")].into(), false);
    let committed = world.service("db").data.committed.as_ref().unwrap().name;
    let has_copy = world.kept_by("db")[0].clone();
    world.lose(&home);
    world.settle();
    let next = world.only("db");
    assert!(next != home && next != "cellar", "{next}, and {has_copy} has not got it yet");
    let placement = &world.service("db").placements[0];
    assert_eq!(placement.source, Some(committed));

    // The next one, too, though the machine that was to go on never wrote.
    world.lose(&next);
    world.settle();
    let third = world.only("db");
    assert!(third != home && third != next && third != "cellar");
    assert_eq!(world.service("db").placements[0].source, Some(committed));
}

#[test]
fn a_machine_that_has_the_data_and_can_run_it_comes_first() {
    let (mut world, home) = World::with_key(&["atlas", "boreas", "ceres"], &["cellar"]).begun(VAULT);
    let copy = world.kept_by("db")[0].clone();
    world.commit(&name("db"), [id(&home), id(&copy), id("cellar")].into(), false);
    world.lose(&home);
    world.settle();
    assert_eq!(world.only("db"), copy);
}

#[test]
fn a_volume_that_nobody_stores_is_waited_for_as_ever() {
    let (mut world, home) = World::with_key(&["atlas", "boreas", "ceres"], &["cellar"]).begun(VAULT);
    world.commit(&name("db"), [id(&home)].into(), false);
    world.lose(&home);
    world.settle();
    assert!(world.on("db").iter().all(|machine| *machine == home), "{:?}", world.on("db"));
}

#[test]
fn a_removed_machine_is_no_reason_to_wait_either() {
    let (mut world, home) = World::with_key(&["atlas", "boreas", "ceres"], &["cellar"]).begun(VAULT);
    world.commit(&name("db"), [id(&home), id("cellar")].into(), false);
    world.lose(&home);
    world.apply(CommandV1::RemoveMachine { machine: id(&home) }).unwrap();
    world.settle();
    assert!(world.only("db") != "cellar");
}

#[test]
fn it_never_votes() {
    let world = World::with_key(&["atlas", "boreas"], &["cellar", "loft", "shed"]);
    let present = Members { voters: [id("atlas")].into(), learners: [].into() };
    let wanted = wanted_members(world.now, &world.state, &id("atlas"), &present).unwrap();
    assert_eq!(wanted.voters, [id("atlas")].into(), "two voters are worse than one, and the others do not count");
    let world = World::with_key(&["atlas", "boreas", "ceres"], &["cellar", "loft"]);
    let wanted = wanted_members(world.now, &world.state, &id("atlas"), &present).unwrap();
    assert_eq!(wanted.voters, [id("atlas"), id("boreas"), id("ceres")].into());
    assert_eq!(wanted.learners, [id("cellar"), id("loft")].into());
}
