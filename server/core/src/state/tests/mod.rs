mod data;
mod images;
mod machines;
mod placements;
mod storage;
mod values;

use flotilla_api::{
    Grant, Scope,
    spec::{VolumeMount, VolumeRules},
};

use super::*;
use crate::{Change, command::Actor, schedule};

/// A cluster of one machine that leads itself, and a clock.
struct Cluster {
    state: State,
    now: UnixMillis,
}

const DAY_MS: u64 = 24 * 3600 * 1000;

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self { state: State::default(), now: UnixMillis(1_800_000_000_000) };
        cluster.apply(init()).unwrap();
        cluster.apply(CommandV1::Lead { node: node(), term: 1 }).unwrap();
        cluster
    }

    /// Does what the machine's own leader would do.
    fn place(&mut self) {
        for _ in 0..10 {
            let changes = schedule::plan(&schedule::Input::unreported(self.now, &self.state)).changes;
            if changes.is_empty() {
                return;
            }
            self.apply(CommandV1::Place { term: self.state.leadership.term, changes }).unwrap();
        }
        panic!("the leader never rests");
    }

    /// Applies a command, and holds what is true of every one.
    fn apply(&mut self, command: CommandV1) -> Result<Applied, Rejected> {
        self.now = self.now.plus(1_000);
        let actor = Actor { name: "tester".to_owned(), token: None, from: None };
        let entry = Entry { at: self.now, actor, command: Command::V1(command) };
        let before = self.state.clone();
        let result = self.state.apply(&entry);
        match &result {
            Ok(applied) => {
                assert_eq!(self.state.applied, before.applied + 1);
                // A generation a second is nothing to tell of.
                let silent = matches!(
                    entry.command,
                    Command::V1(CommandV1::CommitGenerations { .. } | CommandV1::HoldGeneration { .. })
                );
                assert!(silent || !applied.events.is_empty());
                for event in &applied.events {
                    assert!(event.message.ends_with('.'), "no sentence: {:?}", event.message);
                }
            }
            Err(rejected) => {
                assert_eq!(self.state, before, "a rejection left a trace");
                assert!(!rejected.0.message.is_empty());
            }
        }
        let mut again = before;
        assert_eq!(again.apply(&entry), result);
        assert_eq!(again, self.state, "one entry, two results");
        result
    }

    #[track_caller]
    fn refused(&mut self, command: CommandV1) -> ErrorCode {
        self.apply(command).expect_err("it was applied").0.code
    }

    fn deploy(&mut self, services: &[ServiceSpec]) -> Result<Vec<Deployed>, Rejected> {
        let stack = services.first().map_or_else(|| "stack".parse().unwrap(), |spec| spec.stack.clone());
        match self.apply(CommandV1::Deploy { stack, services: services.to_vec() })?.outcome {
            Outcome::Deployed(deployed) => Ok(deployed),
            other => panic!("{other:?}"),
        }
    }

    fn service(&self, name: &str) -> &Service {
        &self.state.services[&service(name)]
    }
}

fn init() -> CommandV1 {
    CommandV1::Init {
        cluster: ClusterRecord { id: "00".repeat(16), name: "home".parse().unwrap(), token_key: "key".to_owned() },
        machine: MachineRecord {
            id: node(),
            name: "laptop".parse().unwrap(),
            public_key: "key".to_owned(),
            labels: BTreeMap::new(),
        },
    }
}

