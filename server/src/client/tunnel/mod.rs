//! A client of the tunnel: it reaches services as a browser does, over `/signal` and WebRTC.
//!
//! A [`TunnelClient`] is one connection to one node. It never makes another by itself: whoever measures what people see must
//! know when a connection broke, and a page that reconnects does so here by calling [`TunnelClient::connect`] again.

mod ended;
mod lane;
mod poll;
mod signalling;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flotilla_api::{
    ServiceName,
    frame::{self, Carries},
    signal::{FromBrowser, FromNode, SIGNAL_VERSION},
};
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

pub use self::poll::{Gap, Poller, Polling, Seen};
use self::{ended::Ended, lane::Lane, signalling::Signalling};
use super::{Client, Error};
use crate::mesh::{self, Addresses, Certificate, Link, LinkState};

/// From the first byte of signalling to a connection that carries requests. Across the world it takes about a second.
pub const CONNECTING: Duration = Duration::from_secs(15);

/// How long a whole answer may take where [`TunnelClient::answers_within`] says nothing else.
pub const ANSWERING: Duration = Duration::from_secs(30);

/// A node that is told goodbye hears it at once, or is gone.
const LEAVING: Duration = Duration::from_secs(1);

/// An answer of a service, or the node's in its stead: a service that can't be reached is answered with 502 to 504.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first header of this name, which is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }
}

/// One connection to one node. Dropping it ends it in the background; [`Self::close`] waits for that.
#[derive(Debug)]
pub struct TunnelClient {
    api: String,
    link: Arc<Link>,
    /// One for each service that was asked. An await is held over this lock, but only while a channel opens, which takes a
    /// round trip; where it takes longer the whole connection is in trouble.
    lanes: Mutex<BTreeMap<ServiceName, Lane>>,
    ended: watch::Receiver<Option<Ended>>,
    leave: CancellationToken,
    watching: Option<JoinHandle<()>>,
    within: Duration,
}

impl TunnelClient {
    /// Connects to the node whose API is at `api`, with a token that is bound to no key.
    ///
    /// # Errors
    /// The node does not answer, does not take the token, or can't be reached over UDP.
    pub async fn connect(api: &Url, token: &str) -> Result<Self, Error> {
        Client::new(api.as_str(), Some(token.to_owned()))?.tunnel().await
    }

    async fn open(client: &Client) -> Result<Self, Error> {
        let token = client.token.as_deref().unwrap_or_default().to_owned();
        let no_tunnel = |source| Error::NoTunnel { api: client.api().to_owned(), source };
        let (mut signalling, dialled) = tokio::try_join!(Signalling::open(client), async {
            let addresses = addresses_towards(client).await;
            let certificate = Certificate::generate().map_err(no_tunnel)?;
            mesh::dial(&addresses, &certificate).await.map_err(no_tunnel)
        })?;
        let offer = dialled.offer.clone();
        signalling.say(&FromBrowser::Connect { version: SIGNAL_VERSION, token, proof: None, offer }).await?;
        let answer = loop {
            match signalling.hear().await? {
                FromNode::Answer { answer, .. } => break answer,
                FromNode::Error { error } | FromNode::Bye { error: Some(error) } => return Err(Error::Api(error)),
                FromNode::Bye { error: None } => return Err(signalling::closed()),
                // Candidates are all in the answer; the others answer what was not asked.
                FromNode::Candidate { .. } | FromNode::Resumed | FromNode::Renewed => {}
            }
        };
        let link = Arc::new(dialled.answered(answer).await.map_err(no_tunnel)?);
        link.connected(CONNECTING).await.map_err(no_tunnel)?;
        let (ender, ended) = watch::channel(None);
        let leave = CancellationToken::new();
        let watching = tokio::spawn(watch_over(signalling, Arc::clone(&link), ender, leave.clone()));
        Ok(Self {
            api: client.api().to_owned(),
            link,
            lanes: Mutex::default(),
            ended,
            leave,
            watching: Some(watching),
            within: ANSWERING,
        })
    }

    /// How long a whole answer may take from now on.
    #[must_use]
    pub fn answers_within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// Asks a service for `path` (and query, beginning with `/`). Redirects are answers like others.
    ///
    /// # Errors
    /// The connection is over, the token does not open the service, there is no such service, or the answer does not come in
    /// time. After [`Error::TimedOut`] the connection may still be well: another request tells.
    pub async fn get(&self, service: &ServiceName, path: &str) -> Result<Answer, Error> {
        let asked = async {
            let answer = self.lane(service).await?.get(path).await?;
            answer.await.unwrap_or_else(|_| Err(ended::lost().into_error()))
        };
        tokio::select! {
            // Of a connection that is over, its end says more than what a request met there.
            biased;
            error = self.ended() => Err(error),
            answer = timeout(self.within, asked) => {
                answer.map_err(|_| Error::TimedOut { api: self.api.clone(), after: self.within })?
            }
        }
    }

