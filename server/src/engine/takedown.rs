//! Taking a whole cluster's containers and networks away, as a demo does when it ends.

use std::time::Duration;

use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions};
use futures::{StreamExt, stream};

use super::{
    Error,
    connection::{CALL_LIMIT, Client},
    container, labels, scratch,
};

/// Containers that are stopped at once.
const STOP_AT_ONCE: usize = 8;

/// What a container gets to end by itself. Somebody waits at a terminal.
const GRACE: Duration = Duration::from_secs(2);

/// Goes on after a failure, and reports the first.
pub(super) async fn remove_all(client: &Client, cluster: &str) -> Result<(), Error> {
    let docker = client.docker();
    let options = ListContainersOptions {
        all: true,
        filters: Some(labels::filter(labels::CLUSTER, cluster)),
        ..Default::default()
    };
    let containers = client.call("list its containers", CALL_LIMIT, docker.list_containers(Some(options))).await?;
    let removed: Vec<Result<(), Error>> = stream::iter(containers.into_iter().filter_map(|container| container.id))
        .map(|id| async move { container::stop_and_remove(client, &id, GRACE).await })
        .buffer_unordered(STOP_AT_ONCE)
        .collect()
        .await;
    let swept = scratch::sweep(client, cluster).await;

    let options = ListNetworksOptions { filters: Some(labels::filter(labels::CLUSTER, cluster)) };
    let networks = client.call("list its networks", CALL_LIMIT, docker.list_networks(Some(options))).await?;
    let mut outcome = removed.into_iter().collect::<Result<(), Error>>().and(swept);
    for name in networks.into_iter().filter_map(|network| network.name) {
        match client.call("remove the stack's network", CALL_LIMIT, docker.remove_network(&name)).await {
            Err(error) if !error.is_absent() => outcome = outcome.and(Err(error)),
            _ => {}
        }
    }
    outcome
}
