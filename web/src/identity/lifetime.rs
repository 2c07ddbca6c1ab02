//! How long a token lives, by its own claims.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use flotilla_api::UnixMillis;

/// When the last third of the token's life has begun.
pub(super) fn renewal_is_due(token: &str, now: UnixMillis) -> bool {
    read(token).is_some_and(|(issued, expires)| expires.since(now) < expires.since(issued) / 3)
}

/// Reads `iat` and `exp` (RFC 7519, 4.1) without checking anything: only the node can, and only renewal is timed by it.
fn read(token: &str) -> Option<(UnixMillis, UnixMillis)> {
    #[derive(serde::Deserialize)]
    struct Claims {
        iat: u64,
        exp: u64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    Some((UnixMillis(claims.iat.checked_mul(1000)?), UnixMillis(claims.exp.checked_mul(1000)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"iat":1000,"exp":4000}`
    const TOKEN: &str = "e30.eyJpYXQiOjEwMDAsImV4cCI6NDAwMH0.sig";

    #[test]
    fn a_tokens_life_is_read_from_its_claims() {
        assert_eq!(read(TOKEN), Some((UnixMillis(1_000_000), UnixMillis(4_000_000))));
        for broken in ["", "a.b.c", "e30.e30.e30", "x.!.y"] {
            assert_eq!(read(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_token_is_renewed_in_the_last_third_of_its_life() {
        assert!(!renewal_is_due(TOKEN, UnixMillis(3_000_000)));
        assert!(renewal_is_due(TOKEN, UnixMillis(3_000_001)));
        assert!(!renewal_is_due("a.b.c", UnixMillis(3_000_001)));
    }
}
