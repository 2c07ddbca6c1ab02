//! Why a connection is over, for everyone who waits on it.

use flotilla_api::ApiError;

use crate::client::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The node said so.
    Told(ApiError),
    Broken(String),
}

impl Ended {
    pub(super) fn because(error: &dyn std::error::Error) -> Self {
        Self::Broken(error.to_string())
    }

    /// By us.
    pub(super) fn left() -> Self {
        Self::Broken("it was ended here".to_owned())
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Told(error) => Error::Api(error),
            Self::Broken(why) => Error::Broken { doing: "asking services", why },
        }
    }
}

/// Nothing more is heard.
pub(super) fn lost() -> Ended {
    Ended::Broken("it was closed".to_owned())
}
