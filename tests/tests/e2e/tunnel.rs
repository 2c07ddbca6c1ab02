//! Pages of a service, opened in a browser that talks HTTP with nobody.

use anyhow::{Context, Result, ensure};
use flotilla_tests::{
    browser::{Browser, PAGE_LIMIT},
    cluster::Cluster,
    image,
    process::Process,
    tap::Request,
    wait,
};

use super::{nginx, sign_in, signed_in};

/// The listener of a tapped cluster was asked only for the files that start a page, for signalling, and for the cluster's own
/// API and dashboard.
pub(super) fn carried_only_bootstrap(cluster: &Cluster) -> Result<()> {
    let tap = cluster.tap.as_ref().context("the cluster was started without a tap")?;
    // A navigation that the service worker did not see would be here, with its path.
    let strange: Vec<_> = tap.requests().into_iter().filter(|request| !is_bootstrap(request)).collect();
    ensure!(strange.is_empty(), "the listener was asked for more than bootstrap files: {strange:#?}");
    Ok(())
}

fn is_bootstrap(request: &Request) -> bool {
    let path = request.path.split(['?', '#']).next().unwrap_or_default();
    let of_a_service = matches!(path, "/" | "/favicon.ico") || path.starts_with("/__flotilla/");
    // Of the API, what runs commands in services could carry their pages, too.
    let of_the_api = path.starts_with("/api/v1/") && !path.ends_with("/exec");
    let of_the_cluster = matches!(path, "/" | "/signal" | "/connector" | "/favicon.ico" | "/manifest.webmanifest")
        || matches!(path, "/healthz" | "/readyz")
        || path.starts_with("/assets/");
    let host = request.host.split(':').next().unwrap_or_default();
    let asks_a_service = host.ends_with(".localhost") && !host.starts_with("app.");
    if asks_a_service { of_a_service } else { of_the_cluster || of_the_api }
}

#[tokio::test]
async fn a_page_opens_and_every_byte_of_it_came_over_a_data_channel() -> Result<()> {
    let (cluster, browser) = signed_in("tunnel", Cluster::with().tapped()).await?;
    cluster.deploy(&nginx(&image::nginx().await?)).await?;

    browser.goto(&cluster.url("site", "/")).await?;
    browser.enter_app().await?;
    browser.sees("#secret", "the-bytes-of-a-service-7f3a91").await?;
    browser.sees("#script", "The script has run.").await?;
    ensure!(browser.find("body").await?.css_value("color").await?.contains("10, 20, 30"), "the stylesheet was applied");
    ensure!(
        browser
            .js::<bool>(
                "const flag = document.getElementById('flag'); await flag.decode(); return flag.naturalWidth > 0",
                &[]
            )
            .await?,
        "the picture is there"
    );
    browser.leave_frames().await?;
    wait::holds("the title of the page", PAGE_LIMIT, async || Ok(browser.title().await? == "Harbour log")).await?;
    browser.picture("nginx").await?;

    // Links, the address bar, history and reload are the page's own.
    browser.enter_app().await?;
    browser.click("#deep").await?;
    browser.enter_app_at("#where").await?;
    browser.sees("#where", "/docs/tides.html?day=monday#high").await?;
    let deep = cluster.url("site", "/docs/tides.html?day=monday#high");
    wait::holds("the address of the page", PAGE_LIMIT, async || Ok(browser.url().await? == deep)).await?;
    browser.back().await?;
    browser.enter_app_at("#secret").await?;
    browser.click("#deep").await?;
    browser.enter_app_at("#where").await?;
    browser.reload().await?;
    browser.enter_app_at("#where").await?;
    browser.sees("#where", "/docs/tides.html?day=monday#high").await?;
    browser.back().await?;
    browser.enter_app_at("#secret").await?;
    browser.click("#framed").await?;
    browser.enter_app_at("#title").await?;
    browser.sees("#title", "Framed").await?;
    browser.goto(&cluster.url("site", "/no/such/page.html")).await?;
    browser.enter_app().await?;
    browser.sees("body", "404 Not Found").await?;

    let Some(tap) = &cluster.tap else { unreachable!("the cluster was started with one") };
    for secret in ["the-bytes-of-a-service-7f3a91", "Harbour log", "tides", "log.css", "flag.svg", "The script has run"]
    {
        ensure!(!tap.carried(secret), "`{secret}` went over HTTP");
    }
    carried_only_bootstrap(&cluster)?;
    browser.close().await
}

