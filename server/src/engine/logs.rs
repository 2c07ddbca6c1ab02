//! What instances print: the past in order of time, then new lines as they come, across restarts and new instances.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bollard::{container::LogOutput, query_parameters::LogsOptions};
use flotilla_api::{
    InstanceId, ServiceName, UnixMillis,
    rest::{LogLine, LogQuery, LogStream},
};
use flotilla_core::reconcile::{Container, Observed, Status};
use futures::{Stream, StreamExt, stream, stream::BoxStream};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{Error, Shared, connection::Client};

/// A longer line is cut: a program that prints without line ends shall not fill the memory. Bytes.
const LINE_MAX: usize = 16 * 1024;

/// The most lines of the past that are sorted before they are sent, and their bytes.
const TAIL_MAX: u32 = 10_000;
const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Lines that wait for their reader. A slow reader slows the reading, and costs no memory.
const LINES_QUEUE: usize = 256;

/// Containers of one service whose logs are read at once; those beyond are the oldest.
const CONTAINERS_MAX: usize = 32;

/// The engine reads its files at some 100 MB/s; one that is silent for so long does not answer.
const PAST_STALL: Duration = Duration::from_secs(30);

/// Which containers' lines.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) service: ServiceName,
    pub(super) instance: Option<InstanceId>,
}

impl Subject {
    fn containers(&self, observed: Option<&Observed>) -> Vec<Container> {
        let mut containers: Vec<Container> = observed
            .into_iter()
            .flat_map(|observed| &observed.containers)
            .filter(|container| container.service == self.service)
            .filter(|container| self.instance.as_ref().is_none_or(|instance| *instance == container.instance))
            .cloned()
            .collect();
        containers.sort_by_key(|container| std::cmp::Reverse(container.revision));
        containers.truncate(CONTAINERS_MAX);
        containers
    }
}

/// A line and its time in nanoseconds, which order lines that have the same millisecond.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    nanos: i128,
    line: LogLine,
}

type Lines = Pin<Box<dyn Stream<Item = Result<Line, Error>> + Send>>;

/// Ends when the reader drops the stream, or, without `follow`, after the past.
pub(super) fn open(
    shared: Arc<Shared>,
    client: Client,
    subject: Subject,
    query: LogQuery,
) -> BoxStream<'static, Result<LogLine, Error>> {
    let (sender, mut receiver) = mpsc::channel(LINES_QUEUE);
    tokio::spawn(async move {
        let stop = shared.stop.clone();
        tokio::select! {
            () = sender.closed() => {}
            () = stop.cancelled() => {}
            result = read(shared, client, subject, query, sender.clone()) => {
                if let Err(error) = result {
                    // If the reader has left, nobody needs it.
                    let _ = sender.send(Err(error)).await;
                }
            }
        }
    });
    stream::poll_fn(move |context| receiver.poll_recv(context)).boxed()
}

type Sender = mpsc::Sender<Result<LogLine, Error>>;

async fn read(
    shared: Arc<Shared>,
    client: Client,
    subject: Subject,
    query: LogQuery,
    sender: Sender,
) -> Result<(), Error> {
    let mut observed = shared.observed.subscribe();
    let containers = subject.containers(observed.borrow_and_update().as_deref());
    let since = query.since.unwrap_or_default();
    let mut last = past(&client, &containers, query.tail, since, &sender).await?;
    if !query.follow {
        return Ok(());
    }
    let begin = i128::from(since.0) * 1_000_000 - 1;
    let mut followed = HashSet::new();
    let mut followers = JoinSet::new();
    loop {
        let seen = observed.borrow_and_update().clone();
        for container in subject.containers(seen.as_deref()) {
            if followed.insert(container.id.clone()) {
                let follower = Follower {
                    shared: Arc::clone(&shared),
                    observed: shared.observed.subscribe(),
                    last: last.remove(&container.id).unwrap_or(begin),
                    container,
                    sender: sender.clone(),
                };
                followers.spawn(follower.run());
            }
        }
        tokio::select! {
            changed = observed.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            Some(ended) = followers.join_next() => {
                if let Ok(container) = ended {
                    followed.remove(&container);
                }
            }
        }
    }
}

