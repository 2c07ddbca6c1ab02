//! From a specification to a running container, and back to none.

use std::{collections::HashMap, convert::Infallible, path::Path, time::Duration};

use bollard::{
    models::{
        ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
        MountBindOptionsPropagationEnum, MountType, NetworkCreateRequest, NetworkingConfig, RestartPolicy,
        RestartPolicyNameEnum,
    },
    query_parameters::{
        CreateContainerOptions, KillContainerOptions, ListNetworksOptions, RemoveContainerOptions,
        StopContainerOptions, WaitContainerOptions,
    },
};
use flotilla_api::{StackName, spec::ServiceSpec};
use futures::{StreamExt, TryFutureExt, TryStreamExt};

use super::{
    Error,
    connection::{CALL_LIMIT, Client},
    labels::{self, Identity, Owner},
    values::Told,
};
use crate::{fence::Fence, volumes::layout};

/// Creating and starting unpack layers, mount and set networks up; on a slow disk that takes a while.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Beyond its grace, what a container may need to be killed and cleaned away.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// Of a container's output the engine keeps this much: enough to look back, too little to fill a disk.
const LOG_FILE_MAX: &str = "10m";
const LOG_FILES: &str = "3";

/// Makes a container; its id. Nothing runs yet.
pub(super) async fn create(
    client: &Client,
    owner: &Owner,
    data_dir: &Path,
    identity: &Identity,
    spec: &ServiceSpec,
    told: &Told,
    image: &str,
) -> Result<String, Error> {
    let network = network_of(client, owner, &spec.stack).await?;
    let body = body(owner, network, data_dir, identity.to_labels(), spec, told, image);
    create_from(client, owner.container_name(&identity.instance), body).await
}

pub(super) async fn create_from(client: &Client, name: String, body: ContainerCreateBody) -> Result<String, Error> {
    let options = CreateContainerOptions { name: Some(name), ..Default::default() };
    let created = client.docker().create_container(Some(options), body);
    Ok(client.call("create the container", START_LIMIT, created).await?.id)
}

/// The name that a stack's network has: one that an older version made is used while its containers are there.
pub(super) async fn network_of(client: &Client, owner: &Owner, stack: &StackName) -> Result<String, Error> {
    let mut networks = one_network_each(client, owner).await?;
    Ok(networks.remove(stack.as_str()).unwrap_or_else(|| owner.network_name(stack)))
}

pub(super) async fn start(client: &Client, id: &str) -> Result<(), Error> {
    client.call("start the container", START_LIMIT, client.docker().start_container(id, None)).await
}

/// Stops within `grace`, then removes, with the anonymous volumes that the image declared.
pub(super) async fn stop_and_remove(client: &Client, id: &str, grace: Duration) -> Result<(), Error> {
    let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
    let options = StopContainerOptions { t: Some(seconds), signal: None };
    let stop = client.docker().stop_container(id, Some(options));
    match client.call("stop the container", grace.saturating_add(STOP_MARGIN), stop).await {
        // What can't be stopped nicely is removed by force.
        Ok(()) | Err(Error::Refused { .. } | Error::Timeout { .. }) => remove(client, id).await,
        Err(error) => Err(error),
    }
}

