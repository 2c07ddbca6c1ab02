//! The head of a service's answer, made fit for a page that lives in the wrapper's frame behind a service worker.

use flotilla_api::frame::{DATA_MAX, Head as FrameHead, Lane};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, response::Parts};
use url::Url;

use super::{body::Coding, csp, request::Head, upstream::UpstreamError};

/// Of an answer that is sent in one go: one frame. Bytes.
const SHORT: u64 = DATA_MAX as u64;

/// Answers known to be at least this long travel on the bulk lane. Two round trips of a small one. Bytes.
const BULK_FROM: u64 = 128 * 1024;

/// What is said between two machines, what the jar keeps, what a browser would enforce against the wrapper, and what speaks of
/// a connection or an origin that the browser does not have.
const NOT_PASSED_ON: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "set-cookie",
    "set-cookie2",
    "x-frame-options",
    "alt-svc",
    "strict-transport-security",
    "clear-site-data",
    "service-worker-allowed",
];

/// How an answer is passed on.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) head: FrameHead,
    pub(super) lane: Lane,
    pub(super) has_body: bool,
    /// It says so, and can be sent in one go.
    pub(super) is_short: bool,
    pub(super) decode: Option<Coding>,
    pub(super) inject: Option<Inject>,
    pub(super) clears_cookies: bool,
}

/// The shim is put into this document.
#[derive(Debug)]
pub(super) struct Inject {
    pub(super) charset: Option<String>,
    /// The document's policy admits it by this nonce.
    pub(super) nonce: Option<String>,
}

/// Decides how to pass an answer on. `origin` is the service's; `nonce` is fresh.
///
/// # Errors
/// [`UpstreamError::Coding`].
pub(super) fn plan(
    request: &Head,
    answer: &Parts,
    origin: &str,
    internal: &str,
    nonce: &str,
) -> Result<Plan, UpstreamError> {
    let status = answer.status;
    let has_body = request.method != Method::HEAD
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    let coding = text(&answer.headers, &header::CONTENT_ENCODING);
    // A range of coded bytes can't be decoded, and the browser that asked for it knows what it asked for.
    let decode = if has_body && status != StatusCode::PARTIAL_CONTENT {
        Coding::parse(coding).map_err(|coding| UpstreamError::Coding { coding })?
    } else {
        None
    };
    let content_type = text(&answer.headers, &header::CONTENT_TYPE);
    let is_page =
        request.is_document() && media_type(content_type) == "text/html" && status != StatusCode::PARTIAL_CONTENT;
    let length: Option<u64> = text(&answer.headers, &header::CONTENT_LENGTH).parse().ok();

    let mut headers = Vec::with_capacity(answer.headers.len());
    let mut uses_nonce = false;
    let shim_url = format!("{origin}/__flotilla/shim.js");
    let drops_coding = decode.is_some() || coding.eq_ignore_ascii_case("identity");
    let drops_length = has_body && (decode.is_some() || is_page);
    for (name, value) in &answer.headers {
        if NOT_PASSED_ON.contains(&name.as_str())
            || (name == header::CONTENT_ENCODING && drops_coding)
            || (name == header::CONTENT_LENGTH && drops_length)
        {
            continue;
        }
        let value = if name == header::CONTENT_SECURITY_POLICY && request.is_document() {
            let policy = csp::rewrite(&latin1(value), &shim_url, nonce);
            uses_nonce |= policy.uses_nonce;
            policy.value
        } else if name == header::LOCATION || name == header::CONTENT_LOCATION {
            relative(&latin1(value), origin, internal)
        } else {
            latin1(value)
        };
        if name != header::CONTENT_SECURITY_POLICY || !value.is_empty() {
            headers.push((name.as_str().to_owned(), value));
        }
    }
    let inject = (is_page && has_body)
        .then(|| Inject { charset: charset(content_type), nonce: uses_nonce.then(|| nonce.to_owned()) });
    let lane = if has_body { lane(length, content_type, &answer.headers) } else { Lane::Interactive };
    let head = FrameHead { status: status.as_u16(), headers, cookies: None, protocol: None };
    let clears = text(&answer.headers, &HeaderName::from_static("clear-site-data"));
    let clears_cookies = clears.contains("\"cookies\"") || clears.contains("\"*\"");
    let is_short = length.is_some_and(|length| length <= SHORT);
    Ok(Plan { head, lane, has_body, is_short, decode, inject, clears_cookies })
}

/// What is large, or is a download, goes on the bulk lane. What has no length and is no download is an event stream or a page
/// that is being made: it must not wait behind a download.
fn lane(length: Option<u64>, content_type: &str, headers: &HeaderMap) -> Lane {
    let bulk = match length {
        Some(length) => length >= BULK_FROM,
        None => {
            let kind = media_type(content_type);
            text(headers, &header::CONTENT_DISPOSITION).trim_start().starts_with("attachment")
                || [
                    "video/",
                    "audio/",
                    "application/octet-stream",
                    "application/zip",
                    "application/x-tar",
                    "application/gzip",
                ]
                .iter()
                .any(|bulk| kind.starts_with(bulk))
        }
    };
    if bulk { Lane::Bulk } else { Lane::Interactive }
}

