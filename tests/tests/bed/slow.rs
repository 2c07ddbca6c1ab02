//! A bed whose machines are as far from each other as homes are: what the figures of a slow network take for granted.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    ops::RangeInclusive,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use flotilla_tests::{
    bed::{Bed, BedSpec, Line, Machine, Nat, probe},
    wait,
};

use crate::machines::pings;

const LIMIT: Duration = Duration::from_secs(30);
/// Nothing is lost, so that a figure does not depend on how TCP takes a loss.
const LOSSLESS: Line = Line { lost: 0, ..Line::HOME };
/// There and back over two such cables, in milliseconds. What comes out within a quarter of one does so together; above, a machine that
/// is busy with something else comes late.
const THERE_AND_BACK: RangeInclusive<f64> = 39.0..=46.0;
/// Enough for TCP to have found the rate long before the end.
const MOVED: usize = 30_000_000;

#[tokio::test]
async fn machines_are_as_far_apart_as_asked_for_and_still_after_an_outage() -> Result<()> {
    let spec = BedSpec::lan(3).shaped(LOSSLESS).without_engines();
    let Some(mut bed) = Bed::up_or_skip(spec).await? else { return Ok(()) };
    let measured = milliseconds(&bed.machines()[0], bed.machines()[1].address()).await?;
    eprintln!("MEASURED there and back: {measured:.1} ms");
    ensure!(THERE_AND_BACK.contains(&measured), "there and back takes {measured} ms");
    // The client is at the switch: there is one cable on the way.
    let to_client = milliseconds(&bed.machines()[0], bed.client()).await?;
    ensure!((19.0..=26.0).contains(&to_client), "to the client and back takes {to_client} ms");

    bed.power_off(1)?;
    ensure!(!pings(&bed.machines()[0], &bed.machines()[1]).await, "a machine that is off answers nothing");
    ensure!(pings(&bed.machines()[0], &bed.machines()[2]).await, "and takes no other's network with it");
    bed.boot(1).await?;
    reaches(&bed, 0, 1).await?;
    let measured = milliseconds(&bed.machines()[1], bed.machines()[0].address()).await?;
    ensure!(THERE_AND_BACK.contains(&measured), "after an outage it takes {measured} ms");

    bed.partition(&[1])?;
    ensure!(!pings(&bed.machines()[0], &bed.machines()[1]).await, "it is cut off");
    bed.heal()?;
    reaches(&bed, 0, 1).await?;
    bed.machine(1).suspend()?;
    ensure!(!pings(&bed.machines()[0], &bed.machines()[1]).await, "a machine that sleeps answers nothing");
    bed.machine(1).wake()?;
    reaches(&bed, 0, 1).await
}

#[tokio::test]
async fn a_home_has_one_line_for_all_its_machines_and_none_between_them() -> Result<()> {
    let spec = BedSpec::internet().behind(Nat::PortRestricted, 2).public(1).shaped(LOSSLESS).without_engines();
    let Some(bed) = Bed::up_or_skip(spec).await? else { return Ok(()) };
    let [one, neighbour, public] = bed.machines() else { anyhow::bail!("three machines") };
    let measured = milliseconds(one, public.address()).await?;
    ensure!(THERE_AND_BACK.contains(&measured), "out of a home and back takes {measured} ms");
    let measured = milliseconds(one, neighbour.address()).await?;
    ensure!(measured < 5.0, "within a home there and back takes {measured} ms");
    Ok(())
}

#[tokio::test]
async fn tcp_gets_the_rate_that_was_asked_for_each_way_at_once_and_no_more() -> Result<()> {
    let spec = BedSpec::lan(2).shaped(LOSSLESS).without_engines();
    let Some(bed) = Bed::up_or_skip(spec).await? else { return Ok(()) };
    let [one, other] = bed.machines() else { anyhow::bail!("two machines") };
    let alone = end_of(transfer(one, other).await?).await?;
    let both = (transfer(one, other).await?, transfer(other, one).await?);
    let both = [end_of(both.0).await?, end_of(both.1).await?];
    eprintln!("MEASURED {alone:.1} Mbit/s alone, {both:.1?} both ways at once");
    for megabits in [alone].into_iter().chain(both) {
        ensure!((70.0..=100.0).contains(&megabits), "{alone} Mbit/s alone, {both:?} both ways at once");
    }
    Ok(())
}

