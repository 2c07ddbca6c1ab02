//! The sample's pages and forms.

use std::{convert::Infallible, fmt::Write as _};

use axum::{
    Form, Router,
    extract::{DefaultBodyLimit, FromRequestParts, Path, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{Html, IntoResponse as _, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    assets,
    board::{Board, NAME_MAX, Refused},
    files::{self, percent},
    live::{self, Presence},
    page, say,
};

/// The name of the cookie that holds the visitor's name.
const COOKIE: &str = "visitor";

/// A year, the longest that browsers keep one. Seconds.
const COOKIE_AGE: u32 = 31_536_000;

/// A form with a note of the longest text, each character percent-encoded. Bytes.
const FORM_MAX: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) board: Board,
    pub(super) presence: Presence,
    pub(super) stop: CancellationToken,
}

impl App {
    pub(super) fn new(board: Board, stop: CancellationToken) -> Self {
        Self { board, presence: Presence::new(), stop }
    }

    pub(super) fn say(&self, text: &str) {
        // What visitors write must not look like a line of its own.
        say(&text.replace(char::is_control, " "));
    }
}

pub(super) fn router(app: App) -> Router {
    let uploads = Router::new().route("/files", post(files::upload)).layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/", get(index))
        .route("/list", get(list))
        .route("/notes", post(add))
        .route("/notes/{id}/delete", post(remove))
        .route("/name", post(rename))
        .route("/files/{id}/{name}", get(files::download))
        .route("/files/{id}/delete", post(files::remove))
        .route("/events", get(live::events))
        .route("/presence", get(live::presence))
        .route("/assets/{name}", get(assets::asset))
        .route("/favicon.ico", get(|| async { Redirect::permanent("/assets/icon.svg") }))
        .route("/healthz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(FORM_MAX))
        .merge(uploads)
        .fallback(|| async { (StatusCode::NOT_FOUND, Html(page::message("Not found", "There is no such page."))) })
        .with_state(app)
}

/// Who asks, from the cookie; nobody has to say.
#[derive(Clone, Debug)]
pub(super) struct Visitor(Option<String>);

impl Visitor {
    pub(super) fn name(&self) -> &str {
        self.0.as_deref().unwrap_or("Somebody")
    }

    /// What the visitor has said itself.
    pub(super) fn chosen(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let cookies = parts.headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let value = cookies
            .flat_map(|header| header.split(';'))
            .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        Ok(Self(value.and_then(|value| clean_name(&decoded(value)))))
    }
}

fn decoded(text: &str) -> String {
    url::form_urlencoded::parse(format!("v={}", text.replace('+', "%2B")).as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

fn clean_name(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

async fn index(State(app): State<App>, visitor: Visitor) -> Response {
    fresh(Html(page::board(&app, &visitor, None, "")))
}

/// The part of the page that changes, for the page to put in place.
async fn list(State(app): State<App>) -> Response {
    fresh(Html(page::contents(&app)))
}

fn fresh(page: Html<String>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], page).into_response()
}

#[derive(Deserialize)]
struct NoteForm {
    #[serde(default)]
    text: String,
}

async fn add(State(app): State<App>, visitor: Visitor, Form(form): Form<NoteForm>) -> Response {
    match app.board.add(visitor.name().to_owned(), form.text.clone()).await {
        Ok(()) => {
            app.say(&format!("{} wrote a note", visitor.name()));
            Redirect::to("/").into_response()
        }
        Err(refused) => refusal(&app, &visitor, &refused, &form.text),
    }
}

async fn remove(State(app): State<App>, Path(id): Path<u64>, visitor: Visitor) -> Response {
    match app.board.remove(id).await {
        // Two people took it down at once: both have what they wanted.
        Ok(()) | Err(Refused::Gone) => Redirect::to("/").into_response(),
        Err(refused) => refusal(&app, &visitor, &refused, ""),
    }
}

#[derive(Deserialize)]
struct NameForm {
    #[serde(default)]
    name: String,
}

async fn rename(Form(form): Form<NameForm>) -> Response {
    let mut cookie = format!("{COOKIE}=");
    match clean_name(&form.name) {
        Some(name) => {
            let _ = write!(cookie, "{}; Max-Age={COOKIE_AGE}", percent(&name));
        }
        None => cookie.push_str("; Max-Age=0"),
    }
    cookie.push_str("; Path=/; SameSite=Lax; HttpOnly");
    let mut response = Redirect::to("/").into_response();
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// The board with the reason above it, and with the text that was not taken: nobody types it twice.
pub(super) fn refusal(app: &App, visitor: &Visitor, refused: &Refused, text: &str) -> Response {
    let status = match refused {
        Refused::Rule(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refused::Gone => StatusCode::NOT_FOUND,
        Refused::Disk(error) if error.kind() == std::io::ErrorKind::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        Refused::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if let Refused::Disk(error) = refused {
        app.say(&format!("could not write: {error}"));
    }
    (status, fresh(Html(page::board(app, visitor, Some(&refused.to_string()), text)))).into_response()
}
