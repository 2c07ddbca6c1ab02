//! How volumes are captured and copied, as metrics, read when somebody asks.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, counter, gauge};
use crate::volumes::{Figures, Sent, Volumes};

#[derive(Debug)]
pub(super) struct Copies(pub(super) Volumes);

type Read = fn(&Figures) -> u64;

const FIGURES: &[(Figure, Read)] = &[
    (counter("volume_captures", "Generations that were made here"), |it| it.captures),
    (counter("volume_captured_bytes", "Bytes of files that were read for generations"), |it| it.captured_bytes),
    (counter("volume_held_microseconds", "Time for which instances stood still for that"), |it| it.held_micros),
    (counter("volume_fetches", "Generations that came from other machines"), |it| it.fetches),
    (counter("volume_fetched_bytes", "Bytes that came from other machines for generations"), |it| it.fetched_bytes),
    (counter("volume_scrubbed_objects", "Objects that were read to see whether the disk still has them"), |it| {
        it.scrubbed
    }),
    (
        counter(
            "volume_compared_bytes",
            "Bytes of copies' files that were read to see whether they are as they should be",
        ),
        |it| it.compared,
    ),
    (
        counter(
            "volume_damaged_objects",
            "Objects, and pieces of copies' files, that the disk did not give back as they were",
        ),
        |it| it.damaged,
    ),
    (counter("volume_repaired_objects", "Those of them that are right again"), |it| it.repaired),
];

const UNCOMMITTED: Figure =
    gauge("volume_uncommitted_milliseconds", "Since when a service has written what no other machine is sure to have");

const SENT: Figure = counter(
    "copies_sent_bytes",
    "Bytes of objects that were sent to other machines, by whether something waited for them",
);

const LIMIT: Figure = gauge(
    "copies_limit_bytes_per_second",
    "What may be sent now of what nothing waits for; absent where there is no limit",
);

const SCRUBBED: Figure = gauge(
    "volume_scrub_finished_seconds",
    "When all that is kept was read last, in seconds since 1970; absent where it never was",
);

const UNREPAIRED: Figure = gauge(
    "volume_scrub_unrepaired_objects",
    "Objects that were damaged then and that no machine had; absent where it never was",
);

const COMING: Figure =
    gauge("volume_coming_bytes", "Of the files of a generation that is on its way here, what is there");

const COMING_OF: Figure = gauge("volume_coming_of_bytes", "Of the files of a generation that is on its way here, all");

impl Collector for Copies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = self.0.figures();
        FIGURES.iter().try_for_each(|(figure, read)| figure.encode_plain(&mut encoder, read(&figures)))?;
        let Sent { in_advance, at_once } = self.0.sent();
        SENT.encode(&mut encoder, "kind", [("in-advance", in_advance), ("awaited", at_once)].into_iter())?;
        if let Some(rate) = self.0.watch_limit().borrow().rate {
            LIMIT.encode_plain(&mut encoder, rate.per_second())?;
        }
        if let Some(finished) = self.0.watch_scrub().borrow().finished {
            SCRUBBED.encode_plain(&mut encoder, finished.finished_at.0 / 1000)?;
            UNREPAIRED.encode_plain(&mut encoder, finished.damaged - finished.repaired.min(finished.damaged))?;
        }
        let coming = self.0.watch_coming().borrow().clone();
        let coming: Vec<_> =
            coming.into_values().map(|it| (format!("{}/{}", it.service, it.volume), it.bytes, it.of)).collect();
        COMING.encode(&mut encoder, "volume", coming.iter().map(|(volume, bytes, _)| (volume.as_str(), *bytes)))?;
        COMING_OF.encode(&mut encoder, "volume", coming.iter().map(|(volume, _, of)| (volume.as_str(), *of)))?;
        let ages = self.0.uncommitted();
        UNCOMMITTED.encode(&mut encoder, "service", ages.iter().map(|(service, age)| (service.as_str(), *age)))
    }
}
