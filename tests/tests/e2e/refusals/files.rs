//! Compose files and images that can't be had: by the command line, and by the API itself.

use std::net::TcpListener as StdListener;

use anyhow::{Context, Result, ensure};
use flotilla::client;
use flotilla_api::rest::COMPOSE_MAX;
use flotilla_tests::{cluster::Cluster, image, registry::Registry};

use super::{super::echo, state};

/// A compose file that is refused.
pub(super) struct BadFile {
    pub(super) what: &'static str,
    pub(super) text: String,
    pub(super) code: &'static str,
    /// Where the mistake is; `None`: the whole file, or wherever the parser stops.
    pub(super) line: Option<u32>,
}

pub(super) fn bad_files() -> Vec<BadFile> {
    let case = |what, text, code, line| BadFile { what, text, code, line };
    let service = |rest: &str| format!("services:\n  web:\n    image: x\n{rest}");
    let deep = format!("x-deep: {}1{}\n", "[".repeat(2000), "]".repeat(2000));
    let mut bomb = "x-0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("x-{level}: &a{level} [{aliases}]\n"));
    }
    vec![
        case("broken YAML", "services:\n  web: [\n".to_owned(), "compose-invalid", None),
        case("not a map", "- web\n".to_owned(), "compose-invalid", Some(1)),
        case("no services", "name: x\n".to_owned(), "compose-invalid", None),
        case("no image", "services:\n  web: {ports: [\"80\"]}\n".to_owned(), "compose-invalid", Some(2)),
        case("an unknown key", service("    imagee: y\n"), "compose-unsupported", Some(4)),
        case("a key that is not acted upon", service("    privileged: true\n"), "compose-unsupported", Some(4)),
        case("a directory of the host", service("    volumes:\n      - /etc:/etc\n"), "compose-unsupported", Some(5)),
        case("a port that is none", service("    ports: [\"99999\"]\n"), "compose-invalid", Some(4)),
        case("a name that is no host name", "services:\n  Web_1:\n    image: x\n".to_owned(), "invalid-name", Some(2)),
        case("a name that is taken", "services:\n  app:\n    image: x\n".to_owned(), "invalid-name", Some(2)),
        case("too deep", deep, "compose-invalid", Some(1)),
        case("a YAML bomb", format!("{bomb}services: {{web: {{image: x}}}}\n"), "compose-too-large", None),
        case("too large", format!("# {}\n", "x".repeat(COMPOSE_MAX)), "compose-too-large", None),
        case("a variable that is not set", service("    hostname: ${NOBODY_SET_THIS}\n"), "compose-invalid", Some(4)),
    ]
}

#[tokio::test]
async fn compose_files_that_are_not_right_are_refused_at_their_line() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.deploy(&echo(&image::echo().await?)).await?;
    let before = state(&cluster).await?;
    let path = cluster.scratch("bad.yaml");
    for BadFile { what, text, code, line } in bad_files() {
        std::fs::write(&path, &text)?;
        let arguments =
            ["deploy".to_owned(), "-p".to_owned(), "tests".to_owned(), "-f".to_owned(), path.display().to_string()];
        let refused = cluster.cli()?.fails(&arguments).await.context(what)?;
        ensure!(refused.code == code, "{what}: {refused:?}");
        ensure!(line.is_none() || refused.line == line, "{what}: the line: {refused:?}");
        ensure!(refused.message.len() < 400, "{what}: one sentence: {refused:?}");

        // Whoever speaks with the node directly is told the same.
        let error = cluster.submit(&text).await.err().with_context(|| format!("{what}: the node takes it"))?;
        let Some(client::Error::Api(error)) = error.downcast_ref() else { anyhow::bail!("{what}: {error:#}") };
        ensure!(error.code.as_str() == code && error.line == refused.line, "{what}: the node's own word: {error:?}");
        // Of one that is too large the command line says how large it is, as it has it before it.
        let same = error.message == refused.message || text.len() > COMPOSE_MAX;
        ensure!(same, "{what}: `{}` and `{}`", error.message, refused.message);
    }
    ensure!(state(&cluster).await? == before, "a refused file changed something");
    Ok(())
}

#[tokio::test]
async fn images_that_can_not_be_had_are_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let registry = Registry::start().await?;
    let dead = StdListener::bind("127.0.0.1:0")?.local_addr()?;
    let before = state(&cluster).await?;
    let path = cluster.scratch("image.yaml");
    for (image, code) in [
        (format!("{}/none:1", registry.address), "image-not-found"),
        (format!("{dead}/none:1"), "image-pull-failed"),
        ("UPPER/case".to_owned(), "image-invalid"),
    ] {
        std::fs::write(&path, echo(&image))?;
        let refused = cluster.cli()?.fails(&["deploy", "-p", "tests", "-f", &path.display().to_string()]).await?;
        ensure!(refused.code == code && refused.message.contains(&image), "{refused:?}");
    }
    let junk = cluster.scratch("junk.tar");
    std::fs::write(&junk, [7; 10_000])?;
    let refused = cluster.cli()?.fails(&["image", "push", &junk.display().to_string()]).await?;
    ensure!(refused.code == "image-invalid", "{refused:?}");
    ensure!(state(&cluster).await? == before);
    Ok(())
}
