//! The mesh between nodes: a link with every other member, and what is said over it.
//!
//! [`NodeMesh`] implements [`Peers`] over WebRTC. With each member it keeps a *control* link for calls, and makes a *bulk* link when a
//! stream is wanted, so that bulk can't delay a heartbeat; where TCP gets through that is a [`tls`] link. Links are set up by signed envelopes ([`envelope`]), which are brought by
//! HTTP to the other node's listener or by a node that both have a link to.

mod bulk;
mod contact;
mod control;
mod dial;
mod envelope;
mod figures;
mod mux;
mod outbox;
mod peer;
mod post;
mod pulse;
mod rpc;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use flotilla_api::{ApiError, ErrorCode, NodeId, rest::LinkView};
use flotilla_core::State;
use flotilla_relay::Credentials;
use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use webrtc::peer_connection::RTCIceServer;

pub use contact::{Contact, ContactError, contact};
pub use envelope::{ENVELOPE_MAX, NODE_SIGNAL_VERSION};
pub use post::SIGNAL_PATH;
pub use tls::{Arrival, BULK_ATTEMPT, BULK_PATH, BULK_PROTOCOL};

use super::{
    Addresses, Certificate, Error, Port,
    link::{Link, Ways},
};
use crate::{
    clock,
    peers::{CallError, Handler, Method, Peers, Stream, starting},
};
use bulk::{Carrier, LABEL_MAX, Taker};
use control::{CONNECTING, Control, Hello, PROTOCOL};
use dial::{HOPS_MAX, Passed};
use envelope::{Answer, Author, Body, Offer, Purpose, Seen, invalid};
use peer::{Input, Peer};
use rpc::Answers;
use tls::Tls;

/// How often this machine's addresses are looked at.
const NETWORK_LOOK: Duration = Duration::from_secs(2);

/// Bulk links that are being answered at one time; each has sockets and a handshake.
const BULK_ANSWERS_MAX: usize = 16;

/// What links may take to say goodbye when the node stops.
const STOPPING: Duration = Duration::from_secs(2);

/// Relays that a link may go through. Each is asked for an address on each attempt.
const RELAYS_MAX: usize = 3;

/// Credentials outlive any link: they are made from the cluster's key, which every node has, and go to its own relays alone.
const RELAY_CREDENTIALS: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the mesh of a node needs to know.
#[derive(Clone)]
pub struct NodeConfig {
    /// Who this node is.
    pub key: SigningKey,
    /// The key that signs the cluster's tokens. With it a node proves to a stranger that it is of the cluster; absent on a machine that
    /// has not joined yet.
    pub cluster_key: Option<SigningKey>,
    pub certificate: Certificate,
    pub addresses: Addresses,
    /// Of the program.
    pub version: String,
    /// The one that all links of this node share, and browsers too; absent: each link has ports of its own.
    pub port: Option<Port>,
    /// Shared by the relays of the cluster; without it none is used.
    pub relay_secret: Option<String>,
    /// Versions of the protocol that are spoken, oldest and newest.
    protocol: (u32, u32),
    /// Nothing but relays is used, for tests.
    relayed_only: bool,
}

