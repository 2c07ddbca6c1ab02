//! Planned moves: nobody's request fails.

use std::time::Instant;

use anyhow::Result;
use flotilla_tests::{
    bed::{
        Cluster,
        cluster::{SETTLED_LIMIT, Sample},
    },
    wait,
};

use flotilla_tests::series::{Report, Series, Unit};

const MACHINES: usize = 3;
const PAGES: Sample<'static> = Sample::stateless("pages");

pub(crate) async fn drain(runs: usize, report: &mut Report) -> Result<()> {
    let mut gaps = Series::new("drain, longest time without an answer", Unit::Seconds);
    let mut failed = Series::new("drain, failed requests", Unit::Requests).at_most(0.0);
    let mut emptied = Series::new("drain, until the machine is empty", Unit::Seconds);
    let cluster = Cluster::up(MACHINES).await?;
    let leader = cluster.leader().await?;
    cluster.deploy_to((leader + 1) % MACHINES, &[PAGES]).await?;
    for _ in 0..runs {
        let host = cluster.runs(PAGES.name).await?[0];
        let through = cluster.all_but(host);
        let visitor = cluster.visit(PAGES.name, &through).await?;
        let at = Instant::now();
        cluster.empty(host).await?;
        emptied.add_time(at.elapsed());
        gaps.add_time(visitor.outage_since(at).await?.gap);
        failed.add(visitor.leave()?.failed as f64);
        cluster.client(cluster.leader().await?)?.undrain(&cluster.name(host)?).await?;
        cluster.ready(host).await?;
        cluster.stands_by(PAGES.name).await?;
    }
    [gaps, failed, emptied].into_iter().for_each(|series| report.add(series));
    Ok(())
}

pub(crate) async fn update(runs: usize, report: &mut Report) -> Result<()> {
    let mut gaps = Series::new("update, longest time without an answer", Unit::Seconds);
    let mut failed = Series::new("update, failed requests", Unit::Requests).at_most(0.0);
    let mut updated = Series::new("update, until the new revision alone runs", Unit::Seconds);
    let cluster = Cluster::up(MACHINES).await?;
    let leader = cluster.leader().await?;
    cluster.deploy_to((leader + 1) % MACHINES, &[PAGES]).await?;
    for run in 0..runs {
        let visitor = cluster.visit(PAGES.name, &[0, 1, 2]).await?;
        let before = cluster.service(PAGES.name).await?.view.revision;
        let at = Instant::now();
        let next = Sample { revision: 2 + u32::try_from(run)?, ..PAGES };
        cluster.deploy(&cluster.compose(&[next])).await?;
        wait::holds("the new revision", SETTLED_LIMIT, async || {
            cluster.runs(PAGES.name).await?;
            Ok(cluster.service(PAGES.name).await?.view.revision > before)
        })
        .await?;
        updated.add_time(at.elapsed());
        gaps.add_time(visitor.outage_since(at).await?.gap);
        failed.add(visitor.leave()?.failed as f64);
    }
    [gaps, failed, updated].into_iter().for_each(|series| report.add(series));
    Ok(())
}
