//! Which machines keep copies.

use super::world::{World, id, name};
use crate::schedule::GRACE_MS;

const DB: &str = "  db: {image: good, volumes: ['data:/data']}";
const FOUR: [&str; 4] = ["atlas", "boreas", "ceres", "delos"];

impl World {
    fn copies(&self, service: &str) -> Vec<String> {
        self.service(service).data.replicas.iter().map(|id| self.state.machines[id].name().to_string()).collect()
    }
}

/// Four machines, one of which runs `db`; it, those that have copies, and the other.
fn with_copies() -> (World, String, Vec<String>, String) {
    let mut world = World::new(&FOUR);
    world.deploy(DB);
    world.settle();
    let (home, copies) = (world.only("db"), world.copies("db"));
    let other = FOUR.iter().find(|name| **name != home && !copies.iter().any(|copy| copy == *name)).unwrap();
    (world, home, copies.clone(), (*other).to_owned())
}

#[test]
fn two_others_keep_copies_of_what_is_written_and_of_nothing_else() {
    let (mut world, home, copies, _) = with_copies();
    assert_eq!(copies.len(), 2);
    assert!(!copies.contains(&home));
    world.deploy("  web: {image: good}\n  reads: {image: good, volumes: ['more:/more:ro']}");
    world.settle();
    assert!(world.copies("web").is_empty() && world.copies("reads").is_empty());
    world.scale("db", 0);
    world.settle();
    assert_eq!(world.copies("db"), copies, "it is stopped, and its data is worth as much");
}

#[test]
fn who_has_a_copy_keeps_it_and_takes_over_while_the_lost_machine_is_waited_for() {
    let (mut world, home, copies, other) = with_copies();
    let holders: Vec<&str> = copies.iter().map(String::as_str).collect();
    world.commit(&name("db"), holders.iter().map(|name| id(name)).collect(), false);
    world.settle();
    assert_eq!(world.copies("db"), copies);
    world.lose(&home);
    world.settle();
    let second = world.only("db");
    assert!(copies.contains(&second));
    let stays = copies.iter().find(|copy| **copy != second).unwrap().clone();
    assert_eq!(world.copies("db"), [stays.clone(), home.clone()], "what it has is old, and most of it is there");

    world.run_far(GRACE_MS);
    assert_eq!(world.copies("db"), [stays.clone(), other.clone()], "it does not come back");
    world.bring_back(&home);
    world.settle();
    assert_eq!(world.copies("db"), [stays, other], "nobody copies twice");
}

#[test]
fn a_machine_that_is_drained_keeps_a_copy_only_where_nobody_else_can() {
    let (mut world, _, copies, other) = with_copies();
    world.drain(&copies[0]);
    world.settle();
    assert_eq!(world.copies("db"), [copies[1].clone(), other.clone()]);
    world.drain(&other);
    world.settle();
    assert_eq!(world.copies("db").len(), 2);
    assert_eq!(world.copies("db")[0], copies[1]);
}

#[test]
fn a_machine_on_battery_and_one_that_may_not_run_it_come_last() {
    let mut world = World::new(&FOUR);
    world.label("atlas", "disk", "ssd");
    world.label("boreas", "disk", "ssd");
    world.label("ceres", "disk", "ssd");
    world.runs_on_battery("boreas");
    world.deploy(&format!(
        "{}, deploy: {{placement: {{constraints: [node.labels.disk == ssd]}}}}}}",
        DB.trim_end_matches('}')
    ));
    world.settle();
    let copies = world.copies("db");
    assert!(!copies.contains(&"delos".to_owned()), "{copies:?}");
    if copies.contains(&"boreas".to_owned()) {
        assert_eq!(copies[1], "boreas");
    }
}

#[test]
fn services_that_go_together_have_their_copies_together() {
    let mut world = World::new(&FOUR);
    world.deploy(&format!("{DB}\n  mail: {{image: good, volumes: ['more:/mail'], depends_on: [db]}}"));
    world.settle();
    assert_eq!(world.copies("db"), world.copies("mail"));
}
