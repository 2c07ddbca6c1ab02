//! Volumes that are sealed: kept, moved, checked and freed by machines that can't read them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use flotilla_data::{
    Hash, Store,
    capture::{self, Capture, Scope},
    fetch::Fetch,
    restore::restore,
    seal::{self, Key, KeyId},
    store::{Error, Generation, Objects, Sink},
    tree::{self, Root},
};
use proptest::prelude::*;

use crate::{fetching::noise, places::assert_same, trees};

const VOLUME: &str = "notes/data";
const FIRST: KeyId = KeyId([1; 8]);
const SECOND: KeyId = KeyId([2; 8]);

fn key(id: KeyId) -> Key {
    Key::derive(id, &[id.0[0]; 32])
}

/// One machine with the key, one without, and a third one that gets what it has from the second, and has the key.
struct World {
    temporary: tempfile::TempDir,
    near: Store,
    blind: Store,
    sequence: u64,
}

impl World {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let near = Store::open(&temporary.path().join("near")).unwrap();
        let blind = Store::open(&temporary.path().join("blind")).unwrap();
        near.use_keys([key(FIRST)]);
        fs::create_dir(temporary.path().join("volume")).unwrap();
        Self { temporary, near, blind, sequence: 0 }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    fn volume(&self) -> PathBuf {
        self.at("volume")
    }

    fn capture(&mut self, seal: Option<KeyId>) -> Generation {
        self.sequence += 1;
        let capture = Capture::begin_sealed(&self.near, VOLUME, &self.volume(), seal).unwrap();
        capture.finish(&Scope::Everything).unwrap().commit(1, self.sequence, 7).unwrap()
    }
}

/// Objects that came.
fn fetch(from: &Store, to: &Store, generation: Generation) -> BTreeSet<Hash> {
    let mut fetch = Fetch::begin(to, VOLUME, generation).unwrap();
    let mut came = BTreeSet::new();
    while !fetch.is_complete() {
        for name in fetch.wants(64).unwrap() {
            assert!(came.insert(name), "{name} was asked for twice");
            fetch.take(&name, &from.laid_down(&name).unwrap()).unwrap();
        }
    }
    fetch.commit().unwrap();
    came
}

fn assert_restored(store: &Store, generation: Generation, like: &Path, told: &str) {
    let directory = tempfile::tempdir_in(like.parent().unwrap()).unwrap();
    restore(store, directory.path(), None, &generation.root).unwrap();
    assert_same(like, directory.path(), told);
}

