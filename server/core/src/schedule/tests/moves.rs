//! When an instance leaves its machine, and how: one rule per test.

use super::world::{GIB, MINUTE, World, id, name};
use crate::{
    CommandV1,
    schedule::{ENGINE_PATIENCE_MS, QUIET_MS, check_drain},
    state::Phase,
};

const WEB: &str = "  web: {image: good}";
const DB: &str = "  db: {image: good, volumes: ['data:/data']}";
const CACHE: &str = "  cache: {image: good, volumes: ['cache:/cache']}";

fn three() -> World {
    World::new(&["atlas", "boreas", "ceres"])
}

fn settled(services: &str) -> World {
    let mut world = three();
    world.deploy(services);
    world.settle();
    world.told.clear();
    world
}

#[test]
fn what_ran_on_a_lost_machine_runs_elsewhere_by_the_next_decision() {
    let mut world = settled(WEB);
    let first = world.only("web");
    world.lose(&first);
    assert!(world.decide());
    assert_ne!(world.only("web"), first);
    assert_eq!(world.told.len(), 2, "an end and an assignment\n{}", world.story());
    let reason = world.service("web").placements[0].reason.clone();
    assert!(reason.starts_with(&format!("`{first}` was lost; ")), "{reason}");
    world.bring_back(&first);
    world.settle();
    assert_ne!(world.only("web"), first, "it has no need to go back");
}

#[test]
fn a_take_over_goes_to_the_machine_that_stood_by() {
    for services in [WEB, CACHE] {
        let mut world = settled(services);
        let service = services.trim().split(':').next().unwrap();
        let standby = world.service(service).standby.clone();
        assert_eq!(standby.len(), 1, "{}", world.story());
        let first = world.only(service);
        assert_ne!(standby[0], id(&first));
        world.lose(&first);
        world.decide();
        assert_eq!(id(&world.only(service)), standby[0]);
        world.settle();
        assert_ne!(world.service(service).standby, standby, "now another one stands by");
    }
}

#[test]
fn a_standby_is_kept_where_another_is_only_a_little_better() {
    let mut world = settled(WEB);
    let standby = world.service("web").standby.clone();
    let spare =
        ["atlas", "boreas", "ceres"].into_iter().find(|name| id(name) != standby[0] && *name != world.only("web"));
    world.machine(spare.unwrap()).images.push("good".to_owned());
    world.settle();
    assert_eq!(world.service("web").standby, standby);
    assert_eq!(world.count("StandBy"), 0);
}

#[test]
fn a_service_with_data_on_a_lost_machine_waits_for_it() {
    let mut world = settled(DB);
    let first = world.only("db");
    let epoch = world.service("db").placements[0].epoch;
    assert_eq!(world.service("db").standby, [], "nobody else could take over");
    world.lose(&first);
    world.settle();
    assert_eq!(world.told, [""; 0], "nothing is done");
    let waits = crate::schedule::waiting(&world.input(), &name("db")).unwrap();
    assert_eq!(waits, format!("waits for `{first}`, which alone has its data: it is lost"));
    world.bring_back(&first);
    world.settle();
    assert_eq!(world.service("db").placements[0].epoch, epoch, "its instance is thawed, not begun anew");
    assert_eq!(crate::schedule::waiting(&world.input(), &name("db")), None);
}

#[test]
fn what_depends_on_waiting_data_waits_with_it() {
    let mut world = settled(&format!("{DB}\n  web: {{image: good, depends_on: [db]}}"));
    let first = world.only("db");
    world.lose(&first);
    world.settle();
    assert_eq!((world.only("db"), world.only("web")), (first.clone(), first));
}

#[test]
fn data_that_may_be_lost_begins_empty_elsewhere() {
    let mut world = settled(CACHE);
    let first = world.only("cache");
    world.lose(&first);
    world.settle();
    let second = world.only("cache");
    assert_ne!(second, first);
    assert_eq!(world.service("cache").home, Some(id(&second)));
    world.bring_back(&first);
    world.settle();
    assert_eq!(world.only("cache"), second, "what was written there is newer");
}

#[test]
fn a_service_that_writes_a_volume_is_not_given_away_before_the_lease_has_ended() {
    let mut world = settled(CACHE);
    let first = world.only("cache");
    world.machine(&first).slow = true;
    world.apply(CommandV1::MachineLost { term: 1, machine: id(&first) }).unwrap();
    assert!(!world.decide(), "a new leader does not know yet that its lease has ended\n{}", world.story());
    world.machine(&first).gone = true;
    assert!(world.decide());
    assert_ne!(world.only("cache"), first);
}

