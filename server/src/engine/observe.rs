//! What the engine shows: containers and networks with this cluster's labels, and the events that tell when to look.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use bollard::{
    models::{
        ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary, EventMessage,
        HealthStatusEnum,
    },
    query_parameters::{EventsOptions, ListContainersOptions, ListNetworksOptions},
};
use flotilla_api::{StackName, UnixMillis};
use flotilla_core::reconcile::{Container, Health, Observed, Status};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Error,
    connection::{CALL_LIMIT, Client},
    labels::{self, Identity, Owner},
};
use crate::{clock, fence::Fence};

/// Containers that are inspected at once.
const INSPECT_AT_ONCE: usize = 4;

/// Reads the engine, and remembers what can't have changed since: a container is inspected again only when an event
/// named it, when its state in the list differs, or when everything is due.
#[derive(Debug, Default)]
pub(super) struct Observer {
    known: HashMap<String, (String, Container)>,
    dirty: HashSet<String>,
    all_dirty: bool,
}

impl Observer {
    pub(super) fn doubt_all(&mut self) {
        self.all_dirty = true;
    }

    pub(super) fn doubt(&mut self, container: &str) {
        self.dirty.insert(container.to_owned());
    }

    pub(super) async fn observe(&mut self, client: &Client, owner: &Owner, fence: &Fence) -> Result<Observed, Error> {
        let at = clock::now();
        let docker = client.docker();
        let listed = ListContainersOptions { all: true, filters: Some(owner.filter()), ..Default::default() };
        let summaries = client.call("list its containers", CALL_LIMIT, docker.list_containers(Some(listed))).await?;
        let networks = self.networks(client, owner).await?;

        let mut found = HashMap::with_capacity(summaries.len());
        let mut unsure = Vec::new();
        for summary in summaries {
            let Some((id, state, identity)) = read_summary(summary, owner) else { continue };
            match self.known.remove(&id) {
                Some((before, container)) if before == state && !self.all_dirty && !self.dirty.contains(&id) => {
                    found.insert(id, (state, container));
                }
                _ => unsure.push((id, state, identity)),
            }
        }
        let inspected: Vec<_> = stream::iter(unsure)
            .map(|(id, state, identity)| async move {
                let answer = client.call("inspect a container", CALL_LIMIT, docker.inspect_container(&id, None)).await;
                match answer {
                    Ok(inspected) => {
                        if let Some(pid) = inspected.state.as_ref().and_then(|state| state.pid) {
                            fence.note(&id, pid);
                        }
                        let container = read_container(&id, identity, &inspected, owner, fence.thawed_at(&id));
                        Ok(Some((id, (state, container))))
                    }
                    // It went between the list and the question; its event is on the way.
                    Err(error) if error.is_absent() => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(INSPECT_AT_ONCE)
            .try_collect()
            .await?;
        found.extend(inspected.into_iter().flatten());

        self.known = found;
        self.dirty.clear();
        self.all_dirty = false;
        let mut containers: Vec<_> = self.known.values().map(|(_, container)| container.clone()).collect();
        stand_still(&mut containers, fence);
        containers.sort_by(|a, b| a.instance.cmp(&b.instance).then_with(|| a.id.cmp(&b.id)));
        Ok(Observed { at, containers, networks })
    }

    async fn networks(&self, client: &Client, owner: &Owner) -> Result<Vec<StackName>, Error> {
        let options = ListNetworksOptions { filters: Some(owner.filter()) };
        let networks =
            client.call("list its networks", CALL_LIMIT, client.docker().list_networks(Some(options))).await?;
        let ours = networks.into_iter().filter_map(|network| network.labels.filter(|labels| owner.owns(labels)));
        let mut stacks: Vec<StackName> = ours.filter_map(|labels| labels.get(labels::STACK)?.parse().ok()).collect();
        stacks.sort();
        stacks.dedup();
        Ok(stacks)
    }
}

fn read_summary(summary: ContainerSummary, owner: &Owner) -> Option<(String, String, Identity)> {
    let labels = summary.labels.filter(|labels| owner.owns(labels))?;
    let name = summary.names.as_ref().and_then(|names| names.first()).map_or("", |name| name.trim_start_matches('/'));
    let identity = Identity::read(owner, &labels, name)?;
    Some((summary.id?, summary.state.map(|state| state.to_string()).unwrap_or_default(), identity))
}

fn read_container(
    id: &str,
    identity: Identity,
    inspected: &ContainerInspectResponse,
    owner: &Owner,
    thawed_at: Option<UnixMillis>,
) -> Container {
    let status = read_status(inspected, thawed_at);
    let address = match status {
        Status::Running { .. } => [owner.network_name(&identity.stack), owner.former_network_name(&identity.stack)]
            .iter()
            .find_map(|network| read_address(inspected, network)),
        _ => None,
    };
    Container {
        id: id.to_owned(),
        instance: identity.instance,
        service: identity.service,
        stack: identity.stack,
        revision: identity.revision,
        replica: identity.replica,
        restarts: identity.restarts,
        epoch: identity.epoch,
        status,
        address,
        closed_port: None,
    }
}

fn read_status(inspected: &ContainerInspectResponse, thawed_at: Option<UnixMillis>) -> Status {
    let Some(state) = &inspected.state else { return Status::Dead };
    match state.status {
        Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::RESTARTING) => Status::Running {
            since: read_time(state.started_at.as_deref()),
            health: match state.health.as_ref().and_then(|health| health.status) {
                Some(HealthStatusEnum::STARTING) => Health::Starting,
                // Checks fail while it is frozen; the first one after that tells.
                Some(HealthStatusEnum::UNHEALTHY) if thawed_at >= last_check(state) => Health::Starting,
                Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
                Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
                _ => Health::None,
            },
        },
        Some(ContainerStateStatusEnum::CREATED) => Status::Created,
        Some(ContainerStateStatusEnum::PAUSED) => Status::Paused,
        Some(ContainerStateStatusEnum::EXITED) => Status::Exited {
            code: state.exit_code.unwrap_or_default(),
            at: read_time(state.finished_at.as_deref()),
            out_of_memory: state.oom_killed.unwrap_or_default(),
        },
        _ => Status::Dead,
    }
}

/// When the engine began to look at its health last.
fn last_check(state: &ContainerState) -> Option<UnixMillis> {
    let checks = state.health.as_ref()?.log.as_ref()?;
    checks.iter().map(|check| read_time(check.start.as_deref())).max().or(Some(UnixMillis(0)))
}

/// What the fence froze runs by the engine's word, which does not know of it.
fn stand_still(containers: &mut [Container], fence: &Fence) {
    let running: Vec<&str> = containers
        .iter()
        .filter(|container| matches!(container.status, Status::Running { .. }))
        .map(|container| container.id.as_str())
        .collect();
    let all: BTreeSet<&str> = containers.iter().map(|container| container.id.as_str()).collect();
    let frozen = fence.observe(&running, &all);
    for container in containers.iter_mut().filter(|container| frozen.contains(&container.id)) {
        container.status = Status::Paused;
    }
}

fn read_address(inspected: &ContainerInspectResponse, network: &str) -> Option<IpAddr> {
    let networks = inspected.network_settings.as_ref()?.networks.as_ref()?;
    networks.get(network)?.ip_address.as_deref()?.parse().ok()
}

/// The engine writes times as RFC 3339; a time that is missing or from before 1970 (`0001-01-01`: never) is zero.
fn read_time(text: Option<&str>) -> UnixMillis {
    let nanos =
        text.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()).map(OffsetDateTime::unix_timestamp_nanos);
    UnixMillis(nanos.and_then(|nanos| u64::try_from(nanos / 1_000_000).ok()).unwrap_or_default())
}

/// Events of this cluster's containers that change what [`Observer`] would see. Health checks alone (`exec_*`) would wake
/// an idle node all the time, so the engine is asked to leave them out.
/// Those of other nodes are passed over, too.
pub(super) fn events(client: &Client, owner: &Owner) -> impl Stream<Item = Result<EventMessage, Error>> + use<> {
    const KINDS: [&str; 11] =
        ["create", "start", "die", "destroy", "pause", "unpause", "oom", "health_status", "rename", "update", "kill"];
    let mut filters = owner.filter();
    let owner = owner.clone();
    filters.insert("type".to_owned(), vec!["container".to_owned()]);
    filters.insert("event".to_owned(), KINDS.map(str::to_owned).to_vec());
    let client = client.clone();
    client
        .docker()
        .events(Some(EventsOptions { filters: Some(filters), ..Default::default() }))
        .filter(move |event| std::future::ready(event.as_ref().map_or(true, |event| is_ours(event, &owner))))
        .map(move |event| event.map_err(|error| client.error("report its events", error)))
}

/// The engine tells a container's labels with each event.
fn is_ours(event: &EventMessage, owner: &Owner) -> bool {
    event.actor.as_ref().and_then(|actor| actor.attributes.as_ref()).is_none_or(|labels| owner.owns(labels))
}

/// Which container an event is about.
pub(super) fn container_of(event: &EventMessage) -> Option<&str> {
    event.actor.as_ref()?.id.as_deref()
}

#[cfg(test)]
mod tests {
    use bollard::models::{EndpointSettings, Health as DockerHealth, HealthcheckResult, NetworkSettings};

