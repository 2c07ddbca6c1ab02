//! Removes a service. Where its volumes stay, its instance ends first, and what it wrote last comes to the machines that have copies: whoever
//! deploys it again finds all of it, though the machine that wrote it be gone by then.

use std::{sync::Arc, time::Duration};

use flotilla_api::{ErrorCode, MachineName, ServiceName, rest::Removed};
use flotilla_core::{Actor, CommandV1, State, state::Service};
use tokio::time::timeout;

use super::{
    App,
    answer::{Answer, Failure},
};

/// From the end of an instance until other machines have what it wrote last.
const COPIED_WITHIN: Duration = Duration::from_secs(15);

/// An instance may take long to end. That is not waited for longer.
const ENDED_WITHIN: Duration = Duration::from_secs(120);

/// Whoever asks may go away meanwhile: what has begun comes to its end.
pub(super) async fn remove(app: &Arc<App>, actor: Actor, service: ServiceName, volumes: bool) -> Answer<Removed> {
    let app = Arc::clone(app);
    let removing = tokio::spawn(async move {
        let last_writes_on = if volumes {
            None
        } else {
            settle(&app, &actor, &service).await?;
            last_writes_on(&app.store.state(), &service)
        };
        app.propose(actor, CommandV1::Remove { service, volumes }).await?;
        Ok(Removed { last_writes_on })
    });
    removing.await.unwrap_or_else(|_| Err(Failure::new(ErrorCode::Internal, "the removal was broken off; try again")))
}

/// Ends a service that writes volumes of which others have copies, and waits until they have the last of it; not for ever.
async fn settle(app: &App, actor: &Actor, name: &ServiceName) -> Answer<()> {
    let mut states = app.store.watch();
    let (replicas, grace) = match states.borrow_and_update().services.get(name) {
        Some(service) if service.data.committed.is_some() && writes(service) => {
            (service.replicas, Duration::from_millis(service.spec().stop_grace_ms))
        }
        _ => return Ok(()),
    };
    if replicas > 0 {
        app.propose(actor.clone(), CommandV1::Scale { service: name.clone(), replicas: 0 }).await?;
    }
    let settled = states.wait_for(|state| state.services.get(name).is_none_or(|it| !writes(it)));
    tokio::select! {
        () = app.stop.cancelled() => Err(Failure::new(
            ErrorCode::ServiceUnavailable,
            format!("`{name}` was stopped and not removed yet, as this node stops; ask another one"),
        )),
        // What others have not got by now they get when it is deployed again.
        _ = timeout(grace.min(ENDED_WITHIN) + COPIED_WITHIN, settled) => Ok(()),
    }
}

fn writes(service: &Service) -> bool {
    service.placements.iter().any(|placement| placement.exclusive)
}

/// The machine that alone has what was written last to volumes of which others have copies of an earlier state.
fn last_writes_on(state: &State, name: &ServiceName) -> Option<MachineName> {
    let service = state.services.get(name)?;
    let home = service.home.as_ref().filter(|_| service.data.committed.is_some() && !service.data.settled)?;
    state.machines.get(home).map(|machine| machine.record.name.clone())
}
