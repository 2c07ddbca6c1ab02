//! Lines of several machines as one stream, in the order of their times as far as that can be known.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use flotilla_api::{
    ApiError, InstanceId, UnixMillis,
    rest::{LogLine, LogStream},
};
use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

/// How long a line of the past waits for older ones of another machine. A machine that is silent for so long has none.
const QUIET: Duration = Duration::from_millis(400);

/// Bytes of lines that are kept back while the last ones of the past are looked for.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One machine's lines, in the order of their times.
pub(super) struct Source {
    /// For people, where its lines can't be read any more.
    pub(super) machine: String,
    pub(super) lines: BoxStream<'static, Result<LogLine, ApiError>>,
}

/// What is merged, and how.
pub(super) struct Merged {
    /// Further sources, while new instances are followed; closed or never opened otherwise.
    pub(super) coming: Option<mpsc::Receiver<Source>>,
    /// Lines from then on are new: they are sent as they come.
    pub(super) opened_at: UnixMillis,
    /// The last lines of the past alone.
    pub(super) tail: Option<usize>,
}

impl Merged {
    /// Ends when all sources have ended and no further ones can come. A source that fails leaves a line that says so.
    pub(super) fn stream(self, sources: Vec<Source>) -> impl Stream<Item = LogLine> + Send {
        let merge = Merge {
            entries: sources.into_iter().map(Entry::new).collect(),
            patient: self.coming.is_none(),
            coming: self.coming,
            opened_at: self.opened_at,
        };
        let state = Tail { merge, kept: self.tail.map(Kept::new), ready: VecDeque::new() };
        stream::unfold(state, async |mut state| Some((state.next().await?, state)))
    }
}

struct Entry {
    source: Source,
    head: Option<LogLine>,
    /// It was silent while others had lines: nobody waits for it until it speaks.
    quiet: bool,
}

impl Entry {
    fn new(source: Source) -> Self {
        Self { source, head: None, quiet: false }
    }
}

struct Merge {
    entries: Vec<Entry>,
    coming: Option<mpsc::Receiver<Source>>,
    opened_at: UnixMillis,
    /// Every source ends by itself, so that all of them can be waited for.
    patient: bool,
}

impl Merge {
    /// Keeps everything it knows in `self`: it can be dropped while it waits.
    async fn next(&mut self) -> Option<LogLine> {
        let mut until: Option<Instant> = None;
        loop {
            if let Some(line) = self.pop(until.is_some_and(|until| until <= Instant::now())) {
                return Some(line);
            }
            if self.entries.is_empty() && self.coming.is_none() {
                return None;
            }
            let holds = self.entries.iter().any(|entry| entry.head.is_some());
            if holds && !self.patient {
                until.get_or_insert_with(|| Instant::now() + QUIET);
            }
            let (entries, coming) = (&mut self.entries, &mut self.coming);
            let further = async {
                match coming {
                    Some(coming) => coming.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = poll_fn(|context| poll(entries, context)) => {}
                source = further => match source {
                    Some(source) => self.entries.push(Entry::new(source)),
                    None => self.coming = None,
                },
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    for entry in self.entries.iter_mut().filter(|entry| entry.head.is_none()) {
                        entry.quiet = true;
                    }
                }
            }
        }
    }

    /// The oldest line, if no older one can come; `late` if that was waited for long enough.
    fn pop(&mut self, late: bool) -> Option<LogLine> {
        let awaited = self.entries.iter().any(|entry| entry.head.is_none() && !entry.quiet);
        let oldest = self
            .entries
            .iter_mut()
            .filter(|entry| entry.head.is_some())
            .min_by_key(|entry| entry.head.as_ref().map(|line| line.at))?;
        let is_new = oldest.head.as_ref().is_some_and(|line| line.at >= self.opened_at);
        if awaited && !late && (self.patient || !is_new) {
            return None;
        }
        oldest.head.take()
    }
}

/// Ready when a source without a line got one, or ended.
fn poll(entries: &mut Vec<Entry>, context: &mut Context<'_>) -> Poll<()> {
    let mut changed = false;
    entries.retain_mut(|entry| {
        if entry.head.is_some() {
            return true;
        }
        match entry.source.lines.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(line))) => {
                (entry.head, entry.quiet, changed) = (Some(line), false, true);
                true
            }
            Poll::Ready(Some(Err(error))) => {
                entry.head = Some(remark(&entry.source.machine, &error));
                entry.source.lines = stream::empty().boxed();
                changed = true;
                true
            }
            Poll::Ready(None) => {
                changed = true;
                false
            }
            Poll::Pending => true,
        }
    });
    if changed { Poll::Ready(()) } else { Poll::Pending }
}

/// Among the lines of the others, so that nobody takes what is there for the whole.
pub(super) fn remark(machine: &str, error: &ApiError) -> LogLine {
    LogLine {
        at: crate::clock::now(),
        instance: InstanceId(machine.to_owned()),
        stream: LogStream::Err,
        text: format!("flotilla: the output on `{machine}` can't be read: {error}"),
    }
}

/// The last lines of the past, then what comes.
struct Tail {
    merge: Merge,
    /// While the past is read, where only its end is wanted.
    kept: Option<Kept>,
    ready: VecDeque<LogLine>,
}

