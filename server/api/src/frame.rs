//! The tunnel's frames: HTTP and WebSocket over data channels. One message of a data channel is one frame.
//!
//! ```text
//!  0       1       2               4                               8
//! +-------+-------+---------------+-------------------------------+---------
//! | kind  | flags | reserved (0)  | stream (big endian)           | payload
//! +-------+-------+---------------+-------------------------------+---------
//! ```
//!
//! The browser opens the channels; each one's label ([`Channel`]) says what it carries and for which service. On a channel
//! of kind `http` streams are multiplexed; their ids are chosen by the browser, are unique within the connection and
//! service, and are never used twice. On a channel of kind `ws` there is exactly one stream, with id 1.
//!
//! Both directions of a stream have a credit of [`INITIAL_CREDIT`] payload bytes of [`Kind::Data`]; the receiver returns
//! what it has passed on with [`Kind::Credit`], in quarters. A sender without credit waits. So a slow reader stops
//! its own stream and no other, and memory is bounded by the number of streams.
//!
//! A browser sends all frames of a stream on the lane of its `Open`. A node sends all frames of a stream on one lane,
//! which it chooses with `Head`: the bulk lane for what is large, so that a download does not delay a click. `Credit` frames
//! are no part of that order and may come on either lane; `Credit`, `Data`, `End` and `Reset` of a stream that is over are ignored.
//!
//! A request body without a `content-length` among the headers of its `Open` is held at the node until it is complete, because
//! many applications refuse chunked bodies; a browser side that knows the length says it.
//!
//! A WebSocket that the service refuses gets a `Head` with the service's status (not 101) and an `End`; one that does not reach
//! the service gets a `Reset`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ApiError, ServiceName};

pub const FRAME_VERSION: u32 = 1;
pub const HEADER_LEN: usize = 8;

/// Payload of a `Data` frame. 64 KiB is what a data channel carries fastest (16 datagrams a flush, many to a frame).
pub const DATA_MAX: usize = 64 * 1024;

/// Payload of any other frame: request and response heads with their headers and cookies.
pub const CONTROL_MAX: usize = 64 * 1024;

/// Bytes of `Data` payload that a sender may have under way per stream and direction.
pub const INITIAL_CREDIT: u32 = 1024 * 1024;

/// A receiver returns credit once it has passed on this much.
pub const CREDIT_STEP: u32 = INITIAL_CREDIT / 4;

/// Streams that may be open at once on one connection and service. Browsers open 6 connections to an HTTP/1.1 host.
pub const STREAMS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`Hello`], first on each channel, both ways; stream 0.
    Hello = 1,
    /// [`Open`] of a request or a WebSocket.
    Open = 2,
    /// [`Head`] of the answer.
    Head = 3,
    /// Bytes of a body, or (part of) a WebSocket message.
    Data = 4,
    /// The sender's direction has ended; for a WebSocket with [`Close`] as payload.
    End = 5,
    /// The stream is given up in both directions; payload [`ApiError`].
    Reset = 6,
    /// `u32`, big endian: so many more bytes of `Data` may be sent to the sender of this frame.
    Credit = 7,
    /// Browser to node: `document.cookie = <payload>` was said by the page at `Cookie::path`. Stream 0; payload [`Cookie`].
    Cookie = 8,
    /// Payload of up to 64 bytes, sent back with the flag [`flags::REPLY`]; stream 0.
    Ping = 9,
    /// No further `Open` is answered; streams under way finish. Payload [`ApiError`]; stream 0.
    GoAway = 10,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Open,
            3 => Self::Head,
            4 => Self::Data,
            5 => Self::End,
            6 => Self::Reset,
            7 => Self::Credit,
            8 => Self::Cookie,
            9 => Self::Ping,
            10 => Self::GoAway,
            _ => return None,
        })
    }
}

