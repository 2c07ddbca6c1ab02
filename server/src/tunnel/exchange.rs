//! One request to a service, and its answer.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use flotilla_api::{
    ApiError, ErrorCode,
    frame::{DATA_MAX, Frame, Kind},
};
use futures::{FutureExt, StreamExt};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{self, Incoming};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::io::ReaderStream;

use super::{
    Backend, Hold,
    body::{Body, BodyError, raw},
    html,
    lane::{Lane, Unsent},
    mux::{Ended, Mux, Stream},
    pages,
    request::{Head, Upload},
    response::{self, Plan},
    spool::{Complete, SpoolError},
    upstream::{ANSWERING, OPENING, RequestBody, UpstreamError},
};

/// For how long a request that reached no instance is tried again. Longer than a machine's power loss takes to be noticed and made
/// good.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pauses between tries, but for the first: meanwhile it becomes known that an instance is gone.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Times that a request is sent again that an application broke off: one that dies of it shall not die for ever.
const RESENT_MAX: u32 = 3;

/// How long the head of a short answer waits for its body: a browser is quicker with a head whose body is there.
const SHORT_WAITS: Duration = Duration::from_millis(10);

const EVENTS: &[u8] = b"text/event-stream";

/// How much of a held body is read at a time. Bytes.
const FILE_CHUNK: usize = 128 * 1024;

pub(super) async fn run(mux: &Mux, stream: &Arc<Stream>, head: Head, asked: Asked) -> Result<(), Ended> {
    let exchange = Exchange { mux, stream, head, asked };
    match exchange.ask().await {
        Ok((backend, hold, answer)) => exchange.pass_on(&backend, hold, answer).await,
        Err(Refusal::Broken(error)) => Err(Ended::Reset(error)),
        Err(Refusal::Told(error)) => exchange.tell(&error).await,
    }
}

/// What the browser says of a request beside the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) has_body: bool,
    /// A short answer may come as one frame.
    pub(super) takes_whole: bool,
}

struct Exchange<'a> {
    mux: &'a Mux,
    stream: &'a Arc<Stream>,
    head: Head,
    asked: Asked,
}

/// Why there is no answer of the service.
enum Refusal {
    /// The browser gets an answer of the node's.
    Told(ApiError),
    /// The browser did not keep to the rules.
    Broken(ApiError),
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        if error.is_from_body() {
            return Self::Broken(ApiError::new(
                ErrorCode::FrameInvalid,
                "the upload has another length than its content-length",
            ));
        }
        Self::Told(error.into())
    }
}

impl From<SpoolError> for Refusal {
    fn from(error: SpoolError) -> Self {
        Self::Told(error.into())
    }
}

/// What is sent: a body that can be had anew as long as nothing of it was sent.
enum Payload {
    None,
    /// Comes from the browser as it is sent on, with this length.
    Streamed(u64),
    /// Held here until it was complete.
    Held(u64, Option<RequestBody>),
}