#[test]
fn a_drained_machine_is_left_without_a_moment_of_silence() {
    let mut world = settled("  web: {image: good, deploy: {replicas: 2}}\n  lone: {image: good}");
    let first = world.only("lone");
    world.drain(&first);
    for _ in 0..60 {
        world.step(500);
        assert!(world.answering("lone") >= 1, "{}", world.story());
        assert!(world.answering("web") >= 2, "{}", world.story());
    }
    world.settle();
    assert_ne!(world.only("lone"), first);
    assert!(!world.on("web").contains(&first));
    assert_eq!(world.service("lone").placements.len(), 1, "the former one has ended");
}

#[test]
fn what_has_only_just_begun_goes_on_until_its_successor_is_ready() {
    let mut world = settled("  other: {image: good}");
    world.deploy_stack("young", "  lone: {image: good}");
    world.decide();
    world.step(500);
    let first = world.only("lone");
    world.drain(&first);
    for _ in 0..3 {
        world.step(500);
        let former = world.service("lone").placements.iter().find(|placement| placement.machine == id(&first));
        assert_eq!(former.map(|placement| placement.phase), Some(Phase::Leaving), "{}", world.story());
    }
    world.settle();
    assert_ne!(world.only("lone"), first);
}

#[test]
fn what_writes_a_volume_ends_before_it_begins_elsewhere() {
    let mut world = settled(CACHE);
    let first = world.only("cache");
    world.machine(&first).slow = true;
    world.drain(&first);
    world.run_for(5 * MINUTE);
    assert_eq!(world.service("cache").placements[0].phase, Phase::Vacating);
    assert_eq!(world.answering("cache"), 1, "its machine has not heard of it yet");
    world.machine(&first).slow = false;
    world.settle();
    assert_ne!(world.only("cache"), first);
    assert_eq!(world.answering("cache"), 1);
}

#[test]
fn a_group_moves_together_and_begins_with_what_writes() {
    let mut world = settled(&format!("{CACHE}\n  web: {{image: good, depends_on: [cache]}}"));
    let first = world.only("cache");
    world.drain(&first);
    world.settle();
    assert_ne!(world.only("cache"), first);
    assert_eq!(world.only("cache"), world.only("web"));
}

#[test]
fn a_drain_that_finds_no_room_says_what_lacks_where() {
    let mut world = three();
    for machine in ["boreas", "ceres"] {
        world.has(machine, 4_000, 2 * GIB);
    }
    world.deploy("  big: {image: good, deploy: {resources: {reservations: {memory: 3g}}}}");
    world.settle();
    let before = world.state.clone();
    let refused = check_drain(&world.input(), &id("atlas")).unwrap_err().0;
    assert_eq!(
        refused.message,
        "`atlas` can't be drained, and nothing was changed: `big` finds no place (on `boreas` 3 GiB of memory are reserved, and \
         it has 1.8 GiB left; on `ceres` 3 GiB of memory are reserved, and it has 1.8 GiB left)"
    );
    assert_eq!(world.state, before);
    check_drain(&world.input(), &id("boreas")).unwrap();
    world.has("boreas", 4_000, 8 * GIB);
    check_drain(&world.input(), &id("atlas")).unwrap();
    assert!(check_drain(&world.input(), &id("nobody")).is_err());
}

#[test]
fn a_drain_is_refused_where_data_would_stay_behind() {
    let world = settled(&format!("{DB}\n  web: {{image: good, depends_on: [db]}}"));
    let first = world.only("db");
    let refused = check_drain(&world.input(), &id(&first)).unwrap_err().0;
    assert!(
        refused
            .message
            .ends_with(&format!("`db` and `web` can't go elsewhere, because only `{first}` has the data of `db`")),
        "{}",
        refused.message
    );
    assert_eq!(world.state.data_only_on(&id(&first)), [&name("db")]);
}

#[test]
fn a_drain_that_was_taken_back_leaves_what_has_not_moved() {
    let mut world = settled(WEB);
    let first = world.only("web");
    world.drain(&first);
    world.decide();
    let second = world.only("web");
    world.lose(&second);
    world.undrain(&first);
    world.settle();
    assert_eq!(world.only("web"), first, "{}", world.story());
    assert_eq!(world.count("Stay"), 1);
}

#[test]
fn a_drained_machine_that_is_lost_has_nothing_to_wait_for() {
    let mut world = settled(WEB);
    let first = world.only("web");
    world.drain(&first);
    world.decide();
    world.lose(&first);
    world.settle();
    assert_ne!(world.only("web"), first);
    assert_eq!(world.service("web").placements.len(), 1);
}

#[test]
fn nothing_comes_back_by_itself_without_need() {
    let mut world = settled("  a: {image: good}\n  b: {image: good}\n  c: {image: good}");
    let first = world.only("a");
    world.drain(&first);
    world.settle();
    let places = [world.only("a"), world.only("b"), world.only("c")];
    world.undrain(&first);
    world.told.clear();
    world.settle();
    assert_eq!([world.only("a"), world.only("b"), world.only("c")], places);
    assert_eq!(world.count("Leave"), 0);
}

