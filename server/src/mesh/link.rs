//! One WebRTC connection: its set-up by offer and answer, its state, its data channels.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use flotilla_api::{rest::LinkPath, signal::Candidate};
use rtc::{
    data_channel::RTCDataChannelInit,
    ice::mdns::MulticastDnsMode,
    peer_connection::configuration::{RTCOfferOptions, setting_engine::SctpMaxMessageSize},
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use webrtc::{
    data_channel::{DataChannel, DataChannelEvent},
    peer_connection::{
        PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder,
        RTCIceCandidateInit, RTCIceCandidateType, RTCIceGatheringState, RTCIceServer, RTCIceTransportPolicy,
        RTCPeerConnectionState, RTCSessionDescription, SettingEngineBuilder,
    },
};

use super::{
    Addresses, Certificate, Error,
    pace::{Pace, Towards},
    port::{Claim, Port},
    runtime::{MeshRuntime, Pulse},
};
use crate::tunnel::{Channel, ChannelClosed};

/// Data channels that the other side opened and nobody has taken yet. They are taken at once; more means a stuck reader.
const UNTAKEN_CHANNELS_MAX: usize = 64;

/// Host candidates are there at once; a second means that the driver is dead.
const GATHERING: Duration = Duration::from_secs(5);

/// Where there are servers to ask, those that did not answer in this time are done without.
const GATHERING_FROM_SERVERS: Duration = Duration::from_millis(1500);

/// The driver is told to stop and frees its sockets.
const CLOSING: Duration = Duration::from_secs(2);

/// Messages up to this size are taken; ours are a little over 64 KiB. Chromium's own limit. Bytes.
const MESSAGE_MAX: u32 = 256 * 1024;

/// Unacknowledged bytes after which a sender waits, on each of many links between two nodes: sixteen of them, in 40 ms, are 50 MB/s still, and
/// when all of them begin at once they put no more under way than a line of 100 Mbit/s holds. Overrun, each would wait for a second or more.
/// Towards a browser, and on the first link between two nodes, it depends on the path (see `pace`).
const LANE_SEND_LIMIT: usize = 128 * 1024;
/// The same for a channel of calls: what is under way can't be overtaken, so that it has to be little. 128 KiB in 40 ms are 3 MB/s.
const CONTROL_SEND_LIMIT: usize = 128 * 1024;

/// What a browser may have under way to us. It sends little more than 1 MiB itself. Bytes.
const BROWSER_RECEIVE_WINDOW: u32 = 2 * 1024 * 1024;
/// Two of these windows fill 52 MB/s over 40 ms. Bytes.
const NODE_RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;
/// Calls of a few hundred senders at once. Bytes.
const CONTROL_RECEIVE_WINDOW: u32 = 1024 * 1024;

/// How long a direct path is waited for once a relayed one works.
const RELAY_WAITS: Duration = Duration::from_millis(300);

/// Time between two rounds of connectivity checks (200 ms by default, which was most of the set-up time).
const CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Rounds before a pair of candidates is given up: 5 s, so that a slow path is not given up before its first answer.
const CHECKS_MAX: u16 = 500;

/// Far above the ids that the library gives to channels, which count up from 0.
const UNANNOUNCED_ID: u16 = 65_000;

/// How often a channel is asked whether it still holds something unsent.
const FLUSH_CHECK: Duration = Duration::from_millis(5);

/// Silence after which a connection counts as disconnected, and after which as failed.
const DISCONNECTED_AFTER: Duration = Duration::from_secs(6);
const FAILED_AFTER: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Who is at the other end; buffers are chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Browser,
    /// A node, for streams.
    Node,
    /// The same, beside a link that there is already.
    Lane,
    /// A node, for calls.
    Control,
}

