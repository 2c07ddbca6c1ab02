//! What the tunnel refuses: ports that nobody listens on, messages of signalling and frames that are none.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flotilla_api::{
    rest::ServiceState,
    signal::{SIGNAL_MAX, SIGNAL_VERSION},
};
use flotilla_tests::{browser::PAGE_LIMIT, cluster::Cluster, image, wait};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{
    super::{echo, signed_in},
    state,
};

/// The text of the page and of the frames in it.
const SHOWN: &str = r"
    const inner = Array.from(document.querySelectorAll('iframe'), (frame) => frame.contentDocument?.body?.innerText ?? '');
    return document.body.innerText + inner.join(' ')";

#[tokio::test]
async fn a_port_nobody_listens_on_is_told_in_the_browser() -> Result<()> {
    let (cluster, browser) = signed_in("closed-port", Cluster::with()).await?;
    let image = image::echo().await?;
    cluster.submit(&format!("services:\n  echo:\n    image: {image}\n    ports: [\"9\"]\n")).await?;
    cluster.becomes("echo", ServiceState::Starting).await?;
    browser.goto(&cluster.url("echo", "/")).await?;
    wait::holds("the sentence", PAGE_LIMIT, async || {
        let text: String = browser.js(SHOWN, &[]).await?;
        Ok(text.contains("port 9"))
    })
    .await?;
    browser.picture("port-closed").await?;

    cluster.cli()?.ok(&["scale", "echo=0"]).await?;
    cluster.becomes("echo", ServiceState::Stopped).await?;
    browser.reload().await?;
    wait::holds("the sentence", PAGE_LIMIT, async || {
        let text: String = browser.js(SHOWN, &[]).await?;
        Ok(text.contains("stopped") || text.contains("scaled"))
    })
    .await?;
    browser.picture("stopped").await?;
    browser.close().await
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

/// Opens a channel of its own, sends what it is given, and tells the first frame by which that is refused.
const SEND: &str = r"
    const [token, messages] = arguments;
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
    const RESET = 6, GO_AWAY = 10;
    const refused = new Promise((done, fail) => {
        channel.onmessage = (event) => {
            const frame = new Uint8Array(event.data);
            if (frame[0] !== RESET && frame[0] !== GO_AWAY) return;
            const error = JSON.parse(new TextDecoder().decode(frame.subarray(8)));
            done({ends: frame[0] === RESET ? 'stream' : 'channel', code: error.code, message: error.message});
        };
        channel.onclose = () => fail(new Error('the channel was closed without a word'));
        setTimeout(() => fail(new Error('nothing was refused')), 15000);
    });
    await new Promise((done, fail) => {
        channel.onopen = done;
        setTimeout(() => fail(new Error('the channel does not open')), 15000);
    });
    for (const message of messages) channel.send(typeof message === 'string' ? message : new Uint8Array(message));
    const told = await refused;
    peer.close();
    signal.close();
    return told";

#[tokio::test]
async fn malformed_frames_are_refused_and_hurt_nobody() -> Result<()> {
    let (cluster, browser) = signed_in("frames", Cluster::with()).await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    let before = state(&cluster).await?;
    let hello = |version: u8| [&[1, 0, 0, 0, 0, 0, 0, 0][..], format!("{{\"version\":{version}}}").as_bytes()].concat();
    let frame = |kind: u8, stream: u8, payload: &[u8]| [&[kind, 0, 0, 0, 0, 0, 0, stream][..], payload].concat();
    let after_hello = |message: Value| json!([hello(1), message]);
    for (what, messages, ends) in [
        ("another version", json!([hello(99)]), "channel"),
        ("no hello", json!([frame(2, 1, b"{}")]), "channel"),
        ("a second hello", after_hello(json!(hello(1))), "channel"),
        ("half a header", after_hello(json!([4])), "channel"),
        ("text", after_hello(json!("text")), "channel"),
        ("too large a ping", after_hello(json!(frame(9, 0, &[0; 65]))), "channel"),
        ("a cookie that is no JSON", after_hello(json!(frame(8, 0, b"a=b"))), "channel"),
        ("an unknown kind", after_hello(json!(frame(99, 1, b""))), "stream"),
        ("a request that is no JSON", after_hello(json!(frame(2, 7, b"{"))), "stream"),
        ("data of no stream", after_hello(json!(frame(4, 7, b"data"))), "stream"),
        ("credit that is no number", after_hello(json!(frame(7, 7, &[255; 5]))), "stream"),
    ] {
        let told: Value = browser.js(SEND, &[json!(cluster.token()), messages]).await.context(what)?;
        ensure!(told["code"] == "frame-invalid" && told["ends"] == ends, "{what}: {told}");
        ensure!(told["message"].as_str().is_some_and(|text| text.len() > 10), "{what}: {told}");
    }
    ensure!(state(&cluster).await? == before, "a refused frame changed something");
    // The next person's page is served as if nothing had been.
    browser.goto(&cluster.url("echo", "/")).await?;
    browser.enter_app_at("#form").await?;
    browser.close().await
}
