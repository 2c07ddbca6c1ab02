//! Where a service goes whose data others have, too.

use super::world::{World, id, name};
use crate::{CommandV1, schedule::check_drain, state::Phase};

const DB: &str = "  db: {image: good, volumes: ['data:/data']}";

impl World {
    /// These machines hold the next generation, besides the one that writes it.
    #[track_caller]
    fn commit_on(&mut self, service: &str, holders: &[&str]) {
        self.commit(&name(service), holders.iter().map(|name| id(name)).collect(), false);
    }
}

/// `db` runs on the first, and the second, which nobody would choose, has a copy; the third has none.
fn with_copy() -> (World, [String; 3]) {
    let mut world = World::new(&["atlas", "boreas", "ceres"]);
    world.deploy(DB);
    world.settle();
    let first = world.only("db");
    let others: Vec<&str> = ["atlas", "boreas", "ceres"].into_iter().filter(|name| *name != first).collect();
    let names = [first, others[0].to_owned(), others[1].to_owned()];
    world.runs_on_battery(&names[1]);
    world.commit_on("db", &[&names[1]]);
    world.settle();
    world.told.clear();
    (world, names)
}

#[test]
fn a_service_on_a_lost_machine_goes_on_where_its_committed_data_is() {
    let (mut world, [first, second, _]) = with_copy();
    assert_eq!(world.service("db").standby, [id(&second)], "it alone could take over");
    world.lose(&first);
    assert!(world.decide());
    assert_eq!(world.only("db"), second, "{}", world.story());
    assert_eq!(world.told.len(), 2, "an end and an assignment\n{}", world.story());

    // The newest committed generation is still that one, and the first has it, too.
    world.settle();
    world.bring_back(&first);
    world.settle();
    world.lose(&second);
    world.settle();
    assert_eq!(world.only("db"), first);
}

#[test]
fn whoever_shall_have_no_copy_does_not_stand_by_though_it_has_one() {
    const ALL: [&str; 4] = ["atlas", "boreas", "ceres", "delos"];
    let mut world = World::new(&ALL);
    world.deploy(DB);
    world.settle();
    let replicas = world.service("db").data.replicas.clone();
    let first = world.only("db");
    let others: Vec<&str> = ALL.into_iter().filter(|name| *name != first).collect();
    for kept in others.iter().filter(|name| replicas.contains(&id(name))) {
        world.runs_on_battery(kept);
    }
    world.commit_on("db", &others);
    world.settle();
    assert_eq!(world.service("db").data.replicas, replicas);
    let standby = &world.service("db").standby;
    assert!(standby.len() == 1 && replicas.contains(&standby[0]), "{standby:?} of {replicas:?}");
}

#[test]
fn where_nobody_has_a_copy_a_service_waits() {
    let (mut world, [first, second, _]) = with_copy();
    world.lose(&first);
    world.lose(&second);
    world.settle();
    let waits = crate::schedule::waiting(&world.input(), &name("db")).unwrap();
    assert!(waits.starts_with("waits for a machine: "), "{waits}");
    world.bring_back(&second);
    world.settle();
    assert_eq!(world.only("db"), second);
}

#[test]
fn a_machine_is_left_only_when_what_was_written_last_is_committed() {
    let (mut world, [first, second, third]) = with_copy();
    check_drain(&world.input(), &id(&first)).unwrap();
    world.drain(&first);
    assert!(world.decide());
    let placement = world.service("db").placements[0].clone();
    assert_eq!((&placement.machine, placement.phase), (&id(&first), Phase::Vacating));

    // It has ended, and its machine is not done with what it wrote.
    world.machine(&first).captures = false;
    world.run_far(600_000);
    assert_eq!(world.service("db").placements, [placement], "{}", world.story());
    assert_eq!(world.answering("db"), 0);

    world.machine(&first).captures = true;
    world.settle();
    assert_eq!(world.only("db"), second);
    let told = check_drain(&world.input(), &id(&second)).unwrap_err().0.message;
    assert!(told.contains(&first) && !told.contains(&format!("only `{third}`")), "{told}");
}

#[test]
fn what_comes_back_to_a_drained_machine_brings_its_data_out_of_it() {
    let (mut world, [first, second, third]) = with_copy();
    world.apply(CommandV1::Remove { service: name("db"), volumes: false }).unwrap();
    world.settle();
    world.drain(&first);
    world.deploy(DB);
    world.told.clear();
    world.settle();
    assert!(world.only("db") != first, "it is drained\n{}", world.story());
    assert_eq!(world.count("Assign"), 2, "first where the newest of its data is\n{}", world.story());
    world.run_far(600_000);
    assert_eq!(world.count("Assign"), 2, "{}", world.story());
    assert!([second, third].contains(&world.only("db")));
}

#[test]
fn what_is_linked_goes_where_all_of_its_data_is() {
    let mut world = World::new(&["atlas", "boreas", "ceres"]);
    world.deploy(&format!("{DB}\n  mail: {{image: good, volumes: ['more:/mail'], depends_on: [db]}}"));
    world.settle();
    let first = world.only("db");
    assert_eq!(world.only("mail"), first);
    let others: Vec<&str> = ["atlas", "boreas", "ceres"].into_iter().filter(|name| *name != first).collect();
    world.commit_on("db", &others);
    world.commit_on("mail", &others[1..]);
    world.lose(&first);
    world.settle();
    assert_eq!((world.only("db"), world.only("mail")), (others[1].to_owned(), others[1].to_owned()));
}

#[test]
fn an_earlier_state_is_begun_with_once_the_newest_is_kept() {
    let (mut world, [first, ..]) = with_copy();
    let before = world.service("db").placements[0].epoch;
    let earlier = crate::state::GenerationName { epoch: before, sequence: 1 };
    world.apply(CommandV1::Restore { service: name("db"), generation: earlier }).unwrap();
    world.machine(&first).captures = false;
    world.run_far(600_000);
    let placement = world.service("db").placements[0].clone();
    assert_eq!((placement.epoch, placement.phase), (before, Phase::Vacating), "what it wrote is not kept yet");
    world.machine(&first).captures = true;
    world.settle();
    let service = world.service("db");
    let placement = &service.placements[0];
    assert!(placement.epoch > before && placement.source == Some(earlier), "{}", world.story());
    assert_eq!((service.data.restored_by, placement.phase), (Some(placement.epoch), Phase::Active));
    let epoch = placement.epoch;
    world.run_far(600_000);
    assert_eq!(world.service("db").placements[0].epoch, epoch, "once");
}

#[test]
fn what_was_not_committed_in_this_cluster_is_not_restored() {
    let (mut world, _) = with_copy();
    let epoch = world.service("db").placements[0].epoch;
    let later = crate::state::GenerationName { epoch: epoch + 1, sequence: 1 };
    let refused = world.apply(CommandV1::Restore { service: name("db"), generation: later }).unwrap_err();
    assert_eq!(refused.0.code, flotilla_api::ErrorCode::VolumeNotFound);
    world.deploy_stack("other", "  web: {image: good}");
    let generation = crate::state::GenerationName { epoch: 1, sequence: 1 };
    world.apply(CommandV1::Restore { service: name("web"), generation }).unwrap_err();
}
