//! Why the data of a service is not where it should be.

use std::{
    io,
    path::{Path, PathBuf},
};

use flotilla_api::{ApiError, ErrorCode, ServiceName, VolumeName};
use flotilla_core::state::GenerationName;
use flotilla_data::{restore, store, tree};

use super::limit::Held;
use crate::fence;

/// Why the data of a service is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {operation} `{}`: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error("a volume could not be read: {0}")]
    Capture(#[from] flotilla_data::capture::Error),
    #[error("a volume could not be brought to another generation: {0}")]
    Restore(#[from] restore::Error),
    #[error("a copy could not be compared with what it should be: {0}")]
    Verify(restore::Error),
    #[error("its instance could not be held still: {0}")]
    Fence(#[from] fence::Error),
    #[error("generation {name} of `{service}`, with which it shall begin, is not on this machine")]
    NotHere { service: ServiceName, name: GenerationName },
    #[error("the volumes of `{service}` are not there yet")]
    NoDirectory { service: ServiceName },
    #[error(
        "`{file}` of `{service}` was changed while its instance stood still; something outside of its container writes it"
    )]
    Torn { service: ServiceName, file: String },
    #[error("the volumes of `{service}` were deleted meanwhile")]
    Deleted { service: ServiceName },
    #[error("`{service}` has an encrypted volume, and the cluster has no key yet; deploy it once more")]
    NoKey { service: ServiceName },
    #[error(
        "`{volume}` of `{service}` is encrypted, or is not any more, and what it was to become is kept the other way; try again"
    )]
    Mixed { service: ServiceName, volume: VolumeName },
    #[error("no machine that has it sends it: {why}")]
    NoSource { why: String },
    #[error("the machine that has it does not send it now: {0}")]
    Held(Held),
    #[error("the node failed inside; look at its log")]
    Panicked,
    #[error("the node stops")]
    Stopped,
}

impl Error {
    pub(super) fn file(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { operation, path: path.to_owned(), source }
    }

    fn is_full(&self) -> bool {
        match self {
            Self::File { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Store(error) | Self::Tree(tree::Error::Store(error)) => error.is_full(),
            _ => false,
        }
    }
}

impl Error {
    /// Has somebody to be asked for a key?
    pub(super) fn lacks_key(&self) -> bool {
        use flotilla_data::{capture, stream};

        let store = |error: &store::Error| error.is_sealed();
        let tree = |error: &tree::Error| match error {
            tree::Error::Store(error) | tree::Error::Stream(stream::Error::Store(error)) => store(error),
            _ => false,
        };
        match self {
            Self::NoKey { .. } => true,
            Self::Store(error) | Self::Capture(capture::Error::Store(error)) => store(error),
            Self::Tree(error) | Self::Capture(capture::Error::Tree(error)) => tree(error),
            Self::Restore(restore::Error::Tree(error)) => tree(error),
            _ => false,
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match &error {
            _ if error.lacks_key() => ErrorCode::ValueKeyMissing,
            Error::Mixed { .. } => ErrorCode::Conflict,
            _ if error.is_full() => ErrorCode::DiskFull,
            Error::Stopped
            | Error::NoSource { .. }
            | Error::Held(_)
            | Error::NotHere { .. }
            | Error::NoDirectory { .. } => ErrorCode::ServiceUnavailable,
            _ => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}
