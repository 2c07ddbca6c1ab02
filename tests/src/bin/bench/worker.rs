//! What a service worker costs by itself: one that answers from its memory, without a tunnel, a node or a network behind it.

use anyhow::{Context, Result};
use axum::{Router, http::header::CONTENT_TYPE, response::Html, routing::get};
use flotilla_tests::browser::Browser;
use tokio::net::TcpListener;

use crate::web;

/// Answers as the tunnel's does: with a stream that has the whole body.
const WORKER: &str = "
    addEventListener('install', () => skipWaiting());
    addEventListener('activate', (event) => event.waitUntil(clients.claim()));
    addEventListener('fetch', (event) => {
        const bytes = /^\\/bytes\\/(\\d+)$/.exec(new URL(event.request.url).pathname)?.[1];
        if (!bytes) return;
        const start = (controller) => { controller.enqueue(new Uint8Array(Number(bytes))); controller.close(); };
        event.respondWith(new Response(new ReadableStream({start})));
    });";

/// Milliseconds of a request of 1 KB, p50.
pub(crate) async fn small_request(browser: &Browser) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://localhost:{}/", listener.local_addr()?.port());
    let router = Router::new()
        .route("/", get(async || Html("<!doctype html><title>Worker</title>")))
        .route("/worker.js", get(async || ([(CONTENT_TYPE, "text/javascript")], WORKER)));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    browser.goto(&address).await?;
    let registered = "const controlled = new Promise((resolve) => navigator.serviceWorker.addEventListener('controllerchange', resolve));
         await navigator.serviceWorker.register('/worker.js');
         if (!navigator.serviceWorker.controller) await controlled;
         return 0";
    browser.js::<u8>(registered, &[]).await.context("a service worker without a tunnel")?;
    let took = web::small_request(browser, 1).await?;
    serving.abort();
    Ok(took)
}
