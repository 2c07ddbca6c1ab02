//! Proof of possession (RFC 9449, DPoP): that who sends a token also holds the key that it is bound to.
//!
//! What this takes is narrower than the RFC: ES256 alone, and a token in every proof (`ath`).

use std::collections::HashSet;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use flotilla_api::{UnixMillis, rest::PublicKey};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest, Sha256};
use url::Url;

use super::Error;

/// Bytes of a proof; browsers make about 700.
const PROOF_MAX: usize = 4096;

/// Characters of a proof's own id.
const ID_MAX: usize = 128;

/// How old a proof may be, and how far ahead the browser's clock. Seconds.
pub(super) const WINDOW: u64 = 300;

/// Proofs that are remembered in each of two periods, against replay: 16 bytes each, some 100 requests a second.
const REMEMBERED_MAX: usize = 65_536;

/// What a proof must be about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) method: &'a str,
    pub(super) url: &'a str,
    pub(super) token: &'a str,
    /// Thumbprint of the token's key.
    pub(super) thumbprint: &'a str,
}

#[derive(Deserialize)]
struct Header {
    typ: String,
    alg: String,
    jwk: Key,
}

#[derive(Deserialize)]
struct Key {
    #[serde(flatten)]
    public: PublicKey,
    /// A private key has no place in a proof (RFC 9449, 4.3).
    d: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    jti: String,
    htm: String,
    htu: String,
    iat: u64,
    ath: String,
}

/// Checks a proof, and that it is used for the first time.
pub(super) fn check(proof: &str, expected: Expected<'_>, now: UnixMillis, seen: &mut Seen) -> Result<(), Error> {
    if proof.len() > PROOF_MAX {
        return Err(Error::ProofInvalid("it is too long"));
    }
    let header = header(proof)?;
    if thumbprint(&header.jwk.public)? != expected.thumbprint {
        return Err(Error::ProofInvalid("it is of another key than the token's"));
    }
    let claims = claims(proof, &header.jwk.public)?;
    if claims.htm != expected.method {
        return Err(Error::ProofInvalid("it is for another method"));
    }
    if !same_target(&claims.htu, expected.url) {
        return Err(Error::ProofInvalid("it is for another address"));
    }
    if claims.ath != BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(expected.token)) {
        return Err(Error::ProofInvalid("it is for another token"));
    }
    if claims.iat.abs_diff(now.0 / 1000) > WINDOW {
        return Err(Error::ProofInvalid("it is too old, or the clock of this device is wrong by over 5 minutes"));
    }
    if claims.jti.is_empty() || claims.jti.len() > ID_MAX {
        return Err(Error::ProofInvalid("its id is empty or too long"));
    }
    // Last, so that only who holds a key of this cluster can fill the memory.
    seen.insert(expected.thumbprint, &claims.jti, now)
}

fn header(proof: &str) -> Result<Header, Error> {
    let encoded = proof.split('.').next().unwrap_or_default();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Error::ProofInvalid("it is damaged"))?;
    let header: Header = serde_json::from_slice(&bytes).map_err(|_| Error::ProofInvalid("its header is incomplete"))?;
    if header.typ != "dpop+jwt" {
        return Err(Error::ProofInvalid("its type is not dpop+jwt"));
    }
    if header.alg != "ES256" {
        return Err(Error::ProofInvalid("it is not signed with ES256"));
    }
    if header.jwk.d.is_some() {
        return Err(Error::ProofInvalid("it holds a private key"));
    }
    Ok(header)
}

