//! Bad input: one clear sentence with a stable code, and nothing is changed.

use std::{net::TcpListener as StdListener, time::Duration};

use anyhow::{Context, Result, ensure};
use flotilla_api::{
    Grant, Scope,
    rest::{COMPOSE_MAX, CreateToken, EngineView, ServiceState},
    signal::{SIGNAL_MAX, SIGNAL_VERSION},
};
use flotilla_tests::{
    browser::{Browser, PAGE_LIMIT},
    cluster::Cluster,
    engine::EngineSocket,
    image,
    process::{Process, run},
    registry::Registry,
    wait,
};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;

use super::{echo, signed_in};

/// The state log's length and the engine's containers, which no refusal may change.
async fn state(cluster: &Cluster) -> Result<(u64, Vec<String>)> {
    Ok((cluster.client.cluster().await?.applied_index, cluster.containers().await?))
}

#[tokio::test]
async fn compose_files_that_are_not_right_are_refused_at_their_line() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    let before = state(&cluster).await?;
    let service = |rest: &str| format!("services:\n  web:\n    image: x\n{rest}");
    let deep = format!("x-deep: {}1{}\n", "[".repeat(2000), "]".repeat(2000));
    let mut bomb = "x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("x-{level}: &a{level} [{aliases}]\n"));
    }
    let cases = [
        ("broken YAML", "services:\n  web: [\n".to_owned(), "compose-invalid", None),
        ("not a map", "- web\n".to_owned(), "compose-invalid", Some(1)),
        ("no services", "name: x\n".to_owned(), "compose-invalid", None),
        ("no image", "services:\n  web: {ports: [\"80\"]}\n".to_owned(), "compose-invalid", Some(2)),
        ("an unknown key", service("    imagee: y\n"), "compose-unsupported", Some(4)),
        ("a key that is not acted upon", service("    privileged: true\n"), "compose-unsupported", Some(4)),
        ("a directory of the host", service("    volumes:\n      - /etc:/etc\n"), "compose-unsupported", Some(5)),
        ("a port that is none", service("    ports: [\"99999\"]\n"), "compose-invalid", Some(4)),
        ("a name that is no host name", "services:\n  Web_1:\n    image: x\n".to_owned(), "invalid-name", Some(2)),
        ("a name that is taken", "services:\n  app:\n    image: x\n".to_owned(), "invalid-name", Some(2)),
        ("too deep", deep, "compose-invalid", Some(1)),
        ("a YAML bomb", format!("{bomb}services: {{web: {{image: x}}}}\n"), "compose-too-large", None),
        ("too large", format!("# {}\n", "x".repeat(COMPOSE_MAX)), "compose-too-large", None),
        ("a variable that is not set", service("    hostname: ${NOBODY_SET_THIS}\n"), "compose-invalid", Some(4)),
    ];
    let path = cluster.scratch("bad.yaml");
    for (what, text, code, line) in cases {
        std::fs::write(&path, text)?;
        let arguments =
            ["deploy".to_owned(), "-p".to_owned(), "tests".to_owned(), "-f".to_owned(), path.display().to_string()];
        let refused = cluster.cli()?.fails(&arguments).await.context(what)?;
        ensure!(refused.code == code, "{what}: {refused:?}");
        ensure!(line.is_none() || refused.line == line, "{what}: the line: {refused:?}");
        ensure!(refused.message.len() < 400, "{what}: one sentence: {refused:?}");
    }
    ensure!(state(&cluster).await? == before, "a refused file changed something");
    Ok(())
}

#[tokio::test]
async fn images_that_can_not_be_had_are_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let registry = Registry::start().await?;
    let dead = StdListener::bind("127.0.0.1:0")?.local_addr()?;
    let before = state(&cluster).await?;
    let path = cluster.scratch("image.yaml");
    for (image, code) in [
        (format!("{}/none:1", registry.address), "image-not-found"),
        (format!("{dead}/none:1"), "image-pull-failed"),
        ("UPPER/case".to_owned(), "image-invalid"),
    ] {
        std::fs::write(&path, echo(&image))?;
        let refused = cluster.cli()?.fails(&["deploy", "-p", "tests", "-f", &path.display().to_string()]).await?;
        ensure!(refused.code == code && refused.message.contains(&image), "{refused:?}");
    }
    let junk = cluster.scratch("junk.tar");
    std::fs::write(&junk, [7; 10_000])?;
    let refused = cluster.cli()?.fails(&["image", "push", &junk.display().to_string()]).await?;
    ensure!(refused.code == "image-invalid", "{refused:?}");
    ensure!(state(&cluster).await? == before);
    Ok(())
}

