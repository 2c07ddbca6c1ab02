//! How volumes are captured and copied, as metrics, read when somebody asks.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, counter, gauge};
use crate::volumes::{Figures, Volumes};

#[derive(Debug)]
pub(super) struct Copies(pub(super) Volumes);

type Read = fn(&Figures) -> u64;

const FIGURES: &[(Figure, Read)] = &[
    (counter("volume_captures", "Generations that were made here"), |it| it.captures),
    (counter("volume_captured_bytes", "Bytes of files that were read for generations"), |it| it.captured_bytes),
    (counter("volume_held_microseconds", "Time for which instances stood still for that"), |it| it.held_micros),
    (counter("volume_fetches", "Generations that came from other machines"), |it| it.fetches),
    (counter("volume_fetched_bytes", "Bytes that came from other machines for generations"), |it| it.fetched_bytes),
    (counter("volume_damaged_objects", "Objects that the disk did not give back as they were"), |it| it.damaged),
    (counter("volume_repaired_objects", "Damaged objects that came anew from other machines"), |it| it.repaired),
];

const UNCOMMITTED: Figure =
    gauge("volume_uncommitted_milliseconds", "Since when a service has written what no other machine is sure to have");

impl Collector for Copies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = self.0.figures();
        FIGURES.iter().try_for_each(|(figure, read)| figure.encode_plain(&mut encoder, read(&figures)))?;
        let ages = self.0.uncommitted();
        UNCOMMITTED.encode(&mut encoder, "service", ages.iter().map(|(service, age)| (service.as_str(), *age)))
    }
}
