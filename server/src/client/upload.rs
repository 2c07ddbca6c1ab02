//! Resumable upload of image archives: the digest first, then pieces at the offset that the node names.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{
    ErrorCode,
    rest::{BeginUpload, LoadedImages, UploadView},
};
use reqwest::Method;
use sha2::{Digest as _, Sha256};

use super::{Client, ENGINE_TIMEOUT, Error, UPLOAD_OFFSET};

/// One `PATCH`: small enough to lose when a connection breaks, large enough that its round trip does not count. Bytes.
pub const PIECE_LEN: usize = 8 * 1024 * 1024;

/// How long one piece may take: 8 MiB at 0.5 Mbit/s.
const PIECE_TIMEOUT: Duration = Duration::from_secs(135);

/// Attempts in a row that bring not one byte forward before the upload is given up; with the pauses below, 30 s.
const ATTEMPTS_MAX: u32 = 8;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// An image archive on this machine's disk, read once for its digest; or a layer in one.
#[derive(Clone, Debug)]
pub struct Archive {
    file: Arc<File>,
    /// What it is called where it can't be read.
    path: PathBuf,
    /// Where it begins in the file.
    start: u64,
    digest: String,
    size: u64,
}

impl Archive {
    /// Reads the whole file; `progress` is told the bytes read so far.
    pub async fn open(path: &Path, mut progress: impl FnMut(u64) + Send + 'static) -> Result<Self, Error> {
        let path = path.to_owned();
        blocking(move || {
            let mut read = || -> io::Result<(File, String, u64)> {
                let mut file = File::open(&path)?;
                let mut sha = Sha256::new();
                let mut buffer = vec![0; 256 * 1024];
                let mut size = 0;
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        len => {
                            sha.update(&buffer[..len]);
                            size += len as u64;
                            progress(size);
                        }
                    }
                }
                Ok((file, hex(&sha.finalize()), size))
            };
            match read() {
                Ok((file, digest, size)) => Ok(Self { file: Arc::new(file), path, start: 0, digest, size }),
                Err(source) => Err(Error::File { path, source }),
            }
        })
        .await
    }

    /// A stretch of a file, whose digest is known.
    pub(super) fn within(file: Arc<File>, path: &Path, start: u64, size: u64, digest: String) -> Self {
        Self { file, path: path.to_owned(), start, digest, size }
    }

    /// SHA-256, 64 hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) async fn piece(&self, offset: u64) -> Result<Bytes, Error> {
        let (file, path, at) = (Arc::clone(&self.file), self.path.clone(), self.start + offset);
        let wanted = usize::try_from(self.size - offset).unwrap_or(usize::MAX).min(PIECE_LEN);
        blocking(move || {
            let mut piece = vec![0; wanted];
            file.read_exact_at(&mut piece, at).map_err(|source| Error::File { path, source })?;
            Ok(piece.into())
        })
        .await
    }
}

impl Client {
    /// Sends the archive and has the engine load it. After a broken connection it goes on where the node has got to, and
    /// what an earlier, broken off upload has sent is not sent again. `progress` is told the bytes that the node has.
    pub async fn upload(&self, archive: &Archive, progress: impl FnMut(u64)) -> Result<LoadedImages, Error> {
        self.send_all(archive, progress, async || {
            let path = format!("images/uploads/{}/finish", archive.digest);
            self.json(self.request(Method::POST, &path).timeout(ENGINE_TIMEOUT)).await
        })
        .await
    }

    /// Sends a layer, and has the node keep it, in the same way.
    pub(super) async fn upload_layer(&self, layer: &Archive, progress: impl FnMut(u64)) -> Result<(), Error> {
        self.send_all(layer, progress, async || {
            let path = format!("images/layers/{}", layer.digest);
            self.done(self.request(Method::POST, &path).timeout(ENGINE_TIMEOUT)).await
        })
        .await
    }

