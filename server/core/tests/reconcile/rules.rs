//! One rule of the reconciler per test.

use flotilla_api::{ErrorCode, Revision, UnixMillis, rest::ServiceState};
use flotilla_core::{
    CommandV1,
    reconcile::{
        self, BACKOFF_MAX_MS, Health, Memory, OBSERVATION_STALE_MS, OPENING_PATIENCE_MS, ROLLBACK_AFTER, Status,
        UNHEALTHY_PATIENCE_MS,
    },
};

use crate::world::World;

const WEB: &str = "  web: {image: good}";
const DB: &str = "  db: {image: good, volumes: ['data:/data']}";

fn scale(name: &str, replicas: u32) -> CommandV1 {
    CommandV1::Scale { service: name.parse().unwrap(), replicas }
}

fn restart(name: &str) -> CommandV1 {
    CommandV1::Restart { service: name.parse().unwrap() }
}

fn remove(name: &str, volumes: bool) -> CommandV1 {
    CommandV1::Remove { service: name.parse().unwrap(), volumes }
}

/// With the services deployed and quiet for a minute.
fn settled(services: &str) -> World {
    let mut world = World::new();
    world.deploy(services);
    world.run_for(60_000);
    world.check_settled();
    world.history.clear();
    world
}

#[test]
fn a_first_deployment_runs_in_its_network_and_is_confirmed() {
    let mut world = World::new();
    world.deploy(WEB);
    world.run_for(60_000);
    assert_eq!(world.actions(), ["create network stack", "run web r1 #1", "propose confirm web r1"]);
    assert_eq!(world.service("web").confirmed, Some(Revision(1)));
    assert_eq!(world.condition_state("web"), ServiceState::Running);
}

#[test]
fn a_restarted_daemon_adopts_what_it_finds() {
    let mut world = settled(&format!("{WEB}\n{DB}"));
    world.memory = Memory::default();
    world.run_for(300_000);
    assert_eq!(world.actions(), [""; 0]);
}

#[test]
fn without_a_volume_the_new_instance_is_ready_before_the_old_one_goes() {
    let mut world = settled(WEB);
    world.deploy("  web: {image: better}");
    let mut served = 0;
    while world.service("web").confirmed != Some(Revision(2)) {
        world.run_for(100);
        let observed = world.observe();
        let serving = reconcile::serving(world.now, world.service("web"), &world.views(&observed));
        assert!(!serving.is_empty(), "nobody could answer\n{}", world.told());
        served += 1;
        assert!(served < 1_000);
    }
    assert_eq!(world.actions(), ["run web r2 #1", "remove web", "propose confirm web r2"]);
    assert!(world.times("remove")[0] - world.times("run")[0] >= 2, "{}", world.told());
}

#[test]
fn a_health_check_decides_when_the_old_instance_goes() {
    let check = "healthcheck: {test: check}";
    let mut world = settled(&format!("  web: {{image: good, {check}}}"));
    world.deploy(&format!("  web: {{image: sick, {check}}}"));
    world.run_for(8_000);
    assert_eq!(world.of("web").len(), 2, "the new one is unhealthy, so the old one stays\n{}", world.told());
    let observed = world.observe();
    let serving = reconcile::serving(world.now, world.service("web"), &world.views(&observed));
    assert_eq!(serving[0].1.revision, Revision(1));
    let condition = world.condition("web");
    assert_eq!(condition.state, ServiceState::Unhealthy);
    assert_eq!(condition.message.as_deref(), Some("its health check fails; revision 1 still answers"));
}

#[test]
fn the_old_instance_goes_when_the_new_one_listens() {
    let mut world = settled(WEB);
    world.deploy("  web: {image: slow}");
    world.run_for(19_000);
    assert_eq!(world.of("web").len(), 2, "nobody listens on the new one yet\n{}", world.told());
    let observed = world.observe();
    let serving = reconcile::serving(world.now, world.service("web"), &world.views(&observed));
    assert_eq!(serving[0].1.revision, Revision(1));
    assert_eq!(world.condition_state("web"), ServiceState::Starting);
    assert_eq!(world.service("web").confirmed, Some(Revision(1)));
    world.run_for(2_000);
    assert_eq!(world.actions(), ["run web r2 #1", "remove web", "propose confirm web r2"]);
    assert_eq!(world.condition_state("web"), ServiceState::Running);
}

