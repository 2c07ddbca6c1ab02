//! The request that a service sees: what the browser said, and what a service worker can't say (cookies, origin, referrer).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, ServiceName, frame::Open};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, request::Parts, uri::PathAndQuery};
use hyper::body::{Body, Frame, SizeHint};

use super::{
    Site,
    jar::Jar,
    mux::{Carried, Stream},
};
use crate::mesh::Client;

/// Headers of one request. Browsers send about 15.
const HEADERS_MAX: usize = 100;
/// Path and query. Servers take 8 KiB, and some more. Bytes.
const PATH_MAX: usize = 32 * 1024;
/// Answered by the listener and the service worker, and never by a service.
pub(super) const RESERVED_PATH: &str = "/__flotilla/";

/// What is said between two machines (RFC 9110, 7.6.1), what we say ourselves, and what a page might say to be taken for us.
const NOT_PASSED_ON: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    "host",
    "content-length",
    "cookie",
    "accept-encoding",
    "origin",
    "referer",
    "forwarded",
    "via",
    "x-real-ip",
];
const NOT_PASSED_ON_PREFIXES: &[&str] = &["x-forwarded-", "sec-websocket-", "sec-fetch-", "x-flotilla-"];

/// Where and for whom a request is made.
pub(super) struct Sender<'a> {
    pub(super) site: &'a Site,
    pub(super) service: &'a ServiceName,
    pub(super) client: &'a Client,
    pub(super) jar: &'a Jar,
}

/// An [`Open`] that can be sent on.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    headers: HeaderMap,
    /// Of the body, where the browser said it.
    pub(super) length: Option<u64>,
    pub(super) protocols: Vec<String>,
    referrer: Option<String>,
    pub(super) destination: String,
}

impl Head {
    /// # Errors
    /// `FrameInvalid`, with what is wrong.
    pub(super) fn parse(open: Open, carries: Carried) -> Result<Self, ApiError> {
        let invalid =
            |what: String| ApiError::new(ErrorCode::FrameInvalid, format!("the request can't be sent on: {what}"));
        let method =
            Method::from_bytes(open.method.as_bytes()).map_err(|_| invalid("its method is none".to_owned()))?;
        if matches!(method, Method::CONNECT | Method::TRACE) {
            return Err(invalid(format!("a page may not send {method}")));
        }
        if open.path.len() > PATH_MAX {
            return Err(invalid(format!("its path has more than {PATH_MAX} bytes")));
        }
        let path = Some(open.path).filter(|path| path.starts_with('/'));
        let path = path
            .and_then(|path| PathAndQuery::try_from(path).ok())
            .ok_or_else(|| invalid("its path is none".to_owned()))?;
        if path.path().starts_with(RESERVED_PATH) {
            return Err(invalid(format!("paths under {RESERVED_PATH} are the tunnel's own")));
        }
        if open.headers.len() > HEADERS_MAX {
            return Err(invalid(format!("it has more than {HEADERS_MAX} headers")));
        }
        let mut headers = HeaderMap::with_capacity(open.headers.len() + 12);
        let mut length = None;
        for (name, value) in open.headers {
            let name = HeaderName::try_from(name).map_err(|_| invalid("a header's name is none".to_owned()))?;
            let value = latin1(&value).ok_or_else(|| invalid(format!("the value of `{name}` is none")))?;
            if name == header::CONTENT_LENGTH {
                let text = value.to_str().ok().and_then(|text| text.parse().ok());
                length = Some(text.ok_or_else(|| invalid("its content-length is no number".to_owned()))?);
            }
            let ours = NOT_PASSED_ON.contains(&name.as_str())
                || NOT_PASSED_ON_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
            if !ours {
                headers.append(name, value);
            }
        }
        Ok(Self {
            method,
            path,
            headers,
            length,
            protocols: open.protocols,
            referrer: open.referrer.filter(|referrer| referrer.starts_with('/') && referrer.len() <= PATH_MAX),
            destination: match carries {
                Carried::WebSocket => "websocket".to_owned(),
                Carried::Http => open.destination,
            },
        })
    }

