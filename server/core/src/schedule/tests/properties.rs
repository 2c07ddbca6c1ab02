//! What holds whatever happens: found by chance, printed as few steps as can be.

use std::collections::BTreeMap;

use flotilla_api::NodeId;
use proptest::{prelude::*, test_runner::TestRunner};

use super::world::{GIB, World, id};
use crate::{
    CommandV1,
    state::{KeyId, Phase},
};

const MACHINES: [&str; 4] = ["atlas", "boreas", "ceres", "delos"];
/// It only stores.
const STORAGE: &str = "cellar";
const SERVICES: [&str; 4] = ["web", "db", "cache", "job"];

/// What each service may be deployed as.
const VARIANTS: [[&str; 4]; 4] = [
    [
        "  web: {image: good, deploy: {replicas: 3}}",
        "  web: {image: better, deploy: {replicas: 2, update_config: {order: stop-first, parallelism: 0}}}",
        "  web: {image: bad, deploy: {replicas: 3}}",
        "  web: {image: good, deploy: {replicas: 4, placement: {max_replicas_per_node: 1, preferences: [{spread: node.labels.zone}]}}}",
    ],
    [
        "  db: {image: good, volumes: ['data:/data']}",
        "  db: {image: better, volumes: ['vault:/data'], healthcheck: {test: check}}",
        "  db: {image: good, deploy: {replicas: 2}}",
        "  db: {image: bad, volumes: ['data:/data']}",
    ],
    [
        "  cache: {image: good, volumes: ['cache:/cache']}",
        "  cache: {image: good, volumes: ['cache:/cache'], deploy: {resources: {reservations: {memory: 5g}}}}",
        "  cache: {image: good}",
        "  cache: {image: good, volumes: ['cache:/cache'], deploy: {placement: {constraints: ['node.labels.zone == a']}}}",
    ],
    [
        "  job: {image: good, restart: on-failure}",
        "  job: {image: good, deploy: {replicas: 2, resources: {reservations: {cpus: 2}}}}",
        "  job: {image: good, volumes: ['more:/more']}",
        "  job: {image: good, deploy: {placement: {constraints: ['node.hostname != atlas']}}}",
    ],
];

#[derive(Clone, Debug)]
enum Step {
    Deploy {
        service: usize,
        variant: usize,
    },
    /// The first depends on the second, or no longer.
    Link {
        first: usize,
        second: usize,
    },
    Scale {
        service: usize,
        replicas: u32,
    },
    Restart {
        service: usize,
    },
    Remove {
        service: usize,
        volumes: bool,
    },
    Lose {
        machine: usize,
    },
    Return {
        machine: usize,
    },
    Drain {
        machine: usize,
    },
    Undrain {
        machine: usize,
    },
    Label {
        machine: usize,
        zone: bool,
    },
    /// It hears nothing for a while, or again.
    Slow {
        machine: usize,
        slow: bool,
    },
    /// Machines whose bit is set have what the service's instance has written.
    Commit {
        service: usize,
        holders: u8,
    },
    /// One machine acts, and the others have not yet.
    Act {
        machine: usize,
    },
    Decide,
    Wait {
        millis: u64,
    },
}

fn take(world: &mut World, step: &Step) {
    let service = |index: usize| SERVICES[index % SERVICES.len()];
    let machine = |index: usize| MACHINES[index % MACHINES.len()];
    let exists = |world: &World, name: &str| world.state.services.contains_key(&super::world::name(name));
    match *step {
        Step::Deploy { service, variant } => world.deploy(VARIANTS[service % 4][variant % 4]),
        Step::Link { first, second } => {
            if exists(world, service(first)) && exists(world, service(second)) && first % 4 > second % 4 {
                let mut spec = world.service(service(first)).spec().clone();
                spec.depends_on = std::iter::once(super::world::name(service(second))).collect();
                let _ = world.apply(CommandV1::Deploy { stack: spec.stack.clone(), services: vec![spec] });
            }
        }
        Step::Scale { service: which, replicas } => {
            let _ = world.apply(CommandV1::Scale { service: super::world::name(service(which)), replicas });
        }
        Step::Restart { service: which } => {
            let _ = world.apply(CommandV1::Restart { service: super::world::name(service(which)) });
        }
        Step::Remove { service: which, volumes } => {
            let _ = world.apply(CommandV1::Remove { service: super::world::name(service(which)), volumes });
        }
        Step::Lose { machine: which } => {
            if world.state.machines[&id(machine(which))].lost_at.is_none() {
                world.lose(machine(which));
            }
        }
        Step::Return { machine: which } => {
            if world.state.machines[&id(machine(which))].lost_at.is_some() {
                world.bring_back(machine(which));
            }
        }
        Step::Drain { machine: which } => {
            let availability = crate::state::Availability::Drained { since: world.now };
            let _ = world.apply(CommandV1::SetAvailability { machine: id(machine(which)), availability });
        }
        Step::Undrain { machine: which } => {
            let availability = crate::state::Availability::Active;
            let _ = world.apply(CommandV1::SetAvailability { machine: id(machine(which)), availability });
        }
        Step::Label { machine: which, zone } => world.label(machine(which), "zone", if zone { "a" } else { "b" }),
        Step::Slow { machine: which, slow } => world.machine(machine(which)).slow = slow,
        Step::Commit { service: which, holders } => {
            let name = super::world::name(service(which));
            let holds = |(index, _): &(usize, &&str)| holders & (1 << index) != 0;
            let all = MACHINES.iter().chain([&STORAGE]);
            let holders = all.enumerate().filter(holds).map(|(_, machine)| id(machine)).collect();
            let alive = |world: &World, machine: &NodeId| !world.machines[machine].gone;
            let writes = world.state.services.get(&name).and_then(|service| {
                let mut placements = service.placements.iter().filter(|it| it.exclusive && it.phase != Phase::Vacating);
                placements.next().filter(|placement| alive(world, &placement.machine))
            });
            if writes.is_some() {
                world.commit(&name, holders, false);
            }
        }
        Step::Act { machine: which } => world.act(&id(machine(which))),
        Step::Decide => drop(world.decide()),
        Step::Wait { millis } => world.now = world.now.plus(millis),
    }
    world.check();
}