#[tokio::test]
async fn as_many_frames_are_lost_as_were_asked_for_and_the_others_come_in_order() -> Result<()> {
    const SENT: u32 = 10_000;
    let spec = BedSpec::lan(2).shaped(Line { lost: 10_000, ..Line::HOME }).without_engines();
    let Some(bed) = Bed::up_or_skip(spec).await? else { return Ok(()) };
    let [from, to] = bed.machines() else { anyhow::bail!("two machines") };
    wait::holds("both to know each other's address", LIMIT, async || Ok(pings(from, to).await)).await?;
    let inbox = end_of(on(to, || Ok(UdpSocket::bind("0.0.0.0:0")?))?).await?;
    let address = (to.address(), inbox.local_addr()?.port());
    let hears = on(to, move || hear(&inbox))?;
    let sends = on(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for number in 0..SENT {
            socket.send_to(&number.to_be_bytes(), address)?;
            // What hears them has room for about 250.
            if number % 20 == 19 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    })?;
    end_of(sends).await?;
    let heard = end_of(hears).await?;
    ensure!(heard.is_sorted_by(|earlier, later| earlier < later), "one came twice, or after a later one");
    let lost = SENT as usize - heard.len();
    eprintln!("MEASURED {lost} of {SENT} lost");
    // A hundredth on each of two cables: 199, and the deviation is 14.
    ensure!((130..270).contains(&lost), "{lost} of {SENT} are lost");
    Ok(())
}

/// Runs on the network of a machine.
fn on<T: Send + 'static>(
    machine: &Machine,
    what: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let namespace = machine.probe()?.namespace().to_owned();
    Ok(std::thread::spawn(move || {
        probe::enter_network(&namespace)?;
        what()
    }))
}

async fn end_of<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    wait::holds("what a machine does", LIMIT, async || Ok(thread.is_finished())).await?;
    thread.join().map_err(|_| anyhow!("it panicked"))?
}

/// All that comes, until nothing has for a while.
fn hear(inbox: &UdpSocket) -> Result<Vec<u32>> {
    inbox.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut heard, mut number) = (Vec::new(), [0; 4]);
    while let Ok(read) = inbox.recv(&mut number) {
        ensure!(read == number.len(), "{read} bytes came");
        heard.push(u32::from_be_bytes(number));
    }
    Ok(heard)
}

/// Moves bytes by TCP, and tells how many megabits came in a second.
async fn transfer(from: &Machine, to: &Machine) -> Result<JoinHandle<Result<f64>>> {
    let listener = end_of(on(to, || Ok(TcpListener::bind("0.0.0.0:0")?))?).await?;
    let address = (to.address(), listener.local_addr()?.port());
    on(from, move || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&vec![7; MOVED])?;
        Ok(())
    })?;
    on(to, move || {
        let mut stream = listener.accept()?.0;
        let (begun, mut bytes, mut piece) = (Instant::now(), 0, vec![0; 64 * 1024]);
        while let read @ 1.. = stream.read(&mut piece)? {
            bytes += read;
        }
        ensure!(bytes == MOVED, "{bytes} bytes came");
        Ok(bytes as f64 * 8.0 / 1e6 / begun.elapsed().as_secs_f64())
    })
}

/// How long a ping takes there and back, as a rule.
async fn milliseconds(from: &Machine, to: Ipv4Addr) -> Result<f64> {
    // The first asks for an address as well.
    let told = from.exec(&["busybox", "ping", "-c", "12", "-i", "0.1", &to.to_string()]).await?;
    let mut times: Vec<f64> =
        told.lines().filter_map(|line| line.split_once("time=")?.1.strip_suffix(" ms")?.parse().ok()).skip(1).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().with_context(|| format!("no answers: {told}"))
}

async fn reaches(bed: &Bed, from: usize, to: usize) -> Result<()> {
    // An address that did not answer is asked for again only after a second.
    wait::holds("the network", LIMIT, async || Ok(pings(&bed.machines()[from], &bed.machines()[to]).await)).await
}
