//! Several nodes in this process, each with a file of its own, over wires in memory.
//!
//! Files are written by threads of their own, so that time can't be held: what is waited for is a condition, with [`PATIENCE`].

mod failures;
mod membership;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_api::{ApiError, ErrorCode, Grant, NodeId, Scope, TokenId, UnixMillis};
use flotilla_core::{
    Actor, Command, CommandV1, Entry, State,
    command::{ClusterRecord, InvitationRecord, MachineFacts, MachineRecord, TokenRecord},
};

use super::*;
use crate::{
    peers::memory::Wires,
    store::{Limits, Store},
};

/// For a machine that has other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

pub(crate) struct Bed {
    pub(crate) wires: Wires,
    pub(crate) directory: tempfile::TempDir,
    limits: BTreeMap<u64, Limits>,
    nodes: BTreeMap<u64, Store>,
}

fn entry(command: CommandV1) -> Entry {
    Entry { at: NOW, actor: Actor { name: "ada".to_owned(), token: None, from: None }, command: Command::V1(command) }
}

fn token(id: &str) -> Entry {
    entry(CommandV1::IssueToken {
        token: TokenRecord {
            id: TokenId(id.to_owned()),
            name: "x".repeat(90),
            grant: Grant::admin(),
            created_at: NOW,
            expires_at: NOW.plus(3_600_000),
            revoked_at: None,
            bound_to: None,
            made_from: None,
        },
    })
}

fn machine(number: u64) -> MachineRecord {
    MachineRecord {
        id: NodeId::from(number),
        name: format!("m{number}").parse().unwrap(),
        public_key: format!("key-{number}"),
        labels: [].into(),
    }
}

fn ids(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(NodeId::from).collect()
}

impl Bed {
    /// Machines 1 to `voters`, all of which vote.
    pub(crate) async fn of(voters: u64) -> Self {
        Self::with(voters, BTreeMap::new()).await
    }

    async fn with(voters: u64, limits: BTreeMap<u64, Limits>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut bed = Self { wires: Wires::default(), directory, limits, nodes: BTreeMap::new() };
        bed.start(1).await;
        let cluster = ClusterRecord { id: "c".to_owned(), name: "home".parse().unwrap(), token_key: "k".to_owned() };
        bed[1].propose(entry(CommandV1::Init { cluster, machine: machine(1) })).await.unwrap();
        for number in 2..=voters {
            bed.join(number).await;
        }
        if voters > 1 {
            bed[1].consensus().set_members(ids(1..=voters), ids([])).await.unwrap();
            bed.settle().await;
        }
        bed
    }

    /// Makes a machine a member that listens, and waits until it knows the cluster.
    async fn join(&mut self, number: u64) {
        self.admit(number).await;
        self.begin(number, true).await;
        let consensus = self.leader().await.consensus().clone();
        let status = consensus.status().borrow().clone();
        let mut learners = status.learners.clone();
        learners.insert(NodeId::from(number));
        consensus.set_members(status.voters, learners).await.unwrap();
        tokio::time::timeout(PATIENCE, self[number].known()).await.unwrap().unwrap();
    }

    async fn admit(&self, number: u64) {
        let invitation = TokenId(format!("join-{number}"));
        let leader = self.leader().await;
        let record = InvitationRecord {
            id: invitation.clone(),
            name: format!("m{number}"),
            grant: Grant { scope: Scope::Machine, services: [].into() },
            secret_hash: "h".to_owned(),
            created_at: NOW,
            expires_at: NOW.plus(3_600_000),
            used_at: None,
            stores_only: false,
        };
        leader.propose(entry(CommandV1::CreateInvitation { invitation: record })).await.unwrap();
        let command = CommandV1::AdmitMachine { invitation, machine: machine(number), facts: MachineFacts::default() };
        leader.propose(entry(command)).await.unwrap();
    }

    /// Starts a machine that was stopped.
    async fn start(&mut self, number: u64) {
        self.begin(number, false).await;
    }

    async fn begin(&mut self, number: u64, joining: bool) {
        let node = NodeId::from(number);
        let path = self.directory.path().join(format!("{number}.db"));
        let limits = self.limits.get(&number).copied().unwrap_or_default();
        let network = self.wires.join(&node);
        let store = if joining {
            Store::open_joining(&path, &node, limits, network).await.unwrap()
        } else {
            Store::open_with(&path, &node, limits, network).await.unwrap()
        };
        self.wires.serve(&node, Arc::new(store.consensus().clone()));
        self.nodes.insert(number, store);
    }

