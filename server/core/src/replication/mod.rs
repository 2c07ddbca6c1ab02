//! What the machine that writes a service's volumes decides about their copies: when something is captured and committed ([`Writer`]),
//! and which machine is told of which generation ([`Offers`]). ADR 15 has the whole.

mod offers;
mod writer;

pub use offers::{Offer, Offers, Terms};
pub use writer::{Commit, Orders, Pace, Replicas, Writer};
