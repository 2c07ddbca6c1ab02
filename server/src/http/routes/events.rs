//! What happens, as it happens.

use std::{collections::VecDeque, sync::Arc};

use axum::{extract::State, response::Response};
use flotilla_api::rest::EventView;
use futures::{Stream, stream};
use serde::Deserialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    http::{
        App,
        answer::{Answer, Asked},
        caller::Operator,
        streams,
    },
    store::{AUDIT_PAGE_MAX, Recorded, Store},
};

/// Rows of the past that a stream begins with where nothing is said.
const REPLAY_DEFAULT: u32 = 50;

#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    /// Begin with so many changes of the past.
    replay: Option<u32>,
}

struct Following {
    app: Arc<App>,
    /// Read and not sent yet.
    ready: VecDeque<Recorded>,
    recorded: Receiver<Recorded>,
    observed: Receiver<EventView>,
    /// What was sent last, so that nothing is sent twice.
    sent: (u64, u32),
}

pub(super) async fn follow(
    State(app): State<Arc<App>>,
    Operator(caller): Operator,
    Asked(query): Asked<EventsQuery>,
) -> Answer<Response> {
    let place = streams::place(&app)?;
    // Listened to before the past is read: what happens in between is in both, and told apart by its index.
    let (recorded, observed) = (app.store.events(), app.observations.subscribe());
    let replay = query.replay.unwrap_or(REPLAY_DEFAULT).min(AUDIT_PAGE_MAX);
    let ready = app.store.audit(None, None, replay).await?.into();
    let sent = (if replay == 0 { app.store.state().applied } else { 0 }, u32::MAX);
    let following = Following { app: app.clone(), ready, recorded, observed, sent };
    Ok(streams::lines(&app, &caller, place, following.into_stream()))
}

impl Following {
    fn into_stream(self) -> impl Stream<Item = EventView> + Send {
        stream::unfold(self, async |mut following| Some((following.next().await?, following)))
    }

    async fn next(&mut self) -> Option<EventView> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                let position = (row.event.index.unwrap_or_default(), row.ordinal);
                if position > self.sent {
                    self.sent = position;
                    return Some(row.event);
                }
                continue;
            }
            tokio::select! {
                biased;
                row = self.recorded.recv() => match row {
                    Ok(row) => self.ready.push_back(row),
                    Err(RecvError::Lagged(_)) => self.ready = missed(&self.app.store).await?,
                    Err(RecvError::Closed) => return None,
                },
                event = self.observed.recv() => match event {
                    Ok(event) => return Some(event),
                    // The newest state of a service follows; those in between have passed.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}

async fn missed(store: &Store) -> Option<VecDeque<Recorded>> {
    match store.audit(None, None, AUDIT_PAGE_MAX).await {
        Ok(rows) => Some(rows.into()),
        Err(error) => {
            tracing::warn!(%error, "the audit trail can't be read for a reader of events");
            None
        }
    }
}
