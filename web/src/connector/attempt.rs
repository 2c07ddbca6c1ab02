//! From nothing to a connection that the node has agreed to: one round trip.

use std::rc::Rc;

use flotilla_api::{
    ApiError, ErrorCode, ServiceName,
    signal::{FromBrowser, FromNode, SIGNAL_VERSION},
};
use futures::{
    StreamExt,
    channel::mpsc::UnboundedReceiver,
    future::{Either, join, select},
    pin_mut,
};
use gloo_timers::future::TimeoutFuture;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;

use super::{
    Event, Events, Generation,
    peer::Peer,
    signalling::{Address, Heard, Socket},
};
use crate::identity::{self, Identity};

/// From the first byte to the node's answer. Milliseconds.
const ANSWER_WAIT_MS: u32 = 15_000;

/// What the node has agreed to; its lanes open next.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    pub(super) signalling: Rc<Socket>,
    /// To go on with it over another signalling socket.
    pub(super) session: String,
    pub(super) token: String,
}

#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody is signed in to this browser.
    SignedOut,
    /// The node says no.
    Rejected(ApiError),
    /// The browser does: no storage, no keys.
    Unable(String),
    /// Nobody answers; later somebody may.
    Unreachable,
}

impl From<identity::Error> for Failure {
    fn from(error: identity::Error) -> Self {
        Self::Unable(error.to_string())
    }
}

impl From<JsValue> for Failure {
    fn from(error: JsValue) -> Self {
        Self::Unable(format!("the browser made no connection: {}", identity::reason(&error)))
    }
}

pub(super) async fn connect(
    service: ServiceName,
    generation: Generation,
    address: Address,
    events: Events,
) -> Result<Connection, Failure> {
    let attempt = negotiate(service, generation, &address, events);
    pin_mut!(attempt);
    match select(attempt, TimeoutFuture::new(ANSWER_WAIT_MS)).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(Failure::Unreachable),
    }
}

/// What does not wait for each other goes side by side: the socket, the offer, the key from the browser's store.
async fn negotiate(
    service: ServiceName,
    generation: Generation,
    address: &Address,
    events: Events,
) -> Result<Connection, Failure> {
    let (signalling, mut heard) = Socket::open(address)?;
    let peer = Peer::new(service, generation, events.clone(), Rc::clone(&signalling))?;
    let (offer, proven) = join(peer.negotiation().offer(), prove(address)).await;
    let (token, proof) = proven?;
    let connect =
        FromBrowser::Connect { version: SIGNAL_VERSION, token: token.clone(), proof: Some(proof), offer: offer? };
    signalling.begin(&connect);
    let (answer, session) = answer(&mut heard).await?;
    peer.negotiation().accept(answer).await?;
    forward(heard, generation, events);
    Ok(Connection { peer, signalling, session, token })
}

/// Takes up the signalling of a session whose socket was lost.
pub(super) async fn resume(
    session: String,
    generation: Generation,
    address: Address,
    events: Events,
) -> Result<Rc<Socket>, Failure> {
    let attempt = async {
        let (signalling, mut heard) = Socket::open(&address)?;
        let (token, proof) = prove(&address).await?;
        signalling.begin(&FromBrowser::Resume { version: SIGNAL_VERSION, session, token, proof: Some(proof) });
        match heard.next().await {
            Some(Heard::Message(FromNode::Resumed)) => {
                forward(heard, generation, events);
                Ok(signalling)
            }
            Some(Heard::Message(FromNode::Error { error } | FromNode::Bye { error: Some(error) })) => {
                Err(Failure::Rejected(error))
            }
            _ => Err(Failure::Unreachable),
        }
    };
    pin_mut!(attempt);
    match select(attempt, TimeoutFuture::new(ANSWER_WAIT_MS)).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(Failure::Unreachable),
    }
}

async fn prove(address: &Address) -> Result<(String, String), Failure> {
    let identity = Identity::load().await?.ok_or(Failure::SignedOut)?;
    let proof = identity.proof("CONNECT", &address.proof).await?;
    Ok((identity.token, proof))
}

async fn answer(heard: &mut UnboundedReceiver<Heard>) -> Result<(String, String), Failure> {
    loop {
        match heard.next().await {
            Some(Heard::Message(FromNode::Answer { version: SIGNAL_VERSION, answer, session })) => {
                return Ok((answer, session));
            }
            Some(Heard::Message(FromNode::Answer { version, .. })) => {
                let sentence = format!("the node speaks version {version} of the signalling protocol; reload the page");
                return Err(Failure::Rejected(ApiError::new(ErrorCode::SignalVersion, sentence)));
            }
            Some(Heard::Message(FromNode::Error { error } | FromNode::Bye { error: Some(error) })) => {
                return Err(Failure::Rejected(error));
            }
            Some(Heard::Message(FromNode::Bye { error: None }) | Heard::Closed) | None => {
                return Err(Failure::Unreachable);
            }
            // Candidates follow the answer.
            Some(Heard::Message(_)) => {}
        }
    }
}

/// From now on the driver listens.
fn forward(mut heard: UnboundedReceiver<Heard>, generation: Generation, events: Events) {
    spawn_local(async move {
        while let Some(message) = heard.next().await {
            if events.unbounded_send(Event::Signal(generation, message)).is_err() {
                return;
            }
        }
    });
}
