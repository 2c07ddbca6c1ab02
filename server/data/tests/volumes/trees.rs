//! Whatever programs do to a directory: its generations are that directory.

use std::{
    ffi::OsString,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use flotilla_data::{
    Hash, Store,
    capture::{Capture, Scope},
    restore::restore,
    tree::Name,
    watch::Watch,
};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use crate::places::assert_same;

/// Longer than any test captures for.
const LONG: std::time::Duration = std::time::Duration::from_secs(600);

/// One thing that a program does. What makes no sense at its time is left out.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Write { at: usize, name: u8, seed: u8, len: usize },
    Overwrite { at: usize, offset: u64, len: usize },
    Sparse { at: usize, name: u8, hole: u64 },
    Truncate { at: usize, len: u64 },
    Directory { at: usize, name: u8 },
    Link { at: usize, name: u8 },
    Twin { at: usize, to: usize, name: u8 },
    Fifo { at: usize, name: u8 },
    Rename { from: usize, to: usize, name: u8 },
    Remove { at: usize },
    Mode { at: usize, mode: u32 },
    Owner { at: usize, owner: u32 },
    Attribute { at: usize, name: u8, value: u8 },
    Touch { at: usize, seconds: u32 },
}

pub(crate) fn deed() -> impl Strategy<Value = Deed> {
    let at = 0_usize..64;
    prop_oneof![
        4 => (at.clone(), 0_u8..8, any::<u8>(), prop_oneof![0_usize..100, 0_usize..200_000])
            .prop_map(|(at, name, seed, len)| Deed::Write { at, name, seed, len }),
        2 => (at.clone(), 0_u64..150_000, 1_usize..3_000).prop_map(|(at, offset, len)| Deed::Overwrite { at, offset, len }),
        1 => (at.clone(), 0_u8..8, 0_u64..400_000).prop_map(|(at, name, hole)| Deed::Sparse { at, name, hole }),
        1 => (at.clone(), 0_u64..100_000).prop_map(|(at, len)| Deed::Truncate { at, len }),
        3 => (at.clone(), 0_u8..8).prop_map(|(at, name)| Deed::Directory { at, name }),
        1 => (at.clone(), 0_u8..8).prop_map(|(at, name)| Deed::Link { at, name }),
        2 => (at.clone(), at.clone(), 0_u8..8).prop_map(|(at, to, name)| Deed::Twin { at, to, name }),
        1 => (at.clone(), 0_u8..8).prop_map(|(at, name)| Deed::Fifo { at, name }),
        3 => (at.clone(), at.clone(), 0_u8..8).prop_map(|(from, to, name)| Deed::Rename { from, to, name }),
        2 => at.clone().prop_map(|at| Deed::Remove { at }),
        1 => (at.clone(), 0_u32..0o10000).prop_map(|(at, mode)| Deed::Mode { at, mode }),
        1 => (at.clone(), 0_u32..70_000).prop_map(|(at, owner)| Deed::Owner { at, owner }),
        1 => (at.clone(), 0_u8..3, any::<u8>()).prop_map(|(at, name, value)| Deed::Attribute { at, name, value }),
        1 => (at, any::<u32>()).prop_map(|(at, seconds)| Deed::Touch { at, seconds }),
    ]
}

/// All that is in a directory, each directory before what is in it.
fn everything(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        let mut names: Vec<_> = fs::read_dir(&next).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        left.extend(names.iter().filter(|path| !path.is_symlink() && path.is_dir()).cloned());
        found.extend(names);
    }
    found.sort();
    found
}

