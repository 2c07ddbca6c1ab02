//! What the tunnel counts: plain atomics, exported by whoever asks for a [`Snapshot`].

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use flotilla_api::{ErrorCode, ServiceName};

/// Counters since the node started.
#[derive(Debug, Default)]
pub struct Counters {
    sessions_open: AtomicU64,
    sessions_total: AtomicU64,
    services: Mutex<BTreeMap<ServiceName, Arc<ServiceCounters>>>,
    resets: Mutex<BTreeMap<&'static str, u64>>,
}

#[derive(Debug, Default)]
pub(crate) struct ServiceCounters {
    pub(crate) streams_open: AtomicU64,
    pub(crate) streams_total: AtomicU64,
    pub(crate) websockets_open: AtomicU64,
    pub(crate) bytes_to_service: AtomicU64,
    pub(crate) bytes_from_service: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub sessions_open: u64,
    pub sessions_total: u64,
    pub services: BTreeMap<ServiceName, ServiceSnapshot>,
    /// Streams that were reset, or channels that were refused, by error code.
    pub resets: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceSnapshot {
    pub streams_open: u64,
    pub streams_total: u64,
    pub websockets_open: u64,
    /// Bodies and WebSocket messages.
    pub bytes_to_service: u64,
    pub bytes_from_service: u64,
}

impl Counters {
    pub(crate) fn session_began(&self) {
        self.sessions_open.fetch_add(1, Relaxed);
        self.sessions_total.fetch_add(1, Relaxed);
    }

    pub(crate) fn session_ended(&self) {
        self.sessions_open.fetch_sub(1, Relaxed);
    }

    /// Only for services that exist: the name becomes a label of a metric.
    pub(crate) fn service(&self, service: &ServiceName) -> Arc<ServiceCounters> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(services.entry(service.clone()).or_default())
    }

    pub(crate) fn reset(&self, code: ErrorCode) {
        let mut resets = self.resets.lock().unwrap_or_else(PoisonError::into_inner);
        *resets.entry(code.as_str()).or_default() += 1;
    }

    pub fn snapshot(&self) -> Snapshot {
        let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot {
            sessions_open: self.sessions_open.load(Relaxed),
            sessions_total: self.sessions_total.load(Relaxed),
            services: services.iter().map(|(name, counters)| (name.clone(), counters.snapshot())).collect(),
            resets: self.resets.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl ServiceCounters {
    pub(crate) fn sent_to_service(&self, bytes: usize) {
        self.bytes_to_service.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn got_from_service(&self, bytes: usize) {
        self.bytes_from_service.fetch_add(bytes as u64, Relaxed);
    }

    fn snapshot(&self) -> ServiceSnapshot {
        ServiceSnapshot {
            streams_open: self.streams_open.load(Relaxed),
            streams_total: self.streams_total.load(Relaxed),
            websockets_open: self.websockets_open.load(Relaxed),
            bytes_to_service: self.bytes_to_service.load(Relaxed),
            bytes_from_service: self.bytes_from_service.load(Relaxed),
        }
    }
}
