//! One other node: the task that keeps a control link with it.
//!
//! Both ends may offer. The one with the smaller id does so at once, the other after a moment; should both have offered, the
//! offer of the smaller id goes first. Whatever link comes up last replaces the one before it, on both ends.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flotilla_api::{
    ApiError, ErrorCode, NodeId, UnixMillis,
    rest::{LinkState, LinkView},
};
use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Member, Shared,
    bulk::{Bulk, BulkLink},
    control::{self, Control, Lanes, NotUp, Part},
    dial::{self, Failure, Manner, Progress},
    envelope::Offer,
    tls,
};
use crate::{
    clock,
    mesh::link::{Link, Peer as End},
    peers::{CallError, LANES_MAX, Stream},
};

/// Offers and changes that the task has not looked at. It never waits for anything else.
const INPUTS: usize = 32;

/// How long the answer to an offer may take to be made.
const ANSWERING: Duration = Duration::from_secs(4);

/// The node with the greater id leaves the other one this time to offer first.
const COURTESY: Duration = Duration::from_millis(300);

/// Time until the next attempt after one that failed; it doubles up to the second value.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// An offer that had no answer for so long does not go first any more: it went to a machine that was off, or is just starting.
const UNANSWERED: Duration = Duration::from_secs(1);

/// After the other node's offer went first: it is on its way.
const GLARE_PAUSE: Duration = Duration::from_secs(1);

/// Two programs that don't understand each other won't until one is updated.
const VERSION_PAUSE: Duration = Duration::from_secs(30);

/// While packets go through a relay, a direct way is looked for in such intervals; it doubles up to the second value.
const UPGRADE_PAUSE_MIN: Duration = Duration::from_secs(30);
const UPGRADE_PAUSE_MAX: Duration = Duration::from_secs(600);

/// What there is to know of another node and of the way to it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: NodeId,
    inputs: mpsc::Sender<Input>,
    control: Mutex<Option<Arc<Control>>>,
    status: Mutex<Status>,
    pub(super) bulk: Arc<Bulk>,
    pub(super) tls_failed: tls::Failed,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Status {
    state: LinkState,
    since: UnixMillis,
    problem: Option<String>,
}

#[derive(Debug)]
pub(super) enum Input {
    Offered {
        offer: Offer,
        boot: String,
        reply: oneshot::Sender<Result<Described, ApiError>>,
    },
    /// The other node's addresses are others now.
    Moved,
    /// This machine's are.
    Network(Vec<IpAddr>),
}

/// A session description that is being made.
type Described = watch::Receiver<Option<Result<String, ApiError>>>;

impl Peer {
    /// Begins to keep a link.
    pub(super) fn start(shared: &Arc<Shared>, id: NodeId, stop: CancellationToken) -> Arc<Self> {
        let (inputs, received) = mpsc::channel(INPUTS);
        let status = Status { state: LinkState::Connecting, since: clock::now(), problem: None };
        let peer = Arc::new(Self {
            id,
            inputs,
            control: Mutex::default(),
            status: Mutex::new(status),
            bulk: Arc::default(),
            tls_failed: tls::Failed::default(),
            stop,
        });
        let keeper = Keeper {
            first: shared.author.id < peer.id,
            next: Some(Instant::now()),
            peer: Arc::clone(&peer),
            shared: Arc::clone(shared),
            attempt: None,
            answering: None,
            failures: 0,
            upgrades: 0,
            manner: Manner::default(),
        };
        shared.tasks.spawn(keeper.run(received));
        peer
    }

    /// The link, if it is up.
    pub(super) fn control(&self) -> Option<Arc<Control>> {
        lock(&self.control).clone()
    }

    pub(super) fn tell(&self, input: Input) {
        // A task that is this far behind will look at the present state anyway.
        let _ = self.inputs.try_send(input);
    }

    /// Ends the link, and the task.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// The other node offers a control link; returns this node's description.
    pub(super) async fn offered(&self, offer: Offer, boot: String) -> Result<String, ApiError> {
        let unavailable = || ApiError::new(ErrorCode::ServiceUnavailable, "the node is busy; try again");
        let (reply, replied) = oneshot::channel();
        self.inputs.try_send(Input::Offered { offer, boot, reply }).map_err(|_| unavailable())?;
        let mut described = replied.await.map_err(|_| unavailable())??;
        let made = timeout(ANSWERING, described.wait_for(Option::is_some)).await;
        match made {
            Ok(Ok(description)) => description.clone().unwrap_or_else(|| Err(unavailable())),
            _ => Err(unavailable()),
        }
    }

