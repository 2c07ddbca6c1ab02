//! The dashboard, as somebody with a mouse, a keyboard, a telephone or a screen reader has it.

use anyhow::{Context, Result, ensure};
use flotilla_api::rest::ServiceState;
use flotilla_tests::{
    browser::{Browser, DESK, PAGE_LIMIT, PHONE},
    cluster::Cluster,
    image, wait,
};
use serde_json::{Value, json};
use thirtyfour::Key;

use super::signed_in;

/// What an accessibility checker would say first: names, labels, headings, ids, and room.
const AUDIT: &str = r"
    const problems = [];
    const visible = (element) => element.checkVisibility({opacityProperty: true, visibilityProperty: true});
    const named = (element) => {
        const by = element.getAttribute('aria-labelledby');
        const text = by ? by.split(' ').map((id) => document.getElementById(id)?.textContent ?? '').join(' ')
            : element.getAttribute('aria-label') ?? element.textContent;
        return (text ?? '').trim() !== '' || element.getAttribute('title');
    };
    if (!document.documentElement.lang) problems.push('the page names no language');
    if (!document.title.trim()) problems.push('the page has no title');
    const headings = Array.from(document.querySelectorAll('h1')).filter(visible);
    if (headings.length !== 1) problems.push(headings.length + ' first headings');
    if (!document.querySelector('main')) problems.push('there is no main landmark');
    for (const element of document.querySelectorAll('button, a[href], summary')) {
        if (visible(element) && !named(element)) problems.push('no name: ' + element.outerHTML.slice(0, 120));
    }
    for (const element of document.querySelectorAll('input, select, textarea')) {
        if (element.type !== 'hidden' && visible(element) && !element.labels?.length && !named(element)) {
            problems.push('no label: ' + element.outerHTML.slice(0, 120));
        }
    }
    for (const element of document.querySelectorAll('img:not([alt])')) problems.push('no alternative: ' + element.src);
    const ids = Array.from(document.querySelectorAll('[id]'), (element) => element.id);
    for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push('two elements have the id ' + id);
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    if (wide > 0) problems.push('the page is ' + wide + ' pixels too wide');
    return problems";

pub(super) async fn audited(browser: &Browser, page: &str) -> Result<()> {
    for (size, width) in [(PHONE, "phone"), (DESK, "desk")] {
        browser.resize(size).await?;
        for scheme in ["light", "dark"] {
            browser.prefer_colours(scheme).await?;
            browser.picture(&format!("{page}-{width}-{scheme}")).await?;
        }
        let problems: Vec<String> = browser.js(AUDIT, &[]).await?;
        ensure!(problems.is_empty(), "{page} on a {width}: {problems:#?}");
    }
    // What does not exist is asked for there, so its refusal stands in the console.
    browser.no_console_errors_but("/api/v1/services/nobody - Failed to load").await.with_context(|| page.to_owned())
}

#[tokio::test]
async fn every_page_is_good_on_a_phone_and_a_desk_and_for_a_screen_reader() -> Result<()> {
    let cluster = Cluster::start().await?;
    let browser = Browser::open("pages").await?;
    browser.goto(&cluster.dashboard("/")).await?;
    browser.sees("h1", "Sign in").await?;
    audited(&browser, "sign-in").await?;
    super::sign_in(&cluster, &browser).await?;
    browser.sees("main", "No services yet").await?;
    audited(&browser, "empty").await?;

    let image = image::echo().await?;
    cluster
        .deploy(&format!(
            "services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n  a-service-with-a-rather-long-name:\n    image: {image}\n    volumes: [\"v:/data\"]\nvolumes: {{v: {{}}}}\n"
        ))
        .await?;
    cluster.submit(&format!("services:\n  broken:\n    image: {image}\n    command: [--exit, \"3\"]\n")).await?;
    browser.sees("[data-service=echo]", "Running").await?;
    audited(&browser, "services").await?;
    let machine = cluster.client.machines().await?.remove(0).name;
    for (path, heading) in [
        ("/deploy", "Deploy"),
        ("/services/echo", "echo"),
        ("/services/broken", "broken"),
        ("/secrets", "Secrets and configs"),
        ("/volumes", "Volumes"),
        ("/images", "Images"),
        ("/cluster", "Cluster"),
        (&*format!("/machines/{machine}"), machine.as_str()),
        ("/access", "Access"),
        ("/activity", "Activity"),
        ("/services/nobody", "nobody"),
        ("/no-such-page", "Not found"),
    ] {
        browser.goto(&cluster.dashboard(path)).await?;
        browser.sees("#page-title", heading).await?;
        // Nothing turns for ever: what is still loading has arrived, or says why it has not.
        wait::holds(format!("{path} to be drawn"), PAGE_LIMIT, async || {
            Ok(browser.count("[aria-busy=true], .skeleton").await? == 0)
        })
        .await?;
        audited(&browser, &path.trim_matches('/').replace('/', "-")).await?;
    }
    browser.close().await
}

