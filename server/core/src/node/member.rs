//! A node's own lease: when to renew, what to freeze, what to thaw.

use std::collections::BTreeSet;

use flotilla_api::NodeId;

use crate::{
    lease::{Grant, Holder, Mono, RENEW_EVERY_MS, Renewal, START_LEFT_MS},
    reconcile::{Container, Observed, Status},
    state::State,
};

/// A lease that is nearly over is asked for more often than usual: an answer may have been lost. Milliseconds.
const RENEW_HURRIED_MS: u64 = 200;

/// What the node knows of itself at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    pub state: &'a State,
    /// The newest observation; absent while the engine does not answer.
    pub observed: Option<&'a Observed>,
    /// Index of the state that the reconciler planned from last: every start that it does not know yet comes from a later one.
    pub planned: u64,
    /// Epochs of instances that are being started, or were since the observation began.
    pub starting: &'a BTreeSet<u64>,
    /// Containers that are frozen now, by the engine's id.
    pub frozen: &'a BTreeSet<String>,
    /// Nobody could ever take over from this node: it is the only voter of a cluster that tolerates no fault.
    pub alone: bool,
}

/// What the shell shall do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Orders {
    /// To the leader.
    pub renew: Option<Renewal>,
    /// Containers, by the engine's id.
    pub freeze: Vec<String>,
    pub thaw: Vec<String>,
    /// For the guard: when what could write a volume has to be frozen; absent where nobody could take over.
    pub deadline: Option<Mono>,
    /// Containers that the guard freezes then, with their epochs.
    pub guarded: Vec<(String, u64)>,
    /// Look again by then, even if nothing happens.
    pub wake_at: Option<Mono>,
}

/// A node as the holder of a lease.
#[derive(Clone, Debug)]
pub struct Member {
    node: NodeId,
    holder: Holder,
}

impl Member {
    /// `adopted` is the end of the lease of a daemon that ran before, as its guard tells.
    pub fn new(node: NodeId, adopted: Option<Mono>) -> Self {
        Self { node, holder: Holder::adopt(adopted) }
    }

    /// Takes the leader's answer. True if the lease is longer now.
    pub fn granted(&mut self, grant: &Grant) -> bool {
        self.holder.granted(grant)
    }

    /// Another leader is known: it is asked at once.
    pub fn hurry(&mut self) {
        self.holder.hurry();
    }

    pub fn lease_until(&self) -> Option<Mono> {
        self.holder.until()
    }

    /// May an instance that could write a volume be started now?
    pub fn may_start(&self, now: Mono, alone: bool) -> bool {
        alone || self.holder.may_start(now)
    }

    /// Until when an instance that could write a volume may be started; absent: it may not.
    pub fn start_before(&self) -> Option<Mono> {
        self.holder.until().map(|until| until.minus(START_LEFT_MS))
    }

    pub fn orders(&mut self, now: Mono, sight: &Sight<'_>) -> Orders {
        let writers = self.writers(sight);
        let running: Vec<&Writer<'_>> = writers.iter().filter(|writer| !writer.frozen).collect();
        let may_run = sight.alone || self.holder.may_run(now);
        let guarded = writers.iter().map(|writer| (writer.container.id.clone(), writer.container.epoch)).collect();
        let mut orders = Orders { guarded, ..Orders::default() };
        if may_run {
            let mine = writers.iter().filter(|writer| writer.frozen && writer.mine);
            orders.thaw = mine.map(|writer| writer.container.id.clone()).collect();
        } else {
            orders.freeze = running.iter().map(|writer| writer.container.id.clone()).collect();
        }
        // Who is alone renews as well, so that it has a lease when it is no longer. Without one the guard waits for nothing.
        if !sight.alone {
            orders.deadline = Some(self.holder.freeze_at().unwrap_or_default());
        }
        let every = if may_run { RENEW_EVERY_MS } else { RENEW_HURRIED_MS };
        let due = self.holder.last_renewal().is_none_or(|sent| now.since(sent) >= every);
        if due {
            // What is about to be frozen is still held: the leader is told so until it is certain.
            let mut holding: BTreeSet<u64> = running.iter().map(|writer| writer.container.epoch).collect();
            holding.extend(sight.starting);
            orders.renew = Some(self.holder.send(now, sight.planned, holding));
        }
        let next = self.holder.last_renewal().map_or(now, |sent| sent.plus(every));
        orders.wake_at = self.holder.freeze_at().filter(|at| *at > now).into_iter().chain([next]).min();
        orders
    }

    /// Containers that could write a volume, were they let.
    fn writers<'a>(&self, sight: &Sight<'a>) -> Vec<Writer<'a>> {
        let containers = sight.observed.into_iter().flat_map(|observed| &observed.containers);
        let alive = containers.filter(|container| container.is_running());
        alive
            .filter_map(|container| {
                let service = sight.state.services.get(&container.service);
                // Of a service that is gone nothing is known: it counts as one that writes.
                if service.is_some_and(|service| !service.is_exclusive(container.revision)) {
                    return None;
                }
                let mine = service.into_iter().flat_map(|service| service.placed_on(&self.node));
                let mine = mine.filter(|placement| placement.is_wanted()).any(|it| it.epoch == container.epoch);
                let frozen = container.status == Status::Paused || sight.frozen.contains(&container.id);
                Some(Writer { container, frozen, mine })
            })
            .collect()
    }
}

struct Writer<'a> {
    container: &'a Container,
    frozen: bool,
    /// Its epoch is one that this node may run.
    mine: bool,
}
