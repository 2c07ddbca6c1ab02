//! One simulated machine: its power, its programs, its engine.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    time::timeout,
};

use super::{
    cgroup::Group,
    network::{Network, Socket},
    probe::Probe,
    shell::{self, run},
};
use crate::{process, process::Process, repository, wait};

/// A machine has mounts to make, and no more.
const BOOT_LIMIT: Duration = Duration::from_secs(20);
/// Ten engines that start at once on two cores.
const ENGINE_LIMIT: Duration = Duration::from_secs(90);
/// From SIGKILL to the end of the last process of a machine.
const OFF_LIMIT: Duration = Duration::from_secs(20);
/// What a program that is run in a machine may take, unless it says otherwise.
const EXEC_LIMIT: Duration = Duration::from_secs(60);
/// A ping of an engine.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// What the file system of a machine's /srv is. A power loss of either leaves what was synced, and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Files share what they have in common.
    Xfs,
    /// Files can't.
    Ext4,
}

/// A machine's disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) file_system: FileSystem,
    /// Of which those take room that were written once.
    pub(super) megabytes: u32,
}

impl Disk {
    /// What makes its file system. All of it: nothing is left to be done while it is used.
    fn make(self) -> &'static str {
        match self.file_system {
            FileSystem::Xfs => "mkfs.xfs -q",
            FileSystem::Ext4 => "mkfs.ext4 -q -m 0 -E lazy_itable_init=0,lazy_journal_init=0",
        }
    }
}

/// What a machine is made of, and keeps over its power losses.
#[derive(Debug)]
pub(super) struct Hardware {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) group: Group,
    pub(super) socket: Socket,
    /// Emptied by a power loss.
    pub(super) run: PathBuf,
    /// Kept over a power loss.
    pub(super) disk: PathBuf,
    /// The disk of its /srv.
    pub(super) srv: Disk,
    pub(super) engine_flags: Vec<String>,
    /// Lines for /etc/hosts.
    pub(super) hosts: String,
}

#[derive(Debug)]
pub struct Machine {
    pub(super) hardware: Hardware,
    power: Option<Power>,
    engine: Option<Process>,
    pub(super) daemon: Option<Process>,
    pub(super) login_manager: Option<Process>,
    suspended: bool,
}

/// A machine that is on.
#[derive(Debug)]
struct Power {
    /// `unshare`, which ends with the machine's process 1.
    unshare: Child,
    /// Process 1, as this machine sees it.
    init: i32,
}

impl Machine {
    /// New, with an empty disk, and off.
    pub(super) fn build(hardware: Hardware) -> Result<Self> {
        for directory in ["docker", "etc-docker"] {
            fs::create_dir_all(hardware.disk.join(directory))?;
        }
        fs::set_permissions(hardware.disk.join("docker"), fs::Permissions::from_mode(0o711))?;
        let Disk { megabytes, .. } = hardware.srv;
        let (image, make) = (hardware.disk.join("disk.img"), hardware.srv.make());
        run(&format!("truncate -s {megabytes}M '{0}'; {make} '{0}'", image.display()))
            .context("make a disk; `tests/setup/install bed` installs what is missing")?;
        // Mount points on this machine, which may never have had an engine.
        for directory in ["/var/lib/docker", "/etc/docker"] {
            fs::create_dir_all(directory)?;
        }
        Ok(Self { hardware, power: None, engine: None, daemon: None, login_manager: None, suspended: false })
    }

    pub fn name(&self) -> &str {
        &self.hardware.name
    }

    pub fn address(&self) -> Ipv4Addr {
        self.hardware.socket.address
    }

    /// Can others reach its address, or is it behind a router?
    pub fn is_public(&self) -> bool {
        !self.hardware.socket.behind_nat
    }

    pub fn is_on(&self) -> bool {
        self.power.is_some()
    }

    pub(super) fn port(&self) -> usize {
        self.hardware.socket.port
    }

    /// Its /srv, as this machine sees it while it is on.
    pub fn srv(&self) -> PathBuf {
        self.hardware.run.join("srv")
    }

    /// What looks at it from outside.
    pub fn probe(&self) -> Result<Probe> {
        Ok(Probe {
            machine: self.hardware.name.clone(),
            namespace: self.hardware.namespace.clone(),
            containers: self.hardware.group.containers()?,
            engine: self.hardware.disk.join("docker"),
            srv: self.srv(),
        })
    }

