//! The bed itself: what the other tests take for granted of it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use flotilla_tests::{
    beat::{self, Beat},
    bed::{Bed, BedSpec, FileSystem, Line, Machine, Nat, probe},
    checker::Checker,
    image,
    poller::Poller,
    process::run,
    wait,
};
use tokio::net::{TcpStream, UdpSocket};

/// Whatever happens within simulated machines.
const LIMIT: Duration = Duration::from_secs(20);
/// A packet on a network of this kind takes far less, if it comes at all.
const PACKET_LIMIT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn machines_are_apart_and_only_the_network_joins_them() -> Result<()> {
    let Some(mut bed) = Bed::up_or_skip(BedSpec::lan(3).without_engines()).await? else { return Ok(()) };
    let [m1, m2, _] = bed.machines() else { anyhow::bail!("three machines were asked for") };
    ensure!(m1.exec(&["hostname"]).await?.trim() == "m1");
    ensure!(m1.exec(&["sh", "-c", "echo $$; ls /run"]).await? != m2.exec(&["sh", "-c", "echo $$; ls /run; id"]).await?);
    let processes = m1.exec(&["ps", "-e", "-o", "comm="]).await?;
    ensure!(!processes.contains("cargo"), "a machine sees no process but its own: {processes}");
    m1.exec(&["touch", "/srv/mine"]).await?;
    ensure!(m2.exec(&["test", "-e", "/srv/mine"]).await.is_err(), "disks are not shared");
    ensure!(m1.exec(&["ip", "route", "get", "192.0.2.1"]).await.is_err(), "no way leads out");
    ensure!(TcpStream::connect("192.0.2.1:80").await.is_err(), "nor out of the test itself");

    ensure!(pings(m1, m2).await, "machines reach each other");
    bed.cut(0, 1)?;
    ensure!(!pings(&bed.machines()[0], &bed.machines()[1]).await, "a pair is cut");
    ensure!(pings(&bed.machines()[0], &bed.machines()[2]).await, "and no more than the pair");
    bed.heal()?;
    bed.partition(&[2])?;
    ensure!(
        !pings(&bed.machines()[0], &bed.machines()[2]).await && !pings(&bed.machines()[2], &bed.machines()[1]).await
    );
    ensure!(pings(&bed.machines()[0], &bed.machines()[1]).await, "the other side is whole");
    bed.heal()?;
    // An address that did not answer is asked for again only after a second.
    wait::holds("all to be healed", LIMIT, async || Ok(pings(&bed.machines()[2], &bed.machines()[1]).await)).await?;

    bed.machine(1).suspend()?;
    ensure!(!pings(&bed.machines()[0], &bed.machines()[1]).await, "a machine that sleeps answers nothing");
    bed.machine(1).wake()?;
    ensure!(pings(&bed.machines()[0], &bed.machines()[1]).await, "and does when it is awake");
    Ok(())
}

#[tokio::test]
async fn a_power_loss_says_no_goodbye_and_takes_what_was_not_synced() -> Result<()> {
    for (file_system, name) in [(FileSystem::Xfs, "xfs"), (FileSystem::Ext4, "ext4")] {
        let spec = BedSpec::lan(2).without_engines().file_system(file_system);
        let Some(bed) = Bed::up_or_skip(spec).await? else { return Ok(()) };
        let mounts = bed.machines()[0].exec(&["cat", "/proc/mounts"]).await?;
        ensure!(mounts.contains(&format!(" /srv {name} ")), "{mounts}");
        loses_power(bed).await?;
    }
    Ok(())
}

