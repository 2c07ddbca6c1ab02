//! Signalling between a browser and a node, as JSON text over a WebSocket at `/signal`: one message each way sets a
//! connection up; the others change or end it.

use serde::{Deserialize, Serialize};

use crate::ApiError;

/// The version of this protocol. A node that does not know a client's version answers [`ErrorCode::SignalVersion`].
///
/// [`ErrorCode::SignalVersion`]: crate::ErrorCode::SignalVersion
pub const SIGNAL_VERSION: u32 = 1;

/// The largest signalling message. A session description with a dozen candidates has about 4 KiB. Bytes.
pub const SIGNAL_MAX: usize = 64 * 1024;

/// Candidates that one side may add to a connection.
pub const CANDIDATES_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromBrowser {
    /// First. Carries the offer, so that a connection costs one round trip.
    Connect {
        version: u32,
        token: String,
        /// Proof of possession of the token's key (RFC 9449): `htm` is `CONNECT`, `htu` the URL of `/signal`.
        /// Absent for a token that is bound to no key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<String>,
        offer: String,
    },
    /// First, in place of `Connect`, on a new socket: goes on with the signalling of a session whose connection may still live
    /// though its socket was lost. Answered with [`FromNode::Resumed`], or with an error after which only `Connect` helps.
    Resume {
        version: u32,
        /// As in [`FromNode::Answer`].
        session: String,
        token: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<String>,
    },
    /// A later candidate; `None` ends them.
    Candidate {
        candidate: Option<Candidate>,
    },
    /// A new offer on the same connection, after an ICE restart.
    Restart {
        offer: String,
    },
    /// A renewed token for the same session.
    Renew {
        token: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<String>,
    },
    Bye,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromNode {
    /// Answers `Connect` and `Restart`; holds all of the node's candidates.
    Answer {
        version: u32,
        answer: String,
        /// For [`FromBrowser::Resume`], and worth nothing without the token.
        #[serde(default)]
        session: String,
    },
    /// Answers `Resume`: the session lives. Its connection may still need a `Restart`.
    Resumed,
    /// Answers `Renew`: the session now ends when the new token does.
    Renewed,
    Candidate {
        candidate: Option<Candidate>,
    },
    /// The session ends: the token was revoked or expired, or the node stops.
    Bye {
        error: Option<ApiError>,
    },
    /// The last message could not be taken; nothing changed.
    Error {
        error: ApiError,
    },
}

/// As `RTCIceCandidateInit` in a browser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub candidate: String,
    #[serde(default)]
    pub sdp_mid: Option<String>,
    #[serde(default)]
    pub sdp_m_line_index: Option<u16>,
    #[serde(default)]
    pub username_fragment: Option<String>,
}
