//! Volumes: directories of ours that containers see as bind mounts.
//!
//! A new volume begins with what the image has at its mount point, owner and mode included, as people know it from Docker's
//! own volumes. Copying goes through the engine, so that owners are kept even where the node itself is not root.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    body_full, body_try_stream,
    query_parameters::{DownloadFromContainerOptions, UploadToContainerOptions},
};
use flotilla_api::{
    ServiceName,
    spec::{ServiceSpec, VolumeMount},
};
use futures::{StreamExt, TryStreamExt};

use super::{
    Error, Shared,
    connection::{CALL_LIMIT, Client},
    container,
    labels::Owner,
    scratch::{self, Scratch},
};

use crate::volumes::layout::{self, directory, root};

/// An image may come with gigabytes at a mount point (a database's samples); they are copied once.
const COPY_LIMIT: Duration = Duration::from_secs(15 * 60);

/// No volume's name begins with a dot, so these never meet one.
const STAGING: &str = ".new-";
const DELETED: &str = ".deleted-";

/// Where a service's directory is in the container that unpacks.
const INSIDE: &str = "/.flotilla-volumes";

/// Makes the directories that do not exist yet, each complete or not at all.
pub(super) async fn prepare(shared: &Shared, client: &Client, spec: &ServiceSpec, image: &str) -> Result<(), Error> {
    let (owner, data_dir) = (&shared.owner(), &shared.config.data_dir);
    let parent = layout::of_service(data_dir, &spec.name);
    let present = |mount: &VolumeMount| is_directory(&directory(data_dir, &spec.name, &mount.volume));
    if spec.volumes.iter().map(present).collect::<Result<Vec<_>, _>>()?.iter().all(|present| *present) {
        return Ok(());
    }
    private_directory(&root(data_dir))?;
    // Held to the end: data that has come from elsewhere must not be brought into a directory that another one takes the place of.
    let _held = shared.data.prepares(&spec.name).await.map_err(Error::Data)?;
    for mount in &spec.volumes {
        let volume = directory(data_dir, &spec.name, &mount.volume);
        if is_directory(&volume)? {
            continue;
        }
        private_directory(&parent)?;
        let staging = parent.join(staging_name(mount));
        // Left from a try that was cut short.
        delete_tree(client, owner, &staging).await?;
        copy_from_image(client, owner, &parent, mount, image).await?;
        // Within one directory: a node that is not root may not move a directory of root's to another.
        fs::rename(&staging, &volume).map_err(|source| failed("create the directory", &volume, source))?;
        sync_directory(&parent)?;
    }
    Ok(())
}

fn staging_name(mount: &VolumeMount) -> String {
    format!("{STAGING}{}", mount.volume)
}

/// Makes the staging directory in `parent`, by means of two containers that never run: one shows the image's files, one has
/// `parent` in it.
async fn copy_from_image(
    client: &Client,
    owner: &Owner,
    parent: &Path,
    mount: &VolumeMount,
    image: &str,
) -> Result<(), Error> {
    let from = Scratch::create(client, owner, image, Vec::new()).await?;
    let copied = match Scratch::create(client, owner, image, vec![container::bind(parent, INSIDE, false)]).await {
        Ok(to) => {
            let copied = copy(client, &from, &to, parent, mount).await;
            to.remove(client).await;
            copied
        }
        Err(error) => Err(error),
    };
    from.remove(client).await;
    copied
}

