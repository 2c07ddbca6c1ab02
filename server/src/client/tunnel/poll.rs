//! What people see of a service while machines die: it is asked over and over, as by a page that never stops reloading.

use std::{sync::Arc, time::Duration};

use flotilla_api::ServiceName;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Answer, TunnelClient};
use crate::client::{Client, Error};

/// Questions that wait for their answers at one time: a service that hangs is not asked without end.
const PENDING_MAX: usize = 128;

/// Gaps that are remembered, the first ones: a watch that has more is about something else.
const GAPS_MAX: usize = 1024;

/// How a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polling {
    /// From one question to the next, whether it was answered or not.
    pub every: Duration,
    /// A question that has no answer by then has failed; a connection on which nothing was heard meanwhile is given up.
    pub within: Duration,
    /// Between two good answers: shorter than this, nobody notices.
    pub noticed: Duration,
}

impl Default for Polling {
    fn default() -> Self {
        Self { every: Duration::from_millis(50), within: Duration::from_secs(2), noticed: Duration::from_millis(250) }
    }
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Questions that were answered, or have failed.
    pub polls: u64,
    pub failed: u64,
    pub last_good: Option<Instant>,
    /// Questions that have failed since the last good answer, and why the first of them has.
    pub failing: u64,
    pub why: Option<String>,
    /// Over and noticed.
    pub gaps: Vec<Gap>,
    /// Of the last good answer.
    pub answer: Option<Arc<Answer>>,
}

/// A time without a good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When the last good answer before it came.
    pub began: Instant,
    pub length: Duration,
    /// Questions that have failed meanwhile. None may have: whoever asked has only waited.
    pub failed: u64,
    /// Why the first of them has.
    pub why: Option<String>,
}

impl Seen {
    /// How long there was no good answer at the worst, of what ended after `since` or has not ended yet.
    pub fn longest_gap(&self, since: Instant, now: Instant) -> Duration {
        let over = self.gaps.iter().filter(|gap| gap.began + gap.length >= since).map(|gap| gap.length);
        let current = self.last_good.map(|at| now.saturating_duration_since(at));
        over.chain(current).max().unwrap_or_default()
    }

    fn good(&mut self, answer: Answer, now: Instant, noticed: Duration) {
        self.polls += 1;
        let (failed, why) = (std::mem::take(&mut self.failing), self.why.take());
        if let Some(began) = self.last_good {
            let length = now.saturating_duration_since(began);
            if (failed > 0 || length >= noticed) && self.gaps.len() < GAPS_MAX {
                self.gaps.push(Gap { began, length, failed, why });
            }
        }
        self.last_good = Some(now);
        self.answer = Some(Arc::new(answer));
    }

    fn bad(&mut self, why: String) {
        self.polls += 1;
        self.failed += 1;
        self.failing += 1;
        self.why.get_or_insert(why);
    }
}

