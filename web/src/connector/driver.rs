//! The one owner of all state: which phase the connection is in, and what each event does to it.

use std::rc::Rc;

use flotilla_api::{
    ApiError, ErrorCode, ServiceName,
    frame::{FRAME_VERSION, Hello, Kind, Lane, flags},
    signal::{FromBrowser, FromNode},
};
use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use js_sys::ArrayBuffer;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;
use web_sys::RtcPeerConnectionState;

use super::{
    Carrier, Event, Events, Generation,
    attempt::{self, Connection, Failure},
    backoff::Backoff,
    channel, message, now,
    page::{Page, Said, State},
    peer::Peer,
    pipes::Pipes,
    renewal,
    signalling::{Address, Heard, Socket},
    sockets::Sockets,
    surroundings::Surroundings,
};
use crate::identity::Identity;

/// From the node's answer to an open lane. Milliseconds.
const OPEN_WAIT_MS: f64 = 15_000.0;

/// A request waits this long for a connection before its page is told that there is none.
const REQUEST_WAIT_MS: f64 = 20_000.0;

/// A node that has said nothing for so long is asked whether it is there.
const SILENCE_MS: f64 = 15_000.0;

/// It has this long to answer; a round trip around the world takes a third of a second.
const PONG_WAIT_MS: f64 = 3_000.0;

/// An ICE restart that takes longer than a new connection would is given up for one.
const RESTART_WAIT_MS: f64 = 6_000.0;

/// How often it is looked whether the token is due for renewal, and whether a lost signalling socket can be replaced.
const RENEWAL_TICKS: u32 = 60;
const RESUME_TICKS: u32 = 3;

pub(super) struct Driver {
    events: Events,
    happened: UnboundedReceiver<Event>,
    page: Page,
    address: Address,
    _surroundings: Surroundings,
    service: Option<ServiceName>,
    phase: Phase,
    generation: Generation,
    backoff: Backoff,
    was_open: bool,
    pipes: Pipes,
    sockets: Sockets,
    ticks: u32,
}

enum Phase {
    /// For the page to say whose it is.
    Waiting,
    Connecting,
    /// Agreed upon; its lanes are about to open.
    Opening {
        connection: Connection,
        until: f64,
    },
    Open(Open),
    /// Until the next attempt.
    Paused {
        until: f64,
    },
    /// No attempt will help until somebody signs in or the page is loaded again.
    Ended(ApiError),
}

struct Open {
    connection: Connection,
    heard_at: f64,
    pinged_at: Option<f64>,
    restarting: Option<f64>,
    signalling_lost: bool,
}

impl Driver {
    pub(super) fn new() -> Result<Self, JsValue> {
        let (events, happened) = futures::channel::mpsc::unbounded();
        Ok(Self {
            page: Page::listen(&events)?,
            address: Address::of_page()?,
            _surroundings: Surroundings::watch(&events)?,
            service: None,
            phase: Phase::Waiting,
            generation: 0,
            backoff: Backoff::default(),
            was_open: false,
            pipes: Pipes::new(events.clone()),
            sockets: Sockets::new(events.clone()),
            ticks: 0,
            events,
            happened,
        })
    }

    pub(super) async fn run(mut self) {
        while let Some(event) = self.happened.next().await {
            if matches!(event, Event::Leaving) {
                break;
            }
            self.take(event);
        }
        if let Phase::Open(open) = &self.phase {
            open.connection.signalling.send(&FromBrowser::Bye);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Page(service, said) => self.page_said(&service, said),
            Event::Port(port, frame) => {
                let refusal = match &self.phase {
                    Phase::Ended(error) => Some(error),
                    _ => None,
                };
                self.pipes.page_sent(port, &frame, peer_of(&self.phase), refusal, now());
            }
            Event::Socket(id, frame) => self.sockets.page_sent(id, frame),
            Event::Attempted(generation, result) if generation == self.generation => self.attempted(result),
            Event::Channel(generation, carrier, event) if generation == self.generation => {
                self.channel_did(carrier, event);
            }
            Event::Signal(generation, heard) if generation == self.generation => self.node_said(heard),
            Event::Resumed(generation, result) if generation == self.generation => self.resumed(result),
            Event::Peer(generation, state) if generation == self.generation => self.peer_became(state),
            Event::Offer(generation, offer) if generation == self.generation => self.offer_made(offer),
            Event::Identity(identity) => self.identity_is(identity),
            Event::Awake => self.look_again(),
            Event::Tick => self.tick(),
            // Of a connection before the current one; or the end, which the loop has seen.
            Event::Attempted(..)
            | Event::Channel(..)
            | Event::Signal(..)
            | Event::Resumed(..)
            | Event::Peer(..)
            | Event::Offer(..)
            | Event::Leaving => {}
        }
    }

