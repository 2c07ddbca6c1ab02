//! Decisions on placements, and what the state refuses of them.

use super::*;

const OTHER: &str = "id-of-atlas";

impl Cluster {
    /// With a second machine.
    pub(super) fn of_two() -> Self {
        let mut cluster = Self::new();
        cluster.join("atlas");
        cluster
    }

    pub(super) fn decide(&mut self, changes: Vec<Change>) -> Result<Applied, Rejected> {
        self.apply(CommandV1::Place { term: self.state.leadership.term, changes })
    }

    pub(super) fn assign(&mut self, service: &str, replica: u32, machine: &str) -> Result<Applied, Rejected> {
        let revision = self.service(service).current;
        self.decide(vec![assignment(service, replica, machine, revision)])
    }

    #[track_caller]
    pub(super) fn stale(&mut self, changes: &[Change]) {
        let refused = self.decide(changes.to_vec()).expect_err(&format!("{changes:?} was decided")).0;
        assert_eq!(refused.code, ErrorCode::Conflict, "{refused:?}");
    }

    pub(super) fn epochs(&self, name: &str) -> Vec<u64> {
        self.service(name).placements.iter().map(|placement| placement.epoch).collect()
    }
}

pub(super) fn assignment(name: &str, replica: u32, machine: &str, revision: Revision) -> Change {
    Change::Assign {
        service: service(name),
        replica,
        machine: NodeId(machine.to_owned()),
        revision,
        restarts: 0,
        reason: "it has more room".to_owned(),
    }
}

fn reason() -> String {
    "somebody wants it".to_owned()
}

pub(super) fn end(epoch: u64) -> Change {
    Change::End { epoch, reason: reason() }
}

pub(super) fn vacate(epoch: u64) -> Change {
    Change::Vacate { epoch, reason: reason() }
}

fn leave(epoch: u64) -> Change {
    Change::Leave { epoch, reason: reason() }
}

fn update(epoch: u64, revision: u64) -> Change {
    Change::Update { epoch, revision: Revision(revision), restarts: 0 }
}

fn three(name: &str) -> ServiceSpec {
    ServiceSpec { replicas: 3, ..spec(name, "a") }
}

#[test]
fn every_placement_has_an_epoch_that_was_never_used() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[three("web"), spec("api-server", "a")]).unwrap();
    let mut epochs = BTreeSet::new();
    for _ in 0..3 {
        let changes = (1..=3).map(|replica| assignment("web", replica, OTHER, Revision(1))).collect();
        cluster.decide(changes).unwrap();
        cluster.assign("api-server", 1, OTHER).unwrap();
        let present = [cluster.epochs("web"), cluster.epochs("api-server")].concat();
        for epoch in &present {
            assert!(epochs.insert(*epoch), "{epoch} was used before");
            assert!(epochs.last() == Some(epoch), "it is larger than all before");
        }
        cluster.decide(present.into_iter().map(end).collect()).unwrap();
    }
}

#[test]
fn a_placement_says_by_which_entry_it_changed_last() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    cluster.assign("web", 1, OTHER).unwrap();
    let epoch = cluster.epochs("web")[0];
    let index = |cluster: &Cluster| cluster.service("web").placements[0].index;
    assert_eq!(index(&cluster), cluster.state.applied);
    for change in [update(epoch, 1), leave(epoch), Change::Stay { epoch }, vacate(epoch)] {
        cluster.apply(CommandV1::SetLease { term: 1, lease_ms: 3_000 }).unwrap();
        cluster.decide(vec![change]).unwrap();
        assert_eq!(index(&cluster), cluster.state.applied);
    }
}

#[test]
fn a_decision_is_taken_whole_or_not_at_all() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    let good = assignment("web", 1, OTHER, Revision(1));
    cluster.stale(&[good.clone(), end(999)]);
    assert_eq!(cluster.service("web").placements, []);
    assert_eq!(cluster.refused(CommandV1::Place { term: 1, changes: Vec::new() }), ErrorCode::InvalidRequest);
    assert_eq!(cluster.refused(CommandV1::Place { term: 1, changes: vec![good; 1_001] }), ErrorCode::InvalidRequest);
}