    /// Is the connection up, as far as is known?
    pub fn is_open(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Resolves once the connection is over, with the reason.
    pub async fn ended(&self) -> Error {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(ended)) => ended.clone().into_error(),
            _ => ended::lost().into_error(),
        }
    }

    /// Says goodbye and ends the connection.
    pub async fn close(mut self) {
        self.leave.cancel();
        if let Some(watching) = self.watching.take() {
            // A panic has said what it is on the error output.
            let _ = watching.await;
        }
    }

    /// The lane of a service; a new one where there is none, or where the node has closed it.
    async fn lane(&self, service: &ServiceName) -> Result<Lane, Error> {
        let mut lanes = self.lanes.lock().await;
        let former = match lanes.get(service) {
            Some(lane) if lane.is_open() => return Ok(lane.clone()),
            former => former,
        };
        // An id is never used twice on one connection.
        let first_id = former.map_or(1, Lane::next_id);
        let label = frame::Channel { carries: Carries::Http(frame::Lane::Interactive), service: service.clone() };
        let opening = async {
            let channel = self.link.open(&label.to_string()).await.map_err(|error| Ended::because(&error))?;
            channel.opened().await.map_err(|error| Ended::because(&error))?;
            Ok(channel)
        };
        let lane = Lane::new(opening.await.map_err(Ended::into_error)?, first_id);
        lanes.insert(service.clone(), lane.clone());
        Ok(lane)
    }
}

impl Drop for TunnelClient {
    fn drop(&mut self) {
        self.leave.cancel();
    }
}

impl Client {
    /// Connects to the node as a browser does, with this client's token, for its services.
    ///
    /// # Errors
    /// As [`TunnelClient::connect`].
    pub async fn tunnel(&self) -> Result<TunnelClient, Error> {
        // Boxed: it holds a whole connection while one is set up.
        timeout(CONNECTING, Box::pin(TunnelClient::open(self)))
            .await
            .map_err(|_| Error::TimedOut { api: self.api().to_owned(), after: CONNECTING })?
    }
}

/// Waits until the connection ends, from whichever side, and tells why.
///
/// A lost socket ends it too, though the connection may have outlived it: a browser resumes its session on a new socket, and
/// whoever uses this client makes a new connection.
async fn watch_over(
    mut signalling: Signalling,
    link: Arc<Link>,
    ended: watch::Sender<Option<Ended>>,
    leave: CancellationToken,
) {
    let mut state = link.state();
    let mut failed = Box::pin(state.wait_for(|state| matches!(state, LinkState::Failed | LinkState::Closed)));
    let why = loop {
        tokio::select! {
            () = leave.cancelled() => break Ended::left(),
            _ = &mut failed => break ended::lost(),
            heard = signalling.hear() => match heard {
                Ok(FromNode::Bye { error: Some(error) }) => break Ended::Told(error),
                Ok(FromNode::Bye { error: None }) => break ended::lost(),
                Ok(_) => {}
                Err(error) => break Ended::because(&error),
            },
        }
    };
    ended.send_replace(Some(why));
    let _ = timeout(LEAVING, async {
        let _ = signalling.say(&FromBrowser::Bye).await;
        signalling.close().await;
    })
    .await;
    link.close().await;
}

/// The address that this machine's packets to the node have: one socket, and one candidate, which the node can answer.
async fn addresses_towards(client: &Client) -> Addresses {
    // Not knowing it costs a few candidates more, and no connection.
    address_towards(&client.base)
        .await
        .map_or(Addresses::Interfaces { loopback: true }, |address| Addresses::Only(vec![address]))
}

async fn address_towards(base: &Url) -> Option<IpAddr> {
    let port = base.port_or_known_default()?;
    let node = match base.host()? {
        Host::Ipv4(address) => SocketAddr::from((address, port)),
        Host::Ipv6(address) => SocketAddr::from((address, port)),
        // RFC 6761, 6.3, as the client itself has it.
        Host::Domain(name) if name == "localhost" || name.ends_with(".localhost") => {
            SocketAddr::from((Ipv4Addr::LOCALHOST, port))
        }
        Host::Domain(name) => tokio::net::lookup_host((name, port)).await.ok()?.next()?,
    };
    let any: IpAddr = if node.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Connecting a UDP socket sends nothing; the kernel looks for the route.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(node).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