    fn page_said(&mut self, service: &ServiceName, said: Said) {
        // A frame belongs to one page for its whole life.
        if self.service.get_or_insert_with(|| service.clone()) != service {
            return;
        }
        if let Phase::Waiting = self.phase {
            self.page.show(State::Connecting, None);
            self.connect();
        }
        match said {
            Said::Hello => {}
            Said::Link { id, port } => self.pipes.link(id, port, peer_of(&self.phase)),
            Said::Unlink { id } => self.pipes.unlink(&id, peer_of(&self.phase)),
            Said::Socket { port } => match &self.phase {
                Phase::Ended(error) => Sockets::refuse(&port, error),
                Phase::Open(open) => self.sockets.add(port, Some(&open.connection.peer), now()),
                _ => self.sockets.add(port, None, now()),
            },
        }
    }

    fn connect(&mut self) {
        let Some(service) = self.service.clone() else { return };
        self.generation += 1;
        self.phase = Phase::Connecting;
        let (generation, address, events) = (self.generation, self.address.clone(), self.events.clone());
        spawn_local(async move {
            let result = attempt::connect(service, generation, address, events.clone()).await;
            let _ = events.unbounded_send(Event::Attempted(generation, result));
        });
    }

    fn attempted(&mut self, result: Result<Connection, Failure>) {
        match result {
            Ok(connection) => {
                self.phase = Phase::Opening { connection, until: now() + OPEN_WAIT_MS };
                self.open_if_ready();
            }
            Err(Failure::SignedOut) => {
                self.end(State::SignIn, ApiError::new(ErrorCode::TokenMissing, "this browser is not signed in"), None);
            }
            Err(Failure::Rejected(error)) => self.rejected(error),
            Err(Failure::Unable(sentence)) => {
                let error = ApiError::new(ErrorCode::Internal, sentence.clone());
                self.end(State::Refused, error, Some(&sentence));
            }
            Err(Failure::Unreachable) => self.pause(),
        }
    }

