//! Containers that are made before they are needed: on a machine that stands by for a service one is there that has only to be
//! started.
//!
//! Until it is taken it has no epoch, and so is no instance: nobody sees, counts or starts it. It is taken when an instance shall run
//! that would be made just like it, and gets its epoch with a new name ([`labels`](super::labels)); then it is an instance like any
//! other. Where there is none, or it can't be had, a container is made as ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bollard::{
    models::{ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum},
    query_parameters::{ListContainersOptions, RenameContainerOptions},
};
use flotilla_api::{
    Revision, ServiceName,
    spec::{ServiceSpec, ValueKind},
};
use flotilla_core::State;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::{
    Error, Shared,
    again::Again,
    connection::{CALL_LIMIT, Client},
    container, image,
    labels::{self, Identity, Owner},
    provision, values, volume,
};

/// The spare containers of this machine, one for each service at most. Absent until the engine was asked for them.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Option<BTreeMap<ServiceName, Spare>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Spare {
    container: String,
    key: String,
    /// Of what it was made, as far as that is known: one that an earlier daemon left has yet to be compared.
    of: Option<(Revision, String)>,
}

/// A service for which this machine shall have one.
struct Wanted<'a> {
    spec: &'a ServiceSpec,
    revision: Revision,
}

impl Wanted<'_> {
    fn of(&self) -> (Revision, String) {
        (self.revision, provision::key(self.spec))
    }
}

/// How the container would be made now.
async fn body(
    shared: &Shared,
    client: &Client,
    spec: &ServiceSpec,
    revision: Revision,
    image: &str,
) -> Result<ContainerCreateBody, Error> {
    let owner = &shared.owner();
    let network = container::network_of(client, owner, &spec.stack).await?;
    let labels = labels::of_revision(&spec.name, &spec.stack, revision);
    let told = values::told(shared, spec, revision).await?;
    Ok(container::body(owner, network, &shared.config.data_dir, labels, spec, &told, image))
}

