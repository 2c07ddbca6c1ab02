//! Several nodes of one cluster on one engine, and what an older version left there.

use std::collections::HashMap;

use bollard::{
    models::{ContainerCreateBody, HostConfig, NetworkCreateRequest},
    query_parameters::CreateContainerOptions,
};
use flotilla::engine::take_down;
use flotilla_core::CommandV1;

use crate::playground::{PATIENCE, Playground, name, only};

#[tokio::test]
async fn nodes_on_one_engine_leave_each_others_containers_alone() {
    let playground = Playground::new().await;
    let other_data = tempfile::tempdir().unwrap();
    let other_node = playground.admit("other");
    playground.deploy("  web: { image: $IMAGE, deploy: { replicas: 2 } }");
    let one = playground.start();
    let other = playground.start_node(other_node.clone(), other_data.path(), None);
    let (first, second) = (only(&one).await, only(&other).await);
    assert_ne!(first.id, second.id);
    assert_eq!(playground.networks().await.len(), 2, "each node has a network of its own");

    // A node that starts again sweeps and adopts only what is its own.
    other.stop().await;
    let other = playground.start_node(other_node.clone(), other_data.path(), None);
    assert_eq!(only(&other).await.id, second.id);
    assert_eq!(only(&one).await.id, first.id);

    other.stop().await;
    one.stop().await;
    take_down(None, &playground.cluster, Some(&other_node), other_data.path(), &[]).await.unwrap();
    assert_eq!(playground.containers().await, std::slice::from_ref(&first.id));
    assert_eq!(playground.networks().await.len(), 1);
    take_down(None, &playground.cluster, None, playground.data.path(), &[]).await.unwrap();
    assert!(playground.containers().await.is_empty() && playground.networks().await.is_empty());
}

#[tokio::test]
async fn what_an_older_version_made_is_adopted_by_the_machine_that_made_the_cluster() {
    let playground = Playground::new().await;
    playground.deploy("  old: { image: $IMAGE, command: [httpd, -f, -p, \"8080\", -h, /etc], ports: [8080] }");
    let cluster = playground.cluster.clone();
    let network = format!("flotilla-{}-test", &cluster[..12]);
    let cluster_label = ("flotilla.cluster".to_owned(), cluster.clone());
    let stack_label = ("flotilla.stack".to_owned(), "test".to_owned());
    let request = NetworkCreateRequest {
        name: network.clone(),
        labels: Some(HashMap::from([cluster_label.clone(), stack_label.clone()])),
        ..Default::default()
    };
    playground.docker.create_network(request).await.unwrap();
    let state = playground.state();
    let placement = &state.services[&name("old")].placements[0];
    let mut labels = HashMap::from([cluster_label, stack_label]);
    for (label, value) in [
        ("service", "old".to_owned()),
        ("revision", placement.revision.to_string()),
        ("replica", placement.replica.to_string()),
        ("restarts", placement.restarts.to_string()),
        ("epoch", placement.epoch.to_string()),
        ("instance", "old-1-1-cafe".to_owned()),
    ] {
        labels.insert(format!("flotilla.{label}"), value);
    }
    let body = ContainerCreateBody {
        image: Some(playground.image.clone()),
        cmd: Some(["httpd", "-f", "-p", "8080", "-h", "/etc"].map(str::to_owned).to_vec()),
        labels: Some(labels),
        host_config: Some(HostConfig { network_mode: Some(network.clone()), ..Default::default() }),
        ..Default::default()
    };
    let old = playground.docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
    playground.docker.start_container(&old, None).await.unwrap();

    let engine = playground.start();
    let adopted = only(&engine).await;
    assert_eq!(adopted.id, old);
    assert!(adopted.address.is_some(), "its address is that on the network that it has");

    // What comes later goes to the same network, so that services of a stack still find each other.
    playground.deploy(
        "  old: { image: $IMAGE, command: [httpd, -f, -p, \"8080\", -h, /etc], ports: [8080] }\n  new: { image: $IMAGE }",
    );
    let new = playground.until_running(&engine, "new").await;
    let networks = playground.inspect(&new.id).await.network_settings.unwrap().networks.unwrap();
    assert_eq!(networks.keys().collect::<Vec<_>>(), [&network]);

    // A machine that joined later sees none of it.
    let other_node = playground.admit("other");
    let other_data = tempfile::tempdir().unwrap();
    let other = playground.start_node(other_node, other_data.path(), None);
    let mut seen = other.watch_observed();
    let seen = tokio::time::timeout(PATIENCE, seen.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(seen.containers.is_empty() && seen.networks.is_empty(), "{seen:?}");
    assert_eq!(playground.until_running(&engine, "old").await.id, old);

    playground.apply(CommandV1::Remove { service: name("old"), volumes: false });
    playground.apply(CommandV1::Remove { service: name("new"), volumes: false });
    let mut observed = engine.watch_observed();
    let empty = observed.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.networks.is_empty()));
    tokio::time::timeout(PATIENCE, empty).await.expect("the former network goes, too").unwrap();
}
