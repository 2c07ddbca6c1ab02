//! All processes of one machine of the demo: its node, and whatever that has started beside itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use rustix::process::{Pid, Signal, kill_process};

/// Tells a machine's processes from all others, whoever their parent is by now; its value is the machine's directory.
pub(super) const MARK: &str = "FLOTILLA_DEMO_MACHINE";

/// Rounds of looking for processes that were started while the others were being stopped. One finds nothing new, as a rule.
const ROUNDS_MAX: usize = 16;

/// Ends them all at once: nobody of them can notice that another one is gone.
pub(super) fn kill(root: Option<u32>, data_dir: &Path) {
    let mut stopped = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let new: Vec<u32> = of(root, data_dir).difference(&stopped).copied().collect();
        if new.is_empty() {
            break;
        }
        new.iter().for_each(|pid| send(*pid, Signal::STOP));
        stopped.extend(new);
    }
    stopped.into_iter().for_each(|pid| send(pid, Signal::KILL));
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // Gone already is as good.
        let _ = kill_process(pid, signal);
    }
}

/// Those that descend from `root`, itself included, and those that bear the machine's mark.
fn of(root: Option<u32>, data_dir: &Path) -> BTreeSet<u32> {
    let mark = [MARK.as_bytes(), b"=", data_dir.as_os_str().as_bytes()].concat();
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    let mut unvisited: Vec<u32> = root.into_iter().collect();
    for pid in processes() {
        let Some((state, parent)) = stat(pid) else { continue };
        // A dead one waits for its parent alone.
        if state == 'Z' {
            continue;
        }
        children.entry(parent).or_default().push(pid);
        // Of another user's processes nothing can be read: they are none of ours.
        let marked = fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == mark));
        if marked {
            unvisited.push(pid);
        }
    }
    while let Some(pid) = unvisited.pop() {
        if found.insert(pid) {
            unvisited.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// State and parent (proc_pid_stat(5)). The name before them may hold anything, in parentheses.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    fn is_gone(data_dir: &Path) -> bool {
        of(None, data_dir).is_empty()
    }

    /// One child that stays, and one that leaves its family and its process group.
    #[test]
    fn those_that_left_their_parent_are_found_too() {
        let directory = tempfile::tempdir().unwrap();
        let script = "sleep 300 & setsid sh -c 'sleep 300 & echo begun' & wait";
        let mut command = Command::new("sh");
        command.args(["-c", script]).env(MARK, directory.path()).stdout(Stdio::piped());
        let mut parent = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        assert!(of(Some(parent.id()), directory.path()).len() >= 3);
        assert!(!is_gone(directory.path()));

        kill(Some(parent.id()), directory.path());
        parent.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_gone(directory.path()) {
            assert!(Instant::now() < deadline, "some live on");
            std::thread::yield_now();
        }
        assert!(!of(None, Path::new("/nowhere")).contains(&std::process::id()));
    }
}
