//! What a browser may not do, and what it costs: its stream, or its channel, and nothing of anybody else's.

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};
use flotilla_api::{
    ApiError, ErrorCode, Grant, Scope,
    frame::{DATA_MAX, FRAME_VERSION, Frame, Hello, INITIAL_CREDIT, Kind, STREAMS_MAX, flags},
};
use proptest::prelude::*;
use tokio::time::timeout;

use super::{
    Channel, PATIENCE, Page, Pipe, World, get,
    page::{send, send_bytes},
};

async fn next(channel: &Pipe) -> Option<Bytes> {
    timeout(PATIENCE, channel.recv()).await.expect("a frame in time")
}

/// The error of the `GoAway` that comes next, a `Hello` aside.
async fn go_away(channel: &Pipe) -> ApiError {
    loop {
        let message = next(channel).await.expect("a go-away before the end");
        let frame = Frame::decode(&message).unwrap();
        match frame.kind {
            Kind::Hello => {}
            Kind::GoAway => return serde_json::from_slice(frame.payload).unwrap(),
            other => panic!("{other:?} instead of a go-away"),
        }
    }
}

async fn greeted(world: &World) -> Arc<Pipe> {
    let channel = world.channel("http/interactive/notes");
    send(&*channel, Kind::Hello, 0, 0, &Hello { version: FRAME_VERSION }).await;
    channel
}

#[tokio::test]
async fn a_channel_to_a_service_that_was_not_granted_is_refused() {
    let other = BTreeSet::from(["other".parse().unwrap()]);
    let world = World::with_grant(Grant { scope: Scope::User, services: other });
    world.services.set("notes", Err(ApiError::new(ErrorCode::ServiceStopped, "")));
    for label in ["http/interactive/notes", "http/bulk/notes", "ws/notes"] {
        assert_eq!(go_away(&world.channel(label)).await.code, ErrorCode::ScopeInsufficient);
    }
    assert_eq!(world.counted().resets["scope-insufficient"], 3);
}