/// By which ways a link may come up.
#[derive(Clone, Default)]
pub(super) struct Ways {
    /// The port that is shared with other links; absent: ports of its own.
    pub(super) port: Option<Port>,
    /// Addresses at which a router passes on what comes for that port.
    pub(super) announced: Vec<SocketAddr>,
    /// Servers that help where two ends can't reach each other. An address at a relay belongs to one port, so that these are for
    /// links with ports of their own.
    pub(super) servers: Vec<RTCIceServer>,
    /// Takes nothing but a relay, for tests.
    pub(super) relayed_only: bool,
}

impl From<Option<Port>> for Ways {
    fn from(port: Option<Port>) -> Self {
        Self { port, ..Self::default() }
    }
}

/// Which way a link's packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) kind: LinkPath,
    /// Of this machine; absent where it is the relay's.
    pub(super) local: Option<IpAddr>,
    /// `address:port` of the other end.
    pub(super) remote: String,
}

/// What a link is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    Connecting,
    Connected,
    /// Nothing was heard for a while; it may come back, or need an ICE restart.
    Disconnected,
    Failed,
    Closed,
}

/// One WebRTC connection. Dropping it closes it in the background; [`Link::close`] waits for that.
pub struct Link {
    connection: Arc<dyn PeerConnection>,
    /// Absent where the library's own limit is all.
    pace: Option<Arc<Pace>>,
    pulse: Arc<Pulse>,
    state: watch::Receiver<LinkState>,
    gathering: watch::Sender<RTCIceGatheringState>,
    /// For candidates.
    asks_servers: bool,
    claim: Arc<Claim>,
    channels: Mutex<mpsc::Receiver<Arc<dyn DataChannel>>>,
    closed: CancellationToken,
}

impl Link {
    pub(super) async fn new(peer: Peer, addresses: &Addresses, certificate: &Certificate) -> Result<Self, Error> {
        Self::by(peer, addresses, certificate, Ways::default()).await
    }

