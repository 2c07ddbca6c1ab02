//! Why the data of a service is not where it should be.

use std::{
    io,
    path::{Path, PathBuf},
};

use flotilla_api::{ApiError, ErrorCode, ServiceName};
use flotilla_core::state::GenerationName;
use flotilla_data::{restore, store, tree};

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
    #[error("no machine that has it sends it: {why}")]
    NoSource { why: String },
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

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match &error {
            _ if error.is_full() => ErrorCode::DiskFull,
            Error::Stopped | Error::NoSource { .. } | Error::NotHere { .. } | Error::NoDirectory { .. } => {
                ErrorCode::ServiceUnavailable
            }
            _ => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}
