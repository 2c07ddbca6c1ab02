//! What every page of a signed-in person may need: the cluster and its services, kept fresh in one place.

use std::{collections::BTreeMap, time::Duration};

use flotilla_api::{
    ServiceName,
    rest::{ClusterView, ServiceState, ServiceView},
};
use leptos::prelude::*;

use super::{
    api::Client,
    components::appearance,
    live::{Link, Live},
    query::Query,
};

/// Events bring changes at once; this is for figures and for when events do not come.
const SERVICES_INTERVAL: Duration = Duration::from_secs(10);
const CLUSTER_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    pub(crate) cluster: Query<ClusterView>,
    pub(crate) services: Query<Vec<ServiceView>>,
    /// What just changed, for screen readers.
    pub(crate) announcement: RwSignal<String>,
}

impl Fleet {
    pub(crate) fn start(client: Client, live: Live) -> Self {
        let cluster = Query::start(CLUSTER_INTERVAL, move || async move { client.cluster().await });
        let services = Query::start(SERVICES_INTERVAL, move || async move { client.services().await });
        refresh_on_change(live, services);
        refresh_on_change(live, cluster);
        let announcement = RwSignal::new(String::new());
        let value = services.value();
        Effect::new(move |before: Option<Option<States>>| {
            let after = value.get().map(|services| states(&services));
            if let (Some(Some(before)), Some(after)) = (before, &after) {
                let news = news(&before, after);
                if !news.is_empty() {
                    announcement.set(news);
                }
            }
            after
        });
        Effect::new(move |before: Option<Link>| {
            let link = live.link.get();
            match (before, link) {
                (Some(Link::Live), Link::Lost) => announcement.set("Live updates were lost.".to_owned()),
                (Some(Link::Lost), Link::Live) => announcement.set("Live updates are back.".to_owned()),
                _ => {}
            }
            link
        });
        Self { cluster, services, announcement }
    }
}

/// Asks anew whenever something happened in the cluster.
pub(crate) fn refresh_on_change<T: Clone + PartialEq + Send + Sync + 'static>(live: Live, query: Query<T>) {
    Effect::new(move |before: Option<u64>| {
        let changes = live.changes.get();
        if before.is_some() {
            query.refresh();
        }
        changes
    });
}

type States = BTreeMap<ServiceName, ServiceState>;

fn states(services: &[ServiceView]) -> States {
    services.iter().map(|service| (service.service.clone(), service.state)).collect()
}

/// "notes is now Running. web was removed."
fn news(before: &States, after: &States) -> String {
    let changed = after
        .iter()
        .filter(|(name, state)| before.get(*name) != Some(*state))
        .map(|(name, state)| format!("{name} is now {}.", appearance(*state).1.to_lowercase()));
    let removed = before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("{name} was removed."));
    changed.chain(removed).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_announced() {
        let states = |list: &[(&str, ServiceState)]| -> States {
            list.iter().map(|(name, state)| (name.parse().unwrap(), *state)).collect()
        };
        let before =
            states(&[("a", ServiceState::Running), ("b", ServiceState::Starting), ("c", ServiceState::Failed)]);
        let after =
            states(&[("a", ServiceState::Running), ("b", ServiceState::Running), ("d", ServiceState::Starting)]);
        assert_eq!(news(&before, &after), "b is now running. d is now starting. c was removed.");
        assert_eq!(news(&after, &after), "");
    }
}