    async fn send_all<T>(
        &self,
        archive: &Archive,
        mut progress: impl FnMut(u64),
        finish: impl AsyncFn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut offset = None;
        let mut attempts = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.advance(archive, &mut offset).await {
                Ok(reached) => {
                    progress(reached);
                    if reached < archive.size {
                        (attempts, pause) = (0, FIRST_PAUSE);
                        continue;
                    }
                    match finish().await {
                        Err(error) if error.is_transient() || error.code() == Some(ErrorCode::UploadNotFound) => error,
                        result => return result,
                    }
                }
                Err(error) => error,
            };
            // The node may have forgotten an unfinished upload (it was cleaned up, or its data directory is new).
            if !error.is_transient() && error.code() != Some(ErrorCode::UploadNotFound) {
                return Err(error);
            }
            attempts += 1;
            if attempts >= ATTEMPTS_MAX {
                return Err(error);
            }
            tracing::debug!(%error, attempts, "upload interrupted; asking the node how far it has got");
            offset = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One step: learns the offset if it is unknown, else sends the piece there. The result is how far the node has got.
    async fn advance(&self, archive: &Archive, offset: &mut Option<u64>) -> Result<u64, Error> {
        let reached = match *offset {
            None => self.begin_upload(archive).await?.offset,
            Some(at) if at < archive.size => self.append(archive, at).await?,
            Some(at) => at,
        };
        if reached > archive.size {
            return Err(Error::Answer { why: "it claims to have more than was sent".into() });
        }
        *offset = Some(reached);
        Ok(reached)
    }

    /// Begins an upload, or finds one that was begun: the node answers with how far it has got.
    async fn begin_upload(&self, archive: &Archive) -> Result<UploadView, Error> {
        self.post("images/uploads", &BeginUpload { digest: archive.digest.clone(), size: archive.size }).await
    }

    async fn append(&self, archive: &Archive, offset: u64) -> Result<u64, Error> {
        let piece = archive.piece(offset).await?;
        let end = offset + piece.len() as u64;
        let request = self
            .request(Method::PATCH, &format!("images/uploads/{}", archive.digest))
            .header(UPLOAD_OFFSET, offset)
            .header(reqwest::header::CONTENT_TYPE, "application/offset+octet-stream")
            .timeout(PIECE_TIMEOUT)
            .body(piece);
        let response = self.send(request).await?;
        let told = response.headers().get(UPLOAD_OFFSET).and_then(|value| value.to_str().ok()?.parse().ok());
        match told {
            Some(told) if told > offset => Ok(told),
            Some(told) => Err(Error::Answer { why: format!("it took a piece and still is at byte {told}") }),
            None => Ok(end),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{
        Json, Router,
        body::Bytes,
        extract::{DefaultBodyLimit, State},
        http::{HeaderMap, StatusCode},
        response::{IntoResponse as _, Response},
        routing::{patch, post},
    };
    use flotilla_api::ApiError;

    use super::*;

    /// A node that takes uploads, breaks connections, and forgets.
    #[derive(Clone, Debug, Default)]
    struct Node {
        taken: Arc<Mutex<Vec<u8>>>,
        /// After so many pieces the connection breaks in the middle of one, once.
        breaks_at: Arc<Mutex<Option<usize>>>,
        /// At the end it claims to know nothing, once.
        forgets: Arc<Mutex<bool>>,
        pieces: Arc<Mutex<usize>>,
    }

    impl Node {
        async fn listen(&self) -> Client {
            let router = Router::new()
                .route("/api/v1/images/uploads", post(begin))
                .route("/api/v1/images/uploads/{digest}", patch(append))
                .route("/api/v1/images/uploads/{digest}/finish", post(finish))
                .layer(DefaultBodyLimit::max(PIECE_LEN))
                .with_state(self.clone());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
            tokio::spawn(axum::serve(listener, router).into_future());
            client
        }
    }

    async fn begin(State(node): State<Node>, Json(asked): Json<BeginUpload>) -> Json<UploadView> {
        let offset = node.taken.lock().unwrap().len() as u64;
        Json(UploadView { digest: asked.digest, size: asked.size, offset })
    }

    async fn append(State(node): State<Node>, headers: HeaderMap, piece: Bytes) -> Response {
        let mut taken = node.taken.lock().unwrap();
        let offset: usize = headers[UPLOAD_OFFSET].to_str().unwrap().parse().unwrap();
        if offset != taken.len() {
            return refusal(ErrorCode::UploadOffset);
        }
        *node.pieces.lock().unwrap() += 1;
        if node.breaks_at.lock().unwrap().take_if(|at| *at == *node.pieces.lock().unwrap()).is_some() {
            taken.extend_from_slice(&piece[..piece.len() / 2]);
            drop(taken);
            // Without a message of the panic hook; the connection is closed.
            std::panic::resume_unwind(Box::new(()));
        }
        taken.extend_from_slice(&piece);
        (StatusCode::NO_CONTENT, [(UPLOAD_OFFSET, taken.len().to_string())]).into_response()
    }

    async fn finish(State(node): State<Node>) -> Response {
        if std::mem::take(&mut *node.forgets.lock().unwrap()) {
            node.taken.lock().unwrap().clear();
            return refusal(ErrorCode::UploadNotFound);
        }
        Json(LoadedImages { images: vec!["notes:1".into()] }).into_response()
    }

    fn refusal(code: ErrorCode) -> Response {
        let status = StatusCode::from_u16(code.status()).unwrap();
        (status, Json(ApiError::new(code, "no"))).into_response()
    }

    async fn archive(len: usize) -> (tempfile::NamedTempFile, Archive, Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let archive = Archive::open(file.path(), |_| {}).await.unwrap();
        (file, archive, bytes)
    }

    #[tokio::test]
    async fn an_upload_goes_on_where_the_connection_broke() {
        let node = Node { breaks_at: Arc::new(Mutex::new(Some(2))), ..Node::default() };
        let client = node.listen().await;
        let (_file, archive, bytes) = archive(2 * PIECE_LEN + 1000).await;
        let mut told = Vec::new();
        let loaded = client.upload(&archive, |sent| told.push(sent)).await.unwrap();
        assert_eq!(loaded.images, ["notes:1"]);
        assert!(*node.taken.lock().unwrap() == bytes, "what arrived is what was sent");
        assert_eq!(told.last(), Some(&archive.size()));
        assert_eq!(*node.pieces.lock().unwrap(), 3, "what was kept of the broken piece is not sent again");
    }

    #[tokio::test]
    async fn what_an_earlier_upload_has_sent_is_not_sent_again() {
        let node = Node::default();
        let client = node.listen().await;
        let (_file, archive, bytes) = archive(5000).await;
        node.taken.lock().unwrap().extend_from_slice(&bytes);
        client.upload(&archive, |_| {}).await.unwrap();
        assert_eq!(*node.pieces.lock().unwrap(), 0);
    }

    #[tokio::test]
    async fn an_upload_that_the_node_has_forgotten_begins_anew() {
        let node = Node { forgets: Arc::new(Mutex::new(true)), ..Node::default() };
        let client = node.listen().await;
        let (_file, archive, bytes) = archive(5000).await;
        client.upload(&archive, |_| {}).await.unwrap();
        assert!(*node.taken.lock().unwrap() == bytes);
    }
}
