//! What a person is told about a service.

use flotilla_api::{InstanceId, Revision, UnixMillis, rest::ServiceState, spec::Restart};

use super::{Attempts, Container, Health, Memory, OBSERVATION_STALE_MS, Observed, Status};
use crate::state::Service;

/// How a service does, as of one observation.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub state: ServiceState,
    /// One sentence where the state alone does not tell.
    pub message: Option<String>,
    /// When the state was reached.
    pub since: UnixMillis,
    /// Those of the current revision first.
    pub instances: Vec<InstanceCondition>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct InstanceCondition {
    pub instance: InstanceId,
    pub container: String,
    pub revision: Revision,
    pub replica: u32,
    pub state: ServiceState,
    pub message: Option<String>,
    pub since: UnixMillis,
    pub started_at: Option<UnixMillis>,
    pub restarts: u32,
    pub exit_code: Option<i64>,
}

/// `observed` is the newest observation, if there was any.
pub fn condition(now: UnixMillis, service: &Service, observed: Option<&Observed>, memory: &Memory) -> Condition {
    let containers = containers_of(service, observed);
    let mut instances: Vec<InstanceCondition> =
        containers.iter().map(|container| instance(now, service, container, memory)).collect();
    if observed.is_none_or(|observed| now.since(observed.at) > OBSERVATION_STALE_MS) {
        for instance in &mut instances {
            instance.state = ServiceState::Unknown;
        }
        return Condition {
            state: ServiceState::Unknown,
            message: Some("the container engine does not answer, so its state is not known".to_owned()),
            since: observed.map_or(service.changed_at, |observed| observed.at),
            instances,
        };
    }
    if service.replicas == 0 {
        let message = (!instances.is_empty()).then(|| "its instances are being stopped".to_owned());
        return Condition { state: ServiceState::Stopped, message, since: service.changed_at, instances };
    }
    let slots = (1..=service.replicas).map(|replica| slot(now, service, replica, &containers, &instances, memory));
    let Some(worst) = slots.max_by_key(|slot| severity(slot.state)) else {
        return Condition { state: ServiceState::Stopped, message: None, since: service.changed_at, instances };
    };
    let mut message = worst.message;
    if severity(worst.state) > severity(ServiceState::Starting)
        && let Some(former) =
            containers.iter().find(|container| is_former(service, container) && container.is_running())
    {
        let why = message.map_or_else(String::new, |message| format!("{message}; "));
        message = Some(format!("{why}revision {} still answers", former.revision));
    }
    Condition { state: worst.state, message, since: worst.since, instances }
}

/// The containers that requests for the service go to, all equally good: those that are ready before those that only run, and
/// among equals those of the current revision before former ones that have not been replaced yet. Empty if none can take them.
pub fn serving<'a>(now: UnixMillis, service: &Service, observed: &'a Observed) -> Vec<&'a Container> {
    let rank = |container: &Container| {
        let unhealthy = matches!(container.status, Status::Running { health: Health::Unhealthy, .. });
        (!container.is_ready(now), unhealthy, is_former(service, container))
    };
    let mut containers = containers_of(service, Some(observed));
    containers.retain(|container| matches!(container.status, Status::Running { .. }));
    let best = containers.iter().map(|container| rank(container)).min();
    containers.retain(|container| Some(rank(container)) == best);
    containers
}

/// Current ones first, by replica.
fn containers_of<'a>(service: &Service, observed: Option<&'a Observed>) -> Vec<&'a Container> {
    let mut containers: Vec<&Container> = observed
        .into_iter()
        .flat_map(|observed| &observed.containers)
        .filter(|container| container.service == service.name)
        .collect();
    containers.sort_by_key(|container| (is_former(service, container), container.replica, container.id.as_str()));
    containers
}

fn is_former(service: &Service, container: &Container) -> bool {
    container.incarnation() != service.incarnation()
}

struct Finding {
    state: ServiceState,
    message: Option<String>,
    since: UnixMillis,
}

fn slot(
    now: UnixMillis,
    service: &Service,
    replica: u32,
    containers: &[&Container],
    instances: &[InstanceCondition],
    memory: &Memory,
) -> Finding {
    let current = containers
        .iter()
        .zip(instances)
        .find(|(container, _)| container.replica == replica && !is_former(service, container));
    if let Some((container, instance)) = current {
        let replaces =
            containers.iter().any(|other| other.replica == replica && is_former(service, other) && other.is_running());
        // While the former instance still answers, the change is not done.
        if instance.state == ServiceState::Running && replaces && !container.is_ready(now) {
            let message = Some(format!("replaces revision {} in a moment", former_revision(service, containers)));
            return Finding { state: ServiceState::Starting, message, since: instance.since };
        }
        return Finding { state: instance.state, message: instance.message.clone(), since: instance.since };
    }
    let attempts = attempts_of(service, replica, memory);
    if let Some(error) = attempts.and_then(|attempts| attempts.last_error.as_ref()) {
        let not_before = attempts.map_or(now, |attempts| attempts.not_before);
        return Finding {
            state: ServiceState::Failed,
            message: Some(format!("can't be started: {error}; {}", again(now, not_before))),
            since: service.changed_at,
        };
    }
    Finding {
        state: ServiceState::Starting,
        message: memory.waits.get(&service.name).cloned(),
        since: service.changed_at,
    }
}

