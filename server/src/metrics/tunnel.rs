//! The tunnel's counters as metrics, read when somebody asks.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::tunnel::{ServiceSnapshot, Snapshot, Tunnel};

#[derive(Debug)]
pub(super) struct Tunnels(pub(super) Tunnel);

struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
}

const fn gauge(name: &'static str, help: &'static str) -> Figure {
    Figure { name, help, kind: MetricType::Gauge }
}

const fn counter(name: &'static str, help: &'static str) -> Figure {
    Figure { name, help, kind: MetricType::Counter }
}

type Read = fn(&ServiceSnapshot) -> u64;

const OF_SERVICES: &[(Figure, Read)] = &[
    (gauge("tunnel_streams_open", "Requests and WebSockets under way"), |service| service.streams_open),
    (counter("tunnel_streams", "Requests and WebSockets so far"), |service| service.streams_total),
    (gauge("tunnel_websockets_open", "Open WebSockets"), |service| service.websockets_open),
    (counter("tunnel_bytes_to_service", "Bodies and messages to services"), |service| service.bytes_to_service),
    (counter("tunnel_bytes_from_service", "Bodies and messages from services"), |service| service.bytes_from_service),
];

impl Figure {
    fn encode<'a>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        label: &'static str,
        rows: impl Iterator<Item = (&'a str, u64)>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, self.kind)?;
        for (value, figure) in rows {
            let labels = [(label, value)];
            self.value(figure, metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_plain(&self, encoder: &mut DescriptorEncoder<'_>, figure: u64) -> fmt::Result {
        self.value(figure, encoder.encode_descriptor(self.name, self.help, None, self.kind)?)
    }

    fn value(&self, figure: u64, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        match self.kind {
            MetricType::Gauge => ConstGauge::new(i64::try_from(figure).unwrap_or(i64::MAX)).encode(encoder),
            _ => ConstCounter::new(figure).encode(encoder),
        }
    }
}

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
