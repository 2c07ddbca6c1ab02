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

    // The first half of a layer arrived before the connection was lost.
    let layer = largest_layer(&archive)?;
    let digest = body::sha256([&layer]);
    let http = reqwest::Client::new();
    let uploads = format!("{}/api/v1/images/uploads", cluster.api());
    let begin =
        || http.post(&uploads).bearer_auth(cluster.token()).json(&json!({"digest": digest, "size": layer.len()}));
    let begun: Value = begin().send().await?.json().await?;
    ensure!(begun["offset"] == 0, "{begun}");
    let half = layer.len() / 2;
    let piece = |from: usize, bytes: Vec<u8>| {
        let request = http.patch(format!("{uploads}/{digest}")).bearer_auth(cluster.token());
        request.header("Upload-Offset", from).body(bytes).send()
    };
    ensure!(piece(0, layer[..half].to_vec()).await?.status().is_success());
    let wrong = piece(half + 1, layer[half + 1..half + 100].to_vec()).await?;
    ensure!(wrong.status() == 409, "a gap is refused: {wrong:?}");
    let refusal: Value = wrong.json().await?;
    ensure!(refusal["code"] == "upload-offset", "{refusal}");
    let begun: Value = begin().send().await?.json().await?;
    ensure!(begun["offset"] == half, "what arrived is kept: {begun}");

    let pushed: Value = cluster.cli()?.json(&["image", "push", &archive.display().to_string()]).await?;
    let sent = pushed["sent_bytes"].as_u64().context("how much was sent")?;
    ensure!(pushed["sent_layers"].as_u64() >= Some(1), "{pushed}");
    ensure!(sent <= std::fs::metadata(&archive)?.len() - half as u64, "the first half was not sent again: {pushed}");
    let again: Value = cluster.cli()?.json(&["image", "push", &archive.display().to_string()]).await?;
    ensure!(again["sent_bytes"] == 0, "{again}");
    ensure!(image::present(&name).await, "the engine has the image");
    cluster.deploy(&super::echo(&name)).await?;
    let listed: Value = cluster.cli()?.json(&["image", "ls"]).await?;
    ensure!(listed.to_string().contains(&name) && listed[0]["used_by"][0]["service"] == "echo", "{listed}");
    let refused = cluster.cli()?.fails(&["image", "rm", &name, "--yes"]).await?;
    ensure!(refused.code == "image-in-use" && refused.message.contains("echo"), "{refused:?}");
    cluster.cli()?.ok(&["rm", "echo", "--yes"]).await?;
    // The engine had the image before, by another name: collecting leaves it alone.
    cluster.cli()?.ok(&["image", "gc"]).await?;
    ensure!(image::present(&local).await);
    let trail = cluster.client.audit().await?;
    ensure!(trail.iter().any(|event| event.kind == "image-pushed" && event.message.contains(&name)), "{trail:?}");
    flotilla_tests::wait::holds("the name to be free", flotilla_tests::browser::PAGE_LIMIT, async || {
        Ok(image::forget(&name).await.is_ok())
    })
    .await
}

#[tokio::test]
async fn what_the_local_engine_can_not_give_is_told() -> Result<()> {
    let cluster = Cluster::start().await?;
    let local = image::echo().await?;
    // The node's engine is this machine's, so that there is nothing to send.
    let pushed: Value = cluster.cli()?.json(&["image", "push", &local]).await?;
    ensure!(pushed["sent_bytes"] == 0, "{pushed}");
    let refused = cluster.cli()?.fails(&["image", "push", "nobody-made-this:1"]).await?;
    ensure!(refused.code == "not-found" && refused.message.contains("nobody-made-this:1"), "{refused:?}");
    let mut nowhere = cluster.cli()?.command();
    nowhere.args(["image", "push", &local]).env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let ended = nowhere.output().await?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(!ended.status.success() && said.contains("container engine does not answer"), "{said}");
    Ok(())
}

/// Of an archive of `docker save`.
fn largest_layer(archive: &std::path::Path) -> Result<Vec<u8>> {
    let mut largest = Vec::new();
    for entry in tar::Archive::new(std::fs::File::open(archive)?).entries()? {
        let mut entry = entry?;
        if entry.size() > largest.len() as u64 {
            largest.clear();
            std::io::Read::read_to_end(&mut entry, &mut largest)?;
        }
    }
    Ok(largest)
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
