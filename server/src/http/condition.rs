//! How services do: the state log and what the engine shows, put together for a person; and a sentence for each change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flotilla_api::{
    InstanceId, NodeId, ServiceName, UnixMillis,
    rest::{EventView, InstanceView, RevisionView, ServiceDetail, ServiceState, ServiceView},
};
use flotilla_core::{
    State,
    reconcile::{self, Condition, Memory, Observed, View},
    report::Usage,
    state::Service,
};

use super::App;
use crate::clock;

/// Changes that a slow reader of events may lag behind.
pub(super) const OBSERVATIONS_MAX: usize = 256;

/// Some states are reached by time alone: ready after two seconds, unknown after half a minute.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Kind of an event that no command made.
pub(super) const OBSERVED: &str = "observed";

/// All that a service's condition is made of, read at one moment.
struct Moment {
    now: UnixMillis,
    state: Arc<State>,
    observed: Option<Arc<Observed>>,
    memory: Arc<Memory>,
    usage: Arc<BTreeMap<InstanceId, Usage>>,
}

impl Moment {
    fn of(app: &App) -> Self {
        Self {
            usage: Arc::default(),
            now: clock::now(),
            state: app.store.state(),
            observed: app.engine.observed(),
            memory: app.engine.memory(),
        }
    }

    /// What instances use costs a question to the engine: only where a person looks.
    async fn with_usage(app: &App) -> Self {
        let usage = app.engine.usage().await;
        Self { usage, ..Self::of(app) }
    }

    fn condition(&self, app: &App, service: &Service) -> Condition {
        let at = self.observed.as_ref().map_or(UnixMillis(0), |observed| observed.at);
        let own = View { observed: self.observed.as_deref(), memory: &self.memory, at };
        let views = BTreeMap::from([(&app.node, own)]);
        let mut condition = reconcile::condition(self.now, service, &views);
        if condition.state == ServiceState::Starting
            && let Some(activity) = app.engine.activity(&service.name)
        {
            condition.message = Some(activity);
        }
        condition
    }

    fn view(&self, app: &App, service: &Service) -> ServiceView {
        let condition = self.condition(app, service);
        let spec = service.spec();
        let name_of = |id: &NodeId| self.state.machines.get(id).map(|machine| machine.name().clone());
        let machine = service.placements.iter().find_map(|placement| name_of(&placement.machine));
        let instances = condition.instances.into_iter().filter_map(|instance| {
            let usage = self.usage.get(&instance.instance).copied().unwrap_or_default();
            Some(InstanceView {
                id: instance.instance,
                machine: name_of(&instance.machine)?,
                epoch: instance.epoch,
                revision: instance.revision,
                state: instance.state,
                message: instance.message,
                container: Some(instance.container),
                started_at: instance.started_at,
                restarts: instance.restarts,
                exit_code: instance.exit_code,
                cpu_cores_used: usage.cpu_cores,
                memory_used_bytes: usage.memory_bytes,
            })
        });
        ServiceView {
            service: service.name.clone(),
            stack: service.stack.clone(),
            state: condition.state,
            message: condition.message,
            revision: service.current,
            url: spec.port.map(|_| app.domain.service_url(&service.name)),
            image: spec.image.clone(),
            replicas: service.replicas,
            epoch: service.placements.iter().map(|placement| placement.epoch).max(),
            since: condition.since,
            // Before the engine answered for the first time nothing newer is known than the state log.
            observed_at: self.observed.as_ref().map_or(service.changed_at, |observed| observed.at),
            instances: instances.collect(),
            machine,
        }
    }
}

pub(super) async fn views(app: &App) -> Vec<ServiceView> {
    let moment = Moment::with_usage(app).await;
    moment.state.services.values().map(|service| moment.view(app, service)).collect()
}

pub(super) async fn detail(app: &App, name: &ServiceName) -> Option<ServiceDetail> {
    let moment = Moment::with_usage(app).await;
    let service = moment.state.services.get(name)?;
    let revisions = service.revisions.iter().rev().map(|(revision, record)| RevisionView {
        revision: *revision,
        image: record.spec.image.clone(),
        created_at: record.created_at,
        created_by: record.created_by.clone(),
        current: *revision == service.current,
        note: record.note.clone(),
    });
    Some(ServiceDetail {
        view: moment.view(app, service),
        spec: service.spec().clone(),
        revisions: revisions.collect(),
    })
}

/// Instances of each service, for figures.
pub(super) fn states(app: &App) -> (Vec<ServiceState>, Vec<ServiceState>) {
    let moment = Moment::of(app);
    let conditions: Vec<_> = moment.state.services.values().map(|service| moment.condition(app, service)).collect();
    let instances =
        conditions.iter().flat_map(|condition| &condition.instances).map(|instance| instance.state).collect();
    (conditions.into_iter().map(|condition| condition.state).collect(), instances)
}

/// Says in a sentence what changed at a service though nobody asked for it, as long as anybody listens.
pub(crate) async fn tell_changes(app: Arc<App>) {
    let mut told = BTreeMap::new();
    let mut states = app.store.watch();
    let mut observed = app.engine.watch_observed();
    let mut memory = app.engine.watch_memory();
    loop {
        let listened = app.observations.receiver_count() > 0;
        let changed = async {
            tokio::select! {
                changed = states.changed() => changed.is_ok(),
                changed = observed.changed() => changed.is_ok(),
                changed = memory.changed() => changed.is_ok(),
                () = tokio::time::sleep(LOOK_EVERY), if listened => true,
            }
        };
        tokio::select! {
            () = app.stop.cancelled() => return,
            goes_on = changed => if !goes_on { return },
        }
        let moment = Moment::of(&app);
        let now = moment.state.services.values().map(|service| {
            let Condition { state, message, .. } = moment.condition(&app, service);
            (service.name.clone(), (state, message))
        });
        let now: BTreeMap<ServiceName, (ServiceState, Option<String>)> = now.collect();
        for (name, (state, message)) in &now {
            if told.get(name) != Some(&(*state, message.clone())) {
                // Nobody may be listening.
                let _ = app.observations.send(event(moment.now, name, *state, message.as_deref()));
            }
        }
        told = now;
    }
}

fn event(at: UnixMillis, service: &ServiceName, state: ServiceState, message: Option<&str>) -> EventView {
    let reason = message.map_or_else(String::new, |message| format!(": {message}"));
    EventView {
        index: None,
        at,
        kind: OBSERVED.to_owned(),
        actor: "node".to_owned(),
        from: None,
        service: Some(service.clone()),
        machine: None,
        message: format!("`{service}` is {}{reason}.", state.as_str()),
    }
}