impl NodeConfig {
    pub fn new(key: SigningKey, certificate: Certificate, addresses: Addresses) -> Self {
        Self {
            key,
            cluster_key: None,
            certificate,
            addresses,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            port: None,
            relay_secret: None,
            protocol: PROTOCOL,
            relayed_only: false,
        }
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// The links of this node to all others.
pub struct NodeMesh {
    shared: Arc<Shared>,
}

/// What all tasks of the mesh share.
struct Shared {
    config: NodeConfig,
    author: Author,
    post: post::Post,
    /// Set when the mesh starts.
    run: OnceLock<Run>,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    connected: watch::Sender<BTreeSet<NodeId>>,
    seen: Mutex<Seen>,
    strangers: Arc<Semaphore>,
    bulk_answers: Semaphore,
    tls: Tls,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Run {
    members: watch::Receiver<Arc<State>>,
    handler: Arc<dyn Handler>,
}

/// What the state says of a node.
enum Member {
    /// With the addresses of its listener.
    Known(Vec<String>),
    Removed,
    Stranger,
}

impl NodeMesh {
    /// A mesh that knows nobody yet: every call fails until it is started. So it can be given to what its handler is made of.
    ///
    /// # Errors
    /// The system's TLS can't be set up.
    pub fn new(config: NodeConfig) -> Result<Arc<Self>, Error> {
        let post = post::Post::new().map_err(|error| Error::Certificate(error.to_string()))?;
        let shared = Shared {
            author: Author::new(config.key.clone()),
            tls: Tls::new(&config.certificate)?,
            config,
            post,
            run: OnceLock::new(),
            peers: RwLock::default(),
            connected: watch::Sender::default(),
            seen: Mutex::default(),
            strangers: Arc::new(Semaphore::new(contact::STRANGERS_MAX)),
            bulk_answers: Semaphore::new(BULK_ANSWERS_MAX),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }

    /// Links with every member that the state names. Once.
    pub fn start(&self, members: watch::Receiver<Arc<State>>, handler: Arc<dyn Handler>) {
        let run = Run { members: members.clone(), handler };
        if self.shared.run.set(run).is_err() {
            tracing::error!("the mesh was started twice");
            return;
        }
        self.shared.tasks.spawn(follow(Arc::clone(&self.shared), members));
        self.shared.tasks.spawn(watch_network(Arc::clone(&self.shared)));
    }

    /// This node.
    pub fn id(&self) -> &NodeId {
        &self.shared.author.id
    }

    /// Answers an envelope that came over HTTP.
    ///
    /// # Errors
    /// What is wrong with it. A refusal that the other node shall believe is in the answer, signed.
    pub async fn signal(&self, envelope: &[u8]) -> Result<Vec<u8>, ApiError> {
        self.shared.signalled(envelope).await
    }

    /// Says goodbye to every node and frees the links.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(STOPPING, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("some links to other machines did not end in time");
        }
    }
}

impl Peers for NodeMesh {
    fn call(
        &self,
        to: &NodeId,
        method: Method,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let control = self.shared.peer(to).and_then(|peer| peer.control());
        async move {
            let Some(control) = control else { return Err(CallError::Unreachable) };
            control.rpc().call(method, body, within).await
        }
        .boxed()
    }

    fn stream(&self, to: &NodeId, label: &str) -> BoxFuture<'static, Result<Stream, CallError>> {
        self.stream_beside(to, label, 0)
    }

    fn stream_beside(&self, to: &NodeId, label: &str, lane: usize) -> BoxFuture<'static, Result<Stream, CallError>> {
        let (shared, peer, label) = (Arc::clone(&self.shared), self.shared.peer(to), label.to_owned());
        async move {
            if label.len() > LABEL_MAX {
                return Err(CallError::TooLarge { size: label.len() });
            }
            let peer = peer.ok_or(CallError::Unreachable)?;
            peer.stream(&shared, &label, lane).await
        }
        .boxed()
    }

    fn connected(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.shared.connected.subscribe()
    }

    fn links(&self) -> Vec<LinkView> {
        self.shared.peers().values().map(|peer| peer.view()).collect()
    }
}

impl Shared {
    fn peers(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, id: &NodeId) -> Option<Arc<Peer>> {
        self.peers().get(id).cloned()
    }

    /// Links to other nodes than this one, which may pass something on to it.
    fn others(&self, id: &NodeId) -> Vec<Arc<Control>> {
        self.peers().values().filter(|peer| peer.id != *id).filter_map(|peer| peer.control()).collect()
    }

    fn state(&self) -> Option<Arc<State>> {
        Some(self.run.get()?.members.borrow().clone())
    }

    fn member(&self, id: &NodeId) -> Member {
        let Some(state) = self.state() else { return Member::Stranger };
        match state.machines.get(id) {
            Some(machine) => Member::Known(machine.facts.addresses.clone()),
            None if state.removed_machines.contains_key(id) => Member::Removed,
            None => Member::Stranger,
        }
    }

    fn addresses_of(&self, id: &NodeId) -> Vec<String> {
        match self.member(id) {
            Member::Known(addresses) => addresses,
            Member::Removed | Member::Stranger => Vec::new(),
        }
    }

    fn hello(&self) -> Hello {
        let (oldest, newest) = self.config.protocol;
        Hello { oldest, newest, version: self.config.version.clone(), boot: self.author.boot.clone() }
    }

    fn connected(&self, id: &NodeId, is: bool) {
        self.connected
            .send_if_modified(|connected| if is { connected.insert(id.clone()) } else { connected.remove(id) });
    }

