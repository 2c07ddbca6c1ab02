//! Somebody who has a service open, as a browser has it, and asks it every 50 ms while machines die.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use flotilla::client::{
    Client,
    tunnel::{Poller, Polling, Seen},
};
use flotilla_api::ServiceName;
use tokio::sync::{oneshot, watch};

use super::cluster::seconds;
use crate::{beat::Beat, wait};

/// From the first try to a service that answers all the time.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// What people are promised: a service whose machine has died answers again within that.
pub const PROMISE: Duration = Duration::from_secs(30);
/// How long is waited for one that is not back in time, so that it can be told how late it was.
const BACK_LIMIT: Duration = Duration::from_secs(90);
/// A service that has answered so long without a pause is back.
const STEADY: Duration = Duration::from_millis(1500);
/// Good answers before anything is done.
const BEFORE: u64 = 20;

/// Asks from a thread and a runtime of its own, so that what a test does meanwhile delays nothing.
#[derive(Debug)]
pub struct Visitor {
    service: String,
    seen: watch::Receiver<Seen>,
    /// Questions that had failed when the service was open for it: it may have come before its node knew the service.
    early: u64,
    leave: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<Seen>>>,
}

/// What a visitor saw of an event.
#[derive(Clone, Debug)]
pub struct Outage {
    /// The longest time between two good answers.
    pub gap: Duration,
    pub asked: u64,
    pub failed: u64,
    /// Of the first question that has failed.
    pub why: Option<String>,
}

impl Visitor {
    /// Comes through the first of these nodes that answers, and through the next one when that is lost. Returns when the service
    /// answers well.
    pub(super) async fn of(service: &str, nodes: Vec<String>, token: &str) -> Result<Self> {
        let name: ServiceName = service.parse()?;
        let clients: Result<Vec<Client>, _> =
            nodes.iter().map(|node| Client::new(node, Some(token.to_owned()))).collect();
        let clients = clients?;
        let (told, seen) = watch::channel(Seen::default());
        let (leave, left) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("visitor-{service}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(watch_service(clients, name, told, left))
        })?;
        let mut visitor =
            Self { service: service.to_owned(), seen, early: 0, leave: Some(leave), thread: Some(thread) };
        let open = wait::holds(format!("{service} to answer"), OPEN_LIMIT, async || {
            let seen = visitor.seen();
            Ok(seen.polls - seen.failed >= BEFORE && visitor.is_well())
        })
        .await;
        open.with_context(|| format!("it saw {:?}", visitor.seen()))?;
        visitor.early = visitor.seen().failed;
        Ok(visitor)
    }

    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Changes with each answer.
    pub fn answers(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Who answered last.
    pub fn answered_by(&self) -> Option<Beat> {
        serde_json::from_slice(&self.seen.borrow().answer.as_ref()?.body).ok()
    }

    /// Its questions are answered at the moment.
    pub fn is_well(&self) -> bool {
        let seen = self.seen.borrow();
        seen.failing == 0 && seen.last_good.is_some_and(|at| at.elapsed() < Polling::default().noticed)
    }

    /// Waits until an instance answers that began after `event`, a time of [`super::probe::clock`].
    pub async fn answered_by_a_later_one(&self, event: u64) -> Result<Beat> {
        let later = wait::until(format!("another instance of {}", self.service), BACK_LIMIT, async || {
            Ok(self.answered_by().filter(|beat| beat.started > event))
        })
        .await;
        later.with_context(|| format!("the last answer is {:?}; it saw {:?}", self.answered_by(), self.seen()))
    }

    /// Waits until the service answers all the time, and tells what there was of it since `event`.
    pub async fn outage_since(&self, event: Instant) -> Result<Outage> {
        let steady = wait::holds(format!("{} to answer without a pause", self.service), BACK_LIMIT, async || {
            let now = Instant::now();
            let settled = now.duration_since(event) > STEADY
                && self.seen().longest_gap((now - STEADY).into(), now.into()) < Polling::default().noticed;
            Ok(settled && self.is_well())
        })
        .await;
        steady.with_context(|| format!("it saw {:?}", self.seen()))?;
        let (seen, from, now) = (self.seen(), tokio::time::Instant::from(event), Instant::now());
        let since = seen.gaps.iter().filter(|gap| gap.began + gap.length >= from);
        let failed = since.clone().map(|gap| gap.failed).sum();
        Ok(Outage {
            gap: seen.longest_gap(from, now.into()),
            asked: seen.polls,
            failed,
            why: since.clone().find_map(|gap| gap.why.clone()),
        })
    }

    /// [`Self::outage_since`], printed as `what`, and within what is promised.
    pub async fn outage_within_promise(&self, what: &str, event: Instant) -> Result<Outage> {
        let outage = self.outage_since(event).await?;
        eprintln!("MEASURED {what}: {} without an answer of {}", seconds(outage.gap), self.service);
        ensure!(outage.gap <= PROMISE, "{what}: {} did not answer for {outage:?}", self.service);
        Ok(outage)
    }

    /// Asks no more, and tells all that it saw.
    pub fn leave(mut self) -> Result<Seen> {
        drop(self.leave.take());
        let thread = self.thread.take().context("a visitor leaves once")?;
        thread.join().map_err(|_| anyhow::anyhow!("a visitor panicked"))?
    }

    /// [`Self::leave`], where nothing may have failed.
    pub fn leave_without_a_failure(self, what: &str) -> Result<Seen> {
        let (service, early) = (self.service.clone(), self.early);
        let seen = self.leave()?;
        let failed = seen.failed - early;
        let longest = seen.gaps.iter().map(|gap| gap.length).max().unwrap_or_default();
        eprintln!(
            "MEASURED {what}: {} of {} questions to {service} failed, longest gap {}",
            failed,
            seen.polls,
            seconds(longest)
        );
        ensure!(
            failed == 0,
            "{what}: {failed} of {} questions failed, at last {:?}: {:#?}",
            seen.polls,
            seen.why,
            seen.gaps
        );
        Ok(seen)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        drop(self.leave.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn watch_service(
    clients: Vec<Client>,
    service: ServiceName,
    told: watch::Sender<Seen>,
    mut left: oneshot::Receiver<()>,
) -> Result<Seen> {
    let poller = Poller::start(clients, service, "/", Polling::default());
    let mut seen = poller.seen();
    loop {
        tokio::select! {
            _ = &mut left => return Ok(poller.stop().await),
            changed = seen.changed() => {
                changed.context("the poller ended")?;
                told.send_replace(seen.borrow_and_update().clone());
            }
        }
    }
}
