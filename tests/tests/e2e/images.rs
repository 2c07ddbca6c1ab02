//! Where a service's image comes from: a push without a registry, a registry, a Dockerfile.

use anyhow::{Context, Result, ensure};
use flotilla_tests::{body, cluster::Cluster, image, registry::Registry};
use serde_json::{Value, json};

#[tokio::test]
async fn an_image_is_pushed_without_a_registry_and_a_broken_push_goes_on() -> Result<()> {
    let cluster = Cluster::start().await?;
    let local = image::echo().await?;
    let name = format!("pushed-{}:1", cluster.id().chars().take(8).collect::<String>());
    image::tag(&local, &name).await?;
    let archive = cluster.scratch("image.tar");
    image::save(&name, &archive).await?;
    image::forget(&name).await?;

    // A first half that arrived before the connection was lost.
    let bytes = tokio::fs::read(&archive).await?;
    let digest = body::sha256([&bytes]);
    let http = reqwest::Client::new();
    let uploads = format!("{}/api/v1/images/uploads", cluster.api());
    let begun: Value = http
        .post(&uploads)
        .bearer_auth(cluster.token())
        .json(&json!({"digest": digest, "size": bytes.len()}))
        .send()
        .await?
        .json()
        .await?;
    ensure!(begun["offset"] == 0, "{begun}");
    let half = bytes.len() / 2;
    let piece = |from: usize, bytes: Vec<u8>| {
        let request = http.patch(format!("{uploads}/{digest}")).bearer_auth(cluster.token());
        request.header("Upload-Offset", from).body(bytes).send()
    };
    ensure!(piece(0, bytes[..half].to_vec()).await?.status().is_success());
    let wrong = piece(half + 1, bytes[half + 1..half + 100].to_vec()).await?;
    ensure!(wrong.status() == 409, "a gap is refused: {wrong:?}");
    let refusal: Value = wrong.json().await?;
    ensure!(refusal["code"] == "upload-offset", "{refusal}");
    let begun: Value = http
        .post(&uploads)
        .bearer_auth(cluster.token())
        .json(&json!({"digest": digest, "size": bytes.len()}))
        .send()
        .await?
        .json()
        .await?;
    ensure!(begun["offset"] == half, "what arrived is kept: {begun}");

    cluster.cli()?.ok(&["image", "push", &archive.display().to_string()]).await?;
    ensure!(image::present(&name).await, "the engine has the image");
    cluster.deploy(&super::echo(&name)).await?;
    let listed: Value = cluster.cli()?.json(&["image", "ls"]).await?;
    ensure!(listed.to_string().contains(&name), "{listed}");
    cluster.cli()?.ok(&["rm", "echo", "--yes"]).await?;
    flotilla_tests::wait::holds("the name to be free", flotilla_tests::browser::PAGE_LIMIT, async || {
        Ok(image::forget(&name).await.is_ok())
    })
    .await
}

#[tokio::test]
async fn an_image_comes_from_a_registry() -> Result<()> {
    let cluster = Cluster::start().await?;
    let registry = Registry::start().await?;
    let remote = registry.put(&image::echo().await?, "echo:1").await?;
    ensure!(!image::present(&remote).await);
    cluster.deploy(&super::echo(&remote)).await?;

    let file = cluster.scratch("missing.yaml");
    std::fs::write(&file, super::echo(&format!("{}/none:1", registry.address)))?;
    let before = cluster.client.cluster().await?.applied_index;
    let refused = cluster.cli()?.fails(&["deploy", "-p", "tests", "-f", &file.display().to_string()]).await?;
    ensure!(refused.code == "image-not-found" && refused.message.contains("none:1"), "{refused:?}");
    ensure!(cluster.client.cluster().await?.applied_index == before, "a refused deployment changes nothing");
    cluster.runs("echo").await?;
    cluster.cli()?.ok(&["rm", "echo", "--yes"]).await?;
    flotilla_tests::wait::holds("the name to be free", flotilla_tests::browser::PAGE_LIMIT, async || {
        Ok(image::forget(&remote).await.is_ok())
    })
    .await
}

#[tokio::test]
async fn an_image_is_built_from_a_dockerfile() -> Result<()> {
    let cluster = Cluster::start().await?;
    let base = image::nginx().await?;
    let directory = cluster.scratch("built");
    std::fs::create_dir_all(directory.join("site"))?;
    std::fs::write(
        directory.join("site/Dockerfile"),
        format!(
            "FROM {base}\nARG WORD=none\nRUN echo built $WORD > /srv/www/built.txt\nCOPY page.html /srv/www/page.html\n"
        ),
    )?;
    std::fs::write(directory.join("site/page.html"), "<p>built here</p>")?;
    std::fs::write(
        directory.join("compose.yaml"),
        "services:\n  site:\n    build: {context: site, args: {WORD: here}}\n    ports: [\"80\"]\n",
    )?;
    let file = directory.join("compose.yaml").display().to_string();
    let cli = cluster.cli()?;
    cli.ok(&["deploy", "-p", "tests", "-f", &file, "--wait"]).await?;
    ensure!(
        cli.ok(&["exec", "site", "--", "cat", "/srv/www/built.txt", "/srv/www/page.html"]).await?
            == "built here\n<p>built here</p>"
    );

    std::fs::write(directory.join("site/Dockerfile"), format!("FROM {base}\nRUN exit 9\n"))?;
    let refused = cli.fails(&["deploy", "-p", "tests", "-f", &file]).await?;
    ensure!(refused.code == "build-failed", "{refused:?}");
    let view = cluster.runs("site").await?;
    ensure!(view.revision.0 == 1, "{view:?}");
    let image = view.image;
    cli.ok(&["rm", "site", "--yes"]).await?;
    flotilla_tests::wait::holds("the image to be free", flotilla_tests::browser::PAGE_LIMIT, async || {
        Ok(image::forget(&image).await.is_ok())
    })
    .await
    .context(image)
}
