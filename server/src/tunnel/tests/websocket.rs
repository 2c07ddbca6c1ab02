//! WebSockets through the tunnel.

use bytes::{Bytes, BytesMut};
use flotilla_api::{
    ErrorCode,
    frame::{Close, INITIAL_CREDIT, Kind, Open, flags},
};

use super::{Answer, Page, World, get, page::send, wait_for};

async fn open(world: &World, open: &Open) -> (Page, Answer) {
    let page = Page::new(world.channel("ws/notes"), None).await;
    let answer = page.open(open).await;
    (page, answer)
}

async fn connected(world: &World) -> (Page, Answer) {
    let (page, mut answer) = open(world, &get("/ws")).await;
    assert_eq!(answer.head().await.status, 101);
    (page, answer)
}

/// The next whole message, and whether it is text.
async fn message(answer: &mut Answer) -> (Bytes, bool) {
    let mut whole = BytesMut::new();
    loop {
        let got = answer.next().await;
        assert_eq!(got.kind, Kind::Data);
        whole.extend_from_slice(&got.payload);
        answer.give(got.payload.len()).await;
        if got.flags & flags::MORE == 0 {
            return (whole.freeze(), got.flags & flags::TEXT != 0);
        }
    }
}

async fn closed(answer: &mut Answer) -> Close {
    let got = answer.next().await;
    assert_eq!(got.kind, Kind::End);
    serde_json::from_slice(&got.payload).unwrap()
}

#[tokio::test]
async fn messages_of_both_kinds_are_echoed() {
    let world = World::new().await;
    let (_page, mut socket) = connected(&world).await;
    for (text, flags) in [("grüße", flags::TEXT), ("", flags::TEXT), ("\u{0}\u{1}", 0)] {
        socket.frame_data(text.as_bytes(), flags).await;
        let (echoed, is_text) = message(&mut socket).await;
        assert_eq!((&echoed[..], is_text), (text.as_bytes(), flags != 0));
    }
}

#[tokio::test]
async fn a_message_larger_than_the_credit_passes_in_parts() {
    let world = World::new().await;
    let (_page, mut socket) = connected(&world).await;
    let large: Vec<u8> = (0..3_500_000_u32).map(|n| (n % 253) as u8).collect();
    let mut parts = large.chunks(50_000).peekable();
    while let Some(part) = parts.next() {
        socket.frame_data(part, if parts.peek().is_some() { flags::MORE } else { 0 }).await;
    }
    let (echoed, is_text) = message(&mut socket).await;
    assert!(echoed == large && !is_text);
}

#[tokio::test]
async fn a_subprotocol_is_agreed_on_and_the_origin_is_the_services_own() {
    let world = World::new().await;
    let offer = Open { protocols: vec!["chat.v1".to_owned(), "chat.v2".to_owned()], ..get("/ws") };
    let (_page, mut socket) = open(&world, &offer).await;
    let head = socket.head().await;
    assert_eq!((head.status, head.protocol.as_deref()), (101, Some("chat.v2")));
    assert_eq!(head.cookies.as_deref(), Some("ws=1"), "cookies of the handshake are kept");
    socket.frame_data(b"origin", flags::TEXT).await;
    assert_eq!(message(&mut socket).await.0, "http://notes.home.localhost:7070");
}

#[tokio::test]
async fn close_codes_pass_both_ways() {
    let world = World::new().await;
    let (_page, mut socket) = connected(&world).await;
    socket.frame_data(b"bye", flags::TEXT).await;
    assert_eq!(closed(&mut socket).await, Close { code: 4002, reason: "as you wish".to_owned() });

    let (page, mut socket) = connected(&world).await;
    let own = Close { code: 4001, reason: "done".to_owned() };
    send(page.channel(), Kind::End, socket.id, 0, &own).await;
    assert_eq!(closed(&mut socket).await.code, 4001);

    let (_page, mut socket) = connected(&world).await;
    socket.frame_data(b"die", flags::TEXT).await;
    assert_eq!(closed(&mut socket).await.code, 1006, "no close frame came");
}

#[tokio::test]
async fn a_service_that_refuses_is_told_from_one_that_is_not_there() {
    let world = World::new().await;
    let (_page, mut refused) = open(&world, &get("/ws-refused")).await;
    assert_eq!(refused.head().await.status, 403);
    assert_eq!(refused.next().await.kind, Kind::End);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.services.set("notes", Ok(nobody));
    let (_page, mut unreachable) = open(&world, &get("/ws")).await;
    assert_eq!(unreachable.reset().await.code, ErrorCode::PortClosed);
}

#[tokio::test]
async fn a_page_that_does_not_read_slows_the_service_down() {
    let world = World::new().await;
    let (_page, mut socket) = connected(&world).await;
    socket.frame_data(b"flood", flags::TEXT).await;
    let sent = || world.counted().services[&"notes".parse().unwrap()].bytes_from_service;
    wait_for("the credit is used up", || sent() == u64::from(INITIAL_CREDIT)).await;
    for _ in 0..64 {
        assert_eq!(message(&mut socket).await.0.len(), 256 * 1024);
    }
}

#[tokio::test]
async fn a_page_that_leaves_ends_the_services_socket() {
    let world = World::new().await;
    let (_page, socket) = connected(&world).await;
    let open = || world.counted().services[&"notes".parse().unwrap()].websockets_open;
    assert_eq!(open(), 1);
    socket.abort().await;
    wait_for("the socket is gone", || open() == 0).await;
}

#[tokio::test]
async fn a_websocket_channel_has_one_stream() {
    let world = World::new().await;
    let (page, mut socket) = connected(&world).await;
    send(page.channel(), Kind::Open, 2, 0, &get("/ws")).await;
    let got = page.own().await.unwrap();
    assert_eq!(got.kind, Kind::GoAway);
    assert!(socket.is_quiet());
}
