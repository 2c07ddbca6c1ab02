//! How services do: the state log and what the engine shows, put together for a person; and a sentence for each change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flotilla_api::{
    MachineName, NodeId, ServiceName, UnixMillis,
    rest::{EventView, InstanceView, PlacedView, RevisionView, ServiceDetail, ServiceState, ServiceView},
};
use flotilla_core::{
    reconcile::{self, Condition},
    schedule,
    state::{Placement, Service},
};

use super::{App, scheduler, sight::Moment};

/// Changes that a slow reader of events may lag behind.
pub(super) const OBSERVATIONS_MAX: usize = 256;

/// Some states are reached by time alone: ready after two seconds, unknown after half a minute.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Kind of an event that no command made.
pub(super) const OBSERVED: &str = "observed";

impl Moment {
    fn condition(&self, app: &App, service: &Service) -> Condition {
        let mut condition = reconcile::condition(self.now, service, &self.views());
        // One without an instance may have no machine to run on; for one with some that would be looked for in vain.
        let nowhere = condition.instances.is_empty() && service.replicas > 0;
        let waits = || scheduler(&*app.members, |input| schedule::waiting(input, &service.name));
        if condition.state == ServiceState::Starting
            && let Some(activity) = self.activity(app, &service.name)
        {
            condition.message = Some(activity);
        } else if nowhere && let Some(waiting) = waits() {
            condition.message = Some(format!("it {waiting}"));
        }
        condition
    }

    fn view(&self, app: &App, service: &Service) -> ServiceView {
        let condition = self.condition(app, service);
        let spec = service.spec();
        let machine = service.placements.iter().find_map(|placement| self.name_of(&placement.machine));
        let instances = condition.instances.into_iter().filter_map(|instance| {
            let usage = self.usage(&instance.machine, &instance.instance);
            Some(InstanceView {
                id: instance.instance,
                machine: self.name_of(&instance.machine)?,
                replica: instance.replica,
                epoch: instance.epoch,
                revision: instance.revision,
                state: instance.state,
                message: instance.message,
                container: Some(instance.container),
                since: instance.since,
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
            observed_at: self.observed_at(service),
            instances: instances.collect(),
            machine,
        }
    }

    /// Of the machines where it is placed, when the one was seen that was seen longest ago. Before an engine answered for the first
    /// time nothing newer is known than the state log.
    fn observed_at(&self, service: &Service) -> UnixMillis {
        let views = self.views();
        let seen = service.placements.iter().map(|placement| {
            views
                .get(&placement.machine)
                .filter(|view| view.observed.is_some())
                .map_or(service.changed_at, |view| view.at)
        });
        seen.min().unwrap_or(service.changed_at)
    }

    pub(super) fn name_of(&self, id: &NodeId) -> Option<MachineName> {
        self.state.machines.get(id).map(|machine| machine.name().clone())
    }

    pub(super) fn placement(&self, service: &Service, placement: &Placement) -> Option<PlacedView> {
        Some(placement.view(&service.name, &self.name_of(&placement.machine)?))
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
        placements: service.placements.iter().filter_map(|placement| moment.placement(service, placement)).collect(),
        standby: service.standby.iter().filter_map(|machine| moment.name_of(machine)).collect(),
        standby_ready: service
            .standby
            .iter()
            .filter(|machine| moment.has_image(app, machine, service))
            .filter_map(|machine| moment.name_of(machine))
            .collect(),
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
    let mut reports = app.members.watch_reports();
    loop {
        let listened = app.observations.receiver_count() > 0;
        let changed = async {
            tokio::select! {
                changed = states.changed() => changed.is_ok(),
                changed = observed.changed() => changed.is_ok(),
                changed = memory.changed() => changed.is_ok(),
                changed = reports.changed() => changed.is_ok(),
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
                let _ = app.observations.send(event(&moment, name, *state, message.as_deref()));
            }
        }
        told = now;
    }
}

fn event(moment: &Moment, service: &ServiceName, state: ServiceState, message: Option<&str>) -> EventView {
    let placements = moment.state.services.get(service).map_or(&[][..], |service| &service.placements);
    let mut machines = placements.iter().map(|placement| &placement.machine);
    // Where it is on several machines, the change is of none of them in particular.
    let machine = machines.next().filter(|first| machines.all(|other| other == *first));
    let reason = message.map_or_else(String::new, |message| format!(": {message}"));
    EventView {
        index: None,
        at: moment.now,
        kind: OBSERVED.to_owned(),
        actor: "node".to_owned(),
        from: None,
        service: Some(service.clone()),
        machine: machine.and_then(|machine| moment.name_of(machine)),
        message: format!("`{service}` is {}{reason}.", state.as_str()),
    }
}