#[tokio::test]
async fn a_renewed_token_may_open_more() {
    let world = World::with_grant(Grant { scope: Scope::User, services: BTreeSet::new() });
    world.services.set("notes", Ok(super::service::start().await));
    assert_eq!(go_away(&world.channel("http/interactive/notes")).await.code, ErrorCode::ScopeInsufficient);
    let services = BTreeSet::from(["notes".parse().unwrap()]);
    world.session.renew(super::principal(Grant { scope: Scope::User, services }));
    assert_eq!(world.page().await.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test]
async fn a_label_that_names_nothing_is_refused() {
    let world = World::new().await;
    assert_eq!(go_away(&world.channel("raw/notes")).await.code, ErrorCode::FrameInvalid);
    assert_eq!(go_away(&world.channel("http/interactive/unknown")).await.code, ErrorCode::ServiceNotFound);
    assert!(!world.counted().services.contains_key(&"unknown".parse().unwrap()));
}

#[tokio::test]
async fn a_page_of_another_version_is_told_to_reload() {
    let world = World::new().await;
    let channel = world.channel("http/interactive/notes");
    send(&*channel, Kind::Hello, 0, 0, &Hello { version: 99 }).await;
    let error = go_away(&channel).await;
    assert_eq!(error.code, ErrorCode::FrameInvalid);
    assert!(error.message.contains("version 99"), "{error}");
    let silent = world.channel("http/interactive/notes");
    send(&*silent, Kind::Open, 1, 0, &get("/hello")).await;
    assert_eq!(go_away(&silent).await.code, ErrorCode::FrameInvalid);
}

#[tokio::test]
async fn a_refused_channel_is_closed() {
    let world = World::new().await;
    let channel = world.channel("nonsense");
    go_away(&channel).await;
    channel.close().await;
    assert_eq!(next(&channel).await, None);
}

#[tokio::test]
async fn an_id_is_used_once() {
    let world = World::new().await;
    let page = world.page().await;
    let (head, _) = page.fetch(&get("/hello")).await;
    assert_eq!(head.status, 200);
    let mut again = page.expect(1);
    send(page.channel(), Kind::Open, 1, 0, &get("/hello")).await;
    assert_eq!(again.reset().await.code, ErrorCode::FrameInvalid);
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test]
async fn frames_of_a_stream_that_was_never_opened_reset_it() {
    let world = World::new().await;
    let page = world.page().await;
    for kind in [Kind::Data, Kind::End, Kind::Reset, Kind::Credit, Kind::Head] {
        let mut unknown = page.expect(1000);
        send_bytes(page.channel(), Frame::new(kind, 1000, &[])).await;
        assert_eq!(unknown.reset().await.code, ErrorCode::FrameInvalid);
    }
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test]
async fn a_malformed_frame_costs_its_stream_alone() {
    let world = World::new().await;
    let page = world.page().await;
    let mut unknown_kind = page.expect(7);
    page.channel().send(BytesMut::from(&[99_u8, 0, 0, 0, 0, 0, 0, 7][..])).await.unwrap();
    assert_eq!(unknown_kind.reset().await.code, ErrorCode::FrameInvalid);
    let mut no_json = page.expect(8);
    send_bytes(page.channel(), Frame::new(Kind::Open, 8, b"{")).await;
    assert_eq!(no_json.reset().await.code, ErrorCode::FrameInvalid);
    let mut absurd = page.open(&get("/endless")).await;
    send_bytes(page.channel(), Frame::new(Kind::Credit, absurd.id, &u32::MAX.to_be_bytes())).await;
    assert_eq!(absurd.reset().await.code, ErrorCode::FrameInvalid);
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test]
async fn what_names_no_stream_costs_the_channel() {
    let world = World::new().await;
    let messages: [&[u8]; 4] = [
        b"short",
        &Frame::new(Kind::Open, 0, b"{}").encode(),
        &Frame::new(Kind::Ping, 0, &[0; 65]).encode(),
        &Frame::new(Kind::Cookie, 0, b"no json").encode(),
    ];
    for message in messages {
        let channel = greeted(&world).await;
        channel.send(BytesMut::from(message)).await.unwrap();
        assert_eq!(go_away(&channel).await.code, ErrorCode::FrameInvalid);
    }
}

#[tokio::test]
async fn more_data_than_the_credit_resets_the_stream() {
    let world = World::new().await;
    let page = world.page().await;
    let headers = vec![("content-length".to_owned(), "1000000000".to_owned())];
    let open = flotilla_api::frame::Open { method: "POST".to_owned(), headers, ..get("/never-reads") };
    let mut greedy = page.upload(&open).await;
    let chunk = vec![0; DATA_MAX];
    let error = loop {
        send_bytes(page.channel(), Frame::new(Kind::Data, greedy.id, &chunk)).await;
        if !greedy.is_quiet() {
            break greedy.reset().await;
        }
    };
    assert_eq!(error.code, ErrorCode::FrameInvalid);
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test]
async fn only_so_many_streams_are_open_at_once() {
    let world = World::new().await;
    let page = world.page().await;
    let mut waiting = Vec::new();
    for _ in 0..STREAMS_MAX {
        let mut events = page.open(&get("/events")).await;
        events.head().await;
        waiting.push(events);
    }
    let mut one_more = page.open(&get("/hello")).await;
    assert_eq!(one_more.reset().await.code, ErrorCode::RateLimited);
    waiting[0].abort().await;
    super::wait_for("a place is free", || {
        world.counted().services[&"notes".parse().unwrap()].streams_open < STREAMS_MAX as u64
    })
    .await;
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test]
async fn a_ping_is_answered() {
    let world = World::new().await;
    let page = world.page().await;
    send_bytes(page.channel(), Frame::new(Kind::Ping, 0, b"now")).await;
    let got = page.own().await.unwrap();
    assert_eq!((got.kind, got.flags, &got.payload[..]), (Kind::Ping, flags::REPLY, &b"now"[..]));
}

#[tokio::test]
async fn a_closed_channel_ends_its_streams() {
    let world = World::new().await;
    let channel = world.channel("http/interactive/notes");
    let page = Page::new(Arc::clone(&channel) as Arc<dyn Channel>, None).await;
    let mut events = page.open(&get("/events")).await;
    events.head().await;
    let open = || world.counted().services[&"notes".parse().unwrap()].streams_open;
    assert_eq!(open(), 1);
    channel.close().await;
    super::wait_for("the stream is over", || open() == 0).await;
}

#[tokio::test]
async fn a_session_that_ends_says_why_on_every_channel() {
    let world = World::new().await;
    let (a, b) = (greeted(&world).await, world.channel("ws/notes"));
    for channel in [&a, &b] {
        assert_eq!(next(channel).await.unwrap()[0], Kind::Hello as u8);
    }
    world.session.go_away(&ApiError::new(ErrorCode::TokenRevoked, "your token was revoked")).await;
    for channel in [&a, &b] {
        assert_eq!(go_away(channel).await.code, ErrorCode::TokenRevoked);
    }
}

/// A frame of any kind, with payloads that come near what is expected.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        Just(serde_json::to_vec(&get("/hello")).unwrap()),
        Just(serde_json::to_vec(&Hello { version: FRAME_VERSION }).unwrap()),
        Just(INITIAL_CREDIT.to_be_bytes().to_vec()),
        Just(vec![0; DATA_MAX + 1]),
    ];
    (0_u8..14, any::<u8>(), prop_oneof![0_u32..6, any::<u32>()], payload).prop_map(|(kind, flags, stream, payload)| {
        let mut message = vec![kind, flags, 0, 0];
        message.extend_from_slice(&stream.to_be_bytes());
        message.extend_from_slice(&payload);
        message
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_browser_sends_others_are_served(messages in proptest::collection::vec(any_message(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let channel = greeted(&world).await;
            let reader = Arc::clone(&channel);
            let reading = tokio::spawn(async move { while reader.recv().await.is_some() {} });
            for message in messages {
                if channel.send(BytesMut::from(&message[..])).await.is_err() {
                    break;
                }
            }
            assert_eq!(world.page_in_another_tab().await.fetch(&get("/hello?other")).await.1, "hello");
            channel.close().await;
            reading.abort();
            super::wait_for("its streams are over", || {
                world.counted().services[&"notes".parse().unwrap()].streams_open == 0
            }).await;
        });
    }
}
