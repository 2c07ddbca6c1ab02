//! The sessions of this node, and the way in for a signalling socket.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::extract::ws::WebSocket;
use flotilla_api::{
    ApiError, ErrorCode, TokenId, UnixMillis,
    rest::Principal,
    signal::{FromBrowser, FromNode, SIGNAL_VERSION},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Admission, Client, Config, Error, Signals,
    link::{Link, Peer},
    session::{Attached, Input, Session},
};
use crate::{clock, tunnel::Tunnel};

/// A socket that says nothing is closed.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// A browser that is refused may try again on the same socket, for example with a renewed token.
const ATTEMPTS_MAX: usize = 5;

/// Messages of a browser that its session has not taken yet: a burst of candidates.
const INPUT_QUEUE: usize = 64;

/// What sessions may take to say goodbye when the node stops.
const STOPPING: Duration = Duration::from_secs(3);

/// All WebRTC of this node. Cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    admission: Arc<dyn Admission>,
    tunnel: Tunnel,
    sessions: Mutex<HashMap<String, Entry>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Entry {
    principal: Principal,
    started_at: UnixMillis,
    inputs: mpsc::Sender<Input>,
}

/// A browser session, for metrics and for a person who asks who is connected.
#[derive(Clone, Debug)]
pub struct SessionView {
    pub token: TokenId,
    pub name: String,
    pub started_at: UnixMillis,
}

