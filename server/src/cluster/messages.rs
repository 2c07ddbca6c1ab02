//! Messages of the cluster between nodes, as bytes: JSON, so that a newer node may add a field.

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode};
use serde::{Serialize, de::DeserializeOwned};

pub(super) fn write<T: Serialize>(message: &T) -> Result<Bytes, ApiError> {
    serde_json::to_vec(message).map(Bytes::from).map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("a message to another machine can't be written: {error}"))
    })
}

pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("a message of another machine can't be read ({error}); run the same version on both"),
        )
    })
}
