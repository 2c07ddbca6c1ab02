//! Taking away all that a cluster has on this machine's engine, as a demo does when it ends. No node runs then.

use std::{path::Path, sync::Arc, time::Duration};

use bollard::query_parameters::{KillContainerOptions, ListContainersOptions, ListNetworksOptions};
use flotilla_api::NodeId;
use futures::{StreamExt, stream};

use super::{
    Error,
    connection::{CALL_LIMIT, Client, DockerHost},
    container, image,
    labels::Owner,
    scratch, values, volume,
};
use crate::fence::{self, Freezer, Frost};

/// Containers that are stopped at once.
const STOP_AT_ONCE: usize = 8;

/// What a container gets to end by itself. Somebody waits at a terminal.
const GRACE: Duration = Duration::from_secs(2);

/// Does the engine answer? `docker_host` is as in [`super::EngineConfig`].
///
/// # Errors
/// Says what is wrong and what to do.
pub async fn answers(docker_host: Option<&str>) -> Result<(), Error> {
    Client::connect(&Arc::new(DockerHost::find(docker_host)?)).await.map(drop)
}

/// Removes all containers and networks of a cluster, or of one of its nodes, the data of the volumes below `data_dir`, and these
/// images, of which those that others use stay. The nodes must not run: they would start what is removed here.
///
/// # Errors
/// The engine does not answer, or something can't be removed; the rest is gone then.
pub async fn take_down(
    docker_host: Option<&str>,
    cluster: &str,
    node: Option<&NodeId>,
    data_dir: &Path,
    images: &[String],
) -> Result<(), Error> {
    // It would freeze what is about to end.
    fence::end_guard(data_dir).await;
    let (client, _) = Client::connect(&Arc::new(DockerHost::find(docker_host)?)).await?;
    let owner = Owner { cluster: cluster.to_owned(), node: node.cloned(), unlabelled: false };
    let mut outcome = remove_all(&client, &owner).await;
    let volumes = volume::delete_all(&client, &owner, data_dir).await;
    outcome = outcome.and(volumes);
    values::take_away(cluster, node);
    for reference in images {
        match image::remove(&client, reference).await {
            // Another cluster's container has it: it is theirs now.
            Err(Error::Refused { status: Some(404 | 409), .. }) | Ok(()) => {}
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

/// Goes on after a failure, and reports the first.
async fn remove_all(client: &Client, owner: &Owner) -> Result<(), Error> {
    let docker = client.docker();
    let removed: Vec<Result<(), Error>> = stream::iter(containers(client, owner).await?)
        .map(|id| async move {
            // What is frozen neither ends nor may run once more.
            match kill_frozen(&id).await {
                true => container::remove(client, &id).await,
                false => container::stop_and_remove(client, &id, GRACE).await,
            }
        })
        .buffer_unordered(STOP_AT_ONCE)
        .collect()
        .await;
    let swept = scratch::sweep(client, owner).await;

    let options = ListNetworksOptions { filters: Some(owner.filter()) };
    let networks = client.call("list its networks", CALL_LIMIT, docker.list_networks(Some(options))).await?;
    let networks =
        networks.into_iter().filter(|network| network.labels.as_ref().is_some_and(|labels| owner.owns(labels)));
    let mut outcome = removed.into_iter().collect::<Result<(), Error>>().and(swept);
    for id in networks.filter_map(|network| network.id) {
        match client.call("remove the stack's network", CALL_LIMIT, docker.remove_network(&id)).await {
            Err(error) if !error.is_absent() => outcome = outcome.and(Err(error)),
            _ => {}
        }
    }
    outcome
}

async fn kill_frozen(id: &str) -> bool {
    let id = id.to_owned();
    let killed = tokio::task::spawn_blocking(move || {
        let freezer = Freezer::detect();
        freezer.search(&id);
        matches!(freezer.frost(&id), Ok(Frost::Freezing | Frost::Frozen)) && freezer.kill(&id).is_ok()
    });
    killed.await.unwrap_or(false)
}

/// Ends all containers of a node within milliseconds and without a word to them, as when its machine loses power. They are there
/// still, ended.
///
/// # Errors
/// The engine does not answer.
pub async fn pull_the_plug(docker_host: Option<&str>, cluster: &str, node: &NodeId) -> Result<(), Error> {
    let (client, _) = Client::connect(&Arc::new(DockerHost::find(docker_host)?)).await?;
    let owner = Owner { cluster: cluster.to_owned(), node: Some(node.clone()), unlabelled: false };
    let ids = containers(&client, &owner).await?;
    let all = ids.clone();
    let frozen = tokio::task::spawn_blocking(move || {
        let freezer = Freezer::detect();
        // All at one moment; then what is frozen is killed.
        drop(freezer.freeze(&all));
        all.iter()
            .filter_map(|id| freezer.kill(id).err())
            .for_each(|error| tracing::debug!(%error, "left to the engine"));
    });
    if let Err(panic) = frozen.await {
        tracing::error!(%panic, "could not freeze the containers");
    }
    for id in ids {
        let options = KillContainerOptions { signal: "SIGKILL".to_owned() };
        match client.call("kill a container", CALL_LIMIT, client.docker().kill_container(&id, Some(options))).await {
            // Dead already, or gone.
            Err(Error::Refused { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    // What was in its memory is gone.
    values::take_away(cluster, Some(node));
    Ok(())
}

async fn containers(client: &Client, owner: &Owner) -> Result<Vec<String>, Error> {
    let options = ListContainersOptions { all: true, filters: Some(owner.filter()), ..Default::default() };
    let listed = client.call("list its containers", CALL_LIMIT, client.docker().list_containers(Some(options))).await?;
    let ours =
        listed.into_iter().filter(|container| container.labels.as_ref().is_some_and(|labels| owner.owns(labels)));
    Ok(ours.filter_map(|container| container.id).collect())
}
