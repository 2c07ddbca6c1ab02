//! What the fence did, as metrics, read when somebody asks.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, counter, gauge};
use crate::fence::{Fence, Figures};

#[derive(Debug)]
pub(super) struct Fences(pub(super) Fence);

type Read = fn(&Figures) -> u64;

const FIGURES: &[(Figure, Read)] = &[
    (counter("fence_freezes", "Containers that this node froze"), |fence| fence.freezes),
    (counter("fence_thaws", "Containers that this node thawed"), |fence| fence.thaws),
    (counter("fence_guard_freezes", "Containers that the guard froze in the node's stead"), |fence| {
        fence.guard_freezes
    }),
    (counter("fence_guard_starts", "Guards that were started"), |fence| fence.guard_starts),
    (gauge("fence_frozen", "Containers that are frozen"), |fence| fence.frozen),
];

impl Collector for Fences {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = self.0.figures();
        FIGURES.iter().try_for_each(|(figure, read)| figure.encode_plain(&mut encoder, read(&figures)))
    }
}
