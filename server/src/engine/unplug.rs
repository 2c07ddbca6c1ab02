//! The end of a machine's containers when its plug is pulled, as a demo does it.

use std::sync::Arc;

use bollard::query_parameters::{KillContainerOptions, ListContainersOptions};
use flotilla_api::NodeId;
use futures::future::join_all;

use super::{
    Error,
    connection::{CALL_LIMIT, Client, DockerHost},
    labels::Owner,
};

/// Kills all containers of one node of a cluster at once. They stay, dead, as after a power loss.
///
/// # Errors
/// The engine does not answer, or a container can't be killed; the others are dead then.
pub async fn kill_all(docker_host: Option<&str>, cluster: &str, node: &NodeId) -> Result<(), Error> {
    let (client, _) = Client::connect(&Arc::new(DockerHost::find(docker_host)?)).await?;
    let owner = Owner { cluster: cluster.to_owned(), node: Some(node.clone()), unlabelled: false };
    let (containers, scratch) = tokio::join!(running(&client, &owner, false), running(&client, &owner, true));
    let killed = join_all(containers?.into_iter().chain(scratch?).map(|id| {
        let client = &client;
        async move {
            let options = KillContainerOptions { signal: "SIGKILL".to_owned() };
            let kill = client.docker().kill_container(&id, Some(options));
            match client.call("kill a container", CALL_LIMIT, kill).await {
                // It has ended by itself meanwhile.
                Err(Error::Refused { status: Some(404 | 409), .. }) => Ok(()),
                killed => killed,
            }
        }
    }));
    killed.await.into_iter().collect()
}

async fn running(client: &Client, owner: &Owner, scratch: bool) -> Result<Vec<String>, Error> {
    let filters = if scratch { owner.scratch_filter() } else { owner.filter() };
    // Without `all`: those that run.
    let options = ListContainersOptions { filters: Some(filters), ..Default::default() };
    let listed = client.call("list its containers", CALL_LIMIT, client.docker().list_containers(Some(options))).await?;
    let ours = listed.into_iter().filter(|one| one.labels.as_ref().is_some_and(|labels| owner.owns(labels)));
    Ok(ours.filter_map(|container| container.id).collect())
}
