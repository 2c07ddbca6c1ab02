//! Where a service goes whose data others have, too.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{World, id, name};
use crate::{
    CommandV1,
    command::{Copies, Generation},
    schedule::check_drain,
    state::Phase,
};

const DB: &str = "  db: {image: good, volumes: ['data:/data']}";

impl World {
    /// The service's machine commits its next generation, which these machines hold besides it.
    #[track_caller]
    fn commit(&mut self, service: &str, holders: &[&str], last: bool) {
        let placement = self.service(service).placements[0].clone();
        let before = self.service(service).data.committed.as_ref().filter(|before| before.epoch == placement.epoch);
        let sequence = before.map_or(0, |before| before.sequence) + 1;
        let holders: BTreeSet<_> = holders.iter().map(|name| id(name)).chain([placement.machine.clone()]).collect();
        let copies = Copies { root: "ab".repeat(32), bytes: 1, holders };
        let volume = self.service(service).spec().volumes[0].volume.clone();
        let volumes = BTreeMap::from([(volume, copies)]);
        let generation = Generation { epoch: placement.epoch, sequence, taken_at: self.now, last, volumes };
        let generations = BTreeMap::from([(name(service), generation)]);
        self.apply(CommandV1::CommitGenerations { machine: placement.machine, generations }).unwrap();
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
    world.commit("db", &[&names[1]], false);
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
    world.run_far(600_000);
    let placements = world.service("db").placements.clone();
    assert_eq!(placements.len(), 1, "{}", world.story());
    assert_eq!((&placements[0].machine, placements[0].phase), (&id(&first), Phase::Vacating));
    assert_eq!(world.answering("db"), 0, "it has ended");

    world.commit("db", &[&second], true);
    world.settle();
    assert_eq!(world.only("db"), second);
    let refused = check_drain(&world.input(), &id(&second)).unwrap_err();
    let told = refused.0.message;
    assert!(told.contains(&first) && !told.contains(&format!("only `{third}`")), "{told}");
}

#[test]
fn what_is_linked_goes_where_all_of_its_data_is() {
    let mut world = World::new(&["atlas", "boreas", "ceres"]);
    world.deploy(&format!("{DB}\n  mail: {{image: good, volumes: ['more:/mail'], depends_on: [db]}}"));
    world.settle();
    let first = world.only("db");
    assert_eq!(world.only("mail"), first);
    let others: Vec<&str> = ["atlas", "boreas", "ceres"].into_iter().filter(|name| *name != first).collect();
    world.commit("db", &others, false);
    world.commit("mail", &others[1..], false);
    world.lose(&first);
    world.settle();
    assert_eq!((world.only("db"), world.only("mail")), (others[1].to_owned(), others[1].to_owned()));
}