    /// Takes a machine away without a word.
    async fn crash(&mut self, number: u64) {
        self.wires.leave(&NodeId::from(number));
        self.nodes.remove(&number).unwrap().close().await;
    }

    /// The machine that leads, once there is one, and not the one that just did.
    async fn leader_but(&self, not: Option<u64>) -> (u64, Store) {
        let found = async {
            loop {
                // The newest term: an older leader may not know yet.
                let leads = |store: &Store| {
                    let status = store.consensus().status().borrow().clone();
                    (status.leads && Some(&status.node) != not.map(NodeId::from).as_ref()).then_some(status.term)
                };
                let newest = self.nodes.iter().filter_map(|(number, store)| Some((leads(store)?, *number))).max();
                if let Some((_, number)) = newest {
                    return (number, self[number].clone());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("nobody leads")
    }

    async fn leader(&self) -> Store {
        self.leader_but(None).await.1
    }

    async fn leading(&self) -> u64 {
        self.leader_but(None).await.0
    }

    /// Waits until every node has applied what the leader has.
    pub(crate) async fn settle(&self) {
        let leader = self.leader().await;
        let index = leader.state().applied;
        for (number, store) in &self.nodes {
            let mut state = store.watch();
            let caught_up = state.wait_for(|state| state.applied >= index);
            assert!(
                tokio::time::timeout(PATIENCE, caught_up).await.is_ok(),
                "{number} is at {} of {index}: {:?}",
                store.state().applied,
                store.consensus().status().borrow()
            );
        }
    }

    /// Waits until all have applied the same, and checks what must hold then: equal states, logs and audit trails.
    async fn check(&self) -> Arc<State> {
        self.settle().await;
        let first = self.leader().await;
        let same = async {
            loop {
                let state = first.state();
                if self.nodes.values().all(|store| *store.state() == *state) {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let state = tokio::time::timeout(PATIENCE, same).await.expect("the states differ");
        let trail = first.audit(None, None, 1000).await.unwrap();
        let mut agreed: BTreeMap<i64, (i64, Vec<u8>)> = BTreeMap::new();
        for (number, store) in &self.nodes {
            assert_eq!(store.audit(None, None, 1000).await.unwrap(), trail, "the audit trail of {number} differs");
            for (position, entry) in chains(store).await {
                let known = agreed.entry(position).or_insert_with(|| entry.clone());
                assert_eq!(*known, entry, "{number} has another entry {position}");
            }
        }
        state
    }
}

/// Position, term and chain of each entry up to what was applied.
async fn chains(store: &Store) -> Vec<(i64, (i64, Vec<u8>))> {
    use sqlx::{ConnectOptions as _, Connection as _};

    let mut connection =
        sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).read_only(true).connect().await.unwrap();
    let rows: Vec<(i64, i64, Vec<u8>)> = sqlx::query_as("SELECT position, term, chain FROM log WHERE position <= ?1")
        .bind(store.state().applied.cast_signed())
        .fetch_all(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    rows.into_iter().map(|(position, term, chain)| (position, (term, chain))).collect()
}

impl std::ops::Index<u64> for Bed {
    type Output = Store;

    fn index(&self, number: u64) -> &Store {
        &self.nodes[&number]
    }
}

async fn propose(store: &Store, id: &str) -> Result<u64, ApiError> {
    store.propose(token(id)).await.map(|committed| committed.index).map_err(ApiError::from)
}

/// Waits until a node's status is so.
async fn until(store: &Store, what: &str, so: impl Fn(&Status) -> bool) -> Status {
    let mut status = store.consensus().status();
    match tokio::time::timeout(PATIENCE, status.wait_for(so)).await {
        Ok(status) => status.unwrap().clone(),
        Err(_) => panic!("{what}: {:?}", store.consensus().status().borrow()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_a_proposal_and_reads_what_it_wrote() {
    let bed = Bed::of(3).await;
    for (number, store) in &bed.nodes {
        for round in 0..3 {
            let id = format!("{number}-{round}");
            let index = propose(store, &id).await.unwrap();
            let state = store.state();
            assert!(state.applied >= index && state.tokens.contains_key(&TokenId(id)), "{number} does not see its own");
        }
    }
    // What the leader rejects, the proposer is told, with the code.
    let follower = bed.nodes.iter().find(|(_, store)| !store.consensus().status().borrow().leads).unwrap().1;
    let again = ClusterRecord { id: "d".to_owned(), name: "away".parse().unwrap(), token_key: "k".to_owned() };
    let refused = follower.propose(entry(CommandV1::Init { cluster: again, machine: machine(1) })).await.unwrap_err();
    assert_eq!(ApiError::from(refused).code, ErrorCode::Conflict);
    let state = bed.check().await;
    assert_eq!(state.tokens.len(), 9);
    let status = bed.leader().await.consensus().status().borrow().clone();
    assert_eq!((status.voters, status.learners), (ids(1..=3), ids([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linearizable_read_sees_what_was_agreed_on_elsewhere() {
    let bed = Bed::of(3).await;
    let leader = bed.leading().await;
    for round in 0..5 {
        let id = format!("r{round}");
        let index = propose(&bed[leader], &id).await.unwrap();
        for store in bed.nodes.values() {
            assert!(store.consensus().linearize().await.unwrap() >= index);
            assert!(store.state().tokens.contains_key(&TokenId(id.clone())));
        }
    }
    // Cut off, a leader can't tell whether it still is one.
    bed.wires.isolate(&NodeId::from(leader));
    assert_eq!(bed[leader].consensus().linearize().await, Err(Error::NoLeader));
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_stops_and_goes_on_from_disk() {
    let mut bed = Bed::of(3).await;
    for id in 0..20 {
        propose(&bed[1 + id % 3], &format!("t{id}")).await.unwrap();
    }
    let before = bed.check().await;
    let term = bed.leader().await.consensus().status().borrow().term;
    for number in 1..=3 {
        bed.crash(number).await;
    }
    for number in 1..=3 {
        bed.start(number).await;
        assert_eq!(bed[number].state().tokens, before.tokens, "{number} forgot");
    }
    propose(&bed[2], "after").await.unwrap();
    let state = bed.check().await;
    assert_eq!(state.tokens.len(), 21);
    assert!(bed.leader().await.consensus().status().borrow().term > term, "a leader took its old term up again");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_wires_cost_no_leader() {
    let bed = Bed::of(3).await;
    let before = bed.leader().await.consensus().status().borrow().clone();
    for from in 1..=3 {
        for to in 1..=3 {
            bed.wires.delay(&NodeId::from(from), &NodeId::from(to), Duration::from_millis(40));
        }
    }
    let began = tokio::time::Instant::now();
    let mut round = 0;
    // Some elections long.
    while began.elapsed() < Duration::from_secs(4) {
        propose(&bed[1 + round % 3], &format!("s{round}")).await.unwrap();
        round += 1;
    }
    bed.check().await;
    let after = bed.leader().await.consensus().status().borrow().clone();
    assert_eq!((after.node, after.term), (before.node, before.term));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_speaks_only_for_itself_and_a_stranger_proposes_nothing() {
    use crate::peers::{CallError, Method};
    use wire::encode;

    let bed = Bed::of(1).await;
    let stranger = bed.wires.join(&NodeId::from(9));
    let ask = |method, body| stranger.call(&NodeId::from(1), method, body, PATIENCE);
    let refused = |answer: Result<bytes::Bytes, CallError>| match answer {
        Err(CallError::Refused(error)) => error.code,
        other => panic!("{other:?}"),
    };
    let body = encode(&token("stolen")).unwrap();
    assert_eq!(refused(ask(Method::Propose, body).await), ErrorCode::ScopeInsufficient);
    let vote = openraft::raft::VoteRequest::<Types>::new(Vote::new(99, NodeId::from(2)), None);
    assert_eq!(refused(ask(Method::Vote, encode(&vote).unwrap()).await), ErrorCode::InvalidRequest);
    let append = openraft::raft::AppendEntriesRequest::<Types> {
        vote: Vote::new_committed(99, NodeId::from(2)),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    assert_eq!(refused(ask(Method::Append, encode(&append).unwrap()).await), ErrorCode::InvalidRequest);
    for (method, body) in
        [(Method::Append, "\u{1}{}"), (Method::Snapshot, "\u{1}"), (Method::Vote, ""), (Method::Ping, "")]
    {
        assert_eq!(refused(ask(method, bytes::Bytes::from(body)).await), ErrorCode::InvalidRequest, "{method:?}");
    }
    assert!(bed[1].consensus().status().borrow().leads);
    assert!(bed[1].state().tokens.is_empty());
}
