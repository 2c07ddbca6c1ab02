//! Machines that join, change, and go.

use flotilla_api::limit::CopyLimit;

use super::*;

fn id(name: &str) -> NodeId {
    NodeId(format!("id-of-{name}"))
}

fn record(name: &str) -> MachineRecord {
    MachineRecord {
        id: id(name),
        name: name.parse().unwrap(),
        public_key: format!("key-of-{name}"),
        labels: BTreeMap::new(),
    }
}

fn facts(address: &str) -> MachineFacts {
    MachineFacts { addresses: vec![address.to_owned()], cpu_millis: 4_000, ..MachineFacts::default() }
}

impl Cluster {
    fn invite(&mut self, id: &str, scope: Scope) {
        let invitation = InvitationRecord {
            grant: Grant { scope, services: BTreeSet::new() },
            ..invitation(id, self.now.plus(DAY_MS))
        };
        self.apply(CommandV1::CreateInvitation { invitation }).unwrap();
    }

    /// With an invitation of its own.
    pub(super) fn join(&mut self, name: &str) {
        self.invite(name, Scope::Machine);
        self.apply(admit(name, record(name))).unwrap();
    }

    fn machine_called(&self, name: &str) -> &Machine {
        &self.state.machines[&id(name)]
    }
}

fn admit(invitation: &str, machine: MachineRecord) -> CommandV1 {
    CommandV1::AdmitMachine { invitation: TokenId(invitation.to_owned()), machine, facts: facts("192.0.2.1:7443") }
}

fn availability(name: &str, availability: Availability) -> CommandV1 {
    CommandV1::SetAvailability { machine: id(name), availability }
}

const DRAINED: Availability = Availability::Drained { since: UnixMillis(0) };

#[test]
fn a_machine_joins_with_a_token_that_works_once() {
    let mut cluster = Cluster::new();
    cluster.invite("i", Scope::Machine);
    let applied = cluster.apply(admit("i", record("atlas"))).unwrap();
    assert_eq!(applied.events[0].message, "The machine `atlas` joined.");
    let atlas = cluster.machine_called("atlas");
    assert_eq!((atlas.joined_at, atlas.here_since), (Some(cluster.now), Some(cluster.now)));
    assert_eq!(atlas.facts.addresses, ["192.0.2.1:7443"]);
    assert_eq!(cluster.refused(admit("i", record("boreas"))), ErrorCode::InvitationUsed);
}

#[test]
fn a_join_token_that_is_unknown_late_or_for_people_admits_nobody() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(admit("i", record("atlas"))), ErrorCode::InvitationInvalid);
    cluster.invite("person", Scope::User);
    assert_eq!(cluster.refused(admit("person", record("atlas"))), ErrorCode::InvitationInvalid);
    cluster.invite("late", Scope::Machine);
    cluster.now = cluster.now.plus(DAY_MS);
    assert_eq!(cluster.refused(admit("late", record("atlas"))), ErrorCode::InvitationExpired);
}

#[test]
fn a_join_token_makes_no_token_for_a_person() {
    let mut cluster = Cluster::new();
    cluster.invite("i", Scope::Machine);
    let redeem =
        CommandV1::RedeemInvitation { id: TokenId("i".to_owned()), token: token("t", cluster.now.plus(DAY_MS)) };
    assert_eq!(cluster.refused(redeem), ErrorCode::InvalidRequest);
}

#[test]
fn one_key_is_one_machine() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    cluster.invite("i", Scope::Machine);
    let copied = MachineRecord { name: "copy".parse().unwrap(), ..record("atlas") };
    let refused = cluster.apply(admit("i", copied)).unwrap_err().0;
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(refused.message.contains("a member already, as `atlas`"), "{}", refused.message);
}

#[test]
fn a_name_is_one_machine_s() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    cluster.invite("i", Scope::Machine);
    let same = MachineRecord { name: "atlas".parse().unwrap(), ..record("boreas") };
    assert_eq!(cluster.refused(admit("i", same)), ErrorCode::Conflict);
    cluster.apply(admit("i", record("boreas"))).unwrap();
    let rename = |name: &str, to: &str| CommandV1::RenameMachine { machine: id(name), name: to.parse().unwrap() };
    assert_eq!(cluster.refused(rename("boreas", "atlas")), ErrorCode::Conflict);
    assert_eq!(cluster.refused(rename("nobody", "other")), ErrorCode::MachineNotFound);
    cluster.apply(rename("boreas", "ceres")).unwrap();
    cluster.apply(rename("atlas", "boreas")).unwrap();
    let (found, _) = cluster.state.machine_named(&"boreas".parse().unwrap()).unwrap();
    assert_eq!(*found, id("atlas"));
}

#[test]
fn a_cluster_has_ten_machines_at_most() {
    let mut cluster = Cluster::new();
    for number in 1..MACHINES_MAX {
        cluster.join(&format!("m{number}"));
    }
    cluster.invite("i", Scope::Machine);
    let refused = cluster.apply(admit("i", record("eleventh"))).unwrap_err().0;
    assert!(refused.message.starts_with("a cluster has at most 10 machines"), "{}", refused.message);
    cluster.apply(CommandV1::RemoveMachine { machine: id("m3") }).unwrap();
    cluster.apply(admit("i", record("eleventh"))).unwrap();
}

