//! A service whose life can be read afterwards: it beats twenty times a second, writes each beat into its volume if it has one,
//! notices when it was held up, and answers what it knows over HTTP.
//!
//! `GET /` answers a JSON object, see [`Beat`]; `GET /healthz` answers 200 once it serves; `GET /slow/MS` takes so long.
//! `flotilla-beat --listen-after MS` is slow to start; `--unhealthy` never gets healthy; `--check` is a health check's client.
#![allow(clippy::print_stdout, reason = "its output is what `flotilla logs` is tested with")]

use std::{
    fs::File,
    io::Write,
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use flotilla_tests::{
    beat::{BEAT_EVERY, BEATS_FILE, Beat, DATA, PORT},
    bed::probe::clock,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

/// A beat that is so late was held up by a freezer or a suspended machine, not by a scheduler.
const FROZEN_AFTER: Duration = Duration::from_millis(400);
/// Times of standing still that are kept; the oldest goes first.
const FROZEN_KEPT: usize = 64;
/// A client has sent its request within that.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// All headers of a request together.
const HEAD_MAX: u64 = 64 * 1024;
/// Answers that are under way may end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Heart {
    host: String,
    unhealthy: bool,
    started: u64,
    beats: AtomicU64,
    frozen: Mutex<Vec<(u64, u64)>>,
    answering: AtomicU64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (mut unhealthy, mut delay) = (false, Duration::ZERO);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--check" => std::process::exit(i32::from(!is_healthy().await)),
            "--unhealthy" => unhealthy = true,
            "--listen-after" => delay = Duration::from_millis(arguments.next().context("milliseconds")?.parse()?),
            _ => anyhow::bail!("unknown argument {argument}"),
        }
    }
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned();
    let heart = Arc::new(Heart {
        host,
        unhealthy,
        started: clock(),
        beats: AtomicU64::new(0),
        frozen: Mutex::default(),
        answering: AtomicU64::new(0),
    });
    let mut term = signal(SignalKind::terminate())?;
    let file = if has_volume() { Some(open_beats()?) } else { None };
    // A thread of its own, so that no request holds it up.
    let beating = Arc::clone(&heart);
    std::thread::spawn(move || beating.beat(file));
    sleep(delay).await;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    println!("beat listens on {}", listener.local_addr()?);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A client that went away before it was accepted.
                let Ok((stream, _)) = accepted else { continue };
                tokio::spawn(Arc::clone(&heart).answer(stream));
            }
            _ = term.recv() => break,
        }
    }
    println!("beat stops");
    drop(listener);
    let _ = timeout(GRACE, async {
        while heart.answering.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    Ok(())
}

impl Heart {
    fn beat(&self, mut file: Option<File>) {
        let mut last = clock();
        loop {
            std::thread::sleep(BEAT_EVERY);
            let now = clock();
            if now - last > nanos(FROZEN_AFTER) {
                let mut frozen = self.frozen.lock().expect("no beat panics");
                if frozen.len() == FROZEN_KEPT {
                    frozen.remove(0);
                }
                frozen.push((last, now));
            }
            let beats = self.beats.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(file) = &mut file
                && let Err(error) = file.write_all(format!("{} {} {beats}\n", clock(), self.host).as_bytes())
            {
                println!("a beat could not be written: {error}");
            }
            last = now;
        }
    }

    fn tell(&self) -> Beat {
        Beat {
            host: self.host.clone(),
            started: self.started,
            now: clock(),
            beats: self.beats.load(Ordering::Relaxed),
            frozen: self.frozen.lock().expect("no beat panics").clone(),
        }
    }

    async fn answer(self: Arc<Self>, mut stream: TcpStream) {
        self.answering.fetch_add(1, Ordering::Relaxed);
        let answered = async {
            let (read, mut write) = stream.split();
            let mut lines = BufReader::new(read.take(HEAD_MAX)).lines();
            let first = lines.next_line().await?.unwrap_or_default();
            while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
            let path = first.split_whitespace().nth(1).unwrap_or("/");
            if let Some(millis) = path.strip_prefix("/slow/").and_then(|millis| millis.parse().ok()) {
                sleep(Duration::from_millis(millis)).await;
            }
            let status = if path == "/healthz" && self.unhealthy { "503 Service Unavailable" } else { "200 OK" };
            let body = serde_json::to_string(&self.tell())?;
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            write.write_all(format!("{head}{body}").as_bytes()).await?;
            write.shutdown().await
        };
        // Whoever asks may go away at any time.
        let _ = timeout(REQUEST_LIMIT, answered).await;
        self.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn is_healthy() -> bool {
    let asked = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    asked.await.unwrap_or(false)
}

/// Is the data directory a mount, or the image's own?
fn has_volume() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(DATA))
}

fn open_beats() -> Result<File> {
    let path = Path::new(DATA).join(BEATS_FILE);
    File::options().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