impl Tail {
    async fn next(&mut self) -> Option<LogLine> {
        while let Some(kept) = &mut self.kept {
            // Longer than a line is held back, so that it is over only when nothing is.
            let next = if self.merge.patient {
                Ok(self.merge.next().await)
            } else {
                timeout(2 * QUIET, self.merge.next()).await
            };
            match next {
                Ok(Some(line)) if self.merge.patient || line.at < self.merge.opened_at => kept.push(line),
                over => {
                    self.ready.append(&mut kept.lines);
                    self.ready.extend(over.ok().flatten());
                    self.kept = None;
                }
            }
        }
        match self.ready.pop_front() {
            Some(line) => Some(line),
            None => self.merge.next().await,
        }
    }
}

struct Kept {
    max: usize,
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl Kept {
    fn new(max: usize) -> Self {
        Self { max, lines: VecDeque::new(), bytes: 0 }
    }

    fn push(&mut self, line: LogLine) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > self.max || self.bytes > KEPT_BYTES_MAX {
            let Some(first) = self.lines.pop_front() else { break };
            self.bytes -= first.text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::ErrorCode;

    use super::*;

    const OPENED_AT: UnixMillis = UnixMillis(1000);

    fn line(at: u64) -> LogLine {
        LogLine {
            at: UnixMillis(at),
            instance: InstanceId("x".to_owned()),
            stream: LogStream::Out,
            text: at.to_string(),
        }
    }

    fn ending(times: &[u64]) -> Source {
        let lines: Vec<_> = times.iter().map(|at| Ok(line(*at))).collect();
        Source { machine: "atlas".to_owned(), lines: stream::iter(lines).boxed() }
    }

    /// One that goes on as long as the sender is there.
    fn endless() -> (mpsc::Sender<LogLine>, Source) {
        let (sender, mut receiver) = mpsc::channel(16);
        let lines = stream::poll_fn(move |context| receiver.poll_recv(context)).map(Ok).boxed();
        (sender, Source { machine: "boreas".to_owned(), lines })
    }

    fn merged(coming: Option<mpsc::Receiver<Source>>, tail: Option<usize>) -> Merged {
        Merged { coming, opened_at: OPENED_AT, tail }
    }

    async fn times(lines: impl Stream<Item = LogLine>) -> Vec<u64> {
        lines.map(|line| line.at.0).collect().await
    }

    #[tokio::test]
    async fn the_past_of_all_machines_is_in_the_order_of_its_times() {
        let sources = || vec![ending(&[1, 4, 9]), ending(&[]), ending(&[2, 3, 10])];
        assert_eq!(times(merged(None, None).stream(sources())).await, [1, 2, 3, 4, 9, 10]);
        assert_eq!(times(merged(None, Some(2)).stream(sources())).await, [9, 10]);
        assert_eq!(times(merged(None, Some(0)).stream(sources())).await, Vec::<u64>::new());
        assert_eq!(times(merged(None, None).stream(Vec::new())).await, Vec::<u64>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_line_waits_for_nobody_and_an_old_one_only_for_a_moment() {
        let (one, first) = endless();
        let (other, second) = endless();
        let (_more, coming) = mpsc::channel(1);
        let mut lines = Box::pin(merged(Some(coming), None).stream(vec![first, second]));
        one.send(line(5)).await.unwrap();
        let begun = Instant::now();
        assert_eq!(lines.next().await.unwrap().at.0, 5);
        assert!(begun.elapsed() >= QUIET && begun.elapsed() < 2 * QUIET);
        // The other has shown that it is silent.
        one.send(line(6)).await.unwrap();
        assert_eq!(lines.next().await.unwrap().at.0, 6);
        other.send(line(3)).await.unwrap();
        assert_eq!(lines.next().await.unwrap().at.0, 3, "too late to be in order, and not lost");
        let before = Instant::now();
        one.send(line(2000)).await.unwrap();
        assert_eq!(lines.next().await.unwrap().at.0, 2000);
        assert!(before.elapsed() < QUIET);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_past_comes_before_what_is_new() {
        let (one, first) = endless();
        let (other, second) = endless();
        let (_more, coming) = mpsc::channel(1);
        for at in [1, 3, 5] {
            one.send(line(at)).await.unwrap();
        }
        other.send(line(4)).await.unwrap();
        let mut lines = Box::pin(merged(Some(coming), Some(2)).stream(vec![first, second]));
        assert_eq!([lines.next().await.unwrap().at.0, lines.next().await.unwrap().at.0], [4, 5]);
        other.send(line(1500)).await.unwrap();
        assert_eq!(lines.next().await.unwrap().at.0, 1500);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_comes_later_is_read_and_one_that_fails_is_told_of() {
        let (more, coming) = mpsc::channel(1);
        let failing = Source {
            machine: "clio".to_owned(),
            lines: stream::iter([Ok(line(7)), Err(ApiError::new(ErrorCode::Timeout, "it is silent"))]).boxed(),
        };
        let mut lines = Box::pin(merged(Some(coming), None).stream(vec![failing]));
        assert_eq!(lines.next().await.unwrap().at.0, 7);
        let remark = lines.next().await.unwrap();
        assert_eq!(
            (remark.stream, remark.text.as_str()),
            (LogStream::Err, "flotilla: the output on `clio` can't be read: it is silent")
        );
        more.send(ending(&[8])).await.unwrap();
        assert_eq!(lines.next().await.unwrap().at.0, 8);
        drop(more);
        assert_eq!(lines.next().await.map(|line| line.at.0), None);
    }
}
