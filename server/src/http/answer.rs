//! Bodies in and out: JSON within a limit, and [`ApiError`] for everything that is not a success.

use axum::{
    body::{Body, to_bytes},
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    response::{IntoResponse, Response},
};
use flotilla_api::{ApiError, ErrorCode};
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of an ordinary request's body. The longest holds a user's list of services.
pub(super) const BODY_MAX: usize = 64 * 1024;

/// An error on its way out; made from every module's own error.
#[derive(Debug)]
pub(super) struct Failure(pub(super) ApiError);

pub(super) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ApiError::new(code, message))
    }
}

impl<E: Into<ApiError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(code = error.code.as_str(), "request failed: {error}");
        } else {
            tracing::debug!(code = error.code.as_str(), "request refused: {error}");
        }
        let mut response = (status, Json(&error)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, 11.6.1 and RFC 9449, 7.1.
            let challenge = HeaderValue::from_static(r#"Bearer, DPoP algs="ES256""#);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// JSON in an answer; in a request, JSON of at most [`BODY_MAX`] bytes.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => {
                ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response()
            }
            Err(error) => {
                tracing::error!(%error, "an answer can't be written as JSON");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        check_is_json(&request)?;
        read_json(request.into_body(), BODY_MAX).await.map(Self)
    }
}

/// A page of another origin can send only three content types without asking first (Fetch, 3.2.2); JSON is none of them.
pub(super) fn check_is_json(request: &Request) -> Answer<()> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).map(str::trim);
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    Err(Failure::new(ErrorCode::InvalidRequest, "the body must be JSON; send `Content-Type: application/json`"))
}

pub(super) async fn read_json<T: DeserializeOwned>(body: Body, max: usize) -> Answer<T> {
    let bytes = to_bytes(body, max).await.map_err(|error| {
        let too_large = std::error::Error::source(&error)
            .is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>);
        if too_large {
            Failure::new(ErrorCode::RequestTooLarge, format!("the body has more than {max} bytes; send less"))
        } else {
            Failure::new(ErrorCode::InvalidRequest, "the body did not arrive whole; send it again")
        }
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(ErrorCode::InvalidRequest, format!("the body is not what this route takes: {}", told(&error)))
    })
}

/// What can be said of JSON that makes no sense. Of a value that is of another kind than it should be the library repeats what it is; that
/// may be a secret.
fn told(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => format!("there should be {expected}"),
        _ => text,
    }
}

/// A part of the path, parsed.
#[derive(Debug)]
pub(super) struct Segment<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for Segment<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Failure::new(ErrorCode::InvalidName, plain(&rejection.body_text()))),
        }
    }
}

/// The query, parsed.
#[derive(Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for Asked<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Failure::new(
                ErrorCode::InvalidRequest,
                format!("the query is not what this route takes: {}", plain(&rejection.body_text())),
            )),
        }
    }
}

/// What axum puts before the reason says nothing to a person.
fn plain(text: &str) -> String {
    let reason = text.rsplit_once(": `").map(|(_, reason)| format!("`{reason}"));
    reason.unwrap_or_else(|| {
        text.trim_start_matches("Invalid URL: ").trim_start_matches("Failed to deserialize query string: ").to_owned()
    })
}
