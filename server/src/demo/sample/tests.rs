//! The sample as a visitor's browser sees it, over real connections.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{StatusCode, header, redirect};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{
    board::{Board, NOTE_MAX},
    routes::{self, App},
};

const LIMIT: Duration = Duration::from_secs(10);

struct Site {
    base: String,
    http: reqwest::Client,
    stop: CancellationToken,
    data: tempfile::TempDir,
}

impl Site {
    async fn open() -> Self {
        let data = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let app = App::new(Board::open(data.path()).unwrap(), stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let serving = axum::serve(listener, routes::router(app)).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(serving.into_future());
        let http =
            reqwest::Client::builder().redirect(redirect::Policy::none()).no_proxy().timeout(LIMIT).build().unwrap();
        Self { base, http, stop, data }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn page(&self, path: &str) -> String {
        self.http.get(self.url(path)).send().await.unwrap().text().await.unwrap()
    }

    async fn post(&self, path: &str, form: &str) -> reqwest::Response {
        let request = self.http.post(self.url(path)).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        request.body(form.to_owned()).send().await.unwrap()
    }

    async fn upload(&self, name: &str, contents: &str) -> reqwest::Response {
        let body = format!(
            "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{contents}\r\n--edge--\r\n"
        );
        let request = self.http.post(self.url("/files"));
        request.header(header::CONTENT_TYPE, "multipart/form-data; boundary=edge").body(body).send().await.unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn a_note_is_put_up_by_a_form_and_taken_down_by_another() {
    let site = Site::open().await;
    assert!(site.page("/").await.contains("The board is empty"));
    let answer = site.post("/notes", "text=%3Cb%3Ehello%3C%2Fb%3E+%26+you").await;
    assert_eq!((answer.status(), &answer.headers()[header::LOCATION]), (StatusCode::SEE_OTHER, &"/".parse().unwrap()));
    let page = site.page("/").await;
    assert!(page.contains("&lt;b&gt;hello&lt;/b&gt; &amp; you") && page.contains("Somebody"), "{page}");
    assert_eq!(site.post("/notes/1/delete", "").await.status(), StatusCode::SEE_OTHER);
    assert!(!site.page("/list").await.contains("hello"));
    // Two people at once: the second one has what it wanted, too.
    assert_eq!(site.post("/notes/1/delete", "").await.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_note_that_is_refused_comes_back_with_the_reason_and_its_text() {
    let site = Site::open().await;
    let answer = site.post("/notes", &format!("text={}", "x".repeat(NOTE_MAX + 1))).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let page = answer.text().await.unwrap();
    assert!(page.contains(r#"role="alert""#) && page.contains("at most 2000 characters") && page.contains("xxxxxx"));
    let oversized = site.post("/notes", &format!("text={}", "x".repeat(100_000))).await;
    assert_eq!(oversized.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_visitors_name_is_kept_in_a_cookie() {
    let site = Site::open().await;
    let answer = site.post("/name", "name=An%C3%A9+%3B+%22x").await;
    let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let request = site.http.post(site.url("/notes")).header(header::COOKIE, format!("a=b; {pair}"));
    let request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body("text=hi");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::SEE_OTHER);
    assert!(site.page("/").await.contains("Ané ; &quot;x"));
    let cleared = site.post("/name", "name=").await;
    assert!(cleared.headers()[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
}

#[tokio::test]
async fn a_file_goes_up_and_comes_back_in_parts() {
    let site = Site::open().await;
    assert_eq!(site.upload("ü 1.txt", "0123456789").await.status(), StatusCode::SEE_OTHER);
    assert!(site.page("/").await.contains("/files/1/%C3%BC%201.txt"));
    let whole = site.http.get(site.url("/files/1/x")).send().await.unwrap();
    assert_eq!(whole.headers()[header::ACCEPT_RANGES], "bytes");
    assert!(whole.headers()[header::CONTENT_DISPOSITION].to_str().unwrap().starts_with("attachment"));
    let etag = whole.headers()[header::ETAG].clone();
    assert_eq!(whole.text().await.unwrap(), "0123456789");

    let get = || site.http.get(site.url("/files/1/x"));
    let part = get().header(header::RANGE, "bytes=2-4").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()[header::CONTENT_RANGE], "bytes 2-4/10");
    assert_eq!(part.text().await.unwrap(), "234");
    let stale = get().header(header::RANGE, "bytes=2-4").header(header::IF_RANGE, "\"old\"").send().await.unwrap();
    assert_eq!(stale.status(), StatusCode::OK);
    let beyond = get().header(header::RANGE, "bytes=10-").send().await.unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let known = get().header(header::IF_NONE_MATCH, etag).send().await.unwrap();
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);

    assert_eq!(site.post("/files/1/delete", "").await.status(), StatusCode::SEE_OTHER);
    assert_eq!(get().send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(std::fs::read_dir(site.data.path().join("files")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_upload_without_a_file_is_refused() {
    let site = Site::open().await;
    let answer = site.upload("", "x").await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.text().await.unwrap().contains("Choose a file first"));
}

#[tokio::test]
async fn changes_are_pushed_to_open_pages() {
    let site = Site::open().await;
    let mut events = site.http.get(site.url("/events")).send().await.unwrap().bytes_stream();
    let mut next = async || {
        let chunk = tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap();
        String::from_utf8(chunk.to_vec()).unwrap()
    };
    let first = next().await;
    assert!(first.contains("event: board"), "{first}");
    site.post("/notes", "text=news").await;
    assert_ne!(next().await, first);
}

#[tokio::test]
async fn who_is_here_is_counted() {
    let site = Site::open().await;
    let url = site.url("/presence").replace("http://", "ws://");
    let (mut first, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    let mut told = async || loop {
        match tokio::time::timeout(LIMIT, first.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) => return text.to_string(),
            _ => continue,
        }
    };
    assert_eq!(told().await, r#"{"here":1}"#);
    let (second, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    assert_eq!(told().await, r#"{"here":2}"#);
    drop(second);
    assert_eq!(told().await, r#"{"here":1}"#);
}

#[tokio::test]
async fn nothing_is_loaded_from_elsewhere_and_every_field_has_a_label() {
    let site = Site::open().await;
    site.post("/notes", "text=one").await;
    site.upload("a.txt", "x").await;
    let page = site.page("/").await;
    assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    for field in ["text", "name", "file"] {
        assert!(page.contains(&format!("for=\"{field}\"")) && page.contains(&format!("id=\"{field}\"")));
    }
    for name in ["style.css", "board.js", "icon.svg"] {
        let answer = site.http.get(site.url(&format!("/assets/{name}"))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let etag = answer.headers()[header::ETAG].clone();
        let again = site.http.get(site.url(&format!("/assets/{name}"))).header(header::IF_NONE_MATCH, etag);
        assert_eq!(again.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    }
    assert_eq!(site.http.get(site.url("/nowhere")).send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_health_check_knows_a_sample_that_serves_from_none() {
    let site = Site::open().await;
    let port = site.base.rsplit(':').next().unwrap().parse().unwrap();
    tokio::task::spawn_blocking(move || super::check(port)).await.unwrap().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    tokio::task::spawn_blocking(move || super::check(free)).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn hello_says_who_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let serving = axum::serve(listener, super::hello::router(super::hello::Who::am_i()));
    let serving = tokio::spawn(serving.into_future());
    let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let get = async |path: &str| http.get(format!("{base}{path}")).send().await.unwrap();
    let who: serde_json::Value = get("/who").await.json().await.unwrap();
    assert!(who["machine"].is_string() && who["instance"].is_string(), "{who}");
    let page = get("/").await.text().await.unwrap();
    assert!(page.contains(who["instance"].as_str().unwrap()) && page.contains("/assets/hello.js"), "{page}");
    assert_eq!(get("/assets/hello.js").await.status(), StatusCode::OK);
    assert_eq!(get("/nothing").await.status(), StatusCode::NOT_FOUND);
    serving.abort();
}