fn node() -> NodeId {
    NodeId("node".to_owned())
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn spec(name: &str, image: &str) -> ServiceSpec {
    let text = format!("services:\n  {name}:\n    image: {image}\n");
    crate::compose::read(&text, Some("stack"), &BTreeMap::new()).unwrap().services.remove(0)
}

fn with_volume(name: &str, volume: &str) -> ServiceSpec {
    let mut spec = spec(name, "image");
    let volume = volume.parse().unwrap();
    let mount = VolumeMount { volume, target: "/data".to_owned(), read_only: false, rules: VolumeRules::default() };
    spec.volumes.push(mount);
    spec
}

fn remove(name: &str, volumes: bool) -> CommandV1 {
    CommandV1::Remove { service: service(name), volumes }
}

fn roll_back(name: &str, to: Option<u64>) -> CommandV1 {
    CommandV1::RollBack { service: service(name), to: to.map(Revision), reason: None }
}

fn kept(cluster: &Cluster, name: &str) -> Vec<String> {
    let kept = cluster.state.kept_volumes.get(&service(name));
    kept.into_iter().flatten().map(ToString::to_string).collect()
}

#[test]
fn a_cluster_is_made_once_and_first() {
    let mut cluster = Cluster { state: State::default(), now: UnixMillis(0) };
    assert_eq!(cluster.refused(remove("web", false)), ErrorCode::Conflict);
    cluster.apply(init()).unwrap();
    assert_eq!(cluster.refused(init()), ErrorCode::Conflict);
}

#[test]
fn a_first_deployment_is_placed_on_the_machine() {
    let mut cluster = Cluster::new();
    let deployed = cluster.deploy(&[spec("web", "a:1")]).unwrap();
    assert_eq!(deployed, [Deployed { service: service("web"), revision: Revision(1), url: None, changed: true }]);
    assert_eq!(cluster.service("web").placements, [], "that is the leader's to decide");
    cluster.place();
    let web = cluster.service("web");
    let placed: Vec<(u32, &NodeId, Revision)> =
        web.placements.iter().map(|it| (it.replica, &it.machine, it.revision)).collect();
    assert_eq!(placed, [(1, &node(), Revision(1))]);
    assert_eq!((web.replicas, web.restarts, web.current), (1, 0, Revision(1)));
}

#[test]
fn deploying_the_same_again_changes_nothing() {
    let mut cluster = Cluster::new();
    cluster.deploy(&[spec("web", "a:1"), spec("db", "b:1")]).unwrap();
    let before = cluster.state.services.clone();
    assert!(cluster.deploy(&[spec("web", "a:1")]).unwrap().iter().all(|deployed| !deployed.changed));
    assert_eq!(cluster.state.services, before);
    let deployed = cluster.deploy(&[spec("web", "a:2"), spec("db", "b:1")]).unwrap();
    let changed: Vec<(u64, bool)> = deployed.iter().map(|one| (one.revision.0, one.changed)).collect();
    assert_eq!(changed, [(2, true), (1, false)]);
}

#[test]
fn a_tag_that_has_moved_is_another_revision() {
    let mut cluster = Cluster::new();
    let built = |id: &str| ServiceSpec { image_id: Some(format!("sha256:{id}")), ..spec("web", "a:latest") };
    cluster.deploy(&[built("aa")]).unwrap();
    assert!(!cluster.deploy(&[built("aa")]).unwrap()[0].changed);
    assert!(cluster.deploy(&[built("bb")]).unwrap()[0].changed);
    cluster.apply(roll_back("web", None)).unwrap();
    assert_eq!(cluster.service("web").spec().image_id.as_deref(), Some("sha256:aa"));
}

#[test]
fn one_bad_service_stops_the_whole_deployment() {
    let mut cluster = Cluster::new();
    let mut greedy = with_volume("db", "data");
    greedy.replicas = 2;
    assert_eq!(cluster.deploy(&[spec("web", "a"), greedy]).unwrap_err().0.code, ErrorCode::InvalidRequest);
    assert_eq!(cluster.deploy(&[spec("web", "a"), spec("web", "b")]).unwrap_err().0.code, ErrorCode::InvalidRequest);
    assert_eq!(cluster.deploy(&[]).unwrap_err().0.code, ErrorCode::InvalidRequest);
    let mut lonely = spec("web", "a");
    lonely.depends_on.insert(service("db"));
    assert_eq!(cluster.deploy(&[lonely]).unwrap_err().0.code, ErrorCode::InvalidRequest);
    assert!(cluster.state.services.is_empty());
}

#[test]
fn a_service_belongs_to_one_stack() {
    let mut cluster = Cluster::new();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    let mut other = spec("web", "a");
    other.stack = "other".parse().unwrap();
    assert_eq!(cluster.deploy(&[other]).unwrap_err().0.code, ErrorCode::Conflict);
}

#[test]
fn dependencies_never_make_a_circle_over_several_deployments() {
    let mut cluster = Cluster::new();
    let after = |name: &str, other: &str, image: &str| {
        let mut spec = spec(name, image);
        spec.depends_on.insert(service(other));
        spec
    };
    cluster.deploy(&[spec("b", "1")]).unwrap();
    cluster.deploy(&[after("a", "b", "1")]).unwrap();
    assert_eq!(cluster.deploy(&[after("b", "a", "1")]).unwrap_err().0.code, ErrorCode::InvalidRequest);
    cluster.deploy(&[spec("a", "2")]).unwrap();
    cluster.deploy(&[after("b", "a", "1")]).unwrap();
    assert_eq!(cluster.refused(roll_back("a", None)), ErrorCode::InvalidRequest);
}

#[test]
fn a_cluster_has_room_for_so_many_services() {
    let mut cluster = Cluster::new();
    let services: Vec<ServiceSpec> = (0..SERVICES_MAX).map(|index| spec(&format!("s{index}"), "a")).collect();
    cluster.deploy(&services).unwrap();
    assert_eq!(cluster.deploy(&[spec("more", "a")]).unwrap_err().0.code, ErrorCode::Conflict);
    cluster.deploy(&[spec("s0", "b")]).unwrap();
}

#[test]
fn old_revisions_are_forgotten_but_not_the_way_back() {
    let mut cluster = Cluster::new();
    cluster.deploy(&[spec("web", "a:1")]).unwrap();
    cluster.apply(CommandV1::ConfirmRevision { service: service("web"), revision: Revision(1) }).unwrap();
    for tag in 2..=50 {
        cluster.deploy(&[spec("web", &format!("a:{tag}"))]).unwrap();
    }
    let revisions: Vec<u64> = cluster.service("web").revisions.keys().map(|revision| revision.0).collect();
    let newest: Vec<u64> = [1].into_iter().chain(32..=50).collect();
    assert_eq!(revisions, newest);
    assert_eq!(revisions.len(), REVISIONS_KEPT);
    assert_eq!(cluster.refused(roll_back("web", Some(2))), ErrorCode::RevisionNotFound);
    cluster.apply(roll_back("web", Some(1))).unwrap();
    assert_eq!(cluster.service("web").spec().image, "a:1");
}

#[test]
fn a_roll_back_is_a_new_revision_with_a_note() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(roll_back("web", None)), ErrorCode::ServiceNotFound);
    cluster.deploy(&[spec("web", "a:1")]).unwrap();
    assert_eq!(cluster.refused(roll_back("web", None)), ErrorCode::RevisionNotFound);
    cluster.deploy(&[spec("web", "a:2")]).unwrap();
    let applied = cluster.apply(roll_back("web", None)).unwrap();
    assert_eq!(applied.outcome, Outcome::RolledBack { service: service("web"), revision: Revision(3) });
    let web = cluster.service("web");
    assert_eq!((web.spec().image.as_str(), web.current), ("a:1", Revision(3)));
    assert_eq!(web.record().note.as_deref(), Some("rolled back from revision 2 to 1"));
    assert_eq!(web.record().restores, Some(Revision(1)));
    assert_eq!(cluster.refused(roll_back("web", Some(1))), ErrorCode::Conflict, "that is what runs");
}

