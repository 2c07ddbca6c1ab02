//! `POST /builds`: a Dockerfile and what lies beside it become an image.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use flotilla_api::{
    ApiError, ErrorCode,
    rest::{BuildLine, BuildQuery},
};
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Limited};

use crate::http::{
    App,
    answer::{Answer, Asked},
    caller::Operator,
    streams,
};

/// How long the sender of a context may be quiet.
const SENDER_PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn build(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Asked(query): Asked<BuildQuery>,
    body: Body,
) -> Answer<Response> {
    let place = streams::place(&app)?;
    let limit = app.config.limits.build();
    let context = context(body, app.config.limits.upload_bytes);
    let lines = streams::opened(&app, app.engine.build(&query, context)).await??;
    let late = stream::once(async move {
        tokio::time::sleep(limit).await;
        let message = format!(
            "image `{}` was not built within {} s; make the build smaller, or raise limits.build_seconds",
            query.image,
            limit.as_secs()
        );
        BuildLine::Error { error: ApiError::new(ErrorCode::Timeout, message) }
    });
    // Whichever of the two says the last word ends the answer, and with it the build.
    let lines = stream::select(lines, late);
    Ok(streams::lines(&app, &caller, place, until_last(lines)))
}

/// Ends with the line that says how the build ended, rather than with what would come after it.
fn until_last(lines: impl Stream<Item = BuildLine> + Send) -> impl Stream<Item = BuildLine> + Send {
    stream::unfold(Some(Box::pin(lines)), async |lines| {
        let mut lines = lines?;
        let line = lines.next().await?;
        let more = matches!(line, BuildLine::Output { .. });
        Some((line, more.then_some(lines)))
    })
}

/// The archive as it arrives, up to `max` bytes.
fn context(body: Body, max: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let pieces = Limited::new(body, max).into_data_stream();
    stream::unfold(Some(pieces), async |pieces| {
        let mut pieces = pieces?;
        match tokio::time::timeout(SENDER_PATIENCE, pieces.next()).await {
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Ok(None) => None,
            Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "the build context stopped arriving")), None)),
        }
    })
}
