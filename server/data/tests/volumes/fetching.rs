//! A generation that comes from other stores, in pieces, twice, or not at first.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    fetch::Fetch,
    restore::restore,
    store::{self, Generation, News, Objects, Sink},
    stream::{Piece, Stream},
    tree::{self, Node, Root},
};

use crate::places::assert_same;

const VOLUME: &str = "notes/data";

pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let chunks = (0..len.div_ceil(32)).map(|at| Hash::of(&[seed.to_be_bytes(), (at as u64).to_be_bytes()].concat()));
    chunks.flat_map(|hash| *hash.as_bytes()).take(len).collect()
}

struct World {
    temporary: tempfile::TempDir,
    near: Store,
    far: Store,
}

impl World {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let near = Store::open(&temporary.path().join("near")).unwrap();
        let far = Store::open(&temporary.path().join("far")).unwrap();
        fs::create_dir(temporary.path().join("volume")).unwrap();
        Self { temporary, near, far }
    }

    fn volume(&self) -> std::path::PathBuf {
        self.temporary.path().join("volume")
    }

    fn capture(&self, sequence: u64) -> Generation {
        let capture = Capture::begin(&self.near, VOLUME, &self.volume()).unwrap();
        capture.finish(&Scope::Everything).unwrap().commit(1, sequence, 7).unwrap()
    }

    /// Lets the far store have all that it wants, so many at a time. The names that it asked for.
    fn fetch(&self, generation: Generation, at_once: usize) -> BTreeSet<Hash> {
        let mut fetch = Fetch::begin(&self.far, VOLUME, generation).unwrap();
        let (mut asked, mut there) = (BTreeSet::new(), 0);
        while !fetch.is_complete() {
            let figures = fetch.figures();
            assert!(there <= figures.there && (figures.of == 0 || figures.there <= figures.of), "{figures:?}");
            there = figures.there;
            let wants = fetch.wants(at_once).unwrap();
            assert!(!wants.is_empty() || fetch.is_complete(), "it waits for nothing");
            for name in wants {
                assert!(asked.insert(name), "{name} was asked for twice");
                fetch.take(&name, &self.near.laid_down(&name).unwrap()).unwrap();
            }
        }
        let figures = fetch.figures();
        assert_eq!((figures.there, figures.of > 0), (figures.of, true), "all of it is there");
        assert_eq!(fetch.commit().unwrap(), generation);
        asked
    }

    fn assert_arrived(&self, generation: Generation) {
        assert_eq!(self.far.generations(VOLUME).unwrap().last(), Some(&generation));
        let replica = self.temporary.path().join(format!("replica-{}", generation.sequence));
        fs::create_dir(&replica).unwrap();
        restore(&self.far, &replica, None, &generation.root).unwrap();
        assert_same(&self.volume(), &replica, "fetched");
    }
}

/// Some of everything: deep, wide, large, empty, and the same twice.
fn furnish(volume: &Path) {
    fs::create_dir_all(volume.join("a/b/c/d")).unwrap();
    for number in 0..2_000_u64 {
        fs::write(volume.join(format!("a/small-{number}")), noise(number % 700, 200)).unwrap();
    }
    fs::write(volume.join("a/b/large"), noise(5_000, 12_000_000)).unwrap();
    fs::write(volume.join("a/b/c/twice"), noise(5_001, 300_000)).unwrap();
    fs::write(volume.join("a/b/c/d/twice"), noise(5_001, 300_000)).unwrap();
    fs::write(volume.join("empty"), "").unwrap();
}

#[test]
fn a_generation_arrives_whole_and_the_next_costs_what_has_changed() {
    let world = World::new();
    furnish(&world.volume());
    let first = world.capture(1);
    let all = world.fetch(first, 64);
    assert!(all.len() > 700, "{}", all.len());
    world.assert_arrived(first);

    fs::write(world.volume().join("a/b/c/twice"), noise(5_002, 1_000)).unwrap();
    fs::remove_file(world.volume().join("a/small-77")).unwrap();
    let second = world.capture(2);
    let asked = world.fetch(second, 64);
    assert!(asked.len() < 20, "{}", asked.len());
    world.assert_arrived(second);
}