#[test]
fn a_machine_that_was_removed_never_comes_back_with_its_key() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    cluster.apply(CommandV1::RemoveMachine { machine: id("atlas") }).unwrap();
    assert_eq!(cluster.refused(CommandV1::RemoveMachine { machine: id("atlas") }), ErrorCode::MachineNotFound);
    cluster.invite("i", Scope::Machine);
    let renamed = MachineRecord { name: "other".parse().unwrap(), ..record("atlas") };
    let refused = cluster.apply(admit("i", renamed)).unwrap_err().0;
    assert!(refused.message.contains("was removed from the cluster as `atlas`"), "{}", refused.message);
    cluster.apply(admit("i", MachineRecord { id: id("new"), ..record("atlas") })).unwrap();
}

#[test]
fn the_last_machine_stays() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(CommandV1::RemoveMachine { machine: node() }), ErrorCode::Conflict);
    cluster.join("atlas");
    cluster.apply(CommandV1::RemoveMachine { machine: node() }).unwrap();
    assert_eq!(cluster.refused(CommandV1::RemoveMachine { machine: id("atlas") }), ErrorCode::Conflict);
}

#[test]
fn labels_are_set_and_taken_away_within_limits() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    let label = |changes: &[(&str, Option<&str>)]| CommandV1::LabelMachine {
        machine: id("atlas"),
        labels: changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect(),
    };
    let applied = cluster.apply(label(&[("zone", Some("attic")), ("rack", Some("1"))])).unwrap();
    assert_eq!(applied.events[0].message, "The machine `atlas` was labelled `rack=1`, `zone=attic`.");
    cluster.apply(label(&[("zone", Some("cellar")), ("rack", None), ("never", None)])).unwrap();
    let labels = &cluster.machine_called("atlas").record.labels;
    assert_eq!(labels, &BTreeMap::from([("zone".to_owned(), "cellar".to_owned())]));
    let long = "x".repeat(64);
    for bad in [("", "a"), ("a b", "a"), ("a", "a b"), (long.as_str(), "a"), ("a", long.as_str()), ("ä", "a")] {
        assert_eq!(cluster.refused(label(&[(bad.0, Some(bad.1))])), ErrorCode::InvalidRequest, "{bad:?}");
    }
    let keys: Vec<String> = (0..64).map(|number| format!("k{number}")).collect();
    let many: Vec<(&str, Option<&str>)> = keys.iter().map(|key| (key.as_str(), Some("v"))).collect();
    assert_eq!(cluster.refused(label(&many)), ErrorCode::InvalidRequest, "with `zone` that is one too many");
    cluster.apply(label(&many[1..])).unwrap();
}

#[test]
fn what_a_machine_sends_of_copies_is_limited_as_a_whole() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    let limit = |rate: Option<&str>, spans: &[&str]| {
        let rate = rate.map(|rate| rate.parse().unwrap());
        let spans: Vec<_> = spans.iter().map(|span| span.parse().unwrap()).collect();
        let limit = match spans.as_slice() {
            [] => CopyLimit { rate, windows: Vec::new() },
            spans => CopyLimit::default().with(rate, spans),
        };
        CommandV1::LimitCopies { machine: id("atlas"), limit }
    };
    let applied = cluster.apply(limit(Some("500kB/s"), &["07:00-23:00"])).unwrap();
    let said = "What the machine `atlas` sends of copies was limited: 500 kB/s from 07:00 to 23:00.";
    assert_eq!((applied.events[0].kind.as_str(), applied.events[0].message.as_str()), ("machine-limited", said));
    assert_eq!(cluster.refused(limit(Some("1MB/s"), &["07:00-09:00", "08:00-10:00"])), ErrorCode::InvalidRequest);
    assert_eq!(cluster.machine_called("atlas").copy_limit.windows.len(), 1, "it is as it was");
    let unknown = CommandV1::LimitCopies { machine: id("nobody"), limit: CopyLimit::default() };
    assert_eq!(cluster.refused(unknown), ErrorCode::MachineNotFound);
    let applied = cluster.apply(limit(None, &[])).unwrap();
    assert_eq!(applied.events[0].message, "The machine `atlas` sends copies as fast as its line takes them.");
    assert!(cluster.machine_called("atlas").copy_limit.is_off());
}

#[test]
fn it_is_noted_who_has_a_machine_s_store_read() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    let before = cluster.state.clone();
    let applied = cluster.apply(CommandV1::NoteScrub { machine: id("atlas") }).unwrap();
    let said = "All that the machine `atlas` keeps of volumes and images is read.";
    assert_eq!((applied.events[0].kind.as_str(), applied.events[0].message.as_str()), ("machine-scrubbed", said));
    assert_eq!(State { applied: before.applied, ..cluster.state.clone() }.machines, before.machines);
    assert_eq!(cluster.refused(CommandV1::NoteScrub { machine: id("nobody") }), ErrorCode::MachineNotFound);
}

