//! Copies of what nobody writes now. What an instance writes is offered to the machines that shall have it (`writer`); of a service that is
//! stopped, or waits for its place, a machine that is to have a copy gets what is committed by itself, and says so.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use flotilla_api::{ApiError, NodeId};
use flotilla_core::{CommandV1, State, state::Service};
use tokio::time::sleep;

use super::{Error, Shared, haste::Haste, replica, wire::Offer};

/// After a look in which something was not to be had.
const AGAIN: Duration = Duration::from_secs(30);

pub(super) async fn keep(shared: Arc<Shared>) {
    let mut states = shared.parts.state.clone();
    let mut connected = shared.parts.network.connected();
    loop {
        let state = states.borrow_and_update().clone();
        connected.borrow_and_update();
        let mut lacks = false;
        for service in state.services.values() {
            let Some(offer) = lacking(&state, service, &shared.parts.node) else { continue };
            if let Err(error) = bring(&shared, offer, state.applied).await {
                tracing::debug!(service = %service.name, %error, "a copy of what nobody writes is not here yet");
                lacks = true;
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(AGAIN), if lacks => {}
            changed = states.changed(), if !lacks => if changed.is_err() { return },
            changed = connected.changed(), if !lacks => if changed.is_err() { return },
        }
    }
}

/// What this machine shall have of a service and lacks, as if it were offered.
fn lacking(state: &State, service: &Service, node: &NodeId) -> Option<Offer> {
    let committed = service.data.committed.as_ref()?;
    let lacking = state.lacks(service, node);
    let holders: BTreeSet<&NodeId> = lacking.values().flat_map(|copies| &copies.holders).collect();
    (!lacking.is_empty()).then(|| Offer {
        service: service.name.clone(),
        name: committed.name,
        taken_at: committed.taken_at,
        volumes: lacking.into_iter().map(|(volume, copies)| (volume.clone(), copies.root.clone())).collect(),
        holders: holders.into_iter().cloned().collect(),
        awaited: false,
    })
}

/// Fetches it, unless it is here already, and has the log know. `seen`: index of the state that says so.
async fn bring(shared: &Arc<Shared>, offer: Offer, seen: u64) -> Result<(), ApiError> {
    if !replica::is_here(shared, &offer).await? {
        let connected = shared.parts.network.connected().borrow().clone();
        let from = offer.holders.iter().find(|holder| connected.contains(*holder));
        let from = from.ok_or_else(|| Error::NotHere { service: offer.service.clone(), name: offer.name })?;
        let haste = Haste::in_advance();
        let figures = tokio::select! {
            () = shared.stop.cancelled() => return Err(Error::Stopped.into()),
            figures = replica::fetch(shared, from, &offer, &haste) => figures?,
        };
        shared.counters.fetched(figures);
        shared.history.notify_one();
    }
    let Offer { service, name, volumes, .. } = offer;
    let command = CommandV1::HoldGeneration {
        machine: shared.parts.node.clone(),
        service: service.clone(),
        generation: name,
        volumes,
        seen,
    };
    shared.parts.proposer.propose(command).await?;
    tracing::info!(%service, generation = %name, "a copy of what nobody writes is here");
    Ok(())
}
