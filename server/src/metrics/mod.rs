//! What the node tells of itself to Prometheus, at `/metrics`.

mod cluster;
mod consensus;
mod disk;
mod fence;
mod figure;
mod images;
mod relay;
mod tunnel;
mod vault;
mod volumes;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use flotilla_api::rest::{MachineResources, ServiceState};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use cluster::ClusterFigures;
pub use cluster::MachineReading;
use disk::DiskFigures;

/// What a request on the listener was for. No class holds bytes of a service: those go over data channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Traffic {
    /// Files of the web app.
    Bootstrap,
    Api,
    /// What sets connections up: a browser's WebSocket, another node's offer.
    Signal,
    /// What another node sends and fetches over TLS.
    Bulk,
    /// `/healthz`, `/readyz`, `/metrics`.
    Probe,
    /// A host, an origin or a path that is not served, and what was no HTTP.
    Refused,
}

impl Traffic {
    pub const ALL: [Self; 6] = [Self::Bootstrap, Self::Api, Self::Signal, Self::Bulk, Self::Probe, Self::Refused];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Api => "api",
            Self::Signal => "signal",
            Self::Bulk => "bulk",
            Self::Probe => "probe",
            Self::Refused => "refused",
        }
    }
}

impl EncodeLabelValue for Traffic {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Received,
    Sent,
}