    /// Power on: an empty /run, new namespaces, no program but process 1. Engine and node are started by themselves.
    pub(super) async fn boot(&mut self, network: &mut Network) -> Result<()> {
        ensure!(self.power.is_none(), "{} is on", self.hardware.name);
        self.prepare_run()?;
        network.add(&self.hardware.namespace)?;
        network.plug(&self.hardware.namespace, &self.hardware.socket)?;
        self.hardware.group.make()?;

        let log = fs::File::options().create(true).append(true).open(self.log("init"))?;
        let mut command = std::process::Command::new("sh");
        command.arg("-c").arg(format!(r#"{}; exec "$@""#, self.hardware.group.join()?)).arg("sh");
        command.arg("nsenter").arg(format!("--net={}", shell::path(&self.hardware.namespace))).arg("--");
        // With `--kill-child` the machine does not outlive the process that holds it.
        command.args(["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--"]);
        command.arg(repository().join("tests/bed/machine")).arg(&self.hardware.name);
        command.arg(&self.hardware.run).arg(&self.hardware.disk);
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut unshare = command.spawn().context("start a machine's process 1")?;

        let ready = self.hardware.run.join("run/ready");
        let init = wait::until(format!("{} to boot", self.hardware.name), BOOT_LIMIT, async || {
            if let Some(status) = unshare.try_wait()? {
                return Ok(Some(Err(anyhow::anyhow!("its process 1 ended with {status}"))));
            }
            let written = fs::read_to_string(&ready).ok();
            Ok(written.map(|pid| pid.trim().parse::<i32>().context("a process id")))
        })
        .await;
        match init.and_then(|init| init) {
            Ok(init) => {
                let srv = self.hardware.run.join("srv");
                let _ = fs::remove_file(&srv);
                std::os::unix::fs::symlink(format!("/proc/{init}/root/srv"), &srv)?;
                self.power = Some(Power { unshare, init });
                Ok(())
            }
            Err(error) => {
                let _ = unshare.kill();
                let _ = unshare.wait();
                let said = fs::read_to_string(self.log("init")).unwrap_or_default();
                Err(error).with_context(|| format!("{} said:\n{said}", self.hardware.name))
            }
        }
    }

    fn prepare_run(&self) -> Result<()> {
        let Hardware { run, name, hosts, .. } = &self.hardware;
        let _ = fs::remove_dir_all(run.join("run"));
        for directory in ["run/lock", "cgroup", "etc", "logs"] {
            fs::create_dir_all(run.join(directory))?;
        }
        fs::write(run.join("etc/hostname"), format!("{name}\n"))?;
        fs::write(run.join("etc/resolv.conf"), "# No name server here.\noptions timeout:1 attempts:1\n")?;
        fs::write(run.join("etc/hosts"), format!("127.0.0.1 localhost\n127.0.1.1 {name}\n{hosts}"))?;
        Ok(())
    }

    /// Power loss: the cable first, as a machine without power says no goodbye; then what is not on its disk; then everything in it.
    pub(super) fn power_off(&mut self, network: &mut Network) -> Result<()> {
        let Some(mut power) = self.power.take() else { return Ok(()) };
        self.hardware.socket.set_link(false)?;
        // The file system ends as it is: what was not synced is gone. That is the same call for ext4 as for xfs.
        run(&format!("nsenter -t {} -m -- xfs_io -x -c shutdown /srv", power.init))?;
        let end = Instant::now() + OFF_LIMIT;
        loop {
            let processes = self.hardware.group.processes()?;
            if processes.is_empty() {
                break;
            }
            ensure!(Instant::now() < end, "{} still has the processes {processes:?}", self.hardware.name);
            for pid in processes.into_iter().filter_map(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
            // Only now, as what is frozen would else do something before it ends.
            self.hardware.group.thaw_all()?;
            std::thread::sleep(Duration::from_millis(2));
        }
        power.unshare.wait()?;
        self.suspended = false;
        self.engine = None;
        self.daemon = None;
        self.login_manager = None;
        self.hardware.group.remove()?;
        network.remove(&self.hardware.namespace, &self.hardware.socket)
    }

    /// Nothing in it runs, its network is gone, its clock goes on. Nobody is told before, as when a virtual machine's host pauses it;
    /// with [`Self::fall_asleep`] its login manager tells.
    pub fn suspend(&mut self) -> Result<()> {
        ensure!(self.power.is_some(), "{} is off", self.hardware.name);
        self.hardware.group.freeze(true)?;
        self.suspended = true;
        self.hardware.socket.set_link(false)
    }

    /// All in it goes on at once, where it was.
    pub fn wake(&mut self) -> Result<()> {
        ensure!(self.suspended, "{} is not suspended", self.hardware.name);
        self.suspended = false;
        self.hardware.socket.set_link(true)?;
        let _ = fs::remove_file(self.falls_asleep());
        self.hardware.group.freeze(false)
    }

    /// A program in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let power = self.power.as_ref().with_context(|| format!("{} is off", self.hardware.name))?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(r#"{}; exec "$@""#, self.hardware.group.join()?)).arg("sh");
        command.args(["nsenter", "-t", &power.init.to_string(), "-m", "-u", "-i", "-n", "-p", "--"]).arg(program);
        command.env("HOME", "/srv").env_remove("XDG_CONFIG_HOME").env_remove("DOCKER_HOST");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLOTILLA_") {
                command.env_remove(name);
            }
        }
        Ok(command)
    }

