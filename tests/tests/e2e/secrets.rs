//! Secrets and configs, from a terminal and a browser; and that they are nowhere else.

use std::{fs::File, io::Write as _, os::unix::process::ExitStatusExt as _, path::Path};

use anyhow::{Context, Result, ensure};
use flotilla_api::spec::ValueKind;
use flotilla_tests::{browser::PAGE_LIMIT, cli::Cli, cluster::Cluster, image, process, wait};
use rustix::{
    fs::{Mode, OFlags},
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use super::signed_in;

/// What Ctrl-C and the key at the end of a line send.
const INTERRUPT: &[u8] = b"\x03";
const RETURN: &[u8] = b"\r";

/// No part of anything else.
const FIRST: &str = "hunter2-5f1c7a";
const SECOND: &str = "swordfish-90ab3e";
const IN_VARIABLE: &str = "xyzzy-77d2c4";

#[tokio::test]
async fn a_secret_goes_from_the_terminal_into_memory_and_nowhere_else() -> Result<()> {
    // All that a node ever says, of what its libraries send, too.
    let level = "trace,bollard=trace,hyper=info,h2=info,rtc=info,webrtc=info,openraft=debug";
    let cluster = Cluster::with().env("FLOTILLA_LOG_LEVEL", level).start().await?;
    let cli = cluster.cli()?;
    let image = image::echo().await?;

    let missing = cli.run_with(&["deploy", "-f", "-", "-p", "shop"], &compose(&image)).await?;
    let sentence = missing.sentence()?;
    ensure!(missing.code == Some(5) && sentence.contains("`echo` uses the secret `db`"), "{sentence}");
    ensure!(sentence.contains("`flotilla secret set db`"), "it says what to do: {sentence}");

    let set = cli.run_with(&["secret", "set", "db"], FIRST).await?;
    ensure!(set.code == Some(0) && set.out == "db has version 1 now.\n", "{set:?}");
    let file = cluster.scratch("variable.txt");
    std::fs::write(&file, format!("{IN_VARIABLE}\n"))?;
    let path = file.display().to_string();
    cli.ok(&["secret", "set", "api-key", "--file", &path]).await?;
    std::fs::remove_file(&file)?;
    let motd = cli.run_with(&["config", "set", "motd", "--json"], "ahoy\n").await?;
    ensure!(serde_json::from_str::<Value>(&motd.out)?["version"] == 1, "{motd:?}");
    let empty = cli.run_with(&["secret", "set", "nothing"], "").await?;
    ensure!(empty.code == Some(2) && empty.sentence()?.contains("empty"), "{empty:?}");

    let deployed = cli.run_with(&["deploy", "-f", "-", "-p", "shop", "--wait"], &compose(&image)).await?;
    ensure!(deployed.code == Some(0), "{deployed:?}");
    let container = only(&cluster).await?;
    ensure!(read(&container, "/run/secrets/db").await? == FIRST);
    ensure!(read(&container, "/etc/motd").await? == "ahoy\n");
    let inspected = process::run(Command::new("docker").args(["inspect", &container]), PAGE_LIMIT).await?;
    ensure!(!inspected.contains(FIRST) && inspected.contains("/run/secrets/db"), "the engine is told a path alone");
    ensure!(
        inspected.contains(&format!("API_KEY={IN_VARIABLE}\"")),
        "but what a variable holds, as docs/SECURITY.md says"
    );

    // A new one is a new instance.
    let set = cli.run_with(&["secret", "set", "db"], SECOND).await?;
    ensure!(set.out.contains("Updated with it: echo (revision 2)"), "{set:?}");
    wait::holds("an instance with the new secret", PAGE_LIMIT, async || {
        let containers = cluster.containers().await?;
        Ok(containers.len() == 1
            && containers[0] != container
            && read(&containers[0], "/run/secrets/db").await? == SECOND)
    })
    .await?;

    let secrets: Vec<Value> = cli.json(&["secret", "ls"]).await?;
    let db = secrets.iter().find(|it| it["name"] == "db").context("db")?;
    ensure!(db["version"] == 2 && db["used_by"] == json!([{ "service": "echo", "version": 2 }]), "{db}");
    let table = cli.ok(&["secrets"]).await?;
    ensure!(table.contains("api-key") && table.contains("echo"), "{table}");
    let versions = cli.ok(&["secret", "inspect", "db"]).await?;
    ensure!(versions.contains("16 B") && versions.lines().count() == 3, "{versions}");
    ensure!(cli.ok(&["config", "cat", "motd"]).await? == "ahoy\n");
    let used = cli.fails(&["secret", "rm", "db", "--yes"]).await?;
    ensure!(used.code == "value-in-use" && used.message.contains("`echo` uses it"), "{used:?}");
    ensure!(cli.fails(&["secret", "inspect", "ghost"]).await?.code == "value-not-found");
    let rekeyed: Value = cli.json(&["secret", "rekey"]).await?;
    ensure!(rekeyed["resealed"] == 4 && rekeyed["unreadable"] == 0, "{rekeyed}");

    // Everything that anybody is told, and everything that a node keeps.
    let backup = cluster.scratch("backup.db").display().to_string();
    cli.ok(&["state", "backup", &backup]).await?;
    for arguments in [
        &["ps", "--json"][..],
        &["inspect", "echo", "--json"],
        &["inspect", "echo"],
        &["events", "--json"],
        &["secret", "ls", "--json"],
    ] {
        let told = cli.ok(arguments).await?;
        for secret in [FIRST, SECOND, IN_VARIABLE] {
            ensure!(!told.contains(secret), "flotilla {arguments:?} tells it:\n{told}");
        }
    }
    let log = std::fs::metadata(cluster.log())?.len();
    ensure!(log > 100_000, "the log has all: {log} bytes");
    let mut looked_at = 0;
    nowhere(cluster.data().parent().context("a directory")?, &mut looked_at)?;
    ensure!(looked_at > 5, "only {looked_at} files");

    cli.ok(&["rm", "echo", "--yes"]).await?;
    wait::holds("the container to be gone", PAGE_LIMIT, async || Ok(cluster.containers().await?.is_empty())).await?;
    cli.ok(&["secret", "rm", "db", "api-key", "--yes"]).await?;
    let left: Vec<Value> = cli.json(&["secret", "ls"]).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn a_compose_file_brings_secrets_and_configs_of_its_own() -> Result<()> {
    let cluster = Cluster::start().await?;
    let cli = cluster.cli()?;
    let image = image::echo().await?;
    let directory = cluster.scratch("project");
    std::fs::create_dir(&directory)?;
    let file = directory.join("compose.yaml").display().to_string();
    let text = format!(
        "name: shop\nservices:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n    secrets: [db, token]\n    \
         configs: [{{source: motd, target: /etc/motd}}]\nsecrets:\n  db: {{file: db.txt}}\n  token: {{environment: SHOP_TOKEN}}\n\
         configs:\n  motd: {{content: \"ahoy\"}}\n"
    );
    std::fs::write(&file, text)?;
    let missing = cli.fails(&["deploy", "-f", &file]).await?;
    ensure!(missing.message.contains("db.txt"), "{missing:?}");
    std::fs::write(directory.join("db.txt"), FIRST)?;
    let unset = cli.fails(&["deploy", "-f", &file]).await?;
    ensure!(unset.message.contains("`SHOP_TOKEN`, which is not set"), "{unset:?}");
    std::fs::write(directory.join(".env"), format!("SHOP_TOKEN={IN_VARIABLE}\n"))?;
    cli.ok(&["deploy", "-f", &file, "--dry-run"]).await?;
    ensure!(cli.json::<Vec<Value>>(&["secret", "ls"]).await?.is_empty(), "a dry run keeps nothing");
    cli.ok(&["deploy", "-f", &file, "--wait"]).await?;
    let container = only(&cluster).await?;
    for (path, content) in [("/run/secrets/db", FIRST), ("/run/secrets/token", IN_VARIABLE), ("/etc/motd", "ahoy")] {
        ensure!(read(&container, path).await? == content, "{path}");
    }
    let names: Vec<Value> = cli.json(&["secret", "ls"]).await?;
    ensure!(names.iter().map(|it| &it["name"]).collect::<Vec<_>>() == ["shop_db", "shop_token"], "{names:?}");

    // The same file changes nothing, another one what uses it.
    cli.ok(&["deploy", "-f", &file, "--wait"]).await?;
    ensure!(cluster.containers().await? == [container.clone()], "nothing has changed");
    std::fs::write(directory.join("db.txt"), SECOND)?;
    cli.ok(&["deploy", "-f", &file, "--wait"]).await?;
    let newer = only(&cluster).await?;
    ensure!(newer != container && read(&newer, "/run/secrets/db").await? == SECOND);
    ensure!(cluster.runs("echo").await?.revision.0 == 2);
    Ok(())
}

#[tokio::test]
async fn secrets_are_set_and_removed_in_the_dashboard_and_shown_nowhere() -> Result<()> {
    let (cluster, browser) = signed_in("secrets", Cluster::with()).await?;
    browser.goto(&cluster.dashboard("/secrets")).await?;
    browser.sees("main", "There are no secrets").await?;
    browser.picture("none").await?;
    super::dashboard::press(&browser, "New secret").await?;
    browser.find("dialog[open]").await?;
    fill(&browser, "db-password", FIRST).await?;
    browser.picture("new").await?;
    super::dashboard::press_in(&browser, "dialog[open]", "Set").await?;
    browser.sees("[data-value='secret/db-password']", "db-password").await?;
    super::dashboard::press(&browser, "New config").await?;
    browser.find("dialog[open]").await?;
    fill(&browser, "motd", "ahoy").await?;
    super::dashboard::press_in(&browser, "dialog[open]", "Set").await?;
    browser.sees("[data-value='config/motd']", "motd").await?;

    let image = image::echo().await?;
    let text = format!(
        "services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n    secrets: [db-password]\nsecrets: {{db-password: }}\n"
    );
    cluster.deploy(&text).await?;
    browser.sees("[data-value='secret/db-password'] .cell-users", "echo").await?;
    browser.picture("used").await?;
    super::dashboard::press_in(&browser, "[data-value='config/motd']", "Show").await?;
    browser.sees("dialog[open] pre", "ahoy").await?;
    browser.js::<Value>("document.querySelector('dialog[open]').close(); return null", &[]).await?;
    let page: String = browser.js("return document.documentElement.outerHTML", &[]).await?;
    ensure!(!page.contains(FIRST), "the page has the secret");

    super::dashboard::press_in(&browser, "[data-value='secret/db-password']", "Remove").await?;
    super::dashboard::press_in(&browser, "dialog[open]", "Remove").await?;
    browser.sees("dialog[open]", "deploy without it first").await?;
    browser.js::<Value>("document.querySelector('dialog[open]').close(); return null", &[]).await?;
    super::dashboard::press_in(&browser, "[data-value='config/motd']", "Remove").await?;
    super::dashboard::press_in(&browser, "dialog[open]", "Remove").await?;
    wait::holds("the config to be gone", PAGE_LIMIT, async || {
        Ok(browser.count("[data-value='config/motd']").await? == 0)
    })
    .await?;
    let set = cluster.client.values(ValueKind::Secret).await?;
    ensure!(set.len() == 1 && set[0].versions[0].bytes == FIRST.len() as u64, "{set:?}");
    // The refusal that was asked for stands in the console.
    browser.console().await?;
    browser.close().await
}

/// A name and a value, as pasting them does.
async fn fill(browser: &flotilla_tests::browser::Browser, name: &str, value: &str) -> Result<()> {
    const FILL: &str = "
        const fill = (field, text) => { field.focus(); document.execCommand('insertText', false, text) };
        fill(document.querySelector('dialog[open] input'), arguments[0]);
        fill(document.querySelector('dialog[open] textarea'), arguments[1]);
        return null";
    browser.js::<Value>(FILL, &[json!(name), json!(value)]).await.map(drop)
}

fn compose(image: &str) -> String {
    format!(
        "services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n    secrets: [db]\n    \
         configs: [{{source: motd, target: /etc/motd}}]\n    x-flotilla: {{environment: {{API_KEY: {{secret: api-key}}}}}}\n\
         secrets: {{db: , api-key: {{external: true}}}}\nconfigs: {{motd: }}\n"
    )
}

async fn only(cluster: &Cluster) -> Result<String> {
    let mut containers = cluster.containers().await?;
    ensure!(containers.len() == 1, "{containers:?}");
    containers.pop().context("one")
}

/// A file in the container, out of the archive that the engine makes of it.
async fn read(container: &str, path: &str) -> Result<String> {
    let mut copy = Command::new("docker");
    copy.args(["cp", &format!("{container}:{path}"), "-"]);
    let output = copy.output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A header of 512 bytes with the size in octal, then the file.
    let size = std::str::from_utf8(output.stdout.get(124..135).context("a header")?)?;
    let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8)?;
    Ok(String::from_utf8(output.stdout.get(512..512 + size).context("a file")?.to_vec())?)
}

/// No file below the directory has one of the secrets in it.
fn nowhere(directory: &Path, looked_at: &mut usize) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            nowhere(&entry.path(), looked_at)?;
        } else if entry.file_type()?.is_file() {
            let bytes = std::fs::read(entry.path())?;
            *looked_at += 1;
            for secret in [FIRST, SECOND, IN_VARIABLE] {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                ensure!(!found, "{} has {secret}", entry.path().display());
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_terminal_hides_what_is_typed_and_shows_it_again_whether_or_not_one_gives_up() -> Result<()> {
    let mut keyboard = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?);
    grantpt(&keyboard)?;
    unlockpt(&keyboard)?;
    let name = ptsname(&keyboard, Vec::new())?;
    let terminal = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    let shows = || anyhow::Ok(tcgetattr(&terminal)?.local_modes.contains(LocalModes::ECHO));

    // A node that is not there: the value would be sent.
    let cli = Cli::new(Some("http://127.0.0.1:1"), Some("token"))?;
    for (typed, ended, gave_up) in [(RETURN, Some(4), None), (INTERRUPT, None, Some(Signal::INT.as_raw()))] {
        let mut asking = cli.command();
        let mut asking = asking.args(["secret", "set", "db"]).stdin(terminal.try_clone()?).spawn()?;
        wait::holds("the terminal to hide what is typed", PAGE_LIMIT, async || Ok(!shows()?)).await?;
        keyboard.write_all(&[FIRST.as_bytes(), typed].concat())?;
        let status = timeout(PAGE_LIMIT, asking.wait()).await.context("it waits for more")??;
        ensure!((status.code(), status.signal()) == (ended, gave_up), "after {typed:?}: {status}");
        ensure!(shows()?, "the terminal shows again what is typed");
    }
    Ok(())
}
