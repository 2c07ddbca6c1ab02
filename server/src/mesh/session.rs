//! One browser's session: its connection, its token, and the signalling socket it has at the moment.

use std::{sync::Arc, time::Duration};

use flotilla_api::{
    ApiError, ErrorCode,
    rest::Principal,
    signal::{CANDIDATES_MAX, FromBrowser, FromNode, SIGNAL_VERSION},
};
use futures::future::BoxFuture;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Admission,
    link::{Link, LinkState},
};
use crate::tunnel::{self, Channel};

/// From the answer to a connection that is up. A browser behind a slow network needs a few seconds; each pending session
/// costs sockets and checks.
const SET_UP: Duration = Duration::from_secs(20);

/// A connection on which no channel is open serves nobody.
const UNUSED: Duration = Duration::from_secs(120);

/// Two lanes for each service, and one channel for each WebSocket. Chromium itself allows 1024.
const CHANNELS_MAX: usize = 512;

/// ICE restarts of one session. A phone that changes networks all day reconnects after that.
const RESTARTS_MAX: usize = 1000;

/// Frames and messages that say goodbye are sent, or the connection is gone anyway.
const GOODBYE: Duration = Duration::from_millis(500);

/// What a session is told.
#[derive(Debug)]
pub(super) enum Input {
    Attach(Attached),
    Message(FromBrowser),
    Malformed(ApiError),
    /// This socket is gone; another may have taken its place already.
    Detach(mpsc::Sender<FromNode>),
}

/// A socket, and the first thing to say on it.
#[derive(Debug)]
pub(super) struct Attached {
    outgoing: mpsc::Sender<FromNode>,
    /// What a proof on this socket must name.
    url: String,
    greeting: FromNode,
}

impl Attached {
    pub(super) fn new(outgoing: mpsc::Sender<FromNode>, url: String, greeting: FromNode) -> Self {
        Self { outgoing, url, greeting }
    }
}

pub(super) struct Session {
    link: Arc<Link>,
    principal: Principal,
    admission: Arc<dyn Admission>,
    tunnel: Arc<tunnel::Session>,
    socket: Option<mpsc::Sender<FromNode>>,
    url: String,
    candidates: usize,
    restarts: usize,
    grace: Duration,
}

/// Why a session is over; an error is told to the browser.
enum End {
    Left,
    Gone(&'static str),
    Refused(ApiError),
}

impl Session {
    pub(super) fn new(
        link: Link,
        principal: Principal,
        admission: Arc<dyn Admission>,
        tunnel: Arc<tunnel::Session>,
        grace: Duration,
    ) -> Self {
        Self {
            link: Arc::new(link),
            principal,
            admission,
            tunnel,
            socket: None,
            url: String::new(),
            candidates: 0,
            restarts: 0,
            grace,
        }
    }

    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut channels = JoinSet::new();
        let end = self.until_over(&mut inputs, &mut channels, &stop).await;
        let error = match end {
            End::Left => None,
            End::Gone(why) => {
                tracing::debug!("session over: {why}");
                None
            }
            End::Refused(error) => {
                tracing::debug!(code = error.code.as_str(), "session ended: {error}");
                let _ = timeout(GOODBYE, self.tunnel.go_away(&error)).await;
                Some(error)
            }
        };
        self.say(FromNode::Bye { error });
        self.link.close().await;
        channels.shutdown().await;
    }

