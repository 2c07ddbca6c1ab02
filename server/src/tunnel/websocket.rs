//! One WebSocket of a page, carried on a data channel of its own to the service.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use flotilla_api::{
    ApiError, ErrorCode,
    frame::{Close, Frame, Head as FrameHead, Kind, flags},
};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{HeaderValue, Request, header};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        handshake::client::generate_key,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    lane::Lane,
    mux::{Ended, Mux, Stream},
    request::Head,
    upstream::UpstreamError,
};
use crate::peers;

/// One message, either way; it is held whole. A notebook's largest outputs have some MiB. Bytes.
const MESSAGE_MAX: usize = 32 * 1024 * 1024;

/// What a service may take to answer the handshake.
const HANDSHAKING: Duration = Duration::from_secs(30);

/// What a service may take to answer a close.
const CLOSING: Duration = Duration::from_secs(10);

/// What waits for a slow service. Bytes.
const WRITE_BUFFER_MAX: usize = 2 * MESSAGE_MAX;

/// No close frame came (RFC 6455, 7.4.1); said to the page, and never on a wire.
const ABNORMAL: u16 = 1006;
/// A close frame without a code came.
const NO_STATUS: u16 = 1005;

type Socket = WebSocketStream<peers::Stream>;

pub(super) async fn run(mux: &Mux, stream: &Arc<Stream>, head: &Head) -> Result<(), Ended> {
    let told = |error: ApiError| Ended::Reset(error);
    // A socket goes on for hours: it does not hold its instance.
    let (backend, _) = mux.shared().backends.choose(&mux.service, None).await.map_err(told)?;
    let connecting = mux.shared().upstream.connect(&backend).await;
    let socket = match connecting {
        Ok(socket) => socket,
        // It may have moved a moment ago.
        Err(_) => {
            let (backend, _) = mux.shared().backends.choose(&mux.service, Some(&backend)).await.map_err(told)?;
            mux.shared().upstream.connect(&backend).await.map_err(|error| told(error.into()))?
        }
    };
    let request = handshake(mux, head).map_err(|error| told(ApiError::new(ErrorCode::Internal, error.to_string())))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
        .max_write_buffer_size(WRITE_BUFFER_MAX);
    let handshake = client_async_with_config(request, socket, Some(config));
    match timeout(HANDSHAKING, handshake).await {
        Ok(Ok((socket, response))) => {
            let protocol = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
            let protocol = protocol.and_then(|protocol| protocol.to_str().ok()).map(str::to_owned);
            send_head(mux, stream, head, response.map(|_| ()), protocol).await?;
            relay(stream, socket).await
        }
        Ok(Err(tungstenite::Error::Http(response))) => {
            send_head(mux, stream, head, response.map(|_| ()), None).await?;
            stream.lane.send(Frame::new(Kind::End, stream.id, &[])).await?;
            Ok(())
        }
        Ok(Err(error)) => Err(told(UpstreamError::Request { source: error.into() }.into())),
        Err(_) => Err(told(UpstreamError::Silent { within: HANDSHAKING }.into())),
    }
}

fn handshake(mux: &Mux, head: &Head) -> Result<Request<()>, http::Error> {
    let uri = format!("ws://{}{}", mux.shared().site.host(&mux.service), head.path);
    let mut request = Request::builder().uri(uri).body(())?;
    let headers = request.headers_mut();
    *headers = head.headers(&mux.sender());
    headers.remove(header::ACCEPT_ENCODING);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::try_from(generate_key())?);
    if !head.protocols.is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::try_from(head.protocols.join(", "))?);
    }
    Ok(request)
}

async fn send_head(
    mux: &Mux,
    stream: &Stream,
    head: &Head,
    response: http::Response<()>,
    protocol: Option<String>,
) -> Result<(), Ended> {
    let set = response.headers().get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
    let changed = mux.jar.answered(head.path.as_str(), set);
    let cookies = changed.then(|| mux.jar.visible(head.page_path()));
    let answer = FrameHead { status: response.status().as_u16(), headers: Vec::new(), cookies, protocol };
    stream.lane.send_json(Kind::Head, stream.id, &answer).await.map_err(|_| Ended::Closed)
}

async fn relay(stream: &Arc<Stream>, socket: Socket) -> Result<(), Ended> {
    let (sink, source) = socket.split();
    let up = to_service(stream, sink);
    let down = to_page(stream, &stream.lane, source);
    tokio::pin!(up, down);
    let close = tokio::select! {
        close = &mut down => close?,
        said = &mut up => {
            let said = said?;
            // The service answers the close; its code is what the page sees.
            match timeout(CLOSING, down).await {
                Ok(close) => close?,
                Err(_) => said,
            }
        }
    };
    stream.lane.send_json(Kind::End, stream.id, &close).await.map_err(|_| Ended::Closed)
}

/// Carries the page's messages until the page closes; tells how it did.
async fn to_service(stream: &Stream, mut sink: SplitSink<Socket, Message>) -> Result<Close, Ended> {
    let mut message = BytesMut::new();
    while let Some(piece) = stream.inbox.next().await {
        if message.len() + piece.payload.len() > MESSAGE_MAX {
            return Err(Ended::Reset(ApiError::new(
                ErrorCode::RequestTooLarge,
                format!("a WebSocket message has at most {} MiB", MESSAGE_MAX / (1024 * 1024)),
            )));
        }
        message.extend_from_slice(&piece.payload);
        stream.passed_on(piece.payload.len());
        if piece.flags & flags::MORE != 0 {
            continue;
        }
        let bytes = message.split().freeze();
        let whole = if piece.flags & flags::TEXT == 0 {
            Message::Binary(bytes)
        } else {
            let text = Utf8Bytes::try_from(bytes);
            Message::Text(text.map_err(|_| {
                Ended::Reset(ApiError::new(ErrorCode::FrameInvalid, "a text message of a WebSocket is UTF-8"))
            })?)
        };
        if sink.send(whole).await.is_err() {
            // The other direction learns why.
            return Ok(Close { code: ABNORMAL, reason: String::new() });
        }
    }
    let close = stream.inbox.end_payload().and_then(|payload| serde_json::from_slice(&payload).ok());
    let close: Close = close.unwrap_or(Close { code: NO_STATUS, reason: String::new() });
    let frame = (close.code != NO_STATUS)
        .then(|| CloseFrame { code: CloseCode::from(close.code), reason: close.reason.clone().into() });
    // A socket that is closed already has its close.
    let _ = sink.send(Message::Close(frame)).await;
    Ok(close)
}

/// Carries the service's messages until the service closes; tells how it did.
async fn to_page(stream: &Stream, lane: &Lane, mut source: SplitStream<Socket>) -> Result<Close, Ended> {
    while let Some(message) = source.next().await {
        let (bytes, text) = match message {
            Ok(Message::Text(text)) => (BytesMut::from(text.as_bytes()), flags::TEXT),
            Ok(Message::Binary(bytes)) => (BytesMut::from(bytes), 0),
            Ok(Message::Close(frame)) => {
                let close = frame.map(|frame| Close { code: frame.code.into(), reason: frame.reason.to_string() });
                return Ok(close.unwrap_or(Close { code: NO_STATUS, reason: String::new() }));
            }
            // Pings are answered by the library.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Err(tungstenite::Error::Capacity(error)) => return Ok(Close { code: 1009, reason: error.to_string() }),
            Err(error) => {
                tracing::debug!(%error, "a service's WebSocket broke");
                break;
            }
        };
        stream.send_data(lane, bytes, text).await?;
    }
    Ok(Close { code: ABNORMAL, reason: String::new() })
}