fn instance(now: UnixMillis, service: &Service, container: &Container, memory: &Memory) -> InstanceCondition {
    let former = is_former(service, container);
    let attempts = if former { None } else { attempts_of(service, container.replica, memory) };
    let not_before = attempts.map_or(now, |attempts| attempts.not_before);
    let restart = service.revisions.get(&container.revision).map_or(Restart::Always, |record| record.spec.restart);
    let (state, message, since) = match &container.status {
        Status::Created => match attempts.and_then(|attempts| attempts.last_error.as_ref()) {
            Some(error) => {
                let message = format!("can't be started: {error}; {}", again(now, not_before));
                (ServiceState::Failed, Some(message), service.changed_at)
            }
            None => (ServiceState::Starting, None, service.changed_at),
        },
        Status::Running { since, health } => match health {
            Health::None | Health::Healthy => (ServiceState::Running, None, *since),
            Health::Starting => {
                (ServiceState::Starting, Some("has not passed its health check yet".to_owned()), *since)
            }
            Health::Unhealthy => (
                ServiceState::Unhealthy,
                Some("its health check fails".to_owned()),
                attempts.and_then(|attempts| attempts.unhealthy.as_ref()).map_or(*since, |(_, since)| *since),
            ),
        },
        Status::Paused => (
            ServiceState::Unhealthy,
            Some("somebody paused its container; `docker unpause` lets it go on".to_owned()),
            service.changed_at,
        ),
        Status::Exited { code, at, out_of_memory } => {
            let failures = attempts.map_or(0, |attempts| attempts.failures);
            let (state, message) = ended(now, restart, *code, *out_of_memory, failures, not_before);
            (state, message, *at)
        }
        Status::Dead => {
            (ServiceState::Failed, Some("the engine can't remove its container".to_owned()), service.changed_at)
        }
    };
    InstanceCondition {
        instance: container.instance.clone(),
        container: container.id.clone(),
        revision: container.revision,
        replica: container.replica,
        state,
        message,
        since,
        started_at: match container.status {
            Status::Running { since, .. } => Some(since),
            _ => None,
        },
        restarts: attempts.map_or(0, |attempts| attempts.restarts),
        exit_code: match container.status {
            Status::Exited { code, .. } => Some(code),
            _ => None,
        },
    }
}

fn ended(
    now: UnixMillis,
    restart: Restart,
    code: i64,
    out_of_memory: bool,
    failures: u32,
    not_before: UnixMillis,
) -> (ServiceState, Option<String>) {
    let how = if out_of_memory {
        "was killed because it used more memory than its limit".to_owned()
    } else {
        format!("ended with exit code {code}")
    };
    match restart {
        Restart::OnFailure { .. } | Restart::Never if code == 0 => (ServiceState::Completed, None),
        Restart::Never => (ServiceState::Failed, Some(format!("{how}, and is not started again"))),
        Restart::OnFailure { max: Some(max) } if failures > max => {
            (ServiceState::Failed, Some(format!("{how}, and was started again {max} times already")))
        }
        Restart::Always | Restart::OnFailure { .. } => {
            (ServiceState::Restarting, Some(format!("{how}; {}", again(now, not_before))))
        }
    }
}

fn again(now: UnixMillis, not_before: UnixMillis) -> String {
    match not_before.since(now).div_ceil(1000) {
        0 => "it is tried again now".to_owned(),
        seconds => format!("it is tried again in {seconds} s"),
    }
}

fn attempts_of<'a>(service: &Service, replica: u32, memory: &'a Memory) -> Option<&'a Attempts> {
    memory
        .instances
        .get(&(service.name.clone(), replica))
        .filter(|attempts| attempts.incarnation == service.incarnation())
}

fn former_revision(service: &Service, containers: &[&Container]) -> Revision {
    containers
        .iter()
        .find(|container| is_former(service, container))
        .map_or(service.current, |container| container.revision)
}

/// The state that a person should hear of first.
fn severity(state: ServiceState) -> u8 {
    match state {
        ServiceState::Completed => 0,
        ServiceState::Running => 1,
        ServiceState::Stopped => 2,
        ServiceState::Starting => 3,
        ServiceState::Unhealthy => 4,
        ServiceState::Restarting => 5,
        ServiceState::Failed => 6,
        ServiceState::Unknown => 7,
    }
}