/// Equal for containers that would be made alike.
fn key(body: &ContainerCreateBody) -> Result<String, Error> {
    let mut value = serde_json::to_value(body).map_err(|error| Error::Invalid(error.to_string()))?;
    value.sort_all_objects();
    Ok(Sha256::digest(value.to_string()).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes the spare container of a service that instance, if there is one that would be made like it now; its id.
pub(super) async fn take(
    shared: &Shared,
    client: &Client,
    identity: &Identity,
    spec: &ServiceSpec,
    image: &str,
) -> Option<String> {
    // Held to the end: until it has its name, `keep` must not take it for one too many.
    let mut spares = shared.spares.0.lock().await;
    if spares.is_none()
        && let Err(error) = look_at(shared, client, &mut spares).await
    {
        tracing::debug!(%error, "the containers that stand by are not known");
    }
    let spare = spares.as_mut()?.remove(&spec.name)?;
    let claimed = claim(shared, client, &spare, identity, spec, image).await.unwrap_or_else(|error| {
        tracing::warn!(service = %spec.name, %error, "could not take the container that stood by");
        false
    });
    if !claimed {
        discard(client, &spare.container).await;
    }
    claimed.then_some(spare.container)
}

/// Gives the container its new name. False if it is not as it would be made now.
async fn claim(
    shared: &Shared,
    client: &Client,
    spare: &Spare,
    identity: &Identity,
    spec: &ServiceSpec,
    image: &str,
) -> Result<bool, Error> {
    if key(&body(shared, client, spec, identity.revision, image).await?)? != spare.key {
        return Ok(false);
    }
    let options = RenameContainerOptions { name: shared.owner().taken_name(identity) };
    let renamed = client.docker().rename_container(&spare.container, options);
    client.call("rename the container", CALL_LIMIT, renamed).await.map(|()| true)
}

/// Looks at the engine for spare containers: an earlier daemon may have left some, and somebody may have removed or started one.
pub(super) async fn look(shared: &Shared, client: &Client) -> Result<(), Error> {
    look_at(shared, client, &mut *shared.spares.0.lock().await).await
}

async fn look_at(
    shared: &Shared,
    client: &Client,
    spares: &mut Option<BTreeMap<ServiceName, Spare>>,
) -> Result<(), Error> {
    let owner = shared.owner();
    let options = ListContainersOptions { all: true, filters: Some(owner.spare_filter()), ..Default::default() };
    let listed = client.call("list its containers", CALL_LIMIT, client.docker().list_containers(Some(options))).await?;
    let found: Vec<Found> = listed.into_iter().filter_map(|summary| Found::read(summary, &owner)).collect();
    let fit: BTreeSet<&str> = found.iter().filter(|found| found.fit).map(|found| found.container.as_str()).collect();
    let spares = spares.get_or_insert_default();
    spares.retain(|_, spare| fit.contains(spare.container.as_str()));
    for Found { container, service, key, fit } in &found {
        match spares.get(service) {
            Some(spare) if spare.container == *container => {}
            None if *fit => {
                let spare = Spare { container: container.clone(), key: key.clone(), of: None };
                spares.insert(service.clone(), spare);
            }
            // It has no epoch: it may not run.
            _ => discard(client, container).await,
        }
    }
    Ok(())
}

/// A container that was made as a spare one, and that no instance has taken.
struct Found {
    container: String,
    service: ServiceName,
    key: String,
    /// It has never run.
    fit: bool,
}

impl Found {
    fn read(summary: ContainerSummary, owner: &Owner) -> Option<Self> {
        let labels = summary.labels.filter(|labels| owner.owns(labels))?;
        let name = summary.names?.into_iter().next()?;
        if Identity::read(owner, &labels, name.trim_start_matches('/')).is_some() {
            return None;
        }
        Some(Self {
            container: summary.id?,
            service: labels.get(labels::SERVICE)?.parse().ok()?,
            key: labels.get(labels::SPARE)?.clone(),
            fit: summary.state == Some(ContainerSummaryStateEnum::CREATED),
        })
    }
}

/// Makes spare containers for the services that this machine stands by for, whose image is here, and removes the others.
pub(super) async fn keep(
    shared: &Arc<Shared>,
    client: &Client,
    state: &State,
    held: &BTreeSet<String>,
    again: &mut Again<ServiceName>,
) {
    let node = &shared.config.node_id;
    let wanted: BTreeMap<&ServiceName, Wanted<'_>> = state
        .services
        .values()
        .filter(|service| service.replicas > 0 && service.standby.contains(node) && !tells_secrets(service.spec()))
        .map(|service| (&service.name, Wanted { spec: service.spec(), revision: service.current }))
        .collect();
    let gone: Vec<Spare> = {
        let mut spares = shared.spares.0.lock().await;
        // One for a service that was just placed here is about to be taken.
        let kept = |name: &ServiceName| {
            wanted.contains_key(name) || state.services.get(name).is_some_and(|it| it.placed_on(node).next().is_some())
        };
        spares
            .iter_mut()
            .flat_map(|spares| spares.extract_if(.., |name, _| !kept(name)))
            .map(|(_, spare)| spare)
            .collect()
    };
    for spare in gone {
        discard(client, &spare.container).await;
    }
    for (name, wanted) in wanted {
        if !held.contains(&provision::key(wanted.spec)) || !again.is_due(name) {
            continue;
        }
        match renew(shared, client, &wanted).await {
            Ok(()) => again.forget(name),
            Err(error) => {
                tracing::warn!(service = %name, %error, "can't stand by with a container");
                again.later(name.clone());
            }
        }
    }
}

/// The engine writes a container's variables to its disk when the container is made. As long as it does not run, it has no secret.
fn tells_secrets(spec: &ServiceSpec) -> bool {
    spec.values.iter().any(|it| it.kind == ValueKind::Secret && it.is_told_to_engine())
}

/// Sees to it that the spare container of a service is as it would be made now.
async fn renew(shared: &Shared, client: &Client, wanted: &Wanted<'_>) -> Result<(), Error> {
    let name = &wanted.spec.name;
    let known = shared.spares.0.lock().await.as_ref().and_then(|spares| spares.get(name).cloned());
    if known.as_ref().is_some_and(|spare| spare.of == Some(wanted.of())) {
        return Ok(());
    }
    let image = image::local(client, &provision::key(wanted.spec)).await?;
    let Some(image) = image else { return Ok(()) };
    let _making = shared.files.making().await;
    let mut body = body(shared, client, wanted.spec, wanted.revision, &image).await?;
    let key = key(&body)?;
    if let Some(known) = known {
        let mut spares = shared.spares.0.lock().await;
        let spares = spares.get_or_insert_default();
        // It may have been taken meanwhile.
        let Some(spare) = spares.get_mut(name).filter(|spare| spare.container == known.container) else {
            return Ok(());
        };
        if spare.key == key {
            spare.of = Some(wanted.of());
            return Ok(());
        }
        spares.remove(name);
        discard(client, &known.container).await;
    }
    let owner = shared.owner();
    volume::prepare(shared, client, wanted.spec, &image).await?;
    body.labels.get_or_insert_default().insert(labels::SPARE.to_owned(), key.clone());
    let random = format!("{:08x}", rand::random::<u32>());
    let container = container::create_from(client, owner.spare_name(name, &random), body).await?;
    tracing::debug!(service = %name, container, "a container stands by");
    let spare = Spare { container, key, of: Some(wanted.of()) };
    shared.spares.0.lock().await.get_or_insert_default().insert(name.clone(), spare);
    Ok(())
}

async fn discard(client: &Client, container: &str) {
    if let Err(error) = container::remove(client, container).await {
        tracing::warn!(container, %error, "a container that stood by could not be removed");
    }
}