    use super::*;

    fn inspected(state: ContainerState) -> ContainerInspectResponse {
        ContainerInspectResponse { state: Some(state), ..Default::default() }
    }

    #[test]
    fn an_ended_container_tells_its_code_and_time() {
        let status = read_status(
            &inspected(ContainerState {
                status: Some(ContainerStateStatusEnum::EXITED),
                exit_code: Some(137),
                oom_killed: Some(true),
                finished_at: Some("1970-01-01T00:00:01.5Z".into()),
                ..Default::default()
            }),
            None,
        );
        assert_eq!(status, Status::Exited { code: 137, at: UnixMillis(1500), out_of_memory: true });
    }

    #[test]
    fn health_that_was_seen_in_the_frost_says_nothing_after_the_thaw() {
        let check = |start: &str| HealthcheckResult { start: Some(start.into()), ..Default::default() };
        let state = inspected(ContainerState {
            status: Some(ContainerStateStatusEnum::RUNNING),
            health: Some(DockerHealth {
                status: Some(HealthStatusEnum::UNHEALTHY),
                log: Some(vec![check("1970-01-01T00:00:01Z"), check("1970-01-01T00:00:02Z")]),
                ..Default::default()
            }),
            ..Default::default()
        });
        for (thawed_at, health) in [
            (None, Health::Unhealthy),
            (Some(UnixMillis(1_999)), Health::Unhealthy),
            (Some(UnixMillis(2_000)), Health::Starting),
        ] {
            assert_eq!(read_status(&state, thawed_at), Status::Running { since: UnixMillis(0), health });
        }
    }

    #[test]
    fn never_is_zero() {
        assert_eq!(read_time(Some("0001-01-01T00:00:00Z")), UnixMillis(0));
        assert_eq!(read_time(None), UnixMillis(0));
        assert_eq!(read_time(Some("2026-11-23T22:12:24.123456789+01:00")), UnixMillis(1_795_468_344_123));
    }

    #[test]
    fn the_address_is_that_on_the_stacks_own_network() {
        let endpoint = |address: &str| EndpointSettings { ip_address: Some(address.into()), ..Default::default() };
        let inspected = ContainerInspectResponse {
            network_settings: Some(NetworkSettings {
                networks: Some(HashMap::from([
                    ("bridge".to_owned(), endpoint("172.17.0.2")),
                    ("ours".to_owned(), endpoint("172.18.0.2")),
                ])),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(read_address(&inspected, "ours"), Some("172.18.0.2".parse().unwrap()));
        assert_eq!(read_address(&inspected, "theirs"), None);
    }
}
