//! The daemon's side of the talk with its guard: takes over one that is there, starts one where it is missing, at once.

use std::{
    fs::OpenOptions,
    io::{self, BufRead as _, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::Stdio,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use flotilla_core::lease::RENEW_EVERY_MS;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Form, GUARD_PATIENCE, Plan, Shared, guard,
    wire::{self, Answer, Ask},
};

/// From the start of a guard until it answers; on a busy machine a program takes a while to be loaded.
const START_LIMIT: Duration = Duration::from_secs(5);
const START_STEP: Duration = Duration::from_millis(5);

/// Pauses before a guard is started again that died young: the first is none to speak of.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(2);
const YOUNG: Duration = Duration::from_secs(10);

/// The guard's log begins anew when it is larger. Bytes.
const LOG_MAX: u64 = 256 * 1024;

/// A guard that answered.
#[derive(Debug)]
pub(super) struct Link {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Containers that it had frozen when it answered last.
    freezes: u64,
}

impl Link {
    fn new(stream: UnixStream, freezes: u64) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer, freezes }
    }

    async fn ask(&mut self, ask: &Ask) -> io::Result<Answer> {
        let exchange = async {
            self.writer.write_all(&wire::line(ask)?).await?;
            wire::read(&mut self.reader).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        timeout(GUARD_PATIENCE, exchange).await.map_err(io::Error::from).flatten()
    }

    /// Resolves when the guard has gone: it says nothing without being asked.
    async fn gone(&mut self) -> io::Error {
        match self.reader.fill_buf().await {
            Ok([]) => io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => io::Error::other("it speaks without being asked"),
            Err(error) => error,
        }
    }

    pub(super) async fn end(&mut self) -> io::Result<()> {
        self.ask(&Ask::End).await.map(drop)
    }
}

/// The guard that is there. Without a link if it has to be replaced by one of this version; it was told to end then.
///
/// Blocks, at most about [`GUARD_PATIENCE`]: nothing may be decided before its deadline is known.
pub(super) fn greet(data_dir: &Path) -> Option<(Option<Link>, Answer)> {
    let ask = |stream: &mut std::os::unix::net::UnixStream, ask: &Ask| -> io::Result<Answer> {
        stream.write_all(&wire::line(ask)?)?;
        let mut line = Vec::new();
        io::BufReader::new(stream).take(wire::LINE_MAX).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    };
    let meet = || -> io::Result<(Option<Link>, Answer)> {
        let (_directory, path) = wire::socket(data_dir)?;
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_read_timeout(Some(GUARD_PATIENCE))?;
        stream.set_write_timeout(Some(GUARD_PATIENCE))?;
        let answer = ask(&mut stream, &Ask::State)?;
        if answer.version != wire::VERSION || answer.program != env!("CARGO_PKG_VERSION") {
            tracing::info!(pid = answer.pid, version = answer.program, "replacing a guard of another version");
            ask(&mut stream, &Ask::End)?;
            return Ok((None, answer));
        }
        stream.set_nonblocking(true)?;
        Ok((Some(Link::new(UnixStream::from_std(stream)?, answer.freezes)), answer))
    };
    match meet() {
        Ok(met) => Some(met),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => None,
        Err(error) => {
            tracing::error!(%error, "the guard of an earlier daemon does not answer");
            None
        }
    }
}

/// Why a talk came to an end.
enum End {
    Stopped,
    /// Nothing is to be guarded any more.
    Unneeded,
    Lost(io::Error),
}

