//! Why a call to a node failed.

use std::{io, path::PathBuf, time::Duration};

use flotilla_api::{ApiError, ErrorCode};

/// Every variant is one sentence that says what to do next; the cause is in `source`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}` is no address of a node: {why}; write it as `http://127.0.0.1:7070`")]
    Address { url: String, why: String },

    #[error("no node answers at {api}: {why}; start one with `flotilla up`, or name another with --api")]
    Unreachable {
        api: String,
        why: String,
        #[source]
        source: reqwest::Error,
    },

    #[error("the node at {api} did not answer within {} s; look at its log and try again", .after.as_secs())]
    TimedOut { api: String, after: Duration },

    /// The node's own answer.
    #[error(transparent)]
    Api(ApiError),

    #[error("{api} answered {status}, but not as a Flotilla node of this version does; check the address")]
    NotANode { api: String, status: u16 },

    #[error("the node's answer could not be read ({why}); are both of the same version?")]
    Answer { why: String },

    #[error("the connection to the node broke while {doing}: {why}")]
    Broken { doing: &'static str, why: String },

    /// The way to services, which is WebRTC.
    #[error(
        "no connection for services could be made to the node at {api}: {source}; see docs/OPERATIONS.md for the ports that it needs"
    )]
    NoTunnel { api: String, source: crate::mesh::Error },

    #[error("could not read `{}`: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },

    #[error("could not write `{}`: {source}", .path.display())]
    Written { path: PathBuf, source: io::Error },

    #[error("the build context `{}` can't be sent: {why}", .path.display())]
    Context { path: PathBuf, why: String },
}

impl Error {
    /// The stable code of the node's answer, where it gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api(error) => Some(error.code),
            _ => None,
        }
    }

    /// May the same call succeed a moment later, with nothing else changed?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. } | Self::NoTunnel { .. } => true,
            Self::Api(error) => {
                matches!(error.code, ErrorCode::RateLimited | ErrorCode::Timeout | ErrorCode::UploadOffset)
            }
            _ => false,
        }
    }
}

/// The innermost cause says most: "connection refused" rather than "error sending request".
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    // What the operating system says ends in "(os error 111)", which helps nobody at a terminal.
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}
