//! What a run that was killed has left on this machine is taken down by the next, by name and owner: nothing else is touched.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::id,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    cgroup::{self, Group},
    shell::run,
};

/// Begins the name of each namespace, control group and directory of any bed.
const PREFIX: &str = "flotilla-bed";
/// Emptied by a reboot of this machine, as the namespaces are.
const RUN: &str = "/run/flotilla-bed";
/// Disks of machines. Not in the build's directory: an engine's files can't lie on an overlay.
const DISKS: &str = "/var/lib/flotilla-bed";
/// From SIGKILL to the end of the last process.
const LIMIT: Duration = Duration::from_secs(20);

/// The name of one bed: who made it, and which of its beds it is. A process id alone could be taken by another program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    process: u32,
    started: u64,
    number: u32,
}

impl Name {
    pub(super) fn new() -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let started = started(id()).context("read when this process began")?;
        Ok(Self { process: id(), started, number: MADE.fetch_add(1, Ordering::Relaxed) })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut next = || parts.next()?.parse::<u64>().ok();
        let (process, started, number) = (next()?, next()?, next()?);
        Some(Self { process: u32::try_from(process).ok()?, started, number: u32::try_from(number).ok()? })
    }

    fn text(&self) -> String {
        format!("{}-{}-{}", self.process, self.started, self.number)
    }

    fn is_alive(&self) -> bool {
        started(self.process) == Some(self.started)
    }

    /// Begins the names of its network namespaces.
    pub(super) fn of_namespaces(&self) -> String {
        format!("{PREFIX}.{}", self.text())
    }

    pub(super) fn group(&self, machine: &str) -> Group {
        Group::new(Path::new(PREFIX).join(self.text()).join(machine))
    }

    fn groups(&self) -> Group {
        Group::new(Path::new(PREFIX).join(self.text()))
    }

    pub(super) fn run(&self) -> PathBuf {
        Path::new(RUN).join(self.text())
    }

    pub(super) fn disks(&self) -> PathBuf {
        Path::new(DISKS).join(self.text())
    }

    /// Takes down whatever there is of this name.
    pub(super) fn take_down(&self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            let processes = self.groups().processes()?;
            if processes.is_empty() || Instant::now() > end {
                break;
            }
            for pid in processes.into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            self.groups().thaw_all()?;
            std::thread::sleep(Duration::from_millis(2));
        }
        for namespace in namespaces().filter(|found| owner(found).as_ref() == Some(self)) {
            run(&format!("ip netns del {namespace}"))?;
        }
        self.groups().remove()?;
        for directory in [self.run(), self.disks()] {
            if directory.exists() {
                fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
            }
        }
        // The last one puts out the light; while there are others, this fails.
        let _ = fs::remove_dir(RUN);
        let _ = fs::remove_dir(DISKS);
        let _ = Group::new(PREFIX).remove_empty();
        Ok(())
    }
}

/// Takes down the beds of processes that are no more.
pub(super) fn the_dead() -> Result<()> {
    let mut found: BTreeSet<Name> = namespaces().filter_map(|namespace| owner(&namespace)).collect();
    for directory in [Path::new(RUN).to_owned(), Path::new(DISKS).to_owned(), cgroup::visible(PREFIX)?] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        found.extend(entries.filter_map(|entry| Name::parse(entry.file_name().to_str()?)));
    }
    for name in found.into_iter().filter(|name| !name.is_alive()) {
        eprintln!("taking down what process {} has left", name.process);
        name.take_down()?;
    }
    Ok(())
}

fn namespaces() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Of a network namespace's name, as `flotilla-bed.12-345-0-m1`.
fn owner(namespace: &str) -> Option<Name> {
    Name::parse(namespace.strip_prefix(PREFIX)?.strip_prefix('.')?)
}

/// When a process began, in ticks since this machine did; `None` for one that is no more or only waits to be collected.
fn started(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field may hold anything, in parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_tells_which_process_made_it() {
        let name = Name::new().unwrap();
        assert!(name.is_alive());
        assert_eq!(owner(&format!("{}-m1", name.of_namespaces())), Some(name.clone()));
        assert_eq!(Name::parse(&name.text()), Some(name.clone()));
        assert!(!Name { started: name.started + 1, ..name }.is_alive(), "a process id was taken by another program");
        assert_eq!(owner("flotilla-bed"), None);
        assert_eq!(owner("somebody-else.1-2-3-m1"), None);
    }
}
