//! Offering a link to another node: how the offer gets there, and what comes of it.

use std::{sync::Arc, time::Duration};

use flotilla_api::{ApiError, ErrorCode, NodeId};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{
    Shared,
    bulk::{self, BulkLink, Carrier},
    control::{self, CONNECTING, Control, Lanes, NotUp, Part},
    envelope::{self, Body, Message, Offer, Purpose, invalid, random_name},
    peer::Peer,
    post,
};
use crate::{
    mesh::{
        Error,
        link::{Link, Peer as End},
    },
    peers::{CallError, Method},
};

/// Other nodes are asked to pass an offer on if none of the addresses answered in this time.
const ASK_OTHERS_AFTER: Duration = Duration::from_millis(300);

/// Nodes that are asked to pass an offer on.
const OTHERS_MAX: usize = 3;

/// What passing an offer on and an answer back may take.
pub(super) const PASSING: Duration = Duration::from_secs(6);

/// Nodes that an envelope may be passed on by. One is enough where every node has a link to every other that is up.
pub(super) const HOPS_MAX: u8 = 2;

/// The body of [`Method::Signal`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Passed {
    pub(super) to: NodeId,
    /// By how many more nodes it may be passed on.
    pub(super) hops: u8,
    pub(super) envelope: String,
}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// There was no way to bring the offer there.
    Unreachable,
    /// Both offered at once, and the other one's offer goes first.
    Glare,
    Refused(ApiError),
    /// Offer and answer were brought, and no link came of it.
    NotUp(NotUp),
    /// This machine could not make an offer.
    Local(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Local(error.to_string())
    }
}

/// How a link is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// Relays are asked for help; both ends use ports of their own.
    relay: bool,
    /// Whose shared port is used: this end's, or the other's. A router may let in only what is for one of the two.
    shared_port: bool,
}

impl Manner {
    /// What to try after this one brought no packet through.
    pub(super) fn next(self) -> Self {
        match (self.relay, self.shared_port) {
            (false, false) => Self { relay: false, shared_port: true },
            (false, true) => Self { relay: true, shared_port: false },
            (true, _) => Self::default(),
        }
    }

    /// How this end offers a link that is as the one which the other end offered.
    pub(super) fn as_answered(offer: &Offer) -> Self {
        Self { relay: offer.relay, shared_port: !offer.shared_port }
    }

    /// How to begin anew, after a link that came up in this manner.
    pub(super) fn again(self) -> Self {
        if self.relay { Self::default() } else { self }
    }
}

/// How far an attempt is: the run of the other node that answered it.
#[derive(Debug, Default)]
pub(super) struct Progress(std::sync::OnceLock<String>);

