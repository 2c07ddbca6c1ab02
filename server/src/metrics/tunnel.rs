//! The tunnel's counters as metrics, read when somebody asks.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, counter, gauge};
use crate::tunnel::{ServiceSnapshot, Snapshot, Tunnel};

#[derive(Debug)]
pub(super) struct Tunnels(pub(super) Tunnel);

type Read = fn(&ServiceSnapshot) -> u64;

const OF_SERVICES: &[(Figure, Read)] = &[
    (gauge("tunnel_streams_open", "Requests and WebSockets under way"), |service| service.streams_open),
    (counter("tunnel_streams", "Requests and WebSockets so far"), |service| service.streams_total),
    (gauge("tunnel_websockets_open", "Open WebSockets"), |service| service.websockets_open),
    (counter("tunnel_bytes_to_service", "Bodies and messages to services"), |service| service.bytes_to_service),
    (counter("tunnel_bytes_from_service", "Bodies and messages from services"), |service| service.bytes_from_service),
];

impl Collector for Tunnels {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Snapshot { sessions_open, sessions_total, services, resets } = self.0.counters().snapshot();
        gauge("tunnel_sessions_open", "Browsers that are connected").encode_plain(&mut encoder, sessions_open)?;
        counter("tunnel_sessions", "Browsers that connected so far").encode_plain(&mut encoder, sessions_total)?;
        for (figure, read) in OF_SERVICES {
            let rows = services.iter().map(|(service, snapshot)| (service.as_str(), read(snapshot)));
            figure.encode(&mut encoder, "service", rows)?;
        }
        let resets = resets.iter().map(|(code, count)| (*code, *count));
        counter("tunnel_resets", "Streams and channels given up").encode(&mut encoder, "code", resets)
    }
}
