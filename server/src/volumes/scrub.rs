//! Reads everything that is kept, bit by bit, over and over: a disk that forgets is found out while other machines still remember.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use flotilla_data::{Hash, store::News};
use tokio::time::sleep;

use super::{Error, Shared, blocking, wire};

/// Objects that are read at once, and how often: some 35 GB a day, which no disk notices.
const OBJECTS: usize = 64;
const EVERY: Duration = Duration::from_secs(10);

/// After everything was read.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn keep(shared: Arc<Shared>) {
    let mut behind = None;
    loop {
        let pause = match step(&shared, behind).await {
            Ok(next) => {
                behind = next;
                if behind.is_some() { EVERY } else { AGAIN }
            }
            Err(error) => {
                tracing::warn!(%error, "what is kept of volumes could not be read");
                EVERY
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// Reads some objects, and repairs those that are damaged. The last of them; `None` where there are no more.
async fn step(shared: &Arc<Shared>, behind: Option<Hash>) -> Result<Option<Hash>, Error> {
    let store = shared.store.clone();
    let (damaged, last) = blocking(move || Ok(store.scrub(behind.as_ref(), OBJECTS)?)).await?;
    for name in damaged {
        shared.counters.damaged.fetch_add(1, Relaxed);
        if repair(shared, name).await? {
            shared.counters.repaired.fetch_add(1, Relaxed);
            tracing::warn!(object = %name, "a damaged object was repaired from another machine");
        } else {
            tracing::error!(object = %name, "an object is damaged, and no machine that can be asked has it; look at this disk");
        }
    }
    Ok(last)
}

/// Asks the other machines one after the other. True if one had it.
async fn repair(shared: &Arc<Shared>, name: Hash) -> Result<bool, Error> {
    let connected = shared.parts.network.connected().borrow().clone();
    for machine in connected {
        let asked = async {
            let stream = shared.parts.network.stream(&machine, wire::LABEL).await.ok()?;
            let (mut from, mut to) = tokio::io::split(stream);
            wire::ask(&mut to, &[name]).await.ok()?;
            wire::answered(&mut from).await.ok()?
        };
        let Some(coded) = asked.await else { continue };
        let store = shared.store.clone();
        let repaired = blocking(move || {
            let mut session = store.session();
            // What is damaged there as well is not taken.
            if session.repair(&name, &coded).is_err() {
                return Ok(false);
            }
            session.commit(&News::default())?;
            Ok(true)
        });
        if repaired.await? {
            return Ok(true);
        }
    }
    Ok(false)
}
