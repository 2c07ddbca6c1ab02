//! First contact: a machine that is no member yet speaks to one that is.
//!
//! The stranger knows the fingerprint of a key from its join token: of the node that it speaks to, or of the cluster, which then
//! vouches for the node. The member knows nothing of the stranger but its key, and takes one kind of call from it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_api::{ApiError, ErrorCode, NodeId};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::{
    NodeConfig, Shared,
    control::{self, Control, Hello, Lanes, NotUp, Part},
    dial::Manner,
    envelope::{self, Answer, Author, Body, Offer, Purpose, Voucher, invalid, random_name},
    post::{self, Post},
    rpc::Answers,
    unknown_method,
};
use crate::{
    identity,
    mesh::{
        Error,
        link::{Link, Peer as End},
    },
    peers::{CallError, Handler, Method, starting},
};

/// Strangers that are answered at one time. Each has sockets and a handshake, and anybody on the network may be one.
pub(super) const STRANGERS_MAX: usize = 4;

/// How long a stranger's link is kept: a few calls, each of which may wait for the cluster to agree.
const STRANGER_STAYS: Duration = Duration::from_secs(60);

/// Addresses that a join token may name.
const ADDRESSES_MAX: usize = 32;

/// Why a machine could not speak to the cluster.
#[derive(Debug, thiserror::Error)]
pub enum ContactError {
    #[error(
        "nobody of the cluster answers at {addresses}; check that this machine reaches one of them, or make a new token there"
    )]
    Unreachable { addresses: String },
    #[error(
        "who answers at {address} is not of the cluster that the token is from; make a new token on a machine of the cluster"
    )]
    AnotherCluster { address: String },
    #[error("the cluster refused: {0}")]
    Refused(ApiError),
    #[error(
        "the machine at {address} answered, but no UDP packets come through between the two; look at the firewalls"
    )]
    NoPackets { address: String },
    #[error("{0}")]
    Version(String),
    #[error(transparent)]
    Local(#[from] Error),
}

/// A link to a member, over which a machine that is none yet may ask to become one. Dropping it ends it.
#[derive(Debug)]
pub struct Contact {
    pub(super) control: Arc<Control>,
    /// Who answers.
    pub node: NodeId,
}

impl Contact {
    /// Asks to join; what is said is between the caller and the other node's [`Handler::stranger`].
    ///
    /// # Errors
    /// As [`crate::peers::Peers::call`].
    pub async fn call(&self, body: Bytes, within: Duration) -> Result<Bytes, CallError> {
        self.control.rpc().call(Method::Join, body, within).await
    }

    /// Ends the link.
    pub async fn close(self) {
        self.control.end(None);
        self.control.closed().cancelled().await;
    }
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.control.end(None);
    }
}

/// Speaks to the first of these addresses where a node answers that has this key, or that the key vouches for. `fingerprint` is the
/// first 16 bytes of the key's SHA-256 in hexadecimal, as a [`NodeId`].
///
/// # Errors
/// One sentence for the person at this machine.
pub async fn contact(config: &NodeConfig, addresses: &[String], fingerprint: &str) -> Result<Contact, ContactError> {
    let author = Author::new(config.key.clone());
    let post = Post::new().map_err(|error| Error::Certificate(error.to_string()))?;
    let link = Link::new(End::Control, &config.addresses, &config.certificate).await?;
    let lanes = Lanes::open(&link).await?;
    let offer = Offer {
        purpose: Purpose::Join,
        attempt: random_name(),
        description: link.offer(false).await?,
        relay: false,
        shared_port: false,
        far: false,
    };
    let mut asked: FuturesUnordered<_> =
        addresses.iter().take(ADDRESSES_MAX).map(|address| ask(&post, &author, address, &offer, fingerprint)).collect();
    let mut failure = ContactError::Unreachable { addresses: addresses.join(", ") };
    let found = loop {
        match asked.next().await {
            Some(Ok(found)) => break found,
            Some(Err(ContactError::Unreachable { .. })) => {}
            Some(Err(other)) => failure = other,
            None => return Err(failure),
        }
    };
    drop(asked);
    link.answered(found.description).await?;
    let (oldest, newest) = config.protocol;
    let hello = Hello { oldest, newest, version: config.version.clone(), boot: author.boot.clone() };
    let established = Box::pin(control::establish(link, lanes, &hello, Manner::default(), Part::Offered)).await;
    let (control, lanes) = established.map_err(|failure| match failure {
        NotUp::Version(sentence) => ContactError::Version(sentence),
        NotUp::Silent | NotUp::Ended => ContactError::NoPackets { address: found.address },
    })?;
    let control = Arc::new(control);
    control.start(lanes, Arc::new(NoAnswers), Arc::default(), &TaskTracker::new());
    Ok(Contact { control, node: found.node })
}

