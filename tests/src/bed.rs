//! A test bed: simulated machines on this one, each with its own network, processes, mounts, host name and control groups, and
//! with a Docker Engine of its own. Their power can be lost, their network cut, their lid closed.
//!
//! Whoever makes a bed is on its network from then on: the calling thread's sockets are those of a client's machine beside the
//! simulated ones, and reach nothing else. So do the threads and programs that it starts.
//!
//! It needs root, Linux, `nft`, `ip`, `mkfs.xfs`, `mkfs.ext4`, `nsenter` and `dockerd`: `tests/setup/install bed` installs what is missing.

mod cable;
mod cgroup;
pub mod cluster;
mod line;
mod machine;
mod network;
mod node;
pub mod probe;
mod shell;
mod sleep;
mod sweep;
pub mod visitor;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

pub use self::{
    cluster::Cluster,
    line::Line,
    machine::{FileSystem, Machine},
    network::Nat,
};
use self::{
    machine::{Disk, Hardware},
    network::{CLIENT, Network},
    sweep::Name,
};

/// Names of machines end up in a /24 with room for routers and the client.
const MACHINES_MAX: usize = 20;

/// Several megabytes of log and file system come with every xfs, and it is the smallest that `mkfs` makes.
const DISK_MB: u32 = 400;

/// What to build.
#[derive(Clone, Debug)]
pub struct BedSpec {
    sites: Vec<Site>,
    internet: bool,
    engines: bool,
    engine_flags: Vec<String>,
    disk: Disk,
    line: Option<Line>,
}

/// Machines in one place: each directly at the switch, or all behind one router.
#[derive(Clone, Copy, Debug)]
struct Site {
    nat: Option<Nat>,
    machines: usize,
}

impl BedSpec {
    /// Machines of one home: all at one switch.
    pub fn lan(machines: usize) -> Self {
        Self {
            sites: vec![Site { nat: None, machines }],
            internet: false,
            engines: true,
            engine_flags: Vec::new(),
            disk: Disk { file_system: FileSystem::Xfs, megabytes: DISK_MB },
            line: None,
        }
    }

    /// Nobody yet, on an Internet whose addresses are public; places follow with [`Self::public`] and [`Self::behind`].
    pub fn internet() -> Self {
        Self { sites: Vec::new(), internet: true, ..Self::lan(0) }
    }

    /// Machines with public addresses.
    #[must_use]
    pub fn public(mut self, machines: usize) -> Self {
        self.sites.push(Site { nat: None, machines });
        self
    }

    /// Machines behind one router.
    #[must_use]
    pub fn behind(mut self, nat: Nat, machines: usize) -> Self {
        self.sites.push(Site { nat: Some(nat), machines });
        self
    }

    /// The size of each machine's /srv, where its node keeps everything.
    #[must_use]
    pub fn disk_mb(mut self, megabytes: u32) -> Self {
        self.disk.megabytes = megabytes;
        self
    }

    /// What each machine's /srv is made with: xfs, if nothing is said.
    #[must_use]
    pub fn file_system(mut self, file_system: FileSystem) -> Self {
        self.disk.file_system = file_system;
        self
    }

    /// What each machine's cable is like, and that of each router to the Internet. The client's is short and fast.
    #[must_use]
    pub fn shaped(mut self, line: Line) -> Self {
        self.line = Some(line);
        self
    }

    /// Without engines: a network and machines alone.
    #[must_use]
    pub fn without_engines(mut self) -> Self {
        self.engines = false;
        self
    }

    /// Flags of `dockerd`.
    #[must_use]
    pub fn engine_flags(mut self, flags: &[&str]) -> Self {
        self.engine_flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self
    }
}

#[derive(Debug)]
pub struct Bed {
    // Before the network, which can't be taken away below them.
    machines: Vec<Machine>,
    network: Network,
    name: Name,
    spec: BedSpec,
}

impl Bed {
    /// Builds and boots all machines, and starts their engines.
    pub async fn up(spec: BedSpec) -> Result<Self> {
        if let Some(reason) = unavailable() {
            bail!("{reason}");
        }
        let one_thread = tokio::runtime::Handle::current().runtime_flavor();
        ensure!(
            one_thread == tokio::runtime::RuntimeFlavor::CurrentThread,
            "a bed is made on a runtime of one thread, as that thread is on its network from then on"
        );
        sweep::the_dead().context("take down what an earlier run has left")?;

        let name = Name::new()?;
        fs::create_dir_all(name.run())?;
        fs::create_dir_all(name.disks())?;
        let network = Network::make(&name.of_namespaces(), spec.internet, spec.line)?;
        let mut bed = Self { machines: Vec::new(), network, name, spec };
        bed.build()?;
        probe::enter_network(&bed.network.client())?;
        for machine in &mut bed.machines {
            machine.boot(&mut bed.network).await?;
        }
        bed.start_engines().await?;
        Ok(bed)
    }

    /// [`Self::up`], where that is possible; see [`Self::can_be_made`].
    pub async fn up_or_skip(spec: BedSpec) -> Result<Option<Self>> {
        if Self::can_be_made()? { Self::up(spec).await.map(Some) } else { Ok(None) }
    }

    /// Where no bed can be made, it says why the test is skipped.
    ///
    /// # Errors
    /// In continuous integration, where nothing may be skipped.
    pub fn can_be_made() -> Result<bool> {
        let Some(reason) = unavailable() else { return Ok(true) };
        ensure!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("SKIPPED, nothing was tested: {reason}");
        Ok(false)
    }

