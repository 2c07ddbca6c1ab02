//! Images of the cluster: who holds them, as the machines told.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::{
    NodeId, UnixMillis,
    rest::{HeldImageView, ImageHolderView, ImageUseView, LayerView, TransferView},
};
use flotilla_core::{State, images, report::StoredImages};

use super::{App, sight::Moment};
use crate::images::{Digest, Stored};

/// What one machine has.
struct Holding {
    /// Keys of services' images that its engine has.
    engine: BTreeSet<String>,
    stored: StoredImages,
    observed_at: UnixMillis,
}

/// All images that services name or machines hold, the used ones first.
pub(super) fn views(app: &App) -> Vec<HeldImageView> {
    let moment = Moment::of(app);
    let state = &moment.state;
    let mut holdings: BTreeMap<&NodeId, Holding> = BTreeMap::new();
    for machine in state.machines.keys() {
        if *machine == app.node {
            let holding = Holding {
                engine: app.engine.held_images().borrow().clone(),
                stored: app.images.watch_reports().borrow().clone(),
                observed_at: moment.now,
            };
            holdings.insert(machine, holding);
        } else if let Some((observed_at, report)) = moment.report(machine) {
            let holding = Holding {
                engine: report.images.iter().cloned().collect(),
                stored: report.stored_images.clone(),
                observed_at,
            };
            holdings.insert(machine, holding);
        }
    }
    let stored = app.images.stored();
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in state.services.values() {
        for record in service.revisions.values() {
            let names = names.entry(images::key(&record.spec).to_owned()).or_default();
            names.insert(record.spec.image.clone());
        }
    }
    for image in holdings.values().flat_map(|holding| &holding.stored.held) {
        names.entry(image.id.clone()).or_default().extend(image.names.iter().cloned());
    }
    for moving in holdings.values().flat_map(|holding| &holding.stored.moving) {
        // A layer on its way is told of with the image that it is for.
        if !moving.name.is_empty() && moving.name != moving.image {
            names.entry(moving.image.clone()).or_default().insert(moving.name.clone());
        }
    }
    let wanted: BTreeMap<&NodeId, BTreeSet<&str>> =
        state.machines.keys().map(|id| (id, images::wanted(state, id).into_keys().collect())).collect();
    let mut views: Vec<HeldImageView> = names
        .into_iter()
        .map(|(id, references)| {
            let used_by = used_by(state, &id);
            let machines = state.machines.iter().filter_map(|(machine, record)| {
                let holding = holdings.get(machine);
                let view = ImageHolderView {
                    machine: record.name().clone(),
                    engine: holding.is_some_and(|it| it.engine.contains(&id)),
                    store: holding.is_some_and(|it| it.stored.held.iter().any(|image| image.id == id)),
                    wanted: wanted.get(machine).is_some_and(|wanted| wanted.contains(id.as_str())),
                    lost: record.lost_at.is_some(),
                    transfer: holding.and_then(|it| transfer(&it.stored, &id)),
                    observed_at: holding.map(|it| it.observed_at),
                };
                (view.engine || view.store || view.wanted || view.transfer.is_some()).then_some(view)
            });
            let machines = machines.collect();
            let told = holdings.values().flat_map(|it| &it.stored.held).find(|image| image.id == id);
            let here = id.parse::<Digest>().ok().and_then(|digest| stored.get(&digest).map(|it| (digest, it)));
            let layers = here.as_ref().map(|(digest, it)| layers(digest, it, &stored)).unwrap_or_default();
            let shared_bytes = here.map(|_| {
                let once: BTreeMap<&str, &LayerView> = layers.iter().map(|it| (it.digest.as_str(), it)).collect();
                once.values().filter(|it| it.shared_with > 0).map(|it| it.size_bytes).sum()
            });
            HeldImageView {
                size_bytes: told.map(|image| image.bytes),
                shared_bytes,
                layers,
                used_by,
                machines,
                references: references.into_iter().collect(),
                id,
            }
        })
        .collect();
    views.sort_by(|one, other| order(one).cmp(&order(other)));
    views
}

fn order(view: &HeldImageView) -> (bool, Vec<&str>, &str) {
    let used = view.used_by.iter().any(|it| it.current);
    (!used, view.references.iter().map(String::as_str).collect(), &view.id)
}

fn used_by(state: &State, id: &str) -> Vec<ImageUseView> {
    let mut used_by: Vec<ImageUseView> = Vec::new();
    for it in images::uses(state, |key| key == id) {
        match used_by.last_mut().filter(|last| last.service == *it.service) {
            Some(last) => {
                last.revisions.push(it.revision);
                last.current |= it.current;
            }
            None => used_by.push(ImageUseView {
                service: it.service.clone(),
                revisions: vec![it.revision],
                current: it.current,
            }),
        }
    }
    used_by
}

fn transfer(stored: &StoredImages, id: &str) -> Option<TransferView> {
    let moving = stored.moving.iter().find(|moving| moving.image == id)?;
    Some(TransferView { step: moving.step, bytes: moving.bytes, of: moving.of })
}

fn layers(image: &Digest, stored: &Stored, all: &BTreeMap<Digest, Stored>) -> Vec<LayerView> {
    let others = |digest: &Digest| {
        let has = |it: &Stored| it.layers.iter().any(|(layer, _)| layer == digest);
        all.iter().filter(|(id, it)| *id != image && has(it)).count()
    };
    let view = |(digest, size_bytes): &(Digest, u64)| LayerView {
        digest: digest.id(),
        size_bytes: *size_bytes,
        shared_with: u32::try_from(others(digest)).unwrap_or(u32::MAX),
    };
    stored.layers.iter().map(view).collect()
}