/// The engine names what it archives after the path that it was asked for. So a link of the staging directory's name, to where
/// the volume shall be mounted, makes an archive that unpacks to the staging directory, its own owner and mode included.
async fn copy(client: &Client, from: &Scratch, to: &Scratch, parent: &Path, mount: &VolumeMount) -> Result<(), Error> {
    let name = staging_name(mount);
    let link = link(&name, &mount.target).map_err(|source| failed("archive", Path::new(&mount.target), source))?;
    let options = UploadToContainerOptions { path: "/".to_owned(), ..Default::default() };
    let write = client.docker().upload_to_container(from.id(), Some(options), body_full(link.into()));
    client.call("read the image's files", CALL_LIMIT, write).await?;

    let options = DownloadFromContainerOptions { path: format!("/{name}/") };
    let mut archive = Box::pin(client.docker().download_from_container(from.id(), Some(options)));
    let read = async { archive.next().await.transpose() };
    let first = match client.call("read the image's files", CALL_LIMIT, read).await {
        Ok(first) => first,
        Err(error) if says_nothing_there(&error) => {
            let staging = parent.join(&name);
            return fs::create_dir(&staging).map_err(|source| failed("create the directory", &staging, source));
        }
        Err(error) => return Err(error),
    };
    let archive = futures::stream::iter(first.map(Ok)).chain(archive).map_err(io::Error::other);
    let options = UploadToContainerOptions { path: INSIDE.to_owned(), ..Default::default() };
    let write = client.docker().upload_to_container(to.id(), Some(options), body_try_stream(archive));
    client.call("copy the image's files into the new volume", COPY_LIMIT, write).await
}

fn link(name: &str, target: &str) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    archive.append_link(&mut header, name, target)?;
    archive.into_inner()
}

/// The image has nothing at the mount point, or a file; on that the container's start will stumble, and say so.
fn says_nothing_there(error: &Error) -> bool {
    match error {
        Error::Refused { status: Some(404), .. } => true,
        Error::Refused { message, .. } => message.contains("not a directory"),
        _ => false,
    }
}

/// Deletes the directories of all volumes of a service. That there are none is fine.
pub(super) async fn delete(
    client: &Client,
    owner: &Owner,
    data_dir: &Path,
    service: &ServiceName,
) -> Result<(), Error> {
    let root = root(data_dir);
    let condemned = root.join(service.as_str());
    // First out of the way in one step: whatever happens next, nobody ever sees half a volume.
    if is_directory(&condemned)? {
        let aside = root.join(format!("{DELETED}{service}-{:016x}", rand::random::<u64>()));
        fs::rename(&condemned, &aside).map_err(|source| failed("delete the volumes in", &condemned, source))?;
    }
    let prefix = format!("{DELETED}{service}-");
    for aside in entries(&root)? {
        let name = aside.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let of_service = name.strip_prefix(&prefix).is_some_and(|rest| rest.len() == 16 && !rest.contains('-'));
        if of_service {
            delete_tree(client, owner, &aside).await?;
        }
    }
    Ok(())
}

/// Deletes all volumes of all services.
pub(super) async fn delete_all(client: &Client, owner: &Owner, data_dir: &Path) -> Result<(), Error> {
    delete_tree(client, owner, &root(data_dir)).await
}

/// Files of a container mostly belong to root. A node that is not root may not delete them, but the engine, which it may
/// command, is.
async fn delete_tree(client: &Client, owner: &Owner, path: &Path) -> Result<(), Error> {
    if !is_directory(path)? {
        return Ok(());
    }
    let tree = path.to_owned();
    let deleted = tokio::task::spawn_blocking(move || remove_dir_all(&tree))
        .await
        .unwrap_or_else(|panic| Err(io::Error::other(panic)));
    match deleted {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            scratch::delete_as_root(client, owner, path).await?;
            match remove_dir_all(path) {
                Err(error) => Err(failed("delete", path, error)),
                Ok(()) => Ok(()),
            }
        }
        Err(error) => Err(failed("delete", path, error)),
        Ok(()) => Ok(()),
    }
}

/// The standard library's deletes by directory handles and never follows a link, not even one that is put there meanwhile.
fn remove_dir_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A link, or a file, in a volume's place is somebody's attempt to have us write or delete elsewhere.
fn is_directory(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(_) => Err(failed("use", path, io::Error::new(io::ErrorKind::NotADirectory, "it is no directory"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", path, error)),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    if !is_directory(directory)? {
        return Ok(Vec::new());
    }
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|source| failed("list", directory, source))
}

/// Nobody else on the machine may look into a service's data.
fn private_directory(path: &Path) -> Result<(), Error> {
    if is_directory(path)? {
        return Ok(());
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|source| failed("create the directory", path, source))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(|source| failed("write", path, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Directory { operation, path: path.to_owned(), source }
}
