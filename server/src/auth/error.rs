use flotilla_api::{ApiError, ErrorCode};

/// Why somebody was not let in. Says enough for the holder of a token to go on, and nothing about others' tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no token was sent; sign in with an invitation link, or send `Authorization: Bearer <token>`")]
    TokenMissing,
    #[error("the token is not valid ({0}); sign in again")]
    TokenInvalid(&'static str),
    #[error("the token has expired; sign in again with a new invitation")]
    TokenExpired,
    #[error("the proof that this is the token's own browser is not valid ({0}); reload the page")]
    ProofInvalid(&'static str),
    #[error("the node checks too many signed requests just now; try again in a minute")]
    ProofsExhausted,
    #[error("the invitation is not valid; ask for a new one, and copy the whole link")]
    InvitationInvalid,
    #[error("the public key is not valid ({0}); send a P-256 key as a JSON Web Key")]
    KeyInvalid(&'static str),
    #[error("the token is bound to a key already; use it as it is")]
    AlreadyBound,
    #[error("{0}")]
    Lifetime(String),
    #[error("failed to sign the token: {0}")]
    Signing(String),
    #[error("the node is stopping; try again in a moment")]
    Stopping,
    #[error("{0}")]
    Rejected(ApiError),
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::TokenMissing => ErrorCode::TokenMissing,
            Error::TokenInvalid(_) => ErrorCode::TokenInvalid,
            Error::TokenExpired => ErrorCode::TokenExpired,
            Error::ProofInvalid(_) => ErrorCode::ProofInvalid,
            Error::ProofsExhausted => ErrorCode::RateLimited,
            Error::InvitationInvalid => ErrorCode::InvitationInvalid,
            Error::KeyInvalid(_) | Error::Lifetime(_) => ErrorCode::InvalidRequest,
            Error::AlreadyBound => ErrorCode::Conflict,
            Error::Signing(_) => ErrorCode::Internal,
            Error::Stopping => ErrorCode::ServiceUnavailable,
            Error::Rejected(error) => return error.clone(),
        };
        Self::new(code, error.to_string())
    }
}

impl From<crate::store::ProposeError> for Error {
    fn from(error: crate::store::ProposeError) -> Self {
        Self::Rejected(error.into())
    }
}
