//! Uploads of image archives that can be resumed: a spool file per archive, named by its digest, until the engine has it.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use flotilla_api::{
    ErrorCode,
    rest::{BeginUpload, UploadView},
};
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore},
};
use tokio_util::io::ReaderStream;

/// The largest archive, unless the node is told otherwise: machine-learning images have 10 GB and more. Bytes.
pub const SIZE_MAX_DEFAULT: u64 = 20 * 1024 * 1024 * 1024;

/// What an upload leaves free, so that the state log and the containers can go on. Bytes.
pub const DISK_RESERVE_DEFAULT: u64 = 1024 * 1024 * 1024;

/// Uploads that receive at once.
const RECEIVING_MAX: usize = 4;

/// Archives that lie here at once, complete or not.
const SPOOLS_MAX: usize = 32;

/// A sender that is quiet for so long is gone. It resumes where it stopped.
const SENDER_PATIENCE: Duration = Duration::from_secs(60);

/// An archive that nobody went on with is removed.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The free space is looked at again after so many bytes.
const DISK_CHECK_EVERY: u64 = 64 * 1024 * 1024;

/// What is collected before it is written. Bytes.
const WRITE_BATCH: usize = 1024 * 1024;

/// What is read at once on the way to the digest and to the engine. Bytes.
const READ_CHUNK: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is no SHA-256 digest; it has 64 hexadecimal digits in lower case")]
    Digest(String),
    #[error("there is no upload `{0}`; begin it anew")]
    NotFound(String),
    #[error("the archive has {size} bytes, but at most {limit} are taken; raise the node's upload limit")]
    TooLarge { size: u64, limit: u64 },
    #[error("an upload of this archive with another size ({0} bytes) exists")]
    Size(u64),
    #[error("the upload goes on at byte {expected}, not {got}")]
    Offset { expected: u64, got: u64 },
    #[error("more bytes came than the {0} that were announced")]
    Excess(u64),
    #[error("the upload is not complete: {offset} of {size} bytes are here")]
    Incomplete { offset: u64, size: u64 },
    #[error("the archive was damaged on its way (its digest is {got}); upload it again")]
    Damaged { got: String },
    #[error("this archive is being uploaded by somebody else; wait until that is done")]
    Busy,
    #[error("too many uploads at once (at most {0}); try again later")]
    TooMany(usize),
    #[error("the sender was quiet for {0} s; resume the upload")]
    Quiet(u64),
    #[error("the sender stopped: {0}; resume the upload")]
    Sender(String),
    #[error("the disk is too full: the upload needs {needed} bytes, and {free} are free; make room and resume it")]
    DiskFull { needed: u64, free: u64 },
    #[error("could not {operation} `{}`: {source}", path.display())]
    Disk { operation: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Digest(_) | Self::Size(_) | Self::Sender(_) => ErrorCode::InvalidRequest,
            Self::NotFound(_) => ErrorCode::UploadNotFound,
            Self::TooLarge { .. } | Self::Excess(_) => ErrorCode::RequestTooLarge,
            Self::Offset { .. } | Self::Incomplete { .. } => ErrorCode::UploadOffset,
            Self::Damaged { .. } => ErrorCode::UploadDigest,
            Self::Busy => ErrorCode::Conflict,
            Self::TooMany(_) => ErrorCode::RateLimited,
            Self::Quiet(_) => ErrorCode::Timeout,
            Self::DiskFull { .. } => ErrorCode::DiskFull,
            Self::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            Self::Disk { .. } => ErrorCode::Internal,
        }
    }
}

impl From<Error> for flotilla_api::ApiError {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub size_max: u64,
    pub disk_reserve: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { size_max: SIZE_MAX_DEFAULT, disk_reserve: DISK_RESERVE_DEFAULT }
    }
}

/// The spool. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploads {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    limits: Limits,
    receiving: Semaphore,
    /// One writer per archive. Holds the digest of what was written so far, so that a finished upload is not read again.
    spools: Mutex<HashMap<String, Arc<AsyncMutex<Spool>>>>,
}

