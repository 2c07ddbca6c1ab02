//! The one owner of the state: takes proposals, applies, writes, publishes, answers. In this order.

use std::sync::Arc;

use flotilla_api::{ApiError, rest::EventView};
use flotilla_core::{Entry, Event, State};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::{
    Committed, ENTRY_MAX, Error, ProposeError, QUEUE_MAX, Recorded,
    disk::{self, Chain, Disk, Pending},
};

pub(super) enum Request {
    Propose { entry: Box<Entry>, answer: Answer },
    Close { answer: oneshot::Sender<()> },
}

type Answer = oneshot::Sender<Result<Committed, ProposeError>>;

pub(super) struct Writer {
    disk: Disk,
    chain: Chain,
    publish: watch::Sender<Arc<State>>,
    events: broadcast::Sender<Recorded>,
}

impl Writer {
    pub(super) fn new(
        disk: Disk,
        chain: Chain,
        publish: watch::Sender<Arc<State>>,
        events: broadcast::Sender<Recorded>,
    ) -> Self {
        Self { disk, chain, publish, events }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::with_capacity(QUEUE_MAX);
        let mut closed = None;
        while closed.is_none() && requests.recv_many(&mut waiting, QUEUE_MAX).await > 0 {
            let mut batch = Vec::with_capacity(waiting.len());
            for request in waiting.drain(..) {
                match request {
                    Request::Propose { entry, answer } => batch.push((entry, answer)),
                    Request::Close { answer } => {
                        // What came in meanwhile is dropped with the queue, and told that the store is closed.
                        requests.close();
                        closed = Some(answer);
                        break;
                    }
                }
            }
            self.commit(batch).await;
        }
        self.disk.close().await;
        drop(closed);
    }

    async fn commit(&mut self, batch: Vec<(Box<Entry>, Answer)>) {
        let mut next = State::clone(&self.publish.borrow());
        let mut chain = self.chain;
        let mut pending = Vec::with_capacity(batch.len());
        let mut answers = Vec::with_capacity(batch.len());
        for (entry, answer) in batch {
            match apply(&mut next, &entry, &chain) {
                Ok((row, outcome)) => {
                    chain = row.chain;
                    answers.push((answer, Committed { index: row.position, outcome }));
                    pending.push(row);
                }
                // Rejected against a state that is not on disk yet: if the batch is not written, the answer still holds
                // as advice, and the state is unchanged either way.
                Err(error) => drop(answer.send(Err(error))),
            }
        }
        if pending.is_empty() {
            return;
        }
        match self.disk.write(&pending, &next).await {
            Ok(()) => {
                self.chain = chain;
                self.publish.send_replace(Arc::new(next));
                for event in pending.into_iter().flat_map(|row| row.events) {
                    // Nobody may be listening.
                    let _ = self.events.send(event);
                }
                for (answer, committed) in answers {
                    drop(answer.send(Ok(committed)));
                }
            }
            Err(error) => {
                tracing::error!(%error, entries = pending.len(), "a change of state was not written");
                let error = ApiError::from(error);
                for (answer, _) in answers {
                    drop(answer.send(Err(ProposeError::Rejected(error.clone()))));
                }
            }
        }
    }
}

fn apply(next: &mut State, entry: &Entry, chain: &Chain) -> Result<(Pending, flotilla_core::Outcome), ProposeError> {
    let text = serde_json::to_string(entry)
        .map_err(|error| {
            ApiError::new(flotilla_api::ErrorCode::Internal, format!("the change has no JSON form: {error}"))
        })
        .map_err(ProposeError::Rejected)?;
    if text.len() > ENTRY_MAX {
        return Err(Error::EntryTooLarge { size: text.len(), max: ENTRY_MAX }.into());
    }
    let applied = next.apply(entry).map_err(|rejected| ProposeError::Rejected(rejected.0))?;
    let position = next.applied;
    let events = (0..).zip(applied.events).map(|(ordinal, event)| record(position, ordinal, entry, event)).collect();
    Ok((Pending { position, chain: disk::link(chain, &text), text, events }, applied.outcome))
}

fn record(position: u64, ordinal: u32, entry: &Entry, event: Event) -> Recorded {
    Recorded {
        event: EventView {
            index: Some(position),
            at: entry.at,
            kind: event.kind,
            actor: entry.actor.name.clone(),
            from: entry.actor.from.clone(),
            service: event.service,
            machine: event.machine,
            message: event.message,
        },
        ordinal,
        token: entry.actor.token.as_ref().map(ToString::to_string),
    }
}