#[test]
fn a_megabyte_that_changed_in_a_large_file_travels_alone() {
    let world = World::new();
    let path = world.volume().join("large");
    fs::write(&path, noise(1, 40_000_000)).unwrap();
    world.fetch(world.capture(1), 64);
    let opened = fs::File::options().write(true).open(&path).unwrap();
    opened.write_all_at(&noise(2, 1_000_000), 20_000_000).unwrap();

    let mut fetch = Fetch::begin(&world.far, VOLUME, world.capture(2)).unwrap();
    while !fetch.is_complete() {
        for name in fetch.wants(64).unwrap() {
            fetch.take(&name, &world.near.laid_down(&name).unwrap()).unwrap();
        }
    }
    assert!(fetch.figures().bytes < 1_400_000, "{:?}", fetch.figures());
}

#[test]
fn holes_are_there_as_soon_as_they_are_known() {
    let world = World::new();
    let opened = fs::File::create(world.volume().join("sparse")).unwrap();
    opened.set_len(50_000_000).unwrap();
    opened.write_all_at(&noise(3, 500_000), 20_000_000).unwrap();
    drop(opened);
    world.fetch(world.capture(1), 8);
}

#[test]
fn what_came_before_an_interruption_is_not_asked_for_again() {
    let world = World::new();
    furnish(&world.volume());
    let generation = world.capture(1);
    let mut came = BTreeSet::new();
    let mut fetch = Fetch::begin(&world.far, VOLUME, generation).unwrap();
    while came.len() < 300 {
        for name in fetch.wants(10).unwrap() {
            fetch.take(&name, &world.near.laid_down(&name).unwrap()).unwrap();
            came.insert(name);
        }
    }
    fetch.save().unwrap();
    // What comes after it was saved is lost.
    let lost = fetch.wants(1).unwrap()[0];
    fetch.take(&lost, &world.near.laid_down(&lost).unwrap()).unwrap();
    assert!(world.far.generations(VOLUME).unwrap().is_empty());
    assert_eq!(world.far.collect().unwrap().objects, 0, "somebody still counts on it");
    drop(fetch);

    let asked = world.fetch(generation, 64);
    assert!(asked.is_disjoint(&came));
    assert!(asked.contains(&lost));
    world.assert_arrived(generation);
}

#[test]
fn a_source_that_lies_or_lacks_something_is_found_out() {
    let world = World::new();
    furnish(&world.volume());
    let generation = world.capture(1);
    let mut fetch = Fetch::begin(&world.far, VOLUME, generation).unwrap();
    let mut turns = 0_u32;
    while !fetch.is_complete() {
        for name in fetch.wants(16).unwrap() {
            turns += 1;
            let mut coded = world.near.laid_down(&name).unwrap();
            match turns % 5 {
                0 => fetch.again(&name),
                1 => {
                    let last = coded.len() - 1;
                    coded[last] ^= 1;
                    let error = fetch.take(&name, &coded).unwrap_err();
                    assert!(matches!(error, tree::Error::Store(store::Error::Damaged { .. })), "{error}");
                    fetch.again(&name);
                }
                2 => {
                    // Twice, and what nobody asked for.
                    fetch.take(&name, &coded).unwrap();
                    fetch.take(&name, &coded).unwrap();
                    fetch.take(&Hash::of(b"unasked"), b"\0unasked").unwrap();
                }
                _ => fetch.take(&name, &coded).unwrap(),
            }
        }
    }
    fetch.commit().unwrap();
    assert!(matches!(world.far.get(&Hash::of(b"unasked")), Err(store::Error::Missing { .. })));
    world.assert_arrived(generation);
}

#[test]
fn half_a_generation_is_none() {
    let world = World::new();
    furnish(&world.volume());
    let mut fetch = Fetch::begin(&world.far, VOLUME, world.capture(1)).unwrap();
    let root = fetch.wants(1).unwrap()[0];
    fetch.take(&root, &world.near.laid_down(&root).unwrap()).unwrap();
    assert!(fetch.commit().is_err());
    assert!(world.far.generations(VOLUME).unwrap().is_empty());
}

#[test]
fn what_a_fetch_stands_on_stays_though_it_is_forgotten_meanwhile() {
    let world = World::new();
    furnish(&world.volume());
    let first = world.capture(1);
    world.fetch(first, 64);
    fs::write(world.volume().join("a/b/c/d/new"), noise(5_003, 1_000)).unwrap();
    let second = world.capture(2);
    let mut fetch = Fetch::begin(&world.far, VOLUME, second).unwrap();
    world.far.forget(VOLUME, &[(1, 1)]).unwrap();
    assert_eq!(world.far.collect().unwrap().objects, 0);
    while !fetch.is_complete() {
        for name in fetch.wants(64).unwrap() {
            fetch.take(&name, &world.near.laid_down(&name).unwrap()).unwrap();
        }
    }
    fetch.commit().unwrap();
    assert!(world.far.collect().unwrap().objects > 0, "what the first had alone is not needed any more");
    world.assert_arrived(second);
}

