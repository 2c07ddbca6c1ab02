//! The kernel's freezer: stops every process of a container within milliseconds, and lets them go on, without asking the
//! container engine, which may hang.
//!
//! Both interfaces are spoken: `freezer.state` of control groups version 1 and `cgroup.freeze` of version 2. Where a machine has
//! both hierarchies mounted, version 1 is taken, because the engine's runtime does so: what is frozen there is "paused" to it,
//! and it starts no command in it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::Error;

/// Where Linux mounts control groups.
const MOUNT: &str = "/sys/fs/cgroup";

/// Four busy processes freeze within 25 ms on two cores. What takes longer waits for a disk inside the kernel, where it runs
/// nothing of its own; it freezes when the disk answers.
pub(super) const FREEZE_LIMIT: Duration = Duration::from_millis(250);

/// How often the kernel is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// Directories that are looked at in search of a container's; a machine has some hundred.
const SEARCH_MAX: usize = 20_000;
const SEARCH_DEPTH_MAX: usize = 8;

/// Containers whose directories are remembered: more than a machine runs.
const KNOWN_MAX: usize = 1_024;

/// Kinds of directories in which containers were seen: an engine has one.
const PATTERNS_MAX: usize = 32;

/// What the kernel says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frost {
    /// It has no control group: it does not run.
    Absent,
    Thawed,
    /// Asked for; some of its processes may still run.
    Freezing,
    Frozen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// Where an engine puts its containers' control groups: `<parent>/<before><id><after>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Pattern {
    parent: PathBuf,
    before: String,
    after: String,
}

/// Clones know the same containers.
#[derive(Clone, Debug)]
pub struct Freezer {
    version: Version,
    root: PathBuf,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    directories: BTreeMap<String, PathBuf>,
    patterns: BTreeSet<Pattern>,
}

impl Freezer {
    /// The freezer of this machine.
    pub fn detect() -> Self {
        let mount = Path::new(MOUNT);
        if mount.join("cgroup.controllers").exists() {
            Self::at(Version::Two, mount.to_owned())
        } else {
            Self::at(Version::One, mount.join("freezer"))
        }
    }

    pub fn at(version: Version, root: PathBuf) -> Self {
        let pattern = |parent: &str, before: &str, after: &str| Pattern {
            parent: root.join(parent),
            before: before.to_owned(),
            after: after.to_owned(),
        };
        // As Docker does it: without systemd, with it.
        let patterns = [pattern("docker", "", ""), pattern("system.slice", "docker-", ".scope")].into();
        let known = Known { patterns, ..Known::default() };
        Self { version, root, known: Arc::new(Mutex::new(known)) }
    }