    pub(super) async fn by(
        peer: Peer,
        addresses: &Addresses,
        certificate: &Certificate,
        ways: Ways,
    ) -> Result<Self, Error> {
        let claim = Arc::new(Claim::new(ways.port.filter(|_| ways.servers.is_empty()), ways.announced));
        let runtime = MeshRuntime::new(Arc::clone(&claim));
        let pulse = runtime.pulse();
        pulse.begin_set_up();
        let (state_sender, state) = watch::channel(LinkState::Connecting);
        let gathering = watch::Sender::new(RTCIceGatheringState::New);
        let (channel_sender, channels) = mpsc::channel(UNTAKEN_CHANNELS_MAX);
        let events = Events {
            pulse: Arc::clone(&pulse),
            state: state_sender,
            gathering: gathering.clone(),
            channels: channel_sender,
        };
        let towards = match peer {
            Peer::Browser => Some(Towards::Browser),
            Peer::Node => Some(Towards::Node),
            Peer::Lane | Peer::Control => None,
        };
        let (send_limit, receive_window) = match peer {
            Peer::Browser => (Towards::Browser.limit(), BROWSER_RECEIVE_WINDOW),
            Peer::Node => (Towards::Node.limit(), NODE_RECEIVE_WINDOW),
            Peer::Lane => (LANE_SEND_LIMIT, NODE_RECEIVE_WINDOW),
            Peer::Control => (CONTROL_SEND_LIMIT, CONTROL_RECEIVE_WINDOW),
        };
        let configuration = RTCConfigurationBuilder::new().with_certificates(vec![certificate.inner.clone()]);
        let asks_servers = !ways.servers.is_empty();
        let policy = if ways.relayed_only { RTCIceTransportPolicy::Relay } else { RTCIceTransportPolicy::All };
        let configuration = configuration.with_ice_servers(ways.servers).with_ice_transport_policy(policy);
        let settings = SettingEngineBuilder::new()
            .with_crypto_provider(Arc::clone(&certificate.provider))
            // Joining a multicast group fails on machines without a multicast route, and takes the connection with it.
            .with_multicast_dns_mode(MulticastDnsMode::Disabled)
            .with_include_loopback_candidate(true)
            .with_ice_timeouts(Some(DISCONNECTED_AFTER), Some(FAILED_AFTER), Some(KEEP_ALIVE))
            .with_ice_connection_attempts(Some(CHECK_INTERVAL), Some(CHECKS_MAX))
            // A browser that hides its addresses is only known by where its checks come from.
            .with_prflx_acceptance_min_wait(Some(Duration::ZERO))
            .with_srflx_acceptance_min_wait(Some(Duration::ZERO))
            .with_relay_acceptance_min_wait(Some(RELAY_WAITS))
            // An ICE restart binds anew, so that it follows this machine to another network.
            .with_discard_local_candidates_during_ice_restart(true)
            .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(MESSAGE_MAX))
            .with_sctp_max_receive_buffer_size(receive_window)
            .build();
        let building = PeerConnectionBuilder::new()
            .with_configuration(configuration.build())
            .with_setting_engine(settings)
            .with_runtime(Arc::new(runtime))
            .with_handler(Arc::new(events))
            .with_udp_addrs(vec![addresses.clone()])
            .with_data_channel_send_buffer_limit(send_limit)
            .build();
        // 20 KiB of state machine, which every caller's future would hold.
        let connection =
            Box::pin(building).await.map_err(|error| Error::SetUp { step: "open sockets", source: error })?;
        let connection: Arc<dyn PeerConnection> = Arc::new(connection);
        let pace = towards.map(|towards| Pace::new(Arc::clone(&connection), towards));
        Ok(Self {
            connection,
            pace,
            pulse,
            state,
            gathering,
            asks_servers,
            claim,
            channels: Mutex::new(channels),
            closed: CancellationToken::new(),
        })
    }

    fn begin_set_up(&self) {
        self.pulse.begin_set_up();
        if let Some(pace) = &self.pace {
            pace.forget();
        }
    }

    /// Takes an offer, of a new connection or of an ICE restart, and answers it with all of this side's candidates.
    pub(super) async fn answer(&self, offer: String) -> Result<String, Error> {
        self.begin_set_up();
        let step = |step| move |source| Error::SetUp { step, source };
        let offer = RTCSessionDescription::offer(offer).map_err(step("read the offer"))?;
        self.connection.set_remote_description(offer).await.map_err(step("take the offer"))?;
        let answer = self.connection.create_answer(None).await.map_err(step("make the answer"))?;
        self.gathering.send_replace(RTCIceGatheringState::Gathering);
        self.connection.set_local_description(answer).await.map_err(step("use the answer"))?;
        self.gathered_description().await
    }

    /// Makes an offer with all of this side's candidates.
    pub(super) async fn offer(&self, restart: bool) -> Result<String, Error> {
        self.begin_set_up();
        let step = |step| move |source| Error::SetUp { step, source };
        let options = RTCOfferOptions { ice_restart: restart };
        let offer = self.connection.create_offer(Some(options)).await.map_err(step("make the offer"))?;
        self.gathering.send_replace(RTCIceGatheringState::Gathering);
        self.connection.set_local_description(offer).await.map_err(step("use the offer"))?;
        self.gathered_description().await
    }

    /// Takes the answer to [`Self::offer`].
    pub(super) async fn answered(&self, answer: String) -> Result<(), Error> {
        let step = |step| move |source| Error::SetUp { step, source };
        let answer = RTCSessionDescription::answer(answer).map_err(step("read the answer"))?;
        self.connection.set_remote_description(answer).await.map_err(step("take the answer"))
    }

    async fn gathered_description(&self) -> Result<String, Error> {
        let mut gathering = self.gathering.subscribe();
        let complete = gathering.wait_for(|state| *state == RTCIceGatheringState::Complete);
        let patience = if self.asks_servers { GATHERING_FROM_SERVERS } else { GATHERING };
        if !matches!(timeout(patience, complete).await, Ok(Ok(_))) && !self.asks_servers {
            return Err(Error::NoCandidates);
        }
        let description = self.connection.local_description().await.ok_or(Error::NoCandidates)?;
        Ok(self.claim.publish(description.sdp))
    }

    /// Adds a candidate of the other side. One that can't be used (a `.local` name, TCP) is skipped: others may work, and the
    /// other side's checks reveal its address in any case.
    pub(super) async fn add_candidate(&self, candidate: Candidate) {
        let candidate = RTCIceCandidateInit {
            candidate: candidate.candidate,
            sdp_mid: candidate.sdp_mid,
            sdp_mline_index: candidate.sdp_m_line_index,
            username_fragment: candidate.username_fragment,
            ..Default::default()
        };
        if let Err(error) = self.connection.add_ice_candidate(candidate).await {
            tracing::debug!(%error, "candidate skipped");
        }
    }

    /// The state, and its changes.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Waits until the link is up.
    ///
    /// # Errors
    /// [`Error::NotConnected`] if it fails, is closed, or takes longer than `within`.
    pub async fn connected(&self, within: Duration) -> Result<(), Error> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| !matches!(state, LinkState::Connecting | LinkState::Disconnected));
        match timeout(within, settled).await {
            Ok(Ok(state)) if *state == LinkState::Connected => Ok(()),
            _ => {
                self.pulse.end_set_up();
                Err(Error::NotConnected { within })
            }
        }
    }

    /// Opens an ordered, reliable data channel; it may be used once [`MeshChannel::opened`].
    ///
    /// # Errors
    /// [`Error::Channel`] if the link is closed.
    pub async fn open(&self, label: &str) -> Result<MeshChannel, Error> {
        let channel = self.connection.create_data_channel(label, None).await.map_err(Error::Channel)?;
        Ok(MeshChannel { inner: channel, pace: self.pace.clone() })
    }

    /// Makes an offer one for data channels before the first of them is opened. The other side never hears of this one, because
    /// both would have to open a channel of its id (RFC 8831, 6.5).
    pub(super) async fn open_unannounced(&self) -> Result<(), Error> {
        let options = RTCDataChannelInit { negotiated: Some(UNANNOUNCED_ID), ..Default::default() };
        self.connection.create_data_channel("", Some(options)).await.map(drop).map_err(Error::Channel)
    }

    /// Opens a data channel that both sides open under the same id, without a word about it. To be opened before the link is up. An
    /// unreliable one loses messages, and lets later ones overtake earlier ones.
    pub(super) async fn open_agreed(&self, id: u16, reliable: bool) -> Result<MeshChannel, Error> {
        let options = RTCDataChannelInit {
            ordered: reliable,
            max_retransmits: (!reliable).then_some(0),
            negotiated: Some(id),
            ..Default::default()
        };
        let channel = self.connection.create_data_channel("", Some(options)).await.map_err(Error::Channel)?;
        Ok(MeshChannel { inner: channel, pace: self.pace.clone() })
    }

    /// Which way packets go; `None` before the link is up.
    pub(super) async fn path(&self) -> Option<Path> {
        let ice = self.connection.sctp().await?.transport().ice_transport();
        let pair = ice.get_selected_candidate_pair().await.ok()??;
        let relayed = |kind: RTCIceCandidateType| kind == RTCIceCandidateType::Relay;
        let (local, remote) = (pair.local(), pair.remote());
        let kind = if relayed(local.typ) || relayed(remote.typ) { LinkPath::Relayed } else { LinkPath::Direct };
        let at = remote.address.parse().map_or_else(
            |_| format!("{}:{}", remote.address, remote.port),
            |address: IpAddr| SocketAddr::new(address, remote.port).to_string(),
        );
        Some(Path { kind, local: local.address.parse().ok().filter(|_| !relayed(local.typ)), remote: at })
    }

    /// Bytes of all packets so far: sent, and received.
    pub(super) fn traffic(&self) -> (u64, u64) {
        self.pulse.traffic()
    }

    /// The next data channel that the other side opened; `None` once the link is closed.
    pub async fn accept(&self) -> Option<MeshChannel> {
        let mut channels = self.channels.lock().await;
        let inner = self.closed.run_until_cancelled(channels.recv()).await??;
        Some(MeshChannel { inner, pace: self.pace.clone() })
    }

    /// Ends the link and frees its sockets.
    pub async fn close(&self) {
        self.pulse.end_set_up();
        self.closed.cancel();
        match timeout(CLOSING, self.connection.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection closed with an error"),
            Err(_) => tracing::debug!("connection did not close in time"),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The driver is a task of its own and outlives every handle unless it is told to stop.
        let connection = Arc::clone(&self.connection);
        self.pulse.end_set_up();
        if !self.closed.is_cancelled()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { connection.close().await });
        }
    }
}

