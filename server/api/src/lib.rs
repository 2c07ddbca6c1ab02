//! What crosses a wire between Flotilla's parts: ids, REST types, signalling messages and tunnel frames.
//!
//! This crate knows `serde` and nothing else: no IO, no clock, no JSON library. The node, the command line, the
//! dashboard and the tests all speak through it, so that a field has one name everywhere.

pub mod error;
mod explain;
pub mod frame;
pub mod grant;
pub mod id;
pub mod join;
pub mod limit;
pub mod rest;
pub mod signal;
pub mod spec;

pub use error::{ApiError, ErrorCode};
pub use grant::{Grant, Scope};
pub use id::{
    InstanceId, InvalidName, MachineName, NodeId, Revision, ServiceName, StackName, TokenId, ValueName, VolumeName,
};
pub use join::JoinToken;

/// Milliseconds since the Unix epoch, in UTC. Always a value that somebody passed in; nothing here reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Milliseconds from `earlier` to `self`; zero when `earlier` lies in the future (clocks of two machines differ).
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}