    /// Opens a stream on a bulk link, which is made if there are no more than `lane` of them.
    pub(super) async fn stream(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        label: &str,
        lane: usize,
    ) -> Result<Stream, CallError> {
        let lane = if self.goes_over_tls(shared) { lane % tls::LANES } else { lane.min(LANES_MAX - 1) };
        for last in [false, true] {
            let (link, fresh) = match self.find_bulk(shared, lane) {
                Some(link) => (link, false),
                None => {
                    let _making = self.bulk.making[lane].lock().await;
                    // Another stream may have made one meanwhile.
                    match self.find_bulk(shared, lane) {
                        Some(link) => (link, false),
                        None => (self.bulk_link(shared).await?, true),
                    }
                }
            };
            match link.open(label).await {
                // A link may end just when a stream is opened on it, because it was idle or the other node has gone and come back.
                Err(CallError::Unreachable | CallError::Timeout { .. }) if !fresh && !last => link.give_up(),
                opened => return opened,
            }
        }
        Err(CallError::Unreachable)
    }

    /// A link that works; a data channel only where a TLS link can't be had.
    fn find_bulk(&self, shared: &Shared, lane: usize) -> Option<Arc<BulkLink>> {
        let link = self.bulk.find(lane)?;
        (link.is_tls() || !self.goes_over_tls(shared)).then_some(link)
    }

    fn goes_over_tls(&self, shared: &Shared) -> bool {
        self.control().is_some_and(|control| tls::is_wanted(shared, self, &control))
    }