#[tokio::test]
async fn tokens_that_are_not_good_are_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let issue = async |name: &str, scope: Scope, ttl_seconds: u64| {
        let wanted = CreateToken {
            name: name.to_owned(),
            grant: Grant { scope, services: [].into() },
            ttl_seconds,
            storage_only: false,
        };
        cluster.client.create_token(&wanted).await
    };
    let user = issue("user", Scope::User, 600).await?;
    let operator = issue("operator", Scope::Operator, 600).await?;
    let revoked = issue("revoked", Scope::Admin, 600).await?;
    cluster.client.revoke_token(&revoked.id).await?;
    let short = issue("short", Scope::Admin, 1).await?;
    let forged = {
        let (head, signature) = operator.token.rsplit_once('.').context("a JWT has three parts")?;
        let turned: String = signature.chars().rev().collect();
        format!("{head}.{turned}")
    };
    let before = state(&cluster).await?;
    let stop = async |token: &str| cluster.cli()?.with_token(token)?.fails(&["scale", "echo=0"]).await;
    wait::until("the short token to end", PAGE_LIMIT, async || {
        let ended = cluster.cli()?.with_token(&short.token)?.run(&["ps", "--json"]).await?;
        Ok((ended.code != Some(0)).then_some(()))
    })
    .await?;
    for (what, token, code) in [
        ("expired", short.token.as_str(), "token-expired"),
        ("revoked", &revoked.token, "token-revoked"),
        ("forged", &forged, "token-invalid"),
        ("no token at all", "hello", "token-invalid"),
        ("too narrow", &user.token, "scope-insufficient"),
    ] {
        let refused = stop(token).await.context(what)?;
        ensure!(refused.code == code, "{what}: {refused:?}");
    }
    let refused = cluster.cli()?.with_token(&operator.token)?.fails(&["token", "list"]).await?;
    ensure!(refused.code == "scope-insufficient", "{refused:?}");
    let missing = reqwest::get(format!("{}/api/v1/services", cluster.api())).await?;
    ensure!(missing.status() == 401);
    ensure!(missing.json::<Value>().await?["code"] == "token-missing");

    // An invitation is good once.
    let link = cluster.invitation().await?;
    let first = Browser::open("invited").await?;
    first.goto(&link).await?;
    first.sees("#page-title", "Services").await?;
    first.close().await?;
    let second = Browser::open("late").await?;
    second.goto(&link).await?;
    second.sees("body", "used").await?;
    second.picture("invitation-used").await?;
    second.close().await?;
    ensure!(state(&cluster).await?.1 == before.1);
    Ok(())
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_told_in_the_browser() -> Result<()> {
    let (cluster, browser) = signed_in("closed-port", Cluster::with()).await?;
    let image = image::echo().await?;
    cluster.deploy(&format!("services:\n  echo:\n    image: {image}\n    ports: [\"9\"]\n")).await?;
    browser.goto(&cluster.url("echo", "/")).await?;
    wait::holds("the sentence", PAGE_LIMIT, async || {
        let text: String = browser
            .js(
                "const inner = Array.from(document.querySelectorAll('iframe'), (frame) => frame.contentDocument?.body?.innerText ?? '');
                 return document.body.innerText + inner.join(' ')",
                &[],
            )
            .await?;
        Ok(text.contains("port 9"))
    })
    .await?;
    browser.picture("port-closed").await?;

    cluster.cli()?.ok(&["scale", "echo=0"]).await?;
    cluster.becomes("echo", ServiceState::Stopped).await?;
    browser.reload().await?;
    wait::holds("the sentence", PAGE_LIMIT, async || {
        let text: String = browser
            .js(
                "const inner = Array.from(document.querySelectorAll('iframe'), (frame) => frame.contentDocument?.body?.innerText ?? '');
                 return document.body.innerText + inner.join(' ')",
                &[],
            )
            .await?;
        Ok(text.contains("stopped") || text.contains("scaled"))
    })
    .await?;
    browser.picture("stopped").await?;
    browser.close().await
}

#[tokio::test]
async fn an_engine_that_goes_away_is_told_and_comes_back() -> Result<()> {
    let mut socket = EngineSocket::open()?;
    let cluster = Cluster::with().env("FLOTILLA_DOCKER_HOST", &socket.url()).start().await?;
    let image = image::echo().await?;
    cluster.deploy(&echo(&image)).await?;
    socket.cut()?;
    cluster.becomes("echo", ServiceState::Unknown).await?;
    let machines = cluster.client.machines().await?;
    ensure!(matches!(machines[0].engine, Some(EngineView::Unavailable { .. })), "{machines:#?}");
    let path = cluster.scratch("compose.yaml");
    std::fs::write(&path, format!("{}    environment: {{A: b}}\n", echo(&image)))?;
    let before = cluster.client.cluster().await?.applied_index;
    let refused = cluster.cli()?.fails(&["deploy", "-p", "tests", "-f", &path.display().to_string()]).await?;
    ensure!(refused.code == "engine-unavailable", "{refused:?}");
    ensure!(cluster.client.cluster().await?.applied_index == before);
    socket.mend()?;
    let view = cluster.runs("echo").await?;
    ensure!(view.revision.0 == 1 && view.instances[0].restarts == 0, "{view:#?}");
    Ok(())
}

