//! A copy of the state, for a safe place.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use flotilla_api::ErrorCode;
use http::{HeaderValue, header};
use tokio_util::io::ReaderStream;

use crate::{
    http::{
        App,
        answer::{Answer, Failure},
        caller::Admin,
        streams,
    },
    store,
};

/// The copy is made as a whole before its first byte is sent, so that nobody takes a part of it for the whole.
pub(super) async fn back_up(State(app): State<Arc<App>>, Admin(_): Admin) -> Answer<Response> {
    let place = streams::place(&app)?;
    let failed = |source: std::io::Error| {
        Failure::from(store::Error::Io { path: app.store.path().to_owned(), source: sqlx::Error::Io(source) })
    };
    let directory = app.store.path().parent().unwrap_or_else(|| std::path::Path::new("."));
    // Gone with this value, whatever happens; its mode is 0600.
    let copy = tempfile::Builder::new().prefix("state.db.copy-").tempfile_in(directory).map_err(failed)?;
    let copying = app.store.copy(copy.path());
    tokio::time::timeout(app.request_timeout(), copying).await.map_err(|_| {
        Failure::new(ErrorCode::Timeout, "the state was not copied in time; the disk is slow, try again later")
    })??;
    // Opened anew: what was written is behind another handle.
    let file = tokio::fs::File::open(copy.path()).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let bytes = futures::StreamExt::map(ReaderStream::new(file), move |piece| {
        let _held = (&copy, &place);
        piece
    });
    let mut response = Body::from_stream(bytes).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}
