//! Bodies of answers on their way to the browser.

use std::{io, pin::Pin};

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_util::io::{ReaderStream, StreamReader};

/// How much a decoder is read at a time. Bytes.
const DECODED_CHUNK: usize = 32 * 1024;

/// Chunks of a body.
pub(super) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

/// A body that ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the service broke off its answer")]
    Upstream(#[from] hyper::Error),
    #[error("the service's answer can't be decompressed")]
    Decoding(#[source] io::Error),
    #[error("the service's page can't be rewritten: {0}")]
    Rewriting(String),
}

/// The body as the service sent it, without trailers, which a browser's `fetch` has no place for.
pub(super) fn raw(incoming: Incoming) -> Body {
    let frames = incoming.into_data_stream();
    Box::pin(frames.map_err(BodyError::Upstream))
}

/// A `Content-Encoding` that we can take off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
}

impl Coding {
    /// `Ok(None)` for `identity` and for no coding.
    ///
    /// # Errors
    /// The coding that is not known.
    pub(super) fn parse(header: &str) -> Result<Option<Self>, String> {
        match header.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            "br" => Ok(Some(Self::Brotli)),
            other => Err(other.to_owned()),
        }
    }

    /// Takes the coding off. Memory is bounded whatever the ratio: output is produced as it is read.
    pub(super) fn decode(self, body: Body) -> Body {
        let reader = StreamReader::new(body.map_err(io::Error::other));
        let decoded = |stream: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>| -> Body {
            Box::pin(stream.map_err(BodyError::Decoding))
        };
        match self {
            Self::Gzip => {
                let mut decoder = GzipDecoder::new(reader);
                decoder.multiple_members(true);
                decoded(Box::pin(ReaderStream::with_capacity(decoder, DECODED_CHUNK)))
            }
            Self::Deflate => decoded(Box::pin(ReaderStream::with_capacity(ZlibDecoder::new(reader), DECODED_CHUNK))),
            Self::Brotli => decoded(Box::pin(ReaderStream::with_capacity(BrotliDecoder::new(reader), DECODED_CHUNK))),
        }
    }
}