#[tokio::test]
async fn a_link_into_a_service_opens_in_a_browser_that_was_never_there() -> Result<()> {
    let (cluster, browser) = signed_in("deep-link", Cluster::with()).await?;
    cluster.deploy(&nginx(&image::nginx().await?)).await?;
    browser.goto(&cluster.url("site", "/docs/tides.html?day=friday")).await?;
    browser.enter_app_at("#where").await?;
    browser.sees("#where", "/docs/tides.html?day=friday").await?;
    browser.close().await
}

#[tokio::test]
async fn all_works_over_https() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.deploy(&nginx(&image::nginx().await?)).await?;
    let invitation = cluster.invitation().await?.replacen("http:", "https:", 1);
    let made = rcgen::generate_simple_self_signed(vec!["app.home.localhost".to_owned()])?;
    let (certificate, key) = (cluster.scratch("certificate.pem"), cluster.scratch("key.pem"));
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    cluster.stop().await?;
    let mut command = cluster.up_command();
    command.env("FLOTILLA_TLS_CERTIFICATE", &certificate).env("FLOTILLA_TLS_KEY", &key);
    let node = Process::spawn(&mut command, &cluster.scratch("https.log"))?;
    wait::holds("the node to be ready", PAGE_LIMIT, async || Ok(node.output().contains("ready; the dashboard")))
        .await?;

    // Nobody vouches for that certificate.
    let browser = Browser::open_with("https", &["--ignore-certificate-errors"]).await?;
    browser.goto(&invitation).await?;
    browser.sees("#page-title", "Services").await?;
    browser.goto(&cluster.url("site", "/").replacen("http:", "https:", 1)).await?;
    browser.enter_app_at("#secret").await?;
    browser.sees("#script", "The script has run.").await?;
    browser.close().await
}

#[tokio::test]
async fn nobody_opens_a_service_without_signing_in_or_beyond_a_grant() -> Result<()> {
    let cluster = Cluster::start().await?;
    let image = image::nginx().await?;
    cluster.deploy(&format!("{}  other:\n    image: {image}\n    ports: [\"80\"]\n", nginx(&image))).await?;

    let stranger = Browser::open("stranger").await?;
    stranger.goto(&cluster.url("site", "/")).await?;
    stranger.sees("body", "Sign in").await?;
    ensure!(!stranger.driver().source().await?.contains("the-bytes-of-a-service"), "a stranger sees the service");
    stranger.picture("signed-out").await?;
    stranger.close().await?;

    let guest = Browser::open("guest").await?;
    let invitation =
        cluster.cli()?.json::<serde_json::Value>(&["invite", "create", "guest", "--service", "site"]).await?;
    guest.goto(invitation["url"].as_str().unwrap_or_default()).await?;
    guest.sees("#page-title", "Services").await?;
    guest.goto(&cluster.url("site", "/")).await?;
    guest.enter_app_at("#secret").await?;
    guest.goto(&cluster.url("other", "/")).await?;
    guest.sees("body", "does not open").await?;
    guest.picture("not-granted").await?;
    guest.close().await
}

#[tokio::test]
async fn revoking_a_token_ends_what_it_opened() -> Result<()> {
    let cluster = Cluster::start().await?;
    let browser = Browser::open("revoked").await?;
    sign_in(&cluster, &browser).await?;
    cluster.deploy(&nginx(&image::nginx().await?)).await?;
    browser.goto(&cluster.url("site", "/")).await?;
    browser.enter_app_at("#secret").await?;

    let tokens = cluster.client.tokens().await?;
    let bound = tokens.iter().find(|token| token.bound_to.is_some()).expect("the browser's token is listed");
    cluster.client.revoke_token(&bound.id).await?;
    browser.reload().await?;
    browser.sees("body", "Sign in").await?;
    browser.close().await
}