/// An address of the service itself loses its origin, whichever the service believes to have; the browser knows the right one.
fn relative(location: &str, origin: &str, internal: &str) -> String {
    let Ok(url) = Url::parse(location) else { return location.to_owned() };
    let host = |url: &Url| url.host_str().map(|host| (host.to_owned(), url.port_or_known_default()));
    let Some((name, port)) = host(&url) else { return location.to_owned() };
    let is_own = [origin, internal].iter().any(|own| {
        Url::parse(own).ok().and_then(|own| host(&own)).is_some_and(|(own_name, own_port)| {
            // Behind a proxy many applications forget the port, or believe in HTTPS.
            own_name == name && (own_port == port || matches!(port, Some(80 | 443)))
        })
    });
    if !is_own || !matches!(url.scheme(), "http" | "https") {
        return location.to_owned();
    }
    let rest = &url[url::Position::BeforePath..];
    // `//x` would be read as a host.
    if rest.starts_with("//") { format!("/.{rest}") } else { rest.to_owned() }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn latin1(value: &HeaderValue) -> String {
    value.as_bytes().iter().copied().map(char::from).collect()
}

fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn charset(content_type: &str) -> Option<String> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use flotilla_api::frame::Open;
    use http::Response;

    use super::*;

    const ORIGIN: &str = "http://notes.home.localhost:7070";
    const INTERNAL: &str = "http://172.17.0.2:8080";

    fn planned(destination: &str, status: u16, headers: &[(&str, &str)]) -> Result<Plan, UpstreamError> {
        let request = Open {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            headers: Vec::new(),
            protocols: Vec::new(),
            referrer: None,
            destination: destination.to_owned(),
        };
        let request = Head::parse(request, crate::tunnel::mux::Carried::Http).unwrap();
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        plan(&request, &response.body(()).unwrap().into_parts().0, ORIGIN, INTERNAL, "N0nce")
    }

    fn header<'a>(plan: &'a Plan, name: &str) -> Option<&'a str> {
        plan.head.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn what_keeps_a_page_out_of_a_frame_is_stripped() {
        let plan = planned(
            "iframe",
            200,
            &[
                ("x-frame-options", "DENY"),
                ("content-security-policy", "frame-ancestors 'none'"),
                ("set-cookie", "a=1"),
            ],
        )
        .unwrap();
        assert!(plan.head.headers.is_empty(), "{:?}", plan.head.headers);
    }

    #[test]
    fn only_documents_get_the_shim_and_lose_their_length() {
        let html = [("content-type", "text/html; charset=\"iso-8859-1\""), ("content-length", "10")];
        let page = planned("document", 200, &html).unwrap();
        assert_eq!(page.inject.as_ref().unwrap().charset.as_deref(), Some("iso-8859-1"));
        assert_eq!(header(&page, "content-length"), None);
        let fetched = planned("", 200, &html).unwrap();
        assert!(fetched.inject.is_none());
        assert_eq!(header(&fetched, "content-length"), Some("10"));
        assert!(planned("document", 200, &[("content-type", "application/pdf")]).unwrap().inject.is_none());
        assert!(planned("document", 206, &html).unwrap().inject.is_none(), "a range is exact");
    }

    #[test]
    fn a_redirect_to_the_service_itself_loses_its_origin() {
        for (location, passed_on) in [
            ("http://notes.home.localhost:7070/a?b#c", "/a?b#c"),
            ("https://notes.home.localhost/a", "/a"),
            ("http://172.17.0.2:8080/login", "/login"),
            ("/plain", "/plain"),
            ("next", "next"),
            ("https://elsewhere.example/a", "https://elsewhere.example/a"),
            ("http://notes.home.localhost:7070//evil.example", "/.//evil.example"),
            ("http://notes.home.localhost:9/a", "http://notes.home.localhost:9/a"),
        ] {
            let plan = planned("document", 302, &[("location", location)]).unwrap();
            assert_eq!(header(&plan, "location"), Some(passed_on), "{location}");
        }
    }

    #[test]
    fn large_answers_and_downloads_take_the_bulk_lane() {
        for (headers, lane) in [
            (vec![("content-length", "100")], Lane::Interactive),
            (vec![("content-length", "200000")], Lane::Bulk),
            (vec![("content-type", "text/event-stream")], Lane::Interactive),
            (vec![("content-type", "text/html")], Lane::Interactive),
            (vec![("content-type", "video/mp4")], Lane::Bulk),
            (vec![("content-disposition", "attachment; filename=x")], Lane::Bulk),
        ] {
            assert_eq!(planned("", 200, &headers).unwrap().lane, lane, "{headers:?}");
        }
    }

    #[test]
    fn a_coding_that_was_not_asked_for_is_taken_off_or_refused() {
        let plan = planned("", 200, &[("content-encoding", "gzip"), ("content-length", "10")]).unwrap();
        assert_eq!(plan.decode, Some(Coding::Gzip));
        assert!(plan.head.headers.is_empty());
        assert!(matches!(planned("", 200, &[("content-encoding", "zstd")]), Err(UpstreamError::Coding { .. })));
        assert!(planned("", 304, &[("content-encoding", "zstd")]).unwrap().decode.is_none());
    }

    #[test]
    fn answers_without_a_body_have_none() {
        for status in [204, 304] {
            assert!(!planned("", status, &[]).unwrap().has_body);
        }
    }
}
