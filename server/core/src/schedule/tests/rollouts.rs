//! How a new revision reaches the instances: one rule per test.

use flotilla_api::Revision;

use super::world::{MINUTE, World, name};
use crate::CommandV1;

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

/// How many placements are at the current revision.
fn updated(world: &World, service: &str) -> usize {
    let service = world.service(service);
    service.placements.iter().filter(|placement| service.is_current(placement)).count()
}

fn web(image: &str, update: &str) -> String {
    format!("  web: {{image: {image}, deploy: {{replicas: 4, update_config: {{{update}}}}}}}")
}

#[test]
fn a_first_revision_is_confirmed_when_all_instances_run_well() {
    let mut world = three();
    world.deploy(&web("good", ""));
    world.run_for(9_000);
    assert_eq!(world.service("web").confirmed, None, "it has not run for long enough");
    world.run_for(5_000);
    assert_eq!(world.service("web").confirmed, Some(Revision(1)));
}

#[test]
fn instances_are_updated_one_after_the_other_each_when_the_former_is_well() {
    let mut world = settled(&web("good", ""));
    world.deploy(&web("better", ""));
    for expected in 1..=4 {
        for _ in 0..3 {
            if updated(&world, "web") < expected {
                world.step(1_000);
            }
        }
        assert_eq!(updated(&world, "web"), expected, "{}", world.story());
        world.run_for(9_000);
        assert_eq!(updated(&world, "web"), expected, "the next one waits for it\n{}", world.story());
    }
    world.settle();
    assert_eq!(world.service("web").confirmed, Some(Revision(2)));
}

#[test]
fn a_health_check_is_quicker_than_the_clock() {
    let service =
        |image: &str| format!("  web: {{image: {image}, healthcheck: {{test: check}}, deploy: {{replicas: 4}}}}");
    let mut world = settled(&service("good"));
    world.deploy(&service("better"));
    world.run_for(6_000);
    assert_eq!(world.service("web").confirmed, Some(Revision(2)), "{}", world.story());
}

#[test]
fn parallelism_delay_and_monitor_are_kept() {
    let mut world = settled(&web("good", ""));
    world.deploy(&web("better", "parallelism: 3, delay: 30s, monitor: 20s"));
    world.run_for(2_000);
    assert_eq!(updated(&world, "web"), 3);
    world.run_for(40_000);
    assert_eq!(updated(&world, "web"), 3, "they are well after 20 s, and the last follows 30 s later");
    world.run_for(15_000);
    assert_eq!(updated(&world, "web"), 4, "{}", world.story());

    let mut world = settled(&web("good", ""));
    world.deploy(&web("better", "parallelism: 0"));
    world.run_for(2_000);
    assert_eq!(updated(&world, "web"), 4, "0 is all");
}

#[test]
fn a_restart_goes_through_the_instances_like_a_revision() {
    let mut world = settled(&web("good", ""));
    world.apply(CommandV1::Restart { service: name("web") }).unwrap();
    world.run_for(2_000);
    assert_eq!(updated(&world, "web"), 1);
    world.settle();
    assert_eq!(updated(&world, "web"), 4);
}

#[test]
fn a_bad_revision_reaches_one_instance_and_is_rolled_back_with_its_reason() {
    let mut world = settled(&web("good", ""));
    world.deploy(&web("bad", ""));
    world.run_for(3_000);
    assert!(world.answering("web") >= 3, "{}", world.story());
    world.settle();
    let service = world.service("web");
    assert_eq!((service.current, service.spec().image.as_str()), (Revision(3), "good"));
    let note = service.record().note.clone().unwrap();
    assert!(note.starts_with("rolled back from revision 2 to 1: it failed 3 times on `"), "{note}");
    assert!(note.ends_with("` without ever having run well, last with exit code 7"), "{note}");
    assert_eq!(world.count("RollBack"), 1);
    assert_eq!(world.service("web").confirmed, Some(Revision(3)));
}

#[test]
fn a_bad_revision_can_be_told_to_pause_instead() {
    let mut world = settled(&web("good", ""));
    world.deploy(&web("bad", "failure_action: pause"));
    world.run_for(30 * MINUTE);
    assert_eq!((updated(&world, "web"), world.service("web").current), (1, Revision(2)), "{}", world.story());
    assert_eq!(world.answering("web"), 3);
}

