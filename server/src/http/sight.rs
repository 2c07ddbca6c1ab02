//! What each machine shows, put together at one moment: this one by its own engine, the others by what they told.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_api::{InstanceId, NodeId, ServiceName, UnixMillis};
use flotilla_core::{
    State, images,
    reconcile::{Memory, Observed, View, Views},
    report::{Report, Usage},
    state::Service,
};

use super::App;
use crate::clock;

/// All that a person is told is made of, read at one moment.
pub(super) struct Moment {
    pub(super) now: UnixMillis,
    pub(super) state: Arc<State>,
    sights: BTreeMap<NodeId, Sight>,
}

enum Sight {
    Own { observed: Option<Arc<Observed>>, memory: Arc<Memory>, usage: Arc<BTreeMap<InstanceId, Usage>> },
    Told { received: UnixMillis, report: Arc<Report> },
}

impl Moment {
    pub(super) fn of(app: &App) -> Self {
        Self::with(app, Arc::default())
    }

    /// What instances use costs a question to the engine: only where a person looks.
    pub(super) async fn with_usage(app: &App) -> Self {
        let usage = app.engine.usage().await;
        Self::with(app, usage)
    }

    fn with(app: &App, usage: Arc<BTreeMap<InstanceId, Usage>>) -> Self {
        let told = app.members.reports().into_iter();
        let mut sights: BTreeMap<NodeId, Sight> =
            told.map(|(node, (received, report))| (node, Sight::Told { received, report })).collect();
        let own = Sight::Own { observed: app.engine.observed(), memory: app.engine.memory(), usage };
        sights.insert(app.node.clone(), own);
        Self { now: clock::now(), state: app.store.state(), sights }
    }

    pub(super) fn views(&self) -> Views<'_> {
        self.sights.iter().map(|(node, sight)| (node, sight.view())).collect()
    }

    pub(super) fn report(&self, machine: &NodeId) -> Option<(UnixMillis, &Report)> {
        match self.sights.get(machine)? {
            Sight::Own { .. } => None,
            Sight::Told { received, report } => Some((*received, report)),
        }
    }

    /// Does the machine say that its engine has the image of the service's current revision?
    pub(super) fn has_image(&self, app: &App, machine: &NodeId, service: &Service) -> bool {
        let key = images::key(service.spec());
        match self.sights.get(machine) {
            Some(Sight::Own { .. }) => app.engine.held_images().borrow().contains(key),
            Some(Sight::Told { report, .. }) => report.images.iter().any(|image| image == key),
            None => false,
        }
    }

    pub(super) fn usage(&self, machine: &NodeId, instance: &InstanceId) -> Usage {
        let usage = match self.sights.get(machine) {
            Some(Sight::Own { usage, .. }) => usage.get(instance),
            Some(Sight::Told { report, .. }) => report.usage.get(instance),
            None => None,
        };
        usage.copied().unwrap_or_default()
    }

    /// What takes long for a service on the machines where it is placed.
    pub(super) fn activity(&self, app: &App, service: &ServiceName) -> Option<String> {
        let placements = &self.state.services.get(service)?.placements;
        placements.iter().find_map(|placement| match self.sights.get(&placement.machine)? {
            Sight::Own { .. } => app.engine.activity(service),
            Sight::Told { report, .. } => report.activities.get(service).cloned(),
        })
    }
}

impl Sight {
    fn view(&self) -> View<'_> {
        match self {
            Self::Own { observed, memory, .. } => {
                let at = observed.as_ref().map_or(UnixMillis(0), |observed| observed.at);
                View { observed: observed.as_deref(), memory, at }
            }
            Self::Told { received, report } => {
                View { observed: report.observed.as_ref(), memory: &report.memory, at: seen_at(*received, report) }
            }
        }
    }
}

/// When another machine's observation was made, by this machine's clock: as long before the report came in as it was made
/// before the report went out, both by that machine's clock.
fn seen_at(received: UnixMillis, report: &Report) -> UnixMillis {
    let Some(observed) = &report.observed else { return UnixMillis(0) };
    UnixMillis(received.0.saturating_sub(report.at.since(observed.at)))
}
