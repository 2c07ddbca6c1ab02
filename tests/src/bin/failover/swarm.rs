//! Docker Swarm on the same machines: three managers, one service of the same image, power loss of the machine that runs it.
//!
//! Swarm's routing mesh needs IPVS, which not every kernel has, so the service's port is published by the machine that runs it,
//! and its visitor asks all machines at once, every 50 ms. That is kinder to Swarm than the mesh is: no way to a machine that is
//! gone has to be given up first.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use flotilla_tests::{
    beat::{self, Beat},
    bed::{Bed, BedSpec, Machine, probe::clock},
    image,
    poller::Poller,
    process::run,
    wait,
};
use futures::future::select_ok;

use flotilla_tests::series::{Report, Series, Unit};

const MACHINES: usize = 3;
const SERVICE: &str = "pages";
/// A command of `docker` that talks to the managers.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Until a service runs.
const SETTLED_LIMIT: Duration = Duration::from_secs(60);
/// Swarm with its defaults takes most of a minute where a manager is lost with the service.
const BACK_LIMIT: Duration = Duration::from_secs(180);
/// A machine that is there answers in a millisecond or two.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

pub(crate) async fn measure(runs: usize, report: &mut Report) -> Result<()> {
    for (lost, leads) in [("a worker", false), ("the leader with the service", true)] {
        for (heartbeat, how) in [(None, "as it comes"), (Some("1s"), "heartbeat 1 s")] {
            let what = format!("Docker Swarm {how}, power loss of {lost}");
            let mut gaps = Series::new(&what, Unit::Seconds);
            for run in 1..=runs {
                match once(leads, heartbeat).await {
                    Ok(gap) => gaps.add_time(gap),
                    Err(error) => report.failed(&format!("{what}, run {run}"), &error),
                }
            }
            report.add(gaps);
        }
    }
    Ok(())
}

async fn once(leads: bool, heartbeat: Option<&str>) -> Result<Duration> {
    let mut bed = Bed::up(BedSpec::lan(MACHINES)).await?;
    let archive = bed.scratch("beat.tar");
    let image = image::beat().await?;
    image.write(&archive)?;
    for machine in bed.machines() {
        machine.load(&archive).await?;
    }
    let leader = &bed.machines()[0];
    docker(leader, &["swarm", "init", "--advertise-addr", &leader.address().to_string()]).await?;
    let token = docker(leader, &["swarm", "join-token", "-q", "manager"]).await?;
    let address = format!("{}:2377", leader.address());
    for machine in &bed.machines()[1..] {
        docker(machine, &["swarm", "join", "--token", token.trim(), &address]).await?;
    }
    if let Some(heartbeat) = heartbeat {
        docker(leader, &["swarm", "update", "--dispatcher-heartbeat", heartbeat]).await?;
    }
    let host = usize::from(!leads);
    place(&bed, host, &image.reference).await?;

    let addresses = bed.machines().iter().map(|machine| SocketAddr::from((machine.address(), beat::PORT)));
    let addresses: Vec<SocketAddr> = addresses.collect();
    let poller = Poller::start(move || {
        let client = reqwest::Client::builder().timeout(ANSWER_LIMIT).pool_max_idle_per_host(0).build();
        let client = client.expect("a client without special wishes");
        move || ask(client.clone(), addresses.clone())
    })?;
    wait::holds("it to answer", SETTLED_LIMIT, async || {
        Ok(poller.so_far().asked.iter().any(|asked| asked.answer.is_ok()))
    })
    .await?;
    let former = poller.so_far().asked.into_iter().find_map(|asked| asked.answer.ok()).context("it answers")?;

    let (event, at) = (clock(), Instant::now());
    bed.power_off(host)?;
    wait::holds("it to be back", BACK_LIMIT, async || {
        Ok(poller.so_far().back_after(event, |who| who != former).is_some())
    })
    .await?;
    let polls = poller.finish()?;
    let gap = polls.gap();
    ensure!(gap <= at.elapsed(), "it did not answer before its machine was lost: {polls}");
    Ok(gap)
}

/// Starts the service, on one machine.
async fn place(bed: &Bed, host: usize, image: &str) -> Result<()> {
    let leader = &bed.machines()[0];
    let others: Vec<&str> =
        bed.machines().iter().enumerate().filter(|(index, _)| *index != host).map(|(_, other)| other.name()).collect();
    wait::holds("all machines to be ready", SETTLED_LIMIT, async || {
        let listed = docker(leader, &["node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}"]).await?;
        Ok(listed.lines().filter(|line| matches!(*line, "Ready Leader" | "Ready Reachable")).count() == MACHINES)
    })
    .await?;
    for other in &others {
        docker(leader, &["node", "update", "--availability", "drain", other]).await?;
    }
    let published = format!("mode=host,target={0},published={0}", beat::PORT);
    let create = [
        "service",
        "create",
        "--detach",
        "--name",
        SERVICE,
        "--replicas",
        "1",
        "--no-resolve-image",
        "--publish",
        &published,
        image,
    ];
    docker(leader, &create).await?;
    wait::holds("the service to run", SETTLED_LIMIT, async || {
        let listed = docker(leader, &["service", "ps", SERVICE, "--format", "{{.Node}} {{.CurrentState}}"]).await?;
        Ok(listed.starts_with(&format!("{} Running", bed.machines()[host].name())))
    })
    .await?;
    for other in &others {
        docker(leader, &["node", "update", "--availability", "active", other]).await?;
    }
    Ok(())
}

/// Whoever answers first.
async fn ask(client: reqwest::Client, addresses: Vec<SocketAddr>) -> Result<String> {
    let asked = addresses.into_iter().map(|address| {
        let client = client.clone();
        Box::pin(async move {
            let answer = client.get(format!("http://{address}/")).send().await?.error_for_status()?;
            Ok::<_, reqwest::Error>(answer.json::<Beat>().await?.host)
        })
    });
    Ok(select_ok(asked).await?.0)
}

async fn docker(machine: &Machine, arguments: &[&str]) -> Result<String> {
    run(machine.docker().args(arguments), COMMAND_LIMIT).await
}