/// The digest of the first bytes of a spool file, as far as this process wrote them itself.
#[derive(Debug, Default)]
struct Spool {
    hash: Sha256,
    hashed: u64,
}

impl Uploads {
    /// Opens `<data_dir>/uploads` and removes what is stale there. Takes up what an earlier run of the node received.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open(data_dir: &Path, limits: Limits) -> Result<Self, Error> {
        let directory = data_dir.join("uploads");
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&directory)
            .map_err(|source| disk("create", &directory, source))?;
        let inner = Inner { directory, limits, receiving: Semaphore::new(RECEIVING_MAX), spools: Mutex::default() };
        let uploads = Self { inner: Arc::new(inner) };
        uploads.remove_stale();
        Ok(uploads)
    }

    /// Begins an upload, or tells how far it came.
    ///
    /// # Errors
    /// It is too large for the limit or the disk, or too many archives lie here.
    pub fn begin(&self, request: &BeginUpload) -> Result<UploadView, Error> {
        let digest = &request.digest;
        check_digest(digest)?;
        let limit = self.inner.limits.size_max;
        if request.size > limit {
            return Err(Error::TooLarge { size: request.size, limit });
        }
        self.remove_stale();
        match self.view(digest) {
            Ok(view) if view.size == request.size => {
                self.check_disk(view.size.saturating_sub(view.offset))?;
                return Ok(view);
            }
            Ok(view) if view.offset > 0 => return Err(Error::Size(view.size)),
            Ok(_) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        self.check_disk(request.size)?;
        if self.digests()?.len() >= SPOOLS_MAX {
            return Err(Error::TooMany(SPOOLS_MAX));
        }
        let spool = self.inner.spool(digest);
        fs::File::create(&spool).map_err(|source| disk("create", &spool, source))?;
        // The size last: without it there is no upload.
        let size = self.inner.size_file(digest);
        let new = size.with_extension("new");
        fs::write(&new, request.size.to_string()).map_err(|source| disk("write", &new, source))?;
        fs::rename(&new, &size).map_err(|source| disk("write", &size, source))?;
        self.view(digest)
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub fn view(&self, digest: &str) -> Result<UploadView, Error> {
        check_digest(digest)?;
        let size_file = self.inner.size_file(digest);
        let size = match fs::read_to_string(&size_file) {
            Ok(text) => text.trim().parse().map_err(|_| Error::NotFound(digest.to_owned()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound(digest.to_owned())),
            Err(source) => return Err(disk("read", &size_file, source)),
        };
        let spool = self.inner.spool(digest);
        let offset = match fs::metadata(&spool) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(disk("read", &spool, source)),
        };
        Ok(UploadView { digest: digest.to_owned(), size, offset })
    }

    /// Appends at `offset`, which must be where the upload is. What came before the sender stopped is kept.
    ///
    /// # Errors
    /// A wrong offset changes nothing.
    pub async fn append<E: std::fmt::Display>(
        &self,
        digest: &str,
        offset: u64,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<UploadView, Error> {
        let _permit = self.inner.receiving.try_acquire().map_err(|_| Error::TooMany(RECEIVING_MAX))?;
        let mut spool = self.lock(digest)?;
        let view = self.view(digest)?;
        if offset != view.offset {
            return Err(Error::Offset { expected: view.offset, got: offset });
        }
        let path = self.inner.spool(digest);
        // Written by position: a write that outlives a request that was broken off then does no harm to the next one.
        let opened = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = Arc::new(opened.map_err(|source| disk("open", &path, source))?);
        let mut writer = Writer { spool: &mut spool, file, path, offset, batch: Vec::new(), batched: 0 };
        let received = self.receive(&mut writer, view.size, bytes).await;
        // Also what came before it failed: the sender resumes behind it.
        let written = writer.write().await;
        received.and(written)?;
        self.view(digest)
    }

    async fn receive<E: std::fmt::Display>(
        &self,
        writer: &mut Writer<'_>,
        size: u64,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), Error> {
        let mut bytes = std::pin::pin!(bytes);
        let mut left = size.saturating_sub(writer.offset);
        let mut unchecked = DISK_CHECK_EVERY;
        loop {
            let chunk = match tokio::time::timeout(SENDER_PATIENCE, bytes.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(Error::Sender(error.to_string())),
                Ok(None) => return Ok(()),
                Err(_) => return Err(Error::Quiet(SENDER_PATIENCE.as_secs())),
            };
            let count = chunk.len() as u64;
            if count > left {
                return Err(Error::Excess(size));
            }
            if unchecked >= DISK_CHECK_EVERY {
                self.check_disk(left)?;
                unchecked = 0;
            }
            unchecked += count;
            left -= count;
            writer.push(chunk).await?;
        }
    }

    /// A complete archive whose digest was checked. A damaged one is deleted.
    ///
    /// # Errors
    /// It is not complete, or not what was announced.
    pub async fn verify(&self, digest: &str) -> Result<Archive, Error> {
        let mut spool = self.lock(digest)?;
        let view = self.view(digest)?;
        if view.offset != view.size {
            return Err(Error::Incomplete { offset: view.offset, size: view.size });
        }
        let path = self.inner.spool(digest);
        let read = |source| disk("read", &path, source);
        let mut file = tokio::fs::File::open(&path).await.map_err(read)?;
        file.set_max_buf_size(READ_CHUNK);
        file.seek(io::SeekFrom::Start(spool.hashed)).await.map_err(read)?;
        let mut buffer = vec![0; READ_CHUNK];
        loop {
            let count = file.read(&mut buffer).await.map_err(read)?;
            if count == 0 {
                break;
            }
            spool.hash.update(&buffer[..count]);
            spool.hashed += count as u64;
        }
        let got = hex(&spool.hash.clone().finalize());
        let archive = Archive { uploads: self.clone(), digest: digest.to_owned(), _writer: spool };
        if got != digest {
            archive.discard().await?;
            return Err(Error::Damaged { got });
        }
        Ok(archive)
    }

    fn lock(&self, digest: &str) -> Result<OwnedMutexGuard<Spool>, Error> {
        check_digest(digest)?;
        let spool = {
            let mut spools = self.inner.spools.lock().unwrap_or_else(PoisonError::into_inner);
            // Bounded by what lies on disk, not by what is asked for.
            if !self.inner.size_file(digest).exists() {
                return Err(Error::NotFound(digest.to_owned()));
            }
            Arc::clone(spools.entry(digest.to_owned()).or_default())
        };
        spool.try_lock_owned().map_err(|_| Error::Busy)
    }

    fn check_disk(&self, size: u64) -> Result<(), Error> {
        let directory = &self.inner.directory;
        let stat = rustix::fs::statvfs(directory).map_err(|errno| disk("look at", directory, errno.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed = size.saturating_add(self.inner.limits.disk_reserve);
        if free < needed { Err(Error::DiskFull { needed, free }) } else { Ok(()) }
    }

    /// Removes archives that nobody touched for a day.
    pub fn remove_stale(&self) {
        let Ok(digests) = self.digests() else { return };
        for digest in digests {
            let touched = [self.inner.spool(&digest), self.inner.size_file(&digest)]
                .iter()
                .filter_map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
                .max();
            let age = touched.and_then(|touched| SystemTime::now().duration_since(touched).ok());
            if age.is_some_and(|age| age > STALE_AFTER)
                && let Ok(_writer) = self.lock(&digest)
            {
                tracing::info!(upload = %digest, "removing an upload that nobody went on with");
                if let Err(error) = self.inner.remove(&digest) {
                    tracing::warn!(%error, "a stale upload stays");
                }
            }
        }
    }

    fn digests(&self) -> Result<Vec<String>, Error> {
        let directory = &self.inner.directory;
        let list = |source| disk("list", directory, source);
        let mut digests = Vec::new();
        for entry in fs::read_dir(directory).map_err(list)? {
            let name = entry.map_err(list)?.file_name().to_string_lossy().into_owned();
            if let Some(digest) = name.strip_suffix(".size")
                && check_digest(digest).is_ok()
            {
                digests.push(digest.to_owned());
            }
        }
        Ok(digests)
    }
}

/// Collects what comes into writes of a good size.
struct Writer<'a> {
    spool: &'a mut Spool,
    file: Arc<fs::File>,
    path: PathBuf,
    offset: u64,
    batch: Vec<Bytes>,
    batched: usize,
}

impl Writer<'_> {
    async fn push(&mut self, chunk: Bytes) -> Result<(), Error> {
        self.batched += chunk.len();
        self.batch.push(chunk);
        if self.batched >= WRITE_BATCH { self.write().await } else { Ok(()) }
    }

    async fn write(&mut self) -> Result<(), Error> {
        let batch = std::mem::take(&mut self.batch);
        let mut offset = self.offset;
        let file = Arc::clone(&self.file);
        // If this request is broken off meanwhile, the digest so far is lost with it, and computed anew at the end.
        let mut spool = std::mem::take(self.spool);
        let written = tokio::task::spawn_blocking(move || {
            for chunk in batch {
                file.write_all_at(&chunk, offset)?;
                if spool.hashed == offset {
                    spool.hash.update(&chunk);
                    spool.hashed += chunk.len() as u64;
                }
                offset += chunk.len() as u64;
            }
            Ok((spool, offset))
        });
        let written = written.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        (*self.spool, self.offset) = written.map_err(|source| disk("write", &self.path, source))?;
        self.batched = 0;
        Ok(())
    }
}

impl Inner {
    fn spool(&self, digest: &str) -> PathBuf {
        self.directory.join(digest)
    }

    fn size_file(&self, digest: &str) -> PathBuf {
        self.directory.join(format!("{digest}.size"))
    }

    fn remove(&self, digest: &str) -> Result<(), Error> {
        self.spools.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        // The size first: without it there is no upload.
        for path in [self.size_file(digest), self.spool(digest)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk("delete", &path, error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A complete, checked archive; while it is held nobody writes to it.
#[derive(Debug)]
pub struct Archive {
    uploads: Uploads,
    digest: String,
    _writer: OwnedMutexGuard<Spool>,
}

impl Archive {
    /// Its bytes.
    ///
    /// # Errors
    /// The file can't be opened.
    pub async fn stream(&self) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, Error> {
        let path = self.uploads.inner.spool(&self.digest);
        let mut file = tokio::fs::File::open(&path).await.map_err(|source| disk("read", &path, source))?;
        file.set_max_buf_size(READ_CHUNK);
        Ok(ReaderStream::with_capacity(file, READ_CHUNK))
    }

    /// The file that holds it.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open(&self) -> Result<fs::File, Error> {
        let path = self.uploads.inner.spool(&self.digest);
        fs::File::open(&path).map_err(|source| disk("read", &path, source))
    }

    /// Bytes.
    ///
    /// # Errors
    /// It is gone.
    pub fn size(&self) -> Result<u64, Error> {
        Ok(self.uploads.view(&self.digest)?.size)
    }

    /// Deletes it.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn discard(self) -> Result<(), Error> {
        let (inner, digest) = (Arc::clone(&self.uploads.inner), self.digest.clone());
        // Freeing gigabytes of extents blocks for a while.
        tokio::task::spawn_blocking(move || inner.remove(&digest)).await.unwrap_or(Ok(()))
    }
}

fn check_digest(digest: &str) -> Result<(), Error> {
    let valid = digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if valid {
        Ok(())
    } else {
        Err(Error::Digest(digest.chars().take(80).collect::<String>().escape_debug().to_string()))
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn disk(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Disk { operation, path: path.to_owned(), source }
}