    /// The ways to another node. `shared_port`: this end uses the port that it shares among its links. With `relay` the relays of
    /// members are asked too, first those of others: a relay at either end helps least.
    fn ways(&self, to: &NodeId, relay: bool, shared_port: bool) -> Ways {
        let relayed_only = self.config.relayed_only;
        let port = self.config.port.clone().filter(|_| shared_port);
        // Who forwards the listener's port from a router forwards this one with it.
        let announced = |address: &String| {
            let address: SocketAddr = address.parse().ok()?;
            Some(SocketAddr::new(address.ip(), port.as_ref().map_or(address.port(), Port::number)))
        };
        let announced = self.addresses_of(&self.author.id).iter().filter_map(announced).collect();
        let mut ways = Ways { port, announced, servers: Vec::new(), relayed_only };
        let (true, Some(secret), Some(state)) = (relay || relayed_only, &self.config.relay_secret, self.state()) else {
            return ways;
        };
        let Ok(credentials) = Credentials::make(secret, &self.author.id.0, RELAY_CREDENTIALS) else { return ways };
        let mut relays = Vec::new();
        for (id, machine) in &state.machines {
            let is_end = id == to || *id == self.author.id;
            let Some(port) = machine.facts.relay_port else { continue };
            let hosts = machine.facts.addresses.iter().filter_map(|address| host_of(address));
            relays.extend(hosts.map(|host| (is_end, format!("turn:{host}:{port}?transport=udp"))));
        }
        relays.sort();
        relays.dedup();
        let servers = relays.into_iter().take(RELAYS_MAX).map(|(_, url)| RTCIceServer {
            urls: vec![url],
            username: credentials.username.clone(),
            credential: credentials.password.clone(),
        });
        ways.servers = servers.collect();
        ways
    }

    fn member_answers(self: &Arc<Self>, from: &NodeId) -> Arc<dyn Answers> {
        Arc::new(MemberAnswers { shared: Arc::clone(self), from: from.clone() })
    }

    fn taker(&self, from: &NodeId) -> Taker {
        // Links are made only after the start.
        let handler = self.run.get().map(|run| Arc::clone(&run.handler));
        Taker { from: from.clone(), handler, connected: self.connected.subscribe(), tasks: self.tasks.clone() }
    }

    /// Answers an envelope, whichever way it came.
    async fn signalled(self: &Arc<Self>, bytes: &[u8]) -> Result<Vec<u8>, ApiError> {
        let opened = envelope::open(bytes)?;
        envelope::check(&opened.message, &self.author.id, clock::now())?;
        let envelope::Message { from, nonce, boot, body, .. } = &opened.message;
        let Body::Offer(offer) = body else { return Err(invalid("an answer is no offer")) };
        if self.stop.is_cancelled() {
            return Err(ApiError::new(ErrorCode::ServiceUnavailable, "the node stops; try again"));
        }
        if self.run.get().is_none() {
            return Err(starting());
        }
        if offer.purpose == Purpose::Join {
            return contact::answer(self, &opened.key, from, nonce, offer).await;
        }
        match self.member(from) {
            Member::Known(_) => {}
            Member::Removed => {
                return Err(ApiError::new(
                    ErrorCode::ScopeInsufficient,
                    "this machine was removed from the cluster, and its key is not taken again",
                ));
            }
            Member::Stranger => {
                return Err(ApiError::new(ErrorCode::ScopeInsufficient, "this machine is not known to the cluster"));
            }
        }
        if *from == self.author.id {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                "another machine has the key of this one; a copied disk needs a key of its own: delete its data directory and join again",
            ));
        }
        // A member that was admitted a moment ago.
        let peer = self.peer(from).ok_or_else(starting)?;
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_first(&opened.message) {
            return Err(invalid("this signalling message was taken before"));
        }
        let described = match offer.purpose {
            Purpose::Bulk => Box::pin(self.answer_bulk(&peer, offer, boot)).await,
            Purpose::Tls => self.answer_tls(&peer, offer, boot),
            _ => peer.offered(offer.clone(), boot.clone()).await,
        };
        let body = match described {
            Ok(description) => Body::Answer(Answer { reply_to: nonce.clone(), description, voucher: None }),
            Err(error) => Body::Refusal { reply_to: nonce.clone(), error },
        };
        Ok(self.author.seal(Some(from), body).0)
    }

    async fn answer_bulk(self: &Arc<Self>, peer: &Arc<Peer>, offer: &Offer, boot: &str) -> Result<String, ApiError> {
        let busy = || ApiError::new(ErrorCode::RateLimited, "there are many links already; try again");
        let _place = self.bulk_answers.try_acquire().map_err(|_| busy())?;
        if peer.bulk.is_full() {
            return Err(busy());
        }
        let ways = self.ways(&peer.id, offer.relay, !offer.shared_port);
        let end = peer.bulk.next_end();
        let link = Link::by(end, &self.config.addresses, &self.config.certificate, ways).await?;
        let channel = bulk::open_channel(&link).await?;
        let description = link.answer(offer.description.clone()).await?;
        let (shared, peer, boot) = (Arc::clone(self), Arc::clone(peer), boot.to_owned());
        self.tasks.spawn(async move {
            if link.connected(CONNECTING).await.is_ok()
                && matches!(timeout(CONNECTING, bulk::greet(&channel)).await, Ok(Ok(())))
            {
                peer.bulk.add(Carrier::WebRtc(link, end), Box::new(channel), boot, false, shared.taker(&peer.id));
            }
        });
        Ok(description)
    }

    /// Passes an envelope on, or answers it if it is for this node.
    async fn pass_on(self: &Arc<Self>, body: &[u8]) -> Result<Bytes, ApiError> {
        if body.len() > 2 * ENVELOPE_MAX {
            return Err(ApiError::new(
                ErrorCode::RequestTooLarge,
                format!("an envelope has at most {ENVELOPE_MAX} bytes"),
            ));
        }
        let Passed { to, hops, envelope } =
            serde_json::from_slice(body).map_err(|_| invalid("this is no envelope to pass on"))?;
        if to == self.author.id {
            return self.signalled(envelope.as_bytes()).await.map(Bytes::from);
        }
        let next = self.peer(&to).and_then(|peer| peer.control()).filter(|_| (1..=HOPS_MAX).contains(&hops));
        let next = next.ok_or_else(|| {
            ApiError::new(
                ErrorCode::ConnectionFailed,
                "this node has no link to that one either; it can't pass the message on",
            )
        })?;
        let body = serde_json::to_vec(&Passed { to, hops: hops - 1, envelope }).unwrap_or_default();
        next.rpc().call(Method::Signal, body.into(), dial::PASSING).await.map_err(|error| match error {
            CallError::Refused(error) => error,
            error => ApiError::new(ErrorCode::ConnectionFailed, error.to_string()),
        })
    }
}

