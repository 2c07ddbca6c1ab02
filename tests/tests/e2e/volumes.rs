//! What a volume was, from a terminal: compared, brought back, brought elsewhere, brought in.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use flotilla_tests::{
    cli::Cli,
    cluster::{Cluster, NAME},
    image, wait,
};
use serde_json::Value;

/// A generation is made a second after something was written; a service begins anew in some seconds.
const LIMIT: Duration = Duration::from_secs(40);

fn compose(image: &str, hook: &str) -> String {
    format!(
        "services:
  echo: {{image: {image}, ports: [\"8080\"], stop_grace_period: 1s, volumes: [\"data:/data\"]}}
  twin: {{image: {image}, ports: [\"8080\"], stop_grace_period: 1s, volumes: [\"other:/data\"]}}
volumes:
  data: {{x-flotilla: {{hooks: {{pre: {hook}}}}}}}
  other:
"
    )
}

struct Volumes {
    cluster: Cluster,
    cli: Cli,
}

impl Volumes {
    fn directory(&self, service: &str, volume: &str) -> PathBuf {
        self.cluster.data().join("volumes").join(service).join(volume)
    }

    /// What is in a volume's directory.
    fn files(&self, service: &str, volume: &str) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.directory(service, volume))? {
            let entry = entry?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?);
        }
        Ok(files)
    }

    /// The newest generation, once it is committed and has files of so many bytes.
    async fn committed(&self, bytes: u64) -> Result<String> {
        let mut last = Value::Null;
        let found = wait::until(format!("a generation of {bytes} bytes"), LIMIT, async || {
            last = self.cli.json(&["volume", "history", "echo"]).await?;
            let newest = last["history"].as_array().and_then(|history| history.last()).context("no generation")?;
            let is = newest["bytes"] == bytes && newest["committed"] == true;
            Ok(is.then(|| newest["generation"].as_str().unwrap_or_default().to_owned()))
        })
        .await;
        found.with_context(|| format!("it has {last:#}"))
    }

    async fn shows(&self, service: &str, volume: &str, files: &[(&str, &str)]) -> Result<()> {
        let wanted: BTreeMap<String, String> =
            files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let shows = wait::holds(format!("{service}/{volume} to be {wanted:?}"), LIMIT, async || {
            Ok(self.files(service, volume)? == wanted)
        })
        .await;
        shows.with_context(|| format!("it is {:?}", self.files(service, volume)))?;
        self.cluster.runs(service).await.map(drop)
    }
}

#[tokio::test]
async fn a_volume_is_compared_brought_back_and_brought_in() -> Result<()> {
    let cluster = Cluster::start().await?;
    let cli = cluster.cli()?;
    let image = image::echo().await?;
    cluster.deploy(&compose(&image, "[/echo, --check, now]")).await?;
    cluster.runs("echo").await?;
    cluster.runs("twin").await?;
    let volumes = Volumes { cluster, cli };
    let Volumes { cluster, cli } = &volumes;
    let data = volumes.directory("echo", "data");
    fs::write(data.join("diary"), "monday")?;
    let monday = volumes.committed(6).await?;
    fs::write(data.join("diary"), "tuesday")?;
    fs::write(data.join("photo"), "sun")?;
    let tuesday = volumes.committed(10).await?;

    let diff: Value = cli.json(&["volume", "diff", "echo", &monday, &tuesday]).await?;
    ensure!(diff["added"] == 1 && diff["changed"] == 1 && diff["removed"] == 0, "{diff:#}");
    ensure!(diff["changes"][0]["path"] == "diary" && diff["changes"][1]["path"] == "photo", "{diff:#}");
    let table = cli.ok(&["volume", "diff", "echo/data", &monday]).await?;
    ensure!(table.contains("photo") && table.contains("added"), "{table}");
    let nothing: Vec<Value> = cli.json(&["volume", "branch"]).await?;
    ensure!(nothing.is_empty(), "nothing was lost: {nothing:?}");

    // Back, and to somewhere else.
    cli.ok(&["volume", "restore", "echo", &monday, "--yes"]).await?;
    volumes.shows("echo", "data", &[("diary", "monday")]).await?;
    cli.ok(&["volume", "restore", "twin", &tuesday, "--of", "echo", "--yes"]).await?;
    volumes.shows("twin", "other", &[("diary", "tuesday"), ("photo", "sun")]).await?;
    volumes.shows("echo", "data", &[("diary", "monday")]).await?;

    // Out, and in again.
    let archive = cluster.scratch("volume.tar").display().to_string();
    cli.ok(&["volume", "export", "echo", &archive, "--generation", &tuesday]).await?;
    cli.ok(&["volume", "import", "echo/data", &archive, "--yes"]).await?;
    volumes.shows("echo", "data", &[("diary", "tuesday"), ("photo", "sun")]).await?;

    // What can't be brought changes nothing, and is said in a sentence.
    let junk = cluster.scratch("junk.tar");
    fs::write(&junk, [7; 4_096])?;
    let refused = cli.run(&["volume", "import", "echo", &junk.display().to_string(), "--yes"]).await?;
    ensure!(refused.code != Some(0) && refused.err.contains("no tar archive"), "{refused:#?}");
    let refused = cli.run(&["volume", "restore", "twin", "9999.1", "--of", "echo", "--yes"]).await?;
    ensure!(refused.code != Some(0) && refused.err.contains("9999.1"), "{refused:#?}");
    let refused = cli.run(&["volume", "diff", "echo", &monday, "9999.1"]).await?;
    ensure!(refused.code != Some(0) && refused.err.contains("9999.1"), "{refused:#?}");
    volumes.shows("echo", "data", &[("diary", "tuesday"), ("photo", "sun")]).await
}

#[tokio::test]
async fn a_hook_that_fails_is_told_and_what_is_written_is_kept_all_the_same() -> Result<()> {
    let cluster = Cluster::start().await?;
    let cli = cluster.cli()?;
    let image = image::echo().await?;
    cluster.deploy(&compose(&image, "[/echo, --no-such-flag]")).await?;
    cluster.runs("echo").await?;
    let volumes = Volumes { cluster, cli };
    fs::write(volumes.directory("echo", "data").join("diary"), "monday")?;
    volumes.committed(6).await?;
    let mut last = Vec::new();
    let told = wait::holds("the failure to be told", LIMIT, async || {
        last = volumes.cli.json(&["volume", "ls"]).await?;
        let told =
            |volume: &Value| volume["message"].as_str().is_some_and(|text| text.contains("`pre` of `data` failed"));
        Ok(last.iter().any(told))
    })
    .await;
    told.with_context(|| format!("{NAME} has {last:#?}"))
}