/// Stops within `grace`, as the engine's stop does, what a deadline counts for, and kills it. The engine's own stop ends in a kill
/// of the first process alone; in a container that was frozen meanwhile the others would run on for a moment.
pub(super) async fn stop_guarded(client: &Client, fence: &Fence, id: &str, grace: Duration) -> Result<(), Error> {
    const OPERATION: &str = "stop the container";
    let inspected = match client.call(OPERATION, CALL_LIMIT, client.docker().inspect_container(id, None)).await {
        Ok(inspected) => inspected,
        Err(error) if error.is_absent() => return Ok(()),
        Err(error) => return Err(error),
    };
    let signal = inspected.config.and_then(|config| config.stop_signal).filter(|signal| !signal.is_empty());
    let options = KillContainerOptions { signal: signal.unwrap_or_else(|| "SIGTERM".to_owned()) };
    match client.call(OPERATION, CALL_LIMIT, client.docker().kill_container(id, Some(options))).await {
        Ok(()) => {
            let options = WaitContainerOptions { condition: "not-running".to_owned() };
            let mut ended = client.docker().wait_container(id, Some(options));
            let mut frozen = fence.watch_frozen();
            tokio::select! {
                _ = ended.next() => {}
                _ = frozen.wait_for(|frozen| frozen.contains(id)) => {}
                () = tokio::time::sleep(grace) => {}
            }
        }
        // It does not run, or is paused, or the engine is slow: it is killed then.
        Err(Error::Refused { .. } | Error::Timeout { .. }) => {}
        Err(error) => return Err(error),
    }
    if let Err(error) = fence.kill(id).await {
        tracing::error!(container = id, %error, "it is killed by the engine");
    }
    Ok(())
}

/// Kills if need be. That it is gone already is as good.
pub(super) async fn remove(client: &Client, id: &str) -> Result<(), Error> {
    let options = RemoveContainerOptions { v: true, force: true, link: false };
    match client.call("remove the container", START_LIMIT, client.docker().remove_container(id, Some(options))).await {
        Err(error) if error.is_absent() => Ok(()),
        Err(error) if error.is_conflict() => gone(client, id).await,
        other => other,
    }
}

/// Somebody else removes it already. A volume has one container at a time, so it matters when that is done.
async fn gone(client: &Client, id: &str) -> Result<(), Error> {
    let options = WaitContainerOptions { condition: "removed".to_owned() };
    let wait = client.docker().wait_container(id, Some(options)).map(Ok::<_, Infallible>).try_collect::<Vec<_>>();
    let outcome = client.call("remove the container", STOP_MARGIN, wait.map_err(|never| match never {})).await?;
    match outcome.into_iter().find_map(Result::err).map(|error| client.error("remove the container", error)) {
        Some(error) if error.is_unavailable() => Err(error),
        _ => Ok(()),
    }
}

