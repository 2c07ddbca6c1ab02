//! What people are told of a placement.

use flotilla_api::rest::Verdict;

use super::world::{GIB, World, name};
use crate::schedule::{explain, waiting};

#[test]
fn an_explanation_says_why_here_and_why_not_there() {
    let mut world = World::new(&["atlas", "boreas", "ceres", "delos"]);
    world.has("boreas", 4_000, 4 * GIB);
    world.has("ceres", 4_000, GIB);
    world.label("atlas", "zone", "attic");
    world.label("boreas", "zone", "attic");
    world.label("ceres", "zone", "attic");
    world.deploy(
        "  web: {image: good, deploy: {placement: {constraints: ['node.labels.zone == attic']}, resources: {reservations: \
         {memory: 2g}}}}",
    );
    world.settle();
    let view = explain(&world.input(), &name("web")).unwrap();
    assert_eq!(view.summary, "`web` runs on `atlas`.");
    assert_eq!(view.standby, ["boreas".parse().unwrap()]);
    let told: Vec<(&str, Verdict, &str)> =
        view.machines.iter().map(|it| (it.machine.as_str(), it.verdict, it.why.as_str())).collect();
    assert_eq!(
        told,
        [
            ("atlas", Verdict::Chosen, "it has more room"),
            ("boreas", Verdict::Possible, "it has less room"),
            ("ceres", Verdict::Impossible, "2 GiB of memory are reserved, and it has 921 MiB left"),
            ("delos", Verdict::Impossible, "`web` asks for `node.labels.zone == attic`, and it has none"),
        ]
    );
    let atlas = &view.machines[0];
    assert_eq!(atlas.score, Some(atlas.parts.iter().map(|part| part.points).sum()));
    assert!(view.machines[2].score.is_none());
}

#[test]
fn an_explanation_names_what_belongs_together() {
    let mut world = World::new(&["atlas", "boreas"]);
    world.deploy("  web: {image: good, depends_on: [db]}\n  db: {image: good, volumes: ['data:/data']}");
    world.settle();
    let view = explain(&world.input(), &name("web")).unwrap();
    assert_eq!(view.together_with, [name("db")]);
    assert!(view.summary.ends_with(", together with `db`."), "{}", view.summary);
    let other = view.machines.iter().find(|it| it.verdict != Verdict::Chosen).unwrap();
    assert_eq!(other.why, format!("only `{}` has the data of `db`", world.only("db")));
}

#[test]
fn a_service_that_finds_no_machine_says_what_lacks() {
    let mut world = World::new(&["atlas", "boreas"]);
    world.drain("boreas");
    world.deploy("  web: {image: good, deploy: {resources: {reservations: {cpus: 6}}}}");
    world.settle();
    assert_eq!(
        waiting(&world.input(), &name("web")).unwrap(),
        "waits for a machine: on `atlas` 6 cores are reserved, and it has 4 cores left; on `boreas` it is drained"
    );
    let view = explain(&world.input(), &name("web")).unwrap();
    assert!(view.summary.starts_with("`web` waits for a machine: "), "{}", view.summary);
    assert!(view.placements.is_empty());
    world.scale("web", 0);
    assert_eq!(explain(&world.input(), &name("web")).unwrap().summary, "`web` is stopped.");
    assert!(explain(&world.input(), &name("nobody")).is_err());
}