    async fn bulk_link(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<Arc<BulkLink>, CallError> {
        let control = self.control().ok_or(CallError::Unreachable)?;
        if tls::is_wanted(shared, self, &control)
            && let Some(link) = Box::pin(tls::link(shared, self, &control)).await
        {
            return Ok(link);
        }
        let made = Box::pin(dial::bulk_link(shared, self, &control)).await;
        made.map_err(|failure| match failure {
            Failure::Refused(error) => CallError::Refused(error),
            failure => {
                tracing::debug!(peer = %self.id, ?failure, "no bulk link");
                CallError::Unreachable
            }
        })
    }

    pub(super) fn view(&self) -> LinkView {
        let control = self.control();
        let figures = control.as_ref().map(|control| control.figures()).unwrap_or_default();
        let path = control.as_ref().and_then(|control| control.path());
        let status = lock(&self.status);
        LinkView {
            peer: self.id.clone(),
            state: status.state,
            path: path.as_ref().map(|path| path.kind),
            bulk: self.bulk.path(),
            remote: path.map(|path| path.remote),
            rtt_ms: figures.rtt_ms,
            jitter_ms: figures.jitter_ms,
            loss: figures.loss,
            sent_per_second: figures.sent_per_second,
            received_per_second: figures.received_per_second,
            since: status.since,
            observed_at: clock::now(),
            problem: status.problem.clone(),
        }
    }

    fn set_state(&self, state: LinkState, problem: Option<String>) {
        let mut status = lock(&self.status);
        if status.state != state {
            status.state = state;
            status.since = clock::now();
        }
        status.problem = problem;
    }
}

type LinkUp = BoxFuture<'static, Result<(Control, Lanes), Failure>>;

/// The task of a [`Peer`].
struct Keeper {
    peer: Arc<Peer>,
    shared: Arc<Shared>,
    /// This node's id is the smaller one.
    first: bool,
    attempt: Option<Attempt>,
    answering: Option<Answering>,
    /// When to offer next.
    next: Option<Instant>,
    failures: u32,
    /// Attempts to get off a relay.
    upgrades: u32,
    /// How the next attempt is made.
    manner: Manner,
}

/// A link that this node has offered.
struct Attempt {
    link: LinkUp,
    progress: Arc<Progress>,
    begun: Instant,
}

impl Attempt {
    /// Whether the other node, now in the run `boot`, does not know of it: it answered in an earlier run, or not at all.
    fn is_lost(&self, boot: &str) -> bool {
        match self.progress.answered_by() {
            Some(answered_by) => answered_by != boot,
            None => self.begun.elapsed() > UNANSWERED,
        }
    }
}

/// A link that the other node has offered.
struct Answering {
    attempt: String,
    described: Described,
    link: LinkUp,
}

impl Keeper {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        if !self.first {
            self.next = Some(soon(COURTESY));
        }
        let stop = self.peer.stop.clone();
        loop {
            let current = self.peer.control();
            let next = self.next.filter(|_| self.attempt.is_none() && self.answering.is_none());
            tokio::select! {
                () = stop.cancelled() => break,
                input = inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => break,
                },
                up = settled(self.answering.as_mut().map(|answering| &mut answering.link)) => {
                    self.answering = None;
                    self.settle(up);
                }
                up = settled(self.attempt.as_mut().map(|attempt| &mut attempt.link)) => {
                    self.attempt = None;
                    self.settle(up);
                }
                () = ended(current.as_deref()) => self.lost(current.as_deref()),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.offer(),
            }
        }
        self.leave().await;
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Offered { offer, boot, reply } => {
                let _ = reply.send(self.answer(offer, &boot));
            }
            Input::Moved => self.hurry(),
            Input::Network(addresses) => {
                let control = self.peer.control();
                let local = control.as_ref().and_then(|control| control.path()).and_then(|path| path.local);
                if let (Some(control), Some(local)) = (control, local)
                    && !addresses.contains(&local)
                {
                    control.end(None);
                }
                self.hurry();
            }
        }
    }

    /// Something changed that may let the next attempt succeed.
    fn hurry(&mut self) {
        if self.peer.control().is_none() {
            self.failures = 0;
            self.next = Some(soon(Duration::ZERO));
        }
    }

    fn offer(&mut self) {
        self.next = None;
        let (shared, peer, manner) = (Arc::clone(&self.shared), Arc::clone(&self.peer), self.manner);
        let progress = Arc::new(Progress::default());
        let told = Arc::clone(&progress);
        let link = async move { Box::pin(dial::control_link(&shared, &peer, manner, &told)).await }.boxed();
        self.attempt = Some(Attempt { link, progress, begun: Instant::now() });
        if self.peer.control().is_none() {
            let problem = lock(&self.peer.status).problem.clone();
            self.peer.set_state(LinkState::Connecting, problem);
        }
    }

    /// Begins to answer an offer, or refuses it.
    fn answer(&mut self, offer: Offer, boot: &str) -> Result<Described, ApiError> {
        if let Some(answering) = self.answering.as_ref().filter(|answering| answering.attempt == offer.attempt) {
            // The same offer, by another way.
            return Ok(answering.described.clone());
        }
        if let Some(attempt) = &self.attempt {
            if self.first && !attempt.is_lost(boot) {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    "both nodes offer a link at once; this one's offer goes first",
                ));
            }
            self.attempt = None;
        }
        let (shared, peer, attempt) = (Arc::clone(&self.shared), Arc::clone(&self.peer), offer.attempt.clone());
        let (description, described) = watch::channel(None);
        let link = async move {
            let ways = shared.ways(&peer.id, offer.relay, !offer.shared_port);
            let manner = Manner::as_answered(&offer);
            let made = Box::pin(async {
                let link = Link::by(End::Control, &shared.config.addresses, &shared.config.certificate, ways).await?;
                let lanes = Lanes::open(&link).await?;
                let answer = link.answer(offer.description).await?;
                Ok::<_, crate::mesh::Error>((link, lanes, answer))
            })
            .await;
            match made {
                Ok((link, lanes, answer)) => {
                    description.send_replace(Some(Ok(answer)));
                    let hello = shared.hello();
                    let established = control::establish(link, lanes, &hello, manner, Part::Answered);
                    Box::pin(established).await.map_err(Failure::NotUp)
                }
                Err(error) => {
                    let failure = Failure::Local(error.to_string());
                    description.send_replace(Some(Err(error.into())));
                    Err(failure)
                }
            }
        }
        .boxed();
        self.answering = Some(Answering { attempt, described: described.clone(), link });
        Ok(described)
    }

    /// A link came up, or did not.
    fn settle(&mut self, up: Result<(Control, Lanes), Failure>) {
        match up {
            Ok((control, lanes)) => self.install(&Arc::new(control), lanes),
            Err(failure) => self.failed(&failure),
        }
    }

    fn install(&mut self, control: &Arc<Control>, lanes: Lanes) {
        tracing::info!(peer = %self.peer.id, path = ?control.path().map(|path| path.kind), "linked");
        let answers = self.shared.member_answers(&self.peer.id);
        control.start(lanes, answers, Arc::clone(&self.peer.bulk), &self.shared.tasks);
        self.peer.bulk.keep_only(Some(&control.other.boot));
        // It may be somewhere else now.
        self.peer.tls_failed.is_over();
        let before = lock(&self.peer.control).replace(Arc::clone(control));
        if let Some(before) = before {
            before.end(None);
        }
        self.attempt = None;
        self.answering = None;
        self.failures = 0;
        self.peer.set_state(LinkState::Up, None);
        self.shared.connected(&self.peer.id, true);
        let relayed = control.is_relayed();
        self.manner = control.manner().again();
        self.next = None;
        if !relayed {
            self.upgrades = 0;
        } else if self.first {
            self.next = Some(soon(doubled(UPGRADE_PAUSE_MIN, self.upgrades, UPGRADE_PAUSE_MAX)));
            self.upgrades = self.upgrades.saturating_add(1);
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if self.attempt.is_some() || self.answering.is_some() {
            return;
        }
        if let Some(control) = self.peer.control().filter(|control| !control.closed().is_cancelled()) {
            // What failed was to replace it by a better one.
            if control.is_relayed() && self.first {
                self.next = Some(soon(doubled(UPGRADE_PAUSE_MIN, self.upgrades, UPGRADE_PAUSE_MAX)));
                self.upgrades = self.upgrades.saturating_add(1);
            }
            return;
        }
        tracing::debug!(peer = %self.peer.id, ?failure, "no link");
        let pause = match failure {
            Failure::Glare => soon(GLARE_PAUSE),
            Failure::NotUp(NotUp::Version(_)) => soon(VERSION_PAUSE),
            _ => soon(doubled(PAUSE_MIN, self.failures, PAUSE_MAX)),
        };
        if *failure == Failure::NotUp(NotUp::Silent) {
            self.manner = self.manner.next();
        }
        if *failure != Failure::Glare {
            self.failures = self.failures.saturating_add(1);
            self.peer.set_state(LinkState::Down, Some(self.sentence(failure)));
        }
        self.next = Some(pause);
    }

    fn sentence(&self, failure: &Failure) -> String {
        match failure {
            Failure::Unreachable | Failure::Glare => {
                let addresses = self.shared.addresses_of(&self.peer.id);
                if addresses.is_empty() {
                    "no address of it is known, and no other machine could pass a message on".to_owned()
                } else {
                    format!(
                        "nothing answered at {}, and no other machine could pass a message on",
                        addresses.join(", ")
                    )
                }
            }
            Failure::Refused(error) => format!("it refused the link: {}", error.message),
            Failure::NotUp(NotUp::Silent) => {
                "it answered, but no UDP packets come through between the two machines; look at the firewalls"
                    .to_owned()
            }
            Failure::NotUp(NotUp::Version(sentence)) | Failure::Local(sentence) => sentence.clone(),
            Failure::NotUp(NotUp::Ended) => "it ended the link before the first word".to_owned(),
        }
    }

    fn lost(&mut self, control: Option<&Control>) {
        let why = control.and_then(Control::why);
        tracing::info!(peer = %self.peer.id, why, "link lost");
        *lock(&self.peer.control) = None;
        self.shared.connected(&self.peer.id, false);
        self.peer.set_state(LinkState::Down, why);
        self.failures = 0;
        if self.attempt.is_none() && self.answering.is_none() {
            self.next = Some(soon(if self.first { Duration::ZERO } else { COURTESY }));
        }
    }

    async fn leave(mut self) {
        self.attempt = None;
        self.answering = None;
        self.peer.bulk.keep_only(None);
        let control = lock(&self.peer.control).take();
        self.shared.connected(&self.peer.id, false);
        self.peer.set_state(LinkState::Down, None);
        if let Some(control) = control {
            control.end(Some(self.shared.farewell(&self.peer.id)));
            control.closed().cancelled().await;
        }
    }
}

impl Shared {
    /// What is said to a node that this one has no link with any more.
    fn farewell(&self, id: &NodeId) -> ApiError {
        match self.member(id) {
            Member::Known(_) => ApiError::new(ErrorCode::ServiceUnavailable, "the node stops"),
            _ => ApiError::new(ErrorCode::ScopeInsufficient, "this machine was removed from the cluster"),
        }
    }
}

async fn settled(link: Option<&mut LinkUp>) -> Result<(Control, Lanes), Failure> {
    match link {
        Some(link) => link.await,
        None => std::future::pending().await,
    }
}

async fn ended(control: Option<&Control>) {
    match control {
        Some(control) => control.closed().cancelled().await,
        None => std::future::pending().await,
    }
}

pub(super) fn doubled(pause: Duration, times: u32, max: Duration) -> Duration {
    pause.saturating_mul(1 << times.min(16)).min(max)
}

/// In so long, and up to a third more: nodes that lost each other at one moment shall not all come back at one.
fn soon(pause: Duration) -> Instant {
    let jitter = pause.mul_f64(rand::random::<f64>() / 3.0) + Duration::from_millis(rand::random::<u64>() % 30);
    Instant::now() + pause + jitter
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