#[test]
fn a_port_that_nobody_listens_on_is_told_and_holds_nothing_up_for_ever() {
    let mut world = settled(WEB);
    world.deploy("  web: {image: deaf}");
    world.run_for(1_000);
    assert_eq!(world.condition("web").message.as_deref(), Some("nothing listens on port 8080 yet"));
    world.run_for(OPENING_PATIENCE_MS);
    assert_eq!(world.only("web").container.revision, Revision(2), "{}", world.told());
    let condition = world.condition("web");
    assert_eq!(condition.state, ServiceState::Unhealthy);
    assert!(condition.message.is_some_and(|message| message.starts_with("nothing listens on port 8080; ")));
    world.run_for(600_000);
    assert_eq!(world.times("run").len(), 1, "it is not started again for that\n{}", world.told());
}

#[test]
fn with_a_volume_the_old_instance_is_gone_before_the_new_one_runs() {
    let mut world = settled(DB);
    world.deploy("  db: {image: better, volumes: ['data:/data']}");
    world.run_for(60_000);
    assert_eq!(world.actions(), ["remove db", "run db r2 #1", "propose confirm db r2"]);
    world.history.clear();
    world.apply(restart("db")).unwrap();
    world.run_for(60_000);
    assert_eq!(world.actions(), ["remove db", "run db r2 #1"]);
}

#[test]
fn where_it_is_asked_for_the_old_instance_stops_first() {
    let stop_first = "deploy: {update_config: {order: stop-first}}";
    let mut world = settled(&format!("  web: {{image: good, {stop_first}}}"));
    world.deploy(&format!("  web: {{image: better, {stop_first}}}"));
    world.run_for(60_000);
    assert_eq!(world.actions(), ["remove web", "run web r2 #1", "propose confirm web r2"]);
    world.check_settled();
}

#[test]
fn a_volume_that_the_old_revision_alone_has_still_stops_it_first() {
    let mut world = settled(DB);
    world.deploy("  db: {image: good}");
    world.run_for(60_000);
    assert_eq!(world.actions()[..2], ["remove db", "run db r2 #1"]);
}

#[test]
fn a_removal_that_fails_keeps_the_next_instance_waiting() {
    let mut world = settled(DB);
    world.deploy("  db: {image: better, volumes: ['data:/data']}");
    world.broken = Some(ErrorCode::EngineFailed);
    world.run_for(10_000);
    assert!(world.actions().iter().all(|action| *action == "remove db"), "{}", world.told());
    let tries = world.actions().len();
    assert!((3..=5).contains(&tries), "it is tried with back-off, but was {tries} times");
    world.broken = None;
    world.run_for(120_000);
    world.check_settled();
}

#[test]
fn an_instance_that_ends_is_started_again_later_and_later() {
    let mut world = World::new();
    world.deploy("  web: {image: crashes}");
    world.run_for(200_000);
    let starts = world.times("start");
    let waits: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(world.times("run").len(), 1, "the container is started again, not made anew");
    for (wait, expected) in waits.iter().zip([2, 4, 8, 16, 32, 60, 60]) {
        assert!(wait.abs_diff(expected) <= 1, "{waits:?}");
    }
    assert!(waits.len() >= 6);
    let condition = world.condition("web");
    assert_eq!(condition.state, ServiceState::Restarting);
    assert!(condition.message.unwrap().starts_with("ended with exit code 1; it is tried again in"));
}

#[test]
fn an_instance_that_ran_well_is_started_again_at_once() {
    let mut world = World::new();
    world.deploy("  web: {image: crashes}");
    world.run_for(30_000);
    assert!(world.memory.instances.values().all(|attempts| attempts.failures > 3));
    world.deploy(WEB);
    world.run_for(60_000);
    let now = world.now;
    world.containers.values_mut().for_each(|real| real.exit(now, 1));
    world.history.clear();
    world.run_for(2_000);
    assert_eq!(world.actions(), ["start web #1"]);
    world.run_for(60_000);
    assert!(world.memory.instances.values().all(|attempts| attempts.failures == 0 && attempts.restarts == 1));
}

