//! One request to a service, and its answer.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use flotilla_api::{
    ApiError, ErrorCode,
    frame::{DATA_MAX, Frame, Kind},
};
use futures::{FutureExt, StreamExt};
use http::{HeaderValue, Method, Request, Response, header, request::Parts};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{self, Incoming};
use tokio::time::{Instant, sleep_until};
use tokio_util::io::ReaderStream;

use super::{
    body::{Body, BodyError, raw},
    html,
    lane::{Lane, Unsent},
    mux::{Ended, Mux, Stream},
    pages,
    request::{Head, Upload},
    response::{self, Plan},
    spool::{Complete, SpoolError},
    upstream::{ANSWERING, RequestBody, UpstreamError},
};

/// How much of a held body is read at a time. Bytes.
const FILE_CHUNK: usize = 128 * 1024;

pub(super) async fn run(mux: &Mux, stream: &Arc<Stream>, head: Head, has_body: bool) -> Result<(), Ended> {
    let exchange = Exchange { mux, stream, head };
    match exchange.ask(has_body).await {
        Ok((address, answer)) => exchange.pass_on(address, answer).await,
        Err(Refusal::Broken(error)) => Err(Ended::Reset(error)),
        Err(Refusal::Told(error)) => exchange.tell(&error).await,
    }
}

struct Exchange<'a> {
    mux: &'a Mux,
    stream: &'a Arc<Stream>,
    head: Head,
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

impl Exchange<'_> {
    async fn ask(&self, has_body: bool) -> Result<(SocketAddr, Response<Incoming>), Refusal> {
        let address = self.mux.shared().backends.address(&self.mux.service).map_err(Refusal::Told)?;
        let internal = |error: http::Error| Refusal::Told(ApiError::new(ErrorCode::Internal, error.to_string()));
        let mut parts = self.head.request(&self.mux.sender(), &address.to_string()).map_err(internal)?;
        if !has_body {
            return Ok((address, self.ask_without_body(address, parts).await?));
        }
        let (length, body) = self.body().await?;
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        Ok((address, self.send(address, Request::from_parts(parts, body)).await?))
    }

    /// A server may close an idle connection just when we use it. What changes nothing there is asked once more.
    async fn ask_without_body(&self, address: SocketAddr, parts: Parts) -> Result<Response<Incoming>, UpstreamError> {
        let again = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS).then(|| parts.clone());
        let empty = || Empty::new().map_err(|never| match never {}).boxed_unsync();
        match (self.send(address, Request::from_parts(parts, empty())).await, again) {
            (Err(UpstreamError::Request { .. }), Some(parts)) => {
                self.send(address, Request::from_parts(parts, empty())).await
            }
            (answer, _) => answer,
        }
    }

    async fn body(&self) -> Result<(u64, RequestBody), Refusal> {
        if let Some(length) = self.head.length {
            let upload = Upload { stream: Arc::clone(self.stream), left: length };
            return Ok((length, upload.map_err(Into::into).boxed_unsync()));
        }
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
        Ok((length, body))
    }

    /// Sends the request and waits for the head of the answer, as long as the service takes something or is not silent for too long.
    async fn send(
        &self,
        address: SocketAddr,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let asked = Instant::now();
        let answer = self.mux.shared().upstream.send(address, request);
        tokio::pin!(answer);
        loop {
            let patience_ends = self.stream.last_progress().max(asked) + ANSWERING;
            tokio::select! {
                answer = &mut answer => return answer,
                () = sleep_until(patience_ends) => {
                    if self.stream.last_progress().max(asked) + ANSWERING <= patience_ends {
                        return Err(UpstreamError::Silent { within: ANSWERING });
                    }
                }
            }
        }
    }

    async fn pass_on(&self, address: SocketAddr, answer: Response<Incoming>) -> Result<(), Ended> {
        let (parts, incoming) = answer.into_parts();
        let origin = self.mux.shared().site.origin(&self.mux.service);
        let nonce = format!("{:032x}", rand::random::<u128>());
        let plan = match response::plan(&self.head, &parts, &origin, &format!("http://{address}"), &nonce) {
            Ok(plan) => plan,
            Err(error) => return self.tell(&error.into()).await,
        };
        let Plan { mut head, lane, has_body, decode, inject, clears_cookies } = plan;
        if clears_cookies {
            self.mux.jar.clear();
        }
        let set = parts.headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
        let changed = self.mux.jar.answered(self.head.path.as_str(), set);
        if changed || clears_cookies || self.head.is_document() {
            head.cookies = Some(self.mux.jar.visible(self.head.page_path()));
        }
        let lane = self.mux.lane(lane, &self.stream.lane);
        match lane.send_json(Kind::Head, self.stream.id, &head).await {
            Ok(()) => {}
            Err(Unsent::Closed(closed)) => return Err(closed.into()),
            Err(Unsent::TooLarge) => return self.tell(&UpstreamError::HeadTooLarge.into()).await,
        }
        if has_body {
            let mut body = raw(incoming);
            if let Some(coding) = decode {
                body = coding.decode(body);
            }
            if let Some(inject) = inject {
                body = html::inject(body, inject.charset.as_deref(), &html::script_tag(inject.nonce.as_deref()));
            }
            self.pump(&lane, body).await?;
        }
        lane.send(Frame::new(Kind::End, self.stream.id, &[])).await?;
        Ok(())
    }

    /// Sends what is there at once (an event must not wait for the next), and together with whatever else is there already.
    async fn pump(&self, lane: &Lane, mut body: Body) -> Result<(), Ended> {
        let broken = |error: BodyError| Ended::Reset(ApiError::new(ErrorCode::ServiceUnavailable, error.to_string()));
        let mut ended = false;
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
