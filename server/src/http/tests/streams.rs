//! Answers that go on: events.

use flotilla_api::rest::EventView;
use futures::StreamExt;

use super::*;
use crate::client::Client;

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn events_begin_with_the_past_and_go_on_without_a_gap() {
    let running = Running::start().await;
    let client = Client::new(&format!("http://{}", running.address()), Some(running.admin.clone())).unwrap();
    let mut events = client.events().await.unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap();
    let past: Vec<EventView> = vec![next().await, next().await, next().await];
    // Before them stand the first membership and the first leader's entry, which are no events.
    assert_eq!(past.iter().map(|event| event.index).collect::<Vec<_>>(), [Some(2), Some(3), Some(4)]);
    let mut newest = past.last().and_then(|event| event.index);
    for _ in 4..=8 {
        running.token_of(Scope::User).await;
        let event = loop {
            let event = next().await;
            assert!(event.index > newest, "an event came twice, or late: {event:?}");
            newest = event.index;
            // The leader's own words come when they come.
            if event.actor != "node" {
                break event;
            }
        };
        assert_eq!(event.kind, "token-issued");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn events_end_with_the_token_and_with_the_node() {
    let running = Running::start().await;
    let operator = running.token(Grant { scope: Scope::Operator, services: [].into() }).await;
    let open = async |token: &str| {
        let request = running.http.get(format!("http://{}/api/v1/events?replay=0", running.address()));
        request.bearer_auth(token).send().await.unwrap().error_for_status().unwrap().bytes_stream()
    };
    let mut revoked = open(&operator.token).await;
    let mut stopped = open(&running.admin).await;
    running.as_admin(Method::DELETE, &format!("/api/v1/tokens/{}", operator.id)).send().await.unwrap();
    let end = async { while revoked.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.expect("a revoked token's stream goes on");
    let stop = async {
        running.node.stop().await;
        while stopped.next().await.is_some() {}
    };
    tokio::time::timeout(PATIENCE, stop).await.expect("a stream keeps the node from stopping");
}

#[tokio::test]
async fn so_many_streams_and_no_more() {
    let running = Running::start_with(|config| {
        config.docker_host = Some("unix:///nonexistent".to_owned());
        config.limits.streams = 2;
    })
    .await;
    let open = async || running.as_admin(Method::GET, "/api/v1/events").send().await.unwrap();
    let (first, _second) = (open().await, open().await);
    assert_eq!(refusal(open().await).await.code, ErrorCode::RateLimited);
    drop(first);
    let free = async { while !open().await.status().is_success() {} };
    tokio::time::timeout(PATIENCE, free).await.expect("a place is not given back");
    running.node.stop().await;
}