#[test]
fn a_deposed_leader_decides_nothing() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    let place = |term| CommandV1::Place { term, changes: vec![assignment("web", 1, OTHER, Revision(1))] };
    cluster.apply(CommandV1::Lead { node: NodeId(OTHER.to_owned()), term: 5 }).unwrap();
    for term in [0, 1, 4, 6] {
        assert_eq!(cluster.refused(place(term)), ErrorCode::Conflict, "term {term}");
        assert_eq!(cluster.refused(CommandV1::SetLease { term, lease_ms: 3_000 }), ErrorCode::Conflict);
    }
    assert_eq!(cluster.refused(CommandV1::Lead { node: node(), term: 5 }), ErrorCode::Conflict);
    assert_eq!(
        cluster.refused(CommandV1::Lead { node: NodeId("nobody".to_owned()), term: 6 }),
        ErrorCode::MachineNotFound
    );
    cluster.apply(place(5)).unwrap();
}

#[test]
fn before_a_leader_has_spoken_nobody_decides() {
    let mut cluster = Cluster { state: State::default(), now: UnixMillis(0) };
    cluster.apply(init()).unwrap();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    let place = CommandV1::Place { term: 0, changes: vec![assignment("web", 1, "node", Revision(1))] };
    assert_eq!(cluster.refused(place), ErrorCode::Conflict);
}

#[test]
fn the_first_leader_finds_what_ran_before_there_were_leaders() {
    let mut cluster = Cluster { state: State::default(), now: UnixMillis(0) };
    cluster.apply(init()).unwrap();
    cluster.deploy(&[three("web"), with_volume("db", "data"), with_volume("gone", "data")]).unwrap();
    let deployed = cluster.state.applied;
    cluster.apply(remove("gone", false)).unwrap();
    cluster.deploy(&[with_volume("bad", "data")]).unwrap();
    cluster.apply(remove("bad", true)).unwrap();
    cluster.apply(CommandV1::Lead { node: node(), term: 1 }).unwrap();
    let epochs = [cluster.epochs("db"), cluster.epochs("web")].concat();
    assert_eq!(epochs[0], deployed, "its container goes on");
    assert_eq!(epochs.iter().collect::<BTreeSet<_>>().len(), 4, "{epochs:?}");
    let db = cluster.service("db");
    assert!(db.placements[0].exclusive);
    assert_eq!((&db.hosts, &db.home), (&BTreeSet::from([node()]), &Some(node())));
    assert_eq!(cluster.state.kept_on[&service("gone")], BTreeSet::from([node()]));
    assert_eq!(cluster.state.kept_homes[&service("gone")], node());
    assert!(cluster.state.must_purge(&service("bad"), &node()));
    cluster.place();
    assert_eq!([cluster.epochs("db"), cluster.epochs("web")].concat(), epochs, "nothing is placed again");
}

#[test]
fn an_assignment_to_nowhere_or_of_nothing_is_refused() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    assert_eq!(
        cluster.decide(vec![assignment("web", 1, "nobody", Revision(1))]).unwrap_err().0.code,
        ErrorCode::MachineNotFound
    );
    cluster.stale(&[assignment("nothing", 1, OTHER, Revision(1))]);
    cluster.stale(&[assignment("web", 1, OTHER, Revision(2))]);
    cluster.stale(&[assignment("web", 0, OTHER, Revision(1))]);
    cluster.stale(&[assignment("web", 2, OTHER, Revision(1))]);
    cluster.stale(&[update(999, 1)]);
    cluster.stale(&[Change::StandBy { service: service("web"), machines: vec![NodeId("nobody".to_owned())] }]);
    cluster.stale(&[Change::StandBy { service: service("nothing"), machines: Vec::new() }]);
    cluster.assign("web", 1, OTHER).unwrap();
    cluster.stale(&[assignment("web", 1, "node", Revision(1))]);
    let epoch = cluster.epochs("web")[0];
    cluster.stale(&[update(epoch, 2)]);
}

