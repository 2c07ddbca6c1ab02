//! JupyterLab as it comes from PyPI: hundreds of files, an API, and a kernel behind a WebSocket.

use std::time::Duration;

use anyhow::{Result, ensure};
use flotilla_tests::{cluster::Cluster, image, wait};
use thirtyfour::Key;

use super::{signed_in, tunnel::carried_only_bootstrap};

/// JupyterLab loads 10 MB of scripts and starts a kernel.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_cell_of_a_notebook_runs_in_its_kernel() -> Result<()> {
    let (cluster, browser) = signed_in("jupyter", Cluster::with().tapped()).await?;
    let image = image::jupyter().await?;
    cluster
        .deploy(&format!(
            "services:\n  lab:\n    image: {image}\n    ports: [\"8888\"]\n    volumes: [\"work:/home/jovyan/work\"]\nvolumes:\n  work: {{}}\n"
        ))
        .await?;
    // Which leads to `/lab`; a link to that would be seen by the listener, as the first page of a browser is.
    browser.goto(&cluster.url("lab", "/")).await?;
    wait::holds("JupyterLab's launcher", LIMIT, async || {
        browser.enter_app().await?;
        Ok(browser.count(".jp-LauncherCard[data-category='Notebook']").await? > 0)
    })
    .await?;
    browser.leave_frames().await?;
    browser.picture("launcher").await?;
    browser.enter_app().await?;
    browser.click(".jp-LauncherCard[data-category='Notebook']").await?;

    let editor = ".jp-Notebook .jp-CodeCell .cm-content";
    browser.find(editor).await?;
    wait::holds("an idle kernel", LIMIT, async || {
        Ok(browser.count(".jp-Notebook-ExecutionIndicator[data-status='idle']").await? > 0)
    })
    .await?;
    // The indicator says idle before there is a kernel; the status bar does not, and what is run without one is dropped.
    browser.sees_within("#jp-main-statusbar", "ipykernel) | Idle", LIMIT).await?;
    browser.click(editor).await?;
    browser.type_into(editor, "import platform; print('answer', 6 * 7, platform.system())").await?;
    browser.find(editor).await?.send_keys(Key::Shift + Key::Enter).await?;
    let output = browser.sees_within(".jp-OutputArea-output", "answer 42 Linux", LIMIT).await?;
    ensure!(!output.contains("Error"), "{output}");
    browser.leave_frames().await?;
    browser.picture("cell").await?;

    let Some(tap) = &cluster.tap else { unreachable!("the cluster was started with one") };
    for secret in ["answer 42", "ipykernel", "jupyter-config-data", "/api/kernels"] {
        ensure!(!tap.carried(secret), "`{secret}` went over HTTP");
    }
    carried_only_bootstrap(&cluster)?;
    browser.close().await
}
