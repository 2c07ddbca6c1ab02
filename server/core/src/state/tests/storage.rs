//! Machines that only store, and volumes that they may store.

use super::{placements::assignment, *};
use crate::command::MachineFacts;

fn id(name: &str) -> NodeId {
    NodeId(format!("id-of-{name}"))
}

fn invited(id: &str, until: UnixMillis, scope: Scope) -> InvitationRecord {
    InvitationRecord { grant: Grant { scope, services: BTreeSet::new() }, ..invitation(id, until) }
}

fn admit(invitation: &str, name: &str) -> CommandV1 {
    let machine = MachineRecord {
        id: id(name),
        name: name.parse().unwrap(),
        public_key: format!("key-of-{name}"),
        labels: BTreeMap::new(),
    };
    CommandV1::AdmitMachine { invitation: TokenId(invitation.to_owned()), machine, facts: MachineFacts::default() }
}

impl Cluster {
    fn join_storage(&mut self, name: &str) {
        let invitation = invited(name, self.now.plus(DAY_MS), Scope::Machine);
        self.apply(CommandV1::InviteStorage { invitation }).unwrap();
        let told = self.apply(admit(name, name)).unwrap();
        assert_eq!(told.events[0].message, format!("The machine `{name}` joined. It only stores."));
    }
}

#[test]
fn what_a_machine_is_depends_on_who_invited_it_alone() {
    let mut cluster = Cluster::new();
    cluster.join_storage("cellar");
    cluster.join("atlas");
    assert!(cluster.state.stores_only(&id("cellar")) && !cluster.state.stores_only(&id("atlas")));
    assert!(!cluster.state.stores_only(&id("nobody")));

    let until = cluster.now.plus(DAY_MS);
    let sly = InvitationRecord { stores_only: true, ..invited("sly", until, Scope::Machine) };
    assert_eq!(cluster.refused(CommandV1::CreateInvitation { invitation: sly }), ErrorCode::InvalidRequest);
    let person = invited("person", until, Scope::Admin);
    assert_eq!(cluster.refused(CommandV1::InviteStorage { invitation: person }), ErrorCode::InvalidRequest);
}

#[test]
fn nothing_is_placed_on_it_and_it_can_neither_be_drained_nor_be_the_last() {
    let mut cluster = Cluster::new();
    cluster.join_storage("cellar");
    cluster.deploy(&[spec("web", "good")]).unwrap();
    let term = 1;
    let assign = assignment("web", 1, "id-of-cellar", Revision(1));
    assert_eq!(cluster.refused(CommandV1::Place { term, changes: vec![assign] }), ErrorCode::Conflict);
    let stand_by = Change::StandBy { service: service("web"), machines: vec![id("cellar")] };
    assert_eq!(cluster.refused(CommandV1::Place { term, changes: vec![stand_by] }), ErrorCode::Conflict);
    let availability = Availability::Drained { since: UnixMillis(0) };
    let drain = CommandV1::SetAvailability { machine: id("cellar"), availability };
    assert_eq!(cluster.refused(drain), ErrorCode::Conflict);
    assert_eq!(cluster.refused(CommandV1::RemoveMachine { machine: node() }), ErrorCode::Conflict);
    cluster.apply(CommandV1::RemoveMachine { machine: id("cellar") }).unwrap();
}

#[test]
fn an_encrypted_volume_waits_for_the_first_key() {
    let mut cluster = Cluster::new();
    let mut db = with_volume("db", "data");
    db.volumes[0].rules.encrypted = true;
    let refused = cluster.deploy(&[db.clone()]).unwrap_err();
    assert_eq!(refused.0.code, ErrorCode::Conflict);
    cluster.apply(CommandV1::UseValueKey { key: KeyId("first".to_owned()), instead_of: None }).unwrap();
    cluster.deploy(&[db]).unwrap();
}