#[tokio::test]
async fn a_node_starts_without_an_engine_and_says_so() -> Result<()> {
    let cluster = Cluster::with().env("FLOTILLA_DOCKER_HOST", "unix:///nowhere/docker.sock").start().await?;
    let machines = cluster.client.machines().await?;
    let Some(EngineView::Unavailable { message, .. }) = &machines[0].engine else { anyhow::bail!("{machines:#?}") };
    ensure!(message.contains("/nowhere/docker.sock"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_second_daemon_a_taken_port_and_a_wrong_setting_are_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let refused = async |mut command: Command| -> Result<String> {
        let log = cluster.scratch("refused.log");
        let _ = std::fs::remove_file(&log);
        let mut process = Process::spawn(&mut command, &log)?;
        let status = process.wait(PAGE_LIMIT).await?;
        ensure!(
            !status.success() && status.code() != Some(101),
            "it was to be refused: {status}\n{}",
            process.output()
        );
        let output = process.output();
        let sentence = output.lines().find_map(|line| line.strip_prefix("error: ")).with_context(|| output.clone())?;
        Ok(sentence.to_owned())
    };
    let mut second = cluster.up_command();
    second.args(["--log-level", "error"]).env("FLOTILLA_LISTEN", "127.0.0.1:0");
    let sentence = refused(second).await?;
    ensure!(sentence.contains(&cluster.data().display().to_string()), "{sentence}");

    let other = cluster.scratch("other");
    let mut init = cluster.cli()?.command();
    run(init.args(["init", "other", "--json", "--data-dir"]).arg(&other), PAGE_LIMIT).await?;
    let mut taken = Command::new(flotilla_tests::built("flotilla"));
    taken.arg("up").arg("--data-dir").arg(&other).args(["--listen", &cluster.address().to_string()]);
    let sentence = refused(taken).await?;
    ensure!(sentence.contains(&cluster.address().port().to_string()), "{sentence}");

    let mut wrong = Command::new(flotilla_tests::built("flotilla"));
    wrong.arg("up").arg("--data-dir").arg(&other).env("FLOTILLA_LOG_LEVEL", "loud");
    let sentence = refused(wrong).await?;
    ensure!(sentence.contains("loud"), "{sentence}");

    let nothing = cluster.scratch("nothing");
    let mut empty = Command::new(flotilla_tests::built("flotilla"));
    empty.arg("up").arg("--data-dir").arg(&nothing);
    let sentence = refused(empty).await?;
    ensure!(sentence.contains("flotilla init"), "{sentence}");
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_nothing() -> Result<()> {
    let disk = SmallDisk::mount(24).await?;
    let cluster = Cluster::with().data(disk.path()).start().await?;
    let image = image::echo().await?;
    cluster.deploy(&echo(&image)).await?;
    let filler = disk.path().join("filler");
    let full = std::fs::File::create(&filler).and_then(|mut file| std::io::copy(&mut std::io::repeat(7), &mut file));
    ensure!(full.is_err(), "the disk is full");
    let path = cluster.scratch("compose.yaml");
    let refused = wait::until("a refusal", PAGE_LIMIT, async || {
        // What the database has set aside may hold a few more entries.
        let n = cluster.client.cluster().await?.applied_index;
        std::fs::write(&path, format!("{}    environment: {{N: \"{n}-{}\"}}\n", echo(&image), "x".repeat(20_000)))?;
        let ended = cluster.cli()?.run(&["deploy", "-p", "tests", "-f", &path.display().to_string(), "--json"]).await?;
        Ok((ended.code != Some(0)).then_some(ended))
    })
    .await?;
    ensure!(refused.err.contains("disk-full"), "{refused:?}");
    let revision = cluster.runs("echo").await?.revision;
    std::fs::remove_file(&filler)?;
    cluster.cli()?.ok(&["deploy", "-p", "tests", "-f", &path.display().to_string(), "--wait"]).await?;
    ensure!(cluster.runs("echo").await?.revision > revision);
    Ok(())
}

/// A file system in memory, of so many megabytes; only root may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    async fn mount(megabytes: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut mount = as_root("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=1777"), "tmpfs"]).arg(directory.path());
        run(&mut mount, PAGE_LIMIT).await?;
        Ok(Self(directory))
    }

    fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("-l").arg(self.0.path()).as_std_mut().status();
    }
}

