//! Upload and download of files, in pieces: no file is ever in memory as a whole.

use std::io;

use axum::{
    body::Body,
    extract::{Multipart, Path, State, multipart::MultipartError},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Redirect, Response},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use super::{
    board::{FILE_MAX, Refused, Upload},
    range::{self, Wanted},
    routes::{App, Visitor, refusal},
};

/// Characters of a file's name; the longest that file systems take.
const FILE_NAME_MAX: usize = 255;

/// Read from the disk at once. Bytes.
const BLOCK_LEN: usize = 64 * 1024;

pub(super) async fn upload(State(app): State<App>, visitor: Visitor, form: Multipart) -> Response {
    match receive(&app, &visitor, form).await {
        Ok(()) => Redirect::to("/#files").into_response(),
        Err(refused) => refusal(&app, &visitor, &refused, ""),
    }
}

async fn receive(app: &App, visitor: &Visitor, mut form: Multipart) -> Result<(), Refused> {
    let broken = |error: MultipartError| Refused::Rule(format!("The upload was broken off: {}.", error.body_text()));
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        if field.name() != Some("file") {
            continue;
        }
        let name = clean_name(field.file_name().unwrap_or_default());
        let Some(name) = name else { return Err(Refused::Rule("Choose a file first.".into())) };
        let incoming = app.board.incoming()?;
        let mut file = tokio::fs::File::from_std(incoming.reopen()?);
        let mut size = 0;
        while let Some(block) = field.chunk().await.map_err(broken)? {
            size += block.len() as u64;
            if size > FILE_MAX {
                return Err(Refused::Rule(format!("A file has at most {} MiB.", FILE_MAX / (1024 * 1024))));
            }
            file.write_all(&block).await?;
        }
        file.flush().await?;
        app.say(&format!("{} uploaded {name} ({size} bytes)", visitor.name()));
        return app.board.add_file(visitor.name().to_owned(), name, incoming).await;
    }
    Err(Refused::Rule("Choose a file first.".into()))
}

/// The name alone, without a path and without what a terminal or header would take for something else.
fn clean_name(name: &str) -> Option<String> {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).take(FILE_NAME_MAX).collect();
    let name = name.trim();
    (!name.is_empty() && name != "." && name != "..").then(|| name.to_owned())
}

/// `GET /files/{id}/{name}`; the name is for people and for what is saved, the id alone counts.
pub(super) async fn download(
    State(app): State<App>,
    Path((id, _name)): Path<(u64, String)>,
    visitor: Visitor,
    headers: HeaderMap,
) -> Response {
    let Some(upload) = app.board.files().into_iter().find(|file| file.id == id) else {
        return refusal(&app, &visitor, &Refused::Gone, "");
    };
    match part(&app, &upload, &headers).await {
        Ok(response) => response,
        Err(error) => refusal(&app, &visitor, &Refused::Disk(error), ""),
    }
}

async fn part(app: &App, upload: &Upload, headers: &HeaderMap) -> io::Result<Response> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    // A file never changes under its id.
    let etag = format!("\"{}-{}\"", upload.id, upload.size);
    if text(header::IF_NONE_MATCH).is_some_and(|known| known.split(',').any(|known| known.trim() == etag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let applies = text(header::IF_RANGE).is_none_or(|condition| condition == etag);
    let (status, range) = match range::wanted(text(header::RANGE).filter(|_| applies), upload.size) {
        Wanted::All => (StatusCode::OK, 0..upload.size),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, *part.start()..part.end() + 1),
        Wanted::NotThere => {
            let range = format!("bytes */{}", upload.size);
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, range)]).into_response());
        }
    };
    let mut file = tokio::fs::File::open(app.board.path_of(upload.id)).await?;
    file.seek(io::SeekFrom::Start(range.start)).await?;
    let len = range.end - range.start;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(len), BLOCK_LEN));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let mut set = |name, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::CONTENT_LENGTH, len.to_string());
    set(header::ACCEPT_RANGES, "bytes".into());
    set(header::ETAG, etag);
    set(header::CACHE_CONTROL, "private, max-age=86400".into());
    // Never shown in the page: an uploaded page would run with the board's rights.
    set(header::CONTENT_TYPE, "application/octet-stream".into());
    set(header::CONTENT_DISPOSITION, format!("attachment; filename*=UTF-8''{}", percent(&upload.name)));
    if status == StatusCode::PARTIAL_CONTENT {
        set(header::CONTENT_RANGE, format!("bytes {}-{}/{}", range.start, range.end - 1, upload.size));
    }
    Ok(response)
}

/// As in a URL's path and in RFC 8187.
pub(super) fn percent(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

pub(super) async fn remove(State(app): State<App>, Path(id): Path<u64>, visitor: Visitor) -> Response {
    match app.board.remove_file(id).await {
        Ok(()) | Err(Refused::Gone) => Redirect::to("/#files").into_response(),
        Err(refused) => refusal(&app, &visitor, &refused, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_name_and_no_path() {
        for (given, name) in [
            ("a.txt", Some("a.txt")),
            ("../../etc/passwd", Some("passwd")),
            ("C:\\x\\b.txt", Some("b.txt")),
            ("line\r\nbreak", Some("linebreak")),
            ("..", None),
            ("dir/", None),
            ("", None),
        ] {
            assert_eq!(clean_name(given).as_deref(), name, "{given:?}");
        }
        assert_eq!(percent("é \"x\".txt"), "%C3%A9%20%22x%22.txt");
    }
}
