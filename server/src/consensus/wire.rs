//! What nodes say to each other for the consensus: one byte of version, then JSON.

use std::fmt;

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode};
use flotilla_core::Outcome;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::types::{SnapshotMeta, Vote};
use crate::store::{Image, Recorded};

/// Of all messages here, openraft's among them. A node refuses any other.
const VERSION: u8 = 1;

/// A snapshot on its way to a node that is far behind.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotMessage {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    state: String,
    chain: [u8; 32],
    audit: Vec<Recorded>,
}

/// The answer to a proposal that the leader was handed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Proposed {
    pub(crate) index: u64,
    pub(crate) outcome: Outcome,
}

/// Up to where a reader has to have applied the log.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReadAt {
    pub(crate) index: u64,
}

impl SnapshotMessage {
    pub(crate) fn new(vote: Vote, meta: SnapshotMeta, image: Image) -> Self {
        Self { vote, meta, state: image.state, chain: image.chain, audit: image.audit }
    }

    pub(crate) fn into_parts(self) -> (Vote, SnapshotMeta, Image) {
        (self.vote, self.meta, Image { state: self.state, chain: self.chain, audit: self.audit })
    }
}

impl fmt::Debug for SnapshotMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotMessage").field("meta", &self.meta).finish_non_exhaustive()
    }
}

pub(crate) fn encode(message: &impl Serialize) -> Result<Bytes, ApiError> {
    let mut body = vec![VERSION];
    serde_json::to_writer(&mut body, message)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("the message has no JSON form: {error}")))?;
    Ok(body.into())
}

/// # Errors
/// One sentence for the log of the other node.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    match body.split_first() {
        Some((&VERSION, body)) => serde_json::from_slice(body).map_err(|error| {
            ApiError::new(ErrorCode::InvalidRequest, format!("the message of the consensus can't be read: {error}"))
        }),
        Some((version, _)) => Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!(
                "the message of the consensus is of version {version} and this node speaks {VERSION}; \
                 install one version of Flotilla on both machines"
            ),
        )),
        None => Err(ApiError::new(ErrorCode::InvalidRequest, "the message of the consensus is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_another_version_is_refused_with_what_to_do() {
        let body = encode(&ReadAt { index: 7 }).unwrap();
        assert_eq!(decode::<ReadAt>(&body).unwrap(), ReadAt { index: 7 });
        let mut other = body.to_vec();
        other[0] = 9;
        let error = decode::<ReadAt>(&other).unwrap_err();
        assert!(error.message.contains("version 9") && error.message.contains("install one version"), "{error}");
        for broken in [&body[..0], &body[..1], &body[..body.len() - 1]] {
            assert_eq!(decode::<ReadAt>(broken).unwrap_err().code, ErrorCode::InvalidRequest);
        }
    }
}
