use std::path::PathBuf;

use flotilla_api::{ApiError, ErrorCode, NodeId};

/// Why the state could not be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the state in `{path}` is damaged ({what}), and nothing was changed; put the newest copy that `flotilla state backup` made back \
         with `flotilla state restore`, or, where other machines have the state, `flotilla machine rm` this one there and let it join anew"
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "the state in `{path}` is that of the machine `{owner}`, and the keys beside it are those of `{node}`; put both from one \
         machine together, or use `flotilla state restore --recover-alone`"
    )]
    Foreign { path: PathBuf, owner: NodeId, node: NodeId },
    #[error(
        "the state in `{path}` was written by a newer version of Flotilla ({found}); install that version again or a later one"
    )]
    Newer { path: PathBuf, found: String },
    #[error("there is a state in `{path}` already; stop the node and use --force, which puts it aside")]
    Present { path: PathBuf },
    #[error("there is no state in `{path}`")]
    Empty { path: PathBuf },
    #[error("`{node}` is no machine of the cluster in `{path}`; use the keys of one that is")]
    NoMember { path: PathBuf, node: NodeId },
    #[error(
        "in `{path}` other machines vote, too, and this one would forget what it has promised them; let it join anew, or, if most \
         of them are lost for good, use --recover-alone"
    )]
    OthersVote { path: PathBuf },
    #[error("the disk that holds `{path}` is full; free some space, nothing was changed")]
    DiskFull { path: PathBuf },
    #[error("the disk did not take or give the state in `{path}` ({source}); check the disk, nothing was changed")]
    Io {
        path: PathBuf,
        #[source]
        source: sqlx::Error,
    },
    #[error("the database in `{path}` failed ({source})")]
    Database {
        path: PathBuf,
        #[source]
        source: sqlx::Error,
    },
    /// The disk failed while it took the change: only the next start will show whether it was kept.
    #[error(
        "the disk failed while `{path}` was written, so that the change may or may not be kept; look before you repeat it"
    )]
    OutcomeUnknown { path: PathBuf },
    #[error("an entry of {size} bytes is larger than the state log takes ({max} bytes); make the change smaller")]
    EntryTooLarge { size: usize, max: usize },
    #[error("the node has too many changes waiting to be written; try again in a few seconds")]
    Busy,
    #[error("the node is stopping; try again when it runs")]
    Closed,
    /// The disk failed before.
    #[error("{0}")]
    Failed(ApiError),
}

/// SQLite's primary result codes (https://www.sqlite.org/rescode.html); the extended ones carry them in the low byte.
mod sqlite {
    pub(super) const IOERR: u32 = 10;
    pub(super) const CORRUPT: u32 = 11;
    pub(super) const FULL: u32 = 13;
    pub(super) const CANTOPEN: u32 = 14;
    pub(super) const NOTADB: u32 = 26;
}

impl Error {
    pub(super) fn of_database(path: &std::path::Path, source: sqlx::Error) -> Self {
        let path = path.to_owned();
        let code = source.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
        match code.map(|code| code & 0xff) {
            Some(sqlite::FULL) => Self::DiskFull { path },
            Some(sqlite::CORRUPT | sqlite::NOTADB) => Self::Damaged { path, what: source.to_string() },
            Some(sqlite::IOERR | sqlite::CANTOPEN) => Self::Io { path, source },
            _ => Self::Database { path, source },
        }
    }
}

impl Error {
    /// The same of the file that a person named, where a copy of it was looked at.
    pub(super) fn at(mut self, named: &std::path::Path) -> Self {
        match &mut self {
            Self::Damaged { path, .. }
            | Self::Foreign { path, .. }
            | Self::Newer { path, .. }
            | Self::Present { path }
            | Self::Empty { path }
            | Self::NoMember { path, .. }
            | Self::OthersVote { path } => *path = named.to_owned(),
            _ => {}
        }
        self
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Failed(failure) => return failure.clone(),
            Error::DiskFull { .. } | Error::Io { .. } => ErrorCode::DiskFull,
            Error::EntryTooLarge { .. } => ErrorCode::RequestTooLarge,
            Error::Busy => ErrorCode::RateLimited,
            Error::Present { .. } | Error::Empty { .. } | Error::NoMember { .. } | Error::OthersVote { .. } => {
                ErrorCode::Conflict
            }
            Error::Damaged { .. }
            | Error::Foreign { .. }
            | Error::Newer { .. }
            | Error::Database { .. }
            | Error::OutcomeUnknown { .. }
            | Error::Closed => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// Why a proposal did not become part of the state.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The state does not allow it.
    #[error("{0}")]
    Rejected(ApiError),
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected(error) => error,
            ProposeError::Store(error) => error.into(),
        }
    }
}
