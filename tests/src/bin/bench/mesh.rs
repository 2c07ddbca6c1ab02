//! Node to node: two links of our own mesh over loopback. Each end has threads of its own, as each node has, and who sends and receives are
//! tasks beside the link's own. With one runtime for both, both ends come to take turns on one core while the other sleeps.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::BytesMut;
use flotilla::{
    mesh::{self, Addresses, Certificate, Link, MeshChannel},
    tunnel::Channel,
};
use tokio::runtime::{Handle, Runtime};

use crate::{
    MESSAGE, REQUESTS, Settings, median, megabytes_per_second, quic,
    report::{Goal, Report},
};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// MB/s; and what QUIC had on the machine that this is of. On a slower one their ratio still counts.
const GOAL: f64 = 300.0;
const QUIC_AT_GOAL: f64 = 676.0;

pub(crate) async fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let (mut set_up, mut throughput, mut round_trip, mut quic) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // A node makes its certificate once.
    let certificates = (Certificate::generate()?, Certificate::generate()?);
    let beyond = Runtime::new()?;
    for _ in 0..settings.rounds {
        let start = Instant::now();
        let pair = Box::pin(Pair::connect(&certificates, beyond.handle())).await?;
        set_up.push(start.elapsed().as_secs_f64() * 1e3);
        round_trip.push(pair.round_trip().await?);
        throughput.push(pair.throughput(settings.bytes() * 5).await?);
        pair.close().await;
        quic.push(quic::throughput(settings.bytes() * 5, beyond.handle()).await?);
    }
    beyond.shutdown_background();
    let (quic, throughput) = (median(&mut quic), median(&mut throughput));
    report.add("QUIC (quinn), 64 KiB writes", quic, "MB/s", None);
    report.add("node to node, 64 KiB messages", throughput, "MB/s", Some(Goal::AtLeast(GOAL)));
    report.add("node to node to QUIC", throughput / quic, "x", Some(Goal::AtLeast(GOAL / QUIC_AT_GOAL)));
    report.add("node to node, set-up", median(&mut set_up), "ms", Some(Goal::AtMost(30.0)));
    report.add("node to node, there and back, p50", median(&mut round_trip), "ms", None);
    Ok(())
}

struct Pair {
    links: (Link, Link),
    near: Arc<MeshChannel>,
    far: Arc<MeshChannel>,
    /// Where the far end runs.
    beyond: Handle,
}

impl Pair {
    async fn connect(certificates: &(Certificate, Certificate), beyond: &Handle) -> Result<Self> {
        let addresses = Addresses::Only(vec!["127.0.0.1".parse()?]);
        let offered = Box::pin(mesh::offer(&addresses, &certificates.0, "bench")).await?;
        let (certificate, description) = (certificates.1.clone(), offered.description.clone());
        let answering = beyond.spawn(async move { mesh::answer(&addresses, &certificate, description).await });
        let (far_link, answer) = answering.await??;
        let (near_link, near) = offered.answered(answer).await?;
        near.opened().await?;
        near_link.connected(CONNECT_LIMIT).await?;
        near.send(BytesMut::from(&b"hello"[..])).await?;
        let far = tokio::time::timeout(CONNECT_LIMIT, far_link.accept()).await?.context("a channel")?;
        far.recv().await.context("the first message")?;
        let (near, far) = (Arc::new(near), Arc::new(far));
        Ok(Self { links: (near_link, far_link), near, far, beyond: beyond.clone() })
    }

    /// Milliseconds of a kilobyte there and back, p50.
    async fn round_trip(&self) -> Result<f64> {
        let (near, far) = (Arc::clone(&self.near), Arc::clone(&self.far));
        let answers = self.beyond.spawn(async move {
            for _ in 0..REQUESTS {
                let message = far.recv().await.context("the far end closed")?;
                far.send(BytesMut::from(message.as_ref())).await?;
            }
            anyhow::Ok(())
        });
        let asks = tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..REQUESTS {
                let start = Instant::now();
                near.send(BytesMut::zeroed(1024)).await?;
                near.recv().await.context("the near end closed")?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(times)
        });
        answers.await??;
        Ok(median(&mut asks.await??))
    }

    async fn throughput(&self, bytes: u64) -> Result<f64> {
        let (near, far) = (Arc::clone(&self.near), Arc::clone(&self.far));
        let start = Instant::now();
        let send = tokio::spawn(async move {
            let mut left = bytes as usize;
            while left > 0 {
                let len = left.min(MESSAGE);
                near.send(BytesMut::zeroed(len)).await?;
                left -= len;
            }
            anyhow::Ok(())
        });
        let receive = self.beyond.spawn(async move {
            let mut left = bytes;
            while left > 0 {
                left = left.saturating_sub(far.recv().await.context("the far end closed")?.len() as u64);
            }
            anyhow::Ok(Instant::now())
        });
        send.await??;
        Ok(megabytes_per_second(bytes, receive.await?? - start))
    }

    async fn close(self) {
        self.links.0.close().await;
        self.links.1.close().await;
    }
}