#[test]
fn replicas_go_apart_again_when_a_machine_is_back_for_a_while() {
    let mut world = settled("  web: {image: good, deploy: {replicas: 3}}");
    world.lose("ceres");
    world.run_for(5 * MINUTE);
    assert!(!world.on("web").contains(&"ceres".to_owned()));
    world.bring_back("ceres");
    world.run_for(QUIET_MS / 2);
    assert!(!world.on("web").contains(&"ceres".to_owned()), "it has to stay for a while first");
    for _ in 0..240 {
        world.step(500);
        assert!(world.answering("web") >= 3, "{}", world.story());
    }
    assert!(world.on("web").contains(&"ceres".to_owned()), "{}", world.story());
}

#[test]
fn a_new_machine_takes_over_from_one_that_is_crowded_one_at_a_time() {
    let mut world = World::new(&["atlas"]);
    let services: Vec<String> = (0..7)
        .map(|number| format!("  s{number}: {{image: good, deploy: {{resources: {{reservations: {{memory: 1g}}}}}}}}"))
        .collect();
    world.deploy(&services.join("\n"));
    world.settle();
    world.join("boreas");
    world.has("boreas", 4_000, 8 * GIB);
    world.told.clear();
    world.settle();
    let moved = (0..7).filter(|number| world.only(&format!("s{number}")) == "boreas").count();
    assert!((1..=4).contains(&moved), "{moved}\n{}", world.story());
    let times: Vec<&str> = world
        .told
        .iter()
        .filter(|told| told.contains(" Leave "))
        .map(|told| told.split_whitespace().next().unwrap())
        .collect();
    let distinct: std::collections::BTreeSet<&str> = times.iter().copied().collect();
    assert_eq!(distinct.len(), times.len(), "one at a time");
    world.told.clear();
    world.run_far(60 * MINUTE);
    assert_eq!(world.count("Leave"), 0, "it has come to rest");
}

#[test]
fn what_keeps_data_is_never_moved_for_balance() {
    let mut world = World::new(&["atlas"]);
    let services: Vec<String> = (0..3)
        .map(|number| {
            format!("  s{number}: {{image: good, volumes: ['{}:/d'], deploy: {{resources: {{reservations: {{memory: 2g}}}}}}}}", ["data", "more", "cache"][number])
        })
        .collect();
    world.deploy(&services.join("\n"));
    world.settle();
    world.join("boreas");
    world.has("boreas", 4_000, 8 * GIB);
    world.settle();
    for number in 0..3 {
        assert_eq!(world.only(&format!("s{number}")), "atlas");
    }
}

#[test]
fn instances_leave_a_machine_whose_engine_stays_away() {
    let mut world = settled(&format!("{WEB}\n{CACHE}"));
    let (web, cache) = (world.only("web"), world.only("cache"));
    let now = world.now;
    for machine in [&web, &cache] {
        world.machine(machine).engine_gone_since = Some(now);
    }
    world.run_for(ENGINE_PATIENCE_MS - 5_000);
    assert_eq!(world.only("web"), web, "it may come back");
    world.run_for(30_000);
    assert_ne!(world.only("web"), web, "{}", world.story());
    assert_eq!(world.only("cache"), cache, "nobody can say that it has ended");
}

#[test]
fn a_service_scaled_down_ends_what_is_too_much() {
    let mut world = settled(&format!("  web: {{image: good, deploy: {{replicas: 3}}}}\n{DB}"));
    world.scale("web", 1);
    world.scale("db", 0);
    world.settle();
    assert_eq!(world.on("web").len(), 1);
    assert_eq!(world.service("db").placements, []);
    world.scale("db", 1);
    world.settle();
    assert_eq!(world.on("db").len(), 1);
}

#[test]
fn a_service_that_was_removed_may_write_until_its_machine_says_otherwise() {
    let mut world = settled(CACHE);
    let first = world.only("cache");
    world.machine(&first).slow = true;
    world.apply(CommandV1::Remove { service: name("cache"), volumes: true }).unwrap();
    world.deploy(CACHE);
    world.run_for(MINUTE);
    assert_eq!(world.on("cache"), [""; 0], "{}", world.story());
    let waits = crate::schedule::waiting(&world.input(), &name("cache")).unwrap();
    assert_eq!(waits, format!("waits until a former instance on `{first}` has ended for certain"));
    world.machine(&first).slow = false;
    world.settle();
    assert_eq!(world.on("cache").len(), 1);
    assert_eq!(world.state.leftovers, []);
}

#[test]
fn a_machine_that_was_removed_holds_its_volumes_until_its_lease_ends() {
    let mut world = settled(CACHE);
    let first = world.only("cache");
    world.machine(&first).slow = true;
    world.apply(CommandV1::RemoveMachine { machine: id(&first) }).unwrap();
    world.run_for(MINUTE);
    assert_eq!(world.on("cache"), [""; 0], "{}", world.story());
    world.machine(&first).gone = true;
    world.settle();
    assert_ne!(world.only("cache"), first);
}