#[test]
fn the_restart_policy_is_kept() {
    for (policy, image, starts, state) in [
        ("'no'", "job", 0, ServiceState::Completed),
        ("'no'", "failing-job", 0, ServiceState::Failed),
        ("on-failure", "job", 0, ServiceState::Completed),
        ("on-failure:2", "failing-job", 2, ServiceState::Failed),
        ("always", "job", 5, ServiceState::Restarting),
    ] {
        let mut world = World::new();
        world.deploy(&format!("  web: {{image: {image}, restart: {policy}}}"));
        world.run_for(40_000);
        assert_eq!(world.times("start").len(), starts, "{policy} {image}\n{}", world.told());
        assert_eq!(world.condition_state("web"), state, "{policy} {image}");
    }
}

#[test]
fn a_revision_that_never_ran_well_gives_way_exactly_once() {
    for bad in [
        "  web: {image: crashes}",
        "  web: {image: missing}",
        "  web: {image: \"won't-start\"}",
        "  web: {image: failing-job, restart: 'no'}",
        "  web: {image: sick, healthcheck: {test: check}}",
    ] {
        let mut world = settled(WEB);
        world.deploy(bad);
        world.run_for(600_000);
        let rollbacks: Vec<&CommandV1> =
            world.proposed.iter().filter(|command| matches!(command, CommandV1::RollBack { .. })).collect();
        assert_eq!(rollbacks.len(), 1, "{bad}\n{}", world.told());
        let web = world.service("web");
        assert_eq!((web.current, web.spec().image.as_str()), (Revision(3), "good"), "{bad}");
        assert!(web.record().note.as_deref().unwrap().starts_with("rolled back from revision 2 to 1: it "), "{web:?}");
        assert_eq!(world.condition_state("web"), ServiceState::Running, "{bad}");
        world.check_settled();
    }
}

#[test]
fn while_a_bad_revision_is_tried_the_good_one_answers() {
    let mut world = settled(WEB);
    world.deploy("  web: {image: crashes}");
    for _ in 0..300 {
        world.run_for(100);
        let observed = world.observe();
        let serving = reconcile::serving(world.now, world.service("web"), &world.views(&observed));
        assert!(serving.iter().any(|(_, container)| container.revision != Revision(2)), "{}", world.told());
    }
}

#[test]
fn a_revision_that_was_superseded_early_can_still_prove_itself() {
    let mut world = World::new();
    world.deploy(WEB);
    world.run_for(4_000);
    world.deploy("  web: {image: crashes}");
    world.run_for(60_000);
    assert_eq!(world.service("web").record().restores, Some(Revision(1)), "{}", world.told());
    assert_eq!(world.condition_state("web"), ServiceState::Running);
}

#[test]
fn a_roll_back_that_fails_too_is_the_last() {
    let mut world = settled(WEB);
    world.deploy("  web: {image: crashes}");
    world.run_for(20_000);
    assert_eq!(world.service("web").current, Revision(3));
    // Its image has gone bad in the meantime.
    let now = world.now;
    world.broken = Some(ErrorCode::EngineFailed);
    world.containers.values_mut().for_each(|real| real.exit(now, 1));
    world.run_for(600_000);
    assert_eq!(world.service("web").current, Revision(3), "{}", world.told());
}

#[test]
fn a_first_revision_has_nothing_to_go_back_to() {
    let mut world = World::new();
    world.deploy("  web: {image: missing}");
    world.run_for(300_000);
    assert!(world.proposed.is_empty());
    let condition = world.condition("web");
    assert_eq!(condition.state, ServiceState::Failed);
    let message = condition.message.unwrap();
    assert!(message.starts_with("can't be started: there is no image `missing`; it is tried again in"), "{message}");
    assert!(u64::from(ROLLBACK_AFTER) < world.times("run").len() as u64);
}