#[test]
fn the_newest_revision_that_ran_well_is_remembered() {
    let mut cluster = Cluster::new();
    let confirm = |revision| CommandV1::ConfirmRevision { service: service("web"), revision: Revision(revision) };
    for tag in 1..=3 {
        cluster.deploy(&[spec("web", &format!("a:{tag}"))]).unwrap();
    }
    assert_eq!(cluster.refused(confirm(4)), ErrorCode::RevisionNotFound);
    cluster.apply(confirm(2)).unwrap();
    assert_eq!(cluster.refused(confirm(2)), ErrorCode::Conflict);
    assert_eq!(cluster.refused(confirm(1)), ErrorCode::Conflict, "a newer one is known to be good");
    cluster.apply(confirm(3)).unwrap();
    assert_eq!(cluster.service("web").confirmed, Some(Revision(3)));
}

#[test]
fn scaling_keeps_the_revision_and_has_limits() {
    let mut cluster = Cluster::new();
    let scale = |name: &str, replicas| CommandV1::Scale { service: service(name), replicas };
    assert_eq!(cluster.refused(scale("web", 1)), ErrorCode::ServiceNotFound);
    cluster.deploy(&[spec("web", "a"), with_volume("db", "data")]).unwrap();
    cluster.apply(scale("web", 3)).unwrap();
    cluster.apply(scale("web", 0)).unwrap();
    assert_eq!((cluster.service("web").replicas, cluster.service("web").current), (0, Revision(1)));
    assert_eq!(cluster.refused(scale("web", REPLICAS_MAX + 1)), ErrorCode::InvalidRequest);
    assert_eq!(cluster.refused(scale("db", 2)), ErrorCode::InvalidRequest, "it writes a volume");
    cluster.apply(scale("db", 0)).unwrap();
}

