//! What volumes hold on other machines, and where a service may go on.

use super::{
    placements::{assignment, end, vacate},
    *,
};

const OTHER: &str = "id-of-atlas";
const THIRD: &str = "id-of-boreas";

fn id(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

fn root(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn generation(epoch: u64, sequence: u64, holders: &[&str]) -> Generation {
    let holders = holders.iter().map(|name| id(name)).collect();
    let copies = Copies { root: root('a'), bytes: 100, holders };
    let volumes = BTreeMap::from([("data".parse().unwrap(), copies)]);
    Generation { name: GenerationName { epoch, sequence }, taken_at: UnixMillis(7), last: false, volumes }
}

/// What is sent after everything else was written down.
fn last(generation: Generation) -> Generation {
    Generation { last: true, ..generation }
}

impl Cluster {
    /// Three machines, of which the first runs `db`; and its epoch.
    fn with_data() -> (Self, u64) {
        let mut cluster = Self::of_two();
        cluster.join("boreas");
        cluster.deploy(&[with_volume("db", "data")]).unwrap();
        cluster.assign("db", 1, "node").unwrap();
        let epoch = cluster.epochs("db")[0];
        (cluster, epoch)
    }

    fn commit(&mut self, machine: &str, generation: Generation) -> Result<Applied, Rejected> {
        let generations = BTreeMap::from([(service("db"), generation)]);
        self.apply(CommandV1::CommitGenerations { machine: id(machine), generations, seen: 0 })
    }

    #[track_caller]
    fn uncommitted(&mut self, machine: &str, generation: Generation) -> ErrorCode {
        self.commit(machine, generation).expect_err("it was committed").0.code
    }

    fn lose(&mut self, machine: &str) {
        self.apply(CommandV1::MachineLost { term: 1, machine: id(machine) }).unwrap();
    }

    fn sources(&self) -> Vec<&str> {
        match self.state.sources(self.service("db")) {
            Sources::Anywhere => vec!["anywhere"],
            Sources::On(machines) => machines.into_iter().map(|machine| machine.0.as_str()).collect(),
        }
    }
}

#[test]
fn a_generation_is_committed_by_the_machine_that_writes_it_and_only_a_newer_one_follows() {
    let (mut cluster, epoch) = Cluster::with_data();
    assert_eq!(cluster.uncommitted(OTHER, generation(epoch, 1, &["node", OTHER])), ErrorCode::Conflict);
    assert_eq!(cluster.uncommitted("node", generation(epoch + 1, 1, &["node", OTHER])), ErrorCode::Conflict);
    cluster.commit("node", generation(epoch, 2, &["node", OTHER])).unwrap();
    assert_eq!(cluster.uncommitted("node", generation(epoch, 1, &["node", OTHER])), ErrorCode::Conflict);
    let changed = |mut generation: Generation| {
        generation.volumes.values_mut().for_each(|copies| copies.root = root('b'));
        generation
    };
    assert_eq!(cluster.uncommitted("node", changed(generation(epoch, 2, &["node", OTHER]))), ErrorCode::Conflict);

    let told = cluster.commit("node", last(generation(epoch, 2, &["node", THIRD]))).unwrap();
    assert!(cluster.service("db").data.settled, "now it is known to be the last");
    assert_eq!(told.events[0].message, "The data of `db` is kept on `atlas` and `boreas`.");
    let again = cluster.commit("node", generation(epoch, 2, &["node", OTHER])).unwrap();
    assert_eq!(again.events, [], "who has it has it, whatever is known to who tells it again");
    let whole = last(generation(epoch, 2, &["node", OTHER, THIRD]));
    assert_eq!(cluster.service("db").data, Data { committed: Some(whole), settled: true, ..Data::default() });

    let silent = cluster.commit("node", changed(generation(epoch, 3, &["node", OTHER, THIRD]))).unwrap();
    assert_eq!(silent.events, []);
}

#[test]
fn a_generation_that_makes_no_sense_is_refused() {
    let (mut cluster, epoch) = Cluster::with_data();
    let good = || generation(epoch, 1, &["node", OTHER]);
    let with = |change: &dyn Fn(&mut Copies)| {
        let mut generation = good();
        generation.volumes.values_mut().for_each(change);
        generation
    };
    let renamed = Generation {
        volumes: good().volumes.into_values().map(|copies| ("else".parse().unwrap(), copies)).collect(),
        ..good()
    };
    for bad in [
        Generation { name: GenerationName { epoch, sequence: 0 }, ..good() },
        Generation { volumes: BTreeMap::new(), ..good() },
        renamed,
        with(&|copies| copies.root = "ab".to_owned()),
        with(&|copies| copies.root = root('X')),
        with(&|copies| copies.holders.clear()),
        with(&|copies| copies.holders = BTreeSet::from([id(OTHER)])),
        with(&|copies| copies.holders.extend([id("nobody")])),
    ] {
        assert_eq!(cluster.uncommitted("node", bad.clone()), ErrorCode::InvalidRequest, "{bad:?}");
    }
    let none = CommandV1::CommitGenerations { machine: node(), generations: BTreeMap::new(), seen: 0 };
    assert_eq!(cluster.refused(none), ErrorCode::InvalidRequest);
    let nobody = CommandV1::CommitGenerations { machine: id("nobody"), generations: BTreeMap::new(), seen: 0 };
    assert_eq!(cluster.refused(nobody), ErrorCode::MachineNotFound);

    // One that is right is taken beside one that is not.
    let generations = BTreeMap::from([(service("db"), good()), (service("web"), good())]);
    cluster.apply(CommandV1::CommitGenerations { machine: node(), generations, seen: 0 }).unwrap();
    assert_eq!(cluster.service("db").data.committed, Some(good()));
}

#[test]
fn a_machine_that_lacks_a_copy_of_what_nobody_writes_says_when_it_has_it() {
    let (mut cluster, epoch) = Cluster::with_data();
    let replicate = |machines: &[&str]| {
        vec![Change::Replicate { service: service("db"), machines: machines.iter().copied().map(id).collect() }]
    };
    cluster.decide(replicate(&[OTHER, THIRD])).unwrap();
    cluster.commit("node", last(generation(epoch, 2, &["node", OTHER]))).unwrap();
    let lacks = |cluster: &Cluster, machine: &str| -> Vec<String> {
        let lacks = cluster.state.lacks(cluster.service("db"), &id(machine));
        lacks.keys().map(ToString::to_string).collect()
    };
    assert_eq!(lacks(&cluster, THIRD), [""; 0], "what writes it offers it");

    let hold = |machine: &str, sequence: u64, volume: &str, digit: char| CommandV1::HoldGeneration {
        machine: id(machine),
        service: service("db"),
        generation: GenerationName { epoch, sequence },
        volumes: BTreeMap::from([(volume.parse().unwrap(), root(digit))]),
        seen: 0,
    };
    cluster.apply(CommandV1::Scale { service: service("db"), replicas: 0 }).unwrap();
    cluster.decide(vec![vacate(epoch)]).unwrap();
    cluster.decide(vec![end(epoch)]).unwrap();
    assert_eq!(lacks(&cluster, THIRD), ["data"]);
    for has in ["node", OTHER] {
        assert_eq!(lacks(&cluster, has), [""; 0]);
    }

    for (wrong, code) in [
        (hold(THIRD, 1, "data", 'a'), ErrorCode::Conflict),
        (hold(THIRD, 2, "data", 'b'), ErrorCode::Conflict),
        (hold(THIRD, 2, "else", 'a'), ErrorCode::Conflict),
        (hold("nobody", 2, "data", 'a'), ErrorCode::MachineNotFound),
    ] {
        assert_eq!(cluster.refused(wrong), code);
    }
    let told = cluster.apply(hold(THIRD, 2, "data", 'a')).unwrap();
    assert_eq!(told.events[0].message, "The data of `db` is kept on `atlas` and `boreas`.");
    assert_eq!(lacks(&cluster, THIRD), [""; 0]);
    assert_eq!(cluster.sources(), [OTHER, THIRD, "node"]);
    let again = cluster.apply(hold(THIRD, 2, "data", 'a')).unwrap();
    assert_eq!(again.events, []);

    cluster.decide(replicate(&[OTHER])).unwrap();
    assert_eq!(cluster.refused(hold(THIRD, 2, "data", 'a')), ErrorCode::Conflict, "it shall have none");
    cluster.apply(CommandV1::Remove { service: service("db"), volumes: true }).unwrap();
    assert_eq!(cluster.refused(hold(OTHER, 2, "data", 'a')), ErrorCode::Conflict);
}

#[test]
fn a_service_goes_on_where_its_newest_data_is() {
    let (mut cluster, first) = Cluster::with_data();
    cluster.commit("node", generation(first, 1, &["node", OTHER])).unwrap();
    assert_eq!(cluster.sources(), [OTHER, "node"], "it can end, commit what it wrote last, and go there");
    cluster.lose("node");
    assert_eq!(cluster.sources(), [OTHER, "node"]);
    cluster.stale(&[end(first), assignment("db", 1, THIRD, Revision(1))]);
    cluster.decide(vec![end(first), assignment("db", 1, OTHER, Revision(1))]).unwrap();
    let second = cluster.epochs("db")[0];
    let begins = |cluster: &Cluster| cluster.service("db").placements[0].source;
    assert_eq!(begins(&cluster), Some(GenerationName { epoch: first, sequence: 1 }));

    // What the lost machine wrote meanwhile is not committed any more, by whatever name.
    cluster.apply(CommandV1::MachineBack { term: 1, machine: node() }).unwrap();
    assert_eq!(cluster.uncommitted("node", generation(first, 2, &["node", OTHER])), ErrorCode::Conflict);
    assert_eq!(cluster.uncommitted("node", generation(second, 2, &["node", OTHER])), ErrorCode::Conflict);
    cluster.commit(OTHER, generation(second, 1, &[OTHER, THIRD])).unwrap();
    cluster.lose(OTHER);
    assert_eq!(cluster.sources(), [OTHER, THIRD], "and it is no source of what came after it");
}

#[test]
fn what_was_not_committed_keeps_a_service_at_home_until_it_is() {
    let (mut cluster, epoch) = Cluster::with_data();
    cluster.commit("node", generation(epoch, 1, &["node", OTHER])).unwrap();
    cluster.decide(vec![vacate(epoch)]).unwrap();
    cluster.decide(vec![end(epoch)]).unwrap();
    assert_eq!(cluster.sources(), ["node"], "nobody knows what it wrote after the generation");
    cluster.stale(&[assignment("db", 1, OTHER, Revision(1))]);

    cluster.assign("db", 1, "node").unwrap();
    assert_eq!(cluster.service("db").placements[0].source, None, "it goes on with what it has");
    let epoch = cluster.epochs("db")[0];
    cluster.decide(vec![vacate(epoch)]).unwrap();
    cluster.commit("node", last(generation(epoch, 1, &["node", OTHER]))).unwrap();
    cluster.decide(vec![end(epoch)]).unwrap();
    assert_eq!(cluster.sources(), [OTHER, "node"]);
    cluster.assign("db", 1, OTHER).unwrap();
    assert!(!cluster.service("db").data.settled, "it writes again");
}

#[test]
fn copies_go_with_their_machine_and_stay_with_kept_volumes() {
    let (mut cluster, epoch) = Cluster::with_data();
    cluster.decide(vec![Change::Replicate { service: service("db"), machines: vec![id(OTHER), id(THIRD)] }]).unwrap();
    cluster.commit("node", generation(epoch, 1, &["node", OTHER])).unwrap();
    cluster.apply(remove("db", false)).unwrap();
    cluster.apply(CommandV1::RemoveMachine { machine: id(THIRD) }).unwrap();
    assert_eq!(cluster.state.kept_data[&service("db")].replicas, [id(OTHER)]);

    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    assert!(cluster.state.kept_data.is_empty());
    assert_eq!(cluster.sources(), ["node"], "it may have written after the generation");
    cluster.lose("node");
    assert_eq!(cluster.sources(), [OTHER, "node"]);
    cluster.apply(CommandV1::RemoveMachine { machine: node() }).unwrap();
    assert_eq!(cluster.sources(), [OTHER]);
    cluster.apply(remove("db", true)).unwrap();
    assert!(cluster.state.kept_data.is_empty());
    assert!(cluster.state.must_purge(&service("db"), &id(OTHER)));
}

#[test]
fn the_last_machine_with_a_volume_is_known_and_what_others_have_stays() {
    let (mut cluster, epoch) = Cluster::with_data();
    let only = |cluster: &Cluster, machine: &str| {
        cluster.state.only_on(&id(machine)).into_iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(only(&cluster, "node"), ["db"], "nothing of it is committed");
    cluster.commit("node", generation(epoch, 1, &["node", OTHER])).unwrap();
    assert_eq!((only(&cluster, "node"), only(&cluster, OTHER)), (vec![], vec![]));
    cluster.deploy(&[with_volume("db", "data"), with_volume("more", "logs")]).unwrap();
    cluster.apply(CommandV1::RemoveMachine { machine: id(OTHER) }).unwrap();
    assert_eq!(only(&cluster, "node"), ["db"]);
    cluster.apply(remove("db", false)).unwrap();
    assert_eq!(only(&cluster, "node"), ["db"], "what is kept counts as well");

    // Of two volumes one is elsewhere.
    let (mut cluster, epoch) = Cluster::with_data();
    cluster.deploy(&[with_volume("db", "logs")]).unwrap();
    let mut both = generation(epoch, 1, &["node", OTHER]);
    both.volumes.insert("logs".parse().unwrap(), Copies { root: root('b'), bytes: 1, holders: [id("node")].into() });
    cluster.commit("node", both).unwrap();
    assert_eq!(only(&cluster, "node"), ["db"]);
    cluster.lose("node");
    cluster.apply(CommandV1::RemoveMachine { machine: node() }).unwrap();
    assert_eq!(cluster.sources(), [OTHER]);
}

#[test]
fn what_was_asked_for_is_begun_with_until_it_is_committed() {
    let (mut cluster, first) = Cluster::with_data();
    cluster.commit("node", generation(first, 1, &["node", OTHER, THIRD])).unwrap();
    cluster.commit("node", last(generation(first, 2, &["node", OTHER, THIRD]))).unwrap();
    let earlier = GenerationName { epoch: first, sequence: 1 };
    cluster.apply(CommandV1::Restore { service: service("db"), generation: earlier }).unwrap();
    assert!(cluster.service("db").data.is_superseded(first));
    let begins = |cluster: &Cluster| cluster.service("db").placements[0].source;
    cluster.decide(vec![vacate(first), end(first), assignment("db", 1, OTHER, Revision(1))]).unwrap();
    let second = cluster.epochs("db")[0];
    assert_eq!(begins(&cluster), Some(earlier));
    assert!(!cluster.service("db").data.is_superseded(second));
    // It dies before it runs.
    cluster.lose(OTHER);
    cluster.decide(vec![end(second), assignment("db", 1, THIRD, Revision(1))]).unwrap();
    let third = cluster.epochs("db")[0];
    assert_eq!(begins(&cluster), Some(earlier));
    cluster.commit(THIRD, generation(third, 1, &["node", THIRD])).unwrap();
    assert_eq!(cluster.service("db").data.restores, None);
    cluster.lose(THIRD);
    cluster.decide(vec![end(third), assignment("db", 1, "node", Revision(1))]).unwrap();
    assert_eq!(begins(&cluster), Some(GenerationName { epoch: third, sequence: 1 }));
}

#[test]
fn copies_are_kept_on_members_that_differ() {
    let (mut cluster, _) = Cluster::with_data();
    let replicate = |machines: &[&str]| Change::Replicate {
        service: service("db"),
        machines: machines.iter().map(|name| id(name)).collect(),
    };
    cluster.stale(&[replicate(&["nobody"])]);
    cluster.stale(&[replicate(&[OTHER, OTHER])]);
    cluster.stale(&[Change::Replicate { service: service("nothing"), machines: Vec::new() }]);
    cluster.decide(vec![replicate(&[THIRD, OTHER])]).unwrap();
    assert_eq!(cluster.service("db").data.replicas, [id(THIRD), id(OTHER)]);
    assert!(cluster.service("db").hosts.contains(&id(THIRD)));
}

#[test]
fn a_copy_that_others_keep_now_is_given_up_and_counts_no_more() {
    const FOURTH: &str = "id-of-delos";
    let (mut cluster, epoch) = Cluster::with_data();
    cluster.join("delos");
    let replicate = |machines: &[&str]| {
        vec![Change::Replicate { service: service("db"), machines: machines.iter().copied().map(id).collect() }]
    };
    let drop_copy = |machine: &str| CommandV1::DropCopy { machine: id(machine), service: service("db") };
    let holders = |cluster: &Cluster| -> Vec<NodeId> {
        let committed = cluster.service("db").data.committed.as_ref().unwrap();
        committed.holders().into_iter().cloned().collect()
    };
    cluster.decide(replicate(&[OTHER, THIRD])).unwrap();
    cluster.commit("node", generation(epoch, 1, &["node", OTHER, THIRD])).unwrap();
    assert_eq!(cluster.refused(drop_copy(THIRD)), ErrorCode::Conflict, "it shall have one");
    cluster.decide(replicate(&[OTHER, FOURTH])).unwrap();
    assert_eq!(cluster.refused(drop_copy(THIRD)), ErrorCode::Conflict, "another one has none yet");
    cluster.commit("node", generation(epoch, 1, &["node", FOURTH])).unwrap();
    cluster.lose(OTHER);
    assert_eq!(cluster.refused(drop_copy(THIRD)), ErrorCode::Conflict, "what is lost counts for nothing");
    cluster.apply(CommandV1::MachineBack { term: 1, machine: id(OTHER) }).unwrap();
    for (machine, code) in [("node", ErrorCode::Conflict), ("nobody", ErrorCode::MachineNotFound)] {
        assert_eq!(cluster.refused(drop_copy(machine)), code);
    }

    let before = cluster.state.applied;
    let told = cluster.apply(drop_copy(THIRD)).unwrap();
    assert_eq!(told.events[0].message, "`boreas` deletes its copy of `db`: all that shall have one have it.");
    assert_eq!(holders(&cluster), [id(OTHER), id(FOURTH), id("node")]);
    assert!(cluster.state.must_purge(&service("db"), &id(THIRD)));
    assert!(!cluster.state.may_keep(&service("db"), &id(THIRD)));
    assert_eq!(cluster.refused(drop_copy(THIRD)), ErrorCode::Conflict, "once");

    // Whoever has not heard of it still names it.
    cluster.commit("node", generation(epoch, 1, &["node", THIRD])).unwrap();
    cluster.commit("node", generation(epoch, 2, &["node", OTHER, THIRD])).unwrap();
    assert_eq!(holders(&cluster), [id(OTHER), id("node")]);
    let purged = CommandV1::VolumesPurged { service: service("db"), machine: Some(id(THIRD)) };
    let told = cluster.apply(purged).unwrap();
    assert_eq!(told.events[0].message, "`boreas` has deleted its copy of `db`.");

    // It shall have one again: what it says from then on counts.
    cluster.decide(replicate(&[OTHER, THIRD])).unwrap();
    assert!(cluster.state.may_keep(&service("db"), &id(THIRD)));
    let hold = |seen: u64| CommandV1::HoldGeneration {
        machine: id(THIRD),
        service: service("db"),
        generation: GenerationName { epoch, sequence: 2 },
        volumes: BTreeMap::from([("data".parse().unwrap(), root('a'))]),
        seen,
    };
    assert_eq!(cluster.refused(hold(before)), ErrorCode::Conflict);
    cluster.apply(hold(before + 1)).unwrap();
    assert_eq!(holders(&cluster), [id(OTHER), id(THIRD), id("node")]);
}

#[test]
fn a_generation_is_read_as_it_is_told() {
    let name = GenerationName { epoch: 17, sequence: 3 };
    assert_eq!(name.to_string().parse(), Ok(name));
    for bad in ["", "17", "17.", ".3", "17.3.1", "17.-3", "17.+3", "a.b", "branch/17.3"] {
        assert!(bad.parse::<GenerationName>().is_err(), "{bad}");
    }
}