#[test]
fn an_engine_that_is_away_speaks_against_no_revision() {
    let mut world = settled(WEB);
    world.deploy("  web: {image: better}");
    world.broken = Some(ErrorCode::EngineUnavailable);
    world.run_for(300_000);
    assert_eq!(world.service("web").current, Revision(2));
    world.broken = None;
    world.run_for(BACKOFF_MAX_MS + 30_000);
    assert_eq!(world.service("web").confirmed, Some(Revision(2)), "{}", world.told());
}

#[test]
fn an_unhealthy_instance_is_replaced_after_a_while() {
    let mut world = settled("  web: {image: good, healthcheck: {test: check}}");
    for real in world.containers.values_mut() {
        if let Status::Running { health, .. } = &mut real.container.status {
            *health = Health::Unhealthy;
        }
    }
    world.run_for(UNHEALTHY_PATIENCE_MS - 1_000);
    assert_eq!(world.actions(), [""; 0]);
    world.run_for(20_000);
    assert_eq!(world.actions(), ["remove web", "run web r1 #1"]);
    assert_eq!(world.condition_state("web"), ServiceState::Running);
}

#[test]
fn the_first_start_waits_for_what_it_depends_on() {
    let mut world = World::new();
    world.deploy("  web: {image: good, depends_on: [db]}\n  db: {image: good, healthcheck: {test: check}}");
    world.run_for(1_000);
    assert_eq!(world.actions(), ["create network stack", "run db r1 #1"]);
    let condition = world.condition("web");
    assert_eq!(condition.message.as_deref(), Some("waits for `db`, which it depends on"));
    assert_eq!(condition.state, ServiceState::Starting);
    world.run_for(60_000);
    world.check_settled();
    world.history.clear();

    // Later it lives on without.
    world.apply(scale("db", 0)).unwrap();
    world.run_for(60_000);
    assert_eq!(world.actions(), ["remove db"]);
    world.apply(restart("web")).unwrap();
    world.run_for(60_000);
    assert_eq!(world.condition_state("web"), ServiceState::Running, "what was stopped by hand holds nobody up");
}

#[test]
fn the_first_start_waits_until_what_it_depends_on_listens() {
    let mut world = World::new();
    world.deploy("  web: {image: good, depends_on: [db]}\n  db: {image: slow}");
    world.run_for(19_000);
    assert_eq!(world.actions(), ["create network stack", "run db r1 #1"]);
    world.run_for(2_000);
    assert_eq!(world.of("web").len(), 1, "{}", world.told());
}

#[test]
fn scaling_adds_and_removes_instances() {
    let mut world = settled(WEB);
    world.apply(scale("web", 3)).unwrap();
    world.run_for(60_000);
    assert_eq!(world.actions(), ["run web r1 #2", "run web r1 #3"]);
    world.check_settled();
    world.history.clear();
    world.apply(scale("web", 1)).unwrap();
    world.run_for(60_000);
    assert_eq!(world.actions(), ["remove web", "remove web"]);
    assert_eq!(world.only("web").container.replica, 1);
    world.apply(scale("web", 0)).unwrap();
    world.run_for(60_000);
    assert!(world.of("web").is_empty());
    assert_eq!(world.condition_state("web"), ServiceState::Stopped);
    assert!(world.networks.is_empty(), "nothing of its stack is placed here");
}

#[test]
fn what_was_removed_goes_and_its_network_last() {
    let mut world = settled(&format!("{WEB}\n{DB}"));
    world.apply(remove("web", false)).unwrap();
    world.apply(remove("db", false)).unwrap();
    world.run_for(60_000);
    assert_eq!(world.actions(), ["remove db", "remove web", "remove network stack"]);
    assert!(world.deleted.is_empty());
}

#[test]
fn condemned_volumes_go_after_the_last_container_and_before_the_next() {
    let mut world = settled(DB);
    world.apply(remove("db", true)).unwrap();
    world.deploy(DB);
    world.run_for(60_000);
    assert_eq!(
        world.actions(),
        ["remove db", "delete volumes db", "propose purged db", "run db r1 #1", "propose confirm db r1"]
    );
    world.check_settled();
}

