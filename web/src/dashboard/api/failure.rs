//! Why a request brought no answer, in a sentence.

use flotilla_api::{ApiError, ErrorCode};

use crate::identity;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Failure {
    /// The node answered with an error of its own.
    #[error("{0}")]
    Refused(ApiError),
    #[error("The node does not answer. Check that Flotilla runs there and that this device can reach it.")]
    Unreachable,
    #[error("The node did not answer within {seconds} seconds. It may be busy; try again.")]
    TimedOut { seconds: u32 },
    /// Something answered, but not as a node of this version would.
    #[error("The node's answer could not be read ({why}). Reload the page; it may be older than the node.")]
    Unreadable { why: String },
    /// Storage or cryptography of this browser.
    #[error("This browser can't be signed in: {why}.")]
    Browser { why: String },
}

impl Failure {
    pub(crate) fn unreadable(why: impl ToString) -> Self {
        Self::Unreadable { why: why.to_string() }
    }

    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }

    /// The node no longer takes this browser's token, and trying again does not help.
    pub(crate) fn ends_session(&self) -> bool {
        matches!(
            self.code(),
            Some(ErrorCode::TokenMissing | ErrorCode::TokenInvalid | ErrorCode::TokenExpired | ErrorCode::TokenRevoked)
        )
    }
}

impl From<identity::Error> for Failure {
    fn from(error: identity::Error) -> Self {
        Self::Browser { why: error.to_string() }
    }
}