#[test]
fn what_may_run_twice_is_beside_its_successor_until_that_is_ready() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    cluster.assign("web", 1, "node").unwrap();
    let first = cluster.epochs("web")[0];
    cluster.decide(vec![leave(first), assignment("web", 1, OTHER, Revision(1))]).unwrap();
    assert_eq!(cluster.service("web").placements.len(), 2);
    cluster.stale(&[Change::Stay { epoch: first }]);
    let second = cluster.epochs("web")[1];
    cluster.decide(vec![end(second), Change::Stay { epoch: first }]).unwrap();
    assert_eq!(cluster.service("web").placements[0].phase, Phase::Active);
}

#[test]
fn nothing_is_assigned_beside_what_writes_a_volume() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, "node").unwrap();
    let first = cluster.epochs("db")[0];
    for phase in [None, Some(leave(first)), Some(vacate(first))] {
        cluster.decide(phase.into_iter().chain([update(first, 1)]).collect()).unwrap();
        cluster.stale(&[assignment("db", 1, OTHER, Revision(1))]);
    }
    cluster.decide(vec![end(first), assignment("db", 1, OTHER, Revision(1))]).unwrap();
    let db = cluster.service("db");
    assert_eq!(db.hosts, BTreeSet::from([node(), NodeId(OTHER.to_owned())]));
    assert_eq!(db.home, Some(NodeId(OTHER.to_owned())));
}

#[test]
fn what_writes_a_volume_ends_only_after_it_was_told_to_or_was_lost() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, OTHER).unwrap();
    let first = cluster.epochs("db")[0];
    cluster.stale(&[end(first)]);
    cluster.apply(CommandV1::MachineLost { term: 1, machine: NodeId(OTHER.to_owned()) }).unwrap();
    cluster.decide(vec![end(first), assignment("db", 1, "node", Revision(1))]).unwrap();
    let lost = &cluster.state.machines[&NodeId(OTHER.to_owned())];
    assert_eq!(lost.taken, cluster.state.applied, "it gets no lease before it knows");
}

#[test]
fn a_revision_that_writes_a_volume_waits_until_it_is_alone() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[three("db")]).unwrap();
    for replica in 1..=3 {
        cluster.assign("db", replica, OTHER).unwrap();
    }
    let epochs = cluster.epochs("db");
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.stale(&[update(epochs[0], 2)]);
    cluster.decide(vec![end(epochs[1]), end(epochs[2]), update(epochs[0], 2)]).unwrap();
    let db = cluster.service("db");
    assert!(db.placements[0].exclusive);
    assert_eq!(db.home, Some(NodeId(OTHER.to_owned())));

    // And the way back: nobody can say when its machine has followed.
    cluster.deploy(&[three("db")]).unwrap();
    cluster.stale(&[update(epochs[0], 3)]);
    cluster.stale(&[assignment("db", 2, OTHER, Revision(3))]);
    cluster.decide(vec![vacate(epochs[0])]).unwrap();
    cluster
        .decide(vec![end(epochs[0]), assignment("db", 1, OTHER, Revision(3)), assignment("db", 2, OTHER, Revision(3))])
        .unwrap();
}

#[test]
fn a_service_in_its_second_life_waits_for_the_writer_of_its_first() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[with_volume("db", "data"), spec("web", "a")]).unwrap();
    for service in ["db", "web"] {
        cluster.assign(service, 1, OTHER).unwrap();
    }
    let first = cluster.epochs("db")[0];
    cluster.apply(remove("db", false)).unwrap();
    cluster.apply(remove("web", false)).unwrap();
    assert_eq!(cluster.state.leftovers.len(), 1, "what wrote nothing is of no matter");
    assert_eq!(cluster.state.leftovers[0].index, cluster.state.applied - 1);
    cluster.deploy(&[with_volume("db", "data"), spec("web", "a")]).unwrap();
    cluster.assign("web", 1, "node").unwrap();
    cluster.stale(&[assignment("db", 1, OTHER, Revision(1))]);
    cluster.decide(vec![end(first)]).unwrap();
    cluster.assign("db", 1, OTHER).unwrap();
    assert!(cluster.epochs("db")[0] > first);
}