    /// Learns where a container's control group is, from one of its processes. Wherever the engine put it: this finds it without
    /// a search when it matters.
    pub fn note(&self, container: &str, pid: i64) {
        if pid <= 0 || self.known().directories.contains_key(container) {
            return;
        }
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return };
        if let Some(directory) = self.directory_in(&text, container) {
            self.learn(container, directory);
        }
    }

    /// Reads `/proc/<pid>/cgroup` (cgroups(7)). A process may be in a group below its container's, so the path ends where the
    /// container's id stands; a path without it is not the container's at all.
    fn directory_in(&self, text: &str, container: &str) -> Option<PathBuf> {
        let path = text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let ours = match self.version {
                Version::One => controllers.split(',').any(|controller| controller == "freezer"),
                Version::Two => controllers.is_empty(),
            };
            ours.then_some(path)
        })?;
        let mut directory = self.root.clone();
        for component in Path::new(path).components() {
            let Component::Normal(name) = component else { continue };
            directory.push(name);
            if name.to_string_lossy().contains(container) {
                return directory.is_dir().then_some(directory);
            }
        }
        None
    }

    fn learn(&self, container: &str, directory: PathBuf) {
        let mut known = self.known();
        let pattern = directory.parent().zip(directory.file_name()).and_then(|(parent, name)| {
            let name = name.to_string_lossy();
            let (before, after) = name.split_once(container)?;
            Some(Pattern { parent: parent.to_owned(), before: before.to_owned(), after: after.to_owned() })
        });
        if known.patterns.len() < PATTERNS_MAX {
            known.patterns.extend(pattern);
        }
        if known.directories.len() >= KNOWN_MAX {
            known.directories.retain(|_, directory| directory.is_dir());
        }
        known.directories.insert(container.to_owned(), directory);
    }

    /// For another process that shall find the same containers.
    pub(super) fn patterns(&self) -> Vec<Pattern> {
        self.known().patterns.iter().cloned().collect()
    }

    pub(super) fn expect(&self, patterns: impl IntoIterator<Item = Pattern>) {
        let mut known = self.known();
        let below_root = patterns.into_iter().filter(|pattern| pattern.parent.starts_with(&self.root));
        known.patterns.extend(below_root);
        while known.patterns.len() > PATTERNS_MAX {
            known.patterns.pop_last();
        }
    }

    /// Where containers of this engine are known to be. No search: it costs some system calls.
    fn look_up(&self, container: &str) -> Option<PathBuf> {
        if !may_be_id(container) {
            return None;
        }
        let mut known = self.known();
        if let Some(directory) = known.directories.get(container) {
            if directory.is_dir() {
                return Some(directory.clone());
            }
            known.directories.remove(container);
        }
        let found = known
            .patterns
            .iter()
            .map(|Pattern { parent, before, after }| parent.join(format!("{before}{container}{after}")))
            .find(|directory| directory.is_dir())?;
        known.directories.insert(container.to_owned(), found.clone());
        Some(found)
    }

    /// Looks everywhere, for an engine that puts containers where no other was seen. A few milliseconds.
    pub(crate) fn search(&self, container: &str) -> bool {
        if self.look_up(container).is_some() {
            return true;
        }
        if !may_be_id(container) {
            return false;
        }
        let mut left = VecDeque::from([(self.root.clone(), 0)]);
        let mut seen = 0;
        while let Some((directory, depth)) = left.pop_front() {
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                if entry.file_name().to_string_lossy().contains(container) {
                    self.learn(container, entry.path());
                    return true;
                }
                seen += 1;
                if depth < SEARCH_DEPTH_MAX && seen < SEARCH_MAX {
                    left.push_back((entry.path(), depth + 1));
                }
            }
        }
        false
    }

    /// # Errors
    /// The kernel does not say.
    pub fn frost(&self, container: &str) -> Result<Frost, Error> {
        let Some(directory) = self.look_up(container) else { return Ok(Frost::Absent) };
        let read = |name: &str| {
            let path = directory.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if is_gone(&error) => Ok(None),
                Err(source) => Err(Error::Io { operation: "read", path, source }),
            }
        };
        Ok(match self.version {
            Version::One => match read("freezer.state")?.as_deref().map(str::trim) {
                None => Frost::Absent,
                Some("THAWED") => Frost::Thawed,
                Some("FROZEN") => Frost::Frozen,
                Some(_) => Frost::Freezing,
            },
            Version::Two => match read("cgroup.freeze")?.as_deref().map(str::trim) {
                None => Frost::Absent,
                Some("0") => Frost::Thawed,
                Some(_) => match read("cgroup.events")? {
                    None => Frost::Absent,
                    Some(events) if events.lines().any(|line| line == "frozen 1") => Frost::Frozen,
                    Some(_) => Frost::Freezing,
                },
            },
        })
    }

    /// Asks the kernel to freeze, and does not wait. False if the container does not run.
    ///
    /// # Errors
    /// This process may not, or the kernel refuses.
    pub(super) fn begin(&self, container: &str) -> Result<bool, Error> {
        match self.version {
            Version::One => self.write(container, "freezer.state", "FROZEN"),
            Version::Two => self.write(container, "cgroup.freeze", "1"),
        }
    }

    /// Freezes all of them, and waits until the kernel says that they are: at most 250 ms in all. True where it is frozen, false
    /// where it does not run.
    pub fn freeze(&self, containers: &[String]) -> Vec<Result<bool, Error>> {
        let mut results: Vec<Option<Result<bool, Error>>> = containers
            .iter()
            .map(|container| {
                self.search(container);
                match self.begin(container) {
                    Ok(true) => None,
                    other => Some(other),
                }
            })
            .collect();
        let until = Instant::now() + FREEZE_LIMIT;
        while results.iter().any(Option::is_none) {
            for (container, result) in containers.iter().zip(&mut results).filter(|(_, result)| result.is_none()) {
                *result = match self.frost(container) {
                    Ok(Frost::Frozen) => Some(Ok(true)),
                    Ok(Frost::Absent) => Some(Ok(false)),
                    Ok(Frost::Thawed | Frost::Freezing) if Instant::now() >= until => {
                        Some(Err(Error::Slow { container: container.clone(), within: FREEZE_LIMIT }))
                    }
                    // Version 1 gives up on a process that forks meanwhile; asked again, it goes on.
                    Ok(Frost::Thawed | Frost::Freezing) => self.begin(container).err().map(Err),
                    Err(error) => Some(Err(error)),
                };
            }
            if results.iter().any(Option::is_none) {
                std::thread::sleep(ASK_EVERY);
            }
        }
        results.into_iter().flatten().collect()
    }

    /// Lets a container's processes go on. False if it does not run.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn thaw(&self, container: &str) -> Result<bool, Error> {
        match self.version {
            Version::One => self.write(container, "freezer.state", "THAWED"),
            Version::Two => self.write(container, "cgroup.freeze", "0"),
        }
    }

    /// Kills a container so that none of its processes runs another instruction once it is frozen: SIGKILL waits for each of
    /// them before they are thawed. The engine's own kill thaws when only the first process has its SIGKILL, and the others run
    /// on for some milliseconds.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); or a process is out of this one's sight.
    pub fn kill(&self, container: &str) -> Result<(), Error> {
        self.search(container);
        if !self.begin(container)? {
            return Ok(());
        }
        let until = Instant::now() + FREEZE_LIMIT;
        loop {
            // Asked before the list is read: of what is frozen no process can fork any more.
            let frost = self.frost(container)?;
            let Some(directory) = self.look_up(container) else { return Ok(()) };
            for pid in processes(&directory) {
                // The kernel shows a process of a namespace that is not below ours as 0.
                let pid = Pid::from_raw(pid).ok_or_else(|| Error::Foreign { container: container.to_owned() })?;
                match kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(errno) => return Err(self.failed("kill a process of", directory, errno.into())),
                }
            }
            if matches!(frost, Frost::Frozen | Frost::Absent) || Instant::now() >= until {
                break;
            }
            std::thread::sleep(ASK_EVERY);
        }
        // Of version 1, what is frozen does not die. Of version 2 it has died already.
        self.thaw(container).map(drop)
    }

    /// The processes of a container.
    pub(super) fn processes(&self, container: &str) -> Vec<i32> {
        self.look_up(container).map(|directory| processes(&directory)).unwrap_or_default()
    }

    fn write(&self, container: &str, name: &str, text: &str) -> Result<bool, Error> {
        let Some(directory) = self.look_up(container) else { return Ok(false) };
        let path = directory.join(name);
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(self.failed("write", path, error)),
        }
    }

    fn failed(&self, operation: &'static str, path: PathBuf, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::Denied { path },
            _ => Error::Io { operation, path, source },
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All processes of a control group and those below it.
fn processes(directory: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
        let below = fs::read_dir(&directory).into_iter().flatten().flatten();
        left.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
    }
    found
}

