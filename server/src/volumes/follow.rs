//! The directories of services that are written elsewhere: they follow what is committed, so that an instance finds it there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use flotilla_api::{NodeId, ServiceName};
use flotilla_core::{State, state::Service};
use tokio::{sync::mpsc, time::sleep};

use super::{Error, Shared, record::Shown};
use crate::{
    clock,
    engine::{Engine, Standing},
};

/// A service's directories are brought to what is committed at most this often; before an instance runs they are in any case.
const SHOWN_EVERY: Duration = Duration::from_secs(2);

/// The same for one whose last time took long: it takes at most this part of the time.
const SHOWN_SHARE: u32 = 10;

/// After an attempt that failed.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps the directories of services that are written elsewhere at what is committed, and puts aside what was written here and never
/// was.
pub(super) async fn tend(shared: Arc<Shared>, engine: Engine) {
    let mut states = shared.parts.state.clone();
    let mut standings = engine.watch_standing();
    let mut tended: BTreeMap<ServiceName, Tended> = BTreeMap::new();
    let (sender, mut ended) = mpsc::channel::<(ServiceName, Duration, Result<(), Error>)>(8);
    loop {
        let state = states.borrow_and_update().clone();
        let standing = standings.borrow_and_update().clone();
        tended.retain(|name, it| it.under_way || state.services.contains_key(name));
        let mut wake = Duration::from_secs(60);
        for service in state.services.values() {
            let it = tended.entry(service.name.clone()).or_default();
            if !is_free(&shared.parts.node, &state, service, &standing, it) {
                continue;
            }
            let Some(wanted) = wanted(&shared.parts.node, service, it) else { continue };
            let left = it.next.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            if it.under_way || !left.is_zero() {
                wake = wake.min(left.max(Duration::from_millis(10)));
                continue;
            }
            it.under_way = true;
            it.shown = Some(wanted.clone());
            let (shared, state, name) = (Arc::clone(&shared), state.clone(), service.name.clone());
            let sender = sender.clone();
            shared.clone().tasks.spawn(async move {
                let began = Instant::now();
                let shown = shared.follow(state, &name, wanted).await;
                let _ = sender.send((name, began.elapsed(), shown)).await;
            });
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            Some((name, took, result)) = ended.recv() => {
                let it = tended.entry(name.clone()).or_default();
                it.under_way = false;
                it.next = Some(Instant::now() + SHOWN_EVERY.max(took * (SHOWN_SHARE - 1)));
                if let Err(error) = result {
                    tracing::warn!(service = %name, %error, "a copy is not shown yet");
                    it.shown = None;
                    it.next = Some(Instant::now() + AGAIN);
                }
            }
            () = shared.wanted.came.notified() => {}
            changed = states.changed() => if changed.is_err() { return },
            changed = standings.changed() => if changed.is_err() { return },
            () = sleep(wake) => {}
        }
    }
}

/// What is known of the directories of one service.
#[derive(Debug, Default)]
struct Tended {
    /// Index of the state that was the first to have no placement of it here.
    free_since: Option<u64>,
    /// What was done last.
    shown: Option<Follow>,
    under_way: bool,
    /// Not before this time.
    next: Option<Instant>,
}

/// What becomes of directories that no instance runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// They show this.
    Show(Shown),
    /// What was written in them is put aside, by the epoch of who writes now.
    PutAside(u64),
}

/// Nothing runs on its directories here, and nothing is about to.
fn is_free(node: &NodeId, state: &State, service: &Service, standing: &Standing, it: &mut Tended) -> bool {
    if service.home.as_ref() == Some(node) || service.placed_on(node).next().is_some() {
        it.free_since = None;
        it.shown = None;
        return false;
    }
    let since = *it.free_since.get_or_insert(state.applied);
    let Some(observed) = standing.observed.as_ref().filter(|_| standing.planned >= since) else { return false };
    let runs = observed.containers.iter().any(|container| container.service == service.name && container.is_running());
    let epochs: BTreeSet<u64> = service.placements.iter().map(|placement| placement.epoch).collect();
    !runs && standing.starting.is_disjoint(&epochs)
}

fn wanted(node: &NodeId, service: &Service, it: &Tended) -> Option<Follow> {
    let committed = service.data.committed.as_ref();
    let here = committed.map(|committed| Shown::on(committed, node)).filter(|shown| !shown.roots.is_empty());
    let follow = match here {
        Some(shown) => Follow::Show(shown),
        // Until it has a generation of who writes now, what was written here is put aside at least.
        None => Follow::PutAside(service.placements.iter().map(|placement| placement.epoch).max()?),
    };
    (it.shown.as_ref() != Some(&follow)).then_some(follow)
}

impl Shared {
    /// Brings the directories of a service to where they belong, unless it has come back here meanwhile.
    async fn follow(self: &Arc<Self>, state: Arc<State>, service: &ServiceName, follow: Follow) -> Result<(), Error> {
        let _lock = self.directories.lock(service).await;
        {
            // An instance may have been placed here while the lock was waited for.
            let state = self.parts.state.borrow();
            let node = &self.parts.node;
            let here = |it: &Service| it.home.as_ref() == Some(node) || it.placed_on(node).next().is_some();
            if state.services.get(service).is_none_or(here) || state.must_purge(service, &self.parts.node) {
                return Ok(());
            }
        }
        self.begun.send_if_modified(|begun| begun.remove(service).is_some());
        let (shared, service) = (Arc::clone(self), service.clone());
        super::blocking(move || {
            let began = Instant::now();
            match follow {
                Follow::Show(shown) => {
                    let shown_now = shared.directories.show(&state, &service, &shown, clock::now())?;
                    if shown_now {
                        tracing::debug!(%service, generation = %shown.name, took = ?began.elapsed(), "a copy is shown");
                    }
                }
                Follow::PutAside(_) => shared.directories.put_aside(&state, &service, clock::now())?,
            }
            Ok(())
        })
        .await
    }
}