fn step() -> impl Strategy<Value = Step> {
    let machine = 0_usize..4;
    prop_oneof![
        20 => Just(Step::Decide),
        20 => machine.clone().prop_map(|machine| Step::Act { machine }),
        6 => (0_usize..4, 0_u8..32).prop_map(|(service, holders)| Step::Commit { service, holders }),
        10 => prop_oneof![0_u64..3_000, 3_000_u64..60_000].prop_map(|millis| Step::Wait { millis }),
        8 => (0_usize..4, 0_usize..4).prop_map(|(service, variant)| Step::Deploy { service, variant }),
        3 => (0_usize..4, 0_usize..4).prop_map(|(first, second)| Step::Link { first, second }),
        2 => (0_usize..4, 0_u32..5).prop_map(|(service, replicas)| Step::Scale { service, replicas }),
        2 => (0_usize..4).prop_map(|service| Step::Restart { service }),
        2 => (0_usize..4, any::<bool>()).prop_map(|(service, volumes)| Step::Remove { service, volumes }),
        4 => machine.clone().prop_map(|machine| Step::Lose { machine }),
        4 => machine.clone().prop_map(|machine| Step::Return { machine }),
        3 => machine.clone().prop_map(|machine| Step::Drain { machine }),
        3 => machine.clone().prop_map(|machine| Step::Undrain { machine }),
        2 => (machine.clone(), any::<bool>()).prop_map(|(machine, zone)| Step::Label { machine, zone }),
        4 => (machine, any::<bool>()).prop_map(|(machine, slow)| Step::Slow { machine, slow }),
    ]
}

