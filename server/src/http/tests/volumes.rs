//! Volumes: what is told of copies that are on their way or wait, what limits them, and reading all that is kept.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    Revision, UnixMillis,
    limit::{CopyLimit, LimitNow, Rate},
    rest::{ChangeMachine, RemoveQuery, Removed, ScrubView, VolumeState},
    spec::HistoryRules,
};
use flotilla_core::{
    command::{Change, Copies, Generation, GenerationName},
    compose,
    report::{Coming, DataReport, Report},
};
use tokio::time::{sleep, timeout};

use super::{
    known::{Known, client, own, report},
    *,
};
use crate::client::Client;

/// A node in a test looks at its state and disk at once.
const SOON: Duration = Duration::from_secs(20);

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, looking).await.expect("it does not come to that")
}

/// `notes` writes `board` on one machine, which has a copy on another one, that began a while ago.
async fn written(running: &Running, home: &NodeId, replica: &NodeId, holders: &[&NodeId]) -> GenerationName {
    let text = "services: {notes: {image: a, volumes: ['board:/b']}}\nvolumes: {board: {x-flotilla: {replicas: 1, history: {last: 3, \
                hourly: 0}}}}\n";
    let composition = compose::read(text, Some("notes"), &BTreeMap::new()).unwrap();
    let term = running.node.app().store.state().leadership.term + 100;
    propose(running, CommandV1::Lead { node: home.clone(), term }).await;
    propose(running, CommandV1::Deploy { stack: composition.stack, services: composition.services }).await;
    let service: flotilla_api::ServiceName = "notes".parse().unwrap();
    let assign = Change::Assign {
        service: service.clone(),
        replica: 1,
        machine: home.clone(),
        revision: Revision(1),
        restarts: 0,
        reason: "it has room".to_owned(),
    };
    let replicate = Change::Replicate { service: service.clone(), machines: vec![replica.clone()] };
    propose(running, CommandV1::Place { term, changes: vec![assign, replicate] }).await;
    let epoch = running.node.app().store.state().services[&service].placements[0].epoch;
    let name = GenerationName { epoch, sequence: 1 };
    let holders: BTreeSet<NodeId> = holders.iter().map(|id| (*id).clone()).collect();
    let copies = Copies { root: "ab".repeat(32), bytes: 4_000, holders };
    let volumes = BTreeMap::from([("board".parse().unwrap(), copies)]);
    let generation = Generation { name, taken_at: clock::now(), last: false, volumes };
    let generations = BTreeMap::from([(service, generation)]);
    propose(running, CommandV1::CommitGenerations { machine: home.clone(), generations, seen: 0 }).await;
    name
}

#[tokio::test]
async fn a_limit_of_copies_is_set_and_holds_and_the_audit_trail_says_by_whom() {
    let running = Running::start().await;
    let client = client(&running, running.address());
    let anna = "anna".parse().unwrap();
    let change =
        |value: Value| running.as_admin(Method::PATCH, "/api/v1/machines/anna").json(&json!({ "copy_limit": value }));
    for bad in [
        json!({ "rate": 5 }),
        json!({ "rate": "2MB/s" }),
        json!({ "windows": [{ "from": "25:00", "to": "01:00", "rate": 0 }] }),
        json!({ "windows": [{ "from": "07:00", "to": "07:00", "rate": 0 }] }),
    ] {
        assert_eq!(code(change(bad.clone())).await, ErrorCode::InvalidRequest, "{bad}");
    }
    let overlapping = json!({ "windows": [
        { "from": "07:00", "to": "23:00", "rate": 0 }, { "from": "22:00", "to": "01:00", "rate": 10_000 },
    ] });
    let error = refusal(change(overlapping).send().await.unwrap()).await;
    assert_eq!(error.message, "the window 22:00-01:00 overlaps the window 07:00-23:00; take one of them away first");

    let limit = CopyLimit { rate: Some(Rate::ZERO), windows: Vec::new() };
    let asked = ChangeMachine { copy_limit: Some(limit.clone()), ..ChangeMachine::default() };
    client.change_machine(&anna, &asked).await.unwrap();
    let view = async || client.machine(&anna).await.unwrap().view;
    assert_eq!(view().await.copy_limit, limit);
    let holds = LimitNow { rate: Some(Rate::ZERO), until: None };
    until(async || (view().await.copy_limit_now == Some(holds)).then_some(())).await;
    let metrics = running.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.lines().any(|line| line == "flotilla_copies_limit_bytes_per_second 0"), "{metrics}");
    assert!(metrics.lines().any(|line| line == "flotilla_copies_sent_bytes_total{kind=\"awaited\"} 0"), "{metrics}");

    let off = ChangeMachine { copy_limit: Some(CopyLimit::default()), ..ChangeMachine::default() };
    client.change_machine(&anna, &off).await.unwrap();
    until(async || (view().await.copy_limit_now == Some(LimitNow::default())).then_some(())).await;
    let metrics = running.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("copies_limit_bytes_per_second"), "there is none");
    let trail = client.audit().await.unwrap();
    let limited = trail.iter().find(|event| event.kind == "machine-limited").unwrap();
    assert_eq!((limited.actor.as_str(), limited.machine.as_ref()), ("administrator", Some(&anna)));
    running.node.stop().await;
}

