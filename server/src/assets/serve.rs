//! Answers for the two sites.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::embedded::{self, Asset, Caching};

/// Files are never guessed at, pages are never framed by strangers, and no address leaks in a referrer.
const NOSNIFF: (HeaderName, HeaderValue) = (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
const NO_REFERRER: (HeaderName, HeaderValue) = (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));

/// Answers for `app.<cluster>`: the dashboard's page for every path that is no file, because the dashboard routes by itself.
///
/// `headers` must hold the `Host` that the browser sent: it decides who may frame the connector.
pub fn app(method: &Method, path: &str, headers: &HeaderMap) -> Response {
    if let Some(refusal) = refuse_method(method) {
        return refusal;
    }
    let asset = match path {
        "/connector" => embedded::of_app("/connector.html"),
        _ if path.starts_with("/assets/") => match embedded::of_app(path) {
            None => {
                return sentence(
                    StatusCode::NOT_FOUND,
                    "there is no such file; reload the page to get the current one",
                );
            }
            found => found,
        },
        _ => embedded::of_app(path).or_else(|| embedded::of_app("/index.html")),
    };
    let Some(asset) = asset else { return incomplete() };
    let mut response = send(asset, method, headers);
    if is_page(asset) {
        let ancestors = if asset.path == "/connector.html" { services_of(headers) } else { "'none'".to_owned() };
        let policy = format!(
            "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:; object-src 'none'; base-uri 'none'; \
             form-action 'self'; frame-ancestors {ancestors}"
        );
        if let Ok(policy) = HeaderValue::try_from(policy) {
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        }
    }
    response
}

/// Answers for `<service>.<cluster>`: the files under `/__flotilla/`, and the bootstrap page for every other navigation.
pub fn service(method: &Method, path: &str, headers: &HeaderMap) -> Response {
    if let Some(refusal) = refuse_method(method) {
        return refusal;
    }
    if let Some(name) = path.strip_prefix("/__flotilla") {
        let Some(asset) = embedded::of_service(name) else {
            return sentence(StatusCode::NOT_FOUND, "there is no such file of Flotilla's");
        };
        let mut response = send(asset, method, headers);
        if asset.path == "/sw.js" {
            // It lives under /__flotilla/ and yet controls the whole origin.
            response.headers_mut().insert("service-worker-allowed", HeaderValue::from_static("/"));
        }
        return response;
    }
    if !is_navigation(headers) {
        return sentence(
            StatusCode::SERVICE_UNAVAILABLE,
            "this service is reached through its page in a browser, which carries every request over a data channel; open or reload the page",
        );
    }
    let Some(asset) = embedded::of_service("/wrapper.html") else { return incomplete() };
    let mut response = send(asset, method, headers);
    let policy = HeaderValue::from_static("frame-ancestors 'none'");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

fn send(asset: &'static Asset, method: &Method, headers: &HeaderMap) -> Response {
    let (encoding, bytes) = choose_encoding(asset, headers.get(header::ACCEPT_ENCODING));
    // One tag per encoding (RFC 9110, 8.8.3): what is cached in one must not be taken for another.
    let tag = format!("\"{}{}\"", asset.hash, encoding.map_or(String::new(), |encoding| format!("-{encoding}")));
    let cache = match asset.caching {
        Caching::Immutable => "public, max-age=31536000, immutable",
        Caching::Revalidate => "no-cache",
    };
    let unchanged = headers.get(header::IF_NONE_MATCH).is_some_and(|known| holds_tag(known, &tag));
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let body = if method == Method::HEAD { Body::empty() } else { Body::from(Bytes::from_static(bytes)) };
        let mut response = Response::new(body);
        let answer = response.headers_mut();
        answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
        answer.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        if let Some(encoding) = encoding {
            answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        response
    };
    let answer = response.headers_mut();
    if let Ok(tag) = HeaderValue::try_from(tag) {
        answer.insert(header::ETAG, tag);
    }
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    answer.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    answer.extend([NOSNIFF, NO_REFERRER]);
    response
}

fn choose_encoding(asset: &'static Asset, accepted: Option<&HeaderValue>) -> (Option<&'static str>, &'static [u8]) {
    let accepted = accepted.and_then(|value| value.to_str().ok()).unwrap_or_default();
    match (asset.brotli, asset.gzip) {
        (Some(bytes), _) if accepts(accepted, "br") => (Some("br"), bytes),
        (_, Some(bytes)) if accepts(accepted, "gzip") => (Some("gzip"), bytes),
        _ => (None, asset.identity),
    }
}

/// RFC 9110, 12.5.3; a weight of zero refuses.
fn accepts(accepted: &str, encoding: &str) -> bool {
    accepted.split(',').any(|choice| {
        let mut parts = choice.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(encoding));
        let refused = parts.any(|part| part.strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0)));
        named && !refused
    })
}

/// RFC 9110, 13.1.2: compared weakly, because a proxy in between may have weakened it.
fn holds_tag(known: &HeaderValue, tag: &str) -> bool {
    known.to_str().is_ok_and(|known| {
        known.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
    })
}

fn refuse_method(method: &Method) -> Option<Response> {
    if method == Method::GET || method == Method::HEAD {
        return None;
    }
    let mut response =
        sentence(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here; open the page in a browser");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    Some(response)
}

/// Browsers say what a request is for (Fetch Metadata); what says nothing (an old browser, curl) is shown the page.
fn is_navigation(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-mode").is_none_or(|mode| mode == "navigate")
}

fn is_page(asset: &Asset) -> bool {
    asset.content_type.starts_with("text/html")
}

/// The connector may be framed by the services of its own cluster: `app.home.localhost:7070` by `*.home.localhost:7070`.
fn services_of(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let safe =
        |domain: &str| domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':'));
    match host.strip_prefix("app.") {
        Some(domain) if safe(domain) => format!("*.{domain}"),
        _ => "'none'".to_owned(),
    }
}

fn sentence(status: StatusCode, text: &'static str) -> Response {
    let mut response = (status, text).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().extend([NOSNIFF, NO_REFERRER]);
    response
}

fn incomplete() -> Response {
    sentence(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this node was built without its web app; build it again without FLOTILLA_WEB_DIST",
    )
}

#[cfg(test)]
mod tests;