/// What the driver tells. It runs on the driver's task, so nothing here may wait.
struct Events {
    pulse: Arc<Pulse>,
    state: watch::Sender<LinkState>,
    gathering: watch::Sender<RTCIceGatheringState>,
    channels: mpsc::Sender<Arc<dyn DataChannel>>,
}

#[async_trait]
impl PeerConnectionEventHandler for Events {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        self.gathering.send_replace(state);
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let state = match state {
            RTCPeerConnectionState::Connected => LinkState::Connected,
            RTCPeerConnectionState::Disconnected => LinkState::Disconnected,
            RTCPeerConnectionState::Failed => LinkState::Failed,
            RTCPeerConnectionState::Closed => LinkState::Closed,
            _ => LinkState::Connecting,
        };
        if state != LinkState::Connecting {
            self.pulse.end_set_up();
        }
        self.state.send_replace(state);
    }

    async fn on_data_channel(&self, channel: Arc<dyn DataChannel>) {
        if self.channels.try_send(channel).is_err() {
            tracing::debug!("a data channel was dropped: too many were opened at once");
        }
    }
}

/// A data channel of a [`Link`].
pub struct MeshChannel {
    inner: Arc<dyn DataChannel>,
    pace: Option<Arc<Pace>>,
}

impl MeshChannel {
    /// The label that its opener gave it.
    ///
    /// # Errors
    /// [`ChannelClosed`].
    pub async fn label(&self) -> Result<String, ChannelClosed> {
        self.inner.label().await.map_err(|_| ChannelClosed)
    }