fn name(number: u8) -> OsString {
    match number {
        // No UTF-8.
        7 => OsString::from_vec(vec![b'n', 0xff, 0xfe]),
        number => format!("n{number}").into(),
    }
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

/// Does it. Gives the file that got another name, of which no watch tells.
pub(crate) fn perform(directory: &Path, deed: &Deed) -> Option<PathBuf> {
    let all = everything(directory);
    let some = |at: usize| all.get(at % all.len().max(1)).cloned();
    let dir = |at: usize| {
        let directories: Vec<_> = all.iter().filter(|path| !path.is_symlink() && path.is_dir()).collect();
        match at % (directories.len() + 1) {
            0 => directory.to_owned(),
            at => directories[at - 1].clone(),
        }
    };
    let file = |at: usize| {
        let files: Vec<_> = all.iter().filter(|path| !path.is_symlink() && path.is_file()).collect();
        files.get(at % files.len().max(1)).map(|path| (*path).clone())
    };
    let free = |at: usize, number: u8| Some(dir(at).join(name(number))).filter(|path| path.symlink_metadata().is_err());
    let plain = |path: &PathBuf| !path.is_symlink();
    let done = match deed {
        Deed::Write { at, name: number, seed, len } => {
            let path = dir(*at).join(name(*number));
            let is_other = path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file());
            (!is_other).then(|| fs::write(&path, bytes(*seed, *len)).map(|()| None))
        }
        Deed::Overwrite { at, offset, len } => file(*at).map(|path| {
            let opened = fs::File::options().write(true).open(&path)?;
            opened.write_all_at(&bytes(9, *len), *offset).map(|()| None)
        }),
        Deed::Sparse { at, name, hole } => free(*at, *name).map(|path| {
            let opened = fs::File::create(&path)?;
            opened.write_all_at(b"before", 0)?;
            opened.write_all_at(b"behind", hole + 6)?;
            opened.set_len(hole * 2 + 12).map(|()| None)
        }),
        Deed::Truncate { at, len } => {
            file(*at).map(|path| fs::File::options().write(true).open(&path)?.set_len(*len).map(|()| None))
        }
        Deed::Directory { at, name } => free(*at, *name).map(|path| fs::create_dir(&path).map(|()| None)),
        Deed::Link { at, name } => free(*at, *name).map(|path| symlink("../elsewhere", &path).map(|()| None)),
        Deed::Twin { at, to, name } => match (file(*at), free(*to, *name)) {
            (Some(from), Some(path)) => Some(fs::hard_link(&from, &path).map(|()| Some(from))),
            _ => None,
        },
        Deed::Fifo { at, name } => free(*at, *name).map(|path| {
            mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
            Ok(None)
        }),
        Deed::Rename { from, to, name } => match (some(*from), free(*to, *name)) {
            // Not into itself.
            (Some(from), Some(to)) if !to.starts_with(&from) => Some(fs::rename(&from, &to).map(|()| None)),
            _ => None,
        },
        Deed::Remove { at } => some(*at).map(|path| {
            let removed =
                if plain(&path) && path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map(|()| None)
        }),
        Deed::Mode { at, mode } => some(*at)
            .filter(plain)
            .map(|path| fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).map(|()| None)),
        Deed::Owner { at, owner } => {
            some(*at).map(|path| std::os::unix::fs::lchown(&path, Some(*owner), Some(owner / 2)).map(|()| None))
        }
        Deed::Attribute { at, name, value } => {
            some(*at).filter(|path| plain(path) && (path.is_file() || path.is_dir())).map(|path| {
                setxattr(&path, format!("user.a{name}"), &[*value; 5], XattrFlags::empty())?;
                Ok(None)
            })
        }
        Deed::Touch { at, seconds } => file(*at).map(|path| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::new(u64::from(*seconds), 123_456_789);
            fs::File::options().write(true).open(&path)?.set_modified(time).map(|()| None)
        }),
    };
    done.transpose().unwrap_or_else(|error: std::io::Error| panic!("{deed:?}: {error}")).flatten()
}

fn names(directory: &Path, path: &Path) -> Vec<Name> {
    let below = path.strip_prefix(directory).unwrap();
    below.components().map(|part| Name::try_from(part.as_os_str().as_bytes().to_vec()).unwrap()).collect()
}

struct World {
    _temporary: tempfile::TempDir,
    store: Store,
    volume: PathBuf,
    replica: PathBuf,
    sequence: u64,
}

