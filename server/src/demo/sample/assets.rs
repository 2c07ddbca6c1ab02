//! The sample's own files; nothing is loaded from elsewhere.

use axum::{
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};

const STYLE: &str = include_str!("style.css");
const BOARD: &str = include_str!("board.js");
const HELLO: &str = include_str!("hello.js");
const ICON: &str = include_str!("icon.svg");

/// `GET /assets/{name}`
pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let (kind, text) = match name.as_str() {
        "style.css" => ("text/css; charset=utf-8", STYLE),
        "board.js" => ("text/javascript; charset=utf-8", BOARD),
        "hello.js" => ("text/javascript; charset=utf-8", HELLO),
        "icon.svg" => ("image/svg+xml", ICON),
        _ => return (StatusCode::NOT_FOUND, "There is no such file.").into_response(),
    };
    // They change with the program alone, and only with its version or while it is being written.
    let etag = format!("\"{}-{}\"", env!("CARGO_PKG_VERSION"), text.len());
    let head = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache"), (header::ETAG, etag.as_str())];
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes());
    if known { (StatusCode::NOT_MODIFIED, head).into_response() } else { (head, text).into_response() }
}
