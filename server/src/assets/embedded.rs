//! The table that `server/build` writes.

use std::fmt;

/// A file of the web app with its precompressed copies.
pub struct Asset {
    pub path: &'static str,
    pub content_type: &'static str,
    /// Of the uncompressed bytes.
    pub hash: &'static str,
    pub caching: Caching,
    pub identity: &'static [u8],
    /// Absent where it would not be smaller.
    pub brotli: Option<&'static [u8]>,
    pub gzip: Option<&'static [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Its name holds its hash: it never changes.
    Immutable,
    /// Ask each time whether it changed.
    Revalidate,
}

impl fmt::Debug for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asset").field("path", &self.path).field("hash", &self.hash).finish_non_exhaustive()
    }
}

mod table {
    use super::{Asset, Caching};

    include!(concat!(env!("OUT_DIR"), "/assets.rs"));
}

/// A file of the dashboard's and connector's origin.
pub(super) fn of_app(path: &str) -> Option<&'static Asset> {
    table::APP.iter().find(|asset| asset.path == path)
}

/// A file of every service's origin.
pub(super) fn of_service(path: &str) -> Option<&'static Asset> {
    table::SERVICE.iter().find(|asset| asset.path == path)
}

#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static Asset> {
    table::APP.iter().chain(table::SERVICE)
}
