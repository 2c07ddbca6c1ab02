//! Where requests for a service go. Asked for each request, so it looks only at what is known already.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use flotilla_api::{NodeId, ServiceName, UnixMillis, rest::EngineView};
use flotilla_core::{
    State,
    reconcile::{self, Memory, Observed, View},
};

use super::Error;

/// Takes replicas in turn.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicUsize);

#[expect(clippy::too_many_arguments, reason = "all that is known, read at one moment")]
pub(super) fn of(
    service: &ServiceName,
    now: UnixMillis,
    node: &NodeId,
    state: &State,
    observed: Option<&Observed>,
    memory: &Memory,
    engine: &EngineView,
    turn: &Turn,
) -> Result<SocketAddr, Error> {
    let record = state.services.get(service).ok_or_else(|| Error::ServiceNotFound(service.clone()))?;
    if record.replicas == 0 {
        return Err(Error::ServiceStopped(service.clone()));
    }
    let unavailable = |why: String| Error::ServiceUnavailable { service: service.clone(), why };
    let at = observed.map_or(UnixMillis(0), |observed| observed.at);
    let views = BTreeMap::from([(node, View { observed, memory, at })]);
    let serving = reconcile::serving(now, record, &views);
    if serving.is_empty() {
        if let EngineView::Unavailable { message, .. } = engine {
            return Err(unavailable(message.clone()));
        }
        let condition = reconcile::condition(now, record, &views);
        return Err(unavailable(condition.message.unwrap_or_else(|| format!("it is {}", condition.state.as_str()))));
    }
    let (_, container) = serving[turn.0.fetch_add(1, Ordering::Relaxed) % serving.len()];
    // A former revision that still answers does so on its own port.
    let spec = record.spec_of(container.revision);
    let port = spec.port.ok_or_else(|| Error::NoPort(service.clone()))?;
    let address = container.address.ok_or_else(|| unavailable("it has no address yet".to_owned()))?;
    Ok(SocketAddr::new(address, port))
}
