//! A cable that is slow: a TAP device at each end, and a thread that carries each frame from one to the other when a [`Line`] has it
//! come out. What a TAP device is given leaves its sender's buffers at once, as on a real cable, and is cut into frames with their
//! checksums before: the kernel leaves nothing of that to a device that offers no offloads.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::setpriority_process,
};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::{
    line::{Lane, Line},
    probe,
};

/// The largest frame, with room for a tag. Bytes.
const FRAME_MAX: usize = 1_522;
/// Read from one end before the others have their turn.
const AT_ONCE: usize = 64;
/// What comes out within this time comes out together, so that a full cable wakes nobody for each frame.
const GRAIN: Duration = Duration::from_micros(250);
/// Before whatever the machines do on the same processors: a cable does not wait for them.
const PRIORITY: i32 = -15;

/// One end: a namespace, and the name that the device gets there.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) namespace: String,
    pub(super) device: String,
}

/// Both devices are there as long as it is.
#[derive(Debug)]
pub(super) struct Cable {
    /// Closed, it ends the thread.
    held: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    /// `number`: of the cable in its network.
    pub(super) fn lay(line: Line, number: usize, ends: [End; 2]) -> Result<Self> {
        let (held, ended) = UnixStream::pair()?;
        let (tell, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("cable-{number}")).spawn(move || {
            let carrier = match Carrier::new(line, number, &ends, ended) {
                Ok(carrier) => carrier,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let _ = tell.send(Ok(()));
            if let Err(error) = carrier.carry() {
                eprintln!("a cable broke: {error:#}");
            }
        })?;
        let cable = Self { held: Some(held), thread: Some(thread) };
        told.recv().map_err(|_| anyhow!("the thread of a cable ended"))??;
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.held = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Carrier {
    ends: [SyncDevice; 2],
    /// By the end that they begin at.
    lanes: [Lane<Vec<u8>>; 2],
    ended: UnixStream,
}

impl Carrier {
    fn new(line: Line, number: usize, ends: &[End; 2], ended: UnixStream) -> Result<Self> {
        // Of this thread alone, on Linux. Where it may not, it is less exact while the processors are busy.
        let _ = setpriority_process(None, PRIORITY);
        let [one, other] = ends;
        let lane = |direction| Lane::new(line, (number * 2 + direction) as u64);
        Ok(Self { ends: [tap(one)?, tap(other)?], lanes: [lane(0), lane(1)], ended })
    }

    fn carry(mut self) -> Result<()> {
        let mut frame = [0; FRAME_MAX];
        loop {
            let (mut more, mut next) = (false, None);
            for (from, lane) in self.lanes.iter_mut().enumerate() {
                more |= fill(lane, &self.ends[from], &mut frame)?;
                while let Some(frame) = lane.take(Instant::now() + GRAIN) {
                    // Where the device is down, the cable is out.
                    let _ = self.ends[1 - from].send(&frame);
                }
                next = next.into_iter().chain(lane.next()).min();
            }
            if !more && !self.wait(next)? {
                return Ok(());
            }
        }
    }

    /// Until a frame goes in or is about to come out; `false` at the end.
    fn wait(&self, next: Option<Instant>) -> Result<bool> {
        let [one, other] = &self.ends;
        let mut waited_for =
            [one.as_fd(), other.as_fd(), self.ended.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let until = next.map(|next| Timespec::try_from(next.saturating_duration_since(Instant::now()))).transpose()?;
        match poll(&mut waited_for, until.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for frames"),
        }
        let [one, other, ended] = waited_for.map(|waited| waited.revents());
        if !ended.is_empty() {
            return Ok(false);
        }
        // The namespace was taken away.
        anyhow::ensure!(!(one | other).contains(PollFlags::ERR), "a device is gone");
        Ok(true)
    }
}

/// Puts in what has come; tells whether there is more.
fn fill(lane: &mut Lane<Vec<u8>>, from: &SyncDevice, frame: &mut [u8]) -> Result<bool> {
    for _ in 0..AT_ONCE {
        match from.recv(frame) {
            Ok(bytes) => lane.put(Instant::now(), bytes, frame[..bytes].to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("read a frame"),
        }
    }
    Ok(true)
}

/// A device in a namespace, which the thread is in from then on.
fn tap(end: &End) -> Result<SyncDevice> {
    probe::enter_network(&end.namespace)?;
    let device = DeviceBuilder::new().name(&end.device).layer(Layer::L2).inherit_enable_state().build_sync();
    let device = device.with_context(|| format!("make the TAP device {} in {}", end.device, end.namespace))?;
    device.set_nonblocking(true)?;
    Ok(device)
}
