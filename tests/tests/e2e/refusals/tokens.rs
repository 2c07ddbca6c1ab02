//! Tokens and invitations that are not good, or not any more.

use anyhow::{Context, Result, ensure};
use flotilla_api::{Grant, Scope, rest::CreateToken};
use flotilla_tests::{
    browser::{Browser, PAGE_LIMIT},
    cluster::Cluster,
    wait,
};
use serde_json::Value;

use super::state;

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
