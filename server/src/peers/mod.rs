//! What nodes say to each other, whatever carries it: calls with an answer, and streams of bytes.
//!
//! [`crate::mesh`] carries it over WebRTC; tests have a network in memory. Who listens is a [`Handler`].

pub mod memory;
mod nobody;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId, rest::LinkView};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

pub use nobody::Nobody;

/// Bytes of one call's body or answer, which travels in pieces: a snapshot of the state, or the largest entry.
pub const BODY_MAX: usize = 64 * 1024 * 1024;

/// Bulk connections to one node that this one uses at a time. Each has a socket's worth of buffers and keep-alives.
pub const LANES_MAX: usize = 16;

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        /// What is asked for. Codes go over the wire: they are never used for anything else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Method {
            $($(#[$doc])* $name = $code,)*
        }

        impl Method {
            pub fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

methods! {
    /// Of the consensus.
    Append = 1;
    Vote = 2;
    PreVote = 3;
    Snapshot = 4;
    TransferLeader = 5;
    /// A proposal for the leader.
    Propose = 6;
    /// Up to which index a reader has to wait for a linearizable answer.
    ReadIndex = 7;
    /// A lease is to be renewed.
    Renew = 16;
    /// What a node tells of itself.
    Report = 17;
    /// There is a new generation of a service's volumes.
    Offer = 24;
    /// A machine has all of a generation.
    Holds = 25;
    /// What a generation is that the asked machine may have.
    Recall = 26;
    /// Whether the asked machine has an image, and what it is in its store.
    Image = 27;
    /// Which of some layers the asked machine has.
    Layers = 28;
    /// Of the keys that secrets and configs are sealed with.
    Keys = 29;
    /// Which earlier generations of a service's volumes the asked machine has.
    Past = 31;
    /// A signalling message for a third node, to be passed on.
    Signal = 32;
    /// First contact of a machine that wants to join.
    Join = 33;
    /// For measuring the link.
    Ping = 34;
}

/// A stream of bytes to another node, on its bulk connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub type Stream = Box<dyn Duplex>;

/// Why a call had no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    #[error("the machine is not connected")]
    Unreachable,
    #[error("the machine did not answer within {} ms", within.as_millis())]
    Timeout { within: Duration },
    #[error("what was to be said has {size} bytes; at most {BODY_MAX} are carried")]
    TooLarge { size: usize },
    /// The other node answered with an error.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

/// The way to the other nodes.
pub trait Peers: Send + Sync + fmt::Debug + 'static {
    /// Asks another node, on the control connection.
    fn call(
        &self,
        to: &NodeId,
        method: Method,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// Opens a stream to another node, on the bulk connection. The label says what for.
    fn stream(&self, to: &NodeId, label: &str) -> BoxFuture<'static, Result<Stream, CallError>>;

    /// The same on another bulk connection than the streams with a smaller `lane`, as far as [`LANES_MAX`] go: where packets are lost each
    /// connection is slowed down for itself, and several are as fast as the line.
    fn stream_beside(&self, to: &NodeId, label: &str, lane: usize) -> BoxFuture<'static, Result<Stream, CallError>> {
        let _ = lane;
        self.stream(to, label)
    }

    /// Nodes that can be called now.
    fn connected(&self) -> watch::Receiver<BTreeSet<NodeId>>;

    /// Each link of this node, with its figures.
    fn links(&self) -> Vec<LinkView>;
}

/// What a node says until it is put together.
pub fn starting() -> ApiError {
    ApiError::new(ErrorCode::ServiceUnavailable, "this machine is just starting; try again in a moment")
}

/// Answers other nodes. Who asks is proven: it is the node whose key the state (or the invitation) names.
pub trait Handler: Send + Sync + 'static {
    fn call(&self, from: NodeId, method: Method, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>>;

    /// Whether machines that are no members are answered now. One that is not tries another node.
    fn takes_strangers(&self) -> bool {
        true
    }

    /// Answers [`Method::Join`] of a machine that is no member. All that is proven of it is that it holds this key (Ed25519,
    /// base64url without padding).
    fn stranger(&self, public_key: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        let _ = (public_key, body);
        Box::pin(async { Err(ApiError::new(ErrorCode::NotFound, "this node takes no machines into the cluster")) })
    }

    /// Serves a stream that another node opened; dropping it closes it.
    fn stream(&self, from: NodeId, label: String, stream: Stream) -> BoxFuture<'static, ()>;
}

/// A handle to whatever carries it.
pub type Network = Arc<dyn Peers>;