#[test]
fn a_restart_is_counted() {
    let mut cluster = Cluster::new();
    let restart = CommandV1::Restart { service: service("web") };
    assert_eq!(cluster.refused(restart.clone()), ErrorCode::ServiceNotFound);
    cluster.deploy(&[spec("web", "a")]).unwrap();
    cluster.apply(restart).unwrap();
    assert_eq!((cluster.service("web").restarts, cluster.service("web").current), (1, Revision(1)));
}

#[test]
fn a_service_that_comes_back_finds_the_volumes_it_left() {
    let mut cluster = Cluster::new();
    cluster.deploy(&[with_volume("db", "old")]).unwrap();
    cluster.place();
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.apply(remove("db", false)).unwrap();
    assert_eq!(kept(&cluster, "db"), ["data", "old"]);
    assert_eq!(cluster.state.kept_on[&service("db")], BTreeSet::from([node()]));
    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    assert_eq!(cluster.service("db").home, Some(node()));
    assert_eq!(kept(&cluster, "db"), ["old"]);
    assert!(cluster.state.condemned_volumes.is_empty());
    cluster.apply(remove("db", false)).unwrap();
    assert_eq!(kept(&cluster, "db"), ["data", "old"]);
}

#[test]
fn a_service_in_its_second_life_has_a_higher_epoch() {
    let mut cluster = Cluster::new();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    cluster.place();
    let first = cluster.service("web").placements[0].epoch;
    cluster.apply(remove("web", false)).unwrap();
    cluster.deploy(&[spec("web", "a")]).unwrap();
    cluster.place();
    assert!(cluster.service("web").placements[0].epoch > first);
}

#[test]
fn volumes_are_deleted_when_asked_for() {
    let mut cluster = Cluster::new();
    let purged = CommandV1::VolumesPurged { service: service("db"), machine: Some(node()) };
    cluster.deploy(&[with_volume("db", "data"), spec("web", "a")]).unwrap();
    cluster.place();
    assert_eq!(cluster.refused(purged.clone()), ErrorCode::Conflict);
    cluster.apply(remove("web", true)).unwrap();
    assert!(cluster.state.condemned_volumes.is_empty(), "it had none");
    cluster.apply(remove("db", true)).unwrap();
    assert!(cluster.state.condemned_volumes.contains(&service("db")));
    cluster.apply(purged.clone()).unwrap();
    assert_eq!(cluster.refused(remove("db", true)), ErrorCode::ServiceNotFound);

    cluster.deploy(&[with_volume("db", "data")]).unwrap();
    cluster.place();
    cluster.apply(remove("db", false)).unwrap();
    cluster.apply(remove("db", true)).unwrap();
    assert!(cluster.state.condemned_volumes.contains(&service("db")), "what was left behind can go later");
    assert_eq!(kept(&cluster, "db"), Vec::<String>::new());
    cluster.apply(purged).unwrap();
}