/// `PROPTEST_CASES` asks for more or fewer cases.
fn run<S: Strategy>(strategy: &S, test: impl Fn(S::Value)) {
    let config = ProptestConfig { failure_persistence: None, max_shrink_iters: 1_000, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(strategy, |value| {
        test(value);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// The world checks at each step that the state takes every decision, that two leaders decide alike, and that no volume has two
/// writers.
#[test]
fn whatever_happens_decisions_are_sound_and_come_to_an_end() {
    run(&prop::collection::vec(step(), 1..100), |steps| {
        let mut world = World::new(&MACHINES);
        world.apply(CommandV1::UseValueKey { key: KeyId("key".to_owned()), instead_of: None }).unwrap();
        world.join_storage(STORAGE);
        for step in &steps {
            take(&mut world, step);
        }
        for name in MACHINES {
            world.machine(name).slow = false;
            if world.state.machines[&id(name)].lost_at.is_some() {
                world.bring_back(name);
            }
            if matches!(world.state.machines[&id(name)].availability, crate::state::Availability::Drained { .. }) {
                world.undrain(name);
            }
            world.label(name, "zone", "a");
        }
        world.settle();
        for service in world.state.services.values() {
            let placed: Vec<_> = service.placements.iter().collect();
            // Those that it was to replace go on for as long as it does not work.
            let bad = service.spec().image == super::world::BAD && service.confirmed.is_none();
            assert!(
                bad || placed.iter().all(|it| it.phase == Phase::Active),
                "{} moves for ever\n{}",
                service.name,
                world.story()
            );
            assert!(
                bad || placed.iter().all(|it| service.is_current(it)),
                "{} is stale\n{}",
                service.name,
                world.story()
            );
            let most = service.spec().placement.max_per_machine.map_or(u32::MAX, |most| most * 4);
            let linked = !service.spec().depends_on.is_empty();
            assert!(
                bad || linked || placed.len() as u32 == service.replicas.min(most) || !fits(&world),
                "{} of {} `{}` are placed\n{}",
                placed.len(),
                service.replicas,
                service.name,
                world.story()
            );
        }
        assert!(world.state.leftovers.is_empty());
        // A machine that was kept out because it flapped takes its share when that is over.
        world.run_far(crate::schedule::FLAP_OUT_MAX_MS);
        world.settle();
        world.told.clear();
        world.run_far(20 * 60_000);
        assert_eq!(world.told, [""; 0], "it does not stay at rest");
    });
}

/// With pins and links there may be no room at one machine for all.
fn fits(world: &World) -> bool {
    world.state.services.values().all(|service| service.spec().depends_on.is_empty() && service.home.is_none())
}

/// Small inputs, against all ways there are: if there is a way to place everything, it is found.
#[test]
fn what_can_be_placed_is_placed() {
    let machine = (1_u64..9, 1_u64..9);
    let service = (1_u64..5, 1_u64..5, prop::option::of(0_usize..3));
    let input = (prop::collection::vec(machine, 1..4), prop::collection::vec(service, 1..6));
    run(&input, |(machines, services)| {
        let names = &MACHINES[..machines.len()];
        let mut world = World::new(names);
        for (name, (cores, gib)) in names.iter().zip(&machines) {
            // Nine tenths of it are for instances.
            world.has(name, cores * 1_000, (gib * GIB).div_ceil(9) * 10);
        }
        let text: Vec<String> = services
            .iter()
            .enumerate()
            .map(|(index, (cores, gib, avoid))| {
                let avoided = avoid.and_then(|avoid| names.get(avoid)).unwrap_or(&"nobody");
                format!(
                    "  s{index}: {{image: good, deploy: {{resources: {{reservations: {{cpus: {cores}, memory: {gib}g}}}}, \
                     placement: {{constraints: ['node.hostname != {avoided}']}}}}}}"
                )
            })
            .collect();
        world.deploy(&text.join("\n"));
        world.decide();
        let placed: usize = (0..services.len()).map(|index| world.on(&format!("s{index}")).len()).sum();
        if exhaustive(&machines, &services, 0, &mut vec![(0, 0); machines.len()]) {
            assert_eq!(placed, services.len(), "all could have been placed\n{}", world.story());
        } else {
            assert!(placed < services.len());
            // None of those that are left fits anywhere.
            let mut used: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
            for (index, (cores, gib, _)) in services.iter().enumerate() {
                for machine in world.on(&format!("s{index}")) {
                    let sum = used.entry(id(&machine)).or_default();
                    *sum = (sum.0 + cores, sum.1 + gib);
                }
            }
            for (index, (cores, gib, avoid)) in services.iter().enumerate() {
                let left = world.on(&format!("s{index}")).is_empty();
                let room = names.iter().enumerate().any(|(at, name)| {
                    let (busy_cores, busy_gib) = used.get(&id(name)).copied().unwrap_or_default();
                    *avoid != Some(at) && busy_cores + cores <= machines[at].0 && busy_gib + gib <= machines[at].1
                });
                assert!(!(left && room), "s{index} would have fitted\n{}", world.story());
            }
        }
    });
}

fn exhaustive(
    machines: &[(u64, u64)],
    services: &[(u64, u64, Option<usize>)],
    next: usize,
    used: &mut Vec<(u64, u64)>,
) -> bool {
    let Some((cores, gib, avoid)) = services.get(next) else { return true };
    for at in 0..machines.len() {
        let (busy_cores, busy_gib) = used[at];
        if *avoid == Some(at) || busy_cores + cores > machines[at].0 || busy_gib + gib > machines[at].1 {
            continue;
        }
        used[at] = (busy_cores + cores, busy_gib + gib);
        if exhaustive(machines, services, next + 1, used) {
            return true;
        }
        used[at] = (busy_cores, busy_gib);
    }
    false
}

/// From any placement, moves for balance come to an end, and none of them undoes another.
#[test]
fn rebalancing_reaches_a_fixed_point() {
    let sizes = prop::collection::vec((1_u64..4, 0_u64..5, 1_u32..4), 1..12);
    let machines = prop::collection::vec((1_u64..9, 2_u64..17, any::<bool>()), 2..5);
    run(&(sizes, machines), |(sizes, machines)| {
        let mut world = World::new(&MACHINES[..1]);
        world.has(MACHINES[0], 64_000, 64 * GIB);
        let text: Vec<String> = sizes
            .iter()
            .enumerate()
            .map(|(index, (cpu, gib, replicas))| {
                let tenths = cpu * 2;
                format!(
                    "  s{index}: {{image: good, deploy: {{replicas: {replicas}, resources: {{reservations: {{cpus: 0.{tenths}, \
                     memory: {gib}g}}}}}}}}"
                )
            })
            .collect();
        world.deploy(&text.join("\n"));
        world.settle();
        for (name, (cores, gib, battery)) in MACHINES.iter().zip(&machines).skip(1) {
            world.join(name);
            world.has(name, cores * 1_000, gib * GIB);
            if *battery {
                world.runs_on_battery(name);
            }
        }
        world.has(MACHINES[0], machines[0].0 * 1_000, machines[0].1 * GIB);
        world.told.clear();
        world.settle();
        let moves = world.count("Leave");
        let instances: u32 = sizes.iter().map(|(.., replicas)| replicas).sum();
        assert!(moves <= 2 * instances as usize, "{moves} moves of {instances} instances\n{}", world.story());
        world.told.clear();
        world.run_far(60 * 60_000);
        assert_eq!(world.told, [""; 0]);
    });
}
