//! `make bench`: what docs/BENCHMARKS.md asks for, each figure beside its yardstick, measured in one run.
#![allow(clippy::print_stdout, reason = "its table is what it is for")]

mod client;
mod direct;
mod idle;
mod mesh;
mod quic;
mod raw;
mod report;
mod web;
mod worker;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use flotilla_tests::{browser::Browser, cluster::Cluster, image};

use report::{Goal, Report};

/// How often each throughput is measured; its middle value counts.
const ROUNDS: usize = 3;
const MEGABYTES: u64 = 100;
/// Small requests of one series.
pub(crate) const REQUESTS: usize = 300;
/// Bytes that are sent at once, as the tunnel's own frames.
pub(crate) const MESSAGE: usize = 64 * 1024;

/// Measures the tunnel beside the raw data channel and direct HTTP.
#[derive(Debug, Parser)]
pub(crate) struct Settings {
    /// Rounds, of which the middle figure counts
    #[arg(long, default_value_t = ROUNDS, value_parser = at_least_one)]
    pub(crate) rounds: usize,
    /// How much is moved each way
    #[arg(long, default_value_t = MEGABYTES)]
    megabytes: u64,
    /// Writes the figures down
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measures one part alone
    #[arg(long, value_parser = ["idle", "browser", "client", "mesh"])]
    only: Option<String>,
}

fn at_least_one(text: &str) -> Result<usize> {
    let count = text.parse()?;
    ensure!(count > 0, "at least one");
    Ok(count)
}

impl Settings {
    pub(crate) fn bytes(&self) -> u64 {
        self.megabytes * 1_000_000
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let settings = Settings::parse();
    let mut report = Report::default();
    if settings.wants("idle") {
        idle::measure(&mut report).await.context("the idle node")?;
    }
    if settings.wants("browser") {
        in_browser(&settings, &mut report).await.context("the browser")?;
    }
    if settings.wants("client") {
        client::measure(&settings, &mut report).await.context("the tunnel without a browser")?;
    }
    if settings.wants("mesh") {
        mesh::measure(&settings, &mut report).await.context("node to node")?;
    }
    println!("{report}");
    if let Some(path) = &settings.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    // A figure under its goal is a failure of the run, so that a script notices.
    if report.missed() > 0 {
        bail!("{} of the figures are short of their goals", report.missed());
    }
    Ok(())
}

async fn in_browser(settings: &Settings, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start().await?;
    let echo = image::echo().await?;
    open_pages(settings, &cluster, &echo, report).await.context("pages")?;

    // One that has been nowhere: Chromium keeps pages that were left, and their service worker with them in a process apart from the next page's.
    let browser = signed_in(&cluster, "bench").await?;
    let peer = raw::Peer::connect(&browser).await?;
    let (mut raw_rtt, mut tunnel_rtt) = (Vec::new(), Vec::new());
    let (mut raw_down, mut raw_up, mut down, mut up) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        raw_rtt.push(raw::round_trip(&browser).await?);
        raw_down.push(raw::download(&browser, settings.bytes()).await?);
        raw_up.push(raw::upload(&browser, settings.bytes()).await?);
    }
    peer.close().await;
    browser.goto(&cluster.url("echo", "/")).await?;
    browser.enter_app_at("#form").await?;
    for _ in 0..settings.rounds {
        tunnel_rtt.push(web::small_request(&browser, 1).await?);
        down.push(web::download(&browser, settings.bytes()).await?);
        up.push(web::upload(&browser, settings.bytes()).await?);
    }
    let at_six = web::small_request(&browser, 6).await?;
    let during = web::small_request_during_download(&browser, settings.bytes()).await?;
    let address = direct::address(&cluster).await?;
    browser.goto(&address).await?;
    let without = web::small_request(&browser, 1).await?;
    let worker = worker::small_request(&browser).await?;
    browser.close().await?;

    let raw_rtt = median(&mut raw_rtt);
    let (raw_down, raw_up) = (median(&mut raw_down), median(&mut raw_up));
    let (down, up) = (median(&mut down), median(&mut up));
    report.add("raw channel, 1 KB there and back, p50", raw_rtt, "ms", None);
    report.add("the browser without a tunnel, request of 1 KB, p50", without, "ms", None);
    report.add("a service worker without a tunnel, request of 1 KB, p50", worker, "ms", None);
    let allowed = (2.0 * raw_rtt + 2.0).min(4.0);
    report.add("tunnel, request of 1 KB, p50", median(&mut tunnel_rtt), "ms", Some(Goal::AtMost(allowed)));
    report.add("tunnel, 6 requests at once, p50", at_six, "ms", None);
    report.add("tunnel, request during a download, p50", during, "ms", None);
    report.add("raw channel, down", raw_down, "MB/s", None);
    report.add("tunnel, down", down, "MB/s", Some(Goal::AtLeast(20.0)));
    report.add("tunnel to raw, down", down / raw_down, "x", Some(Goal::AtLeast(0.7)));
    report.add("raw channel, up", raw_up, "MB/s", None);
    report.add("tunnel, up", up, "MB/s", None);
    report.add("tunnel to raw, up", up / raw_up, "x", Some(Goal::AtLeast(0.7)));
    direct::measure(&address, settings, report).await.context("HTTP without a tunnel")
}

/// How long pages take, and an image until it answers.
async fn open_pages(settings: &Settings, cluster: &Cluster, image: &str, report: &mut Report) -> Result<()> {
    let browser = signed_in(cluster, "bench-pages").await?;
    let download = web::dashboard_download(&browser).await?;
    report.add("dashboard, first download", download, "kB", Some(Goal::AtMost(400.0)));
    let deployed = web::deployed_to_first_answer(cluster, &browser, image).await?;
    report.add("local image deployed to page", deployed, "ms", Some(Goal::AtMost(3000.0)));
    for (name, goal, fresh) in [("page ready, cold", 500.0, true), ("page ready, warm", 350.0, false)] {
        let mut times = Vec::new();
        for _ in 0..settings.rounds {
            times.push(web::page_ready(cluster, &browser, fresh).await?);
        }
        report.add(name, median(&mut times), "ms", Some(Goal::AtMost(goal)));
    }
    browser.close().await
}

async fn signed_in(cluster: &Cluster, name: &str) -> Result<Browser> {
    let browser = Browser::open(name).await?;
    browser.goto(&cluster.invitation().await?).await?;
    browser.sees("#page-title", "Services").await?;
    Ok(browser)
}

/// A compose file of the service that all of this asks.
pub(crate) fn echoing(image: &str) -> String {
    format!("services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n")
}

/// The middle one, which one slow round does not move.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A page's clock goes on in steps of so many milliseconds, which is a third of the shortest of its times.
const TICK: f64 = 0.1;

/// The middle of times that a page took, in milliseconds, and where in its tick that lies by how many are in it.
pub(crate) fn p50(mut times: Vec<f64>) -> f64 {
    let (middle, half) = (median(&mut times), times.len() as f64 / 2.0);
    let shorter = times.iter().filter(|time| **time < middle - TICK / 2.0).count() as f64;
    let same = times.iter().filter(|time| (**time - middle).abs() <= TICK / 2.0).count() as f64;
    middle + TICK * ((half - shorter) / same - 0.5)
}

pub(crate) fn megabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}
