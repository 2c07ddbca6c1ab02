//! Short-lived containers of our own that are no instance of anything: to copy from images, and to do as root what the
//! node may not do itself.

use std::{path::Path, time::Duration};

use bollard::{
    body_full,
    models::{ContainerCreateBody, HostConfig, Mount},
    query_parameters::{
        CreateContainerOptions, CreateImageOptions, ListContainersOptions, RemoveImageOptions, WaitContainerOptions,
    },
};
use bytes::Bytes;
use futures::TryStreamExt;

use super::{
    Error,
    connection::{CALL_LIMIT, Client, one_line},
    container,
    labels::Owner,
};

/// Deleting millions of small files takes minutes.
const DELETE_LIMIT: Duration = Duration::from_secs(10 * 60);

/// The repository of images without any file, each made when it is needed and removed at once.
const EMPTY_IMAGE: &str = "flotilla-empty";

/// A container that was created and may never run. Must be removed; what a crash left is removed by [`sweep`].
#[derive(Debug)]
pub(super) struct Scratch(String);

impl Scratch {
    pub(super) async fn create(client: &Client, owner: &Owner, image: &str, mounts: Vec<Mount>) -> Result<Self, Error> {
        // The engine wants a command even for what never runs.
        let body = ContainerCreateBody { entrypoint: Some(vec!["/flotilla".to_owned()]), ..Default::default() };
        Self::from_body(client, owner, image, mounts, body).await
    }

    async fn from_body(
        client: &Client,
        owner: &Owner,
        image: &str,
        mounts: Vec<Mount>,
        body: ContainerCreateBody,
    ) -> Result<Self, Error> {
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            labels: Some(owner.scratch_labels()),
            host_config: Some(HostConfig {
                network_mode: Some("none".to_owned()),
                mounts: Some(mounts),
                ..Default::default()
            }),
            ..body
        };
        let created = client.docker().create_container(None::<CreateContainerOptions>, body);
        Ok(Self(client.call("create a container", CALL_LIMIT, created).await?.id))
    }

    pub(super) fn id(&self) -> &str {
        &self.0
    }

    pub(super) async fn remove(self, client: &Client) {
        if let Err(error) = container::remove(client, &self.0).await {
            tracing::warn!(container = %self.0, %error, "a container that only copied files could not be removed");
        }
    }
}

/// Removes what an earlier run of the daemon left.
pub(super) async fn sweep(client: &Client, owner: &Owner) -> Result<(), Error> {
    let options = ListContainersOptions { all: true, filters: Some(owner.scratch_filter()), ..Default::default() };
    let left = client.call("list its containers", CALL_LIMIT, client.docker().list_containers(Some(options))).await?;
    let left = left.into_iter().filter(|container| container.labels.as_ref().is_some_and(|labels| owner.owns(labels)));
    for id in left.filter_map(|container| container.id) {
        container::remove(client, &id).await?;
    }
    Ok(())
}

/// Empties a directory with the machine's own `rm`, in a container without network that sees the machine's programs
/// read-only and this directory.
pub(super) async fn delete_as_root(client: &Client, owner: &Owner, directory: &Path) -> Result<(), Error> {
    const TARGET: &str = "/condemned";
    const OPERATION: &str = "delete the files of a volume";
    let tag = format!("{:016x}", rand::random::<u64>());
    let image = format!("{EMPTY_IMAGE}:{tag}");
    let import = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(EMPTY_IMAGE.to_owned()),
        tag: Some(tag.clone()),
        ..Default::default()
    };
    // Two zero blocks are an archive without entries.
    let nothing = body_full(Bytes::from_static(&[0; 1024]));
    let imported = client.docker().create_image(Some(import), Some(nothing), None).try_collect::<Vec<_>>();
    client.call(OPERATION, CALL_LIMIT, imported).await?;

    let mut mounts = vec![container::bind(directory, TARGET, false)];
    for programs in ["/usr", "/bin", "/lib", "/lib64"] {
        if Path::new(programs).is_dir() {
            mounts.push(container::bind(Path::new(programs), programs, true));
        }
    }
    let body = ContainerCreateBody {
        entrypoint: Some(["find", TARGET, "-xdev", "-mindepth", "1", "-delete"].map(str::to_owned).to_vec()),
        env: Some(vec!["PATH=/usr/bin:/bin".to_owned()]),
        ..Default::default()
    };
    let outcome = match Scratch::from_body(client, owner, &image, mounts, body).await {
        Ok(scratch) => {
            let outcome = run(client, &scratch).await;
            scratch.remove(client).await;
            outcome
        }
        Err(error) => Err(error),
    };
    let unused = client.docker().remove_image(&image, None::<RemoveImageOptions>, None);
    if let Err(error) = client.call("remove an image", CALL_LIMIT, unused).await {
        tracing::debug!(%error, "the empty image stays");
    }
    outcome
}

async fn run(client: &Client, scratch: &Scratch) -> Result<(), Error> {
    const OPERATION: &str = "delete the files of a volume";
    container::start(client, scratch.id()).await?;
    let ended = client.docker().wait_container(scratch.id(), None::<WaitContainerOptions>).try_collect::<Vec<_>>();
    match client.call(OPERATION, DELETE_LIMIT, ended).await {
        Ok(_) => Ok(()),
        Err(Error::Refused { operation, status, message }) => {
            Err(Error::Refused { operation, status, message: one_line(&message) })
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;
    use crate::engine::connection::DockerHost;

    #[tokio::test]
    async fn a_directory_is_emptied_without_following_links() {
        let (client, _) = Client::connect(&Arc::new(DockerHost::find(None).unwrap())).await.unwrap();
        let (condemned, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("precious"), "data").unwrap();
        fs::create_dir_all(condemned.path().join("a/b")).unwrap();
        fs::write(condemned.path().join("a/b/file"), "data").unwrap();
        std::os::unix::fs::symlink(outside.path(), condemned.path().join("link")).unwrap();

        let cluster = format!("{:032x}", rand::random::<u128>());
        let owner = Owner { cluster, node: None, unlabelled: false };
        delete_as_root(&client, &owner, condemned.path()).await.unwrap();
        assert_eq!(fs::read_dir(condemned.path()).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(outside.path().join("precious")).unwrap(), "data");
        let options = ListContainersOptions { all: true, filters: Some(owner.scratch_filter()), ..Default::default() };
        assert!(client.docker().list_containers(Some(options)).await.unwrap().is_empty());
    }
}
