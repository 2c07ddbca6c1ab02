//! Which host answers what, and what the listener carried.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::metrics::{Direction, Traffic};

impl Running {
    fn at(&self, host: &str, path: &str) -> RequestBuilder {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        http.get(format!("http://{}{path}", self.address()))
            .header("host", host.replace("PORT", &self.address().port().to_string()))
    }

    fn bytes(&self, traffic: Traffic) -> u64 {
        let metrics = &self.node.app().metrics;
        [Direction::Received, Direction::Sent]
            .map(|direction| metrics.listener_bytes(traffic, direction).get())
            .iter()
            .sum()
    }
}

#[tokio::test]
async fn a_name_that_only_points_here_reaches_nothing() {
    let running = Running::start().await;
    for host in ["evil.example", "app.away.localhost:PORT", "a.b.home.localhost", "localhost.evil.example:PORT"] {
        for path in ["/", "/api/v1/cluster", "/healthz", "/metrics", "/signal"] {
            let request = running.at(host, path).bearer_auth(&running.admin);
            assert_eq!(code(request).await, ErrorCode::InvalidRequest, "{host}{path}");
        }
    }
    running.node.stop().await;
}

#[tokio::test]
async fn a_request_without_a_host_or_with_two_is_refused() {
    let running = Running::start().await;
    for head in [
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a@127.0.0.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: \r\n\r\n",
        "GET http://evil.example/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ] {
        let mut socket = tokio::net::TcpStream::connect(running.address()).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}{answer}");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn a_services_host_has_pages_and_no_api() {
    let running = Running::start().await;
    for path in ["/", "/api/v1/cluster", "/healthz", "/metrics", "/some/page"] {
        let response = running.at("notes.home.localhost:PORT", path).bearer_auth(&running.admin).send().await.unwrap();
        assert_eq!(response.headers()["content-type"].to_str().unwrap().split(';').next(), Some("text/html"), "{path}");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn the_dashboard_has_one_address() {
    let running = Running::start().await;
    let dashboard = format!("http://app.home.localhost:{}", running.address().port());
    for host in ["localhost:PORT", "127.0.0.1:PORT", "home.localhost:PORT"] {
        let response = running.at(host, "/services/notes?x=1").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT, "{host}");
        assert_eq!(response.headers()["location"], format!("{dashboard}/services/notes?x=1"), "{host}");
    }
    let page = running.at("app.home.localhost:PORT", "/").send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    for header in ["content-security-policy", "x-content-type-options", "referrer-policy"] {
        assert!(page.headers().contains_key(header), "{header}");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn a_page_of_another_origin_may_not_use_the_api() {
    let running = Running::start().await;
    let ask = |name: &'static str, value: &str| {
        let value = value.replace("PORT", &running.address().port().to_string());
        running.at("app.home.localhost:PORT", "/api/v1/cluster").bearer_auth(&running.admin).header(name, value)
    };
    for origin in ["http://notes.home.localhost:PORT", "http://evil.example", "null"] {
        let response = ask("origin", origin).send().await.unwrap();
        assert!(!response.headers().contains_key("access-control-allow-origin"));
        assert_eq!(refusal(response).await.code, ErrorCode::InvalidRequest, "{origin}");
    }
    for site in ["same-site", "cross-site"] {
        assert_eq!(code(ask("sec-fetch-site", site)).await, ErrorCode::InvalidRequest, "{site}");
    }
    for (name, value) in [("origin", "http://app.home.localhost:PORT"), ("sec-fetch-site", "same-origin")] {
        assert_eq!(ask(name, value).send().await.unwrap().status(), StatusCode::OK, "{name}: {value}");
    }
    running.node.stop().await;
}

#[tokio::test]
async fn each_byte_is_counted_to_what_it_was_for() {
    let running = Running::start().await;
    // One connection for all three, so that its bytes have to be told apart.
    let mut socket = tokio::net::TcpStream::connect(running.address()).await.unwrap();
    let mut sent = [0; 3];
    let mut received = [0; 3];
    for (at, (host, path)) in
        [("127.0.0.1", "/healthz"), ("notes.home.localhost", "/"), ("127.0.0.1", "/api/v1/cluster")].iter().enumerate()
    {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        sent[at] = head.len() as u64;
        received[at] = read_answer(&mut socket).await;
    }
    drop(socket);
    for (at, traffic) in [Traffic::Probe, Traffic::Bootstrap, Traffic::Api].into_iter().enumerate() {
        assert_eq!(running.bytes(traffic), sent[at] + received[at], "{traffic:?}");
    }
    assert_eq!(running.bytes(Traffic::Signal) + running.bytes(Traffic::Refused), 0);
    running.node.stop().await;
}

/// Reads one answer with a `Content-Length`; its bytes, head and body.
async fn read_answer(socket: &mut tokio::net::TcpStream) -> u64 {
    let mut answer = Vec::new();
    let head = loop {
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        assert!(socket.read_buf(&mut answer).await.unwrap() > 0, "closed early");
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
    while answer.len() < head + length {
        assert!(socket.read_buf(&mut answer).await.unwrap() > 0, "closed early");
    }
    answer.len() as u64
}