/// Sends what was printed until now, in order. The time of each container's last line.
async fn past(
    client: &Client,
    containers: &[Container],
    tail: Option<u32>,
    since: UnixMillis,
    sender: &Sender,
) -> Result<BTreeMap<String, i128>, Error> {
    let tail = tail.map(|lines| lines.min(TAIL_MAX));
    let mut last = BTreeMap::new();
    let mut heads: Vec<(String, Lines, Option<Line>)> = Vec::new();
    for container in containers {
        let mut lines = lines(client, container, tail, since, false);
        let head = next(&mut lines).await?;
        heads.push((container.id.clone(), lines, head));
    }
    let mut kept = Kept::new(tail);
    loop {
        let oldest = heads
            .iter_mut()
            .filter(|(_, _, head)| head.is_some())
            .min_by_key(|(_, _, head)| head.as_ref().map(|line| line.nanos));
        let Some((container, lines, head)) = oldest else { break };
        let following = next(lines).await?;
        if let Some(line) = std::mem::replace(head, following) {
            last.insert(container.clone(), line.nanos);
            if let Some(line) = kept.push(line.line)
                && sender.send(Ok(line)).await.is_err()
            {
                return Err(Error::Cancelled);
            }
        }
    }
    for line in kept.lines {
        if sender.send(Ok(line)).await.is_err() {
            return Err(Error::Cancelled);
        }
    }
    Ok(last)
}

async fn next(lines: &mut Lines) -> Result<Option<Line>, Error> {
    match tokio::time::timeout(PAST_STALL, lines.next()).await {
        Ok(line) => line.transpose(),
        Err(_) => Err(Error::Timeout { operation: "read the logs", seconds: PAST_STALL.as_secs() }),
    }
}

/// The last lines, where only those are wanted.
struct Kept {
    max: Option<usize>,
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl Kept {
    fn new(tail: Option<u32>) -> Self {
        Self { max: tail.map(|lines| lines as usize), lines: VecDeque::new(), bytes: 0 }
    }

    /// Gives the line back where all are wanted.
    fn push(&mut self, line: LogLine) -> Option<LogLine> {
        let Some(max) = self.max else { return Some(line) };
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > max || self.bytes > TAIL_BYTES_MAX {
            let Some(first) = self.lines.pop_front() else { break };
            self.bytes -= first.text.len();
        }
        None
    }
}

/// Follows one container until it is gone.
struct Follower {
    shared: Arc<Shared>,
    observed: watch::Receiver<Option<Arc<Observed>>>,
    container: Container,
    /// Lines up to this time were sent.
    last: i128,
    sender: Sender,
}

impl Follower {
    async fn run(mut self) -> String {
        loop {
            let run = self.started();
            let broke = self.read().await.is_err();
            // The engine ends the stream when the container ends. It is read again once that was started anew, or, after
            // the stream broke, once the engine shows anything again.
            loop {
                if self.observed.changed().await.is_err() || !self.exists() {
                    return self.container.id;
                }
                let started = self.started();
                if started.is_some() && (broke || started != run) {
                    break;
                }
            }
        }
    }