async fn loses_power(mut bed: Bed) -> Result<()> {
    let m1 = &bed.machines()[0];
    m1.exec(&["sh", "-c", "echo a >/srv/synced; sync /srv/synced /srv; echo b >/srv/lost; touch /run/gone"]).await?;
    let mut listener = m1.command("busybox")?;
    let _listener = listener.args(["nc", "-l", "-p", "7000", "-e", "sleep", "1000"]).kill_on_drop(true).spawn()?;
    let address = SocketAddr::from((m1.address(), 7000));
    let stream = wait::until("a connection", LIMIT, async || Ok(TcpStream::connect(address).await.ok())).await?;

    let off = Instant::now();
    bed.power_off(0)?;
    ensure!(off.elapsed() < Duration::from_secs(3), "it took {:?}", off.elapsed());
    let mut byte = [0];
    let heard = tokio::time::timeout(PACKET_LIMIT, stream.readable()).await.map(|_| stream.try_read(&mut byte));
    ensure!(heard.is_err(), "whoever was connected hears nothing, not even an end: {heard:?}");
    ensure!(bed.machines()[0].exec(&["true"]).await.is_err(), "it is off");

    bed.boot(0).await?;
    let m1 = &bed.machines()[0];
    ensure!(m1.exec(&["cat", "/srv/synced"]).await? == "a\n");
    ensure!(m1.exec(&["test", "-s", "/srv/lost"]).await.is_err(), "what was not synced is gone");
    ensure!(m1.exec(&["test", "-e", "/run/gone"]).await.is_err(), "/run is empty");
    ensure!(pings(m1, &bed.machines()[1]).await, "it is on the network again");
    Ok(())
}

/// Of the process that [`what_a_killed_run_has_left_is_taken_down`] kills: it says where its bed is, and goes on for ever.
#[tokio::test]
#[ignore = "it is run by another test"]
async fn a_run_that_is_killed() -> Result<()> {
    let bed = Bed::up(BedSpec::lan(1).shaped(Line::HOME)).await?;
    // The harness of tests swallows what is printed.
    std::fs::write(std::env::var("FLOTILLA_BED_TOLD")?, bed.scratch("").display().to_string())?;
    std::future::pending().await
}

#[tokio::test]
async fn what_a_killed_run_has_left_is_taken_down_by_the_next() -> Result<()> {
    let told = tempfile::NamedTempFile::new()?;
    let Some(first) = Bed::up_or_skip(BedSpec::lan(1).without_engines()).await? else { return Ok(()) };
    let mut other = tokio::process::Command::new(std::env::current_exe()?);
    other.args(["--ignored", "--exact", "machines::a_run_that_is_killed"]).env("FLOTILLA_BED_TOLD", told.path());
    let mut other = other.stdout(std::process::Stdio::null()).kill_on_drop(true).spawn()?;
    let directory = wait::until("the other's bed", 3 * LIMIT, async || {
        let told = std::fs::read_to_string(told.path())?;
        Ok((!told.is_empty()).then(|| std::path::PathBuf::from(told)))
    })
    .await?;
    ensure!(directory.join("m1/run/docker.sock").exists(), "it has a machine with an engine");
    other.kill().await?;
    ensure!(directory.exists(), "it could not clean up");
    let id = directory.file_name().and_then(|name| name.to_str()).context("a bed's directory has its name")?;
    let traces = || -> Result<String> {
        let mut found = std::fs::read_to_string("/proc/mounts")?;
        for directory in ["/run/netns", "/run/flotilla-bed", "/var/lib/flotilla-bed"] {
            for entry in std::fs::read_dir(directory)? {
                found.push_str(&entry?.path().display().to_string());
            }
        }
        for process in std::fs::read_dir("/proc")?.flatten() {
            // One that has ended and was not collected yet names its group, which is gone, for as long as that takes.
            let groups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
            let there = groups.lines().filter(|group| !group.ends_with(" (deleted)"));
            found.extend(there.flat_map(|group| [group, "\n"]));
        }
        Ok(found)
    };
    ensure!(traces()?.contains(id), "this test could not fail");
    let second = Bed::up(BedSpec::lan(1).without_engines()).await?;
    let left: Vec<String> = traces()?.lines().filter(|line| line.contains(id)).map(ToOwned::to_owned).collect();
    ensure!(left.is_empty(), "this is left: {left:#?}");
    ensure!(first.machines()[0].exec(&["true"]).await.is_ok(), "and nothing of those who live");
    drop(second);
    ensure!(first.machines()[0].exec(&["true"]).await.is_ok(), "a bed takes down its own alone");
    Ok(())
}

