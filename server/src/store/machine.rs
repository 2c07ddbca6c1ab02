//! The state machine: applies what was agreed on to the state, and tells everybody.
//!
//! The state itself lives in memory. What the file keeps of it is the snapshot and the log behind it, from which it is built again; with
//! each batch, one transaction writes the audit rows and how far the log was applied.

use std::{io, sync::Arc};

use flotilla_api::rest::EventView;
use flotilla_core::{Entry, Event, Outcome, State};
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot},
};
use tokio::sync::{broadcast, watch};

use super::{
    Recorded,
    disk::{
        Disk, Opened, Taken, Work,
        record::{Reached, Standing},
        row::Chain,
        snapshot,
        verify::read_state,
    },
};
use crate::consensus::{Answer, LogEntry, LogId, Proposal, SnapshotMeta, SnapshotOf, StoredMembership, Types};

/// Entries that are applied in one transaction.
const BATCH_MAX: usize = 256;

/// The state as it travels: to a node that is far behind, and to the disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    /// JSON.
    pub(crate) state: String,
    /// Over the entries up to it.
    pub(crate) chain: Chain,
    /// Rows of the audit trail up to it. Filled in where it is sent to another node, which has none of the entries.
    pub(crate) audit: Vec<Recorded>,
}

pub(crate) struct Machine {
    disk: Disk,
    applied: Option<LogId>,
    membership: StoredMembership,
    publish: watch::Sender<Arc<State>>,
    events: broadcast::Sender<Recorded>,
}

impl Machine {
    /// Takes over from a machine that failed, if there was one: what it had published stays.
    pub(crate) fn new(
        disk: Disk,
        opened: &Opened,
        publish: watch::Sender<Arc<State>>,
        events: broadcast::Sender<Recorded>,
    ) -> Self {
        Self { disk, applied: opened.applied, membership: opened.membership.clone(), publish, events }
    }

    /// Applies a batch to a copy of the state, writes what follows from it, then publishes and answers. In this order.
    async fn apply_batch(&mut self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let Some(last) = batch.last().map(|(entry, _)| entry.log_id) else { return Ok(()) };
        let mut next = State::clone(&self.publish.borrow());
        let mut membership = self.membership.clone();
        let mut audit = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        for (entry, responder) in batch {
            let answer = apply(&mut next, &entry, &mut membership, &mut audit);
            answers.extend(responder.map(|responder: ApplyResponder<Types>| (responder, answer)));
        }
        let committed = self.disk.with_tail(|tail| tail.committed);
        let reached = Reached { at: last.into(), membership: Standing::of(&membership) };
        let written = audit.clone();
        self.disk.perform(|done| Work::Apply { reached, committed, audit: written, done }).await?;
        self.applied = Some(last);
        self.membership = membership;
        self.publish.send_replace(Arc::new(next));
        for event in audit {
            // Nobody may be listening.
            let _ = self.events.send(event);
        }
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }
}

fn apply(next: &mut State, entry: &LogEntry, membership: &mut StoredMembership, audit: &mut Vec<Recorded>) -> Answer {
    let index = entry.log_id.index;
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(changed) => {
            *membership = StoredMembership::new(Some(entry.log_id), changed.clone());
        }
        EntryPayload::Normal(Proposal(entry)) => {
            return Answer(next.apply_at(index, entry).map_err(|rejected| rejected.0).map(|applied| {
                let events = (0..).zip(applied.events);
                audit.extend(events.map(|(ordinal, event)| record(index, ordinal, entry, event)));
                applied.outcome
            }));
        }
    }
    next.applied = index;
    Answer(Ok(Outcome::Done))
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

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() == BATCH_MAX {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        self.apply_batch(batch).await
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            disk: self.disk.clone(),
            state: self.publish.borrow().clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Image) -> io::Result<()> {
        let last = meta.last_log_id.ok_or_else(|| io::Error::other("a snapshot of nothing was to be installed"))?;
        let row = snapshot::Row {
            at: last.into(),
            membership: Standing::of(&meta.last_membership),
            state: image.state,
            chain: image.chain,
        };
        let state = read_state(&row).map_err(io::Error::other)?;
        let snapshot = Taken { at: row.at, membership: row.membership, state: row.state, chain: Some(row.chain) };
        self.disk.perform(|done| Work::Snapshot { snapshot, audit: image.audit, done }).await?;
        self.applied = Some(last);
        self.membership = meta.last_membership.clone();
        self.publish.send_replace(Arc::new(state));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Image>>> {
        let Some(row) = self.disk.snapshot().await? else { return Ok(None) };
        let meta = SnapshotMeta {
            last_log_id: Some(row.at.into()),
            last_membership: row.membership.stored().map_err(io::Error::other)?,
        };
        Ok(Some(Snapshot { meta, snapshot: Image { state: row.state, chain: row.chain, audit: Vec::new() } }))
    }
}

/// Writes a snapshot of the state as it was when this was made.
pub(crate) struct Builder {
    disk: Disk,
    state: Arc<State>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Image>> {
        let state = serde_json::to_string(&*self.state)?;
        let Some(applied) = self.applied else {
            // Of nothing: there is no log yet that it could stand for.
            let meta = SnapshotMeta { last_log_id: None, last_membership: self.membership.clone() };
            return Ok(Snapshot { meta, snapshot: Image { state, chain: Chain::default(), audit: Vec::new() } });
        };
        let membership = Standing::of(&self.membership);
        let snapshot = Taken { at: applied.into(), membership, state: state.clone(), chain: None };
        self.disk.perform(|done| Work::Snapshot { snapshot, audit: Vec::new(), done }).await?;
        let meta = SnapshotMeta { last_log_id: Some(applied), last_membership: self.membership.clone() };
        // openraft looks at the meta data alone; who sends a snapshot reads it from the disk.
        Ok(Snapshot { meta, snapshot: Image { state, chain: Chain::default(), audit: Vec::new() } })
    }
}
