//! How far a deployed revision has come, read from its service's state.

use flotilla_api::{
    Revision,
    rest::{ServiceState, ServiceView},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The node knows of it and has begun nothing that can be seen.
    Accepted,
    Starting,
    Running,
    /// Scaled to zero: nothing is to run.
    Stopped,
    /// Does not run as it should; whether it is tried again, the message says.
    Troubled(ServiceState),
    /// A newer revision took its place, or the service was removed.
    Replaced,
}

impl Stage {
    pub(crate) fn of(service: Option<&ServiceView>, deployed: Revision) -> Self {
        let Some(service) = service else { return Self::Accepted };
        if service.revision != deployed {
            return if service.revision > deployed { Self::Replaced } else { Self::Accepted };
        }
        if service.replicas == 0 {
            return Self::Stopped;
        }
        // The old revision's instance may still run, and the service with it.
        let mine: Vec<_> = service.instances.iter().filter(|instance| instance.revision == deployed).collect();
        let running = |state| matches!(state, ServiceState::Running | ServiceState::Completed);
        if let Some(state) = mine.iter().map(|instance| instance.state).find(|state| is_trouble(*state)) {
            return Self::Troubled(state);
        }
        if mine.is_empty() {
            return if is_trouble(service.state) { Self::Troubled(service.state) } else { Self::Accepted };
        }
        if mine.iter().all(|instance| running(instance.state)) && mine.len() as u64 >= u64::from(service.replicas) {
            return Self::Running;
        }
        Self::Starting
    }

    /// Nothing more is to be waited for.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Running | Self::Stopped | Self::Replaced | Self::Troubled(ServiceState::Failed))
    }
}

fn is_trouble(state: ServiceState) -> bool {
    use ServiceState::{Failed, Restarting, Unhealthy, Unknown};
    matches!(state, Failed | Restarting | Unhealthy | Unknown)
}

#[cfg(test)]
mod tests {
    use flotilla_api::{InstanceId, UnixMillis, rest::InstanceView};

    use super::*;

    fn service(revision: u64, state: ServiceState, instances: &[(u64, ServiceState)]) -> ServiceView {
        ServiceView {
            service: "notes".parse().unwrap(),
            stack: "notes".parse().unwrap(),
            machine: None,
            state,
            message: None,
            revision: Revision(revision),
            url: None,
            image: "notes".into(),
            replicas: 1,
            epoch: Some(1),
            since: UnixMillis(0),
            observed_at: UnixMillis(0),
            instances: instances
                .iter()
                .map(|(revision, state)| InstanceView {
                    id: InstanceId(format!("notes-{revision}")),
                    machine: "one".parse().unwrap(),
                    replica: 1,
                    epoch: 1,
                    revision: Revision(*revision),
                    state: *state,
                    message: None,
                    container: None,
                    since: UnixMillis(0),
                    started_at: None,
                    restarts: 0,
                    exit_code: None,
                    cpu_cores_used: None,
                    memory_used_bytes: None,
                })
                .collect(),
        }
    }

    #[test]
    fn a_revision_runs_only_when_its_own_instances_do() {
        use ServiceState::{Failed, Restarting, Running, Starting};
        let stage = |service: &ServiceView| Stage::of(Some(service), Revision(2));
        assert_eq!(Stage::of(None, Revision(1)), Stage::Accepted);
        assert_eq!(stage(&service(1, Running, &[(1, Running)])), Stage::Accepted);
        assert_eq!(stage(&service(2, Running, &[(1, Running)])), Stage::Accepted);
        assert_eq!(stage(&service(2, Starting, &[(1, Running), (2, Starting)])), Stage::Starting);
        assert_eq!(stage(&service(2, Running, &[(2, Running)])), Stage::Running);
        assert_eq!(stage(&service(2, Restarting, &[(2, Restarting)])), Stage::Troubled(Restarting));
        assert_eq!(stage(&service(2, Failed, &[])), Stage::Troubled(Failed));
        assert_eq!(stage(&service(3, Running, &[(3, Running)])), Stage::Replaced);
        let stopped = ServiceView { replicas: 0, ..service(2, ServiceState::Stopped, &[]) };
        assert_eq!(stage(&stopped), Stage::Stopped);
    }

    #[test]
    fn waiting_ends_with_success_and_with_what_no_waiting_helps() {
        assert!(Stage::Running.is_final() && Stage::Troubled(ServiceState::Failed).is_final());
        assert!(!Stage::Troubled(ServiceState::Restarting).is_final() && !Stage::Starting.is_final());
    }
}