#[tokio::test]
async fn a_compose_file_is_corrected_at_its_line_and_deployed() -> Result<()> {
    let (cluster, browser) = signed_in("deploy", Cluster::with()).await?;
    let image = image::echo().await?;
    browser.goto(&cluster.dashboard("/deploy")).await?;
    let good = format!("name: shop\nservices:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n");
    write_compose(&browser, &format!("{good}    privileged: true\n")).await?;
    browser.sees("#editor-error", "Line 6").await?;
    browser.sees("#editor-error", "privileged").await?;
    browser.picture("error-at-its-line").await?;
    // The refusals that were asked for stand in the console.
    browser.console().await?;
    ensure!(cluster.service("echo").await?.is_none(), "a check changes nothing");
    write_compose(&browser, &good).await?;
    browser.sees(".check", "in order").await?;
    press(&browser, "Deploy").await?;
    cluster.runs("echo").await?;
    browser.sees("main", "Running").await?;
    browser.picture("deployed").await?;
    browser.no_console_errors().await?;
    browser.close().await
}

/// As pasting does: the whole text at once.
pub(crate) async fn write_compose(browser: &Browser, text: &str) -> Result<()> {
    browser.find("#compose").await?;
    browser
        .js(
            "const area = document.getElementById('compose');
             area.focus(); area.select();
             document.execCommand('insertText', false, arguments[0])",
            &[json!(text)],
        )
        .await
}

#[tokio::test]
async fn a_service_is_watched_restarted_rolled_back_stopped_and_removed() -> Result<()> {
    let (cluster, browser) = signed_in("service", Cluster::with()).await?;
    let image = image::echo().await?;
    let compose = |n: u8| {
        format!("services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n    environment: {{N: \"{n}\"}}\n")
    };
    cluster.deploy(&compose(1)).await?;
    cluster.deploy(&compose(2)).await?;
    browser.goto(&cluster.dashboard("/")).await?;
    browser.click("[data-service=echo] .row-link").await?;
    browser.sees("#page-title", "echo").await?;
    browser.sees(".log-lines", "echo listens on").await?;
    browser.sees("#instances", "Running").await?;

    let before = cluster.containers().await?;
    press(&browser, "Restart").await?;
    wait::holds("another container", PAGE_LIMIT, async || {
        let now = cluster.containers().await?;
        Ok(now.len() == 1 && now != before)
    })
    .await?;
    browser.sees(".log-lines", "echo stops").await?;

    press(&browser, "Roll back").await?;
    browser.sees("dialog[open]", "revision 1").await?;
    browser.picture("roll-back").await?;
    press_in(&browser, "dialog[open]", "Roll back").await?;
    wait::holds("the third revision", PAGE_LIMIT, async || {
        Ok(cluster
            .service("echo")
            .await?
            .is_some_and(|view| view.revision.0 == 3 && view.state == ServiceState::Running))
    })
    .await?;
    browser.sees("#revisions .current", "3").await?;

    press(&browser, "Stop").await?;
    cluster.becomes("echo", ServiceState::Stopped).await?;
    browser.sees("main", "Stopped").await?;
    press(&browser, "Start").await?;
    cluster.runs("echo").await?;

    press(&browser, "Remove").await?;
    browser.find("dialog[open]").await?;
    browser.picture("remove").await?;
    press_in(&browser, "dialog[open]", "Cancel").await?;
    wait::holds("the dialog to close", PAGE_LIMIT, async || Ok(browser.count("dialog[open]").await? == 0)).await?;
    ensure!(cluster.service("echo").await?.is_some(), "cancelling removes nothing");
    press(&browser, "Remove").await?;
    browser.find("dialog[open]").await?;
    press_in(&browser, "dialog[open]", "Remove").await?;
    wait::holds("the service to be gone", PAGE_LIMIT, async || Ok(cluster.service("echo").await?.is_none())).await?;
    browser.sees("main", "No services yet").await?;
    browser.no_console_errors().await?;
    browser.close().await
}

#[tokio::test]
async fn the_keyboard_reaches_everything_and_focus_is_seen() -> Result<()> {
    let (cluster, browser) = signed_in("keyboard", Cluster::with()).await?;
    let image = image::echo().await?;
    cluster.deploy(&format!("services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n")).await?;
    browser.sees("[data-service=echo]", "Running").await?;
    let mut reached = Vec::new();
    for _ in 0..30 {
        browser.driver().active_element().await?.send_keys(Key::Tab).await?;
        let here: Value = browser
            .js(
                "const element = document.activeElement;
                 const style = getComputedStyle(element);
                 return {text: element.textContent.trim().slice(0, 40),
                         seen: style.outlineStyle !== 'none' || style.boxShadow !== 'none', tag: element.tagName}",
                &[],
            )
            .await?;
        if here["tag"] == "BODY" {
            break;
        }
        ensure!(here["seen"] == true, "the focus can't be seen on {here}");
        reached.push(here["text"].as_str().unwrap_or_default().to_owned());
    }
    let all = reached.join(" | ");
    ensure!(reached.first().is_some_and(|first| first.contains("Skip")), "the first stop skips the navigation: {all}");
    for wanted in ["Services", "Deploy", "Cluster", "Access", "Activity", "echo", "Open"] {
        ensure!(reached.iter().any(|text| text.contains(wanted)), "`{wanted}` is not reached: {all}");
    }
    browser.close().await
}

