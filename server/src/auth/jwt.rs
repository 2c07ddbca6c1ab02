//! The cluster's tokens as JSON Web Tokens (RFC 7519), signed with Ed25519.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::pkcs8::EncodePrivateKey;
use flotilla_api::{Grant, Scope, ServiceName, TokenId, UnixMillis};
use flotilla_core::command::TokenRecord;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::identity::ClusterKey;

/// Bytes of a token. A user's list of 200 services makes about 12 KiB; headers of a request may have 16 KiB together.
pub const TOKEN_MAX: usize = 14 * 1024;

/// How far ahead of ours another node's clock may be. Seconds.
const ISSUED_AHEAD_MAX: u64 = 300;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// Id of the cluster.
    pub(super) iss: String,
    /// Name of the holder.
    pub(super) sub: String,
    pub(super) jti: String,
    pub(super) iat: u64,
    pub(super) exp: u64,
    pub(super) scope: Scope,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) services: BTreeSet<ServiceName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cnf: Option<Confirmation>,
}

/// RFC 7800; the thumbprint member is RFC 9449, 6.1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Confirmation {
    pub(super) jkt: String,
}

impl Claims {
    pub(super) fn token(&self) -> TokenId {
        TokenId(self.jti.clone())
    }

    pub(super) fn grant(&self) -> Grant {
        Grant { scope: self.scope, services: self.services.clone() }
    }
}

pub(super) struct Keys {
    cluster: String,
    /// Absent on a machine that only stores.
    signing: Option<EncodingKey>,
    verifying: DecodingKey,
    validation: Validation,
}

impl Keys {
    pub(super) fn new(cluster: &str, key: &ClusterKey) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Signing(error.to_string());
        let der = key.private().map(EncodePrivateKey::to_pkcs8_der).transpose().map_err(|error| failed(&error))?;
        let public = BASE64_URL_SAFE_NO_PAD.encode(key.public().as_bytes());
        // The algorithm is fixed here and never taken from a token (RFC 8725, 3.1).
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[cluster]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        // Checked in `verify`, against the clock that the rest of the node uses and without leeway.
        validation.validate_exp = false;
        Ok(Self {
            cluster: cluster.to_owned(),
            signing: der.map(|der| EncodingKey::from_ed_der(der.as_bytes())),
            verifying: DecodingKey::from_ed_components(&public).map_err(|error| failed(&error))?,
            validation,
        })
    }

    pub(super) fn sign(&self, record: &TokenRecord, now: UnixMillis) -> Result<String, Error> {
        let claims = Claims {
            iss: self.cluster.clone(),
            sub: record.name.clone(),
            jti: record.id.0.clone(),
            iat: now.0 / 1000,
            // Rounded up: the record's own end decides, and to the millisecond.
            exp: record.expires_at.0.div_ceil(1000),
            scope: record.grant.scope,
            services: record.grant.services.clone(),
            cnf: record.bound_to.clone().map(|jkt| Confirmation { jkt }),
        };
        let signing = self.signing.as_ref();
        let signing =
            signing.ok_or_else(|| Error::Signing("this machine only stores, and signs nothing".to_owned()))?;
        let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, signing)
            .map_err(|error| Error::Signing(error.to_string()))?;
        if token.len() > TOKEN_MAX {
            return Err(Error::Lifetime("the token would be too long; name fewer services".to_owned()));
        }
        Ok(token)
    }

    /// Checks all that the token says of itself; whether it still holds is in the state.
    pub(super) fn verify(&self, token: &str, now: UnixMillis) -> Result<Claims, Error> {
        if token.len() > TOKEN_MAX {
            return Err(Error::TokenInvalid("it is too long"));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &self.validation)
            .map_err(|error| {
                Error::TokenInvalid(match error.kind() {
                    ErrorKind::InvalidSignature => "its signature is not this cluster's",
                    ErrorKind::InvalidIssuer => "it is of another cluster",
                    ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
                        "it is not signed with Ed25519"
                    }
                    ErrorKind::MissingRequiredClaim(_) => "a claim is missing",
                    _ => "it is damaged or no token of Flotilla",
                })
            })?
            .claims;
        let seconds = now.0 / 1000;
        if claims.exp <= seconds {
            return Err(Error::TokenExpired);
        }
        if claims.iat > seconds + ISSUED_AHEAD_MAX {
            return Err(Error::TokenInvalid("it was issued in the future; check this machine's clock"));
        }
        Ok(claims)
    }
}
