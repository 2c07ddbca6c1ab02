//! Node to node: two links of our own mesh over loopback, each on threads of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::BytesMut;
use flotilla::{
    mesh::{self, Addresses, Certificate, Link, MeshChannel},
    tunnel::Channel,
};

use crate::{
    MESSAGE, REQUESTS, Settings, median, megabytes_per_second, quic,
    report::{Goal, Report},
};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let (mut set_up, mut throughput, mut round_trip, mut quic) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // A node makes its certificate once.
    let certificates = (Certificate::generate()?, Certificate::generate()?);
    for _ in 0..settings.rounds {
        let start = Instant::now();
        let pair = Box::pin(Pair::connect(&certificates)).await?;
        set_up.push(start.elapsed().as_secs_f64() * 1e3);
        round_trip.push(pair.round_trip().await?);
        throughput.push(pair.throughput(settings.bytes() * 5).await?);
        pair.close().await;
        quic.push(quic::throughput(settings.bytes() * 5).await?);
    }
    report.add("QUIC (quinn), 64 KiB writes", median(&mut quic), "MB/s", None);
    report.add("node to node, 64 KiB messages", median(&mut throughput), "MB/s", Some(Goal::AtLeast(300.0)));
    report.add("node to node, set-up", median(&mut set_up), "ms", Some(Goal::AtMost(30.0)));
    report.add("node to node, there and back, p50", median(&mut round_trip), "ms", None);
    Ok(())
}

struct Pair {
    links: (Link, Link),
    near: MeshChannel,
    far: MeshChannel,
}

impl Pair {
    async fn connect(certificates: &(Certificate, Certificate)) -> Result<Self> {
        let addresses = Addresses::Only(vec!["127.0.0.1".parse()?]);
        let offered = Box::pin(mesh::offer(&addresses, &certificates.0, "bench")).await?;
        let (far_link, answer) =
            Box::pin(mesh::answer(&addresses, &certificates.1, offered.description.clone())).await?;
        let (near_link, near) = offered.answered(answer).await?;
        near.opened().await?;
        near_link.connected(CONNECT_LIMIT).await?;
        near.send(BytesMut::from(&b"hello"[..])).await?;
        let far = tokio::time::timeout(CONNECT_LIMIT, far_link.accept()).await?.context("a channel")?;
        far.recv().await.context("the first message")?;
        Ok(Self { links: (near_link, far_link), near, far })
    }

    /// Milliseconds of a kilobyte there and back, p50.
    async fn round_trip(&self) -> Result<f64> {
        let mut times = Vec::new();
        let answers = async {
            for _ in 0..REQUESTS {
                let message = self.far.recv().await.context("the far end closed")?;
                self.far.send(BytesMut::from(message.as_ref())).await?;
            }
            anyhow::Ok(())
        };
        let asks = async {
            for _ in 0..REQUESTS {
                let start = Instant::now();
                self.near.send(BytesMut::zeroed(1024)).await?;
                self.near.recv().await.context("the near end closed")?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(())
        };
        tokio::try_join!(answers, asks)?;
        Ok(median(&mut times))
    }

    async fn throughput(&self, bytes: u64) -> Result<f64> {
        let start = Instant::now();
        let send = async {
            let mut left = bytes as usize;
            while left > 0 {
                let len = left.min(MESSAGE);
                self.near.send(BytesMut::zeroed(len)).await?;
                left -= len;
            }
            anyhow::Ok(())
        };
        let receive = async {
            let mut left = bytes;
            while left > 0 {
                left = left.saturating_sub(self.far.recv().await.context("the far end closed")?.len() as u64);
            }
            anyhow::Ok(())
        };
        tokio::try_join!(send, receive)?;
        Ok(megabytes_per_second(bytes, start.elapsed()))
    }

    async fn close(self) {
        self.links.0.close().await;
        self.links.1.close().await;
    }
}
