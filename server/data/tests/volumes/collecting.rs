//! Freeing what no generation needs, and nothing else.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    restore::restore,
    store::{Error, Generation, News, Objects, Sink},
};

use crate::places::assert_same;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len.div_ceil(32))
        .flat_map(|at| *Hash::of(&[seed.to_be_bytes(), (at as u64).to_be_bytes()].concat()).as_bytes())
        .take(len)
        .collect()
}

fn capture(store: &Store, volume: &Path, sequence: u64) -> Generation {
    let capture = Capture::begin(store, "notes/data", volume).unwrap();
    capture.finish(&Scope::Everything).unwrap().commit(1, sequence, 7).unwrap()
}

#[test]
fn what_is_forgotten_gives_its_room_back_and_what_is_kept_stays() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let (volume, store) = (at("volume"), Store::open(&at("store")).unwrap());
    fs::create_dir(&volume).unwrap();
    // More than a pack for each generation.
    let mut kept = None;
    for sequence in 1..=4 {
        fs::write(volume.join("large"), noise(sequence, 70_000_000)).unwrap();
        fs::write(volume.join(format!("small-{sequence}")), noise(100 + sequence, 10_000)).unwrap();
        kept = Some(capture(&store, &volume, sequence));
    }
    let before = store.size().unwrap();
    assert!(before > 280_000_000);
    assert_eq!(store.collect().unwrap().objects, 0);
    store.forget("notes/data", &[(1, 1), (1, 2), (1, 3)]).unwrap();
    let collected = store.collect().unwrap();
    assert!(collected.bytes > 130_000_000, "{collected:?}");
    assert_eq!(store.size().unwrap() + collected.bytes, before);

    let replica = at("replica");
    fs::create_dir(&replica).unwrap();
    restore(&store, &replica, None, &kept.unwrap().root).unwrap();
    assert_same(&volume, &replica, "after collecting");
    drop(store);
    let store = Store::open(&at("store")).unwrap();
    assert_eq!(store.generations("notes/data").unwrap(), [kept.unwrap()]);
    let again = at("again");
    fs::create_dir(&again).unwrap();
    restore(&store, &again, None, &kept.unwrap().root).unwrap();
    assert_same(&volume, &again, "after a restart");
}

#[test]
fn what_a_session_found_is_spared_until_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut first = store.session();
    let name = first.put(b"nobody needs this").unwrap();
    first.commit(&News::default()).unwrap();
    drop(first);

    let mut second = store.session();
    assert_eq!(second.put(b"nobody needs this").unwrap(), name);
    assert_eq!(store.collect().unwrap().objects, 0);
    assert!(store.get(&name).is_ok());
    drop(second);
    assert_eq!(store.collect().unwrap().objects, 1);
    assert!(matches!(store.get(&name), Err(Error::Missing { .. })));
}

#[test]
fn a_store_that_lost_an_object_frees_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let (volume, store) = (at("volume"), Store::open(&at("store")).unwrap());
    fs::create_dir(&volume).unwrap();
    for number in 0..50 {
        fs::write(volume.join(format!("file-{number}")), noise(number, 1_000)).unwrap();
    }
    capture(&store, &volume, 1);
    let mut session = store.session();
    let unneeded = session.put(b"nobody needs this").unwrap();
    session.commit(&News::default()).unwrap();
    drop(session);
    for pack in fs::read_dir(at("store/packs")).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        // What lists the files, which is written behind them.
        let end = bytes.len() - 1_000;
        bytes[end..].fill(0);
        fs::write(&path, bytes).unwrap();
    }
    assert!(store.collect().is_err());
    assert!(store.contains(&unneeded).unwrap());
}

/// Somebody writes generations and forgets old ones all the time, while somebody else collects: what is kept can be restored.
#[test]
fn collecting_never_meets_a_writer() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let (volume, store) = (at("volume"), Store::open(&at("store")).unwrap());
    fs::create_dir(&volume).unwrap();
    let over = AtomicBool::new(false);
    let collections = thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut collections = 0;
            while !over.load(Ordering::SeqCst) {
                store.collect().unwrap();
                collections += 1;
            }
            collections
        });
        for sequence in 1..=60_u64 {
            // Contents come and go and come back, so that what is about to be freed is found to be there.
            for number in 0..12 {
                let seed = (sequence * 7 + number * 3) % 10;
                fs::write(volume.join(format!("file-{number}")), noise(seed, 40_000)).unwrap();
            }
            capture(&store, &volume, sequence);
            if sequence > 2 {
                store.forget("notes/data", &[(1, sequence - 2)]).unwrap();
            }
        }
        over.store(true, Ordering::SeqCst);
        collector.join().unwrap()
    });
    assert!(collections > 3, "{collections}");
    let generations = store.generations("notes/data").unwrap();
    assert_eq!(generations.len(), 2);
    for generation in generations {
        let replica = at(&format!("replica-{}", generation.sequence));
        fs::create_dir(&replica).unwrap();
        restore(&store, &replica, None, &generation.root).unwrap();
        if generation.sequence == 60 {
            assert_same(&volume, &replica, "the newest");
        }
    }
}