fn token(id: &str, expires_at: UnixMillis) -> TokenRecord {
    TokenRecord {
        id: TokenId(id.to_owned()),
        name: "Ada's laptop".to_owned(),
        grant: Grant { scope: Scope::User, services: BTreeSet::from([service("web")]) },
        created_at: UnixMillis(0),
        expires_at,
        revoked_at: None,
        bound_to: None,
        made_from: None,
    }
}

fn invitation(id: &str, expires_at: UnixMillis) -> InvitationRecord {
    let TokenRecord { id, name, grant, created_at, expires_at, .. } = token(id, expires_at);
    InvitationRecord {
        id,
        name,
        grant,
        secret_hash: "00".repeat(32),
        created_at,
        expires_at,
        used_at: None,
        stores_only: false,
    }
}

#[test]
fn a_token_speaks_for_its_holder_until_it_expires_or_is_revoked() {
    let mut cluster = Cluster::new();
    let id = TokenId("t".to_owned());
    let expires_at = cluster.now.plus(DAY_MS);
    let code = |cluster: &Cluster, now| cluster.state.principal(&id, now).map_err(|error| error.code);
    assert_eq!(code(&cluster, cluster.now), Err(ErrorCode::TokenInvalid));
    cluster.apply(CommandV1::IssueToken { token: token("t", expires_at) }).unwrap();
    assert_eq!(code(&cluster, cluster.now).unwrap().expires_at, expires_at);
    assert_eq!(code(&cluster, expires_at), Err(ErrorCode::TokenExpired));
    let later = expires_at.plus(DAY_MS);
    cluster.apply(CommandV1::RenewToken { id: id.clone(), expires_at: later }).unwrap();
    assert!(code(&cluster, expires_at).is_ok());
    cluster.apply(CommandV1::RevokeToken { id: id.clone() }).unwrap();
    assert_eq!(code(&cluster, cluster.now), Err(ErrorCode::TokenRevoked));
    assert_eq!(cluster.refused(CommandV1::RevokeToken { id: id.clone() }), ErrorCode::Conflict);
    assert_eq!(cluster.refused(CommandV1::RenewToken { id, expires_at: later }), ErrorCode::TokenRevoked);
}

#[test]
fn a_token_that_makes_no_sense_is_refused() {
    let mut cluster = Cluster::new();
    let good = token("t", cluster.now.plus(DAY_MS));
    let issue = |token: TokenRecord| CommandV1::IssueToken { token };
    assert_eq!(
        cluster.refused(issue(TokenRecord { expires_at: cluster.now, ..good.clone() })),
        ErrorCode::InvalidRequest
    );
    assert_eq!(cluster.refused(issue(TokenRecord { name: " ".to_owned(), ..good.clone() })), ErrorCode::InvalidName);
    assert_eq!(cluster.refused(issue(TokenRecord { name: "a\nb".to_owned(), ..good.clone() })), ErrorCode::InvalidName);
    let revoked = TokenRecord { revoked_at: Some(UnixMillis(0)), ..good.clone() };
    assert_eq!(cluster.refused(issue(revoked)), ErrorCode::InvalidRequest);
    cluster.apply(issue(good.clone())).unwrap();
    assert_eq!(cluster.refused(issue(good)), ErrorCode::Conflict, "the id is taken");
    let unknown = TokenId("u".to_owned());
    let expires_at = cluster.now.plus(DAY_MS);
    assert_eq!(cluster.refused(CommandV1::RenewToken { id: unknown.clone(), expires_at }), ErrorCode::TokenNotFound);
    assert_eq!(cluster.refused(CommandV1::RevokeToken { id: unknown }), ErrorCode::TokenNotFound);
}