#[tokio::test]
async fn each_engine_is_its_own_and_the_checker_sees_what_really_runs() -> Result<()> {
    let Some(mut bed) = Bed::up_or_skip(BedSpec::lan(2)).await? else { return Ok(()) };
    let image = image::beat().await?;
    let archive = bed.scratch("beat.tar");
    image.write(&archive)?;
    for machine in bed.machines() {
        machine.load(&archive).await?;
    }
    let checker = Checker::watch(&bed, &["notes"])?;
    let first = start(&bed.machines()[0], &image.reference, 1).await?;
    ensure!(containers(&bed.machines()[1]).await?.is_empty(), "an engine sees its own containers alone");
    wait::holds("the checker to see it", LIMIT, async || Ok(checker.running("notes") == [("m1".to_owned(), 1)]))
        .await?;
    wait::holds("it to answer", LIMIT, async || Ok(ask(&bed.machines()[0], &first).await.is_ok())).await?;

    run(bed.machines()[0].docker().args(["pause", &first]), LIMIT).await?;
    wait::holds("the checker to see it frozen", LIMIT, async || Ok(checker.running("notes").is_empty())).await?;
    // While the first is frozen another may run.
    let second = start(&bed.machines()[1], &image.reference, 2).await?;
    wait::holds("the second", LIMIT, async || Ok(ask(&bed.machines()[1], &second).await.is_ok())).await?;
    bed.power_off(1)?;
    wait::holds("the second to be gone", LIMIT, async || Ok(checker.running("notes").is_empty())).await?;
    run(bed.machines()[0].docker().args(["rm", "-f", &first]), LIMIT).await?;
    bed.boot(1).await?;
    let seen = checker.finish()?;
    ensure!(seen.epochs("notes") == [1, 2], "{seen}");

    // And two at once are found, by the kernel's word and by what they wrote.
    let checker = Checker::watch(&bed, &["notes"])?;
    start(&bed.machines()[0], &image.reference, 3).await?;
    start(&bed.machines()[1], &image.reference, 4).await?;
    wait::holds("both to be seen", LIMIT, async || Ok(checker.running("notes").len() == 2)).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let error = checker.finish().err().context("two at one time were not noticed")?;
    ensure!(error.to_string().contains("two instances ran at one time"), "{error:#}");
    ensure!(error.to_string().contains("Wrote"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn an_engine_can_be_killed_and_its_machine_lose_power() -> Result<()> {
    let Some(mut bed) = Bed::up_or_skip(BedSpec::lan(1).engine_flags(&["--live-restore"])).await? else {
        return Ok(());
    };
    let archive = bed.scratch("beat.tar");
    let image = image::beat().await?;
    image.write(&archive)?;
    bed.machines()[0].load(&archive).await?;
    let id = start(&bed.machines()[0], &image.reference, 1).await?;
    let probe = bed.machines()[0].probe()?;
    wait::holds("it to run", LIMIT, async || Ok(probe.running()?.len() == 1)).await?;
    bed.machine(0).kill_engine().await?;
    ensure!(probe.running()?.len() == 1, "containers are left when their engine is killed");
    bed.machine(0).start_engine().await?;
    let poller = {
        let address = SocketAddr::from((address(&bed.machines()[0], &id).await?, beat::PORT));
        let namespace = probe.namespace().to_owned();
        Poller::start(move || {
            probe::enter_network(&namespace).expect("the machine is on");
            move || async move {
                let answer = reqwest::get(format!("http://{address}/")).await?.error_for_status()?;
                Ok(answer.json::<Beat>().await?.host)
            }
        })?
    };
    wait::holds("answers", LIMIT, async || Ok(poller.so_far().asked.len() > 20)).await?;
    let polls = poller.finish()?;
    ensure!(polls.failed() == 0 && polls.gap() < Duration::from_millis(500), "{polls}");

    bed.machines()[0].fill_disk().await?;
    ensure!(bed.machines()[0].exec(&["dd", "if=/dev/zero", "of=/srv/more", "bs=64k", "count=4"]).await.is_err());
    bed.machines()[0].free_disk().await?;
    bed.machines()[0].exec(&["dd", "if=/dev/zero", "of=/srv/more", "bs=64k", "count=4"]).await?;

    bed.power_off(0)?;
    ensure!(probe.running()?.is_empty());
    bed.boot(0).await?;
    ensure!(containers(&bed.machines()[0]).await? == [id], "the engine remembers its containers");
    ensure!(probe.running()?.is_empty(), "and starts none");
    Ok(())
}

#[tokio::test]
async fn a_router_lets_in_what_its_kind_of_nat_does() -> Result<()> {
    let spec = BedSpec::internet()
        .behind(Nat::FullCone, 1)
        .behind(Nat::PortRestricted, 2)
        .behind(Nat::Symmetric, 1)
        .without_engines();
    let Some(bed) = Bed::up_or_skip(spec).await? else { return Ok(()) };
    let [cone, restricted, neighbour, symmetric] = bed.machines() else { anyhow::bail!("four machines") };
    ensure!(!pings(cone, restricted).await, "what is behind a router has no address for others");
    ensure!(pings(restricted, neighbour).await, "but has for those beside it");
    // The test itself is on the Internet: two sockets of one address.
    let known = UdpSocket::bind("0.0.0.0:0").await?;
    let stranger = UdpSocket::bind("0.0.0.0:0").await?;
    let other = UdpSocket::bind("0.0.0.0:0").await?;
    for (machine, anyone_gets_in, one_mapping) in
        [(cone, true, true), (restricted, false, true), (symmetric, false, false)]
    {
        let to = [known.local_addr()?, other.local_addr()?].map(|to| SocketAddr::from((bed.client(), to.port())));
        let sender = std::thread::spawn({
            let namespace = machine.probe()?.namespace().to_owned();
            move || send_and_hear(&namespace, &to)
        });
        let (from, again) = (receive(&known).await?, receive(&other).await?);
        ensure!((from == again) == one_mapping, "{} is seen as {from} and as {again}", machine.name());
        stranger.send_to(b"stranger", from).await?;
        known.send_to(b"known", from).await?;
        let heard = wait::until("the sender", LIMIT, async || Ok(sender.is_finished().then_some(()))).await;
        heard?;
        let heard = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        ensure!(heard.contains(&"known".to_owned()), "{} hears whom it wrote to: {heard:?}", machine.name());
        ensure!(heard.contains(&"stranger".to_owned()) == anyone_gets_in, "{} heard {heard:?}", machine.name());
    }
    Ok(())
}

/// From one socket in a machine to others; then whatever comes in.
fn send_and_hear(namespace: &str, to: &[SocketAddr]) -> Result<Vec<String>> {
    probe::enter_network(namespace)?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:5000")?;
    for to in to {
        socket.send_to(b"hello", to)?;
    }
    socket.set_read_timeout(Some(PACKET_LIMIT))?;
    let mut heard = Vec::new();
    let mut bytes = [0; 64];
    while let Ok((length, _)) = socket.recv_from(&mut bytes) {
        heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    Ok(heard)
}

async fn receive(socket: &UdpSocket) -> Result<SocketAddr> {
    let mut bytes = [0; 64];
    Ok(tokio::time::timeout(LIMIT, socket.recv_from(&mut bytes)).await.context("a packet from behind a router")??.1)
}

pub(crate) async fn pings(from: &Machine, to: &Machine) -> bool {
    from.exec(&["busybox", "ping", "-c", "1", "-W", "1", &to.address().to_string()]).await.is_ok()
}

/// An instance as our node would start it, as far as a checker can tell.
async fn start(machine: &Machine, image: &str, epoch: u64) -> Result<String> {
    machine.exec(&["mkdir", "-p", "/srv/volume"]).await?;
    let epoch = format!("flotilla.epoch={epoch}");
    let started = run(
        machine.docker().args(["run", "-d", "--label", "flotilla.service=notes", "--label", &epoch]).args([
            "-v",
            "/srv/volume:/data",
            image,
        ]),
        LIMIT,
    )
    .await?;
    Ok(started.trim().to_owned())
}

async fn containers(machine: &Machine) -> Result<Vec<String>> {
    let listed = run(machine.docker().args(["ps", "-aq", "--no-trunc"]), LIMIT).await?;
    Ok(listed.lines().map(ToOwned::to_owned).collect())
}

async fn address(machine: &Machine, id: &str) -> Result<std::net::Ipv4Addr> {
    let mut inspect = machine.docker();
    inspect.args(["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", id]);
    Ok(run(&mut inspect, LIMIT).await?.trim().parse()?)
}

async fn ask(machine: &Machine, id: &str) -> Result<Beat> {
    let url = format!("http://{}:{}/", address(machine, id).await?, beat::PORT);
    let answer = machine.exec(&["busybox", "wget", "-q", "-O", "-", &url]).await?;
    Ok(serde_json::from_str(&answer)?)
}
