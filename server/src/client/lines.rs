//! Newline-delimited JSON as a stream of values.

use std::{
    io,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use reqwest::Response;
use serde::de::DeserializeOwned;
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    io::StreamReader,
};

use super::error::{Error, root_cause};

/// The longest line that is taken. A log line is cut by the node far below this. Bytes.
const LINE_MAX: usize = 1024 * 1024;

type Framed = FramedRead<StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>, LinesCodec>;

/// An answer whose lines are JSON values of one type. Ends when the node ends it; dropping it ends the request.
pub struct Lines<T> {
    framed: Framed,
    doing: &'static str,
    ended: bool,
    value: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("doing", &self.doing).finish_non_exhaustive()
    }
}

impl<T> Lines<T> {
    pub(super) fn new(response: Response, doing: &'static str) -> Self {
        Self::over(response.bytes_stream().map_err(io::Error::other).boxed(), doing)
    }

    fn over(bytes: BoxStream<'static, io::Result<Bytes>>, doing: &'static str) -> Self {
        let framed = FramedRead::new(StreamReader::new(bytes), LinesCodec::new_with_max_length(LINE_MAX));
        Self { framed, doing, ended: false, value: PhantomData }
    }
}

impl<T: DeserializeOwned> Stream for Lines<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let failed = match futures::ready!(self.framed.poll_next_unpin(cx)) {
                None => {
                    self.ended = true;
                    continue;
                }
                // A node sends an empty line now and then, so that nothing on the way takes the connection for dead.
                Some(Ok(line)) if line.trim().is_empty() => continue,
                Some(Ok(line)) => match serde_json::from_str(&line) {
                    Ok(value) => return Poll::Ready(Some(Ok(value))),
                    Err(error) => Error::Answer { why: error.to_string() },
                },
                Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                    Error::Answer { why: format!("a line has more than {LINE_MAX} bytes") }
                }
                Some(Err(LinesCodecError::Io(error))) => Error::Broken { doing: self.doing, why: root_cause(&error) },
            };
            self.ended = true;
            return Poll::Ready(Some(Err(failed)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&'static str]) -> Lines<u32> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
        Lines::over(futures::stream::iter(chunks).boxed(), "testing")
    }

    #[tokio::test]
    async fn values_are_read_across_the_borders_of_chunks_and_empty_lines_are_skipped() {
        let values: Vec<u32> = lines(&["1\n", "\n2", "3\n\n4"]).try_collect().await.unwrap();
        assert_eq!(values, [1, 23, 4]);
    }

    #[tokio::test]
    async fn a_line_that_is_no_json_ends_the_stream_with_an_error() {
        let mut lines = lines(&["1\nx\n2\n"]);
        assert_eq!(lines.next().await.unwrap().unwrap(), 1);
        assert!(matches!(lines.next().await, Some(Err(Error::Answer { .. }))));
        assert!(lines.next().await.is_none());
    }
}
