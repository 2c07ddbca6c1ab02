//! Fetching a copy of the state, or of a volume, and bringing one.

use std::{path::Path, time::Duration};

use flotilla_api::{
    ServiceName, VolumeName,
    rest::{ExportQuery, Restored},
};
use futures::StreamExt as _;
use reqwest::{Body, Method, Response};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::{Client, Error, error::root_cause};

/// How long an archive may travel, be taken in and be copied to other machines.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// Bytes of an archive that are read at once.
const READ_CHUNK: usize = 256 * 1024;

impl Client {
    /// Writes a copy of the node's state to `to`, which must not exist; it is there as a whole or not at all. Its size in bytes.
    pub async fn back_up(&self, to: &Path) -> Result<u64, Error> {
        let response = self.endless(self.request(Method::GET, "state/backup")).await?;
        written(response, to).await
    }

    /// Writes a volume into a tar archive `to`, which must not exist; it is there as a whole or not at all. Its size in bytes.
    pub async fn export(
        &self,
        service: &ServiceName,
        volume: &VolumeName,
        query: &ExportQuery,
        to: &Path,
    ) -> Result<u64, Error> {
        let generation = query.generation.as_ref().map_or_else(String::new, |name| format!("?generation={name}"));
        let path = format!("volumes/{service}/{volume}/export{generation}");
        let response = self.endless(self.request(Method::GET, &path)).await?;
        written(response, to).await
    }

    /// Makes a volume what a tar archive has, and begins its service anew with that. `progress` is told the bytes that were read.
    pub async fn import(
        &self,
        service: &ServiceName,
        volume: &VolumeName,
        from: &Path,
        mut progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<Restored, Error> {
        let failed = |source| Error::File { path: from.to_owned(), source };
        let file = tokio::fs::File::open(from).await.map_err(failed)?;
        let mut read = 0;
        let pieces = ReaderStream::with_capacity(file, READ_CHUNK).inspect(move |piece| {
            if let Ok(piece) = piece {
                read += piece.len() as u64;
                progress(read);
            }
        });
        let path = format!("volumes/{service}/{volume}/import");
        self.json(self.request(Method::PUT, &path).body(Body::wrap_stream(pieces)).timeout(IMPORT_TIMEOUT)).await
    }
}

async fn written(response: Response, to: &Path) -> Result<u64, Error> {
    let expected = response.content_length();
    let failed = |source| Error::Written { path: to.to_owned(), source };
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let beside = tempfile::Builder::new().prefix(".flotilla-copy-").tempfile_in(directory).map_err(failed)?;
    let mut file = tokio::fs::File::from_std(beside.reopen().map_err(failed)?);
    let mut size = 0;
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let doing = "the copy was fetched";
        let piece = piece.map_err(|error| Error::Broken { doing, why: root_cause(&error) })?;
        size += piece.len() as u64;
        file.write_all(&piece).await.map_err(failed)?;
    }
    if expected.is_some_and(|expected| expected != size) {
        return Err(Error::Broken { doing: "the copy was fetched", why: "it ended early".to_owned() });
    }
    file.sync_all().await.map_err(failed)?;
    beside.persist_noclobber(to).map_err(|error| failed(error.error))?;
    Ok(size)
}