#[test]
fn an_expired_token_is_not_renewed() {
    let mut cluster = Cluster::new();
    cluster.apply(CommandV1::IssueToken { token: token("t", cluster.now.plus(DAY_MS)) }).unwrap();
    cluster.now = cluster.now.plus(DAY_MS);
    let renew = CommandV1::RenewToken { id: TokenId("t".to_owned()), expires_at: cluster.now.plus(DAY_MS) };
    assert_eq!(cluster.refused(renew), ErrorCode::TokenExpired);
}

#[test]
fn an_invitation_works_once_and_in_time() {
    let mut cluster = Cluster::new();
    let redeem = |cluster: &Cluster, id: &str, token_id: &str| CommandV1::RedeemInvitation {
        id: TokenId(id.to_owned()),
        token: token(token_id, cluster.now.plus(30 * DAY_MS)),
    };
    let unknown = redeem(&cluster, "i", "t");
    assert_eq!(cluster.refused(unknown), ErrorCode::InvitationInvalid);
    let create = |cluster: &Cluster, id: &str| CommandV1::CreateInvitation {
        invitation: invitation(id, cluster.now.plus(DAY_MS)),
    };
    for id in ["i", "late", "withdrawn"] {
        let create = create(&cluster, id);
        cluster.apply(create).unwrap();
    }
    let wider = CommandV1::RedeemInvitation {
        id: TokenId("i".to_owned()),
        token: TokenRecord { grant: Grant::admin(), ..token("t", cluster.now.plus(DAY_MS)) },
    };
    assert_eq!(cluster.refused(wider), ErrorCode::InvalidRequest, "it stands for less");
    let first = redeem(&cluster, "i", "t");
    cluster.apply(first).unwrap();
    assert!(cluster.state.principal(&TokenId("t".to_owned()), cluster.now).is_ok());
    let second = redeem(&cluster, "i", "t2");
    assert_eq!(cluster.refused(second), ErrorCode::InvitationUsed);
    cluster.apply(CommandV1::RevokeToken { id: TokenId("withdrawn".to_owned()) }).unwrap();
    let withdrawn = redeem(&cluster, "withdrawn", "t3");
    assert_eq!(cluster.refused(withdrawn), ErrorCode::InvitationInvalid);
    cluster.now = cluster.now.plus(DAY_MS);
    let late = redeem(&cluster, "late", "t4");
    assert_eq!(cluster.refused(late), ErrorCode::InvitationExpired);
}

#[test]
fn tokens_that_nobody_can_use_make_room() {
    let mut cluster = Cluster::new();
    let short = cluster.now.plus(DAY_MS);
    cluster.apply(CommandV1::IssueToken { token: token("short", short) }).unwrap();
    cluster.apply(CommandV1::IssueToken { token: token("revoked", short.plus(365 * DAY_MS)) }).unwrap();
    cluster.apply(CommandV1::RevokeToken { id: TokenId("revoked".to_owned()) }).unwrap();
    let holds = |cluster: &Cluster, id: &str| cluster.state.tokens.contains_key(&TokenId(id.to_owned()));
    cluster.now = short.plus(1);
    cluster.apply(CommandV1::IssueToken { token: token("a", cluster.now.plus(300 * DAY_MS)) }).unwrap();
    assert!(holds(&cluster, "short"), "it is still listed for a while");
    cluster.now = short.plus(EXPIRED_KEPT_MS);
    cluster.apply(CommandV1::IssueToken { token: token("b", cluster.now.plus(300 * DAY_MS)) }).unwrap();
    assert!(!holds(&cluster, "short") && holds(&cluster, "a") && holds(&cluster, "revoked"));

    // Filled by hand: ten thousand commands, each checked twice, would take long.
    let expires_at = cluster.now.plus(DAY_MS);
    for index in cluster.state.tokens.len()..TOKENS_MAX {
        let token = token(&format!("t{index}"), expires_at);
        cluster.state.tokens.insert(token.id.clone(), token);
    }
    cluster.apply(CommandV1::IssueToken { token: token("c", expires_at) }).unwrap();
    assert!(!holds(&cluster, "revoked"), "it made room");
    assert_eq!(cluster.refused(CommandV1::IssueToken { token: token("d", expires_at) }), ErrorCode::Conflict);
}