impl Exchange<'_> {
    /// Asks the service, and again where that can't do harm: on another instance, or on the one that comes when the service has
    /// moved. What an application may have begun to work on is asked once more only if that changes nothing.
    async fn ask(&self) -> Result<(Backend, Hold, Response<Incoming>), Refusal> {
        let mut payload = match (self.asked.has_body, self.head.length) {
            (false, _) => Payload::None,
            (true, Some(length)) => Payload::Streamed(length),
            (true, None) => self.held().await?,
        };
        let began = Instant::now();
        let mut failed: Option<Backend> = None;
        let mut resent = 0;
        loop {
            let chosen = self.mux.shared().backends.choose(&self.mux.service, failed.as_ref());
            let (backend, hold) = chosen.await.map_err(Refusal::Told)?;
            let error = match self.send(&backend, &mut payload).await {
                Ok(answer) => return Ok((backend, hold, answer)),
                Err(error) => error,
            };
            let again = match &error {
                // The same one, and nothing has changed: nobody listens there.
                UpstreamError::Connect { .. } => failed.as_ref() != Some(&backend) || began.elapsed() < OPENING,
                // A server may close an idle connection just when we use it.
                UpstreamError::Request { .. } | UpstreamError::Moved => {
                    self.may_be_repeated(&payload) && resent < RESENT_MAX
                }
                UpstreamError::Silent { .. } | UpstreamError::HeadTooLarge | UpstreamError::Coding { .. } => false,
            };
            if !again || began.elapsed() > PATIENCE {
                return Err(error.into());
            }
            tracing::debug!(service = %self.mux.service, container = backend.container, %error, "asking again");
            if matches!(error, UpstreamError::Request { .. } | UpstreamError::Moved) {
                resent += 1;
            }
            if failed.is_some() {
                sleep(AGAIN_AFTER).await;
            }
            failed = Some(backend);
        }
    }

    fn may_be_repeated(&self, payload: &Payload) -> bool {
        matches!(payload, Payload::None) && matches!(self.head.method, Method::GET | Method::HEAD | Method::OPTIONS)
    }

    async fn held(&self) -> Result<Payload, Refusal> {
        let mut held = self.mux.shared().spool.hold();
        while let Some(piece) = self.stream.inbox.next().await {
            held.write(&piece.payload).await?;
            self.stream.passed_on(piece.payload.len());
        }
        let length = held.length();
        let body = match held.complete().await? {
            Complete::Memory(bytes) => Full::new(bytes).map_err(|never| match never {}).boxed_unsync(),
            Complete::File(parts) => {
                let (file, held) = *parts;
                let chunks = ReaderStream::with_capacity(file, FILE_CHUNK).map(move |chunk| {
                    // The disk space belongs to the body until the last chunk is read.
                    let _ = &held;
                    chunk.map(body::Frame::data).map_err(Into::into)
                });
                StreamBody::new(chunks).boxed_unsync()
            }
        };
        Ok(Payload::Held(length, Some(body)))
    }

    /// Sends the request and waits for the head of the answer, as long as the service takes something or is not silent for too long.
    async fn send(&self, backend: &Backend, payload: &mut Payload) -> Result<Response<Incoming>, UpstreamError> {
        let upstream = &self.mux.shared().upstream;
        let internal = |error: http::Error| UpstreamError::Request { source: error.into() };
        let mut parts = self.head.request(&self.mux.sender(), &backend.address.to_string()).map_err(internal)?;
        if self.may_be_repeated(payload) {
            let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
            return self.answer(backend, upstream.send(backend, Request::from_parts(parts, empty))).await;
        }
        let connection = tokio::select! {
            connection = upstream.connect(backend) => connection?,
            () = self.mux.shared().backends.lost(backend) => {
                let source = std::io::Error::from(std::io::ErrorKind::NotConnected).into();
                return Err(UpstreamError::Connect { port: backend.address.port(), source });
            }
        };
        // From here on the application may see it.
        let body = match payload {
            Payload::None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Payload::Streamed(length) => {
                parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(*length));
                let upload = Upload { stream: Arc::clone(self.stream), left: *length };
                upload.map_err(Into::into).boxed_unsync()
            }
            Payload::Held(length, body) => {
                parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(*length));
                body.take().ok_or(UpstreamError::Moved)?
            }
        };
        self.answer(backend, upstream.send_on(connection, Request::from_parts(parts, body))).await
    }

    async fn answer(
        &self,
        backend: &Backend,
        answer: impl Future<Output = Result<Response<Incoming>, UpstreamError>>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let asked = Instant::now();
        let lost = self.mux.shared().backends.lost(backend);
        tokio::pin!(answer, lost);
        loop {
            let patience_ends = self.stream.last_progress().max(asked) + ANSWERING;
            tokio::select! {
                answer = &mut answer => return answer,
                () = &mut lost => return Err(UpstreamError::Moved),
                () = sleep_until(patience_ends) => {
                    if self.stream.last_progress().max(asked) + ANSWERING <= patience_ends {
                        return Err(UpstreamError::Silent { within: ANSWERING });
                    }
                }
            }
        }
    }

    async fn pass_on(&self, backend: &Backend, hold: Hold, answer: Response<Incoming>) -> Result<(), Ended> {
        let (parts, incoming) = answer.into_parts();
        // Events go on for ever: an instance that is to be stopped does not wait for their end.
        let endless = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(EVENTS));
        let _hold = (!endless).then_some(hold);
        let origin = self.mux.shared().site.origin(&self.mux.service);
        let nonce = format!("{:032x}", rand::random::<u128>());
        let plan = match response::plan(&self.head, &parts, &origin, &format!("http://{}", backend.address), &nonce) {
            Ok(plan) => plan,
            Err(error) => return self.tell(&error.into()).await,
        };
        let Plan { mut head, lane, has_body, is_short, decode, inject, clears_cookies } = plan;
        if clears_cookies {
            self.mux.jar.clear();
        }
        let set = parts.headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
        let changed = self.mux.jar.answered(self.head.path.as_str(), set);
        if changed || clears_cookies || self.head.is_document() {
            head.cookies = Some(self.mux.jar.visible(self.head.page_path()));
        }
        let mut body = has_body.then(|| {
            let body = raw(incoming);
            let body = match decode {
                Some(coding) => coding.decode(body),
                None => body,
            };
            match inject {
                Some(inject) => {
                    html::inject(body, inject.charset.as_deref(), &html::script_tag(inject.nonce.as_deref()))
                }
                None => body,
            }
        });
        let begun = match &mut body {
            Some(body) if is_short => Begun::within(SHORT_WAITS, body).await,
            _ => Begun::default(),
        };
        let lane = self.mux.lane(lane, &self.stream.lane);
        let is_whole = body.is_none() || matches!(begun.end, Some(Ok(())));
        if is_whole && self.asked.takes_whole && self.stream.send_whole(&lane, &head, &begun.bytes).await? {
            return Ok(());
        }
        match lane.send_json(Kind::Head, self.stream.id, &head).await {
            Ok(()) => {}
            Err(Unsent::Closed(closed)) => return Err(closed.into()),
            Err(Unsent::TooLarge) => return self.tell(&UpstreamError::HeadTooLarge.into()).await,
        }
        if let Some(body) = body {
            self.pump(&lane, begun, body).await?;
        }
        lane.send(Frame::new(Kind::End, self.stream.id, &[])).await?;
        Ok(())
    }

    /// Sends what is there at once (an event must not wait for the next), and together with whatever else is there already.
    async fn pump(&self, lane: &Lane, begun: Begun, mut body: Body) -> Result<(), Ended> {
        let broken = |error: BodyError| Ended::Reset(ApiError::new(ErrorCode::ServiceUnavailable, error.to_string()));
        if !begun.bytes.is_empty() {
            self.stream.send_data(lane, begun.bytes, 0).await?;
        }
        let mut ended = begun.end.transpose().map_err(broken)?.is_some();
        while !ended {
            let Some(chunk) = body.next().await else { break };
            let mut payload = BytesMut::from(chunk.map_err(broken)?);
            while payload.len() < DATA_MAX {
                match body.next().now_or_never() {
                    Some(Some(chunk)) => payload.extend_from_slice(&chunk.map_err(broken)?),
                    Some(None) => {
                        ended = true;
                        break;
                    }
                    None => break,
                }
            }
            if !payload.is_empty() {
                self.stream.send_data(lane, payload, 0).await?;
            }
        }
        Ok(())
    }

    /// Answers in the service's stead.
    async fn tell(&self, error: &ApiError) -> Result<(), Ended> {
        tracing::debug!(service = %self.mux.service, code = error.code.as_str(), "no answer: {error}");
        let page = pages::page(&self.mux.service, error, self.head.is_document());
        let head =
            flotilla_api::frame::Head { status: page.status, headers: page.headers, cookies: None, protocol: None };
        let lane = &self.stream.lane;
        lane.send_json(Kind::Head, self.stream.id, &head).await.map_err(|_| Ended::Closed)?;
        if self.head.method != Method::HEAD {
            self.stream.send_data(lane, BytesMut::from(&page.body[..]), 0).await?;
        }
        lane.send(Frame::new(Kind::End, self.stream.id, &[])).await?;
        Ok(())
    }
}

/// What has come of a body.
#[derive(Default)]
struct Begun {
    bytes: BytesMut,
    /// Absent while there may be more.
    end: Option<Result<(), BodyError>>,
}

impl Begun {
    async fn within(limit: Duration, body: &mut Body) -> Self {
        let until = Instant::now() + limit;
        let mut begun = Self::default();
        while begun.end.is_none() && begun.bytes.len() < DATA_MAX {
            match timeout_at(until, body.next()).await {
                Ok(Some(Ok(chunk))) => begun.bytes.extend_from_slice(&chunk),
                Ok(Some(Err(error))) => begun.end = Some(Err(error)),
                Ok(None) => begun.end = Some(Ok(())),
                Err(_) => break,
            }
        }
        begun
    }
}
