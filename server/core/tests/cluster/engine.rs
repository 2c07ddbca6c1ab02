//! A machine's container engine: actions take time, and what they do happens somewhere in between.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{StackName, UnixMillis};
use flotilla_core::reconcile::{Action, Container, Health, Observed, Status};

#[derive(Clone, Debug)]
pub(crate) struct Real {
    pub(crate) container: Container,
    /// Its specification mounts a volume writable.
    pub(crate) writes: bool,
    pub(crate) frozen: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Engine {
    pub(crate) containers: BTreeMap<String, Real>,
    pub(crate) networks: BTreeSet<StackName>,
    serial: u64,
}

impl Real {
    /// Could it write its volume at this moment?
    pub(crate) fn is_writing(&self) -> bool {
        self.writes && !self.frozen && matches!(self.container.status, Status::Running { .. })
    }
}

impl Engine {
    pub(crate) fn observe(&self, at: UnixMillis) -> Observed {
        Observed {
            at,
            containers: self.containers.values().map(|real| real.container.clone()).collect(),
            networks: self.networks.iter().cloned().collect(),
        }
    }

    pub(crate) fn frozen(&self) -> BTreeSet<String> {
        self.containers.values().filter(|real| real.frozen).map(|real| real.container.id.clone()).collect()
    }

    /// Does an action, at the moment at which it takes effect.
    pub(crate) fn execute(&mut self, machine: usize, at: UnixMillis, action: &Action) {
        match action {
            Action::CreateNetwork { stack } => drop(self.networks.insert(stack.clone())),
            Action::RemoveNetwork { stack } => drop(self.networks.remove(stack)),
            Action::Run { instance, spec, revision, replica, restarts, epoch } => {
                self.serial += 1;
                let id = format!("m{machine}c{:04}", self.serial);
                let container = Container {
                    id: id.clone(),
                    instance: instance.clone(),
                    service: spec.name.clone(),
                    stack: spec.stack.clone(),
                    revision: *revision,
                    replica: *replica,
                    restarts: *restarts,
                    epoch: *epoch,
                    status: Status::Running { since: at, health: Health::None },
                    address: None,
                    closed_port: None,
                };
                let writes = spec.volumes.iter().any(|mount| !mount.read_only);
                self.containers.insert(id, Real { container, writes, frozen: false });
            }
            Action::Start { container, .. } => {
                if let Some(real) = self.containers.get_mut(container) {
                    real.container.status = Status::Running { since: at, health: Health::None };
                }
            }
            Action::Remove { container, .. } => drop(self.containers.remove(container)),
            Action::DeleteVolumes { .. } | Action::Propose(_) => {}
        }
    }

    pub(crate) fn freeze(&mut self, container: &str, frozen: bool) {
        if let Some(real) = self.containers.get_mut(container) {
            real.frozen = frozen;
        }
    }

    /// The machine lost its power: containers are there and have ended.
    pub(crate) fn power_loss(&mut self, at: UnixMillis) {
        for real in self.containers.values_mut() {
            if matches!(real.container.status, Status::Running { .. }) {
                real.container.status = Status::Exited { code: 137, at, out_of_memory: false };
            }
            real.frozen = false;
        }
    }
}