#[tokio::test]
async fn a_node_that_is_gone_is_told_and_the_page_comes_back_by_itself() -> Result<()> {
    let (mut cluster, browser) = signed_in("gone", Cluster::with()).await?;
    let image = image::echo().await?;
    cluster.deploy(&format!("services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n")).await?;
    browser.sees("[data-service=echo]", "Running").await?;
    cluster.kill().await?;
    browser.sees(".link-state", "Not connected").await?;
    browser.sees("main", "echo").await?;
    browser.picture("stale").await?;
    cluster.up().await?;
    browser.sees(".link-state", "Live").await?;
    browser.close().await
}

#[tokio::test]
async fn a_token_signs_in_and_what_is_none_says_so() -> Result<()> {
    let cluster = Cluster::start().await?;
    let browser = Browser::open("token").await?;
    browser.goto(&cluster.dashboard("/")).await?;
    let forged = format!("{}x", cluster.token());
    for (pasted, sentence) in [
        ("not a token", "This is neither an invitation link nor a token"),
        (forged.as_str(), "token"),
        (cluster.token(), ""),
    ] {
        let field = browser.find("#credential").await?;
        field.clear().await?;
        field.send_keys(pasted).await?;
        press(&browser, "Sign in").await?;
        if sentence.is_empty() {
            browser.sees("#page-title", "Services").await?;
        } else {
            browser.sees("#credential-error", sentence).await?;
            ensure!(browser.count("#page-title").await? == 0, "nobody is signed in by `{pasted}`");
        }
    }
    // The key can be used, and taken nowhere else.
    let exportable: Vec<bool> = browser
        .js(
            "const keys = [];
             for (const {name} of await indexedDB.databases()) {
                 const database = await new Promise((resolve) => { indexedDB.open(name).onsuccess = ({target}) => resolve(target.result) });
                 for (const store of database.objectStoreNames) {
                     const all = database.transaction(store).objectStore(store).getAll();
                     await new Promise((resolve) => { all.onsuccess = resolve });
                     const visit = (value) => {
                         if (value instanceof CryptoKey && value.type === 'private') keys.push(value.extractable);
                         else if (value && typeof value === 'object') Object.values(value).forEach(visit);
                     };
                     visit(all.result);
                 }
             }
             return keys",
            &[],
        )
        .await?;
    ensure!(exportable == [false], "the browser's keys, and whether they can be exported: {exportable:?}");
    browser.close().await
}

#[tokio::test]
async fn a_page_whose_code_does_not_come_says_so_and_comes_when_it_is_tried_again() -> Result<()> {
    let (cluster, browser) = signed_in("parts", Cluster::with()).await?;
    browser.sees("main", "No services yet").await?;
    let parts = "return performance.getEntriesByType('resource').map((entry) => entry.name).filter((name) => /(split|chunk)_.*\\.wasm$/.test(name)).length";
    let loaded: usize = browser.js(parts, &[]).await?;
    ensure!(loaded == 0, "{loaded} parts of other pages are loaded with the list of services");

    browser.devtools("Network.enable", json!({})).await?;
    browser.devtools("Network.setBlockedURLs", json!({"urls": ["*_machines.wasm"]})).await?;
    press_in(&browser, "nav", "Cluster").await?;
    browser.sees("[role=alert]", "This page could not be loaded").await?;
    browser.picture("page-not-loaded").await?;
    browser.devtools("Network.setBlockedURLs", json!({"urls": []})).await?;
    press(&browser, "Try again").await?;
    browser.sees("#page-title", "Cluster").await?;
    let loaded: usize = browser.js(parts, &[]).await?;
    ensure!(loaded > 0, "now they are");
    drop(cluster);
    browser.close().await
}

/// Clicks a button or link by what it says.
pub(crate) async fn press(browser: &Browser, label: &str) -> Result<()> {
    press_in(browser, "main", label).await
}

pub(crate) async fn press_in(browser: &Browser, within: &str, label: &str) -> Result<()> {
    wait::holds(format!("the button `{label}`"), PAGE_LIMIT, async || {
        for element in browser.driver().find_all(thirtyfour::By::Css(format!("{within} :is(button, a)"))).await? {
            let text = element.text().await?;
            if text.lines().next().is_some_and(|line| line.trim() == label) && element.is_enabled().await? {
                element.click().await?;
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
}
