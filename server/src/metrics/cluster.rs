//! Figures of the cluster as this node sees it: how the machines do, and this node's links to them.

use std::sync::atomic::AtomicU64;

use flotilla_api::rest::{LinkPath, LinkState, LinkView, MachineState};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

type Real = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMachine {
    machine: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ToMachine {
    machine: String,
    path: &'static str,
}

/// Read when somebody asks.
#[derive(Clone, Debug)]
pub struct MachineReading {
    pub name: String,
    pub state: MachineState,
    pub instances: u32,
    /// How old its last report is; absent for this node itself and before the first one.
    pub report_age_seconds: Option<f64>,
    /// This node's link to it.
    pub link: Option<LinkView>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ClusterFigures {
    machines: Family<InState, Gauge>,
    placements: Family<OfMachine, Gauge>,
    report_age: Family<OfMachine, Real>,
    links: Family<ToMachine, Gauge>,
    round_trip: Family<OfMachine, Real>,
    loss: Family<OfMachine, Real>,
}

impl ClusterFigures {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("machines", "Machines in each state", self.machines.clone());
        registry.register("machine_instances", "Instances that are placed on a machine", self.placements.clone());
        registry.register_with_unit(
            "machine_report_age",
            "Age of a machine's last report",
            Unit::Seconds,
            self.report_age.clone(),
        );
        registry.register("link_up", "1 while this node's link to a machine is up", self.links.clone());
        registry.register_with_unit(
            "link_round_trip",
            "Smoothed round trip of this node's link to a machine",
            Unit::Seconds,
            self.round_trip.clone(),
        );
        registry.register_with_unit(
            "link_loss",
            "Probes of the last minute that were lost on this node's link to a machine",
            Unit::Ratios,
            self.loss.clone(),
        );
    }

    pub(super) fn set(&self, machines: &[MachineReading]) {
        for state in MachineState::ALL {
            let count = machines.iter().filter(|machine| machine.state == *state).count();
            self.machines
                .get_or_create(&InState { state: state.as_str() })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        // What was removed or renamed must not stay for ever under its old name.
        self.placements.clear();
        self.report_age.clear();
        self.links.clear();
        self.round_trip.clear();
        self.loss.clear();
        for machine in machines {
            let name = OfMachine { machine: machine.name.clone() };
            self.placements.get_or_create(&name).set(i64::from(machine.instances));
            if let Some(age) = machine.report_age_seconds {
                self.report_age.get_or_create(&name).set(age);
            }
            let Some(link) = &machine.link else { continue };
            let path = match link.path {
                Some(LinkPath::Direct) => "direct",
                Some(LinkPath::Relayed) => "relayed",
                None => "none",
            };
            let to = ToMachine { machine: machine.name.clone(), path };
            self.links.get_or_create(&to).set(i64::from(link.state == LinkState::Up));
            if let Some(rtt) = link.rtt_ms {
                self.round_trip.get_or_create(&name).set(rtt / 1000.0);
            }
            if let Some(loss) = link.loss {
                self.loss.get_or_create(&name).set(loss);
            }
        }
    }
}
