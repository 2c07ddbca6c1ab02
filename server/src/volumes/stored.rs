//! A machine that only stores deletes what it is told to. Others do so where no container uses it any more; here there is none.

use std::time::Duration;

use flotilla_api::ServiceName;
use flotilla_core::CommandV1;
use tokio::time::sleep;

use super::Volumes;
use crate::engine::Data as _;

/// After an attempt that failed, or was not agreed on.
const AGAIN: Duration = Duration::from_secs(30);

pub(super) async fn tend(volumes: Volumes) {
    let parts = &volumes.shared.parts;
    let mut states = parts.state.clone();
    loop {
        let state = states.borrow_and_update().clone();
        let condemned: Vec<ServiceName> =
            state.condemned_on.keys().filter(|name| state.must_purge(name, &parts.node)).cloned().collect();
        for service in &condemned {
            let deleted = async {
                drop(volumes.deletes(service).await?);
                let machine = Some(parts.node.clone());
                parts.proposer.propose(CommandV1::VolumesPurged { service: service.clone(), machine }).await
            };
            if let Err(error) = deleted.await {
                tracing::warn!(%service, %error, "what is kept of a service was not deleted yet");
            }
        }
        tokio::select! {
            () = volumes.shared.stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            () = sleep(AGAIN), if !condemned.is_empty() => {}
        }
    }
}
