//! Requests and answers.

use std::time::Duration;

use flotilla_api::{
    ApiError, ErrorCode,
    frame::{Cookie, Head, INITIAL_CREDIT, Kind},
};
use sha2::{Digest, Sha256};

use super::{Page, World, get, page::send, service, wait_for};

fn header<'a>(head: &'a Head, name: &str) -> Option<&'a str> {
    head.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn post(path: &str, headers: &[(&str, &str)]) -> flotilla_api::frame::Open {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    flotilla_api::frame::Open { method: "POST".to_owned(), headers, ..get(path) }
}

fn document(path: &str) -> flotilla_api::frame::Open {
    flotilla_api::frame::Open { destination: "iframe".to_owned(), ..get(path) }
}

async fn seen(page: &Page) -> (u64, u64) {
    serde_json::from_slice(&page.fetch(&get("/seen")).await.1).unwrap()
}

#[tokio::test]
async fn a_page_gets_what_it_asks_for() {
    let world = World::new().await;
    let (head, body) = world.page().await.fetch(&get("/hello")).await;
    assert_eq!((head.status, &body[..]), (200, &b"hello"[..]));
    assert_eq!(header(&head, "content-length"), Some("5"));
    assert_eq!(head.cookies, None);
    let counted = world.counted().services[&"notes".parse().unwrap()];
    assert_eq!((counted.streams_total, counted.bytes_from_service), (1, 5));
}

#[tokio::test]
async fn a_short_answer_comes_as_one_frame_to_a_page_that_takes_it() {
    let world = World::new().await;
    let page = world.page().await;
    let mut answer = page.open_whole(&get("/hello")).await;
    let (head, body) = answer.whole().await;
    assert_eq!((head.status, &body[..]), (200, &b"hello"[..]));
    assert_eq!(header(&head, "content-length"), Some("5"));
    let mut answer = page.open_whole(&get("/not-modified")).await;
    let (head, body) = answer.whole().await;
    assert_eq!((head.status, body.len()), (304, 0));
    let mut shimmed = page.open_whole(&document("/framed")).await;
    let (_, body) = shimmed.whole().await;
    assert!(String::from_utf8_lossy(&body).contains("/__flotilla/shim.js"));
    let counted = world.counted().services[&"notes".parse().unwrap()];
    assert_eq!((counted.streams_total, counted.bytes_from_service), (3, 5 + body.len() as u64));
    assert!(answer.is_quiet() && shimmed.is_quiet(), "it is over");

    // What goes on, or is too long, comes as it always did.
    for (path, length) in [("/zeros?bytes=65536", 65_536), ("/zeros?bytes=200000", 200_000)] {
        let mut answer = page.open_whole(&get(path)).await;
        assert_eq!(answer.head().await.status, 200);
        assert_eq!(answer.body().await.len(), length, "{path}");
    }
    let mut events = page.open_whole(&get("/events")).await;
    assert_eq!(events.head().await.status, 200);
}

