//! The yardstick: a data channel of the same browser to a peer that does nothing but echo, send and count.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use bytes::{Buf, BytesMut};
use flotilla::{
    mesh::{self, Addresses, Certificate, Link, MeshChannel},
    tunnel::Channel,
};
use flotilla_tests::browser::Browser;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{MESSAGE, REQUESTS, p50};

const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// What the page asks the peer for: the first byte of a message.
const ECHO: u8 = 0;
/// With the number of bytes, eight of them, big endian.
const SEND: u8 = 1;
/// So many bytes will come, and are answered with one message.
const COUNT: u8 = 2;

#[derive(Debug)]
pub(crate) struct Peer {
    link: Arc<Link>,
    served: JoinHandle<()>,
}

impl Peer {
    /// Connects the page that the browser shows to this process; the channel is `window.raw` there.
    ///
    /// # Errors
    /// Where the connection does not come up.
    pub(crate) async fn connect(browser: &Browser) -> Result<Self> {
        let offer: String = browser
            .js(
                "window.peer = new RTCPeerConnection();
                 window.raw = window.peer.createDataChannel('raw');
                 window.raw.binaryType = 'arraybuffer';
                 await window.peer.setLocalDescription(await window.peer.createOffer());
                 await new Promise((done) => {
                     const look = () => window.peer.iceGatheringState === 'complete' && done();
                     window.peer.onicegatheringstatechange = look;
                     look();
                 });
                 return window.peer.localDescription.sdp",
                &[],
            )
            .await?;
        let certificate = Certificate::generate()?;
        let addresses = Addresses::Interfaces { loopback: true };
        let (link, answer) = Box::pin(mesh::answer_browser(&addresses, &certificate, offer)).await?;
        let link = Arc::new(link);
        let accepted = Arc::clone(&link);
        let served = tokio::spawn(async move {
            if let Some(channel) = accepted.accept().await {
                serve(channel).await;
            }
        });
        browser
            .js::<()>(
                "await window.peer.setRemoteDescription({type: 'answer', sdp: arguments[0]});
                 await new Promise((done) => { if (window.raw.readyState === 'open') done(); else window.raw.onopen = done })",
                &[json!(answer)],
            )
            .await?;
        link.connected(CONNECT_LIMIT).await.context("the raw connection")?;
        Ok(Self { link, served })
    }

    pub(crate) async fn close(self) {
        self.link.close().await;
        self.served.abort();
    }
}

async fn serve(channel: MeshChannel) {
    while let Some(mut message) = channel.recv().await {
        if message.len() < 9 {
            continue;
        }
        let kind = message.get_u8();
        let mut left = message.get_u64() as usize;
        let sent = match kind {
            ECHO => channel.send(BytesMut::from(message.as_ref())).await,
            SEND => {
                let sending = async {
                    while left > 0 {
                        let len = left.min(MESSAGE);
                        left -= len;
                        channel.send(BytesMut::zeroed(len)).await?;
                    }
                    Ok(())
                };
                // Read meanwhile, as the tunnel does: a channel's reader hears of what was acknowledged.
                tokio::select! {
                    sent = sending => sent,
                    None = channel.recv() => return,
                }
            }
            COUNT => {
                while left > 0 {
                    let Some(message) = channel.recv().await else { return };
                    left = left.saturating_sub(message.len());
                }
                channel.send(BytesMut::zeroed(1)).await
            }
            _ => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Milliseconds of a message of 1 KB there and back, p50.
pub(crate) async fn round_trip(browser: &Browser) -> Result<f64> {
    browser
        .js(
            "const message = new Uint8Array(1033);
             const times = [];
             for (let i = 0; i < arguments[0]; i++) {
                 const start = performance.now();
                 window.raw.send(message);
                 await new Promise((done) => { window.raw.onmessage = done });
                 times.push(performance.now() - start);
             }
             return times",
            &[json!(REQUESTS)],
        )
        .await
        .map(p50)
}

/// MB/s from the peer to the page.
pub(crate) async fn download(browser: &Browser, bytes: u64) -> Result<f64> {
    browser
        .js(
            "const order = new DataView(new ArrayBuffer(9));
             order.setUint8(0, 1); order.setBigUint64(1, BigInt(arguments[0]));
             const start = performance.now();
             window.raw.send(order.buffer);
             let got = 0;
             await new Promise((done) => {
                 window.raw.onmessage = (event) => { got += event.data.byteLength; if (got >= arguments[0]) done() };
             });
             return got / 1e3 / (performance.now() - start)",
            &[json!(bytes)],
        )
        .await
}

/// MB/s from the page to the peer.
pub(crate) async fn upload(browser: &Browser, bytes: u64) -> Result<f64> {
    browser
        .js(
            "const order = new DataView(new ArrayBuffer(9));
             order.setUint8(0, 2); order.setBigUint64(1, BigInt(arguments[0]));
             const piece = new Uint8Array(65536);
             window.raw.bufferedAmountLowThreshold = 256 * 1024;
             const start = performance.now();
             const counted = new Promise((done) => { window.raw.onmessage = done });
             window.raw.send(order.buffer);
             let left = arguments[0];
             while (left > 0) {
                 const size = Math.min(left, piece.length);
                 window.raw.send(size === piece.length ? piece : piece.subarray(0, size));
                 left -= size;
                 if (window.raw.bufferedAmount > 1024 * 1024) {
                     await new Promise((done) => { window.raw.onbufferedamountlow = done });
                 }
             }
             await counted;
             return arguments[0] / 1e3 / (performance.now() - start)",
            &[json!(bytes)],
        )
        .await
}
