//! The machines as a decision sees them: which may be given something, and how well they are placed.

use std::collections::BTreeMap;

use flotilla_api::{
    MachineName, NodeId, UnixMillis,
    rest::{EngineView, LinkPath, LinkState, LinkView},
};

use super::{Input, Standing, needs::Amount};
use crate::{
    report::Report,
    state::{Availability, Machine, MachineFacts, State},
};

/// So many losses within [`FLAP_WINDOW_MS`] make a machine one that flaps.
pub const FLAPS_AFTER: usize = 3;
/// Milliseconds.
pub const FLAP_WINDOW_MS: u64 = 3_600_000;
/// How long a machine that flaps is kept out of new placements; it doubles with each further loss. Milliseconds.
pub const FLAP_OUT_FIRST_MS: u64 = 300_000;
/// The longest time that it is kept out. Milliseconds.
pub const FLAP_OUT_MAX_MS: u64 = 4 * 3_600_000;
/// A machine whose container engine has been away for so long is one that instances move away from. Milliseconds.
pub const ENGINE_PATIENCE_MS: u64 = 60_000;

/// Points of a link that is direct, near and loses nothing.
pub(super) const LINK_BEST: i64 = 100;
/// Round trips longer than this are noticed by whoever waits for a page. Milliseconds.
const RTT_FAR_MS: f64 = 30.0;
/// Of the probes; more than a wire or a good radio link loses.
const LOSS_BAD: f64 = 0.02;

pub(super) struct Fleet<'a> {
    pub(super) state: &'a State,
    sites: BTreeMap<&'a NodeId, Site<'a>>,
}

/// One machine.
pub(super) struct Site<'a> {
    pub(super) id: &'a NodeId,
    pub(super) machine: &'a Machine,
    pub(super) standing: Option<&'a Standing<'a>>,
    pub(super) capacity: Amount,
    /// Why nothing new comes there, if so.
    pub(super) bar: Option<Bar>,
    /// Until when nothing new comes there where anything else will do, because it flaps.
    pub(super) kept_out_until: Option<UnixMillis>,
    /// How well it is connected to the others, up to [`LINK_BEST`].
    pub(super) links: i64,
}

/// Why nothing may be placed on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bar {
    StoresOnly,
    Lost,
    /// It joined a moment ago, or its lease has ended a moment ago.
    NoLease,
    Drained,
    EngineAway,
}

impl<'a> Fleet<'a> {
    pub(super) fn of(input: &'a Input<'a>) -> Self {
        let state = input.state;
        Self { state, sites: state.machines.iter().map(|(id, machine)| (id, Site::of(input, id, machine))).collect() }
    }

    pub(super) fn site(&self, id: &NodeId) -> Option<&Site<'a>> {
        self.sites.get(id)
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &Site<'a>> {
        self.sites.values()
    }

    pub(super) fn name(&self, id: &NodeId) -> String {
        self.site(id).map_or_else(|| id.to_string(), |site| site.name().to_string())
    }

    /// When a machine that flaps may be used again, of those that are kept out now.
    pub(super) fn next_return(&self) -> Option<UnixMillis> {
        self.sites.values().filter_map(|site| site.kept_out_until).min()
    }
}

impl<'a> Site<'a> {
    fn of(input: &'a Input<'a>, id: &'a NodeId, machine: &'a Machine) -> Self {
        let standing = input.machines.get(id);
        let mut site = Self {
            id,
            machine,
            standing,
            capacity: Amount::of_machine(&machine.facts),
            bar: None,
            kept_out_until: kept_out_until(&machine.losses).filter(|until| *until > input.now),
            links: links(input, id),
        };
        site.bar = site.find_bar();
        site
    }

