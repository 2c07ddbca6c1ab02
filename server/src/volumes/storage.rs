//! What volumes take up on this machine's disk, measured in the background: nobody who asks waits for the store.

use std::{sync::Arc, time::Duration};

use flotilla_api::{NodeId, ServiceName, rest::StorageView};
use flotilla_core::State;
use flotilla_data::{
    Store,
    tree::{self, Root},
};
use tokio::time::sleep;

use super::{Error, Shared, layout};
use crate::clock;

/// The store answers from its index, and one root is read for each volume: milliseconds, but not for every look at a page.
const MEASURE_EVERY: Duration = Duration::from_secs(30);

pub(super) async fn measure(shared: Arc<Shared>) {
    loop {
        let known = Arc::clone(&shared);
        match super::blocking(move || measured(&known)).await {
            Ok(storage) => {
                shared.storage.send_replace(Some(storage));
            }
            Err(error) => tracing::warn!(%error, "what volumes take up on the disk could not be measured"),
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(MEASURE_EVERY) => {}
        }
    }
}

fn measured(shared: &Shared) -> Result<StorageView, Error> {
    let state = shared.parts.state.borrow().clone();
    taken_up(&shared.store, &state, &shared.parts.node)
}

/// The directories show what is newest in the store, or something younger: their files are not gone through for that.
fn taken_up(store: &Store, state: &State, node: &NodeId) -> Result<StorageView, Error> {
    let mut storage = StorageView { objects_bytes: store.size()?, measured_at: clock::now(), ..StorageView::default() };
    for key in store.volumes("")? {
        // What begins with a colon is no service's name: it is kept in the store alone.
        let Some(Ok(service)) = key.split_once('/').map(|(service, _)| service.parse::<ServiceName>()) else {
            continue;
        };
        let Some(newest) = store.generations(&key)?.pop() else { continue };
        let bytes = match Root::read(store, &newest.root) {
            Ok(root) => root.totals.bytes,
            // This machine can't read it; the state says what whoever wrote it told.
            Err(tree::Error::Store(error)) if error.is_sealed() => told_bytes(state, &service, &key),
            Err(error) => return Err(error.into()),
        };
        let home = match state.services.get(&service) {
            Some(service) => service.home.as_ref(),
            None => state.kept_homes.get(&service),
        };
        if home == Some(node) {
            storage.written_bytes += bytes;
        } else {
            storage.copies_bytes += bytes;
        }
    }
    Ok(storage)
}

/// Of the committed generation of the volume that is kept under this name.
fn told_bytes(state: &State, service: &ServiceName, key: &str) -> u64 {
    let committed = state.services.get(service).and_then(|service| service.data.committed.as_ref());
    let volumes = committed.into_iter().flat_map(|committed| &committed.volumes);
    let mut of_key = volumes.filter(|(volume, _)| layout::key(service, volume) == key);
    of_key.next().map_or(0, |(_, copies)| copies.bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flotilla_data::capture::{Capture, Scope};

    use super::*;

    #[test]
    fn each_volume_counts_once_as_what_it_is_here() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let take = |key: &str, sequence, bytes: usize| {
            let volume = directory.path().join("volume");
            fs::create_dir_all(&volume).unwrap();
            fs::write(volume.join("file"), vec![7; bytes]).unwrap();
            let capture = Capture::begin(&store, key, &volume).unwrap();
            capture.finish(&Scope::Everything).unwrap().commit(1, sequence, sequence).unwrap();
        };
        let (here, there) = (NodeId("here".to_owned()), NodeId("there".to_owned()));
        let mut state = State::default();
        for (service, home) in [("notes", &here), ("files", &here), ("mail", &there)] {
            state.kept_homes.insert(service.parse().unwrap(), home.clone());
        }
        assert_eq!(taken_up(&store, &state, &here).unwrap().written_bytes, 0);

        for (key, sequence, bytes) in [
            ("notes/board", 1, 100_000),
            ("notes/board", 2, 70_000),
            (":branch/notes/board", 3, 1_000_000),
            ("files/all", 1, 5_000),
            ("mail/box", 1, 300),
            ("nobody/knows", 1, 20),
        ] {
            take(key, sequence, bytes);
        }
        let storage = taken_up(&store, &state, &here).unwrap();
        assert_eq!((storage.written_bytes, storage.copies_bytes), (75_000, 320));
        assert_eq!(storage.objects_bytes, store.size().unwrap());
        assert!(storage.objects_bytes > 0);
    }
}
