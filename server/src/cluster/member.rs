//! Keeps this node's lease: renews it, freezes before it ends, thaws when it is back.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use flotilla_api::NodeId;
use flotilla_core::{
    lease::{Grant, Renewal},
    node::{Member, Orders, Sight},
};
use tokio::sync::mpsc;

use super::{Shared, messages};
use crate::{
    clock,
    engine::Engine,
    fence::{self, Target},
    peers::Method,
};

/// An answer that comes later than the next renewal says nothing new.
const ANSWER_WITHIN: Duration = Duration::from_millis(900);

/// Answers that may wait to be taken: each renewal has at most one.
const ANSWERS_MAX: usize = 16;

/// Looked at this often even if nothing happened.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) struct Keeper {
    shared: Arc<Shared>,
    engine: Engine,
    member: Member,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, engine: Engine) -> Self {
        let member = Member::new(shared.parts.node.clone(), shared.parts.fence.adopted());
        Self { shared, engine, member }
    }

    pub(super) async fn run(mut self) {
        let (answer_sender, mut answers) = mpsc::channel(ANSWERS_MAX);
        let mut status = self.shared.parts.store.consensus().status();
        let mut states = self.shared.parts.store.watch();
        let mut standings = self.engine.watch_standing();
        let mut leader = None;
        let mut could_start = false;
        loop {
            let known = status.borrow_and_update().leader.clone();
            if known != leader {
                leader = known;
                self.member.hurry();
            }
            let now = clock::since_boot();
            let orders = self.orders(&states, &mut standings);
            let Orders { renew, freeze, thaw, deadline, guarded, wake_at } = orders;
            let targets = guarded.into_iter().map(|(container, epoch)| Target { container, epoch }).collect();
            self.shared.parts.fence.deadline(deadline, targets);
            let may_start = self.shared.alone.load(Ordering::Acquire) || self.member.may_start(now, false);
            if may_start != could_start {
                could_start = may_start;
                self.engine.look();
            }
            if !freeze.is_empty() {
                tracing::warn!(instances = freeze.len(), "the lease is over: what could write a volume is frozen");
                told("freeze", self.shared.parts.fence.freeze(&freeze).await);
            }
            if !thaw.is_empty() {
                tracing::info!(instances = thaw.len(), "the lease is back: what was frozen goes on");
                told("thaw", self.shared.parts.fence.thaw(&thaw).await);
            }
            if !freeze.is_empty() || !thaw.is_empty() {
                self.engine.look();
            }
            if let Some(renewal) = renew {
                self.ask(leader.as_ref(), &renewal, answer_sender.clone());
            }
            let wake = wake_at.map_or(LOOK_EVERY, |at| Duration::from_millis(at.since(now).max(1)).min(LOOK_EVERY));
            tokio::select! {
                Some(grant) = answers.recv() => {
                    if self.member.granted(&grant) {
                        self.shared.lease_until.send_replace(self.member.lease_until());
                    }
                }
                changed = states.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
                changed = standings.changed() => if changed.is_err() { return },
                () = self.shared.held.notified() => {}
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    fn orders(
        &mut self,
        states: &tokio::sync::watch::Receiver<Arc<flotilla_core::State>>,
        standings: &mut tokio::sync::watch::Receiver<crate::engine::Standing>,
    ) -> Orders {
        let state = states.borrow().clone();
        let standing = standings.borrow_and_update().clone();
        let frozen = self.shared.parts.fence.frozen();
        let alone = self.shared.is_alone(&state);
        self.shared.alone.store(alone, Ordering::Release);
        let sight = Sight {
            state: &state,
            observed: standing.observed.as_deref(),
            planned: standing.planned,
            starting: &standing.starting,
            frozen: &frozen,
            alone,
        };
        self.member.orders(clock::since_boot(), &sight)
    }

    /// Asks the leader, without waiting for it.
    fn ask(&self, leader: Option<&NodeId>, renewal: &Renewal, answers: mpsc::Sender<Grant>) {
        let Some(leader) = leader else { return };
        if *leader == self.shared.parts.node {
            if let Some(grant) = self.shared.renew(leader, renewal) {
                // Full only if nobody takes answers, and then another comes soon.
                let _ = answers.try_send(grant);
            }
            return;
        }
        let body = match messages::write(renewal) {
            Ok(body) => body,
            Err(error) => return tracing::error!(%error, "a renewal can't be written"),
        };
        let asked = self.shared.parts.peers.call(leader, Method::Renew, body, ANSWER_WITHIN);
        tokio::spawn(async move {
            let grant = match asked.await {
                Ok(body) => messages::read::<Grant>(&body),
                Err(error) => return tracing::debug!(%error, "the lease was not renewed"),
            };
            match grant {
                Ok(grant) => drop(answers.try_send(grant)),
                Err(error) => tracing::warn!(%error, "the answer to a renewal can't be read"),
            }
        });
    }
}

/// What could not be done is tried again at the next look, and the guard tries as well.
fn told(what: &str, results: Vec<(String, Result<bool, fence::Error>)>) {
    for (container, result) in results {
        match result {
            // It goes on when the machine is awake, if its lease has not ended by then.
            Err(error @ fence::Error::Asleep) => tracing::debug!(%error, container, "did not {what} an instance"),
            Err(error) => tracing::error!(%error, container, "could not {what} an instance"),
            Ok(_) => {}
        }
    }
}
