//! What a crash leaves behind.

use std::{fs, path::Path};

use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    restore::restore,
    store::{self, Objects, Scrubbed, Sink},
};

use crate::places::assert_same;

fn noise(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| Hash::of(&[seed, (at / 32) as u8, (at / 8192) as u8]).as_bytes()[at % 32]).collect()
}

#[test]
fn what_was_not_committed_is_not_there_and_in_nobodys_way() {
    let directory = tempfile::tempdir().unwrap();
    let kept = {
        let store = Store::open(directory.path()).unwrap();
        let mut first = store.session();
        let kept = first.put(&noise(1, 5_000)).unwrap();
        first.commit(&store::News::default()).unwrap();
        let mut second = store.session();
        let lost = second.put(&noise(2, 5_000)).unwrap();
        assert_eq!(second.get(&lost).unwrap(), noise(2, 5_000));
        assert!(matches!(store.get(&lost), Err(store::Error::Missing { .. })));
        kept
    };
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.get(&kept).unwrap(), noise(1, 5_000));
    let mut session = store.session();
    let third = session.put(&noise(3, 5_000)).unwrap();
    session.commit(&store::News::default()).unwrap();
    assert_eq!((store.get(&kept).unwrap(), store.get(&third).unwrap()), (noise(1, 5_000), noise(3, 5_000)));
}

#[test]
fn a_pack_that_lost_its_end_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let name = {
        let store = Store::open(directory.path()).unwrap();
        let mut session = store.session();
        let name = session.put(&noise(1, 50_000)).unwrap();
        session.commit(&store::News::default()).unwrap();
        name
    };
    for pack in fs::read_dir(directory.path().join("packs")).unwrap() {
        fs::File::options().write(true).open(pack.unwrap().path()).unwrap().set_len(20_000).unwrap();
    }
    let store = Store::open(directory.path()).unwrap();
    assert!(store.get(&name).is_err());
}

#[test]
fn a_bit_that_flips_on_the_disk_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut session = store.session();
    let name = session.put(&noise(1, 50_000)).unwrap();
    session.commit(&store::News::default()).unwrap();
    for pack in fs::read_dir(directory.path().join("packs")).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[30_000] ^= 4;
        fs::write(&path, bytes).unwrap();
    }
    assert!(matches!(store.get(&name), Err(store::Error::Damaged { .. })));
}

#[test]
fn a_scrub_finds_what_is_damaged_and_another_store_repairs_it() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, other) = (Store::open(here.path()).unwrap(), Store::open(there.path()).unwrap());
    for store in [&store, &other] {
        let mut session = store.session();
        for seed in 0..50 {
            session.put(&noise(seed, 5_000)).unwrap();
        }
        session.commit(&store::News::default()).unwrap();
    }
    for pack in fs::read_dir(here.path().join("packs")).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        for at in [12_000, 100_000, 200_000] {
            bytes[at] ^= 16;
        }
        fs::write(&path, bytes).unwrap();
    }
    let scrubbed = |store: &Store| {
        let (mut damaged, mut behind, mut rounds) = (Vec::new(), None, 0);
        loop {
            let Scrubbed { damaged: found, last, .. } = store.scrub(behind.as_ref(), 7).unwrap();
            damaged.extend(found);
            rounds += 1;
            behind = last;
            if behind.is_none() {
                return (damaged, rounds);
            }
        }
    };
    let (damaged, rounds) = scrubbed(&store);
    assert_eq!((damaged.len(), rounds), (3, 9));
    let mut session = store.session();
    for name in &damaged {
        assert!(session.repair(name, &store.laid_down(name).unwrap()).is_err(), "no damaged one is taken for it");
        session.repair(name, &other.laid_down(name).unwrap()).unwrap();
    }
    session.commit(&store::News::default()).unwrap();
    assert_eq!(scrubbed(&store).0, []);
}

#[test]
fn two_daemons_never_share_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let _store = Store::open(directory.path()).unwrap();
    assert!(Store::open(directory.path()).is_err());
}

/// An index that shows objects up to some number, and then breaks.
#[derive(Debug)]
struct Breaks<'a> {
    store: &'a Store,
    left: std::cell::Cell<usize>,
}

impl Objects for Breaks<'_> {
    fn get(&self, name: &Hash) -> Result<Vec<u8>, store::Error> {
        let left = self.left.get().checked_sub(1).ok_or(store::Error::Missing { name: *name })?;
        self.left.set(left);
        self.store.get(name)
    }
}

fn captured(store: &Store, volume: &Path, sequence: u64) -> Hash {
    let capture = Capture::begin(store, "notes/data", volume).unwrap();
    capture.finish(&Scope::Everything).unwrap().commit(1, sequence, 7).unwrap().root
}

#[test]
fn a_restore_that_is_broken_off_anywhere_can_be_done_again() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let (volume, store) = (at("volume"), Store::open(&at("store")).unwrap());
    fs::create_dir_all(volume.join("a/b")).unwrap();
    for number in 0..10_u8 {
        fs::write(volume.join(format!("a/file-{number}")), noise(number, 40_000)).unwrap();
    }
    fs::hard_link(volume.join("a/file-3"), volume.join("a/b/twin")).unwrap();
    fs::write(volume.join("becomes-a-directory"), "file").unwrap();
    let first = captured(&store, &volume, 1);

    for number in 0..5_u8 {
        fs::write(volume.join(format!("a/file-{number}")), noise(100 + number, 60_000)).unwrap();
    }
    fs::remove_file(volume.join("a/file-9")).unwrap();
    fs::remove_file(volume.join("becomes-a-directory")).unwrap();
    fs::create_dir(volume.join("becomes-a-directory")).unwrap();
    fs::write(volume.join("becomes-a-directory/inside"), "new").unwrap();
    let second = captured(&store, &volume, 2);

    let mut broken = 0;
    for left in 0.. {
        let replica = at(&format!("replica-{left}"));
        fs::create_dir(&replica).unwrap();
        restore(&store, &replica, None, &first).unwrap();
        let breaks = Breaks { store: &store, left: left.into() };
        match restore(&breaks, &replica, Some(&first), &second) {
            Ok(_) => break,
            Err(_) => broken += 1,
        }
        restore(&store, &replica, Some(&first), &second).unwrap();
        assert_same(&volume, &replica, &format!("broken off after {left} objects"));
    }
    assert!(broken > 5, "{broken}");
}
