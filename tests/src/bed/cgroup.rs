//! The control groups of a machine: one for its own programs and one for its containers, in each hierarchy that this machine has.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";

/// For the machine's programs, the engine among them.
const SYSTEM: &str = "sys";
/// For its containers: a group each, named by its id.
const CONTAINERS: &str = "ctr";

/// Freezing ends when each thread is where it can stop; a thread that waits for the disk takes longest.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// From SIGKILL to the end of the last process.
const EMPTY_LIMIT: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(5);
/// ENODEV: what the files of a group say that is being removed.
const NO_DEVICE: i32 = 19;

/// The directory of one name in every hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Below each hierarchy's root.
    name: PathBuf,
}

impl Group {
    pub(super) fn new(name: impl Into<PathBuf>) -> Self {
        Self { name: name.into() }
    }

    pub(super) fn make(&self) -> Result<()> {
        for hierarchy in hierarchies()? {
            for leaf in [SYSTEM, CONTAINERS] {
                let mut directory = hierarchy.clone();
                for part in self.name.iter().chain([leaf.as_ref()]) {
                    let parent = directory.clone();
                    directory.push(part);
                    match fs::create_dir(&directory) {
                        Ok(()) => inherit_cpus(&parent, &directory)?,
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        Err(error) => return Err(error).with_context(|| format!("make {}", directory.display())),
                    }
                }
            }
        }
        Ok(())
    }

    /// What the engine is told to put its containers below.
    pub(super) fn of_containers(&self) -> String {
        Path::new("/").join(&self.name).join(CONTAINERS).display().to_string()
    }

    /// Words of `sh` that put the shell, and what it starts, into the machine's own group.
    pub(super) fn join(&self) -> Result<String> {
        let groups: Vec<String> = hierarchies()?
            .iter()
            .map(|hierarchy| hierarchy.join(&self.name).join(SYSTEM).display().to_string())
            .collect();
        Ok(format!(r#"for group in {}; do echo $$ >"$group/cgroup.procs"; done"#, groups.join(" ")))
    }

    /// Where the kernel shows which containers have processes, and whether they are frozen.
    pub(super) fn containers(&self) -> Result<Containers> {
        Ok(Containers { directory: freezer()?.join(&self.name).join(CONTAINERS) })
    }

    /// Stops every process of the machine where it is, and returns when that is done; or lets all go on.
    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let group = freezer()?.join(&self.name);
        let (file, on, off) = match Version::of(&group) {
            Version::One => ("freezer.state", "FROZEN", "THAWED"),
            Version::Two => ("cgroup.freeze", "1", "0"),
        };
        fs::write(group.join(file), if frozen { on } else { off }).context("freeze or thaw a machine")?;
        let end = Instant::now() + FREEZE_LIMIT;
        while frozen && !is_frozen(&group)? {
            ensure!(Instant::now() < end, "{} does not freeze within {FREEZE_LIMIT:?}", group.display());
            sleep(STEP);
        }
        Ok(())
    }

    /// Lets go of whatever anybody froze in it.
    pub(super) fn thaw_all(&self) -> Result<()> {
        for group in below(&freezer()?.join(&self.name)) {
            let (file, off) = match Version::of(&group) {
                Version::One => ("freezer.state", "THAWED"),
                Version::Two => ("cgroup.freeze", "0"),
            };
            match fs::write(group.join(file), off) {
                // It went with its last process.
                Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_DEVICE) => {}
                other => other.context("thaw a group")?,
            }
        }
        Ok(())
    }

    /// Process ids, as this machine sees them, in all groups of the name.
    pub(super) fn processes(&self) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for group in below(&freezer()?.join(&self.name)) {
            // A group that was removed meanwhile has none.
            let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(found)
    }

    /// Waits for the last process, and removes the groups.
    pub(super) fn remove(&self) -> Result<()> {
        let end = Instant::now() + EMPTY_LIMIT;
        for hierarchy in hierarchies()? {
            // Children first.
            for group in below(&hierarchy.join(&self.name)).iter().rev() {
                while let Err(error) = fs::remove_dir(group) {
                    if error.kind() == io::ErrorKind::NotFound {
                        break;
                    }
                    ensure!(Instant::now() < end, "{} can't be removed: {error}", group.display());
                    sleep(STEP);
                }
            }
        }
        Ok(())
    }

    /// Removes the groups themselves, where nothing is below them.
    pub(super) fn remove_empty(&self) -> Result<()> {
        for hierarchy in hierarchies()? {
            fs::remove_dir(hierarchy.join(&self.name))?;
        }
        Ok(())
    }
}

/// The containers of one machine, asked of the kernel: no engine and no daemon can say it wrongly.
#[derive(Clone, Debug)]
pub(crate) struct Containers {
    directory: PathBuf,
}

impl Containers {
    /// Ids of containers that have a process which is not frozen.
    pub(crate) fn running(&self) -> Result<Vec<String>> {
        let mut running = Vec::new();
        let Ok(entries) = fs::read_dir(&self.directory) else { return Ok(running) };
        for entry in entries {
            let entry = entry?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            // What vanishes between two looks does not run.
            let populated = fs::read_to_string(entry.path().join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty());
            if populated && !is_frozen(&entry.path()).unwrap_or(true) {
                running.push(id);
            }
        }
        Ok(running)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn of(group: &Path) -> Self {
        if group.join("freezer.state").exists() { Self::One } else { Self::Two }
    }
}

/// By its own or a parent's state.
fn is_frozen(group: &Path) -> io::Result<bool> {
    match Version::of(group) {
        Version::One => Ok(fs::read_to_string(group.join("freezer.state"))?.trim() == "FROZEN"),
        Version::Two => Ok(fs::read_to_string(group.join("cgroup.events"))?.lines().any(|line| line == "frozen 1")),
    }
}

/// All of version 1, or the one of version 2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).context("list the cgroup hierarchies")? {
        // `cpu` and `cpuacct` may be two names of one.
        let directory = entry?.path().canonicalize()?;
        if directory.join("cgroup.procs").exists() && !found.contains(&directory) {
            found.push(directory);
        }
    }
    ensure!(!found.is_empty(), "no cgroup hierarchy is mounted at {ROOT}");
    Ok(found)
}

fn freezer() -> Result<PathBuf> {
    let one = Path::new(ROOT).join("freezer");
    if one.is_dir() {
        return Ok(one);
    }
    let two = Path::new(ROOT);
    ensure!(two.join("cgroup.controllers").exists(), "this machine has no cgroup freezer at {ROOT}");
    Ok(two.to_owned())
}

/// The directory of a name where groups are seen.
pub(super) fn visible(name: &str) -> Result<PathBuf> {
    Ok(freezer()?.join(name))
}

/// In version 1 a new group of `cpuset` has no processor, and nothing can be put into it.
fn inherit_cpus(parent: &Path, group: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if parent.join(file).exists() && group.join("cpuset.memory_migrate").exists() {
            fs::write(group.join(file), fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// A group and all below it, parents first.
fn below(group: &Path) -> Vec<PathBuf> {
    let mut found = vec![group.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        let children: Vec<PathBuf> = fs::read_dir(directory)
            .map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
            .unwrap_or_default();
        found.extend(children);
        next += 1;
    }
    found
}