/// All that is on a store's disk.
fn on_disk(store: &Path) -> Vec<u8> {
    let mut bytes = fs::read(store.join("index.redb")).unwrap();
    for pack in fs::read_dir(store.join("packs")).unwrap() {
        bytes.extend(fs::read(pack.unwrap().path()).unwrap());
    }
    bytes
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// Deep, wide, large, and so many entries in one directory that their list is a tree.
fn furnish(volume: &Path) {
    fs::create_dir_all(volume.join("letters/private/deep")).unwrap();
    for number in 0..900_u64 {
        fs::write(volume.join(format!("letters/letter-{number}")), noise(number, 300)).unwrap();
    }
    fs::write(volume.join("letters/private/deep/large"), noise(9_000, 1_500_000)).unwrap();
    fs::write(volume.join("letters/private/diary"), "dear diary, ".repeat(500)).unwrap();
}

#[test]
fn a_machine_without_the_key_has_all_of_it_and_knows_none_of_it() {
    let mut world = World::new();
    furnish(&world.volume());
    let generation = world.capture(Some(FIRST));
    let came = fetch(&world.near, &world.blind, generation);
    assert!(came.iter().all(|name| world.blind.sealed_with(name).unwrap() == Some(FIRST)));

    let refused = world.blind.get(&generation.root).unwrap_err();
    assert!(matches!(refused, Error::Sealed { key: FIRST, .. }), "{refused}");
    assert!(Root::read(&world.blind, &generation.root).is_err());
    for store in ["near", "blind"] {
        let bytes = on_disk(&world.at(store));
        for text in ["letter-", "private", "diary", "dear", "large"] {
            assert!(!has(&bytes, text.as_bytes()), "`{text}` can be read in `{store}`");
        }
        assert!(!has(&bytes, &noise(9_000, 1_500_000)[1_000..1_032]));
    }

    // From there it comes back.
    let far = Store::open(&world.at("far")).unwrap();
    fetch(&world.blind, &far, generation);
    far.use_keys([key(FIRST)]);
    assert_restored(&far, generation, &world.volume(), "from a machine without the key");
}

#[test]
fn the_next_generation_costs_what_has_changed() {
    let mut world = World::new();
    furnish(&world.volume());
    let first = world.capture(Some(FIRST));
    let all = fetch(&world.near, &world.blind, first).len();
    fs::write(world.volume().join("letters/letter-77"), "changed").unwrap();
    let large = fs::File::options().write(true).open(world.volume().join("letters/private/deep/large")).unwrap();
    large.write_all_at(&noise(9_001, 1_000), 700_000).unwrap();
    let second = world.capture(Some(FIRST));
    let came = fetch(&world.near, &world.blind, second).len();
    assert!(all > 900 && came < 25, "{came} of {all}");
    assert_restored(&world.near, second, &world.volume(), "the second");
}

#[test]
fn what_is_equal_is_kept_once_and_is_not_what_another_key_makes_of_it() {
    let mut world = World::new();
    fs::write(world.volume().join("one"), noise(1, 2_000_000)).unwrap();
    world.capture(Some(FIRST));
    let alone = world.near.size().unwrap();
    fs::write(world.volume().join("two"), noise(1, 2_000_000)).unwrap();
    world.capture(Some(FIRST));
    assert!(world.near.size().unwrap() < alone + 50_000);

    world.near.use_keys([key(FIRST), key(SECOND)]);
    let capture = Capture::begin_sealed(&world.near, "other/data", &world.volume(), Some(SECOND)).unwrap();
    capture.finish(&Scope::Everything).unwrap().commit(1, 1, 7).unwrap();
    assert!(world.near.size().unwrap() > 2 * alone);
}

#[test]
fn what_was_not_sealed_is_read_again_and_nothing_of_the_two_mixes() {
    let mut world = World::new();
    furnish(&world.volume());
    let plain = world.capture(None);
    let sealed = world.capture(Some(FIRST));
    let names = fetch(&world.near, &world.blind, sealed);
    assert!(names.iter().all(|name| world.near.sealed_with(name).unwrap().is_some()), "sealed throughout");
    let plain_again = world.capture(None);
    assert_eq!(plain.root, plain_again.root);
    let other = Store::open(&world.at("other")).unwrap();
    let names = fetch(&world.near, &other, plain_again);
    assert!(names.iter().all(|name| world.near.sealed_with(name).unwrap().is_none()), "and plain throughout");
    assert_restored(&other, plain_again, &world.volume(), "the plain one, without any key");
    assert_eq!(world.near.captured_with(VOLUME).unwrap(), None);
}

#[test]
fn after_a_new_key_only_what_changes_is_sealed_with_it_and_both_are_needed() {
    let mut world = World::new();
    furnish(&world.volume());
    let first = world.capture(Some(FIRST));
    fetch(&world.near, &world.blind, first);
    world.near.use_keys([key(FIRST), key(SECOND)]);
    fs::write(world.volume().join("new"), "new").unwrap();
    let second = world.capture(Some(SECOND));
    assert_eq!(world.near.captured_with(VOLUME).unwrap(), Some(SECOND));
    let far = Store::open(&world.at("far")).unwrap();
    let all = fetch(&world.near, &far, second);
    let keys: BTreeSet<KeyId> = all.iter().filter_map(|name| far.sealed_with(name).unwrap()).collect();
    assert!(keys.contains(&SECOND));
    far.use_keys([key(FIRST), key(SECOND)]);
    assert_restored(&far, second, &world.volume(), "with both keys");
}

#[test]
fn who_lacks_the_key_makes_nothing_and_says_which() {
    let world = World::new();
    let refused = Capture::begin_sealed(&world.near, VOLUME, &world.volume(), Some(SECOND)).unwrap_err();
    assert!(matches!(refused, capture::Error::Store(Error::NoKey { key: SECOND })), "{refused}");
    assert!(refused.to_string().contains("0202020202020202"), "{refused}");
}

#[test]
fn without_keys_what_is_needed_stays_and_what_is_not_goes() {
    let mut world = World::new();
    furnish(&world.volume());
    let first = world.capture(Some(FIRST));
    fetch(&world.near, &world.blind, first);
    fs::write(world.volume().join("letters/private/deep/large"), noise(9_002, 1_500_000)).unwrap();
    let second = world.capture(Some(FIRST));
    fetch(&world.near, &world.blind, second);
    assert_eq!(world.blind.collect().unwrap().objects, 0);

    world.blind.forget(VOLUME, &[(1, first.sequence)]).unwrap();
    let freed = world.blind.collect().unwrap().objects;
    assert!(freed > 10, "{freed}");
    let far = Store::open(&world.at("far")).unwrap();
    fetch(&world.blind, &far, second);
    far.use_keys([key(FIRST)]);
    assert_restored(&far, second, &world.volume(), "after a collection");
    assert!(world.near.collect().is_ok(), "with a key it is the same");
}

#[test]
fn a_disk_that_forgets_is_found_out_without_a_key_and_mended() {
    let mut world = World::new();
    fs::write(world.volume().join("large"), noise(1, 3_000_000)).unwrap();
    let generation = world.capture(Some(FIRST));
    fetch(&world.near, &world.blind, generation);
    let pack = fs::read_dir(world.at("blind/packs")).unwrap().next().unwrap().unwrap().path();
    let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 1_000_000).unwrap();

    let damaged = world.blind.scrub(None, usize::MAX).unwrap().damaged;
    let [name] = damaged.as_slice() else { panic!("{damaged:?}") };
    let mut session = world.blind.session();
    session.repair(name, &world.near.laid_down(name).unwrap()).unwrap();
    session.commit(&flotilla_data::store::News::default()).unwrap();
    assert!(world.blind.scrub(None, usize::MAX).unwrap().damaged.is_empty());
    assert!(world.near.scrub(None, usize::MAX).unwrap().damaged.is_empty());
}