fn claims(proof: &str, key: &PublicKey) -> Result<Claims, Error> {
    let key = DecodingKey::from_ec_components(&key.x, &key.y).map_err(|_| Error::ProofInvalid("its key is damaged"))?;
    let mut validation = Validation::new(Algorithm::ES256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    Ok(jsonwebtoken::decode::<Claims>(proof, &key, &validation)
        .map_err(|_| Error::ProofInvalid("its signature or its claims are wrong"))?
        .claims)
}

/// Host, port and path; without query and fragment (RFC 9449, 4.2). The scheme is left out, because a page can't know
/// whether its WebSocket is `ws:` or `http:` to whom it asks, nor the node whether something before it speaks TLS.
fn same_target(claimed: &str, expected: &str) -> bool {
    let (Ok(claimed), Ok(expected)) = (Url::parse(claimed), Url::parse(expected)) else {
        return false;
    };
    // Without the scheme, its usual port is left out too: behind a proxy that speaks TLS the browser says 443 where the node,
    // which is asked without a port, would say 80.
    let same_port =
        claimed.port() == expected.port() || claimed.port_or_known_default() == expected.port_or_known_default();
    claimed.host() == expected.host() && same_port && claimed.path() == expected.path()
}

/// RFC 7638: SHA-256 over the required members, in lexical order and without spaces.
pub(super) fn thumbprint(key: &PublicKey) -> Result<String, Error> {
    if key.kty != "EC" || key.crv != "P-256" {
        return Err(Error::KeyInvalid("it is not of type EC on curve P-256"));
    }
    for coordinate in [&key.x, &key.y] {
        // Strict decoding: one key has one thumbprint.
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(coordinate).map_err(|_| Error::KeyInvalid("it is not base64url"))?;
        if bytes.len() != 32 {
            return Err(Error::KeyInvalid("a coordinate has not 32 bytes"));
        }
    }
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, key.x, key.y);
    Ok(BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(canonical)))
}

/// Ids of proofs that were used, for at least as long as they could be used again: two periods that take turns, so that
/// forgetting costs nothing.
#[derive(Debug, Default)]
pub(super) struct Seen {
    current: HashSet<[u8; 16]>,
    previous: HashSet<[u8; 16]>,
    /// When `current` began. Milliseconds.
    began: u64,
}

impl Seen {
    /// A proof may be used from `WINDOW` before its time until `WINDOW` after.
    const PERIOD_MS: u64 = 2 * WINDOW * 1000;

    fn insert(&mut self, thumbprint: &str, id: &str, now: UnixMillis) -> Result<(), Error> {
        let age = now.0.saturating_sub(self.began);
        if age >= Self::PERIOD_MS {
            self.previous = std::mem::take(&mut self.current);
            if age >= 2 * Self::PERIOD_MS {
                self.previous = HashSet::new();
            }
            self.began = now.0;
        }
        let digest = Sha256::new().chain_update(thumbprint).chain_update([0]).chain_update(id).finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        if self.previous.contains(&key) || self.current.contains(&key) {
            return Err(Error::ProofInvalid("it was used before"));
        }
        if self.current.len() >= REMEMBERED_MAX {
            return Err(Error::ProofsExhausted);
        }
        self.current.insert(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        // The key of RFC 9449, 4.1, and its thumbprint of section 6.1.
        let key = PublicKey {
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x: "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs".to_owned(),
            y: "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA".to_owned(),
        };
        assert_eq!(thumbprint(&key).unwrap(), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
    }

    #[test]
    fn an_id_is_remembered_for_as_long_as_it_could_be_used() {
        let mut seen = Seen::default();
        let start = UnixMillis(1_800_000_000_000);
        seen.insert("key", "a", start).unwrap();
        for later in [0, 1, WINDOW * 1000, 2 * WINDOW * 1000 - 1] {
            assert!(seen.insert("key", "a", start.plus(later)).is_err(), "forgotten after {later} ms");
        }
        assert!(seen.insert("other", "a", start).is_ok(), "an id belongs to its key");
        assert!(seen.insert("key", "a", start.plus(10 * WINDOW * 1000)).is_ok());
    }

    #[test]
    fn the_memory_of_ids_is_bounded() {
        let mut seen = Seen::default();
        let now = UnixMillis(1_800_000_000_000);
        let refused = (0..=REMEMBERED_MAX).find(|id| seen.insert("key", &id.to_string(), now).is_err());
        assert_eq!(refused, Some(REMEMBERED_MAX));
    }

    #[test]
    fn a_target_is_host_port_and_path() {
        let url = "http://app.home.localhost:7070/signal";
        assert!(same_target("ws://app.home.localhost:7070/signal", url));
        assert!(same_target("http://app.home.localhost:7070/signal?x=1#y", url));
        assert!(!same_target("http://app.home.localhost:7071/signal", url));
        assert!(!same_target("http://app.away.localhost:7070/signal", url));
        assert!(!same_target("http://app.home.localhost:7070/signals", url));
        assert!(!same_target("signal", url));
    }
}
