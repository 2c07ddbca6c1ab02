//! What web applications do besides loading pages.

use std::time::Duration;

use anyhow::{Result, ensure};
use flotilla_tests::{
    body,
    browser::{Browser, PAGE_LIMIT},
    cluster::Cluster,
    image, wait,
};
use serde_json::{Value, json};

use super::{echo, signed_in};

/// A browser inside the echo service's page.
async fn at_echo(name: &str) -> Result<(Cluster, Browser)> {
    let (cluster, browser) = signed_in(name, Cluster::with()).await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    browser.goto(&cluster.url("echo", "/")).await?;
    browser.enter_app_at("#form").await?;
    Ok((cluster, browser))
}

#[tokio::test]
async fn forms_redirects_and_requests_arrive_as_the_page_made_them() -> Result<()> {
    let (cluster, browser) = at_echo("requests").await?;

    let sent = browser
        .js::<Value>(
            "const answer = await fetch('/request?q=1&r=%C3%A4', {
                 method: 'PUT', headers: {'X-Mine': 'yes', 'Content-Type': 'text/plain'}, body: 'hällo'});
             return await answer.json()",
            &[],
        )
        .await?;
    ensure!(sent["method"] == "PUT" && sent["path"] == "/request?q=1&r=%C3%A4" && sent["body"] == "hällo", "{sent}");
    let headers = &sent["headers"];
    ensure!(headers["x-mine"] == "yes" && headers["content-type"] == "text/plain", "{headers}");
    let origin = cluster.url("echo", "");
    ensure!(headers["origin"] == origin.as_str(), "a changing request names its origin: {headers}");
    ensure!(headers["host"] == origin.trim_start_matches("http://"), "the service hears the browser's host: {headers}");
    ensure!(headers["referer"] == format!("{origin}/").as_str(), "{headers}");
    ensure!(headers["accept-language"].is_string() && headers["user-agent"].is_string(), "{headers}");

    let redirected = browser
        .js::<Value>(
            "const answer = await fetch('/redirect/302?to=/status/200');
             return {url: answer.url, redirected: answer.redirected, text: await answer.text()}",
            &[],
        )
        .await?;
    ensure!(redirected["text"] == "status 200", "{redirected}");

    let statuses = browser
        .js::<Vec<u16>>(
            "const seen = [];
             for (const code of [200, 201, 204, 400, 404, 418, 500, 503]) seen.push((await fetch('/status/' + code)).status);
             return seen",
            &[],
        )
        .await?;
    ensure!(statuses == [200, 201, 204, 400, 404, 418, 500, 503], "{statuses:?}");
    ensure!(
        browser.js::<String>("return await (await fetch('/gzip')).text()", &[]).await? == "hello",
        "gzip is decoded"
    );
    let made = browser
        .js::<Vec<String>>("return [await (await fetch('/etag')).text(), await (await fetch('/etag')).text()]", &[])
        .await?;
    ensure!(made[0] == made[1], "an unchanged answer is taken from the cache: {made:?}");

    browser.type_into("#name", "Ada & Grace").await?;
    browser.click("#send").await?;
    browser.enter_app_at("#greeting").await?;
    browser.sees("#greeting", "Good day, Ada & Grace.").await?;
    let landed = cluster.url("echo", "/greeting?name=Ada+%26+Grace");
    wait::holds("the address after the redirect", PAGE_LIMIT, async || Ok(browser.url().await? == landed)).await?;

    browser.goto(&cluster.url("echo", "/")).await?;
    browser.enter_app_at("#denied").await?;
    browser.click("#denied").await?;
    browser.enter_app_at("#out").await?;
    browser.sees("#out", "ran").await?;
    browser.close().await
}

#[tokio::test]
async fn events_stream_and_end_when_the_page_closes_them() -> Result<()> {
    let (_cluster, browser) = at_echo("events").await?;
    let seen = browser
        .js::<Vec<String>>(
            "const source = new EventSource('/events');
             window.source = source;
             return await new Promise((done, fail) => {
                 const seen = [];
                 source.onmessage = (event) => { seen.push(event.data); if (seen.length === 5) done(seen) };
                 source.onerror = () => fail(new Error('the stream broke'));
             })",
            &[],
        )
        .await?;
    ensure!(seen == ["1", "2", "3", "4", "5"], "{seen:?}");
    ensure!(open(&browser).await?["events"] == 1, "the service serves one stream");
    browser.js::<()>("window.source.close()", &[]).await?;
    wait::holds("the service's stream to end", PAGE_LIMIT, async || Ok(open(&browser).await?["events"] == 0)).await?;
    browser.close().await
}