pub mod flags {
    /// On `Data` of a WebSocket: the message is text.
    pub const TEXT: u8 = 1;
    /// On `Data` of a WebSocket: the message goes on in the next frame.
    pub const MORE: u8 = 2;
    /// On `Ping`: this is the answer.
    pub const REPLY: u8 = 4;
    /// On `Open`: the request has a body, `Data` frames follow until `End`. Without it there is none.
    pub const BODY: u8 = 8;
    /// On `Open`, beside `BODY`: the body is large or of unknown length. Between a page and its connector, which takes the bulk
    /// lane for such a stream; a node need not look at it.
    pub const LARGE: u8 = 16;
    /// On `Open`: the page takes a whole answer. Between a page and its connector, which asks the node for it where it can tell
    /// that such an answer is complete.
    pub const TAKES_WHOLE: u8 = 32;
    /// On `Open`: a short answer may come as one frame, for each one costs a browser some tenths of a millisecond. On `Head`: it does.
    /// Its payload is the length of the head (`u32`, big endian), the head, and the body, which counts against no credit; the
    /// sender's direction has ended.
    pub const WHOLE: u8 = 64;
}

/// A frame that borrows its payload from the message it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
    pub payload: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    TooShort { len: usize },
    UnknownKind { byte: u8 },
    PayloadTooLarge { kind: Kind, len: usize, max: usize },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { len } => write!(f, "a frame has at least {HEADER_LEN} bytes; this one has {len}"),
            Self::UnknownKind { byte } => write!(f, "{byte} is no kind of frame that version {FRAME_VERSION} knows"),
            Self::PayloadTooLarge { kind, len, max } => {
                write!(f, "a {kind:?} frame carries at most {max} bytes; this one has {len}")
            }
        }
    }
}

impl std::error::Error for FrameError {}

impl<'a> Frame<'a> {
    pub fn new(kind: Kind, stream: u32, payload: &'a [u8]) -> Self {
        Self { kind, flags: 0, stream, payload }
    }

    #[must_use]
    pub fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// Reads one message of a data channel. The reserved bytes are ignored, so that a later version may use them.
    ///
    /// # Errors
    /// What is no frame is refused whole; the channel it came on can go on.
    pub fn decode(message: &'a [u8]) -> Result<Self, FrameError> {
        let Some((header, payload)) = message.split_first_chunk::<HEADER_LEN>() else {
            return Err(FrameError::TooShort { len: message.len() });
        };
        let Header { kind, flags, stream } = Header::decode(*header, payload.len())?;
        Ok(Self { kind, flags, stream, payload })
    }

    /// The message to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER_LEN + self.payload.len());
        message.extend_from_slice(&self.header());
        message.extend_from_slice(self.payload);
        message
    }

    /// The first eight bytes alone, for a sender that lays the payload behind them itself.
    pub fn header(&self) -> [u8; HEADER_LEN] {
        Header { kind: self.kind, flags: self.flags, stream: self.stream }.encode()
    }

    /// The payload of a `Credit` frame; `None` if it is not four bytes.
    pub fn credit(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.try_into().ok()?))
    }
}

/// The first eight bytes of a frame, for one who passes its payload on without looking at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
}

impl Header {
    /// # Errors
    /// As [`Frame::decode`], for a message with these first bytes and `payload_len` bytes behind them.
    pub fn decode(bytes: [u8; HEADER_LEN], payload_len: usize) -> Result<Self, FrameError> {
        let [kind, flags, _, _, a, b, c, d] = bytes;
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind { byte: kind })?;
        let max = if kind == Kind::Data { DATA_MAX } else { CONTROL_MAX };
        if payload_len > max {
            return Err(FrameError::PayloadTooLarge { kind, len: payload_len, max });
        }
        Ok(Self { kind, flags, stream: u32::from_be_bytes([a, b, c, d]) })
    }

    /// Has its sender's direction ended with it?
    pub fn ends(self) -> bool {
        self.kind == Kind::End || (self.kind == Kind::Head && self.flags & flags::WHOLE != 0)
    }

    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = self.stream.to_be_bytes();
        [self.kind as u8, self.flags, 0, 0, a, b, c, d]
    }
}