/// Generations come, and the ones on which they stand are forgotten, while somebody collects all the time.
#[test]
fn collecting_never_meets_a_fetch() {
    let world = World::new();
    let (volume, over) = (world.volume(), AtomicBool::new(false));
    for directory in 0..8 {
        fs::create_dir(volume.join(format!("{directory}"))).unwrap();
    }
    let collections = thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut collections = 0;
            while !over.load(Ordering::SeqCst) {
                world.far.collect().unwrap();
                collections += 1;
            }
            collections
        });
        for sequence in 1..=60_u64 {
            // Contents come and go and come back; most of it stays.
            let directory = volume.join(format!("{}", sequence % 8));
            for number in 0..4 {
                fs::write(directory.join(format!("{number}")), noise((sequence * 5 + number) % 11, 30_000)).unwrap();
            }
            let generation = world.capture(sequence);
            let mut fetch = Fetch::begin(&world.far, VOLUME, generation).unwrap();
            if sequence > 1 {
                world.far.forget(VOLUME, &[(1, sequence - 1)]).unwrap();
            }
            while !fetch.is_complete() {
                for name in fetch.wants(8).unwrap() {
                    fetch.take(&name, &world.near.laid_down(&name).unwrap()).unwrap();
                }
            }
            fetch.commit().unwrap();
        }
        over.store(true, Ordering::SeqCst);
        collector.join().unwrap()
    });
    assert!(collections > 3, "{collections}");
    world.far.collect().unwrap();
    let newest = world.far.generations(VOLUME).unwrap();
    assert_eq!(newest.len(), 1);
    world.assert_arrived(newest[0]);
}

/// What a generation is made of beside the content of its files: its root, its directories, and the lists of what these and files are.
fn nodes(store: &Store, root: &Hash) -> BTreeSet<Hash> {
    fn enter(store: &Store, entries: &Stream, nodes: &mut BTreeSet<Hash>) {
        nodes.extend(entries.pieces(store).map(|piece| match piece.unwrap() {
            Piece::List(part) | Piece::Chunk(part) => part.hash,
        }));
        for entry in tree::entries(entries, store) {
            match entry.unwrap().node {
                Node::Directory(below) => enter(store, &below.entries, nodes),
                Node::File(file) => nodes.extend(file.content.pieces(store).filter_map(|piece| match piece.unwrap() {
                    Piece::List(part) => Some(part.hash),
                    Piece::Chunk(_) => None,
                })),
                _ => {}
            }
        }
    }
    let mut nodes = BTreeSet::from([*root]);
    enter(store, &Root::read(store, root).unwrap().entries, &mut nodes);
    nodes
}

/// Flips a bit of an object on the disk.
fn spoil(directory: &Path, store: &Store, name: &Hash) {
    let coded = store.laid_down(name).unwrap();
    for pack in fs::read_dir(directory.join("packs")).unwrap() {
        let path = pack.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(coded.len()).position(|window| window == coded) {
            let at = at + coded.len() / 2;
            fs::File::options().write(true).open(&path).unwrap().write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            return;
        }
    }
    panic!("{name} is nowhere");
}

#[test]
fn what_is_here_and_damaged_on_the_way_comes_once_more_and_nothing_else() {
    let world = World::new();
    furnish(&world.volume());
    let generation = world.capture(1);
    world.fetch(generation, 64);
    let damaged = nodes(&world.near, &generation.root);
    assert!(damaged.len() > 10, "{}", damaged.len());
    let far = world.temporary.path().join("far");
    damaged.iter().for_each(|name| spoil(&far, &world.far, name));
    world.far.forget_volume(VOLUME).unwrap();
    assert_eq!(world.fetch(generation, 64), damaged);
    world.assert_arrived(generation);
}

#[test]
fn what_is_damaged_is_laid_down_once_more_by_a_session_that_renews() {
    let world = World::new();
    let bytes = noise(9, 50_000);
    let put = |mut session: store::Session| {
        let name = session.put(&bytes).unwrap();
        session.commit(&News::default()).unwrap();
        name
    };
    let name = put(world.near.session());
    spoil(&world.temporary.path().join("near"), &world.near, &name);
    put(world.near.session());
    assert!(world.near.get(&name).is_err(), "it is here, as far as anybody knows");
    put(world.near.renewing_session());
    assert_eq!(world.near.get(&name).unwrap(), bytes);
}
