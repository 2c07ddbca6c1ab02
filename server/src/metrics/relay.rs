//! The relay's counters as metrics, read when somebody asks.

use std::{fmt, sync::Weak};

use flotilla_relay::{Relay, Snapshot};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, counter, gauge};

/// Weak, so that the relay ends when its node does.
#[derive(Debug)]
pub(super) struct RelayFigures(pub(super) Weak<Relay>);

type Read = fn(&Snapshot) -> u64;

const FIGURES: &[(Figure, Read)] = &[
    (gauge("relay_allocations_open", "Relayed addresses in use"), |relay| relay.allocations_open),
    (counter("relay_allocations", "Relayed addresses so far"), |relay| relay.allocations_total),
    (counter("relay_bytes_to_peers", "Relayed bytes to peers"), |relay| relay.bytes_to_peers),
    (counter("relay_bytes_from_peers", "Relayed bytes from peers"), |relay| relay.bytes_from_peers),
    (counter("relay_peers_denied", "Datagrams to addresses that may not be reached"), |relay| relay.peers_denied),
    (counter("relay_allocations_denied", "Relayed addresses over a limit"), |relay| relay.allocations_denied),
    (counter("relay_credentials_denied", "Requests with credentials that do not count"), |relay| {
        relay.credentials_denied
    }),
    (counter("relay_challenges_denied", "Requests without credentials over their limit"), |relay| {
        relay.challenges_denied
    }),
];

impl Collector for RelayFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(relay) = self.0.upgrade() else { return Ok(()) };
        let snapshot = relay.snapshot();
        FIGURES.iter().try_for_each(|(figure, read)| figure.encode_plain(&mut encoder, read(&snapshot)))
    }
}