/// Answers a member's calls.
struct MemberAnswers {
    shared: Arc<Shared>,
    from: NodeId,
}

impl Answers for MemberAnswers {
    fn answer(&self, method: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        let shared = Arc::clone(&self.shared);
        match (Method::from_code(method), shared.run.get()) {
            (Some(Method::Ping), _) => async move { Ok(body) }.boxed(),
            (Some(Method::Signal), _) => async move { shared.pass_on(&body).await }.boxed(),
            (Some(method), Some(run)) => run.handler.call(self.from.clone(), method, body),
            _ => async move { Err(unknown_method(method)) }.boxed(),
        }
    }
}

fn unknown_method(method: u8) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("this node knows no call {method}; update it"))
}

/// Keeps one [`Peer`] for each other member of the state.
async fn follow(shared: Arc<Shared>, mut members: watch::Receiver<Arc<State>>) {
    let mut addresses: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    loop {
        let state = members.borrow_and_update().clone();
        {
            let mut peers = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            peers.retain(|id, peer| {
                let stays = state.machines.contains_key(id);
                if !stays {
                    peer.stop();
                }
                stays
            });
            for (id, machine) in state.machines.iter().filter(|(id, _)| **id != shared.author.id) {
                let peer = peers
                    .entry(id.clone())
                    .or_insert_with(|| Peer::start(&shared, id.clone(), shared.stop.child_token()));
                let before = addresses.insert(id.clone(), machine.facts.addresses.clone());
                if before.is_some_and(|before| before != machine.facts.addresses) {
                    peer.tell(Input::Moved);
                }
            }
        }
        addresses.retain(|id, _| state.machines.contains_key(id));
        shared.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| state.machines.contains_key(id));
        tokio::select! {
            () = shared.stop.cancelled() => return,
            changed = members.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells every peer when this machine's addresses are others.
async fn watch_network(shared: Arc<Shared>) {
    let mut looks = interval(NETWORK_LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<Vec<IpAddr>> = None;
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let now = shared.config.addresses.now();
        if before.as_ref().is_some_and(|before| *before != now) {
            tracing::info!(addresses = ?now, "this machine has other addresses now");
            for peer in shared.peers().values() {
                peer.tell(Input::Network(now.clone()));
            }
        }
        before = Some(now);
    }
}

/// The host in `host:port` or in a URL, with brackets around an IPv6 address.
fn host_of(address: &str) -> Option<&str> {
    let authority = address.rsplit_once("://").map_or(address, |(_, rest)| rest);
    let (host, _) = authority.rsplit_once(':')?;
    (!host.is_empty()).then_some(host)
}

impl fmt::Debug for NodeMesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeMesh")
            .field("id", &self.shared.author.id)
            .field("connected", &*self.shared.connected.borrow())
            .finish_non_exhaustive()
    }
}
