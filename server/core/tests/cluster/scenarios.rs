//! Runs: a cluster is made, is used, suffers, recovers.

use std::collections::BTreeMap;

use flotilla_api::{Grant, NodeId, Scope, StackName, TokenId, UnixMillis, spec::ServiceSpec};
use flotilla_core::{
    Change, CommandV1,
    command::{Availability, ClusterRecord, InvitationRecord, MachineFacts, MachineRecord},
    compose,
    lease::{LEASE_MAX_MS, LEASE_MIN_MS},
};

use crate::{faults::Fault, invariants, world::World};

/// How long faults come and go, and how long a healed cluster has to be well again. Milliseconds.
const SUFFERS_MS: u64 = 60_000;
const RECOVERS_MS: u64 = 90_000;
/// How long one move may take. Milliseconds.
const MOVES_MS: u64 = 15_000;

const SERVICES: &str = "\
services:
  web: {image: good, deploy: {replicas: 2}}
  db: {image: good, volumes: ['data:/data']}
  notes: {image: good, volumes: ['board:/data']}
volumes:
  data:
  board:
";

fn services(text: &str) -> (StackName, Vec<ServiceSpec>) {
    let composition = compose::read(text, Some("stack"), &BTreeMap::new()).unwrap_or_else(|error| panic!("{error:?}"));
    (composition.stack, composition.services)
}

fn record(world: &World, number: usize) -> MachineRecord {
    MachineRecord {
        id: world.nodes[number].id.clone(),
        name: format!("machine-{number}").parse().unwrap(),
        public_key: format!("key-{number}"),
        labels: BTreeMap::new(),
    }
}

fn facts() -> MachineFacts {
    MachineFacts { cpu_millis: 4_000, memory_bytes: 8 << 30, ..MachineFacts::default() }
}

/// With all machines members, and the services deployed and running.
pub(crate) fn settled(seed: u64, machines: usize, keep_history: bool) -> World {
    let mut world = World::new(seed, machines, keep_history);
    let cluster = ClusterRecord { id: "00".repeat(16), name: "home".parse().unwrap(), token_key: "key".to_owned() };
    let machine = record(&world, 0);
    let id = machine.id.clone();
    world.found(CommandV1::Init { cluster, machine });
    world.found(CommandV1::AnnounceMachine { machine: id, facts: facts() });
    run_for(&mut world, 3_000);
    for number in 1..machines {
        let id = TokenId(format!("invitation-{number}"));
        let (created_at, expires_at) = (world.wall(0), world.wall(0).plus(3_600_000));
        let invitation = InvitationRecord {
            id: id.clone(),
            name: "machine".to_owned(),
            grant: Grant { scope: Scope::Machine, services: std::collections::BTreeSet::new() },
            secret_hash: "00".repeat(32),
            created_at,
            expires_at,
            used_at: None,
            stores_only: false,
        };
        assert!(world.propose(0, CommandV1::CreateInvitation { invitation }), "{}", world.told());
        let machine = record(&world, number);
        assert!(world.propose(0, CommandV1::AdmitMachine { invitation: id, machine, facts: facts() }));
        run_for(&mut world, 1_000);
    }
    let (stack, services) = services(SERVICES);
    assert!(world.propose(0, CommandV1::Deploy { stack, services }), "{}", world.told());
    run_for(&mut world, 30_000);
    invariants::converges::check(&world);
    world
}

pub(crate) fn run_for(world: &mut World, millis: u64) {
    let until = world.now + millis;
    while world.next_before(until).is_some() {
        world.happen();
        invariants::check(world);
    }
    world.now = until;
}

/// Others shall keep the copies, for no reason; the leader finds good ones again.
fn replicate(world: &mut World) {
    let state = world.log.newest();
    let written: Vec<_> = state.services.values().filter(|it| it.home.is_some()).map(|it| it.name.clone()).collect();
    let mut machines: Vec<NodeId> = world.nodes.iter().map(|node| node.id.clone()).collect();
    machines.retain(|id| state.machines.contains_key(id) && world.chance.percent(50));
    let changes: Vec<Change> =
        written.into_iter().map(|service| Change::Replicate { service, machines: machines.clone() }).collect();
    world.propose(0, CommandV1::Place { term: state.leadership.term, changes });
}

