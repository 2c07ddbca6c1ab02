//! Earlier generations. A machine that has not had a copy all along gets them from those that have, when nothing newer is on its way: so a
//! volume's history outlives every machine that it was on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_api::{NodeId, ServiceName, UnixMillis, VolumeName};
use flotilla_core::{
    history::{self, Moment, Rules},
    state::{GenerationName, Service},
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{Error, Served, Shared, haste::Haste, layout, name_of, replica, wire};
use crate::{clock, peers::Method};

/// How often the others are asked, beside when a first copy has come.
const EVERY: Duration = Duration::from_secs(600);

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Generations that are told at once: more than are kept of the busiest volume.
const TOLD_MAX: usize = 512;

/// Which generations are there that are not among these?
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Past {
    pub(super) service: ServiceName,
    pub(super) known: BTreeSet<GenerationName>,
}

/// One of them. The newest comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Earlier {
    #[serde(flatten)]
    name: GenerationName,
    taken_at: UnixMillis,
    /// Root of each volume.
    volumes: BTreeMap<VolumeName, String>,
}

/// What this machine has and the other one may have, without what was never committed.
pub(super) fn told(shared: &Shared, past: &Past, served: Served) -> Result<Vec<Earlier>, Error> {
    let mut all: BTreeMap<GenerationName, Earlier> = BTreeMap::new();
    for volume in layout::kept(&shared.store, &past.service)? {
        let key = layout::key(&past.service, &volume);
        let branches: BTreeSet<GenerationName> =
            shared.store.generations(&layout::branch_of(&key))?.iter().map(name_of).collect();
        for generation in shared.store.generations(&key)? {
            let name = name_of(&generation);
            if past.known.contains(&name) || branches.contains(&name) {
                continue;
            }
            if served == Served::Sealed && shared.store.sealed_with(&generation.root)?.is_none() {
                continue;
            }
            let taken_at = UnixMillis(generation.taken_at);
            let earlier = all.entry(name).or_insert(Earlier { name, taken_at, volumes: BTreeMap::new() });
            earlier.volumes.insert(volume.clone(), generation.root.to_string());
        }
    }
    Ok(all.into_values().rev().take(TOLD_MAX).collect())
}

pub(super) async fn keep(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.first.notified() => {}
            () = sleep(EVERY) => {}
        }
        let state = shared.parts.state.borrow().clone();
        for service in state.services.values().filter(|it| it.data.replicas.contains(&shared.parts.node)) {
            if let Err(error) = complete(&shared, service).await {
                tracing::debug!(service = %service.name, %error, "the history of a service is not complete yet");
            }
        }
    }
}

/// Fetches what this machine should have of a service's past and others have: first from the machine that writes it.
async fn complete(shared: &Arc<Shared>, service: &Service) -> Result<(), Error> {
    let Some(committed) = &service.data.committed else { return Ok(()) };
    let connected = shared.parts.network.connected().borrow().clone();
    let home = service.home.iter();
    // Who shall have no copy any more keeps it until others have all of its past.
    let others: BTreeSet<&NodeId> = committed.holders().into_iter().chain(&service.hosts).collect();
    let others = others.into_iter().filter(|holder| service.home.as_ref() != Some(*holder));
    for from in home.chain(others).filter(|machine| **machine != shared.parts.node && connected.contains(*machine)) {
        let (known, name) = (Arc::clone(shared), service.name.clone());
        let here = super::blocking(move || here(&known, &name)).await?;
        let past =
            Past { service: service.name.clone(), known: here.values().flatten().map(|moment| moment.name).collect() };
        for earlier in lacking(here, &history::rules(service.spec()), ask(shared, from, &past).await?) {
            if shared.stop.is_cancelled() {
                return Ok(());
            }
            let Earlier { name, taken_at, volumes } = earlier;
            let offer = wire::Offer {
                service: service.name.clone(),
                name,
                taken_at,
                volumes,
                holders: Vec::new(),
                awaited: false,
            };
            match replica::fetch(shared, from, &offer, &Haste::in_advance()).await {
                Ok(figures) => shared.counters.fetched(figures),
                // It is forgotten there by now, or nothing that this machine is given.
                Err(error) => {
                    tracing::debug!(service = %service.name, generation = %name, %error, "an earlier generation was not fetched");
                }
            }
        }
    }
    Ok(())
}