#[test]
fn a_service_that_writes_no_more_need_not_wait_for_its_first_life() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, OTHER).unwrap();
    cluster.apply(remove("db", false)).unwrap();
    cluster.deploy(&[three("db")]).unwrap();
    cluster.assign("db", 1, "node").unwrap();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    let epoch = cluster.epochs("db")[0];
    cluster.stale(&[update(epoch, 2)]);
}

#[test]
fn volumes_are_deleted_on_each_machine_that_has_them() {
    let mut cluster = Cluster::of_two();
    let other = NodeId(OTHER.to_owned());
    let purged = |machine: &NodeId| CommandV1::VolumesPurged { service: service("db"), machine: Some(machine.clone()) };
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, "node").unwrap();
    let first = cluster.epochs("db")[0];
    cluster.decide(vec![vacate(first)]).unwrap();
    cluster.decide(vec![end(first), assignment("db", 1, OTHER, Revision(1))]).unwrap();
    cluster.apply(remove("db", true)).unwrap();
    assert!(cluster.state.must_purge(&service("db"), &node()) && cluster.state.must_purge(&service("db"), &other));
    cluster.apply(purged(&node())).unwrap();
    assert!(!cluster.state.must_purge(&service("db"), &node()));
    assert!(cluster.state.condemned_volumes.contains(&service("db")), "one machine is left");

    // The next life, on the machine that is done, ends too: the other one still has to delete the first.
    cluster.decide(vec![end(cluster.state.leftovers[0].epoch)]).unwrap();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, "node").unwrap();
    cluster.apply(remove("db", true)).unwrap();
    assert!(cluster.state.must_purge(&service("db"), &node()) && cluster.state.must_purge(&service("db"), &other));
    cluster.apply(purged(&node())).unwrap();
    cluster.apply(purged(&other)).unwrap();
    assert_eq!(cluster.refused(purged(&other)), ErrorCode::Conflict);
}

#[test]
fn what_is_still_to_be_deleted_is_not_kept_but_what_is_elsewhere_is() {
    let mut cluster = Cluster::of_two();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, OTHER).unwrap();
    cluster.apply(remove("db", true)).unwrap();
    cluster.decide(vec![end(cluster.state.leftovers[0].epoch)]).unwrap();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, OTHER).unwrap();
    cluster.apply(remove("db", false)).unwrap();
    assert_eq!(kept(&cluster, "db"), [""; 0], "its machine has not even deleted the former ones");
    cluster.decide(vec![end(cluster.state.leftovers[0].epoch)]).unwrap();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.assign("db", 1, "node").unwrap();
    cluster.apply(remove("db", false)).unwrap();
    assert_eq!(kept(&cluster, "db"), ["data"]);
    assert_eq!(cluster.state.kept_on[&service("db")], BTreeSet::from([node()]));
    assert_eq!(cluster.state.kept_homes[&service("db")], node());
}

#[test]
fn leases_are_said_twice_before_the_longer_ones_are_forgotten() {
    let mut cluster = Cluster::new();
    let set = |lease_ms| CommandV1::SetLease { term: 1, lease_ms };
    assert_eq!(cluster.refused(set(100)), ErrorCode::InvalidRequest);
    assert_eq!(cluster.refused(set(10_000)), ErrorCode::InvalidRequest);
    cluster.apply(set(4_000)).unwrap();
    cluster.apply(set(2_500)).unwrap();
    let leadership = &cluster.state.leadership;
    assert_eq!((leadership.lease_ms(), leadership.longest_ms()), (2_500, 4_000));
    cluster.apply(set(2_500)).unwrap();
    assert_eq!(cluster.state.leadership.longest_ms(), 2_500);
}