#[test]
fn a_source_that_gives_something_else_is_found_out_without_a_key() {
    let mut world = World::new();
    furnish(&world.volume());
    let generation = world.capture(Some(FIRST));
    let mut fetch = Fetch::begin(&world.blind, VOLUME, generation).unwrap();
    let mut turns = 0_u32;
    while !fetch.is_complete() {
        for name in fetch.wants(16).unwrap() {
            turns += 1;
            let mut coded = world.near.laid_down(&name).unwrap();
            assert!(seal::is_sealed(&coded));
            if turns.is_multiple_of(3) {
                let at = turns as usize % coded.len();
                coded[at] ^= 1;
                let error = fetch.take(&name, &coded).unwrap_err();
                assert!(matches!(error, tree::Error::Store(Error::Damaged { .. })), "{error}");
                fetch.again(&name);
            } else {
                fetch.take(&name, &coded).unwrap();
            }
        }
    }
    fetch.commit().unwrap();
}

#[test]
fn an_interrupted_copy_goes_on_below_what_it_has() {
    let mut world = World::new();
    furnish(&world.volume());
    let generation = world.capture(Some(FIRST));
    let mut began = Fetch::begin(&world.blind, VOLUME, generation).unwrap();
    let mut came = BTreeSet::new();
    while came.len() < 200 {
        for name in began.wants(10).unwrap() {
            began.take(&name, &world.near.laid_down(&name).unwrap()).unwrap();
            came.insert(name);
        }
    }
    began.save().unwrap();
    drop(began);
    let rest = fetch(&world.near, &world.blind, generation);
    assert!(rest.is_disjoint(&came));
    let far = Store::open(&world.at("far")).unwrap();
    assert_eq!(fetch(&world.blind, &far, generation).len(), rest.len() + came.len());
}

#[test]
fn a_sealed_object_that_needs_a_plain_one_is_damaged() {
    let world = World::new();
    let mut plain = world.near.session();
    let leaf = plain.put(b"plain").unwrap();
    plain.commit(&flotilla_data::store::News::default()).unwrap();
    let mut session = world.near.sealing_session(FIRST).unwrap();
    let reference = seal::Reference { name: leaf, kind: seal::Kind::Node };
    let root = session.put_with(b"root", &[reference]).unwrap();
    session.commit(&flotilla_data::store::News::default()).unwrap();
    let generation = Generation { epoch: 1, sequence: 1, taken_at: 7, root };
    let mut fetch = Fetch::begin(&world.blind, VOLUME, generation).unwrap();
    let mut failed = None;
    while failed.is_none() {
        match fetch.wants(8) {
            Ok(names) => names.iter().for_each(|name| fetch.take(name, &world.near.laid_down(name).unwrap()).unwrap()),
            Err(error) => failed = Some(error),
        }
    }
    assert!(matches!(failed, Some(tree::Error::Store(Error::Damaged { .. }))), "{failed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever programs do: generation after generation goes through a machine without the key, from which it is restored elsewhere.
    #[test]
    fn every_sealed_generation_is_the_directory_as_it_was(
        rounds in proptest::collection::vec((proptest::collection::vec(trees::deed(), 1..25), any::<bool>()), 1..4)
    ) {
        let mut world = World::new();
        world.near.use_keys([key(FIRST), key(SECOND)]);
        let far = Store::open(&world.at("far")).unwrap();
        far.use_keys([key(FIRST), key(SECOND)]);
        let mut kept = Vec::new();
        for (round, (deeds, second)) in rounds.iter().enumerate() {
            for deed in deeds {
                trees::perform(&world.volume(), deed);
            }
            let generation = world.capture(Some(if *second { SECOND } else { FIRST }));
            fetch(&world.near, &world.blind, generation);
            if round > 0 {
                world.blind.forget(VOLUME, &[(1, generation.sequence - 1)]).unwrap();
            }
            world.blind.collect().unwrap();
            fetch(&world.blind, &far, generation);
            assert_restored(&far, generation, &world.volume(), &format!("round {round}"));
            kept.push(generation);
        }
        prop_assert!(world.blind.scrub(None, usize::MAX).unwrap().damaged.is_empty());
        let last = kept.last().unwrap();
        prop_assert_eq!(world.blind.generations(VOLUME).unwrap(), std::slice::from_ref(last));
    }
}