    fn build(&mut self) -> Result<()> {
        let mut sockets = Vec::new();
        let mut port = CLIENT;
        for site in self.spec.sites.clone() {
            if let Some(nat) = site.nat {
                port += 1;
                sockets.extend(self.network.router(port, nat, site.machines)?);
            } else {
                sockets.extend((0..site.machines).map(|_| {
                    port += 1;
                    self.network.socket(port)
                }));
            }
        }
        ensure!((1..=MACHINES_MAX).contains(&sockets.len()), "a bed has 1 to {MACHINES_MAX} machines");
        let hosts: String = (1..)
            .zip(&sockets)
            .filter(|(_, socket)| !socket.behind_nat)
            .map(|(number, socket)| format!("{} m{number}\n", socket.address))
            .collect();
        for (number, socket) in (1..).zip(sockets) {
            let name = format!("m{number}");
            self.machines.push(Machine::build(Hardware {
                namespace: format!("{}-{name}", self.name.of_namespaces()),
                group: self.name.group(&name),
                socket,
                run: self.name.run().join(&name),
                disk: self.name.disks().join(&name),
                srv: self.spec.disk,
                engine_flags: self.spec.engine_flags.clone(),
                hosts: hosts.clone(),
                name,
            })?);
        }
        Ok(())
    }

    async fn start_engines(&mut self) -> Result<()> {
        if self.spec.engines {
            // All begin, then all are waited for.
            for machine in &mut self.machines {
                machine.launch_engine()?;
            }
            for machine in &mut self.machines {
                machine.engine_answers().await?;
            }
        }
        Ok(())
    }

    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// Of the test itself.
    pub fn client(&self) -> Ipv4Addr {
        self.network.socket(CLIENT).address
    }

    /// By position, from 0.
    pub fn machine(&mut self, index: usize) -> &mut Machine {
        &mut self.machines[index]
    }

    /// By the name that it has in the cluster.
    pub fn index_of(&self, name: &str) -> Result<usize> {
        self.machines.iter().position(|machine| machine.name() == name).with_context(|| format!("no machine {name}"))
    }

    /// Power loss of one machine: its cable, what is not on its disk, then everything in it.
    pub fn power_off(&mut self, index: usize) -> Result<()> {
        self.machines[index].power_off(&mut self.network)
    }

    /// Power on, with an engine if the others have one. Its node is started by whoever wants it.
    pub async fn boot(&mut self, index: usize) -> Result<()> {
        self.machines[index].boot(&mut self.network).await?;
        if self.spec.engines {
            self.machines[index].start_engine().await?;
        }
        Ok(())
    }

    /// Cuts machines off from all others that are not among them; the client still reaches both sides.
    pub fn partition(&mut self, side: &[usize]) -> Result<()> {
        let (left, right) = self.sides(side);
        self.network.between(&left, &right, true)
    }

    /// Cuts machines off from all others and from the client.
    pub fn isolate(&mut self, side: &[usize]) -> Result<()> {
        let (left, mut right) = self.sides(side);
        right.push(CLIENT);
        self.network.between(&left, &right, true)
    }

    /// Cuts one pair, and leaves what each has with the others.
    pub fn cut(&mut self, one: usize, other: usize) -> Result<()> {
        let ports = [self.machines[one].port(), self.machines[other].port()];
        self.network.between(&ports[..1], &ports[1..], true)
    }

    /// Takes back all cuts.
    pub fn heal(&mut self) -> Result<()> {
        self.network.heal()
    }

    fn sides(&self, side: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let left: Vec<usize> = side.iter().map(|&index| self.machines[index].port()).collect();
        let right = self.machines.iter().map(Machine::port).filter(|port| !left.contains(port)).collect();
        (left, right)
    }

    /// A directory for what a test writes, which is gone with the bed.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.name.run().join(name)
    }

    /// Leaves the logs of all machines beside those of the other tests.
    fn keep_logs(&self) {
        let test = std::thread::current().name().unwrap_or("bed").replace("::", "-");
        let directory = crate::artefacts().join(test);
        for machine in &self.machines {
            for log in ["node", "engine", "init"] {
                let to = directory.join(machine.name());
                let _ = fs::create_dir_all(&to);
                let _ = fs::copy(machine.log(log), to.join(format!("{log}.log")));
            }
        }
        eprintln!("the logs of all machines are in {}", directory.display());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.keep_logs();
        for machine in &mut self.machines {
            if let Err(error) = machine.power_off(&mut self.network) {
                eprintln!("a machine could not be taken down: {error:#}");
            }
        }
        if let Err(error) = self.name.take_down() {
            eprintln!("the bed could not be taken down: {error:#}");
        }
    }
}

/// Why no bed can be made here.
fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("simulated machines need root: run `make bed`, which asks for it".to_owned());
    }
    let missing: Vec<&str> =
        ["nft", "ip", "mkfs.xfs", "xfs_io", "mkfs.ext4", "nsenter", "unshare", "dockerd", "docker"]
            .into_iter()
            .filter(|program| !installed(program))
            .collect();
    (!missing.is_empty()).then(|| format!("{} is missing: `tests/setup/install bed` installs it", missing.join(", ")))
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(program).is_file())
}
