//! What the daemon and its guard say to each other, over a Unix socket in the data directory: one JSON object a line, the daemon
//! asks and the guard answers.
//!
//! A guard outlives its daemon, and so may be of another version than the next one.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use flotilla_core::lease::Mono;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

use super::{Target, freezer::Pattern};

/// Of what is said. A daemon replaces a guard that speaks another one; `version`, `deadline` and `End` never change their meaning.
pub(super) const VERSION: u32 = 1;

pub(super) const SOCKET: &str = "guard.sock";
/// Held by the guard as long as it runs; holds its process id.
pub(super) const LOCK: &str = "guard.lock";
pub(super) const LOG: &str = "guard.log";

/// Containers that write volumes on one machine: no more than a cluster has services.
pub(super) const TARGETS_MAX: usize = 1_024;

/// All targets, with their ids and some room. Bytes.
pub(super) const LINE_MAX: u64 = 512 * 1024;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub(super) enum Ask {
    State,
    Hold(Hold),
    /// There is nothing to guard any more, or another guard will do it.
    End,
}

/// What is to be frozen when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Hold {
    /// Absent: never.
    pub(super) deadline: Option<Mono>,
    pub(super) targets: Vec<Target>,
    /// Where the engine's containers are.
    #[serde(default)]
    pub(super) patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) version: u32,
    /// Of the guard's program.
    pub(super) program: String,
    pub(super) pid: u32,
    pub(super) deadline: Option<Mono>,
    #[serde(default)]
    pub(super) targets: Vec<Target>,
    /// Those that it froze, and that still are.
    #[serde(default)]
    pub(super) frozen: BTreeSet<String>,
    /// Containers that it froze so far.
    #[serde(default)]
    pub(super) freezes: u64,
    /// Why it could not freeze one, when it last tried.
    #[serde(default)]
    pub(super) trouble: Option<String>,
    /// The machine is about to sleep: nothing that is guarded may run until it is awake.
    #[serde(default)]
    pub(super) asleep: bool,
}

pub(super) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// `None` when the other side has gone.
pub(super) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// A socket's path has at most 107 bytes, a data directory's may have more: so the directory goes by its descriptor. The path is
/// good as long as the file is open.
pub(super) fn socket(data_dir: &Path) -> io::Result<(File, PathBuf)> {
    let directory = File::open(data_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
    Ok((directory, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_is_understood_and_has_a_limit() {
        let hold = Hold {
            deadline: Some(Mono(7)),
            targets: vec![Target { container: "a".repeat(64), epoch: 3 }],
            patterns: Vec::new(),
        };
        let said = [line(&Ask::Hold(hold.clone())).unwrap(), line(&Ask::End).unwrap()].concat();
        let mut said = said.as_slice();
        assert_eq!(read::<Ask>(&mut said).await.unwrap(), Some(Ask::Hold(hold)));
        assert_eq!(read::<Ask>(&mut said).await.unwrap(), Some(Ask::End));
        assert_eq!(read::<Ask>(&mut said).await.unwrap(), None);

        let full = Hold {
            deadline: None,
            targets: vec![Target { container: "a".repeat(64), epoch: u64::MAX }; TARGETS_MAX],
            patterns: Vec::new(),
        };
        assert!((line(&Ask::Hold(full)).unwrap().len() as u64) < LINE_MAX);
        let endless = vec![b'a'; LINE_MAX as usize + 10];
        assert!(read::<Ask>(&mut endless.as_slice()).await.is_err());
    }

    /// What guards of earlier versions said must be understood for ever.
    #[test]
    fn the_first_version_is_understood() {
        let text = r#"{"version":1,"program":"0.1.0","pid":4711,"deadline":123456}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        assert_eq!((answer.version, answer.deadline), (1, Some(Mono(123_456))));
        assert_eq!(serde_json::to_string(&Ask::End).unwrap(), r#"{"ask":"end"}"#);
        assert_eq!(serde_json::to_string(&Ask::State).unwrap(), r#"{"ask":"state"}"#);
    }
}
