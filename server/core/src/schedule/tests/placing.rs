//! Where a service goes: one rule per test.

use flotilla_api::rest::LinkPath;

use super::world::{GIB, MINUTE, World, id};
use crate::{
    CommandV1,
    schedule::{FLAP_OUT_FIRST_MS, fleet::kept_out_until},
};

const WEB: &str = "  web: {image: good}";
const DB: &str = "  db: {image: good, volumes: ['data:/data']}";

fn three() -> World {
    World::new(&["atlas", "boreas", "ceres"])
}

#[test]
fn services_go_to_the_machines_with_the_most_room() {
    let mut world = three();
    world.has("boreas", 4_000, 16 * GIB);
    world.has("ceres", 1_000, 2 * GIB);
    world.deploy("  a: {image: good, deploy: {resources: {reservations: {memory: 2g}}}}");
    world.settle();
    assert_eq!(world.only("a"), "boreas");
    for number in 1..=5 {
        let services = format!("  s{number}: {{image: good, deploy: {{resources: {{reservations: {{memory: 1g}}}}}}}}");
        world.deploy_stack(&format!("stack{number}"), &services);
    }
    world.settle();
    let machines: Vec<String> = (1..=5).map(|number| world.only(&format!("s{number}"))).collect();
    assert!(machines.iter().filter(|machine| *machine == "boreas").count() >= 2, "{machines:?}");
    assert!(machines.iter().filter(|machine| *machine == "atlas").count() >= 2, "{machines:?}");
}

#[test]
fn nothing_is_placed_where_what_it_reserves_is_not_left() {
    let mut world = three();
    for name in ["atlas", "boreas", "ceres"] {
        world.has(name, 2_000, 4 * GIB);
    }
    world.deploy("  big: {image: good, deploy: {replicas: 4, resources: {reservations: {memory: 3g}}}}");
    world.settle();
    assert_eq!(world.on("big").len(), 3, "each machine has room for one\n{}", world.story());
    world.has("ceres", 8_000, 8 * GIB);
    world.settle();
    assert_eq!(world.on("big").iter().filter(|machine| *machine == "ceres").count(), 2);
}

#[test]
fn what_nobody_reserved_is_never_a_reason_to_refuse() {
    let mut world = World::new(&["tiny"]);
    world.has("tiny", 500, GIB / 2);
    world.deploy("  web: {image: good, deploy: {replicas: 30}}");
    world.settle();
    assert_eq!(world.on("web").len(), 30);
}

#[test]
fn replicas_of_a_service_are_apart() {
    let mut world = three();
    world.has("ceres", 1_000, GIB);
    world.deploy("  web: {image: good, deploy: {replicas: 3}}");
    world.settle();
    let mut machines = world.on("web");
    machines.sort();
    assert_eq!(machines, ["atlas", "boreas", "ceres"]);
    world.scale("web", 6);
    world.settle();
    for name in ["atlas", "boreas", "ceres"] {
        assert_eq!(world.on("web").iter().filter(|machine| *machine == name).count(), 2);
    }
}

#[test]
fn constraints_on_labels_and_names_hold() {
    let mut world = three();
    world.label("boreas", "zone", "attic");
    world.label("ceres", "zone", "cellar");
    let constrained =
        |constraint: &str| format!("  web: {{image: good, deploy: {{placement: {{constraints: ['{constraint}']}}}}}}");
    for (constraint, machine) in [
        ("node.labels.zone == attic", "boreas"),
        ("node.hostname == ceres", "ceres"),
        ("node.id == id-of-atlas", "atlas"),
    ] {
        world.deploy(&constrained(constraint));
        world.settle();
        assert_eq!(world.only("web"), machine, "{constraint}\n{}", world.story());
    }
    world.deploy("  web: {image: good, deploy: {placement: {constraints: ['node.hostname != atlas', 'node.labels.zone != attic']}}}");
    world.settle();
    assert_eq!(world.only("web"), "ceres");
}

#[test]
fn a_machine_that_is_labelled_otherwise_lets_its_instances_go() {
    let mut world = three();
    world.label("boreas", "zone", "attic");
    world.label("ceres", "zone", "attic");
    world.deploy("  web: {image: good, deploy: {placement: {constraints: ['node.labels.zone == attic']}}}");
    world.settle();
    let first = world.only("web");
    world.label(&first, "zone", "cellar");
    world.settle();
    assert_ne!(world.only("web"), first);
    assert_ne!(world.only("web"), "atlas");
    let last = world.only("web");
    world.label(&last, "zone", "cellar");
    world.settle();
    assert_eq!(world.only("web"), last, "where nothing is right, it goes on where it is");
}