/// What a person does meanwhile.
fn use_it(world: &mut World) {
    let name = |text: &str| text.parse().unwrap();
    let machine = world.nodes[world.chance.between(0, world.nodes.len() as u64 - 1) as usize].id.clone();
    let command = match world.chance.between(0, 6) {
        0 => CommandV1::Restart { service: name("db") },
        1 => CommandV1::Scale { service: name("notes"), replicas: u32::try_from(world.chance.between(0, 1)).unwrap() },
        2 => CommandV1::Scale { service: name("web"), replicas: u32::try_from(world.chance.between(0, 4)).unwrap() },
        3 => CommandV1::SetAvailability { machine, availability: Availability::Drained { since: UnixMillis(0) } },
        4 => CommandV1::SetAvailability { machine, availability: Availability::Active },
        5 => CommandV1::Remove { service: name("notes"), volumes: world.chance.percent(50) },
        _ => {
            let (stack, services) = services(SERVICES);
            CommandV1::Deploy { stack, services }
        }
    };
    world.propose(0, command);
}

/// Messages take long for a while, and then do not.
pub(crate) fn slow_links(seed: u64) {
    let mut world = settled(seed, 3, false);
    let lease = |world: &World| world.log.newest().leadership.lease_ms();
    assert_eq!(lease(&world), LEASE_MIN_MS);
    world.latency = 300;
    run_for(&mut world, 10_000);
    let slow = lease(&world);
    assert!(slow > LEASE_MIN_MS && slow <= LEASE_MAX_MS, "{slow} ms");
    // A while that is too short changes nothing.
    world.latency = 5;
    run_for(&mut world, 30_000);
    assert_eq!(lease(&world), slow);
    run_for(&mut world, 60_000);
    assert_eq!(lease(&world), LEASE_MIN_MS);
    invariants::converges::check(&world);
}

/// Random faults at random times, then none.
pub(crate) fn random(seed: u64) {
    let keep_history = std::env::var("FLOTILLA_SIM_SEED").is_ok();
    let machines = if seed.is_multiple_of(3) { 5 } else { 3 };
    let mut world = settled(seed, machines, keep_history);
    if !seed.is_multiple_of(4) {
        world.keeps_data = true;
        run_for(&mut world, 5_000);
    }
    let end = world.now + SUFFERS_MS;
    let mut faults: Vec<(u64, Fault)> = Vec::new();
    while world.now < end {
        let pause = world.chance.between(100, 4_000);
        run_for(&mut world, pause);
        let now = world.now;
        let (over, lasting): (Vec<_>, Vec<_>) = faults.into_iter().partition(|(until, _)| *until <= now);
        faults = lasting;
        for (_, fault) in over {
            fault.end(&mut world);
        }
        if world.chance.percent(60) && faults.len() < 3 {
            let fault = Fault::random(&mut world);
            fault.begin(&mut world);
            faults.push((now + world.chance.between(200, 15_000), fault));
        }
        if world.chance.percent(30) {
            use_it(&mut world);
        }
        if world.keeps_data && world.chance.percent(10) {
            replicate(&mut world);
        }
    }
    for (_, fault) in faults {
        fault.end(&mut world);
    }
    world.cut.clear();
    // What was drained is undrained, and all services are wanted again: then everything has to be well.
    run_for(&mut world, 10_000);
    let ids: Vec<_> = world.nodes.iter().map(|node| node.id.clone()).collect();
    for machine in ids {
        world.propose(0, CommandV1::SetAvailability { machine, availability: Availability::Active });
    }
    let (stack, wanted) = services(SERVICES);
    world.propose(0, CommandV1::Deploy { stack, services: wanted });
    run_for(&mut world, RECOVERS_MS);
    // A machine that came back is given something after a quiet time, so that a move may be under way at any moment.
    let end = world.now + MOVES_MS;
    while world.moves() && world.now < end {
        run_for(&mut world, 100);
    }
    invariants::converges::check(&world);
    invariants::data::nothing_was_dropped(&world);
    if keep_history {
        println_history(&world);
    }
}

#[expect(clippy::print_stdout, reason = "a person asked for this run's history")]
fn println_history(world: &World) {
    println!("{}", world.told());
}