impl World {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        let (volume, replica, store) = (at("volume"), at("replica"), Store::open(&at("store")).unwrap());
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&replica).unwrap();
        Self { _temporary: temporary, store, volume, replica, sequence: 0 }
    }

    fn capture(&mut self, before: &Scope, during: &Scope) -> Hash {
        let mut capture = Capture::begin(&self.store, "notes/data", &self.volume).unwrap();
        capture.read(before).unwrap();
        let captured = capture.finish(during).unwrap();
        assert!(captured.figures.torn.is_empty());
        self.sequence += 1;
        captured.commit(1, self.sequence, 7).unwrap().root
    }

    /// As a node does it: a tree of what there is, then of what is done `meanwhile`, and the rest after everybody may go on.
    fn capture_in_steps(&mut self, before: &Scope, meanwhile: impl FnOnce(&Path) -> Scope) -> Hash {
        let mut capture = Capture::begin(&self.store, "notes/data", &self.volume).unwrap();
        capture.read(before).unwrap();
        capture.base(before).unwrap();
        capture.look_ahead(before).unwrap();
        let during = meanwhile(&self.volume);
        let still = capture.still(&during, LONG).unwrap();
        let captured = still.finish().unwrap();
        assert!(captured.figures.torn.is_empty());
        self.sequence += 1;
        captured.commit(1, self.sequence, 7).unwrap().root
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// With what a watcher tells, and without it; from one generation to the next, and from nothing.
    #[test]
    fn every_generation_is_the_directory_as_it_was(
        rounds in proptest::collection::vec((proptest::collection::vec(deed(), 1..25), any::<bool>()), 1..5)
    ) {
        let mut world = World::new();
        let mut watch = Watch::begin(&world.volume).unwrap();
        let mut last = None;
        for (round, (deeds, watched)) in rounds.iter().enumerate() {
            let mut scope = Scope::nothing();
            for deed in deeds {
                if let Some(unseen) = perform(&world.volume, deed) {
                    scope.add(&names(&world.volume, &unseen));
                }
            }
            watch.tell(&mut scope).unwrap();
            if !watched {
                scope = Scope::Everything;
            }
            let root = world.capture(&scope, &scope);
            restore(&world.store, &world.replica, last.as_ref(), &root).unwrap();
            assert_same(&world.volume, &world.replica, &format!("round {round}, watched: {watched}"));
            last = Some(root);
        }
        // All at once comes to the same as step by step.
        let fresh = world.replica.with_extension("fresh");
        fs::create_dir(&fresh).unwrap();
        restore(&world.store, &fresh, None, &last.unwrap()).unwrap();
        assert_same(&world.volume, &fresh, "from nothing");
        // And what is equal has the same name, whatever was seen of it before.
        let other = tempfile::tempdir().unwrap();
        let store = Store::open(other.path()).unwrap();
        let again = Capture::begin(&store, "other", &world.volume).unwrap().finish(&Scope::Everything).unwrap();
        prop_assert_eq!(Some(again.root), last);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_done_while_a_tree_is_made_is_in_the_generation(
        rounds in proptest::collection::vec(
            (proptest::collection::vec(deed(), 0..15), proptest::collection::vec(deed(), 0..15)), 1..5)
    ) {
        let mut world = World::new();
        let mut watch = Watch::begin(&world.volume).unwrap();
        let mut last = None;
        for (round, (before, meanwhile)) in rounds.iter().enumerate() {
            let mut done = |volume: &Path, deeds: &[Deed]| {
                let mut scope = Scope::nothing();
                for deed in deeds {
                    if let Some(unseen) = perform(volume, deed) {
                        scope.add(&names(volume, &unseen));
                    }
                }
                watch.tell(&mut scope).unwrap();
                scope
            };
            let mut scope = done(&world.volume, before);
            if round == 0 {
                scope = Scope::Everything;
            }
            let root = world.capture_in_steps(&scope, |volume| done(volume, meanwhile));
            restore(&world.store, &world.replica, last.as_ref(), &root).unwrap();
            assert_same(&world.volume, &world.replica, &format!("round {round}"));
            last = Some(root);
        }
    }
}

#[test]
fn what_would_take_longer_than_programs_may_wait_is_refused() {
    let world = World::new();
    for number in 0..50 {
        fs::write(world.volume.join(format!("file-{number}")), bytes(number as u8, 100_000)).unwrap();
    }
    let capture = Capture::begin(&world.store, "notes/data", &world.volume).unwrap();
    let refused = capture.still(&Scope::Everything, std::time::Duration::ZERO).unwrap_err();
    assert!(matches!(refused, flotilla_data::capture::Error::TooLong(_)), "{refused}");
}

#[test]
fn only_what_has_changed_is_read_again() {
    let mut world = World::new();
    for number in 0..200 {
        fs::write(world.volume.join(format!("file-{number}")), bytes(number as u8, 5_000)).unwrap();
    }
    world.capture(&Scope::Everything, &Scope::Everything);
    let settle = || std::thread::sleep(std::time::Duration::from_millis(50));
    // What was written within the kernel's last tick is read once more.
    settle();
    world.capture(&Scope::Everything, &Scope::Everything);

    fs::write(world.volume.join("file-7"), "changed").unwrap();
    let capture = Capture::begin(&world.store, "notes/data", &world.volume).unwrap();
    let captured = capture.finish(&Scope::Everything).unwrap();
    assert_eq!((captured.figures.files_read, captured.figures.read), (1, 7));
}

#[test]
fn what_is_read_side_by_side_is_all_there_and_what_is_equal_is_kept_once() {
    const FILES: usize = 700;
    let world = World::new();
    for number in 0..FILES {
        let directory = world.volume.join(format!("directory-{}", number % 3));
        fs::create_dir_all(&directory).unwrap();
        // Seven that differ, each a hundred times.
        fs::write(directory.join(format!("file-{number}")), bytes((number % 7) as u8, 10_000)).unwrap();
    }
    let long = bytes(200, 9_000_000);
    fs::write(world.volume.join("long"), &long).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let mut capture = Capture::begin(&world.store, "notes/data", &world.volume).unwrap();
    capture.read(&Scope::Everything).unwrap();
    let captured = capture.finish(&Scope::Everything).unwrap();
    let read = FILES as u64 * 10_000 + long.len() as u64;
    assert_eq!((captured.figures.files_read, captured.figures.read), (FILES as u64 + 1, read));
    let root = captured.commit(1, 1, 7).unwrap().root;
    restore(&world.store, &world.replica, None, &root).unwrap();
    assert_same(&world.volume, &world.replica, "read side by side");
    let size = world.store.size().unwrap();
    assert!(size < long.len() as u64 + 1_000_000, "{size}");
}

#[test]
fn a_change_that_hides_behind_its_size_and_time_is_found() {
    let mut world = World::new();
    let path = world.volume.join("ledger");
    fs::write(&path, "one").unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let first = world.capture(&Scope::Everything, &Scope::Everything);
    fs::write(&path, "two").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert_ne!(world.capture(&Scope::Everything, &Scope::Everything), first);
}

#[test]
fn what_is_written_between_reading_and_standing_still_is_in_the_generation() {
    let world = World::new();
    let path = world.volume.join("log");
    fs::write(&path, bytes(1, 300_000)).unwrap();
    let mut capture = Capture::begin(&world.store, "notes/data", &world.volume).unwrap();
    capture.read(&Scope::Everything).unwrap();
    fs::File::options().append(true).open(&path).unwrap().write_all_at(b"more", 300_000).unwrap();
    fs::write(world.volume.join("new"), "new").unwrap();
    let root = capture.finish(&Scope::Everything).unwrap().commit(1, 1, 7).unwrap().root;
    restore(&world.store, &world.replica, None, &root).unwrap();
    assert_same(&world.volume, &world.replica, "written meanwhile");
}

/// What programs write in their memory shows in a file's times once: what was read since may be half of what is there.
#[test]
fn a_file_that_is_mapped_is_read_again_unless_it_is_as_in_the_generation_before() {
    let world = World::new();
    let path = world.volume.join("mapped");
    let name = [Name::try_from(b"mapped".to_vec()).unwrap()];
    let settle = || std::thread::sleep(std::time::Duration::from_millis(50));
    let reads = |world: &World, sequence| {
        let mut capture = Capture::begin(&world.store, "notes/data", &world.volume).unwrap();
        capture.read(&Scope::Everything).unwrap();
        capture.doubt_if_changed(&name, &fs::File::open(&path).unwrap()).unwrap();
        let captured = capture.still(&Scope::Everything, LONG).unwrap().finish().unwrap();
        let read = captured.figures.files_read;
        captured.commit(1, sequence, 7).unwrap();
        read
    };
    fs::write(&path, bytes(1, 300_000)).unwrap();
    settle();
    assert_eq!(reads(&world, 1), 2, "while programs run, and while they wait");
    settle();
    assert_eq!(reads(&world, 2), 0);
    fs::write(&path, bytes(2, 300_000)).unwrap();
    settle();
    assert_eq!(reads(&world, 3), 2);
}

#[test]
fn a_file_that_is_doubted_is_read_again() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("volume");
    fs::create_dir_all(directory.join("a")).unwrap();
    fs::write(directory.join("a/b"), "as it was").unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let name = |text: &str| Name::try_from(text.as_bytes().to_vec()).unwrap();
    // Long enough ago that a change just after would show.
    let long_ago = std::time::SystemTime::now() + std::time::Duration::from_millis(50);
    while std::time::SystemTime::now() < long_ago {
        std::thread::yield_now();
    }
    let read = |sequence: u64, doubts: bool| {
        let mut capture = Capture::begin(&store, "volume", &directory).unwrap();
        capture.read(&Scope::Everything).unwrap();
        if doubts {
            capture.doubt(&[name("a"), name("b")]);
        }
        let captured = capture.finish(&Scope::Everything).unwrap();
        let read = captured.figures.files_read;
        (captured.commit(1, sequence, sequence).unwrap().root, read)
    };
    let (root, first) = read(1, false);
    assert_eq!((first, read(2, false), read(3, true)), (1, (root, 0), (root, 1)));
}