/// What a test's machine tells.
fn telling(change: impl FnOnce(&mut Report)) -> Report {
    let mut report = report(Vec::new(), 0);
    change(&mut report);
    report
}

async fn the_volume(client: &Client) -> flotilla_api::rest::VolumeView {
    client.volumes().await.unwrap().remove(0)
}

#[tokio::test]
async fn a_volume_says_until_when_it_waits_and_how_far_its_copies_are() {
    let running = Running::start().await;
    let (anna, berta, clara) = (own(&running), admit(&running, "berta").await, admit(&running, "clara").await);
    let name = written(&running, &berta, &clara, &[&berta]).await;
    let now = clock::now();
    let unwritten = DataReport { epoch: name.epoch, uncommitted_since: Some(now), ..DataReport::default() };
    let writes = |rate: Option<Rate>| {
        let unwritten = unwritten.clone();
        telling(|report| {
            report.data.insert("notes".parse().unwrap(), unwritten);
            report.copy_limit = Some(LimitNow { rate, until: Some("23:00".parse().unwrap()) });
        })
    };
    let coming = Coming {
        service: "notes".parse().unwrap(),
        volume: "board".parse().unwrap(),
        name,
        bytes: 1_000,
        of: 4_000,
        per_second: 100,
    };
    let other = Coming { volume: "else".parse().unwrap(), ..coming.clone() };
    let gets = telling(|report| report.coming = vec![other, coming]);
    let known = |rate, received| {
        Known::of(&berta, &[&anna, &berta, &clara]).told(&berta, now, writes(rate)).told(&clara, received, gets.clone())
    };

    let at_zero = client(&running, beside(&running, Arc::new(known(Some(Rate::ZERO), now))).await);
    let volume = the_volume(&at_zero).await;
    let said = "waits until 23:00: `berta` sends no copies before that, by its limit";
    assert_eq!((volume.state, volume.message.as_deref()), (VolumeState::Alone, Some(said)));
    assert_eq!(volume.history, HistoryRules { last: 3, hourly: 0, ..HistoryRules::default() });
    let copy = &volume.copies[0];
    let far = copy.coming.as_ref().unwrap();
    assert_eq!(
        (far.generation.as_str(), far.bytes, far.of, far.left_ms()),
        (name.to_string().as_str(), 1_000, 4_000, Some(30_000))
    );
    assert_eq!(far.observed_at, now);

    let slow = Some("10kB/s".parse().unwrap());
    let old = UnixMillis(now.0 - 60_000);
    let flowing = client(&running, beside(&running, Arc::new(known(slow, old))).await);
    let volume = the_volume(&flowing).await;
    assert_eq!(volume.message.as_deref(), Some("`clara` is copying"));
    assert_eq!(volume.copies[0].coming, None, "what it told a minute ago says nothing of now");
    running.node.stop().await;
}

