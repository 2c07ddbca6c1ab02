//! What a person sees when a service can't answer: a small page where a page was asked for, JSON elsewhere.

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, ServiceName};

/// A page that may come to life by itself is loaded again after so long. Seconds.
const RELOAD_AFTER: u32 = 2;

/// An answer of the node's own.
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

/// The answer for `error`. Its status is 502, 503 or 504, so that an application's own code takes it for what it is: something
/// between it and its server.
pub(super) fn page(service: &ServiceName, error: &ApiError, for_person: bool) -> Page {
    let status = error.code.status().max(500);
    let (kind, body) = if for_person {
        ("text/html; charset=utf-8", html(service, error))
    } else {
        ("application/json", serde_json::to_vec(error).unwrap_or_default())
    };
    let mut headers = vec![
        ("content-type".to_owned(), kind.to_owned()),
        ("content-length".to_owned(), body.len().to_string()),
        ("cache-control".to_owned(), "no-store".to_owned()),
        ("x-flotilla-error".to_owned(), error.code.as_str().to_owned()),
    ];
    if for_person && may_recover(error.code) {
        headers.push(("refresh".to_owned(), RELOAD_AFTER.to_string()));
    }
    Page { status, headers, body: body.into() }
}

/// Starting, or about to be started again.
fn may_recover(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::ServiceUnavailable | ErrorCode::PortClosed | ErrorCode::EngineUnavailable)
}

fn html(service: &ServiceName, error: &ApiError) -> Vec<u8> {
    let waiting = if may_recover(error.code) { "<p>This page tries again by itself.</p>" } else { "" };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{service}: not available</title><style>\
         :root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}}\
         code{{opacity:.7}}</style></head><body><main><h1>{service} can’t be shown</h1><p>{}</p>{waiting}\
         <p><code>{}</code></p></main></body></html>\n",
        sentence(&error.message),
        error.code.as_str(),
    )
    .into_bytes()
}

/// A message begins small, as it also stands behind a colon, and quotes names as code.
fn sentence(message: &str) -> String {
    let mut characters = message.chars();
    let capital: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    let mut quoted = false;
    let text: String = escape(&format!("{capital}{}", characters.as_str()))
        .split('`')
        .map(|part| {
            let part = if quoted { format!("<code>{part}</code>") } else { part.to_owned() };
            quoted = !quoted;
            part
        })
        .collect();
    if text.ends_with(['.', '!', '?']) { text } else { text + "." }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_gets_a_page_and_a_program_gets_json() {
        let service = "notes".parse().unwrap();
        let error = ApiError::new(ErrorCode::ServiceStopped, "`notes` is <stopped>; scale it to 1");
        let person = page(&service, &error, true);
        assert_eq!(person.status, 503);
        let text = std::str::from_utf8(&person.body).unwrap();
        assert!(text.contains("<p><code>notes</code> is &lt;stopped&gt;; scale it to 1.</p>"), "{text}");
        let program = page(&service, &error, false);
        assert_eq!(serde_json::from_slice::<ApiError>(&program.body).unwrap(), error);
    }
}