    fn find_bar(&self) -> Option<Bar> {
        if self.machine.stores_only {
            return Some(Bar::StoresOnly);
        }
        if self.is_lost() {
            return Some(Bar::Lost);
        }
        if self.is_drained() {
            return Some(Bar::Drained);
        }
        if self.standing.is_none_or(|standing| standing.ended) {
            return Some(Bar::NoLease);
        }
        let engine = self.report().map(|report| &report.engine);
        matches!(engine, Some(EngineView::Unavailable { .. })).then_some(Bar::EngineAway)
    }

    pub(super) fn name(&self) -> &'a MachineName {
        self.machine.name()
    }

    pub(super) fn report(&self) -> Option<&'a Report> {
        self.standing.and_then(|standing| standing.report)
    }

    /// Does it tell what its engine shows?
    pub(super) fn shows_engine(&self) -> bool {
        self.report()
            .is_some_and(|report| report.observed.is_some() && matches!(report.engine, EngineView::Ready { .. }))
    }

    pub(super) fn facts(&self) -> &'a MachineFacts {
        &self.machine.facts
    }

    pub(super) fn is_lost(&self) -> bool {
        self.machine.lost_at.is_some()
    }

    pub(super) fn is_drained(&self) -> bool {
        matches!(self.machine.availability, Availability::Drained { .. })
    }

    /// Has its lease ended for certain, so that what it held may be given away?
    pub(super) fn has_ended(&self) -> bool {
        self.standing.is_some_and(|standing| standing.ended)
    }

    /// Has its container engine been away for so long that it may not come back by itself?
    pub(super) fn engine_is_gone(&self) -> bool {
        self.report().is_some_and(|report| match &report.engine {
            EngineView::Ready { .. } => false,
            EngineView::Unavailable { since, .. } => report.at.since(*since) >= ENGINE_PATIENCE_MS,
        })
    }

    /// The value of a label; machines without it are alike.
    pub(super) fn label(&self, key: &str) -> &'a str {
        self.machine.record.labels.get(key).map_or("", String::as_str)
    }
}

/// A machine that was lost again and again is kept out from its last loss on.
pub(super) fn kept_out_until(losses: &[UnixMillis]) -> Option<UnixMillis> {
    let last = losses.last()?;
    let lately = losses.iter().filter(|at| last.since(**at) <= FLAP_WINDOW_MS).count();
    let more = u32::try_from(lately.checked_sub(FLAPS_AFTER)?).unwrap_or(u32::MAX);
    let out = FLAP_OUT_FIRST_MS.checked_shl(more).unwrap_or(FLAP_OUT_MAX_MS);
    Some(last.plus(out.min(FLAP_OUT_MAX_MS)))
}

/// The mean over the other machines, as both ends see their link; a link that nobody tells of counts as a good one.
fn links(input: &Input<'_>, id: &NodeId) -> i64 {
    let others: Vec<i64> = input
        .state
        .machines
        .iter()
        .filter(|(other, machine)| *other != id && machine.lost_at.is_none())
        .map(|(other, _)| told(input, id, other).min(told(input, other, id)))
        .collect();
    match i64::try_from(others.len()) {
        Ok(count) if count > 0 => others.iter().sum::<i64>() / count,
        _ => LINK_BEST,
    }
}

/// What one machine tells of its link to another.
fn told(input: &Input<'_>, by: &NodeId, peer: &NodeId) -> i64 {
    let report = input.machines.get(by).and_then(|standing| standing.report);
    report.and_then(|report| report.links.iter().find(|link| link.peer == *peer)).map_or(LINK_BEST, quality)
}

fn quality(link: &LinkView) -> i64 {
    if link.state != LinkState::Up {
        return 0;
    }
    let relayed = if link.path == Some(LinkPath::Relayed) { 40 } else { 0 };
    let far = if link.rtt_ms.is_some_and(|rtt| rtt > RTT_FAR_MS) { 20 } else { 0 };
    let lossy = if link.loss.is_some_and(|loss| loss > LOSS_BAD) { 30 } else { 0 };
    LINK_BEST - relayed - far - lossy
}
