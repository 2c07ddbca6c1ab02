//! What a disk forgets without telling is found in directories, and written right.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::Path,
};

use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    restore::restore,
    seal::{Key, KeyId},
    verify::{Verified, verify},
};
use proptest::prelude::*;

use crate::{
    places::assert_same,
    trees::{self, deed},
};

const KEY: KeyId = KeyId([1; 8]);

struct World {
    temporary: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let store = Store::open(&temporary.path().join("store")).unwrap();
        store.use_keys([Key::derive(KEY, &[7; 32])]);
        for name in ["volume", "replica"] {
            fs::create_dir(temporary.path().join(name)).unwrap();
        }
        Self { temporary, store }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.temporary.path().join(name)
    }

    /// What the volume is now, and a copy of it.
    fn copied(&self, seal: Option<KeyId>) -> Hash {
        let capture = Capture::begin_sealed(&self.store, "notes/data", &self.at("volume"), seal).unwrap();
        let root = capture.finish(&Scope::Everything).unwrap().commit(1, 1, 7).unwrap().root;
        restore(&self.store, &self.at("replica"), None, &root).unwrap();
        root
    }

    /// All of the copy, so many bytes at a time.
    fn verified(&self, root: &Hash, at_once: u64) -> Verified {
        let mut sum = Verified::default();
        loop {
            let step = verify(&self.store, &self.at("replica"), root, sum.next.as_ref(), at_once).unwrap();
            assert!(step.next.is_none() || step.next != sum.next, "it does not get on: {step:?}");
            sum.bytes += step.bytes;
            sum.healed += step.healed;
            sum.is_other |= step.is_other;
            sum.next = step.next;
            if sum.next.is_none() {
                return sum;
            }
        }
    }
}

/// Changes one byte of each file in which there is one that is not zero, as a disk does: nothing tells of it.
fn spoil(directory: &Path, seed: usize) -> usize {
    spoil_below(directory, seed, &mut BTreeSet::new())
}

/// A file with several names is spoiled once.
fn spoil_below(directory: &Path, seed: usize, met: &mut BTreeSet<u64>) -> usize {
    let mut spoiled = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            spoiled += spoil_below(&path, seed + 1, met);
        } else if metadata.is_file() && met.insert(metadata.ino()) {
            let bytes = fs::read(&path).unwrap();
            let middle = seed.wrapping_mul(7919) % bytes.len().max(1);
            let Some(at) = (middle..bytes.len()).find(|at| bytes[*at] != 0) else { continue };
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[at] ^ 0x40], at as u64).unwrap();
            file.set_modified(metadata.modified().unwrap()).unwrap();
            spoiled += 1;
        }
    }
    spoiled
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn bytes_that_changed_by_themselves_are_made_right(
        deeds in proptest::collection::vec(deed(), 1..40), sealed in any::<bool>(), seed in 0_usize..1000, at_once in 1_u64..300_000
    ) {
        let world = World::new();
        for deed in &deeds {
            trees::perform(&world.at("volume"), deed);
        }
        let root = world.copied(sealed.then_some(KEY));
        let whole = world.verified(&root, at_once);
        prop_assert_eq!((whole.healed, whole.is_other), (0, false));
        let spoiled = spoil(&world.at("replica"), seed);
        let healed = world.verified(&root, at_once);
        prop_assert_eq!((healed.healed > 0, healed.is_other, healed.bytes), (spoiled > 0, false, whole.bytes));
        assert_same(&world.at("volume"), &world.at("replica"), "after it was healed");
        prop_assert_eq!(world.verified(&root, u64::MAX), whole);
    }
}

#[test]
fn what_is_missing_or_something_else_is_told() {
    let world = World::new();
    for name in ["first", "second"] {
        fs::create_dir(world.at("volume").join(name)).unwrap();
        fs::write(world.at("volume").join(name).join("file"), [7; 100_000]).unwrap();
        symlink("file", world.at("volume").join(name).join("link")).unwrap();
    }
    let root = world.copied(None);
    let at = |path: &str| world.at("replica").join(path);
    let remade = || {
        fs::remove_dir_all(world.at("replica")).unwrap();
        fs::create_dir(world.at("replica")).unwrap();
        restore(&world.store, &world.at("replica"), None, &root).unwrap();
    };
    let spoilers: [(&str, &dyn Fn()); 6] = [
        ("a file is gone", &|| fs::remove_file(at("first/file")).unwrap()),
        ("a directory is gone", &|| fs::remove_dir_all(at("second")).unwrap()),
        ("a name is new", &|| fs::write(at("second/other"), "new").unwrap()),
        ("a file is short", &|| fs::File::options().write(true).open(at("first/file")).unwrap().set_len(5).unwrap()),
        ("a file is a directory", &|| {
            fs::remove_file(at("second/file")).unwrap();
            fs::create_dir(at("second/file")).unwrap();
        }),
        ("a link points elsewhere", &|| {
            fs::remove_file(at("first/link")).unwrap();
            symlink("/etc/passwd", at("first/link")).unwrap();
        }),
    ];
    for (what, spoil) in spoilers {
        for at_once in [1, 50_000, u64::MAX] {
            remade();
            assert!(!world.verified(&root, at_once).is_other);
            spoil();
            assert!(world.verified(&root, at_once).is_other, "{what}, {at_once} bytes at once");
        }
    }
}

#[test]
fn what_the_store_has_lost_too_is_passed_over() {
    let world = World::new();
    fs::write(world.at("volume").join("file"), (0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
        .unwrap();
    let root = world.copied(None);
    assert!(spoil(&world.at("replica"), 3) == 1);
    let packs = fs::read_dir(world.at("store").join("packs")).unwrap();
    for pack in packs.map(|pack| pack.unwrap().path()) {
        let len = fs::metadata(&pack).unwrap().len();
        let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
        let mut middle = vec![0; usize::try_from(len / 2).unwrap()];
        file.read_exact_at(&mut middle, 0).unwrap();
        // Its chunks come first.
        middle.iter_mut().skip(64).step_by(1024).for_each(|byte| *byte ^= 1);
        file.write_all_at(&middle, 0).unwrap();
    }
    let told = verify(&world.store, &world.at("replica"), &root, None, u64::MAX).unwrap();
    assert!(!told.is_other && told.next.is_none(), "{told:?}");
}