    /// Waits until a channel of our own may be used. To be called once, before [`Channel::recv`].
    ///
    /// # Errors
    /// [`ChannelClosed`].
    pub async fn opened(&self) -> Result<(), ChannelClosed> {
        loop {
            match self.inner.poll().await {
                Some(DataChannelEvent::OnOpen) => return Ok(()),
                Some(DataChannelEvent::OnClose | DataChannelEvent::OnError) | None => return Err(ChannelClosed),
                Some(_) => {}
            }
        }
    }
}

#[async_trait]
impl Channel for MeshChannel {
    async fn send(&self, message: BytesMut) -> Result<(), ChannelClosed> {
        if let Some(pace) = &self.pace {
            pace.wait(&*self.inner).await?;
        }
        self.inner.send(message).await.map_err(|_| ChannelClosed)
    }

    async fn recv(&self) -> Option<Bytes> {
        loop {
            match self.inner.poll().await? {
                // Text is nothing that is spoken here: as a message without bytes it is refused like any that is too short.
                DataChannelEvent::OnMessage(message) if message.is_string => return Some(Bytes::new()),
                DataChannelEvent::OnMessage(message) => return Some(message.data.freeze()),
                DataChannelEvent::OnClose => return None,
                DataChannelEvent::OnBufferedAmountLow => {
                    if let Some(pace) = &self.pace {
                        pace.acknowledged();
                    }
                }
                _ => {}
            }
        }
    }

    async fn flushed(&self) {
        // The library has no event for it.
        while self.inner.outstanding_bytes().await.is_ok_and(|bytes| bytes > 0) {
            sleep(FLUSH_CHECK).await;
        }
    }

    async fn close(&self) {
        // Already closed is closed.
        let _ = self.inner.close().await;
    }
}

impl fmt::Debug for MeshChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshChannel").field("id", &self.inner.id()).finish()
    }
}
