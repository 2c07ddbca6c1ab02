//! What a person is told about a service.

use std::collections::BTreeMap;

use flotilla_api::{InstanceId, NodeId, Revision, UnixMillis, rest::ServiceState, spec::Restart};

use super::{Attempts, Container, Health, Memory, OBSERVATION_STALE_MS, OPENING_PATIENCE_MS, Observed, Status};
use crate::state::{Placement, Service};

/// What one machine shows.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The newest observation, if there was any.
    pub observed: Option<&'a Observed>,
    pub memory: &'a Memory,
    /// When that was so, by the clock of whoever looks.
    pub at: UnixMillis,
}

/// What is known of all machines.
pub type Views<'a> = BTreeMap<&'a NodeId, View<'a>>;

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
    pub machine: NodeId,
    pub epoch: u64,
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

/// A container, the machine that it is on, and what that machine remembers.
#[derive(Clone, Copy, Debug)]
struct Sighting<'a> {
    machine: &'a NodeId,
    view: View<'a>,
    container: &'a Container,
}

impl View<'_> {
    fn is_stale(&self, now: UnixMillis) -> bool {
        self.observed.is_none() || now.since(self.at) > OBSERVATION_STALE_MS
    }
}

/// How a service does, by what all machines show.
pub fn condition(now: UnixMillis, service: &Service, views: &Views<'_>) -> Condition {
    let sightings = sightings(service, views);
    let mut instances: Vec<InstanceCondition> =
        sightings.iter().map(|sighting| instance(now, service, sighting)).collect();
    for (instance, sighting) in instances.iter_mut().zip(&sightings) {
        if sighting.view.is_stale(now) {
            instance.state = ServiceState::Unknown;
        }
    }
    if service.replicas == 0 {
        let message = (!instances.is_empty()).then(|| "its instances are being stopped".to_owned());
        return Condition { state: ServiceState::Stopped, message, since: service.changed_at, instances };
    }
    let slots = (1..=service.replicas).map(|replica| slot(now, service, replica, &sightings, &instances, views));
    let Some(worst) = slots.max_by_key(|slot| severity(slot.state)) else {
        return Condition { state: ServiceState::Stopped, message: None, since: service.changed_at, instances };
    };
    let mut message = worst.message;
    if severity(worst.state) > severity(ServiceState::Starting)
        && worst.state != ServiceState::Unknown
        && let Some(former) =
            sightings.iter().find(|sighting| is_former(service, sighting) && sighting.container.is_running())
    {
        let why = message.map_or_else(String::new, |message| format!("{message}; "));
        message = Some(format!("{why}revision {} still answers", former.container.revision));
    }
    Condition { state: worst.state, message, since: worst.since, instances }
}

/// The containers that requests for the service go to, all equally good, with their machines: those that are ready before those
/// that only run, and among equals those that shall run before former ones that have not been replaced yet. Empty if none can
/// take them.
pub fn serving<'a>(now: UnixMillis, service: &Service, views: &Views<'a>) -> Vec<(&'a NodeId, &'a Container)> {
    let rank = |sighting: &Sighting<'_>| {
        let container = sighting.container;
        let unhealthy = matches!(container.status, Status::Running { health: Health::Unhealthy, .. });
        (!container.is_ready(now), unhealthy || container.closed_port.is_some(), is_former(service, sighting))
    };
    let mut sightings = sightings(service, views);
    sightings.retain(|sighting| matches!(sighting.container.status, Status::Running { .. }));
    let best = sightings.iter().map(rank).min();
    sightings.retain(|sighting| Some(rank(sighting)) == best);
    sightings.into_iter().map(|sighting| (sighting.machine, sighting.container)).collect()
}

/// Those that shall run first, by replica.
fn sightings<'a>(service: &Service, views: &Views<'a>) -> Vec<Sighting<'a>> {
    let mut sightings: Vec<Sighting<'a>> = views
        .iter()
        .flat_map(|(machine, view)| {
            let containers = view.observed.into_iter().flat_map(|observed| &observed.containers);
            containers.map(|container| Sighting { machine, view: *view, container })
        })
        .filter(|sighting| sighting.container.service == service.name)
        .collect();
    sightings.sort_by_key(|sighting| {
        let container = sighting.container;
        (is_former(service, sighting), container.replica, container.epoch, container.id.as_str())
    });
    sightings
}

