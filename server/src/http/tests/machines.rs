//! Machines: how they do, names, labels, drain, removal. Others than this one are told of by reports.

use std::collections::BTreeMap;

use flotilla_api::{
    Revision, UnixMillis,
    rest::{DrainQuery, MachineDetail, MachineState, MachineView, Role, ServiceState, ServiceView, Verdict},
};
use flotilla_core::{command::Change, state::Availability};

use super::{
    known::{Known, client, container, own, report, spec},
    *,
};
use crate::client::Error;

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> ApiError {
    match result {
        Err(Error::Api(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn find<'a>(machines: &'a [MachineView], name: &str) -> &'a MachineView {
    machines.iter().find(|machine| machine.name.as_str() == name).unwrap()
}

#[tokio::test]
async fn a_cluster_of_one_says_what_it_is_and_why_it_is_not_fault_tolerant() {
    let running = Running::start().await;
    let client = client(&running, running.address());
    let cluster = client.cluster().await.unwrap();
    assert_eq!(cluster.machine, cluster.leader);
    assert_eq!((cluster.voters.len(), cluster.learners.len()), (1, 0));
    assert!(cluster.term > 0 && !cluster.fault_tolerant && !cluster.demo);
    assert!(cluster.not_fault_tolerant_because.unwrap().contains("only machine"));
    let machine = client.machine(&"anna".parse().unwrap()).await.unwrap().view;
    assert!(machine.here && machine.leads && machine.role == Role::Voter);
    assert_eq!(machine.condition.state, MachineState::Ready);
    // Its id names it, too.
    let by_id = client.machine(&machine.id.0.parse().unwrap()).await.unwrap();
    assert_eq!(by_id.view.name, machine.name);
    running.node.stop().await;
}

#[tokio::test]
async fn a_machine_is_renamed_and_labelled_and_the_audit_trail_says_by_whom() {
    let running = Running::start().await;
    let client = client(&running, running.address());
    let change = |value: Value| running.as_admin(Method::PATCH, "/api/v1/machines/anna").json(&value);
    assert_eq!(code(change(json!({}))).await, ErrorCode::InvalidRequest);
    assert_eq!(code(change(json!({ "nam": "x" }))).await, ErrorCode::InvalidRequest);
    assert_eq!(code(change(json!({ "labels": { "a b": "c" } }))).await, ErrorCode::InvalidRequest);
    let both = change(json!({ "name": "berta", "labels": { "room": "attic", "gone": null } }));
    assert_eq!(both.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    let machine = client.machine(&"berta".parse().unwrap()).await.unwrap().view;
    assert_eq!(machine.labels, BTreeMap::from([("room".to_owned(), "attic".to_owned())]));
    assert_eq!(code(change(json!({ "name": "clara" }))).await, ErrorCode::MachineNotFound);
    let trail = client.audit().await.unwrap();
    let renamed = trail.iter().find(|event| event.kind == "machine-renamed").unwrap();
    assert_eq!((renamed.actor.as_str(), renamed.machine.as_ref()), ("administrator", Some(&machine.name)));
    running.node.stop().await;
}

#[tokio::test]
async fn a_name_that_another_machine_has_is_refused() {
    let running = Running::start().await;
    admit(&running, "berta").await;
    let change = running.as_admin(Method::PATCH, "/api/v1/machines/anna").json(&json!({ "name": "berta" }));
    assert_eq!(code(change).await, ErrorCode::Conflict);
    running.node.stop().await;
}

#[tokio::test]
async fn only_a_machine_that_is_empty_or_lost_is_removed_without_force() {
    let running = Running::start().await;
    let client = client(&running, running.address());
    let (anna, berta): (flotilla_api::MachineName, flotilla_api::MachineName) =
        ("anna".parse().unwrap(), "berta".parse().unwrap());
    let plain = flotilla_api::rest::RemoveMachineQuery::default();
    let force = flotilla_api::rest::RemoveMachineQuery { force: true };
    for query in [plain, force] {
        let error = refused(client.remove_machine(&anna, query).await);
        assert!(error.message.contains("last machine"), "{error}");
    }
    admit(&running, "berta").await;
    let error = refused(client.remove_machine(&berta, plain).await);
    assert!(error.code == ErrorCode::Conflict && error.message.contains("flotilla drain berta"), "{error}");
    client.drain(&berta, DrainQuery::default()).await.unwrap();
    assert_eq!(refused(client.drain(&berta, DrainQuery::default()).await).code, ErrorCode::Conflict, "drained already");
    client.remove_machine(&berta, plain).await.unwrap();
    assert_eq!(refused(client.remove_machine(&berta, plain).await).code, ErrorCode::MachineNotFound);

    let clara = admit(&running, "clara").await;
    let term = running.node.app().store.state().leadership.term;
    propose(&running, CommandV1::MachineLost { term, machine: clara }).await;
    client.remove_machine(&"clara".parse().unwrap(), plain).await.unwrap();

    admit(&running, "dora").await;
    client.remove_machine(&"dora".parse().unwrap(), force).await.unwrap();
    running.node.stop().await;
}

#[tokio::test]
async fn each_condition_of_a_machine_is_told_with_its_reason() {
    let running = Running::start().await;
    let (anna, berta, clara, dora, emma) = (
        own(&running),
        admit(&running, "berta").await,
        admit(&running, "clara").await,
        admit(&running, "dora").await,
        admit(&running, "emma").await,
    );
    let term = running.node.app().store.state().leadership.term;
    propose(&running, CommandV1::MachineLost { term, machine: dora.clone() }).await;
    let drained = Availability::Drained { since: clock::now() };
    propose(&running, CommandV1::SetAvailability { machine: emma.clone(), availability: drained }).await;
    let now = clock::now();
    let known = Known::of(&berta, &[&anna, &berta, &clara, &dora])
        .told(&berta, now, report(Vec::new(), 0))
        .told(&clara, UnixMillis(now.0 - 60_000), report(Vec::new(), 0))
        .told(&emma, now, report(Vec::new(), 0));
    let address = beside(&running, Arc::new(known)).await;
    let client = client(&running, address);

    let machines = client.machines().await.unwrap();
    assert_eq!(
        machines.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>(),
        ["anna", "berta", "clara", "dora", "emma"]
    );
    let state = |name| find(&machines, name).condition.state;
    assert_eq!(
        ["anna", "berta", "clara", "dora", "emma"].map(state),
        [MachineState::Ready, MachineState::Ready, MachineState::Suspect, MachineState::Lost, MachineState::Drained,]
    );
    let berta = find(&machines, "berta");
    assert!(berta.leads && !berta.here && berta.version == "9.9.9" && berta.lease_left_ms == Some(1234));
    assert_eq!(berta.resources.as_ref().unwrap().cpu_cores, 4);
    assert_eq!(berta.observed_at, Some(now));
    assert!(find(&machines, "clara").condition.reason.as_ref().unwrap().contains("nothing was heard from it for 6"));
    let dora = find(&machines, "dora");
    assert!(dora.engine.is_none() && dora.resources.is_none() && dora.version == "0.0.1");
    assert_eq!((find(&machines, "emma").role, find(&machines, "emma").drained), (Role::Learner, true));
    let cluster = client.cluster().await.unwrap();
    assert_eq!((cluster.leader.unwrap().as_str(), cluster.term), ("berta", 7));
    assert_eq!((cluster.voters.len(), cluster.learners.len()), (4, 1));
    assert!(cluster.not_fault_tolerant_because.unwrap().starts_with("`dora` is lost"));

    let metrics = running.http.get(format!("http://{address}/metrics")).send().await.unwrap().text().await.unwrap();
    let line = "flotilla_machines{state=\"suspect\"} 1";
    assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    running.node.stop().await;
}

#[tokio::test]
async fn a_service_is_told_by_what_all_machines_show() {
    let running = Running::start().await;
    let (anna, berta, clara) = (own(&running), admit(&running, "berta").await, admit(&running, "clara").await);
    let (stack, services) = spec();
    // The node's own leader places what is deployed as soon as it sees it; here it is the test that leads.
    let term = running.node.app().store.state().leadership.term + 100;
    propose(&running, CommandV1::Lead { node: berta.clone(), term }).await;
    propose(&running, CommandV1::Deploy { stack, services }).await;
    let place = |replica, machine: &NodeId| Change::Assign {
        service: "web".parse().unwrap(),
        replica,
        machine: machine.clone(),
        revision: Revision(1),
        restarts: 0,
        reason: "it has room".to_owned(),
    };
    propose(&running, CommandV1::Place { term, changes: vec![place(1, &berta), place(2, &clara)] }).await;
    let epochs: Vec<u64> = {
        let state = running.node.app().store.state();
        state.services[&"web".parse().unwrap()].placements.iter().map(|placement| placement.epoch).collect()
    };
    let (now, since) = (clock::now(), UnixMillis(clock::now().0 - 60_000));
    let known = || {
        Known::of(&berta, &[&anna, &berta, &clara]).told(
            &berta,
            now,
            report(vec![container(1, epochs[0], since)], 1_000),
        )
    };
    let well = known().told(&clara, now, report(vec![container(2, epochs[1], since)], 3_000));
    let client_of = async |known| client(&running, beside(&running, Arc::new(known)).await);

    let client = client_of(well).await;
    let services: Vec<ServiceView> = client.services().await.unwrap();
    let web = &services[0];
    assert_eq!((web.state, web.instances.len()), (ServiceState::Running, 2), "{web:?}");
    // The oldest of what was seen, by this machine's clock.
    assert_eq!(web.observed_at, UnixMillis(now.0 - 3_000));
    let on: Vec<_> = web.instances.iter().map(|one| (one.machine.as_str(), one.replica, one.epoch)).collect();
    assert_eq!(on, [("berta", 1, epochs[0]), ("clara", 2, epochs[1])]);
    assert_eq!(web.instances[1].memory_used_bytes, Some(77));
    let detail = client.service(&web.service).await.unwrap();
    let placed: Vec<_> = detail.placements.iter().map(|one| (one.machine.as_str(), one.reason.as_str())).collect();
    assert_eq!(placed, [("berta", "it has room"), ("clara", "it has room")]);
    let berta_view: MachineDetail = client.machine(&"berta".parse().unwrap()).await.unwrap();
    assert_eq!((berta_view.view.instances, berta_view.placements[0].epoch), (1, epochs[0]));

    // A machine that has told nothing makes the service's state unknown, and says so.
    let client = client_of(known()).await;
    let web = client.services().await.unwrap().remove(0);
    assert_eq!(web.state, ServiceState::Unknown);
    assert!(web.message.unwrap().contains("does not answer"));

    // Drained, it says how much is left.
    client.drain(&"berta".parse().unwrap(), DrainQuery { force: true }).await.unwrap();
    let berta = client.machine(&"berta".parse().unwrap()).await.unwrap().view;
    assert_eq!(berta.condition.state, MachineState::Draining);
    assert_eq!(berta.condition.reason.as_deref(), Some("one instance is still there"));
    let error = refused(client.remove_machine(&berta.name, flotilla_api::rest::RemoveMachineQuery::default()).await);
    assert!(error.message.contains("one instance is still on `berta`"), "{error}");
    client.undrain(&berta.name).await.unwrap();
    assert_eq!(client.machine(&berta.name).await.unwrap().view.condition.state, MachineState::Ready);
    running.node.stop().await;
}

#[tokio::test]
async fn a_drain_that_leaves_something_without_a_place_says_what_lacks_where() {
    let running = Running::start().await;
    let (stack, services) = spec();
    let (node, web) = (own(&running), "web".parse().unwrap());
    // Here the test leads.
    let term = running.node.app().store.state().leadership.term + 100;
    propose(&running, CommandV1::Lead { node: node.clone(), term }).await;
    propose(&running, CommandV1::Deploy { stack, services }).await;
    let place = |replica| Change::Assign {
        service: "web".parse().unwrap(),
        replica,
        machine: node.clone(),
        revision: Revision(1),
        restarts: 0,
        reason: "it has room".to_owned(),
    };
    propose(&running, CommandV1::Place { term, changes: vec![place(1), place(2)] }).await;
    let known = Known::of(&node, &[&node]).told(&node, clock::now(), report(Vec::new(), 0)).going_by(&running);
    let client = client(&running, beside(&running, Arc::new(known)).await);
    let anna = "anna".parse().unwrap();
    let before = running.applied();
    let error = refused(client.drain(&anna, DrainQuery::default()).await);
    assert_eq!(error.code, ErrorCode::NoRoom);
    for part in ["`anna` can't be drained, and nothing was changed", "`web` finds no place", "there is no other"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    assert_eq!(running.applied(), before);

    // Why it is here, by the scheduler's own word.
    let explained = client.explain(&web).await.unwrap();
    assert_eq!(explained.summary, "`web` runs on `anna`.");
    let places: Vec<_> = explained.placements.iter().map(|placed| (placed.replica, placed.machine.as_str())).collect();
    assert_eq!(places, [(1, "anna"), (2, "anna")]);
    let [verdict] = &explained.machines[..] else { panic!("{explained:?}") };
    assert_eq!((verdict.verdict, verdict.machine.as_str()), (Verdict::Chosen, "anna"));
    let unknown = refused(client.explain(&"ghost".parse().unwrap()).await);
    assert_eq!(unknown.code, ErrorCode::ServiceNotFound);

    client.drain(&anna, DrainQuery { force: true }).await.unwrap();
    running.node.stop().await;
}

#[tokio::test]
async fn a_read_can_be_asked_to_be_up_to_date() {
    let running = Running::start().await;
    let node = own(&running);
    let known = Known { linearizable: false, ..Known::of(&node, &[&node]) };
    let address = beside(&running, Arc::new(known)).await;
    let get = |query: &str| {
        let url = format!("http://{address}/api/v1/services{query}");
        running.http.get(url).bearer_auth(&running.admin).timeout(Duration::from_secs(20))
    };
    assert_eq!(get("").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(get("?consistency=local").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(code(get("?consistency=linearizable")).await, ErrorCode::ServiceUnavailable);
    assert_eq!(code(get("?consistency=perfect")).await, ErrorCode::InvalidRequest);
    let alone = running.as_admin(Method::GET, "/api/v1/services?consistency=linearizable").send().await.unwrap();
    assert_eq!(alone.status(), StatusCode::OK);
    running.node.stop().await;
}