/// What a data channel is for, as its label: `http/interactive/notes`, `http/bulk/notes`, `ws/notes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    pub carries: Carries,
    pub service: ServiceName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    Http(Lane),
    WebSocket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    Interactive,
    Bulk,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.carries {
            Carries::Http(Lane::Interactive) => write!(f, "http/interactive/{}", self.service),
            Carries::Http(Lane::Bulk) => write!(f, "http/bulk/{}", self.service),
            Carries::WebSocket => write!(f, "ws/{}", self.service),
        }
    }
}

impl FromStr for Channel {
    type Err = String;

    fn from_str(label: &str) -> Result<Self, String> {
        let (carries, service) = match label.split_once('/') {
            Some(("ws", service)) => (Carries::WebSocket, service),
            Some(("http", rest)) => match rest.split_once('/') {
                Some(("interactive", service)) => (Carries::Http(Lane::Interactive), service),
                Some(("bulk", service)) => (Carries::Http(Lane::Bulk), service),
                _ => return Err(format!("`{}` names no lane", label.escape_debug())),
            },
            _ => return Err(format!("`{}` is no channel label", label.escape_debug())),
        };
        Ok(Self { carries, service: service.parse().map_err(|error: crate::InvalidName| error.to_string())? })
    }
}

/// JSON payload of [`Kind::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
}

/// JSON payload of [`Kind::Open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// An HTTP method; `GET` for a WebSocket.
    pub method: String,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// In order, names in lower case, repeated where a header is repeated.
    pub headers: Vec<(String, String)>,
    /// Of a WebSocket: the subprotocols that the page offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<String>,
    /// The page that asks (path and query), for `Referer`; absent for a navigation from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referrer: Option<String>,
    /// What the answer is for, as `Request.destination` in a browser (`document`, `iframe`, `script`, ... or empty for fetch).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,
}

/// JSON payload of [`Kind::Head`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// 200 to 599; 101 for a WebSocket that was opened.
    pub status: u16,
    /// Without `Set-Cookie` (the node keeps the jar), hop-by-hop headers and `Content-Encoding`.
    pub headers: Vec<(String, String)>,
    /// What `document.cookie` shows after this answer, where the answer changed it or it is a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookies: Option<String>,
    /// Of a WebSocket: the subprotocol that the service chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// JSON payload of [`Kind::Cookie`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cookie {
    pub path: String,
    pub cookie: String,
}

/// JSON payload of [`Kind::End`] on a WebSocket (RFC 6455, 7.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    pub code: u16,
    #[serde(default)]
    pub reason: String,
}

/// JSON payload of [`Kind::Reset`] and [`Kind::GoAway`].
pub type Reason = ApiError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_version_1_stay() {
        let frame = Frame::new(Kind::Data, 0x0102_0304, b"hi").with_flags(flags::TEXT);
        assert_eq!(frame.encode(), [4, 1, 0, 0, 1, 2, 3, 4, b'h', b'i']);
        let credit = 0x0004_0000_u32.to_be_bytes();
        assert_eq!(Frame::new(Kind::Credit, 7, &credit).encode(), [7, 0, 0, 0, 0, 0, 0, 7, 0, 4, 0, 0]);
    }

    #[test]
    fn a_payload_over_the_limit_is_refused() {
        let message = Frame::new(Kind::Data, 1, &vec![0; DATA_MAX + 1]).encode();
        assert_eq!(
            Frame::decode(&message),
            Err(FrameError::PayloadTooLarge { kind: Kind::Data, len: DATA_MAX + 1, max: DATA_MAX })
        );
    }

    #[test]
    fn a_label_names_what_a_channel_carries() {
        for label in ["http/interactive/notes", "http/bulk/notes", "ws/notes"] {
            assert_eq!(label.parse::<Channel>().unwrap().to_string(), label);
        }
        for label in ["", "http/notes", "http/fast/notes", "ws/", "ws/No", "raw/notes", "ws/a/b"] {
            assert!(label.parse::<Channel>().is_err(), "{label:?} was taken for a label");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_decoded_or_refused(message in proptest::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(frame) = Frame::decode(&message) {
                let again = frame.encode();
                prop_assert_eq!(Frame::decode(&again), Ok(frame));
            }
        }
    }
}