#[test]
fn a_machine_tells_where_it_is_and_what_it_has() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    let announce = |facts| CommandV1::AnnounceMachine { machine: id("atlas"), facts };
    let applied = cluster.apply(announce(facts("198.51.100.7:7443"))).unwrap();
    assert_eq!(applied.events[0].message, "The machine `atlas` is found at 198.51.100.7:7443.");
    let applied = cluster.apply(announce(MachineFacts { cpu_millis: 1, ..facts("198.51.100.7:7443") })).unwrap();
    assert_eq!(applied.events[0].message, "The machine `atlas` told what it has.");
    let many = MachineFacts { addresses: vec!["a:1".to_owned(); 17], ..MachineFacts::default() };
    assert_eq!(cluster.refused(announce(many)), ErrorCode::InvalidRequest);
}

#[test]
fn a_machine_is_drained_and_undrained_once() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    assert_eq!(cluster.refused(availability("atlas", Availability::Active)), ErrorCode::Conflict);
    assert_eq!(cluster.refused(availability("nobody", DRAINED)), ErrorCode::MachineNotFound);
    cluster.apply(availability("atlas", DRAINED)).unwrap();
    let since = cluster.now;
    assert_eq!(cluster.machine_called("atlas").availability, Availability::Drained { since }, "the log's time counts");
    assert_eq!(cluster.refused(availability("atlas", DRAINED)), ErrorCode::Conflict);
    cluster.apply(availability("atlas", Availability::Active)).unwrap();
    assert_eq!(cluster.machine_called("atlas").here_since, Some(cluster.now));
}

#[test]
fn a_machine_is_lost_and_comes_back_by_the_leader_s_word_alone() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    let lost = |term| CommandV1::MachineLost { term, machine: id("atlas") };
    let back = |term| CommandV1::MachineBack { term, machine: id("atlas") };
    assert_eq!(cluster.refused(lost(2)), ErrorCode::Conflict, "nobody leads in that term");
    assert_eq!(cluster.refused(back(1)), ErrorCode::Conflict, "it is not lost");
    cluster.apply(lost(1)).unwrap();
    let atlas = cluster.machine_called("atlas");
    assert_eq!((atlas.lost_at, atlas.taken), (Some(cluster.now), cluster.state.applied));
    assert_eq!(cluster.refused(lost(1)), ErrorCode::Conflict);
    cluster.now = cluster.now.plus(58_000);
    let applied = cluster.apply(back(1)).unwrap();
    assert_eq!(applied.events[0].message, "The machine `atlas` is back after 60 s.");
    for _ in 0..40 {
        cluster.apply(lost(1)).unwrap();
        cluster.apply(back(1)).unwrap();
    }
    let atlas = cluster.machine_called("atlas");
    assert_eq!((atlas.losses.len(), atlas.losses.last()), (16, Some(&UnixMillis(cluster.now.0 - 1_000))));
}

#[test]
fn a_machine_that_goes_leaves_only_what_could_still_write() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    cluster.deploy(&[with_volume("db", "data"), spec("web", "a")]).unwrap();
    for service in ["db", "web"] {
        cluster.assign(service, 1, "id-of-atlas").unwrap();
    }
    let stand_by = Change::StandBy { service: service("web"), machines: vec![id("atlas")] };
    cluster.decide(vec![stand_by]).unwrap();
    let epoch = cluster.service("db").placements[0].epoch;
    cluster.apply(CommandV1::RemoveMachine { machine: id("atlas") }).unwrap();
    for name in ["db", "web"] {
        let service = cluster.service(name);
        assert_eq!((&service.placements[..], &service.standby[..], &service.home), (&[][..], &[][..], &None), "{name}");
        assert!(service.hosts.is_empty());
    }
    let left: Vec<(&str, u64)> =
        cluster.state.leftovers.iter().map(|leftover| (leftover.service.as_str(), leftover.epoch)).collect();
    assert_eq!(left, [("db", epoch)]);
}

#[test]
fn what_a_removed_machine_kept_is_gone() {
    let mut cluster = Cluster::new();
    cluster.join("atlas");
    cluster.deploy(&[with_volume("db", "data"), with_volume("old", "data")]).unwrap();
    for service in ["db", "old"] {
        cluster.assign(service, 1, "id-of-atlas").unwrap();
    }
    cluster.apply(remove("db", false)).unwrap();
    cluster.apply(remove("old", true)).unwrap();
    assert_eq!(kept(&cluster, "db"), ["data"]);
    assert!(cluster.state.condemned_volumes.contains(&service("old")));
    cluster.apply(CommandV1::RemoveMachine { machine: id("atlas") }).unwrap();
    assert_eq!(kept(&cluster, "db"), [""; 0]);
    assert!(cluster.state.kept_on.is_empty() && cluster.state.kept_homes.is_empty());
    assert!(cluster.state.condemned_volumes.is_empty() && cluster.state.condemned_on.is_empty());
}