    async fn until_over(
        &mut self,
        inputs: &mut mpsc::Receiver<Input>,
        channels: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> End {
        let mut ended: BoxFuture<'static, ApiError> = self.admission.ended(&self.principal);
        let mut state = self.link.state();
        let mut deadline = Some((Instant::now() + SET_UP, "the connection did not come up"));
        let link = Arc::clone(&self.link);
        loop {
            let (until, why) = deadline.unwrap_or((Instant::now() + UNUSED, ""));
            tokio::select! {
                () = stop.cancelled() => {
                    return End::Refused(ApiError::new(ErrorCode::ServiceUnavailable, "the node stops; reconnecting"));
                }
                error = &mut ended => return End::Refused(error),
                input = inputs.recv() => {
                    // The registry holds a sender as long as this task runs.
                    let Some(input) = input else { return End::Gone("nobody holds it") };
                    match self.take(input).await {
                        Taken::Nothing => {}
                        Taken::Renewed => ended = self.admission.ended(&self.principal),
                        Taken::Restarted => {
                            deadline = Some((Instant::now() + self.grace, "the connection did not come back"));
                            state.mark_changed();
                        }
                        Taken::Bye => return End::Left,
                    }
                }
                changed = state.changed() => {
                    let now = *state.borrow_and_update();
                    tracing::debug!(state = ?now, "connection");
                    match now {
                        _ if changed.is_err() => return End::Gone("its driver stopped"),
                        LinkState::Connecting => {}
                        LinkState::Connected => {
                            deadline = channels.is_empty().then(|| (Instant::now() + UNUSED, "no channel was opened"));
                        }
                        LinkState::Disconnected | LinkState::Failed => {
                            let waiting = deadline.filter(|(_, why)| *why == LOST);
                            deadline = waiting.or(Some((Instant::now() + self.grace, LOST)));
                        }
                        LinkState::Closed => return End::Gone("the browser closed the connection"),
                    }
                }
                channel = link.accept() => {
                    let Some(channel) = channel else { return End::Gone("its connection is closed") };
                    if channels.len() >= CHANNELS_MAX {
                        tracing::debug!("a data channel was refused: {CHANNELS_MAX} are open");
                        channel.close().await;
                        continue;
                    }
                    let tunnel = Arc::clone(&self.tunnel);
                    channels.spawn(async move {
                        let Ok(label) = channel.label().await else { return };
                        tunnel.serve(Arc::new(channel), &label).await;
                    });
                    deadline = None;
                }
                Some(_) = channels.join_next() => {
                    if channels.is_empty() && deadline.is_none() {
                        deadline = Some((Instant::now() + UNUSED, "its channels are closed"));
                    }
                }
                () = sleep_until(until), if deadline.is_some() => return End::Gone(why),
            }
        }
    }

    async fn take(&mut self, input: Input) -> Taken {
        match input {
            Input::Attach(Attached { outgoing, url, greeting }) => {
                self.url = url;
                self.socket = Some(outgoing);
                self.say(greeting);
                Taken::Nothing
            }
            Input::Detach(outgoing) => {
                if self.socket.as_ref().is_some_and(|socket| socket.same_channel(&outgoing)) {
                    self.socket = None;
                }
                Taken::Nothing
            }
            Input::Malformed(error) => self.refuse(error),
            Input::Message(FromBrowser::Candidate { candidate: None }) => Taken::Nothing,
            Input::Message(FromBrowser::Candidate { candidate: Some(candidate) }) => {
                self.candidates += 1;
                if self.candidates > CANDIDATES_MAX {
                    return self.refuse(ApiError::new(
                        ErrorCode::SignalInvalid,
                        format!("a connection takes at most {CANDIDATES_MAX} candidates; connect again"),
                    ));
                }
                self.link.add_candidate(candidate).await;
                Taken::Nothing
            }
            Input::Message(FromBrowser::Restart { offer }) => self.restart(offer).await,
            Input::Message(FromBrowser::Renew { token, proof }) => self.renew(&token, proof.as_deref()),
            Input::Message(FromBrowser::Bye) => Taken::Bye,
            Input::Message(FromBrowser::Connect { .. } | FromBrowser::Resume { .. }) => self.refuse(ApiError::new(
                ErrorCode::SignalInvalid,
                "this socket already has a session; open another socket for another connection",
            )),
        }
    }

    async fn restart(&mut self, offer: String) -> Taken {
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX {
            return self.refuse(ApiError::new(
                ErrorCode::SignalInvalid,
                format!("a session restarts at most {RESTARTS_MAX} times; connect again"),
            ));
        }
        match self.link.answer(offer).await {
            Ok(answer) => {
                self.candidates = 0;
                self.say(FromNode::Answer { version: SIGNAL_VERSION, answer, session: String::new() });
                Taken::Restarted
            }
            Err(error) => self.refuse(error.into()),
        }
    }

    fn renew(&mut self, token: &str, proof: Option<&str>) -> Taken {
        match self.admission.verify(token, proof, &self.url) {
            // Another person's token would hand over the first one's cookies.
            Ok(principal) if principal.token != self.principal.token => self.refuse(ApiError::new(
                ErrorCode::TokenInvalid,
                "a session is renewed with the token it began with; connect again",
            )),
            Ok(principal) => {
                self.tunnel.renew(principal.clone());
                self.principal = principal;
                self.say(FromNode::Renewed);
                Taken::Renewed
            }
            Err(error) => self.refuse(error),
        }
    }

    fn refuse(&mut self, error: ApiError) -> Taken {
        self.say(FromNode::Error { error });
        Taken::Nothing
    }

    /// A socket whose queue is full does not read what it asked for; it is let go, and may come back.
    fn say(&mut self, message: FromNode) {
        if let Some(socket) = &self.socket
            && socket.try_send(message).is_err()
        {
            self.socket = None;
        }
    }
}

const LOST: &str = "the browser was not heard of any more";

enum Taken {
    Nothing,
    Renewed,
    Restarted,
    Bye,
}