impl Mesh {
    pub fn new(config: Config, admission: Arc<dyn Admission>, tunnel: Tunnel) -> Self {
        let inner = Inner {
            config,
            admission,
            tunnel,
            sessions: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Serves a browser's signalling socket until it closes. The session that it sets up may live on.
    ///
    /// The listener shall limit messages to [`flotilla_api::signal::SIGNAL_MAX`] before they get here.
    pub async fn signal(&self, socket: WebSocket, client: Client) {
        self.serve(super::signal::from_websocket(socket), client).await;
    }

    /// The same over any transport of messages.
    pub async fn serve(&self, mut signals: Signals, client: Client) {
        for _ in 0..ATTEMPTS_MAX {
            let Ok(Some(message)) = timeout(FIRST_MESSAGE, signals.incoming.recv()).await else { return };
            let attached = match message {
                Ok(message) => self.begin(message, &signals, &client).await,
                Err(error) => Err(error),
            };
            match attached {
                Ok(inputs) => return forward(signals, inputs).await,
                Err(error) => {
                    tracing::debug!(client = %client.address, code = error.code.as_str(), "signalling refused: {error}");
                    if signals.outgoing.send(FromNode::Error { error }).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Those who are connected now.
    pub fn sessions(&self) -> Vec<SessionView> {
        let sessions = self.inner.lock();
        sessions
            .values()
            .map(|entry| SessionView {
                token: entry.principal.token.clone(),
                name: entry.principal.name.clone(),
                started_at: entry.started_at,
            })
            .collect()
    }

    /// The tunnel that sessions use, for its counters.
    pub fn tunnel(&self) -> &Tunnel {
        &self.inner.tunnel
    }

    /// Says goodbye to every session and frees its connection; no new one is taken.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if timeout(STOPPING, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("some browser sessions did not end in time");
        }
    }

    async fn verify(&self, token: &str, proof: Option<&str>, client: &Client) -> Result<Principal, ApiError> {
        let admission = &self.inner.admission;
        let told = |error| admission.refused(client.address).err().unwrap_or(error);
        match admission.verify(token, proof, &client.url) {
            Err(_) if admission.learns(token).await => admission.verify(token, proof, &client.url).map_err(told),
            verified => verified.map_err(told),
        }
    }

    async fn begin(
        &self,
        message: FromBrowser,
        signals: &Signals,
        client: &Client,
    ) -> Result<mpsc::Sender<Input>, ApiError> {
        match message {
            FromBrowser::Connect { version, token, proof, offer } => {
                check_version(version)?;
                let principal = self.verify(&token, proof.as_deref(), client).await?;
                self.connect(principal, offer, signals, client).await
            }
            FromBrowser::Resume { version, session, token, proof } => {
                check_version(version)?;
                let principal = self.verify(&token, proof.as_deref(), client).await?;
                self.resume(&session, &principal, signals, client).await
            }
            _ => Err(ApiError::new(
                ErrorCode::SignalInvalid,
                "a socket begins with `connect` or `resume`; reload the page",
            )),
        }
    }

    async fn connect(
        &self,
        principal: Principal,
        offer: String,
        signals: &Signals,
        client: &Client,
    ) -> Result<mpsc::Sender<Input>, ApiError> {
        let id = session_id();
        let (inputs, input_receiver) = mpsc::channel(INPUT_QUEUE);
        let seat = self.take_seat(&id, &principal, inputs.clone())?;
        let Config { addresses, certificate, port, .. } = &self.inner.config;
        let link = Link::by(Peer::Browser, addresses, certificate, port.clone().into()).await?;
        let answer = link.answer(offer).await?;
        let tunnel = self.inner.tunnel.session(principal.clone(), client.clone());
        let span = tracing::info_span!("session", principal = %principal.name, client = %client.address);
        let session = Session::new(link, principal, Arc::clone(&self.inner.admission), tunnel, self.inner.config.grace);
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(
            async move {
                session.run(input_receiver, stop).await;
                drop(seat);
            }
            .instrument(span),
        );
        let answer = FromNode::Answer { version: SIGNAL_VERSION, answer, session: id };
        let gone = |_| ApiError::new(ErrorCode::ConnectionFailed, "the session ended before it began; connect again");
        inputs
            .send(Input::Attach(Attached::new(signals.outgoing.clone(), client.url.clone(), answer)))
            .await
            .map_err(gone)?;
        Ok(inputs)
    }

    async fn resume(
        &self,
        id: &str,
        principal: &Principal,
        signals: &Signals,
        client: &Client,
    ) -> Result<mpsc::Sender<Input>, ApiError> {
        let inputs = {
            let sessions = self.inner.lock();
            match sessions.get(id) {
                Some(entry) if entry.principal.token == principal.token => entry.inputs.clone(),
                _ => return Err(Error::NoSession.into()),
            }
        };
        let attach = Input::Attach(Attached::new(signals.outgoing.clone(), client.url.clone(), FromNode::Resumed));
        inputs.send(attach).await.map_err(|_| Error::NoSession)?;
        Ok(inputs)
    }

    /// Reserves a place before any socket is opened, so that a burst of offers can't exceed the limits.
    fn take_seat(&self, id: &str, principal: &Principal, inputs: mpsc::Sender<Input>) -> Result<Seat, ApiError> {
        if self.inner.stop.is_cancelled() {
            return Err(ApiError::new(ErrorCode::ServiceUnavailable, "this node is stopping; try again in a moment"));
        }
        let mut sessions = self.inner.lock();
        let (all, own) = (self.inner.config.sessions_max, self.inner.config.sessions_per_principal_max);
        if sessions.len() >= all {
            return Err(Error::Full { max: all }.into());
        }
        if sessions.values().filter(|entry| entry.principal.token == principal.token).count() >= own {
            return Err(Error::Full { max: own }.into());
        }
        let entry = Entry { principal: principal.clone(), started_at: clock::now(), inputs };
        sessions.insert(id.to_owned(), entry);
        self.inner.tunnel.counters().session_began();
        Ok(Seat { id: id.to_owned(), inner: Arc::clone(&self.inner) })
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("sessions", &self.inner.lock().len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place in the table, given back when the session is over, however it ended.
struct Seat {
    id: String,
    inner: Arc<Inner>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.inner.lock().remove(&self.id);
        self.inner.tunnel.counters().session_ended();
    }
}

fn check_version(version: u32) -> Result<(), ApiError> {
    if version == SIGNAL_VERSION {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::SignalVersion,
        format!("the page speaks version {version} of signalling, this node version {SIGNAL_VERSION}; reload the page"),
    ))
}

fn session_id() -> String {
    use std::fmt::Write as _;
    let bytes: [u8; 16] = rand::random();
    bytes.iter().fold(String::with_capacity(32), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}

/// Carries a socket's messages to its session until either is gone.
async fn forward(mut signals: Signals, inputs: mpsc::Sender<Input>) {
    let outgoing = signals.outgoing.clone();
    loop {
        let input = tokio::select! {
            message = signals.incoming.recv() => match message {
                Some(Ok(message)) => Input::Message(message),
                Some(Err(error)) => Input::Malformed(error),
                None => break,
            },
            () = inputs.closed() => break,
        };
        if inputs.send(input).await.is_err() {
            break;
        }
    }
    let _ = inputs.send(Input::Detach(outgoing)).await;
}
