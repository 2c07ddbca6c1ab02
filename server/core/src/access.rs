//! Who a token speaks for, judged from the state at one time.

use flotilla_api::{ApiError, ErrorCode, TokenId, UnixMillis, rest::Principal};

use crate::state::State;

impl State {
    /// The holder of a token whose signature was checked already.
    ///
    /// # Errors
    /// The token is unknown, revoked or expired.
    pub fn principal(&self, id: &TokenId, now: UnixMillis) -> Result<Principal, ApiError> {
        let Some(token) = self.tokens.get(id) else {
            return Err(ApiError::new(
                ErrorCode::TokenInvalid,
                "the token is not known to this cluster; sign in again with an invitation or a new token",
            ));
        };
        if token.revoked_at.is_some() {
            return Err(ApiError::new(
                ErrorCode::TokenRevoked,
                "the token was revoked; ask an administrator for a new one",
            ));
        }
        if token.expires_at <= now {
            return Err(ApiError::new(
                ErrorCode::TokenExpired,
                "the token has expired; sign in again with an invitation or a new token",
            ));
        }
        Ok(Principal {
            token: token.id.clone(),
            name: token.name.clone(),
            grant: token.grant.clone(),
            expires_at: token.expires_at,
        })
    }
}