#[tokio::test]
async fn a_download_arrives_whole_on_the_bulk_lane() {
    let world = World::new().await;
    let page = world.page().await;
    let mut answer = page.open(&get("/zeros?bytes=50000001")).await;
    let (head, on_bulk) = answer.head_and_lane().await;
    assert_eq!((head.status, on_bulk), (200, true));
    let body = answer.body().await;
    assert!(body.len() == 50_000_001 && body.iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_slow_reader_stops_its_own_stream_and_no_other() {
    let world = World::new().await;
    let page = world.page().await;
    let mut slow = page.open(&get("/endless")).await;
    slow.head().await;
    // Without credit the service is asked for no more than buffers on the way hold.
    let sent = || world.counted().services[&"notes".parse().unwrap()].bytes_from_service;
    wait_for("the stream's credit is used up", || sent() == u64::from(INITIAL_CREDIT)).await;
    for _ in 0..20 {
        assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
    }
    let (_, produced) = seen(&page).await;
    assert!(produced * 16 * 1024 < 32 * 1024 * 1024, "{produced} chunks were produced for nobody");
    slow.abort().await;
    let dropped = async || seen(&page).await.0 == 1;
    while !dropped().await {}
}

#[tokio::test]
async fn an_upload_of_known_length_streams_through() {
    let world = World::new().await;
    let page = world.page().await;
    let data: Vec<u8> = (0..50_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut answer = page.upload(&post("/hash", &[("content-length", &data.len().to_string())])).await;
    answer.data(&data).await;
    answer.end().await;
    assert_eq!(answer.head().await.status, 200);
    let (length, bytes, digest): (Option<String>, u64, String) = serde_json::from_slice(&answer.body().await).unwrap();
    assert_eq!((length.as_deref(), bytes), (Some("50000000"), 50_000_000));
    let expected: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, expected);
}

#[tokio::test]
async fn an_upload_of_unknown_length_reaches_the_service_with_its_length() {
    let world = World::new().await;
    let page = world.page().await;
    for size in [0, 7, 3_000_000] {
        let data = vec![5_u8; size];
        let mut answer = page.upload(&post("/hash", &[])).await;
        answer.data(&data).await;
        answer.end().await;
        answer.head().await;
        let (length, bytes, _): (Option<String>, u64, String) = serde_json::from_slice(&answer.body().await).unwrap();
        assert_eq!((length, bytes), (Some(size.to_string()), size as u64));
    }
}

#[tokio::test]
async fn a_service_that_does_not_read_is_sent_no_more_than_the_credit() {
    let world = World::new().await;
    let page = world.page().await;
    let mut upload = page.upload(&post("/never-reads", &[("content-length", "1000000000")])).await;
    let chunk = vec![0_u8; 64 * 1024];
    let stuck = tokio::time::timeout(Duration::from_secs(1), async {
        loop {
            upload.data(&chunk).await;
        }
    });
    assert!(stuck.await.is_err());
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
    assert!(upload.is_quiet());
    assert!(upload.credit() < chunk.len());
    let taken = world.counted().services[&"notes".parse().unwrap()].bytes_to_service;
    assert!(taken < 32 * 1024 * 1024, "{taken} bytes were taken for a service that reads none");
}

#[tokio::test]
async fn an_answer_may_come_before_the_upload_ends() {
    let world = World::new().await;
    let page = world.page().await;
    let mut upload = page.upload(&post("/early", &[("content-length", "100000000")])).await;
    upload.data(&[0; 1000]).await;
    assert_eq!(upload.head().await.status, 413);
    assert_eq!(upload.body().await, "too large");
    wait_for("the stream is over", || world.counted().services[&"notes".parse().unwrap()].streams_open == 0).await;
    upload.data(&[0; 1000]).await;
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello", "late data is ignored");
}

#[tokio::test]
async fn an_upload_of_another_length_than_announced_is_reset() {
    let world = World::new().await;
    let page = world.page().await;
    for (announced, sent) in [("10", 5), ("10", 15)] {
        let mut upload = page.upload(&post("/hash", &[("content-length", announced)])).await;
        upload.data(&vec![0; sent]).await;
        upload.end().await;
        assert_eq!(upload.reset().await.code, ErrorCode::FrameInvalid);
    }
}

#[tokio::test]
async fn an_event_arrives_while_the_stream_stays_open_and_an_abort_reaches_the_service() {
    let world = World::new().await;
    let page = world.page().await;
    let mut events = page.open(&get("/events")).await;
    let (head, on_bulk) = events.head_and_lane().await;
    assert_eq!((header(&head, "content-type"), on_bulk), (Some("text/event-stream"), false));
    assert_eq!(&events.next().await.payload[..], b"data: first\n\n");
    assert!(events.is_quiet());
    events.abort().await;
    while seen(&page).await.0 == 0 {}
}

#[tokio::test]
async fn answers_without_a_body_end_at_once() {
    let world = World::new().await;
    let page = world.page().await;
    for (path, status) in [("/empty", 204), ("/not-modified", 304)] {
        let (head, body) = page.fetch(&get(path)).await;
        assert_eq!((head.status, body.len()), (status, 0));
    }
    let (head, body) = page.fetch(&flotilla_api::frame::Open { method: "HEAD".to_owned(), ..get("/hello") }).await;
    assert_eq!((head.status, header(&head, "content-length"), body.len()), (200, Some("5"), 0));
}

#[tokio::test]
async fn a_range_is_exact() {
    let world = World::new().await;
    let mut request = get("/range");
    request.headers = vec![("range".to_owned(), "bytes=2-5".to_owned())];
    let (head, body) = world.page().await.fetch(&request).await;
    assert_eq!((head.status, header(&head, "content-range"), &body[..]), (206, Some("bytes 2-5/10"), &b"2345"[..]));
}

#[tokio::test]
async fn a_redirect_goes_to_the_page_as_a_path() {
    let world = World::new().await;
    let (head, _) = world.page().await.fetch(&get("/redirect")).await;
    assert_eq!((head.status, header(&head, "location")), (303, Some("/hello?x=1")));
}

#[tokio::test]
async fn cookies_stay_at_the_node_and_reach_the_service() {
    let world = World::new().await;
    let page = world.page().await;
    let (head, _) = page.fetch(&get("/login")).await;
    assert_eq!(header(&head, "set-cookie"), None);
    assert_eq!(head.cookies.as_deref(), Some("theme=dark"));
    let said = Cookie { path: "/".to_owned(), cookie: "lang=de; Path=/".to_owned() };
    send(page.channel(), Kind::Cookie, 0, 0, &said).await;
    let (_, body) = page.fetch(&get("/echo-headers")).await;
    let headers: Vec<(String, String)> = serde_json::from_slice(&body).unwrap();
    let sent = headers.iter().find(|(name, _)| name == "cookie").map(|(_, value)| value.as_str());
    assert_eq!(sent, Some("lang=de; sid=secret; theme=dark"));
    let (head, _) = page.fetch(&document("/")).await;
    assert_eq!(head.cookies.as_deref(), Some("lang=de; theme=dark"), "a document learns its cookies");
}

#[tokio::test]
async fn a_document_gets_the_shim_and_may_be_framed() {
    let world = World::new().await;
    let (head, body) = world.page().await.fetch(&document("/framed")).await;
    assert_eq!(body, "<html><head><script src=\"/__flotilla/shim.js\"></script><script>first()</script></head></html>");
    assert_eq!(header(&head, "x-frame-options"), None);
    assert_eq!(
        header(&head, "content-security-policy"),
        Some("default-src 'self'; script-src 'self' http://notes.home.localhost:7070/__flotilla/shim.js")
    );
}

#[tokio::test]
async fn a_compressed_answer_is_decompressed() {
    let world = World::new().await;
    let (head, body) = world.page().await.fetch(&get("/gzip")).await;
    assert_eq!(header(&head, "content-encoding"), None);
    assert!(body.len() == 3_000_000 && body.iter().all(|byte| *byte == b'z'));
}

#[tokio::test]
async fn a_service_that_breaks_off_resets_its_stream() {
    let world = World::new().await;
    let page = world.page().await;
    let mut answer = page.open(&get("/broken")).await;
    assert_eq!(answer.head().await.status, 200);
    assert_eq!(answer.reset().await.code, ErrorCode::ServiceUnavailable);
    assert_eq!(page.fetch(&get("/hello")).await.1, "hello");
}

#[tokio::test]
async fn a_head_that_does_not_fit_is_an_error_in_words() {
    let world = World::new().await;
    let (head, body) = world.page().await.fetch(&get("/huge-head")).await;
    let error: ApiError = serde_json::from_slice(&body).unwrap();
    assert_eq!((head.status, error.code), (503, ErrorCode::ServiceUnavailable));
}

#[tokio::test]
async fn a_service_that_does_not_listen_yet_is_waited_for() {
    let world = World::new().await;
    let page = world.page().await;
    // Bound, so that nobody else gets the port, and refused, as it does not listen.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    world.services.set("notes", Ok(socket.local_addr().unwrap()));
    let hello = get("/hello");
    let mut asked = Box::pin(page.fetch(&hello));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut asked).await.is_err(), "nobody listens");
    service::serve(socket.listen(16).unwrap());
    let (head, body) = asked.await;
    assert_eq!((head.status, &body[..]), (200, &b"hello"[..]));
}

#[tokio::test]
async fn a_service_that_can_not_answer_is_explained() {
    let world = World::new().await;
    let page = world.page().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.services.set("notes", Ok(nobody));
    let (head, body) = page.fetch(&get("/")).await;
    let error: ApiError = serde_json::from_slice(&body).unwrap();
    assert_eq!((head.status, error.code), (502, ErrorCode::PortClosed));
    assert!(error.message.contains(&nobody.port().to_string()), "{error}");
    let stopped = ApiError::new(ErrorCode::ServiceStopped, "`notes` is scaled to 0");
    world.services.set("notes", Err(stopped));
    let (head, body) = page.fetch(&document("/")).await;
    assert_eq!((head.status, header(&head, "content-type")), (503, Some("text/html; charset=utf-8")));
    assert!(std::str::from_utf8(&body).unwrap().contains("<code>notes</code> is scaled to 0."));
}
