//! Connections between nodes: offer and answer, carried by whatever transport the caller has.

use super::{
    Addresses, Certificate, Error,
    link::{Link, MeshChannel, Peer},
};

/// A connection that was offered and waits for its answer, with the data channel it was offered with.
#[derive(Debug)]
pub struct Offered {
    /// To be brought to the other node.
    pub description: String,
    link: Link,
    channel: MeshChannel,
}

impl Offered {
    /// Takes the other node's answer; the link comes up from here.
    ///
    /// # Errors
    /// [`Error::SetUp`] if the answer is none.
    pub async fn answered(self, answer: String) -> Result<(Link, MeshChannel), Error> {
        self.link.answered(answer).await?;
        Ok((self.link, self.channel))
    }
}

/// Offers a connection with one data channel of this label.
///
/// # Errors
/// [`Error::SetUp`] or [`Error::NoCandidates`] if this machine lacks sockets or addresses.
pub async fn offer(addresses: &Addresses, certificate: &Certificate, label: &str) -> Result<Offered, Error> {
    let link = Link::new(Peer::Node, addresses, certificate).await?;
    let channel = link.open(label).await?;
    let description = link.offer(false).await?;
    Ok(Offered { description, link, channel })
}

/// Answers an offered connection.
///
/// # Errors
/// [`Error::SetUp`] if the offer is none, or this machine lacks sockets or addresses.
pub async fn answer(addresses: &Addresses, certificate: &Certificate, offer: String) -> Result<(Link, String), Error> {
    let link = Link::new(Peer::Node, addresses, certificate).await?;
    let answer = link.answer(offer).await?;
    Ok((link, answer))
}

/// Answers a browser's offer with no session behind it and no grant checked: the yardstick that the tunnel is measured against.
///
/// # Errors
/// As [`answer`].
pub async fn answer_browser(
    addresses: &Addresses,
    certificate: &Certificate,
    offer: String,
) -> Result<(Link, String), Error> {
    let link = Link::new(Peer::Browser, addresses, certificate).await?;
    let answer = link.answer(offer).await?;
    Ok((link, answer))
}