#[tokio::test]
async fn a_service_that_is_removed_ends_first_and_leaves_all_that_it_wrote_to_others() {
    let running = Running::start().await;
    let (berta, clara) = (admit(&running, "berta").await, admit(&running, "clara").await);
    let name = written(&running, &berta, &clara, &[&berta]).await;
    let service: flotilla_api::ServiceName = "notes".parse().unwrap();
    let asking = client(&running, running.address());
    let removing = {
        let service = service.clone();
        tokio::spawn(async move { asking.remove(&service, RemoveQuery::default()).await })
    };
    let stopped = async || {
        let state = running.node.app().store.state();
        (state.services[&service].replicas == 0).then_some(())
    };
    until(stopped).await;

    // It is there until the last generation is, and its placement gone.
    let term = running.node.app().store.state().leadership.term;
    let epoch = name.epoch;
    let vacate = Change::Vacate { epoch, reason: "it is not wanted".to_owned() };
    propose(&running, CommandV1::Place { term, changes: vec![vacate] }).await;
    let copies = Copies { root: "cd".repeat(32), bytes: 4_000, holders: [berta.clone(), clara].into() };
    let last = Generation {
        name: GenerationName { epoch, sequence: 2 },
        taken_at: clock::now(),
        last: true,
        volumes: [("board".parse().unwrap(), copies)].into(),
    };
    let generations = BTreeMap::from([(service.clone(), last)]);
    propose(&running, CommandV1::CommitGenerations { machine: berta, generations, seen: 0 }).await;
    assert!(!removing.is_finished() && running.node.app().store.state().services.contains_key(&service));
    let end = Change::End { epoch, reason: "it has ended".to_owned() };
    propose(&running, CommandV1::Place { term, changes: vec![end] }).await;
    assert_eq!(removing.await.unwrap().unwrap(), Removed::default());
    let state = running.node.app().store.state();
    let kept = &state.kept_data[&service];
    assert!(kept.settled && kept.committed.as_ref().is_some_and(|committed| committed.name.sequence == 2), "{kept:?}");
    running.node.stop().await;
}

#[tokio::test]
async fn what_others_do_not_have_of_a_service_that_is_removed_is_told() {
    let running = Running::start().await;
    let (berta, clara) = (admit(&running, "berta").await, admit(&running, "clara").await);
    // Nobody runs it any more, and what it wrote last was never committed.
    let name = written(&running, &berta, &clara, &[&berta, &clara]).await;
    let term = running.node.app().store.state().leadership.term;
    let (epoch, reason) = (name.epoch, "it is not wanted".to_owned());
    let changes = vec![Change::Vacate { epoch, reason: reason.clone() }, Change::End { epoch, reason }];
    propose(&running, CommandV1::Place { term, changes }).await;
    let client = client(&running, running.address());
    let service: flotilla_api::ServiceName = "notes".parse().unwrap();
    let removed = client.remove(&service, RemoveQuery::default()).await.unwrap();
    assert_eq!(removed, Removed { last_writes_on: Some("berta".parse().unwrap()) });
    let error = client.remove(&service, RemoveQuery::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ServiceNotFound));
    running.node.stop().await;
}

#[tokio::test]
async fn all_that_a_machine_keeps_is_read_when_somebody_asks_and_known_after_a_restart() {
    let running = Running::start().await;
    let client = client(&running, running.address());
    let anna = "anna".parse().unwrap();
    let scrub = async || client.machine(&anna).await.unwrap().view.resources.unwrap().scrub;
    let asked = client.scrub(&anna).await.unwrap();
    let began = asked.running.unwrap().began_at;
    let ended = until(async || {
        let ScrubView { finished, running } = scrub().await?;
        finished.filter(|finished| running.is_none() && finished.began_at >= began)
    });
    let ended = ended.await;
    assert_eq!((ended.damaged, ended.repaired), (0, 0));
    let metrics = running.get("/metrics").send().await.unwrap().text().await.unwrap();
    let line = format!("flotilla_volume_scrub_finished_seconds {}", ended.finished_at.0 / 1000);
    assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    assert!(metrics.lines().any(|line| line == "flotilla_volume_scrub_unrepaired_objects 0"), "{metrics}");
    let trail = client.audit().await.unwrap();
    let noted = trail.iter().find(|event| event.kind == "machine-scrubbed").unwrap();
    assert_eq!((noted.actor.as_str(), noted.machine.as_ref()), ("administrator", Some(&anna)));
    assert_eq!(code(running.as_admin(Method::POST, "/api/v1/machines/nobody/scrub")).await, ErrorCode::MachineNotFound);
    let user = running.token_of(Scope::User).await;
    let refused = running.request(Method::POST, "/api/v1/machines/anna/scrub").bearer_auth(user).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    running.node.stop().await;
}
