//! A figure that another module counts, in the form of the registry.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

pub(super) struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
}

pub(super) const fn gauge(name: &'static str, help: &'static str) -> Figure {
    Figure { name, help, kind: MetricType::Gauge }
}

pub(super) const fn counter(name: &'static str, help: &'static str) -> Figure {
    Figure { name, help, kind: MetricType::Counter }
}

impl Figure {
    pub(super) fn encode<'a>(
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

    pub(super) fn encode_plain(&self, encoder: &mut DescriptorEncoder<'_>, figure: u64) -> fmt::Result {
        self.value(figure, encoder.encode_descriptor(self.name, self.help, None, self.kind)?)
    }

    fn value(&self, figure: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
        match self.kind {
            MetricType::Gauge => ConstGauge::new(i64::try_from(figure).unwrap_or(i64::MAX)).encode(encoder),
            _ => ConstCounter::new(figure).encode(encoder),
        }
    }
}