impl EncodeLabelValue for Direction {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Received => "received",
            Self::Sent => "sent",
        }
        .encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerBytes {
    pub traffic: Traffic,
    pub direction: Direction,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    traffic: Traffic,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    traffic: Traffic,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// Clones count into the same figures.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<Request, Counter>,
    durations: Family<Class, Histogram>,
    bytes: Family<ListenerBytes, Counter>,
    connections: Gauge,
    state_index: Gauge,
    services: Family<InState, Gauge>,
    instances: Family<InState, Gauge>,
    memory: Gauge,
    cluster: ClusterFigures,
    disk: DiskFigures,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Figures that are read when somebody asks, rather than kept up to date.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub state_index: u64,
    pub services: Vec<ServiceState>,
    pub instances: Vec<ServiceState>,
    pub machines: Vec<MachineReading>,
    /// Of this machine.
    pub resources: MachineResources,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::with_prefix("flotilla"))),
            requests: Family::default(),
            // From a cached page (1 ms) to an image that is pulled (minutes).
            durations: Family::new_with_constructor(|| {
                Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0])
            }),
            bytes: Family::default(),
            connections: Gauge::default(),
            state_index: Gauge::default(),
            services: Family::default(),
            instances: Family::default(),
            memory: Gauge::default(),
            cluster: ClusterFigures::default(),
            disk: DiskFigures::default(),
        };
        for traffic in Traffic::ALL {
            for direction in [Direction::Received, Direction::Sent] {
                // Shown from the start: a figure that is zero is not one that is missing.
                drop(metrics.bytes.get_or_create(&ListenerBytes { traffic, direction }));
            }
        }
        metrics.register(|registry| {
            registry.register("http_requests", "Requests on the listener", metrics.requests.clone());
            registry.register(
                "http_request_duration_seconds",
                "From a request's head to its answer's head",
                metrics.durations.clone(),
            );
            registry.register("listener_bytes", "Bytes of the listener's connections", metrics.bytes.clone());
            registry.register("listener_connections", "Open connections of the listener", metrics.connections.clone());
            registry.register("state_index", "Index of the last state change", metrics.state_index.clone());
            registry.register("services", "Services in each state", metrics.services.clone());
            registry.register("instances", "Instances in each state", metrics.instances.clone());
            registry.register("process_resident_memory_bytes", "Memory of the daemon", metrics.memory.clone());
            metrics.cluster.register(registry);
            metrics.disk.register(registry);
        });
        metrics
    }

    /// Adds a module's own metrics; their names get the prefix `flotilla_`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Shows the tunnel's counters, too.
    pub fn watch_tunnel(&self, tunnel: crate::tunnel::Tunnel) {
        self.register(|registry| registry.register_collector(Box::new(tunnel::Tunnels(tunnel))));
    }

    /// Shows the consensus, too.
    pub fn watch_consensus(&self, consensus: &crate::consensus::Consensus) {
        self.register(|registry| {
            registry.register(
                "consensus_commit_duration_seconds",
                "From a proposal's arrival on the leader to its answer",
                consensus.commit_latency().clone(),
            );
            registry.register_collector(Box::new(consensus::ConsensusFigures(consensus.clone())));
        });
    }

    /// Shows how volumes do, too.
    pub fn watch_volumes(&self, volumes: crate::volumes::Volumes) {
        self.register(|registry| registry.register_collector(Box::new(volumes::Copies(volumes))));
    }

    /// Shows how images do, too.
    pub fn watch_images(&self, images: crate::images::Images) {
        self.register(|registry| registry.register_collector(Box::new(images::Holdings(images))));
    }

    /// Shows how many secrets and configs there are, too.
    pub fn watch_vault(&self, vault: crate::vault::Vault, store: crate::store::Store) {
        self.register(|registry| registry.register_collector(Box::new(vault::Values(vault, store))));
    }

    /// Shows what the fence did, too.
    pub fn watch_fence(&self, fence: crate::fence::Fence) {
        self.register(|registry| registry.register_collector(Box::new(fence::Fences(fence))));
    }

    /// Shows the relay's counters, too, as long as it runs.
    pub fn watch_relay(&self, relay: &Arc<flotilla_relay::Relay>) {
        let figures = relay::RelayFigures(Arc::downgrade(relay));
        self.register(|registry| registry.register_collector(Box::new(figures)));
    }

    pub fn request(&self, traffic: Traffic, status: u16, seconds: f64) {
        self.requests.get_or_create(&Request { traffic, status }).inc();
        self.durations.get_or_create(&Class { traffic }).observe(seconds);
    }

    /// The counter of one kind of bytes, for a connection to keep.
    pub fn listener_bytes(&self, traffic: Traffic, direction: Direction) -> Counter {
        self.bytes.get_or_create_owned(&ListenerBytes { traffic, direction })
    }

    pub fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// In the text format of OpenMetrics, which Prometheus reads.
    pub fn encode(&self, reading: &Reading) -> Result<String, fmt::Error> {
        self.state_index.set(reading.state_index.cast_signed());
        for (family, states) in [(&self.services, &reading.services), (&self.instances, &reading.instances)] {
            for state in ServiceState::ALL {
                let count = states.iter().filter(|other| *other == state).count();
                family.get_or_create(&InState { state: state.as_str() }).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        self.cluster.set(&reading.machines);
        self.disk.set(&reading.resources);
        if let Some(bytes) = resident_memory() {
            self.memory.set(bytes);
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

/// What Linux counts as this process's own (proc_pid_status(5)). Bytes.
fn resident_memory() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use flotilla_api::{
        NodeId, UnixMillis,
        rest::{LinkPath, LinkState, LinkView, MachineState, StorageView},
    };

    use super::*;

    #[test]
    fn every_figure_is_shown_in_the_text_format() {
        let metrics = Metrics::new();
        metrics.request(Traffic::Api, 200, 0.002);
        metrics.listener_bytes(Traffic::Signal, Direction::Sent).inc_by(7);
        let text = metrics
            .encode(&Reading {
                state_index: 5,
                services: vec![ServiceState::Running],
                instances: vec![ServiceState::Starting],
                machines: vec![MachineReading {
                    name: "atlas".to_owned(),
                    state: MachineState::Suspect,
                    instances: 2,
                    report_age_seconds: Some(1.5),
                    link: Some(LinkView {
                        peer: NodeId("a".to_owned()),
                        state: LinkState::Up,
                        path: Some(LinkPath::Relayed),
                        bulk: None,
                        remote: None,
                        rtt_ms: Some(12.5),
                        jitter_ms: None,
                        loss: Some(0.25),
                        sent_per_second: 0,
                        received_per_second: 0,
                        since: UnixMillis(0),
                        observed_at: UnixMillis(0),
                        problem: None,
                    }),
                }],
                resources: MachineResources {
                    disk_total_bytes: 1000,
                    disk_free_bytes: 400,
                    storage: Some(StorageView { objects_bytes: 90, written_bytes: 70, ..StorageView::default() }),
                    ..MachineResources::default()
                },
            })
            .unwrap();
        for line in [
            r#"flotilla_http_requests_total{traffic="api",status="200"} 1"#,
            r#"flotilla_listener_bytes_total{traffic="signal",direction="sent"} 7"#,
            r#"flotilla_listener_bytes_total{traffic="bootstrap",direction="received"} 0"#,
            "flotilla_state_index 5",
            r#"flotilla_services{state="running"} 1"#,
            r#"flotilla_services{state="failed"} 0"#,
            r#"flotilla_machines{state="suspect"} 1"#,
            r#"flotilla_machine_instances{machine="atlas"} 2"#,
            r#"flotilla_machine_report_age_seconds{machine="atlas"} 1.5"#,
            r#"flotilla_link_up{machine="atlas",path="relayed"} 1"#,
            r#"flotilla_link_round_trip_seconds{machine="atlas"} 0.0125"#,
            r#"flotilla_link_loss_ratios{machine="atlas"} 0.25"#,
            r#"flotilla_instances{state="starting"} 1"#,
            "flotilla_disk_size_bytes 1000",
            "flotilla_disk_free_bytes 400",
            r#"flotilla_disk_volumes_bytes{what="objects"} 90"#,
            r#"flotilla_disk_volumes_bytes{what="written"} 70"#,
            r#"flotilla_disk_volumes_bytes{what="copies"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("flotilla_process_resident_memory_bytes"));
    }
}
