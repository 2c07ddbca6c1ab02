//! Request bodies whose length the browser did not say.
//!
//! HTTP/1.1 has chunked bodies for that, and many applications (WSGI, FastCGI, small servers) refuse or misread them. So the body
//! is held until it is complete: a small one in memory, a larger one in an unnamed file, which the kernel frees whatever happens
//! to us.

use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use flotilla_api::{ApiError, ErrorCode};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
};

/// Up to here a body stays in memory: forms and API calls. Bytes.
const MEMORY_MAX: usize = 1024 * 1024;

/// The disk space that bodies may take together is reserved in steps of this size. Bytes.
const RESERVE_STEP: u64 = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error("the node's disk is full; free some space and upload again")]
    DiskFull,
    #[error("uploads under way already fill the {} MiB that the node holds for them; try again later", max / (1024 * 1024))]
    Full { max: u64 },
    #[error("the node can't hold the upload: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::DiskFull
        } else {
            Self::Io(error)
        }
    }
}

impl From<SpoolError> for ApiError {
    fn from(error: SpoolError) -> Self {
        let code = match error {
            SpoolError::DiskFull | SpoolError::Full { .. } => ErrorCode::DiskFull,
            SpoolError::Io(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// Where bodies are held, and how much of them.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    max: u64,
    reserved: AtomicU64,
}

impl Spool {
    pub(super) fn new(directory: PathBuf, max: u64) -> Self {
        Self { directory, max, reserved: AtomicU64::new(0) }
    }

    pub(super) fn hold(self: &Arc<Self>) -> Held {
        Held { spool: Arc::clone(self), memory: BytesMut::new(), file: None, length: 0, reserved: 0 }
    }

    async fn file(&self) -> Result<File, SpoolError> {
        let directory = self.directory.clone();
        let made = tokio::task::spawn_blocking(move || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            tempfile::tempfile_in(&directory)
        });
        let file = made.await.map_err(io::Error::other)??;
        Ok(File::from_std(file))
    }

    fn reserve(&self, bytes: u64) -> Result<(), SpoolError> {
        let before = self.reserved.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.max {
            self.reserved.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SpoolError::Full { max: self.max });
        }
        Ok(())
    }
}

/// A body that is being held.
#[derive(Debug)]
pub(super) struct Held {
    spool: Arc<Spool>,
    memory: BytesMut,
    file: Option<File>,
    length: u64,
    reserved: u64,
}

/// A body that is complete. The disk space is given back when it is dropped.
#[derive(Debug)]
pub(super) enum Complete {
    Memory(Bytes),
    File(Box<(File, Held)>),
}

impl Held {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.length += bytes.len() as u64;
        if self.file.is_none() && self.memory.len() + bytes.len() <= MEMORY_MAX {
            self.memory.extend_from_slice(bytes);
            return Ok(());
        }
        while self.reserved < self.length {
            self.spool.reserve(RESERVE_STEP)?;
            self.reserved += RESERVE_STEP;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = none.insert(self.spool.file().await?);
                file.write_all(&std::mem::take(&mut self.memory)).await?;
                file
            }
        };
        file.write_all(bytes).await?;
        Ok(())
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) async fn complete(mut self) -> Result<Complete, SpoolError> {
        let Some(mut file) = self.file.take() else {
            return Ok(Complete::Memory(std::mem::take(&mut self.memory).freeze()));
        };
        file.flush().await?;
        file.rewind().await?;
        Ok(Complete::File(Box::new((file, self))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.spool.reserved.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_large_body_goes_to_a_file_and_comes_back_whole() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::new(directory.path().join("spool"), 64 * 1024 * 1024));
        let mut held = spool.hold();
        let chunk = vec![7_u8; 100_000];
        for _ in 0..30 {
            held.write(&chunk).await.unwrap();
        }
        assert_eq!(held.length(), 3_000_000);
        let complete = held.complete().await.unwrap();
        let Complete::File(mut parts) = complete else { panic!("it should be in a file") };
        let file = &mut parts.0;
        let mut read = Vec::new();
        file.read_to_end(&mut read).await.unwrap();
        assert!(read.len() == 3_000_000 && read.iter().all(|byte| *byte == 7));
        drop(parts);
        assert_eq!(spool.reserved.load(Ordering::Relaxed), 0);
        let left = std::fs::read_dir(directory.path().join("spool")).unwrap().count();
        assert_eq!(left, 0, "nothing is left on the disk");
    }

    #[tokio::test]
    async fn a_small_body_touches_no_disk() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::new(directory.path().join("spool"), 0));
        let mut held = spool.hold();
        held.write(b"a=1").await.unwrap();
        assert!(matches!(held.complete().await.unwrap(), Complete::Memory(bytes) if bytes == "a=1"));
        assert!(!directory.path().join("spool").exists());
    }

    #[tokio::test]
    async fn bodies_together_stay_below_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::new(directory.path().join("spool"), RESERVE_STEP));
        let chunk = vec![0_u8; 2 * MEMORY_MAX];
        let mut first = spool.hold();
        first.write(&chunk).await.unwrap();
        let mut second = spool.hold();
        let error = second.write(&chunk).await.unwrap_err();
        assert_eq!(ApiError::from(error).code, ErrorCode::DiskFull);
        drop(first);
        second.write(&chunk).await.unwrap();
    }
}
