//! The disk that holds this node's data, and what volumes take up of it.

use flotilla_api::rest::MachineResources;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    what: &'static str,
}

#[derive(Clone, Debug, Default)]
pub(super) struct DiskFigures {
    size: Gauge,
    free: Gauge,
    volumes: Family<Of, Gauge>,
}

impl DiskFigures {
    pub(super) fn register(&self, registry: &mut Registry) {
        let of = "the file system that holds the data directory";
        registry.register_with_unit("disk_size", format!("Size of {of}"), Unit::Bytes, self.size.clone());
        registry.register_with_unit("disk_free", format!("Room that is left on {of}"), Unit::Bytes, self.free.clone());
        registry.register_with_unit(
            "disk_volumes",
            "What volumes take up: the store of their generations, the files of those that are written here, and of copies",
            Unit::Bytes,
            self.volumes.clone(),
        );
    }

    pub(super) fn set(&self, resources: &MachineResources) {
        let figure = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.size.set(figure(resources.disk_total_bytes));
        self.free.set(figure(resources.disk_free_bytes));
        // Nothing is shown of what was not measured yet.
        let Some(storage) = resources.storage else { return };
        for (what, bytes) in
            [("objects", storage.objects_bytes), ("written", storage.written_bytes), ("copies", storage.copies_bytes)]
        {
            self.volumes.get_or_create(&Of { what }).set(figure(bytes));
        }
    }
}