/// Sees to it that there is a guard while one is needed, and that it knows the newest plan.
pub(super) async fn supervise(shared: Arc<Shared>, mut link: Option<Link>, stop: CancellationToken) {
    let mut plan = shared.plan.subscribe();
    let mut pause = PAUSE_FIRST;
    loop {
        let mut talk = match link.take() {
            Some(link) => link,
            None => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    needed = plan.wait_for(Plan::needs_guard) => if needed.is_err() { return },
                }
                match start(&shared).await {
                    Ok(started) => started,
                    Err(error) => {
                        tracing::error!(%error, "the guard can't be started; trying again");
                        *shared.lock(&shared.trouble) = Some(error.to_string());
                        tokio::select! {
                            () = stop.cancelled() => return,
                            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                        }
                        continue;
                    }
                }
            }
        };
        let since = Instant::now();
        match serve(&shared, &mut talk, &mut plan, &stop).await {
            End::Stopped => return,
            End::Unneeded => {}
            End::Lost(error) => {
                tracing::warn!(%error, "lost the guard; starting another");
                if since.elapsed() > YOUNG {
                    pause = PAUSE_FIRST;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

async fn serve(shared: &Shared, link: &mut Link, plan: &mut watch::Receiver<Plan>, stop: &CancellationToken) -> End {
    let mut tick = interval(Duration::from_millis(RENEW_EVERY_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (sequence, hold) = {
            let plan = plan.borrow_and_update();
            (plan.sequence, plan.hold())
        };
        let over = hold.as_ref().is_some_and(|hold| hold.deadline.is_none());
        let ask = match hold {
            Some(hold) => Ask::Hold(wire::Hold { patterns: shared.freezer.patterns(), ..hold }),
            // An earlier daemon's guard that guards nothing.
            None => Ask::State,
        };
        match link.ask(&ask).await {
            Ok(answer) => {
                shared.answered(sequence, &answer, link.freezes);
                link.freezes = answer.freezes;
            }
            Err(error) => return End::Lost(error),
        }
        if over {
            return match link.end().await {
                Ok(()) => End::Unneeded,
                Err(error) => End::Lost(error),
            };
        }
        tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            changed = plan.changed() => if changed.is_err() { return End::Stopped },
            error = link.gone() => return End::Lost(error),
            _ = tick.tick() => {}
        }
    }
}

/// Starts a guard and waits until it answers. One that is there already, because another start was slow, is as good.
async fn start(shared: &Shared) -> io::Result<Link> {
    let config = &shared.config;
    let options = guard::Options { data_dir: config.data_dir.clone(), docker_host: config.docker_host.clone() };
    let mut child = match &config.form {
        Form::Thread => {
            std::thread::Builder::new().name("flotilla-guard".to_owned()).spawn(move || {
                if let Err(error) = guard::run_in_thread(&options) {
                    tracing::error!(%error, "the guard failed");
                }
            })?;
            None
        }
        Form::Process { program } => {
            let path = config.data_dir.join(wire::LOG);
            let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            if log.metadata()?.len() > LOG_MAX {
                log.set_len(0)?;
            }
            let mut command = tokio::process::Command::new(program);
            command.arg0("flotilla").arg("guard").arg("--data-dir").arg(&options.data_dir);
            if let Some(host) = &options.docker_host {
                command.arg("--docker-host").arg(host);
            }
            // Nobody who waits for the end of the daemon's output shall wait for the guard.
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            Some(command.spawn()?)
        }
    };
    shared.figures.guard_starts.fetch_add(1, Relaxed);
    let connected = async {
        loop {
            match connect(&config.data_dir).await {
                Ok(link) => return Ok(link),
                Err(_) => tokio::time::sleep(START_STEP).await,
            }
            if let Some(child) = &mut child
                && let Some(status) = child.try_wait()?
                && !status.success()
            {
                return Err(io::Error::other(format!("it ended with {status}; look at {}", wire::LOG)));
            }
        }
    };
    let link = timeout(START_LIMIT, connected).await.map_err(|_| {
        let holder = std::fs::read_to_string(config.data_dir.join(wire::LOCK)).unwrap_or_default();
        io::Error::other(format!(
            "it does not answer within {} s; if it hangs, end it with `kill -9 {}`",
            START_LIMIT.as_secs(),
            holder.trim()
        ))
    })??;
    if let Some(mut child) = child {
        // Somebody has to take note of its end.
        tokio::spawn(async move { child.wait().await });
    }
    Ok(link)
}

async fn connect(data_dir: &Path) -> io::Result<Link> {
    let (_directory, path) = wire::socket(data_dir)?;
    let mut link = Link::new(UnixStream::connect(path).await?, 0);
    let answer = link.ask(&Ask::State).await?;
    link.freezes = answer.freezes;
    Ok(link)
}