#[test]
fn a_roll_back_that_fails_too_is_the_last() {
    let mut world = settled(&web("good", ""));
    world.deploy(&web("bad", ""));
    world.settle();
    world.deploy(&web("bad", "delay: 1s"));
    world.run_for(5_000);
    assert_eq!(world.service("web").current, Revision(5));
    assert_eq!(world.count("RollBack"), 2, "each deployment may fail once\n{}", world.story());
}

#[test]
fn a_take_over_does_not_spread_a_revision_that_has_not_proved_itself() {
    let mut world = settled("  web: {image: good}\n  lone: {image: good}");
    let first = world.only("web");
    world.deploy("  web: {image: bad, deploy: {update_config: {failure_action: pause}}}");
    // The leader hears of the loss before it has rolled anything out.
    world.lose(&first);
    world.decide();
    let placement = &world.service("web").placements[0];
    assert_eq!(placement.revision, Revision(1), "first it runs again as it ran");
    let mut world = settled(&web("good", ""));
    world.deploy(&web("bad", "failure_action: pause"));
    world.run_for(2_000);
    let old = world.service("web").placements.iter().find(|it| it.revision == Revision(1)).unwrap().machine.clone();
    let lost = world.state.machines[&old].name().to_string();
    world.lose(&lost);
    world.run_for(10_000);
    assert_eq!(updated(&world, "web"), 1, "{}", world.story());
}

#[test]
fn what_writes_a_volume_is_updated_where_it_is() {
    let mut world = settled("  db: {image: good, volumes: ['data:/data']}");
    let (machine, epoch) = (world.only("db"), world.service("db").placements[0].epoch);
    world.deploy("  db: {image: better, volumes: ['data:/data']}");
    world.settle();
    assert_eq!((world.only("db"), world.service("db").placements[0].epoch), (machine, epoch));
    assert_eq!(world.service("db").confirmed, Some(Revision(2)));
}

#[test]
fn a_volume_that_comes_or_goes_leaves_nobody_beside_the_writer() {
    let mut world = settled("  db: {image: good, deploy: {replicas: 3}}");
    for services in [
        "  db: {image: good, volumes: ['data:/data']}",
        "  db: {image: good, deploy: {replicas: 3}}",
        "  db: {image: good, volumes: ['cache:/data']}",
        "  db: {image: good}",
    ] {
        world.deploy(services);
        world.settle();
        assert_eq!(world.on("db").len(), world.service("db").replicas as usize, "{services}\n{}", world.story());
        assert_eq!(world.service("db").confirmed, Some(world.service("db").current));
    }
}

#[test]
fn what_is_broken_is_updated_first() {
    let mut world = settled(&web("good", ""));
    world.deploy(&web("bad", "failure_action: pause"));
    world.run_for(10_000);
    let broken = world.service("web").placements.iter().find(|it| it.revision == Revision(2)).unwrap().epoch;
    world.deploy(&web("better", ""));
    world.run_for(1_000);
    let placements = &world.service("web").placements;
    let first = placements.iter().find(|it| it.revision == Revision(3)).unwrap();
    assert_eq!(first.epoch, broken, "{}", world.story());
    assert_eq!(updated(&world, "web"), 1);
}

#[test]
fn a_service_on_a_lost_machine_holds_no_rollout_up() {
    let mut world = settled("  web: {image: good, deploy: {replicas: 3, placement: {max_replicas_per_node: 1}}}");
    world.lose("ceres");
    world.run_for(5_000);
    world.deploy("  web: {image: better, deploy: {replicas: 3, placement: {max_replicas_per_node: 1}}}");
    world.run_for(60_000);
    assert_eq!(updated(&world, "web"), 3, "{}", world.story());
    assert_eq!(world.service("web").confirmed, Some(Revision(1)), "nobody has seen it run well everywhere");
    world.bring_back("ceres");
    world.settle();
    assert_eq!(world.service("web").confirmed, Some(Revision(2)));
}

#[test]
fn a_revision_that_was_superseded_early_can_still_prove_itself() {
    let mut world = three();
    world.deploy(&web("good", ""));
    world.run_for(4_000);
    world.deploy(&web("bad", ""));
    world.settle();
    let service = world.service("web");
    assert_eq!(service.record().restores, Some(Revision(1)), "{}", world.story());
}