/// The control group went while it was asked; its files then say that there is no such device.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// It becomes part of a path, and is looked for in names.
fn may_be_id(container: &str) -> bool {
    container.len() >= 12 && container.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_containers_group_is_found_in_what_the_kernel_tells_of_its_process() {
        let root = tempfile::tempdir().unwrap();
        for path in ["docker", "system.slice", "bed/h1/ctr"] {
            for name in [ID.to_owned(), format!("docker-{ID}.scope")] {
                fs::create_dir_all(root.path().join(path).join(name).join("below")).unwrap();
            }
        }
        let one = Freezer::at(Version::One, root.path().to_owned());
        let two = Freezer::at(Version::Two, root.path().to_owned());
        for (freezer, text, found) in [
            (&one, format!("6:freezer:/docker/{ID}\n0::/\n"), Some(format!("docker/{ID}"))),
            (&one, format!("9:cpu,freezer:/bed/h1/ctr/{ID}/below\n"), Some(format!("bed/h1/ctr/{ID}"))),
            (&one, "6:freezer:/\n".to_owned(), None),
            (&one, format!("0::/docker/{ID}\n"), None),
            (&two, format!("0::/system.slice/docker-{ID}.scope\n"), Some(format!("system.slice/docker-{ID}.scope"))),
            (&two, format!("6:freezer:/docker/{ID}\n0::/user.slice\n"), None),
            (&two, format!("0::/../docker/{ID}\n"), Some(format!("docker/{ID}"))),
            (&two, format!("0::/elsewhere/{ID}\n"), None),
        ] {
            let found = found.map(|found| root.path().join(found));
            assert_eq!(freezer.directory_in(&text, ID), found, "{text}");
        }
    }

    #[test]
    fn a_group_in_an_unusual_place_is_searched_for_once_and_its_neighbours_then_known() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = ("a".repeat(64), "b".repeat(64));
        fs::create_dir_all(root.path().join(format!("x/y/z/lxc-{first}.d"))).unwrap();
        fs::write(root.path().join(format!("x/y/z/lxc-{first}.d/freezer.state")), "THAWED\n").unwrap();
        let freezer = Freezer::at(Version::One, root.path().to_owned());
        assert_eq!(freezer.frost(&first).unwrap(), Frost::Absent, "nobody has told of it, and nobody searched");
        assert!(freezer.search(&first));
        assert_eq!(freezer.frost(&first).unwrap(), Frost::Thawed);
        assert!(!freezer.search(&second));

        let other = Freezer::at(Version::One, root.path().to_owned());
        other.expect(freezer.patterns());
        fs::create_dir_all(root.path().join(format!("x/y/z/lxc-{second}.d"))).unwrap();
        fs::write(root.path().join(format!("x/y/z/lxc-{second}.d/freezer.state")), "FREEZING\n").unwrap();
        assert_eq!(other.frost(&second).unwrap(), Frost::Freezing);
        for bad in ["", "..", "../../etc/passwd", "a/b/c/d/e/f/g/h/i"] {
            assert!(!other.search(bad) && other.frost(bad).unwrap() == Frost::Absent, "{bad}");
        }
    }

    /// A control group of its own with a process that counts in a file, and its removal.
    pub(in crate::fence) struct Group {
        directory: PathBuf,
        counter: tempfile::NamedTempFile,
        child: Child,
    }

    impl Group {
        /// In the hierarchy that a node of this machine uses.
        pub(in crate::fence) fn of_this_machine() -> Self {
            Self::make(&Freezer::detect().root)
        }

        fn make(root: &Path) -> Self {
            let directory = root.join(format!("{:032x}", rand::random::<u128>()));
            fs::create_dir(&directory).expect("this test needs to be root");
            let counter = tempfile::NamedTempFile::new().unwrap();
            let script = format!(
                "echo $$ > {}/cgroup.procs; while :; do echo >> {}; done",
                directory.display(),
                counter.path().display()
            );
            let child = Command::new("/bin/sh").args(["-c", &script]).stderr(Stdio::null()).spawn().unwrap();
            let group = Self { directory, counter, child };
            let until = Instant::now() + Duration::from_secs(20);
            while group.count() == 0 {
                assert!(Instant::now() < until, "the process does not count");
                std::thread::sleep(Duration::from_millis(5));
            }
            group
        }

        pub(in crate::fence) fn count(&self) -> u64 {
            self.counter.path().metadata().unwrap().len()
        }

        pub(in crate::fence) fn id(&self) -> String {
            self.directory.file_name().unwrap().to_string_lossy().into_owned()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let until = Instant::now() + Duration::from_secs(5);
            // A guard that still watches it freezes it again, perhaps before it has died.
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                for (name, text) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                    let file = OpenOptions::new().write(true).open(self.directory.join(name));
                    let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            while fs::remove_dir(&self.directory).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// The hierarchies of this machine: of many, only one.
    fn roots() -> Vec<(Version, PathBuf)> {
        let mount = Path::new(MOUNT);
        let one = (Version::One, mount.join("freezer"));
        let two = ["", "unified"].map(|below| (Version::Two, mount.join(below)));
        let is_there = |(version, root): &(Version, PathBuf)| match version {
            Version::One => root.join("cgroup.procs").exists(),
            Version::Two => root.join("cgroup.controllers").exists(),
        };
        let roots: Vec<_> = [one].into_iter().chain(two).filter(is_there).collect();
        assert!(!roots.is_empty(), "this machine has no control groups");
        roots
    }

    #[test]
    fn what_is_frozen_stands_still_until_it_is_thawed() {
        for (version, root) in roots() {
            let group = Group::make(&root);
            let freezer = Freezer::at(version, root);
            let id = group.id();
            assert!(freezer.freeze(std::slice::from_ref(&id)).remove(0).unwrap(), "{version:?}");
            assert_eq!(freezer.frost(&id).unwrap(), Frost::Frozen);
            let before = group.count();
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(group.count(), before, "{version:?}");
            assert!(freezer.thaw(&id).unwrap());
            let until = Instant::now() + Duration::from_secs(20);
            while group.count() == before {
                assert!(Instant::now() < until, "{version:?}: it does not go on");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn what_is_killed_while_frozen_does_nothing_more() {
        for (version, root) in roots() {
            let mut group = Group::make(&root);
            let freezer = Freezer::at(version, root);
            let id = group.id();
            freezer.freeze(std::slice::from_ref(&id)).remove(0).unwrap();
            let before = group.count();
            freezer.kill(&id).unwrap();
            group.child.wait().unwrap();
            assert_eq!(group.count(), before, "{version:?}");
        }
    }
}
