//! A cluster as a test wants a node to know it.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    InstanceId, Revision, StackName, UnixMillis,
    rest::{EngineView, LinkView, MachineResources},
    spec::ServiceSpec,
};
use flotilla_core::{
    compose,
    reconcile::{Container, Health, Memory, Observed, Status},
    report::{Report, Usage},
    schedule::{Input, Standing},
};
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::*;
use crate::{
    client::Client,
    http::{Quorum, Told},
    peers::Network,
};

/// What a node of a cluster would know, as a test wants it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) quorum: Quorum,
    pub(super) reports: BTreeMap<NodeId, Told>,
    pub(super) connected: BTreeSet<NodeId>,
    pub(super) linearizable: bool,
    pub(super) network: Option<Network>,
    pub(super) changes: watch::Sender<u64>,
    /// What its scheduler goes by beside the reports.
    pub(super) state: Arc<flotilla_core::State>,
}

impl Known {
    pub(super) fn of(leader: &NodeId, voters: &[&NodeId]) -> Self {
        let quorum =
            Quorum { term: 7, leader: Some(leader.clone()), voters: voters.iter().map(|id| (*id).clone()).collect() };
        let (reports, connected) = (BTreeMap::new(), BTreeSet::new());
        Self {
            quorum,
            reports,
            connected,
            linearizable: true,
            network: None,
            changes: watch::Sender::new(0),
            state: Arc::default(),
        }
    }

    pub(super) fn going_by(mut self, running: &Running) -> Self {
        self.state = running.node.app().store.state();
        self
    }

    pub(super) fn told(mut self, id: &NodeId, received: UnixMillis, report: Report) -> Self {
        self.reports.insert(id.clone(), (received, Arc::new(report)));
        self.connected.insert(id.clone());
        self
    }
}

impl Members for Known {
    fn reports(&self) -> BTreeMap<NodeId, Told> {
        self.reports.clone()
    }

    fn watch_reports(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn quorum(&self) -> Quorum {
        self.quorum.clone()
    }

    fn lease_left(&self, _: &NodeId) -> Option<Duration> {
        Some(Duration::from_millis(1234))
    }

    fn linearize(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        let result = if self.linearizable {
            Ok(())
        } else {
            Err(ApiError::new(ErrorCode::ServiceUnavailable, "no machine leads the cluster"))
        };
        Box::pin(std::future::ready(result))
    }

    fn links(&self) -> Vec<LinkView> {
        Vec::new()
    }

    fn connected(&self) -> BTreeSet<NodeId> {
        self.connected.clone()
    }

    fn network(&self) -> Option<Network> {
        self.network.clone()
    }

    fn show_input(&self, look: &mut dyn FnMut(&Input<'_>)) {
        let machines = self.state.machines.keys().map(|id| {
            let report = self.reports.get(id).map(|(_, report)| &**report);
            (id.clone(), Standing { report, ..Standing::default() })
        });
        look(&Input { now: clock::now(), state: &self.state, machines: machines.collect() });
    }
}

/// Of a machine whose clock is an hour behind: no time of it may be shown as it is.
pub(super) fn report(containers: Vec<Container>, seen_before_ms: u64) -> Report {
    let at = UnixMillis(clock::now().0 - 3_600_000);
    let usage = containers
        .iter()
        .map(|container| (container.instance.clone(), Usage { cpu_cores: Some(0.5), memory_bytes: Some(77) }))
        .collect();
    Report {
        at,
        applied: 1,
        started_at: at,
        version: "9.9.9".to_owned(),
        engine: EngineView::Ready {
            version: "28".to_owned(),
            api_version: "1.48".to_owned(),
            operating_system: "Debian".to_owned(),
        },
        resources: MachineResources { cpu_cores: 4, ..MachineResources::default() },
        observed: Some(Observed { at: UnixMillis(at.0 - seen_before_ms), containers, networks: Vec::new() }),
        memory: Memory::default(),
        activities: BTreeMap::new(),
        usage,
        links: Vec::new(),
        images: Vec::new(),
        data: BTreeMap::new(),
        stored_images: Default::default(),
        copy_limit: None,
        coming: Vec::new(),
    }
}

pub(super) fn client(running: &Running, address: SocketAddr) -> Client {
    Client::new(&format!("http://{address}"), Some(running.admin.clone())).unwrap()
}

pub(super) fn own(running: &Running) -> NodeId {
    running.node.app().node.clone()
}

pub(super) fn spec() -> (StackName, Vec<ServiceSpec>) {
    let text = "services:\n  web:\n    image: web:1\n    deploy: {replicas: 2}\n";
    let composition = compose::read(text, Some("web"), &BTreeMap::new()).unwrap();
    (composition.stack, composition.services)
}

pub(super) fn container(replica: u32, epoch: u64, since: UnixMillis) -> Container {
    Container {
        id: format!("container-{replica}"),
        instance: InstanceId(format!("web-1-{replica}-x")),
        service: "web".parse().unwrap(),
        stack: "web".parse().unwrap(),
        revision: Revision(1),
        replica,
        restarts: 0,
        epoch,
        status: Status::Running { since, health: Health::Healthy },
        address: None,
        closed_port: None,
    }
}