#[tokio::test]
async fn an_aborted_request_ends_at_the_service() -> Result<()> {
    let (_cluster, browser) = at_echo("abort").await?;
    let got = browser
        .js::<usize>(
            "window.abort = new AbortController();
             const answer = await fetch('/drip', {signal: window.abort.signal});
             const reader = answer.body.getReader();
             let got = 0;
             while (got < 200000) got += (await reader.read()).value.length;
             return got",
            &[],
        )
        .await?;
    ensure!(got >= 200_000);
    // Nobody reads on, so that credit stops the service; and nothing else stands still.
    ensure!(browser.js::<u16>("return (await fetch('/status/200')).status", &[]).await? == 200);
    ensure!(open(&browser).await?["drips"] == 1);
    browser.js::<()>("window.abort.abort()", &[]).await?;
    wait::holds("the service's answer to end", PAGE_LIMIT, async || Ok(open(&browser).await?["drips"] == 0)).await?;

    // Also before there is an answer: the service is told although it has not said anything.
    let name = browser
        .js::<String>(
            "const abort = new AbortController();
             setTimeout(() => abort.abort(), 300);
             try { await fetch('/events', {signal: abort.signal}).then((answer) => answer.text()); return 'answered' }
             catch (error) { return error.name }",
            &[],
        )
        .await?;
    ensure!(name == "AbortError", "{name}");
    wait::holds("the service's stream to end", PAGE_LIMIT, async || Ok(open(&browser).await?["events"] == 0)).await?;
    browser.close().await
}

#[tokio::test]
async fn cookies_are_kept_and_secret_ones_never_reach_the_page() -> Result<()> {
    let (cluster, browser) = at_echo("cookies").await?;
    browser.js::<()>("await fetch('/cookies/set')", &[]).await?;
    let shown = browser.js::<String>("return document.cookie", &[]).await?;
    ensure!(shown == "visible=yes", "the page sees `{shown}`");
    let sent = browser.js::<String>("return await (await fetch('/cookies')).text()", &[]).await?;
    ensure!(sent.contains("visible=yes") && sent.contains("hidden=secret") && !sent.contains("elsewhere"), "`{sent}`");

    browser.js::<()>("document.cookie = 'mine=1; path=/'", &[]).await?;
    ensure!(browser.js::<String>("return document.cookie", &[]).await?.contains("mine=1"));
    let sent = browser.js::<String>("return await (await fetch('/cookies')).text()", &[]).await?;
    ensure!(sent.contains("mine=1"), "`{sent}`");

    browser.goto(&cluster.url("echo", "/cookies")).await?;
    browser.enter_app().await?;
    let sent = browser.sees("body", "mine=1").await?;
    ensure!(sent.contains("hidden=secret"), "a navigation carries them too: `{sent}`");
    browser.close().await
}