    fn open_if_ready(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Opening { connection, .. } if connection.peer.lane(Lane::Interactive).is_open() => {
                let open =
                    Open { connection, heard_at: now(), pinged_at: None, restarting: None, signalling_lost: false };
                self.sockets.connect(&open.connection.peer);
                self.phase = Phase::Open(open);
                self.backoff.reset();
                self.was_open = true;
                self.page.show(State::Open, None);
            }
            other => self.phase = other,
        }
    }

    fn channel_did(&mut self, carrier: Carrier, event: channel::Event) {
        match (carrier, event) {
            (Carrier::Lane(lane), channel::Event::Open) => {
                self.open_if_ready();
                self.pipes.send(lane, peer_of(&self.phase));
            }
            (Carrier::Lane(lane), channel::Event::Drained) => self.pipes.send(lane, peer_of(&self.phase)),
            (Carrier::Lane(lane), channel::Event::Message(frame)) => self.node_sent(lane, &frame),
            // The node gave this service up, or itself.
            (Carrier::Lane(_), channel::Event::Closed) => self.lose(),
            (Carrier::Socket(id), channel::Event::Open | channel::Event::Drained) => self.sockets.send(id),
            (Carrier::Socket(id), channel::Event::Message(frame)) => self.sockets.node_sent(id, &frame),
            (Carrier::Socket(id), channel::Event::Closed) => self.sockets.fail(id, &lost()),
        }
    }

    fn node_sent(&mut self, lane: Lane, frame: &ArrayBuffer) {
        let Ok(header) = message::header_of(frame) else { return };
        if let Phase::Open(open) = &mut self.phase {
            open.heard_at = now();
        }
        if header.stream != 0 {
            self.pipes.node_sent(header, frame);
            return;
        }
        match header.kind {
            Kind::Ping if header.flags & flags::REPLY == 0 => {
                let reply = message::with_flags(frame, header, flags::REPLY);
                self.pipes.say(lane, reply, peer_of(&self.phase));
            }
            Kind::Ping => {
                if let Phase::Open(open) = &mut self.phase {
                    open.pinged_at = None;
                }
            }
            Kind::Hello if message::json_of(frame) != Some(Hello { version: FRAME_VERSION }) => {
                self.end(State::Outdated, ApiError::new(ErrorCode::FrameInvalid, "reload the page"), None);
            }
            Kind::GoAway => match message::json_of::<ApiError>(frame) {
                Some(error) => self.rejected(error),
                None => self.lose(),
            },
            _ => {}
        }
    }

    fn node_said(&mut self, heard: Heard) {
        match heard {
            Heard::Message(FromNode::Candidate { candidate: Some(candidate) }) => {
                if let Some(peer) = peer_of(&self.phase) {
                    spawn_local(peer.negotiation().add_candidate(candidate));
                }
            }
            // The answer to an ICE restart.
            Heard::Message(FromNode::Answer { answer, .. }) => {
                if let Some(peer) = peer_of(&self.phase) {
                    let negotiation = peer.negotiation();
                    // A restart that fails shows as a connection that does not come back.
                    spawn_local(async move { drop(negotiation.accept(answer).await) });
                }
            }
            Heard::Message(FromNode::Bye { error: Some(error) }) => self.rejected(error),
            Heard::Message(FromNode::Bye { error: None }) => self.lose(),
            // Of a restart or a renewal: a new connection needs neither.
            Heard::Message(FromNode::Error { .. }) => self.lose(),
            Heard::Message(FromNode::Candidate { candidate: None } | FromNode::Resumed | FromNode::Renewed) => {}
            Heard::Closed => match &mut self.phase {
                // The node may be gone with it, or only a proxy in between.
                Phase::Open(open) => {
                    open.signalling_lost = true;
                    self.look_again();
                    self.resume();
                }
                _ => self.lose(),
            },
        }
    }

    /// The node says why it does not, or no longer, serve this browser.
    fn rejected(&mut self, error: ApiError) {
        let state = match error.code {
            ErrorCode::TokenMissing
            | ErrorCode::TokenInvalid
            | ErrorCode::TokenExpired
            | ErrorCode::TokenRevoked
            | ErrorCode::ProofInvalid => State::SignIn,
            ErrorCode::ScopeInsufficient | ErrorCode::ServiceNotFound | ErrorCode::InvalidName => State::Refused,
            ErrorCode::SignalVersion => State::Outdated,
            // The node is busy or stops: that passes.
            _ => return self.lose(),
        };
        let sentence = error.message.clone();
        self.end(state, error, Some(&sentence));
    }

    fn end(&mut self, state: State, error: ApiError, sentence: Option<&str>) {
        self.forget_connection(&error);
        self.phase = Phase::Ended(error);
        self.page.show(state, sentence);
    }

    /// The connection is gone; a new one is tried.
    fn lose(&mut self) {
        self.forget_connection(&lost());
        self.pause();
    }

    fn forget_connection(&mut self, error: &ApiError) {
        // What the old connection still says is no longer listened to.
        self.generation += 1;
        let had_connection = matches!(self.phase, Phase::Open(_));
        self.phase = Phase::Waiting;
        if had_connection || error.code != ErrorCode::ConnectionFailed {
            self.pipes.lose_connection(error);
            self.sockets.fail_all(error);
        }
    }

    fn pause(&mut self) {
        self.phase = Phase::Paused { until: now() + self.backoff.next(js_sys::Math::random()) };
        match (self.was_open, self.backoff.is_persistent()) {
            (true, _) => self.page.show(State::Reconnecting, None),
            (false, false) => self.page.show(State::Connecting, None),
            (false, true) => self.page.show(State::Unreachable, Some("The node does not answer; it is tried again.")),
        }
        self.tick();
    }

    fn peer_became(&mut self, state: RtcPeerConnectionState) {
        match state {
            RtcPeerConnectionState::Failed => match &self.phase {
                Phase::Open(open) if open.restarting.is_none() && !open.signalling_lost => self.restart(),
                _ => self.lose(),
            },
            RtcPeerConnectionState::Closed => self.lose(),
            RtcPeerConnectionState::Disconnected => self.restart(),
            RtcPeerConnectionState::Connected => {
                if let Phase::Open(open) = &mut self.phase {
                    open.restarting = None;
                    open.pinged_at = None;
                    open.heard_at = now();
                    self.page.show(State::Open, None);
                }
            }
            _ => {}
        }
    }

    /// Other paths for the same connection: requests under way go on.
    fn restart(&mut self) {
        let Phase::Open(open) = &mut self.phase else { return };
        if open.restarting.is_some() {
            return;
        }
        open.restarting = Some(now());
        self.page.show(State::Reconnecting, None);
        if open.signalling_lost {
            self.resume();
            return;
        }
        let (negotiation, generation, events) =
            (open.connection.peer.negotiation(), self.generation, self.events.clone());
        spawn_local(async move {
            let _ = events.unbounded_send(Event::Offer(generation, negotiation.restart().await));
        });
    }

    fn offer_made(&mut self, offer: Result<String, JsValue>) {
        match (&self.phase, offer) {
            (Phase::Open(open), Ok(offer)) => open.connection.signalling.send(&FromBrowser::Restart { offer }),
            _ => self.lose(),
        }
    }

    fn resume(&mut self) {
        let Phase::Open(open) = &self.phase else { return };
        let (session, generation) = (open.connection.session.clone(), self.generation);
        let (address, events) = (self.address.clone(), self.events.clone());
        spawn_local(async move {
            let result = attempt::resume(session, generation, address, events.clone()).await;
            let _ = events.unbounded_send(Event::Resumed(generation, result));
        });
    }

    fn resumed(&mut self, result: Result<Rc<Socket>, Failure>) {
        let Phase::Open(open) = &mut self.phase else { return };
        match result {
            Ok(signalling) => {
                open.signalling_lost = false;
                open.connection.peer.signal_over(Rc::clone(&signalling));
                open.connection.signalling = signalling;
                if open.restarting.take().is_some() {
                    self.restart();
                }
            }
            // Not now; the connection lives without it, and it is tried again. But a node that answers neither way is gone.
            Err(Failure::Unreachable) if open.restarting.is_none() && open.pinged_at.is_none() => {}
            Err(Failure::Rejected(error)) => self.rejected(error),
            Err(_) => self.lose(),
        }
    }

    fn identity_is(&mut self, identity: Result<Option<Identity>, crate::identity::Error>) {
        let Ok(identity) = identity else { return };
        match (&self.phase, identity) {
            (Phase::Ended(_), Some(_)) => {
                self.page.show(State::Connecting, None);
                self.connect();
            }
            (Phase::Ended(_), None) => {}
            (_, None) => {
                self.end(State::SignIn, ApiError::new(ErrorCode::TokenMissing, "this browser is not signed in"), None);
            }
            (Phase::Open(open), Some(identity)) if open.connection.token != identity.token => self.renew(identity),
            _ => {}
        }
    }

    /// The session ends with its token; with the next one it goes on.
    fn renew(&mut self, identity: Identity) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.connection.token.clone_from(&identity.token);
        let (signalling, address) = (Rc::clone(&open.connection.signalling), self.address.clone());
        spawn_local(async move {
            if let Ok(proof) = identity.proof("CONNECT", &address.proof).await {
                signalling.send(&FromBrowser::Renew { token: identity.token, proof: Some(proof) });
            }
        });
    }

    /// After a sleep or a change of networks the old paths are often dead, and nothing says so.
    fn look_again(&mut self) {
        match &mut self.phase {
            Phase::Paused { until } => *until = 0.0,
            Phase::Open(open) => open.heard_at = f64::NEG_INFINITY,
            _ => {}
        }
        self.tick();
    }

    fn tick(&mut self) {
        let now = now();
        match &mut self.phase {
            Phase::Paused { until } if *until <= now => self.connect(),
            Phase::Opening { until, .. } if *until <= now => self.lose(),
            Phase::Open(open) if open.restarting.is_some_and(|since| now - since > RESTART_WAIT_MS) => self.lose(),
            Phase::Open(open) if open.restarting.is_none() => {
                if open.pinged_at.is_some_and(|since| now - since > PONG_WAIT_MS) {
                    self.restart();
                } else if open.pinged_at.is_none() && now - open.heard_at > SILENCE_MS {
                    open.pinged_at = Some(now);
                    let ping = message::frame(Kind::Ping, 0, 0, &[]);
                    self.pipes.say(Lane::Interactive, ping, peer_of(&self.phase));
                }
            }
            _ => {}
        }
        if !matches!(self.phase, Phase::Open(_)) {
            let error =
                ApiError::new(ErrorCode::Timeout, "The node that runs this service does not answer; try again.");
            self.pipes.expire(now - REQUEST_WAIT_MS, &error);
            self.sockets.expire(now - REQUEST_WAIT_MS, &error);
        }
        self.ticks = self.ticks.wrapping_add(1);
        if let Phase::Open(open) = &self.phase {
            if open.signalling_lost && open.restarting.is_none() && self.ticks.is_multiple_of(RESUME_TICKS) {
                self.resume();
            }
            if self.ticks.is_multiple_of(RENEWAL_TICKS) {
                let origin = self.address.proof.trim_end_matches("/signal").to_owned();
                // What is stored is announced, and comes back as an event.
                spawn_local(async move { drop(renewal::renew_if_due(&origin).await) });
            }
        }
    }
}

fn peer_of(phase: &Phase) -> Option<&Peer> {
    match phase {
        Phase::Open(Open { connection, .. }) | Phase::Opening { connection, .. } => Some(&connection.peer),
        _ => None,
    }
}

fn lost() -> ApiError {
    ApiError::new(ErrorCode::ConnectionFailed, "The connection to the service was lost; try again.")
}