    /// Whether a person will look at the answer, rather than a script.
    pub(super) fn is_document(&self) -> bool {
        matches!(self.destination.as_str(), "document" | "iframe" | "frame")
    }

    /// The path of the page whose `document.cookie` changes with the answer.
    pub(super) fn page_path(&self) -> &str {
        match &self.referrer {
            Some(referrer) if !self.is_document() => referrer,
            _ => self.path.as_str(),
        }
    }

    /// The head of the request to the service at `authority`.
    pub(super) fn request(&self, sender: &Sender<'_>, authority: &str) -> Result<Parts, http::Error> {
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(self.path.clone()).build()?;
        let mut request = Request::builder().method(self.method.clone()).uri(uri).body(())?;
        *request.headers_mut() = self.headers(sender);
        Ok(request.into_parts().0)
    }

    /// The headers, for HTTP as for a WebSocket's handshake.
    pub(super) fn headers(&self, sender: &Sender<'_>) -> HeaderMap {
        let Sender { site, service, client, jar } = sender;
        let mut headers = self.headers.clone();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        let host = site.host(service);
        set(header::HOST, &host);
        set(HeaderName::from_static("x-forwarded-host"), &host);
        set(HeaderName::from_static("x-forwarded-proto"), site.scheme);
        set(HeaderName::from_static("x-forwarded-for"), &client.address.to_string());
        set(header::ACCEPT_ENCODING, "identity");
        let safe = matches!(self.method, Method::GET | Method::HEAD);
        // Only a page of the service itself reaches its service worker, but for a navigation of the whole tab, which any site can
        // cause: a form from there must not look as if the service had sent it. The frame that a page is in is out of their reach.
        let other_sites_form = !safe && self.referrer.is_none() && self.destination == "document";
        if let Some(cookies) = jar.header(self.path.as_str(), other_sites_form) {
            set(header::COOKIE, &cookies);
        }
        let origin = site.origin(service);
        if let Some(referrer) = &self.referrer {
            set(header::REFERER, &format!("{origin}{referrer}"));
        }
        if self.destination == "websocket" || !safe {
            set(header::ORIGIN, if other_sites_form { "null" } else { &origin });
        }
        let opened = safe && self.is_document() && self.referrer.is_none();
        let site_header = if other_sites_form {
            "cross-site"
        } else if opened {
            "none"
        } else {
            "same-origin"
        };
        set(HeaderName::from_static("sec-fetch-site"), site_header);
        if self.destination != "websocket" {
            let destination = if self.destination.is_empty() { "empty" } else { &self.destination };
            set(HeaderName::from_static("sec-fetch-dest"), destination);
        }
        if let Some(agent) = client.user_agent.as_deref().filter(|_| !headers.contains_key(header::USER_AGENT)) {
            headers.extend(HeaderValue::from_str(agent).ok().map(|agent| (header::USER_AGENT, agent)));
        }
        if let Some(language) =
            client.accept_language.as_deref().filter(|_| !headers.contains_key(header::ACCEPT_LANGUAGE))
        {
            headers.extend(HeaderValue::from_str(language).ok().map(|language| (header::ACCEPT_LANGUAGE, language)));
        }
        headers
    }
}

/// A browser's header values are strings of bytes (Fetch, 2.2.2), each as the character of that number.
fn latin1(value: &str) -> Option<HeaderValue> {
    let bytes: Option<Vec<u8>> = value.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    HeaderValue::from_bytes(&bytes?).ok()
}

/// The browser did not send the body that it announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the upload has another length than its content-length")]
pub(super) struct UploadBroken;

