//! A volume's past on the dashboard: seen, compared, restored, taken away as a file.

use std::{collections::BTreeMap, io::Read as _};

use anyhow::{Context, Result, ensure};
use flotilla_api::{ServiceName, VolumeName, rest::MomentView};
use flotilla_tests::{
    browser::{Browser, PAGE_LIMIT},
    cluster::{Cluster, RUN_LIMIT},
    image, wait,
};
use serde_json::json;
use thirtyfour::{By, Key};

use super::{
    dashboard::{audited, press_in},
    signed_in,
};

/// A name that a careless page would take for markup, or be led astray by.
const NAME: &str = "<b>second\u{202e}txt";

#[tokio::test]
async fn a_volume_goes_back_to_what_it_was_after_a_look_at_what_changes() -> Result<()> {
    let (cluster, browser) = signed_in("volumes", Cluster::with()).await?;
    let image = image::echo().await?;
    cluster
        .deploy(&format!(
            "services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n    volumes: [\"board:/data\"]\nvolumes: {{board: {{}}}}\n"
        ))
        .await?;
    browser.goto(&cluster.url("echo", "/")).await?;
    write(&browser, "first", "one").await?;
    let one = kept(&cluster, 1, 3).await?;
    write(&browser, "first", "one and more").await?;
    write(&browser, NAME, "two").await?;
    let two = kept(&cluster, 2, 15).await?;
    browser.console().await?;

    browser.goto(&cluster.dashboard("/volumes/echo/board")).await?;
    browser.sees("#history", &one).await?;
    audited(&browser, "volume").await?;

    // What changed since the one before, with the keyboard: Escape closes it, and the focus is where it was.
    let changes = button(&browser, &two, "Changes").await?;
    changes.send_keys(Key::Enter).await?;
    browser.sees("dialog[open] .changes", "<b>second\\u{202e}txt").await?;
    audited(&browser, "changes").await?;
    browser.driver().active_element().await?.send_keys(Key::Escape).await?;
    closed(&browser).await?;
    let focused: String = browser.js("return document.activeElement.textContent", &[]).await?;
    ensure!(focused.contains("Changes"), "the focus is on `{focused}`");

    button(&browser, &one, "Restore").await?.click().await?;
    browser.sees("dialog[open]", "all of its volumes").await?;
    browser.sees("dialog[open] .difference", "1 removed").await?;
    browser.sees("dialog[open] .difference", "1 changed").await?;
    browser.sees("dialog[open] .changes", "12 B → 3 B").await?;
    audited(&browser, "restore").await?;
    press_in(&browser, "dialog[open]", "Cancel").await?;
    closed(&browser).await?;
    ensure!(read(&cluster)?.len() == 2, "a look changes nothing");

    button(&browser, &one, "Restore").await?.click().await?;
    press_in(&browser, "dialog[open]", "Restore").await?;
    closed(&browser).await?;
    browser.sees(".toasts", "begins anew").await?;
    wait::holds("the volume to be as it was", RUN_LIMIT, async || {
        // A file may go between the list and the look at it.
        Ok(read(&cluster).is_ok_and(|files| files == BTreeMap::from([("first".to_owned(), "one".to_owned())])))
    })
    .await?;
    cluster.runs("echo").await?;

    // What it had before is kept, and comes as a file. The browser's own dialog for that is nothing that a test could press.
    browser.sees("#history", &two).await?;
    browser.js::<()>("window.showSaveFilePicker = undefined", &[]).await?;
    button(&browser, &two, "Download").await?.click().await?;
    let archive = browser.downloaded(&format!("echo-board-{two}.tar"), PAGE_LIMIT).await?;
    browser.sees(".toasts", "is saved").await?;
    let mut archived = BTreeMap::new();
    for entry in tar::Archive::new(std::fs::File::open(archive)?).entries()? {
        let mut entry = entry?;
        let (name, mut content) = (entry.path()?.display().to_string(), String::new());
        entry.read_to_string(&mut content)?;
        archived.insert(name, content);
    }
    ensure!(archived.get("first").is_some_and(|content| content == "one and more"), "{archived:?}");
    ensure!(archived.get(NAME).is_some_and(|content| content == "two"), "{archived:?}");

    let machine = cluster.client.machines().await?.remove(0).name;
    browser.goto(&cluster.dashboard(&format!("/machines/{machine}"))).await?;
    browser.sees("#storage", "History").await?;
    browser.no_console_errors().await?;
    browser.close().await
}

/// As the service's own page does.
async fn write(browser: &Browser, name: &str, content: &str) -> Result<()> {
    browser.enter_app().await?;
    let put =
        "const answer = await fetch('/files/' + encodeURIComponent(arguments[0]), {method: 'PUT', body: arguments[1]});
         return answer.status";
    let status: u16 = browser.js(put, &[json!(name), json!(content)]).await?;
    ensure!(status == 200, "{name} was not written: {status}");
    browser.leave_frames().await
}

/// Waits for a committed generation with so many files and bytes, and returns its name.
async fn kept(cluster: &Cluster, files: u64, bytes: u64) -> Result<String> {
    let (service, volume): (ServiceName, VolumeName) = ("echo".parse()?, "board".parse()?);
    let found = wait::until(format!("a generation with {files} files"), RUN_LIMIT, async || {
        let history = cluster.client.volume(&service, &volume).await?.history;
        let is_it = |moment: &&MomentView| moment.committed && (moment.files, moment.bytes) == (files, bytes);
        Ok(history.iter().rev().find(is_it).map(|moment| moment.generation.generation.clone()))
    });
    found.await
}

/// What the volume has, by name.
fn read(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(cluster.data().join("volumes/echo/board"))? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(entry.path())?);
    }
    Ok(files)
}

async fn button(browser: &Browser, generation: &str, label: &str) -> Result<thirtyfour::WebElement> {
    let css = format!("[data-generation='{generation}'] button");
    browser.find(&css).await?;
    for button in browser.driver().find_all(By::Css(css.as_str())).await? {
        if button.text().await?.trim().starts_with(label) {
            button.scroll_into_view().await?;
            return Ok(button);
        }
    }
    None.with_context(|| format!("generation {generation} has no button `{label}`"))
}

async fn closed(browser: &Browser) -> Result<()> {
    wait::holds("the dialog to close", PAGE_LIMIT, async || Ok(browser.count("dialog[open]").await? == 0)).await
}