    async fn read(&mut self) -> Result<(), Error> {
        let client = self.shared.client().await?;
        let since = UnixMillis(u64::try_from(self.last / 1_000_000).unwrap_or_default());
        let mut lines = lines(&client, &self.container, None, since, true);
        while let Some(line) = lines.next().await {
            let line = line?;
            if line.nanos > self.last {
                self.last = line.nanos;
                if self.sender.send(Ok(line.line)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn find<T>(&self, found: impl FnOnce(&Container) -> T) -> Option<T> {
        let observed = self.observed.borrow();
        observed.as_ref()?.containers.iter().find(|container| container.id == self.container.id).map(found)
    }

    fn exists(&self) -> bool {
        self.find(|_| ()).is_some()
    }

    /// When its present run began; `None` while it does not run.
    fn started(&self) -> Option<UnixMillis> {
        self.find(|container| match container.status {
            Status::Running { since, .. } => Some(since),
            _ => None,
        })?
    }
}

fn lines(client: &Client, container: &Container, tail: Option<u32>, since: UnixMillis, follow: bool) -> Lines {
    let options = LogsOptions {
        follow,
        stdout: true,
        stderr: true,
        timestamps: true,
        since: i32::try_from(since.0 / 1000).unwrap_or(i32::MAX),
        tail: tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
        ..Default::default()
    };
    let client = client.clone();
    let pieces = Box::pin(client.docker().logs(&container.id, Some(options)));
    let assembler = Assembler { instance: container.instance.clone(), partial: BTreeMap::new() };
    let lines = stream::unfold((pieces, assembler, client), |(mut pieces, mut assembler, client)| async move {
        loop {
            match pieces.next().await {
                Some(Ok(piece)) => {
                    if let Some(line) = assembler.push(piece) {
                        return Some((Ok(line), (pieces, assembler, client)));
                    }
                }
                Some(Err(error)) => {
                    return match client.error("read the logs", error) {
                        // The container went meanwhile.
                        error if error.is_absent() || error.is_conflict() => None,
                        error => Some((Err(error), (pieces, assembler, client))),
                    };
                }
                // What a program printed last may lack a line end.
                None => return assembler.rest().map(|line| (Ok(line), (pieces, assembler, client))),
            }
        }
    });
    let since = i128::from(since.0) * 1_000_000;
    Box::pin(lines.filter(move |line| std::future::ready(line.as_ref().map_or(true, |line| line.nanos >= since))))
}

/// Makes lines of the engine's pieces: `<time> <text>`, 16 KiB at most each, the last of a line with its end.
struct Assembler {
    instance: InstanceId,
    partial: BTreeMap<u8, (i128, Vec<u8>)>,
}

impl Assembler {
    fn push(&mut self, piece: LogOutput) -> Option<Line> {
        let (stream, message) = match piece {
            LogOutput::StdErr { message } => (LogStream::Err, message),
            LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
                (LogStream::Out, message)
            }
        };
        let space = message.iter().position(|byte| *byte == b' ')?;
        let time = std::str::from_utf8(&message[..space]).ok()?;
        let nanos = OffsetDateTime::parse(time, &Rfc3339).ok()?.unix_timestamp_nanos();
        let text = &message[space + 1..];
        let partial = self.partial.entry(stream as u8).or_insert_with(|| (nanos, Vec::new()));
        let room = (LINE_MAX + 1).saturating_sub(partial.1.len());
        partial.1.extend_from_slice(&text[..text.len().min(room)]);
        if !text.ends_with(b"\n") {
            return None;
        }
        let (nanos, bytes) = self.partial.remove(&(stream as u8))?;
        Some(self.line(nanos, stream, &bytes))
    }

    fn rest(&mut self) -> Option<Line> {
        let (stream, (nanos, bytes)) = self.partial.pop_first()?;
        let stream = if stream == LogStream::Err as u8 { LogStream::Err } else { LogStream::Out };
        Some(self.line(nanos, stream, &bytes))
    }

    fn line(&self, nanos: i128, stream: LogStream, bytes: &[u8]) -> Line {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(LINE_MAX)]).into_owned();
        if bytes.len() > LINE_MAX {
            text.push('…');
        }
        let at = UnixMillis(u64::try_from(nanos / 1_000_000).unwrap_or_default());
        Line { nanos, line: LogLine { at, instance: self.instance.clone(), stream, text } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembler() -> Assembler {
        Assembler { instance: InstanceId("a-1-1-x".into()), partial: BTreeMap::new() }
    }

    fn out(text: &str) -> LogOutput {
        LogOutput::StdOut { message: text.to_owned().into_bytes().into() }
    }

    #[test]
    fn pieces_of_one_line_are_put_together() {
        let mut assembler = assembler();
        assert_eq!(assembler.push(out("1970-01-01T00:00:01.000000001Z ab")), None);
        let other = LogOutput::StdErr { message: "1970-01-01T00:00:02Z oh\r\n".into() };
        let error = assembler.push(other).unwrap().line;
        assert_eq!((error.stream, error.text.as_str()), (LogStream::Err, "oh"));
        let line = assembler.push(out("1970-01-01T00:00:03Z cd\n")).unwrap();
        assert_eq!((line.nanos, line.line.at, line.line.text.as_str()), (1_000_000_001, UnixMillis(1000), "abcd"));
    }

    #[test]
    fn a_long_line_is_cut() {
        let mut assembler = assembler();
        for _ in 0..100 {
            assert_eq!(assembler.push(out(&format!("1970-01-01T00:00:01Z {}", "x".repeat(16 * 1024)))), None);
        }
        let line = assembler.push(out("1970-01-01T00:00:01Z end\n")).unwrap().line;
        assert_eq!(line.text.len(), LINE_MAX + '…'.len_utf8());
        assert!(line.text.ends_with("x…"));
    }

    #[test]
    fn the_last_words_need_no_line_end() {
        let mut assembler = assembler();
        assert_eq!(assembler.push(out("1970-01-01T00:00:01Z bye")), None);
        assert_eq!(assembler.rest().unwrap().line.text, "bye");
        assert_eq!(assembler.rest(), None);
    }

    #[test]
    fn a_tail_keeps_the_newest() {
        let line = |text: &str| assembler().line(0, LogStream::Out, text.as_bytes()).line;
        let mut kept = Kept::new(Some(2));
        for text in ["1", "2", "3"] {
            assert_eq!(kept.push(line(text)), None);
        }
        assert_eq!(kept.lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["2", "3"]);
        assert!(Kept::new(None).push(line("1")).is_some());
    }
}