fn is_former(service: &Service, sighting: &Sighting<'_>) -> bool {
    !wanted(service, sighting).is_some_and(|placement| {
        service.is_current(placement) && placement.incarnation() == sighting.container.incarnation()
    })
}

/// The placement that the container's machine works for, if any does.
fn wanted<'a>(service: &'a Service, sighting: &Sighting<'_>) -> Option<&'a Placement> {
    service.placements.iter().find(|placement| {
        placement.machine == *sighting.machine
            && placement.replica == sighting.container.replica
            && placement.is_wanted()
    })
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
    sightings: &[Sighting<'_>],
    instances: &[InstanceCondition],
    views: &Views<'_>,
) -> Finding {
    let starting = |message| Finding { state: ServiceState::Starting, message, since: service.changed_at };
    // The newest, where an older one goes on until it is ready.
    let placement =
        service.placements.iter().rev().find(|placement| placement.replica == replica && placement.is_wanted());
    let Some(placement) = placement else {
        return starting(Some("waits for a machine to be placed on".to_owned()));
    };
    let view = views.get(&placement.machine).filter(|view| !view.is_stale(now));
    let Some(view) = view else {
        let since = views.get(&placement.machine).map_or(service.changed_at, |view| view.at);
        let message = Some("its machine, or the container engine there, does not answer, so its state is not known");
        return Finding { state: ServiceState::Unknown, message: message.map(str::to_owned), since };
    };
    let of_replica = |sighting: &Sighting<'_>| sighting.container.replica == replica;
    let former = sightings
        .iter()
        .find(|sighting| of_replica(sighting) && is_former(service, sighting) && sighting.container.is_running());
    let current = sightings.iter().zip(instances).find(|(sighting, _)| {
        of_replica(sighting)
            && *sighting.machine == placement.machine
            && sighting.container.incarnation() == placement.incarnation()
            && service.is_current(placement)
    });
    if let Some((sighting, instance)) = current {
        // While the former instance still answers, the change is not done.
        if let Some(former) = former
            && instance.state == ServiceState::Running
            && !sighting.container.is_ready(now)
        {
            let message = Some(format!("replaces revision {} in a moment", former.container.revision));
            return Finding { state: ServiceState::Starting, message, since: instance.since };
        }
        return Finding { state: instance.state, message: instance.message.clone(), since: instance.since };
    }
    let attempts = attempts_of(service, placement, view.memory);
    if let Some(error) = attempts.and_then(|attempts| attempts.last_error.as_ref()) {
        let not_before = attempts.map_or(now, |attempts| attempts.not_before);
        return Finding {
            state: ServiceState::Failed,
            message: Some(format!("can't be started: {error}; {}", again(now, not_before))),
            since: service.changed_at,
        };
    }
    starting(view.memory.waits.get(&service.name).cloned())
}

fn instance(now: UnixMillis, service: &Service, sighting: &Sighting<'_>) -> InstanceCondition {
    let container = sighting.container;
    let placement = wanted(service, sighting).filter(|placement| placement.incarnation() == container.incarnation());
    let attempts = placement.and_then(|placement| attempts_of(service, placement, sighting.view.memory));
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
            Health::None | Health::Healthy => match container.closed_port {
                None => (ServiceState::Running, None, *since),
                Some(port) if container.is_opening(*since, now) => {
                    (ServiceState::Starting, Some(format!("nothing listens on port {port} yet")), *since)
                }
                Some(port) => {
                    let message = format!(
                        "nothing listens on port {port}; let the application listen there on all addresses (0.0.0.0), or \
                         name its port in the compose file"
                    );
                    (ServiceState::Unhealthy, Some(message), since.plus(OPENING_PATIENCE_MS))
                }
            },
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
            Some("it is frozen: its machine has no lease, or somebody paused its container".to_owned()),
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
        machine: sighting.machine.clone(),
        epoch: container.epoch,
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

fn attempts_of<'a>(service: &Service, placement: &Placement, memory: &'a Memory) -> Option<&'a Attempts> {
    memory
        .instances
        .get(&(service.name.clone(), placement.replica))
        .filter(|attempts| attempts.incarnation == placement.incarnation())
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