#[test]
fn volumes_that_can_not_be_deleted_are_tried_again() {
    let mut world = settled(DB);
    world.apply(remove("db", true)).unwrap();
    world.round();
    world.broken = Some(ErrorCode::EngineFailed);
    world.run_for(20_000);
    let tries = world.times("delete volumes").len();
    assert!((3..=6).contains(&tries), "{}", world.told());
    assert_eq!(world.state.condemned_volumes.len(), 1);
    world.broken = None;
    world.run_for(120_000);
    world.check_settled();
}

#[test]
fn a_replica_that_is_there_twice_is_there_once_again() {
    let mut world = settled(WEB);
    let mut twin = world.only("web").clone();
    twin.container.id = "z-twin".to_owned();
    world.containers.insert(twin.container.id.clone(), twin);
    world.run_for(60_000);
    assert_eq!(world.actions(), ["remove web"]);
    assert_ne!(world.only("web").container.id, "z-twin");
}

#[test]
fn a_container_of_a_former_life_is_not_taken_over() {
    let mut world = settled(WEB);
    world.apply(remove("web", false)).unwrap();
    world.deploy("  web: {image: other}");
    world.run_for(60_000);
    world.check_settled();
    assert!(world.actions().contains(&"run web r1 #1"), "{}", world.told());
}

#[test]
fn nothing_is_planned_from_an_observation_that_is_too_old() {
    let mut world = World::new();
    world.deploy(DB);
    world.round();
    world.advance_to(world.now.plus(5));
    let before = world.observe();
    let plan = world.round();
    assert_eq!(plan.actions.len(), 1, "it runs");
    let plan = world.plan_from(&before);
    assert_eq!(plan.actions, [], "the same again would run it twice");
    assert!(plan.wake_at.is_some(), "a new observation is asked for");
}

#[test]
fn nothing_is_planned_for_a_service_that_is_worked_on() {
    let mut world = World::new();
    world.deploy(&format!("{WEB}\n{DB}"));
    world.round();
    world.advance_to(world.now.plus(5));
    let plan = world.plan();
    let of_web = plan.actions.iter().find(|action| crate::world::lane(action) == "web").unwrap().clone();
    world.memory.begin(&of_web);
    world.advance_to(world.now.plus(300_000));
    let again: Vec<String> = world.plan().actions.iter().map(crate::world::lane).collect();
    assert_eq!(again, ["db"], "pulling may take its time");
    world.memory.dropped(&of_web, world.now);
    world.advance_to(world.now.plus(5));
    assert_eq!(world.plan().actions.len(), 2, "what was dropped is planned again at once");
}

#[test]
fn a_clock_that_is_set_back_holds_nothing_up() {
    let mut world = World::new();
    world.deploy("  web: {image: crashes}");
    world.run_for(300_000);
    world.now = UnixMillis(world.now.0 - 3_600_000);
    world.history.clear();
    world.run_for(BACKOFF_MAX_MS + 5_000);
    assert_eq!(world.actions(), ["start web #1"], "{}", world.told());
}

#[test]
fn what_nobody_has_seen_lately_is_unknown() {
    let world = settled(WEB);
    let web = world.service("web");
    let observed = world.observe();
    let state = |observed, now| {
        let view = reconcile::View { observed, memory: &world.memory, at: world.now };
        reconcile::condition(now, web, &[(&world.node, view)].into()).state
    };
    assert_eq!(state(Some(&observed), world.now), ServiceState::Running);
    let later = world.now.plus(OBSERVATION_STALE_MS + 1);
    assert_eq!(state(Some(&observed), later), ServiceState::Unknown);
    assert_eq!(state(None, world.now), ServiceState::Unknown);
}

#[test]
fn a_dead_container_stands_in_nobodys_way() {
    let mut world = settled(DB);
    world.containers.values_mut().for_each(|real| real.container.status = Status::Dead);
    world.run_for(60_000);
    assert!(world.actions().contains(&"run db r1 #1"), "{}", world.told());
}
