//! How images are held and travel, as metrics, read when somebody asks.

use std::fmt;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, counter, gauge};
use crate::images::{Figures, Images};

#[derive(Debug)]
pub(super) struct Holdings(pub(super) Images);

type Read = fn(&Figures) -> u64;

const FIGURES: &[(Figure, Read)] = &[
    (gauge("images_held", "Images in the store"), |it| it.held),
    (gauge("images_held_bytes", "Bytes of their layers, unpacked, each layer once"), |it| it.held_bytes),
    (counter("image_fetches", "Images that came from other machines"), |it| it.fetches),
    (counter("image_fetched_bytes", "Bytes that came from other machines for images"), |it| it.fetched_bytes),
    (counter("image_pushed_layers", "Layers that were pushed here"), |it| it.pushed_layers),
    (counter("image_pushed_bytes", "Bytes of layers that were pushed here"), |it| it.pushed_bytes),
    (counter("images_stored", "Images that were taken in from the engine"), |it| it.stored),
    (counter("images_brought", "Images that the engine has from this node"), |it| it.loads),
    (counter("images_removed", "Images that nothing needed any more"), |it| it.removed),
];

impl Collector for Holdings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = self.0.figures();
        FIGURES.iter().try_for_each(|(figure, read)| figure.encode_plain(&mut encoder, read(&figures)))
    }
}
