//! A connection as a browser makes one, for a client that is no browser.

use super::{
    Addresses, Certificate, Error,
    link::{Link, Peer},
};

/// A connection that was offered and waits for the node's answer.
#[derive(Debug)]
pub struct Dialled {
    /// For `FromBrowser::Connect`. It holds all of this side's candidates.
    pub offer: String,
    link: Link,
}

impl Dialled {
    /// Takes the node's answer; the link comes up from here.
    ///
    /// # Errors
    /// [`Error::SetUp`] if the answer is none.
    pub async fn answered(self, answer: String) -> Result<Link, Error> {
        self.link.answered(answer).await?;
        Ok(self.link)
    }
}

/// Offers a connection to a node's browser side. Which services it is for may be known later: the offer names none.
///
/// # Errors
/// [`Error::SetUp`] or [`Error::NoCandidates`] if this machine lacks sockets or addresses.
pub async fn dial(addresses: &Addresses, certificate: &Certificate) -> Result<Dialled, Error> {
    let link = Link::new(Peer::Node, addresses, certificate).await?;
    link.open_unannounced().await?;
    let offer = link.offer(false).await?;
    Ok(Dialled { offer, link })
}
