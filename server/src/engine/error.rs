//! What can go wrong between Flotilla and Docker Engine, in sentences that a person can act upon.

use std::path::PathBuf;

use flotilla_api::{ApiError, ErrorCode, InstanceId, ServiceName};

use super::uploads;
use crate::fence;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the engine's address. Holds the whole sentence.
    #[error("{0}")]
    Unavailable(String),
    #[error("Docker Engine did not {operation} within {seconds} s; look at its log (`journalctl -u docker`)")]
    Timeout { operation: &'static str, seconds: u64 },
    #[error("Docker Engine could not {operation}: {message}")]
    Refused { operation: &'static str, status: Option<u16>, message: String },
    #[error("`{image}` is no image reference: {why}")]
    Reference { image: String, why: &'static str },
    #[error(
        "image `{image}` does not exist in registry {registry} (or needs a login); check its name and tag, or push it \
         with `flotilla image push {image}`"
    )]
    ImageNotFound { image: String, registry: String },
    #[error("image `{image}` is not on this machine; push it with `flotilla image push`")]
    ImageNotLocal { image: String },
    #[error("image `{image}` could not be pulled from registry {registry}: {why}")]
    Pull { image: String, registry: String, why: String },
    /// It is not where it should be. Holds the whole sentence.
    #[error("{}", .0.message)]
    Image(ApiError),
    #[error("the upload is no image archive that Docker Engine can load: {0}; make one with `docker save`")]
    Archive(String),
    #[error("image `{image}` could not be built: {why}")]
    Build { image: String, why: String },
    #[error(transparent)]
    Upload(#[from] uploads::Error),
    #[error("there is no service `{0}`; `flotilla ps` lists all")]
    ServiceNotFound(ServiceName),
    #[error("service `{0}` is stopped; start it with `flotilla scale {0}=1`")]
    ServiceStopped(ServiceName),
    #[error("service `{service}` is not running: {why}")]
    ServiceUnavailable { service: ServiceName, why: String },
    #[error("service `{0}` has no port to open; name it under `ports` in its compose file")]
    NoPort(ServiceName),
    #[error("there is no instance `{0}`; `flotilla ps` lists all")]
    InstanceNotFound(InstanceId),
    #[error("{0}")]
    Invalid(String),
    /// It could not be frozen, or not be guarded, and so was not started.
    #[error(transparent)]
    Fence(#[from] fence::Error),
    /// Its data, or a secret of it, is not there. Holds the whole sentence.
    #[error("{}", .0.message)]
    Data(ApiError),
    /// No secret can be given to a container. Holds the whole sentence.
    #[error("{0}")]
    Values(String),
    #[error("could not {operation} `{}`: {source}", path.display())]
    Directory { operation: &'static str, path: PathBuf, source: std::io::Error },
    /// What was under way is no longer wanted, or the node stops.
    #[error("it is no longer wanted")]
    Cancelled,
    #[error("the node failed inside; look at its log")]
    Panicked,
    #[error("too many {0} at once; try again later")]
    TooMany(&'static str),
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unavailable(_) => ErrorCode::EngineUnavailable,
            // None of them speaks against what was to be started; the reconciler knows the code.
            Self::Image(error) if error.code == ErrorCode::DiskFull => ErrorCode::DiskFull,
            Self::Fence(_) | Self::Image(_) | Self::Values(_) => ErrorCode::ServiceUnavailable,
            Self::Data(error) => error.code,
            Self::Timeout { .. } => ErrorCode::Timeout,
            Self::Refused { .. } => ErrorCode::EngineFailed,
            Self::Reference { .. } | Self::Archive(_) => ErrorCode::ImageInvalid,
            Self::ImageNotFound { .. } | Self::ImageNotLocal { .. } => ErrorCode::ImageNotFound,
            Self::Pull { .. } => ErrorCode::ImagePullFailed,
            Self::Build { .. } => ErrorCode::BuildFailed,
            Self::Upload(error) => error.code(),
            Self::ServiceNotFound(_) => ErrorCode::ServiceNotFound,
            Self::ServiceStopped(_) => ErrorCode::ServiceStopped,
            Self::ServiceUnavailable { .. } => ErrorCode::ServiceUnavailable,
            Self::NoPort(_) => ErrorCode::PortClosed,
            Self::InstanceNotFound(_) => ErrorCode::InstanceNotFound,
            Self::Invalid(_) => ErrorCode::InvalidRequest,
            Self::Directory { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            Self::Directory { .. } | Self::Panicked => ErrorCode::Internal,
            Self::TooMany(_) => ErrorCode::RateLimited,
            Self::Cancelled => ErrorCode::Conflict,
        }
    }

    /// The engine itself is at fault, or was: nothing that a service could be blamed for.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The engine knows no such container, network or image (any more).
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status: Some(404), .. })
    }

    /// It already is what was asked for, or something else holds the name.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: Some(409), .. })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