/// A body of known length on its way from the browser to the service.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) stream: Arc<Stream>,
    pub(super) left: u64,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadBroken>>> {
        match ready!(self.stream.inbox.poll_next(cx)) {
            Some(piece) => {
                let Some(left) = self.left.checked_sub(piece.payload.len() as u64) else {
                    return Poll::Ready(Some(Err(UploadBroken)));
                };
                self.left = left;
                self.stream.passed_on(piece.payload.len());
                Poll::Ready(Some(Ok(Frame::data(piece.payload))))
            }
            None if self.left == 0 => Poll::Ready(None),
            None => Poll::Ready(Some(Err(UploadBroken))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::jar::Jars;

    fn open(method: &str, path: &str) -> Open {
        Open {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            protocols: Vec::new(),
            referrer: None,
            destination: String::new(),
        }
    }

    fn seen(open: Open) -> HeaderMap {
        let site = Site { scheme: "http", domain: "home.localhost:7070".to_owned() };
        let service: ServiceName = "notes".parse().unwrap();
        let client = Client {
            url: String::new(),
            address: [127, 0, 0, 1].into(),
            user_agent: Some("Browser/1".to_owned()),
            accept_language: Some("de".to_owned()),
        };
        let directory = tempfile::tempdir().unwrap();
        let jar = Jars::new(directory.path().to_owned()).jar(&flotilla_api::TokenId("t".to_owned()), &service, &site);
        let sender = Sender { site: &site, service: &service, client: &client, jar: &jar };
        Head::parse(open, Carried::Http).unwrap().request(&sender, "172.17.0.2:80").unwrap().headers
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let mut crowded = open("GET", "/");
        crowded.headers = vec![("x-a".to_owned(), String::new()); HEADERS_MAX + 1];
        let mut split = open("GET", "/");
        split.headers = vec![("x-a".to_owned(), "b\r\nx-c: d".to_owned())];
        let mut endless = open("POST", "/");
        endless.headers = vec![("content-length".to_owned(), "-1".to_owned())];
        for bad in [
            open("GET", "no-slash"),
            open("GET", ""),
            open("GE T", "/"),
            open("CONNECT", "/"),
            open("TRACE", "/"),
            open("GET", "/a b"),
            open("GET", "/__flotilla/shim.js"),
            open("GET", &format!("/{}", "x".repeat(PATH_MAX))),
            crowded,
            split,
            endless,
        ] {
            assert_eq!(Head::parse(bad, Carried::Http).unwrap_err().code, ErrorCode::FrameInvalid);
        }
    }

    #[test]
    fn a_service_sees_its_public_host_and_whom_it_serves() {
        let headers = seen(open("GET", "//evil.example/x"));
        assert_eq!(headers["host"], "notes.home.localhost:7070");
        assert_eq!(headers["x-forwarded-host"], "notes.home.localhost:7070");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(headers["user-agent"], "Browser/1");
        assert_eq!(headers["accept-language"], "de");
        assert_eq!(headers["accept-encoding"], "identity");
    }

    #[test]
    fn a_page_can_not_forge_what_the_node_says() {
        let mut forged = open("GET", "/");
        forged.headers = [
            ("host", "evil"),
            ("cookie", "sid=1"),
            ("x-forwarded-for", "9.9.9.9"),
            ("connection", "close"),
            ("origin", "http://evil"),
            ("x-kept", "yes"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let headers = seen(forged);
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(headers["x-kept"], "yes");
        for absent in ["cookie", "connection", "origin"] {
            assert!(!headers.contains_key(absent), "{absent} was passed on");
        }
    }

    #[test]
    fn a_form_from_another_site_does_not_look_like_the_services_own() {
        let mut foreign = open("POST", "/");
        foreign.destination = "document".to_owned();
        let mut own = foreign.clone();
        own.referrer = Some("/form?x".to_owned());
        assert_eq!(seen(foreign)["origin"], "null");
        let headers = seen(own);
        assert_eq!(headers["origin"], "http://notes.home.localhost:7070");
        assert_eq!(headers["referer"], "http://notes.home.localhost:7070/form?x");
        assert_eq!(seen(open("POST", "/api"))["origin"], "http://notes.home.localhost:7070");
    }
}