pub(super) async fn create_network(client: &Client, owner: &Owner, stack: &StackName) -> Result<(), Error> {
    let mut labels = owner.labels();
    labels.insert(labels::STACK.to_owned(), stack.to_string());
    let request = NetworkCreateRequest {
        name: owner.network_name(stack),
        driver: Some("bridge".to_owned()),
        labels: Some(labels),
        ..Default::default()
    };
    match client.call("create the stack's network", CALL_LIMIT, client.docker().create_network(request)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) async fn remove_network(client: &Client, owner: &Owner, stack: &StackName) -> Result<(), Error> {
    for (id, _) in networks(client, owner).await?.remove(stack.as_str()).unwrap_or_default() {
        remove_network_by_id(client, &id).await?;
    }
    Ok(())
}

/// The engine lets two networks have one name: a daemon that was killed while it asked for one, and its successor, can get one
/// each, and from then on the name is ambiguous. Those that no container uses go; the engine keeps the one that is in use.
/// What is left, by stack: its name.
pub(super) async fn one_network_each(client: &Client, owner: &Owner) -> Result<HashMap<String, String>, Error> {
    let mut left = HashMap::new();
    for (stack, mut found) in networks(client, owner).await? {
        let mut index = 0;
        while found.len() > 1 && index < found.len() {
            match remove_network_by_id(client, &found[index].0).await {
                Ok(()) => drop(found.remove(index)),
                Err(_) => index += 1,
            }
        }
        left.extend(found.pop().map(|(_, name)| (stack, name)));
    }
    Ok(left)
}

/// Id and name of each stack's networks; there should be one each.
async fn networks(client: &Client, owner: &Owner) -> Result<HashMap<String, Vec<(String, String)>>, Error> {
    let options = ListNetworksOptions { filters: Some(owner.filter()) };
    let found = client.call("list its networks", CALL_LIMIT, client.docker().list_networks(Some(options))).await?;
    let mut by_stack = HashMap::<_, Vec<_>>::new();
    for network in found {
        let labels = network.labels.filter(|labels| owner.owns(labels));
        let stack = labels.and_then(|mut labels| labels.remove(labels::STACK));
        if let (Some(stack), Some(id), Some(name)) = (stack, network.id, network.name) {
            by_stack.entry(stack).or_default().push((id, name));
        }
    }
    Ok(by_stack)
}

async fn remove_network_by_id(client: &Client, id: &str) -> Result<(), Error> {
    match client.call("remove the stack's network", CALL_LIMIT, client.docker().remove_network(id)).await {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}

/// What the engine is asked for. `ours` are the labels by which it is found again.
pub(super) fn body(
    owner: &Owner,
    network: String,
    data_dir: &Path,
    ours: HashMap<String, String>,
    spec: &ServiceSpec,
    told: &Told,
    image: &str,
) -> ContainerCreateBody {
    let mut labels: HashMap<_, _> = spec.labels.clone().into_iter().collect();
    // Ours last: a compose file can't take a container from its service.
    labels.extend(ours);
    labels.extend(owner.labels());
    let endpoint = EndpointSettings { aliases: Some(vec![spec.name.to_string()]), ..Default::default() };
    ContainerCreateBody {
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        env: Some(
            spec.environment
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .chain(told.variables.iter().cloned())
                .collect(),
        ),
        cmd: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        healthcheck: spec.health.as_ref().map(|health| HealthConfig {
            test: Some(health.test.clone()),
            interval: Some(nanos(health.interval_ms)),
            timeout: Some(nanos(health.timeout_ms)),
            start_period: Some(nanos(health.start_period_ms)),
            retries: Some(i64::from(health.retries)),
            start_interval: None,
        }),
        image: Some(image.to_owned()),
        working_dir: spec.working_dir.clone(),
        labels: Some(labels),
        stop_signal: spec.stop_signal.clone(),
        host_config: Some(host_config(data_dir, spec, told, network.clone())),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(network, endpoint)])) }),
        ..Default::default()
    }
}

fn host_config(data_dir: &Path, spec: &ServiceSpec, told: &Told, network: String) -> HostConfig {
    let memory = spec.resources.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    HostConfig {
        network_mode: Some(network),
        // The reconciler starts containers, with its own back-off; the engine never does.
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        nano_cpus: spec.resources.cpu_millis.map(|millis| i64::try_from(millis * 1_000_000).unwrap_or(i64::MAX)),
        memory,
        // Equal to `memory`: the limit holds for memory and swap together, so that no service can grind the disk.
        memory_swap: memory,
        mounts: Some(
            spec.volumes
                .iter()
                .map(|mount| {
                    let source = layout::directory(data_dir, &spec.name, &mount.volume);
                    bind(&source, &mount.target, mount.read_only)
                })
                .chain(told.mounts.iter().cloned())
                .collect(),
        ),
        tmpfs: Some(
            spec.tmpfs
                .iter()
                .map(|tmpfs| {
                    let (path, options) = tmpfs.split_once(':').unwrap_or((tmpfs, ""));
                    (path.to_owned(), options.to_owned())
                })
                .collect(),
        ),
        cap_add: Some(spec.cap_add.iter().cloned().collect()),
        cap_drop: Some(spec.cap_drop.iter().cloned().collect()),
        init: Some(spec.init),
        readonly_rootfs: Some(spec.read_only),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), LOG_FILE_MAX.to_owned()),
                ("max-file".to_owned(), LOG_FILES.to_owned()),
            ])),
        }),
        ..Default::default()
    }
}

/// A mount of a directory that must exist: unlike the older `binds`, this form never makes one where a path is wrong.
pub(super) fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn nanos(millis: u64) -> i64 {
    i64::try_from(millis.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
}
