//! Why an image is not where it should be.

use std::{io, path::PathBuf};

use flotilla_api::{ApiError, ErrorCode};
use flotilla_data::{store, stream, tree};

use super::archive::{self, Error as ArchiveError};
use crate::{
    engine::{self, uploads},
    volumes,
};

/// Why an image is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("image `{image}` can't be stored: {source}")]
    Archive {
        image: String,
        #[source]
        source: ArchiveError,
    },
    #[error("image `{image}` could not be fetched: {source}")]
    Fetch {
        image: String,
        #[source]
        source: volumes::Error,
    },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Digest(#[from] archive::InvalidDigest),
    #[error("`{0}` is not in this machine's store")]
    NotHere(String),
    #[error("the engine does not have `{0}` (any more)")]
    NotInEngine(String),
    #[error(
        "the disk is too full: `{image}` needs {needed} bytes, and {free} are free; make room, or run `flotilla image gc`"
    )]
    DiskFull { image: String, needed: u64, free: u64 },
    #[error("{0}")]
    Invalid(String),
    /// Holds the whole sentence.
    #[error("{0}")]
    InUse(String),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Upload(#[from] uploads::Error),
    #[error("could not {operation} `{}`: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the node failed inside; look at its log")]
    Panicked,
    #[error("the node stops")]
    Stopped,
}

impl Error {
    pub(super) fn code(&self) -> ErrorCode {
        if self.store().is_some_and(store::Error::is_full) {
            return ErrorCode::DiskFull;
        }
        match self {
            Self::DiskFull { .. } => ErrorCode::DiskFull,
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            Self::Archive {
                source: ArchiveError::Format(_) | ArchiveError::Other(_) | ArchiveError::Damaged { .. },
                ..
            } => ErrorCode::ImageInvalid,
            Self::Digest(_) | Self::Invalid(_) => ErrorCode::InvalidRequest,
            Self::NotHere(_) | Self::NotInEngine(_) => ErrorCode::ImageNotFound,
            Self::InUse(_) => ErrorCode::ImageInUse,
            Self::Engine(error) => error.code(),
            Self::Upload(error) => error.code(),
            Self::Fetch { .. } | Self::Stopped => ErrorCode::ServiceUnavailable,
            _ => ErrorCode::Internal,
        }
    }

    /// Is what is here not what it should be, or does the disk not give it, so that another machine has to be asked?
    pub(super) fn is_damage(&self) -> bool {
        let itself = |source: &ArchiveError| {
            matches!(source, ArchiveError::Damaged { .. } | ArchiveError::Tree(tree::Error::Damaged))
        };
        let is_lost = |error: &store::Error| error.is_lost() && !error.is_full();
        matches!(self, Self::Archive { source, .. } if itself(source)) || self.store().is_some_and(is_lost)
    }

    /// Would it be the same with any other machine that has the image?
    pub(super) fn is_final(&self) -> bool {
        let of_fetch = |source: &volumes::Error| {
            matches!(source, volumes::Error::Held(_) | volumes::Error::Stopped | volumes::Error::Panicked)
        };
        self.code() == ErrorCode::DiskFull
            || matches!(self, Self::Stopped | Self::Panicked)
            || matches!(self, Self::Fetch { source, .. } if of_fetch(source))
    }

    /// What the store of objects has to say of it.
    pub(super) fn store(&self) -> Option<&store::Error> {
        match self {
            Self::Archive {
                source:
                    ArchiveError::Store(error)
                    | ArchiveError::Tree(tree::Error::Store(error) | tree::Error::Stream(stream::Error::Store(error)))
                    | ArchiveError::Stream(stream::Error::Store(error)),
                ..
            }
            | Self::Fetch {
                source: volumes::Error::Store(error) | volumes::Error::Tree(tree::Error::Store(error)),
                ..
            }
            | Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: store::Error) -> Error {
        Error::Archive { image: "notes:1".to_owned(), source: ArchiveError::Store(error) }
    }

    fn file(kind: io::ErrorKind) -> store::Error {
        store::Error::File { operation: "read", path: PathBuf::from("0.pack"), source: kind.into() }
    }

    #[test]
    fn what_a_disk_does_not_give_back_is_damaged_and_what_it_does_not_take_is_not() {
        assert!(of(file(io::ErrorKind::UnexpectedEof)).is_damage(), "a pack that was cut short");
        assert!(!of(file(io::ErrorKind::StorageFull)).is_damage());
        assert!(!of(store::Error::Closed).is_damage());
    }

    #[test]
    fn another_machine_is_of_no_help_where_nothing_may_come_or_there_is_no_room() {
        let fetch = |source| Error::Fetch { image: "notes:1".to_owned(), source };
        assert!(fetch(volumes::Error::Store(file(io::ErrorKind::StorageFull))).is_final());
        assert!(fetch(volumes::Error::Stopped).is_final());
        assert!(!fetch(volumes::Error::NoSource { why: "it is gone".to_owned() }).is_final());
        assert!(!of(file(io::ErrorKind::UnexpectedEof)).is_final());
    }
}