    /// Runs a program in it to its end, which has to be a success, and returns its output.
    pub async fn exec(&self, arguments: &[&str]) -> Result<String> {
        let (program, arguments) = arguments.split_first().context("a program to run")?;
        process::run(self.command(program)?.args(arguments), EXEC_LIMIT).await
    }

    /// Bytes that it has sent so far.
    pub async fn sent(&self) -> Result<u64> {
        let devices = self.exec(&["cat", "/proc/net/dev"]).await?;
        let line = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("a device")?;
        Ok(line.split_whitespace().nth(8).context("bytes that were sent")?.parse()?)
    }

    /// Starts its engine and waits until that answers.
    pub async fn start_engine(&mut self) -> Result<()> {
        self.launch_engine()?;
        self.engine_answers().await
    }

    pub(super) fn launch_engine(&mut self) -> Result<()> {
        let mut command = self.command("dockerd")?;
        command.args(["--data-root", "/var/lib/docker", "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid"]);
        command.args(["-H", "unix:///run/docker.sock", "--log-level", "warn"]);
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--cgroup-parent", &self.hardware.group.of_containers()]).args(&self.hardware.engine_flags);
        self.engine = Some(Process::spawn(&mut command, &self.log("engine"))?);
        Ok(())
    }

    pub(super) async fn engine_answers(&mut self) -> Result<()> {
        let socket = self.hardware.run.join("run/docker.sock");
        let engine = self.engine.as_mut().context("its engine was not started")?;
        let ready = wait::until(format!("the engine of {}", self.hardware.name), ENGINE_LIMIT, async || {
            if let Some(status) = engine.ended()? {
                return Ok(Some(Err(anyhow::anyhow!("it ended with {status}"))));
            }
            Ok(ping(&socket).await.then_some(Ok(())))
        })
        .await;
        ready.and_then(|ready| ready).with_context(|| format!("the engine said:\n{}", engine.output()))
    }

    /// SIGKILL for the engine alone; the containers are left.
    pub async fn kill_engine(&mut self) -> Result<()> {
        self.exec(&["sh", "-c", "kill -KILL $(cat /run/docker.pid) && rm -f /run/docker.pid"]).await?;
        if let Some(mut engine) = self.engine.take() {
            engine.wait(OFF_LIMIT).await?;
        }
        Ok(())
    }

    /// `docker` of this machine, for the engine in it.
    pub fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.hardware.run.join("run/docker.sock").display()));
        command
    }

    /// Gives its engine an image, from an archive as `docker save` writes it.
    pub async fn load(&self, archive: &Path) -> Result<()> {
        process::run(self.docker().args(["load", "-q", "-i"]).arg(archive), EXEC_LIMIT).await.map(drop)
    }

    /// Fills its disk, so that not even a page is left, with a file that [`Self::free_disk`] removes.
    pub async fn fill_disk(&self) -> Result<()> {
        // Large pieces first, then what is left of the free space, which the file system rounds.
        let script = "for size in 64M 1M 64k 4k; do
                n=0; while fallocate -l $size /srv/.full-$size-$n 2>/dev/null; do n=$((n + 1)); done; rm -f /srv/.full-$size-$n
            done";
        self.exec(&["sh", "-c", script]).await.map(drop)
    }

    pub async fn free_disk(&self) -> Result<()> {
        self.exec(&["sh", "-c", "rm -f /srv/.full-*"]).await.map(drop)
    }

    /// Where the output of one of its programs goes, over all its power losses.
    pub fn log(&self, of: &str) -> PathBuf {
        self.hardware.run.join("logs").join(format!("{of}.log"))
    }

    /// Where others find its node.
    pub fn listen(&self) -> SocketAddr {
        (self.address(), super::node::PORT).into()
    }
}

async fn ping(socket: &Path) -> bool {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").await?;
        let mut answer = [0; 64];
        let read = stream.read(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer[..read]).contains(" 200 "))
    };
    matches!(timeout(PING_LIMIT, asked).await, Ok(Ok(true)))
}
