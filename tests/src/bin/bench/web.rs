//! What a person meets: pages and requests through the tunnel, timed by the page itself.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use flotilla_tests::{
    browser::{Browser, PAGE_LIMIT},
    cluster::Cluster,
    wait,
};
use serde_json::{Value, json};

use crate::{REQUESTS, echoing, p50};

/// Milliseconds from sending a compose file, whose image is in the engine, to the page in the browser.
pub(crate) async fn deployed_to_first_answer(cluster: &Cluster, browser: &Browser, image: &str) -> Result<f64> {
    let start = Instant::now();
    cluster.submit(&echoing(image)).await?;
    cluster.runs("echo").await?;
    let running = start.elapsed().as_secs_f64() * 1e3;
    Ok(running + open(cluster, browser).await?)
}

/// Milliseconds from the beginning of a navigation to the end of the page's loading. Cold: with nothing of the cluster in the
/// browser but who is signed in. Warm: with the service worker installed and everything in the cache.
pub(crate) async fn page_ready(cluster: &Cluster, browser: &Browser, cold: bool) -> Result<f64> {
    browser.goto("about:blank").await?;
    if cold {
        browser
            .devtools(
                "Storage.clearDataForOrigin",
                json!({"origin": cluster.url("echo", ""), "storageTypes": "service_workers,cache_storage,local_storage"}),
            )
            .await?;
        browser.devtools("Network.clearBrowserCache", json!({})).await?;
    }
    open(cluster, browser).await
}

async fn open(cluster: &Cluster, browser: &Browser) -> Result<f64> {
    let start = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3;
    browser.goto(&cluster.url("echo", "/")).await?;
    browser.enter_app_at("#form").await?;
    let end: f64 = wait::until("the end of loading", PAGE_LIMIT, async || {
        let end: Value = browser
            .js(
                "const [entry] = performance.getEntriesByType('navigation');
                 return entry && entry.loadEventEnd > 0 ? performance.timeOrigin + entry.loadEventEnd : null",
                &[],
            )
            .await?;
        Ok(end.as_f64())
    })
    .await?;
    Ok(end - start)
}

/// Kilobytes of the files of the dashboard's page that the browser shows, as they were sent.
pub(crate) async fn dashboard_download(browser: &Browser) -> Result<f64> {
    browser
        .js(
            "const entries = ['navigation', 'resource'].flatMap((type) => performance.getEntriesByType(type));
             const files = entries.filter(({name}) => !new URL(name).pathname.startsWith('/api/'));
             return files.reduce((sum, {encodedBodySize}) => sum + encodedBodySize, 0) / 1e3",
            &[],
        )
        .await
}

/// Milliseconds of a request of 1 KB, p50, with so many under way at once.
pub(crate) async fn small_request(browser: &Browser, at_once: usize) -> Result<f64> {
    browser
        .js(
            "const [requests, atOnce] = arguments;
             const times = [];
             const series = async () => {
                 for (let i = 0; i < requests / atOnce; i++) {
                     const start = performance.now();
                     await (await fetch('/bytes/1024', {cache: 'no-store'})).arrayBuffer();
                     times.push(performance.now() - start);
                 }
             };
             await Promise.all(Array.from({length: atOnce}, series));
             return times",
            &[json!(REQUESTS), json!(at_once)],
        )
        .await
        .map(p50)
}

pub(crate) async fn small_request_during_download(browser: &Browser, bytes: u64) -> Result<f64> {
    browser
        .js(
            "const abort = new AbortController();
             const answer = await fetch('/bytes/' + arguments[0] * 10, {cache: 'no-store', signal: abort.signal});
             const reader = answer.body.getReader();
             let on = true;
             const drain = (async () => { try { while (on && !(await reader.read()).done); } catch {} })();
             const times = [];
             for (let i = 0; i < 100; i++) {
                 const start = performance.now();
                 await (await fetch('/bytes/1024', {cache: 'no-store'})).arrayBuffer();
                 times.push(performance.now() - start);
             }
             on = false; abort.abort(); await drain;
             return times",
            &[json!(bytes)],
        )
        .await
        .map(p50)
}

/// MB/s from the service to the page.
pub(crate) async fn download(browser: &Browser, bytes: u64) -> Result<f64> {
    browser
        .js(
            "const start = performance.now();
             const answer = await fetch('/bytes/' + arguments[0], {cache: 'no-store'});
             const reader = answer.body.getReader();
             let got = 0;
             for (;;) {
                 const {done, value} = await reader.read();
                 if (done) break;
                 got += value.length;
             }
             if (got !== arguments[0]) throw new Error('got ' + got);
             return got / 1e3 / (performance.now() - start)",
            &[json!(bytes)],
        )
        .await
}

/// MB/s from the page to the service.
pub(crate) async fn upload(browser: &Browser, bytes: u64) -> Result<f64> {
    browser
        .js(
            "const pieces = [];
             for (let left = arguments[0]; left > 0; left -= 1000000) pieces.push(new Uint8Array(Math.min(left, 1000000)));
             const body = new Blob(pieces);
             const start = performance.now();
             const answer = await (await fetch('/sink', {method: 'POST', body})).json();
             const time = performance.now() - start;
             if (answer.bytes !== arguments[0]) throw new Error('arrived: ' + answer.bytes);
             return arguments[0] / 1e3 / time",
            &[json!(bytes)],
        )
        .await
}
