//! Secrets and configs, as metrics, read when somebody asks. How many there are, and nothing of what they are.

use std::fmt;

use flotilla_api::spec::ValueKind;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::figure::{Figure, gauge};
use crate::{store::Store, vault::Vault};

#[derive(Debug)]
pub(super) struct Values(pub(super) Vault, pub(super) Store);

const VALUES: Figure = gauge("values", "Secrets and configs");
const MISSING: Figure = gauge("value_keys_missing", "Keys of secrets and configs that this machine needs and lacks");
const ENCRYPTED: Figure = gauge("volumes_encrypted", "Volumes whose copies and history are encrypted");

impl Collector for Values {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = self.1.state();
        let count = |kind: &ValueKind| (kind.as_str(), state.values.of(*kind).len() as u64);
        VALUES.encode(&mut encoder, "kind", ValueKind::ALL.iter().map(count))?;
        let encrypted = state.services.values().map(|service| {
            let volumes = service.volumes();
            volumes.iter().filter(|volume| service.encrypts(volume)).count() as u64
        });
        ENCRYPTED.encode_plain(&mut encoder, encrypted.sum())?;
        MISSING.encode_plain(&mut encoder, self.0.missing(&state).len() as u64)
    }
}
