//! The promises to a person, each kept end to end: the program itself, Docker Engine, Chromium, real applications.

mod browser_features;
mod bulk;
mod command_line;
mod crash;
mod dashboard;
mod demo;
mod history;
mod images;
mod jupyter;
mod refusals;
mod secrets;
mod tunnel;
mod volumes;

use anyhow::Result;
use flotilla_tests::{
    browser::Browser,
    cluster::{Cluster, Options},
};

/// A cluster and a browser that has signed in to it by invitation.
async fn signed_in(name: &str, options: Options) -> Result<(Cluster, Browser)> {
    let cluster = options.start().await?;
    let browser = Browser::open(name).await?;
    sign_in(&cluster, &browser).await?;
    Ok((cluster, browser))
}

async fn sign_in(cluster: &Cluster, browser: &Browser) -> Result<()> {
    browser.goto(&cluster.invitation().await?).await?;
    browser.sees("#page-title", "Services").await?;
    Ok(())
}

fn nginx(image: &str) -> String {
    format!("services:\n  site:\n    image: {image}\n    ports: [\"80\"]\n")
}

fn echo(image: &str) -> String {
    format!("services:\n  echo:\n    image: {image}\n    ports: [\"8080\"]\n")
}