#[test]
fn replicas_are_spread_over_the_values_of_a_label() {
    let mut world = World::new(&["a1", "a2", "a3", "b1"]);
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")] {
        world.label(name, "zone", zone);
    }
    world.deploy("  web: {image: good, deploy: {replicas: 2, placement: {preferences: [{spread: node.labels.zone}]}}}");
    world.settle();
    assert!(world.on("web").contains(&"b1".to_owned()), "{:?}", world.on("web"));
}

#[test]
fn no_machine_runs_more_replicas_than_it_may() {
    let mut world = three();
    world.deploy("  web: {image: good, deploy: {replicas: 5, placement: {max_replicas_per_node: 1}}}");
    world.settle();
    let mut machines = world.on("web");
    machines.sort();
    assert_eq!(machines, ["atlas", "boreas", "ceres"]);
    world.lose("ceres");
    world.settle();
    assert_eq!(world.on("web").len(), 3, "the lost one has nowhere to go\n{}", world.story());
}

#[test]
fn what_depends_on_each_other_is_on_one_machine() {
    let mut world = three();
    world.deploy(
        "  web: {image: good, depends_on: [api-server]}
  api-server: {image: good, depends_on: [db], deploy: {replicas: 2}}
  db: {image: good, volumes: ['data:/data']}
  other: {image: good}",
    );
    world.settle();
    let db = world.only("db");
    assert_eq!(world.only("web"), db);
    assert_eq!(world.on("api-server"), [db.clone(), db], "its replicas too: they reach the database only there");
}

#[test]
fn a_group_with_as_many_replicas_of_each_is_spread_in_pairs() {
    let mut world = three();
    world.deploy("  web: {image: good, depends_on: [cache], deploy: {replicas: 3}}\n  cache: {image: good, deploy: {replicas: 3}}");
    world.settle();
    let mut machines = world.on("web");
    assert_eq!(machines, world.on("cache"));
    machines.sort();
    assert_eq!(machines, ["atlas", "boreas", "ceres"]);
}

#[test]
fn a_dependency_that_comes_later_brings_services_together() {
    let mut world = three();
    world.deploy(DB);
    world.settle();
    let db = world.only("db");
    let elsewhere =
        format!("  web: {{image: good, deploy: {{placement: {{constraints: ['node.hostname != {db}']}}}}}}");
    world.deploy(&elsewhere);
    world.settle();
    assert_ne!(world.only("web"), db);
    world.deploy(&format!("  web: {{image: good, depends_on: [db]}}\n{DB}"));
    world.settle();
    assert_eq!((world.only("web"), world.only("db")), (db.clone(), db), "its data stays where it is");
}

#[test]
fn services_of_a_stack_are_together_where_nothing_speaks_against_it() {
    let mut world = three();
    for name in ["atlas", "boreas", "ceres"] {
        world.has(name, 16_000, 64 * GIB);
    }
    world.deploy_stack("one", "  a: {image: good}\n  b: {image: good}\n  c: {image: good}");
    world.settle();
    assert_eq!(world.only("a"), world.only("b"));
    assert_eq!(world.only("a"), world.only("c"));
}

#[test]
fn mains_power_is_better_than_a_battery() {
    let mut world = three();
    world.runs_on_battery("atlas");
    world.runs_on_battery("ceres");
    world.deploy(WEB);
    world.settle();
    assert_eq!(world.only("web"), "boreas");
}

#[test]
fn good_links_are_better_than_relayed_and_far_ones() {
    let mut world = three();
    world.link("atlas", "boreas", LinkPath::Relayed, 80.0);
    world.link("boreas", "atlas", LinkPath::Relayed, 80.0);
    world.link("boreas", "ceres", LinkPath::Direct, 80.0);
    world.link("atlas", "ceres", LinkPath::Direct, 1.0);
    world.step(1_000);
    world.deploy(WEB);
    world.settle();
    assert_eq!(world.only("web"), "ceres");
}

#[test]
fn a_machine_that_has_the_image_is_better() {
    let mut world = three();
    world.machine("ceres").images.push("good".to_owned());
    world.step(1_000);
    world.deploy(WEB);
    world.settle();
    assert_eq!(world.only("web"), "ceres");
    let assigned = world.service("web").placements[0].reason.clone();
    assert_eq!(assigned, "it has the image");
}

