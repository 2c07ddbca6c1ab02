//! `fetch`, with a time limit, aborted when nobody waits any more, and newline-delimited answers as a stream.

use std::{collections::VecDeque, marker::PhantomData, time::Duration};

use flotilla_api::{ApiError, ErrorCode};
use futures::future::{Either, select};
use gloo_timers::future::TimeoutFuture;
use js_sys::{Reflect, Uint8Array};
use serde::de::DeserializeOwned;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{AbortController, Headers, ReadableStreamDefaultReader, Request, RequestInit, Response};

use super::{Failure, ndjson::Splitter};

/// An answer with a list of everything has at most a few hundred kilobytes; what is larger is not read. Bytes.
const ANSWER_MAX: f64 = 16.0 * 1024.0 * 1024.0;

pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Option<String>,
    /// Until the whole answer is there; for a stream, until its head is.
    pub(super) limit: Duration,
}

pub(super) struct Answer {
    pub(super) text: String,
    /// The node's clock, as its `Date` header told it. Milliseconds since the epoch.
    pub(super) date: Option<f64>,
}

/// Ends the request when it is dropped.
#[derive(Debug)]
struct AbortOnDrop(AbortController);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) async fn whole(call: Call) -> Result<Answer, Failure> {
    let limit = call.limit;
    within(limit, async move {
        let (_abort, response) = begin(call).await?;
        let declared = response.headers().get("content-length").ok().flatten();
        if declared.and_then(|text| text.parse::<f64>().ok()).is_some_and(|length| length > ANSWER_MAX) {
            return Err(Failure::unreadable("it is too large"));
        }
        let date = response.headers().get("date").ok().flatten().map(|date| js_sys::Date::parse(&date));
        let text = text_of(&response).await?;
        if response.ok() {
            Ok(Answer { text, date: date.filter(|d| d.is_finite()) })
        } else {
            Err(refusal(&response, &text))
        }
    })
    .await
}

pub(super) async fn lines<T: DeserializeOwned>(call: Call) -> Result<Lines<T>, Failure> {
    let body = body(call).await?;
    Ok(Lines { body, splitter: Splitter::default(), ready: VecDeque::new(), item: PhantomData })
}

/// The answer as it comes, whatever it is.
pub(super) async fn body(call: Call) -> Result<Body, Failure> {
    let limit = call.limit;
    let (abort, response) = within(limit, begin(call)).await?;
    if !response.ok() {
        let text = within(limit, text_of(&response)).await?;
        return Err(refusal(&response, &text));
    }
    let body = response.body().ok_or_else(|| Failure::unreadable("it has no body"))?;
    Ok(Body { reader: body.get_reader().unchecked_into(), _abort: abort })
}

/// An answer without a known end. Dropping it ends the request.
#[derive(Debug)]
pub(crate) struct Body {
    reader: ReadableStreamDefaultReader,
    _abort: AbortOnDrop,
}

impl Body {
    /// The next bytes, which stay where the browser has them; `None` at the end.
    ///
    /// # Errors
    /// The connection was lost.
    pub(crate) async fn next(&self) -> Result<Option<Uint8Array>, Failure> {
        let result = JsFuture::from(self.reader.read()).await.map_err(|_| Failure::Unreachable)?;
        let field = |name: &str| Reflect::get(&result, &JsValue::from_str(name)).unwrap_or(JsValue::UNDEFINED);
        if field("done").is_truthy() {
            return Ok(None);
        }
        Ok(Some(field("value").unchecked_into()))
    }

    /// As [`Self::next`], where silence for `limit` is a failure, too.
    pub(crate) async fn next_within(&self, limit: Duration) -> Result<Option<Uint8Array>, Failure> {
        within(limit, self.next()).await
    }
}

/// An answer whose lines are values of `T`. Dropping it ends the request.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    body: Body,
    splitter: Splitter,
    ready: VecDeque<Vec<u8>>,
    item: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// `None` when the node ended the stream.
    ///
    /// # Errors
    /// The connection was lost, or a line is no `T`.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                let text = String::from_utf8(line).map_err(Failure::unreadable)?;
                return super::read(&text).map(Some);
            }
            let Some(chunk) = self.body.next().await? else { return Ok(None) };
            let lines = self.splitter.push(&chunk.to_vec()).map_err(|_| Failure::unreadable("a line is too long"))?;
            self.ready.extend(lines);
        }
    }
}

async fn begin(call: Call) -> Result<(AbortOnDrop, Response), Failure> {
    let window = web_sys::window().ok_or_else(|| Failure::unreadable("there is no window"))?;
    let wrong = |_: JsValue| Failure::unreadable("the request could not be made");
    let abort = AbortOnDrop(AbortController::new().map_err(wrong)?);
    let headers = Headers::new().map_err(wrong)?;
    for (name, value) in &call.headers {
        headers.set(name, value).map_err(wrong)?;
    }
    let init = RequestInit::new();
    init.set_method(call.method);
    init.set_signal(Some(&abort.0.signal()));
    init.set_headers(&headers);
    init.set_cache(web_sys::RequestCache::NoStore);
    init.set_redirect(web_sys::RequestRedirect::Error);
    if let Some(body) = &call.body {
        headers.set("content-type", "application/json").map_err(wrong)?;
        init.set_body(&JsValue::from_str(body));
    }
    let request = Request::new_with_str_and_init(&call.url, &init).map_err(wrong)?;
    let response = JsFuture::from(window.fetch_with_request(&request)).await.map_err(|_| Failure::Unreachable)?;
    Ok((abort, response.unchecked_into()))
}

async fn text_of(response: &Response) -> Result<String, Failure> {
    let text = JsFuture::from(response.text().map_err(|_| Failure::Unreachable)?).await;
    text.map_err(|_| Failure::Unreachable).map(|text| text.as_string().unwrap_or_default())
}

fn refusal(response: &Response, text: &str) -> Failure {
    serde_json::from_str::<ApiError>(text).map_or_else(
        |_| {
            let status = response.status();
            if status == 401 {
                let sentence = "The node does not know this browser any more; sign in again.";
                return Failure::Refused(ApiError::new(ErrorCode::TokenInvalid, sentence));
            }
            Failure::unreadable(format_args!("HTTP status {status}"))
        },
        Failure::Refused,
    )
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    match select(std::pin::pin!(work), TimeoutFuture::new(millis)).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(Failure::TimedOut { seconds: millis / 1000 }),
    }
}