/// Asks one service until it is stopped or dropped.
#[derive(Debug)]
pub struct Poller {
    seen: watch::Receiver<Seen>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Poller {
    /// Asks `service` for `path` through the first of these nodes that answers, and through the next one when it is lost.
    pub fn start(nodes: Vec<Client>, service: ServiceName, path: &str, polling: Polling) -> Self {
        let (seen, receiver) = watch::channel(Seen::default());
        let stop = CancellationToken::new();
        let asker =
            Asker { nodes, node: 0, service, path: path.to_owned(), polling, seen, connection: None, refused: None };
        let task = tokio::spawn(asker.run(stop.clone()));
        Self { seen: receiver, stop, task }
    }

    /// What was seen so far, and its changes.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Asks no more, and tells what was seen.
    pub async fn stop(mut self) -> Seen {
        self.stop.cancel();
        // A panic has said what it is on the error output; what was seen until then is still true.
        let _ = (&mut self.task).await;
        self.seen.borrow().clone()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Asker {
    nodes: Vec<Client>,
    node: usize,
    service: ServiceName,
    path: String,
    polling: Polling,
    seen: watch::Sender<Seen>,
    connection: Option<Connection>,
    /// Why the last attempt at a connection has failed.
    refused: Option<String>,
}

/// The connection in use.
struct Connection {
    client: Arc<TunnelClient>,
    number: u64,
    /// When anything was last heard on it.
    heard: Instant,
}

/// How a question ended, and on which connection.
struct Outcome {
    connection: u64,
    asked: Instant,
    answer: Result<Answer, Error>,
}

impl Asker {
    async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval(self.polling.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut pending: FuturesUnordered<BoxFuture<'static, Outcome>> = FuturesUnordered::new();
        let mut connecting: Option<BoxFuture<'static, Result<TunnelClient, Error>>> = None;
        let mut number = 0;
        loop {
            let current = self.connection.as_ref().map(|connection| Arc::clone(&connection.client));
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {
                    match &self.connection {
                        Some(connection) if pending.len() < PENDING_MAX => {
                            pending.push(self.ask(connection).boxed());
                        }
                        Some(_) => self.bad("too many questions wait for their answers already".to_owned()),
                        None => {
                            let why = self.refused.clone().unwrap_or_else(|| "it is being connected to".to_owned());
                            // Before the first connection nobody has asked yet.
                            if number > 0 || self.refused.is_some() {
                                self.bad(why);
                            }
                            connecting.get_or_insert_with(|| self.connect());
                        }
                    }
                }
                Some(outcome) = pending.next() => self.take(outcome),
                Some(connected) = OptionFuture::from(connecting.as_mut()) => {
                    connecting = None;
                    match connected {
                        Ok(client) => {
                            number += 1;
                            self.refused = None;
                            self.connection = Some(Connection { client: Arc::new(client), number, heard: Instant::now() });
                        }
                        // The next attempt comes with the next question.
                        Err(error) => self.next_node(error.to_string()),
                    }
                }
                Some(error) = OptionFuture::from(current.as_ref().map(|client| client.ended())) => {
                    self.connection = None;
                    self.refused = Some(error.to_string());
                    connecting.get_or_insert_with(|| self.connect());
                }
            }
        }
    }

    fn ask(&self, connection: &Connection) -> impl Future<Output = Outcome> + Send + 'static {
        let (client, number) = (Arc::clone(&connection.client), connection.number);
        let (service, path) = (self.service.clone(), self.path.clone());
        async move {
            let asked = Instant::now();
            Outcome { connection: number, asked, answer: client.get(&service, &path).await }
        }
    }

    fn connect(&self) -> BoxFuture<'static, Result<TunnelClient, Error>> {
        let within = self.polling.within;
        let Some(node) = self.nodes.get(self.node).cloned() else {
            return async { Err(Error::Answer { why: "there is no node to ask".to_owned() }) }.boxed();
        };
        async move {
            let connected = timeout(within, node.tunnel()).await;
            let client = connected.map_err(|_| Error::TimedOut { api: node.api().to_owned(), after: within })??;
            Ok(client.answers_within(within))
        }
        .boxed()
    }

    fn next_node(&mut self, why: String) {
        self.connection = None;
        self.refused = Some(why);
        self.node = (self.node + 1) % self.nodes.len().max(1);
    }

    fn take(&mut self, Outcome { connection, asked, answer }: Outcome) {
        let now = Instant::now();
        let is_current = self.connection.as_ref().is_some_and(|current| current.number == connection);
        match answer {
            Ok(answer) => {
                if let Some(current) = self.connection.as_mut().filter(|current| current.number == connection) {
                    current.heard = now;
                }
                if answer.status < 500 {
                    self.seen.send_modify(|seen| seen.good(answer, now, self.polling.noticed));
                } else {
                    self.bad(format!("it answered {}", answer.status));
                }
            }
            Err(error) => {
                let silent = matches!(error, Error::TimedOut { .. })
                    && self.connection.as_ref().is_some_and(|current| current.heard <= asked);
                self.bad(error.to_string());
                if is_current && silent {
                    self.next_node(error.to_string());
                }
            }
        }
    }

    fn bad(&self, why: String) {
        self.seen.send_modify(|seen| seen.bad(why));
    }
}