async fn ask(shared: &Shared, from: &NodeId, past: &Past) -> Result<Vec<Earlier>, Error> {
    let unheard = |why: String| Error::NoSource { why };
    let body = wire::write(past).map_err(|error| unheard(error.to_string()))?;
    let answer = shared.parts.network.call(from, Method::Past, body, ANSWER_WITHIN).await;
    let answer = answer.map_err(|error| unheard(error.to_string()))?;
    wire::read(&answer).map_err(|error| unheard(error.to_string()))
}

/// What another machine has of each volume, without what was never committed.
pub(super) async fn all_of(
    shared: &Shared,
    machine: &NodeId,
    service: &ServiceName,
) -> Result<Vec<(VolumeName, Moment)>, Error> {
    let past = Past { service: service.clone(), known: BTreeSet::new() };
    let told = ask(shared, machine, &past).await?.into_iter();
    let moments = told.flat_map(|Earlier { name, taken_at, volumes }| {
        volumes.into_keys().map(move |volume| (volume, Moment { name, taken_at }))
    });
    Ok(moments.collect())
}

/// What this machine has of each volume.
pub(super) fn here(shared: &Shared, service: &ServiceName) -> Result<BTreeMap<VolumeName, Vec<Moment>>, Error> {
    let mut here = BTreeMap::new();
    for volume in layout::kept(&shared.store, service)? {
        let moments = shared.store.generations(&layout::key(service, &volume))?.into_iter();
        let moments = moments.map(|it| Moment { name: name_of(&it), taken_at: UnixMillis(it.taken_at) });
        here.insert(volume, moments.collect());
    }
    Ok(here)
}

/// Of what was told, that which would be kept here, of volumes that are here.
fn lacking(here: BTreeMap<VolumeName, Vec<Moment>>, rules: &Rules, told: Vec<Earlier>) -> Vec<Earlier> {
    let stays: BTreeMap<VolumeName, BTreeSet<GenerationName>> = here
        .into_iter()
        .map(|(volume, mut moments)| {
            let more = told.iter().filter(|earlier| earlier.volumes.contains_key(&volume));
            moments.extend(more.map(|earlier| Moment { name: earlier.name, taken_at: earlier.taken_at }));
            let kept = history::kept(&moments, rules, clock::now());
            (volume, kept)
        })
        .collect();
    let wanted = told.into_iter().map(|mut earlier| {
        earlier.volumes.retain(|volume, _| stays.get(volume).is_some_and(|kept| kept.contains(&earlier.name)));
        earlier
    });
    wanted.filter(|earlier| !earlier.volumes.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn name(sequence: u64) -> GenerationName {
        GenerationName { epoch: 1, sequence }
    }

    #[test]
    fn only_what_would_be_kept_is_fetched_and_only_of_volumes_that_are_here() {
        let now = clock::now();
        let volume = |name: &str| name.parse::<VolumeName>().unwrap();
        let here = BTreeMap::from([(volume("rows"), vec![Moment { name: name(400), taken_at: now }])]);
        // One each minute.
        let told = (1..400).rev().map(|sequence| Earlier {
            name: name(sequence),
            taken_at: UnixMillis(now.0 - (400 - sequence) * 60_000),
            volumes: BTreeMap::from([(volume("rows"), "0".repeat(64)), (volume("elsewhere"), "0".repeat(64))]),
        });
        let rules = Rules::default();
        let lacking = lacking(here, &rules, told.collect());
        let (last, hourly) = (rules.last as usize, rules.hourly as usize);
        assert!((last - 1..last + hourly).contains(&lacking.len()), "{} generations", lacking.len());
        assert!(lacking.iter().all(|earlier| earlier.volumes.keys().eq([&volume("rows")])));
        assert!(lacking.windows(2).all(|pair| pair[0].name > pair[1].name), "the newest first");
        assert!(lacking.iter().any(|earlier| now.since(earlier.taken_at) > 5 * HOUR_MS));
    }
}
