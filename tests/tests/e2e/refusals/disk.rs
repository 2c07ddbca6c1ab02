//! A small disk that can be filled.

use anyhow::{Result, ensure};
use flotilla_tests::{browser::PAGE_LIMIT, process::run};
use tokio::process::Command;

/// A file system in memory, of so many megabytes; only root may mount one.
pub(super) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(super) async fn mount(megabytes: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut mount = as_root("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=1777"), "tmpfs"]).arg(directory.path());
        run(&mut mount, PAGE_LIMIT).await?;
        Ok(Self(directory))
    }

    /// Takes all the room that is left.
    pub(super) fn fill(&self) -> Result<()> {
        let filler = std::fs::File::create(self.filler())?;
        let written = std::io::copy(&mut std::io::repeat(7), &mut &filler);
        ensure!(written.is_err(), "the disk does not get full");
        Ok(())
    }

    pub(super) fn relieve(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> std::path::PathBuf {
        self.path().join("filler")
    }

    pub(super) fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("-l").arg(self.0.path()).as_std_mut().status();
    }
}

fn as_root(program: &str) -> Command {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}
