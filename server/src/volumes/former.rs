//! Copies that this machine had to keep once and that others keep now. They are given up through the log (`CommandV1::DropCopy`), which
//! sees to it that the newest generation is where it shall be, and are deleted when that is done. What only this machine has stays here: a
//! branch, what an instance may have written, and a past that nobody else has.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_api::{ApiError, NodeId, ServiceName, VolumeName};
use flotilla_core::{
    CommandV1,
    history::{self, Moment},
    state::Service,
};
use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

use super::{Error, Shared, layout, past};
use crate::clock;

/// Who shall have copies may change back soon, and what is here need not travel then.
const GRACE: Duration = Duration::from_secs(60);

/// After a look that found that something is here alone, or that nobody could be asked.
const AGAIN: Duration = Duration::from_secs(600);

pub(super) async fn keep(shared: Arc<Shared>) {
    let mut states = shared.parts.state.clone();
    // When each is looked at next.
    let mut due: BTreeMap<ServiceName, Instant> = BTreeMap::new();
    loop {
        let state = states.borrow_and_update().clone();
        let former: Vec<&Service> =
            state.services.values().filter(|service| state.may_drop(service, &shared.parts.node)).collect();
        due.retain(|name, _| former.iter().any(|service| service.name == *name));
        for service in former {
            let at = due.entry(service.name.clone()).or_insert_with(|| Instant::now() + GRACE);
            if *at > Instant::now() {
                continue;
            }
            *at = Instant::now() + AGAIN;
            match drop_copy(&shared, service).await {
                Ok(true) => tracing::info!(service = %service.name, "a copy that others keep now is given up"),
                Ok(false) => tracing::debug!(service = %service.name, "a former copy has what nobody else has"),
                Err(error) => tracing::debug!(service = %service.name, %error, "a former copy stays for now"),
            }
        }
        let next = due.values().min().copied();
        tokio::select! {
            () = shared.stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

/// False where something is here that others do not have.
async fn drop_copy(shared: &Arc<Shared>, service: &Service) -> Result<bool, ApiError> {
    if !is_clean(shared, &service.name).await? || !is_known_elsewhere(shared, service).await? {
        return Ok(false);
    }
    let (machine, service) = (shared.parts.node.clone(), service.name.clone());
    shared.parts.proposer.propose(CommandV1::DropCopy { machine, service }).await?;
    Ok(true)
}

/// Is nothing in its directories, or beside them, that was never committed?
async fn is_clean(shared: &Arc<Shared>, service: &ServiceName) -> Result<bool, Error> {
    let _lock = shared.directories.lock(service).await;
    let (shared, service) = (Arc::clone(shared), service.clone());
    super::blocking(move || {
        let may_be_written = match shared.directories.record(&service)? {
            Some(record) => record.written.is_some() || record.becomes.is_some(),
            None => !shared.directories.volumes(&service)?.is_empty(),
        };
        Ok(!may_be_written && !layout::has_uncommitted(&shared.store, &service)?)
    })
    .await
}

/// Have those that keep copies now all that is here and would be kept there?
async fn is_known_elsewhere(shared: &Arc<Shared>, service: &Service) -> Result<bool, Error> {
    let connected = shared.parts.network.connected().borrow().clone();
    let keepers: BTreeSet<&NodeId> = service.data.replicas.iter().chain(&service.home).collect();
    let asked = keepers.into_iter().filter(|keeper| connected.contains(*keeper));
    let answers = join_all(asked.map(|keeper| past::all_of(shared, keeper, &service.name))).await;
    let mut theirs: BTreeMap<VolumeName, Vec<Moment>> = BTreeMap::new();
    for (volume, moment) in answers.into_iter().flatten().flatten() {
        theirs.entry(volume).or_default().push(moment);
    }
    let (known, name) = (Arc::clone(shared), service.name.clone());
    let here = super::blocking(move || past::here(&known, &name)).await?;
    let rules = history::rules(service.spec());
    let is_known = |(volume, mine): (VolumeName, Vec<Moment>)| {
        let theirs = theirs.remove(&volume).unwrap_or_default();
        let all: Vec<Moment> = mine.iter().chain(&theirs).copied().collect();
        let kept = history::kept(&all, &rules, clock::now());
        let have: BTreeSet<_> = theirs.iter().map(|moment| moment.name).collect();
        mine.iter().all(|moment| !kept.contains(&moment.name) || have.contains(&moment.name))
    };
    Ok(here.into_iter().all(is_known))
}