struct Found {
    address: String,
    node: NodeId,
    description: String,
}

async fn ask(
    post: &Post,
    author: &Author,
    address: &str,
    offer: &Offer,
    fingerprint: &str,
) -> Result<Found, ContactError> {
    let another_cluster = || ContactError::AnotherCluster { address: address.to_owned() };
    let (envelope, nonce) = author.seal(None, Body::Offer(offer.clone()));
    let answer = match post.send(address, &envelope).await {
        Ok(answer) => answer,
        Err(post::Failure::Unreachable) => return Err(ContactError::Unreachable { addresses: address.to_owned() }),
        Err(post::Failure::Refused(error)) => return Err(ContactError::Refused(error)),
    };
    let message = envelope::open(&answer).map_err(ContactError::Refused)?.message;
    let Body::Answer(Answer { reply_to, description, voucher }) = message.body else { return Err(another_cluster()) };
    if reply_to != nonce || message.to.as_ref() != Some(&author.id) {
        return Err(another_cluster());
    }
    let vouched = voucher.and_then(|voucher| voucher.key_for(&message.from, &nonce));
    let is_expected =
        message.from.0 == fingerprint || vouched.is_some_and(|key| identity::node_id(&key).0 == fingerprint);
    if !is_expected {
        return Err(another_cluster());
    }
    Ok(Found { address: address.to_owned(), node: message.from, description })
}

/// Answers a stranger's offer.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    key: &str,
    from: &NodeId,
    nonce: &str,
    offer: &Offer,
) -> Result<Vec<u8>, ApiError> {
    let run = shared.run.get().filter(|run| run.handler.takes_strangers()).ok_or_else(starting)?;
    let place = Arc::clone(&shared.strangers).try_acquire_owned().map_err(|_| {
        ApiError::new(ErrorCode::RateLimited, "other machines are joining just now; try again in a minute")
    })?;
    if *from == shared.author.id {
        return Err(invalid(
            "this machine has the key of the one that it asks; delete its data directory and join again",
        ));
    }
    let NodeConfig { addresses, certificate, port, .. } = &shared.config;
    let link = Box::pin(Link::by(End::Control, addresses, certificate, port.clone().into())).await?;
    let lanes = Lanes::open(&link).await?;
    let description = link.answer(offer.description.clone()).await?;
    let answers = Arc::new(StrangerAnswers { key: key.to_owned(), handler: Arc::clone(&run.handler) });
    let (serving, hello) = (Arc::clone(shared), shared.hello());
    shared.tasks.spawn(async move {
        let _place = place;
        let established = control::establish(link, lanes, &hello, Manner::default(), Part::Answered);
        let Ok((control, lanes)) = Box::pin(established).await else { return };
        let control = Arc::new(control);
        control.start(lanes, answers, Arc::default(), &serving.tasks);
        tokio::select! {
            () = control.closed().cancelled() => return,
            () = sleep(STRANGER_STAYS) => {}
            () = serving.stop.cancelled() => {}
        }
        control.end(None);
        control.closed().cancelled().await;
    });
    let voucher = shared.config.cluster_key.as_ref().map(|cluster| Voucher::sign(cluster, &shared.author.id, nonce));
    Ok(shared.author.seal(Some(from), Body::Answer(Answer { reply_to: nonce.to_owned(), description, voucher })).0)
}

/// Takes [`Method::Join`] and nothing else.
struct StrangerAnswers {
    key: String,
    handler: Arc<dyn Handler>,
}

impl Answers for StrangerAnswers {
    fn answer(&self, method: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        if Method::from_code(method) == Some(Method::Join) {
            return self.handler.stranger(self.key.clone(), body);
        }
        async { Err(ApiError::new(ErrorCode::ScopeInsufficient, "a machine that is no member may only ask to join")) }
            .boxed()
    }
}

struct NoAnswers;

impl Answers for NoAnswers {
    fn answer(&self, method: u8, _: Bytes) -> BoxFuture<'static, Result<Bytes, ApiError>> {
        async move { Err(unknown_method(method)) }.boxed()
    }
}