#[tokio::test]
async fn web_sockets_carry_text_and_bytes_and_close_with_their_codes() -> Result<()> {
    let (_cluster, browser) = at_echo("sockets").await?;
    let seen = browser
        .js::<Value>(
            "const socket = new WebSocket('/ws', ['echo.v9', 'echo.v2']);
             socket.binaryType = 'arraybuffer';
             const next = () => new Promise((done, fail) => {
                 socket.onmessage = (event) => done(event.data);
                 socket.onclose = (event) => done({code: event.code, reason: event.reason, clean: event.wasClean});
             });
             await new Promise((done, fail) => { socket.onopen = done; socket.onerror = () => fail(new Error('no socket')) });
             const seen = {protocol: socket.protocol, url: socket.url};
             socket.send('hällo'); seen.text = await next();
             socket.send(new Uint8Array([0, 1, 254, 255])); seen.bytes = Array.from(new Uint8Array(await next()));
             const large = new Uint8Array(3000000); for (let i = 0; i < large.length; i++) large[i] = i * 31;
             socket.send(large);
             const back = new Uint8Array(await next());
             seen.large = back.length === large.length && back.every((byte, i) => byte === large[i]);
             socket.send('big 300000'); seen.big = (await next()).length;
             socket.send('close 4321 enough'); seen.closed = await next();
             return seen",
            &[],
        )
        .await?;
    ensure!(
        seen["protocol"] == "echo.v2" && seen["text"] == "hällo" && seen["bytes"] == json!([0, 1, 254, 255]),
        "{seen}"
    );
    ensure!(seen["large"] == true && seen["big"] == 300_000, "{seen}");
    ensure!(seen["closed"] == json!({"code": 4321, "reason": "enough", "clean": true}), "{seen}");

    let opened = browser
        .js::<Value>(
            "const socket = new WebSocket('/ws');
             await new Promise((done, fail) => { socket.onopen = done; socket.onerror = () => fail(new Error('no socket')) });
             window.socket = socket; return socket.readyState",
            &[],
        )
        .await?;
    ensure!(opened == 1 && open(&browser).await?["sockets"] == 1);
    browser.js::<()>("window.socket.close(1000)", &[]).await?;
    wait::holds("the service's socket to end", PAGE_LIMIT, async || Ok(open(&browser).await?["sockets"] == 0)).await?;

    let refused = browser
        .js::<Value>(
            "const socket = new WebSocket('/status/404');
             return await new Promise((done) => { socket.onclose = (event) => done(event.code) })",
            &[],
        )
        .await?;
    ensure!(refused == 1006, "what is no socket fails as in any browser: {refused}");
    browser.close().await
}

#[tokio::test]
async fn ranges_are_exact() -> Result<()> {
    let (_cluster, browser) = at_echo("ranges").await?;
    for (range, from, len) in
        [("bytes=0-0", 0, 1), ("bytes=1000000-1999999", 1_000_000, 1_000_000), ("bytes=-17", 4_999_983, 17)]
    {
        let got = browser
            .js::<Value>(
                "const answer = await fetch('/bytes/5000000', {headers: {Range: arguments[0]}});
                 const bytes = await answer.arrayBuffer();
                 const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
                 return {status: answer.status, range: answer.headers.get('content-range'), len: bytes.byteLength,
                         sha256: Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('')}",
                &[json!(range)],
            )
            .await?;
        ensure!(got["status"] == 206 && got["len"] == len, "{range}: {got}");
        ensure!(got["range"] == format!("bytes {from}-{}/5000000", from + len - 1).as_str(), "{range}: {got}");
        ensure!(got["sha256"] == body::sha256(body::noise_chunks(from, len)).as_str(), "{range}: {got}");
    }
    let beyond =
        browser.js::<u16>("return (await fetch('/bytes/10', {headers: {Range: 'bytes=99-'}})).status", &[]).await?;
    ensure!(beyond == 416);
    browser.close().await
}

#[tokio::test]
async fn many_requests_at_once_all_come_back() -> Result<()> {
    let (_cluster, browser) = at_echo("parallel").await?;
    let whole = browser
        .js::<bool>(
            "const sizes = Array.from({length: 100}, (_, i) => i * 997);
             const got = await Promise.all(sizes.map(async (size) => (await (await fetch('/bytes/' + size)).arrayBuffer()).byteLength));
             return got.every((size, i) => size === sizes[i])",
            &[],
        )
        .await?;
    ensure!(whole);
    browser.close().await
}

#[tokio::test]
async fn a_service_worker_that_was_stopped_finds_its_way_back() -> Result<()> {
    let (_cluster, browser) = at_echo("worker").await?;
    browser.leave_frames().await?;
    browser.devtools("ServiceWorker.enable", json!({})).await?;
    browser.devtools("ServiceWorker.stopAllWorkers", json!({})).await?;
    browser.enter_app_at("#form").await?;
    ensure!(browser.js::<u16>("return (await fetch('/status/200')).status", &[]).await? == 200);
    browser.close().await
}

/// What the service has under way.
async fn open(browser: &Browser) -> Result<Value> {
    tokio::time::timeout(Duration::from_secs(10), browser.js("return await (await fetch('/open')).json()", &[])).await?
}