fn as_root(program: &str) -> Command {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}

#[tokio::test]
async fn malformed_signalling_is_refused_and_hurts_nobody() -> Result<()> {
    let cluster = Cluster::start().await?;
    let before = state(&cluster).await?;
    let url = format!("ws://{}/signal", cluster.address());
    let connect = |version: u32, token: &str| {
        json!({"type": "connect", "version": version, "token": token, "offer": "v=0\r\n"}).to_string()
    };
    for (what, message, code) in [
        ("no JSON", "hello".to_owned(), "signal-invalid"),
        ("no message", json!({"type": "dance"}).to_string(), "signal-invalid"),
        ("too large", "x".repeat(SIGNAL_MAX + 1), "signal-invalid"),
        ("of another version", connect(SIGNAL_VERSION + 1, cluster.token()), "signal-version"),
        ("with a forged token", connect(SIGNAL_VERSION, "a.b.c"), "token-invalid"),
        ("an offer that is none", connect(SIGNAL_VERSION, cluster.token()), "signal-invalid"),
    ] {
        let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.context(what)?;
        socket.send(Message::text(message)).await?;
        let answer = tokio::time::timeout(Duration::from_secs(10), async {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message {
                    return serde_json::from_str::<Value>(&text).ok();
                }
            }
            None
        })
        .await?;
        // What is too large may be refused by closing the socket.
        if what == "too large" && answer.is_none() {
            continue;
        }
        let answer = answer.with_context(|| format!("{what}: no answer"))?;
        ensure!(answer["error"]["code"] == code, "{what}: {answer}");
        ensure!(answer["error"]["message"].as_str().is_some_and(|text| text.len() > 10), "{what}: {answer}");
    }
    ensure!(state(&cluster).await? == before);
    Ok(())
}

#[tokio::test]
async fn malformed_frames_are_refused_and_hurt_nobody() -> Result<()> {
    let (cluster, browser) = signed_in("frames", Cluster::with()).await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    let answered: Vec<u8> = browser
        .js(
            r"const [token] = arguments;
            const signal = new WebSocket('ws://' + location.host + '/signal');
            await new Promise((done, fail) => { signal.onopen = done; signal.onerror = () => fail(new Error('no signalling')) });
            const peer = new RTCPeerConnection();
            const channel = peer.createDataChannel('http/interactive/echo');
            channel.binaryType = 'arraybuffer';
            await peer.setLocalDescription(await peer.createOffer());
            await new Promise((done) => {
                if (peer.iceGatheringState === 'complete') done();
                peer.onicegatheringstatechange = () => peer.iceGatheringState === 'complete' && done();
            });
            signal.onmessage = async (event) => {
                const message = JSON.parse(event.data);
                if (message.type === 'answer') await peer.setRemoteDescription({type: 'answer', sdp: message.answer});
            };
            signal.send(JSON.stringify({type: 'connect', version: 1, token, offer: peer.localDescription.sdp}));
            const kinds = [];
            await new Promise((done, fail) => {
                channel.onopen = done;
                setTimeout(() => fail(new Error('the channel does not open')), 15000);
            });
            channel.onmessage = (event) => kinds.push(new Uint8Array(event.data)[0]);
            const hello = (payload) => Uint8Array.from([1, 0, 0, 0, 0, 0, 0, 0, ...new TextEncoder().encode(payload)]);
            const closed = new Promise((done) => { channel.onclose = () => done() });
            channel.send(hello(JSON.stringify({version: 1})));
            channel.send(new Uint8Array([]));
            channel.send(new Uint8Array([4]));
            channel.send(new Uint8Array([99, 0, 0, 0, 0, 0, 0, 1]));
            channel.send(new Uint8Array([2, 0, 0, 0, 0, 0, 0, 7, 123]));
            channel.send('text');
            channel.send(new Uint8Array([7, 0, 0, 0, 0, 0, 0, 7, 255, 255, 255, 255, 255]));
            await Promise.race([closed, new Promise((done) => {
                const look = () => kinds.some((kind) => kind === 6 || kind === 10) ? done() : setTimeout(look, 50);
                look();
            }), new Promise((_, fail) => setTimeout(() => fail(new Error('nothing was refused: ' + kinds)), 15000))]);
            peer.close();
            return kinds",
            &[json!(cluster.token())],
        )
        .await?;
    ensure!(!answered.is_empty(), "the node said hello");
    // The next person's page is served as if nothing had been.
    browser.goto(&cluster.url("echo", "/")).await?;
    browser.enter_app_at("#form").await?;
    browser.close().await
}