#[test]
fn nothing_new_comes_to_a_machine_whose_engine_does_not_answer() {
    let mut world = three();
    let now = world.now;
    for name in ["atlas", "boreas"] {
        world.machine(name).engine_gone_since = Some(now);
    }
    world.step(1_000);
    world.deploy(WEB);
    world.settle();
    assert_eq!(world.only("web"), "ceres");
}

#[test]
fn a_machine_that_flaps_is_kept_out_for_a_growing_time() {
    let world = World::new(&["atlas"]);
    let at = |minute: u64| world.now.plus(minute * MINUTE);
    assert_eq!(kept_out_until(&[at(0), at(10)]), None);
    assert_eq!(kept_out_until(&[at(0), at(10), at(20)]), Some(at(20).plus(FLAP_OUT_FIRST_MS)));
    assert_eq!(kept_out_until(&[at(0), at(10), at(20), at(30)]), Some(at(30).plus(2 * FLAP_OUT_FIRST_MS)));
    assert_eq!(kept_out_until(&[at(0), at(10), at(75)]), None, "not within an hour");
    let often: Vec<_> = (0..16).map(at).collect();
    assert_eq!(kept_out_until(&often), Some(at(15 + 240)), "not for ever");
}

#[test]
fn a_machine_that_flaps_gets_nothing_new_while_others_will_do() {
    let mut world = three();
    for _ in 0..3 {
        world.lose("ceres");
        world.run_for(MINUTE);
        world.bring_back("ceres");
        world.run_for(MINUTE);
    }
    world.deploy("  web: {image: good, deploy: {replicas: 2}}\n  lone: {image: good}");
    world.run_for(2 * MINUTE);
    assert!(!world.on("web").contains(&"ceres".to_owned()));
    let wake = world.plan().wake_at.expect("it looks again when the time is over");
    assert!(wake > world.now && wake <= world.now.plus(FLAP_OUT_FIRST_MS));
    world.lose("atlas");
    world.lose("boreas");
    world.run_for(2_000);
    assert_eq!(world.on("web"), ["ceres", "ceres"], "where nothing else is left, it will do");
}

#[test]
fn a_machine_that_flaps_stands_by_where_no_other_can() {
    let mut world = World::new(&["atlas", "boreas"]);
    for _ in 0..3 {
        world.lose("boreas");
        world.run_for(MINUTE);
        world.bring_back("boreas");
        world.run_for(MINUTE);
    }
    world.deploy(WEB);
    world.run_for(MINUTE);
    assert!(kept_out_until(&world.state.machines[&id("boreas")].losses).is_some_and(|until| until > world.now));
    assert_eq!(world.only("web"), "atlas");
    assert_eq!(world.service("web").standby, [id("boreas")], "the service would go there");
}

#[test]
fn a_machine_that_joined_a_moment_ago_gets_something_once_it_has_a_lease() {
    let mut world = World::new(&["atlas"]);
    world.join("boreas");
    world.has("boreas", 64_000, 64 * GIB);
    world.machine("boreas").gone = true;
    world.deploy(WEB);
    world.decide();
    assert_eq!(world.only("web"), "atlas");
    world.machine("boreas").gone = false;
    world.deploy_stack("other", "  more: {image: good}");
    world.decide();
    assert_eq!(world.only("more"), "boreas");
}

#[test]
fn what_fits_only_if_another_gives_way_is_found() {
    let mut world = World::new(&["large", "small"]);
    world.has("large", 8_000, 10 * GIB);
    world.has("small", 8_000, 5 * GIB);
    // The best place for `a` is `large`, but then `b` fits nowhere.
    world.deploy(
        "  a: {image: good, deploy: {resources: {reservations: {cpus: 2, memory: 4g}}}}
  b: {image: good, deploy: {resources: {reservations: {cpus: 1, memory: 3g}}, placement: {constraints: ['node.hostname == small']}}}
  c: {image: good, deploy: {resources: {reservations: {cpus: 7, memory: 1g}}}}",
    );
    world.settle();
    assert_eq!((world.only("b"), world.only("a"), world.only("c")), ("small".into(), "large".into(), "small".into()));
}

#[test]
fn a_service_that_comes_again_finds_its_data() {
    let mut world = three();
    world.deploy(DB);
    world.settle();
    let first = world.only("db");
    world.apply(CommandV1::Remove { service: super::world::name("db"), volumes: false }).unwrap();
    world.settle();
    world.deploy_stack("filler", "  filler: {image: good, deploy: {placement: {constraints: ['node.id != none']}, resources: {reservations: {memory: 1g}}}}");
    world.settle();
    world.deploy(DB);
    world.settle();
    assert_eq!(world.only("db"), first);
    assert_eq!(world.service("db").home, Some(id(&first)));
}
