//! A service without any data, which says who answers: as many of it as one likes, and any of them will do.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse as _, Response},
    routing::get,
};
use serde::Serialize;

use super::{assets, page};

/// One instance, as the node that runs it calls it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Who {
    machine: String,
    instance: String,
}

impl Who {
    pub(super) fn am_i() -> Self {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            machine: text("FLOTILLA_MACHINE").unwrap_or_else(|| "a machine".into()),
            instance: text("FLOTILLA_INSTANCE").or_else(|| text("HOSTNAME")).unwrap_or_else(|| "an instance".into()),
        }
    }
}

pub(super) fn router(who: Who) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/who", get(say_who))
        .route("/assets/{name}", get(assets::asset))
        .route("/healthz", get(|| async { "ok" }))
        .fallback(|| async { (StatusCode::NOT_FOUND, Html(page::message("Not found", "There is no such page."))) })
        .with_state(Arc::new(who))
}

async fn index(State(who): State<Arc<Who>>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Html(page_of(&who))).into_response()
}

async fn say_who(State(who): State<Arc<Who>>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(&*who)).into_response()
}

fn page_of(who: &Who) -> String {
    let (machine, instance) = (page::escape(&who.machine), page::escape(&who.instance));
    let mut body = String::new();
    let _ = write!(
        body,
        r#"<body>
<header class="top">
  <h1><img src="/assets/icon.svg" alt="" width="32" height="32"> Hello</h1>
  <p class="presence"><span class="dot" id="link" data-state="off"></span><span id="now" role="status">Answered once</span></p>
</header>
<main>
  <section class="greeting">
    <p>This answer is from</p>
    <p class="machine" id="machine">{machine}</p>
    <p class="hint" id="instance">{instance}</p>
  </section>
  <section aria-labelledby="tally-title">
    <h2 id="tally-title">Who has answered</h2>
    <ul class="tally" id="tally"></ul>
    <p class="hint" id="summary">Reload the page: any instance may answer.</p>
  </section>
</main>
<footer><p>Several instances run, each on another machine. Stop a machine, and the others answer.</p></footer>
<script src="/assets/hello.js" defer></script>
</body>"#
    );
    page::frame("Hello", &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_and_no_markup() {
        let page = page_of(&Who { machine: "<b>".into(), instance: "hello-1".into() });
        assert!(page.contains("&lt;b&gt;") && page.contains("hello-1") && !page.contains("<b>"), "{page}");
    }
}
