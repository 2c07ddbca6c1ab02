//! A node that nobody asks for anything, with one service beside it.

use std::time::Duration;

use anyhow::Result;
use flotilla_tests::{cluster::Cluster, image};
use tokio::time::sleep;

use crate::{
    echoing,
    report::{Goal, Report},
};

/// What starting up has caused is over by then.
const SETTLE: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_secs(30);

pub(crate) async fn measure(report: &mut Report) -> Result<()> {
    let cluster = Cluster::start().await?;
    let image = image::echo().await?;
    cluster.deploy(&echoing(&image)).await?;
    sleep(SETTLE).await;
    let before = cluster.node()?.cpu()?;
    sleep(WATCHED).await;
    let used = cluster.node()?.cpu()? - before;
    let memory = cluster.node()?.memory()?.resident;
    report.add("idle node, memory", memory as f64 / 1e6, "MB", Some(Goal::AtMost(60.0)));
    let share = used.as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    report.add("idle node, of one core", share, "%", Some(Goal::AtMost(1.0)));
    Ok(())
}