impl Progress {
    pub(super) fn answered_by(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

/// Makes a control link.
pub(super) async fn control_link(
    shared: &Arc<Shared>,
    peer: &Peer,
    manner: Manner,
    progress: &Progress,
) -> Result<(Control, Lanes), Failure> {
    let ways = shared.ways(&peer.id, manner.relay, manner.shared_port);
    let link = Link::by(End::Control, &shared.config.addresses, &shared.config.certificate, ways).await?;
    let lanes = Lanes::open(&link).await?;
    let offer = offer(&link, Purpose::Control, manner).await?;
    let answer = bring(shared, peer, &offer).await?;
    let _ = progress.0.set(answer.boot);
    link.answered(answer.description).await?;
    control::establish(link, lanes, &shared.hello(), manner, Part::Offered).await.map_err(Failure::NotUp)
}

/// Makes a bulk link. Its offer goes over the control link.
pub(super) async fn bulk_link(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    over: &Control,
) -> Result<Arc<BulkLink>, Failure> {
    let manner = over.manner();
    let ways = shared.ways(&peer.id, manner.relay, manner.shared_port);
    let end = peer.bulk.next_end();
    let link = Link::by(end, &shared.config.addresses, &shared.config.certificate, ways).await?;
    let channel = bulk::open_channel(&link).await?;
    let offer = offer(&link, Purpose::Bulk, manner).await?;
    let answer = over_control(shared, peer, over, &offer).await?;
    link.answered(answer.description).await?;
    link.connected(CONNECTING).await.map_err(|_| Failure::NotUp(NotUp::Silent))?;
    let opened = timeout(CONNECTING, bulk::greeted(&channel)).await;
    opened.map_or(Err(NotUp::Silent), |opened| opened.map_err(|_| NotUp::Ended)).map_err(Failure::NotUp)?;
    Ok(peer.bulk.add(Carrier::WebRtc(link, end), Box::new(channel), answer.boot, true, shared.taker(&peer.id)))
}

/// Brings an offer over the control link.
pub(super) async fn over_control(
    shared: &Shared,
    peer: &Peer,
    over: &Control,
    offer: &Offer,
) -> Result<Answered, Failure> {
    pass(shared, peer, over, 0, offer).await.map_err(|(Way::Blocked(failure) | Way::End(failure))| failure)
}

async fn offer(link: &Link, purpose: Purpose, manner: Manner) -> Result<Offer, Error> {
    let description = link.offer(false).await?;
    let Manner { relay, shared_port } = manner;
    Ok(Offer { purpose, attempt: random_name(), description, relay, shared_port, far: false })
}

/// What the other node answered.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) boot: String,
    pub(super) description: String,
}

/// Brings an offer to a node by every way there is; the first answer counts.
async fn bring(shared: &Arc<Shared>, peer: &Peer, offer: &Offer) -> Result<Answered, Failure> {
    let addresses = shared.addresses_of(&peer.id);
    let mut ways: FuturesUnordered<BoxFuture<'_, Result<Answered, Way>>> = FuturesUnordered::new();
    for address in &addresses {
        ways.push(post(shared, peer, address, offer).boxed());
    }
    let others_at = sleep(ASK_OTHERS_AFTER);
    tokio::pin!(others_at);
    let mut others_asked = false;
    let mut last = Failure::Unreachable;
    loop {
        let ask_others = tokio::select! {
            Some(ended) = ways.next() => {
                match ended {
                    Ok(answered) => return Ok(answered),
                    Err(Way::End(failure)) => return Err(failure),
                    // What somebody else said at one of the addresses says more than silence at the others.
                    Err(Way::Blocked(Failure::Unreachable)) => {}
                    Err(Way::Blocked(failure)) => last = failure,
                }
                ways.is_empty() && !others_asked
            }
            () = &mut others_at, if !others_asked => true,
            else => return Err(last),
        };
        if ask_others {
            others_asked = true;
            for over in shared.others(&peer.id).into_iter().take(OTHERS_MAX) {
                ways.push(async move { pass(shared, peer, &over, 1, offer).await }.boxed());
            }
        }
    }
}

/// Why one way led to no answer.
enum Way {
    /// Another may.
    Blocked(Failure),
    /// The node itself said so.
    End(Failure),
}

async fn post(shared: &Shared, peer: &Peer, address: &str, offer: &Offer) -> Result<Answered, Way> {
    let (envelope, nonce) = shared.author.seal(Some(&peer.id), Body::Offer(offer.clone()));
    match shared.post.send(address, &envelope).await {
        Ok(answer) => read_answer(shared, &peer.id, &nonce, &answer),
        Err(post::Failure::Unreachable) => Err(Way::Blocked(Failure::Unreachable)),
        Err(post::Failure::Refused(error)) => Err(Way::Blocked(Failure::Refused(error))),
    }
}

/// Has another node bring the offer.
async fn pass(shared: &Shared, peer: &Peer, over: &Control, hops: u8, offer: &Offer) -> Result<Answered, Way> {
    let (envelope, nonce) = shared.author.seal(Some(&peer.id), Body::Offer(offer.clone()));
    // JSON, and so UTF-8.
    let envelope = String::from_utf8(envelope).unwrap_or_default();
    let body = serde_json::to_vec(&Passed { to: peer.id.clone(), hops, envelope }).unwrap_or_default();
    match over.rpc().call(Method::Signal, body.into(), PASSING).await {
        Ok(answer) => read_answer(shared, &peer.id, &nonce, &answer),
        Err(CallError::Refused(error)) => Err(Way::Blocked(Failure::Refused(error))),
        Err(_) => Err(Way::Blocked(Failure::Unreachable)),
    }
}

fn read_answer(shared: &Shared, from: &NodeId, nonce: &str, bytes: &[u8]) -> Result<Answered, Way> {
    let blocked = |error| Way::Blocked(Failure::Refused(error));
    let opened = envelope::open(bytes).map_err(blocked)?;
    let Message { to, boot, body, .. } = opened.message;
    // The id is the hash of the key, so that who has the id has the key that the state names.
    if opened.message.from != *from || to.as_ref() != Some(&shared.author.id) {
        return Err(blocked(invalid("another node answers at an address of this machine")));
    }
    match body {
        Body::Answer(answer) if answer.reply_to == nonce => Ok(Answered { boot, description: answer.description }),
        Body::Refusal { reply_to, error } if reply_to == nonce => {
            Err(Way::End(if error.code == ErrorCode::Conflict { Failure::Glare } else { Failure::Refused(error) }))
        }
        _ => Err(blocked(invalid("the answer is to something else"))),
    }
}
